"""Variance-preserving schedules that end in pure noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.schedules.base import GaussianSchedule, floating, namespace
from scorelab.schedules.variance_preserving import VPLinear
from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True)
class ZeroTerminal(GaussianSchedule):
    r"""A variance-preserving schedule whose signal is moved so that it is zero at ``t_max``: :math:`T`.

    .. math:: \alpha'_t = \frac{\alpha_t - \alpha_T}{1 - \alpha_T},\qquad \sigma'_t = \sqrt{1-\alpha'^2_t} .

    What is left of the data in the noise at :math:`T` moves the mean of all samples, if sampling begins as pure noise
    (:class:`scorelab.processes.ScaleWarning` has by how much). Here nothing is left. A network cannot predict the noise then
    (``predict="eps"`` is refused), and needs ``"v"`` or another form that is known at pure noise. Lin et al. (2024), arXiv
    2305.08891, section 3.1; in continuous time the clean end stays clean. For a table of levels see ``Discrete.zero_terminal``.

    Attributes:
        schedule: the schedule that is moved, with :math:`\alpha^2+\sigma^2=1` and clean data at a finite time.
    """

    schedule: GaussianSchedule = field(default_factory=VPLinear)

    def __post_init__(self):
        require_spec(self, GaussianSchedule, schedule=self.schedule)
        base = self.schedule
        clean = base.clean_time
        t = np.linspace(base.t_min, base.t_max, 33)
        if not np.isfinite(clean) or np.max(np.abs(base.alpha(t) ** 2 + base.sigma(t) ** 2 - 1)) > 1e-9:
            raise ValueError(
                f"ZeroTerminal.schedule = {base!r}: expected a variance-preserving schedule in continuous time, VPLinear() or "
                "VPCosine(); a table of levels has Discrete(zero_terminal=True)"
            )
        if not 0 < self._last < 1:
            raise ValueError(
                f"ZeroTerminal.schedule = {base!r} has alpha = {self._last:.4g} at t_max: expected one that is above 0"
            )

    @property
    def t_min(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]: read only, as a frozen field
        """That of ``schedule``."""
        return self.schedule.t_min

    @property
    def t_max(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of ``schedule``, where alpha is zero."""
        return self.schedule.t_max

    @property
    def _last(self) -> float:
        """The signal that is taken away."""
        return float(self.schedule.alpha(np.float64(self.schedule.t_max)))

    def alpha(self, t: Time) -> Coefficient:
        """See the class; exactly zero at ``t_max``, also where that is rounded to float32."""
        xp, last = namespace(t), self._last
        moved = (self.schedule.alpha(t) - last) / (1 - last)
        ends = (floating(t) >= self.t_max) | (moved < 0)
        # Its slope stays that of the schedule there.
        return xp.where(ends, moved - jax.lax.stop_gradient(moved) if xp is jnp else 0.0, moved)

    def log_alpha(self, t: Time) -> Coefficient:
        with np.errstate(divide="ignore"):
            return namespace(t).log(self.alpha(t))

    def sigma(self, t: Time) -> Coefficient:
        r""":math:`\sigma_t\sqrt{1+f}`, :math:`f = \alpha_T\,(2\alpha_t-\alpha_T(1+\alpha_t))/((1-\alpha_T)^2(1+\alpha_t))`."""
        sigma, alpha, last = self.schedule.sigma(t), self.schedule.alpha(t), self._last
        f = last * (2 * alpha - last * (1 + alpha)) / ((1 - last) ** 2 * (1 + alpha))
        # With the digits of sigma, since f is small.
        return sigma + sigma * (f / (1 + namespace(t).sqrt(1 + f)))

    def log_snr(self, t: Time) -> Coefficient:
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def time(self, log_snr: Time) -> Coefficient:
        xp, value, last = namespace(log_snr), floating(log_snr), self._last
        with np.errstate(over="ignore", divide="ignore"):
            signal, noise = (1 / (1 + xp.exp(sign * value)) for sign in (-1, 1))
            # 1 - alpha, so that nothing cancels near clean data.
            below = (1 - last) * noise / (1 + xp.sqrt(signal))
            alpha = last + (1 - last) * xp.sqrt(signal)
            t = self.schedule.time(2 * xp.log(alpha) - xp.log(below) - xp.log1p(alpha))
        return xp.where(value == -np.inf, self.t_max, t)

    def scale(self, t: Time) -> Coefficient:
        """``alpha + sigma``: ``alpha`` over it is one minus ``sigma`` over it, also where ``alpha`` is zero."""
        return self.alpha(t) + self.sigma(t)
