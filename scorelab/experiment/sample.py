"""The sampling stage: from the newest checkpoint to ``samples.npz``, shards where there are many, and pictures."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from scorelab import fk, grids, hosts, solvers, viz
from scorelab.arrays import Key, Pytree, on_host
from scorelab.data.memory import require_memory
from scorelab.errors import ConfigError, ConfigWarning, shown
from scorelab.experiment import previews
from scorelab.experiment.base import Experiment, Run, Stage
from scorelab.experiment.checkpoints import host_state
from scorelab.experiment.data import DataSpec
from scorelab.experiment.describe import describe
from scorelab.experiment.holes import filling, holed
from scorelab.experiment.inpaint import Inpainting
from scorelab.experiment.pictures import frames, picture, pictured, trajectory
from scorelab.experiment.starts import FromData
from scorelab.experiment.train import Train, layout_of, trained_state
from scorelab.experiment.workdir import NAME, Workdir
from scorelab.files import DamagedFile, read_npz, write_bytes, write_npz
from scorelab.models import ClassifierFreeGuidance, Clipped, DynamicThreshold, Inpainted, ScaleAt
from scorelab.models.base import Model
from scorelab.processes.charts import Identity
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.scale import TOLERATED, prior_error
from scorelab.randomness import per_example_keys
from scorelab.sampling import Samples, sample
from scorelab.shards import MadeOtherwise, Progress, Shards, difference, sample_to
from scorelab.solvers.base import population_size
from scorelab.starts import Fixed, Start
from scorelab.training import Learner, data_mesh
from scorelab.validation import require_int, require_number, require_positive, require_seed, require_spec
from scorelab.warn import warn

# Samples beyond which they are written in shards unless the stage says otherwise: such a sampling takes long enough to be stopped.
LONG = 10_000
# What the names of the members of a condition begin with in ``samples.npz``.
_MEMBER = "cond_"
# The stream of the key from which a base is drawn, beside those of the walk.
_BASE = 2_000_000_033


@dataclass(frozen=True, kw_only=True)
class Sample(Stage):
    """Sample the trained model, and write the samples with their pictures.

    Attributes:
        name: of the set, in ``samples/<name>``; without a name it lies in the work directory itself.
        solver: the solver.
        grid: the time grid.
        start: the law at the first grid time, a ``DataStart`` or ``DataTeleport`` to take it from the training
            data, None for the prior. Of an interpolant whose data are paired with their base, the prior under a condition is the
            base rows that belong to the conditions. Under ``data.Inpainting`` samples begin at rows of ``split`` with noise in
            their holes, and end as these rows with their holes filled.
        n: number of samples.
        guidance: scale of classifier-free guidance, a number or a :class:`scorelab.models.ScaleAt` of the noise, None for the plain
            model; needs a condition.
        rescale: how far the deviation of the guided denoised mean is brought back, from 0 to 1
            (:class:`scorelab.models.ClassifierFreeGuidance`); None for not at all.
        clip: the lowest and the highest value of the denoised mean in the chart (:class:`scorelab.models.Clipped`); None for none.
        threshold: the quantile of dynamic thresholding, for data within -1 and 1 (:class:`scorelab.models.DynamicThreshold`); None
            for none.
        correction: a :class:`scorelab.fk.Correction` of the model, None for none; needs a ``solver`` that is a ``fk.FeynmanKac``.
        inpainting: an :class:`Inpainting` of one image of the data by every sample, None for none.
        classes: the conditions where they are labels alone, given to the samples in turn; () for every class of the data.
        split: the split whose rows have the conditions that ``DataSpec.cond`` names, or the holes, in a fixed random order; None
            for ``"test"`` where there is one, else ``"train"``.
        chunk: samples computed at once, None for as many as fit.
        shown: samples in the trajectory picture.
        shards: write a file for each chunk, in ``shards/`` (:func:`scorelab.sample_to`): a sampling that was stopped goes on, and
            takes the memory of one chunk. ``samples.npz`` then has everything but the samples. None for above 10,000.
    """

    solver: solvers.Solver = field(default_factory=solvers.Heun)
    grid: grids.Grid = field(default_factory=lambda: grids.Karras(18))
    start: Start | FromData | None = None
    n: int = 100
    guidance: float | ScaleAt | None = None
    correction: fk.Correction | None = None
    inpainting: Inpainting | None = None
    classes: tuple[int, ...] = ()
    split: str | None = None
    chunk: int | None = None
    shown: int = 6
    rescale: float | None = None
    clip: tuple[float, float] | None = None
    threshold: float | None = None
    # Not in what is recorded of a sampler: it changes where samples are and not which.
    shards: bool | None = field(default=None, repr=False)

    on_every_host = True

    def __post_init__(self):
        require_spec(self, str, name=self.name)
        if self.name and not NAME.fullmatch(self.name):
            raise ValueError(f"Sample.name = {self.name!r}: expected a name of letters, digits, '.', '_' and '-'")
        require_spec(self, solvers.Solver, solver=self.solver)
        require_spec(self, grids.Grid, grid=self.grid)
        if self.start is not None:
            require_spec(self, Start | FromData, start=self.start)
        require_int(self, 1, n=self.n, shown=self.shown)
        if self.shards is not None:
            require_spec(self, bool, shards=self.shards)
        if self.guidance is not None and not isinstance(self.guidance, ScaleAt):
            require_number(self, -1000.0, 1000.0, guidance=self.guidance)
        self._check_bounds()
        if self.chunk is not None:
            require_int(self, 1, chunk=self.chunk)
        solver: Any = self.solver
        weighting = isinstance(solver, fk.FeynmanKac)
        if weighting and not solver.resample_final:
            raise ValueError(
                "Sample.solver = FeynmanKac(resample_final=False): expected True, since stored samples have equal weights"
            )
        if self.correction is not None:
            require_spec(self, fk.Correction, correction=self.correction)
            if not weighting or self.guidance is not None or self.start is not None:
                raise ValueError(
                    "Sample.correction is given: expected a solver that is a fk.FeynmanKac, no guidance and no start, since "
                    "a correction brings its own"
                )
        if self.inpainting is not None:
            require_spec(self, Inpainting, inpainting=self.inpainting)
            if self.correction is not None:
                raise ValueError("Sample.inpainting and Sample.correction are both given: expected one of them")
        if self.n % (particles := population_size(self.solver, self.n)):
            raise ValueError(f"Sample.n = {self.n}: expected a multiple of the {particles} particles of a population")
        require_spec(self, tuple | list, classes=self.classes)
        object.__setattr__(self, "classes", tuple(self.classes))
        for label in self.classes:
            require_int(self, 0, classes=label)

    def _check_bounds(self) -> None:
        if self.rescale is not None:
            require_number(self, 0.0, 1.0, rescale=self.rescale)
            if self.guidance is None:
                raise ValueError(f"Sample.rescale = {self.rescale} without guidance: expected a scale of guidance, or None")
        if self.clip is not None:
            number = lambda end: isinstance(end, int | float) and not isinstance(end, bool) and math.isfinite(end)
            ends = tuple(self.clip) if isinstance(self.clip, tuple | list) else ()
            if len(ends) != 2 or not all(map(number, ends)) or not ends[0] < ends[1]:
                raise ValueError(f"Sample.clip = {self.clip!r}: expected two numbers (low, high) with low < high, or None")
            object.__setattr__(self, "clip", ends)
        if self.threshold is not None:
            require_number(self, 0.0, 1.0, threshold=self.threshold)
            require_positive(self, threshold=self.threshold)
            if self.clip is not None:
                raise ValueError(f"Sample.threshold = {self.threshold} with clip = {self.clip}: expected one of them")
        if self.correction is not None and (self.clip is not None or self.threshold is not None):
            raise ValueError(
                "Sample.correction with clip or threshold: expected neither, since weights are those of scores of laws"
            )

    def check(self, experiment, like):
        """The number of samples, the classes, the start, and the whole sampling run, traced."""
        experiment.require_order(self, experiment.one(Train))
        data, process, learner = experiment.data, experiment.process, experiment.learner
        event = data.load().event_shape
        require_memory(f"Sample.n = {self.n}", self.held(self.n, event))
        self._check_classes(data, learner, holed(process))
        if self.threshold is not None and not isinstance(process.chart, Identity):
            raise ValueError(
                f"Sample.threshold = {self.threshold} under {process!r}: expected None, since it is for data within -1 and "
                "1; Sample.clip has bounds in the chart"
            )
        # Before the numbers of a process are asked for that another kind does not have.
        require_spec(f"Sample.solver = {type(self.solver).__name__}", self.solver.process_type, process=process)
        times = self.grid.times(process)
        if isinstance(self.start, FromData):
            self.start.check(data, process, times)
        elif self.start is not None:
            with warnings.catch_warnings():
                # What does not suit the model is said when it is sampled.
                warnings.simplefilter("ignore")
                self.start.check(self.n, event, process)
                _, times = self.start.on_grid(process, times)
        elif process.has_signs:
            raise ValueError(f"Sample.start = None under {process!r}: expected DataStart(kind='signed'), which has the signs")
        if self.inpainting is not None:
            self.inpainting.check(data, self.solver)
        if holed(process):
            self._check_holes(process)
        self.solver.table(process, times)
        self._trace(experiment, like)
        self._check_scale(experiment)

    def _check_classes(self, data: DataSpec, learner: Learner, filled: bool) -> None:
        geometric = self.correction is not None and self.correction.kind == "geometric"
        if data.condition is None:
            for field, value in (("classes", self.classes or None), ("guidance", self.guidance)):
                if value is not None:
                    raise ValueError(f"Sample.{field} = {value} without DataSpec.labels: expected a model with labels")
            if geometric:
                raise ValueError("Correction.kind = 'geometric' without DataSpec.labels: expected a class-conditional model")
        if data.cond is None and not filled:
            if self.split is not None:
                raise ValueError(f"Sample.split = {self.split!r} without DataSpec.cond: expected None")
        elif self.classes:
            raise ValueError(
                f"Sample.classes = {self.classes} with DataSpec.cond: expected (), since conditions are rows of the data"
            )
        elif self.split not in (None, *data.dataset.splits):
            raise ValueError(f"Sample.split = {self.split!r} for {data.name}: expected one of {', '.join(data.dataset.splits)}")
        if data.condition is None:
            return
        classes, solver = data.load().num_classes or 0, self.solver
        if wrong := [label for label in self.classes if label >= classes]:
            raise ValueError(f"Sample.classes = {self.classes}: expected 0 to {classes - 1} for {data.name}, not {wrong[0]}")
        if isinstance(solver, fk.FeynmanKac) and solver.particles is None and len(self.classes) != 1:
            raise ValueError(
                "FeynmanKac.particles = None with DataSpec.labels: expected a number of particles, since a population is of one "
                "class, or one class in Sample.classes"
                if data.labels
                else "FeynmanKac.particles = None with DataSpec.cond: expected a number of particles, those of one condition"
            )
        if not learner.unconditional:
            reason = (
                "expected None, since without label dropout the model never learned what no condition means: train with "
                "DenoisingScoreMatching(label_dropout=0.1, null_label=num_classes), or a loss that states both; with a "
                "ConditionDropout, one that drops all members together"
            )
            if self.guidance not in (None, 1.0):
                raise ValueError(f"Sample.guidance = {self.guidance}: {reason}")
            if geometric:
                raise ValueError(f"Correction.kind = 'geometric': {reason}")

    def _check_holes(self, process: Any) -> None:
        where = f"under {process.coupling!r}"
        for name in ("start", "correction", "inpainting"):
            if getattr(self, name) is not None:
                raise ValueError(f"Sample.{name} is given {where}: expected None, since samples are rows with their holes filled")

    def _trace(self, experiment: Experiment, like: Pytree) -> None:
        """Trace the sampling run without running it: shapes of rewards, conditions and chunks that do not fit raise here."""
        data, process = experiment.data, experiment.process
        if process.has_signs:
            return

        # Where a start from data begins is of no matter to shapes.
        shape, cond = (self.n, *data.load().event_shape), self.conditions(data, self.n)
        begins = None if isinstance(self.start, FromData) else self.begin(data, process, cond, jax.random.key(0))
        hole, begins = self._filling(data, process, self.n, jax.random.key(0)) if holed(process) else (None, begins)

        def run(state, key):
            model, solver, start = self.applied(experiment.learner.model(state), data)
            model = model if hole is None else Inpainted(model=model, hole=hole)
            return sample(
                model, solver=solver, grid=self.grid, start=begins if start is None else start, key=key, shape=shape, cond=cond,
                chunk=self.chunk,
            ).x  # fmt: skip

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                jax.eval_shape(run, like, jax.random.key(0))
        except jax.errors.JAXTypeError:
            # A sampler that looks at values cannot be traced: it shows when it runs.
            return

    def _check_scale(self, experiment: Experiment) -> None:
        process = experiment.process
        # An interpolant begins at its base, whatever the data are.
        if self.start is not None or self.correction is not None or not isinstance(process, LinearGaussian):
            return
        mean, std = experiment.data.moments(process.chart)
        first = float(self.grid.times(process)[0])
        off_mean, off_std = prior_error(process, first, mean=mean, std=std)
        enough = max(abs(mean) / TOLERATED, std / math.sqrt((1 - TOLERATED) ** -2 - 1))
        if max(off_mean, off_std) > TOLERATED:
            warn(
                f"sampling starts from noise of {float(process.noise_ratio(first)):.4g} times the signal, but "
                f"{experiment.data.measured(process.chart)}: a start that does not know them moves the mean by about "
                f"{off_mean:.2g} standard deviations and narrows the samples by about {off_std:.2g} of their width. Expected noise "
                f"of at least {enough:.4g} (sigma_max, t_max), or Sample.start = @experiment.DataStart()",
                ConfigWarning,
            )

    def __call__(self, run: Run) -> None:
        """Sample the newest checkpoint, unless these very samples are there already."""
        draw(run, self, run.workdir.named(self.name))

    def preview(self, run: Run, step: int, state: Pytree) -> None:
        """The samples of the trajectory picture from the weights of ``step``, for the first of several ``Sample`` stages."""
        if run.experiment.one(Sample) is self:
            _preview(run, self, step, state)

    def applied(self, model: Model, data: DataSpec) -> tuple[Model, solvers.Solver, Start | None]:
        """The model and the solver that samples are drawn with, and the start of a correction, which brings its own."""
        if self.guidance is not None:
            model = ClassifierFreeGuidance(model=model, scale=self.guidance, rescale=self.rescale)
        if self.clip is not None:
            model = Clipped(model=model, low=self.clip[0], high=self.clip[1])
        if self.threshold is not None:
            model = DynamicThreshold(model=model, quantile=self.threshold)
        if self.inpainting is not None:
            return *self.inpainting(model, self.solver, data), None
        if self.correction is None:
            return model, self.solver, None
        return self.correction(model, cast(fk.FeynmanKac, self.solver))  # a correction is refused with any other

    def held(self, n: int, event: tuple[int, ...], sharded: bool | None = None) -> float:
        """Bytes that are in memory of ``n`` samples: all of them, or where they are in shards an id and a label of each."""
        each = 12.0 if (self.sharded(n) if sharded is None else sharded) else 4.0 * math.prod(event)
        return n * each

    def sharded(self, n: int) -> bool:
        """Whether ``n`` samples are written in shards."""
        return n > LONG if self.shards is None else self.shards

    def sampler(self, model: Model, data: DataSpec, cond: Pytree, key: Key, into: Path | None = None) -> Callable[..., Any]:
        """:func:`scorelab.sample` as this stage calls it, but for ``shape`` and ``cond``; :func:`scorelab.sample_to` a folder."""
        drawn: Callable[..., Any] = sample if into is None else functools.partial(sample_to, into)
        applied, solver, start = self.applied(model, data)
        if holed(process := model.process):

            def filled(*, shape: Any, **options: Any) -> Any:
                hole, start = self._filling(data, process, shape[0], key)
                whole = Inpainted(model=applied, hole=hole)
                return drawn(whole, solver=solver, grid=self.grid, start=start, key=key, shape=shape, **options)

            return filled
        start = self.begin(data, process, cond, key) if start is None else start
        return functools.partial(drawn, applied, solver=solver, grid=self.grid, start=start, key=key)

    def _filling(self, data: DataSpec, process: Any, n: int, key: Key) -> tuple[np.ndarray, Fixed]:
        return filling(data, process, self.conditions_split(data), self.rows(data, n), jax.random.fold_in(key, _BASE))

    def begin(self, data: DataSpec, process: Any, cond: Pytree, key: Key | None = None) -> Start | None:
        """The start of samples with the conditions ``cond``; the training data is read where it is needed.

        The noise of a base with noise is that of the key and the number of the sample. ValueError for such a base without a key.
        """
        paired = isinstance(process, StochasticInterpolant) and process.paired and not holed(process)
        if self.start is None and data.cond is not None and paired:
            n, noise = len(jax.tree.leaves(cond)[0]), process.coupling.noise
            base = data.load(self.conditions_split(data)).columns()["base"][self.rows(data, n)]
            base = np.asarray(data.transform.encode(base) if np.issubdtype(base.dtype, np.integer) else base)
            if noise and key is None:
                raise ValueError(f"Sample.begin.key = None under {process.coupling!r}: expected the key of its noise")
            if noise:
                keys = per_example_keys(jax.random.fold_in(cast(Key, key), _BASE), np.arange(n))
                z = jax.vmap(lambda key: jax.random.normal(key, base.shape[1:], base.dtype))(keys)
                base = base + np.asarray(noise * z, base.dtype)
            return Fixed(base)
        # Starts from data know classes, where these are the whole condition.
        return self.start(data, process, cond if data.labels else None) if isinstance(self.start, FromData) else self.start

    def conditions(self, data: DataSpec, n: int) -> Pytree:
        """The condition of each sample: labels ``(n,)`` int32, what ``DataSpec.cond`` names, or None for a model without."""
        if not data.labels:
            return None if data.cond is None else data.condition_of(self.rows(data, n), self.conditions_split(data))
        classes = self.classes or tuple(range(data.load().num_classes or 0))
        # The particles of a population are of one class.
        particles = population_size(self.solver, n)
        return np.repeat(np.resize(np.asarray(classes, np.int32), n // particles), particles)

    def conditions_split(self, data: DataSpec) -> str:
        """The split whose rows have the conditions."""
        return self.split or ("test" if "test" in data.dataset.splits else "train")

    def rows(self, data: DataSpec, n: int) -> np.ndarray:
        """The rows of :meth:`conditions_split` whose conditions ``n`` samples have, one for the particles of a population."""
        order = np.random.default_rng(0).permutation(len(data.load(self.conditions_split(data))))
        particles = population_size(self.solver, n)
        return np.repeat(np.resize(order, n // particles), particles)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Samples, and how they were drawn.

    Attributes:
        x: in stored values; on disk where they are in shards.
        label: their conditions where these are labels alone, else None.
        record: JSON data.
        cond: their conditions where the data give them, as the network was given them, else None.
        rows: the rows of the split ``record["split"]`` that the conditions are of, else None.
    """

    x: np.ndarray | Shards
    label: np.ndarray | None
    record: dict[str, Any]
    cond: Pytree = None
    rows: np.ndarray | None = None


def read_samples(workdir: Workdir) -> Drawn | None:
    """The samples of a work directory, None where there are none; DamagedFile where they are not what was written."""
    if not workdir.samples.is_file():
        return None
    # Samples that are all one point are compressed a thousandfold; anything beyond that has no place there.
    stored = read_npz(workdir.samples, limit=max(1 << 28, 256 * workdir.samples.stat().st_size), name=shown(workdir.samples))
    try:
        record = json.loads(str(stored["record"]))
        if missing := {"step", "n", "seed", "sampling", "seconds", "model_calls"} - record.keys():
            raise ValueError(f"its record has no {', '.join(sorted(missing))}")
        given = {name.removeprefix(_MEMBER): value for name, value in stored.items() if name.startswith(_MEMBER)}
        cond = given.get("") if "" in given else given or None
        x = stored["x"] if "x" in stored else _shards_of(workdir, record)
        return Drawn(x=x, label=stored.get("label"), record=record, cond=cond, rows=stored.get("rows"))
    except (KeyError, ValueError, AttributeError) as error:
        raise DamagedFile(f"{shown(workdir.samples)}: not samples written by `scorelab sample`: {error}") from error


def _shards_of(workdir: Workdir, record: Mapping[str, Any]) -> Shards:
    """The shards that ``samples.npz`` is about."""
    try:
        shards = Shards(workdir.shards)
    except FileNotFoundError as error:
        raise ValueError(f"it has no samples, and {error}") from error
    if any(record.get(name) != value for name, value in shards.record.items()):
        raise ValueError(f"it is about other samples than those in {shown(workdir.shards)}")
    return shards


def draw(run: Run, spec: Sample, workdir: Workdir, *, n: int | None = None, seed: int | None = None, keep: bool = False) -> Drawn:
    """Sample the newest checkpoint into ``workdir``, unless these very samples are there already.

    With ``keep``, ConfigError rather than the loss of other samples that were evaluated or are in shards, or of any file of
    another name.
    """
    if seed is not None:
        require_seed("sample", seed=seed)
    experiment, console = run.experiment, run.console
    data = experiment.data
    n = spec.n if n is None else n
    event, sharded = data.load().event_shape, spec.sharded(n) and workdir.out is None
    require_memory(f"sample.n = {n}", spec.held(n, event, sharded))
    state, step = trained_state(experiment, workdir, on_every_host=True)
    if sharded and hosts.count() > 1:
        # Each host draws on its own devices.
        state = host_state(state)
    how = {
        "step": step,
        "n": n,
        "seed": experiment.seed if seed is None else seed,
        "sampling": describe(spec),
        "train_sha256": data.load().sha256,
    }
    filled = holed(experiment.process)
    if data.cond is not None or filled:
        how["conditions_sha256"] = data.load(spec.conditions_split(data)).sha256
    before = _already(workdir, how, keep) if hosts.first() else None
    if hosts.agreed(before is not None):
        if before is None:
            return cast(Drawn, read_samples(workdir))
        console.stage("sample", f"nothing to do, {n} samples of step {step} are there")
        return before

    others = _replaced(run, workdir, how, keep, sharded) if hosts.first() and workdir.out is None else None
    cond = spec.conditions(data, n)
    sampler = _sampler(experiment, spec, state, cond, seed)
    given: dict[str, np.ndarray] = {}
    if sharded:
        into = _sampler(experiment, spec, state, cond, seed, workdir.shards)
        try:
            out = x = _into_shards(run, spec, workdir, into, cond, how, others)
        except MadeOtherwise as error:
            named = ", or pass --name for others" if keep else ""
            raise ConfigError(f"{error}: delete {_stored(workdir)} to draw them again{named}") from error
        record = {**how, "seconds": out.seconds(), "model_calls": int(out.diagnostics["model_calls"])}
    else:
        began = time.monotonic()
        with console.progress("sample", n) as tick:
            _, mesh = layout_of(experiment)
            progress = lambda done, total: tick(done)
            out = sampler(shape=(n, *event), cond=cond, chunk=spec.chunk, mesh=mesh, progress=progress)
            x = np.asarray(data.transform.decode(out.x if hosts.count() == 1 else jax.tree.map(on_host, out.x)))
        record = {**how, "seconds": time.monotonic() - began, "model_calls": int(out.diagnostics["model_calls"])}
        if hosts.count() > 1:
            out = dataclasses.replace(out, log_z=on_host(out.log_z), diagnostics=jax.tree.map(on_host, out.diagnostics))
        given["x"] = x
    note = _entered(out, record)
    if data.labels:
        given |= {"label": cond}
    elif cond is not None or filled:
        members = {} if cond is None else cond if isinstance(cond, Mapping) else {"": cond}
        given |= {"rows": spec.rows(data, n)} | {_MEMBER + name: value for name, value in members.items()}
        record["split"] = spec.conditions_split(data)
    drawn = Drawn(x=x, label=given.get("label"), record=record, cond=None if data.labels else cond, rows=given.get("rows"))
    # Host 0 draws the pictures alone. Of a state that is split it has a part, and all have to bring it together.
    split = hosts.count() > 1 and not sharded and not layout_of(experiment)[0].whole
    state = host_state(state) if split else state
    if not hosts.first():
        return drawn
    sampler = _sampler(experiment, spec, state, cond, seed) if split else sampler
    workdir.place.mkdir(parents=True, exist_ok=True)
    # Pictures of one sampler never lie beside samples of another, whenever this is stopped: those of before go first, and samples
    # without pictures are drawn again.
    _unlink(workdir.samples_picture, workdir.trajectory_picture)
    write_npz(workdir.samples, {**given, "record": np.asarray(json.dumps(record, allow_nan=False))})
    if not sharded and others is not None:
        others.remove()
    write_bytes(workdir.samples_picture, viz.to_png_bytes(picture(x, experiment)))
    write_bytes(workdir.trajectory_picture, viz.to_png_bytes(_trajectory(experiment, spec, sampler, cond, n)))
    where = "" if workdir.place == workdir.root else f", {shown(workdir.samples)}"
    console.stage("sample", f"{n} samples, {record['model_calls']} model calls each, {record['seconds']:.1f} s{note}{where}")
    return drawn


def _into_shards(
    run: Run,
    spec: Sample,
    workdir: Workdir,
    sampler: Callable[..., Shards],
    cond: Pytree,
    how: Mapping[str, Any],
    others: Shards | None,
) -> Shards:
    """Draw the shards that are missing, after the ``others`` are gone; MadeOtherwise, and no file less, as :func:`sample_to`."""
    console, data = run.console, run.experiment.data
    # What is not whole is not there: the file that is about all shards comes last.
    whole = (workdir.samples_picture, workdir.trajectory_picture, workdir.samples)
    if others is not None:
        _unlink(*whole)
        others.remove()
    hosts.exchange(None)  # all go on together
    # Each host draws shards of its own, on its own devices.
    _, mesh = layout_of(run.experiment)
    if hosts.count() > 1:
        mesh = data_mesh(jax.local_devices()) if jax.local_device_count() > 1 else None
    with ExitStack() as stack:
        ticks: list[Callable[[int], None]] = []

        def tell(progress: Progress) -> None:
            if not ticks:
                # Not before: now sample_to has accepted what lies there, and begins to draw.
                _unlink(*(whole if hosts.first() else ()))
                ticks.append(stack.enter_context(console.progress("sample", progress.total, progress.done)))
            ticks[0](progress.done)

        shards = sampler(
            shape=(how["n"], *data.load().event_shape), cond=cond, chunk=spec.chunk, mesh=mesh, transform=data.transform,
            record=how, progress=tell,
        )  # fmt: skip
    hosts.exchange(None)
    return shards


def _replaced(run: Run, workdir: Workdir, how: Mapping[str, Any], keep: bool, sharded: bool) -> Shards | None:
    """The shards that have to give way to the samples drawn like this, with a note; ConfigError where ``keep`` forbids that."""
    try:
        there = Shards(workdir.shards)
    except FileNotFoundError:
        return None
    except DamagedFile:
        if sharded:
            raise
        # One file lies elsewhere.
        return None
    same = there.record == json.loads(json.dumps(how))
    if same and sharded:
        return None
    if len(there.missing) == there.count:
        # Nothing was drawn yet.
        return there
    what = "these samples in shards" if same else f"samples that were drawn otherwise: {difference(there.record, how)}"
    if keep:
        raise ConfigError(f"{shown(workdir.shards)} holds {what}: pass --name for others, or delete {_stored(workdir)}")
    run.console.line(f"note: {shown(workdir.shards)} holds {what}; they are replaced")
    return there


def _stored(workdir: Workdir) -> str:
    """The names of what is there of a set in shards: the one without the other would be taken for damaged."""
    return " and ".join(shown(path) for path in (workdir.samples, workdir.shards) if path.exists())


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _sampler(
    experiment: Experiment, spec: Sample, state: Pytree, cond: Pytree, seed: int | None = None, into: Path | None = None
) -> Callable[..., Any]:
    """The sampler of a stage with the weights of ``state``, and the experiment's own key unless there is a ``seed``."""
    key = spec.key(experiment.keys()[1]) if seed is None else jax.random.key(seed)
    return spec.sampler(experiment.learner.model(state), experiment.data, cond, key, into)


def _already(workdir: Workdir, how: Mapping[str, Any], keep: bool) -> Drawn | None:
    """The samples that were drawn like this, with their pictures; None where there are none. ConfigError as :func:`draw`."""
    if keep and workdir.out is not None and workdir.out.exists():
        raise ConfigError(f"--out {shown(workdir.out)} exists: pass another name")
    if (before := read_samples(workdir)) is None:
        return None
    was = before.record
    if all(was.get(key) == value for key, value in how.items()):
        # A shard that is damaged is drawn again, as one that is missing.
        whole = isinstance(before.x, np.ndarray) or not before.x.damaged()
        return before if whole and workdir.samples_picture.is_file() and workdir.trajectory_picture.is_file() else None
    if keep and workdir.metrics.is_file():
        raise ConfigError(
            f"{shown(workdir.samples)} holds {was['n']} samples of step {was['step']}, seed {was['seed']}, that were evaluated: "
            "pass --name or --out for others"
        )
    return None


def _entered(out: Samples | Shards, record: dict[str, Any]) -> str:
    """Enter what a sampler says of itself into the record; a note of what should be seen."""
    note = ""
    if (flips := out.diagnostics.get("sign_flips")) is not None:
        # Decoding to pixels clips what is negative, so this is where a change of sign would be lost.
        record["samples_with_a_changed_sign"] = int(np.sum(np.asarray(flips) > 0))
        note = f", {record['samples_with_a_changed_sign']} with a changed sign"
    return note + _weights(out, record)


def _weights(out: Samples | Shards, record: dict[str, Any]) -> str:
    """Enter what weighted particles say of themselves; a note where weights were not numbers or a population died."""
    if "final_ess" not in out.diagnostics:
        return ""
    ess, log_z = (np.ravel(np.asarray(values, np.float64)) for values in (out.diagnostics["final_ess"], out.log_z))
    bad, dead = int(np.sum(np.asarray(out.diagnostics["bad_weights"]))), int(np.sum(~(ess > 0)))
    record["weights"] = {
        "populations": len(ess),
        "dead_populations": dead,
        "bad_weights": bad,
        # JSON has no infinity: None is a population without any weight.
        "final_ess": [float(v) if np.isfinite(v) else None for v in ess],
        "log_z": [float(v) if np.isfinite(v) else None for v in log_z],
    }
    return f", {dead} of {len(ess)} populations without any weight, {bad} weights that were no numbers" if bad or dead else ""


def _trajectory(experiment: Experiment, spec: Sample, sampler: Callable[..., Samples], given: Pytree, count: int):
    out, shown = _few(experiment, spec, sampler, given, count)
    # The start, then the later two thirds: before that there is noise of one kind only.
    last = len(out.times) - 1
    chosen = np.unique(np.append(0, np.linspace(last / 3, last, frames(experiment) - 1).round().astype(int)))
    states = np.asarray(out.trajectory)[chosen, :shown]
    return trajectory(states, [f"t = {out.times[i]:.3g}" for i in chosen], experiment)


def _few(experiment: Experiment, spec: Sample, sampler: Callable[..., Samples], given: Pytree, count: int) -> tuple[Samples, int]:
    """A few samples with their trajectories, the same ones each time, and how many of them are shown."""
    data = experiment.data
    shown = min(count, pictured(experiment, spec.shown))
    # Whole populations are drawn, of which the first samples are shown.
    particles = population_size(spec.solver, shown)
    n = -(-shown // particles) * particles
    cond = jax.tree.map(lambda value: value[np.resize(np.arange(len(value)), n)], given)
    # A start from the data has the conditions of the samples it begins, which are others here.
    own = {"start": spec.begin(data, experiment.process, cond)} if isinstance(spec.start, FromData) else {}
    return sampler(shape=(n, *data.load().event_shape), cond=cond, chunk=n, keep="all", **own), shown


def _preview(run: Run, spec: Sample, step: int, state: Pytree) -> None:
    """Write a few samples of the weights of ``step``, unless they are there; the same noise, and the same program, each time."""
    experiment, how = run.experiment, previews.described(run.experiment, spec)
    if previews.read(run.workdir, step, how) is not None:
        return
    cond = spec.conditions(experiment.data, spec.n)
    try:
        out, shown = _few(experiment, spec, _sampler(experiment, spec, state, cond), cond, spec.n)
        previews.write(run.workdir, step, np.asarray(experiment.data.transform.decode(np.asarray(out.x)[:shown])), how)
    except Exception as error:
        # A training does not end for a picture, be it for a full disk, a full memory or samples that are not finite.
        run.console.line(f"note: no preview of step {step}: {error}")
