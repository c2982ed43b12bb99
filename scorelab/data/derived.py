"""Data sets that are made of another one, such as those with a condition that is computed from its points."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, RowSource
from scorelab.validation import require_int, require_number, require_positive, require_spec


@dataclass(frozen=True, kw_only=True)
class OfAnother(DataSet):
    """A set that is made of another one, row by row; a new one states ``what`` and ``made``.

    Attributes:
        source: the other data set.
        what: what was made of it, the end of the name.
        keeps: whether the points are those of the other one.
    """

    source: DataSet

    what: ClassVar[str]
    keeps: ClassVar[bool] = False

    def __post_init__(self):
        require_spec(self, DataSet, source=self.source)

    @abc.abstractmethod
    def made(self, arrays: Arrays) -> Arrays:
        """The rows that are made of rows of the other one."""

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the other one, and what was made of it."""
        return f"{self.source.name}-{self.what}"

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the other one."""
        return self.source.splits

    @property
    def known_as(self) -> tuple[str, ...]:
        """Its name, and those of the other one where it has the points of that."""
        return (self.name, *self.source.known_as) if self.keeps else (self.name,)

    @property
    def generated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the other one."""
        return self.source.generated

    @property
    def statistics(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Those of the other one, where it has the points of that."""
        return self.source.statistics if self.keeps else super().statistics

    def draw(self, n: int, seed: int) -> Arrays:
        """Made of fresh points of the other one."""
        return self._named(self.made(self.source.draw(n, seed)))

    def stamp(self) -> Hashable:
        """That of the other one."""
        return self.source.stamp()

    def load(self, split: str = "train") -> Arrays:
        """Made of the split of the other one."""
        self.require_split(split)
        return self._named(self.made(self.source.load(split)))

    def _named(self, arrays: Arrays) -> Arrays:
        return replace(arrays, name=self.name)

    def batches(self, batch_size: int, seed: int, arrays: Arrays | None = None) -> Batches:
        """Batches of the set; where the other one reads rows when they are asked for, they are made then."""
        inner = self.source.batches(batch_size, seed)
        if isinstance(inner.arrays, RowSource):
            return Batches(_Rows(inner.arrays, self), batch_size=batch_size, seed=seed)
        return super().batches(batch_size, seed, arrays)


@dataclass(frozen=True, kw_only=True)
class Derived(OfAnother):
    """Another data set, with one more array that is a function of each point; a new one states ``array`` and ``of``.

    Since the function is known, samples can be asked whether they have the condition that they were drawn with
    (:class:`scorelab.experiment.ConditionError`).

    Attributes:
        source: the other data set.
        array: the name of the array.
    """

    array: ClassVar[str]
    keeps = True

    @abc.abstractmethod
    def of(self, x: np.ndarray, levels: int | None) -> np.ndarray:
        """The array ``(n, *row)``, float32, of stored points ``(n, *event)`` with ``levels`` levels, None for numbers."""

    @property
    def what(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The name of the array."""
        return self.array

    def made(self, arrays):
        return with_array(self, arrays, self.array, self.of(arrays.x, arrays.levels))


@dataclass(frozen=True, kw_only=True)
class SuperResolution(Derived):
    r"""Images and what is left of them at a lower resolution: ``coarse``, the averages over blocks of ``factor`` by ``factor``.

    .. math:: c_{ij} = \frac1{f^2}\sum_{k,l<f} x_{fi+k,\,fj+l}

    of images as numbers. Pixels are numbers in (-1, 1), as :class:`Pixels` has them, whatever the transform of the data is: level
    ``v`` of ``levels`` is :math:`2(v + 1/2)/\mathrm{levels} - 1`. So averages are not rounded to levels.

    Attributes:
        factor: the side of a block; it divides those of the images.
    """

    factor: int = 2

    array = "coarse"

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 2, factor=self.factor)

    def of(self, x, levels):
        if x.ndim != 4 or x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ValueError(
                f"SuperResolution.factor = {self.factor} for points of shape {x.shape[1:]}: expected images (height, width, "
                "channels) whose sides it divides"
            )
        n, height, width, channels = x.shape
        blocks = x.reshape(n, height // self.factor, self.factor, width // self.factor, self.factor, channels)
        return _as_numbers(blocks.mean((2, 4), dtype=np.float64), levels)


@dataclass(frozen=True, kw_only=True)
class Moments(Derived):
    r"""Points and two numbers that describe each: ``moments``, the mean and the standard deviation over its elements.

    .. math:: m = \frac1d\sum_i x_i,\qquad s = \Big(\frac1d\sum_i (x_i - m)^2\Big)^{1/2}

    Pixels are numbers in (-1, 1), as in :class:`SuperResolution`. Networks see small differences badly, so the array is
    ``(moments - centre) / scale``.

    Attributes:
        centre: what is taken off the two, about their mean over the data.
        scale: their unit, about their deviation over the data.
    """

    centre: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)

    array = "moments"

    def __post_init__(self):
        super().__post_init__()
        for name, pair in (("centre", self.centre), ("scale", self.scale)):
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"Moments.{name} = {pair!r}: expected two numbers, of the mean and of the deviation")
            object.__setattr__(self, name, tuple(pair))
        for number in self.centre:
            require_number(self, -1e6, 1e6, centre=number)
        for number in self.scale:
            require_positive(self, scale=number)

    def of(self, x, levels):
        flat = x.reshape(len(x), -1)
        mean = _as_numbers(flat.mean(1, dtype=np.float64), levels)
        std = flat.std(1, dtype=np.float64) * (1.0 if levels is None else 2 / levels)
        return ((np.stack([mean, std], axis=1) - self.centre) / self.scale).astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Rows(RowSource):
    """Rows that are made of those of another source when they are asked for."""

    source: RowSource
    of: OfAnother

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def levels(self) -> int | None:
        """Those of the source, of which rows do not tell."""
        return self.of.source.load().levels

    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers."""
        return self.of.made(as_arrays(self.source.take(index), self.of.source.name, self.levels)).columns()


def as_arrays(columns: Mapping[str, np.ndarray], name: str, levels: int | None) -> Arrays:
    """Rows of the training split by the names of their arrays."""
    more = {key: value for key, value in columns.items() if key not in ("x", "label")}
    return Arrays(x=columns["x"], label=columns.get("label"), name=name, split="train", levels=levels, more=more)


def with_array(owner: OfAnother, arrays: Arrays, name: str, value: np.ndarray) -> Arrays:
    """The rows with one more array; ``ValueError`` where they have one of this name."""
    if name in arrays.more:
        raise ValueError(f"{type(owner).__name__}.source = {owner.source!r} has the array {name!r}: expected one without")
    return replace(arrays, more={**arrays.more, name: value})


def _as_numbers(level: np.ndarray, levels: int | None) -> np.ndarray:
    """Averages of stored values as numbers, in (-1, 1) for levels."""
    return (level if levels is None else 2 * (level + 0.5) / levels - 1).astype(np.float32)
