"""Data sets for the two ends of a bridge: some classes of a set, its images as numbers, and points with the base that is theirs."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, RowSource
from scorelab.data.derived import OfAnother, SuperResolution, as_arrays, with_array
from scorelab.data.transforms import Identity, Transform
from scorelab.validation import require_int, require_spec


@dataclass(frozen=True, kw_only=True)
class Classes(OfAnother):
    """The points of some classes of another set, in its order and with its labels.

    Attributes:
        source: the other set, with labels.
        classes: which, none twice.

    Raises:
        ValueError: a source without labels, one whose rows are read when they are asked for, or a class without points in a split.
    """

    classes: tuple[int, ...]

    keeps = True

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
    def generated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """No, since of so many fresh points another number would be left."""
        return False

    def draw(self, n, seed):
        """Refused."""
        return DataSet.draw(self, n, seed)

    def batches(self, batch_size, seed, arrays=None):
        """Batches of the points."""
        if isinstance(self.source.batches(batch_size, seed).arrays, RowSource):
            raise ValueError(
                f"Classes.source = {self.source!r} reads rows when they are asked for, so labels are not known: expected a set in "
                "memory"
            )
        return super().batches(batch_size, seed, arrays)

    def made(self, arrays):
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
class Encoded(OfAnother):
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

    def made(self, arrays):
        self.transform.check(arrays.x, arrays.levels)
        return replace(arrays, x=np.asarray(self.transform.encode(arrays.x), np.float32), levels=None, more=_numbers(arrays))


@dataclass(frozen=True, kw_only=True)
class Upsampled(OfAnother):
    """What is left of images at a lower resolution, at their own size: averages over blocks, repeated over each block.

    Numbers in (-1, 1), as :class:`SuperResolution` has them.

    Attributes:
        source: images.
        factor: the side of a block; it divides those of the images.
    """

    factor: int = 2

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 2, factor=self.factor)

    @property
    def what(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """With the factor."""
        return f"upsampled{self.factor}"

    def made(self, arrays):
        coarse = SuperResolution(source=self.source, factor=self.factor).of(arrays.x, arrays.levels)
        x = coarse.repeat(self.factor, axis=1).repeat(self.factor, axis=2)
        return replace(arrays, x=x, levels=None, more=_numbers(arrays))


@dataclass(frozen=True, kw_only=True)
class WithBase(OfAnother):
    """Points with the base that belongs to each, in the array ``base``: pairs for the coupling :class:`scorelab.data.Paired`.

    Attributes:
        source: the data.
        base: a set of floating point points, shaped as the process sees the data; its rows belong to those of the source.

    Raises:
        ValueError: a base of another number or shape of rows, or one of pixels.
    """

    base: DataSet

    what = "paired"
    keeps = True

    def __post_init__(self):
        super().__post_init__()
        require_spec(self, DataSet, base=self.base)

    @property
    def generated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether both are."""
        return self.source.generated and self.base.generated

    def draw(self, n, seed):
        """Fresh points of both, by the same seed."""
        return self._named(self.joined(self.source.draw(n, seed), self.base.draw(n, seed)))

    def stamp(self) -> Hashable:
        """Those of both."""
        return self.source.stamp(), self.base.stamp()

    def made(self, arrays):
        return self.joined(arrays, self.base.load(arrays.split))

    def joined(self, arrays: Arrays, base: Arrays) -> Arrays:
        """The rows with those of the base."""
        if base.levels is not None or base.x.shape != arrays.x.shape:
            raise ValueError(
                f"WithBase.base = {self.base!r} has {base.x.dtype} {base.x.shape} in {arrays.split!r}: expected float32 "
                f"{arrays.x.shape}, a row for each of {self.source.name}, such as an Encoded set"
            )
        return with_array(self, arrays, "base", base.x)

    def batches(self, batch_size, seed, arrays=None):
        """Batches of both; where both read rows when they are asked for, they are joined then."""
        x, base = (each.batches(batch_size, seed).arrays for each in (self.source, self.base))
        if isinstance(x, RowSource) and isinstance(base, RowSource) and len(x) == len(base):
            return Batches(_Pairs(x, base, self), batch_size=batch_size, seed=seed)
        if isinstance(x, RowSource) or isinstance(base, RowSource):
            found = " and ".join(
                f"{len(each)} {'when asked for' if isinstance(each, RowSource) else 'in memory'}" for each in (x, base)
            )
            raise ValueError(f"WithBase.source and WithBase.base have rows, {found}: expected as many, read in the same way")
        return super().batches(batch_size, seed, arrays)


@dataclass(frozen=True, eq=False)
class _Pairs(RowSource):
    """Rows of two sources side by side."""

    source: RowSource
    base: RowSource
    of: WithBase

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property
    def levels(self) -> tuple[int | None, int | None]:
        """Those of both, of which rows do not tell."""
        return self.of.source.load().levels, self.of.base.load().levels

    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, each with its base."""
        rows = (
            as_arrays(each.take(index), self.of.name, levels)
            for each, levels in zip((self.source, self.base), self.levels, strict=True)
        )
        return self.of.joined(*rows).columns()


def _numbers(arrays: Arrays) -> dict[str, np.ndarray]:
    """The further arrays that are no pixels, which have no place beside numbers."""
    return {name: value for name, value in arrays.more.items() if value.dtype != np.uint8}
