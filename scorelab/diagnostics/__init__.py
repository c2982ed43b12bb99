"""What a model has learned, beside laws in closed form: explained variance of its score, paths, features, sensitivity."""

from scorelab.diagnostics.conservativity import Conservativity, conservativity
from scorelab.diagnostics.explained_variance import ExplainedVariance, explained_variance
from scorelab.diagnostics.features import Emergence, feature_emergence
from scorelab.diagnostics.gauge import GaugeResidual, Waves, gauge_residual, quadratic
from scorelab.diagnostics.trajectories import (
    bounded_along,
    denoised_along,
    perturbation_sensitivity,
    planarity,
    trajectory_error,
)

__all__ = [
    "Conservativity",
    "Emergence",
    "ExplainedVariance",
    "GaugeResidual",
    "Waves",
    "bounded_along",
    "conservativity",
    "denoised_along",
    "explained_variance",
    "feature_emergence",
    "gauge_residual",
    "perturbation_sensitivity",
    "planarity",
    "quadratic",
    "trajectory_error",
]
