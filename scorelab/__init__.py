"""scorelab: score-based diffusion research in JAX.

``import scorelab as sl`` gives the public names: processes, exact laws, models, solvers, grids, starts, sampling,
losses, Feynman-Kac steering and correctors, distillation, training, metrics, diagnostics, data and likelihood.
"""

from scorelab import (
    data,
    densities,
    diagnostics,
    distill,
    fk,
    grids,
    likelihood,
    losses,
    metrics,
    models,
    processes,
    schedules,
    solvers,
    starts,
    training,
)
from scorelab.sampling import NonFiniteSample, Samples, sample

__version__ = "0.1.0"

__all__ = [
    "NonFiniteSample", "Samples", "data", "densities", "diagnostics", "distill", "fk", "grids", "likelihood", "losses", "metrics",
    "models", "processes", "sample", "schedules", "solvers", "starts", "training",
]
