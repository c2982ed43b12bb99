"""What the experiments on Gaussian scores share: a trained model, its data in the chart, and the Gaussian with its moments."""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kept_models import kept

from scorelab import config as configs
from scorelab.densities import Gaussian
from scorelab.experiment import Experiment
from scorelab.experiment.train import trained_state
from scorelab.experiment.workdir import Workdir


def parse(doc: str, name: str, **options: int) -> argparse.Namespace:
    """The command line: the data, where its model is, ``--out``, and integer options with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=("digits", "mnist", "cifar10"))
    parser.add_argument("--workdir", type=Path, help="a trained work directory; without it, the model kept in experiments/models")
    parser.add_argument("--out", type=Path, default=Path("runs/figures") / name, help="folder of the figures and numbers")
    for option, default in options.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    return parser.parse_args()


@dataclass(kw_only=True)
class Subject:
    """A trained model and the data it was trained on.

    Attributes:
        experiment: its config.
        model: the model.
        made: step and data hash of the model.
        y: the training data in the chart, ``(n, *event)`` float32.
    """

    experiment: Experiment
    model: object
    made: dict
    y: np.ndarray

    @functools.cached_property
    def law(self) -> Gaussian:
        """The Gaussian with the moments of the training data."""
        return Gaussian.from_data(self.y)


def subject(arguments: argparse.Namespace) -> Subject:
    """The model the command line names. The config decides the number of devices, so nothing before this may use JAX."""
    if arguments.workdir is None:
        experiment, model, record = kept(arguments.data)
        made = {key: record[key] for key in ("step", "data_sha256")}
    else:
        workdir = Workdir(arguments.workdir)
        experiment = configs.load(workdir.config, []).experiment
        state, step = trained_state(experiment, workdir)
        model, made = experiment.learner.model(state), dict(step=step, data_sha256=experiment.data.load().sha256)
    blocks = experiment.data.encoded(experiment.process.chart)
    return Subject(experiment=experiment, model=model, made=made, y=np.concatenate(list(blocks)).astype(np.float32))
