"""Files that are written complete or not at all, and archives that are read within bounds."""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

# `.NAME.DIGITS.tmp`, the name of a file or folder while it is written. A number of a process alone is not enough where several
# hosts write to one folder.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.\d+\.tmp")
_HERE = int.from_bytes(os.urandom(4), "little")
# Room for the header of an array.
_HEADER = 1 << 14


class DamagedFile(ValueError):
    """A file does not hold what was written to it; the message names the file."""


def temporary(path: Path) -> Path:
    """The name beside ``path`` under which this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}{_HERE:010d}.tmp")


def temporary_of(path: Path) -> str | None:
    """The name of the file that ``path`` is the temporary of, None where it is none."""
    match = _TEMPORARY.fullmatch(path.name)
    return match["name"] if match else None


@contextmanager
def naming(path: Path):
    """Give an OSError inside the block the name of the file that was wanted: a write to a full disk carries none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` survive a loss of power, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a file under inside the block, which becomes ``path`` at its end: a reader, or a run killed at any moment,

    sees the old content or the new one.
    """
    partial = temporary(path)
    with naming(path):
        try:
            yield partial
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file so that a reader, or a run killed at any moment, sees the old content or the new one."""
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write(data)
    return path


def write_text(path: Path, text: str) -> Path:
    """``write_bytes`` of UTF-8 text."""
    return write_bytes(path, text.encode())


def write_json(path: Path, value: Any, *, limit: int | None = None) -> Path:
    """``write_bytes`` of indented JSON; ValueError before anything is written where that has more than ``limit`` bytes."""
    found = bytearray()
    # Piece by piece: every element of a deep list is indented, so a small value can make a text that no memory holds.
    for piece in json.JSONEncoder(indent=2, ensure_ascii=False, allow_nan=False).iterencode(value):
        found += piece.encode()
        if limit is not None and len(found) >= limit:
            raise ValueError(f"more than {limit:,} bytes of JSON")
    return write_bytes(path, bytes(found + b"\n"))


def write_npz(path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = True) -> Path:
    """An npz, written as ``write_bytes`` writes; equal arrays make equal files."""
    with replacing(path) as partial, open(partial, "wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)  # pyright: ignore[reportArgumentType]: none is allow_pickle
    return path


def read_npz(source: Path | bytes, *, limit: int, name: str = "", only: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays of an npz file, every checksum compared, nothing unpickled and nothing unpacked beyond a bound.

    Args:
        source: the file, or its content.
        limit: the most bytes that the arrays read may have together. A megabyte of zip can hold a gigabyte of zeros, and the
            header of an array can claim any shape.
        name: what messages call it; the path where there is one.
        only: names of the arrays to read; None for all.

    Raises:
        DamagedFile: no npz, a checksum that differs, an array of objects, or more than ``limit`` bytes.
        OSError: the file cannot be read.
    """
    name = name or str(source)
    if isinstance(source, Path):
        # What is not there or may not be read is no damage.
        with open(source, "rb"):
            pass
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise ValueError("two arrays of one name")
            chosen = list(members) if only is None else list(only)
            if missing := [key for key in chosen if key not in members]:
                raise ValueError(f"it has no {', '.join(missing)}")
            found = {}
            total = sum(members[key].file_size for key in chosen)
            if total > limit + _HEADER * len(chosen):
                raise ValueError(f"{total:,} bytes when unpacked, expected at most {limit:,}")
            for key in chosen:
                with archive.open(members[key]) as member:
                    # Read to the end, where the checksum is compared, and no further than the archive's own statement.
                    found[key] = _array(member.read(members[key].file_size))
            return found
    except Exception as error:
        raise DamagedFile(f"{name}: damaged, or not an npz file of plain arrays: {str(error) or type(error).__name__}") from error


def map_npz(path: Path, key: str) -> np.ndarray:
    """An array of an npz that was not compressed, as read-only memory of the file: no checksum is compared.

    Raises:
        DamagedFile: no npz with this array, or one that is compressed.
        OSError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            info = archive.getinfo(f"{key}.npy")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{key} is compressed")
            # The two lengths at the end of the member's own header: of its name, and of what the directory does not repeat.
            file.seek(info.header_offset + 26)
            lengths = struct.unpack("<HH", file.read(4))
            file.seek(sum(lengths), os.SEEK_CUR)
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
            return np.memmap(path, dtype, mode="r", offset=file.tell(), shape=shape, order="F" if fortran else "C")
    except OSError:
        raise
    except Exception as error:
        raise DamagedFile(f"{path}: damaged, or not a plain npz file with {key}: {str(error) or type(error).__name__}") from error


def _array(data: bytes) -> np.ndarray:
    """An array in the npy format, whose header is believed only where it agrees with the length of the data."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    body = len(data) - stream.tell()
    if math.prod(shape) * dtype.itemsize != body:
        raise ValueError(f"an array said to be {dtype} {shape} has {body} bytes")
    flat = np.frombuffer(data, dtype, offset=stream.tell()).copy() if body else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C")
