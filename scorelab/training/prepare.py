"""From stored arrays to what a loss takes, on the device: scaling runs inside the training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from scorelab.typing import Array, Pytree


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """``{"x": stored values, ...}`` to ``{"x": floating point, "cond": condition or None}``, traceable.

    Attributes:
        transform: a spec with ``encode``, such as ``scorelab.data.Pixels()``; None casts ``x`` to float32.
        cond: the name of the array that is the condition (``"label"``), or None to train without one.
            Integers become int32.
    """

    transform: Any = None
    cond: str | None = None

    def __post_init__(self):
        if self.transform is not None and not callable(getattr(self.transform, "encode", None)):
            raise TypeError(f"Prepare.transform = {self.transform!r}: expected encode(x), or None")

    def __call__(self, batch: dict[str, Array]) -> dict[str, Pytree]:
        """See the class."""
        x = batch["x"]
        cond = None
        if self.cond is not None:
            if self.cond not in batch:
                raise ValueError(f"Prepare.cond = {self.cond!r}: expected one of {sorted(batch)}")
            cond = jnp.asarray(batch[self.cond])
            cond = cond.astype(jnp.int32) if jnp.issubdtype(cond.dtype, jnp.integer) else cond
        x = jnp.asarray(x, jnp.float32) if self.transform is None else self.transform.encode(x)
        return {"x": x, "cond": cond}


@dataclass(frozen=True, eq=False)
class Prepared:
    """Batches together with the way to prepare them: what ``fit`` takes.

    ``Prepared(Batches(arrays, 128), transform=Pixels(), cond="label")``.

    Attributes:
        batches: anything with ``at(step)`` (and ``at(step, host, hosts)`` on several hosts).
        transform: see :class:`Prepare`.
        cond: see :class:`Prepare`.
    """

    batches: Any
    transform: Any = None
    cond: str | None = None

    def __post_init__(self):
        if not callable(getattr(self.batches, "at", None)):
            raise TypeError(f"Prepared.batches = {self.batches!r}: expected an object with at(step)")
        _ = self.prepare

    @property
    def prepare(self) -> Prepare:
        """The spec that runs inside the step; equal ones share a compilation."""
        return Prepare(transform=self.transform, cond=self.cond)

    def at(self, step: int, *shard: int) -> dict[str, Array]:
        """The stored batch of ``step``."""
        return self.batches.at(step, *shard)
