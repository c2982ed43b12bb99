"""Data of your own: arrays in files, folders of images, and anything with rows by number."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scorelab.data.arrays import Arrays, not_known_or_finite
from scorelab.data.base import DataSet
from scorelab.data.batches import Batches, RowSource
from scorelab.data.memory import require_memory
from scorelab.files import DamagedFile
from scorelab.validation import require_int

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# Those of Pillow with 8 bits a channel or less; its conversion of any other clips the values.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


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
        more: the names of further arrays of the same rows, such as conditions: floating point numbers ``(n, *row)``, in which a row
            that is wholly NaN is not known; classes ``(n,)``; uint8 images beside those of ``x_key``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file with other arrays than these.
    """

    train: str
    test: str | None = None
    x_key: str = "x"
    label_key: str | None = None
    levels: int = 256
    more: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "more", _names("ArrayFile.more", self.more))
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

    def stamp(self) -> Hashable:
        """Time and size of each file."""
        return _stamp(str(_expanded(path)) for path in (self.train, self.test) if path is not None)

    def load(self, split: str = "train") -> Arrays:
        """The arrays of one file."""
        self.require_split(split)
        path = _expanded(self.train if split == "train" or self.test is None else self.test)
        if not path.is_file():
            raise FileNotFoundError(f"ArrayFile.{split} = {str(path)!r}: no such file")
        found = _arrays_of(path, self.x_key)
        x = _as_points(f"{path}: {self.x_key}", _taken(found, self.x_key, path))
        label = None if self.label_key is None else _as_labels(f"{path}: {self.label_key}", _taken(found, self.label_key, path))
        classes = None if label is None or not label.size else int(label.max()) + 1
        more = {key: _as_more(f"{path}: {key}", _taken(found, key, path)) for key in self.more}
        return _checked(path, x, label, self.name, split, self.levels, classes, more)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataSet):
    """Image files in a folder, whose folders inside, if any, are the classes in alphabetical order.

    ``root/*.png`` is one split without labels, ``root/<class>/*.png`` one with labels; ``root/train/...`` and ``root/test/...`` are
    two, with the classes of ``train``. Images have to be of one size, or a ``size`` is given to which the largest centred part with
    its shape is resampled. They are turned as their EXIF orientation says. Names that start with a dot are left out.

    Attributes:
        root: the folder; ``~`` and variables of the environment are expanded.
        size: ``(height, width)`` to resample to, None to take images as they are.
        channels: 1 for grey values, 3 for colours.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: an image of more than 8 bits a channel, with transparent pixels, or of several frames; one beside or below the
            folders where images are looked for; classes that ``train`` does not have.
        DamagedFile: a file that cannot be read.
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

    def stamp(self) -> Hashable:
        """Name, time and size of each file."""
        return _stamp(sorted(_images_below(_expanded(self.root))))

    def load(self, split: str = "train") -> Arrays:
        """Images ``(n, height, width, channels)`` with 256 levels, in the order of their names."""
        self.require_split(split)
        folders = self._folders()
        files = {name: sorted(map(Path, _images_below(folder))) for name, folder in folders.items()}
        if not (paths := files[split]):
            raise ValueError(
                f"ImageFolder.root = {str(_expanded(self.root))!r} has no images in {folders[split]}: expected files ending in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        # Both splits are looked at, so that a class has one number in both.
        found = {name: _classes(folder, files[name]) for name, folder in folders.items()}
        classes, tested = found["train"], found["test"] if files.get("test") else found["train"]
        if bool(tested) != bool(classes):
            labelled, other = ("test", "train") if tested else ("train", "test")
            raise ValueError(f"{folders[labelled]} has classes, {folders[other]} none: expected both or neither")
        if unknown := [kind for kind in tested if kind not in classes]:
            raise ValueError(f"{folders['test'] / unknown[0]}: expected a class of the folder train, {', '.join(classes)}")
        first = self._pixels(paths[0])
        require_memory(f"{len(paths)} images of {first.shape} in {folders[split]}", float(len(paths) * first.size))
        images = np.empty((len(paths), *first.shape), np.uint8)
        for i, path in enumerate(paths):
            pixels = self._pixels(path)
            if pixels.shape != first.shape:
                raise ValueError(f"{path} is {pixels.shape}, {paths[0].name} {first.shape}: expected one size, or ImageFolder.size")
            images[i] = pixels
        numbers = {kind: number for number, kind in enumerate(classes)}
        label = np.array([numbers[path.parent.name] for path in paths], np.int32) if classes else None
        return Arrays(x=images, label=label, name=self.name, split=split, num_classes=len(classes) or None, levels=256)

    def _folders(self) -> dict[str, Path]:
        """The folder of each split."""
        root = _expanded(self.root)
        if not root.is_dir():
            raise FileNotFoundError(f"ImageFolder.root = {str(root)!r}: no such folder")
        if (root / "train").is_dir():
            if here := [path for path in root.iterdir() if path.is_file() and _is_image(path.name)]:
                raise ValueError(f"{min(here)} lies beside the folder train: expected images inside it, or inside test")
            return {split: root / split for split in self.splits}
        if "test" in self.splits:
            raise ValueError(f"ImageFolder.root = {str(root)!r} has the folder test and no folder train: expected both")
        return {"train": root}

    def _pixels(self, path: Path) -> np.ndarray:
        from PIL import Image, ImageOps

        image = None
        try:
            with Image.open(path) as opened:
                if not (fault := _fault(opened)):
                    turned = ImageOps.exif_transpose(opened)
                    image = _cropped(turned.convert("L" if self.channels == 1 else "RGB"), self.size)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DamagedFile(f"{path}: not an image that can be read ({error})") from error
        if image is None:
            raise ValueError(f"{path} has {fault}")
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

    Every row is checked when it is read: finite numbers, levels and labels within their ranges.

    Attributes:
        train: the rows of the training split.
        test: those of the test split, or None.
        name: what reports call it.
        x_key: the name of the points in a row.
        label_key: the name of the labels, None for data without.
        num_classes: labels are 0 .. num_classes - 1; None for data without.
        levels: number of levels of uint8 data.
        more: the names of further arrays of a row, such as conditions: as in :class:`ArrayFile`.
        looked_at: how many rows are loaded where all are not needed: moments, pictures, evaluations. They are spread over the whole
            set evenly, since stored rows are often sorted.

    Raises:
        ValueError, TypeError: a row of another form, with the number of the row.
    """

    # Rows print as an object of a class, another one in each process: a run that is resumed is described without them.
    train: Rows = field(repr=False)
    test: Rows | None = field(default=None, repr=False)
    name: str = "rows"
    x_key: str = "x"
    label_key: str | None = None
    num_classes: int | None = None
    levels: int = 256
    more: tuple[str, ...] = ()
    looked_at: int = 10_000

    def __post_init__(self):
        object.__setattr__(self, "more", _names("Indexed.more", self.more))
        for name, rows in {"train": self.train, **({} if self.test is None else {"test": self.test})}.items():
            if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")) or isinstance(rows, Mapping):
                raise TypeError(f"Indexed.{name} = {rows!r}: expected rows by number, with a length")
            if not len(rows):
                raise ValueError(f"Indexed.{name} = {rows!r}: expected at least one row")
        require_int(self, 1, looked_at=self.looked_at)
        require_int(self, 2, levels=self.levels)
        if (self.label_key is None) != (self.num_classes is None):
            expected = "None without label_key" if self.label_key is None else f"the number of classes of {self.label_key!r}"
            raise ValueError(f"Indexed.num_classes = {self.num_classes!r}: expected {expected}")
        if self.num_classes is not None:
            require_int(self, 1, num_classes=self.num_classes)

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
        more = {key: columns[key] for key in self.more}
        return _checked(self.name, columns["x"], columns.get("label"), self.name, split, self.levels, self.num_classes, more)

    def batches(self, batch_size: int, seed: int, arrays: Arrays | None = None) -> Batches:
        """Batches of all rows, read when they are asked for."""
        return Batches(self._source("train"), batch_size=batch_size, seed=seed)

    def _source(self, split: str) -> _Named:
        rows = self.train if split == "train" or self.test is None else self.test
        names = {"x": self.x_key} | ({} if self.label_key is None else {"label": self.label_key})
        names |= {key: key for key in self.more}
        return _Named(rows, names, f"Indexed.{split}", self.levels, self.num_classes)


@dataclass(frozen=True, eq=False)
class _Named(RowSource):
    """Rows by number under the names that a loss knows.

    Attributes:
        rows: where they are read.
        names: ``{"x": name in a row, "label": ...}``.
        what: how messages call the rows.
        levels: number of levels of uint8 points.
        num_classes: that of the labels, if any.
    """

    rows: Rows
    names: Mapping[str, str]
    what: str
    levels: int
    num_classes: int | None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, stacked; ValueError or TypeError naming the first row that does not fit."""
        numbers = [int(i) for i in index]
        rows = [self.rows[i] for i in numbers]
        for i, row in zip(numbers, rows, strict=True):
            if not isinstance(row, Mapping):
                raise TypeError(f"{self.what}[{i}] is a {type(row).__name__}: expected a mapping of names to arrays")
            if missing := [name for name in self.names.values() if name not in row]:
                raise ValueError(f"{self.what}[{i}] has {sorted(row)}: expected {missing[0]!r}")
        taken = {}
        for key, name in self.names.items():
            at = [f"{self.what}[{i}][{name!r}]" for i in numbers]
            read = self._points if key == "x" else self._labels if key == "label" else self._more
            taken[key] = read(at, _stacked(at, [np.asarray(row[name]) for row in rows]))
        return taken

    def _points(self, at: Sequence[str], values: np.ndarray) -> np.ndarray:
        x = _as_points(at[0], values)
        if x.dtype == np.uint8:
            _require(x < self.levels, at, values, f"0 to levels - 1 = {self.levels - 1}")
        else:
            _require(np.isfinite(x), at, values, "finite float32 numbers")
        return x

    def _more(self, at: Sequence[str], values: np.ndarray) -> np.ndarray:
        more = _as_more(at[0], values)
        if more.dtype == np.uint8:
            _require(more < self.levels, at, more, f"0 to levels - 1 = {self.levels - 1}")
        elif more.dtype == np.float32 and (bad := not_known_or_finite(more)).size:
            raise ValueError(f"{at[bad[0]]} has numbers that are not finite: expected finite ones, or NaN as a whole")
        return more

    def _labels(self, at: Sequence[str], values: np.ndarray) -> np.ndarray:
        if values.dtype.kind in "iu" and self.num_classes is not None:
            fits = (values >= 0) & (values < self.num_classes)
            _require(fits, at, values, f"0 to num_classes - 1 = {self.num_classes - 1}")
        return _as_labels(at[0], values)


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
    with np.errstate(over="ignore"):  # Numbers that float32 does not hold are refused as infinite ones.
        return x.astype(np.float32)


def _as_more(what: str, values: np.ndarray) -> np.ndarray:
    """Images, classes or numbers, as :class:`Arrays` takes them."""
    if values.dtype == np.uint8 and values.ndim > 2:
        return values[..., None] if values.ndim == 3 else values
    if np.issubdtype(values.dtype, np.integer):
        return _as_labels(what, values)
    numbers = _as_points(what, values)
    return numbers[:, None] if numbers.ndim == 1 else numbers


def _names(where: str, names: Any) -> tuple[str, ...]:
    found = tuple(names) if isinstance(names, tuple | list) else (names,)
    if not all(isinstance(name, str) and name not in ("x", "label", "cond") for name in found) or len(set(found)) != len(found):
        raise ValueError(f"{where} = {names!r}: expected different names of arrays, none of them x, label or cond")
    return found


def _as_labels(what: str, label: np.ndarray) -> np.ndarray:
    if not np.issubdtype(label.dtype, np.integer) or label.ndim != 1:
        raise ValueError(f"{what} is {label.dtype} of shape {label.shape}: expected integers (n,)")
    if label.size and not 0 <= label.min() <= label.max() <= np.iinfo(np.int32).max:
        raise ValueError(f"{what} has values from {label.min()} to {label.max()}: expected classes 0, 1, ..")
    return label.astype(np.int32)


def _stacked(at: Sequence[str], values: Sequence[np.ndarray]) -> np.ndarray:
    first = values[0]
    for where, value in zip(at, values, strict=True):
        if (value.shape, value.dtype.kind) != (first.shape, first.dtype.kind):
            raise ValueError(
                f"{where} is {value.dtype} {value.shape}, {at[0]} {first.dtype} {first.shape}: expected one kind and one shape"
            )
    return np.stack(values)


def _require(fits: np.ndarray, at: Sequence[str], values: np.ndarray, expected: str) -> None:
    if not fits.all():
        first = np.argwhere(~fits)[0]
        raise ValueError(f"{at[first[0]]} has the value {values[tuple(first[: values.ndim])]}: expected {expected}")


def _checked(
    where: Any,
    x: np.ndarray,
    label: np.ndarray | None,
    name: str,
    split: str,
    levels: int,
    classes: int | None,
    more: Mapping[str, np.ndarray],
) -> Arrays:
    try:
        return Arrays(
            x=x, label=label, name=name, split=split, num_classes=classes, levels=levels if x.dtype == np.uint8 else None, more=more
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _stamp(paths: Iterable[str]) -> Hashable:
    """Name, time and size of the files that are there."""
    found = [(path, os.stat(path)) for path in paths if os.path.isfile(path)]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)


def _images_below(folder: Path) -> Iterator[str]:
    """The image files inside, at any depth."""
    for where, inside, names in os.walk(folder, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        yield from (os.path.join(where, name) for name in names if _is_image(name))


def _classes(folder: Path, paths: Sequence[Path]) -> list[str]:
    """The folders right inside that have images; ValueError for images elsewhere."""
    inside = [path.relative_to(folder).parts[:-1] for path in paths]
    if nested := [path for path, parts in zip(paths, inside, strict=True) if len(parts) > 1]:
        raise ValueError(f"{nested[0]} lies too deep: expected images in {folder}, or in folders right inside, the classes")
    classes = sorted({parts[0] for parts in inside if parts})
    if classes and () in inside:
        raise ValueError(f"{folder} has images beside the folders {', '.join(classes)}: expected either, so that labels are known")
    return classes


def _fault(opened: Any) -> str | None:
    """What an image file that was opened has and should not, None where it has nothing of the kind."""
    mode = opened.mode
    # Pillow drops the lower byte of 16-bit colours and calls them RGB; only the arguments of the decoder tell.
    for codec, _, _, arguments in opened.tile:
        raw, *others = arguments if isinstance(arguments, tuple) else (arguments,)
        if mode in _MODES and (";16" in str(raw) or (codec.startswith("ppm") and others[-1] > 255)):
            mode = f"{raw};16" if codec.startswith("ppm") else raw
    if mode not in _MODES:
        return f"the mode {mode}: expected 8 bits a channel ({', '.join(_MODES)})"
    if (frames := getattr(opened, "n_frames", 1)) > 1:
        return f"{frames} frames: expected one"
    has_alpha = "A" in opened.mode or "transparency" in opened.info
    if has_alpha and opened.convert("RGBA").getchannel("A").getextrema()[0] < 255:
        return "transparent pixels: expected none"
    return None


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
