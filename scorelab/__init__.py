"""scorelab: score-based diffusion research in JAX.

``import scorelab as sl`` gives the public names: processes, exact laws, models, solvers, grids, starts, sampling,
losses, Feynman-Kac steering and correctors, distillation, training, metrics, diagnostics, data and likelihood.

A name is imported when it is first used: a command that prints its help, and a script that only reads data, wait for nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        sampling,
        schedules,
        solvers,
        starts,
        training,
        typing,
    )
    from scorelab.sampling import NonFiniteSample, Samples, sample

__version__ = "0.1.0"

__all__ = [
    "NonFiniteSample",
    "Samples",
    "data",
    "densities",
    "diagnostics",
    "distill",
    "fk",
    "grids",
    "likelihood",
    "losses",
    "metrics",
    "models",
    "processes",
    "sample",
    "sampling",
    "schedules",
    "solvers",
    "starts",
    "training",
    "typing",
]

_FROM_SAMPLING = ("NonFiniteSample", "Samples", "sample")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'scorelab' has no attribute {name!r}")
    if name in _FROM_SAMPLING:
        value = getattr(importlib.import_module("scorelab.sampling"), name)
        # Found without this function from now on, as a submodule is.
        globals()[name] = value
        return value
    return importlib.import_module(f"scorelab.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
