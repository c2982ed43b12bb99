"""Noise schedules: signal and noise of the linear-Gaussian kernel as functions of time."""

from scorelab.schedules.base import GaussianSchedule, Schedule, derivative, namespace
from scorelab.schedules.multiplicative import GBMClock, Ramp
from scorelab.schedules.rectified_flow import RectifiedFlow
from scorelab.schedules.variance_exploding import EDM, VE
from scorelab.schedules.variance_preserving import VPCosine, VPLinear

__all__ = [
    "EDM",
    "VE",
    "GBMClock",
    "GaussianSchedule",
    "Ramp",
    "RectifiedFlow",
    "Schedule",
    "VPCosine",
    "VPLinear",
    "derivative",
    "namespace",
]
