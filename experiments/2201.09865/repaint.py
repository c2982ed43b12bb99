r"""Inpainting three ways against conditional laws in closed form: RePaint, guidance by a measurement, steered particles.

The prior has two components of a periodic field of 16 points, which differ by a bump between those that are known. Seven points
are known up to a noise of 0.05, and the other nine are asked for. The known ones see the foot of the bump, so that mostly both
components stay possible. RePaint replaces the known points and walks every step `r` times; the ladder of posterior guidance takes
them for a linear measurement; particles are weighed by their likelihood on the way. Errors are those of the nine points against
`exact_posterior`: of the mean and of the deviation at each point, relative to the exact deviation there, and of the share of the
first component. The model is exact, so that they are errors of the methods.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

import scorelab as sl
from scorelab import models, viz
from scorelab.models import LinearMeasurement
from scorelab.run.figure import Claim, Figure, plus_minus

FIGURE = Figure(
    __doc__,
    answers="",
    claims="An unconditional model inpaints when the known part is replaced at every noise level, and resampling each stretch "
    "makes the rest fit it; more resamplings fit better, at as many times the calls.",
    look_for="Resampling halves the error of the mean and leaves most of that of the share, at sixteen times the calls; the "
    "Tweedie covariance has both at the size of exact draws; unguided particles lie between.",
    minutes=dict(small=5, full=None, gpu=None),
    options=dict(truths=40, draws=1000, seed=0),
    small=dict(truths=12, draws=400),
)

POINTS, STD = 16, 0.05
KNOWN = np.isin(np.arange(POINTS), [0, 1, 2, 3, 4, 12, 15])
ROWS = np.eye(POINTS)[KNOWN]
PROCESS = sl.processes.Gaussian(schedule=sl.schedules.EDM())
ANCESTRAL = sl.solvers.DDIM(eta=1.0)


def field(length: float) -> np.ndarray:
    """The covariance of a periodic field: unit variance, and a spectrum that falls from wave number ``length`` on."""
    spectrum = 1 / (1 + (np.fft.fftfreq(POINTS, 1 / POINTS) / length) ** 2) ** 2
    row = np.fft.ifft(spectrum / spectrum.mean()).real
    return row[(np.arange(POINTS)[:, None] - np.arange(POINTS)) % POINTS]


DISTANCE = np.minimum(np.abs(np.arange(POINTS) - 8), POINTS - np.abs(np.arange(POINTS) - 8))
BUMP = 1.5 * np.exp(-((DISTANCE / 2.5) ** 2))
PRIOR = sl.densities.GaussianMixture([0.5, 0.5], np.stack([BUMP, -BUMP]), np.stack([0.25 * field(2.0), 0.25 * field(2.0)]))
EXACT = models.ExactModel(PRIOR, PROCESS)

# A method takes a key, a measurement and a number to samples (n, POINTS), log-weights (n,), and the calls of the model.
Method = Callable[[jax.Array, LinearMeasurement, int], tuple[np.ndarray, np.ndarray, int]]


def walked(make: Callable[[LinearMeasurement], tuple], grid: sl.grids.Grid) -> Method:
    """The method that samples the model and by the solver of ``make(measurement)``."""

    def draw(key, measurement, n):
        model, solver = make(measurement)
        out = sl.sample(model, solver=solver, grid=grid, key=key, shape=(n, POINTS))
        return np.asarray(out.x), np.asarray(out.log_weights), int(out.diagnostics["model_calls"])

    return draw


def repaint(repeats: int, length: int, steps: int) -> Method:
    """RePaint; the known values are leaves of the model."""

    def make(measurement):
        values = np.zeros(POINTS)
        values[KNOWN] = measurement.values
        return models.Known(model=EXACT, values=values, mask=KNOWN), sl.solvers.RePaint(repeats=repeats, length=length)

    return walked(make, sl.grids.Karras(steps))


def guided(rung: Callable, solver: sl.solvers.Solver, steps: int, **options) -> Method:
    """A rung of the ladder."""
    return walked(lambda measurement: (rung(model=EXACT, measurement=measurement, **options), solver), sl.grids.Karras(steps))


def steered(steps: int) -> Method:
    """Particles of the unguided chain, weighed by the likelihood of the denoised point, widened by its own uncertainty."""

    def make(measurement):
        likelihood = jax.tree_util.Partial(LinearMeasurement.log_likelihood, measurement)
        blurred = sl.fk.Blurred(measurement=measurement, law=PRIOR.matched())
        return EXACT, sl.fk.FeynmanKac(base=ANCESTRAL, potential=sl.fk.Difference(likelihood, 1.0, intermediate=blurred))

    return walked(make, sl.grids.Karras(steps))


def twisted(steps: int) -> Method:
    """The same particles with guidance as their proposal."""

    def make(measurement):
        likelihood = jax.tree_util.Partial(LinearMeasurement.log_likelihood, measurement)
        blurred = sl.fk.Blurred(measurement=measurement, law=PRIOR.matched())
        solver = sl.fk.FeynmanKac(base=ANCESTRAL, potential=sl.fk.Difference(likelihood, 1.0, intermediate=blurred))
        return models.TweedieCovariance(model=EXACT, measurement=measurement), solver

    return walked(make, sl.grids.Karras(steps))


DPS_GRID = sl.grids.Karras(200)
METHODS: dict[str, Method] = {
    "exact draws": lambda key, m, n: (np.asarray(models.exact_posterior(PRIOR, m).sample(key, n)), np.zeros(n), 0),
    "replacement, 100 steps": repaint(1, 1, 100),
    "RePaint r = 4": repaint(4, 1, 100),
    "RePaint r = 16": repaint(16, 1, 100),
    "RePaint r = 16, j = 10": repaint(16, 10, 100),
    "DPS 0.2, 200 steps": guided(models.DPS, ANCESTRAL, 200, grid=DPS_GRID, zeta=0.2),
    "PiGDM, 100 steps": guided(models.PiGDM, ANCESTRAL, 100),
    "Tweedie, 100 steps": guided(models.TweedieCovariance, ANCESTRAL, 100),
    "Tweedie, Heun, 20 steps": guided(models.TweedieCovariance, sl.solvers.Heun(), 20),
    "particles, 100 steps": steered(100),
    "particles, Tweedie": twisted(100),
}


def compare(method: str, truths: int, draws: int, seed: int) -> dict:
    """Errors of a method for every truth, and the calls of the model."""
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    points = np.asarray(PRIOR.sample(jax.random.fold_in(key, 1), truths), np.float64)
    found = dict(mean=[], deviation=[], share=[])
    for case, truth in enumerate(points):
        values = truth[KNOWN] + STD * rng.normal(size=KNOWN.sum())
        measurement = LinearMeasurement(matrix=ROWS, values=values, std=STD)
        posterior = models.exact_posterior(PRIOR, measurement)
        parts = posterior.components
        weights = np.asarray(posterior.weights, np.float64)
        means = np.asarray(parts.mean, np.float64)
        mean = weights @ means
        spread = np.stack([np.diag(np.asarray(jax.tree.map(lambda a, k=k: a[k], parts).covariance())) for k in range(2)])
        deviation = np.sqrt(weights @ (spread + (means - mean) ** 2))
        x, log_w, calls = METHODS[method](jax.random.fold_in(key, 100 + case), measurement, draws)
        w = np.exp(np.asarray(log_w, np.float64) - np.max(log_w))
        w, x = w / w.sum(), np.asarray(x, np.float64)
        average = w @ x
        width = np.sqrt(w @ (x - average) ** 2)
        off = lambda error: float(np.sqrt(np.mean(error[~KNOWN] ** 2)))
        found["mean"].append(off((average - mean) / deviation))
        found["deviation"].append(off(width / deviation - 1))
        # By the component of the prior: what is known says the same of all samples, up to its noise.
        found["share"].append(abs(float(w @ np.asarray(PRIOR.responsibilities(x)[0])) - weights[0]))
    return found | dict(calls=calls)


def claims(found: dict) -> list[Claim]:
    """What the paper says of resampling."""
    column = lambda name, what: np.array(found[name][what])
    gain = column("replacement, 100 steps", "mean") - column("RePaint r = 16", "mean")
    share = column("RePaint r = 16", "share") - column("exact draws", "share")
    error = lambda values: float(values.std(ddof=1) / np.sqrt(len(values)))
    return [
        Claim(
            says="Resampling makes the rest fit what is known.", value=float(gain.mean()), spread=error(gain),
            unit="error of the mean in deviations, replacement less 16 resamplings",
            verdict="reproduced" if gain.mean() > 2 * error(gain) else "not reproduced",
            why="The spread is the standard error over the truths, and two of them are asked for.",
        ),
        Claim(
            says="Inpaintings are diverse.", value=float(share.mean()), spread=error(share),
            unit="error of the share of a component, above that of as many exact draws (16 resamplings)",
            verdict="reproduced" if share.mean() < 2 * error(share) else "in shape",
            why="Both components appear; two standard errors from what exact draws have are allowed for their shares.",
        ),
    ]  # fmt: skip


def main(record) -> None:
    o = record.options
    found = record.cells(compare, {name: (name, o.truths, o.draws, o.seed) for name in METHODS})
    for name, row in found.items():
        print(
            f"{name:26s} {row['calls']:5d} calls  "
            + "  ".join(f"{what} {plus_minus(row[what])}" for what in ("mean", "deviation", "share"))
        )
    labels = dict(
        mean="error of the mean, in deviations of the conditional law", deviation="relative error of the deviation",
        share="error of the share of a component",
    )  # fmt: skip
    rows = lambda what: {f"{name} ({row['calls']})": row[what] for name, row in found.items()}
    panels = {what: viz.dots(rows(what), xlabel=label) for what, label in labels.items()}
    record.write(found, claims=claims(found), **panels)


if __name__ == "__main__":
    FIGURE.make(main)
