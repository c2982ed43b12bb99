"""Sampling in bounds with the predicted noise as it was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from scorelab.arrays import Array, per_example
from scorelab.models.base import model_name
from scorelab.models.bounded import Bounded
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.solvers.base import Around, Integrator, Population, Solver
from scorelab.validation import require_spec


class _Row(NamedTuple):
    """A row of the other solver."""

    t: Array
    step: Array
    inner: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class _Kept(GaussianPrediction):
    """A denoised mean in bounds beside the noise that was predicted without: the pair of another point."""


@dataclass(frozen=True, kw_only=True)
class KeptNoise(Around):
    r"""A solver that keeps the predicted noise where a :class:`scorelab.models.Bounded` model moves its denoised mean.

    Moved is the point in its place, and the step of ``solver`` goes on from there:

    .. math:: y_t \to \alpha_t D' + b_t + \sigma_t \hat\epsilon .

    Without it the noise follows the mean, as in the published DDPM (Ho et al. 2020, arXiv 2006.11239), and ``y`` stays. With it
    ``KeptNoise(solver=DDIM())`` is what ``DDIMScheduler`` of diffusers does by default, ``use_clipped_model_output=False``. Where
    nothing is moved the two are the same. The step is not one of an equation then, so no order is left.

    Attributes:
        solver: a solver of independent samples with one call per step, such as ``DDIM``.
    """

    solver: Solver

    order = 0

    def __post_init__(self):
        require_spec(self, Solver, solver=self.solver)
        single = self.solver.calls_per_step == 1 and not isinstance(self.solver, Population | Integrator | KeptNoise)
        if not single or self.solver.process_type is not Around.process_type:
            raise ValueError(
                f"KeptNoise.solver = {self.solver!r}: expected a solver of independent samples of a linear-Gaussian process with "
                "one call per step, such as DDIM()"
            )

    def table(self, process, times):
        """The other's rows."""
        inner = self.inner_table(process, times)
        return _Row(t=inner.t, step=np.asarray(inner.step), inner=inner)

    def drawn(self, keys, like, row):
        return self.solver.drawn(keys, like, row.inner)

    def ask(self, model, keys, y, row, cond):
        """The mean of the model in bounds, and the noise of the one without; TypeError for another model."""
        if not isinstance(model, Bounded):
            raise TypeError(
                f"KeptNoise with {model_name(model)}: expected a model in bounds around all others, such as Clipped(model=...)"
            )
        plain = self.solver.ask(model.model, keys, y, row.inner, cond)
        return _Kept(denoised=model.bound(plain.denoised), eps=plain.eps, t=plain.t, process=plain.process)

    def update(self, keys, y, prediction, carry, row):
        """The step of the other from the point of the pair."""
        if not isinstance(prediction, _Kept):
            raise TypeError(
                f"KeptNoise got a {type(prediction).__name__} from a solver around it: expected a walk by itself, since weighted "
                "particles and parts of a Joint ask their models themselves"
            )
        at = lambda f: per_example(f(prediction.t), y).astype(y.dtype)
        process = prediction.process
        y = at(process.alpha) * prediction.denoised + at(process.offset) + at(process.sigma) * prediction.eps
        return self.solver.update(keys, y, prediction, carry, row.inner)
