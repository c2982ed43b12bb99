"""Checkpoints: one folder per step, there complete or not at all, and read only where its checksum agrees."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scorelab.files import DamagedFile, naming, read_npz, sync_folder, temporary, temporary_of
from scorelab.typing import Pytree

_STATE, _SUM, _LAYOUT = "state.npz", "state.sha256", "layout"
_BLOCK = 1 << 20


class Checkpoints:
    """The checkpoints of one run, the newest ``keep`` of them.

    A checkpoint is the folder ``<step>`` with ``state.npz``, an array for every leaf of the state under its place in the tree, and
    ``state.sha256``, in the format of ``sha256sum`` and with the step in the name: a folder that was renamed is not believed. It
    is written under a temporary name, flushed to the disk and renamed, so one that a kill interrupted is never seen. The state is
    stored as host arrays: it can be read with another number of devices. Reading changes nothing in the folder.
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
        leaves = {name: np.array(leaf) for name, leaf in _named(jax.device_get(state)).items()}
        layout = {name: _kind(leaf) for name, leaf in leaves.items()}
        # Numbers that NumPy knows by a library's name only, such as bfloat16, are stored as their bytes.
        plain = {name: leaf if leaf.dtype.isbuiltin == 1 else _bytes(leaf) for name, leaf in leaves.items()}
        target = self._folder / str(step)
        partial = temporary(target)
        with naming(target):
            # Not its parents: a work directory that has vanished does not come back as a shell of itself.
            self._folder.mkdir(exist_ok=True)
            self.clean()
            try:
                partial.mkdir()
                with open(partial / _STATE, "wb") as file:
                    np.savez(file, **{_LAYOUT: np.asarray(json.dumps(layout))}, **plain)
                    file.flush()
                    os.fsync(file.fileno())
                with open(partial / _SUM, "wb") as file:
                    file.write(_statement(partial / _STATE, step))
                    file.flush()
                    os.fsync(file.fileno())
                if target.exists():
                    if _whole(target, step):
                        return
                    self._set_aside(step)
                os.rename(partial, target)
                sync_folder(self._folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
            for old in self.steps()[: -self._keep]:
                shutil.rmtree(self._folder / str(old))

    def restore(self, step: int, like: Pytree) -> Pytree:
        """The state of ``step`` as host arrays; ``like`` has its structure, shapes and dtypes.

        Raises DamagedFile where the checkpoint is not what was written, ValueError where it is whole and its state has another
        structure.
        """
        place = self._folder / str(step)
        _verify(place, step)
        wanted = _named(like)
        layout = _layout(place)
        expected = {name: _kind(leaf) for name, leaf in wanted.items()}
        if differing := sorted(name for name in layout.keys() | expected if layout.get(name) != expected.get(name)):
            first = differing[0]
            raise ValueError(
                f"{place} has another structure: {first} is {layout.get(first, 'not there')}, "
                f"expected {expected.get(first, 'nothing of this name')} ({len(differing)} of {len(expected)} differ)"
            )
        stored = read_npz(place / _STATE, limit=size_of(like), name=str(place), only=tuple(wanted))
        for name, leaf in wanted.items():
            if str(stored[name].dtype) != str(leaf.dtype):
                stored[name] = stored[name].view(leaf.dtype).reshape(stored[name].shape[:-1])
            if _kind(stored[name]) != expected[name]:
                raise DamagedFile(f"{place}: {name} is {_kind(stored[name])}, said to be {expected[name]}")
        state = jax.tree.unflatten(jax.tree.structure(like), [stored[name] for name in wanted])
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
            except (DamagedFile, OSError) as error:
                if isinstance(error, PermissionError):
                    raise
                if not (self._folder / str(step)).exists():
                    # Removed by the training that goes on here, which has newer ones.
                    return self.newest(like, say=say, owned=owned)
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
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(like))


def _named(tree: Pytree) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _bytes(leaf: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(leaf).reshape(*leaf.shape, 1).view(np.uint8)


def _statement(path: Path, step: int) -> bytes:
    """The line that ``sha256sum <step>/state.npz`` prints in the folder of the checkpoints."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return f"{digest.hexdigest()}  {step}/{_STATE}\n".encode()


def _verify(place: Path, step: int) -> None:
    for name in (_STATE, _SUM):
        if not (place / name).is_file():
            raise DamagedFile(f"{place / name} is missing")
    stated, found = (place / _SUM).read_bytes(), _statement(place / _STATE, step)
    if stated != found:
        raise DamagedFile(
            f"{place / _SUM} says {stated[:200].decode(errors='replace').strip()!r}, the file is {found.decode().strip()!r}"
        )


def _whole(place: Path, step: int) -> bool:
    try:
        _verify(place, step)
    except (DamagedFile, OSError):
        return False
    return True


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype} {tuple(leaf.shape)}"


def _layout(place: Path) -> dict[str, str]:
    """The dtype and the shape of every leaf, as stated when it was stored."""
    text = str(read_npz(place / _STATE, limit=64 * _BLOCK, name=str(place), only=(_LAYOUT,))[_LAYOUT])
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise DamagedFile(f"{place / _STATE} does not say what its arrays are") from error


@dataclass(frozen=True)
class SaveEvery:
    """A hook of the training loop that saves every so many steps, and after the last."""

    every: int
    checkpoints: Checkpoints = field(repr=False)

    def __call__(self, step: int, state: Pytree, window: Any) -> None:
        """Save the state of ``step``."""
        self.checkpoints.save(step, state)
