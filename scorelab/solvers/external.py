"""Any diffrax solver on the probability flow, adaptive or with fixed steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.processes.interpolant import FlowPrediction, StochasticInterpolant
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.processes.predictions import HasDenoised, HasVelocity, require_capabilities
from scorelab.pytrees import computed
from scorelab.solvers.base import Integrator
from scorelab.solvers.euler import Landing
from scorelab.validation import require_int, require_positive

# diffrax is imported where it is used: it takes as long to import as jax does.


def default_solver() -> Any:
    """``diffrax.Tsit5()``."""
    import diffrax

    return diffrax.Tsit5()


class IntervalRow(NamedTuple):
    """One interval of the grid.

    Attributes:
        t: its first time.
        step: its number.
        s: its last time.
        end: how it lands; None where the flow itself reaches the data.
    """

    t: Array
    step: Array
    s: Array
    end: Landing | None


@dataclass(frozen=True, kw_only=True)
class Diffrax(Integrator):
    r"""Solve the flow between grid times with a diffrax ODE solver.

    It is :math:`dy/dt = \dot\alpha D + \dot b + \dot\sigma\hat\epsilon` of a linear-Gaussian process, and :math:`dy/dt = u` of a
    stochastic interpolant, whose velocity is finite down to the data.

    The step size is adapted within each grid interval to ``rtol`` and ``atol`` (one size for the whole batch, so a
    sample may differ between batches by the tolerance); ``fixed`` substeps turn adaptivity off. A step of a
    linear-Gaussian process to sigma = 0 is integrated down to the noise ratio ``floor`` and ends with the denoised mean
    there, whose error is of order ``floor**2``.

    Attributes:
        solver: a diffrax ODE solver, by default ``diffrax.Tsit5()``.
        rtol: relative tolerance.
        atol: absolute tolerance.
        fixed: number of equal substeps per interval, or 0 to adapt.
        floor: noise ratio at which the last interval stops.
        max_steps: substeps allowed in one interval.
    """

    solver: Any = field(default_factory=default_solver)
    rtol: float = 1e-5
    atol: float = 1e-5
    fixed: int = 0
    floor: float = 1e-3
    max_steps: int = 4096

    process_type = LinearGaussian | StochasticInterpolant
    needs = (HasVelocity,)
    stochastic = False
    calls_per_step = None

    def __post_init__(self):
        import diffrax

        if not isinstance(self.solver, diffrax.AbstractSolver) or isinstance(self.solver, diffrax.AbstractItoSolver):
            raise TypeError(f"Diffrax.solver = {self.solver!r}: expected a diffrax ODE solver")
        require_positive(self, rtol=self.rtol, atol=self.atol, floor=self.floor)
        require_int(self, 0, fixed=self.fixed)
        require_int(self, 1, max_steps=self.max_steps)

    @computed
    def order(self) -> int:
        """What diffrax states for the solver (of substeps; an adaptive solve has an error set by its tolerance)."""
        import diffrax

        return self.solver.order(diffrax.ODETerm(lambda t, y, args: y))

    def table(self, process, times):
        """Start and end of each interval; the last one of a grid to sigma = 0 ends at the floor."""
        t, ends = np.array(times[:-1], np.float64), np.array(times[1:], np.float64)
        if isinstance(process, StochasticInterpolant):
            process.require_flow("Diffrax")
            return IntervalRow(t=t, step=np.arange(len(ends)), s=ends, end=None)
        last = np.zeros(len(ends))
        if process.sigma(ends[-1]) == 0:
            floor = min(self.floor, 0.5 * float(process.noise_ratio(times[-2])))
            ends[-1], last[-1] = process.schedule.time(np.float64(-2 * math.log(floor))), 1.0
        alpha, offset = (np.full(len(ends), float(f(times[-1]))) for f in (process.alpha, process.offset))
        return IntervalRow(t=t, step=np.arange(len(ends)), s=ends, end=Landing(last, alpha, offset))

    def require(self, prediction):
        """The denoised mean too, where a step ends in it."""
        super().require(prediction)
        if not isinstance(prediction, FlowPrediction):
            require_capabilities(type(self).__name__, prediction, (HasDenoised,))

    def integrate(self, model, y, row: IntervalRow):
        """One interval."""
        import diffrax

        term = diffrax.ODETerm(lambda t, y, args: model(y, t).velocity.astype(y.dtype))
        if self.fixed:
            control = diffrax.StepTo(ts=row.t + (row.s - row.t) * jnp.linspace(0.0, 1.0, self.fixed + 1, dtype=y.dtype))
        else:
            control = diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        solution = diffrax.diffeqsolve(
            term,
            self.solver,
            t0=row.t,
            t1=row.s,
            dt0=None,
            y0=y,
            stepsize_controller=control,
            saveat=diffrax.SaveAt(t1=True),
            max_steps=self.max_steps,
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
        # A solve that ran out of steps returns what it has, which is not the answer: make it visible as NaN.
        done = solution.result == diffrax.RESULTS.successful
        out = jnp.where(done, cast(Array, solution.ys)[0], jnp.nan)
        return out if row.end is None else row.end(model(out, row.s), out)
