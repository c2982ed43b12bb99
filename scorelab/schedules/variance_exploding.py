"""Variance-exploding schedules: alpha = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.schedules.base import GaussianSchedule, floating, namespace, require_time_range
from scorelab.validation import require_positive


@dataclass(frozen=True, kw_only=True)
class VE(GaussianSchedule):
    r"""Variance exploding, geometric: :math:`\alpha_t = 1`, :math:`\sigma_t = \sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t`.

    Clean data is at ``t = -inf``: every grid ends there with a denoising step (Song et al. 2021, eq. 30).
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 0.0
    t_max: float = 1.0

    def __post_init__(self):
        require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        require_time_range(self)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"VE.sigma_max = {self.sigma_max!r}: expected more than sigma_min = {self.sigma_min!r}")

    @property
    def t_end(self):
        """None, since the noise grows on."""
        return math.inf

    @property
    def _log_range(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t: Time) -> Coefficient:
        return namespace(t).zeros_like(t)  # not 0 * t: the clean time is -inf

    def log_snr(self, t: Time) -> Coefficient:
        return -2 * (math.log(self.sigma_min) + floating(t) * self._log_range)

    def time(self, log_snr: Time) -> Coefficient:
        return (-floating(log_snr) / 2 - math.log(self.sigma_min)) / self._log_range

    def alpha(self, t: Time) -> Coefficient:
        return namespace(t).ones_like(t)

    def sigma(self, t: Time) -> Coefficient:
        """See the class; the exponent is split so that its float32 rounding is not amplified by the exponential."""
        if namespace(t) is np:
            return self.sigma_min * np.exp(floating(t) * self._log_range)
        # t = k/64 + r and log range = c/64 + d with c an integer: the large product k*c/4096 is exact in
        # float32, and exp2 of its integer part is exact, so that only small exponents are rounded.
        log2_range = self._log_range / math.log(2)
        coarse = round(log2_range * 64) / 64
        head = jnp.round(t * 64) / 64
        exponent = head * coarse
        whole = jnp.round(exponent)
        rest = (exponent - whole) + (t - head) * log2_range + head * (log2_range - coarse)
        return self.sigma_min * jnp.ldexp(jnp.exp2(rest), whole.astype(jnp.int32))

    def drift_rate(self, t: Time) -> Coefficient:
        return self.log_alpha(t)

    def diffusion_rate(self, t: Time) -> Coefficient:
        r""":math:`g_t^2 = 2\sigma_t^2\log(\sigma_{\max}/\sigma_{\min})`."""
        return 2 * self.sigma(t) ** 2 * self._log_range


@dataclass(frozen=True, kw_only=True)
class EDM(GaussianSchedule):
    r"""Time is the noise level: :math:`\alpha_t = 1`, :math:`\sigma_t = t` (Karras et al. 2022)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"EDM.sigma_max = {self.sigma_max!r}: expected more than sigma_min = {self.sigma_min!r}")

    @property
    def t_min(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]: read only, as a frozen field
        """``sigma_min``."""
        return self.sigma_min

    @property
    def t_max(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``sigma_max``."""
        return self.sigma_max

    @property
    def t_end(self):
        """None, since the noise grows on."""
        return math.inf

    def log_alpha(self, t: Time) -> Coefficient:
        return namespace(t).zeros_like(t)

    def log_snr(self, t: Time) -> Coefficient:
        with np.errstate(divide="ignore"):
            return -2 * namespace(t).log(t)

    def time(self, log_snr: Time) -> Coefficient:
        return namespace(log_snr).exp(-log_snr / 2)

    def sigma(self, t: Time) -> Coefficient:
        return floating(t)

    def diffusion_rate(self, t: Time) -> Coefficient:
        r""":math:`g_t^2 = 2t`."""
        return 2 * self.sigma(t)
