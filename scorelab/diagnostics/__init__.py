"""What a model has learned, beside laws in closed form: explained variance of its score, paths, features, sensitivity."""

from scorelab.diagnostics.explained_variance import ExplainedVariance, explained_variance
from scorelab.diagnostics.features import Emergence, feature_emergence
from scorelab.diagnostics.fokker_planck import FokkerPlanckResidual, fokker_planck_residual
from scorelab.diagnostics.gap import Distance, OdeSdeGap, ode_sde_gap
from scorelab.diagnostics.gaussian_gap import GaussianGap, gaussian_gap
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
    "Distance",
    "Emergence",
    "Emergence",
    "ExplainedVariance",
    "ExplainedVariance",
    "FlowJacobian",
    "FokkerPlanckResidual",
    "GaussianGap",
    "IntrinsicDimension",
    "KernelPath",
    "NoiseSlope",
    "OdeSdeGap",
    "ScoreSVD",
    "SymmetricJacobian",
    "bounded_along",
    "denoised_along",
    "explained_variance",
    "feature_emergence",
    "fokker_planck_residual",
    "gaussian_gap",
    "intrinsic_dimension",
    "kernel_path",
    "ode_sde_gap",
    "perturbation_sensitivity",
    "planarity",
    "relu_ntk",
    "trajectory_error",
]
