"""Files of torch read without torch, and without running what is in them.

Three formats: the zip archive of ``torch.save``, the stream that it wrote before version 1.6, and a pickle of whole modules with
``torch_utils.persistence``, as NVIDIA publishes EDM and EDM2. Their pickles are read as data (:mod:`scorelab.pretrained.pickles`).
"""

from __future__ import annotations

import io
import mmap
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scorelab.errors import WeightsError
from scorelab.errors import shown as shown_path
from scorelab.pretrained.pickles import Budget, about, load, shown
from scorelab.pretrained.torchvalues import DEPTH, PERSISTENT, Module, Storage, Symbols, Tensor, arguments
from scorelab.validation import require_int

# The most that is read by default: bytes of a file, opcodes and elements of its pickles.
MOST_BYTES, MOST_STEPS = 1 << 33, 1_000_000
# Tensors may share a storage, so a file may hold more than its size, up to a point.
_SHARED, _SMALL = 4, 1 << 26
# Characters of the names of tensors: a shared container or module gives what lies in it one more name each time.
_NAMES = 1 << 22
# Bytes of the directory of an archive.
_DIRECTORY = 1 << 26
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# As an opcode of the first pickle.
_MAGIC_BYTES = b"\x8a\x0a" + _MAGIC.to_bytes(10, "little")


def _legacy(data: memoryview, symbols: Symbols, table: dict) -> Any:
    """The content of a stream of ``torch.save`` as before 1.6: magic, version, system, content, keys, storages."""
    found: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        if type(identity) is not tuple or not 5 <= len(identity) <= 6 or (len(identity) == 6 and identity[5] is not None):
            raise WeightsError("a persistent id: expected a storage that is no view of another one, as since torch 0.4")
        key = identity[2]
        dtype, numel = symbols.storage(identity[:5], key)
        return _same(found.setdefault(key, Storage(dtype, numel)), dtype, numel, key)

    at, parts = 0, []
    for what, names, identify in (
        ("magic", {}, None), ("version", {}, None), ("system", {}, None), ("content", table, persistent), ("keys", {}, None),
    ):  # fmt: skip
        with about(what):
            value, at = load(data, at, names, symbols.budget, identify)
        parts.append(value)
        if what == "magic" and value != _MAGIC:
            raise WeightsError(f"magic number {shown(value)}: expected {_MAGIC:#x}")
        if what == "version" and value != _PROTOCOL:
            raise WeightsError(f"version {shown(value)} of the format: expected {_PROTOCOL}")
        if what == "system" and (not isinstance(value, dict) or value.get("little_endian") is not True):
            raise WeightsError("written on a system of another byte order: expected little_endian True")
    _, _, _, content, keys = parts
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(found):
        raise WeightsError("the list of storages differs from those that tensors use: expected each of them once")
    for key in keys:
        with about(f"storage {shown(key)} at byte {at:,}"):
            if len(data) - at < 8 or int.from_bytes(data[at : at + 8], "little") != found[key].numel:
                raise WeightsError(f"another number of elements: expected {found[key].numel:,}")
            size = found[key].numel * found[key].dtype.itemsize
            found[key].fill(data[at + 8 : at + 8 + size])
            at += 8 + size
    if at != len(data):
        raise WeightsError(f"{len(data) - at:,} bytes after the last storage: expected none")
    return content


def _same(storage: Storage, dtype: np.dtype, numel: int, key: str) -> Storage:
    if storage.dtype != dtype or storage.numel != numel:
        both = f"{storage.numel:,} of {storage.dtype} and {numel:,} of {dtype}"
        raise WeightsError(f"storage {shown(key)} is {both}: expected one of them")
    return storage


class _Directory(io.RawIOBase):
    """Bytes for ``zipfile``, which reads the whole directory of an archive at once, whatever size that claims."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        start = {0: 0, 1: self.at, 2: len(self.data)}[whence]
        if start + offset < 0:
            raise OSError("before the beginning")
        self.at = start + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        stop = len(self.data) if size is None or size < 0 else min(self.at + size, len(self.data))
        if stop - self.at > _DIRECTORY:
            raise WeightsError(f"a directory of {stop - self.at:,} bytes: expected at most {_DIRECTORY:,}")
        found = bytes(self.data[self.at : stop])
        self.at = max(self.at, stop)
        return found


def _members(data: memoryview) -> dict[str, tuple[zipfile.ZipInfo, memoryview]]:
    """The members of an archive, none of them unpacked: each is stored as it is, apart from the others."""
    try:
        with zipfile.ZipFile(_Directory(data)) as archive:
            infos, directory = archive.infolist(), archive.start_dir
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(f"damaged, or not a zip archive: {str(error) or type(error).__name__}") from error
    members, end = {}, 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        name = info.filename
        with about(f"member {shown(name)}"):
            if name in members:
                raise WeightsError("twice: expected one of each name")
            if name != info.orig_filename or not re.fullmatch(r"[^/\\\0:]+(/[^/\\\0:]+)+", name) or ".." in name.split("/"):
                raise WeightsError("expected a name of the form FOLDER/NAME")
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise WeightsError("compressed or encrypted: expected it as torch.save stores it")
            header = data[info.header_offset : info.header_offset + 30] if info.header_offset >= end else b""
            if len(header) != 30 or bytes(header[:4]) != b"PK\3\4":
                raise WeightsError(f"no header at byte {info.header_offset:,}, or inside another member")
            start = info.header_offset + 30
            length = int.from_bytes(header[26:28], "little")
            # As it is written there, not as the directory has it.
            if bytes(data[start : start + length]) != name.encode("utf-8"):
                raise WeightsError("another name in its header than in the directory")
            start += length + int.from_bytes(header[28:30], "little")
            end = start + info.file_size
            if end > directory:
                raise WeightsError(f"it ends at byte {end:,}, and the directory begins at {directory:,}")
            members[name] = info, data[start:end]
    return members


def _zip(data: memoryview, symbols: Symbols) -> Any:
    """The content of an archive of ``torch.save``."""
    members = _members(data)
    roots = [name.removesuffix("/data.pkl") for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(roots) != 1:
        raise WeightsError(f"{len(roots)} members FOLDER/data.pkl: expected one, as torch.save writes it")
    (root,) = roots
    if any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in members):
        raise WeightsError(
            "a TorchScript archive, which has code inside: expected the .pth or .safetensors file of the same weights"
        )

    def record(name: str) -> memoryview:
        if (found := members.get(f"{root}/{name}")) is None:
            raise WeightsError(f"there is no member {root}/{name}")
        info, content = found
        if zlib.crc32(content) != info.CRC:
            raise WeightsError(f"damaged: the checksum of {root}/{name} differs")
        return content

    if f"{root}/byteorder" in members and (order := bytes(record("byteorder")[:16])) != b"little":
        raise WeightsError(f"byte order {order!r}: expected little")
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        if type(identity) is not tuple or len(identity) != 5:
            raise WeightsError("a persistent id: expected ('storage', type, key, location, number of elements)")
        key = identity[2]
        dtype, numel = symbols.storage(identity, key)
        if key not in storages:
            storages[key] = Storage(dtype, numel).fill(record(f"data/{key}"))
        return _same(storages[key], dtype, numel, key)

    content = record("data.pkl")
    with about("data.pkl"):
        return _one(content, symbols, symbols.torch, persistent)


def _one(data: memoryview, symbols: Symbols, table: dict, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The value of a pickle with nothing after it."""
    value, at = load(data, 0, table, symbols.budget, persistent)
    if at != len(data):
        raise WeightsError(f"{len(data) - at:,} bytes after the end of the pickle: expected none")
    return value


@dataclass(frozen=True)
class TorchFile:
    """What a file of torch holds.

    Attributes:
        name: of the file, for messages.
        form: ``zip``, ``legacy`` or ``persistence``.
        size: of the file, in bytes.
        entries: the entries of its outermost dict that hold tensors, and how many; ``""`` for the whole where tensors lie in it
            directly.
    """

    name: str
    form: str
    size: int
    entries: dict[str, int]
    _content: Any = field(repr=False)

    def tensors(self, entry: str | None = None) -> dict[str, np.ndarray]:
        """The tensors of an entry by their names in its ``state_dict``, as read-only arrays.

        Lists and dicts inside of dicts give ``outer.inner``. What is no tensor is left out.

        Args:
            entry: of the outermost dict, ``""`` for the whole. None for the whole where tensors lie in it directly, for the
                averaged network ``ema`` of a file of persistence, or for the only one.

        Raises:
            WeightsError: no such entry, several to choose from, two tensors of one name, or more than the file can mean to hold.
        """
        with about(self.name):
            tensors: dict[str, Tensor] = {}
            for name, tensor in _walk(self._entry(entry), "", Budget(MOST_STEPS, _NAMES)):
                if name in tensors:
                    raise WeightsError(f"two tensors {shown(name)}")
                tensors[name] = tensor
            most = max(_SMALL, _SHARED * self.size)
            if sum(tensor.nbytes for tensor in tensors.values()) > most:
                raise WeightsError(f"more than {most:,} bytes of tensors in a file of {self.size:,}")
            found: dict[str, np.ndarray] = {}
            for name, tensor in tensors.items():
                with about(f"tensor {shown(name)}"):
                    found[name] = tensor.array()
            return found

    def modules(self, entry: str | None = None) -> dict[str, dict[str, Any]]:
        """Class, arguments and plain attributes of the module of an entry, under ``""``, and of its members by name.

        Members are modules of their own class; for a ``state_dict`` the result is empty. Numbers that are not finite are text, such
        as ``"inf"``. Errors as :meth:`tensors`.
        """
        with about(self.name):
            root = self._entry(entry)
            if not isinstance(root, Module):
                return {}
            members = root.members(Budget(MOST_STEPS))
            parts = {str(name): part for name, part in members if isinstance(part, Module) and part.kind in PERSISTENT}
            left = arguments()
            return {name: part.facts(left) for name, part in {"": root, **parts}.items()}

    def beside(self, entry: str) -> dict[str, Any] | None:
        """Class, arguments and plain attributes of an entry of the outermost dict; None where it is no module.

        It may be one without tensors, as the ``encoder`` of EDM2 is. Errors as :meth:`tensors`.
        """
        with about(self.name):
            found = self._content.get(entry) if isinstance(self._content, dict) else None
            return found.facts(arguments()) if isinstance(found, Module) and found.kind in PERSISTENT else None

    def _entry(self, entry: str | None) -> Any:
        known = ", ".join(map(shown, self.entries))
        if entry is None:
            usual = [name for name in ("", "ema" if self.form == "persistence" else "") if name in self.entries]
            if not usual and len(self.entries) != 1:
                raise WeightsError(f"{len(self.entries)} entries with tensors ({known or 'none'}): expected a choice of one")
            entry = usual[0] if usual else next(iter(self.entries))
        if entry not in self.entries:
            raise WeightsError(f"no entry {shown(entry)} with tensors: expected {known}")
        return self._content if entry == "" else self._content[entry]


def _children(value: Any, budget: Budget) -> Iterator[tuple[Any, Any]]:
    """What lies in a module or container, by name."""
    if isinstance(value, Module):
        yield from value.members(budget)
    elif isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _walk(value: Any, name: str, budget: Budget, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree by name."""
    if depth > DEPTH:
        raise WeightsError(f"containers or modules {DEPTH} deep: expected fewer")
    if isinstance(value, Tensor):
        yield name, value
    for key, inner in _children(value, budget):
        budget.spend()
        if isinstance(inner, Tensor | Module | dict | list | tuple):
            inside = f"{name}.{key}" if name else str(key)
            budget.copy(len(inside))
            yield from _walk(inner, inside, budget, depth + 1)


def _entries(content: Any, budget: Budget) -> dict[str, int]:
    """How many tensors lie in each entry of the outermost dict, or in the whole where it is one set of them."""
    count = lambda value: sum(1 for _ in _walk(value, "", budget))
    inner = content if isinstance(content, dict) else {}
    holds = lambda key, value: type(key) is str and isinstance(value, Module | dict | list | tuple)
    entries = {key: count(value) for key, value in inner.items() if holds(key, value)}
    if not isinstance(content, dict) or any(isinstance(value, Tensor) for value in inner.values()):
        entries[""] = count(content)
    return {key: found for key, found in entries.items() if found}


def read(source: Path | str | bytes, *, name: str = "", limit: int = MOST_BYTES, steps: int = MOST_STEPS) -> TorchFile:
    """Read a file of torch as data.

    Tensors are views of the mapped file. Memory is bounded by a small multiple of its size, and time by ``steps``.

    Args:
        source: the file, or its content.
        name: what messages call it; the path where there is one.
        limit: the most bytes that it may have.
        steps: the most opcodes and elements that its pickles may have.

    Raises:
        WeightsError: it is no such file, is damaged, or uses anything but tensors, plain modules, containers and numbers. The
            message names the file, the opcode with its place, and what is accepted.
        TypeError: ``source`` is no path and no bytes.
        ValueError: a bound that is no positive integer.
        OSError: the file cannot be read.
    """
    if not isinstance(source, str | Path | bytes):
        raise TypeError(f"torchfile.read.source = {source!r}: expected a path or bytes")
    require_int("torchfile.read", 1, limit=limit, steps=steps)
    name = name or ("the bytes" if isinstance(source, bytes) else shown_path(Path(source)))
    with about(name):
        data = _mapped(source, limit)
        symbols = Symbols(Budget(steps, len(data)), lambda content, symbols: _legacy(content, symbols, symbols.storages))
        if data[:4] == b"PK\3\4":
            form, content = "zip", _zip(data, symbols)
        elif data[:1] == b"\x80" and _MAGIC_BYTES in bytes(data[:32]):
            form, content = "legacy", _legacy(data, symbols, symbols.torch)
        elif data[:1] == b"\x80":
            form, content = "persistence", _one(data, symbols, symbols.modules)
        else:
            kind = f"it begins with {bytes(data[:8])!r}"
            raise WeightsError(f"{kind}: expected a zip archive or a stream of torch.save, or a pickle of protocol 2 to 5")
        return TorchFile(name, form, len(data), _entries(content, Budget(steps, _NAMES)), content)


def _mapped(source: Path | str | bytes, limit: int) -> memoryview:
    """The bytes of a file, of which the system reads those that are used."""
    if isinstance(source, bytes):
        data = memoryview(source)
    else:
        with open(source, "rb") as file:
            if not file.seek(0, io.SEEK_END):
                raise WeightsError("an empty file")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if len(data) > limit:
        raise WeightsError(f"{len(data):,} bytes: expected at most {limit:,}")
    return data
