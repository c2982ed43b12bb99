"""Opening a work directory: nothing is overwritten, and a continued run is the run it continues."""

from __future__ import annotations

from scorelab.files import write_json, write_text
from scorelab.run import config as configs
from scorelab.run.check import check
from scorelab.run.config import Config
from scorelab.run.console import Console
from scorelab.run.sources import ConfigError, shown
from scorelab.run.workdir import Workdir

# What may differ between a run and its continuation: a longer training, or another way to sample and to
# score.
_MAY_CHANGE = ("steps", "sampling", "evaluation", "keep_checkpoints")


def prepare(config: Config, workdir: Workdir, *, resume: bool, console: Console) -> None:
    """Open the work directory and write down what is about to run; nothing where specs do not fit."""
    check(config.experiment)
    workdir.open(resume)
    now, before = configs.versions(), workdir.read_json(workdir.versions)
    if (old := workdir.read_json(workdir.specs)) is not None:
        _require_same(old, config.specs, workdir)
    if before is not None:
        _require_devices(before["devices"], now["devices"], workdir)
        if before != now:
            console.line(f"note: other versions than those in {shown(workdir.versions)}; bits may differ from here on")
    write_text(workdir.config, config.text)
    write_json(workdir.specs, config.specs)
    write_json(workdir.versions, now)


def _require_same(old: dict, new: dict, workdir: Workdir) -> None:
    differing = sorted(k for k in old.keys() | new.keys() if k not in _MAY_CHANGE and old.get(k) != new.get(k))
    if differing:
        raise ConfigError(
            f"{shown(workdir.root)} was run with another config: "
            f"Experiment.{', Experiment.'.join(differing)} differ "
            f"(see {shown(workdir.specs)}); resume with the same config, or pass another --workdir"
        )


def _require_devices(old: dict, new: dict, workdir: Workdir) -> None:
    if (old["platform"], old["count"]) != (new["platform"], new["count"]):
        raise ConfigError(
            f"{shown(workdir.root)} was run on {old['count']} {old['platform']} device(s), "
            f"now there are {new['count']} {new['platform']}: results would differ; "
            "set Experiment.cpu_devices, or pass another --workdir"
        )
