"""The data of an experiment: a set, its scale, and its moments in the chart of a process."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from scorelab import data as datasets
from scorelab.arrays import Pytree
from scorelab.data import Arrays, DataSet, Transform
from scorelab.distill import WithPairs
from scorelab.experiment.pairs import Pairs
from scorelab.processes import Chart, Identity
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.training import Prepare, Prepared
from scorelab.training.prepare import Names, condition_names
from scorelab.validation import require_choice, require_spec

# Rows of data that are encoded at once; the number itself has no effect on results.
_BLOCK = 8192
# What `measured_std` measured, by set, scale and chart, while somebody wants to know.
_MEASURED: ContextVar[dict[str, float] | None] = ContextVar("measured", default=None)
# Rows that are encoded and decoded to see whether they come back.
_ROWS = 16


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """A data set, its scale, and which of its arrays are the condition.

    Attributes:
        dataset: a :class:`scorelab.data.DataSet`, such as ``data.Named(name="digits")`` or one of your own. It can be hashed, as a
            frozen dataclass can, since it is loaded once for each ``stamp()`` of it.
        transform: from stored values to what the process sees: ``Pixels(levels=...)``, ``Identity()``.
        labels: train with the labels as the condition of the network; short for ``cond="label"``.
        cond: the names of the arrays that are the condition, as :class:`scorelab.training.Prepare` takes them: one name, or several
            for a condition with members, ``("label", "coarse")``.
        dequantise: train on uniform places in the cells of the levels, drawn anew at every step, in the place of their centres; a
            likelihood of the levels needs that (:class:`scorelab.experiment.BitsPerDim`).
        pairs: a teacher's :class:`Pairs` beside the data, for a distillation with a ``pair_weight``.
    """

    dataset: DataSet
    transform: Transform = field(default_factory=datasets.Identity)
    labels: bool = False
    cond: Names = None
    dequantise: bool = False
    pairs: Pairs | None = None

    def __post_init__(self):
        require_spec(self, DataSet, dataset=self.dataset)
        try:
            hash(self.dataset)
        except TypeError as error:
            raise TypeError(f"DataSpec.dataset = {self.dataset!r}: expected one that can be hashed, a frozen dataclass") from error
        require_choice(self, (True, False), labels=self.labels)
        require_choice(self, (True, False), dequantise=self.dequantise)
        object.__setattr__(self, "cond", condition_names("DataSpec.cond", self.cond))
        if self.labels and self.cond is not None:
            raise ValueError(f"DataSpec.labels = True beside cond = {self.cond!r}: expected one of the two")
        if self.cond == "label":
            object.__setattr__(self, "labels", True)
            object.__setattr__(self, "cond", None)
        if self.pairs is not None and self.cond is not None:
            raise ValueError(f"DataSpec.cond = {self.cond!r} with pairs: expected labels, or no condition")
        if self.pairs is not None:
            require_spec(self, Pairs, pairs=self.pairs)
        require_spec(self, Transform, transform=self.transform)
        if self.dequantise and self.transform.levels is None:
            raise ValueError(f"DataSpec.dequantise = True with {self.transform!r}: expected a scale with levels, such as Pixels")
        if self.dequantise and self.pairs is not None:
            raise ValueError("DataSpec.dequantise = True with pairs: expected False, since pairs are samples of a teacher")

    @property
    def name(self) -> str:
        """That of the data set."""
        return self.dataset.name

    def load(self, split: str = "train") -> Arrays:
        """One split, kept in memory until the ``stamp()`` of the set changes; errors as those of the data set, with its name."""
        try:
            return _load(self.dataset, split, self.dataset.stamp())
        except (datasets.DataCorrupt, datasets.DataNotFound):
            raise
        except ValueError as error:
            raise ValueError(f"DataSpec.dataset = {self.dataset!r}: {error}") from error

    def check(self) -> None:
        """Raise ValueError or TypeError where the data do not fit the transform, or have no labels where there should be."""
        arrays = self.load()
        # Sets by name have one shape by construction, and can be trained on where the files of the test split are not at hand.
        if "test" in self.dataset.splits and not isinstance(self.dataset, datasets.Named):
            test = self.load("test")
            if (test.event_shape, test.levels) != (arrays.event_shape, arrays.levels):
                raise ValueError(
                    f"DataSpec.dataset = {self.dataset!r}: test has {test.x.dtype} points of shape {test.event_shape}, train "
                    f"{arrays.x.dtype} ones of {arrays.event_shape}: expected the same"
                )
        if self.labels and arrays.label is None:
            raise ValueError(f"DataSpec.labels = True for {self.name}, which has none: expected False")
        for name in () if self.labels else self.prepare.taken:
            if name not in arrays.columns():
                raise ValueError(f"DataSpec.cond = {self.cond!r} for {self.name}: expected names of {sorted(arrays.columns())}")
        try:
            self.transform.check(arrays.x, arrays.levels)
        except (ValueError, TypeError) as error:
            raise type(error)(f"DataSpec.transform = {error} ({self.name})") from error
        # Samples are stored as the data are, and the way back is what makes them so.
        rows = arrays.x[:_ROWS]
        again = np.asarray(self.transform.decode(self.transform.encode(rows)))
        exact = rows.dtype == np.uint8
        if again.shape != rows.shape or again.dtype.kind != rows.dtype.kind or (exact and not np.array_equal(again, rows)):
            raise ValueError(
                f"DataSpec.transform = {self.transform!r} for {self.name}: expected decode(encode(x)) to return x, {rows.dtype} "
                f"{rows.shape}; it returns other values, {again.dtype} {again.shape}"
            )

    def encoded(self, chart: Chart, split: str = "train") -> Iterator[np.ndarray]:
        """The points of a split in the chart, float64, in blocks of rows."""
        x = self.load(split).x
        for low in range(0, len(x), _BLOCK):
            try:
                yield np.asarray(chart.encode(self.transform.encode(x[low : low + _BLOCK])), np.float64)
            except ValueError as error:
                raise ValueError(f"DataSpec.dataset = {self.dataset!r}: {error}") from error

    def moments(self, chart: Chart) -> tuple[float, float]:
        """Mean and standard deviation of the training data in the chart, over all elements."""
        return _moments(self, chart, self.dataset.stamp())

    def measured(self, chart: Chart) -> str:
        """What messages say of the moments."""
        mean, std = self.moments(chart)
        return f"the data of {self.name} in the chart have mean {mean:.4g} and standard deviation {std:.4g}"

    @property
    def prepare(self) -> Prepare:
        """From a stored batch to what a learner takes."""
        return Prepare(transform=self.transform, cond=self.condition)

    @property
    def condition(self) -> Any:
        """The names of the arrays of the condition, as None, one name, or pairs of a member and an array."""
        return "label" if self.labels else self.cond

    def condition_of(self, rows: np.ndarray, split: str = "train") -> Pytree:
        """The condition of rows of a split as the network is given it, host arrays; None for a model without one."""
        columns = self.load(split).columns()
        return jax.tree.map(np.asarray, self.prepare.condition({name: columns[name][rows] for name in self.prepare.taken}))

    def points(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Stored points on the scale of the process, float32: in their cells where the training has them there."""
        places = {"places": rng.random(x.shape, np.float32)} if self.dequantise else {}
        return np.asarray(Prepare(transform=self.transform)({"x": x, **places})["x"])

    def examples(self, batch_size: int, seed: int) -> Prepared:
        """Batches of the data set itself."""
        batches = self.dataset.batches(batch_size, seed, self.load())
        if self.dequantise:
            batches = datasets.Dequantised(batches, seed)
        return Prepared(batches, transform=self.transform, cond=self.condition)

    def held_out(self, n: int, seed: int, split: str) -> Prepared:
        """Random points of another split, up to ``n`` of them, as the first of batches of that many."""
        arrays = self.load(split)
        batches = datasets.Batches(arrays, batch_size=min(n, len(arrays)), seed=seed)
        placed = datasets.Dequantised(batches, seed) if self.dequantise else batches
        return Prepared(placed, transform=self.transform, cond=self.condition)

    def batches(self, batch_size: int, seed: int) -> Prepared | WithPairs:
        """The training batches, as ``scorelab.training.fit`` takes them; pairs are made here."""
        data = self.examples(batch_size, seed)
        return data if self.pairs is None else self.pairs.beside(data, self.load().num_classes if self.labels else None)


@functools.lru_cache(maxsize=4)
def _load(dataset: DataSet, split: str, stamp: Hashable) -> Arrays:
    arrays = dataset.load(split)
    if not isinstance(arrays, Arrays):
        raise TypeError(f"{type(dataset).__name__}.load({split!r}) is a {type(arrays).__name__}: expected Arrays")
    return arrays


def measured_std(data: DataSpec, process: LinearGaussian | None = None) -> float:
    """The standard deviation of the training data in the chart of the process, to four significant digits.

    The value for ``Denoiser.data_std``, over all elements; without a process, of the data as they are. Rounded,
    so that platforms which sum in another order agree on the spec. ValueError where the chart does not take
    the data.
    """
    if not isinstance(data, DataSpec):
        raise TypeError(f"measured_std.data = {data!r}: expected a DataSpec")
    chart = Identity() if process is None else process.chart
    measured = _MEASURED.get()
    key = f"{data.name}, {data.transform!r}, {chart!r}"
    if measured is not None and key in measured:
        return measured[key]
    value = float(f"{data.moments(chart)[1]:.4g}")
    if measured is not None:
        measured[key] = value
    return value


@contextmanager
def measuring(known: Mapping[str, float]) -> Iterator[dict[str, float]]:
    """Inside, :func:`measured_std` takes what is ``known`` in the place of the data; what it measures is added to what this gives.

    So a trained model can be read where the data is not.
    """
    measured = dict(known)
    token = _MEASURED.set(measured)
    try:
        yield measured
    finally:
        _MEASURED.reset(token)


@functools.lru_cache(maxsize=16)
def _moments(data: DataSpec, chart: Chart, stamp: Hashable) -> tuple[float, float]:
    data.check()
    total = square = 0.0
    size = data.load().x.size
    for y in data.encoded(chart):
        total, square = total + y.sum(), square + np.square(y).sum()
    return float(total / size), float(np.sqrt(square / size - (total / size) ** 2))
