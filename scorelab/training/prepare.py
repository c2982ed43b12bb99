"""From stored arrays to what a loss takes, on the device: scaling runs inside the training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree
from scorelab.data.arrays import not_known_or_finite
from scorelab.data.batches import Batches
from scorelab.data.dequantised import Dequantised
from scorelab.data.transforms import Cells, Transform
from scorelab.validation import require_spec

# The name of the array that is the condition, several of them, or by member.
Names = str | tuple[str, ...] | tuple[tuple[str, str], ...] | Mapping[str, str] | None


@dataclass(frozen=True, kw_only=True)
class Prepare:
    """``{"x": stored values, ...}`` to ``{"x": floating point, "cond": condition or None, ...}``, traceable.

    A condition is taken as it is stored: integers ``(batch,)`` are the numbers of classes, and become int32; floating point numbers
    stay. Images that are stored as pixels, uint8 ``(batch, height, width, channels)``, are scaled by the transform as ``x`` is.
    Where a batch has ``places`` (:class:`scorelab.data.Dequantised`), the levels of ``x`` go there in their cells. All other arrays
    of the batch stay beside, as they are. An array that is named ``cond`` and is not the condition is refused, since a model would
    be trained without it.

    Attributes:
        transform: such as ``scorelab.data.Pixels()``; None casts ``x``, and pixels, to float32.
        cond: the name of the array that is the condition (``"label"``), or None to train without one. Several names,
            ``("label", "image")``, make a dict. A dict ``{"kind": "label"}`` says which array each member of the condition is.
    """

    transform: Transform | None = None
    cond: Names = None

    def __post_init__(self):
        if self.transform is not None:
            require_spec(self, Transform, transform=self.transform)
        object.__setattr__(self, "cond", condition_names(f"{type(self).__name__}.cond", self.cond))

    def __call__(self, batch: dict[str, Array]) -> dict[str, Pytree]:
        x = batch["x"]
        if missing := [name for name in self.taken if name not in batch]:
            raise ValueError(f"Prepare.cond = {missing[0]!r}: expected one of {sorted(batch)}")
        if batch.get("cond") is not None:
            self.require_used("Prepare")
        if "places" in batch:
            x = self._placed(x, batch["places"])
        else:
            x = jnp.asarray(x, jnp.float32) if self.transform is None else self.transform.encode(x)
        others = {name: value for name, value in batch.items() if name not in ("x", "places", *self.taken)}
        return {**others, "x": x, "cond": self.condition(batch)}

    def _placed(self, x: Array, places: Array) -> Array:
        if not isinstance(self.transform, Cells):
            raise TypeError(
                f"Prepare.transform = {self.transform!r} for batches with places: expected one with cells, such as Pixels()"
            )
        return self.transform.at(x, places)

    def condition(self, batch: Mapping[str, Array]) -> Pytree:
        """The condition of a stored batch, as the network is given it; None where there is none."""
        if self.cond is None or isinstance(self.cond, str):
            return None if self.cond is None else self._member(batch[self.cond])
        return {name: self._member(batch[key]) for name, key in self.cond}

    @property
    def taken(self) -> tuple[str, ...]:
        """The names of the arrays that the condition is made of."""
        return (self.cond,) if isinstance(self.cond, str) else tuple(key for _, key in self.cond or ())

    def require_used(self, owner: str) -> None:
        """Raise ValueError where an array of the name ``cond`` would be left out."""
        if "cond" not in self.taken:
            raise ValueError(
                f"{owner}.cond = {self.cond!r} for data with an array that is named 'cond': expected cond='cond', or no such array"
            )

    def _member(self, value: Array) -> Array:
        value = jnp.asarray(value)
        if is_pixels(value):
            return value.astype(jnp.float32) if self.transform is None else self.transform.encode(value)
        return value.astype(jnp.int32) if jnp.issubdtype(value.dtype, jnp.integer) else value


def is_pixels(value: Array) -> bool:
    """Whether a stored array is images of integer levels."""
    return value.dtype == np.uint8 and value.ndim == 4


def condition_names(where: str, cond: Any) -> Any:
    """None, one name, or pairs of a member of the condition and the array it is, from what :class:`Prepare` takes; TypeError."""
    if cond is None or isinstance(cond, str):
        return cond
    pairs = cond.items() if isinstance(cond, Mapping) else cond if isinstance(cond, tuple | list) else ()
    pairs = tuple((pair, pair) if isinstance(pair, str) else tuple(pair) for pair in pairs)
    fits = all(len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs)
    if not pairs or not fits or len({name for name, _ in pairs}) != len(pairs):
        raise TypeError(f"{where} = {cond!r}: expected None, the name of an array, several different names, or a dict of names")
    return pairs


@dataclass(frozen=True, eq=False)
class Prepared:
    """Batches together with the way to prepare them: what ``fit`` takes.

    ``Prepared(Batches(arrays, 128), transform=Pixels(), cond="label")``.

    Attributes:
        batches: anything with ``at(step)`` (and ``at(step, host, hosts)`` on several hosts).
        transform: see :class:`Prepare`.
        cond: see :class:`Prepare`.

    Errors, where the batches are of arrays in memory: ValueError or TypeError for data that the transform does not take, for an
    unknown ``cond``, for an array named ``cond`` that is not the condition, for classes below 0 and for conditions that are not
    finite.
    """

    batches: Any
    transform: Transform | None = None
    cond: Names = None

    def __post_init__(self):
        if not callable(getattr(self.batches, "at", None)):
            raise TypeError(f"Prepared.batches = {self.batches!r}: expected an object with at(step)")
        _ = self.prepare
        inner = self.batches.batches if isinstance(self.batches, Dequantised) else self.batches
        if isinstance(inner, Batches) and inner.columns is not None:
            self._check(inner.columns, inner.levels)

    def _check(self, columns: Mapping[str, Any], levels: int | None) -> None:
        if "x" not in columns:
            raise ValueError(f"Prepared.batches has the arrays {sorted(columns)}: expected one that is named 'x'")
        if "cond" in columns:
            self.prepare.require_used("Prepared")
        if self.transform is not None:
            self.transform.check(np.asarray(columns["x"]), levels)
        for name in self.prepare.taken:
            self._check_condition(name, columns, levels)

    def _check_condition(self, name: str, columns: Mapping[str, Any], levels: int | None) -> None:
        if name not in columns:
            raise ValueError(f"Prepared.cond = {name!r}: expected one of {sorted(columns)}")
        values = np.asarray(columns[name])
        if is_pixels(values):
            if self.transform is not None:
                self.transform.check(values, levels)
        elif np.issubdtype(values.dtype, np.integer):
            if values.size and not 0 <= values.min() <= values.max() <= np.iinfo(np.int32).max:
                raise ValueError(
                    f"Prepared.cond = {name!r} has values from {values.min()} to {values.max()}: expected classes 0, 1, .."
                )
        elif np.issubdtype(values.dtype, np.floating):
            bad = not_known_or_finite(values) if values.ndim > 1 else np.flatnonzero(~np.isfinite(values))
            if bad.size:
                raise ValueError(
                    f"Prepared.cond = {name!r} has values that are NaN or infinite, first in row {bad[0]}: expected finite numbers"
                    + (", or rows that are NaN as a whole" if values.ndim > 1 else "")
                )

    @property
    def prepare(self) -> Prepare:
        """The spec that runs inside the step; equal ones share a compilation."""
        return Prepare(transform=self.transform, cond=self.cond)

    def at(self, step: int, *shard: int) -> dict[str, Array]:
        """The stored batch of ``step``."""
        return self.batches.at(step, *shard)
