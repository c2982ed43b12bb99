"""Convergence of the samplers with the exact score: weak, and strong on coupled Brownian paths.

Weak: the Wasserstein-1 distance of log x to its exact law against the number of steps, on a mixture of three log-normals, from
the exact law at t_max, on uniform and Karras grids; with the share of paths that changed sign. The plain schemes of the paper
(``denoise=False``) stand beside Dale-Langevin with a denoised last step, the default. On the uniform grid the last step starts at
the noise level 0.8 / sqrt(N), at N = 40 still that of a mode: DDIM and Heun, which end it in the denoised mean, lose that spread.
Strong: the mean absolute error of log x at t = 0.2 against a fine solution on the same Brownian paths.
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
from scorelab.run.figure import Claim, Figure
from scorelab.walk import working_precision

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Two discretisations of the reverse process: the sign-agnostic rule in data space, and the Dale-Langevin rule, which is "
    "Euler-Maruyama of the logarithm.",
    look_for="Both rules have weak order 1. The strong order is 1 for Dale-Langevin and one half for the sign-agnostic rule.",
    minutes=dict(small=1.5, full=6, gpu=None),
    options=dict(n=30_000, paths=4000, seed=0),
    small=dict(n=1000, paths=200),
)

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


def weak(grid: str, name: str, options) -> dict:
    """Distances, and shares of paths that changed sign, over STEPS."""
    key_start, key = jax.random.split(keys(options)[0])
    start, shape = exact_start(key_start, options.n), (options.n, 1)
    distances, flipped = [], []
    for steps in STEPS:
        out = sl.sample(MODEL, solver=SOLVERS[name], grid=GRIDS[grid](steps), key=key, shape=shape, start=start)
        distances.append(w1(np.log(np.abs(out.x[:, 0]))))
        flipped.append(float(np.mean(np.asarray(out.diagnostics.get("sign_flips", 0)) > 0)))
    return dict(w1=distances, sign_flips=flipped)


def keys(options):
    """The keys of the weak errors, the strong ones and the exact draws."""
    return jax.random.split(jax.random.key(options.seed), 3)


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


def strong(options) -> dict:
    """Mean absolute errors of log x over STRONG_STEPS, and the orders between neighbours."""
    key_start, key_noise, key_bridge = jax.random.split(keys(options)[1], 3)
    y = TARGET.logs.noised(PROCESS, PROCESS.t_max).sample(key_start, options.paths)
    errors = {name: [] for name in STRONG}
    for steps in STRONG_STEPS:
        times = sl.grids.Uniform(steps, t_min=T_END, clean=False).times(PROCESS)
        of_steps = jax.random.split(key_noise, steps)
        each = jax.vmap(lambda k: per_example_keys(k, jnp.arange(options.paths)))(of_steps)
        reference = on_the_same_paths(jnp.asarray(times), y, each, key_bridge, FINE // steps)
        for name in STRONG:
            rows = working_precision(SOLVERS[name].table(PROCESS, times))
            errors[name].append(float(jnp.mean(jnp.abs(walk(SOLVERS[name], rows, y, each) - reference))))
    orders = {name: np.log2(np.divide(values[:-1], values[1:])).tolist() for name, values in errors.items()}
    return {name: dict(error=values, orders=orders[name]) for name, values in errors.items()}


def floor(options) -> float:
    """The mean distance of as many exact draws."""
    return float(np.mean([w1(TARGET.logs.sample(k, options.n)[:, 0]) for k in jax.random.split(keys(options)[2], 10)]))


def claims(numbers: dict) -> list[Claim]:
    """What the schemes are known to do, beside what was found."""

    def order(name: str) -> tuple[float, float]:
        return float(np.mean(numbers["strong"][name]["orders"])), float(np.std(numbers["strong"][name]["orders"], ddof=1))

    plain, agnostic = order("Dale-Langevin"), order("sign-agnostic")
    flips = max(max(numbers["weak"][grid]["Dale-Langevin"]["sign_flips"]) for grid in GRIDS)
    changed = numbers["weak"]["uniform"]["sign-agnostic"]["sign_flips"]
    spread = "The mean and the spread over four doublings of the steps."
    return [
        Claim(
            says="The Dale-Langevin rule is Euler-Maruyama with constant noise: strong order 1.", value=plain[0], spread=plain[1],
            unit="strong order", verdict="reproduced" if abs(plain[0] - 1) < 0.1 else "not reproduced", why=spread,
        ),
        Claim(
            says="The sign-agnostic rule is Euler-Maruyama with noise that depends on the state: strong order one half.",
            value=agnostic[0], spread=agnostic[1], unit="strong order",
            verdict="reproduced" if abs(agnostic[0] - 0.5) < 0.15 else "not reproduced", why=spread,
        ),
        Claim(
            says="The Dale-Langevin rule preserves signs.", value=flips, spread=0, unit="largest share of paths that changed sign",
            verdict="reproduced" if flips == 0 else "not reproduced",
            why=f"At every number of steps. Of the sign-agnostic rule, {changed[0]:.2g} change at {STEPS[0]} steps.",
        ),
    ]  # fmt: skip


def figure(numbers: dict):
    """Errors against steps."""
    table, paths, least = numbers["weak"], numbers["strong"], numbers["weak"]["floor"]
    shown = dict(xlabel="steps", logx=True, logy=True)
    limits, exact = dict(ylim=(0.6 * least, 0.2)), {"exact draws": (STEPS, np.full(len(STEPS), least))}
    content = [
        viz.Panel(
            series={name: (STEPS, row["w1"]) for name, row in table[grid].items()} | exact,
            title=f"weak, {grid} grid", ylabel="W1 of log x", markers=True, **limits, **shown,
        )
        for grid in GRIDS
    ]  # fmt: skip
    guides = {f"order {p}": (STRONG_STEPS, 0.6 * paths[name]["error"][0] * (16 / np.array(STRONG_STEPS)) ** p)
              for p, name in ((1, "Milstein"), (0.5, "sign-agnostic"))}  # fmt: skip
    content.append(
        viz.Panel(
            series={name: (STRONG_STEPS, paths[name]["error"]) for name in STRONG} | guides,
            title="strong, on the same Brownian paths", ylabel="mean |error of log x|", markers=True, **shown,
        )
    )  # fmt: skip
    return viz.panels(content, columns=3, reference=["exact draws", *guides], width=11.0, height=3.0)


def main(record) -> None:
    options = record.options
    found = record.cells(weak, {f"{grid}, {name}": (grid, name, options) for grid in GRIDS for name in SOLVERS})
    least, paths = record.cell("exact draws", floor, options), record.cell("strong", strong, options)
    table = {grid: {name: found[f"{grid}, {name}"] for name in SOLVERS} for grid in GRIDS}
    numbers = dict(weak=dict(steps=STEPS, floor=least, **table), strong=dict(steps=STRONG_STEPS, t_end=T_END, **paths))
    print(f"{'W1 of log x, steps':35s}" + "".join(f"{steps:8d}" for steps in STEPS))
    for grid, rows in table.items():
        for name, row in rows.items():
            print(f"{grid:8s} {name:26s}" + "".join(f"{d:8.4f}" for d in row["w1"]))
            if any(row["sign_flips"]):
                print(f"{'':8s} {'  share of paths flipped':26s}" + "".join(f"{f:8.1g}" for f in row["sign_flips"]))
    print(f"exact draws{'':24s}{least:8.4f}\n{'strong, steps':35s}" + "".join(f"{steps:8d}" for steps in STRONG_STEPS))
    for name, row in paths.items():
        errors, orders = ("".join(f"{v:8.4f}" for v in row[field]) for field in ("error", "orders"))
        print(f"{name:35s}{errors}   orders{orders}")
    record.write(numbers, claims=claims(numbers), convergence=figure(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
