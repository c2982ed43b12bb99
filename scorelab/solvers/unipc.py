r"""UniPC: a multistep predictor and corrector that share one model call per step (Zhao et al. 2023), data prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.pytrees import computed
from scorelab.solvers.base import Nodes, Solver
from scorelab.solvers.exponential import past_nodes, polynomial_weights
from scorelab.validation import require_choice


class UniPCRow(NamedTuple):
    r"""The numbers of one call, which first corrects and then predicts.

    .. math:: y^c = c_y y + c_b y^c_{-1} + \sum_j b^c_j D_{-j} + o^c,\qquad y_s = a y^c + \sum_j b_j D_{-j} + o .

    Attributes:
        t: where the model is asked.
        step: the grid step.
        a: gain of the corrected state.
        b: weights of the predictor, newest value first.
        o: its offset.
        y_c: :math:`c_y` of the corrector.
        base_c: :math:`c_b`, of the corrected state before.
        b_c: weights of the corrector.
        o_c: its offset.
    """

    t: Array
    step: Array
    a: Array
    b: Array
    o: Array
    y_c: Array
    base_c: Array
    b_c: Array
    o_c: Array


@dataclass(frozen=True, kw_only=True)
class UniPC(Solver):
    r"""UniPC with a predictor of order ``predictor_order`` and a corrector that adds the newest value.

    At node ``i`` the model is called once, on the predicted state. That value first corrects the state at node ``i``
    (starting again from the corrected state at ``i-1``) and then predicts the state at ``i+1``. Both are the exact
    exponential integral of a polynomial through known ``D``, except that the two-point rules use the published weight
    1/2: with :math:`B = 1-e^{-h}` (bh2) or :math:`B = h` (bh1),

    .. math:: \int \approx (1-e^{-h}) D + \tfrac{B}{2}\,\frac{D_j - D}{r_j} .

    No corrector runs at the first node, and none at the last, where it would need another call.

    Attributes:
        predictor_order: that of the predictor, 1 to 3 (the ``order`` of the paper and of other libraries). Fewer values are
            used at the start and, on a grid that ends at sigma = 0, on the last steps (orders ..., 3, 2, 1), as published.
        variant: ``"bh2"`` or ``"bh1"``; the latter needs a grid that ends above sigma = 0.
    """

    predictor_order: int = 2
    variant: Literal["bh1", "bh2"] = "bh2"

    stochastic = False

    def __post_init__(self):
        require_choice(self, (1, 2, 3), predictor_order=self.predictor_order)
        require_choice(self, ("bh1", "bh2"), variant=self.variant)

    @computed
    def order(self) -> int:
        """One more than that of the predictor; 3 for a predictor of order 3 at a start where the denoised mean varies."""
        return self.predictor_order + 1

    def _weights(self, points: np.ndarray, h: float) -> np.ndarray:
        """Weights of values at ``points`` (the current node, 0, first)."""
        total = -np.expm1(-h)
        if len(points) == 1:
            return np.array([total])
        if len(points) == 2:
            half = 0.5 * (total if self.variant == "bh2" else h) / points[1]
            return np.array([total - half, half])
        return polynomial_weights(points, h)

    def table(self, process, times):
        """Corrector coefficients (``*_c``) of node ``i`` and predictor coefficients of the step from it."""
        nodes = Nodes.at(process, times)
        lam, alpha, sigma, offset = nodes.half_log_snr, nodes.alpha, nodes.sigma, nodes.offset
        n = len(times) - 1
        if self.variant == "bh1" and not np.isfinite(lam[-1]):
            raise ValueError('UniPC.variant = "bh1" cannot step to sigma = 0: use "bh2" or a grid with clean=False')
        width = self.predictor_order + 1
        one, several = lambda: np.zeros(n), lambda: np.zeros((n, width))
        row = UniPCRow(nodes.t[:-1], np.arange(n), one(), several(), one(), one(), one(), several(), one())
        used = 0
        for i in range(n):
            if i == 0:
                row.y_c[0] = 1.0
            else:
                # Corrector of node i: values (new, current = i-1, i-2, ...), as many old ones as the predictor had.
                h = lam[i] - lam[i - 1]
                past = past_nodes(lam, i - 1, used)
                points = np.concatenate([past[:1], [1.0], past[1:]]) if np.isfinite(h) else past[:1]
                weights = alpha[i] * self._weights(points, h)
                if len(points) > 1:
                    weights[[0, 1]] = weights[[1, 0]]
                    row.b_c[i, : len(weights)] = weights
                else:
                    row.b_c[i, 1] = weights[0]
                row.base_c[i] = sigma[i] / sigma[i - 1]
                row.o_c[i] = offset[i] - row.base_c[i] * offset[i - 1]
            cap = n - i if not np.isfinite(lam[-1]) else self.predictor_order
            past = past_nodes(lam, i, min(self.predictor_order, cap))
            used = len(past)
            row.b[i, :used] = alpha[i + 1] * self._weights(past, lam[i + 1] - lam[i])
            row.a[i] = sigma[i + 1] / sigma[i]
            row.o[i] = offset[i + 1] - row.a[i] * offset[i]
        return row

    def init(self, process, y, log_weights):
        """The corrected state at the previous node and the past values, newest first."""
        return jnp.zeros_like(y), (jnp.zeros_like(y),) * self.predictor_order

    def update(self, keys, y, prediction, carry, row: UniPCRow):
        """Correct, then predict."""
        base, past = carry
        values = (prediction.denoised, *past)
        corrected = row.y_c * y + row.base_c * base + row.o_c + sum(row.b_c[j] * value for j, value in enumerate(values))
        out = row.a * corrected + row.o + sum(row.b[j] * value for j, value in enumerate(values))
        return out, (corrected, values[: self.predictor_order])
