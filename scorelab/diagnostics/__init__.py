"""What a model has learned, beside laws in closed form: explained variance of its score, paths, features, sensitivity."""

from scorelab.diagnostics.explained_variance import ExplainedVariance, explained_variance
from scorelab.diagnostics.features import Emergence, feature_emergence
from scorelab.diagnostics.memorisation import Memorisation, memorisation
from scorelab.diagnostics.trajectories import (
    bounded_along,
    denoised_along,
    perturbation_sensitivity,
    planarity,
    trajectory_error,
)

__all__ = [
    "Emergence",
    "ExplainedVariance",
    "Memorisation",
    "bounded_along",
    "denoised_along",
    "explained_variance",
    "feature_emergence",
    "memorisation",
    "perturbation_sensitivity",
    "planarity",
    "trajectory_error",
]
