"""Models: what a network or an exact law believes about the clean data."""

from scorelab.models import nets
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.models.exact import ExactModel, FunctionModel
from scorelab.models.guidance import Autoguidance, ClassifierFreeGuidance, Conditioned

__all__ = [
    "Autoguidance", "BoundDenoiser", "ClassifierFreeGuidance", "Conditioned", "Denoiser", "ExactModel", "FunctionModel",
    "nets",
]
