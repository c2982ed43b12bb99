"""Where sampling begins: the law of ``y`` at the first grid time."""

from scorelab.processes.base import Start
from scorelab.processes.joint import JointStart as Joint
from scorelab.starts.bases import TemperedBase
from scorelab.starts.given import Fixed, NoisedPoints, Signed
from scorelab.starts.laws import ClassAverage, GaussianMoments, LogNormal, Noised, Prior
from scorelab.starts.teleport import Teleport, TeleportWarning
from scorelab.starts.tempered import Tempered, TemperedWarning

__all__ = [
    "ClassAverage",
    "Fixed",
    "GaussianMoments",
    "Joint",
    "LogNormal",
    "Noised",
    "NoisedPoints",
    "Prior",
    "Signed",
    "Start",
    "Teleport",
    "TeleportWarning",
    "Tempered",
    "TemperedBase",
    "TemperedWarning",
]
