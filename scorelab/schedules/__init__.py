"""Noise schedules: signal and noise of the linear-Gaussian kernel as functions of time."""

from scorelab.schedules.base import GaussianSchedule, Schedule, derivative, namespace
from scorelab.schedules.discrete import Discrete
from scorelab.schedules.multiplicative import GBMClock, Ramp
from scorelab.schedules.rectified_flow import RectifiedFlow
from scorelab.schedules.variance_exploding import EDM, VE
from scorelab.schedules.variance_preserving import VPCosine, VPLinear
from scorelab.schedules.zero_terminal import ZeroTerminal

__all__ = [
    "EDM",
    "VE",
    "Discrete",
    "GBMClock",
    "GaussianSchedule",
    "Ramp",
    "RectifiedFlow",
    "Schedule",
    "VPCosine",
    "VPLinear",
    "ZeroTerminal",
    "derivative",
    "namespace",
]
