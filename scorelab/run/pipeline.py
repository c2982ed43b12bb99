"""What the commands do, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from scorelab.data import DataCorrupt, DataNotFound
from scorelab.metrics import WeightsError
from scorelab.run import config as configs
from scorelab.run.config import Config
from scorelab.run.console import Console
from scorelab.run.draw import draw
from scorelab.run.explain import one_line
from scorelab.run.prepare import prepare
from scorelab.run.report import write_report
from scorelab.run.score import score
from scorelab.run.sources import ConfigError, shown
from scorelab.run.train import train
from scorelab.run.workdir import Workdir


def from_config(
    name: str, overrides: Sequence[str], root: Path | None, *, resume: bool, whole: bool
) -> Workdir:
    """Train a config in its work directory; with ``whole`` also sample, evaluate and report."""
    console = Console()
    config = configs.load(name, overrides)
    workdir = Workdir(Path("runs", config.name) if root is None else root)
    with _errors(config.path):
        _announce(config, workdir, console)
        prepare(config, workdir, resume=resume, console=console)
        train(config.experiment, workdir, console)
        if whole:
            draw(config.experiment, workdir, console)
            score(config.experiment, workdir, console)
            write_report(config, workdir, console)
    return workdir


def sample_workdir(root: Path, *, n: int | None = None, seed: int | None = None) -> None:
    """Sample the newest checkpoint of a work directory."""
    workdir, config = _open(root)
    with _errors(config.path):
        draw(config.experiment, workdir, Console(), n=n, seed=seed)


def evaluate_workdir(root: Path) -> None:
    """Score the samples of a work directory and write its report."""
    workdir, config = _open(root)
    console = Console()
    with _errors(config.path):
        score(config.experiment, workdir, console)
        write_report(config, workdir, console)


def _open(root: Path) -> tuple[Workdir, Config]:
    workdir = Workdir(root)
    workdir.require_run()
    return workdir, configs.load(str(workdir.config))


def _announce(config: Config, workdir: Workdir, console: Console) -> None:
    console.stage("config", f"{shown(config.path)}, work directory {shown(workdir.root.resolve())}")
    denoiser = getattr(config.experiment.learner, "denoiser", None)
    if denoiser is not None:
        measured = "measured_std" in config.text
        console.stage(
            "data", f"{config.experiment.data.name}, data_std {denoiser.data_std}{' (measured)' * measured}"
        )


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Mistakes that only show when data meets specs (a batch larger than the set), as config errors."""
    try:
        yield
    except (DataNotFound, DataCorrupt, WeightsError, ValueError, TypeError) as error:
        raise ConfigError(f"{shown(path)}: {one_line(str(error))}") from error
