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
from scorelab.pytrees import computed
from scorelab.solvers.base import Integrator, Population, Solver
from scorelab.solvers.joint import Joint
from scorelab.validation import require_spec


class Remembered(NamedTuple):
    """The memory of the base solver, and the latest denoised estimate, shaped like ``y``."""

    base: Pytree
    estimate: Array


@dataclass(frozen=True)
class SelfConditioned(Solver):
    r"""A solver that tells the network the denoised estimate of its former call (Chen et al. 2022, arXiv 2208.04202, Algorithm 2).

    .. math:: D_k = D(y_k, t_k, D_{k-1}),\qquad D_{-1} = 0 .

    Calls are counted by the rows of ``base``, so that both calls of a Heun step see the one before them. The estimate is that of
    the prediction which the solver reads: under guidance the guided one, but for weighted particles that of the model itself.
    Particles take it along when they are resampled: ``fk.FeynmanKac(base=SelfConditioned(solver))``.

    Attributes:
        base: the solver; one with a call of the model in each row.
    """

    base: Solver

    process_type = Process
    needs = (HasDenoised,)
    self_conditioned = True

    def __post_init__(self):
        require_spec(self, Solver, base=self.base)
        if isinstance(self.base, Integrator):
            raise ValueError(
                f"SelfConditioned.base = {self.base!r}: expected a solver with one call of the model in each row, since an "
                "adaptive one takes back steps, and what it saw last is no former estimate"
            )
        if isinstance(self.base, Population | Joint) or self.base.self_conditioned:
            raise ValueError(
                f"SelfConditioned.base = {self.base!r}: expected a solver of independent points of one part; populations take it "
                "as their own base, FeynmanKac(base=SelfConditioned(...))"
            )

    @computed
    def order(self) -> int:
        """That of the base."""
        return self.base.order

    @computed
    def stochastic(self) -> bool:
        """As the base."""
        return self.base.stochastic

    @computed
    def calls_per_step(self) -> int | None:
        """Those of the base."""
        return self.base.calls_per_step

    @computed
    def noise_level(self) -> float | None:
        """That of the base."""
        return self.base.noise_level

    def table(self, process, times):
        """That of the base."""
        require_spec(f"SelfConditioned.base = {type(self.base).__name__}", self.base.process_type, process=process)
        return self.base.table(process, times)

    def check_start(self, start, model, t):
        self.base.check_start(start, model, t)

    def init(self, process, y, log_weights):
        """The memory of the base, and no estimate yet, which is zero."""
        return Remembered(self.base.init(process, y, log_weights), jax.tree.map(jnp.zeros_like, y))

    def informed(self, model, carry: Remembered):
        """The model, told the latest estimate."""
        return informed(model, carry.estimate)

    def query(self, keys, y, carry: Remembered, row):
        return self.base.query(keys, y, carry.base, row)

    def ask(self, model, keys, y, row, cond):
        return self.base.ask(model, keys, y, row, cond)

    def require(self, prediction):
        """What the base needs, and the denoised point."""
        self.base.require(prediction)
        super().require(prediction)

    def update(self, keys, y, prediction: Any, carry: Remembered, row):
        """The step of the base; what is denoised here is seen in the next call."""
        y, base = self.base.update(keys, y, prediction, carry.base, row)
        return y, Remembered(base, prediction.denoised)

    def decode(self, process, y, carry: Remembered):
        return self.base.decode(process, y, carry.base)

    def noise(self, row):
        return self.base.noise(row)

    def outputs(self, carry: Remembered, records):
        return self.base.outputs(carry.base, records)
