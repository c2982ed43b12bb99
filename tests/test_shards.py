"""Samples in shards: the same bits whatever happened on the way, and nothing else is ever taken for them."""

import dataclasses
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab import NonFiniteSample, Shards, data, densities, fk, grids, models, processes, schedules, solvers, starts
from scorelab.callbacks import remembered
from scorelab.errors import ConfigError
from scorelab.files import DamagedFile
from scorelab.lock import Lock
from scorelab.shards import Progress, duration

ROOT = Path(__file__).parents[1]
EDM = processes.Gaussian(schedule=schedules.EDM())
N, CHUNK, EVENT = 22, 4, (2, 3)


def arguments(*, spread=0.25, **more):
    # Every sample has a condition and a scale of its own, and noise at every step.
    model = models.FunctionModel(lambda y, t, cond: 0.5 * y / (spread + t**2) + cond[:, :, None], EDM, returns="denoised")
    guided = models.ClassifierFreeGuidance(
        model=model, unconditional=models.ExactModel(densities.Gaussian(np.zeros(EVENT), 0.5), EDM), scale=jnp.linspace(0.5, 1.5, N)
    )
    cond = np.linspace(-1, 1, 2 * N).reshape(N, 2).astype(np.float32)
    return dict(
        model=guided, solver=solvers.EulerMaruyama(), grid=grids.Karras(3), key=jax.random.key(0), shape=(N, *EVENT), cond=cond,
        chunk=CHUNK,
    ) | more  # fmt: skip


# What happens to processes: each runs apart, in children of one that has imported everything ------------------


def killed_at(function, time):
    """End this process without a word at a certain call of ``os.replace`` or ``os.fsync`` for the file of a chunk."""
    do, count = getattr(os, function), 0

    def instead(file, *more):
        nonlocal count
        name = os.readlink(f"/proc/self/fd/{file}") if isinstance(file, int) else str(file)
        count += ".npz." in name
        if count == time:
            os.kill(os.getpid(), signal.SIGKILL)
        return do(file, *more)

    setattr(os, function, instead)


def half_written(number):
    """End this process in the middle of the file of a chunk."""
    whole = np.savez

    def instead(file, **arrays):
        if f".{number:06d}.npz" in file.name:
            file.write(b"PK\x03\x04 half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        whole(file, **arrays)

    np.savez = instead


def process_of_two(number, address, draw):
    """What one process of two does that know of each other."""
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    assert (jax.process_count(), jax.process_index()) == (2, number)
    draw("processes")
    # Waits for the other, which the first may not leave alone.
    jax.distributed.shutdown()


def child(name, run):
    """The number of a process of its own that runs a function."""
    if (pid := os.fork()) == 0:
        try:
            run()
        except BaseException as error:
            print(name, repr(error))
            os._exit(1)
        os._exit(0)
    return pid


def ending(pid):
    """How a process ended: its status, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def children(folder):
    """Every part in a process of its own, which ends well or by SIGKILL: how it ended, and what was in a folder then."""
    from scorelab.training import data_mesh

    mesh = lambda: data_mesh(jax.local_devices())
    draw = lambda name, **more: sl.sample_to(folder / name, progress=print, **arguments(**more))
    part = {
        "whole": lambda: draw("whole"),
        "in memory": lambda: np.save(folder / "memory.npy", sl.sample(**arguments()).x),
        "half a file": lambda: (half_written(1), draw("broken")),
        "before it is in place": lambda: (killed_at("replace", 3), draw("broken")),
        "before it is on the disk": lambda: (killed_at("fsync", 2), draw("broken")),
        "finish": lambda: draw("broken"),
        "host 1": lambda: draw("hosts", host=1, hosts=2),
        "host 0": lambda: draw("hosts", host=0, hosts=2),
        "devices, killed": lambda: (half_written(3), draw("devices", mesh=mesh())),
        "devices": lambda: draw("devices", mesh=mesh()),
        "devices, in memory": lambda: np.save(folder / "devices.npy", sl.sample(**arguments(mesh=mesh())).x),
    }
    ended, there = {}, {}
    for name, run in part.items():
        ended[name] = ending(child(name, run))
        there[name] = sorted(path.name for path in folder.glob("broken/*"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = {f"process {i}": lambda i=i: process_of_two(i, address, draw) for i in range(2)}
    ended |= {name: ending(pid) for name, pid in {name: child(name, run) for name, run in both.items()}.items()}
    return ended, there


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.test_shards", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return folder, *json.loads((folder / "ended.json").read_text())


def test_killed_at_any_point_and_resumed_ends_in_the_bits_of_the_unbroken_run(ran):
    folder, ended, there = ran
    killed = {name for name, code in ended.items() if code == -signal.SIGKILL}
    assert killed == {"half a file", "before it is in place", "before it is on the disk", "devices, killed"}
    assert {code for name, code in ended.items() if name not in killed} == {0}
    # A kill loses the chunk it falls into, and no more; what it leaves goes with the next attempt.
    shards = [[name for name in names if re.fullmatch(r"\d{6}\.npz", name)] for names in there.values()]
    assert [len(found) for found in shards[2:6]] == [1, 3, 4, 6]
    assert any(name.endswith(".tmp") for name in there["half a file"])
    whole, broken = folder / "whole", folder / "broken"
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in sorted(whole.glob("*.npz")):
        assert (broken / path.name).read_bytes() == path.read_bytes(), path.name
    # And in those of a sampling that keeps all in memory.
    np.testing.assert_array_equal(Shards(broken).to_numpy(), np.load(folder / "memory.npy"))


@pytest.mark.parametrize("name", ["hosts", "processes"])
def test_two_hosts_write_the_files_of_one(ran, name):
    """By their numbers as arguments one after the other, and as processes of ``jax.distributed`` at once."""
    folder, _, _ = ran
    for path in sorted((folder / "whole").glob("*.npz")):
        assert (folder / name / path.name).read_bytes() == path.read_bytes(), path.name
    lines = {i: (folder / name / f"timings-{i}.jsonl").read_text().splitlines() for i in range(2)}
    assert {i: [json.loads(line)["chunk"] for line in found] for i, found in lines.items()} == {0: [0, 2, 4], 1: [1, 3, 5]}


def test_two_devices_give_the_bits_of_two_devices_and_the_numbers_of_one(ran):
    folder, _, _ = ran
    two = Shards(folder / "devices")
    assert two.made["devices"] == "2 cpu"
    np.testing.assert_array_equal(two.to_numpy(), np.load(folder / "devices.npy"))
    # Rounding of float32 over three steps of numbers of order one.
    np.testing.assert_allclose(two.to_numpy(), np.load(folder / "memory.npy"), rtol=1e-5, atol=1e-5)


# In this process ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A set, and what it is."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    return sl.sample_to(folder, **arguments()), np.asarray(sl.sample(**arguments()).x)


@pytest.fixture
def copy(drawn, tmp_path):
    shutil.copytree(drawn[0].folder, tmp_path / "set")
    return tmp_path / "set"


def written(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.npz")}


def test_shards_read_like_the_array_they_are(drawn):
    shards, x = drawn
    assert (len(shards), shards.shape, shards.dtype, shards.count, shards.missing) == (N, x.shape, x.dtype, 6, ())
    rng = np.random.default_rng(0)
    for item in (
        0,
        -1,
        21,
        slice(None),
        slice(3, 17, 5),
        slice(None, None, -3),
        [5, 5, 0],
        rng.permutation(N),
        rng.random(N) < 0.5,
    ):
        np.testing.assert_array_equal(shards[item], x[item])
    np.testing.assert_array_equal(np.concatenate(list(shards.batches(5))), x)
    np.testing.assert_array_equal(np.stack(list(shards)), x)
    np.testing.assert_array_equal(np.concatenate(shards.memory_map()), x)
    np.testing.assert_array_equal(np.asarray(shards, np.float64), x.astype(np.float64))
    np.testing.assert_array_equal(shards.ids, np.arange(N))
    np.testing.assert_array_equal(shards.log_weights, np.zeros(N))
    assert all(isinstance(part, np.memmap) and not part.flags.writeable for part in shards.memory_map())
    with np.load(shards.path(1)) as file:
        np.testing.assert_array_equal(file["x"], x[4:8])
        np.testing.assert_array_equal(file["ids"], np.arange(4, 8))
    with pytest.raises(ValueError, match=r"Shards\.batches\.size = 0"):
        shards.batches(0)


def test_what_names_no_samples_is_refused(drawn):
    shards, x = drawn
    # Small integers, integers without a sign, those of JAX, and none.
    for item in (np.int8([-1, -N, 20]), np.uint64([21, 3]), np.uint8(7), jnp.asarray([-2, 1]), jnp.asarray(-2), []):
        np.testing.assert_array_equal(shards[item], x[np.asarray(item, np.int64)])
    # Each has another meaning to an array than the samples of these numbers, or none.
    several = ((..., 0), (slice(None), 0), (0, 1), (), None, ..., [[0, 1]], np.zeros((2, 2), int), [[0], [1, 2]])
    for item in (*several, True, np.True_, [True] * 3, [0.0], np.zeros(0), 1.0, "0", slice("a"), slice(0.5, None), {"x": 0}):
        with pytest.raises(TypeError, match=r"Shards\["):
            shards[item]
    outside = ((N, N), (-N - 1, -N - 1), ([0, N], N), ([0, -N - 1], -N - 1), (np.uint64(2**64 - 1), 2**64 - 1), (2**70, 2**70))
    for wrong, number in outside:
        with pytest.raises(IndexError, match=rf"Shards\[{number}\] of 22 samples: expected -22 to 21"):
            shards[wrong]


def test_one_chunk_is_in_memory_at_a_time(drawn, monkeypatch):
    shards, _ = drawn
    read = []
    monkeypatch.setattr(shards, "_read", lambda number, only, was=shards._read: read.append(number) or was(number, only))
    shards._last = None
    list(shards.batches(3))
    assert read == [0, 1, 2, 3, 4, 5]
    shards[np.arange(N)[::-1]]
    assert len(read) == 12
    assert shards._last[1].keys() == {"x", "made"}


def test_what_is_whole_is_skipped_and_what_is_not_is_drawn_again(drawn, copy):
    shards, x = drawn
    before = written(copy)
    seen = []
    again = sl.sample_to(copy, progress=seen.append, **arguments())
    assert written(copy) == before
    assert [(each.done, each.total) for each in seen] == [(N, N)]
    # Missing, truncated, one bit in the points, and a file of another shape.
    again.path(0).unlink()
    os.truncate(again.path(1), 300)
    flipped = bytearray(again.path(2).read_bytes())
    flipped[flipped.index(x[8:12].tobytes()[:8])] ^= 4
    again.path(2).write_bytes(flipped)
    shutil.copyfile(again.path(5), again.path(4))
    assert again.missing == (0,)
    assert Shards(copy).damaged() == (0, 1, 2, 4)
    for number in (1, 2, 4):
        again = "the command that drew it, or sample_to with the same arguments, draws it again"
        with pytest.raises(DamagedFile, match=rf"{number:06d}\.npz: damaged.*; {again}"):
            Shards(copy)[number * CHUNK]
    with pytest.raises(FileNotFoundError, match=r"000000\.npz is missing, a chunk of 6"):
        Shards(copy)[1]
    with pytest.raises(FileNotFoundError, match=r"1 of 6 chunks are missing, the first is 0"):
        Shards(copy).memory_map()
    seen = []
    again = sl.sample_to(copy, progress=seen.append, **arguments())
    assert {name for name, when in written(copy).items() if before[name] != when} == {f"{i:06d}.npz" for i in (0, 1, 2, 4)}
    assert [each.done for each in seen] == [6, 10, 14, 18, 22]
    np.testing.assert_array_equal(again.to_numpy(), x)
    for number in range(6):
        assert again.path(number).read_bytes() == shards.path(number).read_bytes()


# What is changed (made when it is asked for: processes are forked from one without JAX), and what is said of it.
CHANGES = {
    "parameters": (
        lambda: dict(model=dataclasses.replace(arguments()["model"], scale=jnp.linspace(0.5, 1.6, N))),
        r"parameters was \w{8} and is",
    ),
    "solver": (lambda: dict(solver=solvers.DDIM(eta=0.5)), r"solver was .*EulerMaruyama.* and is .*DDIM\(eta=0\.5\)"),
    "grid": (lambda: dict(grid=grids.Karras(4)), r"grid was Karras\(steps=3.* and is Karras\(steps=4"),
    "key": (lambda: dict(key=jax.random.key(1)), r"key was key<fry> \[0, 0\] and is key<fry> \[0, 1\]"),
    "implementation": (lambda: dict(key=jax.random.key(0, impl="rbg")), r"key was key<fry> .* and is key<rbg>"),
    "start": (lambda: dict(start=starts.Fixed(np.ones((N, *EVENT), np.float32))), r"start was .*Prior.* and is .*Fixed"),
    "cond": (lambda: dict(cond=np.ones((N, 2), np.float32)), "cond was "),
    "ids": (lambda: dict(ids=np.arange(1, N + 1)), "ids was 0 to n - 1 and is"),
    "chunk": (lambda: dict(chunk=5), "chunk was 4 and is 5;"),
    "record": (lambda: dict(record={"step": 3}), r"record\.step was None and is 3;"),
    "code": (lambda: dict(spread=0.2500001), "not the program that follow from them: the code of a function or class has changed"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_samples_of_another_kind_are_never_mixed(drawn, change):
    more, said = CHANGES[change]
    more, before = more(), written(drawn[0].folder)
    with pytest.raises(ValueError, match=f"holds samples that were made otherwise: .*{said}"):
        sl.sample_to(drawn[0].folder, **arguments(**more))
    assert written(drawn[0].folder) == before


def test_a_library_of_another_version_and_a_shard_of_another_set_are_refused(drawn, copy, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sl, "__version__", "9.9")
        with pytest.raises(ValueError, match=r"scorelab was [\d.]+ and is 9\.9; expected the same, or another folder"):
            sl.sample_to(copy, **arguments())
    other = sl.sample_to(copy.with_name("other"), **arguments(key=jax.random.key(1)))
    shutil.copyfile(other.path(3), copy / "000003.npz")
    with pytest.raises(ValueError, match=r"000003\.npz belongs to other samples than .*shards\.json says"):
        sl.sample_to(copy, **arguments())
    with pytest.raises(DamagedFile, match=r"000003\.npz belongs to other samples"):
        Shards(copy)[12]
    (copy / "000003.npz").unlink()
    # A description that is damaged is no other description, and without it the shards say what they are of.
    text = (copy / "shards.json").read_text()
    for bad in (text[:-30], text.replace('"chunk": 4', '"chunk": 5'), "", "[]", '{"format": 2}'):
        (copy / "shards.json").write_text(bad)
        with pytest.raises(DamagedFile, match=r"shards\.json: damaged.*: delete it, and sample_to with the same arguments"):
            sl.sample_to(copy, **arguments())
    (copy / "shards.json").unlink()
    before = written(copy)
    np.testing.assert_array_equal(sl.sample_to(copy, **arguments()).to_numpy(), drawn[1])
    assert before.items() < written(copy).items()
    with pytest.raises(FileNotFoundError, match="no samples there"):
        Shards(copy / "nowhere")


def test_a_folder_has_one_writer_but_for_the_hosts_of_one_run(tmp_path):
    silent = lambda note: None
    for held, ours in (("lock", {}), ("lock", dict(host=1, hosts=2)), ("lock-1-of-2", {}), ("lock-1-of-2", dict(host=1, hosts=2))):
        with Lock(tmp_path / "set", silent, held), pytest.raises(ConfigError, match=r"set is in use by process \d+"):
            sl.sample_to(tmp_path / "set", **arguments(), **ours)
    with Lock(tmp_path / "set", silent, "lock-1-of-2"):
        shards = sl.sample_to(tmp_path / "set", **arguments(), host=0, hosts=2)
    assert shards.missing == (1, 3, 5)
    # Another number of hosts may go on.
    assert sl.sample_to(tmp_path / "set", **arguments(), host=2, hosts=3).missing == (1, 3)
    assert sl.sample_to(tmp_path / "set", **arguments()).missing == ()
    assert not list((tmp_path / "set").glob("lock*"))


def test_a_full_disk_and_an_unwritable_folder_are_named_and_leave_nothing_half_written(drawn, tmp_path, monkeypatch):
    folder, fsync = tmp_path / "set", os.fsync

    def full(descriptor):
        if ".000002.npz." in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"No space left on device: .*000002\.npz") as caught:
            sl.sample_to(folder, **arguments())
    assert caught.value.errno == errno.ENOSPC
    assert sorted(path.name for path in folder.iterdir()) == ["000000.npz", "000001.npz", "shards.json", "timings.jsonl"]
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 800, 200))
        # Fourteen samples of six float32.
        with pytest.raises(OSError, match=r"the samples that are missing take 336 bytes, and 200 are free: .*set"):
            sl.sample_to(folder, **arguments())
    np.testing.assert_array_equal(sl.sample_to(folder, **arguments()).to_numpy(), drawn[1])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        sl.sample_to(tmp_path / "file", **arguments())
    with pytest.raises(OSError, match="file"):
        sl.sample_to(tmp_path / "file" / "below", **arguments())
    assert (tmp_path / "file").read_text() == "mine"


def test_images_are_stored_as_the_levels_whose_cells_hold_them(drawn, tmp_path):
    scale = data.Pixels(levels=4, low=-1.0, high=1.0)
    shards = sl.sample_to(tmp_path, transform=scale, **arguments())
    x = drawn[1]
    assert shards.dtype == np.uint8
    assert x.min() < -1 < 1 < x.max()
    # Cells [-1, -1/2), [-1/2, 0), [0, 1/2), [1/2, 1], and the outermost ones beyond.
    np.testing.assert_array_equal(shards.to_numpy(), np.digitize(x, [-0.5, 0.0, 0.5]))
    with pytest.raises(ValueError, match=r"dtype was uint8 and is float32, stored was Pixels\(levels=4.* and is None"):
        sl.sample_to(tmp_path, **arguments())


def test_ids_go_on_where_another_set_ends(drawn, tmp_path):
    """The second half of a set, by its ids, is the second half of the whole under one chunk."""
    given = arguments()
    half = dict(
        model=dataclasses.replace(given["model"], scale=given["model"].scale[12:]), cond=given["cond"][12:], shape=(10, *EVENT),
        ids=np.arange(12, N),
    )  # fmt: skip
    shards = sl.sample_to(tmp_path, **given | half)
    np.testing.assert_array_equal(shards.to_numpy(), drawn[1][12:])
    np.testing.assert_array_equal(shards.ids, np.arange(12, N))


def test_populations_keep_their_weights(tmp_path):
    model = models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), EDM)
    solver = fk.FeynmanKac(
        base=solvers.EulerMaruyama(), potential=fk.Difference(lambda x: x[:, 0], 1.0), policy=fk.Always(), particles=4
    )
    given = dict(solver=solver, grid=grids.Karras(3), key=jax.random.key(0), shape=(24, 2), chunk=16)
    shards, whole = sl.sample_to(tmp_path, model, **given), sl.sample(model, **given)
    np.testing.assert_array_equal(shards.to_numpy(), whole.x)
    np.testing.assert_array_equal(shards.log_z, whole.log_z)
    np.testing.assert_array_equal(shards.log_weights, whole.log_weights)
    assert shards.log_z.shape == (6,)
    assert shards.diagnostics.keys() == whole.diagnostics.keys()
    jax.tree.map(np.testing.assert_array_equal, shards.diagnostics, whole.diagnostics)
    with pytest.raises(ValueError, match=r"sample_to\.chunk = 6: expected a multiple of 4"):
        sl.sample_to(tmp_path, model, **given | dict(chunk=6))


def test_points_of_several_parts_come_back_as_such(tmp_path):
    process = processes.Joint(a=EDM, b=EDM)

    def fn(y, t, cond=None):
        parts = {name: EDM.predict(y[name], t[name], denoised=0.5 * y[name]) for name in y}
        return processes.JointPrediction(parts=parts, t=t, process=process)

    model = models.FunctionModel(fn, process, returns="prediction")
    given = dict(
        solver=solvers.Joint(a=solvers.DDIM(), b=solvers.DDIM()), grid=grids.Explicit((20.0, 2.0, 0.01)), key=jax.random.key(0),
        shape={"a": (5, 2), "b": (5, 3)}, chunk=2,
    )  # fmt: skip
    shards, whole = sl.sample_to(tmp_path, model, **given), sl.sample(model, **given).x
    jax.tree.map(np.testing.assert_array_equal, shards.to_numpy(), whole)
    jax.tree.map(np.testing.assert_array_equal, shards[3], jax.tree.map(lambda part: part[3], whole))
    assert shards.shape == {"a": (5, 2), "b": (5, 3)}
    assert {name: part.shape for name, part in shards.memory_map()[1].items()} == {"a": (2, 2), "b": (2, 3)}
    with pytest.raises(ValueError, match="of the parts a, b"):
        np.asarray(shards)
    with pytest.raises(ValueError, match="for points of several parts: expected None"):
        sl.sample_to(tmp_path, model, **given, transform=data.Pixels())


def test_samples_that_are_not_finite_are_not_written(tmp_path):
    given = arguments()
    cond = given["cond"].copy()
    cond[9] = np.nan
    model = given["model"].model
    with pytest.raises(NonFiniteSample, match="1 of 4 samples are not finite"):
        sl.sample_to(tmp_path, **given | dict(cond=cond, model=model))
    assert Shards(tmp_path).missing == (2, 3, 4, 5)


def test_progress_has_a_rate_and_the_time_that_is_left(tmp_path, monkeypatch):
    clock = iter(np.arange(0.0, 1e3, 10.0))
    monkeypatch.setattr("scorelab.shards.time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    seen = []
    sl.sample_to(tmp_path, progress=seen.append, host=0, hosts=2, **arguments())
    assert [(each.done, each.total) for each in seen] == [(0, 12), (4, 12), (8, 12), (12, 12)]
    # Three looks at the clock for a chunk, of ten seconds each.
    assert [each.rate for each in seen] == pytest.approx([0, 4 / 30, 4 / 30, 8 / 60])
    assert [each.left for each in seen] == pytest.approx([np.inf, 60, 30, 0])
    assert str(seen[0]) == "0 of 12 samples"
    assert str(Progress(1200, 50_000, 12.3456, 3900.0)) == "1,200 of 50,000 samples, 12.3 a second, 1 h 5 min left"
    assert str(Progress(5, 9, 12345.6, 3.0)).endswith(", 12,346 a second, 3 s left")
    assert [duration(s) for s in (0.2, 99, 100, 3540, 3601)] == ["1 s", "99 s", "2 min", "59 min", "1 h 1 min"]
    assert Shards(tmp_path).seconds() == pytest.approx(30)


@pytest.mark.parametrize(
    ("more", "kind", "said"),
    [
        (dict(host=1), ValueError, r"sample_to\.host = 1, sample_to\.hosts = None: expected both or neither"),
        (dict(host=2, hosts=2), ValueError, r"sample_to\.host = 2: expected 0 to sample_to\.hosts - 1 = 1"),
        (dict(host=-1, hosts=2), ValueError, r"sample_to\.host = -1: expected an integer >= 0"),
        (dict(hosts=0, host=0), ValueError, r"sample_to\.hosts = 0: expected an integer >= 1"),
        (dict(chunk=0), ValueError, r"sample_to\.chunk = 0: expected an integer >= 1"),
        (dict(transform="uint8"), TypeError, r"sample_to\.transform = 'uint8': expected a Transform"),
        (dict(record={"a": np.ones(2)}), TypeError, r"sample_to\.record = .*: expected a mapping of JSON data"),
        (dict(record={"a": np.nan}), ValueError, r"sample_to\.record = .*: expected a mapping of JSON data"),
        (dict(progress=3), TypeError, r"sample_to\.progress = 3: expected a function"),
        (dict(mesh=2), TypeError, r"sample_to\.mesh = 2: expected a Mesh"),
        (dict(cond=np.ones((3, 2))), ValueError, r"sample_to\.cond has a leaf of shape \(3, 2\)"),
        (dict(ids=np.arange(3)), ValueError, r"sample_to\.ids is int64 of shape \(3,\)"),
        (dict(solver=3), TypeError, r"sample_to\.solver = 3"),
        (dict(key=3), TypeError, r"sample_to\.key is 3"),
    ],
)
def test_bad_arguments_are_named_before_a_folder_is_made(tmp_path, more, kind, said):
    with pytest.raises(kind, match=said):
        sl.sample_to(tmp_path / "set", **arguments(**more))
    assert not (tmp_path / "set").exists()


def test_a_folder_is_a_path_and_files_are_written_from_python():
    for wrong in (3, "", None):
        with pytest.raises(TypeError, match=r"sample_to\.folder = .*: expected the path of a folder"):
            sl.sample_to(wrong, **arguments())
        with pytest.raises(TypeError, match=r"Shards\.folder = .*: expected the path of a folder"):
            Shards(wrong)
    with pytest.raises(TypeError, match="sample_to inside of a program that is being traced"):
        jax.jit(lambda key: sl.sample_to("never", **arguments(key=key)).to_numpy())(jax.random.key(0))


# What others put there ---------------------------------------------------------------------------------------


def contents(folder):
    return {path.name: path.read_bytes() if path.is_file() else None for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["000000.npz", "1234567.npz", "timings.jsonl", "timings-1.jsonl", "lock", "lock-0-of-2"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_files_of_others_are_named_and_stay(tmp_path, name, kind):
    for other in ("notes.txt", "lockfile"):
        (tmp_path / other).write_text("mine")
    if kind == "file":
        np.savez(tmp_path / "x.npz", x=np.zeros(3))
        (tmp_path / "x.npz").rename(tmp_path / name)
    else:
        (tmp_path / name).mkdir()
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=rf"has a .*{name} that sample_to did not write, .*: expected an empty or new folder"):
        sl.sample_to(tmp_path, **arguments())
    assert contents(tmp_path) == before


def test_what_is_removed_is_the_set_alone(copy):
    kept = {"123456.npz", "000006.npz", "0000000.npz", "lock", "notes.txt"}
    for name in kept:
        (copy / name).write_text("mine")
    # A kill leaves these.
    for name in (".000002.npz.123.tmp", ".shards.json.123.tmp", "timings-1.jsonl"):
        (copy / name).write_text("")
    Shards(copy).remove()
    assert contents(copy) == dict.fromkeys(kept, b"mine")
    with pytest.raises(FileExistsError, match="lock that sample_to did not write"):
        sl.sample_to(copy, **arguments())
    assert contents(copy) == dict.fromkeys(kept, b"mine")


def test_chunks_under_the_names_of_others_are_drawn_again(drawn, copy):
    shards, x = drawn
    (copy / "000000.npz").rename(copy / "swap")
    (copy / "000001.npz").rename(copy / "000000.npz")
    (copy / "swap").rename(copy / "000001.npz")
    shutil.copyfile(copy / "000003.npz", copy / "000002.npz")
    moved = Shards(copy)
    assert moved.damaged() == (0, 1, 2)
    for read in (lambda: moved[0], moved.memory_map, lambda: moved.ids):
        with pytest.raises(DamagedFile, match=r"000000\.npz: damaged: it is chunk 1 under the name of chunk 0; the command"):
            read()
    np.testing.assert_array_equal(sl.sample_to(copy, **arguments()).to_numpy(), x)
    assert all((copy / path.name).read_bytes() == path.read_bytes() for path in shards.folder.glob("*.npz"))


def test_shards_without_a_description_are_looked_at_before_one_is_written(drawn, copy):
    (copy / "shards.json").unlink()
    before = contents(copy)
    with pytest.raises(DamagedFile, match=r"set has no shards\.json, and .*000000\.npz belongs to samples that were made"):
        sl.sample_to(copy, **arguments(key=jax.random.key(5)))
    assert contents(copy) == before
    np.testing.assert_array_equal(sl.sample_to(copy, **arguments()).to_numpy(), drawn[1])
    assert contents(copy) == contents(drawn[0].folder)


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_are_named(copy, tmp_path):
    (copy / "000001.npz").unlink()
    (copy / "000001.npz").mkdir()
    for read in (lambda: sl.sample_to(copy, **arguments()), lambda: Shards(copy)[5], lambda: Shards(copy).damaged()):
        with pytest.raises(IsADirectoryError, match=r"000001\.npz is a folder: expected the file of a chunk"):
            read()
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError, match=r"sample_to\.folder = .*file is a file: expected an empty or new folder"):
            sl.sample_to(place, **arguments())


def test_rows_are_those_on_disk_after_a_set_was_drawn_again(copy):
    shards = Shards(copy)
    before = shards[0]
    shards.remove()
    with pytest.raises(FileNotFoundError, match=r"000000\.npz is missing"):
        shards[0]
    again = sl.sample_to(copy, **arguments(key=jax.random.key(1)))
    assert not np.array_equal(again[0], before)
    with pytest.raises(DamagedFile, match="holds other samples since this Shards was made: expected a new one"):
        shards[0]
    # A cached chunk too.
    old = Shards(copy)
    old[0]
    again.remove()
    sl.sample_to(copy, **arguments())
    with pytest.raises(DamagedFile, match="holds other samples since this Shards was made"):
        old[0]


def test_code_on_the_host_that_no_description_sees_is_refused(tmp_path):
    def doubled(y, t, cond=None):
        shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
        return jax.pure_callback(lambda y: np.asarray(y) / 2, shape, y, vmap_method="sequential")

    given = dict(solver=solvers.DDIM(), grid=grids.Karras(2), key=jax.random.key(0), shape=(4, 2), chunk=4)
    model = models.FunctionModel(doubled, EDM, returns="denoised")
    with pytest.raises(ValueError, match=r"doubled.* on the host \(jax\.pure_callback\), whose code the description cannot see"):
        sl.sample_to(tmp_path / "set", model, **given)
    assert not (tmp_path / "set").exists()
    # So is what goes through this package and says nothing of the caller's function.
    silent = lambda y, t, cond=None: jax.pure_callback(
        remembered(lambda y: np.asarray(y) / 2), jax.ShapeDtypeStruct(y.shape, y.dtype), y, vmap_method="sequential"
    )
    with pytest.raises(ValueError, match="whose code the description cannot see"):
        sl.sample_to(tmp_path / "set", models.FunctionModel(silent, EDM, returns="denoised"), **given)
    # What only prints changes no sample.
    solver = fk.FeynmanKac(
        base=solvers.EulerMaruyama(), potential=fk.Difference(fk.Callback(lambda x: x[:, 0]), 1.0), policy=fk.Always(), particles=4
    )
    printing = models.FunctionModel(lambda y, t, cond=None: (jax.debug.callback(lambda: None), y / 2)[1], EDM, returns="denoised")
    assert sl.sample_to(tmp_path / "fk", printing, **given | dict(solver=solver)).missing == ()


def rewarded(scale, text="scale * x[:, 0]"):
    """A reward in Python with a number in it, made anew at every call."""
    return eval(f"lambda x: {text}", dict(scale=scale))


def test_the_code_of_a_reward_on_the_host_is_part_of_the_description(tmp_path):
    def into(reward, folder=tmp_path / "set"):
        potential = fk.Difference(fk.Callback(reward), 1.0)
        solver = fk.FeynmanKac(base=solvers.EulerMaruyama(), potential=potential, policy=fk.Always(), particles=4)
        model = models.FunctionModel(lambda y, t, cond=None: y / 2, EDM, returns="denoised")
        given = dict(solver=solver, grid=grids.Karras(2), key=jax.random.key(0), shape=(4, 2), chunk=4)
        return sl.sample_to(folder, model, **given)

    first = into(rewarded(1.0))
    assert [line.split()[0] for line in first.made["code on the host"]] == ["<lambda>"]
    # Another object of equal code and numbers goes on.
    assert into(rewarded(1.0)).digest == first.digest
    for changed in (rewarded(2.0), rewarded(1.0, "scale + x[:, 0]")):
        with pytest.raises(ValueError, match=r"holds samples that were made otherwise: code on the host was \['<lambda> .* and is"):
            into(changed)
    # A name that is given another value, as in a notebook.
    names = dict(scale=1.0)
    named = eval("lambda x: scale * x[:, 0]", names)
    into(named, tmp_path / "named")
    names["scale"] = 2.0
    with pytest.raises(ValueError, match="holds samples that were made otherwise: code on the host"):
        into(named, tmp_path / "named")


def test_the_code_of_a_model_on_the_host_is_part_of_the_description(tmp_path):
    def into(*fns, vjp=None, kind=models.HostFunction):
        hosted = [models.FunctionModel(kind(fn, **vjp or {}), EDM, returns="denoised") for fn in fns]
        model = models.ClassifierFreeGuidance(model=hosted[0], unconditional=hosted[1], scale=2.0)
        given = dict(solver=solvers.DDIM(), grid=grids.Karras(2), key=jax.random.key(0), shape=(4, 2), chunk=4)
        return sl.sample_to(tmp_path / "set", model, **given)

    half, third = (eval(f"lambda y, t, cond: y / {number}") for number in (2, 3))
    first = into(half, third)
    assert len(first.made["code on the host"]) == 2
    # Equal functions go on; others, others in their places, and another derivative do not.
    assert into(eval("lambda y, t, cond: y / 2"), third).digest == first.digest
    changed = [((half, half), {}), ((third, half), {}), ((half, third), dict(vjp=dict(vjp=lambda y, t, cond, cotangent: y)))]
    for fns, more in changed:
        with pytest.raises(ValueError, match=r"holds samples that were made otherwise: .*code on the host"):
            into(*fns, **more)


def test_states_that_are_not_finite_are_told_with_their_ids(tmp_path):
    given = arguments(ids=np.arange(100, 100 + N))
    cond = given["cond"].copy()
    cond[[9, 10]] = np.nan
    with pytest.raises(NonFiniteSample, match=r"chunk 2 of 6, ids 108 to 111: 2 of 4 samples .*; not finite: 109, 110$"):
        sl.sample_to(tmp_path, **given | dict(cond=cond, model=given["model"].model))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / "ended.json").write_text(json.dumps(children(place)))
