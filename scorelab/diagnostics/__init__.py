"""What a model has learned, beside laws in closed form: explained variance of its score, paths, features, sensitivity."""

from scorelab.diagnostics.explained_variance import ExplainedVariance, explained_variance
from scorelab.diagnostics.features import Emergence, feature_emergence
from scorelab.diagnostics.ntk import KernelPath, kernel_path, relu_ntk
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
    "KernelPath",
    "bounded_along",
    "denoised_along",
    "explained_variance",
    "feature_emergence",
    "kernel_path",
    "perturbation_sensitivity",
    "planarity",
    "relu_ntk",
    "trajectory_error",
]
