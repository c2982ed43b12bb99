"""The training stage: from the last checkpoint, or from nothing, to the last step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from scorelab.run.checkpoints import Checkpoints, SaveEvery
from scorelab.run.console import Console, Tick
from scorelab.run.experiment import Experiment
from scorelab.run.sources import ConfigError, shown
from scorelab.run.workdir import Workdir, append_line, cut_lines
from scorelab.training import Window, fit
from scorelab.typing import Pytree


def train(experiment: Experiment, workdir: Workdir, console: Console) -> Any:
    """Train up to ``experiment.steps``, from the last checkpoint where there is one, and return the state."""
    key = experiment.keys()[0]
    with Checkpoints(workdir.checkpoints, keep=experiment.keep_checkpoints) as checkpoints:
        like, state, done = state_like(experiment), None, 0
        if steps := checkpoints.steps():
            done = steps[-1]
            state = checkpoints.restore(done, like)
        if done > experiment.steps:
            raise ConfigError(
                f"{shown(workdir.checkpoints)} is at step {done}, past Experiment.steps = {experiment.steps}"
            )
        for log in (workdir.metrics_log, workdir.timings_log, workdir.diagnostics_log):
            cut_lines(log, done)
        if done == experiment.steps:
            console.stage("train", f"nothing to do, already at step {done}")
            return state
        size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(getattr(like, "params", ())))
        console.stage(
            "train",
            f"{experiment.data.name}, {len(experiment.data.load())} examples, {size:,} parameters, "
            f"steps {done + 1} to {experiment.steps}, batch {experiment.batch_size}, "
            f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        )
        began = time.monotonic()
        data = experiment.data.batches(experiment.batch_size, experiment.seed)
        with console.progress("train", experiment.steps, done) as tick:
            log = _Log(workdir, tick)
            state = fit(
                experiment.learner,
                data,
                steps=experiment.steps,
                key=key,
                state=state,
                hooks=(*_diagnose(experiment, workdir), SaveEvery(experiment.checkpoint_every, checkpoints)),
                log=log,
                log_every=experiment.log_every,
            )
        console.stage(
            "train", f"{experiment.steps - done} steps in {time.monotonic() - began:.1f} s{log.note}"
        )
    return state


class _Log:
    """Writes each window of training: numbers to ``metrics.jsonl``, times to ``timings.jsonl``."""

    def __init__(self, workdir: Workdir, tick: Tick):
        self._workdir, self._tick, self._last = workdir, tick, time.monotonic()
        self.note = ""

    def __call__(self, window: Window) -> None:
        now = time.monotonic()
        # JSON has no NaN; the loss itself is finite, or the loop has raised.
        numbers = {name: window[name] if math.isfinite(window[name]) else None for name in sorted(window)}
        append_line(self._workdir.metrics_log, {"step": window.last, "first": window.first, **numbers})
        append_line(
            self._workdir.timings_log,
            {"step": window.last, "first": window.first, "seconds": now - self._last, "time": time.time()},
        )
        self._last, self.note = now, f", loss {numbers['loss']:.4g}"
        self._tick(window.last, f"loss {numbers['loss']:.4f}")


def _diagnose(experiment: Experiment, workdir: Workdir) -> tuple[Diagnose, ...]:
    known = callable(getattr(experiment.learner, "diagnostics", None))
    return (Diagnose(experiment.log_every, experiment.learner, workdir),) if known else ()


@dataclass(frozen=True)
class Diagnose:
    """A hook that writes what a learner says of its state, ``diagnostics(state) -> {name: array}``, to ``diagnostics.jsonl``."""

    every: int
    learner: Any
    workdir: Workdir

    def __call__(self, step: int, state: Pytree, window: Window) -> None:
        """One line; JSON has no NaN."""
        found = {
            name: [float(v) if math.isfinite(v) else None for v in np.ravel(values)]
            for name, values in self.learner.diagnostics(state).items()
        }
        append_line(self.workdir.diagnostics_log, {"step": step, **found})


def state_like(experiment: Experiment) -> Pytree:
    """The structure, shapes and dtypes of the training state."""
    # A state does not depend on pairs, which take time to make.
    data = experiment.data.examples(experiment.batch_size, experiment.seed)
    init = lambda key, batch: experiment.learner.init(key, data.prepare(batch))
    return jax.eval_shape(init, jax.random.key(0), data.at(0))


def trained_state(experiment: Experiment, workdir: Workdir) -> tuple[Any, int]:
    """The newest checkpoint and its step; ConfigError where there is none."""
    with Checkpoints(workdir.checkpoints, keep=experiment.keep_checkpoints) as checkpoints:
        if not (steps := checkpoints.steps()):
            raise ConfigError(f"{shown(workdir.root)} holds no checkpoint: run `scorelab train` first")
        return checkpoints.restore(steps[-1], state_like(experiment)), steps[-1]
