"""Trained models by name, file or work directory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scorelab.data import Arrays, Transform
from scorelab.errors import ConfigError
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

    def data(self, split: str = "train") -> Arrays:
        """A split of its data set; ConfigError where the training data here is not what it was trained on."""
        here = self.config.data.load().sha256
        if (then := self.record.get("data_sha256", here)) != here:
            raise ConfigError(f"Loaded.data = {self.config.data.name} with the hash {here}: expected {then}, as it was trained on")
        return self.config.data.load(split)

    def encoded(self) -> np.ndarray:
        """The training data in the chart of its process, ``(n, *event)`` float32; errors as :meth:`data`."""
        self.data()
        return np.concatenate(list(self.config.data.encoded(self.config.process.chart))).astype(np.float32)

    @property
    def origin(self) -> dict[str, Any]:
        """Step and hash of the training data, for the record of what is measured on it; errors as :meth:`data`."""
        return dict(step=self.record["step"], data_sha256=self.data().sha256)


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
