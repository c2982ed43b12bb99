"""What goes wrong around a run: its state, its folder, its files, its owner, signals, and configs that come with data."""

import dataclasses
import errno
import io
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
import types
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest

from scorelab import config, lock, pretrained
from scorelab import experiment as experiments
from scorelab.config import trust
from scorelab.errors import ConfigError
from scorelab.experiment import Report, Run, train
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.experiment.sample import _weights, read_samples
from scorelab.experiment.workdir import Workdir, read_lines
from scorelab.files import DamagedFile, read_npz, write_npz
from scorelab.lock import Lock
from scorelab.pretrained.kept import read
from scorelab.run import pipeline
from scorelab.training import Learner, NonFiniteState, Prepared, fit
from tests.run.conftest import TINY, with_sets

RUN = ("run", "toys/eight_gaussians", *with_sets(*TINY))


# The state that is trained.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    step: Any
    params: Any
    best: Any


@dataclasses.dataclass(frozen=True)
class Adder(Learner):
    """Adds to its parameter; the loss is finite whatever comes of it."""

    last: float

    def init(self, key, batch):
        return State(jnp.zeros((), jnp.int32), {"w": jnp.zeros(3)}, jnp.inf)

    def update(self, state, batch, key):
        w = state.params["w"] + jnp.where(state.step == 5, self.last, 1.0)
        return State(state.step + 1, {"w": w}, state.best), {"loss": jnp.sum(batch["x"])}

    def model(self, state): ...


class Ones:
    def at(self, step):
        return {"x": np.ones(2, np.float32)}


@dataclasses.dataclass(frozen=True)
class Observation:
    every: int
    steps: list = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, step, state, window):
        self.steps.append((step, float(state.params["w"][0]), window.first))


def train_adder(last, hook, **more):
    return fit(Adder(last), Ones(), steps=6, key=jax.random.key(0), hooks=(hook,), log_every=4, **more)


@pytest.mark.parametrize("last", [np.nan, np.inf, -np.inf])
def test_a_state_that_is_not_finite_reaches_no_hook(last):
    """The loss of a step is that of the parameters before it, so only the state itself shows what the last update made."""
    hook = Observation(2)
    with pytest.raises(NonFiniteState, match=r"state\.params\['w'\] is not finite after step 6") as caught:
        train_adder(last, hook)
    assert (caught.value.step, [step for step, *_ in hook.steps]) == (6, [2, 4])


def test_an_optimiser_may_keep_infinity_and_a_stop_is_the_last_step():
    hook = Observation(2)
    assert int(train_adder(1.0, hook).step) == 6
    asked = iter([False, False, True])
    hook = Observation(2)
    state = train_adder(1.0, hook, stop=lambda: next(asked))
    assert hook.steps == [(2, 2.0, 1), (3, 3.0, 3)]
    state = fit(Adder(1.0), Ones(), steps=6, key=jax.random.key(0), hooks=(hook,), log_every=4, state=state)
    assert hook.steps[2:] == [(4, 4.0, 4), (6, 6.0, 5)]
    np.testing.assert_array_equal(state.params["w"], 6.0)


# Checkpoints.


def a_state(step, width=4):
    rng = np.random.default_rng(step)
    params = {"w": rng.normal(size=(width, 3)).astype(np.float32), "b": jnp.asarray(rng.normal(size=2), jnp.bfloat16)}
    return State(np.int32(step), params, np.float32(np.inf))


def filled(folder, *steps):
    checkpoints = Checkpoints(folder, keep=3)
    for step in steps:
        checkpoints.save(step, a_state(step))
    return checkpoints


def stored(place):
    """The arrays of a checkpoint under their places in the state, read by orbax alone."""
    return orbax.checkpoint.Checkpointer(orbax.checkpoint.StandardCheckpointHandler()).restore(place / "state")


def equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(expected)]


def test_every_flipped_bit_is_found_and_the_one_before_is_taken(tmp_path):
    checkpoints = filled(tmp_path / "c", 10, 20)
    equal(checkpoints.restore(20, a_state(0)), a_state(20))
    files = [path for path in (tmp_path / "c" / "20").rglob("*") if path.is_file()]
    assert {"SHA256SUMS", "_METADATA", "manifest.ocdbt"} < {path.name for path in files}
    flips = 0
    for path in files:
        good = path.read_bytes()
        # One bit of every fifth byte, each of its eight in turn.
        for bit in range(3, 8 * len(good), 41):
            bad = bytearray(good)
            bad[bit // 8] ^= 1 << bit % 8
            path.write_bytes(bad)
            with pytest.raises(DamagedFile, match="20"):
                checkpoints.restore(20, a_state(0))
            flips += 1
        said = []
        step, state = checkpoints.newest(a_state(0), say=said.append)
        assert step == 10
        equal(state, a_state(10))
        assert len(said) == 1
        assert "c/20 is damaged and passed over" in said[0]
        path.write_bytes(good)
    assert flips > 600


FAULTS = ["renamed", "empty", "no sums", "nothing but empty sums", "cut short", "a file more", "a file less", "a directory"]


@pytest.mark.parametrize("fault", FAULTS)
def test_other_damage_falls_back_too(tmp_path, fault):
    checkpoints = filled(tmp_path / "c", 10, 20)
    place = tmp_path / "c" / "20"
    file = place / "state" / "manifest.ocdbt"
    if fault == "renamed":
        place.rename(tmp_path / "c" / "30")
    elif fault == "empty":
        shutil.rmtree(place)
        place.mkdir()
    elif fault == "no sums":
        (place / "SHA256SUMS").unlink()
    elif fault == "nothing but empty sums":
        shutil.rmtree(place / "state")
        (place / "SHA256SUMS").write_bytes(b"")
    elif fault == "cut short":
        os.truncate(file, 100)
    elif fault == "a file more":
        (place / "state" / "more").write_bytes(b"")
    else:
        file.unlink()
        if fault == "a directory":
            file.mkdir()
    assert checkpoints.newest(a_state(0), say=lambda text: None)[0] == 10
    # The owner moves it away, so that it neither counts among those kept nor stands where the next one goes.
    assert checkpoints.newest(a_state(0), say=lambda text: None, owned=True)[0] == 10
    assert checkpoints.steps() == [10]
    checkpoints.save(20, a_state(20))
    equal(checkpoints.restore(20, a_state(0)), a_state(20))
    shutil.rmtree(tmp_path / "c" / "10")
    os.truncate(file, 7)
    with pytest.raises(DamagedFile, match="no checkpoint is whole"):
        checkpoints.newest(a_state(0), say=lambda text: None)


@pytest.mark.parametrize(
    ("like", "words"),
    [
        (a_state(0, width=8), r"\['w'\] is float32 \(4, 3\), expected float32 \(8, 3\)"),
        (dataclasses.replace(a_state(0), best=np.float64(0)), r"best is float32 \(\), expected float64"),
        (dataclasses.replace(a_state(0), params={"w": a_state(0).params["w"]}), r"\['b'\] is bfloat16 \(2,\), expected nothing"),
        (dataclasses.replace(a_state(0), best=(np.float32(0), np.zeros(10**6))), r"best is float32 \(\), expected nothing"),
    ],
)
def test_another_structure_is_not_called_damage(tmp_path, like, words):
    with pytest.raises(ValueError, match=f"another structure: .*{words}") as caught:
        filled(tmp_path / "c", 20).newest(like, say=lambda text: pytest.fail(text))
    assert not isinstance(caught.value, DamagedFile)


def test_the_folder_is_of_the_step_of_the_state_and_reading_changes_nothing(tmp_path):
    with pytest.raises(ValueError, match="step 5 with the state of step 7"):
        Checkpoints(tmp_path / "c").save(5, a_state(7))
    assert Checkpoints(tmp_path / "c").steps() == []
    assert Checkpoints(tmp_path / "c").newest(a_state(0), say=print) is None
    assert not (tmp_path / "c").exists()
    for name in (".5.1.tmp", "7.damaged", "03", "x"):
        (tmp_path / "c" / name).mkdir(parents=True)
    assert Checkpoints(tmp_path / "c").steps() == []
    assert len(list((tmp_path / "c").iterdir())) == 4
    # A folder above that has vanished does not come back as a shell of itself.
    with pytest.raises(OSError, match="gone"):
        Checkpoints(tmp_path / "gone" / "c").save(5, a_state(5))


def test_every_kind_of_leaf_is_stored(tmp_path):
    """Names that orbax would join to the same one, arrays without numbers, and both kinds of PRNG keys."""
    state = {
        "a": {"b": np.float32(1)}, "a.b": np.float32(2), "a/b": np.float32(3), "empty": np.zeros((0, 3), np.float32), "none": None,
        "key": jax.random.key(7, impl="rbg"), "keys": jax.random.split(jax.random.key(1), 3), "raw": jax.random.PRNGKey(2),
    }  # fmt: skip
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, state)
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    plain = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    found = checkpoints.restore(1, like)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(state)]
    equal(jax.tree.map(plain, found), jax.tree.map(plain, state))
    other = {**like, "key": like["keys"]}
    with pytest.raises(ValueError, match=r"\['key'\] is uint32 \(4,\), expected uint32 \(3, 2\)"):
        checkpoints.restore(1, other)


def test_a_write_that_orbax_could_not_make_is_one_error_that_names_the_checkpoint(tmp_path, capfd):
    """The limit on the size of a file takes the place of a disk that is full."""
    checkpoints = filled(tmp_path / "c", 10)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)) as caught:
            checkpoints.save(20, a_state(20, width=3000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.filename == str(tmp_path / "c" / "20")
    assert capfd.readouterr().err == ""
    assert os.listdir(tmp_path / "c") == ["10"]


def test_a_folder_moved_away_while_orbax_writes_does_not_come_back(tmp_path, monkeypatch):
    root = tmp_path / "run"
    root.mkdir()
    checkpoints = filled(root / "c", 10)
    save = orbax.checkpoint.StandardCheckpointHandler.save

    def moving(self, *rest, **more):
        root.rename(tmp_path / "away")
        save(self, *rest, **more)

    monkeypatch.setattr(orbax.checkpoint.StandardCheckpointHandler, "save", moving)
    with pytest.raises(FileNotFoundError, match="c/20"):
        checkpoints.save(20, a_state(20))
    assert os.listdir(tmp_path) == ["away"]
    equal(Checkpoints(tmp_path / "away" / "c").newest(a_state(0), say=pytest.fail)[1], a_state(10))


# A run, its signals and its disk.


def at_step(monkeypatch, step, action):
    """Do something once, while the batch after ``step`` updates is made."""
    at, done = Prepared.at, []

    def instead(self, number, *shard):
        if number == step and not done:
            done.append(number)
            action()
        return at(self, number, *shard)

    monkeypatch.setattr(Prepared, "at", instead)


def full_disk(monkeypatch, name):
    """The disk is full where a file of that name is written."""
    wanted = []
    fsync = os.fsync

    def instead(descriptor):
        if name in os.readlink(f"/proc/self/fd/{descriptor}"):
            wanted.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", instead)


def test_signals_and_a_full_disk_leave_a_run_that_goes_on_to_the_same_bits(tmp_path, tiny_run, scorelab, monkeypatch):
    root = tmp_path / "run"
    command = (*RUN, "--workdir", root, "--resume")

    def after(step, action):
        with monkeypatch.context() as patch:
            at_step(patch, step, action)
            return scorelab(*command)

    # Steps 7, 8 and 13 are no boundaries of windows (5) or checkpoints (10).
    for step, number, expected in ((7, signal.SIGTERM, 0), (8, signal.SIGINT, 130), (13, signal.SIGTERM, 0)):
        before = signal.getsignal(number)
        status, _, err = after(step - 1, lambda number=number: os.kill(os.getpid(), number))
        assert (status, len(err.splitlines())) == (expected, 1)
        assert f"checkpoint of step {step} of 20" in err
        assert "--resume" in err
        assert Checkpoints(root / "checkpoints").steps()[-1] == step
        assert signal.getsignal(number) is before
    with monkeypatch.context() as patch:
        full_disk(patch, ".20.")
        status, _, err = scorelab(*command)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "checkpoints/20: No space left on device" in err
    assert Checkpoints(root / "checkpoints").steps()[-1] == 13
    with monkeypatch.context() as patch:
        full_disk(patch, ".samples.npz.")
        status, _, err = scorelab(*command)
    assert (status, len(err.splitlines())) == (1, 1)
    assert "samples.npz: No space left on device" in err
    assert scorelab(*command)[0] == 0
    assert (root / "metrics.jsonl").read_bytes() == (tiny_run / "metrics.jsonl").read_bytes()
    equal(stored(root / "checkpoints" / "20"), stored(tiny_run / "checkpoints" / "20"))
    np.testing.assert_array_equal(read_samples(Workdir(root)).x, read_samples(Workdir(tiny_run)).x)
    assert not [path for path in root.rglob("*") if path.name.endswith(".tmp") or path.name == "lock"]
    # A finished run whose newest checkpoint is damaged makes it again, to the same bits.
    os.truncate(root / "checkpoints" / "20" / "state" / "_METADATA", 1000)
    status, out, _ = scorelab(*command)
    assert status == 0
    assert "checkpoints/20 is damaged and passed over" in out
    equal(stored(root / "checkpoints" / "20"), stored(tiny_run / "checkpoints" / "20"))


def test_a_second_signal_does_not_wait_and_an_output_that_was_closed_is_named(tmp_path, scorelab, monkeypatch):
    command = ("train", *RUN[1:], "--workdir", tmp_path / "run", "--resume")

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        at_step(patch, 12, twice)
        status, _, err = scorelab(*command)
    assert (status, len(err.splitlines())) == (130, 1)
    assert Checkpoints(tmp_path / "run" / "checkpoints").steps() == [10]

    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", Closed())
        status = scorelab(*command)
    assert status[0] == 1
    assert len(status[2].splitlines()) == 1
    assert f"standard output was closed while {tmp_path / 'run'} was written" in status[2]
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", None)
        status, _, err = scorelab(*command)
    assert status == 1
    assert "standard output is closed" in err

    def vanish():
        shutil.rmtree(tmp_path / "run")

    with monkeypatch.context() as patch:
        at_step(patch, 14, vanish)
        status, _, err = scorelab(*command)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"{tmp_path / 'run'}/metrics.jsonl: No such file or directory" in err
    assert not (tmp_path / "run").exists()

    def read_only(path, *rest, **more):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.open", read_only)
        status, _, err = scorelab(*command)
    assert (status, len(err.splitlines())) == (1, 1)
    assert f"{tmp_path / 'run'}/lock: Read-only file system" in err
    assert not (tmp_path / "run").exists()


def test_room_for_the_checkpoints_is_asked_for_before_training(tmp_path, scorelab, monkeypatch):
    usage = types.SimpleNamespace(free=20_000)
    monkeypatch.setattr(train.shutil, "disk_usage", lambda path: usage)
    status, _, err = scorelab("train", *RUN[1:], "--workdir", tmp_path / "run")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "3 checkpoints of 0.1 MB are to come" in err
    assert "keep_checkpoints" in err
    assert not (tmp_path / "run" / "checkpoints").exists()


# One owner.


def test_a_work_directory_has_one_owner(tmp_path, tiny_run, scorelab):
    root = tmp_path / "run"
    shutil.copytree(tiny_run, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    with Lock(root, print):
        for command in ((*RUN, "--workdir", root, "--resume"), ("sample", root, "--n", 10), ("evaluate", root)):
            status, _, err = scorelab(*command)
            assert (status, len(err.splitlines())) == (2, 1)
            assert f"is in use by process {os.getpid()} on {socket.gethostname()}" in err
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def owner(**changes):
    me = {"pid": os.getpid(), "host": socket.gethostname(), "started": lock._started(os.getpid()), "since": "then"}
    return json.dumps({**me, **changes})


@pytest.mark.parametrize("flock", [True, False])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, monkeypatch, flock):
    """Without the system's locks, a number that another process has got since is known by its start."""
    if not flock:
        monkeypatch.setattr(lock, "fcntl", None)
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = (owner(pid=gone.pid), owner(started="7"))
    for text, note in (*((text, "is gone: taken over") for text in dead), ("", None), ("{torn", None), ("[1]", None)):
        (tmp_path / "lock").write_text(text)
        said = []
        with Lock(tmp_path, said.append):
            assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
            with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"), Lock(tmp_path, said.append):
                pass
        assert [note in line for line in said] == ([] if note is None else [True])
        assert not (tmp_path / "lock").exists()


def test_an_owner_on_another_host_counts_as_dead_after_two_minutes_of_silence(tmp_path):
    path = tmp_path / "lock"
    path.write_text(owner(host="elsewhere", pid=1))
    with pytest.raises(ConfigError, match=r"process 1 on elsewhere .*if it is gone, delete"), Lock(tmp_path, print):
        pass
    assert json.loads(path.read_text())["host"] == "elsewhere"
    os.utime(path, (time.time() - 200, time.time() - 200))
    with Lock(tmp_path, print):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_folders_made_for_a_run_that_was_refused_go_again(tmp_path):
    with Lock(tmp_path / "a" / "b", print):
        assert (tmp_path / "a" / "b" / "lock").is_file()
    assert list(tmp_path.iterdir()) == []


def test_only_temporary_files_of_a_run_are_removed(tmp_path):
    (tmp_path / "config.gin").write_text("")
    ours = (".config.gin.77.tmp", ".samples.npz.1.tmp", ".report.html.123.tmp")
    others = (".mine.tmp", ".notes.txt.77.tmp", ".config.gin.tmp", ".config.gin.x.tmp", ".swp.12.tmp")
    for name in (*ours, *others):
        (tmp_path / name).write_text("")
    Workdir(tmp_path).open(resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["config.gin", *others])


# Files that are damaged.


def test_a_damaged_npz_is_named_or_reads_the_same(tmp_path):
    path = tmp_path / "a.npz"
    arrays = {"x": np.arange(200.0).reshape(20, 10), "y": np.asarray("text"), "e": np.zeros((0, 3))}
    arrays["f"] = np.asfortranarray(np.arange(6.0).reshape(3, 2))
    write_npz(path, arrays)
    good = path.read_bytes()
    found = read_npz(path, limit=4000)
    for name, value in arrays.items():
        np.testing.assert_array_equal(found[name], value)
    detected = named = 0
    for bit in range(0, 8 * len(good), 37):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        try:
            changed = read_npz(path, limit=4000)
        except DamagedFile as error:
            detected += 1
            named += str(path) in str(error)
        else:
            # In what zip stores twice or does not use, such as a time.
            for name in set(arrays) & set(changed):
                np.testing.assert_array_equal(changed[name], arrays[name])
    assert named == detected > 100
    path.write_bytes(good)
    write_npz(path, {"x": np.zeros(1 << 20)})
    with pytest.raises(DamagedFile, match="expected at most 4,000"):
        read_npz(path, limit=4000)
    write_npz(path, {"o": np.array([{}], object)})
    with pytest.raises(DamagedFile, match="Python objects"):
        read_npz(path, limit=4000)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz", limit=1)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("samples.npz", b"PK\x03\x04 no more"),
        ("samples.npz", b""),
        ("metrics.json", b'{"metrics": [{"na'),
        ("metrics.json", b"[]"),
        ("metrics.json", b'{"metrics": [{"a": 1}], "seconds": 1, "samples_sha256": "", "data": {}}'),
        ("metrics.json", b"\xff\xfe"),
        ("specs.json", b"{"),
        ("specs.json", b"null"),
        ("versions.json", b"{}"),
        ("metrics.jsonl", b'{"step": 5}\nnonsense\n{"step": 10}\n'),
    ],
)
def test_a_damaged_file_of_a_run_is_named_in_one_line(tiny_run, scorelab, name, text):
    path = tiny_run / name
    good = path.read_bytes()
    try:
        path.write_bytes(text)
        status, _, err = scorelab(*RUN, "--workdir", tiny_run, "--resume")
    finally:
        path.write_bytes(good)
    assert (status, len(err.splitlines())) == (2, 1)
    assert f"{name} is damaged" in err or f"{name}: damaged" in err
    assert "config.gin: " not in err


# Sets of samples.


def test_sets_of_samples_stand_side_by_side_and_evaluated_ones_stay(tmp_path, tiny_run):
    root = tmp_path / "run"
    shutil.copytree(tiny_run, root)
    names = ("samples.npz", "samples.png", "trajectory.png", "metrics.json", "report.html")
    own = {name: (root / name).read_bytes() for name in names}
    with pytest.raises(ConfigError, match=r"/samples\.npz holds 64 samples of step 20, seed 0, that were evaluated: pass --name"):
        pipeline.sample_workdir(root, seed=3)
    more = pipeline.sample_workdir(root, seed=3, name="more")
    assert more.samples == root / "samples" / "more" / "samples.npz"
    pipeline.evaluate_workdir(root, n=32, name="more")
    values = json.loads((root / "samples/more/metrics.json").read_text())["metrics"]
    assert {value["n"] for value in values} == {32}
    with pytest.raises(ConfigError, match=r"more/samples\.npz holds 64 samples"):
        pipeline.sample_workdir(root, seed=4, name="more")
    pipeline.sample_workdir(root, seed=3, name="more")
    out = tmp_path / "elsewhere.npz"
    pipeline.sample_workdir(root, out=out)
    np.testing.assert_array_equal(read_samples(Workdir(root, out=out)).x, read_samples(Workdir(root)).x)
    with pytest.raises(ConfigError, match="exists"):
        pipeline.sample_workdir(root, out=out)
    with pytest.raises(ConfigError, match=r"none/samples.npz: no such samples; .* has the sets more"):
        pipeline.evaluate_workdir(root, name="none")
    for wrong in ({"name": "../up"}, {"name": ""}, {"name": ".x"}, {"name": "a", "out": out}, {"out": tmp_path / "x.png"}):
        with pytest.raises(ConfigError, match="expected"):
            pipeline.sample_workdir(root, **wrong)
    assert own == {name: (root / name).read_bytes() for name in own}
    page = (root / "samples/more/report.html").read_text()
    digest = json.loads((root / "samples/more/metrics.json").read_text())["samples_sha256"]
    for needed in ("samples/more/samples.npz, 64 of step 20, seed 3", digest, "config.gin, sha256"):
        assert needed in page


def test_pictures_never_lie_beside_samples_of_another_sampler(tmp_path, tiny_run, scorelab, monkeypatch):
    root = tmp_path / "run"
    shutil.copytree(tiny_run, root)
    other = (*RUN, "--workdir", root, "--resume", "--set", "experiment.Sample.shown = 5")
    with monkeypatch.context() as patch:
        full_disk(patch, ".samples.png.")
        assert scorelab(*other)[0] == 1
    assert read_samples(Workdir(root)).record["sampling"]["shown"] == 5
    assert not (root / "samples.png").exists()
    assert not (root / "trajectory.png").exists()
    # The metrics there are those of samples that are gone, and a report made now leaves them out.
    (root / "metrics.json").write_text((root / "metrics.json").read_text().replace('"samples_sha256": "', '"samples_sha256": "0'))
    loaded = config.load(str(root / "config.gin"))
    Report()(Run(experiment=loaded.experiment, workdir=Workdir(root), name=loaded.name, text=loaded.text))
    text = (root / "report.html").read_text()
    assert "Metrics</h2>" not in text
    assert "64 of step 20" in text
    assert scorelab(*other)[0] == 0
    assert "Metrics</h2>" in (root / "report.html").read_text()


def test_weights_that_are_no_numbers_and_dead_populations_are_recorded():
    diagnostics = {"final_ess": jnp.array([3.0, 0.0, jnp.nan]), "bad_weights": jnp.array([0, 2, 5]), "model_calls": 4}
    record = {}
    out = types.SimpleNamespace(diagnostics=diagnostics, log_z=jnp.array([-1.5, -jnp.inf, jnp.nan]))
    note = _weights(out, record)
    assert "2 of 3 populations without any weight, 7 weights that were no numbers" in note
    assert record["weights"] == {
        "populations": 3, "dead_populations": 2, "bad_weights": 7, "final_ess": [3.0, 0.0, None], "log_z": [-1.5, None, None],
    }  # fmt: skip
    json.dumps(record, allow_nan=False)
    assert _weights(types.SimpleNamespace(diagnostics={"model_calls": 4}), {}) == ""


# Configs that come with data.

HEAD = "from __gin__ import dynamic_registration\n"
SAFE = """from scorelab import data
from scorelab import training
from scorelab import experiment
"""


def carried(tmp_path, imports, binding):
    text = f"{HEAD}{imports}\n{SAFE}\nexperiment.Experiment.stages = {binding}\n"
    (tmp_path / "carried.gin").write_text(text)
    config.load(str(tmp_path / "carried.gin"), carried=True)


@pytest.mark.parametrize(
    ("imports", "binding"),
    [
        ("import subprocess", "@subprocess.run()"),
        ("import os", "@os.system()"),
        ("import builtins as scorelab", "@scorelab.exec()"),
        ("import jaxtra", "@jaxtra.f()"),
        ("from jax._src import xla_bridge", "@xla_bridge.os.system()"),
        ("import jax", "@jax._src.xla_bridge.os.system()"),
        ("import jax", "@jax.numpy.load()"),
        ("import jax", "@jax.profiler.start_server()"),
        ("import jax", "@jax.pure_callback()"),
        ("import flax", "@flax.serialization.msgpack_restore()"),
        ("from scorelab.run import cli", "@cli.main()"),
        ("from scorelab.run import pipeline", "@pipeline.from_config()"),
        ("from scorelab.config import trust", "@trust.allowing()"),
        ("from scorelab import config", "@config.load()"),
        ("", "@experiment.sample.np.load()"),
        ("", "@experiment.train.json.load()"),
        ("from scorelab import files", "@files.write_text()"),
        ("from scorelab import pretrained", "@pretrained.keep()"),
        ("from scorelab import pretrained", "@pretrained.write_npz()"),
        ("from scorelab import densities", "@densities.save_gaussian()"),
        ("from scorelab.metrics import smallcnn", "@smallcnn.save()"),
        ("from scorelab import metrics", "@metrics.write_moments()"),
        ("from scorelab import viz", "@viz.save()"),
        ("", "@experiment.np.load()"),
        ("", "@experiment.functools.partial()"),
        ("", "@experiment.DataSpec.load()"),
        ("", "@experiment.datasets.files.os.system()"),
        ("", "[{'a': (@experiment.dataclasses.make_dataclass(),)}]"),
        ("", "@gin.singleton()\ngin.singleton.constructor = @experiment.os.system"),
        ("", "1\ninclude 'quickstart.gin'"),
    ],
)
def test_a_config_that_comes_with_data_runs_nothing(tmp_path, imports, binding):
    with pytest.raises(ConfigError, match=r"carried\.gin:\d+: (this config came with data|.* has no )"):
        carried(tmp_path, imports, binding)


def test_what_builds_an_experiment_may_be_used_and_more_with_trust(tmp_path):
    """Everything but the experiment is missing in this config, so being read is enough: it then fails for that."""
    read = pytest.raises(ConfigError, match=r"Experiment.__init__\(\) missing")
    for imports, binding in (
        ("import optax", "@optax.adam"), ("import jax", "@jax.nn.silu"), ("import jax", "@jax.numpy.tanh"),
        ("from flax import linen", "@linen.silu"), ("from scorelab import pretrained", "@pretrained.model"),
        ("from scorelab import pretrained", "@pretrained.clip_cosine"),
        ("from scorelab import pretrained", "@pretrained.aesthetic"), ("", "@experiment.measured_std"),
        ("from scorelab import pretrained", "@pretrained.InceptionFeatures"),
        ("from scorelab import pretrained", "@pretrained.ClipFeatures"),
    ):  # fmt: skip
        with read:
            carried(tmp_path, imports, binding)
    # Every spec of an experiment, but for what talks to a person, to the system or to files.
    for name in sorted(set(experiments.__all__) - {"Console", "Experiment", "Signals", "Workdir", "check", "trained_state"}):
        with read:
            carried(tmp_path, "", f"@experiment.{name}")
    for packages in (("collections",), ("*",)):
        with trust.allowing(*packages), read:
            carried(tmp_path, "import collections", "@collections.OrderedDict")
    with pytest.raises(ConfigError, match="came with data"):
        carried(tmp_path, "import collections", "@collections.OrderedDict")
    # The caller's own config may import what it likes, as ever.
    own = f"{HEAD}import collections\n{SAFE}experiment.Experiment.stages = @collections.OrderedDict"
    (tmp_path / "own.gin").write_text(own)
    with read:
        config.load(str(tmp_path / "own.gin"))


def test_kept_models_and_work_directories_are_such_configs(tmp_path, tiny_run, scorelab):
    mark = tmp_path / "ran"
    text = (tiny_run / "config.gin").read_text().replace(HEAD, f"{HEAD}import subprocess\n", 1)
    text += f"\nsubprocess.run.args = ['touch', '{mark}']\nexperiment.Evaluate.evaluations = (@subprocess.run(),)\n"
    file = write_npz(tmp_path / "model.npz", {"record": np.asarray(json.dumps({"config": text})), "p000": np.zeros(3)})
    with pytest.raises(ConfigError, match=r"model\.npz: its config:\d+: this config came with data and imports subprocess"):
        read(file)
    with pytest.raises(ConfigError, match="imports subprocess"):
        pretrained.model(str(file))
    root = tmp_path / "run"
    root.mkdir()
    (root / "config.gin").write_text(text)
    for command in (("sample", root), ("evaluate", root)):
        status, _, err = scorelab(*command)
        assert (status, len(err.splitlines())) == (2, 1)
        assert "--trust" in err
    assert not mark.exists()
    with trust.allowing("subprocess"), pytest.raises(ConfigError, match="CompletedProcess"):
        # What it does when it is trusted.
        read(file)
    assert mark.exists()


def test_a_kept_model_holds_no_more_than_its_network(tmp_path, tiny_run):
    file = pretrained.keep(tiny_run, tmp_path / "model.npz")
    with np.load(file) as stored:
        arrays = dict(stored)
    write_npz(file, arrays | {"p000": np.zeros(1 << 26, np.uint8)})
    assert file.stat().st_size < 1 << 18
    with pytest.raises(ConfigError, match=r"model\.npz: damaged.*when unpacked, expected at most"):
        read(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("record.npy", b"nonsense")
    with pytest.raises(ConfigError, match="not a model written by"):
        read(file)


@pytest.mark.parametrize(("before", "after", "skipped"), [(None, [0, 1, 0], 1), ([1, 0], None, 1), ([1, 0], [0, 1, 0], 2)])
def test_the_log_joins_a_window_in_which_skipping_was_switched(tmp_path, before, after, skipped):
    stage = train.Train(log_every=5, checkpoint_every=10, steps=20)
    values = np.random.default_rng(0).normal(size=5).astype(np.float32)
    parts = [{"loss": values[:2]}, {"loss": values[2:]}]
    skips = np.zeros(5, np.float32)
    for part, place, flags in zip(parts, (slice(0, 2), slice(2, 5)), (before, after), strict=True):
        if flags is not None:
            skips[place] = part["skipped"] = np.float32(flags)
            part["loss"] = np.where(skips[place] > 0, np.float32(np.nan), part["loss"])
    train._Log(stage, Workdir(tmp_path), 0)(train.Window(1, 2, parts[0]))
    train._Log(stage, Workdir(tmp_path), 2)(train.Window(3, 5, parts[1]))
    (record,) = [record for _, record in read_lines(tmp_path / "metrics.jsonl")]
    # A step in which nothing may be skipped is one that was not skipped.
    expected = float(np.mean(values[skips == 0], dtype=np.float64))
    assert record == {"step": 5, "first": 1, "loss": expected, "skipped": skipped}


def test_the_log_joins_a_window_that_was_cut(tmp_path):
    """Numbers of a window that a stop cut in two are those of the whole; a kill between the two keeps the piece."""
    path = tmp_path / "metrics.jsonl"
    stage = train.Train(log_every=5, checkpoint_every=10, steps=20)
    values = np.random.default_rng(0).normal(size=5).astype(np.float32)
    window = lambda first, last: train.Window(first, last, {"loss": values[first - 1 : last]})
    train._Log(stage, Workdir(tmp_path), 0)(window(1, 2))
    piece = path.read_bytes()
    for _ in range(2):
        train._Log(stage, Workdir(tmp_path), 2)
        assert path.read_bytes() == piece
    for _ in range(2):
        # The second time as after a kill that came before the next checkpoint.
        train._Log(stage, Workdir(tmp_path), 2)(window(3, 5))
        (record,) = [record for _, record in read_lines(path)]
        assert record == {"step": 5, "first": 1, "loss": float(np.mean(values, dtype=np.float64))}
