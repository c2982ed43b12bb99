"""Specs and models as pytrees: what is static, what is a leaf."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax
import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def computed(get: Callable[[Any], T]) -> T:
    """A property in the place of an attribute that the base class declares: to its readers they are the same."""
    return cast(T, property(get))


def partly_static(*names: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: a dataclass becomes a pytree whose named fields hold the leaves; all other fields are static.

    Functions and specs among those fields are static too, so that a bare function and a callable pytree (whose numbers are
    leaves) may stand in the same place. Fields are restored past the constructor, which validates real numbers.
    """

    def register(cls: type[T]) -> type[T]:
        others = tuple(field.name for field in dataclasses.fields(cast("type[DataclassInstance]", cls)) if field.name not in names)

        def flatten(spec):
            leaves, structure = jax.tree.flatten(tuple(getattr(spec, name) for name in names))
            fixed = tuple(leaf if _is_spec(leaf) else None for leaf in leaves)
            numbers = tuple(leaf for leaf, kept in zip(leaves, fixed, strict=True) if kept is None)
            return numbers, (structure, fixed, tuple(getattr(spec, name) for name in others))

        def flatten_with_keys(spec):
            # A key says where a number is, ``0/params/block0/qkv/kernel``: who splits it over devices goes by that.
            paths, _ = jax.tree_util.tree_flatten_with_path(tuple(getattr(spec, name) for name in names))
            places = [jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in paths if not _is_spec(leaf)]
            numbers, static = flatten(spec)
            return [*zip(map(jax.tree_util.GetAttrKey, places), numbers, strict=True)], static

        def unflatten(static, numbers):
            structure, fixed, values = static
            numbers = iter(numbers)
            leaves = [next(numbers) if kept is None else kept for kept in fixed]
            spec = object.__new__(cls)
            fields = (*zip(names, jax.tree.unflatten(structure, leaves), strict=True), *zip(others, values, strict=True))
            for name, value in fields:
                object.__setattr__(spec, name, value)
            return spec

        jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
        return cls

    return register


def _is_spec(leaf: Any) -> bool:
    # JAX rebuilds trees with bare objects in the place of numbers, so whatever is not known to be a spec counts as a number.
    number = isinstance(leaf, int | float | complex) or hasattr(leaf, "dtype")
    return not number and type(leaf) is not object


def is_model_pytree(model: Any) -> bool:
    """True when ``model`` is a registered pytree (its parameters are leaves), false for a bare function."""
    return not jax.tree_util.all_leaves([model])


def content(tree: Any, *, names: bool = True) -> str:
    """SHA-256 of the shapes, dtypes and bytes of the arrays of a pytree in their order, and of its structure with ``names``."""
    leaves, structure = jax.tree.flatten(tree)
    digest = hashlib.sha256(str(structure).encode() if names else b"")
    for leaf in map(np.asarray, leaves):
        digest.update(f"{leaf.shape} {leaf.dtype} ".encode() + np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
