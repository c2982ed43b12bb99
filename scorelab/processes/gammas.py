r"""The latent noise of a stochastic interpolant: :math:`\gamma_t` in :math:`y_t = \alpha_t x + \beta_t w + \gamma_t z`.

A gamma is stated as its square and the half derivative of that, :math:`\gamma\dot\gamma`: both are finite at the ends where
:math:`\dot\gamma` is not. Times are those of the library, data at 0 and the base at 1. The methods take host numbers (float64) and
JAX arrays alike.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.schedules import namespace
from scorelab.schedules.base import derivative, floating
from scorelab.validation import require_positive

__all__ = ["Brownian", "Gamma", "Quadratic", "SineSquared", "Smooth", "Zero"]


@dataclass(frozen=True, kw_only=True)
class Gamma(abc.ABC):
    r"""The base of all gammas; a new one needs :meth:`squared`, zero at both ends. Derivatives are automatic unless it has them.

    Attributes:
        steep: whether :math:`\dot\gamma` is infinite at the ends.
        silent: whether it is zero at all times.
    """

    steep: ClassVar[bool] = True
    silent: ClassVar[bool] = False

    @abc.abstractmethod
    def squared(self, t: Time) -> Coefficient:
        r""":math:`\gamma_t^2`."""

    def rate(self, t: Time) -> Coefficient:
        r""":math:`\gamma_t\dot\gamma_t = \tfrac12\,d(\gamma_t^2)/dt`."""
        return 0.5 * derivative(self.squared, t)

    def gamma(self, t: Time) -> Coefficient:
        r""":math:`\gamma_t`."""
        return namespace(t).sqrt(self.squared(t))

    def slope(self, t: Time) -> Coefficient:
        r""":math:`\dot\gamma_t`; infinite at the ends of a steep gamma."""
        with np.errstate(divide="ignore"):
            return self.rate(t) / self.gamma(t)


@dataclass(frozen=True, kw_only=True)
class Brownian(Gamma):
    r""":math:`\gamma_t = k\sqrt{t(1-t)}`: a Brownian bridge between the ends, the family of the Schroedinger bridge.

    Attributes:
        scale: ``k``, the deviation of the reference process per root of time.
    """

    scale: float = 1.0

    def __post_init__(self):
        require_positive(self, scale=self.scale)

    def squared(self, t: Time) -> Coefficient:
        t = floating(t)
        return self.scale**2 * t * (1 - t)

    def rate(self, t: Time) -> Coefficient:
        return self.scale**2 * (0.5 - floating(t))


class Smooth(Gamma):
    """A gamma that is stated itself, with a derivative that is finite everywhere; a new one needs both."""

    steep = False

    @abc.abstractmethod
    def gamma(self, t: Time) -> Coefficient:
        r""":math:`\gamma_t`."""

    @abc.abstractmethod
    def slope(self, t: Time) -> Coefficient:
        r""":math:`\dot\gamma_t`."""

    def squared(self, t: Time) -> Coefficient:
        return self.gamma(t) ** 2

    def rate(self, t: Time) -> Coefficient:
        return self.gamma(t) * self.slope(t)


@dataclass(frozen=True, kw_only=True)
class Quadratic(Smooth):
    r""":math:`\gamma_t = t(1-t)`."""

    def gamma(self, t: Time) -> Coefficient:
        t = floating(t)
        return t * (1 - t)

    def slope(self, t: Time) -> Coefficient:
        return 1 - 2 * floating(t)


@dataclass(frozen=True, kw_only=True)
class SineSquared(Smooth):
    r""":math:`\gamma_t = \sin^2(\pi t)`."""

    def gamma(self, t: Time) -> Coefficient:
        # From the nearer end: the sine of nearly pi has no digits of its own.
        t, xp = floating(t), namespace(t)
        return xp.sin(math.pi * xp.minimum(t, 1 - t)) ** 2

    def slope(self, t: Time) -> Coefficient:
        t, xp = floating(t), namespace(t)
        return xp.where(t < 0.5, 1.0, -1.0) * math.pi * xp.sin(2 * math.pi * xp.minimum(t, 1 - t))


@dataclass(frozen=True, kw_only=True)
class Zero(Gamma):
    """No latent noise: points move on the path between the ends."""

    steep = False
    silent = True

    def squared(self, t: Time) -> Coefficient:
        return namespace(t).zeros_like(floating(t))

    rate = gamma = slope = squared
