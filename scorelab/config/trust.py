"""What a config may use that came with data: inside a kept model, or in a work directory.

A config file names Python functions and calls them, so reading one is running it. That is right for a file somebody chose to run,
and not for one that travels inside a model. Such a config may import scorelab, optax, flax and jax only, and call nothing but
classes and functions that build an experiment: defined in those packages, reached by public names through their own modules
(``jax._src.x.os.system`` is not), and neither writing files nor starting anything.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import gin.config

PACKAGES = ("scorelab", "optax", "flax", "jax")
# Modules whose public members may be called, and of those the parts that may not: they write files or run other configs.
_OPEN = ("scorelab", "optax", "flax.linen", "jax.nn", "jax.numpy", "jax.lax", "jax.random")
_CLOSED = (
    "scorelab.files",
    "scorelab.viz",
    "scorelab.run",
    "scorelab.config",
    "scorelab.pretrained",
    "scorelab.experiment",
    "scorelab.data.files",
    "scorelab.data.registry",
)
_SPECS = (
    "base", "bits", "conservativity", "data", "diagnose", "evaluate", "fokker_planck", "inpaint", "intrinsic_dimension",
    "memorisation", "pairs", "rectify", "report", "sample", "sinks", "starts", "straightness", "train",
)  # fmt: skip
_OPEN_AGAIN = tuple(f"scorelab.experiment.{name}" for name in _SPECS)
_FUNCTIONS = {
    *((place, name) for place in ("scorelab.pretrained", "scorelab.pretrained.kept") for name in ("load", "model")),
    *((place, name) for place in ("scorelab.pretrained", "scorelab.pretrained.rewards") for name in ("aesthetic", "clip_cosine")),
    *((place, "ClipFeatures") for place in ("scorelab.pretrained", "scorelab.pretrained.clipfeatures")),
    *((place, "InceptionFeatures") for place in ("scorelab.pretrained", "scorelab.pretrained.inception")),
    ("scorelab.data.registry", "Named"),
}
# Unpickles, or writes.
_NEVER = {
    ("jax.numpy", "load"),
    ("scorelab.densities.store", "save_gaussian"),
    ("scorelab.metrics.smallcnn", "save"),
    ("scorelab.metrics.frechet", "write_moments"),
}


class Untrusted(ValueError):
    """A config that came with data asks for more than such a config may."""


_allowed: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=())


@contextmanager
def allowing(*packages: str) -> Iterator[None]:
    """Inside, configs that come with data may also import these packages and call what is in them; ``"*"`` for everything."""
    token = _allowed.set((*_allowed.get(), *packages))
    try:
        yield
    finally:
        _allowed.reset(token)


@contextmanager
def restricted() -> Iterator[None]:
    """Inside, gin imports and calls only what a config that came with data may."""
    if "*" in _allowed.get():
        yield
        return
    saved = gin.config.ParseContext, gin.config._FILE_READERS
    gin.config.ParseContext, gin.config._FILE_READERS = _Restricted, [(_refuse_include, lambda path: True)]
    try:
        yield
    finally:
        gin.config.ParseContext, gin.config._FILE_READERS = saved


class _Restricted(gin.config.ParseContext):
    def process_import(self, statement):
        if not statement.module.startswith("__gin__.") and not _within(statement.module, (*PACKAGES, *_allowed.get())):
            raise Untrusted(
                f"this config came with data and imports {statement.module}, which can run anything: "
                f"expected {', '.join(PACKAGES)}; pass --trust if you trust where it comes from"
            )
        super().process_import(statement)

    def get_configurable(self, selector):
        if self._dynamic_registration:
            _require_usable(selector, self._resolve_selector(selector)[1])
            return super().get_configurable(selector)
        # Registered by whatever the process has imported before.
        if (found := super().get_configurable(selector)) is not None and not selector.startswith("gin."):
            _require_usable(selector, [found.wrapped])
        return found


def _refuse_include(path: str) -> Any:
    raise Untrusted("this config came with data and includes another file: expected none; pass --trust if you trust it")


def _require_usable(selector: str, values: list[Any]) -> None:
    if selector in ("gin.macro", "gin.constant", "gin.singleton") and not isinstance(values[0], types.ModuleType):
        return
    *modules, thing = values
    caller = _allowed.get()
    names = [getattr(module, "__name__", "") if isinstance(module, types.ModuleType) else "" for module in modules]
    defined = getattr(thing, "__module__", None) or ""
    name = getattr(thing, "__name__", "")
    if all(_within(place, caller) for place in (*names, defined)):
        return
    public = not any(part.startswith("_") for part in selector.split("."))
    through = bool(names) and all(_within(place, PACKAGES) for place in names) and _is_open(names[-1], name)
    own = _within(defined, PACKAGES) and (not _within(defined, ("scorelab",)) or _is_open(defined, name))
    plain = callable(thing) and getattr(thing, "__qualname__", "") == name and not inspect.ismodule(thing)
    if not (public and through and own and plain) or any((place, name) in _NEVER for place in (*names, defined)):
        raise Untrusted(
            f"this config came with data and calls {selector}: expected a class or a function of {', '.join(PACKAGES)} that builds "
            "part of an experiment; pass --trust if you trust where it comes from"
        )


def _is_open(module: str, name: str) -> bool:
    if (module, name) in _FUNCTIONS or module == "scorelab.experiment" or _within(module, _OPEN_AGAIN):
        return True
    return _within(module, _OPEN) and not _within(module, _CLOSED)


def _within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
