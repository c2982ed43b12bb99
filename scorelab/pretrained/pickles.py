"""The values of a pickle, read as data: no class of it is imported, and no function of it is called.

A pickle is a program for a small stack machine. This one knows the opcodes that build containers, and a table of names that its
caller gives. What a name does with its arguments is written by the caller as well. Every other name or opcode is refused.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scorelab.errors import WeightsError

# Opcodes by their byte, for messages.
_NAMES = {ord(each.code): each.name for each in pickletools.opcodes}
# Opcodes and what follows them: a number, or a length and as many bytes.
_NUMBERS = {
    "PROTO": "<B", "FRAME": "<Q", "BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d",
    "BINPUT": "<B", "LONG_BINPUT": "<I", "BINGET": "<B", "LONG_BINGET": "<I",
}  # fmt: skip
_SIZED = {
    "SHORT_BINUNICODE": "<B", "BINUNICODE": "<I", "BINUNICODE8": "<Q", "SHORT_BINBYTES": "<B", "BINBYTES": "<I",
    "BINBYTES8": "<Q", "BYTEARRAY8": "<Q", "SHORT_BINSTRING": "<B", "BINSTRING": "<i", "LONG1": "<B",
}  # fmt: skip
_PLAIN = (
    "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND",
    "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_SET", "ADDITEMS", "FROZENSET", "MEMOIZE", "GLOBAL", "STACK_GLOBAL",
    "REDUCE", "NEWOBJ", "BUILD", "BINPERSID",
)  # fmt: skip
_KNOWN = {*_NUMBERS, *_SIZED, *_PLAIN}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# The length of `module\nname\n`, and of an integer.
_LINE, _INTEGER = 256, 16
# Integers below hash to themselves, so that no file makes all keys of a dict collide.
_KEY = 1 << 60


class Budget:
    """How much may still be done for one file: an opcode costs 1, and so does every element that is copied; and text to make."""

    def __init__(self, steps: int, size: int = 0):
        self.steps, self.left = steps, steps
        self.size, self.room = size, size

    def spend(self, count: int = 1) -> None:
        """Take ``count`` off; WeightsError where that is more than is left."""
        self.left -= count
        if self.left < 0:
            raise WeightsError(f"more than {self.steps:,} opcodes and elements: expected no more of a file of weights")

    def copy(self, size: int) -> None:
        """Take ``size`` characters of text off; WeightsError where that is more than is left."""
        self.room -= size
        if self.room < 0:
            raise WeightsError(f"more than {self.size:,} characters of text are made: expected no more of a file of weights")


@dataclass(frozen=True, eq=False)
class Symbol:
    """What stands for a global name of a pickle.

    Attributes:
        name: the name, with its module.
        call: what ``REDUCE`` does with the tuple of arguments, None where that is refused.
        new: what ``NEWOBJ`` makes, None where that is refused.
        value: of a name that is only passed on, such as a type of storage.
    """

    name: str
    call: Callable[[tuple], Any] | None = None
    new: Callable[[], Any] | None = None
    value: Any = None


class Built:
    """An object that ``BUILD`` gives its state, once."""

    def build(self, state: Any) -> None:
        """Take the state; WeightsError where it is not one of this object."""
        raise NotImplementedError


class Ordered(dict, Built):
    """A ``collections.OrderedDict``; of its attributes only ``_metadata``, which ``state_dict`` writes, is allowed, and dropped."""

    def build(self, state: Any) -> None:
        """Look at the attributes and forget them."""
        if not isinstance(state, dict) or any(key != "_metadata" for key in state):
            what = ", ".join(map(shown, state)) if isinstance(state, dict) else type(state).__name__
            raise WeightsError(f"attributes of a collections.OrderedDict ({what or 'none'}): expected _metadata only")


def shown(value: Any) -> str:
    """A value in a message: short, and never longer than a line."""
    if isinstance(value, str | bytes | int | float | None):
        text = repr(value[:60] if isinstance(value, str | bytes) else value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    return value.name if isinstance(value, Symbol) else f"a {type(value).__name__}"


@contextmanager
def about(what: str):
    """Begin the message of a WeightsError inside the block with what it is about."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{what}: {error}") from None


def require_key(value: Any) -> Any:
    """A key of a dict or an element of a set: text, a small integer or None; WeightsError for any other."""
    if value is None or type(value) in (str, bool) or (type(value) is int and -_KEY < value < _KEY):
        return value
    raise WeightsError(f"a key {shown(value)}: expected text, an integer below 2^60 or None")


def load(
    data: memoryview,
    start: int,
    symbols: Mapping[tuple[str, str], Symbol],
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """The value of the pickle that begins at ``start``, and where it ends.

    Bytes in it are read-only views of ``data``. Text, numbers and containers are those of Python; an ordered dict is an
    :class:`Ordered`.

    Args:
        data: read-only bytes.
        start: the place of the first opcode.
        symbols: the names that it may use, by module and name.
        budget: what may be spent on it.
        persistent: makes an object of a persistent id; None where there may be none.

    Raises:
        WeightsError: anything else than that, with the opcode and its place.
    """
    machine = _Machine(data, start, symbols, budget, persistent)
    while not machine.done:
        machine.step()
    return machine.stack[0], machine.at


class _Machine:
    def __init__(self, data, start, symbols, budget, persistent):
        self.data, self.start, self.at = data, start, start
        self.symbols, self.budget, self.persistent = symbols, budget, persistent
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.done = False

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if not 0 <= count <= len(self.data) - self.at:
            raise WeightsError(f"{count:,} bytes are wanted and {len(self.data) - self.at:,} are left")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def pop(self) -> Any:
        if not self.stack:
            raise WeightsError("the stack is empty")
        return self.stack.pop()

    def top(self, kinds: type | tuple[type, ...]) -> Any:
        if not self.stack or not isinstance(self.stack[-1], kinds):
            found = shown(self.stack[-1]) if self.stack else "nothing"
            names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise WeightsError(f"it is used on {found}: expected a {names}")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """What lies above the last mark."""
        if not self.marks:
            raise WeightsError("there is no mark")
        found, self.stack = self.stack, self.marks.pop()
        return found

    def step(self) -> None:
        at = self.at
        if at >= len(self.data):
            raise WeightsError(f"it ends at byte {at:,}, before its opcode STOP")
        code = self.data[at]
        name = _NAMES.get(code, f"0x{code:02x}")
        with about(f"opcode {name} at byte {at:,}"):
            self.at += 1
            self.budget.spend()
            if name not in _KNOWN:
                raise WeightsError("not allowed in a file of weights; nothing of a pickle is run")
            if (name == "PROTO") != (at == self.start):
                raise WeightsError("expected PROTO first, and once: a pickle of protocol 2 to 5")
            if name in _NUMBERS:
                self.numeric(name, self.number(_NUMBERS[name]))
            elif name in _SIZED:
                self.stack.append(self.payload(name, self.take(self.number(_SIZED[name]))))
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            else:
                getattr(self, f"on_{name.lower()}")()

    def numeric(self, name: str, value: Any) -> None:
        if name == "PROTO":
            if not 2 <= value <= 5:
                raise WeightsError(f"protocol {value}: expected 2 to 5")
        elif name == "FRAME":
            if value > len(self.data) - self.at:
                raise WeightsError(f"a frame of {value:,} bytes, of which {len(self.data) - self.at:,} are left")
        elif name.endswith("PUT"):
            self.memo[value] = self.top(object)
        elif name.endswith("GET"):
            if value not in self.memo:
                raise WeightsError(f"nothing is kept under the number {value}")
            self.stack.append(self.memo[value])
        else:
            self.stack.append(value)

    def payload(self, name: str, content: memoryview) -> Any:
        if "BYTE" in name:
            return content
        if name == "LONG1":
            if len(content) > _INTEGER:
                raise WeightsError(f"an integer of {len(content)} bytes: expected at most {_INTEGER}")
            return int.from_bytes(content, "little", signed=True)
        encoding = "ascii" if name.endswith("STRING") else "utf-8"
        try:
            return str(content, encoding)
        except UnicodeDecodeError:
            raise WeightsError(f"text that is not {encoding}") from None

    def on_stop(self) -> None:
        if len(self.stack) != 1 or self.marks:
            raise WeightsError("expected one value, and no open mark")
        self.done = True

    def on_mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def on_memoize(self) -> None:
        self.memo[len(self.memo)] = self.top(object)

    def on_empty_tuple(self) -> None:
        self.stack.append(())

    def on_tuple(self) -> None:
        found = self.marked()
        self.stack.append(tuple(found))

    def on_tuple1(self) -> None:
        self.stack.append((self.pop(),))

    def on_tuple2(self) -> None:
        last = self.pop()
        self.stack.append((self.pop(), last))

    def on_tuple3(self) -> None:
        last, middle = self.pop(), self.pop()
        self.stack.append((self.pop(), middle, last))

    def on_empty_list(self) -> None:
        self.stack.append([])

    def on_append(self) -> None:
        value = self.pop()
        self.top(list).append(value)

    def on_appends(self) -> None:
        found = self.marked()
        self.top(list).extend(found)

    def on_empty_dict(self) -> None:
        self.stack.append({})

    def on_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def on_setitems(self) -> None:
        self.set_items(self.marked())

    def set_items(self, found: list[Any]) -> None:
        into = self.top(dict)
        if len(found) % 2:
            raise WeightsError("a key without a value")
        for key, value in zip(found[::2], found[1::2], strict=True):
            if require_key(key) in into:
                raise WeightsError(f"the key {shown(key)} twice")
            into[key] = value

    def on_empty_set(self) -> None:
        self.stack.append(set())

    def on_additems(self) -> None:
        found = self.marked()
        self.top(set).update(map(require_key, found))

    def on_frozenset(self) -> None:
        found = self.marked()
        self.stack.append(frozenset(map(require_key, found)))

    def on_global(self) -> None:
        lines = bytes(self.data[self.at : self.at + _LINE]).split(b"\n", 2)
        if len(lines) < 3:
            raise WeightsError(f"expected a module and a name, each with the end of its line, in {_LINE} bytes")
        self.at += len(lines[0]) + len(lines[1]) + 2
        module, name = (line.decode("ascii", "backslashreplace") for line in lines[:2])
        self.stack.append(self.symbol(module, name))

    def on_stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise WeightsError(f"the global {shown(module)}, {shown(name)}: expected two texts")
        self.stack.append(self.symbol(module, name))

    def symbol(self, module: str, name: str) -> Symbol:
        # By the exact pair: a dotted name never walks into an object.
        if (found := self.symbols.get((module, name))) is None:
            raise WeightsError(f"it asks for {module[:80]}.{name[:80]}: expected {listed(self.symbols)}")
        return found

    def on_reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or not isinstance(function, Symbol) or function.call is None:
            raise WeightsError(
                f"a call of {shown(function)} with {shown(arguments)}: expected a function of this table and a tuple"
            )
        with about(function.name):
            self.stack.append(function.call(arguments))

    def on_newobj(self) -> None:
        arguments, made = self.pop(), self.pop()
        if not isinstance(made, Symbol) or made.new is None or arguments != ():
            raise WeightsError(f"an object of {shown(made)} from {shown(arguments)}: expected a container of its table and ()")
        self.stack.append(made.new())

    def on_build(self) -> None:
        state = self.pop()
        self.top(Built).build(state)

    def on_binpersid(self) -> None:
        if self.persistent is None:
            raise WeightsError("a persistent id: expected none here")
        self.stack.append(self.persistent(self.pop()))


def listed(symbols: Iterable[tuple[str, str]]) -> str:
    """The names of a table, by module, in one line."""
    modules: dict[str, list[str]] = {}
    for module, name in symbols:
        modules.setdefault(module, []).append("*Storage" if name.endswith("Storage") else name)
    of = lambda module, names: f"{', '.join(dict.fromkeys(names))} of {module}"
    return "; ".join(of(*item) for item in modules.items()) or "no global here"
