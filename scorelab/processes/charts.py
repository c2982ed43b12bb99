r"""Charts: elementwise coordinates :math:`y = \mathrm{chart}(x)` in which a process is linear-Gaussian.

A chart supplies the inverse :math:`\phi(y) = x` with its first two derivatives. From these follow the ambient SDE
(Ito's formula), the divergence of the diffusion matrix, the density and the score in data space.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scorelab.arrays import Array, is_traced
from scorelab.validation import require_choice


@dataclass(frozen=True, kw_only=True)
class Chart(abc.ABC):
    """An invertible elementwise map; a new one needs the four methods below.

    Attributes:
        mirrored: ``x`` and ``-x`` have the same coordinate, so that a step in data space may change the sign of ``x``.
        signed: the data has signs that are not part of ``y``; sampling must be told them.
    """

    mirrored: ClassVar[bool] = False
    signed: ClassVar[bool] | bool = False

    @abc.abstractmethod
    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """Data space to chart space, ``x -> y``."""

    @abc.abstractmethod
    def decode(self, y: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r"""Chart space to data space, :math:`x = \phi(y)`."""

    @abc.abstractmethod
    def d_decode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r""":math:`\phi'(y)` at ``y = encode(x)``, elementwise."""

    @abc.abstractmethod
    def dd_decode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r""":math:`\phi''(y)` at ``y = encode(x)``, elementwise."""

    def log_det(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        r""":math:`\log|\det \partial y/\partial x| = -\sum_i\log|\phi'(y_i)|`, one number per example."""
        return -jnp.sum(jnp.log(jnp.abs(self.d_decode(x))), axis=tuple(range(1, x.ndim)))

    def ambient_score(self, x: Float[Array, " *shape"], score: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r"""The data-space (Stein) score :math:`\nabla_x\log p_X = \nabla_y\log p_Y/\phi' - \phi''/\phi'^2`."""
        # No square of the slope: on the log chart it leaves float32 where |y| is 44.
        slope = self.d_decode(x)
        return (score - self.dd_decode(x) / slope) / slope

    def hyvarinen_score(self, x: Float[Array, " *shape"], score: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r""":math:`x\circ\nabla_x\log p_X` from the chart's score."""
        return x * self.ambient_score(x, score)

    def latent_score(self, x: Float[Array, " *shape"], stein: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r"""The chart's score from the data-space one, :math:`\nabla_y\log p_Y = \phi'\,\nabla_x\log p_X + \phi''/\phi'`."""
        slope = self.d_decode(x)
        return slope * stein + self.dd_decode(x) / slope


@dataclass(frozen=True, kw_only=True)
class Identity(Chart):
    """``y = x``."""

    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``x``."""
        return x

    def decode(self, y: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``y``."""
        return y

    def d_decode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        return jnp.ones_like(x)

    def dd_decode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        return jnp.zeros_like(x)


@dataclass(frozen=True, kw_only=True)
class Log(Chart):
    r""":math:`y = \log x` for positive data, or :math:`y = \log|x|` for signed data whose signs never change.

    Then :math:`\phi = \phi' = \phi'' = e^y`, and the scores are related by
    :math:`x\,\nabla_x\log p_X = \nabla_y\log p_Y - 1`.

    Attributes:
        signed: accept negative data. The sign is not part of ``y``: it stays as it is (Dale's law), and what decodes
            to :math:`e^y > 0` gets it back from where sampling began (:class:`scorelab.starts.Signed`).

    Raises:
        ValueError: (``encode`` outside ``jit``) data that is not positive, or zero or not a number where ``signed``.
    """

    signed: bool = False

    mirrored: ClassVar[bool] = True

    def __post_init__(self):
        require_choice(self, (True, False), signed=self.signed)

    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        r""":math:`\log x`, or :math:`\log|x|`."""
        x = jnp.asarray(x)
        if not is_traced(x):
            self._require_domain(np.asarray(x))
        return jnp.log(jnp.abs(x) if self.signed else x)

    def decode(self, y: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """The exponential."""
        return jnp.exp(y)

    def d_decode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``x``."""
        return x

    def dd_decode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``x``."""
        return x

    def hyvarinen_score(self, x: Float[Array, " *shape"], score: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """``score - 1``, also where ``x`` leaves the range of its type."""
        return score - 1

    def _require_domain(self, x: np.ndarray) -> None:
        # On the host: under an outer jit, jax.numpy would trace even values that are known.
        size = np.abs(x) if self.signed else x
        if count := int(np.sum(~(size > 0))):
            wanted, remedy = ("x != 0", _SIGNED_REMEDY) if self.signed else ("x > 0", _REMEDY)
            raise ValueError(
                f"{count} of the {x.size} values of x are outside the domain of multiplicative noise (the least is "
                f"{float(np.min(x)):.6g}): expected {wanted}; {remedy}"
            )


_REMEDY = "shift images with scorelab.data.Positive(offset=1.0, scale=1.0), give the process signed=True for data of both signs"
_SIGNED_REMEDY = "leave out elements that are zero, which multiplicative noise never moves"
