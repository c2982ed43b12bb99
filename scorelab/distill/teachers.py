"""What a teacher is made of: the network behind its guidance, and its process."""

from __future__ import annotations

from scorelab.models.base import Model
from scorelab.models.denoiser import BoundDenoiser, Denoiser
from scorelab.processes.linear_gaussian import LinearGaussian


def as_network(model: Model | None, owner: str) -> BoundDenoiser:
    """The network behind a model: itself, or the one that guidance wraps; TypeError where there is none."""
    found = network_of(model)
    if found is None:
        raise TypeError(f"{owner}: the teacher is {type(model).__name__}: expected a BoundDenoiser, or one under guidance")
    return found


def network_of(model: Model | None) -> BoundDenoiser | None:
    """The bound denoiser inside ``model``, or None."""
    while model is not None and not isinstance(model, BoundDenoiser):
        model = getattr(model, "model", None)
    return model


def denoiser_of(model: Model) -> Denoiser:
    """The network behind a model, with or without guidance, as a spec; TypeError where there is none."""
    return as_network(model, "denoiser_of").denoiser


def process_of(model: Model | None, owner: str = "process_of") -> LinearGaussian:
    """The process a model is about; ValueError where it does not say."""
    while model is not None:
        for inner in (model, getattr(model, "denoiser", None)):
            if isinstance(process := getattr(inner, "process", None), LinearGaussian):
                return process
        model = getattr(model, "model", None)
    raise ValueError(f"{owner}.process = None: expected one, since the teacher does not name its own")
