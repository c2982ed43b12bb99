"""Opening a work directory: nothing is overwritten, and a continued run is the run it continues."""

from __future__ import annotations

import warnings

import jax

from scorelab.files import write_json, write_text
from scorelab.run import config as configs
from scorelab.run.config import Config
from scorelab.run.console import Console
from scorelab.run.data_start import FromData
from scorelab.run.experiment import Experiment
from scorelab.run.sources import ConfigError, shown
from scorelab.run.train import state_like
from scorelab.run.workdir import Workdir

# What may differ between a run and its continuation: a longer training, or another way to sample and to
# score.
_MAY_CHANGE = ("steps", "sampling", "evaluation", "keep_checkpoints")


def prepare(config: Config, workdir: Workdir, *, resume: bool, console: Console) -> None:
    """Open the work directory and write down what is about to run; nothing where specs do not fit."""
    check_fit(config.experiment)
    workdir.open(resume)
    now, before = configs.versions(), workdir.read_json(workdir.versions)
    if (old := workdir.read_json(workdir.specs)) is not None:
        _require_same(old, config.specs, workdir)
    if before is not None:
        _require_devices(before["devices"], now["devices"], workdir)
        if before != now:
            console.line(
                f"note: other versions than those in {shown(workdir.versions)}; bits may differ from here on"
            )
    write_text(workdir.config, config.text)
    write_json(workdir.specs, config.specs)
    write_json(workdir.versions, now)


def check_fit(experiment: Experiment) -> None:
    """Raise ValueError or TypeError where the parts of an experiment do not fit one another.

    The data, the process and the network, the batch and the devices, and the sampler and the process: what
    would otherwise only show after the training. Encodes one block of the data and computes nothing else.
    """
    next(experiment.data.encoded(experiment.process.chart))
    state_like(experiment)
    if experiment.batch_size % jax.device_count():
        raise ValueError(
            f"Experiment.batch_size = {experiment.batch_size}: "
            f"expected a multiple of the {jax.device_count()} devices"
        )
    spec, process = experiment.sampling, experiment.process
    times = spec.grid.times(process)
    if isinstance(spec.start, FromData):
        spec.start.check(experiment.data, process, times)
    elif spec.start is not None:
        with warnings.catch_warnings():
            # What does not suit the model is said when it is sampled.
            warnings.simplefilter("ignore")
            _, times = spec.start.on_grid(process, times)
    spec.solver.table(process, times)


def _require_same(old: dict, new: dict, workdir: Workdir) -> None:
    differing = sorted(
        k for k in old.keys() | new.keys() if k not in _MAY_CHANGE and old.get(k) != new.get(k)
    )
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
