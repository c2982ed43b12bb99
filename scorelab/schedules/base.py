r"""Noise schedules of the linear-Gaussian kernel :math:`y_t = \alpha_t y_0 + \sigma_t \epsilon`, in log-SNR form.

A schedule is three functions of time: ``log_alpha(t)``, ``log_snr(t)`` :math:`= \log(\alpha_t^2/\sigma_t^2)` and the
inverse ``time(log_snr)``. The same code runs on NumPy float64 on the host (grids, coefficient tables) and on JAX
arrays under ``jit`` (training), because every method takes its array namespace from its argument. No method
computes ``sqrt(1 - alpha**2)``, whose float32 error is 9 % at ``t = 1e-6`` on the linear VP schedule.

``time(inf)`` is the time of clean data; it is ``-inf`` where sigma never reaches zero at a finite time (``VE``).
"""

from __future__ import annotations

import abc
import sys
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Coefficient, Time
from scorelab.validation import require_number


def namespace(t: Time):
    """``jax.numpy`` for JAX arrays and tracers, NumPy for everything else."""
    return jnp if isinstance(t, jax.Array) else np


def floating(t: Time) -> Coefficient:
    """JAX arrays and tracers stay what they are; Python and NumPy numbers become float64."""
    return t if isinstance(t, jax.Array) else np.asarray(t, np.float64)


def on_host(fn, t: Time) -> Coefficient:
    """A JAX function of ``t``; in float64 for host input, also while something is traced."""
    if isinstance(t, jax.Array):
        return fn(t)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(fn(jnp.asarray(floating(t))))


def derivative(fn, t: Time) -> Coefficient:
    """Elementwise derivative of a schedule function; in float64 for host input."""
    return on_host(lambda t: jax.jvp(fn, (t,), (jnp.ones_like(t),))[1], t)


class _TimeRange:
    """The times that are trained and sampled. Not fields of :class:`Schedule`, so that a schedule may derive them."""

    t_min: float
    t_max: float


@dataclass(frozen=True, kw_only=True)
class Schedule(_TimeRange, abc.ABC):
    r"""The base of all schedules; a new one needs ``log_alpha``, ``log_snr``, ``time``, ``t_min`` and ``t_max``.

    ``t_min`` and ``t_max`` bound the times that are trained and sampled. The rates below come from automatic
    differentiation; a subclass overrides what it can state more accurately.
    """

    @abc.abstractmethod
    def log_alpha(self, t: Time) -> Coefficient:
        r""":math:`\log \alpha_t`."""

    @property
    @abc.abstractmethod
    def clean_time(self) -> float:
        """The time of clean data; ``-inf`` where no finite time has that."""

    def alpha(self, t: Time) -> Coefficient:
        r""":math:`\alpha_t`."""
        return namespace(t).exp(self.log_alpha(t))

    def d_alpha(self, t: Time) -> Coefficient:
        r""":math:`\mathrm{d}\alpha_t/\mathrm{d}t`."""
        return derivative(self.alpha, t)

    def drift_rate(self, t: Time) -> Coefficient:
        r""":math:`f_t = \mathrm{d}\log\alpha_t/\mathrm{d}t` of the SDE :math:`dy = f_t y\,dt + g_t\,dw`."""
        return derivative(self.log_alpha, t)

    @property
    def t_end(self) -> float:
        """The largest time at which the formulas hold; ``t_max`` unless a schedule says that they go on."""
        return self.t_max

    def check_grid(self, where: str, times: np.ndarray) -> None:
        """Raise ``ValueError`` for host times of a grid at which the formulas hold and no model was trained."""
        return None


class GaussianSchedule(Schedule):
    r"""A schedule with Gaussian noise; a new one needs ``log_snr`` and ``time`` beside ``log_alpha``."""

    @abc.abstractmethod
    def log_snr(self, t: Time) -> Coefficient:
        r""":math:`\lambda_t = \log(\alpha_t^2 / \sigma_t^2)`, decreasing in ``t``."""

    @abc.abstractmethod
    def time(self, log_snr: Time) -> Coefficient:
        """The inverse of ``log_snr``; ``time(inf)`` is the time of clean data."""

    def sigma(self, t: Time) -> Coefficient:
        r""":math:`\sigma_t = \alpha_t e^{-\lambda_t/2}`."""
        return namespace(t).exp(self.log_alpha(t) - self.log_snr(t) / 2)

    def noise_ratio(self, t: Time) -> Coefficient:
        r""":math:`\rho_t = \sigma_t/\alpha_t`, the noise level in units of the data (EDM's sigma)."""
        return namespace(t).exp(-self.log_snr(t) / 2)

    def scale(self, t: Time) -> Coefficient:
        r"""A factor :math:`s_t` for which :math:`\alpha_t/s_t` is affine in :math:`\sigma_t/s_t`.

        In the coordinate :math:`y/s` the path of a fixed (data, noise) pair is straight, so the ODE solvers
        integrate there. :math:`s = \alpha` always qualifies and is the choice of Karras et al. (2022).
        """
        return self.alpha(t)

    def d_sigma(self, t: Time) -> Coefficient:
        r""":math:`\mathrm{d}\sigma_t/\mathrm{d}t`."""
        return derivative(self.sigma, t)

    def diffusion_rate(self, t: Time) -> Coefficient:
        r""":math:`g_t^2 = -\sigma_t^2\,\mathrm{d}\lambda_t/\mathrm{d}t`."""
        return -(self.sigma(t) ** 2) * derivative(self.log_snr, t)

    @property
    def clean_time(self) -> float:
        """The time at which sigma is zero; ``-inf`` where no finite time has that."""
        return float(self.time(np.float64(np.inf)))


def require_time_range(schedule) -> None:
    """Raise ``ValueError`` unless ``0 <= t_min < t_max`` are finite numbers."""
    require_number(schedule, 0, sys.float_info.max, t_min=schedule.t_min, t_max=schedule.t_max)
    if schedule.t_min >= schedule.t_max:
        raise ValueError(f"{type(schedule).__name__}.t_min = {schedule.t_min!r}: expected less than t_max = {schedule.t_max!r}")
