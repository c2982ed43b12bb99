"""Early stopping of a run: what it writes, which checkpoint it keeps and gives, and that a killed one ends the same."""

import json
import shutil
import signal
import time
from dataclasses import replace

import jax
import numpy as np
import pytest

from scorelab import config, data
from scorelab.errors import ConfigError
from scorelab.experiment import Report, Run, Train, held_out
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.experiment.checks import check
from scorelab.experiment.train import trained_state
from scorelab.experiment.workdir import Workdir, append_line
from scorelab.training import EarlyStopping, HeldOutLoss
from tests.run.conftest import TINY, start, with_sets

SETS = (
    *TINY,
    "experiment.Train.previews = 0",
    "experiment.Train.keep_checkpoints = 1",
    "experiment.Train.checkpoint_every = 5",
    "STEPS = 200",
    # Far too large, so that the loss soon rises.
    "LEARNING_RATE = 0.3",
    "experiment.Train.early = @training.EarlyStopping()",
    "training.EarlyStopping.every = 5",
    "training.EarlyStopping.patience = 2",
    "training.EarlyStopping.n = 64",
    "training.EarlyStopping.draws = 2",
)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(folder, report=False, **fields):
    """Training by the stages alone, with other fields of its stage."""
    whole = config.load("toys/rings", SETS).experiment
    stage = replace(whole.one(Train), **fields)
    experiment = replace(whole, stages=(stage, Report()) if report else (stage,))
    folder.mkdir(exist_ok=True)
    for each in experiment.stages:
        each(Run(experiment=experiment, workdir=Workdir(folder)))
    return experiment, Workdir(folder)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run that ended early, with its report."""
    return run(tmp_path_factory.mktemp("early") / "run", report=True)


def test_a_run_ends_early_with_the_best_and_the_last_checkpoint(ended):
    experiment, place = ended
    lines = read(place.held_out_log)
    losses = [line["loss"] for line in lines]
    assert [line["step"] for line in lines] == list(range(5, 5 * len(lines) + 1, 5))
    best = 5 * (1 + int(np.argmin(losses)))
    last = lines[-1]["step"]
    assert last == best + 2 * 5 < 200
    assert read(place.metrics_log)[-1]["step"] == last
    # One is kept, and the best beside it.
    assert Checkpoints(place.checkpoints).steps() == [best, last]
    found = {keep: trained_state(experiment, place, keep=keep) for keep in ("last", "best")}
    assert (found["last"][1], found["best"][1]) == (last, best)
    assert [int(state.step) for state, _ in found.values()] == [last, best]
    assert trained_state(experiment, place)[1] == last
    asked = replace(experiment, stages=(replace(experiment.one(Train), keep="best"),))
    assert trained_state(asked, place)[1] == best
    # The loss on record is that of the checkpoint.
    watch = EarlyStopping(every=5, patience=2, n=64, draws=2)
    assert watch.best(held_out.read(place)).step == best


def test_the_report_says_where_it_ended(ended):
    _, place = ended
    page, lines = place.report.read_text(), read(place.held_out_log)
    best = min(lines, key=lambda line: line["loss"])
    assert f"The training stopped early at step {lines[-1]['step']}." in page
    assert f"The smallest held-out loss is {best['loss']:.4g}, at step {best['step']}." in page
    assert "Stages after the training take the last checkpoint." in page


@pytest.mark.parametrize("at", [5, 8])
def test_a_run_in_parts_is_the_whole_one(ended, tmp_path, at):
    experiment, whole = ended
    _, place = run(tmp_path / "parts", steps=at)
    if at == 5:
        # As a kill leaves it that came between a loss and its checkpoint.
        append_line(place.held_out_log, {"step": 10, "loss": 1e-9, "standard_error": 0.0, "of": "of the future"})
    run(tmp_path / "parts")
    assert place.held_out_log.read_bytes() == whole.held_out_log.read_bytes()
    assert Checkpoints(place.checkpoints).steps() == Checkpoints(whole.checkpoints).steps()
    states = [trained_state(experiment, each, keep=keep)[0] for each in (place, whole) for keep in ("last", "best")]
    jax.tree.map(np.testing.assert_array_equal, states[:2], states[2:])


def test_a_run_that_ended_is_left_alone_and_goes_on_with_more_patience(ended, tmp_path, capsys):
    experiment, whole = ended
    before = read(whole.held_out_log)
    run(whole.root)
    assert "nothing to do, already at step" in (said := capsys.readouterr().out)
    assert "stopped early, 2 evaluations without a smaller loss; best held-out loss" in said
    assert read(whole.held_out_log) == before
    shutil.copytree(whole.root, tmp_path / "more")
    early, last = experiment.one(Train).early, before[-1]["step"]
    _, more = run(tmp_path / "more", steps=last + 5, early=replace(early, patience=100))
    assert read(more.held_out_log)[:-1] == before
    assert read(more.held_out_log)[-1]["step"] == last + 5
    with pytest.raises(ConfigError, match=r"has losses of other held-out points, draws or another loss than Train\.early says"):
        run(tmp_path / "more", early=replace(early, draws=3))


def test_a_best_checkpoint_stays_for_each_that_a_run_may_go_on_from(tmp_path):
    losses = [
        HeldOutLoss(step=step, loss=loss, standard_error=0.1) for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 0.5), (5, 2.0))
    ]
    kept = lambda steps: held_out.best_steps(EarlyStopping(), losses, steps)
    checkpoints = Checkpoints(tmp_path / "c", keep=2, beside=kept)
    for step in range(1, 7):
        checkpoints.save(step, {"w": np.zeros(2), "step": np.int32(step)})
        # One that goes on from the older of two has the best one up to there.
        assert checkpoints.steps() == [[1], [1, 2], [2, 3], [2, 3, 4], [4, 5], [4, 5, 6]][step - 1]


def test_a_best_checkpoint_that_is_gone_is_named(ended, tmp_path):
    experiment, whole = ended
    shutil.copytree(whole.root, tmp_path / "run")
    place = Workdir(tmp_path / "run")
    best, last = Checkpoints(place.checkpoints).steps()
    shutil.rmtree(place.checkpoints / str(best))
    with pytest.raises(
        ConfigError, match=f"the checkpoint of step {best}, which has the smallest held-out loss, is damaged or gone"
    ):
        trained_state(experiment, place, keep="best")
    assert trained_state(experiment, place)[1] == last
    place.held_out_log.unlink()
    # Of a run that is shorter than the time to the first loss, it is the last.
    longer = replace(experiment.one(Train), early=EarlyStopping(every=1000), keep="best")
    assert trained_state(replace(experiment, stages=(longer,)), place)[1] == last
    with pytest.raises(ConfigError, match=rf"has no held-out loss up to step {last}, its last checkpoint: expected one for"):
        trained_state(experiment, place, keep="best")
    with pytest.raises(ValueError, match=r"trained_state\.keep = 'first'"):
        trained_state(experiment, place, keep="first")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"early": None, "keep": "best"}, r"Train\.keep = 'best' with early = None"),
        ({"keep": "first"}, r"Train\.keep = 'first'"),
        ({"checkpoint_every": 2}, r"Train\.early has every = 5: expected a multiple of Train\.checkpoint_every = 2"),
        ({"held_out": "train"}, r"Train\.held_out = 'train' for rings: expected a split that is not trained on, one of \['test'\]"),
        ({"held_out": "valid"}, r"Train\.held_out = 'valid'"),
    ],
)
def test_a_field_that_does_not_fit_is_named(fields, message):
    experiment = config.load("toys/rings", SETS).experiment
    with pytest.raises(ValueError, match=message):
        check(replace(experiment, stages=(replace(experiment.one(Train), **fields),)))


def test_data_without_another_split_are_refused(tmp_path):
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(300, 2)).astype(np.float32))
    experiment = config.load("toys/rings", SETS).experiment
    points = data.ArrayFile(train=str(tmp_path / "points.npz"))
    alone = replace(experiment, data=replace(experiment.data, dataset=points), stages=(experiment.one(Train),))
    with pytest.raises(ValueError, match=r"expected a split that is not trained on, one of \[\], of which it has none"):
        check(alone)


@pytest.mark.long
def test_a_killed_run_ends_the_same(ended, tmp_path):
    _, whole = ended
    command = ("train", "toys/rings", *with_sets(*SETS), "--workdir", tmp_path / "run", "--resume")
    process = start(*command)
    while not (tmp_path / "run" / "checkpoints" / "5").exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    process = start(*command)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "stopped early" in output
    assert (tmp_path / "run" / "held_out.jsonl").read_bytes() == whole.held_out_log.read_bytes()
