"""What stands inside a model: one walk over it, for all that looks for models there or replaces them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


def map_parts(fn: Callable[[Any], Any], model: Any, *, kind: type | tuple[type, ...] = (), static: bool = True) -> Any:
    """``model`` with ``fn(part)`` in the place of every part directly inside it; itself where nothing has changed.

    A part is a dataclass, or an instance of ``kind``, in a field or in a pytree that a field holds. ``static=False`` leaves out
    fields that are marked as static. A model with ``has_parts = False`` has none.
    """

    if not getattr(model, "has_parts", True):
        # The parameters of a network are many, and no models: a walk over them would cost each small call a third more.
        return model

    def is_part(value):
        return value is not model and (_is_whole(value) or isinstance(value, kind))

    def mapped(value):
        parts, structure = jax.tree.flatten(value, is_leaf=is_part)
        new = [fn(part) if is_part(part) else part for part in parts]
        return value if all(a is b for a, b in zip(new, parts, strict=True)) else jax.tree.unflatten(structure, new)

    if not _is_whole(model):
        return mapped(model)
    # By field, since a pytree with static fields may hand out the numbers of the models inside and not these.
    fields = [field for field in dataclasses.fields(model) if static or not field.metadata.get("static")]
    old = {field.name: getattr(model, field.name, None) for field in fields}
    changed = {name: new for name, value in old.items() if (new := mapped(value)) is not value}
    return dataclasses.replace(model, **changed) if changed else model


def parts_of(model: Any, *, kind: type | tuple[type, ...] = (), static: bool = True) -> list[Any]:
    """The parts directly inside ``model``, as :func:`map_parts` finds them."""
    found = []

    def note(part):
        found.append(part)
        return part

    map_parts(note, model, kind=kind, static=static)
    return found


def contains(model: Any, kind: type) -> bool:
    """Whether ``model`` is of a kind, or a model inside of it."""
    return isinstance(model, kind) or any(contains(part, kind) for part in parts_of(model, kind=kind))


def _is_whole(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)
