"""Forward processes: what noise does."""

from scorelab.processes.base import Perturbed, Prediction, Process
from scorelab.processes.charts import Chart, Identity
from scorelab.processes.gaussian import Gaussian

__all__ = ["Chart", "Gaussian", "Identity", "Perturbed", "Prediction", "Process"]
