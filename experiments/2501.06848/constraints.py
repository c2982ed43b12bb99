"""Rewards of minus infinity under potentials that ask for rewards on the way, and what was tried for them; birth and death.

Laws whose constrained constants are known: three modes at -3, .6 and 4 with x > 0; a half-space of the normal law in the
plane; the same with the reward -30 - 2 (x - 2)^2 inside. Ancestral sampling, 100 steps of Karras. Then N(0, 1) with -(x -
2)^2 / 2 under birth and death.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

import scorelab as sl
from scorelab import viz
from scorelab.fk.potentials import GainState
from scorelab.pytrees import partly_static
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Steering takes arbitrary rewards, non-differentiable constraints among them.",
    look_for="Counted as -10,000, minus infinity half way loses most of Z; the least of the population, final-only and many draws "
    "do not.",
    minutes=dict(small=1.9, full=4, gpu=None),
    options=dict(particles=4096, runs=16),
    small=dict(particles=512, runs=8),
)

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


def measured(potential, model, options, steps=100, policy=None):
    """Of every population: Z, the weighted mean, the share beyond 2.3 and the first particles left."""
    particles, n = options.particles, options.particles * options.runs
    policy = sl.fk.EssBelow(0.5) if policy is None else policy
    solver = sl.fk.FeynmanKac(base=BASE, potential=potential, particles=particles, policy=policy)
    shape = (n, *model.law.event)
    out = sl.sample(model, solver=solver, grid=sl.grids.Karras(steps), key=KEY, shape=shape, chunk=n)
    w = np.asarray([sl.fk.normalised(row) for row in out.log_weights.reshape(-1, particles)])
    x = np.asarray(out.x).reshape(len(w), particles, -1)[:, :, 0]
    return dict(
        log_z=np.asarray(out.log_z), mean=(w * x).sum(1), far=(w * (x > 2.3)).sum(1),
        roots=np.asarray(out.diagnostics["unique_roots"]) / particles,
    )  # fmt: skip


def zero(x):
    return jnp.zeros(len(x))


def curved(x):
    return -30.0 - 2.0 * (x[:, 0] - 2.0) ** 2


def parabola(x):
    return -0.5 * (x[:, 0] - 2.0) ** 2


# N(0, 1) exp(-2 (x - 2)^2) is N(1.6, .2) up to its constant; N(0, 1) under the parabola has the evidence of 2 under N(0, 2).
CURVED_Z = -30.0 - 0.5 * np.log(5.0) - 1.6 + stats.norm.logcdf(1.6 * np.sqrt(5.0))
PARABOLA_Z = float(-0.5 * np.log(2.0) - 1.0)
# model, the reward where x > 0, the deviation of the data, the exact log Z
CASES = {
    "three modes": (MODES, zero, 2.3, float(np.log(0.3 * stats.norm.cdf(3.0) + 0.1))),
    "half-space": (PLANE, zero, 1.0, float(np.log(0.5))),
    "reward inside": (PLANE, curved, 1.0, float(CURVED_Z)),
}
JUMPS = {
    f"{type(policy).__name__}, {steps} steps": (steps, policy)
    for steps in (25, 100, 400) for policy in (sl.fk.BirthDeath(), sl.fk.Always())
}  # fmt: skip


def ratio(numbers: dict, case: str, name: str) -> np.ndarray:
    """Z over the exact Z, of every population."""
    return np.exp(np.asarray(numbers[case][name]["log_z"]) - numbers["exact"][case])


def claims(numbers: dict) -> list[Claim]:
    """What minus infinity half way does to Z, when taken at its word and when not."""
    name = "difference, -10,000"
    lost = {case: ratio(numbers, case, name).mean() for case in CASES}
    kept = {case: ratio(numbers, case, "difference") for case in CASES}
    worst = min(kept, key=lambda case: kept[case].mean())
    wide = max(JUMPS.values(), key=lambda one: one[0])[0]
    jumps = np.asarray(numbers["parabola"][f"BirthDeath, {wide} steps"]["log_z"]) - PARABOLA_Z
    return [
        Claim(
            says="Steering takes arbitrary rewards, constraints among them; here minus infinity outside a set, counted as -10,000.",
            value=max(lost.values()), spread=0, unit="of Z is found at most, over three laws",
            verdict="reproduced" if min(lost.values()) > 0.9 else "not reproduced",
            why="A particle that resampling has removed does not come back; reproduced would be nine tenths of Z in every law.",
        ),
        Claim(
            says="The same, where minus infinity half way counts as the least of its population.", value=kept[worst].mean(),
            spread=kept[worst].std(ddof=1), unit="of Z is found at least, over three laws",
            verdict="reproduced" if kept[worst].mean() > 0.9 else "in shape" if kept[worst].mean() > 0.5 else "not reproduced",
            why="Above nine tenths counts as reproduced; the rest is the error of the sampler in 100 steps, which "
            "final-only has too.",
        ),
        Claim(
            says="Birth and death in place of weights has the same target.", value=jumps.mean(), spread=jumps.std(ddof=1),
            unit=f"error of log Z in {wide} steps",
            verdict="reproduced" if abs(jumps.mean()) < 0.05 else "not reproduced",
            why="Less than .05 counts as reproduced; the spread is that of one population.",
        ),
    ]  # fmt: skip


def figure(numbers: dict):
    """Z over the exact Z, a dot for each population."""
    found = {f"{case}: {name}": np.maximum(ratio(numbers, case, name), 1e-5) for case in CASES for name in numbers[case]}
    return viz.dots({name: v.tolist() for name, v in found.items()}, xlabel="Z / exact, below .00001 at .00001",
                    reference={"exact": 1.0}, logx=True, width=7.5)  # fmt: skip


def main(record) -> None:
    o, numbers = record.options, {}
    for case, (model, inside, data_std, _) in CASES.items():
        cells = {f"{case}: {name}": (potential, model, o) for name, potential in potentials(inside, data_std).items()}
        found = record.cells(measured, cells)
        numbers[case] = {name.removeprefix(f"{case}: "): row for name, row in found.items()}
    steered = sl.fk.Difference(parabola, 1.0)
    numbers["parabola"] = record.cells(measured, {name: (steered, LINE, o, *one) for name, one in JUMPS.items()})
    numbers["exact"] = {case: log_z for case, (*_, log_z) in CASES.items()} | dict(parabola=PARABOLA_Z)
    for case in CASES:
        for name, row in numbers[case].items():
            z = ratio(numbers, case, name)
            print(f"{case:14s} {name:26s} Z / exact {z.mean():.4f} +- {z.std(ddof=1):.4f}  far {np.mean(row['far']):.3f}")
    for name, row in numbers["parabola"].items():
        text = f"log Z {np.mean(row['log_z']):+.4f} +- {np.std(row['log_z'], ddof=1):.4f}"
        print(f"{name:24s} {text} mean {np.mean(row['mean']):.4f} (exact: {PARABOLA_Z:+.4f})")
    record.write(numbers, claims=claims(numbers), ratios=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
