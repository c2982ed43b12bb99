"""scorelab: score-based diffusion research in JAX.

``import scorelab as sl`` gives the public names: processes, exact laws, models, solvers, grids, starts, sampling,
losses, Feynman-Kac steering and correctors, searches, distillation, training, metrics, diagnostics, data, likelihood, and
experiments with their config files and trained models.

A name is imported when it is first used: a command that prints its help, and a script that only reads data, wait for nothing else.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorelab import (
        config,
        data,
        densities,
        dequantisation,
        devices,
        diagnostics,
        distill,
        divergence,
        elbo,
        experiment,
        fk,
        grids,
        hosts,
        likelihood,
        losses,
        metrics,
        models,
        pretrained,
        processes,
        sampling,
        schedules,
        search,
        shards,
        solvers,
        starts,
        training,
        viz,
        walk,
    )
    from scorelab.dequantisation import bits_per_dim
    from scorelab.devices import use_all_cores
    from scorelab.elbo import likelihood_bound
    from scorelab.hosts import distributed
    from scorelab.inversion import invert
    from scorelab.likelihood import log_likelihood
    from scorelab.sampling import Samples, sample
    from scorelab.shards import Shards, sample_to
    from scorelab.walk import NonFiniteSample

__version__ = "0.2.0"

__all__ = [
    "NonFiniteSample",
    "Samples",
    "Shards",
    "bits_per_dim",
    "config",
    "data",
    "densities",
    "dequantisation",
    "devices",
    "diagnostics",
    "distill",
    "distributed",
    "divergence",
    "elbo",
    "experiment",
    "fk",
    "grids",
    "hosts",
    "invert",
    "likelihood",
    "likelihood_bound",
    "log_likelihood",
    "losses",
    "metrics",
    "models",
    "pretrained",
    "processes",
    "sample",
    "sample_to",
    "sampling",
    "schedules",
    "search",
    "shards",
    "solvers",
    "starts",
    "training",
    "use_all_cores",
    "viz",
    "walk",
]

# Functions and classes, by the module that has them.
_FROM = {
    "NonFiniteSample": "walk",
    "Samples": "sampling",
    "Shards": "shards",
    "bits_per_dim": "dequantisation",
    "distributed": "hosts",
    "invert": "inversion",
    "likelihood_bound": "elbo",
    "log_likelihood": "likelihood",
    "sample": "sampling",
    "sample_to": "shards",
    "use_all_cores": "devices",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'scorelab' has no attribute {name!r}")
    if name in _FROM:
        value = getattr(importlib.import_module(f"scorelab.{_FROM[name]}"), name)
        # Found without this function from now on, as a submodule is.
        globals()[name] = value
        return value
    return importlib.import_module(f"scorelab.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
