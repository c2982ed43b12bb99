"""How each kind of data set becomes ``Arrays``; which sets exist is written in ``registry.py``."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.files import PublishedFile, Shelf
from scorelab.data.formats import read_cifar10_binary, read_idx, read_npz_images
from scorelab.data.memory import require_memory

DIGITS_TEST_SIZE = 297
# A generated set is drawn with some float32 arrays of its size beside it: noise, choices of components, their sums.
_COPIES = 4


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a caller of ``load`` asked for beside the name and the split."""

    data_dir: str | os.PathLike[str] | None = None
    download: bool = True
    n: int | None = None
    seed: int | None = None

    def shelf(self, dataset: str, folders: tuple[str, ...]) -> Shelf:
        """Where to look for the files of a set; refuses the arguments of the generated sets."""
        self.refuse_sampling(dataset)
        return Shelf(dataset=dataset, folders=folders, data_dir=self.data_dir, may_download=self.download)

    def refuse_sampling(self, dataset: str) -> None:
        """Raise where ``n`` or ``seed`` was given for a set of fixed content."""
        for field in ("n", "seed"):
            if getattr(self, field) is not None:
                raise ValueError(f"{field}={getattr(self, field)} for {dataset}: only the generated sets take {field}")


class DataSet(Protocol):
    """A named data set."""

    @property
    def name(self) -> str:
        """The name ``load`` finds it by."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits it has."""
        ...

    def load(self, split: str, request: Request) -> Arrays:
        """One split."""
        ...


def _folders(name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((name, name.replace("_", "-"))))


@dataclass(frozen=True, kw_only=True)
class IdxSplit:
    """Image file and label file of one split; ``shape`` is (n, height, width)."""

    images: PublishedFile
    labels: PublishedFile
    shape: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class IdxImages:
    """Grey images and labels 0 to 9 in idx files, as MNIST has them; a split needs only its own two files."""

    name: str
    train: IdxSplit
    test: IdxSplit
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str, request: Request) -> Arrays:
        """Images (n, height, width, 1) with 256 levels."""
        shelf = request.shelf(self.name, _folders(self.name))
        part = {"train": self.train, "test": self.test}[split]

        def read(file: PublishedFile, shape: tuple[int, ...]) -> np.ndarray:
            def inspect(raw: bytes, path: Path) -> None:
                read_idx(raw, shape, path)

            return read_idx(shelf.read(file, inspect), shape, file.name)

        images = read(part.images, part.shape)
        label = read(part.labels, part.shape[:1]).astype(np.int32)
        return Arrays(x=images[..., None], label=label, name=self.name, split=split, num_classes=10, levels=256)


@dataclass(frozen=True, kw_only=True)
class Halves:
    """One split of another set as a set of its own: its images 0, 2, 4, .. are train, 1, 3, 5, .. are test.

    For sets of which only one split is at hand.
    """

    name: str
    source: DataSet
    of: str = "test"
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str, request: Request) -> Arrays:
        """Every second image of the split ``of`` of the source."""
        whole = self.source.load(self.of, request)
        chosen = slice(self.splits.index(split), None, 2)
        label = None if whole.label is None else whole.label[chosen]
        return replace(whole, x=whole.x[chosen], label=label, name=self.name, split=split)


@dataclass(frozen=True, kw_only=True)
class CifarBinary:
    """CIFAR-10 from its binary archive, ``records`` images a member (the Python archive is a pickle)."""

    name: str
    archive: PublishedFile
    records: int
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str, request: Request) -> Arrays:
        """Images (n, 32, 32, 3) with 256 levels."""
        shelf = request.shelf(self.name, _folders(self.name))
        files = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}[split]
        members = tuple(f"cifar-10-batches-bin/{file}" for file in files)

        def inspect(raw: bytes, path: Path) -> None:
            read_cifar10_binary(raw, members, self.records, path)

        raw = shelf.read(self.archive, inspect)
        images, label = read_cifar10_binary(raw, members, self.records, self.archive.name)
        return Arrays(x=images, label=label, name=self.name, split=split, num_classes=10, levels=256)


@dataclass(frozen=True, kw_only=True)
class NpzImages:
    """Unlabelled images under one key of an npz file; a train split only."""

    name: str
    folders: tuple[str, ...]
    file: PublishedFile
    key: str
    shape: tuple[int, int, int, int]
    splits: tuple[str, ...] = ("train",)

    def load(self, split: str, request: Request) -> Arrays:
        """Images of ``shape`` with 256 levels, no labels."""

        def inspect(raw: bytes, path: Path) -> None:
            read_npz_images(raw, self.key, self.shape, path)

        raw = request.shelf(self.name, self.folders).read(self.file, inspect)
        images = read_npz_images(raw, self.key, self.shape, self.file.name)
        return Arrays(x=images, name=self.name, split=split, levels=256)


@dataclass(frozen=True, kw_only=True)
class Digits:
    """The 1,797 handwritten digits inside scikit-learn, 8x8, values 0 to 16: no file to fetch.

    Split rule: the images sorted by class (stable); of that list, the positions floor((k + 1/2) 1797 /
    297), k = 0..296, are the test split. So 1,500 train, 297 test, every class within one image of its
    share, no random generator involved.
    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI, 1998 (its test part).
    """

    name: str = "digits"
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str, request: Request) -> Arrays:
        """Images (n, 8, 8, 1) with 17 levels."""
        from sklearn.datasets import (
            load_digits,
        )  # half a second to import, which users of the other sets need not wait for

        request.refuse_sampling(self.name)
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
class Toy:
    """A generated set of points; train and test come from independent streams of the same seed."""

    name: str
    sampler: Callable[[tuple[int, int], int], np.ndarray]
    dimension: int = 2
    splits: tuple[str, ...] = ("train", "test")

    def load(self, split: str, request: Request) -> Arrays:
        """Points (n, d) float32, d = 2 for most; n defaults to 10000 and seed to 0; no labels."""
        n = 10000 if request.n is None else request.n
        seed = 0 if request.seed is None else request.seed
        require_memory(f"{self.name} with n = {n}", 4.0 * _COPIES * n * self.dimension)
        return Arrays(x=self.sampler((seed, self.splits.index(split)), n), name=self.name, split=split)
