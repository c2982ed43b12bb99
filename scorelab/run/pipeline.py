"""What the commands do, in order."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from scorelab import config as configs
from scorelab import hosts
from scorelab.config.build import Config
from scorelab.config.explain import one_line
from scorelab.config.sources import config_name, find_config
from scorelab.config.trust import allowing
from scorelab.data import DataCorrupt, DataNotFound
from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.experiment.base import Experiment, Run
from scorelab.experiment.console import Console
from scorelab.experiment.evaluate import Evaluate, evaluate
from scorelab.experiment.faults import AGAIN, CONTINUE, RunFailed, Signals, one_line_failures
from scorelab.experiment.report import Report, write_report
from scorelab.experiment.sample import Sample, draw
from scorelab.experiment.train import Train
from scorelab.experiment.workdir import Workdir
from scorelab.files import DamagedFile
from scorelab.lock import Lock
from scorelab.run.prepare import prepare, require_same_run, use_cores


def from_config(
    name: str, overrides: Sequence[str], root: Path | None, *, resume: bool, whole: bool, trust: bool = False
) -> Workdir:
    """Train a config in its work directory; with ``whole`` also sample, evaluate and report.

    ``trust`` lets the configs inside kept models and work directories that this one names import anything
    (:mod:`scorelab.config.trust`); the config itself is the caller's own and always may.
    """
    console = _console()
    workdir = Workdir(Path("runs", config_name(find_config(name))) if root is None else root)
    use_cores(workdir, resume=resume)
    with _trusting(trust):
        config = configs.load(name, overrides)
    experiment = config.experiment
    with _errors(config.path, workdir), Signals() as signals:
        require_same_run(config, whole=whole, resume=resume)
        if hosts.first():
            workdir.require_free(resume)
        with _owned(workdir, console):
            run = Run(
                experiment=experiment, workdir=workdir, console=console, signals=signals, name=config.name, text=config.text
            )  # fmt: skip
            _announce(config, workdir, console)
            prepare(config, workdir, resume=resume, console=console)
            for stage in experiment.stages if whole else experiment.all(Train):
                if stage.on_every_host or hosts.first():
                    stage(run)
                hosts.exchange(None)
    return workdir


def _owned(workdir: Workdir, console: Console) -> AbstractContextManager:
    """The lock of the work directory, which host 0 holds for all."""
    return Lock(workdir.root, console.line) if hosts.first() else nullcontext()


def sample_workdir(
    root: Path,
    *,
    n: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    out: Path | None = None,
    trust: bool = False,
) -> Workdir:
    """Sample the newest checkpoint of a work directory; ConfigError where that would replace samples that were evaluated.

    Args:
        root: the work directory.
        n: number of samples, None for that of the config.
        seed: None for the one of the config.
        name: write a set of that name, in ``samples/<name>``; without ``name`` and ``out``, the run's own set.
        out: write to this ``.npz`` file, which must not exist.
        trust: let the config of the work directory import anything.
    """
    workdir, config = _open(root, trust)
    workdir = dataclasses.replace(workdir, name=name, out=out)
    console = _console()
    # To write elsewhere, the work directory is only read.
    owned = nullcontext() if out is not None else _owned(workdir, console)
    with _errors(config.path, workdir, AGAIN), Signals(AGAIN), owned:
        require_same_run(config, n=n, seed=seed, name=name, out=None if out is None else str(out))
        spec = _drawn_by(config.experiment, name)
        draw(_run(config, workdir, console), spec, workdir, n=n, seed=seed, keep=True)
    return workdir


def evaluate_workdir(root: Path, *, n: int | None = None, name: str | None = None, trust: bool = False) -> Workdir:
    """Evaluate a set of samples of a work directory and write its report.

    Args:
        root: the work directory.
        n: how many samples are compared, in the place of the ``n`` of the config's evaluation.
        name: a set that ``sample`` wrote, None for the run's own.
        trust: let the config of the work directory import anything.
    """
    workdir, config = _open(root, trust)
    workdir = dataclasses.replace(workdir, name=name)
    if not workdir.samples.is_file() and (others := workdir.names):
        raise ConfigError(
            f"{shown(workdir.samples)}: no such samples; {shown(workdir.root)} has the sets {', '.join(others)}: pass one as --name"
        )
    console = _console()
    with _errors(config.path, workdir, AGAIN), Signals(AGAIN), Lock(workdir.root, console.line):
        run, spec = _run(config, workdir, console), _evaluated_by(config.experiment, name)
        if not trust:
            run = dataclasses.replace(run, experiment=_local(run.experiment, console))
        if n is not None:
            if not spec.evaluations:
                raise ConfigError(f"--n {n}: Evaluate.evaluations is (): expected an evaluation")
            for each in spec.evaluations:
                dataclasses.replace(each, n=n).check(config.experiment.data, n)
        evaluate(run, spec, workdir, n)
        own = name is None or name in {stage.name for stage in config.experiment.all(Sample)}
        Report()(run) if own else write_report(run, [workdir], workdir)
    return workdir


def _local(experiment: Experiment, console: Console) -> Experiment:
    """The experiment without sinks that send anything away: its config may have come with the work directory."""
    train = experiment.one(Train)
    if not any(sink.remote for sink in train.sinks):
        return experiment
    console.line("note: sinks that send metrics away are left out; --trust lets the config of the work directory use them")
    local = dataclasses.replace(train, sinks=tuple(sink for sink in train.sinks if not sink.remote))
    return dataclasses.replace(experiment, stages=tuple(local if stage is train else stage for stage in experiment.stages))


def _run(config: Config, workdir: Workdir, console: Console) -> Run:
    return Run(experiment=config.experiment, workdir=workdir, console=console, name=config.name, text=config.text)


def _drawn_by(experiment: Experiment, name: str | None) -> Sample:
    """The stage that draws the set ``name``: that of the name, or else the first."""
    return next((stage for stage in experiment.all(Sample) if stage.name == name), experiment.one(Sample))


def _evaluated_by(experiment: Experiment, name: str | None) -> Evaluate:
    """The stage that evaluates the set ``name``, or else the first."""
    return next((stage for stage in experiment.all(Evaluate) if stage.samples == (name or "")), experiment.one(Evaluate))


def _open(root: Path, trust: bool) -> tuple[Workdir, Config]:
    workdir = Workdir(root)
    workdir.require_run()
    use_cores(workdir, resume=True)
    with _trusting(trust):
        return workdir, configs.load(str(workdir.config), carried=True)


def _trusting(trust: bool):
    return allowing("*") if trust else nullcontext()


def _console() -> Console:
    if sys.stdout is None:
        raise RunFailed("standard output is closed: redirect it to a file or to /dev/null")
    return Console(quiet=not hosts.first())


def _announce(config: Config, workdir: Workdir, console: Console) -> None:
    console.stage("config", f"{shown(config.path)}, work directory {shown(workdir.root.resolve())}")
    if (network := config.experiment.learner.network) is not None:
        measured = "measured_std" in config.text
        console.stage("data", f"{config.experiment.data.name}, data_std {network.data_std}{' (measured)' * measured}")


@contextmanager
def _errors(path: Path, workdir: Workdir, then: str = CONTINUE) -> Iterator[None]:
    """Mistakes that only show when data meets specs, and failures of the system, in one line.

    A message that names a file says so itself; any other one is about the config.
    """
    try:
        with one_line_failures(workdir.root, then):
            try:
                yield
            except DataNotFound as error:
                raise ConfigError(f"{shown(path)}: {error}") from error
    except DamagedFile as error:
        raise ConfigError(one_line(str(error))) from error
    except (DataCorrupt, WeightsError, ValueError, TypeError) as error:
        hosts.await_loss()
        raise ConfigError(f"{shown(path)}: {error}") from error
