"""Fields of published configs: each is known, is of the type that the network says, and is not larger than any that is published.

A truthy text for a boolean, or NaN for a number, would make another network in silence; a depth of a thousand million would be
traced for ever.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from scorelab.errors import WeightsError
from scorelab.pretrained.keys import listed

# The most of a width, side or number of classes; of blocks in a network; and of entries of a list. Published ones have at most
# 49,408 tokens, some 100 blocks, and 8 levels.
LARGEST, DEEPEST, LONGEST = 2**16, 256, 16
# Beyond it numbers of a config are not finite in any use.
_FINITE = 1e300
_TYPES = {bool: "true or false", int: f"an integer of at most {LARGEST:,}", float: "a finite number", str: "a text"}

T = TypeVar("T")


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_FINITE <= value <= _FINITE


def is_one_of(value: Any, choices: Collection[Any]) -> bool:
    """Whether a value is one of ``choices``; true and 1 are two values, 1 and 1.0 are one."""
    kind = lambda each: float if is_number(each) else type(each)
    return any(kind(value) is kind(choice) and value == choice for choice in choices)


def told(value: Any) -> str:
    """A value in a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


@functools.cache
def hints(kind: type) -> Mapping[str, Any]:
    """The types of the fields of a dataclass."""
    return typing.get_type_hints(kind)


def _options(wanted: Any) -> tuple[Any, ...]:
    """The types of a union, or the one."""
    several = isinstance(wanted, types.UnionType) or typing.get_origin(wanted) is typing.Union
    return typing.get_args(wanted) if several else (wanted,)


def _is(value: Any, wanted: Any) -> bool:
    """Whether a value is of one of the types of an annotation; of a type beside those of JSON nothing is said."""
    for option in _options(wanted):
        if typing.get_origin(option) is tuple and typing.get_args(option)[1:] == (...,):
            each = typing.get_args(option)[0]
            fits = isinstance(value, list | tuple) and len(value) <= LONGEST and all(_is(entry, each) for entry in value)
        elif option is float:
            fits = is_number(value)
        elif option is int:
            fits = isinstance(value, int) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
        else:
            fits = option not in (bool, str, types.NoneType) or isinstance(value, option)
        if fits:
            return True
    return False


def _said(wanted: Any) -> str:
    """An annotation in words."""
    found = []
    for option in _options(wanted):
        if typing.get_origin(option) is tuple:
            found.append(f"a list of at most {LONGEST}, each {_said(typing.get_args(option)[0])}")
        else:
            found.append("null" if option is types.NoneType else _TYPES.get(option, getattr(option, "__name__", str(option))))
    return " or ".join(found)


def require_types(given: Mapping[str, Any], kind: type, name: str) -> None:
    """Raise WeightsError where a field has another type than ``kind`` says; 1 is no boolean, and 1.0 no integer."""
    wanted = hints(kind)
    for field, value in given.items():
        if field in wanted and not _is(value, wanted[field]):
            raise WeightsError(f"{name}: {kind.__name__}.{field} = {told(value)}: expected {_said(wanted[field])}")


def read(
    config: Mapping[str, Any],
    kind: type,
    *,
    name: str,
    without: Collection[str] = (),
    usual: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({}),
    unused: Collection[str] = (),
) -> dict[str, Any]:
    """The fields of a network that a config states, lists as tuples; those that begin with ``_`` are about the file.

    Args:
        config: what the file holds.
        kind: the class of the network, a dataclass whose annotations are the types.
        name: of the file, for messages.
        without: fields of ``kind`` that no file has.
        usual: fields that ``kind`` has not, each with the values under which the function is the one of ``kind``.
        unused: those that change neither the function nor its weights.

    Raises:
        WeightsError: a field that the network has not, or with another value or type than it may have; it is named.
    """
    known = hints(kind).keys() - {"parent", "name", *without}
    given = kept(config, known, kind.__name__, name=name, usual=usual, unused=unused)
    require_types(given, kind, name)
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def kept(
    config: Mapping[str, Any],
    known: Collection[str],
    owner: str,
    *,
    name: str,
    usual: Mapping[str, tuple[Any, ...]] = types.MappingProxyType({}),
    unused: Collection[str] = (),
) -> dict[str, Any]:
    """The ``known`` fields of a config, whatever their types; the rest and errors as those of :func:`read`."""
    given = {key: value for key, value in config.items() if not key.startswith("_") and (key in known or key not in unused)}
    for key in sorted(given.keys() & usual.keys() - set(known)):
        if not is_one_of(value := given.pop(key), usual[key]):
            raise WeightsError(f"{name}: {key} = {told(value)}: expected {' or '.join(map(repr, usual[key]))}")
    if unknown := sorted(given.keys() - set(known)):
        raise WeightsError(f"{name}: fields {listed(unknown)} of {owner}: expected {', '.join(sorted(known))}")
    return given


def built(make: Callable[[], T], name: str) -> T:
    """What ``make`` makes; its errors are those of the file."""
    try:
        return make()
    except WeightsError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"{name}: {error}") from error


def require_size(name: str, *, blocks: int = 0, **widths: int) -> None:
    """Raise WeightsError for more blocks, or a wider product of fields, than any published network has."""
    if blocks > DEEPEST:
        raise WeightsError(f"{name}: {blocks:,} blocks: expected at most {DEEPEST}")
    for what, width in widths.items():
        if width > LARGEST:
            raise WeightsError(f"{name}: {what} = {width:,}: expected at most {LARGEST:,}")
