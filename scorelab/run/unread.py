"""Values of a config that change nothing: names with a slip, parts that are never built, scopes that are never entered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scorelab.names import did_you_mean
from scorelab.run.gin_state import Key
from scorelab.run.sources import Binding, ConfigError, bindings

REFERENCE = re.compile(r"@([\w./]+)")
MACRO = re.compile(r"%([\w./]+)")


def check_read(path: Path, overrides: Sequence[str], keys: Sequence[Key], read: set[Key]) -> list[str]:
    """Refuse or name what was bound and took no part in what was built.

    ``keys`` are the bindings as gin understood them, in their order, and ``read`` those that it used. An override that was not used
    is a ConfigError. So is a macro in a file that no value refers to, and a scope that none enters. Another binding of the file
    itself is returned as a warning. In an included file such a binding is expected where the part it belongs to is named somewhere
    (a file that includes it has put another part in its place), and returned otherwise.
    """
    statements = list(bindings(path, overrides))
    # Of several bindings of one value the last one counts; the others are meant to be overridden.
    last = {key: statement for key, statement in zip(keys, statements, strict=True)}
    referred = set(_texts(statements))
    classes = {part.split("/")[-1].split(".")[-1] for text in referred for part in REFERENCE.findall(text)}
    macros = {name for text in referred for name in MACRO.findall(text)}
    scopes = {scope for text in referred for part in REFERENCE.findall(text) for scope in part.split("/")[:-1]} | macros
    used = [(key, statement) for key, statement in last.items() if key in read]
    found = []
    for key, statement in last.items():
        if key in read:
            continue
        text = f"{statement.place}: {_described(statement)}"
        if statement.file is None:
            raise ConfigError(f"{text} is not used by this config: it would change nothing. {_nearest(statement, used)}".rstrip())
        if not statement.selector and statement.field not in macros:
            raise ConfigError(f"{text} is used by no value. {did_you_mean(statement.field, macros)}".rstrip())
        if unknown := [scope for scope in statement.scope.split("/") if statement.selector and scope and scope not in scopes]:
            raise ConfigError(f"{text}: no value names the scope {unknown[0]}. {did_you_mean(unknown[0], scopes)}".rstrip())
        if statement.file == path or (statement.selector and statement.selector.split(".")[-1] not in classes):
            found.append(f"{text} is not used by this config: it changes nothing. {_nearest(statement, used)}".rstrip())
    return found


def _described(statement: Binding) -> str:
    scope = f"{statement.scope}/" if statement.scope else ""
    return f"{scope}{statement.selector}.{statement.field}" if statement.selector else f"the macro {scope}{statement.field}"


def _nearest(statement: Binding, used: Sequence[tuple[Key, Binding]]) -> str:
    """The value that was probably meant: of the same name in a part of the same module or in another scope, else a near name."""
    if not statement.selector:
        return did_you_mean(statement.field, {s.field for _, s in used if not s.selector})
    same = {_described(s) for _, s in used if s.selector == statement.selector and s.field == statement.field}
    module = statement.selector.rpartition(".")[0]
    beside = {_described(s) for _, s in used if s.selector.rpartition(".")[0] == module and s.field == statement.field}
    if near := same or beside:
        best = difflib.get_close_matches(_described(statement), sorted(near), n=1, cutoff=0.0)
        return f"Did you mean {best[0]}?"
    built = sorted({s.selector for _, s in used if s.selector.rpartition(".")[0] == module} - {statement.selector})
    if built:
        where = f" in the scope {statement.scope}" if statement.scope else ""
        return f"{statement.selector} is not built{where}; of {module} there are: {', '.join(built)}."
    return did_you_mean(_described(statement), {_described(s) for _, s in used if s.selector})


def _texts(statements: Sequence[Binding]) -> Iterator[str]:
    """The references and macros in all values, as text."""
    for statement in statements:
        yield from _flat(statement.value)


def _flat(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from _flat(pair)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)
