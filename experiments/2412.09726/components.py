"""How many Gaussians, and of which rank, explain the score of a trained network at each noise level.

Mixtures on k-means clusters, whose covariances keep their leading directions and have the variance 1e-5 across them. The tables
have the explained variance by number of components and rank; the curves the smallest rank that is within .005 of all directions.
"""

from __future__ import annotations

import copy
from pathlib import Path

import jax
import numpy as np
from subject import DATA, some_of, subject

from scorelab import viz
from scorelab.densities import GaussianMixture
from scorelab.diagnostics import explained_variance
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__,
    answers="",
    claims="More components help at low noise only, and the lower the noise the more directions are needed: on MNIST 128 of 784 "
    "are as good as all from noise level .5 on (.917 against .921) and ruinous at .1 (.190 against .744).",
    look_for="Rows that are alike at high noise, columns that are alike from a rank on which falls with the noise level.",
    minutes=dict(small=0.5, full=1.5, gpu=None),
    options=dict(data=DATA, workdir=Path, points=256, seeds=3, most=200),
    small=dict(points=64, seeds=2, most=20),
)

SIGMAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# As shares of the number of pixels.
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
COMPONENTS = (1, 2, 5, 10, 20, 50, 100, 200)
FLOOR, CLOSE = 1e-5, 0.005


def truncated(law: GaussianMixture, rank: int) -> GaussianMixture:
    """The mixture with ``rank`` directions of each covariance; of the same shapes, so that one program serves all ranks."""
    mixture, gaussians = copy.copy(law), copy.copy(law.components)
    gaussians.eigenvalues = jax.numpy.where(np.arange(gaussians.eigenvalues.shape[-1]) < rank, gaussians.eigenvalues, FLOOR)
    mixture.components = gaussians
    return mixture


def measure(options, seed: int) -> dict:
    """The explained variance of the score: components -> rank -> one number for each noise level."""
    who, y = subject(options)
    x, found = some_of(who, options.points, seed), {}
    size = y[0].size
    for k in (k for k in COMPONENTS if k <= options.most):
        law = GaussianMixture.fit(y, k, floor=FLOOR, seed=42 + seed)
        laws = {str(round(share * size)): truncated(law, round(share * size)) for share in SHARES}
        rows = explained_variance(who.model, laws, x, SIGMAS, key=jax.random.key(seed))
        found[str(k)] = {rank: ev.mean_of_ratios for rank, ev in rows.items()}
    return found


def tables(numbers: dict) -> np.ndarray:
    """Explained variance ``(seeds, components, ranks, noise levels)``."""
    return np.array([[list(row.values()) for row in seed.values()] for seed in numbers["seeds"].values()], float)


def least_rank(numbers: dict) -> np.ndarray:
    """The smallest rank from which on all are within .005 of the largest, ``(seeds, components, noise levels)``."""
    values, ranks = tables(numbers), np.array(numbers["ranks"])
    near = values >= values[:, :, -1:] - CLOSE
    # From that rank on all are near: the last False and one.
    place = near.shape[2] - np.cumprod(near[:, :, ::-1], axis=2).sum(axis=2)
    return ranks[place]


def claims(numbers: dict) -> list[Claim]:
    """What the paper says of components and ranks, beside what was found."""
    values, least, ranks = tables(numbers), least_rank(numbers), np.array(numbers["ranks"])
    # What the best number of components gains on one, at full rank.
    gain = values[:, :, -1].max(axis=1) - values[:, 0, -1]
    low, high = SIGMAS.index(0.1), SIGMAS.index(2.0)
    share = least[:, 0, SIGMAS.index(0.5)] / ranks[-1]
    falls = np.diff(least[:, 0].mean(axis=0))
    seeds = f"Spread over {len(values)} draws of points, noise and clusters; one network"
    return [
        Claim(
            says="Components beyond one help at low noise (MNIST at .1: .744 to .911).", value=gain[:, low].mean(),
            spread=gain[:, low].std(), unit="explained variance gained at noise level .1",
            verdict="reproduced" if gain[:, low].min() > 0.05 else "in shape" if gain[:, low].min() > 0 else "not reproduced",
            why=f"More than .05 counts as help. {seeds}.",
        ),
        Claim(
            says="At high noise one Gaussian is enough (MNIST at 2: .986 to .997).", value=gain[:, high].mean(),
            spread=gain[:, high].std(), unit="explained variance gained at noise level 2",
            verdict="reproduced" if gain[:, high].max() < 0.02 else "not reproduced",
            why=f"Less than .02 counts as enough. {seeds}.",
        ),
        Claim(
            says="At noise level .5 a sixth of the directions is as good as all (MNIST: 128 of 784).", value=share.mean(),
            spread=share.std(), unit="of the directions needed by one Gaussian at .5, to be within .005 of all",
            verdict="reproduced" if share.max() <= 0.25 else "in shape" if share.max() < 1 else "not reproduced",
            why=f"A quarter or less counts as reproduced; small images have fewer superfluous directions. {seeds}.",
        ),
        Claim(
            says="The rank that is needed falls with the noise level.", value=int((falls > 0).sum()), spread=0,
            unit=f"of {len(falls)} steps from one noise level to the next at which it rises, one Gaussian",
            verdict="reproduced" if (falls <= 0).all() else "not reproduced", why=f"The mean over the draws has to fall. {seeds}.",
        ),
    ]  # fmt: skip


def figures(numbers: dict) -> dict:
    """Tables at each noise level, and the smallest rank by number of components."""
    mean, least = tables(numbers).mean(axis=0), least_rank(numbers).mean(axis=0)
    names = [str(k) for k in numbers["components"]]
    ranks = dict(rows=names, columns=[str(r) for r in numbers["ranks"]], xlabel="rank", ylabel="components")
    series = {
        f"{name} Gaussian{'s' * (name != '1')}": (np.array(SIGMAS), row)
        for name, row in zip(names, least, strict=True)
        if name in ("1", "5", "20", "50", "100")
    }
    return dict(
        tables=viz.heatmaps(
            {f"noise level {sigma:g}": mean[:, :, i] for i, sigma in enumerate(SIGMAS)}, **ranks, colour="explained variance",
            limits=(0.5, 1.0),
        ),
        ranks=viz.lines(
            series, xlabel="noise level", ylabel=f"smallest rank within {CLOSE:g} of all {numbers['ranks'][-1]}", logx=True,
            markers=True,
        ),
    )  # fmt: skip


def main(record) -> None:
    o = record.options
    who, y = subject(o)
    seeds = record.cells(measure, {f"seed {seed}": (o, seed) for seed in range(o.seeds)})
    numbers = dict(
        model=who.origin, sigmas=SIGMAS, components=[k for k in COMPONENTS if k <= o.most],
        ranks=[round(share * y[0].size) for share in SHARES], seeds=seeds,
    )  # fmt: skip
    least = least_rank(numbers).mean(axis=0)
    print("smallest rank by noise level " + "".join(f"{s:8g}" for s in SIGMAS))
    for k, row in zip(numbers["components"], least, strict=True):
        print(f"{k:4d} components              " + "".join(f"{r:8.1f}" for r in row))
    record.write(numbers, claims=claims(numbers), **figures(numbers))


if __name__ == "__main__":
    FIGURE.make(main)
