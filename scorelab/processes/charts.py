r"""Charts: elementwise coordinates :math:`y = \mathrm{chart}(x)` in which a process is linear-Gaussian.

A chart supplies the inverse :math:`\phi(y) = x` with its first two derivatives. From these follow the ambient SDE
(Ito's formula), the divergence of the diffusion matrix, the density and the score in data space.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass

import jax.numpy as jnp

from scorelab.typing import Array


@dataclass(frozen=True, kw_only=True)
class Chart(abc.ABC):
    """An invertible elementwise map; a new one needs the four methods below."""

    @abc.abstractmethod
    def encode(self, x: Array) -> Array:
        """Data space to chart space, ``x -> y``."""

    @abc.abstractmethod
    def decode(self, y: Array) -> Array:
        r"""Chart space to data space, :math:`x = \phi(y)`."""

    @abc.abstractmethod
    def d_decode(self, x: Array) -> Array:
        r""":math:`\phi'(y)` at ``y = encode(x)``, elementwise."""

    @abc.abstractmethod
    def dd_decode(self, x: Array) -> Array:
        r""":math:`\phi''(y)` at ``y = encode(x)``, elementwise."""

    def log_det(self, x: Array) -> Array:
        r""":math:`\log|\det \partial y/\partial x| = -\sum_i\log|\phi'(y_i)|`, one number per example."""
        return -jnp.sum(jnp.log(jnp.abs(self.d_decode(x))), axis=tuple(range(1, x.ndim)))

    def ambient_score(self, x: Array, score: Array) -> Array:
        r"""The data-space score :math:`\nabla_x\log p_X = \nabla_y\log p_Y/\phi' - \phi''/\phi'^2`."""
        slope = self.d_decode(x)
        return score / slope - self.dd_decode(x) / slope**2


@dataclass(frozen=True, kw_only=True)
class Identity(Chart):
    """``y = x``."""

    def encode(self, x):
        """``x``."""
        return x

    def decode(self, y):
        """``y``."""
        return y

    def d_decode(self, x):
        """One."""
        return jnp.ones_like(x)

    def dd_decode(self, x):
        """Zero."""
        return jnp.zeros_like(x)
