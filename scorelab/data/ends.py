"""Data sets for the two ends of a bridge: some classes of a set, its images as numbers, and points with the base that is theirs."""

from __future__ import annotations

import abc
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.derived import SuperResolution
from scorelab.data.transforms import Identity, Transform
from scorelab.validation import require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class _OfAnother(DataSet):
    """A set that is made of another one, split by split; a new one states ``what`` and ``of``."""

    source: DataSet

    what: ClassVar[str]

    def __post_init__(self):
        require_spec(self, DataSet, source=self.source)

    @abc.abstractmethod
    def of(self, arrays: Arrays) -> Arrays:
        """The split made of that of the source."""

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the source, and what was made of it."""
        return f"{self.source.name}-{self.what}"

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the source."""
        return self.source.splits

    def stamp(self) -> Hashable:
        """That of the source."""
        return self.source.stamp()

    def load(self, split: str = "train") -> Arrays:
        """The split of the source, as this set has it."""
        self.require_split(split)
        return replace(self.of(self.source.load(split)), name=self.name)


@dataclass(frozen=True, kw_only=True)
class Classes(_OfAnother):
    """The points of some classes of another set, in its order and with its labels.

    Attributes:
        source: the other set, with labels.
        classes: which, none twice.

    Raises:
        ValueError: a source without labels, or a class without points in a split.
    """

    classes: tuple[int, ...]

    def __post_init__(self):
        super().__post_init__()
        classes = (self.classes,) if isinstance(self.classes, int) else self.classes
        require_spec(self, tuple | list, classes=classes)
        for label in classes:
            require_int(self, 0, classes=label)
        object.__setattr__(self, "classes", tuple(classes))
        if not classes or len(set(classes)) < len(classes):
            raise ValueError(f"Classes.classes = {self.classes}: expected at least one class, and none twice")

    @property
    def what(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The classes."""
        return "".join(map(str, self.classes)) if max(self.classes) < 10 else "-".join(map(str, self.classes))

    @property
    def known_as(self) -> tuple[str, ...]:
        """Its name and those of the source, whose points it has."""
        return (self.name, *self.source.known_as)

    def of(self, arrays):
        if arrays.label is None:
            raise ValueError(f"Classes.source = {self.source!r} has no labels: expected a set with labels")
        if missing := [label for label in self.classes if not np.any(arrays.label == label)]:
            there = np.unique(arrays.label).tolist()
            raise ValueError(
                f"Classes.classes = {self.classes}: no points of class {missing[0]} in {arrays.split!r} of {arrays.name}: expected "
                f"some of {there}"
            )
        rows = np.isin(arrays.label, self.classes)
        more = {name: value[rows] for name, value in arrays.more.items()}
        return replace(arrays, x=arrays.x[rows], label=arrays.label[rows], more=more)


@dataclass(frozen=True, kw_only=True)
class Encoded(_OfAnother):
    """Another set as a process sees it: floating point points on the scale of a transform, as the base of an interpolant has to be.

    Attributes:
        source: the other set.
        transform: that of the data at the other end.
    """

    transform: Transform = field(default_factory=Identity)

    what = "encoded"

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, Transform, transform=self.transform)

    def of(self, arrays):
        self.transform.check(arrays.x, arrays.levels)
        return replace(arrays, x=np.asarray(self.transform.encode(arrays.x), np.float32), levels=None, more=_numbers(arrays))


@dataclass(frozen=True, kw_only=True)
class Upsampled(_OfAnother):
    """What is left of images at a lower resolution, at their own size: averages over blocks, repeated over each block.

    Numbers in (-1, 1), as :class:`SuperResolution` has them.

    Attributes:
        source: images.
        factor: the side of a block; it divides those of the images.
    """

    factor: int = 2

    what = "upsampled"

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 2, factor=self.factor)

    def of(self, arrays):
        coarse = SuperResolution(source=self.source, factor=self.factor).of(arrays.x, arrays.levels)
        x = coarse.repeat(self.factor, axis=1).repeat(self.factor, axis=2)
        return replace(arrays, x=x, levels=None, more=_numbers(arrays))


@dataclass(frozen=True, kw_only=True)
class WithBase(_OfAnother):
    """Points with the base that belongs to each, in the array ``base``: pairs for the coupling :class:`scorelab.data.Paired`.

    Attributes:
        source: the data.
        base: a set of floating point points, shaped as the process sees the data; its rows belong to those of the source.

    Raises:
        ValueError: a base of another number or shape of rows, or one of pixels.
    """

    base: DataSet

    what = "paired"

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, DataSet, base=self.base)

    @property
    def known_as(self) -> tuple[str, ...]:
        """Its name and those of the source, whose points it has."""
        return (self.name, *self.source.known_as)

    def stamp(self) -> Hashable:
        """Those of both."""
        return self.source.stamp(), self.base.stamp()

    def of(self, arrays):
        base = self.base.load(arrays.split)
        if base.levels is not None or base.x.shape != arrays.x.shape:
            raise ValueError(
                f"WithBase.base = {self.base!r} has {base.x.dtype} {base.x.shape} in {arrays.split!r}: expected float32 "
                f"{arrays.x.shape}, a row for each of {self.source.name}, such as an Encoded set"
            )
        return replace(arrays, more={**arrays.more, "base": base.x})


def _numbers(arrays: Arrays) -> dict[str, np.ndarray]:
    """The further arrays that are no pixels, which have no place beside numbers."""
    return {name: value for name, value in arrays.more.items() if value.dtype != np.uint8}
