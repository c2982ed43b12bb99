"""Trained networks of multiplicative diffusion on images, and what is drawn with them."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from scorelab import sample, starts
from scorelab.arrays import Pytree
from scorelab.experiment import DataStart, Experiment, Sample
from scorelab.grids import Grid
from scorelab.metrics import SmallCNN, small_cnn
from scorelab.models import Model
from scorelab.run.figure import Record
from scorelab.sampling import Samples
from scorelab.solvers import Solver

DATA = ("digits", "mnist", "kmnist", "fashion_mnist")


def network(
    record: Record, data: str, *, kind: str = "", seed: int = 0, steps: int = 0, unconditional: bool = False
) -> tuple[Experiment, Model]:
    """The experiment ``paper/2510.02730/DATA + kind`` with a seed, and its trained model; ``steps = 0`` for those of the config."""
    sets = [f"experiment.Experiment.seed = {seed}"] + ([f"STEPS = {steps}"] if steps else [])
    name = f"{data}{kind}-seed{seed}"
    if unconditional:
        net = "MLP" if data == "digits" else "UNet"
        sets += ["experiment.DataSpec.labels = False", f"nets.{net}.num_classes = 0"]
        name += "-unconditional"
    experiment, state = record.trained(name, f"paper/2510.02730/{data}{kind}", *sets)
    return experiment, experiment.learner.model(state)


def draw(
    experiment: Experiment, model: Model, solver: Solver, grid: Grid, start: DataStart | starts.Start | None, n: int, seed: int = 0,
    keep="last",
) -> tuple[Samples, np.ndarray]:  # fmt: skip
    """Samples, and the class of each: the condition of a conditional model, and that of the start where it has one."""
    data = experiment.data
    label = np.resize(np.arange(data.load().num_classes or 1, dtype=np.int32), n)
    begin = dataclasses.replace(experiment.one(Sample), start=start).begin(data, experiment.process, label)
    key = jax.random.fold_in(experiment.keys()[1], seed) if seed else experiment.keys()[1]
    out = sample(
        model, solver=solver, grid=grid, start=begin, key=key, shape=(n, *data.load().event_shape),
        cond=label if data.labels else None, keep=keep,
    )  # fmt: skip
    return out, label


def images(experiment: Experiment, x: Pytree) -> np.ndarray:
    """Points of data space in stored values."""
    return np.asarray(experiment.data.transform.decode(x))


def judge(data: str) -> SmallCNN:
    """The stored classifier of a data set."""
    return small_cnn(data)
