"""The training stage: from the last checkpoint, or from nothing, to the last step."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from jax.sharding import Mesh

from scorelab import devices, hosts
from scorelab.arrays import Pytree
from scorelab.data import Coupled, Rectified
from scorelab.data.memory import require_memory
from scorelab.devices import Spread
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment, Run, Stage
from scorelab.experiment.checkpoints import Checkpoints, SaveEvery, host_state, size_of
from scorelab.experiment.console import Console, Tick
from scorelab.experiment.faults import Signals, Stopped
from scorelab.experiment.rectify import Rectify
from scorelab.experiment.sinks import Row, Sink, opened, trained
from scorelab.experiment.workdir import Workdir, append_line, cut_lines
from scorelab.files import DamagedFile, write_json
from scorelab.processes import Bridge
from scorelab.training import Learner, Memory, Sharding, Window, fit
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

    may_change = ("steps", "keep_checkpoints", "previews", "sinks", "skip_nonfinite", "sharding")
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
        kinds = [type(sink) for sink in self.sinks]
        if twice := next((kind for kind in kinds if kinds.count(kind) > 1), None):
            raise ValueError(f"Train.sinks has {twice.__name__} twice: expected each once, since a kind has one place to write to")

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
    checkpoints = Checkpoints(workdir.checkpoints, keep=stage.keep_checkpoints)
    like, state, done = state_like(experiment), None, 0
    if (found := _newest_of_first(checkpoints, like, workdir, owned=True)) is not None:
        done, state = found
    if done > stage.steps:
        raise ConfigError(f"{shown(workdir.checkpoints)} is at step {done}, past Train.steps = {stage.steps}")
    log = _Log(stage, workdir, done, experiment.learner.learning_rate())
    if done == stage.steps:
        with opened(run, _sinks(stage)):
            pass
        console.stage("train", f"nothing to do, already at step {done}")
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
            )
            at, say = until, None
            if hosts.signal_of(hosts.exchange(signals.received)) is not None:
                break
    if (received := hosts.signal_of(hosts.exchange(signals.received))) is not None:
        where = f"checkpoint of step {int(state.step)} of {stage.steps} in {shown(workdir.checkpoints)}"
        raise Stopped(received, where)
    if not hosts.first():
        return state
    workdir.window.unlink(missing_ok=True)
    console.stage("train", f"{stage.steps - done} steps in {time.monotonic() - began:.1f} s{log.note}")
    return state


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
    kept = min(stage.keep_checkpoints + 1, -(-stage.steps // stage.checkpoint_every) + 1)
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
            for log in (workdir.metrics_log, workdir.timings_log, workdir.diagnostics_log, workdir.skipped_log):
                cut_lines(log, done)
        self._every = (stage.log_every, stage.checkpoint_every)
        self._steps, self._workdir, self._rate = stage.steps, workdir, rate
        self._last, self._cut = time.monotonic(), None
        self.tick: Tick = lambda done, note="": None
        self.write: Callable[[Row], None] = lambda row: None
        self.note = ""
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
        self.tick(window.last, f"loss {loss:.4f}" + (f", {len(window.skipped)} skipped" if window.skipped else ""))


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


def trained_state(experiment: Experiment, workdir: Workdir, *, on_every_host: bool = False) -> tuple[Any, int]:
    """The state of the newest whole checkpoint, and its step; ConfigError where there is none.

    It is on the host, or split over the devices where ``Train.sharding`` splits it and their number allows that. Where all hosts
    ask for it, ``on_every_host``, it is the one that host 0 sees.
    """
    checkpoints = Checkpoints(workdir.checkpoints)
    newest = _newest_of_first if on_every_host else _newest
    if (found := newest(checkpoints, state_like(experiment), workdir)) is None:
        raise ConfigError(f"{shown(workdir.root)} holds no checkpoint: run `scorelab train` first")
    (step, state), (sharding, _) = found, layout_of(experiment)
    # One host of several has not the devices for it.
    alone = hosts.count() > 1 and not on_every_host
    return (state if sharding.whole or alone else sharding.place(state, sharding.mesh())), step


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
