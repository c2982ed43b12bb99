"""Checkpoints by orbax: one folder per step, there complete or not at all, and read only where its checksums agree.

Of several hosts the first writes what all of them have, and each writes its part of what is spread over them; the folder is one
that all of them see.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import hashlib
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab import hosts
from scorelab.arrays import Pytree, on_host
from scorelab.experiment.faults import CONTINUE, RunFailed
from scorelab.files import DamagedFile, naming, sync_folder, temporary, temporary_of, write_bytes

_STATE, _SUMS = "state", "SHA256SUMS"


class Checkpoints:
    """The checkpoints of one run, the newest ``keep`` of them.

    A checkpoint is the folder ``<step>``. Orbax writes its ``state/``, with an array for every leaf of the state under its place in
    the tree. ``SHA256SUMS``, in the format of ``sha256sum``, has the hash of every file and the step in every name: a folder that
    was renamed is not believed. A checkpoint is written under a temporary name, flushed to the disk and renamed, so one that a kill
    interrupted is never seen. The state is stored as host arrays: it can be read with another number of devices. Reading changes
    nothing in the folder.

    Args:
        folder: where they are.
        keep: how many of the newest stay.
        beside: from the steps that stay to further ones that do, such as the best up to each of them.
    """

    def __init__(self, folder: Path, *, keep: int = 2, beside: Callable[[Sequence[int]], set[int]] = lambda steps: set()):
        self._folder, self._keep, self._beside = folder, keep, beside
        self._begun: _Writing | None = None

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order; their content is checked when it is read."""
        if not self._folder.is_dir():
            return []
        return sorted(int(p.name) for p in self._folder.iterdir() if p.name.isdecimal() and str(int(p.name)) == p.name)

    def save(self, step: int, state: Pytree) -> None:
        """Write the state of ``step``; nothing where it is there already and whole.

        Raises ValueError where the state is of another step, OSError where it cannot be written.
        """
        self.begin(step, state)
        self.wait()

    def begin(self, step: int, state: Pytree) -> None:
        """Copy the state of ``step``, and write it while the caller goes on; errors as :meth:`save`, here or in :meth:`wait`.

        With several hosts all of them have to call it, and :meth:`wait`.
        """
        self.wait()
        if int(found := getattr(state, "step", step)) != step:
            raise ValueError(f"a checkpoint of step {step} with the state of step {int(found)}: expected the same")
        leaves = _named(state)
        work = None
        if any(map(_spread, leaves.values())):
            work = self._spread_out(step, leaves)
        elif hosts.first():
            arrays = {name: np.array(_plain(leaf)) for name, leaf in jax.device_get(leaves).items()}
            work = functools.partial(self._write, step, arrays)
        self._begun = _Writing(step, work)

    def wait(self) -> None:
        """Return when the checkpoint that was begun last is there; errors of its writing, on every host."""
        if (begun := self._begun) is None:
            return
        failure = begun.end()
        self._begun = None
        said = hosts.exchange(None if failure is None else str(failure) or type(failure).__name__)
        if failure is not None:
            raise failure
        for host, text in enumerate(said):
            if text is not None:
                raise RunFailed(f"host {host} cannot write the checkpoint of step {begun.step}: {text}; {CONTINUE}")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """At the end of the block all that was begun is there; where it ends by an error, that one is told and no other."""
        try:
            yield
            self.wait()
        finally:
            # Nothing is written any more when the work directory is let go, whatever the error.
            if self._begun is not None:
                self._begun.end()
                self._begun = None

    def _write(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Write host arrays, by one process."""
        partial = temporary(self._folder / str(step))
        with self._opened(step, partial), _disk_failures(partial), _checkpointer() as checkpointer:
            checkpointer.save((partial / _STATE).absolute(), args=_orbax().args.StandardSave(arrays))

    def _spread_out(self, step: int, leaves: dict[str, Any]) -> Callable[[], None]:
        """Begin to write arrays that are spread over several hosts; what is left to do of it."""
        with ExitStack() as opened:
            # The first host makes the folder that all write into.
            made = opened.enter_context(self._opened(step, temporary(self._folder / str(step)))) if hosts.first() else None
            partial = self._folder / hosts.agreed(None if made is None else made.name)
            # On a CPU the host array is the memory of the device array, which the next step consumes.
            kept = jnp.copy if jax.default_backend() == "cpu" else lambda leaf: leaf
            arrays = {
                name: kept(plain) if _spread(plain) else np.array(jax.device_get(plain))
                for name, plain in ((name, _plain(leaf)) for name, leaf in leaves.items())
            }
            checkpointer = opened.enter_context(closing(_orbax().AsyncCheckpointer(_orbax().StandardCheckpointHandler())))
            checkpointer.save((partial / _STATE).absolute(), args=_orbax().args.StandardSave(arrays))
            # Without an error up to here they stay open until it is written.
            begun = opened.pop_all()

        def end() -> None:
            with begun:
                checkpointer.wait_until_finished()
                arrays.clear()

        return end

    @contextmanager
    def _opened(self, step: int, partial: Path) -> Iterator[Path]:
        """The folder ``partial``, which becomes the checkpoint of ``step`` at the end of the block."""
        target = self._folder / str(step)
        with naming(target):
            # Not its parents: a work directory that has vanished does not come back as a shell of itself.
            self._folder.mkdir(exist_ok=True)
            self.clean()
            try:
                partial.mkdir()
                yield partial
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
            steps = self.steps()
            stay = self._beside(steps[-self._keep :])
            for old in steps[: -self._keep]:
                if old not in stay:
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
            # Host arrays, whatever devices wrote them; these have the memory of one number.
            target = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in wanted.items()}
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


def host_state(state: Pytree) -> Pytree:
    """The state as host arrays; what is spread over several hosts is gathered, for which all of them have to ask."""
    return jax.device_get(jax.tree.map(lambda leaf: on_host(leaf) if _spread(leaf) else leaf, state))


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
    """One that waits, and of several processes for none of the others."""
    options = _orbax().options.MultiprocessingOptions()
    if jax.process_count() > 1:
        me = jax.process_index()
        options = dataclasses.replace(options, primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"host{me}")
    return _orbax().Checkpointer(_orbax().StandardCheckpointHandler(), multiprocessing_options=options)


class _Writing:
    """The writing of a checkpoint in a thread of its own; of nothing where another host does it."""

    def __init__(self, step: int, work: Callable[[], None] | None):
        self.step, self._failure = step, None
        # Not Thread.join, which takes a thread for ended once a signal has interrupted it (Python 3.11).
        self._ended = threading.Event()
        if work is None:
            self._ended.set()
        else:
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error
        finally:
            self._ended.set()

    def end(self) -> BaseException | None:
        """Wait for it, also where a signal raises an exception meanwhile, which comes after it; what it raised."""
        try:
            self._ended.wait()
        finally:
            self._ended.wait()
        return self._failure


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


def _spread(leaf: Any) -> bool:
    """Whether no host has the whole array."""
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated


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
    """A hook of the training loop that saves every so many steps, and after the last, while the training goes on.

    Used inside ``checkpoints.writing()``, which waits at its end.
    """

    every: int
    checkpoints: Checkpoints = field(repr=False)

    def __call__(self, step: int, state: Pytree, window: Any) -> None:
        """Begin to save the state of ``step``."""
        self.checkpoints.begin(step, state)
