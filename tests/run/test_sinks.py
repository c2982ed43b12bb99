"""Metrics go where a run is told, once each, however often it is stopped."""

import csv
import dataclasses
import importlib.util
import json
import math
import shutil
import struct
from contextlib import contextmanager

import pytest

from scorelab import config
from scorelab.experiment import Run, Train, sinks
from scorelab.experiment.faults import Signals, Stopped
from scorelab.experiment.train import train
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.run import pipeline
from tests.run.conftest import TINY, with_sets

SINKS = ("experiment.Train.sinks = (@sinks.Csv(), @sinks.TensorBoard())",)
CONFIG = """from __gin__ import dynamic_registration

from scorelab import experiment
from scorelab.experiment import sinks

include 'toys/eight_gaussians.gin'

experiment.Train.sinks = (@sinks.Csv(), @sinks.TensorBoard())
"""
WANDB = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


def records(path):
    """The records of a TFRecord file: length (8 bytes), its checksum (4), the data, their checksum (4)."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (size,) = struct.unpack_from("<Q", data, place)
        yield data[place + 12 : place + 12 + size]
        place += 16 + size


def tensorboard(root):
    """(step, name) -> value of all event files, each there once."""
    from tensorboardX.proto.event_pb2 import Event

    events = [Event.FromString(record) for path in (root / "tensorboard").iterdir() for record in records(path)]
    found = [((event.step, value.tag), value.simple_value) for event in events for value in event.summary.value]
    assert len(found) == len(dict(found))
    return dict(found)


def table(root):
    """The same of ``metrics.csv``."""
    with open(root / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    found = [
        ((int(line["step"]), name), float(text)) for line in lines for name, text in line.items() if name != "step" and text != ""
    ]
    assert len(found) == len(dict(found))
    return dict(found)


def logged(root):
    """The same of the logs of the work directory."""
    found = {}
    for _, line in read_lines(root / "metrics.jsonl"):
        found |= {(line["step"], f"train/{name}"): value for name, value in line.items() if name not in ("step", "first")}
    for _, line in read_lines(root / "evaluations.jsonl"):
        found |= {(line["step"], name): value for name, value in line["values"].items()}
    return {place: value for place, value in found.items() if value is not None}


def require_complete(root):
    expected = logged(root)
    assert table(root) == expected
    # TensorBoard keeps float32, and letters, digits, "-", "_", "." and "/" of names.
    kept = {(step, "".join(c if c.isalnum() or c in "-_./" else "_" for c in name)): v for (step, name), v in expected.items()}
    assert tensorboard(root) == pytest.approx(kept, rel=1e-6)


@pytest.fixture(scope="module")
def with_sinks(tmp_path_factory):
    from scorelab.run.cli import main

    pytest.importorskip("tensorboardX")
    folder = tmp_path_factory.mktemp("sinks")
    (folder / "sinks.gin").write_text(CONFIG)
    assert main(["run", str(folder / "sinks.gin"), *with_sets(*TINY), "--workdir", str(folder / "run")]) == 0
    return folder / "sinks.gin", folder / "run"


def test_every_sink_has_every_number_of_training_and_evaluation(with_sinks):
    _, root = with_sinks
    names = {name for _, name in logged(root)}
    assert {"train/loss", "train/grad_norm", "train/learning_rate", "evaluate/SW2", "evaluate/SW2 floor"} <= names
    require_complete(root)


def test_a_run_that_goes_on_from_an_earlier_checkpoint_has_no_doubles_and_no_holes(with_sinks, tmp_path, scorelab):
    path, root = with_sinks
    work = tmp_path / "run"
    shutil.copytree(root, work)
    expected = logged(work)
    # As after a kill: later rows are there, torn or whole, and their checkpoint is not.
    shutil.rmtree(work / "checkpoints" / "20")
    with open(work / "metrics.csv", "a") as file:
        file.write("15,0.1,")
    assert scorelab("run", path, *with_sets(*TINY), "--workdir", work, "--resume")[0] == 0
    assert logged(work) == expected
    require_complete(work)


def test_a_sink_that_is_added_later_gets_what_was_before(tiny_run, tmp_path, scorelab, with_sinks):
    root = tmp_path / "run"
    shutil.copytree(tiny_run, root)
    assert scorelab("run", with_sinks[0], *with_sets(*TINY), "--workdir", root, "--resume")[0] == 0
    require_complete(root)


def test_a_work_directory_with_sinks_is_evaluated_again(with_sinks, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(with_sinks[1], root)
    pipeline.sample_workdir(root, n=32, name="more")
    pipeline.evaluate_workdir(root, name="more")
    assert (20, "evaluate/more/SW2") in logged(root)
    require_complete(root)
    pipeline.evaluate_workdir(root, name="more", n=16)
    assert [line["samples"] for _, line in read_lines(root / "evaluations.jsonl")] == ["", "more"]
    require_complete(root)


@dataclasses.dataclass(frozen=True)
class Observed(sinks.Sink):
    """Keeps what it is given."""

    given: list = dataclasses.field(default_factory=list, compare=False, repr=False)

    @contextmanager
    def opened(self, run, rows):
        self.given.append(list(rows))
        yield self.given[-1].append


@dataclasses.dataclass
class StopAfter(Signals):
    """Answers True once, at a step."""

    step: int = 0

    def __post_init__(self):
        super().__init__()

    @contextmanager
    def waiting(self):
        self.asked = 0

        def stop():
            self.asked += 1
            if self.asked == self.step:
                self.received = 15
            return self.asked == self.step

        yield stop


def test_a_window_that_a_signal_cut_short_is_given_when_it_is_whole(tmp_path):
    sink = Observed()
    loaded = config.load("toys/eight_gaussians", TINY).experiment
    stage = dataclasses.replace(loaded.one(Train), sinks=(sink,))
    experiment = dataclasses.replace(loaded, stages=(stage, *loaded.stages[1:]))
    run = Run(experiment=experiment, workdir=Workdir(tmp_path))
    with pytest.raises(Stopped):
        train(dataclasses.replace(run, signals=StopAfter(step=13)))
    assert [row.step for row in sink.given[0]] == [5, 10]
    assert [line["step"] for _, line in read_lines(tmp_path / "metrics.jsonl")] == [5, 10, 13]
    train(run)
    assert [row.step for row in sink.given[1]] == [5, 10, 15, 20]
    lines = {line["step"]: line for _, line in read_lines(tmp_path / "metrics.jsonl")}
    assert {row.step: row.values["train/loss"] for row in sink.given[1]} == {step: line["loss"] for step, line in lines.items()}


def test_a_missing_package_is_refused_before_anything_runs(tmp_path, scorelab, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tensorboardX" else find(name, *rest))
    (tmp_path / "sinks.gin").write_text(CONFIG)
    status, _, err = scorelab("run", tmp_path / "sinks.gin", *with_sets(*TINY), "--workdir", tmp_path / "run")
    assert status == 2
    assert "Train.sinks has TensorBoard() without the package tensorboardX" in err
    assert "pip install 'scorelab[tracking]'" in err
    assert not (tmp_path / "run").exists()


def test_what_is_no_sink_or_is_there_twice_is_refused():
    with pytest.raises(TypeError, match=r"Train\.sinks"):
        Train(sinks=("csv",))
    with pytest.raises(ValueError, match=r"Train\.sinks has Csv twice"):
        Train(sinks=(sinks.Csv(), sinks.Csv()))
    with pytest.raises(ValueError, match=r"Wandb\.mode = 'on': expected"):
        sinks.Wandb(mode="on")
    assert Train(sinks=sinks.Csv()).sinks == (sinks.Csv(),)


def test_columns_of_the_table_grow_and_what_is_not_finite_is_empty(tmp_path):
    run = Run(experiment=None, workdir=Workdir(tmp_path))
    first = sinks.Row(step=1, values={"a": 1.0, "b": None}, time=0.0)
    with sinks.Csv().opened(run, []) as write:
        write(first)
        assert table(tmp_path) == {(1, "a"): 1.0}
        write(sinks.Row(step=2, values={"a": 0.1, 'c, "d"': 3.0}, time=0.0))
    assert table(tmp_path) == {(1, "a"): 1.0, (2, "a"): 0.1, (2, 'c, "d"'): 3.0}


@WANDB
def test_weights_and_biases_get_each_row_once(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    loaded = config.load("toys/eight_gaussians", TINY)
    run = Run(experiment=loaded.experiment, workdir=Workdir(tmp_path), name="test")
    sent, log = [], wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda self, data, step=None, **more: sent.append((step, data)) or log(self, data, step))
    rows = [sinks.Row(step=step, values={"train/loss": 1.0 / step, "train/bad": None}, time=0.0) for step in (1, 2, 3, 4)]
    sink = sinks.Wandb(mode="offline")
    with sink.opened(run, rows[:1]) as write:
        write(rows[1])
        write(rows[2])
    # As after a kill: it goes on from the second row, and the line of the last one is torn.
    path = tmp_path / "wandb.jsonl"
    name = path.read_text().splitlines()[0]
    with open(path, "a") as file:
        file.write("[4, {")
    with sink.opened(run, rows[:2]) as write:
        write(rows[2])
        write(rows[3])
        # Evaluated at the same step, later.
        write(sinks.Row(step=4, values={"evaluate/SW2": 0.5}, time=0.0))
    assert [(step, data["step"]) for step, data in sent] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 4)]
    assert "train/bad" not in sent[0][1]
    assert math.isclose(sent[3][1]["train/loss"], 0.25)
    assert path.read_text().splitlines()[0] == name
    assert [json.loads(line)[0] for line in path.read_text().splitlines()[1:]] == [1, 2, 3, 4, 4]
    folders = [folder.name for folder in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(folders) == 2
    assert all(name in folder for folder in folders)
