"""Gaussian data under several processes: what its flow is, in closed form."""

import jax.numpy as jnp
import numpy as np

from scorelab import densities, grids, models, processes, schedules
from scorelab.arrays import per_example

MEAN, STD = 0.4, 0.7
PROCESSES = {
    "edm": processes.Gaussian(schedule=schedules.EDM(sigma_min=0.02, sigma_max=20.0)),
    "vp": processes.Gaussian(schedule=schedules.VPLinear(t_min=0.01)),
    "flow": processes.Gaussian(schedule=schedules.RectifiedFlow(t_min=0.02)),
    "log": processes.GeometricBrownianMotion(sigma=4.0, mu=0.5, t_min=1e-3),
}


def t_max(process):
    """Where a grid of noise ratios may begin."""
    return 0.99 if isinstance(process.schedule, schedules.RectifiedFlow) else None


def levels(process, steps):
    return grids.LogSNR(steps, t_max=t_max(process), clean=False)


def teacher(process):
    return models.ExactModel(densities.Gaussian(np.array([MEAN]), STD**2), process)


def data(process, n, seed=0):
    latent = MEAN + STD * np.random.default_rng(seed).normal(size=(n, 1))
    return process.decode(jnp.asarray(latent))


def centred(process, y, t):
    """The point in units of the data, and its noise ratio."""
    alpha, offset = (per_example(f(jnp.asarray(t, y.dtype)), y) for f in (process.alpha, process.offset))
    return (y - offset) / alpha, per_example(process.noise_ratio(jnp.asarray(t, y.dtype)), y)


def consistency(process):
    """The exact consistency function: the flow of a Gaussian is linear, to the smallest noise ratio of the process."""
    floor = float(process.noise_ratio(process.t_min))

    def model(y, t, cond=None):
        x, r = centred(process, y, t)
        end = MEAN + jnp.sqrt((STD**2 + floor**2) / (STD**2 + r**2)) * (x - MEAN)
        return process.predict(y, t, denoised=end)

    return models.FunctionModel(model, process, returns="prediction")
