"""What the annealed samplers draw when the score is exact.

Every published setting (data set, sampler, start) on a mixture of three log-normals, from the exact law at t_max, on 1000 equal
steps: as published, with the corrected drift where the rule is sign-agnostic, and without annealing. Each is compared with the
exact law of log x: Wasserstein-1 distance, mean, deviation, and the share and deviation of the points of each mode (cut where the
density is least).
"""

from __future__ import annotations

import math

import jax
import numpy as np
from mixture import MODEL, PROCESS, STDS, WEIGHTS, density, exact_start, quantiles, w1

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The paper's samplers update several times at each of 1000 noise levels and turn the noise down by a factor.",
    look_for="The sign-agnostic rule with less noise lies to the right of the exact law, and the corrected drift puts it back. All "
    "annealed rules make the modes too narrow.",
    minutes=dict(small=0.5, full=25, gpu=None),
    options=dict(n=50_000, seed=0),
    small=dict(n=1000),
)

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
RULES = {"exact, sign-agnostic": "ambient", "exact, Dale-Langevin": "latent"}
# The minima of the density of log x between its modes.
CUTS = (-0.305, 0.6)
EDGES = np.linspace(-1.3, 1.5, 113)


def samplers() -> dict[str, sl.solvers.MultiplicativeAnnealed]:
    """Every row of the table by name."""
    rule = sl.solvers.MultiplicativeAnnealed
    rows = {name: rule(coords=coords) for name, coords in RULES.items()}
    for name, (coords, delta, inner, anneal) in PUBLISHED.items():
        settings = dict(coords=coords, delta=delta, inner=inner, anneal=anneal)
        rows[name] = rule(mode="paper", **settings)
        if coords == "ambient" and anneal < 1:
            rows[f"{name}, corrected"] = rule(mode="corrected", **settings)
    return rows


def described(logs: np.ndarray) -> dict:
    """The numbers of one row of the table, from log x ``(n,)``."""
    mode = np.digitize(logs, CUTS)
    parts = [logs[mode == k] for k in range(len(CUTS) + 1)]
    return dict(
        w1=w1(logs), mean=float(logs.mean()), std=float(logs.std()), masses=[len(p) / len(logs) for p in parts],
        mode_stds=[float(p.std()) for p in parts],
    )  # fmt: skip


def measure(name: str, options) -> dict:
    """The numbers of one sampler, and the density of what it draws in the bins of EDGES."""
    solver, (key_start, key) = samplers()[name], jax.random.split(jax.random.key(options.seed))
    start, shape = exact_start(key_start, options.n), (options.n, 1)
    out = sl.sample(MODEL, solver=solver, grid=sl.grids.Uniform(STEPS), key=key, shape=shape, start=start)
    logs = np.log(np.abs(np.asarray(out.x[:, 0], np.float64)))
    time = PROCESS.t_max if solver.mode == "exact" else solver.delta * solver.inner * STEPS
    flips = int(np.sum(out.diagnostics.get("sign_flips", 0)))
    return described(logs) | dict(reverse_time=time, sign_flips=flips, density=np.histogram(logs, EDGES, density=True)[0])


def claims(numbers: dict, n: int) -> list[Claim]:
    """What is expected of samplers with the exact score, beside what was found."""
    exact, error = numbers["exact law"], numbers["exact law"]["std"] / math.sqrt(n)

    def shift(name: str) -> float:
        return numbers[name]["mean"] - exact["mean"]

    def narrowing(name: str) -> float:
        return float(np.mean(np.divide(numbers[name]["mode_stds"], exact["mode_stds"])))

    plain = max((shift(name) for name in RULES), key=abs)
    raised, mended = (shift(f"MNIST, sign-agnostic{kind}") for kind in ("", ", corrected"))
    width = narrowing("MNIST, Dale-Langevin")
    # Of independent normal numbers in three modes with shares w: a deviation has the relative error 1 / sqrt(2 n w).
    width_error = math.sqrt(float(np.sum(1 / (2 * n * WEIGHTS)))) / len(STDS)
    of_mean = "The spread is the standard error of a mean."
    return [
        Claim(
            says="Without annealing both rules draw from the law whose score they have.", value=plain, spread=error,
            unit="larger shift of the mean of log x, 1000 steps",
            verdict="reproduced" if abs(plain) < 3 * error else "not reproduced",
            why=f"Within three standard errors or not. {of_mean}",
        ),
        Claim(
            says="The published sign-agnostic sampler draws from the law whose score it has.", value=raised, spread=error,
            unit="shift of the mean of log x, MNIST setting",
            verdict="reproduced" if abs(raised) < 3 * error else "not reproduced",
            why=f"Its drift 2 sigma^2 is right for full noise only; with that for less noise the shift is {mended:.3f}. {of_mean}",
        ),
        Claim(
            says="The published Dale-Langevin sampler draws modes of the right width.", value=width, spread=width_error,
            unit="deviation of a mode over the exact one, mean of three modes, MNIST setting",
            verdict="reproduced" if abs(width - 1) < 3 * width_error else "not reproduced",
            why="Less noise takes spread away. The spread is the standard error.",
        ),
    ]  # fmt: skip


def figure(found: dict):
    """The density of log x for each published setting, with the corrected one and the exact one."""
    y = (EDGES[1:] + EDGES[:-1]) / 2
    content = []
    for name in PUBLISHED:
        runs = {"as published": found[name], "corrected drift": found.get(f"{name}, corrected")}
        series = {"exact law": (y, density(y))} | {k: (y, run["density"]) for k, run in runs.items() if run is not None}
        title = name.replace(", from class averages", ", class av.")
        content.append(viz.Panel(series=series, title=title, xlabel="log x", ylabel="density", ylim=(0, 2.6)))
    return viz.panels(content, columns=4, reference=["exact law"], share_y=True, width=11.0, height=2.0)


def main(record) -> None:
    options = record.options
    found = record.cells(measure, {name: (name, options) for name in samplers()})
    numbers = {"exact law": described(quantiles(options.n))}
    numbers |= {name: {k: v for k, v in row.items() if k != "density"} for name, row in found.items()}
    print(f"{'':56s}{'reverse time':>13s}{'W1':>8s}{'mean':>8s}{'std':>7s}   masses of the modes    their deviations")
    for name, m in numbers.items():
        masses, stds = (" ".join(f"{v:.3f}" for v in m[field]) for field in ("masses", "mode_stds"))
        time = f"{m['reverse_time']:.3f}" if "reverse_time" in m else ""
        print(f"{name:56s}{time:>13s}{m['w1']:8.4f}{m['mean']:8.3f}{m['std']:7.3f}   {masses}      {stds}")
    record.write(numbers, claims=claims(numbers, options.n), densities=figure(found))


if __name__ == "__main__":
    FIGURE.make(main)
