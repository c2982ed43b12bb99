"""What a data set is: named splits, loaded into memory, and for a generated one fresh draws."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Mapping
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.batches import Batches


class DataSet(abc.ABC):
    """Data by split. A new one is a frozen dataclass with a ``name`` and ``splits``, and needs ``load``.

    Attributes:
        name: what reports and messages call it.
        splits: the splits it has, ``"train"`` among them; evaluations ask for ``"test"``.
        generated: new points of the same law can be drawn (``draw``).
        statistics: by name, functions from points ``(n, *event)`` to one number each, ``(n,)``, whose laws tell whether samples are
            good; none unless it says so.
    """

    name: str
    splits: tuple[str, ...] = ("train",)
    generated: ClassVar[bool] = False

    @property
    def statistics(self) -> Mapping[str, Callable[[np.ndarray], np.ndarray]]:
        """None, unless the set says so."""
        return MappingProxyType({})

    @abc.abstractmethod
    def load(self, split: str = "train") -> Arrays:
        """One split, or of a set larger than memory as many rows as are looked at (moments, pictures, evaluations)."""

    def batches(self, batch_size: int, seed: int, arrays: Arrays | None = None) -> Batches:
        """Shuffled batches of the training split, ``arrays`` where it is loaded; a set larger than memory reads its rows here."""
        return Batches(self.load() if arrays is None else arrays, batch_size=batch_size, seed=seed)

    def draw(self, n: int, seed: int) -> Arrays:
        """``n`` fresh points of the law itself, for a ``generated`` set."""
        raise ValueError(f"{self.name}: expected a generated set, of which new points can be drawn")

    def stamp(self) -> Hashable:
        """What changes when the stored data do, such as times and sizes of files; a split in memory is good until then."""
        return ()

    @property
    def known_as(self) -> tuple[str, ...]:
        """Its name, and that of the set it is a part of; features trained on either are features of this one."""
        return (self.name,)

    def require_split(self, split: str) -> None:
        """Raise ``ValueError`` naming the splits there are, unless ``split`` is one."""
        if split not in self.splits:
            raise ValueError(f"{self.name}.split = {split!r}: expected one of {', '.join(self.splits)}")
