"""Potentials on a chain whose tilted law and constant are known exactly, and the noise of the resampling schemes.

The chain is Euler-Maruyama on N(0.5, 1) under variance-preserving noise, linear and Gaussian, so that the tilted law of the
chain itself is in closed form: no error of discretisation is left. Reward -(x - 2.5)^2 / 2, scale 2, an event every tenth of
100 steps, systematic resampling below half of the particles. "Guided" is half of the twisted proposal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Every potential whose factors multiply to exp(lambda r) has the tilted law as its target; difference, max and sum are "
    "offered side by side.",
    look_for="Difference and final-only have errors of a few hundredths; max has four times as much and sum is off by half a unit.",
    minutes=dict(small=0.6, full=1, gpu=None),
    options=dict(particles=2048, runs=64),
    small=dict(particles=256, runs=16),
)

PROCESS = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
MODEL = sl.models.ExactModel(sl.densities.Gaussian(np.array([0.5]), 1.0), PROCESS)
GRID, BASE = sl.grids.Uniform(100, t_min=1e-3, clean=False), sl.solvers.EulerMaruyama(denoise=False)
SCALE, CENTRE = 2.0, 2.5
SCHEMES = (sl.fk.systematic, sl.fk.ssp, sl.fk.stratified, sl.fk.residual, sl.fk.killing, sl.fk.multinomial)


def reward(x):
    return -0.5 * (x[:, 0] - CENTRE) ** 2


def exact() -> tuple[float, float, float]:
    """Mean, variance and log Z of the tilted law of the chain: affine maps of a Gaussian, composed."""
    times = GRID.times(PROCESS)
    table = BASE.table(PROCESS, times)
    mean, variance = 0.0, float(PROCESS.sigma(times[0])) ** 2
    for t, a, e, o, n in zip(table.t, table.a, table.e, table.o, table.n, strict=True):
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        total = alpha**2 + sigma**2
        slope, shift = a + e * sigma / total, o - 0.5 * e * sigma * alpha / total
        mean, variance = slope * mean + shift, slope**2 * variance + n**2
    precision = 1 / variance + SCALE
    centre = (mean / variance + SCALE * CENTRE) / precision
    square = mean**2 / variance + SCALE * CENTRE**2 - precision * centre**2
    return centre, 1 / precision, -0.5 * (np.log(variance * precision) + square)


def measured(potential, model, policy, options) -> dict[str, np.ndarray]:
    """Errors of every run."""
    solver = sl.fk.FeynmanKac(base=BASE, potential=potential, policy=policy, particles=options.particles)
    n = options.particles * options.runs
    out = sl.sample(model, solver=solver, grid=GRID, key=jax.random.key(0), shape=(n, 1), chunk=n)
    x, log_w = (np.asarray(v, np.float64).reshape(options.runs, -1) for v in (out.x, out.log_weights))
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    mean = (w * x).sum(1)
    centre, variance, log_z = exact()
    return dict(
        mean=mean - centre,
        variance=(w * (x - mean[:, None]) ** 2).sum(1) - variance,
        log_z=np.asarray(out.log_z, np.float64) - log_z,
        ess=np.asarray(out.diagnostics["final_ess"]) / options.particles,
        roots=np.asarray(out.diagnostics["unique_roots"]) / options.particles,
    )


def offspring(draws: int = 20_000, n: int = 64) -> dict[str, float]:
    """The summed variance of the numbers of offspring, for log-normal weights."""
    log_w = jnp.asarray(np.random.default_rng(0).normal(size=n), jnp.float32)
    keys = jax.random.split(jax.random.key(1), draws)
    found = {}
    for scheme in SCHEMES:
        index = np.asarray(jax.jit(jax.vmap(lambda key, scheme=scheme: scheme(key, log_w)))(keys))
        found[scheme.__name__] = float(np.stack([np.bincount(row, minlength=n) for row in index]).var(0).sum())
    return found


def rows() -> dict[str, tuple]:
    """Potential, model and policy of every row."""
    guided = sl.models.RewardGradient(model=MODEL, reward=reward, scale=0.5 * SCALE)
    half, fk = sl.fk.EssBelow(0.5), sl.fk
    return {
        "difference": (fk.Difference(reward, SCALE, every=10), MODEL, half),
        "difference, every event": (fk.Difference(reward, SCALE, every=10), MODEL, fk.Every(10)),
        "difference, guided": (fk.Difference(reward, SCALE, every=10), guided, half),
        "final only": (fk.FinalOnly(reward, SCALE), MODEL, half),
        "final only, guided": (fk.FinalOnly(reward, SCALE), guided, half),
        "max": (fk.Max(reward, SCALE, every=10), MODEL, half),
        "sum": (fk.Sum(reward, SCALE, every=10), MODEL, half),
    }


def log_mean_z(row: dict) -> float:
    """The log of the mean of the estimates of Z over the exact Z."""
    return float(np.log(np.mean(np.exp(row["log_z"]))))


def claims(numbers: dict) -> list[Claim]:
    """Whether Z is unbiased, and what the other potentials cost."""
    runs = numbers["runs"]
    plain = np.exp(np.asarray(runs["difference"]["log_z"]))
    spread = plain.std(ddof=1) / np.sqrt(len(plain))
    errors = {name: np.sqrt(np.mean(np.square(runs[name]["mean"]))) for name in runs}
    ratio = {name: errors[name] / errors["difference"] for name in ("max", "sum")}
    return [
        Claim(
            says="The target of the difference potential is the tilted law: its estimate of Z is unbiased.",
            value=plain.mean(), spread=spread, unit="mean of Z over the exact Z",
            verdict="reproduced" if abs(plain.mean() - 1) <= 3 * spread else "not reproduced",
            why="Within three standard errors of 1; the spread is the standard error over the runs.",
        ),
        Claim(
            says="Max and sum, as offered, are samplers of the same target as difference.", value=ratio["max"], spread=0,
            unit=f"times the error of the mean of difference, for max (sum: {ratio['sum']:.3g})",
            verdict="reproduced" if max(ratio.values()) < 2 else "not reproduced",
            why="They have the target, but the last factor has to undo what they did: reproduced would be less than twice "
            "the error.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    found = record.cells(measured, {name: (*row, o) for name, row in rows().items()})
    schemes = record.cell("offspring", offspring)
    for name, row in found.items():
        text = "  ".join(f"{column} {np.mean(v):+.4f} +- {np.std(v, ddof=1):.4f}" for column, v in row.items())
        print(f"{name:24s} {text}  log E[Z] {log_mean_z(row):+.4f}")
    print({name: round(value, 1) for name, value in schemes.items()})
    numbers = dict(exact=exact(), runs=found, offspring=schemes)
    figure = viz.dots({name: np.abs(row["mean"]).tolist() for name, row in found.items()}, xlabel="error of the mean", logx=True)
    record.write(numbers, claims=claims(numbers), errors=figure)


if __name__ == "__main__":
    FIGURE.make(main)
