"""gin's and the specs' errors in one line, with the file and the line of the binding they are about."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError
from typing import Any

import gin
import gin.config

from scorelab.config.sources import Lines, Place, bindings, place_of
from scorelab.errors import ConfigError, shown
from scorelab.names import did_you_mean

AT_LINE = re.compile(r'\n  In file "(?P<file>.+?)", line (?P<line>\d+)')
IN_CALL = re.compile(r"\n  In call to configurable '(?P<name>[\w.]+)'(?: \(.*?\))?(?: in scope '(?P<scope>.+?)')?")
# "Heun.churn = 2", "churn=2" and "missing 1 required keyword-only argument: 'net'" all name a field.
FIELD = re.compile(r"^(?:(?P<owner>\w+)\.)?(?P<field>[a-z_]\w*)\s*=(?!=)")
NO_PARAMETER = re.compile(r"Configurable '(?P<name>.+?)' doesn't have a parameter named '(?P<field>.+?)'")
NO_MACRO = re.compile(r"No bindings specified for '(?P<name>.+?)/gin\.macro'")
NO_LITERAL = re.compile(r"malformed node or string.*Failed to parse token '(?P<token>.+?)'", re.DOTALL)
NO_MODULE = re.compile(r"No module named '(?P<name>.+?)'")
NO_ATTRIBUTE = re.compile(r"<module '(?P<module>[\w.]+)'.*> has no attribute (?P<name>\w+)")


def one_line(text: str) -> str:
    """A message without line breaks."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())


def explain(error: Exception, path: Path, overrides: Sequence[str]) -> ConfigError:
    """The error as ``file:line: what is wrong``; the text of a message is kept as it was written."""
    if isinstance(error, ConfigError):
        return error
    text = str(error)
    if isinstance(error, SyntaxError):
        place, what = _syntax_place(error, path, overrides), one_line(error.msg).rstrip(".")
        if literal := NO_LITERAL.search(error.msg):
            token = literal["token"]
            what = f"{token} is not a value: expected '{token}' (text), a number, True, False, None, @{token}() or %{token}"
        return ConfigError(f"{place}: {what}: {(error.text or '').strip()}")
    if isinstance(error, TokenError):
        return ConfigError(f"{shown(path)}: a bracket or a quote is not closed, in the file, in what it includes or in an override")
    if macro := NO_MACRO.search(text):
        defined = {b.field for b in bindings(path, overrides) if not b.selector}
        near = did_you_mean(macro["name"], defined)
        return ConfigError(f"{_use_of_macro(macro['name'], path, overrides)}: %{macro['name']} is not defined. {near}".rstrip(". "))
    if at := AT_LINE.search(text):
        place = _place(Path(at["file"]), int(at["line"]), path, overrides)
        return ConfigError(f"{place}: {_with_hint(one_line(text[: at.start()]), error)}")
    call = IN_CALL.search(text)
    message = (text[: call.start()] if call else text).strip()
    if not call:
        return ConfigError(f"{shown(path)}: {_with_kind(message, error)}")
    name = call["name"].split(".")[-1]
    place = _binding_place(name, message, path, overrides)
    # What another library says of a value of the wrong kind seldom names it.
    unclear = not isinstance(error, ValueError) and not FIELD.match(message) and name not in message
    given = _given(name, path, overrides) if unclear else ""
    return ConfigError(f"{place}: {_with_kind(message, error)}{given}")


def _with_kind(message: str, error: Exception) -> str:
    """Keep the exception's name where the message alone would be cryptic."""
    return message if isinstance(error, ValueError | TypeError | OSError) else f"{type(error).__name__}: {message}"


def _place(file: Path, line: int, path: Path, overrides: Sequence[str]) -> Place:
    if file != path:
        return Place(source=shown(file), line=line)
    return place_of(path, line, Lines(path, overrides), overrides)


def _syntax_place(error: SyntaxError, path: Path, overrides: Sequence[str]) -> Place:
    if error.filename is None or error.lineno is None:
        return Place(source=shown(path))
    return _place(Path(error.filename), error.lineno, path, overrides)


def _binding_place(name: str, message: str, path: Path, overrides: Sequence[str]) -> Place:
    """Where the field that ``message`` names is bound; else the last binding of the class; else the file."""
    named = FIELD.match(message)
    known = list(bindings(path, overrides))
    # What is told of another class than the one that was being built is wrong where that class is bound.
    if named and named["owner"] in {b.selector.split(".")[-1] for b in known}:
        name = named["owner"]
    of_class = [b for b in known if b.selector.split(".")[-1] == name]
    of_field = [b for b in of_class if named and b.field == named["field"]]
    if not (found := of_field or of_class):
        return Place(source=shown(path))
    # A value that is a macro is wrong where the macro is set.
    macro = str(found[-1].value).removeprefix("%") if of_field and str(found[-1].value).startswith("%") else None
    return ([b for b in known if macro and not b.selector and b.field == macro] or found)[-1].place


def _given(name: str, path: Path, overrides: Sequence[str]) -> str:
    """The values that were bound, for a message that names none of them."""
    known = list(bindings(path, overrides))
    macros = {b.field: b for b in known if not b.selector}
    values = {b.field: b.value for b in known if b.selector.split(".")[-1] == name}
    shown_values = []
    for field, value in values.items():
        macro = macros.get(value[1:]) if isinstance(value, str) and value.startswith("%") else None
        shown_values.append(f"{field} = {value!r}" if macro is None else f"{field} = {value} = {macro.value!r} ({macro.place})")
    return f" (in {name} with {', '.join(shown_values)})" if shown_values else ""


def _use_of_macro(name: str, path: Path, overrides: Sequence[str]) -> Place:
    used = [b for b in bindings(path, overrides) if re.search(rf"%{re.escape(name)}\b", repr(b.value))]
    return used[-1].place if used else Place(source=shown(path))


def _with_hint(message: str, error: Exception) -> str:
    """Add the nearest accepted names to an unknown one."""
    if match := NO_PARAMETER.search(message):
        try:
            known: Any = gin.config._REGISTRY.get_match(match["name"])
            accepted = [name for name in inspect.signature(known.wrapped).parameters if name not in ("parent", "name")]
        except (AttributeError, KeyError, ValueError, TypeError):
            return message
        return f"{message} {did_you_mean(match['field'], accepted)} It has: {', '.join(accepted)}.".replace("  ", " ")
    if match := NO_ATTRIBUTE.search(message):
        module = sys.modules.get(match["module"])
        public = [n for n in dir(module) if not n.startswith("_") and not inspect.ismodule(getattr(module, n, None))]
        near = did_you_mean(match["name"], public, n=3)
        return f"{match['module']} has no {match['name']}. {near}".strip()
    if isinstance(error, ModuleNotFoundError) and (match := NO_MODULE.search(message)) and "scorelab" not in match["name"]:
        return f"{message}: expected an installed package, or a module beside the config or on Python's path (PYTHONPATH=FOLDER)"
    return _with_kind(message, error) if not isinstance(error, NameError | ImportError | AttributeError) else message
