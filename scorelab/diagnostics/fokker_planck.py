"""The Fokker-Planck residual of a model by noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.diagnostics.blocks import standard_error
from scorelab.diagnostics.levels import by_level
from scorelab.losses.fokker_planck import FokkerPlanck, Squares
from scorelab.models.base import Model
from scorelab.processes.base import Noised
from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True)
class FokkerPlanckResidual:
    """What :func:`fokker_planck_residual` returns: float64 arrays ``(k,)``.

    Attributes:
        sigmas: the noise ratios.
        mean_square: the mean of :class:`scorelab.losses.FokkerPlanck`; with probes it may be below zero by chance.
        standard_error: of ``mean_square``, over the points; NaN for a single point.
        relative: the root mean square over that of the change along the drift, NaN where there is no change. Where the noise is low
            a score hardly changes with it, and the value of a learned one is large.
    """

    sigmas: np.ndarray
    mean_square: np.ndarray
    standard_error: np.ndarray
    relative: np.ndarray

    @property
    def root_mean_square(self) -> np.ndarray:
        """The root of ``mean_square``, 0 where that is below zero."""
        return np.sqrt(np.maximum(self.mean_square, 0.0))


def fokker_planck_residual(
    model: Model,
    data: Array,
    sigmas: Array,
    *,
    residual: FokkerPlanck | None = None,
    cond: Pytree = None,
    key: Key | None = None,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> FokkerPlanckResidual:
    r"""How far the model's scores are from those of one law that is noised, at noised data, by noise level.

    The square and its units are those of the regulariser of the same name, :class:`scorelab.losses.FokkerPlanck`: zero for every
    exact law, of the data or not.

    Args:
        model: the model.
        data: points in data space, ``(n, *event)``.
        sigmas: noise ratios :math:`\sigma/\alpha` ``(k,)``, in the units of the chart.
        residual: the form, and how its derivatives are taken; ``losses.FokkerPlanck()`` by default. In high dimensions use probes.
        cond: the model's conditions, with leading axis ``n``.
        key: PRNG key, ``jax.random.key(0)`` by default.
        batch: points evaluated at once.
        progress: called with (points done, points wanted) after each batch.

    Returns:
        The residual by noise level.

    Raises:
        ValueError: as :func:`scorelab.diagnostics.by_level`; noise ratios at which nothing of the data is left.
        TypeError: a process that is not linear-Gaussian, a model without what the form needs.

    Source: arXiv 2311.15996.
    """
    residual = FokkerPlanck() if residual is None else residual
    require_spec("fokker_planck_residual", FokkerPlanck, residual=residual)
    sigmas, found = by_level(
        _Squares(residual), model, data, sigmas, cond=cond, key=key, batch=batch, progress=progress, where="fokker_planck_residual"
    )
    square, change = found.residual, found.change.mean(axis=1)
    mean = square.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(change > 0, np.sqrt(np.maximum(mean, 0.0) / change), np.nan)
    return FokkerPlanckResidual(
        sigmas=sigmas,
        mean_square=mean,
        standard_error=standard_error(square),
        relative=relative,
    )


@dataclass(frozen=True)
class _Squares:
    """Both squares of a residual, as a term."""

    residual: FokkerPlanck

    def __call__(self, model: Model, noised: Noised) -> Squares:
        return self.residual.squares(model, noised)
