"""An adapter trained by its config, on the trained model of another run: resumed, kept, and refused on another model."""

import json
import shutil

import jax
import numpy as np
import pytest

from scorelab import config, models, pretrained
from scorelab.experiment import Workdir, trained_state
from scorelab.run.cli import main
from tests.run.conftest import TINY, with_sets

GIN = """
from __gin__ import dynamic_registration

from scorelab import models
from scorelab import pretrained
from scorelab import training

include 'toys/rings.gin'

training.ScoreLearner.denoiser = @models.LoRA()
models.LoRA.model = @pretrained.model()
models.LoRA.rank = 2
pretrained.model.name = '{}'
"""
# The network is that of the model.
SETS = tuple(binding for binding in TINY if "nets" not in binding)


@pytest.fixture(scope="module")
def ran(tiny_run, tmp_path_factory):
    """The work directory of a run of 20 steps, and its config."""
    root = tmp_path_factory.mktemp("lora")
    file = root / "adapted.gin"
    file.write_text(GIN.format(pretrained.keep(tiny_run, root / "base.npz")))
    assert main(["run", str(file), *with_sets(*SETS), "--workdir", str(root / "run")]) == 0
    return root / "run", file


def test_checkpoints_hold_the_adapter_alone_and_a_run_goes_on(ran, tiny_run, tmp_path, scorelab):
    root, file = ran
    experiment = config.load(str(file), list(SETS)).experiment
    lora = experiment.learner.denoiser
    assert isinstance(lora, models.LoRA)
    state, step = trained_state(experiment, Workdir(root))
    count = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    small = sum(2 * (int(np.prod(shape[:-1])) + shape[-1]) for shape in lora.shapes.values())
    assert step == 20
    assert count(state.params) == small < count(lora.model.params) / 2
    # Two moments, and counts of steps.
    assert 2 * small < count(state.opt_state) < 2 * small + 10
    # A run that was stopped at step 10.
    half = tmp_path / "half"
    shutil.copytree(root, half)
    shutil.rmtree(half / "checkpoints" / "20")
    assert scorelab("train", file, *with_sets(*SETS), "--workdir", half, "--resume")[0] == 0
    again, _ = trained_state(experiment, Workdir(half))
    jax.tree.map(np.testing.assert_array_equal, again.params, state.params)
    # The frozen model is in the record by its hash.
    said = json.loads((root / "specs.json").read_text())["learner"]["denoiser"]
    assert "sha256" in json.dumps(said["model"])
    # On another one of the same shapes the run does not go on.
    base = file.parent / "base.npz"
    before = base.read_bytes()
    other = tmp_path / "other"
    shutil.copytree(tiny_run, other)
    shutil.rmtree(other / "checkpoints" / "20")
    pretrained.keep(other, base)
    try:
        shutil.rmtree(half / "checkpoints" / "20")
        status, out, err = scorelab("train", file, *with_sets(*SETS), "--workdir", half, "--resume")
    finally:
        base.write_bytes(before)
    assert status != 0
    assert "was run with another config" in out + err


def test_what_is_kept_is_an_ordinary_model(ran, tmp_path):
    root, file = ran
    experiment = config.load(str(file), list(SETS)).experiment
    model = experiment.learner.model(trained_state(experiment, Workdir(root))[0])
    found = pretrained.load(str(pretrained.keep(root, tmp_path / "adapted.npz")))
    assert isinstance(found.model, models.BoundDenoiser)
    assert found.model.params.keys() == model.params.keys()
    # The sum here was formed by another program: float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), found.model.params, model.params)
    assert found.sample(5).x.shape == (5, 2)
