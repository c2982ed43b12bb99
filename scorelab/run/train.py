"""The training stage: from the last checkpoint, or from nothing, to the last step."""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scorelab.files import DamagedFile, write_json
from scorelab.run.checkpoints import Checkpoints, SaveEvery, size_of
from scorelab.run.console import Console, Tick
from scorelab.run.experiment import Experiment
from scorelab.run.faults import Signals, Stopped
from scorelab.run.sources import ConfigError, shown
from scorelab.run.workdir import Workdir, append_line, cut_lines
from scorelab.training import Learner, Window, fit
from scorelab.typing import Pytree


def train(experiment: Experiment, workdir: Workdir, console: Console, signals: Signals | None = None) -> Any:
    """Train up to ``experiment.steps``, from the last whole checkpoint where there is one, and return the state.

    Raises Stopped, after a checkpoint, where one of ``signals`` came. ConfigError where the disk has no room for the checkpoints.
    """
    key = experiment.keys()[0]
    checkpoints = Checkpoints(workdir.checkpoints, keep=experiment.keep_checkpoints)
    like, state, done = state_like(experiment), None, 0
    if (found := _newest(checkpoints, like, workdir, owned=True)) is not None:
        done, state = found
    if done > experiment.steps:
        raise ConfigError(f"{shown(workdir.checkpoints)} is at step {done}, past Experiment.steps = {experiment.steps}")
    log = _Log(experiment, workdir, done)
    if done == experiment.steps:
        console.stage("train", f"nothing to do, already at step {done}")
        return state
    require_space(experiment, workdir, size_of(like))
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(getattr(like, "params", ())))
    console.stage(
        "train",
        f"{experiment.data.name}, {len(experiment.data.load())} examples, {size:,} parameters, "
        f"steps {done + 1} to {experiment.steps}, batch {experiment.batch_size}, "
        f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    )
    began = time.monotonic()
    data = experiment.data.batches(experiment.batch_size, experiment.seed)
    signals = Signals() if signals is None else signals
    with console.progress("train", experiment.steps, done) as tick, signals.waiting() as stop:
        log.tick = tick
        state = fit(
            experiment.learner,
            data,
            steps=experiment.steps,
            key=key,
            state=state,
            hooks=(
                Diagnose(experiment.log_every, experiment.learner, workdir),
                SaveEvery(experiment.checkpoint_every, checkpoints),
            ),
            log=log,
            log_every=experiment.log_every,
            stop=stop,
        )
    if signals.received is not None:
        where = f"checkpoint of step {int(state.step)} of {experiment.steps} in {shown(workdir.checkpoints)}"
        raise Stopped(signals.received, where)
    workdir.window.unlink(missing_ok=True)
    console.stage("train", f"{experiment.steps - done} steps in {time.monotonic() - began:.1f} s{log.note}")
    return state


def require_space(experiment: Experiment, workdir: Workdir, size: int) -> None:
    """ConfigError unless the disk has room for the checkpoints to come, of ``size`` bytes each.

    One more than are kept: the next is complete before the oldest is removed.
    """
    kept = min(experiment.keep_checkpoints + 1, -(-experiment.steps // experiment.checkpoint_every) + 1)
    there = len(Checkpoints(workdir.checkpoints).steps())
    needed, free = max(kept - there, 1) * size, shutil.disk_usage(workdir.root).free
    if needed > free:
        raise ConfigError(
            f"{shown(workdir.root)}: {free / 1e6:,.1f} MB free, and {max(kept - there, 1)} checkpoints of {size / 1e6:,.1f} MB are "
            "to come: free some space, lower Experiment.keep_checkpoints, or pass another --workdir"
        )


class _Log:
    """Writes each window of training: numbers to ``metrics.jsonl``, times to ``timings.jsonl``.

    A window that a signal cut short is made whole by the run that goes on: ``window.json`` has the values of its steps.
    """

    def __init__(self, experiment: Experiment, workdir: Workdir, done: int):
        for log in (workdir.metrics_log, workdir.timings_log, workdir.diagnostics_log):
            cut_lines(log, done)
        self._every = (experiment.log_every, experiment.checkpoint_every)
        self._steps, self._workdir = experiment.steps, workdir
        self._last, self._cut = time.monotonic(), None
        self.tick: Tick = lambda done, note="": None
        self.note = ""
        cut = workdir.read_json(workdir.window)
        # It stays until a later one takes its place: the run that goes on may be killed before its first checkpoint.
        if cut is not None and cut["first"] <= done <= cut["step"]:
            size = done - cut["first"] + 1
            self._cut = {"first": cut["first"], "values": {name: values[:size] for name, values in cut["values"].items()}}
            cut_lines(workdir.diagnostics_log, cut["first"] - 1)

    def __call__(self, window: Window) -> None:
        now = time.monotonic()
        began, cut = window.first, self._cut
        if cut is not None:
            before = {name: np.asarray(values, np.float32) for name, values in cut["values"].items()}
            joined = {name: np.concatenate([before[name], values]) for name, values in window.by_step.items()}
            window, self._cut = Window(cut["first"], window.last, joined), None
        # JSON has no NaN; the loss itself is finite, or the loop has raised.
        numbers = {name: window[name] if math.isfinite(window[name]) else None for name in sorted(window)}
        record = {"step": window.last, "first": window.first, **numbers}
        if window.last != self._steps and all(window.last % every for every in self._every):
            values = {name: [float(v) if math.isfinite(v) else None for v in row] for name, row in window.by_step.items()}
            write_json(self._workdir.window, {"step": window.last, "first": window.first, "values": values})
        append_line(self._workdir.metrics_log, record, replacing=None if cut is None else window.first)
        append_line(
            self._workdir.timings_log,
            {"step": window.last, "first": began, "seconds": now - self._last, "time": time.time()},
        )
        self._last, self.note = now, f", loss {numbers['loss']:.4g}"
        self.tick(window.last, f"loss {numbers['loss']:.4f}")


@dataclass(frozen=True)
class Diagnose:
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
        if found:
            append_line(self.workdir.diagnostics_log, {"step": step, **found})


def state_like(experiment: Experiment) -> Pytree:
    """The structure, shapes and dtypes of the training state."""
    # A state does not depend on pairs, which take time to make.
    data = experiment.data.examples(experiment.batch_size, experiment.seed)
    init = lambda key, batch: experiment.learner.init(key, data.prepare(batch))
    return jax.eval_shape(init, jax.random.key(0), data.at(0))


def trained_state(experiment: Experiment, workdir: Workdir) -> tuple[Any, int]:
    """The state of the newest whole checkpoint, and its step; ConfigError where there is none."""
    checkpoints = Checkpoints(workdir.checkpoints)
    if (found := _newest(checkpoints, state_like(experiment), workdir)) is None:
        raise ConfigError(f"{shown(workdir.root)} holds no checkpoint: run `scorelab train` first")
    return found[1], found[0]


def _newest(checkpoints: Checkpoints, like: Pytree, workdir: Workdir, owned: bool = False) -> tuple[int, Pytree] | None:
    try:
        return checkpoints.newest(like, say=lambda text: Console().line(f"note: {text}"), owned=owned)
    except DamagedFile as error:
        raise ConfigError(f"{error}; delete {shown(workdir.checkpoints)} to train from the start") from error
