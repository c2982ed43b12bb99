"""Forward processes: what noise does."""

from scorelab.processes.base import Perturbed, Prediction, Process
from scorelab.processes.charts import Chart, Identity, Log
from scorelab.processes.gaussian import Gaussian
from scorelab.processes.multiplicative import GeometricBrownianMotion
from scorelab.processes.scale import ScaleWarning

__all__ = ["Chart", "Gaussian", "GeometricBrownianMotion", "Identity", "Log", "Perturbed", "Prediction", "Process", "ScaleWarning"]
