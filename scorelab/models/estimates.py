"""Models that see their former denoised estimate beside the noised point, wherever they stand inside another model."""

from __future__ import annotations

import abc
from typing import Any

import jax

from scorelab.arrays import Array
from scorelab.models.base import Model


class SeesEstimate(abc.ABC):
    """A model that may be told its former estimate."""

    @property
    @abc.abstractmethod
    def waits(self) -> bool:
        """Whether it has to be told before it can be asked."""

    @abc.abstractmethod
    def informed(self, estimate: Array | float) -> Model:
        """The model that sees ``estimate``, shaped like the points it is asked about; 0 for none."""


def waits(model: Any) -> bool:
    """Whether there is a model inside ``model`` that has to be told its former estimate."""
    return any(map(_waits, jax.tree.leaves(model, is_leaf=_waits)))


def informed(model: Model, estimate: Array | float) -> Model:
    """``model``, in which every model that waits for it sees ``estimate``, in the space of the process; 0 for none.

    Those that are combined (guidance, products) see the same one, the estimate of the combination.
    """
    return jax.tree.map(lambda part: part.informed(estimate) if _waits(part) else part, model, is_leaf=_waits)


def require_waits(where: str, model: Model) -> None:
    """Raise ``ValueError`` unless there is a model to be told."""
    if not waits(model):
        raise ValueError(
            f"{where} tells the model its former estimate, and {type(model).__name__} sees none: expected a model with a network "
            "of Denoiser(self_condition=True)"
        )


def refuse_waiting(where: str, model: Model, reason: str) -> None:
    """Raise ``ValueError`` for a model that has to be told its former estimate, where there is none."""
    if waits(model):
        raise ValueError(
            f"{where}.model sees its former estimate (Denoiser.self_condition = True): expected one that does not, or "
            f"models.informed(model, 0.0), which is told none, since {reason}"
        )


def _waits(part: Any) -> bool:
    return isinstance(part, SeesEstimate) and part.waits
