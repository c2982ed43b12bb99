"""What a config file builds: data, process, learner, and how to sample and to score the result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np
import optax

from scorelab import data as datasets
from scorelab import fk, grids, metrics, solvers
from scorelab.data import Arrays, registry
from scorelab.data.loaders import Halves, Toy

# Config files name everything an experiment is made of through this module; so the names that are not used here.
from scorelab.distill import WithPairs
from scorelab.distill.teachers import denoiser_of as denoiser_of
from scorelab.distill.teachers import process_of as process_of
from scorelab.metrics import Score
from scorelab.models import ClassifierFreeGuidance
from scorelab.models.base import Model
from scorelab.processes import Chart, Identity, Process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.run.correction import Correction as Correction
from scorelab.run.data_start import DataStart as DataStart
from scorelab.run.data_start import DataTeleport as DataTeleport
from scorelab.run.data_start import FromData
from scorelab.run.pairs import Pairs
from scorelab.solvers.base import population_size
from scorelab.starts import Start
from scorelab.training import Prepared
from scorelab.typing import SEEDS, Key, require_choice, require_int, require_number, require_seed, require_spec

# Rows of data that are encoded at once; the number itself has no effect on results.
_BLOCK = 8192
# Rows that are encoded and decoded to see whether they come back.
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set by name, its scale, and whether its labels are the condition.

    Attributes:
        name: a name that ``scorelab.data.load`` accepts.
        transform: from stored values to what the process sees: ``Pixels(levels=...)``, ``Identity()``.
        labels: train with the labels as the condition of the network.
        n: number of points of a generated set, else None.
        seed: seed of a generated set, else None.
        pairs: a teacher's :class:`Pairs` beside the data, for a distillation with a ``pair_weight``.
    """

    name: str
    transform: Any = field(default_factory=datasets.Identity)
    labels: bool = False
    n: int | None = None
    seed: int | None = None
    pairs: Pairs | None = None

    def __post_init__(self):
        if self.name not in datasets.names():
            raise ValueError(registry.unknown_name("DataSpec.name", self.name))
        require_choice(self, (True, False), labels=self.labels)
        if self.n is not None:
            require_int(self, 1, n=self.n)
        if self.seed is not None:
            require_seed(self, seed=self.seed)
        if self.pairs is not None:
            require_spec(self, Pairs, pairs=self.pairs)
        if not all(callable(getattr(self.transform, name, None)) for name in ("encode", "decode")):
            raise TypeError(f"DataSpec.transform = {self.transform!r}: expected an object with encode and decode")

    def load(self, split: str = "train") -> Arrays:
        """One split, kept in memory; errors as ``scorelab.data.load``."""
        try:
            return _load(self.name, split, self.n, self.seed)
        except (datasets.DataCorrupt, datasets.DataNotFound):
            raise
        except ValueError as error:
            field, value = ("name", self.name) if self.n is None else ("n", self.n)
            raise ValueError(f"DataSpec.{field} = {value!r}: {error}") from error

    @property
    def known_as(self) -> tuple[str, ...]:
        """The name of the data set and, for a part of another one, the name of that."""
        member = registry.SETS[self.name]
        return (self.name, member.source.name) if isinstance(member, Halves) else (self.name,)

    def check(self) -> None:
        """Raise ValueError or TypeError where the data do not fit the transform, or have no labels where there should be."""
        arrays = self.load()
        if self.labels and arrays.label is None:
            raise ValueError(f"DataSpec.labels = True for {self.name}, which has none: expected False")
        if callable(fits := getattr(self.transform, "check", None)):
            try:
                fits(arrays.x, arrays.levels)
            except (ValueError, TypeError) as error:
                raise type(error)(f"DataSpec.transform = {error} ({self.name})") from error
        # Samples are stored as the data are, and the way back is what makes them so.
        rows = arrays.x[:_ROWS]
        again = np.asarray(self.transform.decode(self.transform.encode(rows)))
        exact = rows.dtype == np.uint8
        if again.shape != rows.shape or again.dtype.kind != rows.dtype.kind or (exact and not np.array_equal(again, rows)):
            raise ValueError(
                f"DataSpec.transform = {self.transform!r} for {self.name}: expected decode(encode(x)) to return x, {rows.dtype} "
                f"{rows.shape}; it returns other values, {again.dtype} {again.shape}"
            )

    def encoded(self, chart: Chart, split: str = "train") -> Iterator[np.ndarray]:
        """The points of a split in the chart, float64, in blocks of rows."""
        x = self.load(split).x
        for low in range(0, len(x), _BLOCK):
            try:
                yield np.asarray(chart.encode(self.transform.encode(x[low : low + _BLOCK])), np.float64)
            except ValueError as error:
                raise ValueError(f"DataSpec.name = {self.name!r}: {error}") from error

    def moments(self, chart: Chart) -> tuple[float, float]:
        """Mean and standard deviation of the training data in the chart, over all elements."""
        return _moments(self, chart)

    def examples(self, batch_size: int, seed: int) -> Prepared:
        """Batches of the data set itself."""
        batches = datasets.Batches(self.load(), batch_size=batch_size, seed=seed)
        return Prepared(batches, transform=self.transform, cond="label" if self.labels else None)

    def batches(self, batch_size: int, seed: int) -> Prepared | WithPairs:
        """The training batches, as ``scorelab.training.fit`` takes them; pairs are made here."""
        data = self.examples(batch_size, seed)
        return data if self.pairs is None else self.pairs.beside(data, self.load().num_classes if self.labels else None)


@functools.lru_cache(maxsize=4)
def _load(name: str, split: str, n: int | None, seed: int | None) -> Arrays:
    return datasets.load(name, split, n=n, seed=seed)


def measured_std(data: DataSpec, process: LinearGaussian | None = None) -> float:
    """The standard deviation of the training data in the chart of the process, to four significant digits.

    The value for ``Denoiser.data_std``, over all elements; without a process, of the data as they are. Rounded,
    so that platforms which sum in another order agree on the spec. ValueError where the chart does not take
    the data.
    """
    if not isinstance(data, DataSpec):
        raise TypeError(f"measured_std.data = {data!r}: expected a DataSpec")
    return float(f"{data.moments(Identity() if process is None else process.chart)[1]:.4g}")


@functools.lru_cache(maxsize=16)
def _moments(data: DataSpec, chart: Chart) -> tuple[float, float]:
    data.check()
    total = square = 0.0
    size = data.load().x.size
    for y in data.encoded(chart):
        total, square = total + y.sum(), square + np.square(y).sum()
    return float(total / size), float(np.sqrt(square / size - (total / size) ** 2))


def then_clean(times: tuple[float, ...]) -> tuple[float, ...]:
    """``(*times, 0.0)``: the grid of a student of several steps, for a solver that goes on to clean data."""
    return (*times, 0.0)


def chained(transforms: tuple[optax.GradientTransformation, ...]) -> optax.GradientTransformation:
    """``optax.chain`` of a tuple: a config file cannot bind positional arguments."""
    return optax.chain(*transforms)


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How the trained model is sampled.

    Attributes:
        solver: the solver.
        grid: the time grid.
        start: the law at the first grid time, a ``DataStart`` or ``DataTeleport`` to take it from the training
            data, None for the prior.
        n: number of samples.
        guidance: scale of classifier-free guidance, None for the plain model; needs ``DataSpec.labels``.
        correction: a :class:`Correction` of the model, None for none; needs a ``solver`` that is a ``fk.FeynmanKac``.
        classes: the conditions, given to the samples in turn; () for every class of the data.
        chunk: samples computed at once, None for as many as fit.
        shown: samples in the trajectory picture.
    """

    solver: solvers.Solver = field(default_factory=solvers.Heun)
    grid: grids.Grid = field(default_factory=lambda: grids.Karras(18))
    start: Start | FromData | None = None
    n: int = 100
    guidance: float | None = None
    correction: Correction | None = None
    classes: tuple[int, ...] = ()
    chunk: int | None = None
    shown: int = 6

    def __post_init__(self):
        require_spec(self, solvers.Solver, solver=self.solver)
        require_spec(self, grids.Grid, grid=self.grid)
        if self.start is not None:
            require_spec(self, Start | FromData, start=self.start)
        require_int(self, 1, n=self.n, shown=self.shown)
        if self.guidance is not None:
            require_number(self, -1000.0, 1000.0, guidance=self.guidance)
        if self.chunk is not None:
            require_int(self, 1, chunk=self.chunk)
        solver: Any = self.solver
        weighting = isinstance(solver, fk.FeynmanKac)
        if weighting and not solver.resample_final:
            raise ValueError(
                "SamplingSpec.solver = FeynmanKac(resample_final=False): expected True, since stored samples have equal weights"
            )
        if self.correction is not None:
            require_spec(self, Correction, correction=self.correction)
            if not weighting or self.guidance is not None or self.start is not None:
                raise ValueError(
                    "SamplingSpec.correction is given: expected a solver that is a fk.FeynmanKac, no guidance and no start, since "
                    "a correction brings its own"
                )
        if self.n % (particles := population_size(self.solver, self.n)):
            raise ValueError(f"SamplingSpec.n = {self.n}: expected a multiple of the {particles} particles of a population")
        object.__setattr__(self, "classes", tuple(self.classes))
        for label in self.classes:
            require_int(self, 0, classes=label)

    def applied(self, model: Model) -> tuple[Model, solvers.Solver, Start | None]:
        """The model and the solver that samples are drawn with, and the start of a correction, which brings its own."""
        if self.guidance is not None:
            model = ClassifierFreeGuidance(model=model, scale=self.guidance)
        if self.correction is None:
            return model, self.solver, None
        return self.correction(model, cast(fk.FeynmanKac, self.solver))  # a correction is refused with any other

    def begin(self, data: DataSpec, process: Any, label: np.ndarray | None) -> Start | None:
        """The start of samples with the conditions ``label``; the training data is read where it is needed."""
        return self.start(data, process, label) if isinstance(self.start, FromData) else self.start

    def conditions(self, data: DataSpec, n: int) -> np.ndarray | None:
        """The label of each sample ``(n,)`` int32, or None for a model without condition."""
        if not data.labels:
            return None
        classes = self.classes or tuple(range(data.load().num_classes or 0))
        # The particles of a population are of one class.
        particles = population_size(self.solver, n)
        return np.repeat(np.resize(np.asarray(classes, np.int32), n // particles), particles)


@dataclass(frozen=True, kw_only=True)
class ImageEvaluation:
    """Frechet, KID, precision, recall, density, coverage and Vendi of images, each with its train/test floor.

    Attributes:
        features: the extractor, such as ``metrics.small_cnn("mnist")`` or ``metrics.pixels()``.
        n: number of samples, train and test images compared; None for as many as the smallest set has.
    """

    features: Any
    n: int | None = None

    def __post_init__(self):
        if not callable(self.features) or not hasattr(self.features, "id"):
            raise TypeError(f"ImageEvaluation.features = {self.features!r}: expected an extractor with an id")
        if self.n is not None:
            require_int(self, 2, n=self.n)

    def check(self, data: DataSpec, samples: int) -> None:
        """Raise ValueError where this number of samples of this data set cannot be scored."""
        if "test" not in registry.SETS[data.name].splits:
            raise ValueError(f"ImageEvaluation for {data.name}, which has no test split: expected Experiment.evaluation = None")
        sizes = {"SamplingSpec.n": samples, "the train split": len(data.load()), "the test split": len(data.load("test"))}
        smallest = min(sizes, key=lambda name: sizes[name])
        if sizes[smallest] < (2 if self.n is None else self.n):
            raise ValueError(f"ImageEvaluation.n = {self.n}: expected 2 to {sizes[smallest]}, the number of images of {smallest}")
        arrays = data.load()
        trained = getattr(self.features, "record", {}).get("dataset", data.name)
        if trained not in data.known_as:
            raise ValueError(f"ImageEvaluation.features = {self.features.id}: expected features of {data.name}, not of {trained}")
        levels = getattr(self.features, "levels", arrays.levels)
        if arrays.levels is None or levels != arrays.levels:
            raise ValueError(f"ImageEvaluation.features = {self.features!r}: expected levels = {arrays.levels}, as {data.name} has")
        shape = getattr(getattr(self.features, "architecture", None), "shape", arrays.event_shape)
        if tuple(shape) != arrays.event_shape:
            raise ValueError(
                f"ImageEvaluation.features = {self.features.id}: expected features of images {arrays.event_shape}, not {shape}"
            )

    def __call__(self, samples: np.ndarray, data: DataSpec, key: Key) -> list[Score]:
        """The scores of ``samples`` (stored values) against ``data``."""
        return metrics.report(samples, data.load("train"), data.load("test"), self.features, n=self.n, key=key)


@dataclass(frozen=True, kw_only=True)
class PointEvaluation:
    """Sliced Wasserstein distance and MMD of points to fresh exact draws; the floor is another exact draw.

    Attributes:
        n: number of points compared; None for all samples.
        projections: directions of the sliced Wasserstein distance.
        seed: seed of the exact draws; the next one gives the floor.
    """

    n: int | None = None
    projections: int = 256
    seed: int = 1000

    def __post_init__(self):
        if self.n is not None:
            require_int(self, 2, n=self.n)
        require_int(self, 2, projections=self.projections)
        require_seed(self, seed=self.seed)
        if self.seed == SEEDS - 1:
            raise ValueError(f"PointEvaluation.seed = {self.seed}: expected at most {SEEDS - 2}, as the floor takes the next one")

    def check(self, data: DataSpec, samples: int) -> None:
        """Raise ValueError where this number of samples of this data set cannot be scored."""
        if not isinstance(registry.SETS[data.name], Toy):
            raise ValueError(f"PointEvaluation for {data.name}: expected a generated set, of which new points can be drawn")
        if self.n is not None and self.n > samples:
            raise ValueError(f"PointEvaluation.n = {self.n}: expected at most the number of samples, SamplingSpec.n = {samples}")

    def __call__(self, samples: np.ndarray, data: DataSpec, key: Key) -> list[Score]:
        """The scores of ``samples`` (n, d) against the law ``data`` is drawn from."""
        n = len(samples) if self.n is None else self.n
        if n > len(samples):
            raise ValueError(f"PointEvaluation.n = {n}: expected at most the number of samples, {len(samples)}")
        exact, other = (dataclasses.replace(data, n=n, seed=self.seed + i).load("test").x for i in range(2))
        width = metrics.median_bandwidth(exact, other)

        def scores(points: np.ndarray) -> list[Score]:
            return [
                metrics.sliced_wasserstein(key, points, exact, projections=self.projections),
                metrics.mmd(points, exact, width),
            ]

        return [s.with_floor(f) for s, f in zip(scores(np.asarray(samples)[:n]), scores(other), strict=True)]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run from data to scores.

    Attributes:
        data: the data set.
        learner: what is trained: an object with ``init``, ``update``, ``model`` and ``process``
            (``scorelab.training.Learner``).
        sampling: how it is sampled.
        evaluation: how the samples are scored: called with (samples, data, key), returns scores; None to skip
            it.
        steps: training steps.
        batch_size: examples in a step, over all devices.
        seed: seed of batches, parameters, noise and samples.
        log_every: steps between lines of ``metrics.jsonl``.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: checkpoints kept; the last step's is always one of them.
        cpu_devices: number of devices the CPU is split into, None for one. More than one trains convolutions
            faster; results depend on the number in the last digits.
    """

    data: DataSpec
    learner: Any
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    evaluation: Any = None
    steps: int = 1000
    batch_size: int = 128
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    cpu_devices: int | None = None

    def __post_init__(self):
        require_spec(self, DataSpec, data=self.data)
        require_spec(self, SamplingSpec, sampling=self.sampling)
        learns = all(callable(getattr(self.learner, name, None)) for name in ("init", "update", "model"))
        if not learns or not isinstance(getattr(self.learner, "process", None), Process):
            raise TypeError(f"Experiment.learner = {self.learner!r}: expected a learner (init, update, model, process)")
        if self.evaluation is not None and not callable(self.evaluation):
            raise TypeError(f"Experiment.evaluation = {self.evaluation!r}: expected ImageEvaluation() or the like")
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        require_int(self, 1, **{name: getattr(self, name) for name in counts})
        require_seed(self, seed=self.seed)
        if self.cpu_devices is not None:
            require_int(self, 1, cpu_devices=self.cpu_devices)
        solver: Any = self.sampling.solver
        if self.data.labels and isinstance(solver, fk.FeynmanKac) and solver.particles is None and len(self.sampling.classes) != 1:
            raise ValueError(
                "FeynmanKac.particles = None with DataSpec.labels: expected a number of particles, since a population is of one "
                "class, or one class in SamplingSpec.classes"
            )
        if (weight := getattr(self.learner, "pair_weight", 0)) and self.data.pairs is None:
            owner = type(self.learner).__name__
            raise ValueError(f"{owner}.pair_weight = {weight} without DataSpec.pairs: expected Pairs(...), or a weight of 0")
        correction = self.sampling.correction
        if correction is not None and correction.kind == "geometric" and not self.data.labels:
            raise ValueError("Correction.kind = 'geometric' without DataSpec.labels: expected a class-conditional model")
        if self.sampling.guidance is not None and not self.data.labels:
            raise ValueError(f"SamplingSpec.guidance = {self.sampling.guidance}: expected None, since DataSpec.labels is False")

    @property
    def process(self) -> Any:
        """That of the learner."""
        return self.learner.process

    def check(self) -> None:
        """Whether the parts fit one another and the data, before anything is trained."""
        from scorelab.run.check import check

        check(self)

    def keys(self) -> tuple[Key, Key, Key]:
        """The keys of training, sampling and evaluation."""
        return tuple(jax.random.split(jax.random.key(self.seed), 3))
