r"""Noise schedules of the linear-Gaussian kernel :math:`y_t = \alpha_t y_0 + \sigma_t \epsilon`, in log-SNR form.

A schedule is three functions of time: ``log_alpha(t)``, ``log_snr(t)`` :math:`= \log(\alpha_t^2/\sigma_t^2)` and the
inverse ``time(log_snr)``. The same code runs on NumPy float64 on the host (grids, coefficient tables) and on JAX
arrays under ``jit`` (training), because every method takes its array namespace from its argument. No method
computes ``sqrt(1 - alpha**2)``, whose float32 error is 9 % at ``t = 1e-6`` on the linear VP schedule.

``time(inf)`` is the time of clean data; it is ``-inf`` where sigma never reaches zero at a finite time (``VE``).
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.typing import Array, require_positive


def namespace(t: Array | float):
    """``jax.numpy`` for JAX arrays and tracers, NumPy for everything else."""
    return jnp if isinstance(t, jax.Array) else np


def derivative(fn, t: Array | float) -> Array:
    """Elementwise derivative of a schedule function; in float64 for host input, also while something is traced."""
    if isinstance(t, jax.Array):
        return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        t64 = jnp.asarray(np.asarray(t, np.float64))
        return np.asarray(jax.jvp(fn, (t64,), (jnp.ones_like(t64),))[1])


@dataclass(frozen=True, kw_only=True)
class Schedule(abc.ABC):
    r"""The base of all schedules; a new one needs ``log_alpha``, ``log_snr``, ``time``, ``t_min`` and ``t_max``.

    ``t_min`` and ``t_max`` bound the times that are trained and sampled. The rates below come from automatic
    differentiation; a subclass overrides what it can state more accurately.
    """

    @abc.abstractmethod
    def log_alpha(self, t: Array | float) -> Array:
        r""":math:`\log \alpha_t`."""

    @abc.abstractmethod
    def log_snr(self, t: Array | float) -> Array:
        r""":math:`\lambda_t = \log(\alpha_t^2 / \sigma_t^2)`, decreasing in ``t``."""

    @abc.abstractmethod
    def time(self, log_snr: Array | float) -> Array:
        """The inverse of ``log_snr``; ``time(inf)`` is the time of clean data."""

    def alpha(self, t: Array | float) -> Array:
        r""":math:`\alpha_t`."""
        return namespace(t).exp(self.log_alpha(t))

    def sigma(self, t: Array | float) -> Array:
        r""":math:`\sigma_t = \alpha_t e^{-\lambda_t/2}`."""
        return namespace(t).exp(self.log_alpha(t) - self.log_snr(t) / 2)

    def noise_ratio(self, t: Array | float) -> Array:
        r""":math:`\rho_t = \sigma_t/\alpha_t`, the noise level in units of the data (EDM's sigma)."""
        return namespace(t).exp(-self.log_snr(t) / 2)

    def scale(self, t: Array | float) -> Array:
        r"""A factor :math:`s_t` for which :math:`\alpha_t/s_t` is affine in :math:`\sigma_t/s_t`.

        In the coordinate :math:`y/s` the path of a fixed (data, noise) pair is straight, so the ODE solvers
        integrate there. :math:`s = \alpha` always qualifies and is the choice of Karras et al. (2022).
        """
        return self.alpha(t)

    def d_alpha(self, t: Array | float) -> Array:
        r""":math:`\mathrm{d}\alpha_t/\mathrm{d}t`."""
        return derivative(self.alpha, t)

    def d_sigma(self, t: Array | float) -> Array:
        r""":math:`\mathrm{d}\sigma_t/\mathrm{d}t`."""
        return derivative(self.sigma, t)

    def drift_rate(self, t: Array | float) -> Array:
        r""":math:`f_t = \mathrm{d}\log\alpha_t/\mathrm{d}t` of the SDE :math:`dy = f_t y\,dt + g_t\,dw`."""
        return derivative(self.log_alpha, t)

    def diffusion_rate(self, t: Array | float) -> Array:
        r""":math:`g_t^2 = -\sigma_t^2\,\mathrm{d}\lambda_t/\mathrm{d}t`."""
        return -(self.sigma(t) ** 2) * derivative(self.log_snr, t)

    @property
    def clean_time(self) -> float:
        """The time at which sigma is zero; ``-inf`` where no finite time has that."""
        return float(self.time(np.float64(np.inf)))


@dataclass(frozen=True, kw_only=True)
class VPLinear(Schedule):
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

    def log_alpha(self, t):
        """See the class."""
        return -0.25 * t * (2 * self.beta_min + t * (self.beta_max - self.beta_min))

    def log_snr(self, t):
        """See the class."""
        # log(expm1(a)) for large a overflows in float32 beyond a = 88; the sum form does not.
        xp, a = namespace(t), -2 * self.log_alpha(t)
        with np.errstate(divide="ignore"):
            return -(a + xp.log(-xp.expm1(-a)))

    def time(self, log_snr):
        """See the class."""
        xp = namespace(log_snr)
        # softplus(-l) = -2 log alpha = B; the positive root of a t^2 + b t = B in the cancellation-free form.
        integral = xp.logaddexp(0.0, -log_snr)
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + xp.sqrt(self.beta_min**2 + 2 * slope * integral))

    def sigma(self, t):
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

    def drift_rate(self, t):
        """See the class."""
        return -0.5 * (self.beta_min + t * (self.beta_max - self.beta_min))

    def diffusion_rate(self, t):
        """For a variance-preserving process the rate is ``-2 f``, finite also at ``t = 0``."""
        return -2 * self.drift_rate(t)


@dataclass(frozen=True, kw_only=True)
class VPCosine(Schedule):
    r"""Variance preserving on the circle: :math:`\alpha_t = \cos(\pi t/2)`, :math:`\sigma_t = \sin(\pi t/2)`.

    ``t_max`` stays below 1, where alpha is zero (Nichol & Dhariwal 2021; Hoogeboom et al. 2023).
    """

    t_min: float = 1e-3
    t_max: float = 0.999

    def __post_init__(self):
        require_time_range(self)
        if self.t_max >= 1:
            raise ValueError(f"VPCosine.t_max = {self.t_max!r}: expected a number below 1, where alpha is zero")

    def alpha(self, t):
        """See the class; the sine of the complement is accurate where the cosine cancels."""
        xp = namespace(t)
        return xp.sin(0.5 * math.pi * (1 - t))

    def sigma(self, t):
        """See the class."""
        return namespace(t).sin(0.5 * math.pi * t)

    def log_alpha(self, t):
        """See the class."""
        return namespace(t).log(self.alpha(t))

    def log_snr(self, t):
        """See the class."""
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def time(self, log_snr):
        """See the class."""
        xp = namespace(log_snr)
        with np.errstate(over="ignore"):
            return (2 / math.pi) * xp.arctan(xp.exp(-log_snr / 2))

    def drift_rate(self, t):
        """See the class."""
        return -0.5 * math.pi * self.sigma(t) / self.alpha(t)

    def diffusion_rate(self, t):
        """For a variance-preserving process the rate is ``-2 f``, finite also at ``t = 0``."""
        return -2 * self.drift_rate(t)


@dataclass(frozen=True, kw_only=True)
class VE(Schedule):
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
    def _log_range(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def log_alpha(self, t):
        """Zero."""
        return namespace(t).zeros_like(t)  # not 0 * t: the clean time is -inf

    def log_snr(self, t):
        """See the class."""
        return -2 * (math.log(self.sigma_min) + t * self._log_range)

    def time(self, log_snr):
        """See the class."""
        return (-log_snr / 2 - math.log(self.sigma_min)) / self._log_range

    def alpha(self, t):
        """One."""
        return namespace(t).ones_like(t)

    def sigma(self, t):
        """See the class; the exponent is split so that its float32 rounding is not amplified by the exponential."""
        if namespace(t) is np:
            return self.sigma_min * np.exp(np.asarray(t, np.float64) * self._log_range)
        # t = k/64 + r and log range = c/64 + d with c an integer: the large product k*c/4096 is exact in
        # float32, and exp2 of its integer part is exact, so that only small exponents are rounded.
        log2_range = self._log_range / math.log(2)
        coarse = round(log2_range * 64) / 64
        head = jnp.round(t * 64) / 64
        exponent = head * coarse
        whole = jnp.round(exponent)
        rest = (exponent - whole) + (t - head) * log2_range + head * (log2_range - coarse)
        return self.sigma_min * jnp.ldexp(jnp.exp2(rest), whole.astype(jnp.int32))

    def drift_rate(self, t):
        """Zero."""
        return self.log_alpha(t)

    def diffusion_rate(self, t):
        r""":math:`g_t^2 = 2\sigma_t^2\log(\sigma_{\max}/\sigma_{\min})`."""
        return 2 * self.sigma(t) ** 2 * self._log_range


@dataclass(frozen=True, kw_only=True)
class EDM(Schedule):
    r"""Time is the noise level: :math:`\alpha_t = 1`, :math:`\sigma_t = t` (Karras et al. 2022)."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        require_positive(self, sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        if self.sigma_max <= self.sigma_min:
            raise ValueError(f"EDM.sigma_max = {self.sigma_max!r}: expected more than sigma_min = {self.sigma_min!r}")

    @property
    def t_min(self) -> float:
        """``sigma_min``."""
        return self.sigma_min

    @property
    def t_max(self) -> float:
        """``sigma_max``."""
        return self.sigma_max

    def log_alpha(self, t):
        """Zero."""
        return namespace(t).zeros_like(t)

    def log_snr(self, t):
        """See the class."""
        with np.errstate(divide="ignore"):
            return -2 * namespace(t).log(t)

    def time(self, log_snr):
        """See the class."""
        return namespace(log_snr).exp(-log_snr / 2)

    def sigma(self, t):
        """See the class."""
        return t if namespace(t) is jnp else np.asarray(t, np.float64)

    def diffusion_rate(self, t):
        r""":math:`g_t^2 = 2t`."""
        return 2 * t


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Schedule):
    r"""Straight lines between data and noise: :math:`\alpha_t = 1-t`, :math:`\sigma_t = t` (Liu et al. 2023).

    The path is straight in ``y`` itself, so ``scale`` is one and ``alpha`` may be zero at ``t_max = 1``.
    """

    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        require_time_range(self)
        if self.t_max > 1:
            raise ValueError(f"RectifiedFlow.t_max = {self.t_max!r}: expected at most 1")

    def alpha(self, t):
        """See the class."""
        return 1 - t

    def sigma(self, t):
        """See the class."""
        return t if namespace(t) is jnp else np.asarray(t, np.float64)

    def log_alpha(self, t):
        """See the class."""
        with np.errstate(divide="ignore"):
            return namespace(t).log1p(-t)

    def log_snr(self, t):
        """See the class."""
        xp = namespace(t)
        with np.errstate(divide="ignore"):
            return 2 * (xp.log1p(-t) - xp.log(t))

    def time(self, log_snr):
        """See the class."""
        with np.errstate(over="ignore"):
            return 1 / (1 + namespace(log_snr).exp(log_snr / 2))

    def scale(self, t):
        """One: the path is straight in ``y``."""
        return namespace(t).ones_like(t)

    def d_alpha(self, t):
        """Minus one."""
        return -namespace(t).ones_like(t)

    def d_sigma(self, t):
        """One."""
        return namespace(t).ones_like(t)

    def drift_rate(self, t):
        """See the class."""
        return -1 / (1 - t)

    def diffusion_rate(self, t):
        r""":math:`g_t^2 = 2t/(1-t)`."""
        return 2 * t / (1 - t)


def require_time_range(schedule) -> None:
    """Raise ``ValueError`` unless ``0 <= t_min < t_max`` are finite numbers."""
    for name in ("t_min", "t_max"):
        value = getattr(schedule, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{type(schedule).__name__}.{name} = {value!r}: expected a finite number >= 0")
    if schedule.t_min >= schedule.t_max:
        raise ValueError(
            f"{type(schedule).__name__}.t_min = {schedule.t_min!r}: expected less than t_max = {schedule.t_max!r}"
        )
