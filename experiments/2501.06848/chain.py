"""Potentials on a chain whose tilted law and constant are known exactly, and the noise of the resampling schemes.

    python experiments/2501.06848/chain.py

The chain is Euler-Maruyama on N(0.5, 1) under variance-preserving noise, linear and Gaussian, so that the tilted law of the chain
itself is in closed form: no error of discretisation is left. Reward -(x - 2.5)^2 / 2, scale 2, an event every tenth of 100 steps,
systematic resampling below half of the particles. "Guided" is half of the twisted proposal.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.run.script import parse, record, script

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


def measured(potential, model, policy, arguments) -> dict[str, np.ndarray]:
    """Errors of every run."""
    solver = sl.fk.FeynmanKac(base=BASE, potential=potential, policy=policy, particles=arguments.particles)
    n = arguments.particles * arguments.runs
    out = sl.sample(model, solver=solver, grid=GRID, key=jax.random.key(0), shape=(n, 1), chunk=n)
    x, log_w = (np.asarray(v, np.float64).reshape(arguments.runs, -1) for v in (out.x, out.log_weights))
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    mean = (w * x).sum(1)
    centre, variance, log_z = exact()
    return dict(
        mean=mean - centre,
        variance=(w * (x - mean[:, None]) ** 2).sum(1) - variance,
        log_z=np.asarray(out.log_z, np.float64) - log_z,
        ess=np.asarray(out.diagnostics["final_ess"]) / arguments.particles,
        roots=np.asarray(out.diagnostics["unique_roots"]) / arguments.particles,
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


def main() -> None:
    arguments = parse(__doc__, small=dict(particles=128, runs=4), particles=2048, runs=64)
    guided = sl.models.RewardGradient(model=MODEL, reward=reward, scale=0.5 * SCALE)
    half, fk = sl.fk.EssBelow(0.5), sl.fk
    rows = {
        "difference": (fk.Difference(reward, SCALE, every=10), MODEL, half),
        "difference, every event": (fk.Difference(reward, SCALE, every=10), MODEL, fk.Every(10)),
        "difference, guided": (fk.Difference(reward, SCALE, every=10), guided, half),
        "final only": (fk.FinalOnly(reward, SCALE), MODEL, half),
        "final only, guided": (fk.FinalOnly(reward, SCALE), guided, half),
        "max": (fk.Max(reward, SCALE, every=10), MODEL, half),
        "sum": (fk.Sum(reward, SCALE, every=10), MODEL, half),
    }
    found = {}
    for name, row in rows.items():
        found[name] = measured(*row, arguments)
        text = "  ".join(f"{column} {np.mean(v):+.4f} +- {np.std(v, ddof=1):.4f}" for column, v in found[name].items())
        z = np.log(np.mean(np.exp(found[name]["log_z"])))
        print(f"{name:24s} {text}  log E[Z] {z:+.4f}", flush=True)
    schemes = offspring()
    print({name: round(value, 1) for name, value in schemes.items()})
    figure = viz.dots({name: np.abs(row["mean"]).tolist() for name, row in found.items()}, xlabel="error of the mean", logx=True)
    record(arguments, dict(exact=exact(), runs=found, offspring=schemes), errors=figure)


if __name__ == "__main__":
    script(main)
