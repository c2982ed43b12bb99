"""Starts that are laws: noise, noised data, and what lies between."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, Key, Pytree, is_traced
from scorelab.densities import Gaussian
from scorelab.densities.base import Density
from scorelab.processes.base import Start
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.scale import KnowsScale, warn_scale, warn_start
from scorelab.randomness import per_example_normal
from scorelab.starts.checks import require_finite, require_rows
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prior(Start):
    r"""The process's own: for a linear-Gaussian one :math:`N(b_t, \sigma_t^2 I)` at the first grid time, not a standard normal."""

    def suit(self, where, model, t, cond=None):
        """As that of the process. A warning where the data of a model that knows their scale are not small against the noise."""
        model.process.prior().suit(where, model, t, cond)
        if isinstance(model, KnowsScale) and (scale := model.scale()) is not None:
            warn_scale(where, model.process, t, mean=scale[0], std=scale[1])

    def is_prior(self, process):
        """It is."""
        return True

    def on_grid(self, process, times) -> tuple[Start, np.ndarray]:
        """The prior of the process itself where it has numbers, which are then arguments of programs and not part of them."""
        prior = process.prior()
        start, times = prior.on_grid(process, times)
        return start if jax.tree.leaves(prior) else self, times

    def check(self, count, event, process):
        super().check(count, event, process)
        process.prior().check(count, event, process)

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Pytree:
        return process.prior().draw(keys, ids, process, t, event)

    def weighs(self, process):
        return process.prior().weighs(process)

    def log_weight(self, y: Pytree, process, t: Float[Array, ""] | float, cond: Pytree = None) -> Float[Array, " batch"]:
        return process.prior().log_weight(y, process, t, cond)

    def log_prob(self, y: Pytree, process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        return process.prior().log_prob(y, process, t)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noised(Start):
    """The exact law at the first grid time of data with a known law: no error of the start is left.

    Args:
        law: the law of the data in the chart, or one in data space that the chart knows
            (:class:`scorelab.densities.LogNormalMixture`).
    """

    law: Density

    def check(self, count, event, process):
        require_spec(self, LinearGaussian, process=process)
        super().check(count, event, process)

    def suit(self, where, model, t, cond=None):
        """A warning where a model that knows the scale of its data has others than the start."""
        if not isinstance(model, KnowsScale) or (theirs := model.scale()) is None:
            return
        if (mine := self.law.in_chart(model.process.chart).scale()) is not None:
            warn_start(where, model.process, t, start=mine, model=theirs)

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        noised = self.law.in_chart(process.chart).noised(process, t)
        return jax.vmap(lambda key: noised.sample(key, 1)[0])(keys).astype(t.dtype)

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        return self.law.in_chart(process.chart).noised(process, t).log_prob(y)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianMoments(Noised):
    r"""The noised law of a Gaussian with the data's moments, :math:`N(\alpha_t\mu+b_t,\ \alpha_t^2\Sigma+\sigma_t^2 I)`.

    Args:
        law: a :class:`scorelab.densities.Gaussian` in the chart.
    """

    law: Gaussian

    def __post_init__(self):
        # Pytree reconstruction passes placeholders through here, so only laws of the wrong kind are refused.
        if isinstance(self.law, Density):
            require_spec(self, Gaussian, law=self.law)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogNormal(Start):
    r"""One normal law for every element of ``y``, :math:`y_i \sim N(m, s^2)`: on the log chart a log-normal ``x``.

    The start of arXiv 2510.02730. It ignores what :class:`GaussianMoments` knows: on MNIST at the paper's noise it is
    at least 14 nats per image away from the noised data.

    Args:
        mean: ``m``, at the first grid time.
        std: ``s``, at the first grid time.
    """

    mean: Array | float
    std: Array | float

    def check_arrays(self, count, event):
        for name, value, low, more in (("mean", self.mean, -math.inf, ""), ("std", self.std, 0.0, " above 0")):
            if np.shape(value) != () or not (is_traced(value) or low < float(value) < math.inf):
                raise ValueError(f"LogNormal.{name} = {value!r}: expected one finite number{more}")

    @classmethod
    def matched(cls, mean: float, std: float, process: LinearGaussian, t: float | None = None) -> LogNormal:
        """From the mean and deviation over all elements of the clean data in the chart, noised to ``t`` (``t_max``)."""
        t = process.t_max if t is None else t
        alpha, sigma, offset = (float(f(t)) for f in (process.alpha, process.sigma, process.offset))
        return cls(alpha * float(mean) + offset, math.hypot(alpha * float(std), sigma))

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        return self.mean + self.std * per_example_normal(keys, jnp.zeros((1, *event), t.dtype))

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        square = jnp.sum(((y - self.mean) / self.std) ** 2, axis=tuple(range(1, y.ndim)))
        return -0.5 * (square + math.prod(y.shape[1:]) * jnp.log(2 * math.pi * self.std**2))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ClassAverage(Start):
    r"""The average point of a class, noised: :math:`N(\alpha_t\mu_c + b_t,\ \sigma_t^2 I)`.

    Args:
        means: the average of each class in the chart, ``(classes, *event)``.
        label: the class of each sample, ``(n,)``, looked up by its id; None to draw classes with equal probability.
    """

    means: Array
    label: Array | None = None

    def check(self, count, event, process):
        require_spec(self, LinearGaussian, process=process)
        super().check(count, event, process)

    def check_arrays(self, count, event):
        if np.shape(self.means)[1:] != tuple(event):
            raise ValueError(f"ClassAverage.means has shape {np.shape(self.means)}: expected (classes, *{event})")
        require_finite("ClassAverage.means", self.means)
        if self.label is not None:
            require_rows("ClassAverage.label", self.label, count)
            if is_traced(self.label):
                return
            label = np.asarray(self.label)
            low, high, last = label.min(), label.max(), len(self.means) - 1
            if low < 0 or high > last:
                raise ValueError(f"ClassAverage.label has values {low} to {high}: expected 0 to {last}")

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        if self.label is None:
            # A stream of its own beside that of the noise.
            label = jax.vmap(lambda key: jax.random.randint(jax.random.fold_in(key, 1), (), 0, len(self.means)))(keys)
        else:
            label = jnp.take(jnp.asarray(self.label), ids, mode="fill", fill_value=-1)
        noise = per_example_normal(keys, jnp.zeros((1, *event), t.dtype))
        means = jnp.asarray(self.means, t.dtype)
        # A label that is no class, which only a traced one can be, has no average.
        mine = means.at[label].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
        return process.alpha(t) * mine + process.offset(t) + process.sigma(t) * noise

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """The log-density over equally likely classes; ValueError where the classes are given."""
        if self.label is not None:
            raise ValueError("ClassAverage.log_prob with given labels: expected label=None, a law of the point alone")
        means = jnp.asarray(self.means, y.dtype)
        noise = Prior()
        log_probs = jax.vmap(lambda mean: noise.log_prob(y - process.alpha(t) * mean, process, t))(means)
        return jax.nn.logsumexp(log_probs, axis=0) - math.log(len(means))
