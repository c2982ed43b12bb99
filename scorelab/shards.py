"""Samples on disk: drawn a chunk at a time, each chunk a file, so that what was stopped goes on, and read back without loading all.

A folder holds ``shards.json``, which says what the samples are of, and a shard ``000000.npz`` for each chunk. A shard is written
complete or not at all, with a checksum, and names the description it belongs to and its number.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax.sharding import Mesh

from scorelab import walk
from scorelab.arrays import Array, Key, Pytree, is_traced
from scorelab.callbacks import own_errors
from scorelab.data.transforms import Transform
from scorelab.devices import Spread, require_mesh
from scorelab.errors import shown
from scorelab.files import DamagedFile, map_npz, naming, read_npz, temporary_of, write_json, write_npz
from scorelab.fingerprints import fingerprint
from scorelab.grids import Grid
from scorelab.lock import Lock
from scorelab.models.base import Model
from scorelab.processes.base import Start
from scorelab.pytrees import content
from scorelab.sampling import laid_out, program, visits, walked
from scorelab.solvers.base import Population, Solver
from scorelab.validation import require_int, require_spec

MANIFEST = "shards.json"
_FORMAT = 1
# Parts of the description that follow from the others and from code, in which two may differ alone.
_DERIVED = ("table", "calls", "program")
_PRECISION = ("jax_enable_x64", "jax_default_matmul_precision")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"(\d{6,})\.npz")
_TIMINGS = re.compile(r"timings(-\d+)?\.jsonl")
_LOCK = re.compile(r"lock(-\d+-of-\d+)?")
# What a shard says of itself: the description it belongs to, and its number.
_CLAIM = re.compile(r"([0-9a-f]{64}) (\d+)")
# Where compiled programs call Python functions whose results they go on with.
_CALLBACKS = ("pure_callback", "io_callback")
# What the names of parts of a point, and of what a solver says of samples, begin with in a shard.
_PART, _OUTPUT = "x_", "out_"
# What a shard may hold beside its points: ids, and numbers of samples and populations.
_BESIDE = 1 << 28


class Progress(NamedTuple):
    """How far a long sampling is, of the share of this host; as text a line to print.

    Attributes:
        done: samples that are on disk.
        total: samples that will be.
        rate: samples drawn in a second, without the compilation where more than one chunk is done; 0 before the first.
        left: seconds that are left at this rate; infinity before the first chunk.
    """

    done: int
    total: int
    rate: float
    left: float

    def __str__(self) -> str:
        line = f"{self.done:,} of {self.total:,} samples"
        rate = f"{self.rate:,.0f}" if self.rate >= 100 else f"{self.rate:.3g}"
        return f"{line}, {rate} a second, {duration(self.left)} left" if self.rate else line


def duration(seconds: float) -> str:
    """A time as a person says it: ``2 h 5 min``, ``12 min``, ``40 s``."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class OtherSamples(DamagedFile):
    """A shard is whole, and not one of the samples that the folder is about."""


class MadeOtherwise(ValueError):
    """The folder is about samples of another description."""


class Shards:
    """Samples that :func:`sample_to` has written, read a chunk at a time: ``shards[i]``, ``shards[low:high]``, ``shards[rows]``.

    ``rows`` are integers, or a boolean for each sample, in one dimension. Anything else is a TypeError: parts of a sample are
    taken from what is read, ``shards[low:high][..., 0]``.

    ``len(shards)``, ``shards.shape`` and ``shards.dtype`` are those of the array that :meth:`to_numpy` returns, as does
    ``np.asarray(shards)``. Points of several parts come as a dict of arrays. Whatever is read has its checksum compared, but for
    :meth:`memory_map`.

    Args:
        folder: where they are. Some chunks may still be missing (:attr:`missing`); reading one of those is an error.

    Raises:
        FileNotFoundError: no samples there.
        DamagedFile: a description, or a shard when it is read, that is not what was written.
    """

    def __init__(self, folder: Path | str):
        self.folder = _folder("Shards", folder)
        made = _described(self.folder)
        if made is None:
            raise FileNotFoundError(f"{shown(self.folder)}: no samples there: expected a folder that sample_to wrote")
        self.made: dict[str, Any] = made
        self.digest, self.chunk = _digest(self.made), self.made["chunk"]
        shape, dtype = self.made["shape"], self.made["dtype"]
        self._parts = list(shape) if isinstance(shape, Mapping) else None
        shapes, dtypes = (shape, dtype) if self._parts is not None else ({"": shape}, {"": dtype})
        self._forms = {name: (tuple(shapes[name][1:]), np.dtype(dtypes[name])) for name in shapes}
        self._n = next(iter(shapes.values()))[0]
        # The chunk that was read last, and of which file.
        self._last: tuple[tuple[int, ...], dict[str, np.ndarray]] | None = None

    def __repr__(self) -> str:
        return f"Shards({shown(self.folder)!r}): {self._n:,} samples in {self.count} chunks of {self.chunk}"

    def __len__(self) -> int:
        return self._n

    @property
    def shape(self) -> Any:
        """``(n, *event)``; of points of several parts a dict."""
        return self._joined({name: (self._n, *event) for name, (event, _) in self._forms.items()})

    @property
    def dtype(self) -> Any:
        """That of the stored samples; of points of several parts a dict."""
        return self._joined({name: dtype for name, (_, dtype) in self._forms.items()})

    @property
    def record(self) -> dict[str, Any]:
        """The ``record`` that :func:`sample_to` was given."""
        return self.made["record"]

    @property
    def count(self) -> int:
        """How many chunks there will be."""
        return -(-self._n // self.chunk)

    @property
    def missing(self) -> tuple[int, ...]:
        """The numbers of the chunks that are not there yet."""
        return tuple(number for number in range(self.count) if not self.path(number).is_file())

    def path(self, number: int) -> Path:
        """The file of a chunk."""
        return self.folder / f"{number:06d}.npz"

    def rows(self, number: int) -> tuple[int, int]:
        """The number of the first sample of a chunk, and of the one after its last."""
        return number * self.chunk, min((number + 1) * self.chunk, self._n)

    def __getitem__(self, item: Any) -> Any:
        index = self._numbers(item)
        found = self._gathered(np.atleast_1d(index))
        return jax.tree.map(lambda part: part[0], found) if np.ndim(index) == 0 else found

    def __iter__(self) -> Iterator[Any]:
        return (jax.tree.map(lambda part, i=i: part[i], rows) for rows in self.batches(self.chunk) for i in range(_length(rows)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Shards are on disk: expected copy=None or True, or Shards.memory_map()")
        if self._parts is not None:
            raise ValueError(f"Shards of the parts {', '.join(self._parts)}: expected Shards.to_numpy(), which returns a dict")
        return np.asarray(self.to_numpy(), dtype)

    def batches(self, size: int) -> Iterator[Any]:
        """The samples in their order, ``size`` at a time; the last batch may be smaller."""
        require_int("Shards.batches", 1, size=size)
        return (self[low : low + size] for low in range(0, self._n, size))

    def to_numpy(self) -> Any:
        """All samples in memory."""
        return self[:]

    def memory_map(self) -> list[Any]:
        """The samples of every chunk as read-only memory of its file; their checksums are not compared (:meth:`damaged` does)."""
        self._require_whole()
        for number in range(self.count):
            self._read(number, ())  # what it says of itself
        mapped = lambda path: self._joined({name: map_npz(path, self._member(name)) for name in self._forms})
        return [mapped(self.path(number)) for number in range(self.count)]

    @property
    def ids(self) -> np.ndarray:
        """Those of the samples, ``(n,)``."""
        return np.concatenate(self._members("ids"))

    @property
    def log_weights(self) -> np.ndarray:
        """Those of :class:`scorelab.Samples`, ``(n,)``."""
        return np.concatenate(self._members(_OUTPUT + "log_weights"))

    @property
    def log_z(self) -> np.ndarray:
        """That of :class:`scorelab.Samples`."""
        return self._outputs().get("log_z", np.zeros((), np.float32))

    @property
    def diagnostics(self) -> dict[str, Any]:
        """Those of :class:`scorelab.Samples`; all steps of samples that were written were finite."""
        own = {name: value for name, value in self._outputs().items() if name not in ("log_weights", "log_z")}
        return dict(first_bad_step=np.full(self._n, -1, np.int32), model_calls=self.made["calls"], **own)

    def _outputs(self) -> dict[str, np.ndarray]:
        """What the solver says of samples and of populations, of all chunks."""
        self._require_whole()
        names = [name for name in self._read(0, None) if name.startswith(_OUTPUT)]
        joined = lambda values: values[0] if len(values) == 1 else np.concatenate([*map(np.atleast_1d, values)])
        return {name.removeprefix(_OUTPUT): joined(self._members(name)) for name in names}

    def seconds(self) -> float:
        """How long drawing took, of all hosts and attempts together."""
        taken: dict[int, float] = {}
        for path in self.folder.glob("timings*.jsonl"):
            for line in path.read_bytes().splitlines():
                # A kill leaves a line torn.
                with suppress(ValueError, KeyError, TypeError):
                    record = json.loads(line)
                    taken[int(record["chunk"])] = float(record["seconds"])
        return sum(taken.values())

    def damaged(self) -> tuple[int, ...]:
        """The numbers of the chunks that are missing or damaged; every file is read. Raises as :meth:`whole`."""
        return tuple(number for number in range(self.count) if not self.whole(number))

    def whole(self, number: int) -> bool:
        """Whether a chunk is there as it was written.

        Raises:
            OtherSamples: it is whole, and belongs to other samples.
            IsADirectoryError: a folder has its name.
        """
        try:
            self._read(number, None)
        except OtherSamples:
            raise
        except (DamagedFile, FileNotFoundError):
            return False
        return True

    def remove(self) -> None:
        """Delete the samples and what was written beside them, and no other file; the folder too, where it is empty then."""
        self._last = None
        for path in self.folder.iterdir():
            name = temporary_of(path) or path.name
            if (self._is_chunk(name) or _TIMINGS.fullmatch(name)) and path.is_file():
                path.unlink(missing_ok=True)
        # Last: whatever stops this leaves samples of which chunks are missing.
        for path in self.folder.iterdir():
            if (temporary_of(path) or path.name) == MANIFEST:
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _is_chunk(self, name: str) -> bool:
        """Whether a file of this name is one of the chunks."""
        found = _SHARD.fullmatch(name)
        return found is not None and int(found[1]) < self.count and self.path(int(found[1])).name == name

    def _member(self, part: str) -> str:
        return _PART + part if self._parts is not None else "x"

    def _joined(self, parts: dict[str, Any]) -> Any:
        return parts if self._parts is not None else parts[""]

    def _require_whole(self) -> None:
        if missing := self.missing:
            raise FileNotFoundError(
                f"{shown(self.folder)}: {len(missing)} of {self.count} chunks are missing, the first is {missing[0]}: "
                "the command that drew the others, or sample_to with the same arguments, draws them"
            )

    def _read(self, number: int, only: Sequence[str] | None) -> dict[str, np.ndarray]:
        path, (low, high) = self.path(number), self.rows(number)
        size = sum((high - low) * math.prod(event) * dtype.itemsize for event, dtype in self._forms.values())
        again = "the command that drew it, or sample_to with the same arguments, draws it again"
        try:
            found = read_npz(path, limit=size + _BESIDE, name=shown(path), only=None if only is None else [*only, "made"])
        except FileNotFoundError:
            raise FileNotFoundError(f"{shown(path)} is missing, a chunk of {self.count}: {again}") from None
        except IsADirectoryError:
            raise IsADirectoryError(f"{shown(path)} is a folder: expected the file of a chunk, or nothing of this name") from None
        except DamagedFile as error:
            raise DamagedFile(f"{error}; {again}") from error
        for name, (event, dtype) in self._forms.items():
            x = found.get(self._member(name))
            if (x is None and only is None) or (x is not None and (x.shape, x.dtype) != ((high - low, *event), dtype)):
                raise DamagedFile(f"{shown(path)}: damaged, or not a shard: expected {dtype} {(high - low, *event)}; {again}")
        if missing := {"made", *(("ids",) if only is None else ())} - found.keys():
            raise DamagedFile(f"{shown(path)}: damaged, or not a shard: it has no {', '.join(sorted(missing))}; {again}")
        if (claim := _CLAIM.fullmatch(str(found["made"]))) is None:
            raise DamagedFile(f"{shown(path)}: damaged, or not a shard: it does not say what it is of; {again}")
        if claim[1] != self.digest:
            if _described(self.folder) != self.made:
                raise OtherSamples(f"{shown(self.folder)} holds other samples since this Shards was made: expected a new one")
            raise OtherSamples(
                f"{shown(path)} belongs to other samples than {shown(self.folder / MANIFEST)} says: expected it gone"
            )
        if int(claim[2]) != number:
            raise DamagedFile(f"{shown(path)}: damaged: it is chunk {claim[2]} under the name of chunk {number}; {again}")
        return found

    def _members(self, name: str) -> list[np.ndarray]:
        self._require_whole()
        return [self._read(number, (name,))[name] for number in range(self.count)]

    def _numbers(self, item: Any) -> np.ndarray:
        """The numbers of the samples that are asked for; of a single one without an axis.

        Raises:
            TypeError: what does not name samples, such as an index of several axes.
            IndexError: there are fewer samples.
        """
        n = self._n
        if isinstance(item, slice):
            try:
                return np.arange(*item.indices(n))
            except TypeError as error:
                raise TypeError(f"Shards[{item!r}]: {error}") from None
        outside = lambda number: IndexError(f"Shards[{number}] of {n} samples: expected {-n} to {n - 1}")
        try:
            # A tuple names several axes.
            index = np.asarray(None if isinstance(item, tuple) else item)
        except ValueError:
            index = np.asarray(None)
        if index.dtype == object and isinstance(item, int):
            raise outside(item)
        if isinstance(item, list) and index.shape == (0,):
            index = index.astype(np.int64)
        if index.dtype == bool and index.shape == (n,):
            return np.flatnonzero(index)
        if index.ndim > 1 or index.dtype.kind not in "iu":
            got = repr(item)[:60] if index.dtype == object else f"{index.dtype} of shape {index.shape}"
            raise TypeError(
                f"Shards[rows] with rows = {got}: expected an integer, a slice, or a list or an array of integers or {n} "
                "booleans in one dimension"
            )
        for number in map(int, (index.min(), index.max()) if index.size else ()):
            if not -n <= number < n:
                raise outside(number)
        # Small types have no room for the sum, and those without a sign none for what is below zero.
        return index.astype(np.int64) % n

    def _gathered(self, index: np.ndarray) -> Any:
        """The samples of some numbers, in their order, every chunk read once."""
        found = {name: np.empty((len(index), *event), dtype) for name, (event, dtype) in self._forms.items()}
        of = index // self.chunk
        for number in map(int, np.unique(of)):
            stamp = self._stamp(number)
            if self._last is None or self._last[0] != stamp:
                self._last = None
                self._last = stamp, self._read(number, [self._member(name) for name in self._forms])
            for name, values in found.items():
                values[of == number] = self._last[1][self._member(name)][index[of == number] - number * self.chunk]
        return self._joined(found)

    def _stamp(self, number: int) -> tuple[int, ...]:
        """Of the file of a chunk, what differs after it was written again."""
        try:
            found = self.path(number).stat()
        except OSError:
            # Reading says what is wrong.
            return (number,)
        return number, found.st_ino, found.st_mtime_ns, found.st_size


@own_errors()
def sample_to(
    folder: Path | str,
    model: Model,
    *,
    solver: Solver,
    grid: Grid,
    key: Key,
    shape: Any,
    start: Start | None = None,
    cond: Pytree = None,
    ids: Array | None = None,
    chunk: int | None = None,
    mesh: Spread = None,
    transform: Transform | None = None,
    record: Mapping[str, Any] | None = None,
    host: int | None = None,
    hosts: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Shards:
    """Draw samples into a folder, a file for each chunk; called again with equal arguments it draws what is missing.

    What is drawn are the bits of :func:`scorelab.sample` under the same ``chunk``, on the same kind and number of devices. The
    memory taken is that of one chunk, however many samples there are. A process that is killed loses the chunk it is at. A shard
    that is damaged is drawn again.

    The folder keeps a description: model, parameters, solver, grid, start, key, ids, conditions, shape, chunk, scale, devices,
    versions, and the program itself, so that changed code of the caller is seen. Samples of another description are never mixed.
    The program does not hold the code of functions that it calls on the host, so none are accepted but those of
    :class:`scorelab.fk.Callback`, :class:`scorelab.models.HostFunction` and :class:`scorelab.models.TorchFunction`. The description
    has their code, and the values and functions they refer to as they are when this is called
    (``scorelab.fingerprints.fingerprint``, which says what it sees of installed packages). What they follow from beside them,
    such as a file, is to be named in ``record``.

    Several hosts that share the folder take every ``hosts``-th chunk each, and compute on their own devices. They exchange
    nothing, so another number of them may go on.

    Args:
        folder: where to write; made where it is missing. Files of other names stay as they are.
        model: as for :func:`scorelab.sample`, and so are ``solver``, ``grid``, ``key``, ``shape``, ``start``, ``cond`` and ``ids``.
        solver: the solver.
        grid: the time grid.
        key: PRNG key.
        shape: ``(n, *event)``; for points of several parts a pytree of shapes.
        start: the law at the first grid time.
        cond: conditions with leading axis ``n``, or None.
        ids: the samples' ids ``(n,)``; ``arange(n)`` by default.
        chunk: samples in a shard, which are computed at once; as many as make half a million elements by default.
        mesh: devices of this host to spread each chunk over, from ``scorelab.training.data_mesh(jax.local_devices())``, or
            ``"auto"`` for those that gain by it, as in :func:`scorelab.sample`.
        transform: samples are stored as ``transform.decode(x)``. Under ``data.Pixels()`` that is uint8, the level whose cell holds
            the value, and the outermost level beyond the ends. None stores numbers as they are (bfloat16 as float32).
        record: JSON data that is kept in the description, and has to be the same too.
        host: the number of this host, ``jax.process_index()`` by default.
        hosts: the number of hosts, ``jax.process_count()`` by default.
        progress: called with a :class:`Progress` before the first chunk and after each; ``print`` prints a line each time.

    Returns:
        The samples; those of other hosts may be missing still.

    Raises:
        NonFiniteSample: a state became NaN or infinite; its chunk is not written.
        ValueError: an argument as for :func:`scorelab.sample`, or samples of another description in the folder; the message names
            what differs. A function that is called on the host.
        DamagedFile: the description cannot be read.
        OtherSamples: the description is missing, and shards are of another one.
        ConfigError: another process writes to the folder.
        FileExistsError: a file of a name that would be written, and that was not written here.
        OSError: the folder cannot be written, or the disk is full, as far as that is known before anything is drawn.
    """
    where = "sample_to"
    folder = _folder(where, folder)
    _require_folder(where, folder)
    if is_traced(model, key, cond, start, ids):
        raise TypeError(f"{where} inside of a program that is being traced: expected a call from Python, since it writes files")
    host, hosts = _hosts(host, hosts)
    _check(mesh, transform, record, shape, progress)
    plan = walk.plan(where, model, solver=solver, grid=grid, key=key, shape=shape, start=start, cond=cond, ids=ids)
    plan, key, size, mesh = laid_out(where, plan, solver, key, cond, chunk, mesh)
    _require_own(mesh)

    _require_lock(folder / _lock(host, hosts))
    with Lock(folder, lambda note: None, _lock(host, hosts)):
        _refuse_others(folder, host, hosts)
        _, visit = next(visits(plan, key, cond, size, mesh))
        there = _described(folder)
        claimed = {} if there is not None else _claimed(folder)
        made = _made(plan, solver, grid, key, cond, size=size, mesh=mesh, transform=transform, record=record, visit=visit)
        if there is None:
            _refuse_others_shards(folder, claimed, _digest(made))
            # Another host may have begun meanwhile.
            there = _described(folder)
        if there is None:
            write_json(folder / MANIFEST, {"format": _FORMAT, "sha256": _digest(made), "made": made})
        elif there != made:
            raise MadeOtherwise(
                f"{shown(folder)} holds samples that were made otherwise: {difference(there, made)}; expected the same, or another "
                "folder"
            )
        shards = Shards(folder)
        own = range(host, shards.count, hosts)
        _clear(folder, own)
        todo = {number for number in own if not shards.whole(number)}
        _require_space(shards, todo)
        ticks = _Ticks(shards, own, todo, progress)
        for low, visit in visits(plan, key, cond, size, mesh):
            if (number := low // size) not in todo:
                continue
            began = time.monotonic()
            part = walked(plan, solver, visit, mesh)
            low, high = shards.rows(number)
            numbers = np.asarray(visit.ids)[: high - low]
            _raise_if_bad(np.asarray(part["bad"])[: high - low], plan.times, numbers, f"chunk {number} of {shards.count}")
            arrays = _stored(part, high - low, size, transform)
            ids_of = {"ids": numbers, "made": np.asarray(f"{shards.digest} {number}")}
            write_npz(shards.path(number), ids_of | arrays, compressed=False)
            _timed(folder, host, hosts, number, time.monotonic() - began)
            ticks.tick(number)
        if isinstance(solver, Population) and todo and not shards.missing:
            solver.review(shards.diagnostics)
    return shards


class _Ticks:
    """Tells of the progress."""

    def __init__(self, shards: Shards, own: Sequence[int], todo: set[int], progress: Callable[[Progress], None] | None):
        count = lambda numbers: sum(high - low for low, high in map(shards.rows, numbers))
        self._shards, self._progress = shards, progress
        self._total, self._before = count(own), count(set(own) - todo)
        self._done, self._began, self._first = self._before, time.monotonic(), 0
        self._tell(0.0)

    def tick(self, number: int) -> None:
        """A chunk is on disk."""
        low, high = self._shards.rows(number)
        self._done += high - low
        now = time.monotonic()
        drawn = self._done - self._before - self._first
        self._tell(drawn / max(now - self._began, 1e-9))
        if not self._first:
            # What follows the first chunk has nothing to compile.
            self._first, self._began = high - low, now

    def _tell(self, rate: float) -> None:
        if self._progress is not None:
            left = (self._total - self._done) / rate if rate else 0.0 if self._done == self._total else math.inf
            self._progress(Progress(self._done, self._total, rate, left))


def _folder(where: str, folder: Any) -> Path:
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise TypeError(f"{where}.folder = {folder!r}: expected the path of a folder")
    return Path(folder)


def _check(mesh: Any, transform: Any, record: Any, shape: Any, progress: Any) -> None:
    where = "sample_to"
    require_mesh(where, mesh)
    _require_own(mesh)
    if transform is not None:
        require_spec(where, Transform, transform=transform)
        if isinstance(shape, Mapping):
            raise ValueError(f"{where}.transform = {transform!r} for points of several parts: expected None")
    try:
        json.dumps(dict(record or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}.record = {record!r}: expected a mapping of JSON data: {error}") from error
    if progress is not None and not callable(progress):
        raise TypeError(f"{where}.progress = {progress!r}: expected a function of a Progress, such as print, or None")


def _require_own(mesh: Spread) -> None:
    if isinstance(mesh, Mesh) and any(device.process_index != jax.process_index() for device in mesh.devices.flat):
        raise ValueError(
            "sample_to.mesh has devices of other hosts: expected those of this one, data_mesh(jax.local_devices()), since hosts "
            "take chunks of their own"
        )


def _hosts(host: int | None, hosts: int | None) -> tuple[int, int]:
    if (host is None) != (hosts is None):
        raise ValueError(f"sample_to.host = {host}, sample_to.hosts = {hosts}: expected both or neither")
    if host is None or hosts is None:
        return jax.process_index(), jax.process_count()
    require_int("sample_to", 1, hosts=hosts)
    require_int("sample_to", 0, host=host)
    if host >= hosts:
        raise ValueError(f"sample_to.host = {host}: expected 0 to sample_to.hosts - 1 = {hosts - 1}")
    return int(host), int(hosts)


def _lock(host: int, hosts: int) -> str:
    return "lock" if hosts == 1 else f"lock-{host}-of-{hosts}"


def _refuse_others(folder: Path, host: int, hosts: int) -> None:
    """ConfigError where a process that is no host of this run holds the folder."""
    for path in [path for path in folder.iterdir() if _LOCK.fullmatch(path.name)]:
        if path.name != _lock(host, hosts) and (hosts == 1 or not path.name.endswith(f"-of-{hosts}")):
            _require_lock(path)
            with Lock(folder, lambda note: None, path.name):
                pass


def _require_folder(where: str, folder: Path) -> None:
    """NotADirectoryError where a file is in the place of the folder, or of one above it."""
    for place in (folder, *folder.parents):
        if place.exists():
            if not place.is_dir():
                raise NotADirectoryError(
                    f"{where}.folder = {shown(folder)}: {shown(place)} is a file: expected an empty or new folder, or one that "
                    f"{where} wrote"
                )
            return


def _require_lock(path: Path) -> None:
    """FileExistsError where a file of this name was not written by a :class:`Lock`."""
    try:
        text = path.read_bytes()
        # A kill may leave it empty.
        ours = not text or {"pid", "host", "started", "since"} <= dict(json.loads(text)).keys()
    except FileNotFoundError:
        return
    except (IsADirectoryError, ValueError, TypeError):
        ours = False
    if not ours:
        raise _foreign(path)


def _foreign(path: Path) -> FileExistsError:
    return FileExistsError(
        f"{shown(path.parent)} has a {shown(path)} that sample_to did not write, or that is damaged: expected an empty or new "
        "folder, or that file elsewhere"
    )


def _claimed(folder: Path) -> dict[str, Path]:
    """Of a folder without a description, the digests that its shards belong to, each with one of them.

    Raises:
        FileExistsError: a file of a name that would be written, and that was not written here.
    """
    found: dict[str, Path] = {}
    paths = sorted(folder.iterdir())
    for path in paths:
        if _SHARD.fullmatch(path.name) is None:
            continue
        try:
            said = read_npz(path, limit=_BESIDE, name=shown(path), only=["made"])["made"]
        except (IsADirectoryError, DamagedFile):
            raise _foreign(path) from None
        if (claim := _CLAIM.fullmatch(str(said))) is None:
            raise _foreign(path)
        found.setdefault(claim[1], path)
    timings = [path for path in paths if _TIMINGS.fullmatch(path.name)]
    # They follow the first shard. That of another host may have come since the names were listed, and after its description.
    if timings and not found and not (folder / MANIFEST).exists():
        raise _foreign(timings[0])
    return found


def _refuse_others_shards(folder: Path, claimed: Mapping[str, Path], digest: str) -> None:
    """OtherSamples where a shard belongs to another description than the one that is about to be written."""
    for other, path in claimed.items():
        if other != digest:
            raise OtherSamples(
                f"{shown(folder)} has no {MANIFEST}, and {shown(path)} belongs to samples that were made otherwise: expected the "
                "arguments that made them, or an empty or new folder"
            )


def _on_host(programs: Sequence[Any]) -> list[str]:
    """The functions of the caller that programs call on the host, in their order, each with what it follows from.

    Raises:
        ValueError: one that is not called through this package: nothing sees its code.
    """
    found: dict[str, None] = {}
    for equation in _equations(programs):
        if equation.primitive.name not in _CALLBACKS:
            continue
        fn = equation.params["callback"]
        fn = getattr(fn, "callback_func", fn)
        if not (asks := getattr(fn, "asks", ())):
            name = getattr(fn, "__qualname__", repr(fn))
            raise ValueError(
                f"sample_to of a program that calls {name} on the host (jax.{equation.primitive.name}), whose code the description "
                "cannot see: expected code that JAX traces, a reward through scorelab.fk.Callback, a model through "
                "scorelab.models.HostFunction, or scorelab.sample"
            )
        found |= {f"{getattr(asked, '__qualname__', type(asked).__qualname__)} {fingerprint(asked)}": None for asked in asks}
    return list(found)


def _equations(programs: Sequence[Any]) -> Iterator[Any]:
    """The equations of programs and of all programs in them, of each once."""
    todo, seen = list(programs), set()
    while todo:
        if id(each := todo.pop()) in seen:
            continue
        seen.add(id(each))
        for equation in each.eqns:
            yield equation
            inner = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
            todo += [value for value in inner if hasattr(value, "eqns")]


def _raise_if_bad(bad: np.ndarray, times: np.ndarray, ids: np.ndarray, where: str) -> None:
    """:func:`scorelab.walk.raise_if_bad` that names the chunk and the ids of its samples."""
    try:
        walk.raise_if_bad(bad, times)
    except walk.NonFiniteSample as error:
        found = ids[bad >= 0].tolist()
        some = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise walk.NonFiniteSample(f"{where}, ids {ids[0]} to {ids[-1]}: {error}; not finite: {some}") from None


def _clear(folder: Path, own: Sequence[int]) -> None:
    """Remove what a kill left of the shards of this host: other hosts may be writing theirs."""
    for path in folder.iterdir():
        wanted = _SHARD.fullmatch(temporary_of(path) or "")
        if wanted and int(wanted[1]) in own:
            path.unlink(missing_ok=True)


def _require_space(shards: Shards, todo: set[int]) -> None:
    each = sum(math.prod(event) * dtype.itemsize for event, dtype in shards._forms.values())
    needed = each * sum(high - low for low, high in map(shards.rows, todo))
    free = shutil.disk_usage(shards.folder).free
    if needed > free:
        reason = f"No space left on device: the samples that are missing take {needed:,} bytes, and {free:,} are free"
        raise OSError(errno.ENOSPC, reason, str(shards.folder))


def _stored(part: dict[str, Any], rows: int, size: int, transform: Transform | None) -> dict[str, np.ndarray]:
    """What a shard holds of what the walk of a chunk returned."""
    x = part["x"] if transform is None else transform.decode(part["x"])
    points = {_PART + name: value for name, value in x.items()} if isinstance(x, Mapping) else {"x": x}
    arrays = {name: _plain(np.asarray(value)[:rows]) for name, value in points.items()}
    for name, value in part["outputs"].items():
        value = np.asarray(value)
        # Rows of populations are fewer than those of samples, in proportion.
        arrays[_OUTPUT + name] = _plain(value[: rows * len(value) // size] if value.ndim else value)
    return arrays


def _plain(value: np.ndarray) -> np.ndarray:
    """An array of a type that NumPy knows itself: bfloat16 as float32, which has all of its numbers."""
    return value.astype(np.float32) if value.dtype.kind == "V" else value


def _timed(folder: Path, host: int, hosts: int, number: int, seconds: float) -> None:
    path = folder / ("timings.jsonl" if hosts == 1 else f"timings-{host}.jsonl")
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"chunk": number, "seconds": round(seconds, 3)}) + "\n")


# The description ---------------------------------------------------------------------------------------------


def _made(
    plan: walk.Plan, solver: Solver, grid: Grid, key: Key, cond: Pytree, *, size: int, mesh: Mesh | None,
    transform: Transform | None, record: Mapping[str, Any] | None, visit: walk.Visit,
) -> dict[str, Any]:  # fmt: skip
    """What the samples follow from, as JSON data; ValueError where it cannot be said."""
    text, x, programs = program(plan, solver, visit, mesh)
    on_host = _on_host(programs)
    x = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)
    x = x if transform is None else jax.eval_shape(transform.decode, x)
    device = (jax.devices()[:1] if mesh is None else mesh.devices.flat)[0]
    made = {
        # Of the package that is being imported where this module is, so that neither waits for the other.
        "scorelab": sys.modules[__package__ or "scorelab"].__version__,
        "jax": f"{jax.__version__}, jaxlib {jaxlib.version.__version__}",
        "devices": f"{1 if mesh is None else mesh.devices.size} {device.device_kind}",
        "precision": {name: getattr(jax.config, name) for name in _PRECISION},
        "model": _said(plan.model),
        "parameters": content(plan.model, names=False),
        "solver": _said(walk.Held(solver)),
        "numbers of the solver": content(walk.Held(solver), names=False),
        "grid": _without_addresses(repr(grid)),
        "table": content((plan.first, plan.rows), names=False),
        "start": _said(plan.start),
        "numbers of the start": content(plan.start, names=False),
        "key": f"{key.dtype} {np.ravel(jax.random.key_data(key)).tolist()}",
        "ids": "0 to n - 1" if np.array_equal(plan.ids, np.arange(plan.n)) else content(plan.ids),
        "cond": None if cond is None else f"{_said(cond)} {content(cond, names=False)}",
        "shape": jax.tree.map(lambda leaf: [plan.n, *leaf.shape[1:]], x),
        "dtype": jax.tree.map(lambda leaf: str(jnp.dtype(leaf.dtype) if leaf.dtype != jnp.bfloat16 else np.dtype(np.float32)), x),
        "chunk": size,
        "calls": plan.calls,
        "stored": None if transform is None else repr(transform),
        "record": dict(record or {}),
        # Only where there are some, so that other folders keep their descriptions.
        **({"code on the host": on_host} if on_host else {}),
        # Of all of the above and of the code of the caller, which nothing above can see.
        "program": hashlib.sha256(text.encode()).hexdigest(),
    }
    return json.loads(json.dumps(made, allow_nan=False))


def _said(tree: Pytree) -> str:
    """The structure of a pytree with everything static in it, as text."""
    return _without_addresses(str(jax.tree.structure(tree)))


def _without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _digest(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def _described(folder: Path) -> dict[str, Any] | None:
    """The description in a folder, None where there is none."""
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except IsADirectoryError:
        raise _foreign(path) from None
    except UnicodeDecodeError as error:
        raise DamagedFile(f"{shown(path)}: damaged: {error}: {_REMEDY}") from error
    try:
        found = json.loads(text)
        if found["format"] != _FORMAT:
            raise ValueError(f"format {found['format']}, expected {_FORMAT}")
        if found["sha256"] != _digest(found["made"]):
            raise ValueError("it does not have the checksum it states")
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(f"{shown(path)}: damaged, or not what sample_to writes ({error}): {_REMEDY}") from error
    return found["made"]


_REMEDY = "delete it, and sample_to with the same arguments writes it again and keeps the shards that are whole"


def difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two descriptions, in words."""
    found = list(_differences(there, here, ""))
    if given := [each for each in found if each[0] not in _DERIVED]:
        return ", ".join(f"{name} was {old} and is {new}" for name, old, new in given)
    names = " and ".join(name for name, _, _ in found)
    return f"specs and numbers are the same, and not the {names} that follow from them: the code of a function or class has changed"


def _differences(there: Any, here: Any, at: str) -> Iterator[tuple[str, str, str]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in {**there, **here}:
            yield from _differences(there.get(name), here.get(name), f"{at}.{name}" if at else name)
    elif there != here:
        old, new = (value[:8] if _SHA256.fullmatch(value := str(each)) else value for each in (there, here))
        # Long texts are told where they part.
        first = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        yield at, _around(old, first), _around(new, first)


def _around(text: str, place: int, width: int = 60) -> str:
    low = 0 if len(text) <= width else max(0, min(place - width // 3, len(text) - width))
    cut = " ".join(text[low : low + width].split())
    return ("... " if low else "") + cut + (" ..." if low + width < len(text) else "")


def _length(rows: Any) -> int:
    return len(jax.tree.leaves(rows)[0])
