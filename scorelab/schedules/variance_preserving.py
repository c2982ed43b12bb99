"""Variance-preserving schedules: alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.schedules.base import GaussianSchedule, floating, namespace, require_time_range
from scorelab.validation import require_positive


@dataclass(frozen=True, kw_only=True)
class VPLinear(GaussianSchedule):
    r"""Variance preserving with a linear rate: :math:`\log\alpha_t = -\tfrac12\int_0^t \beta`, :math:`\alpha^2+\sigma^2=1`.

    :math:`\beta_t = \beta_{\min} + t(\beta_{\max}-\beta_{\min})`, ``t`` in [0, 1] (Song et al. 2021, eq. 32).
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        require_positive(self, beta_min=self.beta_min, beta_max=self.beta_max, t_max=self.t_max)
        require_time_range(self)

    @property
    def t_end(self):
        """One, where the linear rate ends, or a ``t_max`` beyond it."""
        return max(1.0, self.t_max)

    def log_alpha(self, t: Time) -> Coefficient:
        t = floating(t)
        return -0.25 * t * (2 * self.beta_min + t * (self.beta_max - self.beta_min))

    def log_snr(self, t: Time) -> Coefficient:
        # log(expm1(a)) for large a overflows in float32 beyond a = 88; the sum form does not.
        xp, a = namespace(t), -2 * self.log_alpha(t)
        with np.errstate(divide="ignore"):
            return -(a + xp.log(-xp.expm1(-a)))

    def time(self, log_snr: Time) -> Coefficient:
        xp = namespace(log_snr)
        # softplus(-l) = -2 log alpha = B; the positive root of a t^2 + b t = B in the cancellation-free form.
        integral = xp.logaddexp(0.0, -log_snr)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def sigma(self, t: Time) -> Coefficient:
        """See the class; every digit is kept down to ``t = 0``."""
        integral = -2 * self.log_alpha(t)
        if namespace(t) is np:
            return np.sqrt(-np.expm1(-integral))
        # XLA's float32 expm1 is off by 3e-7 around 0.02; the Taylor series of (1 - e^-b)/b is off by 1e-7.
        series = jnp.ones_like(integral)
        for n in range(15, 1, -1):  # exact to float64 for b <= 1/2
            series = 1 - integral / n * series
        large = integral > 0.5
        return jnp.sqrt(jnp.where(large, 1 - jnp.exp(-integral), integral * jnp.where(large, 1.0, series)))

    def drift_rate(self, t: Time) -> Coefficient:
        return -0.5 * (self.beta_min + floating(t) * (self.beta_max - self.beta_min))

    def diffusion_rate(self, t: Time) -> Coefficient:
        """For a variance-preserving process the rate is ``-2 f``, finite also at ``t = 0``."""
        return -2 * self.drift_rate(t)


@dataclass(frozen=True, kw_only=True)
class VPCosine(GaussianSchedule):
    r"""Variance preserving on the circle: :math:`\alpha_t = \cos(\pi t/2)`, :math:`\sigma_t = \sin(\pi t/2)`.

    ``t_max`` stays below 1, where alpha is zero (Nichol & Dhariwal 2021; Hoogeboom et al. 2023).
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self):
        require_time_range(self)
        if self.t_max >= 1:
            raise ValueError(f"VPCosine.t_max = {self.t_max!r}: expected a number below 1, where alpha is zero")

    @property
    def t_end(self):
        """The last number below one, where alpha is zero."""
        return math.nextafter(1.0, 0.0)

    def alpha(self, t: Time) -> Coefficient:
        """See the class; the sine of the complement is accurate where the cosine cancels."""
        xp = namespace(t)
        return xp.sin(0.5 * math.pi * (1 - t))

    def sigma(self, t: Time) -> Coefficient:
        return namespace(t).sin(0.5 * math.pi * t)

    def log_alpha(self, t: Time) -> Coefficient:
        return namespace(t).log(self.alpha(t))

    def log_snr(self, t: Time) -> Coefficient:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def time(self, log_snr: Time) -> Coefficient:
        xp = namespace(log_snr)
        with np.errstate(over="ignore"):
            return (2 / math.pi) * xp.arctan(xp.exp(-log_snr / 2))

    def drift_rate(self, t: Time) -> Coefficient:
        return -0.5 * math.pi * self.sigma(t) / self.alpha(t)

    def diffusion_rate(self, t: Time) -> Coefficient:
        """For a variance-preserving process the rate is ``-2 f``, finite also at ``t = 0``."""
        return -2 * self.drift_rate(t)
