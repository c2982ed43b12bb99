"""Solvers: how to come back from noise to data."""

from scorelab.solvers import epsilons
from scorelab.solvers.base import Integrator, Nodes, Population, Row, Solver
from scorelab.solvers.brownian import Brownian
from scorelab.solvers.corrector import PredictorCorrector
from scorelab.solvers.euler import EulerMaruyama, Milstein, ProbabilityFlowEuler
from scorelab.solvers.exponential import DDIM, DPMSolverPP, Multistep
from scorelab.solvers.external import Diffrax
from scorelab.solvers.geodesic import GeodesicODE
from scorelab.solvers.interpolant import InterpolantODE, InterpolantSDE
from scorelab.solvers.joint import Hold, Joint
from scorelab.solvers.kept_noise import KeptNoise
from scorelab.solvers.multiplicative import MultiplicativeAnnealed
from scorelab.solvers.renoise import Renoise
from scorelab.solvers.repaint import RePaint
from scorelab.solvers.self_conditioned import SelfConditioned
from scorelab.solvers.straight import DEIS, Heun
from scorelab.solvers.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "Brownian",
    "DPMSolverPP",
    "Diffrax",
    "EulerMaruyama",
    "GeodesicODE",
    "Heun",
    "Hold",
    "Integrator",
    "InterpolantODE",
    "InterpolantSDE",
    "Joint",
    "KeptNoise",
    "Milstein",
    "MultiplicativeAnnealed",
    "Multistep",
    "Nodes",
    "Population",
    "PredictorCorrector",
    "ProbabilityFlowEuler",
    "RePaint",
    "Renoise",
    "Row",
    "SelfConditioned",
    "Solver",
    "UniPC",
    "epsilons",
]
