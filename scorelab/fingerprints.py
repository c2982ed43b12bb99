"""What a Python function follows from, as one number: its code, and the values and functions that it refers to."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.pytrees import content

_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def fingerprint(fn: Callable) -> str:
    """SHA-256 of what a function follows from, as far as Python shows it.

    That is its compiled code, defaults, enclosed values and the global ones that it names; the same of the functions, classes and
    objects among them that are no part of an installed package; bytes of arrays and of tensors. An object of an installed package
    counts by its ``repr`` and by its ``state_dict()``, as modules of torch do, or else by the arrays, such modules, and functions
    that its attributes hold; a function of one by its name and what it encloses. Comments do not count, and the version of Python
    does.

    Values count as they are now. So does what a function collects while it is called, such as a list, but for the cache of
    ``functools.lru_cache`` and what ``__getstate__`` of a class of the caller leaves out, as for pickle.

    Raises:
        TypeError: a tensor whose numbers cannot be read.
    """
    digest = hashlib.sha256("{}.{}".format(*sys.version_info).encode())
    for piece in _pieces(fn, {}):
        digest.update(b"%d " % len(piece) + piece)
    return digest.hexdigest()


def _pieces(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """What a value follows from, as texts in an order that does not depend on the process; ``seen`` keeps what was met alive."""
    yield type(value).__name__.encode()
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
        return
    # Which constants are one object depends on whether the code was compiled or read.
    if not isinstance(value, _CONSTANT):
        if id(value) in seen:
            # Which one it is.
            yield str(seen[id(value)][0]).encode()
            return
        seen[id(value)] = len(seen), value
    each = functools.partial(_each, seen=seen)
    if isinstance(value, types.CodeType):
        yield value.co_code
        yield value.co_exceptiontable
        yield from each((value.co_names, value.co_varnames, value.co_freevars, value.co_flags, *value.co_consts))
    elif isinstance(value, tuple | list):
        yield from each((len(value), *value))
    elif isinstance(value, Mapping):
        yield from each((len(value), *value.keys(), *value.values()))
    elif isinstance(value, Set):
        # Their order depends on the process.
        yield from sorted(b" ".join(_pieces(item, dict(seen))) for item in value)
    elif isinstance(value, types.ModuleType):
        yield value.__name__.encode()
    elif isinstance(value, types.FunctionType):
        yield f"{value.__module__}.{value.__qualname__}".encode()
        inside = inspect.getclosurevars(value).nonlocals
        if not _own(value.__code__.co_filename, value.__module__):
            # Around a function of the caller, such as torch.no_grad makes it.
            yield from each((inside, getattr(value, "__wrapped__", None)))
        else:
            yield from each((value.__code__, value.__defaults__, value.__kwdefaults__, inside, _globals(value)))
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}".encode()
        if _own(_file(value), value.__module__):
            own = {k: part for k, part in vars(value).items() if callable(part) or not k.startswith("__")}
            yield from each((value.__bases__, own))
    elif parts := [getattr(value, name) for name in _PARTS.get(type(value), ())]:
        yield from each(parts)
    elif (array := _array(value)) is not None:
        yield str(cast(Any, value).dtype).encode()
        yield from each((array.shape, *array.ravel())) if array.dtype == object else (content(array).encode(),)
    elif _own(_file(type(value)), type(value).__module__):
        yield from each((type(value), value.__getstate__()))
    elif (wrapped := getattr(value, "__wrapped__", None)) is not None:
        # Around a function: of functools.lru_cache, or of jax.jit.
        yield from each((wrapped,))
    else:
        yield _ADDRESS.sub("", repr(value)).encode()
        # A repr has no weights, or few of them.
        state = getattr(value, "state_dict", None)
        yield from each((state(),) if callable(state) else _held(value))


# What may be one object or several equal ones.
_CONSTANT = (tuple, frozenset, types.CodeType, types.MethodType)
# Of what else holds functions, where.
_PARTS: dict[type, tuple[str, ...]] = {
    functools.partial: ("func", "args", "keywords"),
    functools.cached_property: ("func",),
    types.MethodType: ("__func__", "__self__"),
    property: ("fget", "fset"),
    classmethod: ("__func__",),
    staticmethod: ("__func__",),
}


def _each(values: Iterable[Any], seen: dict[int, Any]) -> Iterator[bytes]:
    for value in values:
        yield from _pieces(value, seen)


def _held(value: Any) -> Iterator[Any]:
    """The arrays, modules, functions and objects of the caller that an object of an installed package holds."""
    todo, met = [value], {}
    while todo:
        part = todo.pop()
        if isinstance(part, (*_PLAIN, type, types.ModuleType)) or id(part) in met:
            continue
        met[id(part)] = part
        if isinstance(part, Mapping):
            todo += reversed(tuple(part.values()))
        elif isinstance(part, tuple | list):
            todo += reversed(part)
        elif part is not value and (
            isinstance(part, types.FunctionType | types.MethodType)
            or (hasattr(part, "dtype") and hasattr(part, "shape"))
            or callable(getattr(part, "state_dict", None))
            or _own(_file(type(part)), type(part).__module__)
        ):
            yield part
        else:
            todo += reversed(tuple(getattr(part, "__dict__", {}).values()))


def _array(value: Any) -> np.ndarray | None:
    if not (hasattr(value, "dtype") and hasattr(value, "shape")):
        return None
    try:
        if callable(getattr(value, "detach", None)):
            # A tensor of torch. NumPy does not know all of its types: those of few bits are numbers of float32.
            value = value.detach().cpu()
            return (value.float() if "bfloat" in str(value.dtype) or "float8" in str(value.dtype) else value).numpy()
        typed = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(value) if typed else value)
    except Exception as error:
        raise TypeError(
            f"a function that refers to a {type(value).__name__} of {value.dtype} and shape {value.shape}, whose numbers cannot be "
            f"read: expected what NumPy can hold ({error})"
        ) from error
    # What only has a shape, and no numbers, becomes an array of itself.
    return None if array.dtype == object and not array.ndim and array.item() is value else array


def _globals(fn: types.FunctionType) -> dict[str, Any]:
    """The global values that a function names, and of modules that are no part of a package what it names of them."""
    found, todo, names = {}, [fn.__code__], set()
    while todo:
        code = todo.pop()
        names |= set(code.co_names)
        todo += [part for part in code.co_consts if isinstance(part, types.CodeType)]
    for name in sorted(names & fn.__globals__.keys()):
        found[name] = value = fn.__globals__[name]
        if isinstance(value, types.ModuleType) and _own(getattr(value, "__file__", None), value.__name__):
            found |= {f"{name}.{part}": vars(value)[part] for part in sorted(names & vars(value).keys())}
    return found


def _file(cls: type) -> str | None:
    return getattr(sys.modules.get(cls.__module__), "__file__", None)


def _own(file: str | None, module: str | None) -> bool:
    """Whether code is the caller's: no part of this package, of Python, or of what is installed."""
    if module is None:
        # Made of a text, in a name space without a name.
        return True
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return False
    if not file:
        # What is typed into a notebook or a shell has no file.
        return module == "__main__"
    path = Path(file)
    return not ({"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib")))
