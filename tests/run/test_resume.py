"""A run killed at any moment and resumed ends bit-identical to one that was never stopped."""

import errno
import json
import os
import random
import shutil
import signal
import threading
import time
from contextlib import nullcontext

import jax
import numpy as np
import orbax.checkpoint
import pytest

from scorelab import config
from scorelab.experiment import checkpoints as checkpoints_module
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.experiment.train import trained_state
from scorelab.experiment.workdir import Workdir, append_line, cut_lines, read_lines
from scorelab.run import prepare
from tests.run.conftest import TINY, start, with_sets

# Checkpoints at every tenth of some quick steps: a kill often falls into the writing of one.
LONG = (
    *TINY,
    "STEPS = 200",
    "experiment.Train.checkpoint_every = 10",
    "experiment.Train.log_every = 4",
)
COMMAND = ("train", "toys/eight_gaussians", *with_sets(*LONG))


def newest(root):
    return max((int(p.name) for p in (root / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def kill_within(root, first, last, seed):
    """Start the run, wait until a random checkpoint between two steps, then kill it a random moment later."""
    rng = random.Random(seed)
    target, delay = rng.randrange(first, last, 10), rng.uniform(0.0, 0.05)
    process = start(*COMMAND, "--workdir", root, "--resume")
    while newest(root) < target and process.poll() is None:
        time.sleep(0.002)
    time.sleep(delay)
    assert process.poll() is None, process.stdout.read()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return newest(root)


def state_of(root):
    experiment = config.load(str(root / "config.gin")).experiment
    return trained_state(experiment, Workdir(root))


@pytest.mark.long
def test_killed_and_resumed_equals_unbroken(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    unbroken = start(*COMMAND, "--workdir", whole)
    reached = [kill_within(broken, 20, 70, seed=1), kill_within(broken, 90, 150, seed=2)]
    assert 0 < reached[0] < reached[1] < 200
    for process in (start(*COMMAND, "--workdir", broken, "--resume"), unbroken):
        output, _ = process.communicate()
        assert process.returncode == 0, output

    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["first"] for line in lines] == [1, *(line["step"] + 1 for line in lines[:-1])]
    assert sorted(p.name for p in (broken / "checkpoints").iterdir()) == ["190", "200"]
    (state, step), (expected, expected_step) = state_of(broken), state_of(whole)
    assert step == expected_step == 200
    # Parameters, averages and the optimiser's moments.
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_checkpoint_cut_short_is_not_seen(tmp_path):
    state = {"w": np.arange(3.0, dtype=np.float32), "step": np.int32(5)}
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(5, state)
    # What a kill leaves behind while a checkpoint is written.
    remains = tmp_path / "c" / ".7.123.tmp"
    remains.mkdir()
    (remains / "half").write_bytes(b"x")
    assert checkpoints.steps() == [5]
    checkpoints.save(8, state)
    assert checkpoints.steps() == [5, 8]
    assert not remains.exists()
    restored = checkpoints.restore(5, jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, state)))
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_a_checkpoint_is_written_while_the_training_goes_on(tmp_path, monkeypatch):
    open_gate, write = threading.Event(), Checkpoints._write

    def slowly(self, step, arrays):
        open_gate.wait(60)
        write(self, step, arrays)

    monkeypatch.setattr(Checkpoints, "_write", slowly)
    checkpoints, state = Checkpoints(tmp_path / "c"), {"w": np.arange(3.0, dtype=np.float32), "step": np.int32(5)}
    like = jax.eval_shape(lambda: jax.tree.map(jax.numpy.asarray, state))
    with checkpoints.writing():
        checkpoints.begin(5, state)
        assert checkpoints.steps() == []
        # The step that follows uses the memory of the state again.
        state["w"][:] = 9
        open_gate.set()
    np.testing.assert_array_equal(checkpoints.restore(5, like)["w"], [0, 1, 2])


def test_a_checkpoint_that_cannot_be_written_is_told_at_the_next_one(tmp_path, monkeypatch):
    def full(self, step, arrays):
        raise OSError(errno.ENOSPC, "No space left on device", "c")

    monkeypatch.setattr(Checkpoints, "_write", full)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.begin(5, {"w": np.zeros(2)})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.begin(6, {"w": np.zeros(2)})
    with pytest.raises(OSError, match="No space left"), checkpoints.writing():
        checkpoints.begin(7, {"w": np.zeros(2)})
    # An error of the training is told, and not what it made impossible.
    checkpoints.begin(8, {"w": np.zeros(2)})
    with pytest.raises(KeyError), checkpoints.writing():
        raise KeyError
    checkpoints.wait()


def signalled_while_waiting(monkeypatch, step, *numbers):
    """The writing of ``step`` takes long, and signals come while nothing is left to do but to wait for it."""
    end, write, waits = checkpoints_module._Writing.end, Checkpoints._write, threading.Event()

    def ending(self):
        if self.step == step:
            waits.set()
        return end(self)

    def slowly(self, number, arrays):
        if number == step:
            waits.wait(60)
            for each in numbers:
                # Two at once could be taken for one.
                time.sleep(0.1)
                os.kill(os.getpid(), each)
            time.sleep(0.3)
        write(self, number, arrays)

    monkeypatch.setattr(checkpoints_module._Writing, "end", ending)
    monkeypatch.setattr(Checkpoints, "_write", slowly)


@pytest.mark.parametrize("inside", [True, False])
def test_an_interrupted_wait_ends_with_the_writing(tmp_path, monkeypatch, inside):
    checkpoints = Checkpoints(tmp_path / "c")

    def save():
        with checkpoints.writing() if inside else nullcontext():
            checkpoints.begin(5, {"w": np.zeros(2)})
        checkpoints.wait()

    # A process in the background may have been told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            signalled_while_waiting(patch, 5, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                save()
            assert os.listdir(tmp_path / "c") == ["5"]
    finally:
        signal.signal(signal.SIGINT, before)
    checkpoints.save(6, {"w": np.zeros(2)})
    assert checkpoints.steps() == [5, 6]


@pytest.mark.parametrize(
    ("numbers", "status", "said"),
    [
        ([signal.SIGTERM], 0, "checkpoint of step 20 of 20"),
        ([signal.SIGTERM, signal.SIGINT], 130, "stopped between two checkpoints"),
    ],
)
def test_a_signal_while_the_last_checkpoint_is_written_waits_for_it(tmp_path, scorelab, monkeypatch, numbers, status, said):
    command = ("train", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", tmp_path / "run", "--resume")
    with monkeypatch.context() as patch:
        signalled_while_waiting(patch, 20, *numbers)
        found, _, err = scorelab(*command)
        # Before the lock is released, not some time later.
        assert newest(tmp_path / "run") == 20
    assert (found, len(err.splitlines())) == (status, 1)
    assert said in err
    found, out, _ = scorelab(*command)
    assert found == 0
    assert "already at step 20" in out


def test_a_spread_checkpoint_that_cannot_be_begun_leaves_nothing(tmp_path, monkeypatch):
    def full(self, *rest, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoints, state = Checkpoints(tmp_path / "c"), {"w": np.arange(3.0, dtype=np.float32)}
    # As if no host had the whole array.
    monkeypatch.setattr(checkpoints_module, "_spread", lambda leaf: True)
    with monkeypatch.context() as patch:
        patch.setattr(orbax.checkpoint.AsyncCheckpointer, "save", full)
        with pytest.raises(OSError, match="No space left") as caught:
            checkpoints.begin(5, state)
    assert caught.value.filename == str(tmp_path / "c" / "5")
    assert os.listdir(tmp_path / "c") == []
    checkpoints.save(5, jax.tree.map(jax.numpy.asarray, state))
    np.testing.assert_array_equal(checkpoints.restore(5, state)["w"], state["w"])


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": np.full(2, step, np.float32)})
    assert checkpoints.steps() == [2, 3]


def test_logs_are_cut_to_the_checkpoint_and_torn_lines_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    for step in (5, 10, 15):
        append_line(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 2')
    assert [record["step"] for _, record in read_lines(path)] == [5, 10, 15]
    cut_lines(path, 10)
    assert path.read_bytes() == b'{"step": 5}\n{"step": 10}\n'


def test_resuming_on_another_number_of_devices_is_refused(tiny_run, scorelab):
    path = tiny_run / "versions.json"
    text = path.read_text()
    changed = json.loads(text)
    changed["devices"]["count"] = 7
    try:
        path.write_text(json.dumps(changed))
        status, _, err = scorelab("run", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", tiny_run, "--resume")
    finally:
        path.write_text(text)
    assert status == 2
    assert "was run on 7 cpu device(s)" in err
    assert "cpu_devices" in err


def test_fields_that_a_record_lacks_count_as_their_defaults(tmp_path, tiny_run, scorelab):
    root = tmp_path / "run"
    shutil.copytree(tiny_run, root)
    whole = json.loads((root / "specs.json").read_text())

    def resumed(*bindings, without=()):
        old = json.loads(json.dumps(whole))
        del old["learner"]["accumulate"], old["learner"]["denoiser"]["net"]["dtype"]
        for stage in old["stages"]:
            stage.pop("sharding", None)
            stage.pop("rectify", None)
        for name in without:
            del old["learner"][name]
        (root / "specs.json").write_text(json.dumps(old))
        status, _, err = scorelab("train", "toys/eight_gaussians", *with_sets(*TINY, *bindings), "--workdir", root, "--resume")
        return status, err

    assert resumed() == (0, "")
    assert json.loads((root / "specs.json").read_text()) == whole
    for binding, name in (
        ("training.ScoreLearner.accumulate = 2", "accumulate"),
        ("nets.MLP.dtype = 'bfloat16'", "denoiser.net.dtype"),
    ):
        status, err = resumed(binding)
        assert status == 2
        assert f"was run with another config: Experiment.learner.{name} differ" in err
    # Without a default there is nothing that it could have been.
    status, err = resumed(without=["loss"])
    assert status == 2
    assert "Experiment.learner.loss differ" in err


def test_a_run_can_be_made_longer(tmp_path, scorelab):
    short = with_sets(*TINY, "optax.warmup_cosine_decay_schedule.decay_steps = 40")
    # The macro STEPS would change nothing any more, and be refused.
    kept = (binding for binding in TINY if not binding.startswith("STEPS"))
    longer = with_sets(*kept, "optax.warmup_cosine_decay_schedule.decay_steps = 40", "experiment.Train.steps = 30")
    assert scorelab("train", "toys/rings", *short, "--workdir", tmp_path / "run")[0] == 0
    status, out, _ = scorelab("train", "toys/rings", *longer, "--workdir", tmp_path / "run", "--resume")
    assert status == 0
    assert "steps 21 to 30" in out
    assert newest(tmp_path / "run") == 30


@pytest.mark.parametrize(
    ("before", "resume", "count"),
    [
        (None, True, None),  # a new run has all cores
        (dict(platform="cpu", count=7), True, 7),
        (dict(platform="cpu", count=7), False, None),
        (dict(platform="gpu", count=7), True, None),
        (dict(platform="cpu", count="seven"), True, "seven"),  # refused, and said where the work directory is opened
    ],
)
def test_a_run_takes_the_number_of_devices_it_began_with(tmp_path, monkeypatch, before, resume, count):
    asked = []

    def use_all_cores(count):
        asked.append(count)
        if isinstance(count, str):
            raise ValueError(count)

    monkeypatch.setattr(prepare, "use_all_cores", use_all_cores)
    workdir = Workdir(tmp_path)
    if before is not None:
        workdir.versions.write_text(json.dumps(dict(devices=before)))
    prepare.use_cores(workdir, resume=resume)
    assert asked == [count]


@pytest.mark.long
def test_a_resume_on_a_machine_with_other_cores(tmp_path):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    # 1.0e9 operations of an update of 76,000 numbers: work for 4.4 devices, by what devices.training_mesh asks of each.
    wide = tuple(b for b in TINY if "width" not in b and "batch_size" not in b and "Named.n" not in b)
    wide = with_sets(*wide, "nets.MLP.width = 64", "data.Named.n = 18000", "experiment.Train.batch_size = 9000")
    for root, part in ((whole, ()), (broken, ("--set", "experiment.Train.steps = 10"))):
        output, _ = start("train", "toys/rings", *wide, *part, "--workdir", root, JAX_NUM_CPU_DEVICES="3").communicate()
        assert "3 x cpu" in output
    output, _ = start("train", "toys/rings", *wide, "--workdir", broken, "--resume").communicate()
    assert "steps 11 to 20" in output
    assert "3 x cpu" in output
    (state, step), (expected, expected_step) = state_of(broken), state_of(whole)
    assert step == expected_step == 20
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.mark.long
def test_a_small_network_trains_on_one_of_the_devices(tmp_path):
    process = start("train", "toys/rings", *with_sets(*TINY), "--workdir", tmp_path / "run", JAX_NUM_CPU_DEVICES="2")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "1 x cpu" in output
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["devices"]["count"] == 2


@pytest.mark.long
def test_the_number_of_cpu_devices_is_set_before_jax_starts(tmp_path):
    process = start(
        "train",
        "toys/rings",
        *with_sets(*TINY, "experiment.Experiment.cpu_devices = 2"),
        "--workdir",
        tmp_path / "run",
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "2 x cpu" in output
    assert json.loads((tmp_path / "run" / "versions.json").read_text())["devices"]["count"] == 2
