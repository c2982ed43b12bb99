"""From a config file to an experiment, once, outside jit."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import gin.config
import jax

from scorelab.run.describe import describe
from scorelab.run.explain import explain
from scorelab.run.gin_state import isolated, operative_text
from scorelab.run.sources import ConfigError, Lines, config_name, find_config, shown
from scorelab.run.trust import restricted

PACKAGES = (
    "scorelab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "diffrax",
    "numpy",
    "gin-config",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A resolved config: the experiment, and the text that builds an equal one.

    Attributes:
        experiment: the ``Experiment`` the file builds.
        text: the operative config: every value that was used, defaults included; a config file itself.
        specs: the resolved specs as JSON data.
        path: the file.
        name: its name, ``mnist/edm`` say.
    """

    experiment: Any
    text: str
    specs: dict[str, Any]
    path: Path
    name: str


def load(name: str, overrides: Sequence[str] = (), *, carried: bool = False) -> Config:
    """Read a config file with overrides such as ``experiment.Experiment.steps = 100`` and build its
    experiment.

    ``name`` is a path or the name of a shipped config. ``Experiment.cpu_devices`` takes effect here, before
    anything uses JAX. Bindings of earlier calls have no effect. Raises ConfigError, with the file and line
    where known.

    ``carried``: the config came with data, inside a model or a work directory, and may use only what
    :mod:`scorelab.run.trust` lists.
    """
    path = find_config(name)
    overrides = tuple(overrides)
    with isolated(), restricted() if carried else nullcontext():
        try:
            gin.parse_config(Lines(path, overrides))
            gin.finalize()
            _require_evaluated_references()
            use_cpu_devices(_bound("cpu_devices"))
            from scorelab.run.experiment import Experiment

            experiment = gin.get_configurable(Experiment)() if _is_registered(Experiment) else None
            if experiment is None:
                raise ConfigError(
                    f"{shown(path)}: binds nothing of experiment.Experiment (this file runs nothing)"
                )
            text = operative_text()
        except Exception as error:
            raise explain(error, path, overrides) from error
    return Config(
        experiment=experiment, text=text, specs=describe(experiment), path=path, name=config_name(path)
    )


def use_cpu_devices(count: int | None) -> None:
    """Split the CPU into ``count`` devices, before JAX is used; later, ConfigError unless it has as many."""
    if count is None:
        return
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"Experiment.cpu_devices = {count!r}: expected an integer >= 1")
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass
    else:
        return
    if (running := len(jax.devices("cpu"))) != count:
        raise ConfigError(
            f"Experiment.cpu_devices = {count}: JAX already runs with {running} in this process"
        )


def versions() -> dict[str, Any]:
    """What the numbers of a run depend on beside its config."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = "not installed as a package"
    devices = jax.devices()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "devices": {"kind": devices[0].device_kind, "platform": devices[0].platform, "count": len(devices)},
    }


def _bound(field: str) -> Any:
    try:
        return gin.query_parameter(f"scorelab.run.experiment.Experiment.{field}")
    except ValueError:
        return None


def _is_registered(cls: type) -> bool:
    return cls in gin.config._INVERSE_REGISTRY


def _require_evaluated_references() -> None:
    """Refuse ``@name`` where ``name`` has bindings: it would be called later, when they are gone."""
    bound = {selector for _, selector in gin.config._CONFIG}
    for (_, selector), values in gin.config._CONFIG.items():
        for reference in gin.config.iterate_references(values):
            if not reference.evaluate and reference.configurable.selector in bound:
                used = f"{selector.split('.')[-1]}.{next(k for k in values)}"
                raise ConfigError(
                    f"@{reference.selector} (in {used}) has bindings: write @{reference.selector}()"
                )
