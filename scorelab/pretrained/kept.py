"""Trained models of this project: a file with parameters, config and record, or the work directory of a run."""

from __future__ import annotations

import functools
import json
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scorelab import config as configs
from scorelab.arrays import Pytree
from scorelab.config.sources import CONFIG_ROOTS
from scorelab.errors import ConfigError, shown
from scorelab.experiment.base import Experiment
from scorelab.experiment.checkpoints import size_of
from scorelab.experiment.data import DataSpec, measuring
from scorelab.experiment.train import state_like, trained_state
from scorelab.experiment.workdir import Workdir
from scorelab.files import read_npz, write_npz
from scorelab.models import BoundDenoiser
from scorelab.names import did_you_mean
from scorelab.pretrained.registry import PUBLISHED
from scorelab.pretrained.store import converted
from scorelab.processes.scale import ScaleWarning
from scorelab.pytrees import content

# The models that the package carries.
MODELS = Path(__file__).resolve().parent / "models"
# The most bytes of a record: its config and how the model came to be.
_RECORD = 1 << 24


def keep(root: str | Path, file: str | Path) -> Path:
    """Write the model of a work directory, the averaged parameters of its newest checkpoint, to an ``.npz`` file.

    The file is read without the data: it has what its config measured on them, and their shapes.
    """
    workdir, file = Workdir(Path(root)), Path(file)
    text = workdir.config.read_text(encoding="utf-8")
    with measuring({}) as measured:
        experiment = configs.load(str(workdir.config), carried=True, devices=False).experiment
    state, step = trained_state(experiment, workdir)
    model = experiment.learner.model(state)
    record = dict(
        config=text, step=step, data=experiment.data.name, data_sha256=experiment.data.load().sha256,
        measured=measured, **data_shapes(experiment.data), versions=workdir.read_json(workdir.versions),
        sha256=parameters_hash(model.params),
    )  # fmt: skip
    leaves = {f"p{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(model.params))}
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_npz(file, leaves | {"record": np.asarray(json.dumps(record))})


def data_shapes(data: DataSpec) -> dict[str, Any]:
    """What a model has to know of its data: ``example``, shape and dtype of every array by name, and ``classes``, None for none."""
    batch = data.examples(1, 0).at(0)
    return dict(
        example={name: [list(rows.shape[1:]), str(rows.dtype)] for name, rows in batch.items()},
        classes=data.load().num_classes if data.labels else None,
    )


def read(file: Path) -> tuple[Experiment, BoundDenoiser, dict]:
    """The experiment, the model and the record of a kept model.

    Its config may use only what :mod:`scorelab.config.trust` lists, and more inside ``trust.allowing(...)``.

    Raises:
        ConfigError: the file is no kept model, is damaged, or its config uses something else.
        ValueError: its parameters do not fit its own config.
    """
    try:
        record = json.loads(str(read_npz(file, limit=_RECORD, only=("record",))["record"]))
        text = record["config"]
        if not isinstance(text, str):
            raise TypeError(f"config is {type(text).__name__}")
        measured = {name: float(value) for name, value in record.get("measured", {}).items()}
        example = record.get("example", {})
        batch = {name: jax.ShapeDtypeStruct((1, *shape), np.dtype(dtype)) for name, (shape, dtype) in example.items()}
        _ = batch and record["classes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{shown(file)}: not a model written by scorelab.pretrained.keep: {error}") from error
    # The config it was trained with, whatever the file in configs/ has become.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{file.stem}.gin"
        path.write_text(text, encoding="utf-8")
        try:
            with measuring(measured), warnings.catch_warnings():
                # Said to whoever trained it.
                warnings.simplefilter("ignore", ScaleWarning)
                experiment = configs.load(str(path), carried=True, devices=False).experiment
        except ConfigError as error:
            raise ConfigError(f"{shown(file)}: {str(error).replace(shown(path), 'its config')}") from error
    # What earlier versions kept has neither: then the data is looked at.
    # Of shapes: a learner may compute with the arrays of its state.
    network = jax.eval_shape(experiment.learner.model, state_like(experiment, batch or None))
    if not batch:
        record |= data_shapes(experiment.data)
    wanted = jax.tree.leaves(network.params)
    try:
        # No more than the network has: a small file can hold gigabytes of zeros.
        stored = read_npz(file, limit=size_of(network.params) + _RECORD)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    leaves = [stored[key] for key in sorted(set(stored) - {"record"})]
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != [(leaf.shape, leaf.dtype) for leaf in wanted]:
        raise ValueError(f"{shown(file)} does not fit its own config: expected the network it was trained with")
    params = jax.tree.unflatten(jax.tree.structure(network.params), leaves)
    require_hash(file, params, record.get("sha256"))
    return experiment, network.denoiser.bind(params), record


def parameters_hash(params: Pytree) -> str:
    """SHA-256 of the shapes, the dtypes and the bytes of the parameters, in their order."""
    return content(params, names=False)


def require_hash(file: Path, params: Pytree, expected: str | None) -> None:
    """Raise ``ConfigError`` where the parameters of a file are not those that it, or its card, was written with."""
    if expected is not None and (found := parameters_hash(params)) != expected:
        raise ConfigError(f"{shown(file)} has parameters with the hash {found}: expected {expected}, as when it was written")


def find(name: str | os.PathLike[str]) -> Path:
    """The file or the work directory that ``name`` says: a path, in the working folder or in the root of a checkout, or the name of

    a model that the package carries.
    """
    try:
        name = os.fspath(name)
    except TypeError:
        raise TypeError(f"pretrained.load.name = {name!r}: expected a name or a path") from None
    # What lies in the working folder by chance is not taken for a model of the package; `./name` is.
    carried = [MODELS / f"{name}.npz"] if re.fullmatch(r"[\w-]+", name) else []
    places = [*carried, Path(name), *(root.parent / name for root in CONFIG_ROOTS)]
    found = next((place for place in places if name.strip() and _exists(place)), None)
    if found is None:
        known = sorted(file.stem for file in MODELS.glob("*.npz"))
        near = did_you_mean(name, (*known, *PUBLISHED, *converted()))
        raise ConfigError(
            f"pretrained.model.name = {name!r}: no such model, file or folder; expected {', '.join(known)}, a file that "
            "pretrained.keep wrote, the work directory of a trained config, or a converted model, as `scorelab pretrained list` "
            f"has them. {near}".rstrip()
        )
    return found


def _exists(place: Path) -> bool:
    """Whether something is there; a name that no file can have is not."""
    try:
        return place.exists()
    except OSError:
        return False


@functools.lru_cache(maxsize=4)
def stored(place: Path, stamp: int) -> tuple[Experiment, BoundDenoiser, dict]:
    """The experiment, the model and the record of a file or of a work directory; ``stamp`` is the time of its last change."""
    if place.is_file():
        return read(place)
    workdir = Workdir(place)
    if not workdir.config.is_file():
        raise ConfigError(f"{shown(place)}: no work directory of a trained config, nor a file that pretrained.keep wrote")
    experiment = configs.load(str(workdir.config), carried=True, devices=False).experiment
    # Host arrays, as in a file.
    state, step = trained_state(experiment, workdir)
    specs = workdir.read_json(workdir.specs) or {}
    record = dict(step=step, data=experiment.data.name, data_sha256=specs["train_sha256"], **data_shapes(experiment.data))
    return experiment, experiment.learner.model(state), record
