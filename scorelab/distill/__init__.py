"""Distillation: one-step and few-step students of diffusion models, and rewards for them."""

from scorelab.distill.base import Distillation
from scorelab.distill.consistency import ConsistencyDistillation, ConsistencyTraining
from scorelab.distill.divergences import (
    Alpha,
    Divergence,
    ForwardKL,
    Jeffreys,
    JensenShannon,
    LeCam,
    Neyman,
    Pearson,
    ReverseKL,
    SkewedJensenShannon,
    SoftenedReverseKL,
    SquaredHellinger,
)
from scorelab.distill.fake import FakeScore, KnownScore, LearnedScore, NoScore
from scorelab.distill.fdistill import FDistill
from scorelab.distill.generator import BoundFewStep, FewStep, Student
from scorelab.distill.normalisation import Bins, Normalisation
from scorelab.distill.pairs import WithPairs, rectified_pairs, teacher_pairs
from scorelab.distill.progressive import ProgressiveDistillation
from scorelab.distill.ratio import Discriminator, ExactRatio, Ratio, TeacherFeatures, UnitRatio
from scorelab.distill.reflow import Reflow, straightness
from scorelab.distill.sid import SiD
from scorelab.distill.state import DistillState
from scorelab.distill.statistics import RunningStatistics
from scorelab.distill.teachers import denoiser_of
from scorelab.distill.weights import DifferenceWeight, DMDWeight, noise_weight, score_weight, unit_weight

__all__ = [
    "Alpha",
    "Bins",
    "BoundFewStep",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "DMDWeight",
    "DifferenceWeight",
    "Discriminator",
    "DistillState",
    "Distillation",
    "Divergence",
    "ExactRatio",
    "FDistill",
    "FakeScore",
    "FewStep",
    "ForwardKL",
    "Jeffreys",
    "JensenShannon",
    "KnownScore",
    "LeCam",
    "LearnedScore",
    "Neyman",
    "NoScore",
    "Normalisation",
    "Pearson",
    "ProgressiveDistillation",
    "Ratio",
    "Reflow",
    "ReverseKL",
    "RunningStatistics",
    "SiD",
    "SkewedJensenShannon",
    "SoftenedReverseKL",
    "SquaredHellinger",
    "Student",
    "TeacherFeatures",
    "UnitRatio",
    "WithPairs",
    "denoiser_of",
    "noise_weight",
    "rectified_pairs",
    "score_weight",
    "straightness",
    "teacher_pairs",
    "unit_weight",
]
