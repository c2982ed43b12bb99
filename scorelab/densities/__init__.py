"""Exact laws: sampled, evaluated and noised in closed form; and laws known up to a constant."""

from scorelab.densities.base import Density, Unnormalised
from scorelab.densities.empirical import Empirical, IsotropicMixture
from scorelab.densities.field import ConditionedField, GaussianField
from scorelab.densities.gaussian import Gaussian
from scorelab.densities.lennard_jones import LennardJones
from scorelab.densities.lognormal import LogNormalMixture
from scorelab.densities.manifolds import (
    ProductMixture,
    RotationMixture,
    SpaceLaw,
    Uniform,
    VonMisesFisherMixture,
    WrappedNormalMixture,
    on_product,
    on_rotations,
    on_sphere,
    on_torus,
)
from scorelab.densities.mixture import GaussianMixture, Mixture
from scorelab.densities.spectra import Matern, PowerLaw, Spectrum, SquaredExponential
from scorelab.densities.store import load_gaussian, save_gaussian
from scorelab.densities.toy import (
    Boxes,
    Rings,
    checkerboard,
    concentrations,
    eight_gaussians,
    gaussian_process,
    oscillation,
    pinwheel,
    regimes,
    swiss_roll,
    synaptic_weights,
)

__all__ = [
    "Boxes",
    "ConditionedField",
    "Density",
    "Empirical",
    "Gaussian",
    "GaussianField",
    "GaussianMixture",
    "IsotropicMixture",
    "LennardJones",
    "LogNormalMixture",
    "Matern",
    "Mixture",
    "PowerLaw",
    "ProductMixture",
    "Rings",
    "RotationMixture",
    "SpaceLaw",
    "Spectrum",
    "SquaredExponential",
    "Uniform",
    "Unnormalised",
    "VonMisesFisherMixture",
    "WrappedNormalMixture",
    "checkerboard",
    "concentrations",
    "eight_gaussians",
    "gaussian_process",
    "load_gaussian",
    "on_product",
    "on_rotations",
    "on_sphere",
    "on_torus",
    "oscillation",
    "pinwheel",
    "regimes",
    "save_gaussian",
    "swiss_roll",
    "synaptic_weights",
]
