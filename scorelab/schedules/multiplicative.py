"""The clock of geometric Brownian motion, with constant or time-varying volatility."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Coefficient, Time
from scorelab.schedules.base import GaussianSchedule, floating, namespace, on_host, require_time_range
from scorelab.validation import require_number, require_positive


@dataclass(frozen=True, kw_only=True)
class GBMClock(GaussianSchedule):
    r"""The clock of geometric Brownian motion: :math:`\alpha_t = 1`, :math:`\sigma_t^2 = \int_0^t \mathrm{volatility}(s)^2 ds`.

    Attributes:
        volatility: a positive number, or a hashable function of time written with ``jax.numpy`` (such as
            :class:`Ramp`), positive on ``(0, t_max]``; its square is integrated by Gauss-Legendre quadrature.
    """

    volatility: float | Callable[[Array], Array] = 0.8
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self):
        require_time_range(self)
        if not callable(self.volatility):
            require_positive(self, volatility=self.volatility)
            return
        try:
            hash(self.volatility)
        except TypeError:
            message = f"GBMClock.volatility = {self.volatility!r}: expected a hashable function, such as Ramp or a frozen dataclass"
            raise ValueError(message) from None
        values = on_host(self.volatility, np.linspace(0.0, self.t_max, 33)[1:])
        if not np.all(np.isfinite(values) & (values > 0)):
            worst = float(np.min(values))
            raise ValueError(f"GBMClock.volatility = {self.volatility!r} is {worst:.4g} somewhere: expected numbers above 0")

    @property
    def t_end(self):
        """None where the volatility is a number; a function is looked at up to ``t_max``."""
        return self.t_max if callable(self.volatility) else math.inf

    def variance(self, t: Time) -> Coefficient:
        r""":math:`v(t) = \sigma_t^2`."""
        volatility = self.volatility
        if callable(volatility):
            return integral(lambda s: volatility(s) ** 2, t)
        return volatility**2 * floating(t)

    def log_alpha(self, t: Time) -> Coefficient:
        return namespace(t).zeros_like(t)

    def log_snr(self, t: Time) -> Coefficient:
        with np.errstate(divide="ignore"):
            return -namespace(t).log(self.variance(t))

    def time(self, log_snr: Time) -> Coefficient:
        """See the class; with a function, by bisection on ``[0, t_max]``."""
        variance = namespace(log_snr).exp(-log_snr)
        return bisect(self.variance, variance, self.t_max) if callable(self.volatility) else variance / self.volatility**2

    def sigma(self, t: Time) -> Coefficient:
        return namespace(t).sqrt(self.variance(t))

    def diffusion_rate(self, t: Time) -> Coefficient:
        """The squared volatility."""
        if callable(self.volatility):
            return on_host(self.volatility, t) ** 2 * namespace(t).ones_like(t)
        return self.volatility**2 * namespace(t).ones_like(t)


@dataclass(frozen=True)
class Ramp:
    """A coefficient that is linear in time, ``start + (end - start) t``: for ``GBMClock`` and its drift."""

    start: float
    end: float

    def __post_init__(self):
        require_number(self, -1e6, 1e6, start=self.start, end=self.end)

    def __call__(self, t: Time) -> Coefficient:
        """The value at ``t``."""
        return self.start + (self.end - self.start) * floating(t)


def integral(fn, t: Time) -> Coefficient:
    r""":math:`\int_0^t` of an elementwise JAX function, by 32 Gauss-Legendre nodes: exact to rounding where it is smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(32)

    def quadrature(t):
        x, w = jnp.asarray(0.5 * (1 + nodes), t.dtype), jnp.asarray(0.5 * weights, t.dtype)
        return t * jnp.sum(w * fn(x * t[..., None]), axis=-1)

    return on_host(quadrature, t)


def bisect(fn, value: Coefficient, high: float) -> Coefficient:
    """Where the increasing ``fn`` on ``[0, high]`` has ``value``; the nearer end where it has it nowhere."""
    xp = namespace(value)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        above = fn(middle) > value
        return xp.where(above, low, middle), xp.where(above, middle, high)

    ends = xp.zeros_like(value), xp.full_like(value, high)
    if xp is jnp:
        return jax.lax.fori_loop(0, 64, halve, ends)[1] * (value > 0)
    for step in range(80):
        ends = halve(step, ends)
    return ends[1] * (value > 0)
