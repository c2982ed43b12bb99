"""From stored arrays to what a loss takes, on the device: scaling runs inside the training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree
from scorelab.data.batches import Batches
from scorelab.data.transforms import Transform
from scorelab.validation import require_spec


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """``{"x": stored values, ...}`` to ``{"x": floating point, "cond": condition or None}``, traceable.

    Attributes:
        transform: such as ``scorelab.data.Pixels()``; None casts ``x`` to float32.
        cond: the name of the array that is the condition (``"label"``), or None to train without one.
            Integers are the numbers of classes, and become int32.
    """

    transform: Transform | None = None
    cond: str | None = None

    def __post_init__(self):
        if self.transform is not None:
            require_spec(self, Transform, transform=self.transform)

    def __call__(self, batch: dict[str, Array]) -> dict[str, Pytree]:
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

    Errors, where the batches are of arrays in memory: ValueError or TypeError for data that the transform does not take, for an
    unknown ``cond``, for classes below 0 and for conditions that are not finite.
    """

    batches: Any
    transform: Transform | None = None
    cond: str | None = None

    def __post_init__(self):
        if not callable(getattr(self.batches, "at", None)):
            raise TypeError(f"Prepared.batches = {self.batches!r}: expected an object with at(step)")
        _ = self.prepare
        if isinstance(self.batches, Batches) and self.batches.columns is not None:
            self._check(self.batches.columns, self.batches.levels)

    def _check(self, columns: Mapping[str, Any], levels: int | None) -> None:
        if "x" not in columns:
            raise ValueError(f"Prepared.batches has the arrays {sorted(columns)}: expected one that is named 'x'")
        if self.transform is not None:
            self.transform.check(np.asarray(columns["x"]), levels)
        if self.cond is None:
            return
        if self.cond not in columns:
            raise ValueError(f"Prepared.cond = {self.cond!r}: expected one of {sorted(columns)}")
        values = np.asarray(columns[self.cond])
        if np.issubdtype(values.dtype, np.integer):
            if values.size and not 0 <= values.min() <= values.max() <= np.iinfo(np.int32).max:
                raise ValueError(
                    f"Prepared.cond = {self.cond!r} has values from {values.min()} to {values.max()}: expected classes 0, 1, .."
                )
        elif np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            raise ValueError(f"Prepared.cond = {self.cond!r} has values that are NaN or infinite: expected finite numbers")

    @property
    def prepare(self) -> Prepare:
        """The spec that runs inside the step; equal ones share a compilation."""
        return Prepare(transform=self.transform, cond=self.cond)

    def at(self, step: int, *shard: int) -> dict[str, Array]:
        """The stored batch of ``step``."""
        return self.batches.at(step, *shard)
