r"""What a network is trained on: denoising score matching, its weightings, and the laws of training times.

A loss owns time, noise and weighting; learners and the training loop know none of them. What is minimised is

.. math:: E_{t\sim p}\,E_{y_0,\epsilon}\Big[w(t)\,\tfrac1d\,\lVert D(y_t, t) - y_0\rVert^2\Big],

so the density of the times and the weight multiply: the *effective* weight of a time is :math:`p(t)\,w(t)`.
Neither corrects for the other. A weighting that a paper states together with a law of the times means what
the paper says only with that law (each docstring below names it).
"""

from __future__ import annotations

import abc
import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri

from scorelab.processes.base import Process
from scorelab.typing import (
    Array,
    Key,
    Model,
    Pytree,
    per_example,
    require_int,
    require_number,
    require_positive,
    require_spec,
)

Batch = dict[str, Pytree]


class Loss(Protocol):
    """What a learner minimises."""

    def __call__(self, key: Key, model: Model, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """The loss of each example, ``(batch,)``, and scalar metrics by name.

        ``batch`` is ``{"x": (batch, *event) floating point in data space, "cond": pytree or None}``.
        """
        ...


# Weightings: functions of (process, t), weights of the error in the denoised data ---------------------------
class Weighting(Protocol):
    r"""A weight :math:`w(t)` of :math:`\lVert D - y_0\rVert^2/d`; the same shape as ``t``."""

    def __call__(self, process: Process, t: Array) -> Array:
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

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
        return 1 / self.data_std**2 + _snr(process, t)


@dataclass(frozen=True, kw_only=True)
class SNRWeighting:
    r""":math:`w = \alpha^2/\sigma^2`: the error in the noise, :math:`\lVert\hat\epsilon-\epsilon\rVert^2/d`.

    Ho et al. (2020), the "simple" loss; stated with :class:`UniformTimes`.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
        return _snr(process, t)


@dataclass(frozen=True, kw_only=True)
class X0Weighting:
    r""":math:`w = 1`: the error in the clean data, :math:`\lVert D-y_0\rVert^2/d`."""

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class VWeighting:
    r""":math:`w = 1+\alpha^2/\sigma^2`: the error in
    :math:`v=(\alpha\epsilon-\sigma y_0)/\sqrt{\alpha^2+\sigma^2}`.

    Salimans & Ho (2022), "SNR+1"; stated for variance-preserving processes, where the root is one.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
        return 1 + _snr(process, t)


@dataclass(frozen=True, kw_only=True)
class MinSNR:
    r""":math:`w = \min(\alpha^2/\sigma^2, \gamma)`: noise matching, truncated near the data.

    Hang et al. (2023), eq. 6, in its form for the clean data; stated with :class:`UniformTimes`.
    """

    gamma: float = 5.0

    def __post_init__(self):
        require_positive(self, gamma=self.gamma)

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
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

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
        return math.exp(self.bias) * jax.nn.sigmoid(process.log_snr(t) - self.bias)


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeighting:
    r""":math:`w = g_t^2\,\alpha_t^2/\sigma_t^4`: the error in the score, weighted by :math:`g_t^2`.

    :math:`\tfrac{d}{2}(t_{\max}-t_{\min})` times the loss under :class:`UniformTimes` is the integral that
    bounds the negative log-likelihood (Song et al. 2021, "Maximum likelihood training", theorem 1), less a
    constant.
    """

    def __call__(self, process: Process, t: Array) -> Array:
        """See the class."""
        return (process.latent_diffusion(t) / process.sigma(t)) ** 2 * _snr(process, t)


def _snr(process: Process, t: Array) -> Array:
    return jnp.exp(process.log_snr(t))


# Laws of the training times, as quantile functions ----------------------------------------------------------
@dataclass(frozen=True, kw_only=True)
class Times(abc.ABC):
    r"""The law of the training times, through its quantile function ``time(u, process)``.

    Attributes:
        stratified: draw :math:`u_i = (U + i/n) \bmod 1` with one uniform ``U`` instead of ``n`` independent
            ones. Every :math:`u_i` stays uniform, so the expected loss is the same, and the batch covers the
            range evenly (Kingma et al. 2021, "Variational diffusion models", appendix I). Neighbouring rows
            get neighbouring times; rows of a shuffled batch are exchangeable, so no permutation is needed.
    """

    stratified: bool = False

    @abc.abstractmethod
    def time(self, u: Array, process: Process) -> Array:
        """The time below which a fraction ``u`` of the training times lies; ``u`` in (0, 1)."""

    def __call__(self, key: Key, process: Process, n: int) -> Array:
        """Draw ``n`` times, ``(n,)`` float32, inside ``[process.t_min, process.t_max]``."""
        if self.stratified:
            u = (jax.random.uniform(key) + jnp.arange(n) / n) % 1
        else:
            u = jax.random.uniform(key, (n,))
        # The quantiles of 0 and 1 may be infinite; a float32 uniform can be 0, and the stratified one can
        # round to 1.
        t = self.time(jnp.clip(u, 2.0**-25, 1 - 2.0**-24), process)
        high = np.float32(process.t_max)
        if not float(process.alpha(process.t_max)) > 0:
            # At alpha = 0 (rectified flow at t = 1) the denoised point of an eps network is infinite.
            high = np.nextafter(high, np.float32(process.t_min))
        return jnp.clip(t, process.t_min, high)


@dataclass(frozen=True, kw_only=True)
class UniformTimes(Times):
    """Uniform in the time of the schedule, on ``[t_min, t_max]``."""

    def time(self, u, process):
        """See the class."""
        return process.t_min + (process.t_max - process.t_min) * u


@dataclass(frozen=True, kw_only=True)
class LogNormalTimes(Times):
    r""":math:`\log(\sigma/\alpha)\sim N(m, s^2)`, clipped to the range of the process.

    The law of EDM (Karras et al. 2022, Table 1).

    Clipping leaves the mass beyond an end of the range at that end (1.5e-5 below and 2e-6 above with the
    defaults on noise ratios 0.002 to 80).
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self):
        require_number(self, -50.0, 50.0, mean=self.mean)
        require_positive(self, std=self.std)

    def time(self, u, process):
        """See the class."""
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

    def time(self, u, process):
        """See the class."""
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

    log_snr_min: float | None = None
    log_snr_max: float | None = None

    def __post_init__(self):
        for name in ("log_snr_min", "log_snr_max"):
            if getattr(self, name) is not None:
                require_number(self, -100.0, 100.0, **{name: getattr(self, name)})
        if None not in (self.log_snr_min, self.log_snr_max) and self.log_snr_min >= self.log_snr_max:
            raise ValueError(
                f"UniformLogSNRTimes.log_snr_min = {self.log_snr_min!r}: "
                f"expected less than log_snr_max = {self.log_snr_max!r}"
            )

    def time(self, u, process):
        """See the class."""
        low = float(process.log_snr(process.t_max)) if self.log_snr_min is None else self.log_snr_min
        high = float(process.log_snr(process.t_min)) if self.log_snr_max is None else self.log_snr_max
        if not -math.inf < low < high < math.inf:
            raise ValueError(
                f"UniformLogSNRTimes on {process!r} ranges over log-SNR {low} to {high}: "
                "expected finite, increasing ends; set log_snr_min and log_snr_max"
            )
        return process.schedule.time(high - (high - low) * u)


# The loss ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class DenoisingScoreMatching:
    r"""Weighted denoising: :math:`w(t)\,\lVert D(y_t,t)-y_0\rVert^2/d` at a random time with random noise.

    With :math:`r=\sigma/\alpha` the errors are :math:`D-y_0 = -r\,(\hat\epsilon-\epsilon)`. In float32 the
    left side loses digits where the noise is small and the right side where it is large, so each is used on
    its side of :math:`r=1`. The minimiser is :math:`D=E[y_0\mid y_t]` for every weighting and every law of
    the times with full support (Vincent 2011).

    Attributes:
        process: the forward process; errors are measured in its chart.
        weighting: ``w``, a function of ``(process, t)``.
        times: the law of ``t``.
        label_dropout: probability with which an example's condition is replaced by the null one, which trains
            the unconditional model of classifier-free guidance alongside (Ho & Salimans 2022).
        null_label: the null condition; needed when ``label_dropout`` is above zero. Networks of this library
            take ``num_classes`` for it, and no condition at all means the same. Every leaf of ``cond`` gets
            this value, so for float embeddings 0 is the zero vector.

    Errors:
        TypeError: ``batch["x"]`` is not floating point (raw pixels: scale them in the ``prepare`` of the
            data).
        ValueError: ``label_dropout`` is above zero and the batch has no ``cond``.
    """

    process: Process
    _: KW_ONLY
    weighting: Weighting = field(default_factory=EDMWeighting)
    times: Times = field(default_factory=LogNormalTimes)
    label_dropout: float = 0.0
    null_label: int | None = None

    def __post_init__(self):
        require_spec(self, Process, process=self.process)
        require_spec(self, Times, times=self.times)
        if not callable(self.weighting):
            raise TypeError(
                f"DenoisingScoreMatching.weighting = {self.weighting!r}: expected a function of "
                "(process, t), such as EDMWeighting()"
            )
        require_number(self, 0.0, 1.0, label_dropout=self.label_dropout)
        if self.null_label is not None:
            require_int(self, 0, null_label=self.null_label)
        elif self.label_dropout > 0:
            raise ValueError(
                "DenoisingScoreMatching.null_label = None: expected the null condition (num_classes of the "
                f"network), since label_dropout = {self.label_dropout}"
            )

    def __call__(self, key: Key, model: Model, batch: Batch) -> tuple[Array, dict[str, Array]]:
        r"""The loss of each example, ``(batch,)``, and ``eps_mse``, the unweighted error in the noise."""
        x, cond = batch["x"], batch.get("cond")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f'batch["x"] has dtype {x.dtype}: expected floating point, scaled by the prepare of the data'
            )
        key_times, key_noise, key_labels = jax.random.split(key, 3)
        t = self.times(key_times, self.process, x.shape[0])
        noised = self.process.perturb(key_noise, x, t)
        prediction = model(noised.y, t, self._drop(key_labels, cond, x.shape[0]))

        ratio = self.process.noise_ratio(t)
        # The ratio is capped in the branch that is not taken: alpha = 0 would put inf * 0 into its gradient.
        small = jnp.minimum(ratio, 1.0)
        denoised_error = prediction.denoised - noised.y0
        eps_error = prediction.eps - noised.eps
        error = jnp.where(per_example(ratio <= 1, x), per_example(small, x) * eps_error, denoised_error)
        square = _mean_square(error)
        return self.weighting(self.process, t) * square, {"eps_mse": jnp.mean(_mean_square(eps_error))}

    def _drop(self, key: Key, cond: Pytree, n: int) -> Pytree:
        if self.label_dropout == 0:
            return cond
        if cond is None:
            raise ValueError(f'batch["cond"] = None: expected one, label_dropout = {self.label_dropout}')
        dropped = jax.random.bernoulli(key, self.label_dropout, (n,))

        def replace(c):
            return jnp.where(per_example(dropped, c), jnp.asarray(self.null_label, c.dtype), c)

        return jax.tree.map(replace, cond)


def _mean_square(error: Array) -> Array:
    """Mean over the event of the square, ``(batch,)``."""
    return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)
