"""Trained models by name, file or work directory, and what is known of them."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from scorelab.data import Arrays, Transform
from scorelab.errors import ConfigError, WeightsError
from scorelab.experiment.base import Experiment
from scorelab.experiment.evaluate import Evaluate
from scorelab.experiment.holes import holed
from scorelab.experiment.sample import Drawn, Sample
from scorelab.grids import Grid
from scorelab.metrics import MetricValue
from scorelab.models import BoundDenoiser
from scorelab.pretrained import kinds, lora, store
from scorelab.pretrained.cards import Card, Measured, card, facts, names, read
from scorelab.pretrained.clipfeatures import ClipFeatures
from scorelab.pretrained.conversion import FILES, INDEX, convert
from scorelab.pretrained.hub import fetch
from scorelab.pretrained.inception import InceptionFeatures
from scorelab.pretrained.kept import find, keep, require_hash, stored
from scorelab.pretrained.kinds import Converted
from scorelab.pretrained.own import export
from scorelab.pretrained.registry import PUBLISHED
from scorelab.pretrained.rewards import Aesthetic, ClipCosine, aesthetic, clip_cosine
from scorelab.pretrained.text import TextEncoder
from scorelab.pretrained.tokens import Tokenizer
from scorelab.processes import LinearGaussian
from scorelab.validation import require_choice, require_int, require_seed, require_spec

__all__ = [
    "Aesthetic",
    "Card",
    "ClipCosine",
    "ClipFeatures",
    "Converted",
    "InceptionFeatures",
    "Loaded",
    "Measured",
    "TextEncoder",
    "Tokenizer",
    "aesthetic",
    "card",
    "clip_cosine",
    "convert",
    "export",
    "fetch",
    "keep",
    "load",
    "lora",
    "model",
    "names",
]


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model that was trained here, and what is known of it. One of others is :class:`Converted`.

    Attributes:
        model: the model, which knows its process.
        transform: from stored values to what the model sees, and back.
        config: the experiment it was trained in.
        record: how it came to be: step, data and their hash, versions.
        card: the card of a model that the package carries, None for others.
    """

    model: BoundDenoiser = field(repr=False)
    transform: Transform
    config: Experiment = field(repr=False)
    record: dict[str, Any] = field(repr=False)
    card: Card | None = None

    # What it has in common with a published one: it makes points or images, and is told no text.
    latents: ClassVar[None] = None
    text: ClassVar[None] = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """The shape of a sample."""
        return tuple(self.record["example"]["x"][0])

    @property
    def classes(self) -> int | None:
        """The number of classes that the model is told, None for a model without a condition."""
        return self.record["classes"]

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

    def facts(self) -> dict[str, Any]:
        """The fields of a :class:`Card` that the file of a model says itself."""
        return facts(self.model.params, self.config, self.record)

    def sample(self, n: int, *, seed: int = 0, label: Any = None, grid: Grid | None = None) -> Drawn:
        """Samples ``x`` ``(n, *event)`` in stored values, uint8 for images, by the sampler of its config, with their ``label``.

        Where that begins at the data, as under multiplicative noise, the training data is looked at. So it is where conditions are
        rows of the data (``DataSpec.cond``): then the samples have ``cond`` and ``rows`` in the place of a ``label``.

        Args:
            n: number of samples.
            seed: of the samples.
            label: the class of each, ``(n,)``; None for all classes in turn, or for a model without classes.
            grid: another time grid, such as a shorter one.

        Raises:
            ValueError: no such number, seed or classes.
            ConfigError: the training data is needed, and is not what the model was trained on.
        """
        require_int("Loaded.sample", 1, n=n)
        require_seed("Loaded.sample", seed=seed)
        spec, data = self.config.one(Sample), self.config.data
        if grid is not None:
            require_spec("Loaded.sample", Grid, grid=grid)
            spec = dataclasses.replace(spec, grid=grid)
        if self.classes is not None and not spec.classes:
            # As in the data, which need not be there.
            spec = dataclasses.replace(spec, classes=tuple(range(self.classes)))
        given = self._labels(label, n) if label is not None else None
        if spec.start is not None or spec.inpainting is not None or data.cond is not None or holed(self.model.process):
            self.data()
        cond = spec.conditions(data, n) if given is None else given
        out = spec.sampler(self.model, data, cond, jax.random.key(seed))(
            shape=(n, *self.event_shape), cond=cond, chunk=spec.chunk
        )  # fmt: skip
        x = np.asarray(self.transform.decode(out.x))
        record: dict[str, Any] = dict(n=n, seed=seed, model_calls=int(out.diagnostics["model_calls"]))
        if data.cond is None:
            return Drawn(x=x, label=cond, record=record)
        record["split"] = spec.conditions_split(data)
        return Drawn(x=x, label=None, record=record, cond=cond, rows=spec.rows(data, n))

    def _labels(self, label: Any, n: int) -> np.ndarray:
        if self.classes is None:
            why = "the model has no condition" if self.config.data.cond is None else "its conditions are rows of the data"
            raise ValueError(f"Loaded.sample(label={label!r}): expected None, since {why}")
        label = np.asarray(label)
        fits = label.shape == (n,) and np.issubdtype(label.dtype, np.integer)
        if not fits or label.min() < 0 or label.max() >= self.classes:
            raise ValueError(f"Loaded.sample(label={label!r}): expected {n} classes, integers from 0 to {self.classes - 1}")
        return label.astype(np.int32)

    def evaluate(self, samples: np.ndarray | Drawn, *, n: int | None = None) -> list[MetricValue]:
        """The metrics of samples in stored values by the evaluation of its config, each with its floor.

        An evaluation that asks for the conditions of samples needs what :meth:`sample` returns; others take ``x`` of it alone.
        ``n`` of them are compared, by default as many as the config says. Errors as :meth:`data`; ValueError where there are fewer.
        """
        self.data()
        spec = self.config.one(Evaluate)
        key = spec.key(self.config.keys()[2])
        how = spec.evaluations if n is None else [dataclasses.replace(each, n=n) for each in spec.evaluations]
        of = lambda each: (
            each.of(samples, self.config.data, key) if isinstance(samples, Drawn) else each(samples, self.config.data, key)
        )
        return [value for each in how for value in of(each)]


def load(
    name: str, *, dtype: str = "float32", process: LinearGaussian | None = None, autoencoder: str | None = None
) -> Loaded | Converted:
    """A trained model by name, file or work directory (whose newest checkpoint is taken), or a converted published one.

    Both have ``model``, ``transform``, ``config``, ``latents``, ``text``, ``event_shape`` and ``classes``. The config inside a
    model that was trained here may use only what builds experiments, unless it is trusted (:mod:`scorelab.config.trust`). A file is
    read without its data set; a work directory needs it.

    Args:
        name: of a model of the package, of a converted one, or the path of a file or folder.
        dtype: of parameters and computation of a converted denoiser, ``float32`` or ``bfloat16``.
        process: of a converted model, in the place of the noise that it was published with.
        autoencoder: name or folder of a converted one, for a model of latents that came without, or in the place of its own.

    Raises:
        ConfigError: there is none, it is damaged, or its config asks for more than such a config may.
        WeightsError: a converted one whose weights are not those of its conversion, or that no network here takes.
        ValueError: parameters that do not fit their own config, no such ``dtype``, or arguments of a converted model for one that
            was trained here.
    """
    require_choice("pretrained.load", kinds.DTYPES, dtype=dtype)
    if (folder := _converted(name)) is None:
        for field, value, usual in (("dtype", dtype, "float32"), ("process", process, None), ("autoencoder", autoencoder, None)):
            if value != usual:
                raise ValueError(
                    f"pretrained.load.{field} = {value!r} for {name}: expected {usual!r} for a model that was trained here"
                )
        return _loaded(name)
    place = None if autoencoder is None else store.find(autoencoder)
    if autoencoder is not None and place is None:
        raise ConfigError(f"pretrained.load.autoencoder = {autoencoder!r}: expected the name or the folder of a converted one")
    return kinds.load(folder, dtype=dtype, process=process, autoencoder=place)


def _converted(name: str) -> Path | None:
    """The folder of a converted model; None for another model. What was published and is not here is refused with what to do."""
    if name in names():
        return None
    if (folder := store.find(name)) is not None:
        return folder
    if isinstance(name, str) and name in PUBLISHED and not Path(name).is_dir():
        row = PUBLISHED[name]
        raise ConfigError(f"pretrained.model.name = {name!r}: not on this machine: {row.url}, then {row.how}")
    if _is_unconverted(name):
        raise WeightsError(f"{name}: a published model as it came: expected scorelab pretrained convert {name} first")
    return None


def _is_unconverted(name: Any) -> bool:
    """Whether this is the file or the folder of a published model, and no work directory."""
    if not isinstance(name, str | os.PathLike) or not os.fspath(name).strip():
        return False
    try:
        if Path(name).is_file():
            return Path(name).suffix in FILES
        published = any((Path(name) / file).is_file() for file in (INDEX, store.CONFIG))
        return published and not any((Path(name) / part).exists() for part in ("config.gin", "checkpoints"))
    except OSError:
        # No file can have this name.
        return False


def _loaded(name: str) -> Loaded:
    found = find(name)
    stamp = max(path.stat().st_mtime_ns for path in (found, *found.glob("checkpoints")))
    experiment, bound, record = stored(found.resolve(), stamp)
    if (known := read(found)) is not None:
        require_hash(found, bound.params, known.sha256)
    return Loaded(model=bound, transform=experiment.data.transform, config=experiment, record=record, card=known)


def model(name: str, *, dtype: str = "float32", process: LinearGaussian | None = None) -> BoundDenoiser:
    """The model alone, as config files name a teacher; arguments and errors as :func:`load`."""
    return load(name, dtype=dtype, process=process).model
