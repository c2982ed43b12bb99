"""Batches as a pure function of (seed, step, host): resuming and sharding are exact by construction."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import numpy as np

from scorelab.data.arrays import Arrays
from scorelab.validation import require_int, require_seed, require_spec


@functools.lru_cache(maxsize=8)
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    # Drawing 60,000 places costs twenty times the gather of a batch, and an epoch asks for the same one at
    # every step.
    order = np.random.default_rng((seed, epoch)).permutation(n)
    order.flags.writeable = False
    return order


def _check_host(host: int, hosts: int) -> None:
    require_int("Batches", 1, hosts=hosts)
    require_int("Batches", 0, host=host)
    if not 0 <= host < hosts:
        raise ValueError(f"Batches.host = {host}: expected 0 to hosts - 1 = {hosts - 1}")


class RowSource(abc.ABC):
    """Rows that are read when they are asked for."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abc.abstractmethod
    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers by name, each array with a leading axis as long as ``index``."""


@dataclass(frozen=True, eq=False)
class Batches:
    """Shuffled batches of in-memory arrays, found by their step.

    With n samples, epoch e holds b = floor(n / batch_size) batches: the rows batch_size * i .. batch_size *
    (i + 1) - 1 of the permutation drawn by ``np.random.default_rng((seed, e))``, i = step mod b, e =
    floor(step / b). The n - b * batch_size rows left over are dropped for that epoch (others in the next
    one). Of a batch, host h of H takes the h-th block of batch_size / H rows, so a batch is the same set
    whatever H is.

    ``arrays`` is an ``Arrays``, a mapping of names to arrays with equal leading length, or rows read when they are asked for
    (``len`` and ``take(numbers) -> {name: array}``). Dtypes are kept: uint8 goes to the device and is scaled there.
    Errors: batch_size above n, or not a multiple of hosts.
    """

    arrays: Arrays | Mapping[str, np.ndarray] | RowSource
    batch_size: int
    seed: int = 0

    def __post_init__(self):
        require_spec(self, Arrays | Mapping | RowSource, arrays=self.arrays)
        self._check_columns()
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= self.n:
            raise ValueError(f"Batches.batch_size = {self.batch_size}: expected 1 to n = {self.n}, the number of samples")
        require_seed(self, seed=self.seed)

    def _check_columns(self) -> None:
        if (columns := self.columns) is None:
            return
        for key, value in columns.items():
            dtype = getattr(value, "dtype", None)
            if dtype is None or dtype.kind in "cOUSMm" or np.ndim(value) < 1:
                found = f"{type(value).__name__ if dtype is None else dtype} of shape {np.shape(value)}"
                raise ValueError(f"Batches.arrays[{key!r}] is {found}: expected an array of numbers (n, ...)")
        lengths = {key: len(value) for key, value in columns.items()}
        if not columns or len(set(lengths.values())) != 1:
            raise ValueError(f"Batches.arrays has lengths {lengths}: expected at least one array, all of equal length")

    @property
    def columns(self) -> Mapping[str, np.ndarray] | None:
        """The arrays by name; None for rows that are read when they are asked for."""
        if isinstance(self.arrays, RowSource):
            return None
        return self.arrays.columns() if isinstance(self.arrays, Arrays) else self.arrays

    @property
    def levels(self) -> int | None:
        """Number of levels of ``x``, None where it is not known."""
        return self.arrays.levels if isinstance(self.arrays, Arrays) else None

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(self.arrays) if (columns := self.columns) is None else len(next(iter(columns.values())))

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in one pass."""
        return self.n // self.batch_size

    def indices(self, step: int, host: int = 0, hosts: int = 1) -> np.ndarray:
        """Row numbers (batch_size / hosts,) of the batch of ``step`` that belong to ``host``."""
        _check_host(host, hosts)
        require_int(self, 0, step=step)
        if self.batch_size % hosts:
            raise ValueError(f"Batches.batch_size = {self.batch_size}: expected a multiple of hosts = {hosts}")
        epoch, position = divmod(int(step), self.steps_per_epoch)
        share = self.batch_size // hosts
        first = position * self.batch_size + host * share
        return _permutation(self.n, self.seed, epoch)[first : first + share]

    def at(self, step: int, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """The batch of ``step``: ``{"x": (batch_size / hosts, ...), "label": ...}``, dtypes as stored."""
        rows = self.indices(step, host, hosts)
        if isinstance(self.arrays, RowSource):
            return self.arrays.take(rows)
        return {key: value[rows] for key, value in cast(Mapping, self.columns).items()}


class StatefulIterator(Protocol):
    """What a data pipeline must offer to be resumed: the interface of a Grain ``DatasetIterator``."""

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch, this host's share only."""
        ...

    def get_state(self) -> Any:
        """A serialisable position."""
        ...

    def set_state(self, state: Any) -> None:
        """Go to a position."""


@dataclass(eq=False)
class IteratorAdapter:
    """The interface of ``Batches`` over an iterator, for data larger than memory.

    An iterator only goes forward: ``at(step)`` must be called with step = 0, 1, 2, ..., and again from the
    step of a restored state. ``host`` and ``hosts`` are those the iterator was sharded with, and ``at`` refuses
    any others.
    """

    iterator: StatefulIterator
    host: int = 0
    hosts: int = 1
    _next: int = field(default=0, init=False)

    def __post_init__(self):
        _check_host(self.host, self.hosts)

    def at(self, step: int, host: int = 0, hosts: int = 1) -> dict[str, np.ndarray]:
        """The batch of ``step``, which must be the next one."""
        if (host, hosts) != (self.host, self.hosts):
            raise ValueError(
                f"IteratorAdapter.at: host = {host} of {hosts}: expected {self.host} of {self.hosts}, those of the iterator"
            )
        require_int(self, 0, step=step)
        if step != self._next:
            raise ValueError(f"IteratorAdapter.step = {step}: expected {self._next}, the next one; restore a state to go elsewhere")
        batch = next(self.iterator)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The step and the iterator's own state."""
        return {"step": self._next, "iterator": self.iterator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a state that ``get_state`` returned."""
        self.iterator.set_state(state["iterator"])
        self._next = int(state["step"])
