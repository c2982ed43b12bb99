"""Cards of the models that the package carries: what each is, how it was trained, how well it does, what it is not for."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scorelab.arrays import Pytree
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment
from scorelab.experiment.sample import Sample
from scorelab.files import write_json
from scorelab.pretrained.kept import MODELS, find, parameters_hash


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric of a model.

    Attributes:
        name: of the metric, with its extractor.
        values: one for each seed of the samples.
        floor: the same metric of held-out data.
    """

    name: str
    values: tuple[float, ...]
    floor: float

    def __post_init__(self):
        object.__setattr__(self, "values", tuple(self.values))

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation over the seeds, NaN for one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.3g} ± {self.deviation:.1g} (floor {self.floor:.3g})"


@dataclass(frozen=True, kw_only=True)
class Card:
    """What is known of a trained model; ``facts`` are those that its file says itself.

    Attributes:
        what: it is, in one sentence.
        config: the shipped config that trains it.
        data: the data set.
        data_sha256: the hash of the training split.
        licence: of the data.
        shape: of a sample.
        classes: the number of classes that the model is told, None for a model without a condition.
        seed: of the training.
        steps: of the training.
        parameters: their number.
        sha256: the hash of the parameters.
        trained: how long the training took, and where.
        sampler: what the samples below were drawn with, the sampler of the config.
        calls: network calls of a sample.
        drawn: samples that were drawn for each seed.
        n: as many of them were compared with the data.
        seeds: of the samples.
        metrics: those of the config's evaluation.
        good_for: what.
        not_for: what.
    """

    what: str
    config: str
    data: str
    data_sha256: str
    licence: str
    shape: tuple[int, ...]
    classes: int | None
    seed: int
    steps: int
    parameters: int
    sha256: str
    trained: str
    sampler: str
    calls: int
    drawn: int
    n: int
    seeds: tuple[int, ...]
    metrics: tuple[Measured, ...]
    good_for: str
    not_for: str

    def __post_init__(self):
        for name in ("shape", "seeds"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        found = (each if isinstance(each, Measured) else Measured(**each) for each in self.metrics)
        object.__setattr__(self, "metrics", tuple(found))

    @property
    def command(self) -> str:
        """What trains it anew; :func:`scorelab.pretrained.keep` makes the file of the work directory."""
        return f"scorelab run {self.config}"

    def __str__(self) -> str:
        classes = "without a condition" if self.classes is None else f"with {self.classes} classes"
        where = f"{self.n} samples each of the seeds {', '.join(map(str, self.seeds))}"
        lines = {
            "model": f"{self.parameters:,} parameters, {classes}, samples of shape {self.shape}, sha256 {self.sha256[:12]}",
            "trained": f"{self.command}, seed {self.seed}, {self.steps:,} steps; {self.trained}",
            "data": f"{self.data}, sha256 {self.data_sha256[:12]}; {self.licence}",
            "sampler": f"{self.sampler}, {self.calls} network call{'s' * (self.calls > 1)} each",
            "good for": self.good_for,
            "not for": self.not_for,
            "metrics": f"{where}, mean ± deviation over the seeds; the floor is that of held-out data",
        }
        width = max(len(each.name) for each in self.metrics)
        metrics = (f"    {each.name:<{width}}  {each}" for each in self.metrics)
        return "\n".join((self.what, *(f"  {name:<8}  {text}" for name, text in lines.items()), *metrics))


def place(file: Path) -> Path:
    """The file of the card of a model."""
    return file.with_suffix(".json")


def read(file: Path) -> Card | None:
    """The card beside the file of a model of the package, None for any other; ConfigError where it is damaged."""
    if file.parent != MODELS or not place(file).is_file():
        return None
    try:
        return Card(**json.loads(place(file).read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{shown(place(file))}: not a card of a model: {error}") from error


def write(file: Path, card: Card) -> Path:
    """Write a card beside the file of its model."""
    return write_json(place(file), dataclasses.asdict(card))


def card(name: str) -> Card:
    """The card of a model that the package carries, without reading its parameters; ConfigError where there is none."""
    if (found := read(find(name))) is None:
        raise ConfigError(f"pretrained.card.name = {name!r}: it has no card; expected one of {', '.join(names())}")
    return found


def names() -> tuple[str, ...]:
    """The names of the models that the package carries."""
    return tuple(sorted(file.stem for file in MODELS.glob("*.npz")))


def carried() -> Iterator[tuple[str, Card]]:
    """The models that the package carries, with their cards."""
    return ((name, card(name)) for name in names())


def facts(params: Pytree, experiment: Experiment, record: dict[str, Any]) -> dict[str, Any]:
    """What the file of a model says: the fields of its card that are not measured or written by hand."""
    spec = experiment.one(Sample)
    return dict(
        data=record["data"],
        data_sha256=record["data_sha256"],
        shape=tuple(record["example"]["x"][0]),
        classes=record["classes"],
        seed=experiment.seed,
        steps=record["step"],
        parameters=sum(np.size(leaf) for leaf in jax.tree.leaves(params)),
        sha256=parameters_hash(params),
        sampler=f"{type(spec.solver).__name__} on {type(spec.grid).__name__}",
    )
