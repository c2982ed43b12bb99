"""Reflow: train on pairs of noise and data that a flow has joined, so that the next flow is straighter; and how straight it is."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import walk
from scorelab.arrays import Array, Key, Pytree
from scorelab.distill.nodes import euler_step
from scorelab.grids import Grid
from scorelab.losses import DenoisingScoreMatching, FlowWeighting, Times, UniformTimes, Weighting
from scorelab.models.base import Model, ask
from scorelab.models.function import as_pytree
from scorelab.processes.base import Start
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.solvers import DDIM
from scorelab.solvers.base import Nodes
from scorelab.solvers.interpolant import InterpolantODE
from scorelab.solvers.straight import straight_velocity


@dataclass(frozen=True, kw_only=True)
class Reflow(DenoisingScoreMatching):
    r"""Denoising with the noise that belongs to the data: :math:`y_t = \alpha_t y_0 + b_t + \sigma_t z` for pairs ``(z, x)``.

    With the defaults the error is that of rectified flow on every process, :math:`\lVert v - (z - y_0)\rVert^2/d` with
    :math:`v = \hat\epsilon - D`, :math:`t` uniform (Liu et al. 2022, arXiv 2209.03003, eq. 1). The minimiser's flow has the
    marginals of the lines between ``z`` and ``y_0``. Where no two lines cross, the minimiser is exact on every line: the flow is
    straight and one Euler step follows it. Networks see the log noise ratio, which is infinite at ``t = 1`` of rectified flow and
    not trained there: few steps are better begun at ``t_max=0.999``.

    Batches hold ``"noise"``, ``(batch, *event)``, beside ``"x"``, both floating point: those of
    :func:`scorelab.distill.teacher_pairs`. The other fields are those of :class:`scorelab.losses.DenoisingScoreMatching`.
    """

    weighting: Weighting = field(default_factory=FlowWeighting)
    times: Times = field(default_factory=UniformTimes)

    def noised(self, key, batch, t):
        """The point on the line of each pair."""
        noise = batch.get("noise")
        if noise is None or noise.shape != batch["x"].shape:
            found = "is missing" if noise is None else f"has shape {noise.shape}"
            raise ValueError(f'Reflow: batch["noise"] {found}: expected {batch["x"].shape}, as from teacher_pairs')
        return self.process.noised(noise, self.process.encode(batch["x"]), t)


def straightness(
    model: Model,
    *,
    grid: Grid,
    key: Key,
    shape: tuple[int, ...],
    start: Start | None = None,
    cond: Pytree = None,
) -> Array:
    r"""How far a flow is from straight lines: the variance of its velocity along the way, 0 where one Euler step is exact.

    .. math:: S = \frac1{d\,(r_1-r_0)}\int_{r_0}^{r_1} E\,\Big\lVert V_r - \frac{z_{r_1}-z_{r_0}}{r_1-r_0}\Big\rVert^2 dr,
              \qquad \frac{dz}{dr} = V ,

    in the coordinate :math:`z` over :math:`r` in which the path of a fixed pair is straight (:mod:`scorelab.solvers.straight`). On
    rectified flow and on a stochastic interpolant that is ``y`` over ``t``, and ``d S`` the measure of Liu et al. (2022,
    arXiv 2209.03003). The flow is walked by Euler steps on ``grid``, and the integral is their sum.

    Args:
        model: the model.
        grid: the times.
        key: PRNG key of the start.
        shape: ``(n, *event)``.
        start: the law at the first time; :class:`scorelab.starts.Prior` by default.
        cond: conditions with leading axis ``n``, or None.

    Returns:
        A scalar.
    """
    model = as_pytree("straightness", model)
    bridge = isinstance(model.process, StochasticInterpolant)
    solver = InterpolantODE(rule="euler") if bridge else DDIM()
    plan = walk.plan("straightness", model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=None)
    process, times = plan.model.process, plan.times
    if plan.start.weighs(process):
        raise ValueError(f"straightness.start = {plan.start!r} has weights: expected a start that is the law itself")
    y = plan.draw(key)
    if bridge:
        over, ends, slope = times, np.diff(times), None
    else:
        nodes = Nodes.at(process, times)
        over, ends, slope = nodes.ratio, jax.tree.map(lambda column: column[1:], nodes), nodes.slope
    weights = np.diff(over) / (over[-1] - over[0])
    rows = jax.tree.map(lambda column: jnp.asarray(column, y.dtype), (times[:-1], ends, weights, np.cumsum(weights)))
    return _velocity_variance(plan.model, y, cond, rows, slope)


@functools.partial(jax.jit, static_argnames="slope")
def _velocity_variance(model, y, cond, rows, slope):
    def body(state, row):
        y, mean, spread = state
        t, to, weight, total = row
        prediction = ask(model, y, t, cond)
        if slope is None:
            velocity = prediction.velocity
            after = y + to * velocity
        else:
            velocity, after = straight_velocity(prediction, slope), euler_step(prediction, to)
        # The weighted variance as the walk goes: the difference of two sums would lose a small one.
        change = velocity - mean
        mean = mean + weight / total * change
        return (after, mean, spread + weight * jnp.mean(change * (velocity - mean))), None

    state = (y, jnp.zeros_like(y), jnp.zeros((), y.dtype))
    return jax.lax.scan(body, state, rows)[0][2]
