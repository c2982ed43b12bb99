r"""What a network is trained on: denoising score matching, its weightings, and the laws of training times.

A loss owns time, noise and weighting; learners and the training loop know none of them. What is minimised is

.. math:: E_{t\sim p}\,E_{y_0,\epsilon}\Big[w(t)\,\tfrac1d\,\lVert D(y_t, t) - y_0\rVert^2\Big],

so the density of the times and the weight multiply: the *effective* weight of a time is :math:`p(t)\,w(t)`.
Neither corrects for the other. A weighting that a paper states together with a law of the times means what
the paper says only with that law (each docstring below names it).
"""

from scorelab.losses.augmented import ScoreAugmented
from scorelab.losses.base import Batch, Loss, PredictionLoss
from scorelab.losses.conditions import ConditionDropout
from scorelab.losses.conservativity import Conservativity
from scorelab.losses.denoising import DenoisingScoreMatching
from scorelab.losses.fokker_planck import FokkerPlanck
from scorelab.losses.implicit import ImplicitScoreMatching
from scorelab.losses.interpolant import InterpolantMatching
from scorelab.losses.joint import Joint
from scorelab.losses.multiplicative import (
    MultiplicativeDenoisingScoreMatching,
    MultiplicativeExplicitScoreMatching,
    NonNegativeScoreMatching,
)
from scorelab.losses.regularised import Regularised, Regulariser
from scorelab.losses.self_conditioned import SelfConditioned
from scorelab.losses.times import (
    ArcsineTimes,
    KarrasTimes,
    LogitNormalTimes,
    LogNormalTimes,
    Times,
    UniformLogSNRTimes,
    UniformTimes,
)
from scorelab.losses.transforms import Brightness, Cutout, Flip, LinearTransform, Rotation, Translation
from scorelab.losses.weightings import (
    EDMWeighting,
    FlowWeighting,
    LikelihoodWeighting,
    MinSNR,
    SigmoidWeighting,
    SNRWeighting,
    TruncatedSNR,
    VarianceWeighting,
    VWeighting,
    Weighting,
    X0Weighting,
)

__all__ = [
    "ArcsineTimes",
    "Batch",
    "Brightness",
    "ConditionDropout",
    "Conservativity",
    "Cutout",
    "DenoisingScoreMatching",
    "EDMWeighting",
    "Flip",
    "FlowWeighting",
    "FokkerPlanck",
    "ImplicitScoreMatching",
    "InterpolantMatching",
    "Joint",
    "KarrasTimes",
    "LikelihoodWeighting",
    "LinearTransform",
    "LogNormalTimes",
    "LogitNormalTimes",
    "Loss",
    "MinSNR",
    "MultiplicativeDenoisingScoreMatching",
    "MultiplicativeExplicitScoreMatching",
    "NonNegativeScoreMatching",
    "PredictionLoss",
    "Regularised",
    "Regulariser",
    "Rotation",
    "SNRWeighting",
    "ScoreAugmented",
    "SelfConditioned",
    "SigmoidWeighting",
    "Times",
    "Translation",
    "TruncatedSNR",
    "UniformLogSNRTimes",
    "UniformTimes",
    "VWeighting",
    "VarianceWeighting",
    "Weighting",
    "X0Weighting",
]
