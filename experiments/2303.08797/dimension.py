"""How much noise to sample a learned bridge in eight dimensions with, beside the bound, and the best noise at every time.

Data and base are products of four laws in the plane: four Gaussians on a circle, and two. Two networks learn the fields (u, eta)
of all eight coordinates from samples, with a Brownian latent noise. Samples are drawn by Euler-Maruyama on a grid that is dense at
both ends.

KL in nats of the data to the samples in each of the four planes, both smoothed by .1, on a grid of cells. That of one plane is
below the KL in eight dimensions, and so is what the smoothing leaves of it. The sum of the four leaves out what joins the planes in
the samples, and nothing in the data. The flow has a likelihood, so its KL is also known without cells: it says how much the planes
tell. The floor is that of as many exact samples.

The bound is the integral over t of E|du - eps ds|^2 / (4 eps), with the errors du and ds of the learned fields at points of the
exact bridge. At every time the least is at eps*(t) = (E|du|^2 / E|ds|^2)^(1/2).
"""

from __future__ import annotations

import jax
import numpy as np
from bridges import TIMES, best, bound, density, errors, kl_on_cells, trained
from epsilon import bridge as bridge_in_the_plane
from epsilon import data as data_in_the_plane

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus
from scorelab.solvers.epsilons import Constant, Proportional

FIGURE = Figure(
    __doc__,
    answers="",
    claims="Learned fields control the likelihood of samplers with noise, at an epsilon that the errors of drift and score decide.",
    look_for="A minimum of the KL at an epsilon above 0. The bound has one too, near it and far above: it is no estimate. The best "
    "epsilon changes by a factor of two or three inside and falls at both ends, less steeply than gamma^2.",
    minutes=dict(small=2, full=15, gpu=None),
    options=dict(seeds=3, steps=4000, batch=512, n=40_000, points=4000, grid=200),
    small=dict(seeds=2, steps=1200, batch=256, n=10_000, points=1000, grid=80),
)

PLANES, STD, RADIUS, SMOOTHED, CELLS, HALF = 4, 0.3, 2.0, 0.1, 120, 3.6
CONSTANT = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
KAPPA = (4.0, 16.0)
# Times nearer than this to an end are at it.
END = 0.01


def plane() -> tuple[np.ndarray, np.ndarray]:
    """The means of the data and of the base in one plane."""
    return RADIUS * np.array([[1, 0], [0, 1], [-1, 0], [0, -1]]), np.array([[1, 1], [-1, -1]])


def product(means, variance):
    """The law of four independent points of a mixture, one after the other."""
    which = np.stack(np.meshgrid(*[range(len(means))] * PLANES, indexing="ij"), -1).reshape(-1, PLANES)
    return sl.densities.GaussianMixture(np.ones(len(which)), means[which].reshape(len(which), -1), variance)


def exact(process):
    """The fields of the bridge of products, those of the bridge in the plane for each."""
    means, base = plane()
    flat = sl.processes.StochasticInterpolant(base=sl.densities.GaussianMixture(np.ones(2), base, 0.4))
    model = sl.models.ExactModel(sl.densities.GaussianMixture(np.ones(4), means, STD**2), flat)

    def fields(y, t, cond=None):
        found = model(y.reshape(-1, 2), t)
        return process.predict(y, t, velocity=found.velocity.reshape(y.shape), score=found.score.reshape(y.shape))

    return fields


def divergence(samples) -> float:
    """The sum over the planes of the KL of the smoothed data to smoothed samples."""
    means, _ = plane()
    centres = (np.arange(CELLS) + 0.5) * 2 * HALF / CELLS - HALF
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)
    variance = STD**2 + SMOOTHED**2
    square = np.sum((points[:, :, None] - means) ** 2, -1)
    p = np.exp(-0.5 * square / variance).mean(-1) / (2 * np.pi * variance)
    planes = np.asarray(samples).reshape(len(samples), PLANES, 2).swapaxes(0, 1)
    return sum(kl_on_cells(p, density(points, HALF, CELLS, SMOOTHED), HALF) for points in planes)


def measure(seed, options) -> dict:
    """KL for every epsilon with its floor, that of the flow by its likelihood, and the errors of the fields."""
    means, base = plane()
    law, process = product(means, STD**2), sl.processes.StochasticInterpolant(base=product(base, 0.4))
    x = law.sample(jax.random.key(100 + seed), 100_000)
    size = dict(steps=options.steps, batch=options.batch, data_std=1.45, base_std=1.2)
    model = trained(process, x, ("u", "eta"), seed=seed, **size)
    points = np.asarray(law.sample(jax.random.key(500 + seed), options.points))

    def drawn(epsilon):
        solver = sl.solvers.InterpolantSDE(epsilon=epsilon, rule="euler")
        shape, grid = (options.n, 2 * PLANES), sl.grids.Arcsine(options.grid)
        return sl.sample(model, solver=solver, grid=grid, key=jax.random.key(10 + seed), shape=shape, chunk=options.n).x

    found = sl.log_likelihood(model, points, rtol=1e-4, atol=1e-4).log_prob
    gap = np.asarray(law.log_prob(points), np.float64) - np.asarray(found, np.float64)
    return dict(
        constant={f"{value:g}": divergence(drawn(Constant(value))) for value in CONSTANT},
        kappa={f"{value:g}": divergence(drawn(Proportional(value))) for value in KAPPA},
        floor=divergence(law.sample(jax.random.key(5 + seed), options.n)),
        likelihood=float(gap.mean()), stderr=float(gap.std() / np.sqrt(len(gap))),
        errors=errors(model, law, seed, exact=exact(process)),
    )  # fmt: skip


def in_the_plane(seed, options) -> dict:
    """The errors of the fields of the bridge of the other figure."""
    law = data_in_the_plane()
    x = law.sample(jax.random.key(100 + seed), 100_000)
    size = dict(steps=options.steps, batch=options.batch, data_std=2.1, base_std=1.5)
    return errors(trained(bridge_in_the_plane(), x, ("u", "eta"), seed=seed, **size), law, seed)


def least(rows: list[dict]) -> list[float]:
    """The constant epsilon with the least bound, of each seed."""
    return [float(np.sqrt(row["errors"]["velocity"] / row["errors"]["score"])) for row in rows]


def kl_figure(rows: list[dict]):
    """KL against epsilon beside the bound; every dot is a seed."""
    epsilon = np.array(CONSTANT)
    shown = np.maximum(epsilon, 0.02)
    kl = np.array([list(row["constant"].values()) for row in rows]).T
    fine = np.geomspace(0.05, 4, 40)
    bounds = np.array([[bound(row["errors"], e) for row in rows] for e in fine])
    series = {
        "sum over planes": (shown, kl),
        "flow, by likelihood": (np.array([0.02]), np.array([[row["likelihood"] for row in rows]])),
        "bound": (fine, bounds.mean(1)),
        "floor": (shown, np.full(len(shown), np.mean([row["floor"] for row in rows]))),
    }
    axes = dict(xlabel="epsilon (.02 is the flow)", ylabel="KL of data to samples, nats", logx=True, logy=True)
    return viz.lines(series, reference=("bound", "floor"), mean=True, markers=True, **axes)


def power(rows: list) -> np.ndarray:
    """The power of gamma^2 that the best epsilon follows at the ends, by least squares of logarithms: one for each seed."""
    near = np.minimum(TIMES, 1 - TIMES) < END
    gamma = np.log(TIMES * (1 - TIMES))[near]
    return np.array([np.polyfit(gamma, np.log(np.asarray(row)[near]), 1)[0] for row in rows])


def best_figure(stars: dict):
    """The best epsilon at every time, of every seed, beside that of the default solver."""
    content = [
        viz.Panel(
            series={
                "2 dimensions": (TIMES, np.stack(stars["2 dimensions"], 1)),
                "16 gamma^2, the default": (TIMES, 16 * TIMES * (1 - TIMES)),
            },
            title="two dimensions", xlabel="t", ylabel="eps*(t)", logy=True,
        ),
        viz.Panel(
            series={"8 dimensions": (TIMES, np.stack(stars["8 dimensions"], 1))},
            title="eight dimensions", xlabel="t", ylabel="eps*(t)", logy=True,
        ),
    ]  # fmt: skip
    return viz.panels(content, columns=2, reference=("16 gamma^2, the default",), width=9.0, height=3.0)


def claims(rows: list[dict], stars: dict) -> list[Claim]:
    """Spreads are over seeds."""
    spread = lambda values: np.asarray(values).std(ddof=len(values) > 1)
    kl = np.array([list(row["constant"].values()) for row in rows])
    where, flow, lowest = np.array(CONSTANT)[kl.argmin(1)], kl[:, 0], kl.min(1)
    gain, worse = flow / lowest, kl[:, -1] / lowest
    floor = np.array([row["floor"] for row in rows])
    likelihood = np.array([row["likelihood"] for row in rows])
    bounds = np.array([[bound(row["errors"], e) for e in CONSTANT[1:]] for row in rows])
    above = np.min(bounds / kl[:, 1:], 1)
    powers = {name: power(found) for name, found in stars.items()}
    plane = powers["2 dimensions"]
    inside = (TIMES > 0.1) & (TIMES < 0.9)
    range_of = lambda found: np.mean([np.max(np.asarray(row)[inside]) / np.min(np.asarray(row)[inside]) for row in found])
    wide = ", ".join(f"{range_of(found):.1f} in {name}" for name, found in stars.items())
    return [
        Claim(
            says="In eight dimensions noise makes samples of learned fields better than the flow does.", value=gain.mean(),
            spread=spread(gain), unit="times the least KL over epsilon has the flow",
            verdict="reproduced" if np.all(where > 0) and np.all(where < CONSTANT[-1]) else "not reproduced",
            why=f"The least is at epsilon = {', '.join(f'{w:g}' for w in where)}: {plus_minus(lowest)} nats; the flow has "
            f"{plus_minus(flow)}, the floor {floor.mean():.3f}. By its likelihood the flow has {plus_minus(likelihood)}, of "
            f"which the planes tell {np.mean((flow - floor) / likelihood):.2f}.",
        ),
        Claim(
            says="Too much noise needs a better score.", value=worse.mean(), spread=spread(worse),
            unit=f"times the least KL over epsilon has epsilon = {CONSTANT[-1]:g}",
            verdict="reproduced" if worse.min() > 1.5 else "in shape" if worse.mean() > 1 else "not reproduced",
            why="Euler-Maruyama on this grid is part of it.",
        ),
        Claim(
            says="The errors of the fields bound the likelihood of the SDE.", value=above.mean(), spread=spread(above),
            unit="times the KL is the bound, at the epsilon where it is nearest",
            verdict="reproduced" if above.min() > 1 else "not reproduced",
            why=f"The least bound is at a constant epsilon of {plus_minus(least(rows), 2)}; {plus_minus(bounds.min(1))} nats.",
        ),
        Claim(
            says="The best epsilon falls at both ends as gamma^2 does.", value=plane.mean(), spread=spread(plane),
            unit=f"is the power of gamma^2 that it follows within {END} of an end, in the plane",
            verdict="reproduced" if abs(plane.mean() - 1) < 0.2 else "in shape" if plane.mean() > 0.2 else "not reproduced",
            why=f"1 is in proportion, 0 a constant; a fifth is the limit. In eight dimensions "
            f"{plus_minus(powers['8 dimensions'], 2)}. Largest over smallest from t = .1 to .9: {wide}.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    rows = list(record.cells(measure, {f"8 dimensions, seed {s}": (s, o) for s in range(o.seeds)}).values())
    plane = list(record.cells(in_the_plane, {f"2 dimensions, seed {s}": (s, o) for s in range(o.seeds)}).values())
    for row in rows:
        print({k: v for k, v in row.items() if k != "errors"}, {k: v for k, v in row["errors"].items() if k != "at"})
    stars = {"2 dimensions": [best(found) for found in plane], "8 dimensions": [best(row["errors"]) for row in rows]}
    kept = dict(eight=[row | dict(errors={k: v for k, v in row["errors"].items() if k != "at"}) for row in rows])
    record.write(
        kept | dict(best=stars, times=TIMES), claims=claims(rows, stars), curves=kl_figure(rows), pointwise=best_figure(stars)
    )


if __name__ == "__main__":
    FIGURE.make(main)
