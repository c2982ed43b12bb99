r"""Geodesics between data and a base on a manifold: flow matching without noise (Chen and Lipman, arXiv 2302.03660).

.. math:: y_t = \exp_x(t\log_x w),\qquad x\sim\text{data},\quad w\sim\text{base},\qquad u = E[\dot y_t\mid y_t],\qquad
          \partial_t p + \mathrm{div}(u\,p) = 0,

with data at ``t = 0`` and the base at ``t = 1``. There is no latent noise, so there is a flow and no SDE.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scorelab.arrays import Array, BatchTime, is_traced, on_host
from scorelab.processes.base import Noised
from scorelab.processes.bridge import Bridge, FlowPrediction, checked_ends
from scorelab.processes.charts import Chart, Identity
from scorelab.processes.spaces import CUT, Space, geodesic
from scorelab.pytrees import content
from scorelab.validation import require_shape, require_spec


@dataclass(frozen=True, kw_only=True)
class Surface(Identity):
    """The chart of points of a space: themselves, in the form in which samples are given.

    Attributes:
        space: the space.

    Raises:
        ValueError: (``encode`` outside ``jit``) points off the space.
    """

    space: Space

    def encode(self, x: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """The canonical form of points on the space."""
        self.space.check("x", x)
        return self.space.canonical(jnp.asarray(x))

    def decode(self, y: Float[Array, " *shape"]) -> Float[Array, " *shape"]:
        """The canonical form."""
        return self.space.canonical(y)


@dataclass(frozen=True, kw_only=True, eq=False)
class Geodesic(Bridge):
    r"""The shortest geodesics of a space from data to a base, at constant speed.

    Pairs within a millionth of each other's cut locus (antipodes of a sphere, angles that differ by :math:`\pi`) have no single
    geodesic. They are refused where their values are known and have no weight in a loss. Under continuous laws they have no mass.

    Attributes:
        space: of :mod:`scorelab.processes.spaces`.
        base: the law at ``t = 1``: a law on the space (:class:`scorelab.densities.Uniform`), or points ``(n, *event)``, as of
            :class:`scorelab.processes.StochasticInterpolant`.
        coupling: how data and base are joined (:mod:`scorelab.data`); None, as ``Independent()``, for independently.

    Raises:
        ValueError: a base that is none, of another space, or with points off it; a coupling with the distances of another space.

    Source: Chen and Lipman, "Flow Matching on General Geometries", arXiv 2302.03660, with their times reversed.
    """

    space: Space
    base: Any
    coupling: Any = None

    def __post_init__(self):
        require_spec(self, Space, space=self.space)
        if self.base is None:
            raise ValueError("Geodesic.base = None: expected a law on the space, such as densities.Uniform, or points (n, *event)")
        checked_ends(self)
        if self.coupling is not None and (self.coupling.hole is not None or self.coupling.deterministic or self.coupling.noise):
            raise ValueError(
                f"Geodesic.coupling = {self.coupling!r}: expected one without a hole and without noise, which leaves the space, of "
                "a base that is no single point for a condition, since a flow returns one point from it"
            )
        if not self.has_law:
            self.space.check("Geodesic.base", self.base)
        else:
            self.space.check_event("Geodesic.base", tuple(self.base.event))
        object.__setattr__(self, "_content", (type(self), self.space, content(self.base), self.coupling))

    def __eq__(self, other):
        return isinstance(other, Geodesic) and self._content == other._content  # pyright: ignore

    def __hash__(self):
        return hash(self._content)  # pyright: ignore

    @property
    def silent(self) -> bool:
        """There is no latent noise."""
        return True

    @property
    def chart(self) -> Chart:
        """Points of the space."""
        return Surface(space=self.space)

    def encode(self, x):
        """The canonical form of ``x``; ValueError for rows off the space."""
        return self.chart.encode(x)

    def decode(self, y):
        """The canonical form."""
        return self.space.canonical(y)

    def retract(self, y):
        return self.space.retract(y)

    def noised(self, x: Float[Array, " batch *event"], w: Float[Array, " batch *event"], t: BatchTime) -> Noised:
        """The points at ``t`` on the geodesics from ``x`` to ``w``; ``noise`` of the result is ``(w, None)``.

        Raises:
            ValueError: rows off the space, or at the cut locus of one another; not where they are traced.
        """
        require_shape("noised.w", w, x)
        self.check_times("noised.t", t)
        for name, points in dict(x=x, w=w).items():
            self.space.check(f"noised.{name}", points)
        if not is_traced(x, w) and (near := np.flatnonzero(~(on_host(self.space.clearance(x, w)) > CUT))).size:
            raise ValueError(
                f"noised.w has {len(near)} of {len(x)} rows within {CUT:g} of the cut locus of x, the first is row {near[0]}: "
                "expected pairs with one shortest geodesic"
            )
        return self._on(x, w, t)

    def between(self, key, x, w, t):
        """:meth:`noised`; pairs at the cut locus are not refused, and have no weight in a loss."""
        return self._on(x, w, t)

    def _on(self, x: Array, w: Array, t: BatchTime) -> Noised:
        x, w = jnp.asarray(x), jnp.asarray(w)
        t = jnp.asarray(t, x.dtype)
        return Noised(y=geodesic(self.space, x, w, t)[0], y0=x, noise=(w, None), t=t)

    def rates(self, noised):
        """The velocity along the geodesics, and no slope."""
        return geodesic(self.space, noised.y0, noised.noise[0], noised.t)[1], 0.0

    def weights(self, noised):
        """0 for a pair at the cut locus, and not a number for one that is off the space, which training then refuses."""
        x, w = jnp.asarray(noised.y0), jnp.asarray(noised.noise[0])
        clear = self.space.clearance(x, w) > CUT
        return jnp.where(self.space.has(x) & self.space.has(w), clear.astype(x.dtype), jnp.nan)

    def seen(self, y, t, data_std, base_std):
        """The embedding of the points."""
        return self.space.embed(y)

    def answer(self, y, output):
        """The gradient at ``y`` of the inner product of the output and the embedding, so that equal points get one velocity."""
        return jax.vjp(self.space.embed, y)[1](output)[0]

    def predict(self, y: Float[Array, " batch *event"], t: BatchTime, *, velocity: Array) -> FlowPrediction:
        """The prediction of a velocity, of which the part in the tangent space is kept; ValueError for another shape."""
        self.check_times("predict.t", t)
        require_shape("predict.velocity", velocity, y)
        velocity = self.space.project(y, jnp.asarray(velocity).astype(y.dtype))
        return FlowPrediction(y=y, velocity=velocity, t=jnp.asarray(t, y.dtype), process=self)
