"""Laws of the training times, as quantile functions."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Float

from scorelab.arrays import Array, Key
from scorelab.processes.base import Process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_number, require_positive, require_spec


@dataclass(frozen=True, kw_only=True)
class Times(abc.ABC):
    r"""The law of the training times, through its quantile function ``time(u, process)``.

    Attributes:
        stratified: draw :math:`u_i = (U + i/n) \bmod 1` with one uniform ``U`` instead of ``n`` independent
            ones. Every :math:`u_i` stays uniform, so the expected loss is the same, and the batch covers the
            range evenly (Kingma et al. 2021, "Variational diffusion models", appendix I). Neighbouring rows
            get neighbouring times; rows of a shuffled batch are exchangeable, so no permutation is needed.
        process_type: the kind of process whose times it draws.
    """

    process_type: ClassVar[type[Process]] = Process

    stratified: bool = False

    @abc.abstractmethod
    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        """The time below which a fraction ``u`` of the training times lies; ``u`` in (0, 1)."""

    def importance(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"] | float:
        """The density of uniform times over that of this law, for losses that are an integral over time; 1 unless it says so."""
        return 1.0

    def __call__(self, key: Key, process: Any, n: int) -> Float[jax.Array, " {n}"]:
        """Draw ``n`` times, ``(n,)`` in the working precision, inside ``[process.t_min, process.t_max]``."""
        require_spec(self, self.process_type, process=process)
        if self.stratified:
            u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
        else:
            u = jax.random.uniform(key, (n,))
        # The quantiles of 0 and 1 may be infinite; a float32 uniform can be 0, and the stratified one can
        # round to 1.
        t = self.time(jnp.clip(u, 2.0**-25, 1 - 2.0**-24), process)
        if jnp.shape(t) != (n,):
            raise ValueError(f"{type(self).__name__}.time returned shape {jnp.shape(t)}: expected ({n},), the shape of u")
        precision = np.dtype(jnp.result_type(t)).type
        high = precision(process.t_max)
        if process.open_end:
            # At alpha = 0 (rectified flow at t = 1) the denoised point of an eps network is infinite.
            high = np.nextafter(high, precision(process.t_min))
        return jnp.clip(t, process.t_min, high)


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """Uniform in the time of the schedule, on ``[t_min, t_max]``."""

    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        return process.t_min + (process.t_max - process.t_min) * u


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes(Times):
    r""":math:`\log(\sigma/\alpha)\sim N(m, s^2)`, clipped to the range of the process.

    The law of EDM (Karras et al. 2022, Table 1).

    Clipping leaves the mass beyond an end of the range at that end (1.5e-5 below and 2e-6 above with the
    defaults on noise ratios 0.002 to 80; more where the range is short, such as 7 % with ``mean = -2`` up to 0.8).
    """

    process_type = LinearGaussian

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        require_number(self, -50.0, 50.0, mean=self.mean)
        require_positive(self, std=self.std)

    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        return process.schedule.time(-2 * (self.mean + self.std * ndtri(u)))


@dataclass(frozen=True, kw_only=True)
class LogitNormalTimes(Times):
    r""":math:`t = t_{\min} + (t_{\max}-t_{\min})\,\mathrm{sigmoid}(m + sz)`, ``z`` standard normal.

    Esser et al. (2024), stated for rectified flow, where it favours the middle of the path.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self):
        require_number(self, -50.0, 50.0, mean=self.mean)
        require_positive(self, std=self.std)

    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        place = jax.nn.sigmoid(self.mean + self.std * ndtri(u))
        return process.t_min + (process.t_max - process.t_min) * place


@dataclass(frozen=True, kw_only=True)
class UniformLogSNRTimes(Times):
    r"""Uniform in :math:`\lambda=\log(\alpha^2/\sigma^2)` (Kingma et al. 2021).

    Attributes:
        log_snr_min: lower end; None for that of the process at ``t_max``, which must then be finite (on
            rectified flow, where alpha reaches zero, it is not).
        log_snr_max: upper end; None for that of the process at ``t_min``.
    """

    process_type = LinearGaussian

    log_snr_min: float | None = None
    log_snr_max: float | None = None

    def __post_init__(self):
        for name in ("log_snr_min", "log_snr_max"):
            if getattr(self, name) is not None:
                require_number(self, -100.0, 100.0, **{name: getattr(self, name)})
        low, high = self.log_snr_min, self.log_snr_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"UniformLogSNRTimes.log_snr_min = {low!r}: expected less than log_snr_max = {high!r}")

    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        low = float(process.log_snr(process.t_max)) if self.log_snr_min is None else self.log_snr_min
        high = float(process.log_snr(process.t_min)) if self.log_snr_max is None else self.log_snr_max
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"UniformLogSNRTimes on {process!r} ranges over log-SNR {low} to {high}: "
                "expected finite, increasing ends; set log_snr_min and log_snr_max"
            )
        self._check_range(process, low, high)
        return process.schedule.time(high - (high - low) * u)

    def _check_range(self, process: LinearGaussian, low: float, high: float) -> None:
        # Beyond the range of the process all the mass would be clipped to its ends.
        least, most = float(process.log_snr(process.t_max)), float(process.log_snr(process.t_min))
        slack = 1e-6 * max(1.0, abs(most))
        if low < least - slack or high > most + slack:
            raise ValueError(
                f"UniformLogSNRTimes has log_snr_min = {low} and log_snr_max = {high}: expected {least:.6g} to {most:.6g}, the "
                f"range of {process!r}"
            )


@dataclass(frozen=True, kw_only=True)
class KarrasTimes(Times):
    r"""Uniform in :math:`r^{1/\rho}` of the noise ratio :math:`r=\sigma/\alpha`, the spacing of EDM's sampling grid.

    The law under which one-step students are distilled (arXiv 2405.14867), between the shares ``start`` and ``stop`` of the range
    of the process, from its small end.
    """

    process_type = LinearGaussian

    rho: float = 7.0
    start: float = 0.02
    stop: float = 0.98

    def __post_init__(self):
        require_positive(self, rho=self.rho)
        require_number(self, 0.0, 1.0, start=self.start, stop=self.stop)
        if self.start >= self.stop:
            raise ValueError(f"KarrasTimes.start = {self.start!r}: expected less than stop = {self.stop!r}")

    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        ends = (process.t_min, process.t_max)
        bottom, top = (float(process.noise_ratio(t)) ** (1 / self.rho) for t in ends)
        if not top < math.inf:
            raise ValueError(f"KarrasTimes on {process!r}: expected a finite noise ratio at t_max; UniformTimes() has no such need")
        place = bottom + (self.start + (self.stop - self.start) * u) * (top - bottom)
        return process.schedule.time(-2 * self.rho * jnp.log(place))


@dataclass(frozen=True, kw_only=True)
class ArcsineTimes(Times):
    r""":math:`t = \sin^2(\pi U/2)`, dense at both ends: the density is :math:`1/(\pi\sqrt{t(1-t)})` on the unit interval.

    The law for interpolants with a Brownian gamma, whose target varies like :math:`1/t` at the ends. Its importance weight against
    uniform times is :math:`\pi\sqrt{t(1-t)}`.
    """

    def time(self, u: Float[Array, " *shape"], process: Any) -> Float[Array, " *shape"]:
        return jnp.sin(0.5 * math.pi * u) ** 2

    def importance(self, t: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        return math.pi * jnp.sqrt(t * (1 - t))
