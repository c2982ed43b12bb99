"""Small trained models kept in the repository, so that figures need no training.

    scorelab train paper/2412.09726/mnist --workdir runs/mnist
    python experiments/kept_models.py --workdir runs/mnist --name mnist

Writes `experiments/models/NAME.npz`: the averaged parameters of the newest checkpoint, and the record of how they came to be
(config file, step, hash of the data, versions).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from scorelab.files import write_npz
from scorelab.run import config as configs
from scorelab.run.experiment import Experiment
from scorelab.run.train import state_like, trained_state
from scorelab.run.workdir import Workdir

FOLDER = Path(__file__).parent / "models"


def keep(workdir: Workdir, name: str) -> Path:
    """Write the model of a work directory."""
    import jax

    text = workdir.config.read_text(encoding="utf-8")
    experiment = configs.load(workdir.config, []).experiment
    state, step = trained_state(experiment, workdir)
    model = experiment.learner.model(state)
    record = dict(
        config=text, step=step, data=experiment.data.name, data_sha256=experiment.data.load().sha256,
        versions=workdir.read_json(workdir.versions),
    )  # fmt: skip
    leaves = {f"p{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(model.params))}
    FOLDER.mkdir(exist_ok=True)
    return write_npz(FOLDER / f"{name}.npz", leaves | {"record": np.asarray(json.dumps(record))})


def kept(name: str) -> tuple[Experiment, object, dict]:
    """The experiment, the model and the record of a kept model."""
    import jax

    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        record = json.loads(str(file["record"]))
        leaves = [file[key] for key in sorted(set(file) - {"record"})]
    # The config it was trained with, whatever the file in configs/ has become.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.gin"
        path.write_text(record["config"], encoding="utf-8")
        experiment = configs.load(str(path), []).experiment
    if (found := experiment.data.load().sha256) != record["data_sha256"]:
        raise ValueError(f"{name}.npz was trained on data with the hash {record['data_sha256']}: expected it here, not {found}")
    like = state_like(experiment).params
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(like)]:
        raise ValueError(f"{name}.npz does not fit its own config: expected the network it was trained with")
    params = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return experiment, experiment.learner.denoiser.bind(params), record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the work directory of a trained config")
    parser.add_argument("--name", required=True, help="the name of the config in configs/paper/2412.09726")
    arguments = parser.parse_args()
    print("wrote", keep(Workdir(arguments.workdir), arguments.name))


if __name__ == "__main__":
    main()
