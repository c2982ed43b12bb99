r"""Linear-Gaussian processes: in a chart, noise is a linear map of the clean point plus Gaussian noise.

.. math:: y = \mathrm{chart}(x), \qquad y_t = \alpha_t y_0 + b_t + \sigma_t\epsilon, \qquad \epsilon\sim N(0, I).

In the chart the SDE is :math:`dy = (f_t (y - b_t) + \dot b_t)\,dt + g_t\,dw`. In data space, with
:math:`x=\phi(y)`, Ito's formula gives a state-dependent diffusion :math:`G(x) = \phi'(y)^2 g_t^2`, and the reverse
SDE needs its divergence (Anderson 1982):

.. math:: dx = \big[\mathrm{drift} - \nabla\!\cdot G - G\,\nabla_x\log p_t\big]\,dt + \sqrt{G}\,d\bar w .

Leaving :math:`\nabla\cdot G` out is the classic error; it vanishes only where the noise does not depend on ``x``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, BatchTime, Coefficient, Key, Time, per_example
from scorelab.processes.base import Noised, Process, Start
from scorelab.processes.charts import Chart, Identity
from scorelab.processes.predictions import HasDenoised, HasLogProb, HasNoise, HasScore, HasVelocity
from scorelab.pytrees import computed
from scorelab.randomness import per_example_normal
from scorelab.schedules import GaussianSchedule, namespace
from scorelab.schedules.base import floating
from scorelab.validation import require_real, require_shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GaussianPrediction(HasDenoised, HasNoise, HasScore, HasVelocity):
    r"""A model's belief about ``y`` at ``t``, as the consistent pair :math:`y = \alpha_t D + b_t + \sigma_t\hat\epsilon`.

    Both members are kept because each loses digits when computed from the other at one end of the noise range.

    Attributes:
        denoised: :math:`D = E[y_0\mid y_t]`, ``(batch, *event)``, in the chart.
        eps: :math:`\hat\epsilon = E[\epsilon\mid y_t] = -\sigma_t\nabla\log p_t(y_t)`.
        t: scalar or ``(batch,)``.
        process: the process it belongs to (static).
    """

    denoised: Array
    eps: Array
    t: Array
    process: LinearGaussian = field(metadata={"static": True})

    @computed
    def score(self) -> Float[Array, " batch *event"]:
        r""":math:`\nabla_y\log p_t(y_t) = -\hat\epsilon/\sigma_t` (chart space)."""
        return -self.eps / per_example(self.process.sigma(self.t), self.eps)

    @computed
    def velocity(self) -> Float[Array, " batch *event"]:
        r"""Probability-flow velocity :math:`dy/dt = \dot\alpha_t D + \dot b_t + \dot\sigma_t\hat\epsilon`."""
        p, t, like = self.process, self.t, self.eps
        d_alpha, d_sigma = per_example(p.d_alpha(t), like), per_example(p.d_sigma(t), like)
        return d_alpha * self.denoised + d_sigma * self.eps + per_example(p.d_offset(t), like)

    @property
    def x(self) -> Float[Array, " batch *event"]:
        """The point of data space the prediction is about, ``decode(y)``; of signed data, its absolute value."""
        p = self.process
        alpha, sigma, offset = (per_example(f(self.t), self.eps) for f in (p.alpha, p.sigma, p.offset))
        return p.decode(alpha * self.denoised + offset + sigma * self.eps)

    @property
    def stein_score(self) -> Float[Array, " batch *event"]:
        r"""The score in data space, :math:`\nabla_x\log p_t(x)`."""
        return self.process.chart.ambient_score(self.x, self.score)

    @property
    def hyvarinen_score(self) -> Float[Array, " batch *event"]:
        r"""The score of multiplicative perturbations, :math:`x\circ\nabla_x\log p_t(x)`; on the log chart ``score - 1``."""
        return self.process.chart.hyvarinen_score(self.x, self.score)


@dataclass(frozen=True, kw_only=True)
class LinearGaussian(Process):
    """A linear-Gaussian process in a chart; a new one names its ``schedule``, its ``chart`` and its ``offset``."""

    schedule: GaussianSchedule

    def __post_init__(self):
        if not isinstance(self.schedule, GaussianSchedule):
            raise TypeError(f"{type(self).__name__}.schedule = {self.schedule!r}: expected a scorelab.schedules.GaussianSchedule")

    @property
    def chart(self) -> Chart:
        """The coordinate in which the process is linear-Gaussian."""
        return Identity()

    @computed
    def open_end(self) -> bool:
        r"""Where :math:`\alpha` is 0 at ``t_max``."""
        return not float(self.alpha(self.t_max)) > 0

    @computed
    def has_signs(self) -> bool:
        """As the chart."""
        return bool(self.chart.signed)

    # The latent kernel ------------------------------------------------------------------------------------------
    def offset(self, t: Time) -> Coefficient:
        r"""The deterministic shift :math:`b_t` of the latent kernel."""
        return namespace(t).zeros_like(floating(t))

    def d_offset(self, t: Time) -> Coefficient:
        r""":math:`\dot b_t`."""
        return namespace(t).zeros_like(floating(t))

    def alpha(self, t: Time) -> Coefficient:
        r""":math:`\alpha_t`."""
        return self.schedule.alpha(floating(t))

    def sigma(self, t: Time) -> Coefficient:
        r""":math:`\sigma_t`."""
        return self.schedule.sigma(floating(t))

    def log_snr(self, t: Time) -> Coefficient:
        r""":math:`\log(\alpha_t^2/\sigma_t^2)`."""
        return self.schedule.log_snr(floating(t))

    def noise_ratio(self, t: Time) -> Coefficient:
        r""":math:`\sigma_t/\alpha_t`."""
        return self.schedule.noise_ratio(floating(t))

    def d_alpha(self, t: Time) -> Coefficient:
        r""":math:`\dot\alpha_t`."""
        return self.schedule.d_alpha(floating(t))

    def d_sigma(self, t: Time) -> Coefficient:
        r""":math:`\dot\sigma_t`."""
        return self.schedule.d_sigma(floating(t))

    @computed
    def t_min(self) -> float:
        """The smallest time that is trained and sampled."""
        return self.schedule.t_min

    @computed
    def t_max(self) -> float:
        """The largest time that is trained and sampled."""
        return self.schedule.t_max

    @property
    def domain(self) -> tuple[float, float]:
        """From the time of clean data to the end of the schedule."""
        return self.schedule.clean_time, self.schedule.t_end

    def check_levels(self, where: str, times: np.ndarray) -> None:
        """See :class:`scorelab.processes.Process`; noise levels have to be numbers of float32."""
        with np.errstate(all="ignore"):
            sigma, alpha, scale = self.sigma(times), self.alpha(times), self.schedule.scale(times)
            ratio = sigma / scale
            usable = (scale >= np.finfo(np.float32).tiny) & (ratio <= np.finfo(np.float32).max) & (sigma >= 0)
            usable &= (sigma > 0) | (times == self.clean_time)
        if not np.all(usable):
            worst = np.argmin(usable)
            raise ValueError(
                f"{where} has t = {times[worst]:.6g}, where {self.schedule!r} has sigma = {sigma[worst]:.4g} and "
                f"alpha = {alpha[worst]:.4g}: expected noise levels that float32 can hold"
            )

    def checked(self, name: str, prediction: GaussianPrediction, y: Float[Array, " batch *event"]) -> GaussianPrediction:
        """See :class:`Process`: a network in bfloat16, or in float32 under x64, is cast to the dtype of ``y``."""
        if not isinstance(prediction, GaussianPrediction):
            raise TypeError(
                f"{name} returned a {type(prediction).__name__}: expected a GaussianPrediction, as its process has them"
            )
        for form in ("denoised", "eps"):
            require_shape(f"{name}: {form}", getattr(prediction, form), y)
        if jnp.shape(prediction.t) not in ((), y.shape[:1]):
            raise ValueError(
                f"{name}: t has shape {jnp.shape(prediction.t)} for y of shape {y.shape}: expected () or {y.shape[:1]}"
            )
        if isinstance(prediction, HasLogProb) and jnp.shape(prediction.log_prob) != y.shape[:1]:
            raise ValueError(
                f"{name}: log_prob has shape {jnp.shape(prediction.log_prob)} for y of shape {y.shape}: expected {y.shape[:1]}"
            )
        denoised, eps = (jnp.asarray(value).astype(y.dtype) for value in (prediction.denoised, prediction.eps))
        return dataclasses.replace(prediction, denoised=denoised, eps=eps, t=jnp.asarray(prediction.t, y.dtype))

    # The chart --------------------------------------------------------------------------------------------------
    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``y = chart(x)``; ValueError for what is not real numbers."""
        require_real("encode.x", x)
        return self.chart.encode(x)

    def decode(self, y: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``x`` from ``y``."""
        return self.chart.decode(y)

    # Training ---------------------------------------------------------------------------------------------------
    def perturb(self, key: Key, batch: Float[Array, " batch *event"], t: BatchTime) -> Noised:
        r"""Draw :math:`y_t = \alpha_t y_0 + b_t + \sigma_t\epsilon` with :math:`y_0 = \mathrm{chart}(x_0)`.

        Args:
            key: PRNG key.
            batch: data :math:`x_0`, ``(batch, *event)``.
            t: scalar or ``(batch,)``.
        """
        x0 = jnp.asarray(batch)
        return self.noised(jax.random.normal(key, x0.shape, x0.dtype), self.encode(x0), t)

    def noised(self, eps: Float[Array, " batch *event"], y0: Float[Array, " batch *event"], t: BatchTime) -> Noised:
        """:meth:`perturb` with given noise ``eps``, from clean points ``y0`` of the chart; both ``(batch, *event)``."""
        require_shape("noised.eps", eps, y0)
        self.check_times("noised.t", t)
        t = jnp.asarray(t, y0.dtype)
        alpha, sigma, offset = (per_example(f(t), y0) for f in (self.alpha, self.sigma, self.offset))
        return Noised(y=alpha * y0 + offset + sigma * eps, y0=y0, noise=eps, t=t)

    def prior(self) -> GaussianNoise:
        r"""Pure noise, :math:`N(b_t, \sigma_t^2 I)`."""
        return GaussianNoise()

    def kernel_score(
        self, y: Float[Array, " batch *event"], y0: Float[Array, " batch *event"], t: BatchTime
    ) -> Float[Array, " batch *event"]:
        r""":math:`\nabla_y\log p(y_t\mid y_0) = -(y - \alpha_t y_0 - b_t)/\sigma_t^2`."""
        alpha, sigma, offset = (per_example(f(t), y) for f in (self.alpha, self.sigma, self.offset))
        return -(y - alpha * y0 - offset) / sigma**2

    def predict(
        self,
        y: Float[Array, " batch *event"],
        t: BatchTime,
        *,
        denoised: Float[Array, " batch *event"] | None = None,
        eps: Float[Array, " batch *event"] | None = None,
        score: Float[Array, " batch *event"] | None = None,
        velocity: Float[Array, " batch *event"] | None = None,
        stein: Float[Array, " batch *event"] | None = None,
    ) -> GaussianPrediction:
        r"""The full prediction from any of its forms; give exactly one, or both ``denoised`` and ``eps``.

        .. math:: \hat\epsilon = (y-b-\alpha D)/\sigma,\quad D = (y-b-\sigma\hat\epsilon)/\alpha,\quad
                  \hat\epsilon = -\sigma\,\mathrm{score},\quad
                  D = \frac{\dot\sigma (y-b) - \sigma(v-\dot b)}{\alpha\dot\sigma - \sigma\dot\alpha}.

        ``score`` is that of the chart, ``stein`` that of data space, :math:`\nabla_x\log p_t(x)`. Every form is cast to the dtype
        of ``y``; ValueError for another shape than that of ``y``.
        """
        forms = dict(denoised=denoised, eps=eps, score=score, velocity=velocity, stein=stein)
        given = {name: value for name, value in forms.items() if value is not None}
        if len(names := list(given)) != 1 and names != ["denoised", "eps"]:
            raise ValueError(f"predict was given {names or 'nothing'}: expected one of {', '.join(forms)} (or denoised and eps)")
        self.check_times("predict.t", t)
        for name, value in given.items():
            require_shape(f"predict.{name}", value, y)
            given[name] = jnp.asarray(value).astype(y.dtype)
        t = jnp.asarray(t, y.dtype)
        alpha, sigma, offset = (per_example(f(t), y) for f in (self.alpha, self.sigma, self.offset))
        centred = y - offset
        if "stein" in given:
            given["score"] = self.chart.latent_score(self.decode(y), given["stein"])
        if "score" in given:
            given["eps"] = -sigma * given["score"]
        if "velocity" in given:
            d_alpha, d_sigma = per_example(self.d_alpha(t), y), per_example(self.d_sigma(t), y)
            flow = given["velocity"] - per_example(self.d_offset(t), y)
            det = alpha * d_sigma - sigma * d_alpha
            given["denoised"] = (d_sigma * centred - sigma * flow) / det
            given["eps"] = (alpha * flow - d_alpha * centred) / det
        elif "denoised" not in given:
            given["denoised"] = (centred - sigma * given["eps"]) / alpha
        elif "eps" not in given:
            given["eps"] = (centred - alpha * given["denoised"]) / sigma
        return GaussianPrediction(denoised=given["denoised"], eps=given["eps"], t=t, process=self)

    # The SDE in the chart ---------------------------------------------------------------------------------------
    def latent_drift(self, y: Float[Array, " batch *event"], t: BatchTime) -> Float[Array, " batch *event"]:
        r""":math:`f_t (y - b_t) + \dot b_t`."""
        f, offset, d_offset = (per_example(h(t), y) for h in (self.schedule.drift_rate, self.offset, self.d_offset))
        return f * (y - offset) + d_offset

    def latent_diffusion(self, t: Time) -> Coefficient:
        r""":math:`g_t`."""
        rate = self.schedule.diffusion_rate(floating(t))
        return jnp.sqrt(rate) if isinstance(rate, jax.Array) else np.sqrt(rate)

    # The SDE in data space --------------------------------------------------------------------------------------
    def drift(self, x: Float[Array, " batch *event"], t: BatchTime) -> Float[Array, " batch *event"]:
        r"""Ito drift in data space, :math:`\phi'\,(f_t(y-b_t)+\dot b_t) + \tfrac12\phi''g_t^2`."""
        t = jnp.asarray(t, x.dtype)
        g2 = per_example(self.latent_diffusion(t), x) ** 2
        return self.chart.d_decode(x) * self.latent_drift(self.encode(x), t) + 0.5 * self.chart.dd_decode(x) * g2

    def diffusion(self, x: Float[Array, " batch *event"], t: BatchTime) -> Float[Array, " batch *event"]:
        r"""Elementwise noise amplitude in data space, :math:`\phi' g_t`."""
        return self.chart.d_decode(x) * per_example(self.latent_diffusion(jnp.asarray(t, x.dtype)), x)

    def div_diffusion(self, x: Float[Array, " batch *event"], t: BatchTime) -> Float[Array, " batch *event"]:
        r"""Divergence of :math:`G = (\phi' g_t)^2`: :math:`\partial G_i/\partial x_i = 2\phi'' g_t^2`."""
        g2 = per_example(self.latent_diffusion(jnp.asarray(t, x.dtype)), x) ** 2
        return 2 * self.chart.dd_decode(x) * g2

    def reverse_drift(
        self, x: Float[Array, " batch *event"], t: BatchTime, score: Float[Array, " batch *event"]
    ) -> Float[Array, " batch *event"]:
        r"""Drift of the reverse SDE for decreasing ``t``, from the data-space score :math:`\nabla_x\log p_t`."""
        return self.drift(x, t) - self.div_diffusion(x, t) - self._spread(x, t, score)

    def flow_drift(
        self, x: Float[Array, " batch *event"], t: BatchTime, score: Float[Array, " batch *event"]
    ) -> Float[Array, " batch *event"]:
        r"""Probability-flow velocity in data space, :math:`\mathrm{drift} - \tfrac12(\nabla\cdot G + G\,\nabla_x\log p_t)`."""
        return self.drift(x, t) - 0.5 * (self.div_diffusion(x, t) + self._spread(x, t, score))

    def _spread(
        self, x: Float[Array, " batch *event"], t: BatchTime, score: Float[Array, " batch *event"]
    ) -> Float[Array, " batch *event"]:
        """``G score``, in an order in which nothing is squared: ``x**2`` may leave float32 where the product does not."""
        amplitude = self.diffusion(x, t)
        return amplitude * (amplitude * score)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianNoise(Start):
    r""":math:`N(b_t, \sigma_t^2 I)`: the noise of a linear-Gaussian process at the first grid time, not a standard normal."""

    def draw(
        self, keys: Key, ids: Int[Array, " batch"], process: LinearGaussian, t: Float[Array, ""], event
    ) -> Float[Array, " batch *event"]:
        noise = per_example_normal(keys, jnp.zeros((1, *event), t.dtype))
        return process.offset(t) + process.sigma(t) * noise

    def log_prob(
        self, y: Float[Array, " batch *event"], process: LinearGaussian, t: Float[Array, ""] | float
    ) -> Float[Array, " batch"]:
        sigma, size = process.sigma(t), math.prod(y.shape[1:])
        square = jnp.sum(((y - process.offset(t)) / sigma) ** 2, axis=tuple(range(1, y.ndim)))
        return -0.5 * (square + size * (2 * jnp.log(sigma) + math.log(2 * math.pi)))
