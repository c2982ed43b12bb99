r"""ODE solvers in the coordinate that straightens the conditional path: Heun (EDM), Adams-Bashforth (DEIS).

With the schedule's scale ``s``, :math:`z = (y-b)/s` and :math:`r = \sigma/s`, the probability flow is

.. math:: \frac{dz}{dr} = V = \hat\epsilon + \kappa D,\qquad \kappa = \frac{d(\alpha/s)}{d(\sigma/s)}\ \text{(a constant)} .

For :math:`s = \alpha` this is :math:`V = \hat\epsilon` over the noise ratio (Karras et al. 2022); for rectified flow
:math:`V = \hat\epsilon - D` over ``t``. Euler in it is DDIM.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Scalar
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.pytrees import computed
from scorelab.randomness import per_example_normal
from scorelab.solvers.base import Nodes, Solver, shift
from scorelab.solvers.exponential import Multistep, MultistepRow, corrected_start
from scorelab.validation import require_choice, require_number


def straight_velocity(prediction: GaussianPrediction, slope: Any) -> Array:
    r""":math:`V = \hat\epsilon + \kappa D`."""
    return prediction.eps + slope * prediction.denoised


@dataclass(frozen=True, kw_only=True)
class DEIS(Multistep):
    r"""Adams-Bashforth on the straight velocity (rho-AB-DEIS of Zhang & Chen 2023; LMS of k-diffusion on EDM).

    .. math:: z_s = z_t + \sum_j V_{-j}\int_{r_t}^{r_s} L_j(r)\,dr ,

    with the Lagrange polynomials through the last ``order`` values, integrated exactly.

    Attributes:
        order: 1 to 4; lower while there are fewer past values. Order 4 is 3 where the velocity varies over the first step.
        start: ``"corrected"`` or ``"published"``, with which orders 3
            and 4 are 2 there. Orders 1 and 2 have one start.
    """

    order: int = 3
    start: Literal["corrected", "published"] = "corrected"

    stochastic = False

    def __post_init__(self):
        require_choice(self, (1, 2, 3, 4), order=self.order)
        require_choice(self, ("corrected", "published"), start=self.start)

    def value(self, prediction, row):
        """The straight velocity."""
        return straight_velocity(prediction, row.slope)

    def table(self, process, times):
        nodes = Nodes.at(process, times)
        a = nodes.scale[1:] / nodes.scale[:-1]
        b = np.zeros((len(a), self.order))
        for i in range(len(a)):
            order = min(self.order, i + 1)
            past = nodes.ratio[i - order + 1 : i + 1][::-1]
            b[i, :order] = nodes.scale[i + 1] * lagrange_integrals(past, nodes.ratio[i], nodes.ratio[i + 1])
        if self.start == "corrected":

            def better(i: int):
                """The weights of step ``i`` with the value at its end, which comes first."""
                return nodes.scale[i + 1] * lagrange_integrals(nodes.ratio[i + 1 :: -1], nodes.ratio[i], nodes.ratio[i + 1])

            corrected_start(a, b, np.ones(len(a), bool), better)
        slope = np.full(len(a), nodes.slope)
        return MultistepRow(t=nodes.t[:-1], step=np.arange(len(a)), a=a, b=b, o=shift(nodes, a), slope=slope)


def lagrange_integrals(points: np.ndarray, low: float, high: float) -> np.ndarray:
    """Integrals from ``low`` to ``high`` of the Lagrange polynomials through ``points``."""
    width = high - low
    unit = (points - low) / width
    result = np.empty(len(points))
    for j in range(len(points)):
        others = np.delete(unit, j)
        antiderivative = np.polynomial.Polynomial.fromroots(others).integ() if len(others) else np.polynomial.Polynomial([0, 1])
        result[j] = width * (antiderivative(1.0) - antiderivative(0.0)) / np.prod(unit[j] - others)
    return result


class HeunRow(NamedTuple):
    r"""The numbers of one stage: the model is asked at :math:`\hat y = \mathrm{lift}\;y + o_{in} + n z`, and then

    .. math:: y \leftarrow c_y\,\hat y + c_b\,y_b + c_v V + c_{v'} V' + o

    with :math:`y_b` and :math:`V'` the point and the velocity of the stage before.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        lift: gain of the churn.
        o_in: offset of the churn.
        n: deviation of the churn's noise.
        y: :math:`c_y`.
        base: :math:`c_b`.
        now: :math:`c_v`.
        before: :math:`c_{v'}`.
        o: the offset.
        slope: :math:`\kappa` of the straight velocity.
    """

    t: Scalar
    step: Scalar
    lift: Scalar
    o_in: Scalar
    n: Scalar
    y: Scalar
    base: Scalar
    now: Scalar
    before: Scalar
    o: Scalar
    slope: Scalar


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    r"""Heun's rule on the straight velocity, with the churn of EDM (Karras et al. 2022, Algorithms 1 and 2).

    Before a step from noise ratio :math:`\rho` the noise is raised to :math:`\hat\rho = \rho(1+\gamma)`,
    :math:`\gamma = \min(\mathrm{churn}/N, \sqrt2-1)` for :math:`\rho` in ``[churn_min, churn_max]``. A step to
    :math:`\sigma = 0` is an Euler step, which is the denoised mean: ``2N - 1`` model calls for ``N`` steps.

    Attributes:
        churn: total amount of churn; 0 is the deterministic solver.
        churn_min: lowest noise ratio that is churned.
        churn_max: highest noise ratio that is churned.
        churn_noise: standard deviation of the added noise relative to what the level calls for.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0

    order = 2
    calls_per_step = 2

    def __post_init__(self):
        for name in ("churn", "churn_min", "churn_max", "churn_noise"):
            require_number(self, 0.0, math.inf, **{name: getattr(self, name)})

    @computed
    def stochastic(self) -> bool:
        """When ``churn > 0``."""
        return self.churn > 0

    def table(self, process, times):
        """Two rows a step, one for a step to sigma = 0."""
        steps = len(times) - 1
        ratio = np.asarray(process.noise_ratio(times[:-1]))
        gamma = min(self.churn / steps, math.sqrt(2) - 1)
        active = (ratio >= self.churn_min) & (ratio <= self.churn_max) & np.isfinite(ratio)
        with np.errstate(invalid="ignore"):
            raised = np.where(active & (gamma > 0), process.schedule.time(-2 * np.log(ratio * (1 + gamma))), times[:-1])
        near, hat = Nodes.at(process, times), Nodes.at(process, np.append(raised, times[-1]))

        rows = []
        for i in range(steps):
            with np.errstate(divide="ignore", invalid="ignore"):
                lift = hat.alpha[i] / near.alpha[i] if raised[i] != times[i] else 1.0
            noise = self.churn_noise * math.sqrt(max(hat.sigma[i] ** 2 - (lift * near.sigma[i]) ** 2, 0.0))
            gain = near.scale[i + 1] / hat.scale[i]
            move = near.scale[i + 1] * (near.ratio[i + 1] - hat.ratio[i])
            centre = near.offset[i + 1] - gain * hat.offset[i]
            churn = dict(lift=lift, o_in=hat.offset[i] - lift * near.offset[i], n=noise)
            move_on = dict(y=gain, base=0.0, now=move, before=0.0, o=centre, slope=near.slope)
            rows.append(HeunRow(t=hat.t[i], step=i, **churn, **move_on))
            if near.sigma[i + 1] > 0:
                correct = dict(y=0.0, base=gain, now=move / 2, before=move / 2, o=centre, slope=near.slope)
                rows.append(HeunRow(t=near.t[i + 1], step=i, lift=1.0, o_in=0.0, n=0.0, **correct))
        return jax.tree.map(lambda *column: np.array(column), *rows)

    def init(self, process, y, log_weights):
        """The state at the start of the step and the first velocity of the step."""
        return jnp.zeros_like(y), jnp.zeros_like(y)

    def query(self, keys, y, carry, row: HeunRow):
        """The churned point."""
        y = row.lift * y + row.o_in
        return y + row.n * per_example_normal(keys, y) if self.stochastic else y

    def update(self, keys, y, prediction, carry, row: HeunRow):
        """One stage; the memory of the other stage has coefficient zero."""
        base, before = carry
        now = straight_velocity(prediction, row.slope)
        return row.y * y + row.base * base + row.now * now + row.before * before + row.o, (y, now)
