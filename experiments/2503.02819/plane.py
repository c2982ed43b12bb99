"""The tenth power of a mixture in the plane, and the product of two: exact, by the score alone, and corrected.

All models are exact. The score alone is the drift of the target without weights; the corrected sampler weighs its particles, by the
paper's rate (score anchor, resampled at every step) or by the one that lets the law's own flow move them (flow anchor). The total
variation is that of the masses of the squares of a grid of 40 x 40, beside that of as many exact draws.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import scorelab as sl
from scorelab import fk, viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="Figure 1",
    claims="Feynman-Kac correctors sample the annealed density q^10 and the product q1 q2 of densities in the plane.",
    look_for="The score alone gives modes wrong masses. Weights repair a product; of a tenth power they repair a part, and nearly "
    "all with the flow anchor.",
    minutes=dict(small=2.5, full=2.6, gpu=None),
    options=dict(particles=16384, seeds=3),
    small=dict(particles=4096, seeds=2),
)

PROCESS = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
# The walks begin where the laws are still one lump: before it the drift of a high power is stiff, and weights are noise.
T_MAX, T_MIN, POWER = 0.4, 1e-3, 10.0
WINDOW, COARSE, FINE = 4.0, 40, 120
POWERED, PRODUCT = "q^10", "q1 q2"
WAYS = ("score alone", "score anchor", "flow anchor")


def mixture(weights, means, deviations):
    """The exact model of a mixture of isotropic Gaussians."""
    law = sl.densities.GaussianMixture(np.asarray(weights), np.asarray(means, np.float64), np.asarray(deviations) ** 2)
    return sl.models.ExactModel(law, PROCESS)


def ring(count, radius, turn):
    angle = 2 * np.pi * (np.arange(count) + turn) / count
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def given(name: str) -> list:
    """The models a target is made of."""
    if name == POWERED:
        # Peaks of nearly one height, the narrow ones a little higher: the tenth power makes them heavy, the score does not.
        deviations, heights = np.array([0.7, 0.4, 0.6, 0.35, 0.5, 0.45]), np.array([1.0, 1.1, 1.02, 1.12, 1.05, 1.08])
        return [mixture(heights * deviations**2, ring(6, 2.4, 0.0), deviations)]
    one = mixture([1, 3, 1, 3, 1], ring(5, 2.2, 0.0), [0.7, 0.5, 0.7, 0.5, 0.7])
    return [one, mixture([3, 1, 2, 1], ring(4, 1.9, 0.3), [0.6, 0.8, 0.6, 0.8])]


def corrected(name: str, way: str):
    """The drift, the rate and the start of one way to sample a target."""
    anchor = "flow" if way == "flow anchor" else "score"
    models = given(name)
    return fk.annealed(models[0], POWER, anchor=anchor) if name == POWERED else fk.product(models, anchor=anchor)


def masses(log_density, squares: int) -> np.ndarray:
    """Masses of the squares of the window, ``(squares, squares)``, of an unnormalised density, by a finer grid."""
    edges = np.linspace(-WINDOW, WINDOW, 481)
    axis = (edges[1:] + edges[:-1]) / 2
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    logs = np.asarray(log_density(jnp.asarray(points, jnp.float32), jnp.asarray(T_MIN)), np.float64)
    fine = np.exp(logs - logs.max()).reshape(squares, 480 // squares, squares, 480 // squares).sum((1, 3))
    return fine / fine.sum()


def histogram(x: np.ndarray, w: np.ndarray, squares: int) -> np.ndarray:
    edges = np.linspace(-WINDOW, WINDOW, squares + 1)
    return np.histogram2d(x[:, 0], x[:, 1], [edges, edges], weights=w)[0]


def variation(found: np.ndarray, exact: np.ndarray) -> float:
    """Total variation; what lies outside the window counts as wrong."""
    return float(0.5 * (np.abs(found - exact).sum() + abs(1 - found.sum())))


def exact(options, name: str) -> dict:
    """The target, the laws it is made of, and the total variation of as many exact draws."""
    density = corrected(name, "score alone").model.log_density
    coarse = masses(density, COARSE)
    draws = np.random.default_rng(0).multinomial(options.particles, coarse.ravel(), size=8).reshape(8, COARSE, COARSE)
    floors = [variation(drawn / options.particles, coarse) for drawn in draws]
    parts = [masses(model.log_prob, FINE) for model in given(name)]
    floor = [float(np.mean(floors)), float(np.std(floors, ddof=1))]
    return dict(coarse=coarse, fine=masses(density, FINE), parts=np.mean(parts, axis=0), floor=floor)


def sampled(options, name: str, way: str, seed: int, coarse: np.ndarray) -> dict:
    """One population."""
    target, n, weigh = corrected(name, way), options.particles, way != "score alone"
    base = sl.solvers.DPMSolverPP(order=2, eta=1.0)
    # Copies of the rare heavy particles at every step: with the weights of the score anchor other policies come too late.
    policy = fk.Always() if way == "score anchor" else fk.EssBelow(0.5)
    solver = fk.FeynmanKac(base=base, potential=target.potential, particles=n, policy=policy) if weigh else base
    grid = sl.grids.Quadratic(120, t_max=T_MAX, t_min=T_MIN, clean=False)
    out = sl.sample(target.model, solver=solver, grid=grid, start=target.start, key=jax.random.key(seed), shape=(n, 2), chunk=n)
    x, w = np.asarray(out.x, np.float64), np.full(n, 1 / n)
    found = dict(roots=1.0)
    if weigh:
        w = np.asarray(fk.normalised(out.log_weights), np.float64)
        found = dict(roots=float(np.asarray(out.diagnostics["unique_roots"])[0]) / n)
    tv = variation(histogram(x, w, COARSE), coarse)
    print(f"total variation {tv:.4f}, ancestors left {found['roots']:.3f}", flush=True)
    return dict(histogram=histogram(x, w, FINE), tv=tv, **found)


def claims(numbers: dict) -> list[Claim]:
    """Whether weights bring the samples nearer to the exact density."""
    found = []
    for name, what in ((POWERED, "the annealed density q^10"), (PRODUCT, "the product of two densities")):
        rows = numbers[name]
        tv = {way: np.array(rows[way]["tv"]) for way in WAYS}
        plain, weighed = tv["score alone"], tv["score anchor"]
        ratio = weighed.mean() / plain.mean()
        ours = f"The flow anchor leaves {tv['flow anchor'].mean():.3f}, exact draws have {rows['floor'][0]:.3f}."
        verdict = (
            "reproduced" if weighed.max() < plain.min() / 2 else "in shape" if weighed.max() < plain.min() else "not reproduced"
        )
        found.append(
            Claim(
                says=f"Correctors sample {what}.", value=ratio,
                spread=ratio * float(np.hypot(weighed.std() / weighed.mean(), plain.std() / plain.mean())),
                unit=f"of the total variation of the score alone ({plain.mean():.3f} to {weighed.mean():.3f})", verdict=verdict,
                why=f"Reproduced where every seed halves the least one without weights, in shape where all are below it. {ours}",
            )
        )  # fmt: skip
    return found


def figure(pictures: dict[str, list[np.ndarray]]):
    """Densities as pictures, a target in each row; all of a row but the given law have one scale."""
    shown = []
    for first, *rest in pictures.values():
        # Square roots, so that light modes are seen; the darkest is the highest density of the exact target.
        shown += [np.sqrt(first / first.max()), *(np.sqrt(np.clip(p / rest[0].max(), 0, 1)) for p in rest)]
    # The second coordinate goes upwards.
    dark = np.stack([255 - np.rint(255 * p).astype(np.uint8) for p in shown])[:, :, ::-1].swapaxes(1, 2)
    headings = ["given", "exact target", "score alone", "corrected,\nscore anchor", "corrected,\nflow anchor"]
    rows = ["tenth\npower", "product\nof two"]
    return viz.image_grid(dark[..., None], columns=5, headings=headings, rows=rows, width=9.0)


def main(record) -> None:
    o = record.options
    known = record.cells(exact, {name: (o, name) for name in (POWERED, PRODUCT)})
    drawn = record.cells(
        sampled,
        {
            f"{name}: {way}, seed {s}": (o, name, way, s, known[name]["coarse"])
            for name in known
            for way in WAYS
            for s in range(o.seeds)
        },
    )
    numbers: dict = {}
    pictures = {}
    for name, row in known.items():
        of = {way: [drawn[f"{name}: {way}, seed {s}"] for s in range(o.seeds)] for way in WAYS}
        numbers[name] = dict(floor=row["floor"])
        numbers[name] |= {way: {k: [cell[k] for cell in cells] for k in ("tv", "roots")} for way, cells in of.items()}
        pictures[name] = [
            row["parts"],
            row["fine"],
            *(np.mean([cell["histogram"] for cell in cells], axis=0) for cells in of.values()),
        ]
    record.write(numbers, claims=claims(numbers), densities=figure(pictures))


if __name__ == "__main__":
    FIGURE.make(main)
