r"""Paths between the two ends of a stochastic interpolant: :math:`\alpha_t` and :math:`\beta_t` in

.. math:: y_t = \alpha_t x + \beta_t w + \gamma_t z,

data ``x`` at time 0 and the base ``w`` at time 1. The methods take host numbers (float64) and JAX arrays alike.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Coefficient, Time, is_traced, per_example
from scorelab.processes.gammas import Gamma, SineSquared
from scorelab.schedules import namespace
from scorelab.schedules.base import derivative, floating

__all__ = ["Coefficients", "EncodingDecoding", "Linear", "Mirror", "Path", "Trigonometric"]

# What rounding may leave of a path at its ends.
_END = 1e-12


class Coefficients(NamedTuple):
    r"""Everything an interpolant is at a time.

    Attributes:
        alpha: of the data.
        beta: of the base.
        d_alpha: :math:`\dot\alpha`.
        d_beta: :math:`\dot\beta`.
        gamma: of the latent noise.
        rate: :math:`\gamma\dot\gamma`.
        slope: :math:`\dot\gamma`, infinite at the ends of a steep gamma.
    """

    alpha: Array
    beta: Array
    d_alpha: Array
    d_beta: Array
    gamma: Array
    rate: Array
    slope: Array

    def like(self, y: Array) -> Coefficients:
        """With trailing axes, so that they broadcast against points ``(batch, *event)``."""
        return Coefficients(*(per_example(jnp.asarray(value, y.dtype), y) for value in self))


@dataclass(frozen=True, kw_only=True)
class Path(abc.ABC):
    r"""The base of all paths; a new one needs :meth:`alpha` and :meth:`beta`. Derivatives are automatic where it has no others.

    Attributes:
        two_sided: whether the second end is another law than the data.
    """

    two_sided: ClassVar[bool] = True

    @abc.abstractmethod
    def alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        r""":math:`\alpha_t`; ``gamma`` is there for paths that depend on the latent noise."""

    @abc.abstractmethod
    def beta(self, t: Time, gamma: Gamma) -> Coefficient:
        r""":math:`\beta_t`."""

    def d_alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        r""":math:`\dot\alpha_t`."""
        return derivative(lambda t: self.alpha(t, gamma), t)

    def d_beta(self, t: Time, gamma: Gamma) -> Coefficient:
        r""":math:`\dot\beta_t`."""
        return derivative(lambda t: self.beta(t, gamma), t)

    def coefficients(self, t: Time, gamma: Gamma) -> Coefficients:
        """Of path and gamma at ``t``."""
        alpha, beta, d_alpha, d_beta = (f(t, gamma) for f in (self.alpha, self.beta, self.d_alpha, self.d_beta))
        return Coefficients(alpha, beta, d_alpha, d_beta, gamma.gamma(t), gamma.rate(t), gamma.slope(t))

    def ends(self, c: Coefficients, m: Array, v: Array, t: Array) -> tuple[Array, Array]:
        r"""``D`` and ``W`` from :math:`m = \alpha D + \beta W` and :math:`v = \dot\alpha D + \dot\beta W`.

        .. math:: D = (\dot\beta m - \beta v)/\Delta,\qquad W = (\alpha v - \dot\alpha m)/\Delta,\qquad
                  \Delta = \alpha\dot\beta - \beta\dot\alpha .
        """
        det = c.alpha * c.d_beta - c.beta * c.d_alpha
        denoised = (c.d_beta * m - jnp.where(c.beta == 0, 0.0, c.beta * v)) / det
        base = (jnp.where(c.alpha == 0, 0.0, c.alpha * v) - c.d_alpha * m) / det
        return denoised, base

    def check(self, gamma: Gamma) -> None:
        """Raise ``ValueError`` unless the path leads from the data to the base, under this gamma, with finite rates between."""
        name, wanted = type(self).__name__, ((1.0, 0.0), (0.0, 1.0)) if self.two_sided else ((1.0, 0.0), (1.0, 0.0))
        for t, (alpha, beta) in zip((0.0, 1.0), wanted, strict=True):
            found = tuple(float(f(np.float64(t), gamma)) for f in (self.alpha, self.beta))
            if not max(abs(found[0] - alpha), abs(found[1] - beta)) <= _END:
                raise ValueError(f"{name} has (alpha, beta) = {found} at t = {t:g}: expected ({alpha:g}, {beta:g})")
            if not abs(float(gamma.squared(np.float64(t)))) <= _END:
                raise ValueError(
                    f"{type(gamma).__name__} has gamma^2 = {float(gamma.squared(np.float64(t))):.3g} at t = {t:g}: expected 0"
                )
        with np.errstate(all="ignore"):
            inside = self.coefficients(np.linspace(0.01, 0.99, 99), gamma)
        if not all(np.all(np.isfinite(column)) for column in inside):
            raise ValueError(f"{name} with {gamma!r} has a coefficient that is not finite inside (0, 1): expected another gamma")


@dataclass(frozen=True, kw_only=True)
class Linear(Path):
    r"""Straight lines, :math:`\alpha_t = 1 - t`, :math:`\beta_t = t`."""

    def alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        return 1 - floating(t)

    def beta(self, t: Time, gamma: Gamma) -> Coefficient:
        return floating(t)

    def d_alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        return -namespace(t).ones_like(floating(t))

    def d_beta(self, t: Time, gamma: Gamma) -> Coefficient:
        return namespace(t).ones_like(floating(t))


@dataclass(frozen=True, kw_only=True)
class Trigonometric(Path):
    r""":math:`\alpha = \rho\cos(\pi t/2)`, :math:`\beta = \rho\sin(\pi t/2)` with :math:`\rho^2 = 1-\gamma^2`.

    :math:`\alpha^2+\beta^2+\gamma^2 = 1` at all times. Refused with a gamma that reaches 1, where :math:`\dot\rho` is infinite.
    """

    def alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        return self._rho(t, gamma) * self._cosine(t)

    def beta(self, t: Time, gamma: Gamma) -> Coefficient:
        return self._rho(t, gamma) * self._sine(t)

    def d_alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        rho = self._rho(t, gamma)
        return -gamma.rate(t) / rho * self._cosine(t) - math.pi / 2 * rho * self._sine(t)

    def d_beta(self, t: Time, gamma: Gamma) -> Coefficient:
        rho = self._rho(t, gamma)
        return -gamma.rate(t) / rho * self._sine(t) + math.pi / 2 * rho * self._cosine(t)

    def check(self, gamma: Gamma) -> None:
        most = float(np.max(gamma.squared(np.linspace(0.0, 1.0, 1001))))
        if not most < 1 - 1e-6:
            raise ValueError(
                f"Trigonometric with {gamma!r}, whose square reaches {most:.4g}: expected a gamma below 1 at all times"
            )
        super().check(gamma)

    def _rho(self, t: Time, gamma: Gamma) -> Coefficient:
        return namespace(t).sqrt(1 - gamma.squared(t))

    def _sine(self, t: Time) -> Coefficient:
        return namespace(t).sin(math.pi / 2 * floating(t))

    def _cosine(self, t: Time) -> Coefficient:
        # The cosine of nearly a right angle, from its small complement.
        return namespace(t).sin(math.pi / 2 * (1 - floating(t)))


@dataclass(frozen=True, kw_only=True)
class EncodingDecoding(Path):
    r""":math:`\alpha = \cos^2(\pi t)` in the first half and 0 in the second; :math:`\beta` the other way round.

    At :math:`t = 1/2` there is the latent noise alone, so it needs a gamma that is 1 there: :class:`SineSquared`. Before
    that time nothing is known of the base behind a point, and after it nothing of the data.
    """

    def alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        return self._half(t, first=True)

    def beta(self, t: Time, gamma: Gamma) -> Coefficient:
        return self._half(t, first=False)

    def d_alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        return self._rate(t, first=True)

    def d_beta(self, t: Time, gamma: Gamma) -> Coefficient:
        return self._rate(t, first=False)

    def ends(self, c: Coefficients, m: Array, v: Array, t: Array) -> tuple[Array, Array]:
        """The end that is in the point; ValueError for the denoised point from ``t = 1/2`` on, NaN there inside ``jit``."""
        if not is_traced(t) and np.any(np.asarray(t) >= 0.5):
            raise ValueError(
                f"denoised of an EncodingDecoding interpolant at t = {float(np.max(np.asarray(t))):.4g}: expected t below 1/2, "
                "since nothing of the data is in the point from there on"
            )
        known = lambda weight: jnp.where(weight > 0, m / jnp.where(weight > 0, weight, 1.0), jnp.nan)
        return known(c.alpha), known(c.beta)

    def check(self, gamma: Gamma) -> None:
        if not isinstance(gamma, SineSquared) and not abs(float(gamma.squared(np.float64(0.5))) - 1) <= _END:
            raise ValueError(f"EncodingDecoding with {gamma!r}: expected a gamma that is 1 at t = 1/2, such as SineSquared()")
        super().check(gamma)

    @staticmethod
    def _half(t: Time, first: bool) -> Coefficient:
        t, xp = floating(t), namespace(t)
        mine = t < 0.5 if first else t > 0.5
        return xp.where(mine, xp.cos(math.pi * xp.minimum(t, 1 - t)) ** 2, 0.0)

    @staticmethod
    def _rate(t: Time, first: bool) -> Coefficient:
        t, xp = floating(t), namespace(t)
        wave = math.pi * xp.sin(2 * math.pi * xp.minimum(t, 1 - t))
        return xp.where(t < 0.5, -wave, 0.0) if first else xp.where(t > 0.5, wave, 0.0)


@dataclass(frozen=True, kw_only=True)
class Mirror(Path):
    r""":math:`y_t = x + \gamma_t z`: the data at both ends, with noise between them.

    The flow returns to the point that it came from. The SDE draws another point of the data from around it.
    """

    two_sided = False

    def alpha(self, t: Time, gamma: Gamma) -> Coefficient:
        return namespace(t).ones_like(floating(t))

    def beta(self, t: Time, gamma: Gamma) -> Coefficient:
        return namespace(t).zeros_like(floating(t))

    d_alpha = d_beta = beta

    def ends(self, c: Coefficients, m: Array, v: Array, t: Array) -> tuple[Array, Array]:
        return m, m
