"""Data sets with a condition that is computed from the points of another one."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, RowSource
from scorelab.validation import require_int, require_number, require_positive, require_spec


@dataclass(frozen=True, kw_only=True)
class Derived(DataSet):
    """Another data set, with one more array that is a function of each point; a new one states ``array`` and ``of``.

    Since the function is known, samples can be asked whether they have the condition that they were drawn with
    (:class:`scorelab.experiment.ConditionError`).

    Attributes:
        source: the other data set.
        array: the name of the array.
    """

    source: DataSet

    array: ClassVar[str]

    def __post_init__(self):
        require_spec(self, DataSet, source=self.source)

    @abc.abstractmethod
    def of(self, x: np.ndarray, levels: int | None) -> np.ndarray:
        """The array ``(n, *row)``, float32, of stored points ``(n, *event)`` with ``levels`` levels, None for numbers."""

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the other one, and the name of the array."""
        return f"{self.source.name}-{self.array}"

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the other one."""
        return self.source.splits

    @property
    def known_as(self) -> tuple[str, ...]:
        """Its name and those of the other one, whose points it has."""
        return (self.name, *self.source.known_as)

    @property
    def generated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the other one."""
        return self.source.generated

    @property
    def statistics(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """Those of the other one, whose points it has."""
        return self.source.statistics

    def draw(self, n: int, seed: int) -> Arrays:
        """Points of the other one, with the array."""
        return self._with_array(self.source.draw(n, seed))

    def stamp(self) -> Hashable:
        """That of the other one."""
        return self.source.stamp()

    def load(self, split: str = "train") -> Arrays:
        """The split of the other one, with the array."""
        self.require_split(split)
        return self._with_array(self.source.load(split))

    def _with_array(self, arrays: Arrays) -> Arrays:
        if self.array in arrays.more:
            raise ValueError(f"{type(self).__name__}.source = {self.source!r} has the array {self.array!r}: expected one without")
        return replace(arrays, name=self.name, more={**arrays.more, self.array: self.of(arrays.x, arrays.levels)})

    def batches(self, batch_size: int, seed: int, arrays: Arrays | None = None) -> Batches:
        """Batches of the other one; where it reads rows when they are asked for, their arrays are computed then."""
        inner = self.source.batches(batch_size, seed)
        if isinstance(inner.arrays, RowSource):
            return Batches(_Rows(inner.arrays, self, self.source.load().levels), batch_size=batch_size, seed=seed)
        return super().batches(batch_size, seed, arrays)


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
    """Rows of another source with the array of a derived set."""

    source: RowSource
    derived: Derived
    levels: int | None

    def __len__(self) -> int:
        return len(self.source)

    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, with their array."""
        rows = self.source.take(index)
        return {**rows, self.derived.array: self.derived.of(rows["x"], self.levels)}


def _as_numbers(level: np.ndarray, levels: int | None) -> np.ndarray:
    """Averages of stored values as numbers, in (-1, 1) for levels."""
    return (level if levels is None else 2 * (level + 0.5) / levels - 1).astype(np.float32)
