"""Two mixtures in the plane, and their moments."""

import numpy as np

from scorelab import densities, processes
from scorelab.processes import gammas, paths

WEIGHTS, MEANS = np.array([0.4, 0.6]), np.array([[-2, 0.5], [1.5, -1]])
COVS = np.array([[[0.5, 0.2], [0.2, 0.3]], [[0.25, -0.1], [-0.1, 0.6]]])
BASE_WEIGHTS, BASE_MEANS = np.array([0.5, 0.3, 0.2]), np.array([[0, 2], [-1, -2], [2, 0.5]])
BASE_COVS = np.array([[[1, 0], [0, 0.4]], [[0.6, 0.3], [0.3, 0.8]], [[0.3, 0], [0, 0.3]]])


def data():
    """In the precision of the moment."""
    return densities.GaussianMixture(WEIGHTS, MEANS, COVS)


def base():
    return densities.GaussianMixture(BASE_WEIGHTS, BASE_MEANS, BASE_COVS)


def moments(weights, means, covs):
    """Mean and covariance of a mixture."""
    mean = weights @ means
    return mean, np.einsum("k,kij->ij", weights, covs) + (means - mean).T @ (weights[:, None] * (means - mean))


# Every path with the gammas it may have.
PAIRS = {
    "linear, Brownian": (paths.Linear(), gammas.Brownian()),
    "linear, Brownian of half": (paths.Linear(), gammas.Brownian(scale=0.5)),
    "linear, quadratic": (paths.Linear(), gammas.Quadratic()),
    "linear, sine squared": (paths.Linear(), gammas.SineSquared()),
    "linear, zero": (paths.Linear(), gammas.Zero()),
    "trigonometric, Brownian": (paths.Trigonometric(), gammas.Brownian()),
    "trigonometric, quadratic": (paths.Trigonometric(), gammas.Quadratic()),
    "trigonometric, zero": (paths.Trigonometric(), gammas.Zero()),
    "encoding-decoding": (paths.EncodingDecoding(), gammas.SineSquared()),
    "mirror, Brownian": (paths.Mirror(), gammas.Brownian()),
}


def process(name, **options):
    path, gamma = PAIRS[name]
    return processes.StochasticInterpolant(path=path, gamma=gamma, base=base() if path.two_sided else None, **options)
