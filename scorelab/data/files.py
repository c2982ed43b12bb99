"""Finding, checking and fetching published data files: nothing is handed on before its hash is checked."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

DATA_DIR_VARIABLE = "SCORELAB_DATA_DIR"
CACHE_DIR_VARIABLE = "SCORELAB_CACHE_DIR"


class DataNotFound(FileNotFoundError):
    """A published file is in none of the places looked in and could not be downloaded."""


class DataCorrupt(ValueError):
    """A data file was found, but its content is not the published one; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """One published file: its name, its hash, and where it is served.

    ``sha256`` is the hash of the file as published (of the gzip stream for ``.gz``); ``raw_sha256`` and
    ``raw_size`` belong to the uncompressed content, so that a copy which was unpacked or compressed again is
    recognised too. Where either is None, since the content was never at hand to hash, only the file exactly as
    published is accepted.
    """

    name: str
    sha256: str
    urls: tuple[str, ...] = ()
    raw_sha256: str | None = None
    raw_size: int | None = None

    def __post_init__(self):
        hashes = {"sha256": self.sha256} | ({} if self.raw_sha256 is None else {"raw_sha256": self.raw_sha256})
        for field, value in hashes.items():
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise ValueError(f"PublishedFile.{field} = {value!r} of {self.name}: expected 64 lower-case hexadecimal digits")

    @property
    def unpacked_name(self) -> str:
        """The name without ``.gz``."""
        return self.name.removesuffix(".gz")


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def gunzip(data: bytes, path: Path, limit: int | None = None) -> bytes:
    """Uncompress a gzip stream, at most ``limit + 1`` bytes; DataCorrupt if it is cut short or damaged."""
    try:
        # One byte past the limit is enough to see that the content is too long, without unpacking an
        # unbounded stream.
        return gzip.GzipFile(fileobj=io.BytesIO(data)).read(-1 if limit is None else limit + 1)
    except EOFError as error:
        raise DataCorrupt(f"{path}: truncated gzip stream ({len(data)} bytes); copy or download the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataCorrupt(f"{path}: not a valid gzip stream ({error}); copy or download the file again") from error


def _digest(stream: BinaryIO, limit: int | None) -> str:
    """SHA-256 of a stream; of its beginning where it is longer than ``limit``, which is the hash of nothing published."""
    digest = hashlib.sha256()
    while (limit is None or stream.tell() <= limit) and (block := stream.read(1 << 20)):
        digest.update(block)
    return digest.hexdigest()


def read_verified(path: Path, file: PublishedFile, inspect: Callable[[bytes, Path], None]) -> bytes:
    """Content of ``path``, uncompressed where ``file`` is a gzip, after its hash was compared.

    The hash comes before anything is unpacked. A file that is not bit for bit as published is read only where the
    uncompressed content has a known hash and size, and no further than that size: a megabyte of gzip can hold a gigabyte.
    ``inspect(raw, path)`` then runs before the hash comparison, since a wrong magic number or size is a more useful message than
    "the hash differs". Hashing is repeated at every load: it takes 0.1 s for the largest file and leaves no stale verdict to
    trust. Raises DataCorrupt.
    """
    packed = path.suffix == ".gz" and file.name.endswith(".gz")
    limit = None
    if file.raw_size is not None:
        # No packing makes a file longer by more than a hundredth and its headers.
        limit = file.raw_size + file.raw_size // 100 + 65536 if packed else file.raw_size + 1
        if packed and path.stat().st_size > limit:
            raise DataCorrupt(f"{path}: more than {limit} bytes, expected a gzip of {file.raw_size}; copy or download it again")
    with open(path, "rb") as stream:
        # At most one block beyond what can be right.
        digest = _digest(stream, limit)
    if digest == file.sha256:
        data = path.read_bytes()
        return gunzip(data, path, file.raw_size) if packed else data
    if file.raw_sha256 is None or file.raw_size is None:
        raise DataCorrupt(
            f"{path}: sha256 {digest} is not the published {file.sha256}, and only "
            f"{file.name} exactly as published can be checked (its uncompressed hash is not known)"
        )
    with open(path, "rb") as stream:
        data = stream.read(limit)
    raw = gunzip(data, path, file.raw_size) if packed else data
    inspect(raw, path)
    if sha256(raw) != file.raw_sha256:
        raise DataCorrupt(
            f"{path}: wrong content: the uncompressed sha256 is {sha256(raw)}, expected {file.raw_sha256} "
            f"(or a file with sha256 {file.sha256}); copy or download the file again"
        )
    return raw


def cache_dir() -> Path | None:
    """Download folder: SCORELAB_CACHE_DIR, else pooch's per-user cache, else None (without pooch)."""
    if chosen := os.environ.get(CACHE_DIR_VARIABLE):
        return Path(chosen).expanduser()
    try:
        import pooch
    except ImportError:
        return None
    return Path(pooch.os_cache("scorelab"))


def download(file: PublishedFile, folder: Path) -> tuple[Path | None, list[str]]:
    """Fetch ``file`` into ``folder``, its mirrors in turn: (path, []) or (None, a reason for each failure).

    pooch writes to a temporary name beside the target, compares the hash and renames, so an interrupted
    download or a mirror that serves something else leaves nothing behind under the published name.
    """
    if not file.urls:
        return None, [f"{file.name} is published under no address"]
    try:
        import pooch
    except ImportError:
        return None, ["downloading needs pooch: pip install 'scorelab[data]'"]
    reasons = []
    for url in file.urls:
        try:
            fetch: Any = pooch.HTTPDownloader(timeout=20)  # its arguments have other names than in pooch's own protocol
            path = pooch.retrieve(url, f"sha256:{file.sha256}", fname=file.name, path=folder, downloader=fetch)
            return Path(path), []
        # requests' errors are OSErrors; pooch reports a wrong hash as a ValueError.
        except (OSError, ValueError) as error:
            reasons.append(f"{url}: {type(error).__name__}: {str(error).splitlines()[0]}")
    return None, reasons


@dataclass(frozen=True, kw_only=True)
class FileFinder:
    """Where the files of one data set may lie: `<data_dir>/<folder>/` of each folder name, then the cache.

    ``data_dir=None`` means SCORELAB_DATA_DIR if that is set. A file that is missing there is looked for in
    the cache, then downloaded unless ``may_download=False``, then DataNotFound says everything that was
    tried. Nothing is ever replaced by another data set.
    """

    dataset: str
    folders: tuple[str, ...]
    data_dir: str | os.PathLike[str] | None = None
    may_download: bool = True

    def read(self, file: PublishedFile, inspect: Callable[[bytes, Path], None]) -> bytes:
        """Verified, uncompressed content of ``file``; raises DataNotFound or DataCorrupt."""
        root = self.data_dir if self.data_dir is not None else os.environ.get(DATA_DIR_VARIABLE) or None
        looked_in = [] if root is None else [Path(root).expanduser() / folder for folder in self.folders]
        cache = cache_dir()
        cached = None if cache is None else cache / self.folders[0]
        if cached is not None:
            looked_in.append(cached)
        for folder in looked_in:
            for name in dict.fromkeys((file.name, file.unpacked_name)):
                if (folder / name).is_file():
                    return read_verified(folder / name, file, inspect)
        if not self.may_download:
            reasons = ["downloading was switched off (download=False)"]
        elif cached is None:
            reasons = ["downloading needs pooch: pip install 'scorelab[data]'"]
        else:
            path, reasons = download(file, cached)
            if path is not None:
                return read_verified(path, file, inspect)
        raise DataNotFound(self._message(file, root, looked_in, reasons))

    def _message(self, file: PublishedFile, root, looked_in: list[Path], reasons: list[str]) -> str:
        lines = [f"{self.dataset}: file {file.name} is missing.", "looked in:"]
        lines += [f"  {folder}" + ("" if folder.is_dir() else "  (no such folder)") for folder in looked_in] or ["  nowhere"]
        lines += ["download:", *(f"  {reason}" for reason in reasons)]
        state = "is not set" if root is None else f"or data_dir is {root}"
        lines += [
            f"set {DATA_DIR_VARIABLE} ({state}) to a folder that holds {self.folders[0]}/{file.name},",
            f"  sha256 {file.sha256}",
        ]
        lines += [f"  from {url}" for url in file.urls]
        lines += ["offline alternative: load('digits') needs no file (scikit-learn, 8x8 images)."]
        return "\n".join(lines)
