r"""Guidance: models made of models. Scales and intervals are leaves, so a sweep over them compiles once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree, is_traced, per_example
from scorelab.models.base import ChecksCondition, KnowsDensity, Model, Wraps, ask, check_condition
from scorelab.models.guided import GuidedPrediction, with_denoised
from scorelab.models.per_sample import PER_SAMPLE, known_numbers, require_numbers
from scorelab.processes.base import Process, require_same_process
from scorelab.processes.interpolant import FlowPrediction, StochasticInterpolant
from scorelab.processes.linear_gaussian import GaussianPrediction, LinearGaussian
from scorelab.processes.predictions import HasLatent, HasProposal, unguided
from scorelab.processes.scale import KnowsScale
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ScaleAt:
    r"""A guidance scale that depends on the noise: ``scales`` at the noise ratios ``ratios``, linear in their logarithm between.

    Below the first ratio and above the last one it is that of the first and the last. Leaves: other numbers do not recompile.

    Args:
        ratios: noise ratios :math:`\sigma/\alpha` above 0, increasing, ``(k,)``.
        scales: ``w`` there, ``(k,)``.
    """

    ratios: Array | tuple[float, ...]
    scales: Array | tuple[float, ...]

    def __post_init__(self):
        if is_traced(self.ratios, self.scales) or any(type(leaf) is object for leaf in jax.tree.leaves((self.ratios, self.scales))):
            return
        for name in ("ratios", "scales"):
            value = np.asarray(getattr(self, name))
            if value.ndim != 1 or not value.size or value.dtype.kind not in "fiu" or not np.all(np.isfinite(value)):
                raise ValueError(f"ScaleAt.{name} = {getattr(self, name)!r}: expected finite numbers (k,)")
            if isinstance(getattr(self, name), list | tuple):
                object.__setattr__(self, name, tuple(map(float, value)))
        if len(self.ratios) != len(self.scales):
            raise ValueError(f"ScaleAt.scales has {len(self.scales)} numbers: expected {len(self.ratios)}, one for each of ratios")
        if np.min(self.ratios) <= 0 or np.any(np.diff(self.ratios) <= 0):
            raise ValueError(f"ScaleAt.ratios = {self.ratios!r}: expected numbers above 0 that increase")

    def __call__(self, ratio: Array) -> Array:
        """``w`` at a noise ratio, of its shape."""
        at, scales = jnp.asarray(self.ratios, ratio.dtype), jnp.asarray(self.scales, ratio.dtype)
        return jnp.interp(jnp.log(ratio), jnp.log(at), scales)


class Guidance(Wraps):
    """What guidance by two predictions has in common.

    Under an interpolant the velocity and the latent noise are extrapolated with one scale, at all times.

    Attributes:
        model: the model that is guided.
        scale: ``w``, a scalar or ``(batch,)``, or a :class:`ScaleAt` of the noise; leaves.
        interval: ``(low, high)`` noise ratios between which guidance acts; leaves.
        rescale: how far the deviation over the event is brought back to that of the guided model; None for not at all.
    """

    model: Model
    scale: Array | float | ScaleAt
    interval: tuple[float, float]
    rescale: Array | float | None

    def __post_init__(self):
        if not isinstance(self.scale, ScaleAt):
            require_numbers(self, scale=self.scale)
        require_numbers(self, minimum=0.0, rescale=self.rescale)
        if known_numbers(self.rescale) and np.any(np.asarray(self.rescale) > 1):
            raise ValueError(f"{type(self).__name__}.rescale = {self.rescale!r}: expected numbers from 0 to 1, or None")
        object.__setattr__(self, "interval", _interval(self))
        process = getattr(self.model, "process", None)
        # Pytree reconstruction passes placeholders, which have no process.
        if not isinstance(process, Process) or isinstance(process, LinearGaussian):
            return
        require_spec(self, LinearGaussian | StochasticInterpolant, process=process)
        everywhere = not known_numbers(*self.interval) or tuple(map(float, self.interval)) == (0.0, math.inf)
        for name, fits in dict(
            scale=not isinstance(self.scale, ScaleAt), rescale=self.rescale is None, interval=everywhere
        ).items():
            if not fits:
                raise ValueError(
                    f"{type(self).__name__}.{name} = {getattr(self, name)!r} under {process!r}: expected one scale at all "
                    "times and no rescale, since an interpolant has no noise ratio"
                )

    def active(self) -> tuple[float, float] | None:
        """The interval; None at scale 1."""
        scale = self.scale.scales if isinstance(self.scale, ScaleAt) else self.scale
        if is_traced(scale, self.interval) or np.all(np.asarray(scale) == 1):
            return None
        return float(self.interval[0]), float(self.interval[1])

    def guided(self, weak: Any, strong: Any) -> Any:
        """What guidance makes of the two predictions."""
        if isinstance(strong, FlowPrediction):
            return extrapolate_flow(weak, strong, cast(Array, self.scale))
        scale = scale_in_interval(strong, self.scale, self.interval)
        found = extrapolate(weak, strong, scale)
        return found if self.rescale is None else rescaled(found, strong, scale, self.rescale)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ClassifierFreeGuidance(Guidance, ChecksCondition):
    r"""Classifier-free guidance, :math:`D = D_\varnothing + w\,(D_c - D_\varnothing)` (Ho & Salimans 2022).

    ``w = 1`` is the conditional model, ``w = 0`` the unconditional one. With a ``negative`` condition, that one takes the place of
    none: for ``w > 1`` samples are driven away from it. Outside the interval of noise ratios
    :math:`\sigma/\alpha` the scale is one (Kynkaanniemi et al. 2024).

    A large scale widens the denoised mean, and images come out overexposed. ``rescale`` is :math:`\varphi` of
    :math:`D \leftarrow D\,(1 - \varphi + \varphi\,s_c/s)`, with the standard deviations over the event of :math:`D_c` and of ``D``
    (Lin et al. 2024, arXiv 2305.08891, section 3.4). The published rule acts on the output of the network, whatever it stands for;
    here it is the denoised mean for every network. The two agree at pure noise of zero terminal signal.

    Attributes:
        model: the conditional model, called with ``cond`` and, unless ``unconditional`` is given, without.
        scale: ``w``, a scalar or ``(batch,)``, or a :class:`ScaleAt` of the noise; leaves.
        unconditional: a model of its own for the unconditional prediction, or None.
        negative: the condition of the unconditional prediction, with a leading axis of samples; None for no condition; a leaf.
        interval: ``(low, high)`` noise ratios between which guidance acts; leaves.
        rescale: :math:`\varphi` in [0, 1], a scalar or ``(batch,)``, a leaf; None for the plain rule. 0.7 was published.
    """

    model: Model
    scale: Array | float | ScaleAt = field(default=1.0, metadata=PER_SAMPLE)
    unconditional: Any = None
    negative: Pytree = field(default=None, metadata=PER_SAMPLE)
    interval: tuple[float, float] = (0.0, float("inf"))
    rescale: Array | float | None = field(default=None, metadata=PER_SAMPLE)

    def check_condition(self, cond: Pytree) -> None:
        """``cond`` as the model, the negative one as the model that is asked under it."""
        check_condition(self.model, cond)
        check_condition(self._free, self.negative)
        # A row by itself is a condition as well, unless what was given is one row for all: chunks would take its numbers for rows.
        rows = jax.tree.map(lambda leaf: leaf[0] if jnp.ndim(leaf) and len(leaf) else leaf, self.negative)
        try:
            check_condition(self._free, rows)
        except ValueError as error:
            shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(self.negative))
            raise ValueError(
                f"{type(self).__name__}.negative has the shape {shapes}: expected a leading axis of samples; without it, {error}"
            ) from error

    @property
    def _free(self) -> Model:
        return self.model if self.unconditional is None else self.unconditional

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """Predict for ``y`` of shape ``(batch, *event)`` under ``cond``."""
        conditional = ask(self.model, y, t, cond)
        free = ask(self._free, y, t, self.negative)
        return self.guided(free, conditional)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Autoguidance(Guidance):
    r"""Guidance by a weaker version of the same model, :math:`D = D_{weak} + w\,(D - D_{weak})` (Karras et al. 2024).

    Attributes:
        model: the good model.
        weak: a smaller or less trained model under the same condition.
        scale: ``w``, a scalar or ``(batch,)``, or a :class:`ScaleAt` of the noise; leaves.
        interval: ``(low, high)`` noise ratios between which guidance acts; leaves.
        rescale: as in :class:`ClassifierFreeGuidance`.
    """

    model: Model
    weak: Model
    scale: Array | float | ScaleAt = field(default=1.0, metadata=PER_SAMPLE)
    interval: tuple[float, float] = (0.0, float("inf"))
    rescale: Array | float | None = field(default=None, metadata=PER_SAMPLE)

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        """Predict for ``y`` of shape ``(batch, *event)`` under ``cond``."""
        strong = ask(self.model, y, t, cond)
        return self.guided(ask(self.weak, y, t, cond), strong)


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


def scale_in_interval(prediction: GaussianPrediction, scale: Array | float | ScaleAt, interval: tuple) -> Array:
    """``scale`` where the noise ratio lies in ``interval``, one elsewhere."""
    ratio = prediction.process.noise_ratio(prediction.t)
    scale = scale(ratio) if isinstance(scale, ScaleAt) else scale
    low, high = interval
    return jnp.where((ratio >= low) & (ratio <= high), scale, 1.0)


def rescaled(guided: GaussianPrediction, strong: GaussianPrediction, scale: Array, share: Array | float) -> GaussianPrediction:
    """``guided`` with the deviation of its denoised mean brought to that of ``strong`` by ``share``; at scale 1 as it is.

    Of guided ones ``base`` is rescaled to that of ``strong``, so that weighted particles can still tell the two apart.
    """

    def back(found: GaussianPrediction, like: GaussianPrediction) -> GaussianPrediction:
        d = found.denoised
        axes = tuple(range(1, d.ndim))
        wide, wanted = (jnp.std(p.denoised, axis=axes) for p in (found, like))
        # An event without any deviation has none to bring back; dividing in its place is for the derivative.
        acts = (wide > 0) & (scale != 1)
        ratio = jnp.where(acts, wanted / jnp.where(wide > 0, wide, 1.0), 1.0)
        factor = 1 + jnp.asarray(share, d.dtype) * (ratio - 1)
        return with_denoised(found, d * per_example(factor, d))

    whole = back(guided, strong)
    if not isinstance(guided, HasProposal):
        return whole
    return GuidedPrediction.between(back(guided.base, unguided(strong)), whole)


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


def extrapolate_flow(weak: FlowPrediction, strong: FlowPrediction, scale: Array) -> FlowPrediction:
    """``weak + scale (strong - weak)`` of interpolants: the velocity, and the latent noise where both have it.

    Path velocity, score and denoised mean are affine in these two, so they are extrapolated with the same scale.
    """
    require_same_process("guidance", strong=strong.process, weak=weak.process)
    w = per_example(scale, strong.velocity).astype(strong.velocity.dtype)
    both = isinstance(weak, HasLatent) and isinstance(strong, HasLatent)
    forms = ("velocity", "eta") if both else ("velocity",)
    between = lambda name: getattr(weak, name) + w * (getattr(strong, name) - getattr(weak, name))
    return strong.process.predict(strong.y, strong.t, **{name: between(name) for name in forms})
