"""Array aliases, the shape vocabulary, and what a model is.

Shapes. ``x`` lives in data space and ``y = chart(x)`` in the latent (chart) space of a process; both have shape
``(batch, *event)``. Times ``t`` are a scalar or ``(batch,)``. Labels and other conditions ``cond`` have a leading
batch axis. Steps go from ``t`` to ``s`` (``s`` nearer to the data).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Array = jax.Array | np.ndarray
Key = jax.Array
Scalar = Array | float
Pytree = Any
T = TypeVar("T")


def computed(get: Callable[[Any], T]) -> T:
    """A property in the place of an attribute that the base class declares: to its readers they are the same."""
    return cast(T, property(get))


def per_example(value: Array | float, like: Array) -> Array:
    """Give a scalar or ``(batch,)`` coefficient trailing axes so that it broadcasts against ``like``."""
    value = jnp.asarray(value)
    if value.ndim == 0:
        return value
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def per_example_keys(key: Key, ids: Array) -> Key:
    """One key per sample id: what a sample draws depends on its id, never on the batch around it."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)


def folded(keys: Key, stream: Array | int) -> Key:
    """Of every key another one, for a stream of its own."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stream)


def per_example_normal(keys: Key, like: Array) -> Array:
    """Standard normal noise shaped like ``like``, row ``i`` drawn from ``keys[i]``.

    Floating point numbers in the place of keys are that noise itself: who steps a solver by hand may say what is drawn.
    """
    if jnp.issubdtype(keys.dtype, jnp.floating):
        require_shape("noise in the place of keys", keys, like)
        return keys.astype(like.dtype)
    return jax.vmap(lambda k: jax.random.normal(k, like.shape[1:], like.dtype))(keys)


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

        def unflatten(static, numbers):
            structure, fixed, values = static
            numbers = iter(numbers)
            leaves = [next(numbers) if kept is None else kept for kept in fixed]
            spec = object.__new__(cls)
            fields = (*zip(names, jax.tree.unflatten(structure, leaves), strict=True), *zip(others, values, strict=True))
            for name, value in fields:
                object.__setattr__(spec, name, value)
            return spec

        jax.tree_util.register_pytree_node(cls, flatten, unflatten)
        return cls

    return register


def _is_spec(leaf: Any) -> bool:
    # JAX rebuilds trees with bare objects in the place of numbers, so whatever is not known to be a spec counts as a number.
    number = isinstance(leaf, int | float | complex) or hasattr(leaf, "dtype")
    return not number and type(leaf) is not object


def float_like(x: Pytree) -> Any:
    """The type of numbers about ``x``: that of its first floating point leaf, the default one for integers."""
    kinds = [leaf.dtype for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return kinds[0] if kinds else jax.dtypes.canonicalize_dtype(float)


def on_host(array: Array | float) -> np.ndarray:
    """The values, also of an array that is spread over several processes (all of which have to ask)."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def is_traced(*trees: Pytree) -> bool:
    """True where a leaf belongs to a program that is being traced, so that its value is not known yet."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def is_model_pytree(model: Any) -> bool:
    """True when ``model`` is a registered pytree (its parameters are leaves), false for a bare function."""
    return not jax.tree_util.all_leaves([model])


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
