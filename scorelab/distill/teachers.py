"""What a teacher is made of: the network behind its guidance."""

from __future__ import annotations

from scorelab.models.base import Model, Wraps
from scorelab.models.denoiser import BoundDenoiser, Denoiser


def as_network(model: Model | None, owner: str) -> BoundDenoiser:
    """The network behind a model: itself, or the one that guidance wraps; TypeError where there is none."""
    found = network_of(model)
    if found is None:
        raise TypeError(f"{owner}: the teacher is {type(model).__name__}: expected a BoundDenoiser, or one under guidance")
    return found


def network_of(model: Model | None) -> BoundDenoiser | None:
    """The bound denoiser inside ``model``, or None."""
    while isinstance(model, Wraps):
        model = model.model
    return model if isinstance(model, BoundDenoiser) else None


def denoiser_of(model: Model) -> Denoiser:
    """The network behind a model, with or without guidance, as a spec; TypeError where there is none."""
    return as_network(model, "denoiser_of").denoiser
