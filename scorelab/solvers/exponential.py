r"""Exponential integrators in data prediction: DDIM and DPM-Solver++ with their stochastic forms, one row form for all.

With :math:`h = \log(\alpha_s/\sigma_s) - \log(\alpha_t/\sigma_t)` the half-log-SNR gained by the step,

.. math:: y_s = a\,y_t + \textstyle\sum_j b_j D_{-j} + n z + o .

A final :math:`\sigma_s = 0` is :math:`h = \infty` and gives the row :math:`(0, \alpha_s, 0, \dots)`: the denoised mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.pytrees import computed
from scorelab.randomness import per_example_normal
from scorelab.solvers.base import Nodes, Solver, shift
from scorelab.validation import require_choice, require_number


class MultistepRow(NamedTuple):
    r"""The numbers of one row of :math:`y_s = a\,y_t + \sum_j b_j v_{-j} + n z + o`.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        a: gain of the state.
        b: weights of the values, newest first.
        o: the offset.
        n: deviation of the noise, None for a rule without.
        slope: :math:`\kappa` where the values are straight velocities :math:`\hat\epsilon+\kappa D`, None where they are ``D``.
    """

    t: Array
    step: Array
    a: Array
    b: Array
    o: Array
    n: Array | None = None
    slope: Array | None = None


@dataclass(frozen=True, kw_only=True)
class Multistep(Solver):
    """A linear multistep rule: the row form above, with as many past values as ``b`` has columns after the first.

    Subclasses give the ``order`` and the coefficients; ``value`` chooses what is remembered.
    """

    @computed
    def history(self) -> int:
        """How many past values the rule uses."""
        return self.order - 1

    def init(self, process, y, log_weights):
        """Past values, newest first; the first rows have zero coefficients for those that do not exist yet."""
        return (jnp.zeros_like(y),) * self.history

    def noise(self, row):
        return row.n

    def value(self, prediction, row: MultistepRow) -> Array:
        """The quantity that is combined: the denoised mean."""
        return prediction.denoised

    def update(self, keys, y, prediction, carry, row: MultistepRow):
        values = (self.value(prediction, row), *carry)
        y = row.a * y + row.o + sum(row.b[j] * value for j, value in enumerate(values))
        if row.n is not None:
            y = y + row.n * per_example_normal(keys, y)
        return y, values[: self.history]


@dataclass(frozen=True, kw_only=True)
class DDIM(Multistep):
    r"""Denoising diffusion implicit models (Song et al. 2021, eq. 12).

    .. math:: y_s = \alpha_s D + \sqrt{\sigma_s^2 - n^2}\,\hat\epsilon + n z,\qquad n = \eta\,\sigma_s\sqrt{1-e^{-2h}} .

    ``eta = 0`` is the deterministic solver (first-order DPM-Solver++), ``eta = 1`` ancestral sampling.
    """

    eta: float = 0.0

    order = 1

    def __post_init__(self):
        require_number(self, 0.0, 1.0, eta=self.eta)

    @computed
    def stochastic(self) -> bool:
        """When ``eta > 0``."""
        return self.eta > 0

    @computed
    def noise_level(self) -> float:
        """``eta`` squared."""
        return self.eta**2

    def table(self, process, times):
        nodes = Nodes.at(process, times)
        alpha, sigma = nodes.alpha, nodes.sigma
        # Without noise the grid may go either way.
        gained = -np.expm1(-2 * np.diff(nodes.half_log_snr)) if self.eta else np.zeros(len(times) - 1)
        n = self.eta * sigma[1:] * np.sqrt(gained)
        a = np.sqrt(sigma[1:] ** 2 - n**2) / sigma[:-1]
        b = alpha[1:] - a * alpha[:-1]
        noise = n if self.stochastic else None
        return MultistepRow(t=nodes.t[:-1], step=np.arange(len(a)), a=a, b=b[:, None], o=shift(nodes, a), n=noise)


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP(Multistep):
    r"""DPM-Solver++ of order 1, 2 (2M) or 3 (3M), and its SDE forms (Lu et al. 2022; k-diffusion's ``eta``).

    The reverse SDE :math:`dy = [f - \tfrac{1+\eta}{2} g^2\,\nabla\log p]\,dt + \sqrt\eta\,g\,d\bar w` has the exact solution

    .. math:: y_s = \tfrac{\sigma_s}{\sigma_t}e^{-\eta h} y_t
              + \alpha_s\!\int_0^{h}\!(1+\eta)e^{-(1+\eta)(h-\tau)} D(\tau)\,d\tau + \sigma_s\sqrt{1-e^{-2\eta h}}\,z .

    Order 2 replaces ``D`` by :math:`D + (D - D_{-1})/2r`, :math:`r = h_{-1}/h` (the published 2M). Order 3
    integrates the parabola through the last three ``D`` exactly. The published 3M puts half the weight on the second
    difference that the exact integral has, which leaves it second order; this one is third order.

    Attributes:
        order: 1, 2 or 3; lower while there are fewer past values, and 1 on a step to sigma = 0.
        eta: noise strength; 0 is the ODE, 1 the reverse SDE. The deterministic order is declared; with noise the
            weak order measured on Gaussians is 1, 2 and 2.
        start: ``"corrected"`` or ``"published"``, with which order 3 is 2 wherever the denoised mean
            varies over the first step. The same for orders 1 and 2 and with noise, and where ``alpha`` is 0 at the start.
    """

    order: int = 2
    eta: float = 0.0
    start: Literal["corrected", "published"] = "corrected"

    def __post_init__(self):
        require_choice(self, (1, 2, 3), order=self.order)
        require_number(self, 0.0, 10.0, eta=self.eta)
        require_choice(self, ("corrected", "published"), start=self.start)

    @computed
    def stochastic(self) -> bool:
        """When ``eta > 0``."""
        return self.eta > 0

    @computed
    def noise_level(self) -> float:
        """``eta``."""
        return self.eta

    def table(self, process, times):
        nodes = Nodes.at(process, times)
        h = np.diff(nodes.half_log_snr)
        decay = np.exp(-self.eta * h) if self.eta else np.ones_like(h)  # 0 * inf is not 1
        a = nodes.sigma[1:] / nodes.sigma[:-1] * decay
        b = np.zeros((len(h), self.order))
        for i in range(len(h)):
            weights = data_weights(nodes.half_log_snr, i, self.order, 1 + self.eta, midpoint=self.order == 2)
            b[i, : len(weights)] = nodes.alpha[i + 1] * weights
        # With noise the weak order is 2 whatever the start.
        if self.start == "corrected" and not self.eta:

            def better(i: int):
                """The weights of step ``i`` with the value at its end, which comes first."""
                points = past_nodes(nodes.half_log_snr, i, self.order)
                return nodes.alpha[i + 1] * polynomial_weights(np.append(1.0, points), h[i])

            corrected_start(a, b, np.isfinite(h), better)
        n = nodes.sigma[1:] * np.sqrt(-np.expm1(-2 * self.eta * h)) if self.eta else None
        return MultistepRow(t=nodes.t[:-1], step=np.arange(len(h)), a=a, b=b, o=shift(nodes, a), n=n)


def corrected_start(a: np.ndarray, b: np.ndarray, regular: np.ndarray, better: Callable[[int], np.ndarray]) -> None:
    r"""Make up for the low order of the first steps, in the rows that follow them; no model call, no memory.

    Step ``i`` of the start knows ``i + 1`` values and has a local error of order ``i + 2``, too large by one for a rule of order
    three: its first step leaves an error of second order for good, where the denoised mean varies. When the next row has called
    the model, the value at the end of the step is known. The state is corrected to the rule that includes it, one order higher,
    which is linear in the values and so a change of the coefficients: ``a`` times the correction.

    Args:
        a: gains of the state, ``(steps,)``.
        b: weights of the values, newest first, ``(steps, order)``; changed in place.
        regular: the steps whose rule can take one more value.
        better: the weights of step ``i`` with the value at its end, which comes first.
    """
    taken = b.copy()
    for i in range(min(b.shape[1] - 2, len(a) - 1)):
        if regular[i]:
            with_end = better(i)
            with_end[1:] -= taken[i, : len(with_end) - 1]
            b[i + 1, : len(with_end)] += a[i + 1] * with_end


def phi(k: int, x: float) -> float:
    r""":math:`\int_0^1 e^{-(1-\tau)x}\,\tau^{k-1}/(k-1)!\,d\tau`, without cancellation for small ``x``."""
    if abs(x) < 0.5:
        return sum((-x) ** j / math.factorial(k + j) for j in range(16))
    value = -math.expm1(-x) / x
    for j in range(1, k):
        value = (1 / math.factorial(j) - value) / x
    return value


def polynomial_weights(nodes: np.ndarray, x: float) -> np.ndarray:
    r"""Weights ``w`` with :math:`\sum_j w_j\,p(u_j) = \int_0^1 x e^{-x(1-\tau)} p(\tau)\,d\tau` for polynomials ``p``.

    Args:
        nodes: ``u``, where the values are known, in units of the step (0 is its start, 1 its end).
        x: ``(1 + eta) h``.
    """
    powers = np.arange(len(nodes))
    moments = np.array([x * math.factorial(k) * phi(k + 1, x) for k in range(len(nodes))])
    return np.linalg.solve(np.asarray(nodes, np.float64)[None, :] ** powers[:, None], moments)


def past_nodes(half_log_snr: np.ndarray, i: int, order: int) -> np.ndarray:
    """Up to ``order`` finite nodes at and before node ``i`` in units of the step to ``i + 1``, newest first."""
    step = half_log_snr[i + 1] - half_log_snr[i]
    if not np.isfinite(step):
        return np.zeros(1)
    nodes = (half_log_snr[max(i + 1 - order, 0) : i + 1][::-1] - half_log_snr[i]) / step
    return nodes[np.isfinite(nodes)]


def data_weights(half_log_snr: np.ndarray, i: int, order: int, rate: float, midpoint: bool) -> np.ndarray:
    """Weights of ``(D_i, D_{i-1}, ...)`` in the exact solution of step ``i``, for at most ``order`` values."""
    x = rate * (half_log_snr[i + 1] - half_log_snr[i])
    nodes = past_nodes(half_log_snr, i, order)
    total = -math.expm1(-x)
    if len(nodes) == 1:
        return np.array([total])
    if len(nodes) == 2 and midpoint:
        return total * np.array([1 - 0.5 / nodes[1], 0.5 / nodes[1]])
    return polynomial_weights(nodes, x)
