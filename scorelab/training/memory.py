"""The memory of a device that a training step takes, and which batch would fit where it does not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from scorelab.arrays import Pytree
from scorelab.data.memory import memory_size

# How JAX says that a device, or the compiler for one, has no memory left.
_EXHAUSTED = "RESOURCE_EXHAUSTED"
# The compiler for a TPU: "Used 20.10G of 15.75G hbm".
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?)")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device in a step of training.

    Attributes:
        state: parameters, optimiser, averages; with the arrays that a learner keeps and does not train, such as a teacher's.
        batch: the examples of one batch.
        work: what else the compiled program needs, gradients and activations most of all; None where the compiler does not say.
        limit: of the device; infinity where nothing says.
        devices: their number.
    """

    state: int
    batch: int
    work: int | None
    limit: float
    devices: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.batch + (self.work or 0)

    def __str__(self) -> str:
        parts = [f"{_size(self.state)} state", f"{_size(self.batch)} batch"]
        if self.work is not None:
            parts.append(f"{_size(self.work)} gradients and activations")
        share = f", {100 * self.total / self.limit:.2g} % of {_size(self.limit)}" if math.isfinite(self.limit) else ""
        return f"memory per device: {_size(self.total)} ({', '.join(parts)}){share}"


class OutOfMemory(MemoryError):
    """The devices have no memory for a step with this batch.

    Attributes:
        batch_size: of the batch, over all devices.
        fits: the largest batch that fits by an estimate, 0 where none does.
    """

    def __init__(self, batch_size: int, fits: int, message: str):
        super().__init__(message)
        self.batch_size, self.fits = batch_size, fits


def measured(update: Any, state: Pytree, batch: Pytree, key: Pytree, *, mesh: Mesh, compiles: bool = True) -> Memory:
    """The memory of ``update(state, batch, key)``, of arrays on the devices or of shapes that say where they lie.

    It compiles what the first call then finds compiled; without ``compiles`` only shapes are counted.
    """
    work = None
    if compiles and (found := update.lower(state, batch, key).compile().memory_analysis()) is not None:
        # Outputs that take the place of an argument are no memory of their own.
        work = found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    arrays = getattr(update, "arrays", ())
    return Memory(state=_held((state, arrays)), batch=_held(batch), work=work, limit=_limit(mesh), devices=mesh.devices.size)


def ran_out(error: Exception) -> bool:
    """Whether an error of JAX says that there is no memory left."""
    return _EXHAUSTED in str(error)


def exhausted(step: int, batch_size: int, memory: Callable[[bool], Memory], error: Exception, learner: Any) -> OutOfMemory:
    """The error of a step whose ``batch_size`` examples do not fit; ``memory(compiles)`` is that of the step."""
    try:
        known = memory(True)
    except jax.errors.JaxRuntimeError:
        # It was the compiler that refused it.
        known = memory(False)
    said = str(error)
    fits = batch_that_fits(batch_size, known, said)
    would = f"a batch of {fits} would, by an estimate" if fits else "no smaller one does, by an estimate"
    parts = f", or {type(learner).__name__}.accumulate, which keeps it" if hasattr(learner, "accumulate") else ""
    message = (
        f"step {step}: a batch of {batch_size} on {known.devices} device{'s' if known.devices > 1 else ''} does not fit ({known}): "
        f"{would}. What takes less: a smaller batch_size{parts}; remat = True and "
        "dtype = 'bfloat16' of the network; Sharding(fully_sharded=True) over more devices; fewer averages. "
        f"The device said: {said.splitlines()[0][:300]}"
    )
    return OutOfMemory(batch_size, fits, message)


def batch_that_fits(batch_size: int, memory: Memory, said: str = "") -> int:
    r"""The largest batch, a multiple of the devices, that fits by the linear law of what a step needs; 0 where none does.

    .. math:: M(B) = M_0 + B\,m \le 0.9\,\text{limit},\qquad M_0 = \tfrac54\,\text{state}

    The gradients in :math:`M_0` are a quarter of the state, as under Adam with an average, and ``m`` follows from what this batch
    needs: by the compiled program, or by the message of the compiler that refused it. Where neither says more than the device has
    (something else lies there), it is half of the batch.
    """
    need, limit = (0.0 if memory.work is None else float(memory.total)), memory.limit
    if (found := _USED.search(said)) is not None:
        used, there = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
        need, limit = max(need, used), min(limit, there)
    fixed, room = 1.25 * memory.state, 0.9 * limit
    share = 0.5 if need <= room else min(max(0.0, (room - fixed) / max(need - fixed, 1.0)), 1.0)
    fits = int(batch_size * share) // memory.devices * memory.devices
    return min(fits, batch_size - memory.devices)


_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


def _held(tree: Pytree) -> int:
    """Bytes on one device."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _limit(mesh: Mesh) -> float:
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return memory_size() / len(mesh.local_devices)
    try:
        stats = device.memory_stats()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return math.inf
    return float((stats or {}).get("bytes_limit", math.inf))


def _size(count: float) -> str:
    unit = next((u for u in ("T", "G", "M", "K") if count >= 1000 ** "KMGT".index(u) * 1000), "")
    return f"{count / 1000 ** ('KMGT'.index(unit) + 1):.3g} {'k' if unit == 'K' else unit}B" if unit else f"{count:.0f} B"
