"""How much noise to sample a learned bridge with: the flow, a constant epsilon, and one in proportion to the latent noise.

A bridge from a mixture of three Gaussians to a ring of eight, with a Brownian latent noise. Two networks learn its velocity and
its latent noise (u, eta); beside them two learn v in the place of u. Samples are drawn by Euler-Maruyama on a grid that is dense
at both ends. KL in nats of the data to the samples, both smoothed by .1, on a grid of cells; that of as many exact samples is the
floor.

The bound is the integral over t of E|du - eps ds|^2 / (4 eps), with the errors du and ds of the learned fields at points of the
exact bridge.
"""

from __future__ import annotations

import itertools

import jax
import numpy as np
from bridges import bound, density, errors, kl_on_cells, trained

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.solvers.epsilons import Constant, Proportional

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Learned fields control the likelihood of samplers with noise; control of the deterministic one is more stringent.",
    look_for="KL against epsilon has its minimum inside: the flow keeps what the networks got wrong, and too much noise needs a "
    "score that they do not have. Noise in proportion to gamma^2 forgives a wide range.",
    minutes=dict(small=3, full=16, gpu=None),
    options=dict(seeds=3, steps=4000, n=30_000, grid=200),
    small=dict(seeds=2, steps=1500, n=10_000, grid=100),
)

RADIUS, STD, SMOOTHED = 3.0, 0.3, 0.1
CONSTANT = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
KAPPA = (1.0, 4.0, 16.0, 64.0, 256.0)
HEADS = {"u and eta": ("u", "eta"), "v and eta": ("v", "eta")}
# Cells of the histogram, and half of its width.
CELLS, HALF = 200, 5.0


def data():
    return sl.densities.eight_gaussians(radius=RADIUS, std=STD)


def bridge():
    covs = np.array([[[1, 0], [0, 0.4]], [[0.6, 0.3], [0.3, 0.8]], [[0.3, 0], [0, 0.3]]])
    base = sl.densities.GaussianMixture([0.5, 0.3, 0.2], [[0, 2], [-1, -2], [2, 0.5]], covs)
    return sl.processes.StochasticInterpolant(base=base)


def divergence(x) -> float:
    """KL of the smoothed data to smoothed samples, nats, on the cells."""
    width = 2 * HALF / CELLS
    centres = (np.arange(CELLS) + 0.5) * width - HALF
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
    angles = np.arange(8) * np.pi / 4
    means, variance = RADIUS * np.stack([np.cos(angles), np.sin(angles)], 1), STD**2 + SMOOTHED**2
    square = np.sum((points[:, None] - means) ** 2, -1)
    p = np.exp(-0.5 * square / variance).mean(1).reshape(CELLS, CELLS) / (2 * np.pi * variance)
    return kl_on_cells(p, density(x, HALF, CELLS, SMOOTHED), HALF)


def measure(name, seed, options) -> dict:
    """KL for every epsilon, the errors of the fields, and a few samples."""
    x, key, shape = data().sample(jax.random.key(100 + seed), 100_000), jax.random.key(10 + seed), (options.n, 2)
    model = trained(bridge(), x, HEADS[name], steps=options.steps, seed=seed, data_std=2.1, base_std=1.5)
    grid = sl.grids.Arcsine(options.grid)

    def drawn(epsilon):
        solver = sl.solvers.InterpolantSDE(epsilon=epsilon, rule="euler")
        return np.asarray(sl.sample(model, solver=solver, grid=grid, key=key, shape=shape, chunk=options.n).x)

    shown, constant = {}, {}
    for value in CONSTANT:
        x = drawn(Constant(value))
        constant[f"{value:g}"] = divergence(x)
        if value in (0.0, 0.5, 8.0):
            shown[f"{value:g}"] = x[:1500]
    kappa = {f"{value:g}": divergence(drawn(Proportional(value))) for value in KAPPA}
    floor = divergence(data().sample(jax.random.key(5 + seed), options.n))
    return dict(constant=constant, kappa=kappa, floor=floor, errors=errors(model, data(), seed), shown=shown)


def curves(numbers: dict):
    """KL against epsilon and against kappa; every dot is a seed."""
    series = lambda which: {
        name: (np.array([float(k) for k in rows[0][which]]), np.array([list(row[which].values()) for row in rows]).T)
        for name, rows in numbers.items()
    }
    floor = np.mean([row["floor"] for rows in numbers.values() for row in rows])
    level = lambda values: {"as many exact samples": (np.array(values), np.full(len(values), floor))}
    constant = {name: (np.maximum(x, 0.01), y) for name, (x, y) in series("constant").items()}
    options = dict(ylabel="KL of data to samples, nats", logx=True, logy=True, mean=True)
    content = [
        viz.Panel(series=constant | level([0.01, 8]), title="constant epsilon (.01 is the flow)", xlabel="epsilon", **options),
        viz.Panel(series=series("kappa") | level([1, 256]), title="epsilon = kappa gamma^2", xlabel="kappa", **options),
    ]
    return viz.panels(content, columns=2, reference=("as many exact samples",), width=9.0, height=3.0)


def samples(numbers: dict):
    """Samples of the first seed beside data."""
    exact = np.asarray(data().sample(jax.random.key(0), 1500))
    rows = [[*(np.asarray(of[0]["shown"][value]) for value in ("0", "0.5", "8")), exact] for of in numbers.values()]
    headings = ["the flow", "epsilon = .5", "epsilon = 8", "data"]
    return viz.scatter_grid(rows, rows=list(numbers), headings=headings)


def claims(numbers: dict) -> list[Claim]:
    """What is asked of the curves; spreads are over seeds."""
    rows = numbers["u and eta"]
    kl = lambda value: np.array([row["constant"][f"{value:g}"] for row in rows])
    best = np.array([min(row["constant"].values()) for row in rows])
    gain, worse = kl(0.0) / kl(0.5), kl(8.0) / kl(0.5)
    widest = np.array([max(row["kappa"][k] for k in ("16", "64", "256")) for row in rows]) / best
    spread = lambda values: values.std(ddof=values.size > 1)
    inside = all(kl(0.0)[i] > best[i] < kl(8.0)[i] for i in range(len(rows)))
    bounds = np.array([bound(row["errors"], 0.5) for row in rows])
    return [
        Claim(
            says="Noise makes samples of learned fields better than the flow does.", value=gain.mean(), spread=spread(gain),
            unit="times the KL of epsilon = .5 has the flow",
            verdict="reproduced" if inside and gain.mean() > 1.5 else "in shape" if gain.mean() > 1 else "not reproduced",
            why=f"Best constant {plus_minus(best)} nats, the flow {plus_minus(kl(0.0))}; the floor is {rows[0]['floor']:.3f}.",
        ),
        Claim(
            says="Too much noise needs a better score.", value=worse.mean(), spread=spread(worse),
            unit="times the KL of epsilon = .5 has epsilon = 8",
            verdict="reproduced" if worse.mean() > 10 else "in shape" if worse.mean() > 1 else "not reproduced",
            why="Below ten it is in shape. Euler-Maruyama on this grid is part of it.",
        ),
        Claim(
            says="Noise in proportion to gamma^2 needs no tuning.", value=widest.mean(), spread=spread(widest),
            unit="times the KL of the best constant has the worst of kappa = 16, 64, 256",
            verdict="reproduced" if widest.mean() < 1.3 else "in shape" if widest.mean() < 2 else "not reproduced",
            why="The limit of 1.3 is about as far as two seeds are apart.",
        ),
        Claim(
            says="The errors of the fields bound the likelihood of the SDE.", value=bounds.mean(), spread=spread(bounds),
            unit="nats, the bound at epsilon = .5",
            verdict="reproduced" if np.all(bounds > kl(0.5) - [row["floor"] for row in rows]) else "not reproduced",
            why=f"KL there is {plus_minus(kl(0.5))}, floor included. A bound, and no estimate.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    found = record.cells(measure, {f"{name}, seed {seed}": (name, seed, o) for name in HEADS for seed in range(o.seeds)})
    numbers = {name: [found[f"{name}, seed {seed}"] for seed in range(o.seeds)] for name in HEADS}
    for name, rows in numbers.items():
        for row in rows:
            print(name, {k: round(v, 3) for k, v in row["constant"].items()}, {k: round(v, 3) for k, v in row["kappa"].items()})
            print("   errors", {k: v for k, v in row["errors"].items() if k != "at"}, "floor", round(row["floor"], 4))
    kept = {name: [{k: v for k, v in row.items() if k != "shown"} for row in rows] for name, rows in numbers.items()}
    for row in itertools.chain(*kept.values()):
        row["errors"] = {k: v for k, v in row["errors"].items() if k != "at"}
    record.write(kept, claims=claims(numbers), curves=curves(numbers), samples=samples(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
