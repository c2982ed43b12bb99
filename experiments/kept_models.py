"""Small trained models kept in the repository, so that figures and distillations need no training.

    scorelab train paper/2412.09726/mnist --workdir runs/mnist
    python experiments/kept_models.py --workdir runs/mnist --name mnist

Writes `experiments/models/NAME.npz`: the averaged parameters of the newest checkpoint, and the record of how they came to be
(config file, step, hash of the data, versions).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from recording import script

from scorelab import pretrained
from scorelab.experiment import Experiment

FOLDER = Path(__file__).parent / "models"


def kept(name: str) -> tuple[Experiment, object, dict]:
    """The experiment, the model and the record of a kept model; ValueError where its data is not the data of here."""
    found = pretrained.load(str(FOLDER / f"{name}.npz"))
    experiment, model, record = found.config, found.model, found.record
    if (here := experiment.data.load().sha256) != record["data_sha256"]:
        raise ValueError(f"{name}.npz was trained on data with the hash {record['data_sha256']}: expected it here, not {here}")
    return experiment, model, record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="the work directory of a trained config")
    parser.add_argument("--name", required=True, help="the name of the file")
    arguments = parser.parse_args()
    print("wrote", pretrained.keep(arguments.workdir, FOLDER / f"{arguments.name}.npz"))


if __name__ == "__main__":
    script(main)
