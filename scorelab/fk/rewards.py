r"""Rewards of images, for steering and guidance: hashable specs ``reward(x) -> (batch,)`` on points of data space.

Values of ``x`` lie in ``[low, high]``, the scale of the model: [-1, 1] for ``data.Pixels``, the ends of the cells for
``data.Positive``. They may leave it a little, as denoised points do.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.metrics import smallcnn
from scorelab.metrics.features import SmallCNN, small_cnn
from scorelab.pytrees import partly_static
from scorelab.validation import require_choice, require_int, require_number


@dataclass(frozen=True, kw_only=True)
class ImageReward(abc.ABC):
    """A number for each image ``(batch, height, width, channels)``; a new one states ``of``.

    Attributes:
        low: the lower end of the scale of ``x``.
        high: its upper end.
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"{type(self).__name__}.low = {self.low}, high = {self.high}: expected finite numbers with low < high")

    @abc.abstractmethod
    def of(self, unit: Array) -> Array:
        """The reward ``(batch,)`` of images with the scale [0, 1]."""

    def unit(self, x: Array) -> Array:
        """``x`` on the scale [0, 1]; ValueError for what is not a batch of images."""
        if jnp.ndim(x) != 4:
            raise ValueError(f"{type(self).__name__} got x of shape {jnp.shape(x)}: expected (batch, height, width, channels)")
        return (jnp.asarray(x) - self.low) / (self.high - self.low)

    def __call__(self, x: Array) -> Array:
        """The reward, ``(batch,)``."""
        return self.of(self.unit(x))


@dataclass(frozen=True, kw_only=True)
class ClassLogProb(ImageReward):
    r""":math:`\log p(c\mid x)` of the stored classifier of a data set, differentiable; a tilt with :math:`\lambda=1` is Bayes'.

    Attributes:
        dataset: whose classifier (:func:`scorelab.metrics.small_cnn`); read at the first call, once in a process.
        label: ``c``; None for the condition of each sample, ``reward(x, cond)`` with integers ``(batch,)``, under
            ``with_cond=True`` of a potential.
        loop_safe: fast gradients inside a sampler on the CPU.

    Raises:
        WeightsError: no classifier is stored for the data set.
        ValueError: a label that the classifier does not know, or one too few or too many.
    """

    dataset: str
    label: int | None = None
    loop_safe: bool = True

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, (True, False), loop_safe=self.loop_safe)
        classes = smallcnn.recorded(self.dataset)["architecture"]["num_classes"]
        if self.label is not None:
            require_int(self, 0, label=self.label)
            if self.label >= classes:
                raise ValueError(f"ClassLogProb.label = {self.label}: expected one of the {classes} classes of {self.dataset}")

    def of(self, unit, label=None):
        log_probs = jax.nn.log_softmax(_classifier(self.dataset).unit_logits(unit, loop_safe=self.loop_safe))
        label = jnp.broadcast_to(jnp.asarray(self.label if label is None else label, jnp.int32), log_probs.shape[:1])
        known = (label >= 0) & (label < log_probs.shape[1])
        return jnp.where(known, jnp.take_along_axis(log_probs, jnp.where(known, label, 0)[:, None], axis=1)[:, 0], jnp.nan)

    def __call__(self, x, cond=None):
        """``(batch,)``; ``cond`` where, and only where, there is no label of its own."""
        if (self.label is None) == (cond is None):
            raise ValueError(
                f"ClassLogProb.label = {self.label} {'without' if cond is None else 'with'} conditions: expected a label, or "
                "label=None and reward(x, cond) (with_cond=True)"
            )
        return self.of(self.unit(x), cond)


@dataclass(frozen=True, kw_only=True)
class LitPixels(ImageReward):
    """The share of pixels above ``threshold`` on the scale [0, 1], from 0 to 1; no gradient."""

    threshold: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        require_number(self, 0.0, 1.0, threshold=self.threshold)

    def of(self, unit):
        return jnp.mean(unit > self.threshold, axis=(1, 2, 3), dtype=unit.dtype)


@dataclass(frozen=True, kw_only=True)
class Symmetry(ImageReward):
    """Minus the mean absolute difference to the mirrored image on the scale [0, 1]: 0 for symmetric ones, never below -1 inside.

    Attributes:
        axis: 1 mirrors left and right, 0 top and bottom.
    """

    axis: int = 1

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, (0, 1), axis=self.axis)

    def of(self, unit):
        return -jnp.mean(jnp.abs(unit - jnp.flip(unit, axis=1 + self.axis)), axis=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class Thickness(ImageReward):
    r"""The width of strokes in pixels, :math:`2A/P`: lit area over half the perimeter; no gradient.

    A stroke of width ``w`` and length ``L`` has area ``wL`` and perimeter ``2(w + L)``. The perimeter counts how often lines in
    four directions enter or leave what is lit,

    .. math:: P = \tfrac{\pi}{8}\,\big(N_{0} + N_{90} + (N_{45} + N_{135})/\sqrt2\big),

    right to 5.2 % for long straight edges of any direction (counting sides of pixels makes a diagonal stroke thinner by 29 %).
    What touches the border of the image ends there. 0 where nothing is lit; channels are averaged first.

    Source: the Cauchy-Crofton formula; Legland, Kieu & Devaux (2007) for pixels.

    Attributes:
        threshold: lit is what lies above it, on the scale [0, 1].
    """

    threshold: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        require_number(self, 0.0, 1.0, threshold=self.threshold)

    def of(self, unit):
        lit = (jnp.mean(unit, axis=3) > self.threshold).astype(unit.dtype)
        area = jnp.sum(lit, axis=(1, 2))
        m = jnp.pad(lit, ((0, 0), (1, 1), (1, 1)))
        count = lambda a, b: jnp.sum(jnp.abs(a - b), axis=(1, 2))
        straight = count(m[:, :, 1:], m[:, :, :-1]) + count(m[:, 1:], m[:, :-1])
        diagonal = count(m[:, 1:, 1:], m[:, :-1, :-1]) + count(m[:, 1:, :-1], m[:, :-1, 1:])
        perimeter = math.pi / 8 * (straight + diagonal / math.sqrt(2))
        return jnp.where(area > 0, 2 * area / jnp.where(area > 0, perimeter, 1.0), 0.0)


@partly_static("reward", "decoder")
@dataclass(frozen=True, kw_only=True)
class Decoded:
    r"""The reward of what a decoder makes of a point, :math:`r(\mathcal D(z))`: of images, for models of their latents.

    Steering asks a reward at its events only (``every``, ``window``), and once more for the samples. So a decoder is called that
    often, and no more. Differentiable where both are.

    Attributes:
        reward: ``(batch,)`` of decoded points, ``reward(x)``, or ``reward(x, cond)`` under ``with_cond=True`` of a potential.
        decoder: a function of points, or a callable pytree whose numbers are leaves, such as
            ``pretrained.vae.Latents``.
    """

    reward: Callable[..., Array]
    decoder: Callable[[Array], Array]

    def __post_init__(self):
        for name in ("reward", "decoder"):
            if not callable(getattr(self, name)):
                raise TypeError(f"Decoded.{name} = {getattr(self, name)!r}: expected a function")

    def __call__(self, x: Array, *cond: Any) -> Array:
        """The reward, ``(batch,)``."""
        return self.reward(self.decoder(x), *cond)


@functools.lru_cache(maxsize=8)
def _classifier(dataset: str) -> SmallCNN:
    # Real arrays, also where the first call is inside a trace.
    with jax.ensure_compile_time_eval():
        return small_cnn(dataset)
