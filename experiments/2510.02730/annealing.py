"""What the annealed samplers of "Dale meets Langevin" draw when the score is exact.

    python experiments/2510.02730/annealing.py

Every published setting (arXiv 2510.02730 and its code; data set, sampler, start) on a mixture of three log-normals, from the
exact law at t_max, on 1000 equal steps: as published, with the corrected drift where the rule is sign-agnostic, and without
annealing. Each is compared with the exact law of log x: Wasserstein-1 distance, mean, deviation, and the share and deviation
of the points of each mode (cut where the density is least). ``--n 5000`` gives a first look in two minutes.
"""

from __future__ import annotations

import jax
import numpy as np
from mixture import MODEL, PROCESS, density, exact_start, quantiles, w1

import scorelab as sl
from scorelab import viz
from scorelab.run.script import parse, record, script

STEPS = 1000
# name: coords, delta, inner, anneal
PUBLISHED = {
    "MNIST, sign-agnostic": ("ambient", 1.43845e-4, 4, 0.995),
    "MNIST, Dale-Langevin": ("latent", 6.16545e-4, 1, 0.995),
    "KMNIST, sign-agnostic": ("ambient", 2.11316e-4, 3, 1.0),
    "KMNIST, sign-agnostic, from class averages": ("ambient", 3.35982e-4, 2, 0.995),
    "KMNIST, Dale-Langevin": ("latent", 2.11316e-4, 3, 0.995),
    "CIFAR-10, sign-agnostic": ("ambient", 1.14211e-4, 6, 0.995),
    "CIFAR-10, sign-agnostic, from class averages": ("ambient", 2e-4, 4, 0.995),
    "CIFAR-10, Dale-Langevin": ("latent", 1.14211e-4, 6, 0.9995),
}
# The minima of the density of log x between its modes.
CUTS = (-0.305, 0.6)


def measures(logs: np.ndarray) -> dict:
    """The numbers of one row of the table, from log x ``(n,)``."""
    mode = np.digitize(logs, CUTS)
    parts = [logs[mode == k] for k in range(len(CUTS) + 1)]
    return dict(
        w1=w1(logs), mean=float(logs.mean()), std=float(logs.std()), masses=[len(p) / len(logs) for p in parts],
        mode_stds=[float(p.std()) for p in parts],
    )  # fmt: skip


def samplers() -> dict[str, sl.solvers.MultiplicativeAnnealed]:
    """Every row of the table by name."""
    rule = sl.solvers.MultiplicativeAnnealed
    rows = {f"exact, {name}": rule(coords=c) for name, c in (("sign-agnostic", "ambient"), ("Dale-Langevin", "latent"))}
    for name, (coords, delta, inner, anneal) in PUBLISHED.items():
        settings = dict(coords=coords, delta=delta, inner=inner, anneal=anneal)
        rows[name] = rule(mode="paper", **settings)
        if coords == "ambient" and anneal < 1:
            rows[f"{name}, corrected"] = rule(mode="corrected", **settings)
    return rows


def figure(draws: dict[str, np.ndarray]):
    """The density of log x for each published setting, with the corrected one and the exact one."""
    edges = np.linspace(-1.3, 1.5, 113)
    y = (edges[1:] + edges[:-1]) / 2
    content = []
    for name in PUBLISHED:
        runs = {"as published": draws[name], "corrected drift": draws.get(f"{name}, corrected")}
        histograms = {k: (y, np.histogram(v, edges, density=True)[0]) for k, v in runs.items() if v is not None}
        series = {"exact law": (y, density(y))} | histograms
        title = name.replace(", from class averages", ", class av.")
        content.append(viz.Panel(series=series, title=title, xlabel="log x", ylabel="density", ylim=(0, 2.6)))
    return viz.panels(content, columns=4, reference=["exact law"], share_y=True, width=11.0, height=2.0)


def main() -> None:
    """Sample every row, print, draw."""
    arguments = parse(__doc__, small=dict(n=1000), n=50_000, seed=0)
    n, (key_start, key) = arguments.n, jax.random.split(jax.random.key(arguments.seed))
    start, grid = exact_start(key_start, n), sl.grids.Uniform(STEPS)
    draws, numbers = {}, {"exact law": measures(quantiles(n))}
    print(f"{'':56s}{'reverse time':>13s}{'W1':>8s}{'mean':>8s}{'std':>7s}   masses of the modes    their deviations")
    for name, solver in {"exact law": None, **samplers()}.items():
        if solver is not None:
            out = sl.sample(MODEL, solver=solver, grid=grid, key=key, shape=(n, 1), start=start)
            draws[name] = np.log(np.abs(np.asarray(out.x[:, 0], np.float64)))
            time = PROCESS.t_max if solver.mode == "exact" else solver.delta * solver.inner * STEPS
            flips = int(np.sum(out.diagnostics.get("sign_flips", 0)))
            numbers[name] = measures(draws[name]) | dict(reverse_time=time, sign_flips=flips)
        m = numbers[name]
        masses, stds = (" ".join(f"{v:.3f}" for v in m[field]) for field in ("masses", "mode_stds"))
        time = f"{m['reverse_time']:.3f}" if "reverse_time" in m else ""
        print(f"{name:56s}{time:>13s}{m['w1']:8.4f}{m['mean']:8.3f}{m['std']:7.3f}   {masses}      {stds}", flush=True)
    record(arguments, numbers, densities=figure(draws))


if __name__ == "__main__":
    script(main)
