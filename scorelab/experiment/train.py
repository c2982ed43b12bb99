"""The training stage: from the last checkpoint, or from nothing, to the last step."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import jax
import numpy as np
from jax.sharding import Mesh

from scorelab import devices, hosts
from scorelab.arrays import Pytree
from scorelab.data import Coupled, Rectified
from scorelab.data.memory import require_memory
from scorelab.devices import Spread
from scorelab.errors import ConfigError, shown
from scorelab.experiment import held_out
from scorelab.experiment.base import Experiment, Run, Stage
from scorelab.experiment.checkpoints import Checkpoints, SaveEvery, host_state, size_of
from scorelab.experiment.console import Console, Tick
from scorelab.experiment.faults import Signals, Stopped
from scorelab.experiment.rectify import Rectify
from scorelab.experiment.sinks import Row, Sink, held, opened, trained
from scorelab.experiment.workdir import Workdir, append_line, cut_lines
from scorelab.files import DamagedFile, write_json
from scorelab.processes import Bridge
from scorelab.training import EarlyStopping, HeldOutLoss, Learner, Memory, Sharding, Watch, Window, fit
from scorelab.training.loop import SKIPPED, WHOLE
from scorelab.validation import require_choice, require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class Train(Stage):
    """Train the learner, from the last whole checkpoint where there is one.

    Attributes:
        steps: training steps.
        batch_size: examples in a step, over all devices.
        log_every: steps between lines of ``metrics.jsonl``.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: checkpoints kept; the last step's is always one of them.
        previews: checkpoints at which the stages that follow show something small of themselves, as ``Sample`` does with a few
            samples: closer together in the beginning, and the last one; 0 for none.
        skip_nonfinite: how many batches in a row may be skipped, since their loss or gradient is not finite
            (:func:`scorelab.training.fit`); 0 for none. ``skipped.jsonl`` has their steps.
        rectify: rounds in which an interpolant learns from pairs that it has made (:class:`scorelab.experiment.Rectify`); None for
            none.
        sharding: how the state lies on the devices (:class:`scorelab.training.Sharding`), whole on each unless it says otherwise.
            Sampling afterwards has it so as well. A run that goes on may have another one.
        sinks: where the metrics go beside ``metrics.jsonl`` (:mod:`scorelab.experiment.sinks`).
        early: when to end before ``steps``, by the loss of held-out points (:class:`scorelab.training.EarlyStopping`); None for
            never. Its ``every`` is a multiple of ``checkpoint_every``, so that the best state is a checkpoint, which is kept beside
            the newest ones. ``held_out.jsonl`` has the losses. A run that has ended early goes on with more ``patience``.
        held_out: the split of those points. An evaluation on the same split is of points that have chosen the state.
        keep: the checkpoint that the following stages take, the ``"last"`` one or that with the smallest held-out loss, ``"best"``;
            of a run without any loss yet, which is shorter than ``early.every``, that is the last one too.
    """

    steps: int = 1000
    batch_size: int = 128
    log_every: int = 100
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    previews: int = 6
    sinks: tuple[Sink, ...] = ()
    skip_nonfinite: int = 0
    rectify: Rectify | None = None
    sharding: Sharding = WHOLE
    early: EarlyStopping | None = None
    held_out: str = "test"
    keep: Literal["last", "best"] = "last"

    # Of ``early``, what changes the losses may not: the run itself looks after that, since they are on record.
    may_change = ("steps", "keep_checkpoints", "previews", "sinks", "skip_nonfinite", "sharding", "early", "keep")
    on_every_host = True

    def __post_init__(self):
        require_choice(self, ("",), name=self.name)
        counts = ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints")
        require_int(self, 1, **{name: getattr(self, name) for name in counts})
        require_int(self, 0, previews=self.previews, skip_nonfinite=self.skip_nonfinite)
        object.__setattr__(self, "sinks", tuple(self.sinks) if isinstance(self.sinks, tuple | list) else (self.sinks,))
        for sink in self.sinks:
            require_spec(self, Sink, sinks=sink)
        if self.rectify is not None:
            require_spec(self, Rectify, rectify=self.rectify)
        require_spec(self, Sharding, sharding=self.sharding)
        require_choice(self, ("last", "best"), keep=self.keep)
        require_spec(self, str, held_out=self.held_out)
        if self.early is None and self.keep == "best":
            raise ValueError("Train.keep = 'best' with early = None: expected an EarlyStopping, whose losses say which is the best")
        if self.early is not None:
            self._check_early(self.early)
        kinds = [type(sink) for sink in self.sinks]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"Train.sinks has {twice.__name__} twice: expected each once, since a kind has one place to write to")

    def _check_early(self, early: Any) -> None:
        require_spec(self, EarlyStopping, early=early)
        if early.every % self.checkpoint_every:
            raise ValueError(
                f"Train.early has every = {early.every}: expected a multiple of Train.checkpoint_every = {self.checkpoint_every}, "
                "since the best state is a checkpoint"
            )
        if self.rectify is not None:
            raise ValueError("Train.early beside rectify: expected one of them, since each round has pairs of its own")

    def check(self, experiment, like):
        """The state and the devices, the scale of the data, the pairs of a teacher, the coupling of an interpolant, the sinks."""
        for sink in self.sinks:
            sink.check()
        require_memory("the training state", sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like)))
        if (count := jax.device_count()) % (model := self.sharding.model):
            raise ValueError(f"Train.sharding has model = {model}: expected a divisor of the {count} devices")
        # Where devices are chosen, such are taken that divide the batch.
        rows = 1 if _chooses(layout_of(experiment)[1]) else count // model
        if self.batch_size % rows:
            over = f", in {rows} groups of {model}" if model > 1 else ""
            raise ValueError(f"Train.batch_size = {self.batch_size}: expected a multiple of the {count} devices{over}")
        if (self.batch_size // rows) % (parts := getattr(experiment.learner, "accumulate", 1)):
            raise ValueError(
                f"Train.batch_size = {self.batch_size} over {rows} devices with accumulate = {parts}: expected a multiple of "
                f"{parts * rows}"
            )
        if jax.process_count() != hosts.count():
            raise ConfigError(f"Train over {jax.process_count()} processes: expected them to be joined by scorelab.distributed")
        if (weight := experiment.learner.pair_weight) and experiment.data.pairs is None:
            owner = type(experiment.learner).__name__
            raise ValueError(f"{owner}.pair_weight = {weight} without DataSpec.pairs: expected Pairs(...), or a weight of 0")
        if self.rectify is not None:
            self.rectify.check(experiment, self.steps, self.batch_size, self.checkpoint_every)
        elif isinstance(getattr(experiment.process, "coupling", None), Rectified):
            raise ValueError(
                f"Train.rectify = None under {experiment.process.coupling!r}: expected a Rectify, which makes the pairs"
            )
        if isinstance(joined := coupled(experiment, experiment.data.examples(self.batch_size, experiment.seed)), Coupled):
            joined.at(0)
        if self.early is not None:
            splits = experiment.data.dataset.splits
            if self.held_out == "train" or self.held_out not in splits:
                others = [name for name in splits if name != "train"]
                raise ValueError(
                    f"Train.held_out = {self.held_out!r} for {experiment.data.name}: expected a split that is not trained on, "
                    f"one of {others}" + ("" if others else ", of which it has none; set Train.early = None")
                )
            self.early.loss_of(experiment.learner)
            watching(experiment, self.early)

    def __call__(self, run: Run) -> None:
        """Train up to ``steps``."""
        train(run)

    @property
    def preview_steps(self) -> set[int]:
        """The steps of ``previews`` checkpoints at most."""
        last = -(-self.steps // self.checkpoint_every)
        # From the last: where one is wanted, it is that.
        chosen = np.geomspace(last, 1, self.previews).round().astype(int) if self.previews else ()
        return {min(int(number) * self.checkpoint_every, self.steps) for number in chosen}


def train(run: Run) -> Any:
    """Train up to the last step, and return the state.

    Raises Stopped, after a checkpoint, where one of the run's signals came. ConfigError where the disk has no room for the
    checkpoints.
    """
    experiment, workdir, console = run.experiment, run.workdir, run.console
    stage = experiment.one(Train)
    key = experiment.keys()[0]
    losses: list[HeldOutLoss] = []
    # Each checkpoint that the run may go on from has its best one beside it.
    kept = lambda steps: held_out.best_steps(stage.early, losses, steps)
    checkpoints = Checkpoints(workdir.checkpoints, keep=stage.keep_checkpoints, beside=kept)
    like, state, done = state_like(experiment), None, 0
    if (found := _newest_of_first(checkpoints, like, workdir, owned=True)) is not None:
        done, state = found
    if done > stage.steps:
        raise ConfigError(f"{shown(workdir.checkpoints)} is at step {done}, past Train.steps = {stage.steps}")
    log = _Log(stage, workdir, done, experiment.learner.learning_rate())
    watch = None
    if stage.early is not None:
        early, of = stage.early, held_out.digest(experiment, stage.early, stage.held_out)
        tell = lambda record: log.held_out(record, of, held_out.told(early, losses))
        watch = watching(experiment, stage.early, held_out.of_first(workdir, of), tell)
        losses = watch.records
    if done == stage.steps or (watch is not None and watch.stopped):
        with opened(run, _sinks(stage)):
            pass
        console.stage("train", f"nothing to do, already at step {done}{_early_end(watch, done, stage.steps)}")
        return state
    require_space(stage, workdir, size_of(like))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(getattr(like, "params", ())))
    data = coupled(experiment, experiment.data.batches(stage.batch_size, experiment.seed))
    _, mesh = layout_of(experiment)
    if _chooses(mesh):
        mesh = devices.training_mesh(experiment.learner, jax.eval_shape(getattr(data, "prepare", dict), data.at(0)), key)
    console.stage(
        "train",
        f"{experiment.data.name}, {len(experiment.data.load())} examples, {size:,} parameters, "
        f"steps {done + 1} to {stage.steps}, batch {stage.batch_size}, "
        f"{mesh.size if isinstance(mesh, Mesh) else jax.device_count()} x {jax.devices()[0].device_kind}"
        + (f", {hosts.count()} hosts" if hosts.count() > 1 else ""),
    )
    began = time.monotonic()
    signals = Signals() if run.signals is None else run.signals
    hooks = (
        Diagnosed(stage.log_every, experiment.learner, workdir),
        SaveEvery(stage.checkpoint_every, checkpoints),
        Previewed(stage.checkpoint_every, run),
    )
    at, state = done, cast(Any, state)
    with (
        # Around the writing: the last checkpoint may still be on its way when the steps are done.
        signals.waiting() as asked,
        checkpoints.writing(),
        opened(run, _sinks(stage)) as log.write,
        console.progress("train", stage.steps, done) as log.tick,
    ):
        stop = hosts.stop_at(lambda: at, asked)
        say: Callable[[Memory], None] | None = lambda memory: console.stage("train", str(memory))
        while at < stage.steps:
            until, pairs = stage.steps, None
            if (rounds := stage.rectify) is not None:
                until, pairs = rounds.until(at, stage.steps), rounds.batches(run, at, state, stage.batch_size)
            state = fit(
                experiment.learner,
                data if pairs is None else pairs,
                steps=until,
                key=key,
                state=state,
                hooks=hooks,
                log=log,
                log_every=stage.log_every,
                stop=stop,
                mesh=mesh,
                skip_nonfinite=stage.skip_nonfinite,
                sharding=stage.sharding,
                memory=say,
                early=watch,
            )
            at, say = until, None
            if watch is not None and watch.stopped:
                break
            if hosts.signal_of(hosts.exchange(signals.received)) is not None:
                break
    if (received := hosts.signal_of(hosts.exchange(signals.received))) is not None:
        where = f"checkpoint of step {int(state.step)} of {stage.steps} in {shown(workdir.checkpoints)}"
        raise Stopped(received, where)
    if not hosts.first():
        return state
    workdir.window.unlink(missing_ok=True)
    end = int(state.step)
    console.stage("train", f"{end - done} steps in {time.monotonic() - began:.1f} s{log.note}{_early_end(watch, end, stage.steps)}")
    return state


def watching(
    experiment: Experiment,
    early: EarlyStopping,
    records: Sequence[HeldOutLoss] = (),
    tell: Callable[[HeldOutLoss], None] | None = None,
) -> Watch:
    """The early stopping at work on held-out points of the experiment; errors as those of the data."""
    split = experiment.one(Train).held_out
    points = coupled(experiment, experiment.data.held_out(early.n, experiment.seed, split)).at(0)
    # The best state is a checkpoint.
    return early.watch(points, records=records, tell=tell, keep_state=False)


def _early_end(watch: Watch | None, step: int, steps: int) -> str:
    """What the console says of the end of a training with held-out points."""
    if watch is None:
        return ""
    if watch.best is None:
        return f"; no held-out loss yet, Train.early has every = {watch.every}"
    ended = f"; stopped early, {watch.spec.patience} evaluations without a smaller loss" if watch.stopped and step < steps else ""
    return f"{ended}; best held-out loss {watch.best.loss:.4g} at step {watch.best.step}"


def _chooses(mesh: Spread) -> bool:
    """Whether the training takes those devices of the CPU that make it faster, and not all there are."""
    return isinstance(mesh, str) and jax.process_count() == 1 and jax.devices()[0].platform == "cpu"


def _sinks(stage: Train) -> tuple[Sink, ...]:
    """Those of this host: the first one writes for all."""
    return stage.sinks if hosts.first() else ()


def coupled(experiment: Experiment, batches: Any) -> Any:
    """The training batches, with the base of each row where the process of the learner joins data and base by a coupling."""
    process = experiment.process
    if not isinstance(process, Bridge) or not process.joined:
        return batches
    given = process.coupling.given and not isinstance(process.coupling, Rectified)
    base = None if given else process.base
    return Coupled(batches, process.coupling, base, seed=experiment.seed)


def require_space(stage: Train, workdir: Workdir, size: int) -> None:
    """ConfigError unless the disk has room for the checkpoints to come, of ``size`` bytes each.

    One more than are kept: the next is complete before the oldest is removed.
    """
    # With early stopping the best one stays too, and the best one before as long as a run may go on from there.
    beside = 0 if stage.early is None else 2
    kept = min(stage.keep_checkpoints + 1 + beside, -(-stage.steps // stage.checkpoint_every) + 1)
    there = len(Checkpoints(workdir.checkpoints).steps())
    needed, free = max(kept - there, 1) * size, shutil.disk_usage(workdir.root).free
    if needed > free:
        raise ConfigError(
            f"{shown(workdir.root)}: {free / 1e6:,.1f} MB free, and {max(kept - there, 1)} checkpoints of {size / 1e6:,.1f} MB are "
            "to come: free some space, lower Train.keep_checkpoints, or pass another --workdir"
        )


class _Log:
    """Writes each window of training: numbers to ``metrics.jsonl`` and the sinks, times to ``timings.jsonl``.

    A window that a signal cut short is made whole by the run that goes on: ``window.json`` has the values of its steps.
    Of several hosts the first writes.
    """

    def __init__(self, stage: Train, workdir: Workdir, done: int, rate: Callable[[int], float] | None = None):
        if hosts.first():
            logs = (workdir.metrics_log, workdir.timings_log, workdir.diagnostics_log, workdir.skipped_log, workdir.held_out_log)
            for log in logs:
                cut_lines(log, done)
        self._every = (stage.log_every, stage.checkpoint_every)
        self._steps, self._workdir, self._rate = stage.steps, workdir, rate
        self._last, self._cut = time.monotonic(), None
        self.tick: Tick = lambda done, note="": None
        self.write: Callable[[Row], None] = lambda row: None
        self.note = self.beside = ""
        cut = workdir.read_json(workdir.window) if hosts.first() else None
        # It stays until a later one takes its place: the run that goes on may be killed before its first checkpoint.
        if cut is not None and cut["first"] <= done <= cut["step"]:
            size = done - cut["first"] + 1
            self._cut = {"first": cut["first"], "values": {name: values[:size] for name, values in cut["values"].items()}}
            cut_lines(workdir.diagnostics_log, cut["first"] - 1)

    def __call__(self, window: Window) -> None:
        if not hosts.first():
            return
        now = time.monotonic()
        for step in window.skipped:
            append_line(self._workdir.skipped_log, {"step": step, "batch": step - 1})
        began, cut = window.first, self._cut
        if cut is not None:
            window, self._cut = joined(cut["first"], cut["values"], window), None
        # JSON has no NaN; the loss itself is finite, or the loop has raised.
        numbers = {name: window[name] if math.isfinite(window[name]) else None for name in sorted(window)}
        if self._rate is not None and math.isfinite(rate := self._rate(window.last)):
            # Of the last step, and no part of the state: it costs the compiled step nothing.
            numbers.setdefault("learning_rate", rate)
        record, date = {"step": window.last, "first": window.first, **numbers}, time.time()
        whole = window.last == self._steps or not all(window.last % every for every in self._every)
        if not whole:
            values = {name: [float(v) if math.isfinite(v) else None for v in row] for name, row in window.by_step.items()}
            write_json(self._workdir.window, {"step": window.last, "first": window.first, "values": values})
        append_line(self._workdir.metrics_log, record, replacing=None if cut is None else window.first)
        append_line(
            self._workdir.timings_log,
            {"step": window.last, "first": began, "seconds": now - self._last, "time": date},
        )
        if whole:
            self.write(trained(record, date))
        # None where every batch of the window was skipped.
        loss = math.nan if numbers["loss"] is None else numbers["loss"]
        self._last, self.note = now, f", loss {loss:.4g}"
        skipped = f", {len(window.skipped)} skipped" if window.skipped else ""
        self.tick(window.last, f"loss {loss:.4f}{skipped}{self.beside}")

    def held_out(self, record: HeldOutLoss, of: str, said: str) -> None:
        """Write a held-out loss, and show it beside the loss."""
        self.beside = f", {said}"
        if hosts.first():
            held_out.write(self._workdir, record, of)
            self.write(held(record.step, record.loss, time.time()))


def joined(first: int, before: Mapping[str, Any], window: Window) -> Window:
    """``window`` with the values of the steps from ``first`` up to it put in front, by name.

    ``skipped`` is missing of one part where ``skip_nonfinite`` was changed between the two: none was skipped there.
    """
    steps = (window.first - first, window.last - window.first + 1)

    def whole(name):
        none = 0.0 if name == SKIPPED else math.nan
        parts = (
            np.asarray(part[name], np.float32) if name in part else np.full(n, none, np.float32)
            for part, n in zip((before, window.by_step), steps, strict=True)
        )
        return np.concatenate([*parts])

    return Window(first, window.last, {name: whole(name) for name in sorted({*before, *window.by_step})})


@dataclass(frozen=True)
class Diagnosed:
    """A hook that writes what a learner says of its state to ``diagnostics.jsonl``, where it says something."""

    every: int
    learner: Learner
    workdir: Workdir

    def __call__(self, step: int, state: Pytree, window: Window) -> None:
        """One line; JSON has no NaN."""
        found = {
            name: [float(v) if math.isfinite(v) else None for v in np.ravel(values)]
            for name, values in self.learner.diagnostics(state).items()
        }
        if found and hosts.first():
            append_line(self.workdir.diagnostics_log, {"step": step, **found})


@dataclass(frozen=True)
class Previewed:
    """A hook that lets the stages show something of themselves at some checkpoints, before these are written."""

    every: int
    run: Run

    def __call__(self, step: int, state: Pytree, window: Window) -> None:
        """With the state as :func:`trained_state` gives it, so that programs are shared: on the host, or split as it is."""
        experiment = self.run.experiment
        train = experiment.one(Train)
        if step in train.preview_steps:
            # Other stages are drawn by the first host alone, which needs the whole state.
            state = host_state(state) if train.sharding.whole or hosts.count() > 1 else state
            for stage in experiment.stages if hosts.first() else ():
                stage.preview(self.run, step, state)


def state_like(experiment: Experiment, batch: Mapping[str, Any] | None = None) -> Pytree:
    """The structure, shapes and dtypes of the training state, for data shaped like the stored ``batch`` (the first, by default)."""
    if batch is None:
        # A state does not depend on pairs, which take time to make.
        batch = experiment.data.examples(experiment.one(Train).batch_size, experiment.seed).at(0)
    init = lambda key, batch: experiment.learner.init(key, experiment.data.prepare(batch))
    return jax.eval_shape(init, jax.random.key(0), batch)


def trained_state(
    experiment: Experiment, workdir: Workdir, *, on_every_host: bool = False, keep: Literal["last", "best"] | None = None
) -> tuple[Any, int]:
    """The state of the newest whole checkpoint, or of the one with the smallest held-out loss, and its step.

    It is on the host, or split over the devices where ``Train.sharding`` splits it and their number allows that. Where all hosts
    ask for it, ``on_every_host``, it is the one that host 0 sees.

    Args:
        experiment: what was trained.
        workdir: where.
        on_every_host: whether all hosts ask.
        keep: ``"last"`` or ``"best"``; None for ``Train.keep``.

    Raises:
        ConfigError: there is no checkpoint, or none that held-out losses choose.
        ValueError: ``keep`` is another word, or ``"best"`` without ``Train.early``.
    """
    stage = experiment.one(Train)
    keep = stage.keep if keep is None else keep
    require_choice("trained_state", ("last", "best"), keep=keep)
    checkpoints = Checkpoints(workdir.checkpoints)
    if keep == "best":
        found = _best(checkpoints, experiment, workdir, on_every_host)
    else:
        newest = _newest_of_first if on_every_host else _newest
        found = newest(checkpoints, state_like(experiment), workdir)
    if found is None:
        raise ConfigError(f"{shown(workdir.root)} holds no checkpoint: run `scorelab train` first")
    (step, state), (sharding, _) = found, layout_of(experiment)
    # One host of several has not the devices for it.
    alone = hosts.count() > 1 and not on_every_host
    return (state if sharding.whole or alone else sharding.place(state, sharding.mesh())), step


def _best(checkpoints: Checkpoints, experiment: Experiment, workdir: Workdir, on_every_host: bool) -> tuple[int, Pytree] | None:
    """The checkpoint with the smallest held-out loss; None where there is no checkpoint at all."""
    if (early := experiment.one(Train).early) is None:
        raise ValueError("trained_state.keep = 'best' with Train.early = None: expected 'last', or an EarlyStopping")
    step = None
    if (hosts.first() or not on_every_host) and (steps := checkpoints.steps()):
        step = held_out.best_step(workdir, early, steps[-1])
    step = hosts.agreed(step) if on_every_host else step
    if step is None:
        return None
    try:
        return step, checkpoints.restore(step, state_like(experiment))
    except (DamagedFile, FileNotFoundError) as error:
        raise ConfigError(
            f"the checkpoint of step {step}, which has the smallest held-out loss, is damaged or gone: {error}; set Train.keep = "
            "'last' for the last state"
        ) from error


def layout_of(experiment: Experiment) -> tuple[Sharding, Spread]:
    """``Train.sharding``, data parallel where these devices cannot have it, and what training and sampling are spread over.

    It is ``"auto"``, unless ``Experiment.cpu_devices`` or the layout says how many devices there are; then it is all of them.
    """
    sharding, count = experiment.one(Train).sharding, jax.device_count()
    if count == 1 or count % sharding.model:
        sharding = WHOLE
    if sharding.whole and experiment.cpu_devices is None and hosts.count() == 1:
        return sharding, "auto"
    return sharding, None if count == 1 else sharding.mesh()


def _newest_of_first(checkpoints: Checkpoints, like: Pytree, workdir: Workdir, owned: bool = False) -> tuple[int, Pytree] | None:
    """The newest whole checkpoint that host 0 sees, which moves what is damaged out of the way; None where there is none."""
    found = _newest(checkpoints, like, workdir, owned) if hosts.first() else None
    step = hosts.agreed(None if found is None else found[0])
    return (step, checkpoints.restore(step, like)) if found is None and step is not None else found


def _newest(checkpoints: Checkpoints, like: Pytree, workdir: Workdir, owned: bool = False) -> tuple[int, Pytree] | None:
    try:
        return checkpoints.newest(like, say=lambda text: Console().line(f"note: {text}"), owned=owned)
    except DamagedFile as error:
        raise ConfigError(f"{error}; delete {shown(workdir.checkpoints)} to train from the start") from error
