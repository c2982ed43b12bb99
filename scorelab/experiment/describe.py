"""Resolved specs as JSON: what was run, without running it again."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def describe(value: Any) -> Any:
    """A spec as JSON data: dataclasses with their class and fields, functions with what they close over.

    An optax transformation is a tuple of closures; describing those shows its numbers, so that equal
    descriptions mean equal specs although the objects themselves never compare equal. Arrays are given by
    shape and SHA-256.
    """
    return _describe(value, ())


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if id(value) in above:
        return "(recursive)"
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(key): _describe(item, above) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # repr=False marks bulk (network weights) and bookkeeping (a Flax module's parent).
        fields = {f.name: _describe(getattr(value, f.name), above) for f in dataclasses.fields(value) if f.repr}
        return {"type": _name(type(value)), **fields}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named: Any = value
        return {"type": _name(type(value)), **{k: _describe(v, above) for k, v in named._asdict().items()}}
    if isinstance(value, tuple | list):
        return [_describe(item, above) for item in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        return {"array": list(array.shape), "dtype": str(array.dtype), "sha256": digest}
    if not isinstance(value, type) and hasattr(value, "__dict__") and not jax.tree_util.all_leaves([value]):
        # A law of `densities`, which is a pytree and no dataclass.
        return {"type": _name(type(value)), **{name: _describe(item, above) for name, item in sorted(vars(value).items())}}
    if inspect.ismethod(value):
        return {"method": _name(value), "self": _describe(value.__self__, above)}
    if inspect.isfunction(inner := inspect.unwrap(value) if callable(value) and not isinstance(value, type) else value):
        inside = inspect.getclosurevars(inner).nonlocals if inner.__closure__ else {}
        given = (
            {"defaults": inner.__defaults__, **(inner.__kwdefaults__ or {})} if inner.__defaults__ or inner.__kwdefaults__ else {}
        )
        return {"function": _name(inner), **{k: _describe(v, above) for k, v in sorted({**given, **inside}.items())}}
    return _name(value) if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")) else repr(value)


def spelled(described: Any) -> str:
    """What :func:`describe` says, as a person would type it: ``Karras(steps=18, clean=True, rho=7)``.

    Without fields that are None, and without the process, which all parts of an experiment share.
    """
    if isinstance(described, float):
        return f"{described:g}"
    if isinstance(described, str):
        return repr(described)
    if isinstance(described, list):
        return "(" + ", ".join(map(spelled, described)) + ")"
    if not isinstance(described, Mapping):
        return str(described)
    if "array" in described:
        return f"array{spelled(described['array'])}"
    kind, *rest = [key for key in described if key in ("type", "function", "method")] or [None]
    if kind is None:
        return "{" + ", ".join(f"{key}: {spelled(value)}" for key, value in described.items()) + "}"
    called = str(described[kind]).rpartition(".")[2]
    shown = {key: value for key, value in described.items() if key not in (kind, *rest, "process") and value is not None}
    return f"{called}({', '.join(f'{key}={spelled(value)}' for key, value in shown.items())})"


def _name(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
