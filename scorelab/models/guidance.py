r"""Guidance: models made of models. Scales and intervals are leaves, so a sweep over them compiles once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree, is_traced, per_example
from scorelab.models.base import ChecksCondition, KnowsDensity, Model, Wraps, ask, check_condition
from scorelab.models.guided import GuidedPrediction
from scorelab.models.per_sample import PER_SAMPLE, require_numbers
from scorelab.processes.base import require_same_process
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.processes.predictions import HasProposal, unguided
from scorelab.processes.scale import KnowsScale


class Guidance(Wraps):
    """What guidance by two predictions has in common.

    Attributes:
        model: the model that is guided.
        scale: ``w``, a scalar or ``(batch,)``; a leaf.
        interval: ``(low, high)`` noise ratios between which guidance acts; leaves.
    """

    model: Model
    scale: Array | float
    interval: tuple[float, float]

    def __post_init__(self):
        require_numbers(self, scale=self.scale)
        object.__setattr__(self, "interval", _interval(self))

    def active(self) -> tuple[float, float] | None:
        """The interval; None at scale 1."""
        if is_traced(self.scale, self.interval) or np.all(np.asarray(self.scale) == 1):
            return None
        return float(self.interval[0]), float(self.interval[1])


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance, ChecksCondition):
    r"""Classifier-free guidance, :math:`D = D_\varnothing + w\,(D_c - D_\varnothing)` (Ho & Salimans 2022).

    ``w = 1`` is the conditional model, ``w = 0`` the unconditional one. With a ``negative`` condition, that one takes the place of
    none: for ``w > 1`` samples are driven away from it. Outside the interval of noise ratios
    :math:`\sigma/\alpha` the scale is one (Kynkaanniemi et al. 2024).

    Attributes:
        model: the conditional model, called with ``cond`` and, unless ``unconditional`` is given, without.
        scale: ``w``, a scalar or ``(batch,)``; a leaf.
        unconditional: a model of its own for the unconditional prediction, or None.
        negative: the condition of the unconditional prediction, with a leading axis of samples; None for no condition; a leaf.
        interval: ``(low, high)`` noise ratios between which guidance acts; leaves.
    """

    model: Model
    scale: Array | float = field(default=1.0, metadata=PER_SAMPLE)
    unconditional: Any = None
    negative: Pytree = field(default=None, metadata=PER_SAMPLE)
    interval: tuple[float, float] = (0.0, float("inf"))

    def check_condition(self, cond: Pytree) -> None:
        """``cond`` as the model, the negative one as the model that is asked under it."""
        check_condition(self.model, cond)
        check_condition(self._free, self.negative)

    @property
    def _free(self) -> Model:
        return self.model if self.unconditional is None else self.unconditional

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> GaussianPrediction:
        """Predict for ``y`` of shape ``(batch, *event)`` under ``cond``."""
        conditional = ask(self.model, y, t, cond)
        free = ask(self._free, y, t, self.negative)
        return extrapolate(free, conditional, scale_in_interval(conditional, self.scale, self.interval))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Autoguidance(Guidance):
    r"""Guidance by a weaker version of the same model, :math:`D = D_{weak} + w\,(D - D_{weak})` (Karras et al. 2024).

    Attributes:
        model: the good model.
        weak: a smaller or less trained model under the same condition.
        scale: ``w``, a scalar or ``(batch,)``; a leaf.
        interval: ``(low, high)`` noise ratios between which guidance acts; leaves.
    """

    model: Model
    weak: Model
    scale: Array | float = field(default=1.0, metadata=PER_SAMPLE)
    interval: tuple[float, float] = (0.0, float("inf"))

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> GaussianPrediction:
        """Predict for ``y`` of shape ``(batch, *event)`` under ``cond``."""
        strong = ask(self.model, y, t, cond)
        return extrapolate(ask(self.weak, y, t, cond), strong, scale_in_interval(strong, self.scale, self.interval))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditioned(Wraps, ChecksCondition, KnowsScale):
    """A model under a fixed condition; what remains is unconditional for its caller. :func:`conditioned` keeps a known density."""

    model: Model
    cond: Pytree = field(default=None)

    def __post_init__(self):
        check_condition(self.model, self.cond)

    def check_condition(self, cond: Pytree) -> None:
        """Nothing: it asks for no condition, and has looked at its own."""

    def asks_under(self, cond: Pytree) -> Pytree:
        """Its own."""
        return self.cond

    def scale(self) -> tuple[float, float] | None:
        """That of the model, None under a condition."""
        return self.model.scale() if self.cond is None and isinstance(self.model, KnowsScale) else None

    def matched(self) -> Any:
        """That of the model, None under a condition."""
        return self.model.matched() if self.cond is None and isinstance(self.model, KnowsScale) else None

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> GaussianPrediction:
        """Predict for ``y`` under the stored condition, repeated over the batch."""
        repeated = jax.tree.map(lambda c: jnp.broadcast_to(c, (y.shape[0], *jnp.shape(c))), self.cond)
        return ask(self.model, y, t, repeated)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ConditionedDensity(Conditioned, KnowsDensity):
    """A :class:`Conditioned` model that knows its density."""


def conditioned(model: Model, cond: Pytree = None) -> Conditioned:
    """``model`` under a fixed condition, or under none; it knows its density where ``model`` does."""
    return (ConditionedDensity if isinstance(model, KnowsDensity) else Conditioned)(model=model, cond=cond)


def _interval(guidance: Guidance) -> Any:
    """The interval as a tuple; ``ValueError`` for what is none. Traced values are not looked at, nor are placeholders of JAX."""
    interval = guidance.interval
    if type(interval) is object:
        return interval
    ends = tuple(interval) if isinstance(interval, tuple | list) or np.ndim(interval) == 1 else ()
    numbers = [
        np.asarray(end) for end in ends if isinstance(end, int | float | np.generic | np.ndarray | jax.Array) and not is_traced(end)
    ]
    if len(ends) != 2 or any(end.ndim for end in numbers) or (len(numbers) == 2 and not numbers[0] <= numbers[1]):
        raise ValueError(f"{type(guidance).__name__}.interval = {interval!r}: expected noise ratios (low, high) with low <= high")
    return ends


def scale_in_interval(prediction: GaussianPrediction, scale: Array | float, interval: tuple) -> Array:
    """``scale`` where the noise ratio lies in ``interval``, one elsewhere."""
    ratio = prediction.process.noise_ratio(prediction.t)
    low, high = interval
    return jnp.where((ratio >= low) & (ratio <= high), scale, 1.0)


def extrapolate(weak: GaussianPrediction, strong: GaussianPrediction, scale: Array) -> GaussianPrediction:
    """``weak + scale (strong - weak)`` in every form of the prediction at once (they are affine in each other).

    Of guided ones ``base`` and ``gradient`` are extrapolated each, so that weighted particles can still tell them apart.
    """
    require_same_process("guidance", strong=strong.process, weak=weak.process)
    w = per_example(scale, strong.denoised).astype(strong.denoised.dtype)
    between = lambda weak, strong: weak + w * (strong - weak)
    a, b = unguided(weak), unguided(strong)
    base = GaussianPrediction(
        denoised=between(a.denoised, b.denoised), eps=between(a.eps, b.eps), t=strong.t, process=strong.process
    )
    if a is weak and b is strong:
        return base
    pulls = (p.gradient if isinstance(p, HasProposal) else 0.0 for p in (weak, strong))
    return GuidedPrediction.of(base, between(*pulls))
