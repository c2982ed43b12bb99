import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A toy run of a second or two: everything a real one has, tiny.
TINY = (
    "nets.MLP.width = 16",
    "nets.MLP.depth = 1",
    "data.Named.n = 256",
    "experiment.Train.batch_size = 32",
    "experiment.Train.log_every = 5",
    "experiment.Train.checkpoint_every = 10",
    "STEPS = 20",
    "WARMUP = 2",
    "grids.Karras.steps = 4",
    "experiment.Sample.n = 64",
    "experiment.PointEvaluation.projections = 16",
)


def with_sets(*bindings):
    return [part for binding in bindings for part in ("--set", binding)]


@pytest.fixture
def scorelab(capsys):
    """Run the command line in this process: scorelab(*arguments) -> (status, stdout, stderr)."""
    from scorelab.run.cli import main

    def run(*arguments):
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The work directory of a finished tiny run."""
    from scorelab.run.cli import main

    root = tmp_path_factory.mktemp("tiny") / "run"
    assert main(["run", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", str(root)]) == 0
    return root


def start(*arguments, **extra):
    """Start the command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **extra}
    command = [sys.executable, "-m", "scorelab.run.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
