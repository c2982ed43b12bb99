"""Convergence of the samplers of geometric Brownian motion with the exact score: weak, and strong on coupled Brownian paths.

    python experiments/2510.02730/orders.py

Weak: the Wasserstein-1 distance of log x to its exact law against the number of steps, on a mixture of three log-normals, from
the exact law at t_max, on uniform and Karras grids; with the share of paths that changed sign. The plain schemes of the paper
(``denoise=False``) stand beside Dale-Langevin with a denoised last step, the default. The last table row is the distance of as
many exact draws. On the uniform grid the last step starts at the noise level 0.8 / sqrt(N), at N = 40 still that of a mode: DDIM
and Heun, which end it in the denoised mean, lose that spread. Strong: the mean absolute error of log x at t = 0.2 against a fine
solution on the same Brownian paths.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from mixture import MODEL, PROCESS, TARGET, exact_start, w1

import scorelab as sl
from scorelab import viz
from scorelab.randomness import per_example_keys, per_example_normal
from scorelab.run.script import parse, record, script
from scorelab.walk import working_precision

STEPS = (5, 10, 20, 40, 80, 160, 320)
SOLVERS = {
    "Dale-Langevin": sl.solvers.EulerMaruyama(denoise=False),
    "sign-agnostic": sl.solvers.EulerMaruyama(coords="ambient", denoise=False),
    "Milstein": sl.solvers.Milstein(denoise=False),
    "Dale-Langevin, denoised": sl.solvers.EulerMaruyama(),
    "DDIM": sl.solvers.DDIM(),
    "ancestral": sl.solvers.DDIM(eta=1.0),
    "Heun": sl.solvers.Heun(),
}
GRIDS = {"uniform": sl.grids.Uniform, "Karras": sl.grids.Karras}
STRONG, STRONG_STEPS, FINE, T_END = ("Dale-Langevin", "Milstein", "sign-agnostic"), (16, 32, 64, 128, 256), 4096, 0.2


def weak(key, n: int) -> dict:
    """Distances and shares of paths that changed sign: grid -> solver -> list over STEPS."""
    key_start, key = jax.random.split(key)
    start = exact_start(key_start, n)
    table = {grid: {} for grid in GRIDS}
    for grid, spaced in GRIDS.items():
        for name, solver in SOLVERS.items():
            distances, flipped = [], []
            for steps in STEPS:
                out = sl.sample(MODEL, solver=solver, grid=spaced(steps), key=key, shape=(n, 1), start=start)
                distances.append(w1(np.log(np.abs(out.x[:, 0]))))
                flipped.append(float(np.mean(np.asarray(out.diagnostics.get("sign_flips", 0)) > 0)))
            table[grid][name] = dict(w1=distances, sign_flips=flipped)
            print(f"{grid:8s} {name:26s}" + "".join(f"{d:8.4f}" for d in distances), flush=True)
            if any(flipped):
                print(f"{'':8s} {'  share of paths flipped':26s}" + "".join(f"{f:8.1g}" for f in flipped), flush=True)
    return table


@functools.partial(jax.jit, static_argnames="solver")
def walk(solver, rows, y, keys):
    """``y`` after all rows of a solver's table; ``keys`` ``(rows, n)`` is what they draw from."""

    def body(state, row_and_keys):
        (y, carry), (row, keys) = state, row_and_keys
        return solver.update(keys, y, solver.ask(MODEL, keys, y, row, None), carry, row), None

    return jax.lax.scan(body, (y, solver.init(PROCESS, y, jnp.zeros(len(y)))), (rows, keys))[0][0]


@functools.partial(jax.jit, static_argnames="fine")
def on_the_same_paths(times, y, keys, key, fine: int):
    """Euler-Maruyama in the chart with ``fine`` steps in each of ``times``, on the Brownian paths that ``keys`` drive."""

    def drift(y, t):
        return PROCESS.latent_drift(y, t) - PROCESS.latent_diffusion(t) ** 2 * MODEL(y, t).score

    def coarse(y, inputs):
        t, s, keys, key = inputs
        # A Brownian bridge: independent increments, moved so that they sum to the one the solver drew.
        parts = jax.random.normal(key, (fine, *y.shape), y.dtype) / fine**0.5
        parts = jnp.sqrt(t - s) * (parts - parts.mean(0) + per_example_normal(keys, y) / fine)
        dt = (s - t) / fine

        def step(y, inputs):
            i, part = inputs
            return y + dt * drift(y, t + i * dt) + PROCESS.latent_diffusion(t) * part, None

        y, _ = jax.lax.scan(step, y, (jnp.arange(fine), parts))
        return y, None

    inputs = (times[:-1], times[1:], keys, jax.random.split(key, len(times) - 1))
    return jax.lax.scan(coarse, y, inputs)[0]


def strong(key, n: int) -> dict:
    """Mean absolute errors of log x, over STRONG_STEPS, and the orders between neighbours."""
    key_start, key_noise, key_bridge = jax.random.split(key, 3)
    y = TARGET.logs.noised(PROCESS, PROCESS.t_max).sample(key_start, n)
    errors = {name: [] for name in STRONG}
    for steps in STRONG_STEPS:
        times = sl.grids.Uniform(steps, t_min=T_END, clean=False).times(PROCESS)
        keys = jax.vmap(lambda k: per_example_keys(k, jnp.arange(n)))(jax.random.split(key_noise, steps))
        reference = on_the_same_paths(jnp.asarray(times), y, keys, key_bridge, FINE // steps)
        for name in STRONG:
            rows = working_precision(SOLVERS[name].table(PROCESS, times))
            errors[name].append(float(jnp.mean(jnp.abs(walk(SOLVERS[name], rows, y, keys) - reference))))
    table = {}
    for name, values in errors.items():
        orders = np.log2(np.divide(values[:-1], values[1:])).tolist()
        table[name] = dict(error=values, orders=orders)
        print(f"strong   {name:26s}" + "".join(f"{e:8.4f}" for e in values) + "   orders" + "".join(f"{p:6.2f}" for p in orders))
    return table


def main() -> None:
    """Measure, print, draw."""
    arguments = parse(__doc__, small=dict(n=1000, paths=50), n=30_000, paths=4000, seed=0)
    key_weak, key_strong, key_floor = jax.random.split(jax.random.key(arguments.seed), 3)
    print(f"{'N':35s}" + "".join(f"{steps:8d}" for steps in STEPS))
    table = weak(key_weak, arguments.n)
    floor = float(np.mean([w1(TARGET.logs.sample(k, arguments.n)[:, 0]) for k in jax.random.split(key_floor, 10)]))
    print(f"exact draws{'':24s}{floor:8.4f}\n{'N':35s}" + "".join(f"{steps:8d}" for steps in STRONG_STEPS))
    paths = strong(key_strong, arguments.paths)
    shown = dict(xlabel="steps", logx=True, logy=True)
    limits = dict(ylim=(0.6 * floor, 0.2))
    content = [
        viz.Panel(
            series={name: (STEPS, row["w1"]) for name, row in rows.items()} | {"exact draws": (STEPS, np.full(len(STEPS), floor))},
            title=f"weak, {grid} grid", ylabel="W1 of log x", markers=True, **limits, **shown,
        )
        for grid, rows in table.items()
    ]  # fmt: skip
    guides = {f"order {p}": (STRONG_STEPS, 0.6 * paths[name]["error"][0] * (16 / np.array(STRONG_STEPS)) ** p)
              for p, name in ((1, "Milstein"), (0.5, "sign-agnostic"))}  # fmt: skip
    content.append(
        viz.Panel(
            series={name: (STRONG_STEPS, row["error"]) for name, row in paths.items()} | guides,
            title="strong, on the same Brownian paths", ylabel="mean |error of log x|", markers=True, **shown,
        )
    )  # fmt: skip
    numbers = dict(weak=dict(steps=STEPS, floor=floor, **table), strong=dict(steps=STRONG_STEPS, t_end=T_END, **paths))
    reference = ["exact draws", *guides]
    figure = viz.panels(content, columns=3, reference=reference, width=11.0, height=3.0)
    record(arguments, numbers, convergence=figure)


if __name__ == "__main__":
    script(main)
