"""Rewards of minus infinity under potentials that ask for rewards on the way, and what was tried for them; birth and death.

    python experiments/2501.06848/constraints.py

Laws whose constrained constants are known: three modes at -3, .6 and 4 with x > 0; a half-space of the normal law in the plane; the
same with the reward -30 - 2 (x - 2)^2 inside. Ancestral sampling, 100 steps of Karras. Then N(0, 1) with -(x - 2)^2 / 2 under birth
and death.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import scorelab as sl
from scorelab.fk.potentials import GainState
from scorelab.pytrees import partly_static
from scorelab.run.script import parse, record, script

BASE, KEY = sl.solvers.DDIM(eta=1.0), jax.random.key(0)
WIDE, EDM = (sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_max=s)) for s in (80.0, 20.0))
MODES = sl.models.ExactModel(sl.densities.GaussianMixture([0.6, 0.3, 0.1], np.array([[-3.0], [0.6], [4.0]]), 0.04), WIDE)
PLANE = sl.models.ExactModel(sl.densities.Gaussian(np.zeros(2), 1.0), EDM)
LINE = sl.models.ExactModel(sl.densities.Gaussian(np.zeros(1), 1.0), EDM)


def tried(rule):
    """The rule, with another meaning of minus infinity on the way: a fixed number, or None for the last finite value."""

    @partly_static("reward", "scale", "intermediate")
    @dataclass(frozen=True)
    class Tried(rule):
        low: float | None = -1e4

        def weigh(self, memory, notes, row, populations):
            due = (row.potential.event > 0) & (row.enter > 0)
            value = jnp.where(jnp.isfinite(notes), notes, memory.total if self.low is None else self.low)
            gain, remembered = self.gain(memory, value)
            gain, remembered = jnp.where(due, gain, 0.0), jnp.where(due, remembered, memory.memory)
            return gain, GainState(memory.total + gain, remembered)

    return Tried


def potentials(inside, data_std):
    """The rows of the table; ``inside`` is the reward where x > 0."""
    hard = lambda x: jnp.where(x[:, 0] > 0, inside(x), -jnp.inf)
    penalty = lambda x: jnp.where(x[:, 0] > 0, inside(x), -1e4)
    difference, largest, fk = tried(sl.fk.Difference), tried(sl.fk.Max), sl.fk
    return {
        "difference, -10,000": difference(hard, 1.0),
        "difference, last finite": difference(hard, 1.0, low=None),
        "difference": fk.Difference(hard, 1.0),
        "max, -10,000": largest(hard, 1.0),
        "max": fk.Max(hard, 1.0),
        "final only": fk.FinalOnly(hard, 1.0),
        "posterior, 16": fk.Difference(hard, 1.0, intermediate=fk.Posterior(samples=16, data_std=data_std)),
        # The sample itself decides with minus infinity; on the way, late, a penalty.
        "penalty in a late window": fk.Difference(penalty, 1.0, window=(0.8, 1.0)),
    }


def measured(potential, model, arguments, steps=100, **options):
    """Of every population: Z, the weighted mean, the share beyond 2.3 and the first particles left."""
    particles, n = arguments.particles, arguments.particles * arguments.runs
    solver = sl.fk.FeynmanKac(base=BASE, potential=potential, particles=particles, **options)
    shape = (n, *model.law.event)
    out = sl.sample(model, solver=solver, grid=sl.grids.Karras(steps), key=KEY, shape=shape, chunk=n)
    w = np.asarray([sl.fk.normalised(row) for row in out.log_weights.reshape(-1, particles)])
    x = np.asarray(out.x).reshape(len(w), particles, -1)[:, :, 0]
    return dict(
        log_z=np.asarray(out.log_z), mean=(w * x).sum(1), far=(w * (x > 2.3)).sum(1),
        roots=np.asarray(out.diagnostics["unique_roots"]) / particles,
    )  # fmt: skip


def main() -> None:
    arguments = parse(__doc__, small=dict(particles=128, runs=2), particles=4096, runs=16)
    zero, curved = lambda x: jnp.zeros(len(x)), lambda x: -30.0 - 2.0 * (x[:, 0] - 2.0) ** 2
    # N(0, 1) exp(-2 (x - 2)^2) is N(1.6, .2) up to its constant.
    curved_z = -30.0 - 0.5 * np.log(5.0) - 1.6 + stats.norm.logcdf(1.6 * np.sqrt(5.0))
    cases = {
        "three modes": (MODES, zero, 2.3, float(np.log(0.3 * stats.norm.cdf(3.0) + 0.1))),
        "half-space": (PLANE, zero, 1.0, float(np.log(0.5))),
        "reward inside": (PLANE, curved, 1.0, float(curved_z)),
    }
    found = {}
    for case, (model, inside, data_std, log_z) in cases.items():
        for name, potential in potentials(inside, data_std).items():
            row = found.setdefault(case, {})[name] = measured(potential, model, arguments)
            ratio = np.exp(np.asarray(row["log_z"]) - log_z)
            text = f"Z / exact {ratio.mean():.4f} +- {ratio.std(ddof=1):.4f}  far {np.mean(row['far']):.3f}"
            print(f"{case:14s} {name:26s} {text}", flush=True)
    parabola = lambda x: -0.5 * (x[:, 0] - 2.0) ** 2
    for steps in (25, 100, 400):
        for policy in (sl.fk.BirthDeath(), sl.fk.Always()):
            row = measured(sl.fk.Difference(parabola, 1.0), LINE, arguments, steps=steps, policy=policy)
            found.setdefault("parabola", {})[f"{type(policy).__name__}, {steps} steps"] = row
            text = f"log Z {np.mean(row['log_z']):+.4f} +- {np.std(row['log_z'], ddof=1):.4f} mean {np.mean(row['mean']):.4f}"
            print(f"{type(policy).__name__:12s} {steps:4d} {text}", flush=True)
    record(arguments, found)


if __name__ == "__main__":
    script(main)
