"""Which fields to learn: the velocity alone, or with a second head that tells the score; and how much noise each stands.

A checkerboard from a mixture of two Gaussians, and two moons from the points of eight Gaussians, with a Brownian latent noise. For
each set of heads one network a head, of the same size and training. Samples are drawn at epsilon = 0, .5 and 2, by the Strang rule
on a grid that is dense at both ends.

KL in nats of the data to the samples, both smoothed, on a grid of cells; sliced W2 between them. The floors are those of as many
fresh points of the data.
"""

from __future__ import annotations

import jax
import numpy as np
from bridges import density, kl_on_cells, trained

import scorelab as sl
from scorelab import viz
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="The drift is learned by a simple quadratic objective, and so is the score; any two of the fields give the third.",
    look_for="On the moons the flow leaves a streak for each of the eight Gaussians, which noise fills. The velocity u is better "
    "learned itself than through v and eta, where the slope of gamma multiplies errors; v and s have no such factor.",
    minutes=dict(small=3.6, full=12, gpu=None),
    options=dict(seeds=3, steps=4000, batch=512, n=30_000, grid=200),
    small=dict(seeds=2, steps=700, batch=192, n=5000, grid=40),
)

BRIDGES = ("checkerboard", "moons")
HEADS = {"u": ("u",), "u and eta": ("u", "eta"), "v and eta": ("v", "eta"), "v and s": ("v", "s")}
EPSILONS = (0.0, 0.5, 2.0)
# Half of the width of the histogram, its cells, and by how much it is smoothed.
HALF, CELLS, SMOOTHED = 3.2, 160, 0.06
SHOWN = 1500


def drawn(bridge, n, seed):
    """Points of the data."""
    return sl.data.load({"moons": "two_moons"}.get(bridge, bridge), n=n, seed=seed).x


def process_of(bridge):
    """The interpolant, and the deviations of its ends."""
    if bridge == "checkerboard":
        base = sl.densities.GaussianMixture([0.5, 0.5], [[-1.5, -1.5], [1.5, 1.5]], 0.5)
        return sl.processes.StochasticInterpolant(base=base), 1.15, 1.65
    return sl.processes.StochasticInterpolant(base=sl.data.load("eight_gaussians", n=10_000, seed=7)), 0.75, 1.4


def measure(bridge, name, seed, options) -> dict:
    """KL and sliced W2 for every epsilon, their floors, and a few samples."""
    process, data_std, base_std = process_of(bridge)
    x = drawn(bridge, 50_000, 100 + seed)
    size = dict(steps=options.steps, batch=options.batch)
    model = trained(process, x, HEADS[name], seed=seed, data_std=data_std, base_std=base_std, **size)
    truth = density(drawn(bridge, 2_000_000, 1), HALF, CELLS, SMOOTHED)
    fresh, key = drawn(bridge, options.n, 2), jax.random.key(10 + seed)

    def judged(points):
        slices = sl.metrics.sliced_wasserstein(jax.random.key(0), points, fresh, projections=64)
        return dict(kl=kl_on_cells(truth, density(points, HALF, CELLS, SMOOTHED), HALF), w2=slices.value)

    found, shown = {}, {}
    for epsilon in EPSILONS if len(HEADS[name]) == 2 else EPSILONS[:1]:
        constant = sl.solvers.epsilons.Constant(epsilon)
        solver = sl.solvers.InterpolantSDE(epsilon=constant) if epsilon else sl.solvers.InterpolantODE()
        grid, shape = sl.grids.Arcsine(options.grid), (options.n, 2)
        points = np.asarray(sl.sample(model, solver=solver, grid=grid, key=key, shape=shape, chunk=options.n).x)
        found[f"{epsilon:g}"], shown[f"{epsilon:g}"] = judged(points), points[:SHOWN]
    return dict(found=found, floor=judged(drawn(bridge, options.n, 200 + seed)), shown=shown)


def curves_figure(numbers: dict):
    """KL and sliced W2 against epsilon; every dot is a seed."""
    content = []
    for which, label in (("kl", "KL of data to samples, nats"), ("w2", "sliced W2")):
        for bridge, heads in numbers.items():
            series = {
                name: (
                    np.array([float(k) for k in rows[0]["found"]]),
                    np.array([[value[which] for value in row["found"].values()] for row in rows]).T,
                )
                for name, rows in heads.items()
            }
            floor = np.mean([row["floor"][which] for rows in heads.values() for row in rows])
            series["as many points of the data"] = (np.array(EPSILONS), np.full(len(EPSILONS), floor))
            content.append(
                viz.Panel(series=series, title=bridge, xlabel="epsilon", ylabel=label, logy=True, mean=True, markers=True)
            )
    return viz.panels(content, columns=2, reference=("as many points of the data",), width=9.0, height=2.7)


def samples_figure(numbers: dict, bridge: str):
    """Samples of the first seed beside data."""
    heads = {name: rows for name, rows in numbers[bridge].items() if len(HEADS[name]) == 2}
    exact = np.asarray(drawn(bridge, SHOWN, 3))
    rows = [[*(np.asarray(of[0]["shown"][f"{epsilon:g}"]) for epsilon in EPSILONS), exact] for of in heads.values()]
    return viz.scatter_grid(rows, rows=list(heads), headings=[*(f"epsilon = {e:g}" for e in EPSILONS), "data"])


def claims(numbers: dict) -> list[Claim]:
    """What is asked of the heads; spreads are over bridges and seeds."""

    def kl(name, epsilon):
        rows = [row for heads in numbers.values() for row in heads[name]]
        return np.array([row["found"][f"{epsilon:g}"]["kl"] for row in rows])

    floor = np.mean([row["floor"]["kl"] for heads in numbers.values() for row in heads["u"]])
    spread = lambda values: values.std(ddof=values.size > 1)
    above = lambda values: (
        "reproduced" if values.mean() - spread(values) > 1 else "in shape" if values.mean() > 1 else "not reproduced"
    )
    through, alone = kl("v and eta", 0.5) / kl("u and eta", 0.5), kl("u", 0.0) / kl("u and eta", 0.0)
    noise, much = kl("u and eta", 0.0) / kl("u and eta", 0.5), kl("u and eta", 2.0) / kl("u and eta", 0.5)
    score = kl("v and s", 0.5) / kl("v and eta", 0.5)
    return [
        Claim(
            says="Under a Brownian gamma the velocity is better learned itself than through v and eta.", value=through.mean(),
            spread=spread(through), unit="times the KL of u and eta has v and eta, epsilon = .5",
            verdict=above(through),
            why=f"{plus_minus(kl('v and eta', 0.5))} and {plus_minus(kl('u and eta', 0.5))} nats; the floor is {floor:.3f}.",
        ),
        Claim(
            says="The flow needs the velocity alone.", value=alone.mean(), spread=spread(alone),
            unit="times the KL of u and eta has u, epsilon = 0",
            verdict="reproduced" if abs(alone.mean() - 1) < 0.25 else "not reproduced",
            why="Two networks of one size each, trained on the same target: a quarter is the difference that would count.",
        ),
        Claim(
            says="Noise makes samples of learned fields better than the flow does.", value=noise.mean(), spread=spread(noise),
            unit="times the KL of epsilon = .5 has the flow, u and eta",
            verdict=above(noise),
            why=f"{plus_minus(kl('u and eta', 0.0))} and {plus_minus(kl('u and eta', 0.5))} nats.",
        ),
        Claim(
            says="More noise needs a better score.", value=much.mean(), spread=spread(much),
            unit="times the KL of epsilon = .5 has epsilon = 2, u and eta",
            verdict=above(much),
            why=f"{plus_minus(kl('u and eta', 2.0))} and {plus_minus(kl('u and eta', 0.5))} nats.",
        ),
        Claim(
            says="The score is learned as well as the latent noise, by a quadratic objective of its own.", value=score.mean(),
            spread=spread(score), unit="times the KL of v and eta has v and s, epsilon = .5",
            verdict="reproduced" if score.mean() < 1.25 else "not reproduced",
            why="A quarter more would count as worse. The loss of s weighs the ends more, and u = v - gamma gamma' s has no slope "
            "of gamma in it.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    cells = {f"{b}, {name}, seed {s}": (b, name, s, o) for b in BRIDGES for name in HEADS for s in range(o.seeds)}
    found = record.cells(measure, cells)
    numbers = {b: {name: [found[f"{b}, {name}, seed {s}"] for s in range(o.seeds)] for name in HEADS} for b in BRIDGES}
    for bridge, heads in numbers.items():
        for name, rows in heads.items():
            for row in rows:
                print(bridge, name, {k: {w: round(v, 3) for w, v in e.items()} for k, e in row["found"].items()}, row["floor"])
    without = lambda rows: [{k: v for k, v in row.items() if k != "shown"} for row in rows]
    kept = {bridge: {name: without(rows) for name, rows in heads.items()} for bridge, heads in numbers.items()}
    pictures = {f"samples_{bridge}": samples_figure(numbers, bridge) for bridge in BRIDGES}
    record.write(kept, claims=claims(numbers), curves=curves_figure(numbers), **pictures)


if __name__ == "__main__":
    FIGURE.make(main)
