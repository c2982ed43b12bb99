r"""RePaint: inpainting with an unconditional model, by replacing what is known and walking parts of the way again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array
from scorelab.processes.predictions import HasKnown
from scorelab.randomness import folded, per_example_normal
from scorelab.solvers.base import Around, Integrator, Nodes, Population, Solver
from scorelab.solvers.exponential import DDIM
from scorelab.validation import require_int, require_spec

# Streams of the noise of what is known, and of a jump, beside that of the step.
_KNOWN, _JUMP = 1, 2


class PaintedRow(NamedTuple):
    r"""A row of the other solver to ``s``, then :math:`y \leftarrow m(\alpha_s x + b_s + \sigma_s z) + (1-m)\,y` and a jump

    .. math:: y \leftarrow \mathrm{lift}\;y + o + n z' .

    Attributes:
        t: where the model is asked.
        step: the grid step; a step that is walked again counts as the last one that has been reached.
        inner: the row of the other solver.
        alpha: :math:`\alpha_s`.
        offset: :math:`b_s`.
        sigma: :math:`\sigma_s`.
        lift: :math:`\alpha_u/\alpha_s` of a jump back to ``u``; 1 without.
        o: :math:`b_u - \mathrm{lift}\;b_s`.
        n: :math:`\sqrt{\sigma_u^2 - \mathrm{lift}^2\sigma_s^2}`.
    """

    t: Array
    step: Array
    inner: Any
    alpha: Array
    offset: Array
    sigma: Array
    lift: Array
    o: Array
    n: Array


@dataclass(frozen=True, kw_only=True)
class RePaint(Around):
    r"""Inpainting: after every step what is known is replaced by its noised values, and every stretch is walked several times.

    After each step to a time ``s`` the known part (of :class:`scorelab.models.Known`) becomes
    :math:`\alpha_s x + b_s + \sigma_s z`. That part knows nothing of the rest: the model sees a point whose two parts do not fit.
    So when ``length`` steps have been made, ``y`` is noised forward by as many and they are walked again, ``repeats`` times in all,
    in which the rest adapts to what is known.

    Replacement alone (``repeats=1``) is biased on every grid. On a Gaussian its error of the mean falls by five with four repeats
    and by thirty with sixteen, and that of the variance with it, on 1000 steps. On few steps the spread that ``solver`` loses is
    larger than either. Where the rest has several modes, their shares are settled while the noise is high, and stay wrong.
    Consistent in the number of particles is :class:`scorelab.fk.FeynmanKac` with the likelihood as its potential.

    A grid of ``N`` steps has ``repeats * (N - 1) + 1`` model calls: the last step is walked once.

    Source: Lugmayr et al., "RePaint: inpainting using denoising diffusion probabilistic models", CVPR 2022, arXiv 2201.09865,
    algorithm 1 and its jumps of several steps. The paper's ``r`` and ``j`` are ``repeats`` and ``length``.

    Attributes:
        solver: a solver with one call per step and no memory, since a step follows another one after a jump: ``DDIM``,
            ``EulerMaruyama``, ``DPMSolverPP(order=1)``, ``ProbabilityFlowEuler``.
        repeats: how often each stretch is walked.
        length: steps in a stretch.
    """

    solver: Solver = field(default_factory=lambda: DDIM(eta=1.0))
    repeats: int = 10
    length: int = 1

    needs = (HasKnown,)
    paints = True
    order = 0
    stochastic = True
    noise_level = None
    calls_per_step = None

    def __post_init__(self):
        require_spec(self, Solver, solver=self.solver)
        require_int(self, 1, repeats=self.repeats, length=self.length)
        single = self.solver.calls_per_step == 1 and not isinstance(self.solver, Population | Integrator)
        if not single or self.solver.along_path or self.solver.needs == (HasKnown,):
            raise ValueError(
                f"RePaint.solver = {self.solver!r}: expected a solver of independent samples with one call per step, no "
                "memory, and noise of its own for each row, such as DDIM(eta=1.0)"
            )

    def table(self, process, times):
        """The other's rows in the order in which they are walked."""
        inner = self.inner_table(process, times)
        if len(inner.step) != len(times) - 1:
            raise ValueError(f"RePaint.solver = {self.solver!r}: expected one model call per step, not {len(inner.step)}")
        source, back = self.order_of_steps(len(times) - 1)
        nodes = Nodes.at(process, times)
        end, to = source + 1, np.maximum(source + 1 - back, 0)
        lift = np.where(back > 0, nodes.alpha[to] / nodes.alpha[end], 1.0)
        n = np.sqrt(np.maximum(nodes.sigma[to] ** 2 - (lift * nodes.sigma[end]) ** 2, 0.0)) * (back > 0)
        o = np.where(back > 0, nodes.offset[to] - lift * nodes.offset[end], 0.0)
        return PaintedRow(
            t=inner.t[source], step=np.maximum.accumulate(source), inner=jax.tree.map(lambda column: column[source], inner),
            alpha=nodes.alpha[end], offset=nodes.offset[end], sigma=nodes.sigma[end], lift=lift, o=o, n=n,
        )  # fmt: skip

    def order_of_steps(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Which step each row makes, and how many steps it then jumps back."""
        source, back = [], []
        for first in range(0, steps - 1, self.length):
            stretch = list(range(first, min(first + self.length, steps - 1)))
            for again in range(self.repeats):
                source += stretch
                back += [0] * (len(stretch) - 1) + [len(stretch) if again < self.repeats - 1 else 0]
        return np.array([*source, steps - 1]), np.array([*back, 0])

    def init(self, process, y, log_weights):
        """Nothing: ValueError for a solver with a memory."""
        if jax.tree.leaves(self.solver.init(process, y, log_weights)):
            raise ValueError(
                f"RePaint.solver = {self.solver!r}: expected a solver without memory, such as DDIM(eta=1.0), since a step follows "
                "another one after a jump"
            )
        return ()

    def update(self, keys, y, prediction, carry, row: PaintedRow):
        """A step, the replacement, and the jump where there is one."""
        y, carry = self.solver.update(keys, y, prediction, carry, row.inner)
        known = row.alpha * prediction.known + row.offset + row.sigma * per_example_normal(folded(keys, _KNOWN), y)
        y = jnp.where(prediction.mask > 0, known, y)
        return row.lift * y + row.o + row.n * per_example_normal(folded(keys, _JUMP), y), carry
