"""Starts with something given: the points, or the signs that the samples keep."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Real

from scorelab.arrays import Array, Key, Pytree, is_traced
from scorelab.processes.base import Start
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.randomness import per_example_normal
from scorelab.starts.checks import require_finite, require_rows
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Signed(Start):
    """Another start, with signs for data of both signs (Dale's law: multiplicative noise never changes a sign).

    Args:
        start: where ``y`` begins.
        pattern: values -1 and 1, one pattern ``event`` for all samples, or patterns ``(k, *event)`` of which sample
            ``i`` takes number ``i mod k``.
    """

    start: Start
    pattern: Array

    has_signs: ClassVar[bool] = True

    def check_arrays(self, count, event):
        shape = np.shape(self.pattern)
        if shape[-len(event) :] != tuple(event) or len(shape) > len(event) + 1:
            raise ValueError(f"Signed.pattern has shape {shape}: expected {event} or (k, *{event})")
        if not is_traced(self.pattern) and not np.all(np.abs(np.asarray(self.pattern)) == 1):
            raise ValueError("Signed.pattern has values other than -1 and 1: expected signs")
        self.start.check_arrays(count, event)

    def on_grid(self, process, times):
        """That of ``start``."""
        start, times = self.start.on_grid(process, times)
        return dataclasses.replace(self, start=start), times

    def suit(self, where, model, t, cond=None):
        """As ``start``."""
        self.start.suit(where, model, t, cond)

    def part(self, name):
        """That of ``start``."""
        return self.start.part(name)

    def signs(self, ids: Int[Array, " batch"], event) -> Real[Array, " batch *event"]:
        pattern = jnp.asarray(self.pattern)
        return pattern[ids % len(pattern)] if pattern.ndim > len(event) else jnp.broadcast_to(pattern, (len(ids), *event))

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        """That of ``start``."""
        return self.start.draw(keys, ids, process, t, event)

    def weighs(self, process):
        """As ``start``."""
        return self.start.weighs(process)

    def log_weight(
        self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float, cond: Pytree = None
    ) -> Float[Array, " batch"]:
        """That of ``start``."""
        return self.start.log_weight(y, process, t, cond)

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """That of ``start``, given the signs."""
        return self.start.log_prob(y, process, t)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed(Start):
    """Given points of the chart: sample ``i`` begins at ``points[i]`` (paired comparisons, interpolations).

    Args:
        points: ``(n, *event)`` at the first grid time.
    """

    points: Array

    @property
    def given(self) -> Array | None:
        """``points``."""
        return self.points

    def check_arrays(self, count, event):
        name = type(self).__name__
        require_rows(f"{name}.points", self.points, count)
        if np.shape(self.points)[1:] != tuple(event):
            raise ValueError(f"{name}.points has shape {np.shape(self.points)}: expected (n, *{event})")
        require_finite(f"{name}.points", self.points)

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        # An id without a point, which only a traced id can be, must not get that of another.
        return jnp.take(jnp.asarray(self.points, t.dtype), ids, axis=0, mode="fill", fill_value=jnp.nan)

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """ValueError: given points have no law."""
        raise ValueError("Fixed.log_prob: given points have no density; expected a start that is a law, such as Prior()")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NoisedPoints(Fixed):
    r"""Given clean points, noised: sample ``i`` begins at :math:`\alpha_t y_i + b_t + \sigma_t\epsilon`, at the first grid time.

    From one image to others like it: a grid that begins at a low ``t_max`` keeps much of it, one that begins high keeps little.
    Source: Meng et al., "SDEdit", ICLR 2022, arXiv 2108.01073.

    Args:
        points: clean points of the chart, ``(n, *event)``, looked up by the ids of the samples.
    """

    def check(self, count, event, process):
        require_spec(self, LinearGaussian, process=process)
        super().check(count, event, process)

    @property
    def given(self) -> Array | None:
        """None, since they are noised."""
        return None

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        clean = super().draw(keys, ids, process, t, event)
        return process.alpha(t) * clean + process.offset(t) + process.sigma(t) * per_example_normal(keys, clean)

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """ValueError: each sample has a law of its own."""
        raise ValueError(
            "NoisedPoints.log_prob: every sample has another law; expected a start that is one law, such as Noised(law)"
        )
