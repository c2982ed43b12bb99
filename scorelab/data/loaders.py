"""How each kind of data set becomes ``Arrays``; which sets exist is written in ``registry.py``."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.files import FileFinder, PublishedFile
from scorelab.data.formats import read_cifar10_binary, read_idx, read_npz_images
from scorelab.data.memory import require_memory

DIGITS_TEST_SIZE = 297
# A generated set is drawn with some float32 arrays of its size beside it: noise, choices of components, their sums.
_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class Published(DataSet):
    """A set in published files: looked for on this machine, then downloaded."""

    name: str
    splits: tuple[str, ...] = ("train", "test")

    @abc.abstractmethod
    def load(self, split: str = "train", *, data_dir: str | os.PathLike[str] | None = None, download: bool = True) -> Arrays:
        """One split; where files are looked for as in :func:`scorelab.data.load`."""

    def finder(self, data_dir: str | os.PathLike[str] | None, download: bool, folders: tuple[str, ...] = ()) -> FileFinder:
        """Where its files may lie."""
        return FileFinder(dataset=self.name, folders=folders or _folders(self.name), data_dir=data_dir, may_download=download)


def _folders(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, name.replace("_", "-"))))


@dataclass(frozen=True, kw_only=True)
class IdxSplit:
    """Image file and label file of one split; ``shape`` is (n, height, width)."""

    images: PublishedFile
    labels: PublishedFile
    shape: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class IdxImages(Published):
    """Grey images and labels 0 to 9 in idx files, as MNIST has them; a split needs only its own two files."""

    train: IdxSplit
    test: IdxSplit

    def load(self, split: str = "train", *, data_dir=None, download=True) -> Arrays:
        """Images (n, height, width, 1) with 256 levels."""
        finder = self.finder(data_dir, download)
        part = {"train": self.train, "test": self.test}[split]

        def read(file: PublishedFile, shape: tuple[int, ...]) -> np.ndarray:
            def inspect(raw: bytes, path: Path) -> None:
                read_idx(raw, shape, path)

            return read_idx(finder.read(file, inspect), shape, file.name)

        images = read(part.images, part.shape)
        label = read(part.labels, part.shape[:1]).astype(np.int32)
        return Arrays(x=images[..., None], label=label, name=self.name, split=split, num_classes=10, levels=256)


@dataclass(frozen=True, kw_only=True)
class Halves(Published):
    """One split of another set as a set of its own: its images 0, 2, 4, .. are train, 1, 3, 5, .. are test.

    For sets of which only one split is at hand.
    """

    source: Published
    of: str = "test"

    @property
    def known_as(self) -> tuple[str, ...]:
        """Its name and that of the source."""
        return self.name, self.source.name

    def load(self, split: str = "train", *, data_dir=None, download=True) -> Arrays:
        """Every second image of the split ``of`` of the source."""
        whole = self.source.load(self.of, data_dir=data_dir, download=download)
        chosen = slice(self.splits.index(split), None, 2)
        label = None if whole.label is None else whole.label[chosen]
        return replace(whole, x=whole.x[chosen], label=label, name=self.name, split=split)


@dataclass(frozen=True, kw_only=True)
class CifarBinary(Published):
    """CIFAR-10 from its binary archive, ``records`` images a member (the Python archive is a pickle)."""

    archive: PublishedFile
    records: int

    def load(self, split: str = "train", *, data_dir=None, download=True) -> Arrays:
        """Images (n, 32, 32, 3) with 256 levels."""
        finder = self.finder(data_dir, download)
        files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}[split]
        members = tuple(f"cifar-10-batches-bin/{file}" for file in files)

        def inspect(raw: bytes, path: Path) -> None:
            read_cifar10_binary(raw, members, self.records, path)

        raw = finder.read(self.archive, inspect)
        images, label = read_cifar10_binary(raw, members, self.records, self.archive.name)
        return Arrays(x=images, label=label, name=self.name, split=split, num_classes=10, levels=256)


@dataclass(frozen=True, kw_only=True)
class NpzImages(Published):
    """Unlabelled images under one key of an npz file; a train split only."""

    folders: tuple[str, ...]
    file: PublishedFile
    key: str
    shape: tuple[int, int, int, int]
    splits: tuple[str, ...] = ("train",)

    def load(self, split: str = "train", *, data_dir=None, download=True) -> Arrays:
        """Images of ``shape`` with 256 levels, no labels."""

        def inspect(raw: bytes, path: Path) -> None:
            read_npz_images(raw, self.key, self.shape, path)

        raw = self.finder(data_dir, download, self.folders).read(self.file, inspect)
        images = read_npz_images(raw, self.key, self.shape, self.file.name)
        return Arrays(x=images, name=self.name, split=split, levels=256)


@dataclass(frozen=True, kw_only=True)
class Digits(DataSet):
    """The 1,797 handwritten digits inside scikit-learn, 8x8, values 0 to 16: no file to fetch.

    Split rule: the images sorted by class (stable); of that list, the positions floor((k + 1/2) 1797 /
    297), k = 0..296, are the test split. So 1,500 train, 297 test, every class within one image of its
    share, no random generator involved.
    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test part).
    """

    name: str = "digits"
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str = "train") -> Arrays:
        """Images (n, 8, 8, 1) with 17 levels."""
        # Half a second to import, which users of the other sets need not wait for.
        from sklearn.datasets import load_digits

        source: Any = load_digits()
        by_class = np.argsort(source.target, kind="stable")
        total = len(by_class)
        taken = (2 * np.arange(DIGITS_TEST_SIZE) + 1) * total // (2 * DIGITS_TEST_SIZE)
        is_test = np.zeros(total, bool)
        is_test[by_class[taken]] = True
        chosen = is_test if split == "test" else ~is_test
        images, label = (
            source.images[chosen, ..., None].astype(np.uint8),
            source.target[chosen].astype(np.int32),
        )
        return Arrays(x=images, label=label, name=self.name, split=split, num_classes=10, levels=17)


@dataclass(frozen=True, kw_only=True)
class Toy(DataSet):
    """A generated set of points; train and test come from independent streams of the same seed.

    Attributes:
        sampler: ``((seed, stream), n)`` to points ``(n, *event)`` float32.
        dimension: the number of elements of a point.
        n: number of points in a split.
        seed: of the streams.
    """

    name: str
    sampler: Callable[[tuple[int, int], int], np.ndarray]
    dimension: int = 2
    n: int = 10000
    seed: int = 0
    splits: tuple[str, ...] = ("train", "test")

    generated: ClassVar[bool] = True

    def load(self, split: str = "train") -> Arrays:
        """Points (n, *event) float32, no labels."""
        require_memory(f"{self.name} with n = {self.n}", 4.0 * _COPIES * self.n * self.dimension)
        return Arrays(x=self.sampler((self.seed, self.splits.index(split)), self.n), name=self.name, split=split)

    def draw(self, n: int, seed: int) -> Arrays:
        """The test split of another seed."""
        return replace(self, n=n, seed=seed).load("test")
