"""The way from noise to data beside the probability flow of a Gaussian, and how it answers to a push."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.densities import Gaussian
from scorelab.diagnostics.blocks import blocks, require_batch, require_finite, require_leading
from scorelab.grids import Grid
from scorelab.models.base import Model, ask, require_model
from scorelab.models.bounded import Bounded
from scorelab.models.function import as_pytree
from scorelab.processes.base import require_same_process
from scorelab.sampling import Samples, sample
from scorelab.solvers.base import Solver
from scorelab.starts import Fixed
from scorelab.validation import require_spec

# Sine of the angle below which two float32 directions are the same.
_PARALLEL = 1e-6


def trajectory_error(out: Samples, law: Gaussian) -> np.ndarray:
    r"""How far samples have left the probability flow of a Gaussian that began at the same points.

    .. math:: \frac{\sum_i |y^{(i)}_t - \tilde y^{(i)}_t|^2}{\sum_i |y^{(i)}_t - m_t|^2}, \qquad m_t = \alpha_t\mu + b_t,

    with :math:`\tilde y` the closed form (:meth:`scorelab.densities.Gaussian.flow`) from the first state of ``out``: what
    a jump to that time would have cost. The error of the solver is part of it.

    Args:
        out: samples drawn with ``keep="all"`` by a deterministic solver.
        law: the Gaussian, in the chart.

    Returns:
        Float64, one number per time of ``out.times``, 0 at the first; in float32 about 1e-14 is rounding.

    Raises:
        ValueError: samples without a trajectory, or of another shape than the law's.
        TypeError: a law that is not a Gaussian.

    Source: arXiv 2412.09726.
    """
    trajectory, process = _trajectory("trajectory_error", out), out.process
    if not isinstance(law, Gaussian):
        raise TypeError(f"trajectory_error.law = {law!r}: expected a Gaussian, whose flow is known")
    if trajectory.shape[2:] != law.event:
        raise ValueError(f"trajectory_error.out has points of shape {trajectory.shape[2:]}: expected {law.event}, as the law has")
    times, begin = out.times, process.encode(trajectory[0])
    error = np.zeros(len(times))
    for k in range(1, len(times)):
        y = process.encode(trajectory[k])
        moved, mean = law.flow(process, begin, times[0], times[k]), law.noised(process, times[k]).mean
        error[k] = _sum_of_squares(y - moved) / _sum_of_squares(y - mean)
    return error


def denoised_along(model: Model, out: Samples, cond: Pytree = None, *, batch: int = 256) -> Array:
    r"""What the model takes for the clean data at every state of the samples' way, :math:`D(y_t, t)`.

    Args:
        model: the model.
        out: samples drawn with ``keep="all"``, under the process of the model.
        cond: the model's conditions, with leading axis ``n``.
        batch: points evaluated at once, of one time after another.

    Returns:
        Points of the chart, ``(steps + 1, n, *event)``. At the clean time there is nothing left to denoise, and the entry is
        the state.

    Raises:
        ValueError: samples without a trajectory or of another process, conditions for another number of
            samples.
    """
    trajectory, process = _trajectory("denoised_along", out), out.process
    model = as_pytree("denoised_along", model)
    require_same_process("denoised_along", model=model.process, out=process)
    n = trajectory.shape[1]
    require_batch("denoised_along", batch)
    require_leading("denoised_along", cond, n)
    found = []
    for t, x in zip(out.times, trajectory, strict=True):
        y = process.encode(x)
        if process.sigma(t) == 0:
            found.append(((y - process.offset(t)) / process.alpha(t)).astype(y.dtype))
            continue
        parts = []
        for index, count in blocks(n, batch):
            part = jax.tree.map(lambda c: jnp.asarray(c)[index], cond)
            parts.append(_denoised(model, y[index], jnp.asarray(t, y.dtype), part)[:count])
        found.append(jnp.concatenate(parts))
    return jnp.stack(found)


def bounded_along(model: Bounded, out: Samples, cond: Pytree = None, *, batch: int = 256) -> np.ndarray:
    """The share of the elements of each denoised mean that bounds have changed, at every state of the samples' way.

    Zero says that samples with and without the bounds are the same.

    Args:
        model: a :class:`scorelab.models.Clipped` or :class:`scorelab.models.DynamicThreshold`.
        out: samples drawn with ``keep="all"``, under the process of the model.
        cond: the model's conditions, with leading axis ``n``.
        batch: points evaluated at once, of one time after another.

    Returns:
        Float64 ``(steps, n)``, one row for each time at which there is noise.

    Raises:
        TypeError: a model without bounds.
        ValueError: as in :func:`denoised_along`.
    """
    require_spec("bounded_along", Bounded, model=model)
    trajectory, process = _trajectory("bounded_along", out), out.process
    require_same_process("bounded_along", model=model.process, out=process)
    n = trajectory.shape[1]
    require_batch("bounded_along", batch)
    require_leading("bounded_along", cond, n)
    found = []
    for t, x in zip(out.times, trajectory, strict=True):
        if process.sigma(t) == 0:
            continue
        y, parts = process.encode(x), []
        for index, count in blocks(n, batch):
            part = jax.tree.map(lambda c: jnp.asarray(c)[index], cond)
            parts.append(np.asarray(_moved(model, y[index], jnp.asarray(t, y.dtype), part), np.float64)[:count])
        found.append(np.concatenate(parts))
    return np.stack(found)


@jax.jit
def _moved(model, y, t, cond):
    return model.moved(y, t, cond)


@jax.jit
def _denoised(model, y, t, cond):
    return ask(model, y, t, cond).denoised


def perturbation_sensitivity(
    model: Model,
    y: Array,
    direction: Array,
    *,
    t: float,
    size: float,
    solver: Solver,
    grid: Grid,
    key: Key,
    cond: Pytree = None,
) -> Array:
    r"""The displacement of the end of sampling, per unit of a displacement at time ``t``.

    .. math:: \frac{\phi_{t\to 0}(y + h\,u) - \phi_{t\to 0}(y - h\,u)}{2h}

    For Gaussian data and a direction :math:`u_k` of its covariance this is :math:`u_k` times the gain of
    :meth:`scorelab.densities.Gaussian.flow`, :math:`\sqrt{(\alpha_s^2\lambda_k+\sigma_s^2)/(\alpha_t^2\lambda_k+\sigma_t^2)}`
    with ``s`` the end of the grid: :math:`\sqrt{\lambda_k/(\lambda_k+\sigma_t^2)}` at clean data where :math:`\alpha = 1`.
    What is written early along a direction of small variance is forgotten.

    Args:
        model: the model.
        y: states in the chart at time ``t``, ``(n, *event)``.
        direction: ``event``, or one direction per state ``(n, *event)``; not normalised.
        t: the time of the states, at which ``grid`` begins.
        size: ``h``. The error is of the order of the rounding of ``y`` divided by ``h`` and, for a flow that is not
            linear, of ``h`` squared.
        solver: a solver; both runs take the same key, and so the same noise where it draws any.
        grid: the times from ``t`` on, such as ``Karras(18, t_max=t)``.
        key: PRNG key.
        cond: the model's conditions, with leading axis ``n``.

    Returns:
        Displacements in the chart, ``(n, *event)``.

    Raises:
        ValueError: a grid that begins elsewhere, a direction of another shape, a size that is not positive.

    Source: arXiv 2412.09726.
    """
    require_model("perturbation_sensitivity", model)
    process = model.process
    y, direction = jnp.asarray(y, float), jnp.asarray(direction, float)
    if direction.shape not in (y.shape, y.shape[1:]):
        raise ValueError(
            f"perturbation_sensitivity.direction has shape {direction.shape}: expected {y.shape[1:]} or {y.shape}, as y has"
        )
    if not 0 < size < np.inf:
        raise ValueError(f"perturbation_sensitivity.size = {size!r}: expected a finite number above 0")
    begin = float(grid.times(process)[0])
    if not np.isclose(begin, t, rtol=1e-6, atol=0.0):
        raise ValueError(f"perturbation_sensitivity.grid begins at {begin:g}: expected t = {t:g}, the time of the states")
    ends = []
    for step in (size, -size):
        start = Fixed(y + step * direction)
        out = sample(model, solver=solver, grid=grid, key=key, shape=y.shape, start=start, cond=cond)
        ends.append(process.encode(out.x))
    return (ends[0] - ends[1]) / (2 * size)


def planarity(trajectory: Array) -> np.ndarray:
    r"""The share of each state that lies in the plane of the first and the last one, :math:`|P y_t|^2/|y_t|^2`.

    It is 1 along a path in a plane through the origin, as a rotation from noise to data is. Scaling a state changes
    nothing, so that a path has the same numbers in its variance-exploding and its variance-preserving form.

    Args:
        trajectory: states ``(steps + 1, n, *event)``, of the chart for a multiplicative process
            (``process.encode(out.trajectory)``).

    Returns:
        Float64 ``(steps + 1, n)``, one at both ends. Where the ends are parallel to float32 rounding, the plane is a line;
        a state that is zero lies in every plane.

    Raises:
        ValueError: an array without these axes, or with values that are not finite.

    Source: arXiv 2412.09726.
    """
    if np.ndim(trajectory) < 3:
        raise ValueError(f"planarity.trajectory has shape {np.shape(trajectory)}: expected (steps + 1, n, *event)")
    require_finite("planarity.trajectory", trajectory)
    flat = lambda state: np.asarray(state, np.float64).reshape(len(state), -1)
    first, last = flat(trajectory[0]), flat(trajectory[-1])
    along = _unit(first)
    across = last - _dot(last, along) * along
    across -= _dot(across, along) * along  # once more: near parallel ends leave little but rounding
    across = _unit(np.where(_dot(across, across) > _PARALLEL**2 * _dot(last, last), across, 0.0))
    shares = []
    for state in map(flat, trajectory):
        square = _dot(state, state)
        inside = _dot(state, along) ** 2 + _dot(state, across) ** 2
        shares.append(np.divide(inside, square, out=np.ones_like(square), where=square > 0)[:, 0])
    return np.stack(shares)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1, keepdims=True)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length one; zero stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)


def _sum_of_squares(value: Array) -> float:
    return float(np.sum(np.square(np.asarray(value, np.float64))))


def _trajectory(function: str, out: Samples) -> Array:
    if out.trajectory is None:
        raise ValueError(f"{function}.out has no trajectory: expected samples drawn with keep='all'")
    return out.trajectory
