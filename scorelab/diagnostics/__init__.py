"""What a model has learned: whether its field is a score, of what law and dimension, and how it goes beside laws in closed form."""

from scorelab.diagnostics.conservativity import Conservativity, conservativity
from scorelab.diagnostics.explained_variance import ExplainedVariance, explained_variance
from scorelab.diagnostics.features import Emergence, feature_emergence
from scorelab.diagnostics.fokker_planck import FokkerPlanckResidual, fokker_planck_residual
from scorelab.diagnostics.gap import Distance, OdeSdeGap, ode_sde_gap
from scorelab.diagnostics.gauge import GaugeResidual, Waves, gauge_residual, quadratic
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
from scorelab.diagnostics.levels import by_level
from scorelab.diagnostics.memorisation import Memorisation, memorisation
from scorelab.diagnostics.ntk import KernelPath, kernel_path, relu_ntk
from scorelab.diagnostics.trajectories import (
    bounded_along,
    denoised_along,
    perturbation_sensitivity,
    planarity,
    trajectory_error,
)

__all__ = [
    "Conservativity",
    "DimensionEstimator",
    "Distance",
    "Emergence",
    "ExplainedVariance",
    "FlowJacobian",
    "FokkerPlanckResidual",
    "GaugeResidual",
    "GaussianGap",
    "IntrinsicDimension",
    "KernelPath",
    "Memorisation",
    "NoiseSlope",
    "OdeSdeGap",
    "ScoreSVD",
    "SymmetricJacobian",
    "Waves",
    "bounded_along",
    "by_level",
    "conservativity",
    "denoised_along",
    "explained_variance",
    "feature_emergence",
    "fokker_planck_residual",
    "gauge_residual",
    "gaussian_gap",
    "intrinsic_dimension",
    "kernel_path",
    "memorisation",
    "ode_sde_gap",
    "perturbation_sensitivity",
    "planarity",
    "quadratic",
    "relu_ntk",
    "trajectory_error",
]
