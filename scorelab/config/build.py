"""From a config file to an experiment, once, outside jit."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gin
import gin.config
import jax

from scorelab.config.explain import explain
from scorelab.config.gin_state import isolated, operative_text, read_bindings, recorded
from scorelab.config.sources import CONFIG_ROOTS, Lines, config_name, files, find_config
from scorelab.config.trust import restricted
from scorelab.config.unread import check_read
from scorelab.devices import MOST_DEVICES, use_all_cores
from scorelab.errors import ConfigError, ConfigWarning, shown
from scorelab.experiment import Experiment
from scorelab.experiment.describe import describe
from scorelab.warn import warn

PACKAGES = (
    "scorelab",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
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

    experiment: Experiment
    text: str
    specs: dict[str, Any]
    path: Path
    name: str


def load(name: str, overrides: Sequence[str] = (), *, carried: bool = False, devices: bool = True) -> Config:
    """Read a config file with overrides such as ``experiment.Train.steps = 100`` and build its
    experiment.

    ``name`` is a path or the name of a shipped config. ``Experiment.cpu_devices`` takes effect here, before
    anything uses JAX. Bindings of earlier calls have no effect. The folders of the file and of what it includes are put at the
    end of Python's path, so that a config can import the modules beside it, unless it was ``carried``: it came with data, in a kept
    model or a work directory, and may use only what :mod:`scorelab.config.trust` lists.

    Without ``devices`` the CPU is left as it is: a model that is only asked depends on its number of devices in rounding alone.

    Raises ConfigError, with the file and line where known, also for an override that nothing uses; what nothing uses in the file
    is a ConfigWarning.
    """
    path = find_config(name)
    overrides = tuple(overrides)
    _require_bindings(overrides)
    with isolated(), restricted() if carried else nullcontext():
        try:
            if not carried:
                _add_to_path(path)
            lines = Lines(path, overrides, carried=carried)
            with recorded() as keys:
                gin.parse_config(lines)
            gin.finalize()
            _require_evaluated_references()
            _split_cpu(_bound("cpu_devices") if devices else None)
            experiment = gin.get_configurable(Experiment)() if _is_registered(Experiment) else None
            if experiment is None:
                raise ConfigError(f"{shown(path)}: binds nothing of experiment.Experiment (this file runs nothing)")
            # What only the left out lines used is no mistake.
            unused = [] if lines.outdated else check_read(path, overrides, keys, read_bindings())
            text = operative_text()
        except Exception as error:
            raise explain(error, path, overrides) from error
    for line in unused:
        warn(line, ConfigWarning)
    return Config(experiment=experiment, text=text, specs=describe(experiment), path=path, name=config_name(path))


def _require_bindings(overrides: tuple[str, ...]) -> None:
    """Refuse an override that binds nothing."""
    for override in overrides:
        lines = [line.strip() for line in override.splitlines()]
        if not any(line and not line.startswith("#") for line in lines):
            raise ConfigError(f"--set {override!r}: expected a binding, such as 'experiment.Train.steps = 100'")


def _add_to_path(path: Path) -> None:
    """Put the folders of a config and its includes at the end of Python's path.

    At the end, so that no file beside a config takes the place of an installed package. ConfigError where another config's folder
    has a module of the same name, which is imported already: Python would silently use that one.
    """
    roots = [root.resolve() for root in CONFIG_ROOTS]
    folders = dict.fromkeys(file.parent for file in files(path) if not any(file.is_relative_to(root) for root in roots))
    for folder in folders:
        for other in _FOLDERS - set(folders):
            for module in _modules(folder) & _modules(other):
                loaded = getattr(sys.modules.get(module), "__file__", None)
                if loaded is not None and Path(loaded).is_relative_to(other):
                    raise ConfigError(
                        f"{shown(path)}: the module {module} beside it is already imported from {shown(other)} in this process: "
                        "give it another name, or start a new process"
                    )
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
            _FOLDERS.add(folder)


_FOLDERS: set[Path] = set()


def _modules(folder: Path) -> set[str]:
    return {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}


def _split_cpu(count: Any) -> None:
    """Split the CPU into ``Experiment.cpu_devices`` devices, None for as it is; ConfigError naming the field."""
    try:
        if count is not None:
            use_all_cores(count)
    except ValueError as error:
        raise ConfigError(f"Experiment.cpu_devices = {count!r}: expected an integer from 1 to {MOST_DEVICES}") from error
    except RuntimeError as error:
        raise ConfigError(f"Experiment.cpu_devices = {count}: {error}") from error


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
        return gin.query_parameter(f"scorelab.experiment.Experiment.{field}")
    except ValueError:
        return None


def _is_registered(cls: type) -> bool:
    return cls in gin.config._INVERSE_REGISTRY


def _require_evaluated_references() -> None:
    """Refuse ``@name`` where ``name`` has bindings: it would be called later, when they are gone."""
    bound = {selector for _, selector in gin.config._CONFIG}
    for (_, selector), values in gin.config._CONFIG.items():
        references: list[Any] = list(gin.config.iterate_references(values))
        for reference in references:
            if not reference.evaluate and reference.configurable.selector in bound:
                used = f"{selector.split('.')[-1]}.{next(k for k in values)}"
                raise ConfigError(f"@{reference.selector} (in {used}) has bindings: write @{reference.selector}()")
