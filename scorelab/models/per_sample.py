"""What a model holds for each sample, guidance scales ``(n,)`` or conditions: sampling in chunks takes their rows along."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Pytree, is_traced
from scorelab.validation import owner

# Metadata of a dataclass field whose value may have a leading axis of samples: field(metadata=PER_SAMPLE).
PER_SAMPLE = {"per_sample": True}


def require_numbers(spec: object, *, minimum: float = -math.inf, above: float = -math.inf, **fields: Any) -> None:
    """Raise ``ValueError`` naming the first field that is not a finite number, or one for each sample, in its range.

    Traced numbers pass, and so does what is none at all: pytree reconstruction passes placeholders through constructors.
    """
    for name, value in fields.items():
        number = isinstance(value, str | int | float | complex | list | tuple | np.ndarray | np.generic | jax.Array)
        if not number or is_traced(value) or (isinstance(value, jax.Array) and not value.is_fully_addressable):
            continue
        found = np.asarray(value)
        real = jnp.issubdtype(found.dtype, jnp.floating) or jnp.issubdtype(found.dtype, jnp.integer)
        if found.ndim > 1 or not real or not np.all(np.isfinite(found) & (found >= minimum) & (found > above)):
            bound = f" of at least {minimum:g}" if minimum > -math.inf else f" above {above:g}" if above > -math.inf else ""
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected a finite number{bound}, or one for each sample (n,)")


def map_per_sample(fn: Callable[[str, Array], Any], model: Pytree) -> Pytree:
    """The model with ``fn(name, value)`` in the place of every per-sample value; models inside models are searched.

    A value that is a scalar is the same for all samples and stays. The model itself comes back where nothing has changed.
    """
    if not dataclasses.is_dataclass(model) or isinstance(model, type):
        return model
    changed = {}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if field.metadata.get("static"):
            continue
        if field.metadata.get("per_sample"):
            name = f"{type(model).__name__}.{field.name}"
            new = jax.tree.map(lambda leaf, name=name: fn(name, leaf) if jnp.ndim(leaf) else leaf, value)
            if all(a is b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(value), strict=True)):
                new = value
        elif isinstance(value, tuple) and any(dataclasses.is_dataclass(v) for v in value):
            parts = [map_per_sample(fn, v) for v in value]
            new = value if all(a is b for a, b in zip(parts, value, strict=True)) else tuple(parts)
        else:
            new = map_per_sample(fn, value)
        if new is not value:
            changed[field.name] = new
    return dataclasses.replace(model, **changed) if changed else model


def per_sample_values(model: Pytree) -> dict[str, Array]:
    """The per-sample values of a model by name; several arrays of one field are told apart by their number."""
    found = {}

    def note(name, value):
        found[f"{name}[{len(found)}]" if name in found else name] = value
        return value

    map_per_sample(note, model)
    return found
