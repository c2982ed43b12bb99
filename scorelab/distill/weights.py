r"""Weights of the score difference at a noise level: functions ``(process, t, y0, teacher) -> (batch,)``.

They multiply :math:`h\,(D_q - D_p)`. ``y0`` is the student's sample in the chart, ``teacher`` the teacher's denoised point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_positive


class DifferenceWeight(Protocol):
    """A weight for each example."""

    def __call__(self, process: LinearGaussian, t: Array, y0: Array, teacher: Array) -> Array:
        """The weight, ``(batch,)``, a constant for the gradient."""
        ...


def unit_weight(process: LinearGaussian, t: Array, y0: Array, teacher: Array) -> Array:
    """One."""
    return jnp.ones_like(t)


def noise_weight(process: LinearGaussian, t: Array, y0: Array, teacher: Array) -> Array:
    r""":math:`\alpha/\sigma`: the difference in the noise, alike in size at all noise levels."""
    return 1 / process.noise_ratio(t)


def score_weight(process: LinearGaussian, t: Array, y0: Array, teacher: Array) -> Array:
    r""":math:`\alpha^2/\sigma^2`: the weight of the theorem, :math:`\alpha(s_q - s_p) = \tfrac{\alpha^2}{\sigma^2}(D_q - D_p)`."""
    return 1 / process.noise_ratio(t) ** 2


@dataclass(frozen=True, kw_only=True)
class DMDWeight:
    r""":math:`1/\mathrm{mean}|y_0 - D_p|`, over the event: every example gets a step of about one size (DMD, arXiv 2311.18828).

    It keeps all noise levels alike, which images need: under :func:`noise_weight` the small ones outweigh what decides the shape.
    But it is smallest where a sample is far from the teacher's belief, as examples between modes are: in few dimensions it undoes
    ``h``, and Jensen-Shannon then loses modes that it covers under :func:`noise_weight`.

    Attributes:
        floor: smallest denominator.
    """

    floor: float = 1e-6

    def __post_init__(self):
        require_positive(self, floor=self.floor)

    def __call__(self, process, t, y0, teacher):
        distance = jnp.mean(jnp.abs(y0 - teacher).reshape(len(y0), -1), axis=1)
        return 1 / (distance + self.floor)
