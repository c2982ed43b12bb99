"""Gaussians with wide spectra, and their probability flow written down once more, in NumPy."""

import numpy as np

from scorelab import processes, schedules

EDM = processes.Gaussian(schedule=schedules.EDM())
VP = processes.Gaussian(schedule=schedules.VPLinear())
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
LOG = processes.GeometricBrownianMotion(sigma=2.0, mu=0.5)


def spectrum(d=20, high=20.0, low=1e-6, seed=0):
    """A mean, an orthonormal basis and variances from ``high`` to ``low``."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return rng.normal(size=d), basis, np.geomspace(high, low, d)


def covariance(basis, variances):
    return (basis * variances) @ basis.T
