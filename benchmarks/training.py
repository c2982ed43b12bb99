"""A step of ``fit`` over the bare jitted step, and what saving costs it.

The bare step is gradient, clipping, Adam and, beside a ``fit`` with an EMA, that EMA, in one donated jitted function. A Python loop
drives it over batches that lie on the device, without metrics or checks. ``fit`` has metrics every 50 steps, the non-finite check,
and host batches.
"""

from __future__ import annotations

import functools
import itertools
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
    """The step without metrics, with an average of the parameters where the learner has one."""

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, key):
        params, opt_state, average, number = state

        def objective(params):
            return jnp.mean(learner.loss(jax.random.fold_in(key, number), learner.denoiser.bind(params), batch))

        grads = jax.grad(objective)(params)
        grads, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
        updates, opt_state = learner.optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        if average is not None:
            average = optax.incremental_update(params, average, 1e-3)
        return params, opt_state, average, number + 1

    return step


def learner_of(name, ema):
    """The learner of a case and its batches."""
    net, event, batch_size, steps = CASES[name]
    learner = ScoreLearner(Denoiser(net=net, process=EDM), DenoisingScoreMatching(EDM), optax.adam(1e-4), ema=ema)
    return learner, Repeated(event, batch_size), steps


def step(rounds: int, quick: bool) -> Iterator[Row]:
    """With an average of the parameters, and without."""
    key = jax.random.key(0)
    for name, (title, ema) in itertools.product(("MLP, 2-D",) if quick else CASES, (("fit", EMA()), ("fit, no average", None))):
        learner, data, steps = learner_of(name, ema)
        resident, one = jax.device_put(data.batches), bare_step(learner)
        params = learner.denoiser.init(key, data.at(0)["x"])
        average = None if ema is None else jax.tree.map(jnp.copy, params)
        states = {"bare": one((params, learner.optimizer.init(params), average, jnp.int32(0)), resident[0], key)}
        states["fit"] = fit(learner, data, steps=5, key=key)

        def run_bare(states=states, one=one, resident=resident, steps=steps):
            now = states["bare"]
            for i in range(steps):
                now = one(now, resident[i % 4], key)
            states["bare"] = jax.block_until_ready(now)

        def run_fit(states=states, learner=learner, data=data, steps=steps):
            to = int(states["fit"].step) + steps
            states["fit"] = jax.block_until_ready(fit(learner, data, steps=to, key=key, state=states["fit"], log_every=50))

        functions = {"bare": run_bare, title: run_fit}
        yield from in_turns(functions, rounds, base="bare", calls=dict.fromkeys(functions, steps), goal=1.02, case=f"{{}}: {name}")


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
