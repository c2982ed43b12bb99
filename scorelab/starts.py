"""Where sampling begins: the law of ``y`` at the first grid time. A start is a pytree; its parameters are leaves."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.densities import Gaussian
from scorelab.densities.base import Density
from scorelab.processes.base import Process
from scorelab.typing import Array, Key, per_example_normal, require_spec


class Start(abc.ABC):
    """The law of ``y`` at the first grid time; a new one needs ``draw`` and ``log_prob``."""

    def times(self, process: Process, times: np.ndarray) -> np.ndarray:
        """The part of the host float64 grid that is left to walk; all of it unless a start skips ahead."""
        return times

    @abc.abstractmethod
    def draw(self, keys: Key, ids: Array, process: Process, t: Array, event: tuple[int, ...]) -> Array:
        """One point of the chart per key, ``(batch, *event)``, at the first grid time ``t``."""

    @abc.abstractmethod
    def log_prob(self, y: Array, process: Process, t: Array) -> Array:
        """The log-density of ``draw``, ``(batch,)``."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prior(Start):
    r""":math:`N(b_t, \sigma_t^2 I)`: the noise of the process at the first grid time, not a standard normal."""

    def draw(self, keys, ids, process, t, event):
        """See :class:`Start`."""
        noise = per_example_normal(keys, jnp.zeros((1, *event), t.dtype))
        return process.offset(t) + process.sigma(t) * noise

    def log_prob(self, y, process, t):
        """See :class:`Start`."""
        sigma, size = process.sigma(t), math.prod(y.shape[1:])
        square = jnp.sum(((y - process.offset(t)) / sigma) ** 2, axis=tuple(range(1, y.ndim)))
        return -0.5 * (square + size * (2 * jnp.log(sigma) + math.log(2 * math.pi)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GaussianMoments(Start):
    r"""The noised law of a Gaussian with the data's moments, :math:`N(\alpha_t\mu+b_t,\ \alpha_t^2\Sigma+\sigma_t^2 I)`.

    Args:
        law: a :class:`scorelab.densities.Gaussian` in the chart.
    """

    law: Gaussian

    def __post_init__(self):
        # Pytree reconstruction passes placeholders through here, so only laws of the wrong kind are refused.
        if isinstance(self.law, Density):
            require_spec(self, Gaussian, law=self.law)

    def draw(self, keys, ids, process, t, event):
        """See :class:`Start`."""
        noised = self.law.noised(process, t)
        return jax.vmap(lambda key: noised.sample(key, 1)[0])(keys).astype(t.dtype)

    def log_prob(self, y, process, t):
        """See :class:`Start`."""
        return self.law.noised(process, t).log_prob(y)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fixed(Start):
    """Given points of the chart: sample ``i`` begins at ``points[i]`` (paired comparisons, interpolations).

    Args:
        points: ``(n, *event)`` at the first grid time.
    """

    points: Array

    def draw(self, keys, ids, process, t, event):
        """See :class:`Start`."""
        return jnp.asarray(self.points, t.dtype)[ids]

    def log_prob(self, y, process, t):
        """Zero: given points have no law."""
        return jnp.zeros(len(y), y.dtype)
