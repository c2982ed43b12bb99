"""Training: learners, averages of parameters, the loop, data parallelism."""

from scorelab.training.ema import (
    EMA,
    Average,
    PowerEMA,
    Snapshot,
    power_exponent,
    profile_product,
    synthesis_residual,
    synthesis_weights,
    synthesise,
)
from scorelab.training.exponentiated import exponentiated_gradient
from scorelab.training.learner import Learner, ScoreLearner, ScoreState
from scorelab.training.loop import Hook, NonFiniteLoss, NonFiniteState, SkippedBatchWarning, Window, fit
from scorelab.training.parallel import data_mesh
from scorelab.training.prepare import Prepare, Prepared

__all__ = [
    "EMA",
    "Average",
    "Hook",
    "Learner",
    "NonFiniteLoss",
    "NonFiniteState",
    "PowerEMA",
    "Prepare",
    "Prepared",
    "ScoreLearner",
    "ScoreState",
    "SkippedBatchWarning",
    "Snapshot",
    "Window",
    "data_mesh",
    "exponentiated_gradient",
    "fit",
    "power_exponent",
    "profile_product",
    "synthesis_residual",
    "synthesis_weights",
    "synthesise",
]
