r"""The exact field of a geodesic process whose data are points with weights.

Given the data ``x``, the base point behind ``y`` is :math:`w = \exp_x(\log_x(y)/t)`, so that

.. math:: p_t(y\mid x) = p_1(w)\,\Big|\frac{\partial w}{\partial y}\Big|,\qquad u(y\mid x) = -\log_y(x)/t,\qquad
          u(y) = \sum_i r_i\,u(y\mid x_i),\qquad r_i\propto\pi_i\,p_t(y\mid x_i) .

With the nodes and weights of a quadrature in the place of the points it is the field of a law, at times at which the base, shrunk
towards a point of the data, is wider than the nodes are apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Pytree, is_traced, on_host
from scorelab.models.base import KnowsDensity
from scorelab.processes.bridge import FlowPrediction
from scorelab.processes.geodesic import Geodesic
from scorelab.processes.predictions import HasLogProb
from scorelab.validation import require_spec


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExactGeodesicPrediction(FlowPrediction, HasLogProb):
    r"""That of known points.

    Attributes:
        log_prob: :math:`\log p_t(y)` against the volume of the space, ``(batch,)``.
    """

    log_prob: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactGeodesic(KnowsDensity):
    """The exact velocity and density of a geodesic process whose data are points, at times above 0.

    Args:
        points: on the space, ``(n, *event)``; leaves, as the weights.
        process: the process (static), whose base is a law and independent of the data.
        log_weights: ``(n,)``, of weights whose sum is 1; None for equal ones. :meth:`weighted` takes weights of any sum.

    Raises:
        ValueError: points off the space; weights whose sum is not 1; a base that is points, or joined with the data.
    """

    points: Array
    process: Geodesic = field(metadata={"static": True})
    log_weights: Array | None = None

    def __post_init__(self):
        require_spec(self, Geodesic, process=self.process)
        if not self.process.has_law:
            raise ValueError("ExactGeodesic.process has points as its base: expected a law, whose density is known")
        if self.process.joined:
            raise ValueError(f"ExactGeodesic.process has the coupling {self.process.coupling!r}: expected None")
        # Pytree reconstruction passes placeholders through here.
        if not isinstance(self.points, Array) or is_traced(self.points):
            return
        self.process.space.check("ExactGeodesic.points", self.points)
        if self.log_weights is not None and jnp.shape(self.log_weights) != (len(self.points),):
            raise ValueError(
                f"ExactGeodesic.log_weights has shape {jnp.shape(self.log_weights)}: expected ({len(self.points)},), as the points"
            )
        if self.log_weights is not None and not is_traced(self.log_weights):
            total = float(np.sum(np.exp(np.asarray(on_host(self.log_weights), np.float64))))
            # A sum of float32 weights is off by their rounding.
            if not abs(total - 1) < 1e-4:
                raise ValueError(
                    f"ExactGeodesic.log_weights has weights of the sum {total:.6g}: expected 1, or ExactGeodesic.weighted(points, "
                    "weights, process), which normalises them"
                )

    @classmethod
    def weighted(cls, points: ArrayLike, weights: ArrayLike, process: Geodesic) -> ExactGeodesic:
        """With weights ``(n,)`` of at least 0, which are normalised here; ValueError for others."""
        host = np.asarray(on_host(jnp.asarray(weights)), np.float64)
        if host.ndim != 1 or not np.all(np.isfinite(host)) or not np.all(host >= 0) or not host.sum() > 0:
            raise ValueError(f"ExactGeodesic.weights of shape {host.shape}: expected numbers of at least 0, one above it")
        with np.errstate(divide="ignore"):
            return cls(jnp.asarray(points), process, jnp.asarray(np.log(host / host.sum())))

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> ExactGeodesicPrediction:
        """Predict for ``y`` of shape ``(batch, *event)`` at ``t > 0``; ``cond`` is ignored."""
        self.process.check_times("ExactGeodesic.t", t)
        if not is_traced(t) and not np.all(np.asarray(t) > 0):
            raise ValueError(f"ExactGeodesic.t = {t}: expected times above 0, where the data are points without a density")
        t = jnp.asarray(t, y.dtype)
        if t.ndim:
            at = lambda y, t: jax.tree.map(lambda a: a[0], self._fields(y[None], t))
            velocity, log_prob = jax.vmap(at)(y, t)
        else:
            velocity, log_prob = self._fields(y, t)
        return ExactGeodesicPrediction(y=y, velocity=velocity, t=t, process=self.process, log_prob=log_prob)

    def _fields(self, y: Array, t: Array) -> tuple[Array, Array]:
        """The velocity ``(batch, *event)`` and the log-density ``(batch,)``, at one time."""
        space, base = self.process.space, self.process.base
        points = jnp.asarray(self.points, y.dtype)
        prior = jnp.full(len(points), -jnp.log(len(points)), y.dtype) if self.log_weights is None else self.log_weights

        def of(x):
            x = jnp.broadcast_to(x, y.shape)
            w = space.exp(x, space.log(x, y) / t)
            # What is behind the cut locus has no density, and no place in the derivatives.
            dilation = space.log_dilation(x, y, t)
            log_prob = jnp.where(jnp.isfinite(dilation), base.log_prob(w) + dilation, -jnp.inf)
            return -space.log(y, x) / t, log_prob, space.distance(x, y)

        velocities, log_probs, distances = jax.vmap(of)(points)
        joint = log_probs + prior.astype(y.dtype)[:, None]
        total = jax.nn.logsumexp(joint, axis=0)
        # A step may leave the law by its rounding, where no point of the data is behind y: then it is the nearest one.
        joint = jnp.where(jnp.isfinite(total), joint, -distances / jnp.finfo(y.dtype).eps)
        return jnp.einsum("nb,nb...->b...", jax.nn.softmax(joint, axis=0), velocities, precision="highest"), total
