"""Laws and processes that the tests of multiplicative diffusion share."""

import numpy as np

from scorelab import densities, processes, schedules

PAPER = processes.GeometricBrownianMotion()
PROCESSES = {
    "paper": PAPER,
    "growing": processes.GeometricBrownianMotion(sigma=0.6, mu=0.7),
    "time-varying": processes.GeometricBrownianMotion(sigma=schedules.Ramp(0.3, 1.2), mu=schedules.Ramp(0.5, -0.9), t_max=1.5),
}


def three_modes():
    """A one-dimensional log-normal mixture with modes well apart: the test case of the sampler tables."""
    return densities.LogNormalMixture([0.3, 0.45, 0.25], np.array([[-0.6], [0.1], [0.9]]), np.array([0.12, 0.18, 0.10]) ** 2)


def correlated(d=2, components=3, seed=0):
    """Correlated components in any dimension."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(components, d, d)) * 0.4
    covs = roots @ roots.transpose(0, 2, 1) + 0.05 * np.eye(d)
    return densities.LogNormalMixture(rng.uniform(0.5, 1.5, components), rng.normal(size=(components, d)) * 0.7, covs)


def draw_logs(law, n, seed=0):
    """``n`` points of the law of log x, in NumPy float64."""
    rng = np.random.default_rng(seed)
    mean, basis, values, tail = (
        np.asarray(getattr(law.logs.components, part), np.float64) for part in ("mean", "basis", "eigenvalues", "tail")
    )
    weights = np.exp(np.asarray(law.logs.log_weights, np.float64))
    k = rng.choice(len(mean), n, p=weights / weights.sum())
    root = np.sqrt(tail)[:, None, None] * np.eye(mean.shape[1])
    root = root + (basis * (np.sqrt(values) - np.sqrt(tail)[:, None])[:, None]) @ basis.transpose(0, 2, 1)
    return mean[k] + np.einsum("nij,nj->ni", root[k], rng.standard_normal((n, mean.shape[1])))


def draw_noised_logs(law, process, t, n, seed=0):
    """The same of the noised law."""
    y, noise = draw_logs(law, n, seed), np.random.default_rng(seed + 1).standard_normal((n, *law.event))
    return y + process.offset(t) + process.sigma(t) * noise
