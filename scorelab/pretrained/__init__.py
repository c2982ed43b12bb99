"""Trained models by name, file or work directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scorelab.data import Transform
from scorelab.experiment.base import Experiment
from scorelab.models import BoundDenoiser
from scorelab.pretrained.kept import find, keep, stored

__all__ = ["Loaded", "keep", "load", "model"]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A trained model, and what is known of it.

    Attributes:
        model: the model, which knows its process.
        transform: from stored values to what the model sees, and back.
        config: the experiment it was trained in.
        record: how it came to be: step, data and their hash, versions.
    """

    model: BoundDenoiser
    transform: Transform
    config: Experiment
    record: dict[str, Any]


def load(name: str) -> Loaded:
    """A trained model by name, file or work directory (whose newest checkpoint is taken).

    The config inside may use only what builds experiments, unless it is trusted (:mod:`scorelab.config.trust`).

    Raises:
        ConfigError: there is none, it is damaged, or its config asks for more than such a config may.
        ValueError: its parameters do not fit its own config.
    """
    found = find(name)
    stamp = max(path.stat().st_mtime_ns for path in (found, *found.glob("checkpoints")))
    experiment, bound, record = stored(found.resolve(), stamp)
    return Loaded(model=bound, transform=experiment.data.transform, config=experiment, record=record)


def model(name: str) -> BoundDenoiser:
    """The model alone, as config files name a teacher; see :func:`load`."""
    return load(name).model
