"""Opening a work directory: nothing is overwritten, and a continued run is the run it continues."""

from __future__ import annotations

import dataclasses
import operator
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import jax

from scorelab import config as configs
from scorelab import hosts
from scorelab.config.build import Config
from scorelab.devices import use_all_cores
from scorelab.errors import ConfigError, shown
from scorelab.experiment.checks import check
from scorelab.experiment.console import Console
from scorelab.experiment.describe import describe
from scorelab.experiment.workdir import Workdir
from scorelab.files import write_json, write_text


def prepare(config: Config, workdir: Workdir, *, resume: bool, console: Console) -> None:
    """Open the work directory and write down what is about to run; nothing where specs do not fit. Host 0 writes for all."""
    check(config.experiment)
    if hosts.first():
        _open(config, workdir, resume, console)
    _require_seen(workdir)


def require_same_run(config: Config, **command: Any) -> None:
    """ConfigError, on every host, where a host was given another config, other data or another command than host 0."""
    if hosts.count() > 1:
        data = {"train_sha256": config.experiment.data.load().sha256}
        hosts.require_same("another run", {**_flat(config.specs), **data, **command})


def _flat(value: Any, name: str = "Experiment") -> dict[str, Any]:
    """The numbers of specs under dotted names, so that a message can name the one that differs."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    else:
        return {name: value}
    return {key: leaf for part, inner in parts for key, leaf in _flat(inner, f"{name}.{part}").items()}


def _require_seen(workdir: Workdir) -> None:
    """ConfigError, on every host, unless the work directory is the same folder on all of them."""
    if hosts.count() == 1:
        return
    lock = workdir.root / "lock"
    wanted = hosts.agreed(lock.read_text() if hosts.first() else None)
    end, seen = time.monotonic() + 10, False
    # A file system of a network shows a new file after seconds.
    while not seen and time.monotonic() < end:
        try:
            seen = lock.read_text() == wanted
        except OSError:
            seen = False
        if not seen:
            time.sleep(0.1)
    without = [host for host, found in enumerate(hosts.exchange(seen)) if not found]
    if without:
        raise ConfigError(f"host {without[0]} does not see {shown(lock)} of host 0: expected a --workdir that all hosts share")


def _open(config: Config, workdir: Workdir, resume: bool, console: Console) -> None:
    specs = {**config.specs, "train_sha256": config.experiment.data.load().sha256}
    workdir.open(resume)
    now, before = configs.versions(), workdir.read_json(workdir.versions)
    if (old := workdir.read_json(workdir.specs)) is not None:
        _require_same(old, specs, config, workdir)
    if before is not None:
        _require_devices(before["devices"], now["devices"], workdir)
        if before != now:
            console.line(f"note: other versions than those in {shown(workdir.versions)}; bits may differ from here on")
    write_text(workdir.config, config.text)
    write_json(workdir.specs, specs)
    write_json(workdir.versions, now)


def _require_same(old: dict, new: dict, config: Config, workdir: Workdir) -> None:
    """ConfigError where a run that goes on would be another one; its stages say what of them may change.

    Fields of specs that were not there when the old record was written count as they are by default.
    """
    if old.setdefault("train_sha256", new["train_sha256"]) != new["train_sha256"]:
        raise ConfigError(
            f"{shown(workdir.root)} was run on other data: {config.experiment.data.name} had sha256 {old['train_sha256'][:12]}..., "
            f"and has {new['train_sha256'][:12]}... now; bring the data back, or pass another --workdir"
        )
    old = _completed(old, new)
    differing = [
        _where(old.get(key), new.get(key), f"Experiment.{key}")
        for key in sorted(old.keys() | new.keys())
        if key != "stages" and old.get(key) != new.get(key)
    ]
    of_old = {(spec["type"], spec["name"]): spec for spec in old.get("stages", ())}
    for stage, spec in zip(config.experiment.stages, new["stages"], strict=True):
        before = _completed(of_old.get((spec["type"], spec["name"]), {}), spec)
        if "*" not in stage.may_change:
            fixed = [key for key in spec if key not in stage.may_change and before.get(key) != spec[key]]
            differing += [_where(before.get(key), spec[key], f"{type(stage).__name__}.{key}") for key in fixed]
    if differing:
        raise ConfigError(
            f"{shown(workdir.root)} was run with another config: {', '.join(differing)} differ "
            f"(see {shown(workdir.specs)}); resume with the same config, or pass another --workdir"
        )


def _completed(old: Any, new: Any) -> Any:
    """An old record of specs with the fields that ``new`` has beyond it, at their defaults."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_completed(one, other) for one, other in zip(old, new, strict=True)]
    if not isinstance(old, dict) or not isinstance(new, dict):
        return old
    added = _defaults(new["type"], new.keys() - old.keys()) if "type" in new and old.get("type") == new["type"] else {}
    return {**added, **{key: _completed(value, new.get(key)) for key, value in old.items()}}


def _defaults(kind: str, names: Iterable[str]) -> dict[str, Any]:
    """The defaults among the fields ``names`` of the dataclass ``kind``, described; without those that have none."""
    module = kind
    while module not in sys.modules:
        module = module.rpartition(".")[0]
        if not module:
            return {}
    try:
        fields = dataclasses.fields(operator.attrgetter(kind[len(module) + 1 :])(sys.modules[module]))
    except (AttributeError, TypeError):
        # A class inside a function, or no dataclass.
        return {}
    found = {}
    for each in fields:
        if each.name in names and each.default is not dataclasses.MISSING:
            found[each.name] = describe(each.default)
        elif each.name in names and each.default_factory is not dataclasses.MISSING:
            found[each.name] = describe(each.default_factory())
    return found


def _where(old: Any, new: Any, name: str) -> str:
    """The innermost field of specs with all the differences of two records of the field ``name``."""
    if not isinstance(old, dict) or not isinstance(new, dict) or "type" not in new or old.get("type") != new["type"]:
        return name
    key, *more = [key for key in old.keys() | new.keys() if (key in old) != (key in new) or old.get(key) != new.get(key)]
    return name if more else _where(old.get(key), new.get(key), f"{name}.{key}")


def _require_devices(old: dict, new: dict, workdir: Workdir) -> None:
    if (old["platform"], old["count"]) != (new["platform"], new["count"]):
        raise ConfigError(
            f"{shown(workdir.root)} was run on {old['count']} {old['platform']} device(s), "
            f"now there are {new['count']} {new['platform']}: results would differ; go on in a new process on the same kind of "
            "device, without another number in Experiment.cpu_devices, or pass another --workdir"
        )


def use_cores(workdir: Workdir, *, resume: bool) -> None:
    """All cores of the CPU for what follows; for a run that goes on, as many devices as it began with, whatever cores there are.

    To be called before a config is read, since what it says in ``Experiment.cpu_devices`` comes after. Where JAX has started, and
    in one of several processes, the devices are left as they are.
    """
    count = None
    if resume and isinstance(before := workdir.read_json(workdir.versions), dict):
        devices = before.get("devices", {})
        count = devices.get("count") if devices.get("platform") == "cpu" else None
    if not jax.distributed.is_initialized():
        # What is wrong with the number is said when the work directory is opened.
        with suppress(RuntimeError, ValueError):
            use_all_cores(count)
