r"""How much noise a model is sampled with, :math:`\epsilon_t \ge 0`. It is chosen at sampling; no marginal depends on it.

An interpolant is sampled with them, and :func:`scorelab.likelihood_bound` takes them for linear-Gaussian processes too.

A solver needs :math:`\epsilon` and :math:`\epsilon/\gamma`, since :math:`\epsilon\,\nabla\log p = -(\epsilon/\gamma)\,\eta`.
Both are host numbers. They reach the steps of a solver in its table alone, so the numbers of a choice are leaves: a sweep over them
compiles one program.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorelab.processes.gammas import Brownian
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import partly_static
from scorelab.validation import require_number, require_positive, require_spec

__all__ = ["Capped", "Constant", "Epsilon", "Proportional", "Reverse", "SchroedingerBridge"]


@dataclass(frozen=True)
class Epsilon(abc.ABC):
    """The base of all choices; a new one needs :meth:`values`."""

    @abc.abstractmethod
    def values(self, process: Any, t: np.ndarray) -> np.ndarray:
        r""":math:`\epsilon_t` at host times, not negative."""

    def checked(self, process: Any, t: np.ndarray) -> np.ndarray:
        """:meth:`values`, float64; ValueError for numbers that are negative, not finite, or not one for each time."""
        eps = np.asarray(self.values(process, t), np.float64)
        if eps.shape != np.shape(t) or not np.all(np.isfinite(eps)) or np.any(eps < 0):
            raise ValueError(f"{self!r} has the values {eps} at the times {t}: expected finite numbers, none below 0")
        return eps

    def over_gamma(self, process: StochasticInterpolant, t: np.ndarray) -> np.ndarray:
        r""":math:`\epsilon_t/\gamma_t`; infinite where only :math:`\gamma_t` is 0."""
        values, gamma = self.values(process, t), process.gamma.gamma(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(values == 0, 0.0, values / gamma)


@partly_static("kappa")
@dataclass(frozen=True)
class Proportional(Epsilon):
    r""":math:`\epsilon_t = \kappa\gamma_t^2`: as much noise as the interpolant has, so that the drift is finite at both ends.

    An explicit step ``h`` is stable for :math:`\kappa h < 1`, whatever the data are.

    Args:
        kappa: at least 0; 0 is the flow.
    """

    kappa: float = 16.0

    def __post_init__(self):
        require_number(self, 0.0, np.finfo(np.float32).max, kappa=self.kappa)

    def values(self, process, t):
        require_spec(self, StochasticInterpolant, process=process)
        return np.asarray(self.kappa * process.gamma.squared(t))

    def over_gamma(self, process, t):
        return np.asarray(self.kappa * process.gamma.gamma(t))


@partly_static("value")
@dataclass(frozen=True)
class Constant(Epsilon):
    r"""The same :math:`\epsilon` at all times but in the steps that touch an end, where the drift could not be told from ``eta``.

    Args:
        value: at least 0.
    """

    value: float

    def __post_init__(self):
        require_number(self, 0.0, np.finfo(np.float32).max, value=self.value)

    def values(self, process, t):
        return np.full(np.shape(t), float(self.value))


@dataclass(frozen=True)
class SchroedingerBridge(Epsilon):
    r""":math:`\epsilon = k^2/2` of a Brownian gamma of the scale ``k``: the noise of the SDE is :math:`k\,dw`.

    Of a Schroedinger bridge that is the bridge itself. A step that touches an end is one of the flow, as of :class:`Constant`.
    """

    def values(self, process, t):
        """TypeError under another process, ValueError under another gamma."""
        require_spec("epsilons.SchroedingerBridge()", StochasticInterpolant, process=process)
        if not isinstance(process.gamma, Brownian):
            raise ValueError(
                f"epsilons.SchroedingerBridge() under {process!r}: expected a Brownian gamma, which has the noise of a bridge"
            )
        return np.full(np.shape(t), process.gamma.scale**2 / 2)


@partly_static("kappa", "limit")
@dataclass(frozen=True)
class Capped(Proportional):
    r""":math:`\epsilon_t = \min(\epsilon_0, \kappa\gamma_t^2)`.

    Args:
        kappa: as in :class:`Proportional`.
        limit: :math:`\epsilon_0`, above 0.
    """

    limit: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, limit=self.limit)

    def values(self, process, t):
        return np.minimum(self.limit, super().values(process, t))

    def over_gamma(self, process, t):
        return np.minimum(super().over_gamma(process, t), Epsilon.over_gamma(self, process, t))


@partly_static("scale")
@dataclass(frozen=True)
class Reverse(Epsilon):
    r""":math:`\epsilon_t = c\,g_t^2/2` of a linear-Gaussian process: with :math:`c = 1` its reverse SDE.

    Args:
        scale: ``c``, at least 0; 0 is the flow.
    """

    scale: float = 1.0

    def __post_init__(self):
        require_number(self, 0.0, np.finfo(np.float32).max, scale=self.scale)

    def values(self, process, t):
        require_spec(self, LinearGaussian, process=process)
        return np.asarray(self.scale * process.latent_diffusion(t) ** 2 / 2)
