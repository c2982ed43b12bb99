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
from scorelab.models.parts import map_parts
from scorelab.validation import owner

# Metadata of a dataclass field whose value may have a leading axis of samples: field(metadata=PER_SAMPLE). Where one value is an
# array itself, the name of another field that is shaped like one: field(metadata={"per_sample": "mask"}).
PER_SAMPLE = {"per_sample": True}


def require_numbers(spec: object, *, minimum: float = -math.inf, above: float = -math.inf, **fields: Any) -> None:
    """Raise ``ValueError`` naming the first field that is not a finite number, or one for each sample, in its range.

    Traced numbers pass, and so does what is none at all: pytree reconstruction passes placeholders through constructors.
    """
    for name, value in fields.items():
        if not known_numbers(value):
            continue
        found = np.asarray(value)
        real = jnp.issubdtype(found.dtype, jnp.floating) or jnp.issubdtype(found.dtype, jnp.integer)
        if found.ndim > 1 or not real or not np.all(np.isfinite(found) & (found >= minimum) & (found > above)):
            bound = f" of at least {minimum:g}" if minimum > -math.inf else f" above {above:g}" if above > -math.inf else ""
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected a finite number{bound}, or one for each sample (n,)")


def known_numbers(*values: Any) -> bool:
    """Whether all values can be looked at: neither traced nor on another host, nor placeholders of a pytree's reconstruction."""
    kinds = str | int | float | complex | list | tuple | np.ndarray | np.generic | jax.Array
    here = lambda value: not isinstance(value, jax.Array) or is_traced(value) or value.is_fully_addressable
    return all(isinstance(value, kinds) and not is_traced(value) and here(value) for value in values)


def map_per_sample(fn: Callable[[str, Array], Any], model: Pytree) -> Pytree:
    """The model with ``fn(name, value)`` in the place of every per-sample value; models inside models are searched.

    A value that is a scalar is the same for all samples and stays. The model itself comes back where nothing has changed.
    """
    if not dataclasses.is_dataclass(model) or isinstance(model, type):
        return model
    model = map_parts(lambda part: map_per_sample(fn, part), model, static=False)
    changed = {}
    for field in dataclasses.fields(model):
        value, like = getattr(model, field.name), field.metadata.get("per_sample")
        if not like or dataclasses.is_dataclass(value):
            continue
        name, alone = f"{type(model).__name__}.{field.name}", 0 if like is True else jnp.ndim(getattr(model, like))
        new = jax.tree.map(lambda leaf, name=name, alone=alone: fn(name, leaf) if jnp.ndim(leaf) > alone else leaf, value)
        if not all(a is b for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(value), strict=True)):
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
