"""Training: learners, averages of parameters, the loop, one device and many."""

from scorelab.training.early import EarlyStopping, HeldOutLoss, Watch
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
from scorelab.training.learner import ConditionWarning, Learner, ScoreLearner, ScoreState
from scorelab.training.loop import Hook, NonFiniteLoss, NonFiniteState, SkippedBatchWarning, Window, fit
from scorelab.training.memory import Memory, OutOfMemory
from scorelab.training.parallel import Sharding, data_mesh, gathered
from scorelab.training.prepare import Prepare, Prepared

__all__ = [
    "EMA",
    "Average",
    "ConditionWarning",
    "EarlyStopping",
    "HeldOutLoss",
    "Hook",
    "Learner",
    "Memory",
    "NonFiniteLoss",
    "NonFiniteState",
    "OutOfMemory",
    "PowerEMA",
    "Prepare",
    "Prepared",
    "ScoreLearner",
    "ScoreState",
    "Sharding",
    "SkippedBatchWarning",
    "Snapshot",
    "Watch",
    "Window",
    "data_mesh",
    "exponentiated_gradient",
    "fit",
    "gathered",
    "power_exponent",
    "profile_product",
    "synthesis_residual",
    "synthesis_weights",
    "synthesise",
]
