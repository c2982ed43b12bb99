r"""Models whose denoised mean is kept in bounds: clipping, and dynamic thresholding.

What is moved is the denoised mean ``D``, in the chart; the predicted noise follows, so that the pair stays one of the point:

.. math:: D \to D',\qquad \hat\epsilon \to \hat\epsilon + \frac{\alpha}{\sigma}\,(D - D') .

Where the bounds hold all data, an exact ``D`` is never outside of them, and nothing changes, bitwise. Where they do not, samples
are of another law: under an exact model of a normal law in one dimension, clipping gives samples that are clipped themselves.
:func:`scorelab.diagnostics.bounded_along` says how much was moved.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree, per_example
from scorelab.models.base import Model, Wraps, ask
from scorelab.models.guided import GuidedPrediction, with_denoised
from scorelab.models.per_sample import PER_SAMPLE, known_numbers, require_numbers
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasProposal
from scorelab.processes.scale import KnowsScale
from scorelab.validation import require_spec


class Bounded(Wraps, KnowsScale, abc.ABC):
    """A model with its denoised mean in bounds; a new one states :meth:`bound`, and is registered as a pytree.

    Under a guided model both what guidance is added to and the guided prediction are in bounds, and weighted particles see the
    difference of the two. The probability flow is one of a field that is continuous, so likelihoods and inversion are those of the
    flow in bounds.

    Attributes:
        model: the model in bounds.
    """

    model: Model

    @abc.abstractmethod
    def bound(self, denoised: Array) -> Array:
        """``D'`` of ``D``, ``(batch, *event)``; bitwise ``D`` where that is in bounds."""

    def active(self) -> tuple[float, float] | None:
        """At every noise, since nobody knows where a denoised mean is out of bounds."""
        return 0.0, math.inf

    def scale(self) -> tuple[float, float] | None:
        """That of ``model``: what is noised are its data, in bounds or not."""
        return self.model.scale() if isinstance(self.model, KnowsScale) else None

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> GaussianPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``."""
        require_spec(self, LinearGaussian, process=self.process)
        prediction = ask(self.model, y, t, cond)
        found = with_denoised(prediction, self.bound(prediction.denoised))
        if not isinstance(prediction, HasProposal):
            return found
        base = with_denoised(prediction.base, self.bound(prediction.base.denoised))
        return GuidedPrediction.between(base, found)

    def moved(self, y: Array, t: Array | float, cond: Pytree = None) -> Array:
        """The share of the elements of every ``D`` that the bounds change, ``(batch,)``."""
        denoised = ask(self.model, y, t, cond).denoised
        changed = self.bound(denoised) != denoised
        return jnp.mean(changed, axis=tuple(range(1, changed.ndim)), dtype=denoised.dtype)


def _require_set(spec: Bounded, **fields: Any) -> None:
    """Raise ``TypeError`` naming the first field without numbers: constructors let it pass, as they do for placeholders."""
    for name, value in fields.items():
        if not isinstance(value, int | float | np.ndarray | np.generic | jax.Array):
            raise TypeError(f"{type(spec).__name__}.{name} = {value!r}: expected a finite number, or one for each sample (n,)")


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Clipped(Bounded):
    r"""Clipping, :math:`D' = \min(\max(D, \mathrm{low}), \mathrm{high})`: the ``clip_sample`` of other libraries.

    Attributes:
        model: the model that is clipped.
        low: the lowest value of an element in the chart, a scalar or ``(batch,)``; a leaf.
        high: the highest one; a leaf.
    """

    model: Model
    low: Array | float = field(default=-1.0, metadata=PER_SAMPLE)
    high: Array | float = field(default=1.0, metadata=PER_SAMPLE)

    def __post_init__(self):
        require_numbers(self, low=self.low, high=self.high)
        if known_numbers(self.low, self.high) and not np.all(np.asarray(self.low) < np.asarray(self.high)):
            raise ValueError(f"Clipped.low = {self.low!r} with high = {self.high!r}: expected low < high")

    def bound(self, denoised: Array) -> Array:
        _require_set(self, low=self.low, high=self.high)
        return jnp.clip(denoised, *(per_example(end, denoised).astype(denoised.dtype) for end in (self.low, self.high)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class DynamicThreshold(Bounded):
    r"""Dynamic thresholding: the bounds of a sample follow a quantile of its elements (Saharia et al. 2022, arXiv 2205.11487).

    .. math:: s = \min(\max(q_p(|D|),\,b),\,l),\qquad D' = \frac{b}{s}\,\min(\max(D, -s), s) .

    The quantile is over the event, linear between elements. Pixels that guidance drives out of range pull the others inwards with
    them, in the place of sticking at the end of the range. With ``p = 1`` no element is clipped, but all are scaled. Other
    libraries have a ``limit`` as well, their ``sample_max_value``; with ``l = b`` this is clipping.

    Attributes:
        model: the model in bounds, for data within ``-b`` and ``b`` of the chart.
        quantile: ``p`` in (0, 1], a scalar or ``(batch,)``; a leaf.
        size: ``b``, a scalar or ``(batch,)``; a leaf.
        limit: ``l`` of at least ``b``, a scalar or ``(batch,)``; a leaf; None for none.
    """

    model: Model
    quantile: Array | float = field(default=0.995, metadata=PER_SAMPLE)
    size: Array | float = field(default=1.0, metadata=PER_SAMPLE)
    limit: Array | float | None = field(default=None, metadata=PER_SAMPLE)

    def __post_init__(self):
        require_numbers(self, above=0.0, quantile=self.quantile, size=self.size, limit=self.limit)
        if known_numbers(self.quantile) and not np.all(np.asarray(self.quantile) <= 1):
            raise ValueError(f"DynamicThreshold.quantile = {self.quantile!r}: expected a number in (0, 1]")
        if known_numbers(self.size, self.limit) and not np.all(np.asarray(self.limit) >= np.asarray(self.size)):
            raise ValueError(f"DynamicThreshold.limit = {self.limit!r} with size = {self.size!r}: expected limit >= size")

    def bound(self, denoised: Array) -> Array:
        _require_set(self, quantile=self.quantile, size=self.size)
        flat = jnp.sort(jnp.abs(denoised).reshape(len(denoised), -1), axis=1)
        place = jnp.broadcast_to(jnp.asarray(self.quantile, denoised.dtype), (len(flat),)) * (flat.shape[1] - 1)
        below = jnp.clip(jnp.floor(place), 0, flat.shape[1] - 1).astype(jnp.int32)
        at = lambda index: jnp.take_along_axis(flat, index[:, None], axis=1)[:, 0]
        low, high = at(below), at(jnp.minimum(below + 1, flat.shape[1] - 1))
        size = jnp.asarray(self.size, denoised.dtype)
        s = jnp.maximum(low + (place - below) * (high - low), size)
        s = s if self.limit is None else jnp.minimum(s, jnp.asarray(self.limit, denoised.dtype))
        s, shrunk = per_example(s, denoised), per_example(size / s, denoised)
        return jnp.clip(denoised, -s, s) * shrunk
