r"""The gap between flow and SDE where all is Gaussian, in closed form, and a bound of it by the Fokker-Planck residual.

The law :math:`p^S_t` of the reverse SDE with the field :math:`s_\theta` moves along
:math:`v + \tfrac12 g^2 e` with the velocity :math:`v = \mu - \tfrac12 g^2 s_\theta` of the flow and
:math:`e = \nabla\log p^S - s_\theta`. Two points that begin together and move along the two fields have, by Gronwall's inequality,

.. math:: W_2\big(p^S_0, p^O_0\big) \le \int_0^T e^{\int_0^t L}\,\tfrac12 g_t^2\,F(t)\,dt,\qquad
          F = \sqrt{E_{p^S}\lVert e\rVert^2},

where :math:`L(t)` is the largest eigenvalue of the symmetric part of :math:`-\nabla v` at any point. Where
:math:`s_\theta` is a gradient, the equations of :math:`p^S` and of its score, integrated by parts, leave

.. math:: -\frac{d}{dt}F^2 = 2 f_t F^2 - g_t^2\,E_{p^S}\lVert\nabla e\rVert^2 + 2 E_{p^S}[e\cdot R],

with the residual :math:`R` of the score in units of time. Hence, whatever the law and however rough :math:`s_\theta`,

.. math:: F(t) \le e^{\int_t^T f}F(T) + \int_t^T e^{\int_t^r f}\sqrt{E_{p^S_r}\lVert R\rVert^2}\,dr .

The residual of :class:`scorelab.losses.FokkerPlanck` in its score form is :math:`\lVert R\rVert^2(2\sigma^3/g^2)^2/d`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import legendre

from scorelab.arrays import Array
from scorelab.grids import Grid
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.schedules.base import derivative, on_host
from scorelab.validation import require_int, require_positive, require_spec


@dataclass(frozen=True, kw_only=True)
class GaussianGap:
    r"""What :func:`gaussian_gap` returns, for one coordinate; in ``d`` dimensions distances and bound are :math:`\sqrt d` of that.

    Attributes:
        ode_variance: of the flow, at the last time of the grid.
        sde_variance: of the reverse SDE.
        gap: :math:`W_2` between the two, the difference of the deviations.
        bound: the bound of ``gap`` by the residual.
        residual: :math:`\int E_{p^S}R^2\,dt`, in units of time.
        ode: :math:`W_2` between the flow and the law of the data, NaN where that is not given.
        sde: :math:`W_2` between the SDE and the law of the data, NaN where that is not given.
    """

    ode_variance: float
    sde_variance: float
    gap: float
    bound: float
    residual: float
    ode: float
    sde: float


def gaussian_gap(
    process: LinearGaussian,
    precision: Callable[[Array], Array],
    *,
    grid: Grid,
    start: float | None = None,
    variance: float | None = None,
    nodes: int = 12,
) -> GaussianGap:
    r"""Where the flow and the reverse SDE end with the field :math:`s_\theta(y, t) = -a(t)(y - b_t)`, beginning as a Gaussian.

    .. math:: \frac{dV^O}{dt} = (2f + g^2 a)V^O,\qquad \frac{dV^S}{dt} = (2f + 2g^2 a)V^S - g^2 ,

    and the residual is :math:`R = -(a' + 2fa + g^2a^2)(y - b_t)`. Every integral is taken by Gauss's rule on each step of the grid:
    no solver is part of the numbers.

    Args:
        process: the forward process.
        precision: the function ``a`` of times of any shape, in JAX; an exact score has :math:`1/(\alpha^2 v + \sigma^2)`.
        grid: the times; :math:`a` is to be smooth on each step.
        start: the variance at the first time, :math:`\sigma^2` there by default, which is that of the prior.
        variance: that of the data.
        nodes: of Gauss's rule on each step.

    Returns:
        The variances at the last time, distances, and the bound.

    Raises:
        ValueError: a variance that is not positive, a ``precision`` that is not finite or of another shape, a grid on which fewer
            nodes give another sixth digit.
        TypeError: another kind of process.
    """
    require_spec(gaussian_gap, LinearGaussian, process=process)
    require_spec(gaussian_gap, Grid, grid=grid)
    require_int(gaussian_gap, 4, nodes=nodes)
    if not callable(precision):
        raise TypeError(f"gaussian_gap.precision = {precision!r}: expected a function of times")
    for name, value in (("start", start), ("variance", variance)):
        if value is not None:
            require_positive(gaussian_gap, **{name: value})
    times = grid.times(process)[::-1]
    if not np.isfinite(times[0]):
        raise ValueError(f"gaussian_gap.grid ends at {times[0]}, the clean time of {process!r}: expected clean=False")
    first = float(process.sigma(times[-1])) ** 2 if start is None else start
    # Too wide steps may make a variance negative, which is refused below.
    with np.errstate(invalid="ignore"):
        found, rough = (_integrals(process, precision, times, first, count) for count in (nodes, nodes - 2))
    ode, sde, bound, residual = found
    scale = np.array([ode, sde, max(bound, np.sqrt(ode)), max(residual, 1.0)])
    if not np.all(np.abs(np.array(found) - rough) <= 1e-6 * scale):
        raise ValueError(
            f"gaussian_gap.grid has {len(times) - 1} steps on which {nodes} nodes are too few: expected shorter ones, and a begin "
            "below a time at which alpha is 0"
        )
    to_data = [np.nan, np.nan]
    if variance is not None:
        end = float(process.alpha(times[0])) ** 2 * variance + float(process.sigma(times[0])) ** 2
        to_data = [abs(np.sqrt(each) - np.sqrt(end)) for each in (ode, sde)]
    return GaussianGap(
        ode_variance=ode,
        sde_variance=float(sde),
        gap=float(abs(np.sqrt(sde) - np.sqrt(ode))),
        bound=bound,
        residual=residual,
        ode=float(to_data[0]),
        sde=float(to_data[1]),
    )


def _integrals(
    process: LinearGaussian, precision: Callable[[Array], Array], times: np.ndarray, first: float, nodes: int
) -> tuple[float, float, float, float]:
    """The variance of the flow and of the SDE at the first of increasing times, the bound, and the integral of the residual."""
    rule = _Rule(times, nodes)
    t = rule.t
    shape = jax.eval_shape(precision, jax.ShapeDtypeStruct(t.shape, jnp.result_type(float))).shape
    if shape != t.shape:
        raise ValueError(f"gaussian_gap.precision returned shape {shape} for times of shape {t.shape}: expected that shape")
    a, slope = np.asarray(on_host(precision, t)), np.asarray(derivative(precision, t))
    last = float(np.asarray(on_host(precision, times[-1:]))[0])
    if bad := np.count_nonzero(~np.isfinite([*a.ravel(), *slope.ravel(), last])):
        raise ValueError(f"gaussian_gap.precision has {bad} values or slopes that are not finite: expected none")
    f, g2 = np.asarray(process.schedule.drift_rate(t)), np.asarray(process.schedule.diffusion_rate(t))

    # The flow only stretches.
    ode = first * np.exp(-rule.whole(2 * f + g2 * a))
    # The SDE stretches twice as much, and adds; from the walk's begin to every node, and to its end.
    grown, all_grown = rule.below(2 * f + 2 * g2 * a), rule.whole(2 * f + 2 * g2 * a)
    added = g2 * np.exp(-grown)
    sde_at = np.exp(grown) * (first * np.exp(-all_grown) + rule.above(added))
    sde = first * np.exp(-all_grown) + rule.whole(added)

    off = np.abs(slope + 2 * f * a + g2 * a**2) * np.sqrt(sde_at)
    begin = abs(last - 1 / first) * np.sqrt(first)
    decay, all_decay = rule.below(f), rule.whole(f)
    error = np.exp(-decay) * (np.exp(all_decay) * begin + rule.above(np.exp(decay) * off))
    bound = rule.whole(np.exp(rule.below(-f - 0.5 * g2 * a)) * 0.5 * g2 * error)
    return float(ode), float(sde), bound, rule.whole(off**2)


class _Rule:
    """Gauss's rule on steps between increasing times; ``t`` are its nodes, ``(steps, nodes)``."""

    def __init__(self, times: np.ndarray, nodes: int):
        x, weights = legendre.leggauss(nodes)
        half = np.diff(times)[:, None] / 2
        self.t = times[:-1, None] + half * (1 + x)
        self._weights = half * weights
        # From the left end of a step to each node: of the polynomial through the values at the nodes.
        integrals = np.stack([legendre.legval(x, legendre.legint(row, lbnd=-1)) for row in np.eye(nodes)], axis=1)
        self._within = integrals @ np.linalg.inv(legendre.legvander(x, nodes - 1))
        self._half = half

    def whole(self, values: np.ndarray) -> float:
        """The integral over all steps."""
        return float(np.sum(self._weights * values))

    def below(self, values: np.ndarray) -> np.ndarray:
        """The integral from the first time to every node."""
        steps = np.sum(self._weights * values, axis=1)
        return (np.cumsum(steps) - steps)[:, None] + self._half * (values @ self._within.T)

    def above(self, values: np.ndarray) -> np.ndarray:
        """The integral from every node to the last time; not a difference, of which nothing may be left."""
        steps = np.sum(self._weights * values, axis=1)
        return np.cumsum(steps[::-1])[::-1][:, None] - self._half * (values @ self._within.T)
