"""What the scripts of this folder share: the trained model, its data, laws of them, and how samples are judged."""

from __future__ import annotations

import argparse

import jax
import numpy as np

from scorelab import densities, metrics, pretrained, sample
from scorelab.densities import Empirical, Gaussian, GaussianMixture
from scorelab.experiment import Evaluate, ImageEvaluation
from scorelab.solvers.base import Solver
from scorelab.training import data_mesh

# What `data` may be. `workdir` takes the model of a trained work directory, in the place of the one that the package carries.
DATA = ("digits", "mnist", "cifar10")


def subject(options: argparse.Namespace) -> tuple[pretrained.Loaded, np.ndarray]:
    """The model that the command line names, and its training data in the chart ``(n, *event)``."""
    who = pretrained.load(str(options.workdir or f"{options.data}-edm"))
    return who, who.encoded()


def some_of(who: pretrained.Loaded, points: int, seed: int = 0) -> np.ndarray:
    """Training points in random order, as the model sees them."""
    data = who.data()
    return np.asarray(who.transform.encode(data.x[np.sort(np.random.default_rng(seed).permutation(len(data))[:points])]))


def laws_of(y: np.ndarray, components: tuple[int, ...], rank: int = 256) -> dict:
    """Name -> law of the points ``y``, from the poorest to the richest; ``rank`` of mixtures of more than a thousand numbers."""
    return {
        "mean": Gaussian.from_data(y, covariance="zero"),
        "isotropic Gaussian": Gaussian.from_data(y, covariance="isotropic"),
        "Gaussian": Gaussian.from_data(y),
        # A hundred full covariances of images of more than a thousand numbers would not fit in memory.
        **{f"{k} Gaussians": GaussianMixture.fit(y, k, rank=None if y[0].size <= 1024 else rank) for k in components},
        "training set": Empirical(y),
    }


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """The root mean square of the difference, per pixel."""
    return float(np.sqrt(np.mean((np.asarray(a) - np.asarray(b)) ** 2)))


class Trial:
    """The model of the options, the Gaussian with the moments of its data, and what ``n`` images are held against.

    There are at most as many as test images, which the floors are measured with.
    """

    def __init__(self, options: argparse.Namespace):
        self.who, y = subject(options)
        self.law, self.event = densities.Gaussian.from_data(y), y.shape[1:]
        self.n, self.chunk = min(options.n, len(self.who.data("test"))), options.chunk
        self.deviation = float(np.sqrt(np.max(self.law.eigenvalues)))
        data = self.who.data()
        evaluations = self.who.config.one(Evaluate).evaluations
        features = [each.features for each in evaluations if isinstance(each, ImageEvaluation)]
        chosen = data.x[np.random.default_rng(0).permutation(len(data))[: self.n]]
        self.truth = {judge: judge(chosen) for judge in (*features, metrics.pixels(levels=data.levels))}

    def draw(self, seed: int, solver: Solver, grid, start=None, n: int | None = None) -> tuple[np.ndarray, int]:
        """Samples in the chart, and the number of model calls."""
        n = self.n if n is None else n
        out = sample(
            self.who.model, solver=solver, grid=grid, start=start, key=jax.random.key(1000 + seed),
            shape=(n, *self.event), chunk=min(n, self.chunk), mesh=data_mesh() if jax.device_count() > 1 else None,
        )  # fmt: skip
        return np.asarray(out.x), int(out.diagnostics["model_calls"])

    def decode(self, x: np.ndarray) -> np.ndarray:
        """Samples as stored images."""
        return np.asarray(self.who.transform.decode(x))

    def values(self, images: np.ndarray) -> dict[str, float]:
        """Frechet distance and KID of stored images to the data, under every extractor."""
        found = {}
        for judge, reference in self.truth.items():
            z, same = judge(images), metrics.Coordinates(id=judge.id)
            distance, kid = metrics.frechet(z, reference, same).value, metrics.kid(z, reference, same).value
            found |= {f"FID-{judge.id}": distance, f"KID-{judge.id}": kid}
        return found

    def floors(self) -> dict[str, float]:
        """The same of test images."""
        return self.values(self.who.data("test").x[: self.n])
