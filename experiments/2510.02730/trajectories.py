"""Paths of geometric Brownian motion, there and back, and what becomes of signs.

    python experiments/2510.02730/trajectories.py

First figure: paths of log x from a mixture of three log-normals to t_max, and back from the exact law there with the
Dale-Langevin rule and with Heun, beside the closed-form densities at both ends. Second figure: a signed toy, whose points are
the same mixture with random signs. The Dale-Langevin rule keeps every sign; the sign-agnostic rule changes some when steps are
large, which is counted for several step numbers.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from mixture import MODEL, PROCESS, TARGET, density, exact_start

import scorelab as sl
from scorelab import viz
from scorelab.run.script import parse, record, script

STEPS, SHOWN = 200, 40
COARSE, COUNTED = 5, (3, 5, 8, 10, 20, 40)
SIGNED = sl.processes.GeometricBrownianMotion(signed=True)
SIGNED_MODEL = sl.models.ExactModel(TARGET, SIGNED)
RULES = {
    "Dale-Langevin": sl.solvers.EulerMaruyama(denoise=False),
    "sign-agnostic": sl.solvers.EulerMaruyama(coords="ambient", denoise=False),
}


def forward(key, times: np.ndarray, n: int) -> np.ndarray:
    """Paths of log x at increasing times, ``(len(times), n)``: independent increments, exact at every time."""
    key_x, key_noise = jax.random.split(key)
    y0 = TARGET.logs.sample(key_x, n)[:, 0]
    root = np.sqrt(np.diff(PROCESS.sigma(times) ** 2))[:, None]
    noise = root * jax.random.normal(key_noise, (len(times) - 1, n))
    drift = np.asarray(PROCESS.offset(times))[:, None]
    return np.asarray(y0 + drift + jnp.concatenate([jnp.zeros((1, n)), jnp.cumsum(noise, 0)]))


def there_and_back(key):
    """The first figure."""
    keys = jax.random.split(key, 3)
    times = np.linspace(0, PROCESS.t_max, STEPS + 1)
    start, y = exact_start(keys[1], SHOWN), np.linspace(-3.2, 3.2, 400)
    paths = {"forward": (times, forward(keys[0], times, SHOWN))}
    runs = {"Dale-Langevin": (RULES["Dale-Langevin"], sl.grids.Uniform(STEPS)), "Heun": (sl.solvers.Heun(), sl.grids.Karras(40))}
    for name, (solver, grid) in runs.items():
        out = sl.sample(MODEL, solver=solver, grid=grid, key=keys[2], shape=(SHOWN, 1), start=start, keep="all")
        paths[f"back from t = {PROCESS.t_max:g}, {name}"] = (out.times, np.log(out.trajectory[..., 0]))
    limits = dict(ylim=(-3.0, 3.0), ylabel="log x")
    marginals = {"density of the data": (density(y), y), "density at t_max": (density(y, PROCESS.t_max), y)}
    content = [viz.Panel(series={"paths": path}, title=name, xlabel="t", **limits) for name, path in paths.items()]
    content.append(viz.Panel(series=marginals, title="closed form", xlabel="density", **limits))
    return viz.panels(content, share_y=True, widths=[3, 3, 3, 1.6], width=11.0, height=3.2)


def signed_walk(key, rule: str, steps: int, n: int, keep: str = "last"):
    """Samples of the signed toy, and the signs they began with."""
    key_start, key_sign, key = jax.random.split(key, 3)
    signs = np.asarray(jax.random.rademacher(key_sign, (n, 1), np.float32))
    start = sl.starts.Signed(exact_start(key_start, n), signs)
    out = sl.sample(
        SIGNED_MODEL, solver=RULES[rule], grid=sl.grids.Uniform(steps), key=key, shape=(n, 1), start=start, keep=keep
    )  # fmt: skip
    return out, signs


def count(key, n: int) -> dict:
    """The share of samples whose path changed sign, for each rule over COUNTED."""
    shares = {rule: [] for rule in RULES}
    for rule, values in shares.items():
        for steps in COUNTED:
            out, signs = signed_walk(key, rule, steps, n)
            flips = np.asarray(out.diagnostics.get("sign_flips", np.zeros(n)))
            # An odd number of changes, and only that, ends on the other side.
            assert np.array_equal(np.sign(out.x) != signs, (flips % 2 == 1)[:, None])
            values.append(float(np.mean(flips > 0)))
        print(f"{rule:16s}" + "".join(f"{v:10.2g}" for v in values))
    return shares


def keeping_signs(key, shares: dict, n: int):
    """The second figure."""
    content = []
    for rule in RULES:
        out, _ = signed_walk(key, rule, COARSE, n, keep="all")
        path = np.asarray(out.trajectory[..., 0])
        flips = np.any(np.sign(path) != np.sign(path[0]), axis=0)
        kept, changed = path[:, ~flips][:, :SHOWN], path[:, flips][:, :3]
        series = {"sign kept": (out.times, kept)} | ({"sign changed": (out.times, changed)} if flips.any() else {})
        content.append(viz.Panel(series=series, title=f"{rule}, {COARSE} steps", xlabel="t", ylabel="x", ylim=(-6, 6)))
    # A share of zero has no place on a logarithmic axis.
    curves = {rule: (COUNTED, np.where(np.array(values) > 0, values, np.nan)) for rule, values in shares.items()}
    agnostic = {"sign-agnostic rule": curves["sign-agnostic"]}
    title = "paths that change sign (Dale-Langevin: none)"
    axes = dict(xlabel="steps", ylabel="share", logx=True, logy=True, markers=True)
    return viz.panels([*content, viz.Panel(series=agnostic, title=title, **axes)], width=11.0, height=3.0)


def main() -> None:
    """Draw both figures and count."""
    arguments = parse(__doc__, small=dict(n=1000), n=50_000, seed=0)
    key_paths, key_signs = jax.random.split(jax.random.key(arguments.seed))
    print(f"{'steps':16s}" + "".join(f"{steps:10d}" for steps in COUNTED))
    shares = count(key_signs, arguments.n)
    signs = keeping_signs(key_signs, shares, arguments.n)
    record(arguments, dict(steps=COUNTED, share_of_paths_with_a_sign_change=shares),
           paths=there_and_back(key_paths), signs=signs)  # fmt: skip


if __name__ == "__main__":
    script(main)
