"""Several hosts: how they meet and stop; that they train, sample, steer and distil as one does; what happens when one is lost."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from scorelab import data, densities, hosts
from scorelab.errors import ConfigError
from tests.run.conftest import ROOT, TINY, with_sets

LONG = pytest.mark.long
LAUNCH = ROOT / "experiments" / "launch"


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


# How they meet -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", 2, None), r"distributed\.coordinator = 'a:1', hosts = 2 without host: expected all three"),
        ((None, 2, 0), "without coordinator"),
        (("a:1", 2, 2), r"distributed\.host = 2 of 2 hosts: expected 0 to 1"),
        (("a:1", 2, -1), r"distributed\.host = -1: expected an integer >= 0"),
        (("a:1", 0, 0), r"distributed\.hosts = 0: expected an integer >= 1"),
        (("a:1", 2.0, 0), r"distributed\.hosts = 2\.0: expected an integer"),
        (("a:port", 2, 0), r"distributed\.coordinator = 'a:port': expected ADDRESS:PORT"),
        (("a", 2, 0), "expected ADDRESS:PORT"),
        (("a:70000", 2, 0), "a port from 1 to 65535"),
        (("a:1", 2, 0, -1.0), r"distributed\.timeout = -1\.0: expected seconds above 0"),
        (("localhost:1", 2, 0), "called after JAX had started"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_opened(arguments, message):
    jax.devices()
    *three, timeout = (*arguments, 1.0)[:4]
    with pytest.raises(ConfigError, match=message):
        hosts.distributed(*three, timeout=timeout)
    assert hosts.count() == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--hosts", "2"), "--hosts 2 without --host and --coordinator: expected all three, or --distributed"),
        (("--host", "0"), "--host 0 without --hosts and --coordinator"),
        (("--hosts", "2", "--host", "0", "--distributed"), "--distributed with --hosts 2 --host 0: expected one of the two"),
        (("--hosts", "2", "--host", "2", "--coordinator", "a:1"), "distributed.host = 2 of 2 hosts: expected 0 to 1"),
        (("--hosts", "0"), "argument --hosts: 0: expected an integer >= 1"),
        (("--host-timeout", "30"), "--host-timeout 30 without other hosts: expected --hosts, --host and --coordinator, or --dist"),
    ],
)
def test_flags_that_do_not_fit_are_refused(scorelab, flags, message):
    status, _, err = scorelab("train", "quickstart", *flags)
    assert status == 2
    assert message in err
    assert "Traceback" not in err


def test_one_host_needs_nothing_and_none_is_detected_here():
    with pytest.raises(ConfigError, match="neither SLURM, Open MPI, Cloud TPU nor Kubernetes"):
        hosts.distributed()
    hosts.distributed(hosts=1)
    assert hosts.exchange(3) == [3]
    assert hosts.first()


def test_slurm_says_who_the_hosts_are(monkeypatch):
    variables = dict(JOB_ID="4242", STEP_NODELIST="node[007-009]", NTASKS="24", PROCID="9", LOCALID="1", STEP_NUM_NODES="3")
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert hosts._detected(1) == (f"node007:{65536 - 4096 + 4242 % 4096}", 24, 9, [1])


def meeting(*members, timeout=20.0, facts=None, monkeypatch=None):
    """What becomes of several hosts, given as (host, hosts), that meet in this process."""
    where = ("localhost", free_port())

    def one(member):
        try:
            return hosts._meet(where, member[1], member[0], timeout, 60.0)
        except ConfigError as error:
            return str(error)

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(one, members))


@pytest.mark.parametrize(
    ("members", "timeout", "message"),
    [
        ([(0, 3), (1, 3)], 0.7, "1 of 3 hosts did not come within 0.7 s: 2"),
        ([(1, 2)], 0.5, "nobody answers at localhost:.* within 0.5 s"),
        ([(0, 2), (1, 3)], 20, "host 1 was started as one of 3 hosts, host 0 as one of 2: expected the same"),
        ([(0, 3), (1, 3), (1, 3)], 20, "two processes were started as host 1: expected each number once"),
    ],
)
def test_hosts_that_do_not_meet_say_why_on_every_one_of_them(members, timeout, message):
    began = time.monotonic()
    found = meeting(*members, timeout=timeout)
    assert all(re.search(message, str(each)) for each in found), found
    assert time.monotonic() - began < timeout + 15


def test_another_program_at_the_port_is_named():
    with socket.create_server(("localhost", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(ConfigError, match="answers, and is no host 0 of scorelab"):
            hosts._meet(("localhost", server.getsockname()[1]), 2, 1, 10.0, 60.0)


def test_hosts_with_other_code_do_not_run_together(monkeypatch):
    facts = iter([{"jax": "1", "python": "3"}, {"jax": "2", "python": "3"}])
    lock = threading.Lock()

    def other():
        with lock:
            return next(facts)

    monkeypatch.setattr(hosts, "_facts", other)
    for found in meeting((0, 2), (1, 2)):
        assert re.search(r"host 1 has other code than host 0: jax = '\d', expected '\d'", found)


def test_the_code_is_part_of_what_is_compared():
    found = hosts._facts()
    assert found["jax"] == jax.__version__
    assert len(found["sha256 of scorelab"]) == 12


# What they agree on ------------------------------------------------------------------------------------------------------
def test_all_hosts_give_and_get_and_stop_at_one_step():
    """Threads in the place of hosts; whoever is asked, and however fast each one is, all end at the same step."""
    found = meeting(*((host, 4) for host in range(4)))
    for line in found:
        line.watch()

    def work(line, seed):
        rng = random.Random(seed + line.host)
        values = line.exchange({"host": line.host})
        step, asked_at = 0, rng.randrange(10, 30) if line.host in (seed % 4, (seed + 1) % 4) else None
        while True:
            step += 1
            time.sleep(rng.choice((0.0, 0.001, 0.004)))
            if line.stops(step, asked_at is not None and step >= asked_at):
                break
            assert step < 1000
        line.part()
        return values, step, asked_at

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, found, [5] * 4))
    assert all(values == [{"host": host} for host in range(4)] for values, _, _ in results)
    steps = {step for _, step, _ in results}
    first = min(asked for _, _, asked in results if asked is not None)
    assert len(steps) == 1
    # After the step at which the first one was asked.
    assert steps.pop() > first
    for line in found:
        for connection in line._peers.values():
            connection.close()


def test_the_number_of_a_step_survives_a_second_fit(monkeypatch):
    asked = []

    class Line:
        def stops(self, step, told):
            asked.append(step)
            return False

    monkeypatch.setattr(hosts, "_LINE", Line())
    began = 7
    stop = hosts.stop_at(lambda: began, lambda: False)
    stop(), stop()
    began = 20
    stop()
    assert asked == [8, 9, 21]


def test_runs_that_differ_are_refused_with_the_field():
    from scorelab.run.prepare import _flat

    one, other = ({"stages": [{"type": "Train", "steps": steps}], "seed": 0} for steps in (10, 20))
    with pytest.raises(ConfigError, match=r"host 1 has another run than host 0: Experiment.stages.0.steps = 20, expected 10$"):
        hosts._compare("another run", [_flat(one), _flat(other)])


@pytest.mark.parametrize("kind", ["places", "noise", "assignment"])
def test_the_shares_of_hosts_are_the_batch_of_one(kind):
    levels = np.arange(64, dtype=np.uint8).reshape(16, 2, 2, 1)
    batches = data.Batches({"x": levels, "base": levels[::-1].astype(np.float32)}, batch_size=8)
    points = data.Batches({"x": np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)}, batch_size=8)
    made = {
        "places": lambda: data.Dequantised(batches, seed=3),
        "noise": lambda: data.Coupled(batches, data.Paired(noise=0.5), seed=3),
        "assignment": lambda: data.Coupled(points, data.Assignment(), densities.Gaussian(np.zeros(2), 1.0), seed=3),
    }[kind]()
    for step in (0, 3):
        whole, parts = made.at(step), [made.at(step, host, 2) for host in (0, 1)]
        for name, value in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), value)


# One run on several hosts ------------------------------------------------------------------------------------------------
class Shared:
    """Batches of which every host takes its block."""

    def __init__(self, batches):
        self.batches = batches

    def at(self, step, host=0, hosts=1):
        return {name: np.split(value, hosts)[host] for name, value in self.batches.at(step).items()}


def everything():
    """Distilled parameters, and particles of one population over all devices, as host arrays by name."""
    from scorelab import fk, sample
    from scorelab.arrays import on_host
    from scorelab.experiment.checkpoints import host_state
    from scorelab.training import EarlyStopping, data_mesh, fit
    from tests.distill.test_fdistill import KEY, Points, networks
    from tests.fk.chains import BASE, GRID, MODEL, SCALE, reward
    from tests.training import small

    mesh = data_mesh()
    state = host_state(fit(networks(), Shared(Points()), steps=3, key=KEY, mesh=mesh))
    # No loss is smaller by 1, so that all hosts stop at step 4.
    watch = EarlyStopping(every=2, batch=24, draws=2, patience=1, min_delta=1.0).watch({"x": small.Points(50).at(100)["x"]})
    stopped = fit(small.learner(), Shared(small.Points()), steps=20, key=KEY, mesh=mesh, early=watch)
    assert int(stopped.step) == 4
    solver = fk.FeynmanKac(base=BASE, potential=fk.Difference(reward, SCALE, every=5), record_ancestors=True)
    out = sample(MODEL, solver=solver, grid=GRID, key=jax.random.key(0), shape=(512, 1), mesh=mesh)
    found = {f"distilled {i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    found["held out"] = np.array([record.loss for record in watch.records])
    return found | dict(x=on_host(out.x), log_z=on_host(out.log_z), ancestors=on_host(out.diagnostics["ancestors"]))


# The state in parts on the hosts, small arrays too.
SPLIT = (
    *TINY,
    "experiment.Train.sharding = @training.Sharding()",
    "training.Sharding.fully_sharded = True",
    "training.Sharding.smallest = 1",
)


def one_of_several(host, count, port, folder):
    """What every process does: a run by its config, its second half in parts, the rest by hand, a checkpoint of a split array."""
    hosts.distributed(f"localhost:{port}", int(count), int(host), timeout=120)
    from scorelab.experiment.checkpoints import Checkpoints
    from scorelab.run import pipeline
    from scorelab.training import data_mesh
    from scorelab.training.parallel import replicate, shard_batch

    folder = Path(folder)
    pipeline.from_config("toys/eight_gaussians", TINY, folder / "run", resume=False, whole=True)
    if hosts.first():
        shutil.copytree(folder / "run", folder / "split")
        for name in ("checkpoints/20", "samples", "previews"):
            shutil.rmtree(folder / "split" / name, ignore_errors=True)
        (folder / "split" / "samples.npz").unlink()
    hosts.exchange(None)
    pipeline.from_config("toys/eight_gaussians", SPLIT, folder / "split", resume=True, whole=True)
    found = everything()
    mesh, rows = data_mesh(), np.split(np.arange(24.0, dtype=np.float32).reshape(8, 3), int(count))[int(host)]
    state = {"spread": shard_batch(rows, mesh), "whole": replicate(jax.random.key(3), mesh), "step": np.int32(7)}
    checkpoints = Checkpoints(folder / "spread")
    checkpoints.save(7, state)
    again = checkpoints.restore(7, jax.eval_shape(lambda: {**state, "spread": jax.numpy.zeros((8, 3))}))
    np.testing.assert_array_equal(again["spread"], np.arange(24.0).reshape(8, 3))
    if hosts.first():
        np.savez(folder / "found.npz", **found)
    hosts.finish()


def launched(*commands):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return [subprocess.Popen([sys.executable, "-m", *map(str, c)], cwd=ROOT, env=environment, **pipes) for c in commands]


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=LONG)])
def test_hosts_together_do_what_one_does(count, tiny_run, tmp_path):
    port = free_port()
    processes = launched(*(("tests.run.test_hosts", host, count, port, tmp_path) for host in range(count)))
    expected = everything()
    for host, process in enumerate(processes):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
        # Host 0 speaks for all.
        said = "".join(line for line in out.splitlines() if "Gloo" not in line)
        assert (f"{count} hosts" in said and "report" in said) if host == 0 else said == ""
    for whole in (tmp_path / "run", tmp_path / "split"):
        assert {path.name for path in whole.iterdir()} == {path.name for path in tiny_run.iterdir()}
        # One device here, several there: float32 sums in another order (1e-7), carried on by 20 steps of Adam and four of Heun.
        lines = [[json.loads(line) for line in (root / "metrics.jsonl").read_text().splitlines()] for root in (whole, tiny_run)]
        for ours, theirs in zip(*lines, strict=True):
            assert ours.keys() == theirs.keys()
            np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5)
        with np.load(whole / "samples.npz") as ours, np.load(tiny_run / "samples.npz") as theirs:
            np.testing.assert_allclose(ours["x"], theirs["x"], atol=1e-4)
    with np.load(tmp_path / "found.npz") as found:
        assert found.keys() == expected.keys()
        np.testing.assert_array_equal(found["ancestors"], expected["ancestors"])
        for name in ("x", "log_z"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)
        for name in (name for name in expected if name.startswith(("distilled", "held out"))):
            # As on several devices of one process (tests/training/test_parallel.py).
            a, b = np.float64(found[name]), np.float64(expected[name])
            assert np.all(np.abs(a - b) <= 2e-5 * (1 + np.abs(b))), name
    # What the hosts wrote together, one process reads.
    from scorelab.experiment.checkpoints import Checkpoints

    like = {"spread": np.zeros((8, 3), np.float32), "whole": jax.random.key(0), "step": np.int32(0)}
    read = Checkpoints(tmp_path / "spread").restore(7, jax.eval_shape(lambda: like))
    np.testing.assert_array_equal(read["spread"], np.arange(24.0).reshape(8, 3))
    assert np.array_equal(jax.random.key_data(read["whole"]), jax.random.key_data(jax.random.key(3)))


# Faults ------------------------------------------------------------------------------------------------------------------
def on_hosts(count, root, *more):
    """The command line on several hosts, with a training that is long enough to be stopped in."""
    slow = with_sets(*(binding for binding in TINY if not binding.startswith("STEPS")), "STEPS = 300")
    port = free_port()
    run = ("scorelab.run.cli", "train", "toys/eight_gaussians", *slow, "--workdir", root, "--resume")
    return launched(
        *((*run, "--hosts", count, "--host", host, "--coordinator", f"localhost:{port}", *more) for host in range(count))
    )


def ends(processes):
    said = [process.communicate(timeout=300) for process in processes]
    ours = [[line for line in err.splitlines() if line.startswith("scorelab:")] for _, err in said]
    return [process.returncode for process in processes], ours


def newest(root):
    return max((int(p.name) for p in (root / "checkpoints").glob("*") if p.name.isdecimal()), default=0)


def reached(processes, root, step):
    while newest(root) < step:
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.01)


@LONG
def test_a_signal_stops_all_hosts_and_a_killed_host_ends_them_and_the_run_goes_on_to_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert ends(on_hosts(2, whole)) == ([0, 0], [[], []])

    processes = on_hosts(2, broken)
    reached(processes, broken, 30)
    processes[1].send_signal(signal.SIGTERM)
    status, said = ends(processes)
    assert status == [0, 0]
    assert [re.search(r"SIGTERM: checkpoint of step (\d+) of 300", lines[-1])[1] for lines in said] == [str(newest(broken))] * 2

    for victim in (1, 0):
        processes = on_hosts(2, broken)
        reached(processes, broken, newest(broken) + 40)
        began = time.monotonic()
        processes[victim].kill()
        status, said = ends(processes)
        # The connection ends with the process, so that nothing waits for a heartbeat.
        assert time.monotonic() - began < 30
        assert status[1 - victim] == 1
        assert f"host {victim} has ended" in said[1 - victim][-1]
        assert "--resume" in said[1 - victim][-1]

    assert ends(on_hosts(2, broken))[0] == [0, 0]
    assert (broken / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    from tests.run.test_resume import state_of

    jax.tree.map(np.testing.assert_array_equal, state_of(broken), state_of(whole))


@LONG
def test_another_config_on_one_host_is_refused_on_all(tmp_path):
    port = free_port()
    run = ("scorelab.run.cli", "train", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", tmp_path / "run")
    flags = ("--hosts", 2, "--coordinator", f"localhost:{port}", "--host")
    status, said = ends(launched((*run, *flags, 0), (*run, "--set", "experiment.Train.batch_size = 64", *flags, 1)))
    assert status == [2, 2]
    for lines in said:
        assert "host 1 has another run than host 0: Experiment.stages.0.batch_size = 64, expected 32" in lines[-1]
    assert not (tmp_path / "run").exists()


# Launch recipes ----------------------------------------------------------------------------------------------------------
def parsed(command):
    """The command line of a recipe, as the program takes it."""
    from scorelab.run.cli import _parser

    words = shlex.split(command)
    return _parser().parse_args(words[words.index("scorelab") + 1 :])


@pytest.mark.parametrize("name", ["slurm.sh", "tpu.sh"])
def test_the_scripts_are_shell_and_their_commands_are_ours(name):
    path = LAUNCH / name
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True).stderr == b""
    (command,) = re.findall(r"scorelab run[^\n]*?--distributed", path.read_text())
    arguments = parsed(command)
    assert arguments.distributed
    assert arguments.resume


def test_the_lines_of_slurm_are_options_of_sbatch():
    text = (LAUNCH / "slurm.sh").read_text()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH"))
    # Before the first command, or sbatch does not read them.
    assert text.index("set -euo") > text.rindex("#SBATCH")
    known = {
        "job-name": r"\w+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "gpus-per-node": r"\d+", "cpus-per-task": r"\d+",
        "time": r"\d+:\d\d:\d\d", "signal": r"TERM@\d+", "requeue": "", "open-mode": "append|truncate", "output": r"\S+",
    }  # fmt: skip
    assert {name for name, value in options.items() if not re.fullmatch(known[name], value)} == set()
    # JAX gives each task of SLURM one device.
    assert options["ntasks-per-node"] == options["gpus-per-node"]


def test_the_job_of_kubernetes_is_whole():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == ("v1", "Service", "batch/v1", "Job")
    # A headless service gives pods their names.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert pod["subdomain"] == service["metadata"]["name"]
    (container,) = pod["containers"]
    (text,) = container["args"]
    arguments = parsed(text.replace("$JOB_COMPLETION_INDEX", "0"))
    assert arguments.hosts == spec["completions"] == spec["parallelism"]
    assert arguments.coordinator == f"{job['metadata']['name']}-0.{pod['subdomain']}:{container['ports'][0]['containerPort']}"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert str(arguments.workdir).startswith(container["volumeMounts"][0]["mountPath"])


if __name__ == "__main__":
    one_of_several(*sys.argv[1:])
