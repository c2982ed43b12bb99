"""Checkpoints by orbax: one folder per step, there complete or not at all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from scorelab.typing import Pytree


class Checkpoints:
    """The checkpoints of one run, the newest ``keep`` of them.

    A checkpoint is written under a temporary name and renamed, so one that a kill interrupted is never seen,
    and its remains are removed when the folder is opened again. The state is stored as host arrays: it can be
    read with another number of devices.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            # The next training step consumes the arrays, and a run must know that its checkpoint is there.
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(folder.resolve(), options=options)

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Pytree) -> None:
        """Write the state of ``step``; nothing where it is there already."""
        if step not in self._manager.all_steps():
            host = jax.tree.map(np.array, jax.device_get(state))
            self._manager.save(step, args=ocp.args.StandardSave(host), force=True)
            self._manager.wait_until_finished()

    def restore(self, step: int, like: Pytree) -> Pytree:
        """The state of ``step`` as host arrays; ``like`` has its structure, shapes and dtypes.

        Raises ValueError where the stored state has another structure.
        """
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Release orbax's threads."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *details) -> None:
        self.close()


@dataclass(frozen=True)
class SaveEvery:
    """A hook of the training loop that saves every so many steps, and after the last."""

    every: int
    checkpoints: Checkpoints = field(repr=False)

    def __call__(self, step: int, state: Pytree, window: Any) -> None:
        """Save the state of ``step``."""
        self.checkpoints.save(step, state)
