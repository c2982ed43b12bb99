"""Steps of the distillations over the bare training step of the same network."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import optax

from benchmarks.common import EDM, Row, in_turns
from benchmarks.training import bare_step, learner_of
from scorelab import distill
from scorelab.training import ScoreLearner, fit


def step(rounds: int, quick: bool) -> Iterator[Row]:
    """f-distill, a student and its fake score from a teacher, and consistency distillation, of one U-Net.

    Neither has a goal: the first calls the network of the teacher and two others, with two gradients, and the second it and itself.
    """
    key = jax.random.key(0)
    learner, data, steps = learner_of("UNet, 8x8", None)
    steps //= 2
    resident, one = jax.device_put(data.batches), bare_step(learner)
    params = learner.denoiser.init(key, data.at(0)["x"])
    teacher = learner.denoiser.bind(params)
    states = {"bare": one((jax.tree.map(jnp.copy, params), learner.optimizer.init(params), None, jnp.int32(0)), resident[0], key)}
    loss = distill.ConsistencyDistillation(EDM, teacher=teacher)
    learners = {
        "f-distill, one update of the fake score": distill.FDistill(
            teacher, divergence=distill.ReverseKL(), ratio=distill.UnitRatio(), n_aux=1, ema=None
        ),
        "consistency distillation": ScoreLearner(learner.denoiser, loss, optax.adam(1e-4), ema=None),
    }
    for name, each in learners.items():
        states[name] = fit(each, data, steps=3, key=key)

    def run_bare():
        now = states["bare"]
        for i in range(steps):
            now = one(now, resident[i % 4], key)
        states["bare"] = jax.block_until_ready(now)

    def run(name):
        state = states[name]
        states[name] = jax.block_until_ready(fit(learners[name], data, steps=int(state.step) + steps, key=key, state=state))

    functions = {"bare": run_bare} | {name: lambda name=name: run(name) for name in learners}
    yield from in_turns(functions, rounds, base="bare", calls=dict.fromkeys(functions, steps), case="{}: UNet, 8x8, batch 64")


PARTS = {"step": step}
