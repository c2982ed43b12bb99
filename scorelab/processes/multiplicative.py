"""Multiplicative diffusion: geometric Brownian motion, the log chart over its clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from scorelab.arrays import Array, Coefficient, Time
from scorelab.processes.charts import Chart, Log
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.schedules import GBMClock
from scorelab.schedules.base import floating, on_host
from scorelab.schedules.multiplicative import integral
from scorelab.validation import require_choice, require_number, require_spec


@dataclass(frozen=True, kw_only=True, init=False)
class GeometricBrownianMotion(LinearGaussian):
    r"""Geometric Brownian motion :math:`dX = \mu(t)\,X\,dt + \sigma(t)\,X\,dW` (Ito), elementwise.

    .. math:: \log X_t = \log X_0 + a(t) + \sqrt{v(t)}\,\epsilon,\qquad
              a(t) = \int_0^t\mu - \tfrac12\sigma^2,\qquad v(t) = \int_0^t\sigma^2 .

    In the log chart this is variance-exploding diffusion with the drift :math:`a(t)`; ``alpha`` is 1, ``sigma(t)`` is
    :math:`\sqrt{v(t)}` and ``offset(t)`` is :math:`a(t)`.

    Args:
        sigma: the volatility: a positive number (0.8 by default), or a function of time (see
            :class:`scorelab.schedules.GBMClock`).
        mu: the growth rate: a number, a function of time, or None for :math:`\sigma(t)^2/2`, which makes ``a = 0``.
        t_max: the time at which sampling begins, 1 by default.
        t_min: the smallest time that is trained, 1e-5 by default.
        signed: accept negative data; signs stay as they are (see :class:`scorelab.processes.Log`).
        schedule: the clock itself; what is given beside it is changed in it.

    Source: "Dale meets Langevin" (arXiv 2510.02730), which uses ``sigma=0.8``, ``mu=None`` and ``t_max=1``.
    """

    schedule: GBMClock
    mu: float | Callable[[Array], Array] | None
    signed: bool

    # Not generated: the method sigma(t) of every process takes the name that the field of the paper's volatility would have.
    def __init__(
        self,
        *,
        sigma: float | Callable[[Array], Array] | None = None,
        mu: float | Callable[[Array], Array] | None = None,
        t_max: float | None = None,
        t_min: float | None = None,
        signed: bool = False,
        schedule: GBMClock | None = None,
    ):
        clock = GBMClock() if schedule is None else schedule
        require_spec(self, GBMClock, schedule=clock)
        given = {"volatility": sigma, "t_max": t_max, "t_min": t_min}
        try:
            clock = replace(clock, **{name: value for name, value in given.items() if value is not None})
        except ValueError as error:
            message = str(error).replace("GBMClock.volatility", "GeometricBrownianMotion.sigma")
            raise ValueError(message.replace("GBMClock.", "GeometricBrownianMotion.")) from None
        if mu is not None and not callable(mu):
            require_number(self, -1e6, 1e6, mu=mu)
        require_choice(self, (True, False), signed=signed)
        for name, value in (("schedule", clock), ("mu", mu), ("signed", signed)):
            object.__setattr__(self, name, value)

    @property
    def chart(self) -> Chart:
        """The logarithm."""
        return Log(signed=self.signed)

    def offset(self, t: Time) -> Coefficient:
        r""":math:`a(t)`."""
        if self.mu is None:
            return super().offset(t)
        t = floating(t)
        growth = integral(self.mu, t) if callable(self.mu) else self.mu * t
        return growth - 0.5 * self.schedule.variance(t)

    def d_offset(self, t: Time) -> Coefficient:
        r""":math:`\mu(t) - \tfrac12\sigma(t)^2`."""
        if self.mu is None:
            return super().d_offset(t)
        t = floating(t)
        growth = on_host(self.mu, t) if callable(self.mu) else self.mu
        return growth - 0.5 * self.schedule.diffusion_rate(t)
