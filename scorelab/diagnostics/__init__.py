"""What a model has learned, beside laws in closed form: explained variance of its score, paths, features, sensitivity."""

from scorelab.diagnostics.explained_variance import ExplainedVariance, explained_variance
from scorelab.diagnostics.features import Emergence, feature_emergence
from scorelab.diagnostics.intrinsic_dimension import (
    DimensionEstimator,
    FlowJacobian,
    IntrinsicDimension,
    NoiseSlope,
    ScoreSVD,
    SymmetricJacobian,
    intrinsic_dimension,
)
from scorelab.diagnostics.ntk import KernelPath, kernel_path, relu_ntk
from scorelab.diagnostics.trajectories import (
    bounded_along,
    denoised_along,
    perturbation_sensitivity,
    planarity,
    trajectory_error,
)

__all__ = [
    "DimensionEstimator",
    "Emergence",
    "ExplainedVariance",
    "FlowJacobian",
    "IntrinsicDimension",
    "KernelPath",
    "NoiseSlope",
    "ScoreSVD",
    "SymmetricJacobian",
    "bounded_along",
    "denoised_along",
    "explained_variance",
    "feature_emergence",
    "intrinsic_dimension",
    "kernel_path",
    "perturbation_sensitivity",
    "planarity",
    "relu_ntk",
    "trajectory_error",
]
