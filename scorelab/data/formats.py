"""Readers of the three file formats in use: idx, CIFAR-10 binary, npz. None of them can execute code."""

from __future__ import annotations

import io
import math
import struct
import tarfile
from pathlib import Path

import numpy as np

from scorelab.data.files import DataCorrupt
from scorelab.files import DamagedFile, read_npz

_CIFAR_RECORD = 1 + 32 * 32 * 3


def read_idx(raw: bytes, shape: tuple[int, ...], path: Path | str) -> np.ndarray:
    """Unsigned-byte idx array of the given shape.

    Layout: two zero bytes, 0x08 (unsigned byte), the number of dimensions, each dimension as a big-endian
    uint32, then the values in C order. Raises DataCorrupt naming ``path`` for a wrong magic number, shape or
    length.
    Source: LeCun, Cortes, Burges, "The MNIST database", file formats section.
    """
    expected = 0x0800 + len(shape)
    header = 4 + 4 * len(shape)
    if len(raw) < header:
        raise DataCorrupt(f"{path}: {len(raw)} bytes are too few for an idx header of {header} bytes")
    magic, *found = struct.unpack(f">{1 + len(shape)}I", raw[:header])
    if magic != expected:
        raise DataCorrupt(f"{path}: wrong idx magic 0x{magic:08x}, expected 0x{expected:08x}")
    if tuple(found) != shape:
        raise DataCorrupt(f"{path}: idx shape {tuple(found)}, expected {shape}")
    size = header + int(np.prod(shape))
    if len(raw) != size:
        raise DataCorrupt(f"{path}: wrong size: {len(raw)} bytes (uncompressed), expected {size}")
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_cifar10_binary(tar: bytes, members: tuple[str, ...], records: int, path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Images (members x records, 32, 32, 3) uint8 and labels int32 of the unpacked CIFAR-10 binary archive.

    A record is one label byte, then 1024 red, 1024 green and 1024 blue values in row order. Members are
    read in memory, never unpacked to disk. Raises DataCorrupt for a missing member, a wrong length or a
    label above 9.
    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, and the data set's
    page.
    """
    blocks = []
    try:
        with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as archive:
            for member in members:
                handle = archive.extractfile(member)
                # One byte past the size is enough to see that it is wrong: a sparse member can state any.
                blocks.append(b"" if handle is None else handle.read(records * _CIFAR_RECORD + 1))
    except (KeyError, tarfile.TarError) as error:
        raise DataCorrupt(f"{path}: not the CIFAR-10 binary archive: {error}") from error
    for member, block in zip(members, blocks, strict=True):
        if len(block) != records * _CIFAR_RECORD:
            size = f"{len(block)} bytes" if len(block) < records * _CIFAR_RECORD else "more bytes"
            raise DataCorrupt(f"{path}: {member} has {size}, expected {records * _CIFAR_RECORD}")
    table = np.frombuffer(b"".join(blocks), np.uint8).reshape(-1, _CIFAR_RECORD)
    if table[:, 0].max() > 9:
        raise DataCorrupt(f"{path}: label {table[:, 0].max()}, expected 0 to 9")
    images = np.ascontiguousarray(table[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, table[:, 0].astype(np.int32)


def read_npz_images(raw: bytes, key: str, shape: tuple[int, ...], path: Path | str) -> np.ndarray:
    """The uint8 array stored under ``key``, without pickle; DataCorrupt names ``path`` if it is not there."""
    try:
        images = read_npz(raw, limit=math.prod(shape), name=str(path), only=(key,))[key]
    except DamagedFile as error:
        raise DataCorrupt(str(error)) from error
    if images.dtype != np.uint8 or images.shape != shape:
        raise DataCorrupt(f"{path}: {key!r} is {images.dtype} {images.shape}, expected uint8 {shape}")
    return images
