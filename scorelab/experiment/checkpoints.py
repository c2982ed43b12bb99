"""Checkpoints by orbax: one folder per step, there complete or not at all, and read only where its checksums agree."""

from __future__ import annotations

import errno
import functools
import hashlib
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Pytree
from scorelab.files import DamagedFile, naming, sync_folder, temporary, temporary_of, write_bytes

_STATE, _SUMS = "state", "SHA256SUMS"


class Checkpoints:
    """The checkpoints of one run, the newest ``keep`` of them.

    A checkpoint is the folder ``<step>``. Orbax writes its ``state/``, with an array for every leaf of the state under its place in
    the tree. ``SHA256SUMS``, in the format of ``sha256sum``, has the hash of every file and the step in every name: a folder that
    was renamed is not believed. A checkpoint is written under a temporary name, flushed to the disk and renamed, so one that a kill
    interrupted is never seen. The state is stored as host arrays: it can be read with another number of devices. Reading changes
    nothing in the folder.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._folder, self._keep = folder, keep

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order; their content is checked when it is read."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal() and str(int(p.name)) == p.name)

    def save(self, step: int, state: Pytree) -> None:
        """Write the state of ``step``; nothing where it is there already and whole.

        Raises ValueError where the state is of another step, OSError where it cannot be written.
        """
        if int(found := getattr(state, "step", step)) != step:
            raise ValueError(f"a checkpoint of step {step} with the state of step {int(found)}: expected the same")
        arrays = {name: np.array(_plain(leaf)) for name, leaf in _named(jax.device_get(state)).items()}
        target = self._folder / str(step)
        partial = temporary(target)
        with naming(target):
            # Not its parents: a work directory that has vanished does not come back as a shell of itself.
            self._folder.mkdir(exist_ok=True)
            self.clean()
            try:
                partial.mkdir()
                with _disk_failures(partial), _checkpointer() as checkpointer:
                    checkpointer.save((partial / _STATE).absolute(), args=_orbax().args.StandardSave(arrays))
                write_bytes(partial / _SUMS, _sums(partial, step, flush=True))
                for folder in (p for p in (partial, *partial.rglob("*")) if p.is_dir()):
                    sync_folder(folder)
                if target.exists():
                    if _whole(target, step):
                        return
                    self._set_aside(step)
                os.rename(partial, target)
                sync_folder(self._folder)
            finally:
                _remove(partial)
            for old in self.steps()[: -self._keep]:
                shutil.rmtree(self._folder / str(old))

    def restore(self, step: int, like: Pytree) -> Pytree:
        """The state of ``step`` as host arrays; ``like`` has its structure, shapes and dtypes.

        Raises DamagedFile where the checkpoint is not what was written, ValueError where it is whole and its state has another
        structure.
        """
        place = self._folder / str(step)
        _verify(place, step)
        wanted = {name: _plain(leaf) for name, leaf in _named(like).items()}
        expected = {name: _kind(leaf) for name, leaf in wanted.items()}
        with _checkpointer() as checkpointer:
            metadata = checkpointer.metadata((place / _STATE).absolute()).item_metadata
            if metadata is None:
                raise ValueError(f"{place} is whole, and orbax {_orbax().__version__} cannot read it")
            found = {name: _kind(leaf) for name, leaf in metadata.tree.items()}
            # Asked for another shape or dtype, orbax gives it without a word.
            if differing := sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name)):
                first = differing[0]
                raise ValueError(
                    f"{place} has another structure: {first} is {found.get(first, 'not there')}, "
                    f"expected {expected.get(first, 'nothing of this name')} ({len(differing)} of {len(expected)} differ)"
                )
            target = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
            stored = checkpointer.restore((place / _STATE).absolute(), args=_orbax().args.StandardRestore(target))
        state = jax.tree_util.tree_map_with_path(lambda path, leaf: _as(leaf, stored.get(jax.tree_util.keystr(path))), like)
        if int(found := getattr(state, "step", step)) != step:
            raise DamagedFile(f"{place} holds the state of step {int(found)}")
        return state

    def newest(self, like: Pytree, *, say: Callable[[str], None], owned: bool = False) -> tuple[int, Pytree] | None:
        """The newest checkpoint that is whole, ``(step, state)``; None where there is none at all.

        Args:
            like: as for :meth:`restore`.
            say: told of every checkpoint that is passed over, and why.
            owned: move what is passed over out of the way, to ``<step>.damaged``: only for the one who writes here.

        Raises DamagedFile where there are checkpoints and none is whole, ValueError as :meth:`restore`.
        """
        last = None
        for step in reversed(self.steps()):
            try:
                return step, self.restore(step, like)
            except Exception as error:
                if not (self._folder / str(step)).exists():
                    # Removed by the training that goes on here, which has newer ones.
                    return self.newest(like, say=say, owned=owned)
                if not isinstance(error, (DamagedFile, OSError)) or isinstance(error, PermissionError):
                    raise
                last = error
                say(f"{self._folder / str(step)} is damaged and passed over: {error}")
                if owned:
                    self._set_aside(step)
        if last is not None:
            raise DamagedFile(f"{self._folder}: no checkpoint is whole; the oldest: {last}")
        return None

    def clean(self) -> None:
        """Remove what a kill left of checkpoints that were being written; only for the one who writes here."""
        if self._folder.is_dir():
            for path in self._folder.iterdir():
                if (name := temporary_of(path)) and name.isdecimal():
                    shutil.rmtree(path, ignore_errors=True)

    def _set_aside(self, step: int) -> None:
        aside = self._folder / f"{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(self._folder / str(step), aside)


def size_of(like: Pytree) -> int:
    """Bytes of the arrays of a state."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(like))


@functools.cache
def _orbax() -> Any:
    """Orbax, imported where a checkpoint is written or read: that takes half a second."""
    import orbax.checkpoint as ocp

    # On a full disk it raises once, and its threads and the writes they leave behind print hundreds of lines.
    logging.getLogger("absl").addFilter(lambda record: not record.pathname.startswith(os.path.dirname(ocp.__file__)))
    hook = sys.unraisablehook
    sys.unraisablehook = lambda late: None if str(late.exc_value) == "Event loop is closed" else hook(late)
    return ocp


def _checkpointer() -> Any:
    """One that waits: the next step consumes the arrays, and a run must know that its checkpoint is there."""
    return _orbax().Checkpointer(_orbax().StandardCheckpointHandler())


def _remove(folder: Path) -> None:
    """Remove a folder in which threads of orbax may still end what they had begun: files appear while others are removed."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


@contextmanager
def _disk_failures(partial: Path):
    """Failures of the disk inside the block as OSError: tensorstore raises ValueError, with the system's words in the text.

    It also makes a folder again that was moved away while it wrote: what it wrote there is removed.
    """
    folder, before, failure = partial.parent, partial.stat(), None
    try:
        yield
    except Exception as error:
        failure = error
    if not partial.exists() or not os.path.samestat(before, partial.stat()):
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder)) from failure
    if failure is not None:
        number = next((number for number in errno.errorcode if os.strerror(number) in str(failure)), None)
        if number is None or isinstance(failure, OSError):
            raise failure
        raise OSError(number, os.strerror(number), str(folder)) from failure


def _named(tree: Pytree) -> dict[str, Any]:
    """The leaves under their places in the tree, in one level: orbax takes ``{"a": {"b": x}}`` and ``{"a.b": x}`` for the same.

    Without arrays that have no numbers, which it does not store.
    """
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    return {name: leaf for name, leaf in leaves.items() if np.size(leaf)}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: Any) -> Any:
    """The numbers of a PRNG key, or their shape and dtype; any other leaf as it is."""
    if not _is_key(leaf):
        return leaf
    return jax.random.key_data(leaf) if isinstance(leaf, jax.Array) else jax.eval_shape(jax.random.key_data, leaf)


def _as(leaf: Any, stored: np.ndarray | None) -> Any:
    if stored is None:
        return np.zeros(leaf.shape, leaf.dtype)
    if not _is_key(leaf):
        return stored
    return jax.random.wrap_key_data(jnp.asarray(stored), impl=jax.random.key_impl(jnp.empty((), leaf.dtype)))


def _sums(place: Path, step: int, *, flush: bool = False) -> bytes:
    """What ``sha256sum`` prints for the files of a checkpoint in the folder above it; ``flush`` them to the disk as well."""
    lines = []
    for path in sorted(path for path in place.rglob("*") if not path.is_dir() and path != place / _SUMS):
        with open(path, "r+b" if flush else "rb", buffering=0) as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {step}/{path.relative_to(place).as_posix()}\n")
            if flush:
                os.fsync(file.fileno())
    return "".join(lines).encode()


def _verify(place: Path, step: int) -> None:
    if not (place / _SUMS).is_file():
        raise DamagedFile(f"{place / _SUMS} is missing")
    stated, found = (place / _SUMS).read_bytes(), _sums(place, step)
    if not found or stated != found:
        lines = sorted(set(stated.split(b"\n")) ^ set(found.split(b"\n")), key=lambda line: line[66:])
        raise DamagedFile(f"{place / _SUMS} and the files differ: {lines[-1][:300].decode(errors='replace') if lines else 'empty'}")


def _whole(place: Path, step: int) -> bool:
    try:
        _verify(place, step)
    except (DamagedFile, OSError):
        return False
    return True


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape)}"


@dataclass(frozen=True)
class SaveEvery:
    """A hook of the training loop that saves every so many steps, and after the last."""

    every: int
    checkpoints: Checkpoints = field(repr=False)

    def __call__(self, step: int, state: Pytree, window: Any) -> None:
        """Save the state of ``step``."""
        self.checkpoints.save(step, state)
