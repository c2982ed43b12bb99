"""Values of a config that change nothing: names with a slip, parts that are never built, scopes that are never entered."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from scorelab.config.gin_state import Key
from scorelab.config.sources import Binding, bindings
from scorelab.errors import ConfigError
from scorelab.names import did_you_mean

NAME = re.compile(r"[@%][\w./]+")


def check_read(path: Path, overrides: Sequence[str], keys: Sequence[Key], read: set[Key]) -> list[str]:
    """Refuse or name what was bound and took no part in what was built.

    ``keys`` are the bindings as gin understood them, in their order, and ``read`` those that it used. An override that was not used
    is a ConfigError. So is a macro in a file that no value refers to, and a scope that none names. Any other binding in a file is
    returned as a warning, unless it belongs to a part that the config named and put another in the place of further down: a file
    that is included says more than every file that includes it needs.
    """
    statements = list(bindings(path, overrides))
    # Of several bindings of one value the last one counts.
    last = dict(zip(keys, range(len(statements)), strict=True))
    names = [_names(statement.value) for statement in statements]
    macros = {name[1:] for found in names for name in found if name.startswith("%")}
    scopes = {scope for found in names for name in found if name.startswith("@") for scope in name[1:].split("/")[:-1]} | macros
    used = [statements[i] for key, i in last.items() if key in read]

    def replaced(index: int, seen: frozenset[int] = frozenset()) -> bool:
        """Whether what the binding belongs to was named by a value that was replaced after it, or by one of which that is true."""
        binding = statements[index]
        own = binding.selector.split(".")[-1] if binding.selector else f"%{binding.field}"
        for i, found in enumerate(names):
            if i in seen or not any(name == own or (name[0] == "@" and re.split(r"[./]", name)[-1] == own) for name in found):
                continue
            if index < last[keys[i]] != i or (keys[i] not in read and replaced(i, seen | {i})):
                return True
        return False

    found = []
    for key, index in last.items():
        statement = statements[index]
        if key in read:
            continue
        text = f"{statement.place}: {_described(statement)}"
        if statement.file is None:
            raise ConfigError(f"{text} is not used by this config: it would change nothing. {_nearest(statement, used)}".rstrip())
        if not statement.selector and statement.field not in macros:
            raise ConfigError(f"{text} is used by no value. {did_you_mean(statement.field, macros)}".rstrip())
        if unknown := [scope for scope in statement.scope.split("/") if statement.selector and scope and scope not in scopes]:
            raise ConfigError(f"{text}: no value names the scope {unknown[0]}. {did_you_mean(unknown[0], scopes)}".rstrip())
        if not replaced(index):
            found.append(f"{text} is not used by this config: it changes nothing. {_nearest(statement, used)}".rstrip())
    return found


def _described(statement: Binding) -> str:
    scope = f"{statement.scope}/" if statement.scope else ""
    return f"{scope}{statement.selector}.{statement.field}" if statement.selector else f"the macro {scope}{statement.field}"


def _nearest(statement: Binding, used: Sequence[Binding]) -> str:
    """The value that was probably meant: of the same name in another scope or in a part of the same module, else a near name."""
    if not statement.selector:
        return did_you_mean(statement.field, {s.field for s in used if not s.selector})
    module = statement.selector.rpartition(".")[0]
    same = {_described(s) for s in used if s.selector == statement.selector and s.field == statement.field}
    beside = [s for s in used if s.selector and s.selector.rpartition(".")[0] == module]
    if near := same or {_described(s) for s in beside if s.field == statement.field}:
        best = difflib.get_close_matches(_described(statement), sorted(near), n=1, cutoff=0.0)
        return f"Did you mean {best[0]}?"
    if built := sorted({s.selector for s in beside} - {statement.selector}):
        where = f" in the scope {statement.scope}" if statement.scope else ""
        return f"{statement.selector} is not built{where}; of {module} there are: {', '.join(built)}."
    return did_you_mean(_described(statement), {_described(s) for s in used if s.selector})


def _names(value) -> set[str]:
    """The references (with their @) and macros (with their %) in a value."""
    if isinstance(value, str):
        return set(NAME.findall(value))
    if isinstance(value, dict):
        value = [*value, *value.values()]
    return set().union(*map(_names, value)) if isinstance(value, list | tuple) else set()
