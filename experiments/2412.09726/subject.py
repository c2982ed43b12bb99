"""The trained model that the scripts of this folder look at, its data, and laws of them."""

from __future__ import annotations

import argparse

import numpy as np

from scorelab import pretrained
from scorelab.densities import Empirical, Gaussian, GaussianMixture

# What `--data` may be. `--workdir` takes the model of a trained work directory, in the place of the one that the package carries.
DATA = ("digits", "mnist", "cifar10")


def subject(options: argparse.Namespace) -> tuple[pretrained.Loaded, np.ndarray]:
    """The model that the command line names, and its training data in the chart ``(n, *event)``."""
    who = pretrained.load(str(options.workdir or f"{options.data}-edm"))
    return who, who.encoded()


def some_of(who: pretrained.Loaded, points: int) -> np.ndarray:
    """Training points in random order, as the model sees them."""
    data = who.data()
    return np.asarray(who.transform.encode(data.x[np.sort(np.random.default_rng(0).permutation(len(data))[:points])]))


def laws_of(y: np.ndarray, components: tuple[int, ...]) -> dict:
    """Name -> law of the points ``y``, from the poorest to the richest."""
    return {
        "mean": Gaussian.from_data(y, covariance="zero"),
        "isotropic Gaussian": Gaussian.from_data(y, covariance="isotropic"),
        "Gaussian": Gaussian.from_data(y),
        # A hundred full covariances of images of more than a thousand numbers would not fit in memory.
        **{f"{k} Gaussians": GaussianMixture.fit(y, k, rank=None if y[0].size <= 1024 else 256) for k in components},
        "training set": Empirical(y),
    }
