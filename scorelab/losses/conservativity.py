r"""How far a model's score is from a gradient: the antisymmetric part of its Jacobian.

A field is a gradient (of a function on the whole space) where its Jacobian is symmetric everywhere. Products with the Jacobian and
with its transpose say how far it is from that, without the matrix:

.. math:: E_v\,\lVert Kv - K^\top v\rVert^2 = \lVert K - K^\top\rVert_F^2,\qquad
          E_v\,\lVert Kv\rVert^2 = E_v\,\lVert K^\top v\rVert^2 = \lVert K\rVert_F^2,\qquad E[vv^\top]=I .
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scorelab.arrays import Array
from scorelab.divergence import BLOCK, dot, pushed, signs
from scorelab.models.base import Model, ask, require_model
from scorelab.processes.base import Noised
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasNoise, require_capabilities
from scorelab.validation import require_int, require_spec


class Squares(NamedTuple):
    """Squared Frobenius norms over the dimension, ``(batch,)``.

    Attributes:
        asymmetry: of the Jacobian less its transpose.
        jacobian: of the Jacobian.
    """

    asymmetry: Array
    jacobian: Array


@dataclass(frozen=True, kw_only=True)
class Conservativity:
    r"""The asymmetry of the Jacobian of a model's score at noised points, ``(batch,)``: a regulariser, and a diagnostic.

    .. math:: R = \tfrac1d\,\lVert K - K^\top\rVert_F^2,\qquad K = \sigma_t\,\frac{\partial\hat\epsilon}{\partial y}
              = -\sigma_t^2\,\frac{\partial s}{\partial y} = I - \alpha_t\,\frac{\partial D}{\partial y},

    in the chart, with ``d`` elements of a point. The matrix ``K`` has no unit. Of an exact law it is the identity less the
    covariance of the clean point in units of the noise, so values at different noise levels compare. Predicted noise and denoised
    mean have the same value; that of the score itself would be divided by :math:`\sigma_t^4`.

    Zero for the score of every law, of the data or not, and for every energy.

    Attributes:
        probes: the number of Rademacher probes, one product with the Jacobian and one with its transpose for each; 0 for the
            exact norms, which take as many as a point has elements. The estimate has no bias and is never below zero.

    Raises:
        TypeError: a process that is not linear-Gaussian, a model that predicts no noise.
        ValueError: probes for a batch without keys.

    Source: the symmetry of the Jacobian as a test of trained scores, arXiv 2509.00336; the role of conservativity, arXiv
    2402.03845. Units and estimate are ours.
    """

    probes: int = 1

    def __post_init__(self):
        require_int(self, 0, probes=self.probes)

    def __call__(self, model: Model, noised: Noised) -> Array:
        """The value of each example, ``(batch,)``."""
        return self.squares(model, noised).asymmetry

    def squares(self, model: Model, noised: Noised) -> Squares:
        """The value of each example, and what it is compared with where it is reported relative to something."""
        y = noised.y
        _, push = pushed(predicted_noise(type(self).__name__, model, noised), y)
        pull = jax.linear_transpose(push, y)
        sigma, size = model.process.sigma(noised.t), math.prod(y.shape[1:])

        def along(v):
            ahead, (back,) = push(v), pull(v)
            off = ahead - back
            # Both products have the norm for their mean; together they scatter less.
            return Squares(dot(off, off), 0.5 * (dot(ahead, ahead) + dot(back, back)))

        def of_element(i):
            unit = jnp.zeros(size, y.dtype).at[i].set(1.0).reshape(y.shape[1:])
            return along(jnp.broadcast_to(unit, y.shape))

        if self.probes:
            probes = signs(noised.keys, self.probes, y)
            found, norm = jax.lax.map(along, probes, batch_size=min(self.probes, BLOCK)), size * self.probes
        else:
            found, norm = jax.lax.map(of_element, jnp.arange(size), batch_size=min(size, BLOCK)), size
        return Squares(*(sigma**2 * jnp.sum(each, axis=0) / norm for each in found))


def predicted_noise(where: str, model: Model, noised: Noised) -> Callable[[Array], Array]:
    """The predicted noise of a model as a function of ``y``, at the time and condition of ``noised``.

    Raises:
        TypeError: a process that is not linear-Gaussian, a model that predicts no noise.
    """
    require_model(where, model)
    require_spec(where, LinearGaussian, process=model.process)

    def eps(y):
        prediction = ask(model, y, noised.t, noised.cond)
        require_capabilities(where, prediction, (HasNoise,))
        return prediction.eps

    return eps
