"""Correctors of a trained model as a spec: the model may come later."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from scorelab.fk.correctors import annealed, geometric
from scorelab.fk.potentials import Zero
from scorelab.fk.smc import FeynmanKac
from scorelab.models.base import Model
from scorelab.processes.interpolant import StochasticInterpolant
from scorelab.starts import Start
from scorelab.validation import require_choice, require_int, require_number, require_positive


@dataclass(frozen=True, kw_only=True)
class Correction:
    r"""A power of the trained model, or its guidance, sampled with weights (:mod:`scorelab.fk.correctors`).

    Attributes:
        kind: ``"annealed"``, :math:`q^\beta`, or ``"geometric"``, :math:`q_\varnothing^{1-\beta}q_c^\beta`, which needs a model
            that was trained with labels and without.
        beta: :math:`\beta`.
        anchor: see :func:`scorelab.fk.weighted`; None for the default of the kind.
        probes: Hutchinson probes of the anchored form; None for the default.
    """

    kind: Literal["annealed", "geometric"] = "geometric"
    beta: float = 2.0
    anchor: Literal["score", "flow"] | None = None
    probes: int | None = None

    def __post_init__(self):
        require_choice(self, ("annealed", "geometric"), kind=self.kind)
        if self.kind == "annealed":
            require_positive(self, beta=self.beta)
        require_number(self, -1000.0, 1000.0, beta=self.beta)
        if self.anchor is not None:
            require_choice(self, ("score", "flow"), anchor=self.anchor)
        if self.probes is not None:
            require_int(self, 0, probes=self.probes)

    def __call__(self, model: Model, solver: FeynmanKac) -> tuple[Model, FeynmanKac, Start | None]:
        """The model, the solver with the corrector's potential, and the start."""
        flows = isinstance(model.process, StochasticInterpolant)
        if not flows and solver.base.noise_level is None:
            raise ValueError(f"FeynmanKac.base = {solver.base!r} with a Correction: expected DDIM, DPMSolverPP or EulerMaruyama")
        if not isinstance(solver.potential, Zero):
            raise ValueError(f"FeynmanKac.potential = {solver.potential!r} with a Correction, which brings its own: expected none")
        options = {} if self.anchor is None else dict(anchor=self.anchor)
        options |= dict(probes=self.probes) | ({} if flows else dict(noise=solver.base.noise_level))
        if self.kind == "annealed":
            corrected = annealed(model, self.beta, **options)
        else:
            corrected = geometric(model, model, self.beta, **options)
        return corrected.model, dataclasses.replace(solver, potential=corrected.potential), corrected.start
