"""Checks of fields and arguments; messages name the owner, the value, and what is expected."""

from __future__ import annotations

import dataclasses
from types import UnionType
from typing import Any

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array

# What a seed may be: JAX keeps 32 bits of it (without x64), so 2**32 would be seed 0 again.
SEEDS = 2**32


def require_positive(spec: object, **fields: object) -> None:
    """Raise ``ValueError`` naming the first field that is not a finite number above zero."""
    for name, value in fields.items():
        value = _plain(spec, name, value)
        if not _is(value, int | float) or not 0 < value < float("inf"):
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected a finite number above 0")


def require_int(spec: object, minimum: int, **fields: object) -> None:
    """Raise ``ValueError`` naming the first field that is not an integer of at least ``minimum``."""
    for name, value in fields.items():
        value = _plain(spec, name, value)
        if not _is(value, int) or value < minimum:
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected an integer >= {minimum}")


def require_seed(spec: object, **fields: object) -> None:
    """Raise ``ValueError`` naming the first field that is not an integer in [0, 2**32): beyond it seeds would repeat."""
    for name, value in fields.items():
        value = _plain(spec, name, value)
        if not _is(value, int) or not 0 <= value < SEEDS:
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected an integer seed in [0, {SEEDS - 1}]")


def require_choice(spec: object, choices: tuple, **fields: Any) -> None:
    """Raise ``ValueError`` naming the first field whose value is not one of ``choices``."""
    for name, value in fields.items():
        value = _plain(spec, name, value)
        # Equal is not enough: 1 == True, and an array has no truth value.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            expected = ", ".join(repr(choice) for choice in choices)
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected one of {expected}")


def require_number(spec: object, low: float, high: float | np.floating, **fields: object) -> None:
    """Raise ``ValueError`` naming the first field that is not a number in ``[low, high]``."""
    for name, value in fields.items():
        value = _plain(spec, name, value)
        if not _is(value, int | float) or not low <= value <= high:
            raise ValueError(f"{owner(spec)}.{name} = {value!r}: expected a number in [{low}, {high}]")


def require_spec(spec: object, kind: type | UnionType, **fields: Any) -> None:
    """Raise ``TypeError`` naming the first field that is not an instance of ``kind``."""
    for name, value in fields.items():
        if not isinstance(value, kind):
            wanted = " or ".join(k.__name__ for k in ((kind,) if isinstance(kind, type) else kind.__args__))
            raise TypeError(f"{owner(spec)}.{name} = {value!r}: expected a {wanted}")


def require_shape(what: str, value: Array, like: Array) -> None:
    """Raise ``ValueError`` naming both shapes unless ``value`` is shaped like ``like``: other shapes would broadcast."""
    if jnp.shape(value) != jnp.shape(like):
        raise ValueError(f"{what} has shape {jnp.shape(value)} for y of shape {jnp.shape(like)}: expected the shape of y")
    require_real(what, value)


def require_real(what: str, value: Array | float) -> None:
    """Raise ``ValueError`` naming the dtype unless it is one of real numbers: a cast would drop the imaginary part in silence."""
    dtype = value.dtype if isinstance(value, Array) else np.asarray(value).dtype
    if not any(jnp.issubdtype(dtype, kind) for kind in (np.bool_, jnp.floating, jnp.integer)):
        raise ValueError(f"{what} is {dtype}: expected real numbers")


def owner(spec: object) -> str:
    """How messages name what a field belongs to: the class of an object, the name of a function or a class, a string as it is."""
    return spec if isinstance(spec, str) else getattr(spec, "__name__", type(spec).__name__)


def _plain(spec: object, name: str, value: Any) -> Any:
    """A NumPy scalar as the Python number it is; the field of a spec is rewritten, so that equal specs print alike."""
    if isinstance(value, np.generic):
        value = value.item()
        if dataclasses.is_dataclass(spec) and isinstance(getattr(spec, name, None), np.generic):
            object.__setattr__(spec, name, value)
    return value


def _is(value: Any, kind: type | UnionType) -> bool:
    # True and False count as integers in Python; nobody means that.
    return isinstance(value, kind) and not isinstance(value, bool)
