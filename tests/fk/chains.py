"""A chain whose tilted law is known exactly, discretisation included: everything in it is linear and Gaussian."""

import jax.numpy as jnp
import numpy as np

from scorelab import densities, grids, models, processes, schedules, solvers

VP = processes.Gaussian(schedule=schedules.VPLinear())
LAW = densities.Gaussian(np.array([0.5]), 1.0)
MODEL = models.ExactModel(LAW, VP)
GRID = grids.Uniform(50, t_min=1e-3, clean=False)
BASE = solvers.EulerMaruyama(denoise=False)
SCALE, CENTRE = 2.0, 2.5


def reward(x):
    """A parabola; its exponential is a Gaussian."""
    return -0.5 * (x[:, 0] - CENTRE) ** 2


def chain_law(grid=GRID):
    """Mean and variance of the last state of the discrete chain, from N(b, sigma^2) at the first time: affine maps composed."""
    table = BASE.table(VP, grid.times(VP))
    mean, variance = 0.0, float(VP.sigma(grid.times(VP)[0])) ** 2
    for t, a, e, o, n in zip(table.t, table.a, table.e, table.o, table.n, strict=True):
        alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
        # eps = sigma (y - alpha m) / (alpha^2 v + sigma^2) for data N(m, v).
        total = alpha**2 * 1.0 + sigma**2
        slope, shift = a + e * sigma / total, o - e * sigma * alpha * 0.5 / total
        mean, variance = slope * mean + shift, slope**2 * variance + n**2
    return mean, variance


def tilted_law(mean, variance, scale=SCALE):
    """Mean, variance and log Z of N(mean, variance) exp(scale * reward)."""
    precision = 1 / variance + scale
    centre = (mean / variance + scale * CENTRE) / precision
    log_z = -0.5 * np.log(variance * precision) - 0.5 * (mean**2 / variance + scale * CENTRE**2 - precision * centre**2)
    return centre, 1 / precision, log_z


def moments(out, groups):
    """Weighted mean and variance of every population."""
    weights = np.asarray(out.log_weights, np.float64).reshape(groups, -1)
    weights = np.exp(weights - weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    x = np.asarray(out.x, np.float64).reshape(groups, -1)
    mean = (weights * x).sum(1)
    return mean, (weights * (x - mean[:, None]) ** 2).sum(1)


def cloud_distance(x, log_weights, grid, log_density):
    """Kolmogorov-Smirnov and W1 distance of weighted points on the line to a density given on a grid, and its log Z."""
    log_density = np.asarray(log_density, np.float64)
    step = grid[1] - grid[0]
    top = log_density.max()
    mass = np.exp(log_density - top)
    log_z = float(np.log(mass.sum() * step) + top)
    cdf = np.cumsum(mass) / mass.sum()
    w = np.asarray(jnp.asarray(log_weights), np.float64)
    w = np.exp(w - w.max())
    order = np.argsort(np.asarray(x))
    points, steps = np.asarray(x, np.float64)[order], np.cumsum(w[order]) / w.sum()
    below = np.searchsorted(points, grid, side="right")
    empirical = np.concatenate([[0.0], steps])[below]
    return float(np.abs(empirical - cdf).max()), float(np.abs(empirical - cdf).sum() * step), log_z
