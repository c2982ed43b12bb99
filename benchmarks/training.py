"""A step of ``fit`` over the bare jitted step, and what saving costs it.

The bare step is gradient, clipping and Adam in one donated jitted function, driven by a Python loop over batches that lie on the
device, without averages, metrics or checks. ``fit`` has an EMA, metrics every 50 steps, the non-finite check, and host batches.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import EDM, Row, in_turns
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.losses import DenoisingScoreMatching
from scorelab.models import nets
from scorelab.models.denoiser import Denoiser
from scorelab.training import EMA, ScoreLearner, fit

# name: (network, event, batch size, steps in a round)
CASES = {
    "MLP, 2-D": (nets.MLP(width=256, depth=4), (2,), 128, 200),
    "MLP, 8x8": (nets.MLP(width=512, depth=4), (64,), 128, 100),
    "DiT, 8x8": (nets.DiT(patch=2, width=64, depth=2), (8, 8, 1), 64, 50),
    "UNet, 8x8": (nets.UNet(channels=(16, 32)), (8, 8, 1), 64, 50),
}


class Repeated:
    """Four host batches, again and again."""

    def __init__(self, event, batch_size):
        rng = np.random.default_rng(0)
        self.batches = [{"x": rng.normal(0, 0.5, (batch_size, *event)).astype(np.float32)} for _ in range(4)]

    def at(self, step):
        """The batch of a step."""
        return self.batches[step % 4]


def bare_step(learner):
    """The step without averages and metrics."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, key):
        params, opt_state, number = state

        def objective(params):
            return jnp.mean(learner.loss(jax.random.fold_in(key, number), learner.denoiser.bind(params), batch))

        grads = jax.grad(objective)(params)
        grads, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        updates, opt_state = learner.optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, number + 1

    return step


def learner_of(name, ema):
    """The learner of a case and its batches."""
    net, event, batch_size, steps = CASES[name]
    learner = ScoreLearner(Denoiser(net=net, process=EDM), DenoisingScoreMatching(EDM), optax.adam(1e-4), ema=ema)
    return learner, Repeated(event, batch_size), steps


def step(rounds: int, quick: bool) -> Iterator[Row]:
    """With an average of the parameters, and without."""
    key = jax.random.key(0)
    for name in ("MLP, 2-D",) if quick else CASES:
        plain, data, steps = learner_of(name, None)
        averaged, _, _ = learner_of(name, EMA())
        resident, one = jax.device_put(data.batches), bare_step(plain)
        params = plain.denoiser.init(key, data.at(0)["x"])
        states = {"bare": one((params, plain.optimizer.init(params), jnp.int32(0)), resident[0], key)}
        for title, learner in (("fit", averaged), ("fit, no average", plain)):
            states[title] = fit(learner, data, steps=5, key=key)

        def run_bare(states=states, one=one, resident=resident, steps=steps):
            now = states["bare"]
            for i in range(steps):
                now = one(now, resident[i % 4], key)
            states["bare"] = jax.block_until_ready(now)

        def run_fit(title, learner, states=states, data=data, steps=steps):
            state = states[title]
            states[title] = jax.block_until_ready(
                fit(learner, data, steps=int(state.step) + steps, key=key, state=state, log_every=50)
            )

        functions = {
            "bare": run_bare,
            "fit": lambda run=run_fit, learner=averaged: run("fit", learner),
            "fit, no average": lambda run=run_fit, learner=plain: run("fit, no average", learner),
        }
        calls = dict.fromkeys(functions, steps)
        yield from in_turns(functions, rounds, base="bare", calls=calls, goal=1.02, case=f"{{}}: {name}")


# Steps between two checkpoints in the measurement of saving.
SAVED = 100


@dataclass(frozen=True)
class Between:
    """A hook that acts in the middle of every hundred steps, so that what it begins has time to end."""

    act: Callable[[int, Any], None]
    every: int = SAVED // 2
    held: list[float] = field(default_factory=list)

    def __call__(self, step, state, window):
        """Act on the state; ``held`` has the seconds for which the training waited for that."""
        if step % SAVED:
            began = time.perf_counter()
            self.act(step, state)
            self.held.append(time.perf_counter() - began)


def saving(rounds: int, quick: bool) -> Iterator[Row]:
    """A hundred steps with one checkpoint, written while they go on, over a hundred steps without; and one that they wait for.

    On a CPU what is written meanwhile takes the cores that train, and costs as much in all. What an accelerator would wait for is
    the time for which the loop is held up.
    """
    key = jax.random.key(0)
    for name in ("MLP, 8x8",) if quick else ("MLP, 8x8", "DiT, 8x8", "UNet, 8x8"):
        learner, data, _ = learner_of(name, EMA())
        with tempfile.TemporaryDirectory() as folder:
            meanwhile, waited = (Checkpoints(Path(folder) / each, keep=1) for each in ("meanwhile", "waited"))
            hooks = {
                "no checkpoint": Between(lambda step, state: None),
                "written meanwhile": Between(meanwhile.begin),
                "waited for": Between(waited.save),
            }
            states = {title: fit(learner, data, steps=SAVED, key=key) for title in hooks}

            def run(title, learner=learner, data=data, states=states, hooks=hooks, meanwhile=meanwhile):
                state = states[title]
                with meanwhile.writing():
                    steps = int(state.step) + SAVED
                    states[title] = jax.block_until_ready(
                        fit(learner, data, steps=steps, key=key, state=state, hooks=[hooks[title]], log_every=SAVED)
                    )

            size = sum(leaf.nbytes for leaf in jax.tree.leaves(states["no checkpoint"])) / 1e6
            functions = {title: functools.partial(run, title) for title in hooks}
            calls = dict.fromkeys(functions, SAVED)
            case = f"{{}}: {name}, {size:.0f} MB"
            yield from in_turns(functions, rounds, base="no checkpoint", calls=calls, case=case)
            for title in ("written meanwhile", "waited for"):
                low, value, high = 1e3 * np.quantile(hooks[title].held, [0.25, 0.5, 0.75])
                yield Row(case.format(f"held up, {title}"), value, low, high, unit="ms")


PARTS = {"step": step, "saving": saving}
