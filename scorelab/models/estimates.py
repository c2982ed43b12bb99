"""Models that see their former denoised estimate beside the noised point, wherever they stand inside another model."""

from __future__ import annotations

import abc
from typing import Any

from scorelab.arrays import Array
from scorelab.models.base import Model
from scorelab.models.parts import map_parts, parts_of


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
    # A static field has no parameters, and can be told nothing inside a compiled function.
    return _waits(model) or any(map(waits, parts_of(model, kind=SeesEstimate, static=False)))


def informed(model: Any, estimate: Array | float) -> Any:
    """``model``, in which every model that waits for it sees ``estimate``, in the space of the process; 0 for none.

    Those that are combined (guidance, products) see the same one, the estimate of the combination.
    """
    if _waits(model):
        return model.informed(estimate)
    return map_parts(lambda part: informed(part, estimate), model, kind=SeesEstimate, static=False)


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
