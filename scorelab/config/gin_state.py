"""gin's global state, lent to one config at a time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import gin
import gin.config

from scorelab.config.sources import is_include, open_include

# Everything gin keeps in module globals. There is no public way to save it, and clear_config keeps
# registrations: one config's imports would then decide how the next one's operative text is spelled.
STATE = (
    "_REGISTRY", "_INVERSE_REGISTRY", "_RENAMED_SELECTORS", "_CONFIG", "_IMPORTS", "_OPERATIVE_CONFIG",
    "_CONFIG_IS_LOCKED", "_INTERACTIVE_MODE", "_CONSTANTS", "_SINGLETONS", "_FILE_READERS",
)  # fmt: skip


@contextmanager
def isolated() -> Iterator[None]:
    """An empty gin inside the block; whatever the process had configured before is back after it."""
    saved = {name: getattr(gin.config, name) for name in STATE}
    for name, value in saved.items():
        setattr(gin.config, name, copy.copy(value))
    try:
        gin.clear_config()
        # The only reader: gin's own would first look for every include in the working folder.
        gin.config._FILE_READERS = [(open_include, is_include)]
        yield
    finally:
        for name, value in saved.items():
            setattr(gin.config, name, value)


Key = tuple[str, str, str]


@contextmanager
def recorded() -> Iterator[list[Key]]:
    """The bindings that are parsed inside the block, in their order, as (scope, complete selector, parameter)."""
    keys: list[Key] = []
    bind = gin.config.bind_parameter

    def bind_and_record(key, value):
        bind(key, value)
        keys.append(gin.config.ParsedBindingKey.parse(key).scope_selector_arg)

    gin.config.bind_parameter = bind_and_record
    try:
        yield keys
    finally:
        gin.config.bind_parameter = bind


def read_bindings() -> set[Key]:
    """The bindings that took part in what was built so far."""
    read = set()
    for (scope, selector), values in gin.config._OPERATIVE_CONFIG.items():
        parts = scope.split("/") if scope else []
        # gin takes the binding of the longest scope; every scope also has the bindings of those that it begins with.
        scopes = ["/".join(parts[:i]) for i in range(len(parts), -1, -1)]
        for name in values:
            found = next((s for s in scopes if name in gin.config._CONFIG.get((s, selector), {})), None)
            if found is not None:
                read.add((found, selector, name))
    return read


def operative_text() -> str:
    """gin's operative config, a config file with every value that was used.

    A macro is evaluated in a scope of its name, which gin writes down: ``PROCESS/schedules.EDM.sigma_max``.
    Such a binding would win over any later override of ``schedules.EDM.sigma_max``. Where the scope makes no
    difference it is taken off.
    """
    config = gin.config._OPERATIVE_CONFIG
    macros = {scope for scope, selector in gin.config._CONFIG if _is_macro(selector)}
    in_use = {name for scope, selector in gin.config._CONFIG if scope not in macros for name in scope.split("/")}
    merged: dict = {}
    for (scope, selector), values in config.items():
        kept = [] if _is_macro(selector) else [s for s in scope.split("/") if s not in macros or s in in_use]
        key = (scope if _is_macro(selector) else "/".join(kept), selector)
        if merged.setdefault(key, values) != values:
            return gin.operative_config_str(max_line_length=100)
    config.clear()
    config.update(merged)
    return gin.operative_config_str(max_line_length=100)


def _is_macro(selector: str) -> bool:
    return gin.config._REGISTRY[selector].wrapped is gin.config.macro
