r"""Noise from one Brownian path for each sample, so that the same key at more steps gives the same sample, better resolved.

Let :math:`r = (\alpha^2/\sigma^2)^{c^2}`, where :math:`c^2` is the noise level of a solver. The noise that its SDE adds to
:math:`y\,r/\alpha` in any stretch of time is :math:`W(r_s) - W(r_t)` of one Brownian motion ``W``, times known numbers. A step
draws

.. math:: z = \frac{W(r_s) - W(r_t)}{\sqrt{r_s - r_t}} .

``W`` is Levy's construction. In :math:`q = 1/(1+\sqrt{\sigma/\alpha})`, which goes from 0 (pure noise) to 1 (clean), it draws a
value at the middle of every interval, down to cells of width :math:`2^{-16}`, and one bridge inside each cell. It is linear in
independent normal numbers, one for each interval. So a step is a row of weights that the host knows:

.. math:: z = \sum_j c_j Z_j,\qquad \sum_j c_j^2 = 1 .

Nothing is stored, and nothing is tolerated: on every grid with one time in a cell the :math:`z` are independent and standard
normal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.pytrees import computed
from scorelab.randomness import PathKeys, folded, per_example_normal
from scorelab.solvers.base import Around, Integrator, Population, Solver
from scorelab.validation import require_spec

# Halvings down to a cell: 65536 cells, of a relative width in the noise ratio of 1e-3 at the ends of EDM and 1e-4 between.
_LEVELS = 16
_CELLS = 2**_LEVELS
# Two times have at most all levels and the bridge of their cell each.
_TERMS = 2 * (_LEVELS + 1)


class PathRow(NamedTuple):
    """A row of the other solver, and the increment of the path over its grid step.

    Attributes:
        t: where the model is asked.
        step: the grid step.
        inner: the row of the other solver.
        node: the normal numbers, ``(34,)`` integers.
        weight: their weights, ``(34,)``.
        terms: how many there are.
    """

    t: Array
    step: Array
    inner: Any
    node: Array
    weight: Array
    terms: Array


@dataclass(frozen=True, kw_only=True)
class Brownian(Around):
    r"""A stochastic solver whose noise is that of one Brownian path for each sample (:mod:`scorelab.solvers.brownian`).

    Samples of one key and id at ``N`` and ``2N`` steps are the same sample, up to the error of the steps. With noise of its own
    for each row they have nothing to do with one another. A path depends on key and id alone, not on grid, chunk or device. The
    law at any one number of steps is that of the solver.

    The increment of a coarse step is the sum of those of the fine steps inside it, with weights :math:`\sqrt{\Delta r}`. These
    are the weights of the noise in ``DDIM(eta=1.0)`` and in ``DPMSolverPP`` with any ``eta``. In ``EulerMaruyama``, ``Milstein``,
    ``DDIM`` with ``eta < 1`` and the churn of ``Heun`` (where :math:`c = 1` is taken) they agree to first order in the step. The
    strong order is 1 for all; it is 1/2 for ``EulerMaruyama(coords="ambient")`` where the noise depends on the state. A step to
    sigma = 0 draws apart from the path; only ``denoise=False`` adds noise there.

    All rows of a grid step get the same increment, as the stages of a stochastic Runge-Kutta rule do. In a population the path
    belongs to a place and not to a particle, so that copies separate.

    Sources: P. Levy, "Processus stochastiques et mouvement brownien", 1948; its use for samplers is that of k-diffusion.

    Attributes:
        solver: a stochastic solver of independent samples, with an order of at least 1: a bias that stays has no limit.
    """

    solver: Solver

    along_path = True

    def __post_init__(self):
        require_spec(self, Solver, solver=self.solver)
        if isinstance(self.solver, Population | Integrator) or self.solver.along_path:
            raise ValueError(
                f"Brownian.solver = {self.solver!r}: expected a solver of independent samples with rows; weighted particles take "
                "it as FeynmanKac.base, parts of a Joint one by one"
            )
        if not self.solver.stochastic or self.solver.order < 1:
            raise ValueError(
                f"Brownian.solver = {self.solver!r}: expected a solver with noise that converges, such as "
                f"DPMSolverPP(eta=1.0) (this one has stochastic = {self.solver.stochastic}, order = {self.solver.order})"
            )

    @computed
    def exponent(self) -> float:
        """:math:`c^2` of the clock."""
        return self.solver.noise_level or 1.0

    def table(self, process, times):
        inner = self.inner_table(process, times)
        log_snr = np.asarray(process.log_snr(np.asarray(times, np.float64)), np.float64)
        node, weight, terms = increments(log_snr, self.exponent)
        step = np.asarray(inner.step)
        return PathRow(t=inner.t, step=step, inner=inner, node=node[step], weight=weight[step], terms=terms[step])

    def noise(self, row):
        """That of the other."""
        return self.solver.noise(row.inner)

    def drawn(self, keys, like, row):
        """The increment of the step. Noise in the place of keys is that noise itself."""
        if not isinstance(keys, PathKeys):
            if jnp.issubdtype(keys.dtype, jnp.floating):
                return per_example_normal(keys, like)
            raise ValueError(
                f"{self!r} got keys of a row alone, from a solver around it: expected a walk, FeynmanKac or Joint around it"
            )

        def add(j, z):
            return z + row.weight[j].astype(like.dtype) * per_example_normal(folded(keys.path, row.node[j]), like)

        return jax.lax.fori_loop(0, row.terms, add, jnp.zeros(like.shape, like.dtype))

    def query(self, keys, y, carry, row: PathRow):
        """As the other, with the increment where it draws."""
        return self.solver.query(self.drawn(keys, y, row), y, carry, row.inner)

    def update(self, keys, y, prediction, carry, row: PathRow):
        """As the other, with the increment where it draws."""
        return self.solver.update(self.drawn(keys, y, row), y, prediction, carry, row.inner)


def increments(log_snr: np.ndarray, exponent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every step between two log-SNRs the normal numbers ``(steps, 34)``, their weights, and how many there are ``(steps,)``.

    Raises:
        ValueError: two times in one cell, whose increments would not be independent, or noise levels beyond float64.
    """
    q = 1 / (1 + np.exp(-log_snr / 4))
    cells = np.floor(q * _CELLS)
    if np.any(same := np.diff(cells) == 0):
        low, high, at = log_snr[:-1][same][0], log_snr[1:][same][0], q[:-1][same][0]
        apart = 4 / (_CELLS * max(at * (1 - at), 1 / _CELLS))
        raise ValueError(
            f"Brownian has two times of the grid at log-SNR {low:.6g} and {high:.6g}: expected times that are further apart, by "
            f"about {apart:.2g} there"
        )
    if np.any(np.abs(log_snr[np.isfinite(log_snr)]) * exponent > 600):
        raise ValueError(
            f"Brownian has times of log-SNR {log_snr.min():.4g} to {log_snr.max():.4g}: expected less than {600 / exponent:.4g}"
        )
    with np.errstate(over="ignore"):
        clock = np.exp(exponent * log_snr)
    terms = [path_terms(*at, exponent) if np.isfinite(at[1]) else {} for at in zip(q, clock, strict=True)]
    steps = len(log_snr) - 1
    node, weight, count = np.zeros((steps, _TERMS), np.int64), np.zeros((steps, _TERMS)), np.zeros(steps, np.int64)
    for i in range(steps):
        if np.isfinite(clock[i + 1]):
            scale = math.sqrt(clock[i] * math.expm1(exponent * (log_snr[i + 1] - log_snr[i])) if clock[i] else clock[i + 1])
            before, after = terms[i], terms[i + 1]
            found = {j: (after.get(j, 0.0) - before.get(j, 0.0)) / scale for j in before | after}
        else:
            found = {2 * _CELLS: 1.0}
        count[i] = len(found)
        node[i, : len(found)], weight[i, : len(found)] = list(found), list(found.values())
    return node, weight, count


def path_terms(q: float, r: float, exponent: float) -> dict[int, float]:
    """``W(r)`` as weights of normal numbers, by interval: its middle in cells, and after all of those the cells."""

    def clock(q: float) -> float:
        return math.inf if q == 1 else (q / (1 - q)) ** (4 * exponent)

    found, low, high = {}, 0, _CELLS
    while high - low > 1:
        middle = (low + high) // 2
        left, split, right = (clock(at / _CELLS) for at in (low, middle, high))
        # The part of the interval behind the middle, and that behind r, of a bridge from left to right; 1 where it is without end.
        behind = 1.0 if math.isinf(right) else (right - split) / (right - left)
        rest = 1.0 if math.isinf(right) else (right - r) / (right - split)
        share = (r - left) / (split - left) if q * _CELLS < middle else rest
        found[middle] = math.sqrt((split - left) * behind) * share
        if q * _CELLS == middle:
            return found
        low, high = (low, middle) if q * _CELLS < middle else (middle, high)
    left, right = clock(low / _CELLS), clock(high / _CELLS)
    behind = 1.0 if math.isinf(right) else (right - r) / (right - left)
    found[_CELLS + low] = math.sqrt(max(r - left, 0.0) * max(behind, 0.0))
    return found
