"""Models: what a network or an exact law believes about the clean data."""

from scorelab.models import nets
from scorelab.models.base import KnowsDensity, Model, Trainable, Wraps, ask
from scorelab.models.bounded import Bounded, Clipped, DynamicThreshold
from scorelab.models.bridge import ExactBridge, ExactInterpolantPrediction, Pieces
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.models.energy import BoundEnergy, Energy, EnergyPrediction
from scorelab.models.estimates import SeesEstimate, informed
from scorelab.models.exact import ExactModel, ExactPrediction
from scorelab.models.function import FunctionModel
from scorelab.models.geodesic import ExactGeodesic, ExactGeodesicPrediction
from scorelab.models.guidance import Autoguidance, ClassifierFreeGuidance, Conditioned, ScaleAt, conditioned
from scorelab.models.guided import Guided, GuidedPrediction, RewardGradient
from scorelab.models.host import HostFunction, TorchFunction
from scorelab.models.inpainted import Inpainted
from scorelab.models.interpolant import BoundInterpolantField, InterpolantField
from scorelab.models.known import Known, KnownPrediction
from scorelab.models.lora import Adapted, LoRA
from scorelab.models.measurement import LinearMeasurement, exact_posterior
from scorelab.models.posterior import DPS, SDA, MeasurementGuided, PiGDM, TweedieCovariance
from scorelab.models.product import Product

__all__ = [
    "DPS",
    "SDA",
    "Adapted",
    "Autoguidance",
    "BoundDenoiser",
    "BoundEnergy",
    "BoundInterpolantField",
    "Bounded",
    "ClassifierFreeGuidance",
    "Clipped",
    "Conditioned",
    "Denoiser",
    "DynamicThreshold",
    "Energy",
    "EnergyPrediction",
    "ExactBridge",
    "ExactGeodesic",
    "ExactGeodesicPrediction",
    "ExactInterpolantPrediction",
    "ExactModel",
    "ExactPrediction",
    "FunctionModel",
    "Guided",
    "GuidedPrediction",
    "HostFunction",
    "Inpainted",
    "InterpolantField",
    "Known",
    "KnownPrediction",
    "KnowsDensity",
    "LinearMeasurement",
    "LoRA",
    "MeasurementGuided",
    "Model",
    "PiGDM",
    "Pieces",
    "Product",
    "RewardGradient",
    "ScaleAt",
    "SeesEstimate",
    "TorchFunction",
    "Trainable",
    "TweedieCovariance",
    "Wraps",
    "ask",
    "conditioned",
    "exact_posterior",
    "informed",
    "nets",
]
