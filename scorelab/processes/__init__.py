"""Forward processes: what noise does, and what a model says of what it has done."""

from scorelab.processes import gammas, paths, spaces
from scorelab.processes.base import Noised, Process, Start, require_same_process
from scorelab.processes.bridge import Bridge, FlowPrediction
from scorelab.processes.charts import Chart, Identity, Log
from scorelab.processes.gaussian import Gaussian
from scorelab.processes.geodesic import Geodesic
from scorelab.processes.interpolant import InterpolantPrediction, PathPrediction, StochasticInterpolant
from scorelab.processes.joint import Joint, JointPrediction, JointStart
from scorelab.processes.linear_gaussian import GaussianNoise, GaussianPrediction, LinearGaussian
from scorelab.processes.multiplicative import GeometricBrownianMotion
from scorelab.processes.predictions import (
    HasDenoised,
    HasKnown,
    HasLatent,
    HasLogits,
    HasLogProb,
    HasNoise,
    HasProposal,
    HasScore,
    HasVelocity,
    Prediction,
    require_capabilities,
)
from scorelab.processes.scale import ScaleWarning

__all__ = [
    "Bridge",
    "Chart",
    "FlowPrediction",
    "Gaussian",
    "GaussianNoise",
    "GaussianPrediction",
    "Geodesic",
    "GeometricBrownianMotion",
    "HasDenoised",
    "HasKnown",
    "HasLatent",
    "HasLogProb",
    "HasLogits",
    "HasNoise",
    "HasProposal",
    "HasScore",
    "HasVelocity",
    "Identity",
    "InterpolantPrediction",
    "Joint",
    "JointPrediction",
    "JointStart",
    "LinearGaussian",
    "Log",
    "Noised",
    "PathPrediction",
    "Prediction",
    "Process",
    "ScaleWarning",
    "Start",
    "StochasticInterpolant",
    "gammas",
    "paths",
    "require_capabilities",
    "require_same_process",
    "spaces",
]
