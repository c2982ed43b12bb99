"""Sampling with a network that sees its former estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree
from scorelab.models.estimates import informed
from scorelab.processes.base import Process
from scorelab.processes.predictions import HasDenoised
from scorelab.solvers.base import Around, Integrator, Population, Solver
from scorelab.solvers.joint import Joint
from scorelab.validation import require_spec


class Remembered(NamedTuple):
    """The memory of the base solver, and the latest denoised estimate, shaped like ``y``."""

    base: Pytree
    estimate: Array


@dataclass(frozen=True)
class SelfConditioned(Around):
    r"""A solver that tells the network the denoised estimate of its former call (Chen et al. 2022, arXiv 2208.04202, Algorithm 2).

    .. math:: D_k = D(y_k, t_k, D_{k-1}),\qquad D_{-1} = 0 .

    Calls are counted by the rows of ``solver``, so that both calls of a Heun step see the one before them. The estimate is that of
    the prediction which the solver reads: under guidance the guided one, but for weighted particles that of the model itself.
    Particles take it along when they are resampled: ``fk.FeynmanKac(base=SelfConditioned(solver))``.

    Attributes:
        solver: the solver; one with a call of the model in each row.
    """

    solver: Solver

    process_type = Process
    needs = (HasDenoised,)
    self_conditioned = True

    def __post_init__(self):
        require_spec(self, Solver, solver=self.solver)
        if isinstance(self.solver, Integrator):
            raise ValueError(
                f"SelfConditioned.solver = {self.solver!r}: expected a solver with one call of the model in each row, since an "
                "adaptive one takes back steps, and what it saw last is no former estimate"
            )
        if isinstance(self.solver, Population | Joint) or self.solver.self_conditioned:
            raise ValueError(
                f"SelfConditioned.solver = {self.solver!r}: expected a solver of independent points of one part; populations "
                "take it as their own base, FeynmanKac(base=SelfConditioned(...))"
            )

    def table(self, process, times):
        """That of the other."""
        return self.inner_table(process, times)

    def init(self, process, y, log_weights):
        """The memory of the other, and no estimate yet, which is zero."""
        return Remembered(self.solver.init(process, y, log_weights), jax.tree.map(jnp.zeros_like, y))

    def informed(self, model, carry: Remembered):
        """The model, told the latest estimate."""
        return informed(model, carry.estimate)

    def query(self, keys, y, carry: Remembered, row):
        return self.solver.query(keys, y, carry.base, row)

    def ask(self, model, keys, y, row, cond):
        return self.solver.ask(model, keys, y, row, cond)

    def update(self, keys, y, prediction: Any, carry: Remembered, row):
        """The step of the other; what is denoised here is seen in the next call."""
        y, base = self.solver.update(keys, y, prediction, carry.base, row)
        return y, Remembered(base, prediction.denoised)

    def decode(self, process, y, carry: Remembered):
        return self.solver.decode(process, y, carry.base)

    def noise(self, row):
        return self.solver.noise(row)

    def drawn(self, keys, like, row):
        return self.solver.drawn(keys, like, row)

    def outputs(self, carry: Remembered, records):
        return self.solver.outputs(carry.base, records)
