"""Trained models in one file: parameters, the config they were trained with, and the record of how they came to be."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path

import jax
import numpy as np

from scorelab.files import read_npz, write_npz
from scorelab.models import BoundDenoiser
from scorelab.run import config as configs
from scorelab.run.checkpoints import size_of
from scorelab.run.experiment import Experiment
from scorelab.run.sources import CONFIG_ROOTS, ConfigError, shown
from scorelab.run.train import state_like, trained_state
from scorelab.run.workdir import Workdir

# The most bytes of a record: its config and how the model came to be.
_RECORD = 1 << 24


def keep(root: Path, file: Path) -> Path:
    """Write the model of a work directory, the averaged parameters of its newest checkpoint, to an ``.npz`` file."""
    workdir = Workdir(root)
    text = workdir.config.read_text(encoding="utf-8")
    experiment = configs.load(str(workdir.config), carried=True).experiment
    state, step = trained_state(experiment, workdir)
    model = experiment.learner.model(state)
    record = dict(
        config=text, step=step, data=experiment.data.name, data_sha256=experiment.data.load().sha256,
        versions=workdir.read_json(workdir.versions),
    )  # fmt: skip
    leaves = {f"p{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(model.params))}
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_npz(file, leaves | {"record": np.asarray(json.dumps(record))})


def read(file: Path) -> tuple[Experiment, BoundDenoiser, dict]:
    """The experiment, the model and the record of a kept model.

    Its config may use only what :mod:`scorelab.run.trust` lists, and more inside ``trust.allowing(...)``.

    Raises:
        ConfigError: the file is no kept model, is damaged, or its config uses something else.
        ValueError: its parameters do not fit its own config.
    """
    try:
        record = json.loads(str(read_npz(file, limit=_RECORD, only=("record",))["record"]))
        text = record["config"]
        if not isinstance(text, str):
            raise TypeError(f"config is {type(text).__name__}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{shown(file)}: not a model written by scorelab.run.kept.keep: {error}") from error
    # The config it was trained with, whatever the file in configs/ has become.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{file.stem}.gin"
        path.write_text(text, encoding="utf-8")
        try:
            experiment = configs.load(str(path), carried=True).experiment
        except ConfigError as error:
            raise ConfigError(f"{shown(file)}: {str(error).replace(shown(path), 'its config')}") from error
    network = experiment.learner.model(state_like(experiment))
    wanted = jax.tree.leaves(network.params)
    try:
        # No more than the network has: a small file can hold gigabytes of zeros.
        stored = read_npz(file, limit=size_of(network.params) + _RECORD)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    leaves = [stored[key] for key in sorted(set(stored) - {"record"})]
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in wanted]:
        raise ValueError(f"{shown(file)} does not fit its own config: expected the network it was trained with")
    return experiment, network.denoiser.bind(jax.tree.unflatten(jax.tree.structure(network.params), leaves)), record


def model(path: str) -> BoundDenoiser:
    """A trained model for a config file, such as the teacher of a distillation.

    Args:
        path: a file written by :func:`keep`, or a work directory, whose newest checkpoint is taken; looked up in the working folder
            and, in a checkout of the project, in its root.
    """
    places = [Path(path), *(root.parent / path for root in CONFIG_ROOTS)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise ConfigError(
            f"kept.model.path = {path!r}: no such file or folder; expected a model kept by experiments/kept_models.py, or the work "
            "directory of a trained config"
        )
    stamp = max(path.stat().st_mtime_ns for path in (found, *found.glob("checkpoints")))
    return _model(found.resolve(), stamp)


@functools.lru_cache(maxsize=4)
def _model(place: Path, stamp: int) -> BoundDenoiser:
    if place.is_file():
        return read(place)[1]
    experiment = configs.load(str(Workdir(place).config), carried=True).experiment
    # Host arrays, as in a file.
    state, _ = trained_state(experiment, Workdir(place))
    return experiment.learner.model(state)
