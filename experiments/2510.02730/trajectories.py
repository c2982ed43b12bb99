"""Paths of geometric Brownian motion, there and back, and what becomes of signs.

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
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Dale's law: a synapse never changes its sign. The Dale-Langevin rule preserves signs, the sign-agnostic rule need not.",
    look_for="Paths end in the three modes that the data have. With 5 steps some sign-agnostic paths cross zero; no Dale-Langevin "
    "path does.",
    minutes=dict(small=0.5, full=0.6, gpu=None),
    options=dict(n=50_000, seed=0),
    small=dict(n=5000),
)

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


def there_and_back(seed: int) -> dict:
    """The paths of the first figure: name -> times and log x."""
    keys = jax.random.split(jax.random.split(jax.random.key(seed))[0], 3)
    times = np.linspace(0, PROCESS.t_max, STEPS + 1)
    start = exact_start(keys[1], SHOWN)
    paths = {"forward": dict(times=times, path=forward(keys[0], times, SHOWN))}
    runs = {"Dale-Langevin": (RULES["Dale-Langevin"], sl.grids.Uniform(STEPS)), "Heun": (sl.solvers.Heun(), sl.grids.Karras(40))}
    for name, (solver, grid) in runs.items():
        out = sl.sample(MODEL, solver=solver, grid=grid, key=keys[2], shape=(SHOWN, 1), start=start, keep="all")
        paths[f"back from t = {PROCESS.t_max:g}, {name}"] = dict(times=out.times, path=np.log(out.trajectory[..., 0]))
    return paths


def signed_walk(rule: str, steps: int, n: int, seed: int, keep: str = "last"):
    """Samples of the signed toy, and the signs they began with."""
    key_start, key_sign, key = jax.random.split(jax.random.split(jax.random.key(seed))[1], 3)
    signs = np.asarray(jax.random.rademacher(key_sign, (n, 1), np.float32))
    start = sl.starts.Signed(exact_start(key_start, n), signs)
    out = sl.sample(
        SIGNED_MODEL, solver=RULES[rule], grid=sl.grids.Uniform(steps), key=key, shape=(n, 1), start=start, keep=keep
    )  # fmt: skip
    return out, signs


def count(rule: str, options) -> dict:
    """The share of samples whose path changed sign, over COUNTED."""
    shares = []
    for steps in COUNTED:
        out, signs = signed_walk(rule, steps, options.n, options.seed)
        flips = np.asarray(out.diagnostics.get("sign_flips", np.zeros(options.n)))
        # An odd number of changes, and only that, ends on the other side.
        assert np.array_equal(np.sign(out.x) != signs, (flips % 2 == 1)[:, None])
        shares.append(float(np.mean(flips > 0)))
    return dict(shares=shares)


def coarse(rule: str, options) -> dict:
    """A few paths of the signed toy with COARSE steps: those that keep their sign, and those that change it."""
    out, _ = signed_walk(rule, COARSE, options.n, options.seed, keep="all")
    path = np.asarray(out.trajectory[..., 0])
    flips = np.any(np.sign(path) != np.sign(path[0]), axis=0)
    return dict(times=out.times, kept=path[:, ~flips][:, :SHOWN], changed=path[:, flips][:, :3])


def claims(shares: dict, n: int) -> list[Claim]:
    """What the paper says of signs, beside what was found."""
    kept, agnostic = max(shares["Dale-Langevin"]), shares["sign-agnostic"]
    first = agnostic[COUNTED.index(COARSE)]
    return [
        Claim(
            says="The Dale-Langevin rule preserves signs.", value=kept, spread=0, unit="largest share of paths that changed sign",
            verdict="reproduced" if kept == 0 else "not reproduced",
            why=f"The factor is an exponential; {n} paths at each of {len(COUNTED)} numbers of steps from {COUNTED[0]} on.",
        ),
        Claim(
            says="The sign-agnostic rule may change signs.", value=first, spread=(first * (1 - first) / n) ** 0.5,
            unit=f"share of paths that changed sign at {COARSE} steps", verdict="reproduced" if first > 0 else "not reproduced",
            why=f"Only with few steps: {agnostic[-1]:.2g} at {COUNTED[-1]}. The spread is the standard error of a share.",
        ),
    ]  # fmt: skip


def paths_figure(paths: dict):
    """The first figure."""
    y = np.linspace(-3.2, 3.2, 400)
    limits = dict(ylim=(-3.0, 3.0), ylabel="log x")
    marginals = {"density of the data": (density(y), y), "density at t_max": (density(y, PROCESS.t_max), y)}
    content = [
        viz.Panel(series={"paths": (row["times"], row["path"])}, title=name, xlabel="t", **limits) for name, row in paths.items()
    ]
    content.append(viz.Panel(series=marginals, title="closed form", xlabel="density", **limits))
    return viz.panels(content, share_y=True, widths=[3, 3, 3, 1.6], width=11.0, height=3.2)


def signs_figure(few: dict, shares: dict):
    """The second figure."""
    content = []
    for title, row in few.items():
        changed = {"sign changed": (row["times"], row["changed"])} if row["changed"].size else {}
        series = {"sign kept": (row["times"], row["kept"])} | changed
        content.append(viz.Panel(series=series, title=title, xlabel="t", ylabel="x", ylim=(-6, 6)))
    # A share of zero has no place on a logarithmic axis.
    values = np.array(shares["sign-agnostic"])
    agnostic = {"sign-agnostic rule": (COUNTED, np.where(values > 0, values, np.nan))}
    title = "paths that change sign (Dale-Langevin: none)"
    axes = dict(xlabel="steps", ylabel="share", logx=True, logy=True, markers=True)
    return viz.panels([*content, viz.Panel(series=agnostic, title=title, **axes)], width=11.0, height=3.0)


def main(record) -> None:
    options = record.options
    shares = {rule: row["shares"] for rule, row in record.cells(count, {rule: (rule, options) for rule in RULES}).items()}
    few = record.cells(coarse, {f"{rule}, {COARSE} steps": (rule, options) for rule in RULES})
    paths = record.cell("there and back", there_and_back, options.seed)
    print(f"{'steps':16s}" + "".join(f"{steps:10d}" for steps in COUNTED))
    for rule, values in shares.items():
        print(f"{rule:16s}" + "".join(f"{v:10.2g}" for v in values))
    record.write(
        dict(steps=COUNTED, share_of_paths_with_a_sign_change=shares),
        claims=claims(shares, options.n), paths=paths_figure(paths), signs=signs_figure(few, shares),
    )  # fmt: skip


if __name__ == "__main__":
    FIGURE.make(main)
