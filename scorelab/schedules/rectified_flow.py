"""Straight lines between data and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.schedules.base import GaussianSchedule, floating, namespace, require_time_range


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(GaussianSchedule):
    r"""Straight lines between data and noise: :math:`\alpha_t = 1-t`, :math:`\sigma_t = t` (Liu et al. 2023).

    The path is straight in ``y`` itself, so ``scale`` is one and ``alpha`` may be zero at ``t_max = 1``.
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        require_time_range(self)
        if self.t_max > 1:
            raise ValueError(f"RectifiedFlow.t_max = {self.t_max!r}: expected at most 1")

    @property
    def t_end(self):
        """One, where alpha is zero."""
        return 1.0

    def alpha(self, t: Time) -> Coefficient:
        return 1 - floating(t)

    def sigma(self, t: Time) -> Coefficient:
        return floating(t)

    def log_alpha(self, t: Time) -> Coefficient:
        with np.errstate(divide="ignore"):
            return namespace(t).log1p(-t)

    def log_snr(self, t: Time) -> Coefficient:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log1p(-t) - xp.log(t))

    def time(self, log_snr: Time) -> Coefficient:
        with np.errstate(over="ignore"):
            return 1 / (1 + namespace(log_snr).exp(log_snr / 2))

    def scale(self, t: Time) -> Coefficient:
        """One: the path is straight in ``y``."""
        return namespace(t).ones_like(t)

    def d_alpha(self, t: Time) -> Coefficient:
        """Minus one."""
        return -namespace(t).ones_like(t)

    def d_sigma(self, t: Time) -> Coefficient:
        return namespace(t).ones_like(t)

    def drift_rate(self, t: Time) -> Coefficient:
        return -1 / self.alpha(t)

    def diffusion_rate(self, t: Time) -> Coefficient:
        r""":math:`g_t^2 = 2t/(1-t)`."""
        return 2 * self.sigma(t) / self.alpha(t)
