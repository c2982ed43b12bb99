"""Feynman-Kac sequential Monte Carlo: steering (arXiv 2501.06848) and correctors (arXiv 2503.02819)."""

from scorelab.fk import rewards
from scorelab.fk.composition import Composition, Evaluation, Tilt, signal_fraction
from scorelab.fk.correction import Correction
from scorelab.fk.correctors import Corrected, Corrector, TiltCorrector, annealed, geometric, product, tilted, weighted
from scorelab.fk.flows import ComposedFlow, FlowComposition
from scorelab.fk.host import Callback, sample_between
from scorelab.fk.intermediate import Blurred, Denoised, Intermediate, Learned, Posterior
from scorelab.fk.learned import LearnedReward, RewardLearner
from scorelab.fk.policies import Always, BirthDeath, EssBelow, Every, Islands, Never, Policy, ResampleResult, When
from scorelab.fk.potentials import (
    Current,
    Difference,
    FinalOnly,
    Max,
    Observation,
    ParticleRow,
    Potential,
    Steering,
    Sum,
    SumPotential,
    Zero,
)
from scorelab.fk.resampling import Resampler, killing, multinomial, residual, ssp, stratified, systematic
from scorelab.fk.smc import FeynmanKac, WeightsWarning
from scorelab.fk.weights import ess, log_mean_exp, normalised, one_of_each, weighted_mean

__all__ = [
    "Always",
    "BirthDeath",
    "Blurred",
    "Callback",
    "ComposedFlow",
    "Composition",
    "Corrected",
    "Correction",
    "Corrector",
    "Current",
    "Denoised",
    "Difference",
    "EssBelow",
    "Evaluation",
    "Every",
    "FeynmanKac",
    "FinalOnly",
    "FlowComposition",
    "Intermediate",
    "Islands",
    "Learned",
    "LearnedReward",
    "Max",
    "Never",
    "Observation",
    "ParticleRow",
    "Policy",
    "Posterior",
    "Potential",
    "ResampleResult",
    "Resampler",
    "RewardLearner",
    "Steering",
    "Sum",
    "SumPotential",
    "Tilt",
    "TiltCorrector",
    "WeightsWarning",
    "When",
    "Zero",
    "annealed",
    "ess",
    "geometric",
    "killing",
    "log_mean_exp",
    "multinomial",
    "normalised",
    "one_of_each",
    "product",
    "residual",
    "rewards",
    "sample_between",
    "signal_fraction",
    "ssp",
    "stratified",
    "systematic",
    "tilted",
    "weighted",
    "weighted_mean",
]
