"""Data of your own: arrays in files, folders of images, and anything with rows by number."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, RowSource
from scorelab.data.memory import require_memory
from scorelab.files import DamagedFile
from scorelab.validation import require_int

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class ArrayFile(DataSet):
    """Arrays in ``.npz`` or ``.npy`` files, one file for each split; pickles inside them are refused.

    A ``.npz`` file holds ``x`` (under the name ``x_key``) and, where ``label_key`` names one, integer labels; a ``.npy`` file holds
    ``x`` alone. uint8 arrays ``(n, height, width[, channels])`` are images; floating point ones ``(n, *event)`` become float32.

    Attributes:
        train: the file of the training split; ``~`` and variables of the environment are expanded.
        test: that of the test split, None where there is none.
        x_key: the name of the points.
        label_key: the name of the labels, None for data without.
        levels: number of levels of uint8 data.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file with other arrays than these.
    """

    train: str
    test: str | None = None
    x_key: str = "x"
    label_key: str | None = None
    levels: int = 256

    def __post_init__(self):
        for name, path in (("train", self.train), ("test", self.test)):
            if path is not None and (not isinstance(path, str | os.PathLike) or Path(path).suffix not in (".npz", ".npy")):
                raise ValueError(f"ArrayFile.{name} = {path!r}: expected the name of an .npz or .npy file")
            if path is not None:
                object.__setattr__(self, name, str(path))
        require_int(self, 2, levels=self.levels)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the training file, without its ending."""
        return Path(self.train).stem

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``"test"`` where there is a file for it."""
        return ("train",) if self.test is None else ("train", "test")

    def load(self, split: str = "train") -> Arrays:
        """The arrays of one file."""
        self.require_split(split)
        path = _expanded(self.train if split == "train" or self.test is None else self.test)
        if not path.is_file():
            raise FileNotFoundError(f"ArrayFile.{split} = {str(path)!r}: no such file")
        found = _arrays_of(path, self.x_key)
        x = _as_points(f"{path}: {self.x_key}", _taken(found, self.x_key, path))
        label = None if self.label_key is None else _as_labels(f"{path}: {self.label_key}", _taken(found, self.label_key, path))
        return _checked(path, x, label, self.name, split, self.levels)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSet):
    """Image files in a folder, whose folders inside, if any, are the classes in alphabetical order.

    ``root/*.png`` is one split without labels, ``root/<class>/*.png`` one with labels; ``root/train/...`` and ``root/test/...`` are
    two. Images have to be of one size, or a ``size`` is given to which the largest centred part with its shape is resampled.

    Attributes:
        root: the folder; ``~`` and variables of the environment are expanded.
        size: ``(height, width)`` to resample to, None to take images as they are.
        channels: 1 for grey values, 3 for colours.
    """

    root: str
    size: tuple[int, int] | None = None
    channels: int = 3

    def __post_init__(self):
        if not isinstance(self.root, str | os.PathLike):
            raise TypeError(f"ImageFolder.root = {self.root!r}: expected the name of a folder")
        object.__setattr__(self, "root", str(self.root))
        if self.channels not in (1, 3):
            raise ValueError(f"ImageFolder.channels = {self.channels!r}: expected 1 or 3")
        if self.size is not None:
            size = tuple(self.size) if isinstance(self.size, tuple | list) else self.size
            if not isinstance(size, tuple) or len(size) != 2:
                raise ValueError(f"ImageFolder.size = {self.size!r}: expected (height, width)")
            require_int(self, 1, size=size[0])
            require_int(self, 1, size=size[1])
            object.__setattr__(self, "size", size)

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the folder."""
        return _expanded(self.root).name

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The folders ``train`` and ``test`` inside, or one split."""
        return ("train", "test") if (_expanded(self.root) / "test").is_dir() else ("train",)

    def load(self, split: str = "train") -> Arrays:
        """Images ``(n, height, width, channels)`` with 256 levels, in the order of their names."""
        self.require_split(split)
        root = _expanded(self.root)
        folder = root / split if (root / split).is_dir() else root
        if not folder.is_dir():
            raise FileNotFoundError(f"ImageFolder.root = {str(root)!r}: no such folder")
        files, classes = _images_in(folder)
        if not files:
            raise ValueError(
                f"ImageFolder.root = {str(root)!r} has no images: expected files ending in {', '.join(IMAGE_SUFFIXES)}"
            )
        first = self._pixels(files[0][0])
        require_memory(f"{len(files)} images of {first.shape} in {folder}", float(len(files) * first.size))
        images = np.empty((len(files), *first.shape), np.uint8)
        for i, (path, _) in enumerate(files):
            pixels = self._pixels(path)
            if pixels.shape != first.shape:
                raise ValueError(
                    f"{path} is {pixels.shape}, {files[0][0].name} {first.shape}: expected one size, or ImageFolder.size"
                )
            images[i] = pixels
        label = np.array([number for _, number in files], np.int32) if classes else None
        return Arrays(x=images, label=label, name=self.name, split=split, num_classes=len(classes) or None, levels=256)

    def _pixels(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(path) as opened:
                image = _cropped(opened.convert("L" if self.channels == 1 else "RGB"), self.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DamagedFile(f"{path}: not an image that can be read ({error})") from error
        return np.asarray(image, np.uint8).reshape(image.height, image.width, self.channels)


class Rows(Protocol):
    """Rows by number, such as a Hugging Face ``Dataset``, a Grain data source, or a list of dictionaries."""

    def __len__(self) -> int:
        """The number of rows."""
        ...

    def __getitem__(self, index: Any, /) -> Any:
        """One row, a mapping of names to arrays."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Indexed(DataSet):
    """Rows by number, for data larger than memory: a batch reads its own rows, and a step always reads the same ones.

    Attributes:
        train: the rows of the training split.
        test: those of the test split, or None.
        name: what reports call it.
        x_key: the name of the points in a row.
        label_key: the name of the labels, None for data without.
        levels: number of levels of uint8 data.
        looked_at: how many rows are loaded where all are not needed: moments, pictures, evaluations. They are spread over the whole
            set evenly, since stored rows are often sorted.
    """

    train: Rows
    test: Rows | None = None
    name: str = "rows"
    x_key: str = "x"
    label_key: str | None = None
    levels: int = 256
    looked_at: int = 10_000

    def __post_init__(self):
        for name, rows in (("train", self.train), ("test", self.test)):
            if (name == "train" or rows is not None) and not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
                raise TypeError(f"Indexed.{name} = {rows!r}: expected rows by number, with a length")
        require_int(self, 1, looked_at=self.looked_at)
        require_int(self, 2, levels=self.levels)

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """``"test"`` where there are rows for it."""
        return ("train",) if self.test is None else ("train", "test")

    def load(self, split: str = "train") -> Arrays:
        """Rows spread evenly over the split."""
        self.require_split(split)
        source = self._source(split)
        n = len(source.rows)
        columns = source.take(np.unique(np.linspace(0, n - 1, min(n, self.looked_at)).round().astype(int)))
        return _checked(self.name, columns["x"], columns.get("label"), self.name, split, self.levels)

    def batches(self, batch_size: int, seed: int) -> Batches:
        """Batches of all rows, read when they are asked for."""
        return Batches(self._source("train"), batch_size=batch_size, seed=seed)

    def _source(self, split: str) -> _Named:
        rows = self.train if split == "train" or self.test is None else self.test
        names = {"x": self.x_key} | ({} if self.label_key is None else {"label": self.label_key})
        return _Named(rows, names)


@dataclass(frozen=True, eq=False)
class _Named(RowSource):
    """Rows by number under the names that a loss knows.

    Attributes:
        rows: where they are read.
        names: ``{"x": name in a row, "label": ...}``.
    """

    rows: Rows
    names: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, stacked."""
        rows = [self.rows[int(i)] for i in index]
        if missing := [name for name in self.names.values() if name not in rows[0]]:
            raise ValueError(f"a row has {sorted(rows[0])}: expected {missing[0]!r}")
        taken = {}
        for key, name in self.names.items():
            values = [np.asarray(row[name]) for row in rows]
            if len(shapes := {value.shape for value in values}) > 1:
                raise ValueError(f"rows have {name} of shapes {sorted(shapes)}: expected one")
            taken[key] = (_as_points if key == "x" else _as_labels)(f"{name} of a row", np.stack(values))
        return taken


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(path)).expanduser()


def _arrays_of(path: Path, x_key: str) -> Mapping[str, np.ndarray]:
    try:
        found = np.load(path, allow_pickle=False)
        return dict(found) if isinstance(found, np.lib.npyio.NpzFile) else {x_key: found}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFile(f"{path}: not arrays that can be read ({error})") from error


def _taken(found: Mapping[str, np.ndarray], key: str, path: Path) -> np.ndarray:
    if key not in found:
        raise ValueError(f"{path} has the arrays {sorted(found)}: expected one that is named {key!r}")
    return found[key]


def _as_points(what: str, x: np.ndarray) -> np.ndarray:
    """uint8 images with a channel axis, or float32 points."""
    if x.dtype == np.uint8:
        return x[..., None] if x.ndim == 3 else x
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(f"{what} is {x.dtype}: expected uint8 levels or floating point numbers")
    return x.astype(np.float32)


def _as_labels(what: str, label: np.ndarray) -> np.ndarray:
    if not np.issubdtype(label.dtype, np.integer) or label.ndim != 1:
        raise ValueError(f"{what} is {label.dtype} of shape {label.shape}: expected integers (n,)")
    if label.size and not 0 <= label.min() <= label.max() <= np.iinfo(np.int32).max:
        raise ValueError(f"{what} has values from {label.min()} to {label.max()}: expected classes 0, 1, ..")
    return label.astype(np.int32)


def _checked(where: Any, x: np.ndarray, label: np.ndarray | None, name: str, split: str, levels: int) -> Arrays:
    classes = None if label is None or not label.size else int(label.max()) + 1
    try:
        return Arrays(
            x=x, label=label, name=name, split=split, num_classes=classes, levels=levels if x.dtype == np.uint8 else None
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _images_in(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """The image files with the numbers of their classes, and the names of the classes; ValueError for a mixture."""
    here = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES)
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in ("train", "test"))
    within = {path.name: sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) for path in inside}
    within = {name: paths for name, paths in within.items() if paths}
    if here and within:
        raise ValueError(f"{folder} has images beside the folders {', '.join(within)}: expected either, so that labels are known")
    classes = list(within)
    return [(path, 0) for path in here] + [(path, classes.index(name)) for name in classes for path in within[name]], classes


def _cropped(image: Any, size: tuple[int, int] | None) -> Any:
    """The largest centred part with the shape of ``size``, resampled to it."""
    if size is None:
        return image
    from PIL import Image

    height, width = size
    scale = min(image.height / height, image.width / width)
    tall, wide = round(scale * height), round(scale * width)
    top, left = (image.height - tall) // 2, (image.width - wide) // 2
    return image.crop((left, top, left + wide, top + tall)).resize((width, height), Image.Resampling.LANCZOS)
