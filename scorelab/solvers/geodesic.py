r"""The flow of a geodesic process, whose steps stay on the manifold.

.. math:: \text{Euler:}\quad y \leftarrow \exp_y(h\,u),\qquad
          \text{Heun:}\quad y' = \exp_y(h\,u),\quad y \leftarrow \exp_y\big(\tfrac h2\,(u + P_{y'\to y}\,u')\big),

with :math:`P` the parallel transport along the geodesic between the two stages, and ``h < 0`` towards the data.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Scalar, per_example
from scorelab.processes.geodesic import Geodesic
from scorelab.processes.predictions import HasVelocity
from scorelab.pytrees import computed
from scorelab.solvers.base import Solver
from scorelab.validation import require_choice


class GeodesicRow(NamedTuple):
    r"""The numbers of one stage: :math:`y \leftarrow \exp_{\bar y}(c\,P_{y\to\bar y}\,u + c'\,u')`.

    The base point :math:`\bar y` is ``y`` itself in a first stage, and in a second that of the first, with its velocity :math:`u'`.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        now: ``c``.
        last: ``c'``.
        second: 1 in the second stage.
    """

    t: Scalar
    step: Scalar
    now: Scalar
    last: Scalar
    second: Scalar


@dataclass(frozen=True, kw_only=True)
class GeodesicODE(Solver):
    r"""The flow :math:`dy/dt = u` on a manifold, by steps along geodesics.

    Attributes:
        rule: ``"heun"`` (two calls a step, order 2) or ``"euler"`` (one, order 1).
    """

    rule: Literal["heun", "euler"] = "heun"

    process_type = Geodesic
    needs = (HasVelocity,)
    stochastic = False

    def __post_init__(self):
        require_choice(self, ("heun", "euler"), rule=self.rule)

    @computed
    def order(self) -> int:
        """That of the rule."""
        return 2 if self.rule == "heun" else 1

    @computed
    def calls_per_step(self) -> int:
        """One for each stage; the last step has one."""
        return self.order

    def check_start(self, start, model, t):
        """ValueError for given points off the space, and for another law than the base."""
        process = model.process
        if start.given is not None:
            process.space.check("sample.start", start.given)
        elif not start.is_prior(process):
            raise ValueError(
                f"sample.start = {type(start).__name__} under {process!r}: expected None for its base, or starts.Fixed(points)"
            )

    def table(self, process, times):
        rows = []
        for i, (t, s) in enumerate(itertools.pairwise(times)):
            rows.append(GeodesicRow(t=t, step=i, now=s - t, last=0.0, second=0.0))
            # The field of data on a point is infinite there, so the last step has one stage, as that of other flows.
            if self.rule == "heun" and s > 0:
                rows.append(GeodesicRow(t=s, step=i, now=(s - t) / 2, last=(s - t) / 2, second=1.0))
        return jax.tree.map(lambda *column: np.array(column), *rows)

    def init(self, process, y, log_weights):
        """The point and the velocity of the stage before."""
        return y, jnp.zeros_like(y)

    def update(self, keys, y, prediction, carry, row: GeodesicRow):
        space, (before, last) = prediction.process.space, carry
        base = jnp.where(row.second > 0, before, y)
        velocity = prediction.velocity
        # From a point to itself nothing is carried.
        v = per_example(row.now, y) * space.transport(y, base, velocity) + per_example(row.last, y) * last
        return space.exp(base, v), (y, velocity)
