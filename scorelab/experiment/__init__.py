"""Experiments: data, a learner, and the stages of a run; what config files build, and Python too."""

# Config files name what an experiment is made of through this module.
from scorelab.experiment.base import Experiment, Run, Stage
from scorelab.experiment.bits import BitsPerDim
from scorelab.experiment.checks import check
from scorelab.experiment.conservativity import Conservativity
from scorelab.experiment.console import Console
from scorelab.experiment.data import DataSpec, measured_std
from scorelab.experiment.diagnose import ByNoiseLevel, Diagnose, Diagnostic, ExplainedVariance, Finding
from scorelab.experiment.evaluate import (
    ConditionError,
    Evaluate,
    Evaluation,
    FieldEvaluation,
    ImageEvaluation,
    PointEvaluation,
    ReferenceEvaluation,
    StatisticEvaluation,
)
from scorelab.experiment.faults import Signals
from scorelab.experiment.fokker_planck import FokkerPlanck, Gap
from scorelab.experiment.inpaint import Inpainting
from scorelab.experiment.intrinsic_dimension import IntrinsicDimension
from scorelab.experiment.memorisation import Memorisation
from scorelab.experiment.pairs import Pairs
from scorelab.experiment.rectify import Rectify
from scorelab.experiment.report import Report
from scorelab.experiment.sample import Drawn, Sample
from scorelab.experiment.starts import DataStart, DataTeleport, FromData
from scorelab.experiment.straightness import Straightness
from scorelab.experiment.train import Train, trained_state
from scorelab.experiment.workdir import Workdir

__all__ = [
    "BitsPerDim",
    "ByNoiseLevel",
    "ConditionError",
    "Conservativity",
    "Console",
    "DataSpec",
    "DataStart",
    "DataTeleport",
    "Diagnose",
    "Diagnostic",
    "Drawn",
    "Evaluate",
    "Evaluation",
    "Experiment",
    "ExplainedVariance",
    "FieldEvaluation",
    "Finding",
    "FokkerPlanck",
    "FromData",
    "Gap",
    "ImageEvaluation",
    "Inpainting",
    "IntrinsicDimension",
    "Memorisation",
    "Pairs",
    "PointEvaluation",
    "Rectify",
    "ReferenceEvaluation",
    "Report",
    "Run",
    "Sample",
    "Signals",
    "Stage",
    "StatisticEvaluation",
    "Straightness",
    "Train",
    "Workdir",
    "check",
    "measured_std",
    "trained_state",
]
