"""Denoising score matching."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp

from scorelab.losses.times import LogNormalTimes, Times
from scorelab.losses.weightings import EDMWeighting, Weighting
from scorelab.models.ask import ask
from scorelab.processes.base import Perturbed, Prediction, Process
from scorelab.typing import Array, Key, Model, Pytree, per_example, require_int, require_number, require_spec

Batch = dict[str, Pytree]


class Loss(Protocol):
    """What a learner minimises."""

    def __call__(self, key: Key, model: Model, batch: Batch) -> tuple[Array, dict[str, Array]]:
        """The loss of each example, ``(batch,)``, and scalar metrics by name.

        ``batch`` is ``{"x": (batch, *event) floating point in data space, "cond": pytree or None}``.
        """
        ...


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
        require_weighting(self)
        require_number(self, 0.0, 1.0, label_dropout=self.label_dropout)
        if self.null_label is not None:
            require_int(self, 0, null_label=self.null_label)
        elif self.label_dropout > 0:
            raise ValueError(
                f"{type(self).__name__}.null_label = None: expected the null condition (num_classes of the "
                f"network), since label_dropout = {self.label_dropout}"
            )

    def weight(self, t: Array) -> Array:
        """The weight of the error in the denoised data at ``t``."""
        return weights(self, t)

    def __call__(self, key: Key, model: Model, batch: Batch) -> tuple[Array, dict[str, Array]]:
        r"""The loss of each example, ``(batch,)``, and ``eps_mse``, the unweighted error in the noise."""
        x, cond = batch["x"], batch.get("cond")
        require_floating(x)
        key_times, key_noise, key_labels = jax.random.split(key, 3)
        t = self.times(key_times, self.process, x.shape[0])
        noised = self.noised(key_noise, batch, t)
        prediction = ask(model, noised.y, t, self._drop(key_labels, cond, x.shape[0]), process=self.process)
        square = mean_square(denoised_error(prediction, noised.y0, noised.eps))
        return self.weight(t) * square, {"eps_mse": jnp.mean(mean_square(prediction.eps - noised.eps))}

    def noised(self, key: Key, batch: Batch, t: Array) -> Perturbed:
        """The noised batch at ``t``, ``(batch,)``."""
        return self.process.perturb(key, batch["x"], t)

    def _drop(self, key: Key, cond: Pytree, n: int) -> Pytree:
        if self.label_dropout == 0:
            return cond
        if cond is None:
            raise ValueError(f'batch["cond"] = None: expected one, label_dropout = {self.label_dropout}')
        dropped = jax.random.bernoulli(key, self.label_dropout, (n,))

        def replace(c):
            return jnp.where(per_example(dropped, c), jnp.asarray(self.null_label, c.dtype), c)

        return jax.tree.map(replace, cond)


class Weighted(Protocol):
    """A loss with a weighting."""

    @property
    def process(self) -> Process:
        """The forward process."""
        ...

    @property
    def weighting(self) -> Weighting:
        """A function of ``(process, t)``."""
        ...


def weights(loss: Weighted, t: Array) -> Array:
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


def require_floating(x: Array) -> None:
    """Raise ``TypeError`` for raw integer data, ``ValueError`` for none."""
    if jnp.ndim(x) < 2 or not jnp.size(x):
        raise ValueError(f'batch["x"] has shape {jnp.shape(x)}: expected (batch, *event) with at least one example')
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f'batch["x"] has dtype {x.dtype}: expected floating point, scaled by the prepare of the data')


def denoised_error(prediction: Prediction, y0: Array, eps: Array) -> Array:
    r""":math:`D - y_0`, for a consistent pair ``(y0, eps)`` behind the point that was predicted for.

    It equals :math:`-r\,(\hat\epsilon-\epsilon)` with :math:`r=\sigma/\alpha`, which keeps its digits where ``r`` is small.
    """
    ratio = prediction.process.noise_ratio(prediction.t)
    # The ratio is capped in the branch that is not taken: alpha = 0 would put inf * 0 into its gradient.
    small = per_example(jnp.minimum(ratio, 1.0), eps)
    return jnp.where(per_example(ratio <= 1, eps), small * (eps - prediction.eps), prediction.denoised - y0)


def mean_square(error: Array) -> Array:
    """Mean over the event of the square, ``(batch,)``."""
    error = error.astype(jnp.promote_types(error.dtype, jnp.float32))
    return jnp.mean(jnp.square(error).reshape(error.shape[0], -1), axis=1)
