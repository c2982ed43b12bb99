"""A target with known answers for the experiments on multiplicative diffusion, and its exact start."""

from __future__ import annotations

import jax
import numpy as np

import scorelab as sl

PROCESS = sl.processes.GeometricBrownianMotion()
WEIGHTS, MEANS, STDS = np.array([0.30, 0.45, 0.25]), np.array([-0.6, 0.1, 0.9]), np.array([0.12, 0.18, 0.10])
TARGET = sl.densities.LogNormalMixture(WEIGHTS, MEANS[:, None], STDS**2)
MODEL = sl.models.ExactModel(TARGET, PROCESS)


def exact_start(key, n: int) -> sl.starts.Fixed:
    """``n`` draws of the law of ``log x`` at ``t_max``, the same for every sampler that is compared."""
    return sl.starts.Fixed(TARGET.logs.noised(PROCESS, PROCESS.t_max).sample(key, n))


def density(y: np.ndarray, t: float = 0.0) -> np.ndarray:
    """The density of ``log x`` at time ``t`` on the points ``y`` ``(m,)``."""
    return np.exp(TARGET.logs.noised(PROCESS, t).log_prob(y[:, None]))


def quantiles(n: int) -> np.ndarray:
    """The quantiles of ``log x`` at ``(i + 1/2) / n``."""
    y = np.linspace(-2.5, 2.5, 50_001)
    cdf = np.asarray(jax.scipy.stats.norm.cdf((y[:, None] - MEANS) / STDS), np.float64) @ WEIGHTS
    return np.interp((np.arange(n) + 0.5) / n, cdf, y)


def w1(logs: np.ndarray) -> float:
    """The Wasserstein-1 distance of points ``(n,)`` to the law of ``log x``."""
    return float(np.mean(np.abs(np.sort(np.asarray(logs, np.float64)) - quantiles(len(logs)))))
