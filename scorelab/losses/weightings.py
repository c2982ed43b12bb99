"""Weightings: functions of (process, t), weights of the error in the denoised data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Float

from scorelab.arrays import Array
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_number, require_positive


class Weighting(Protocol):
    r"""A weight :math:`w(t)` of :math:`\lVert D - y_0\rVert^2/d`; the same shape as ``t``."""

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        """The weight at ``t``."""
        ...


@dataclass(frozen=True, kw_only=True)
class EDMWeighting:
    r""":math:`w = \frac{r^2+s^2}{(rs)^2} = \frac1{s^2}+\frac1{r^2}`, with :math:`r=\sigma/\alpha`.

    It is :math:`1/c_{out}^2`, so the network's raw output under ``predict="edm"`` is matched with weight one
    (Karras et al. 2022, Table 1; stated with :class:`LogNormalTimes`). ``data_std`` is ``s``, that of the
    denoiser.
    """

    data_std: float = 0.5

    def __post_init__(self):
        require_positive(self, data_std=self.data_std)

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return 1 / self.data_std**2 + _snr(process, t)


@dataclass(frozen=True, kw_only=True)
class SNRWeighting:
    r""":math:`w = \alpha^2/\sigma^2`: the error in the noise, :math:`\lVert\hat\epsilon-\epsilon\rVert^2/d`.

    Ho et al. (2020), the "simple" loss; stated with :class:`UniformTimes`.
    """

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return _snr(process, t)


@dataclass(frozen=True, kw_only=True)
class X0Weighting:
    r""":math:`w = 1`: the error in the clean data, :math:`\lVert D-y_0\rVert^2/d`."""

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class VWeighting:
    r""":math:`w = 1+\alpha^2/\sigma^2`: the error in
    :math:`v=(\alpha\epsilon-\sigma y_0)/\sqrt{\alpha^2+\sigma^2}`.

    Salimans & Ho (2022), "SNR+1"; stated for variance-preserving processes, where the root is one.
    """

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return 1 + _snr(process, t)


@dataclass(frozen=True, kw_only=True)
class FlowWeighting:
    r""":math:`w = (1+\alpha/\sigma)^2`: the error in :math:`\epsilon - y_0`, the velocity of rectified flow.

    Liu et al. (2022, arXiv 2209.03003), eq. 1; stated with :class:`UniformTimes`.
    """

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return (1 + jnp.exp(process.log_snr(t) / 2)) ** 2


@dataclass(frozen=True, kw_only=True)
class TruncatedSNR:
    r""":math:`w = \max(\alpha^2/\sigma^2, \gamma)`: noise matching near the data, data matching in the noise.

    Salimans & Ho (2022, arXiv 2202.00512) with ``floor`` :math:`\gamma = 1`, for progressive distillation; stated with
    :class:`UniformTimes` on the cosine schedule.
    """

    floor: float = 1.0

    def __post_init__(self):
        require_positive(self, floor=self.floor)

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return jnp.maximum(_snr(process, t), self.floor)


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    r""":math:`w = \min(\alpha^2/\sigma^2, \gamma)`: noise matching, truncated near the data.

    Hang et al. (2023), eq. 6, in its form for the clean data; stated with :class:`UniformTimes`.
    """

    gamma: float = 5.0

    def __post_init__(self):
        require_positive(self, gamma=self.gamma)

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return jnp.minimum(_snr(process, t), self.gamma)


@dataclass(frozen=True, kw_only=True)
class SigmoidWeighting:
    r""":math:`w = e^{b}\,\mathrm{sigmoid}(\lambda-b)`, with :math:`\lambda=\log(\alpha^2/\sigma^2)`.

    The error in the noise has weight :math:`\mathrm{sigmoid}(b-\lambda)`.
    Kingma & Gao (2023); Hoogeboom et al. (2024, arXiv 2410.19324). Both state it for times uniform in the
    log-SNR: :class:`UniformLogSNRTimes`. A positive ``bias`` moves weight towards the data.
    """

    bias: float = 0.0

    def __post_init__(self):
        require_number(self, -50.0, 50.0, bias=self.bias)

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return math.exp(self.bias) * jax.nn.sigmoid(process.log_snr(t) - self.bias)


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeighting:
    r""":math:`w = g_t^2\,\alpha_t^2/\sigma_t^4`: the error in the score, weighted by :math:`g_t^2`.

    :math:`\tfrac{d}{2}(t_{\max}-t_{\min})` times the loss under :class:`UniformTimes` is the integral that
    bounds the negative log-likelihood (Song et al. 2021, "Maximum likelihood training", theorem 1), less a
    constant.
    """

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return (process.latent_diffusion(t) / process.sigma(t)) ** 2 * _snr(process, t)


def _snr(process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
    return jnp.exp(process.log_snr(t))


@dataclass(frozen=True, kw_only=True)
class VarianceWeighting:
    r""":math:`\lambda = \sigma_t^2`, under which an error in the score is one in the noise.

    M-DSM is then :math:`\tfrac12\lVert\hat\epsilon-\epsilon\rVert^2`. Without a weight the target of a score has the variance
    :math:`1/\sigma_t^2`, which is infinite at ``t = 0``.
    """

    def __call__(self, process: LinearGaussian, t: Float[Array, " *times"]) -> Float[Array, " *times"]:
        return process.sigma(t) ** 2


class Weighted(Protocol):
    """A loss with a weighting."""

    @property
    def process(self) -> LinearGaussian:
        """The forward process."""
        ...

    @property
    def weighting(self) -> Weighting:
        """A function of ``(process, t)``."""
        ...


def weights(loss: Weighted, t: Float[Array, " *times"]) -> Float[Array, " *times"] | Float[Array, ""]:
    """The weights of a loss at its times ``(batch,)``; ValueError for a shape that would broadcast otherwise."""
    value = loss.weighting(loss.process, t)
    if jnp.shape(value) not in ((), jnp.shape(t)):
        raise ValueError(
            f"{type(loss).__name__}.weighting returned shape {jnp.shape(value)} for t of shape {jnp.shape(t)}: expected that or ()"
        )
    return value


def require_weighting(loss: Weighted) -> None:
    """Raise ``TypeError`` where ``weighting`` is not a function."""
    if not callable(loss.weighting):
        raise TypeError(
            f"{type(loss).__name__}.weighting = {loss.weighting!r}: expected a function of (process, t), such as EDMWeighting()"
        )
