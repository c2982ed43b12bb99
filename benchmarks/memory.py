"""Temporary memory of compiled samplers against their steps, particles and chunks, as XLA plans it: no run is needed."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

import scorelab as sl
from benchmarks.common import EDM, Row, model_of
from benchmarks.smc import brightness
from scorelab.sampling import _walk
from scorelab.walk import Held, Visit, working_precision


def planned(model, event, batch, solver, steps, keep="last") -> float:
    """MiB of temporaries of a call."""
    rows = working_precision(solver.table(EDM, sl.grids.Karras(steps).times(EDM)))
    visit = Visit(model, jax.random.key(0), jnp.arange(batch))
    compiled = _walk.lower(Held(solver), visit, sl.starts.Prior(), rows.t[0], rows, event=event, keep=keep).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20


def plan(rounds: int, quick: bool) -> Iterator[Row]:
    """Ten times the steps takes as much; a sample takes what its network takes."""
    model, event, batch, _ = model_of("DiT")
    heun, base = sl.solvers.Heun(), sl.solvers.DDIM(eta=1.0)
    few, many = (planned(model, event, batch, heun, steps) for steps in (10, 100))
    yield Row.of("100 steps over 10: DiT, Heun", many / few, "times", goal=1.02, base=f"10 steps, {few:.1f} MiB")
    potential = sl.fk.Difference(brightness, 5.0)
    for particles in (16, 64):
        plain = planned(model, event, particles, base, 10)
        weighed = planned(model, event, particles, sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always()), 10)
        yield Row.of(f"{particles} particles over as many samples: DiT", weighed / plain, "times", base=f"samples, {plain:.1f} MiB")
    for chunk in (16, 64):
        yield Row.of(f"a chunk of {chunk}: DiT, Heun", planned(model, event, chunk, heun, 10), "MiB")
    kept = planned(model, event, batch, heun, 100, keep="all")
    states = 200 * batch * 28 * 28 * 4 / 2**20
    yield Row.of('keep="all", 100 steps: DiT, Heun', kept, "MiB", base=f"the states of all rows, {states:.1f} MiB")


PARTS = {"plan": plan}
