"""What a run survives: faults made on purpose, and whether it goes on from them to the same bits.

    python benchmarks/reliability.py                     # some minutes on two cores
    python benchmarks/reliability.py --tries 20
    python benchmarks/reliability.py --only SIGKILL --keep

A small training (800 steps on points in the plane, a checkpoint every 50) is run once without a fault. Then it is run
again, once for each try: a fault hits it at a random moment, and the same command with `--resume` goes on until the end. A
try has survived where the fault was told in one line, and the end is that of the first run, bit for bit. The end is the
parameters, the averages, the optimiser's records and the log of the metrics. A try is lost where the run cannot go on, ends
elsewhere, or says nothing. The disk that is full and the one that is read-only are small file systems in memory: mounting one
takes the rights to.

SIGKILL at any moment, from the start of the process to its end, hits a training, a distillation, a long sampling and a sweep. In
these the samples and the tables have to be equal as well. Signals also hit one of two hosts, or both. --keep writes the table to
experiments/results/reliability.json, where rows that were not measured stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[1]
BINDINGS = (
    "nets.MLP.width = 32", "nets.MLP.depth = 1", "data.Named.n = 256", "experiment.Train.batch_size = 32",
    "experiment.Train.log_every = 20", "experiment.Train.checkpoint_every = 50", "STEPS = 800", "WARMUP = 2",
)  # fmt: skip
COMMAND = ("train", "toys/eight_gaussians", *(part for binding in BINDINGS for part in ("--set", binding)))


KEPT = ROOT / "experiments" / "results" / "reliability.json"


def start(root: Path, *more: str, **pipes) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "scorelab.run.cli", *COMMAND, "--workdir", str(root), *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def newest(root: Path) -> int:
    return max((int(p.name) for p in (root / "checkpoints").glob("*") if p.name.isdecimal()), default=0)


def bits(root: Path) -> dict[str, bytes]:
    """The log of the metrics and the arrays of the last checkpoint; orbax gives its files other names and times each time."""
    arrays = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(root.absolute() / "checkpoints" / "800" / "state")
    return {"metrics.jsonl": (root / "metrics.jsonl").read_bytes(), **{name: array.tobytes() for name, array in arrays.items()}}


def files(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def goes_on(root: Path, expected: dict[str, bytes]) -> bool:
    """Whether the same command with --resume ends at the bits of the run without a fault."""
    process = start(root, "--resume")
    process.communicate()
    return process.returncode == 0 and bits(root) == expected


def reach(process: subprocess.Popen, root: Path, step: int) -> None:
    while newest(root) < step and process.poll() is None:
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 0.03))


def one_line(error: str, *needed: str) -> bool:
    lines = [line for line in error.splitlines() if line.startswith("scorelab:")]
    return len(lines) == 1 and "Traceback" not in error and all(word in lines[0] for word in needed)


def signalled(number: int, status: int) -> Callable[[Path, dict[str, bytes]], bool]:
    """A signal at two random moments of one run."""

    def attempt(root: Path, expected: dict[str, bytes]) -> bool:
        good = True
        for step in (random.randrange(50, 350, 50), random.randrange(400, 700, 50)):
            process = start(root, "--resume")
            reach(process, root, step)
            process.send_signal(number)
            _, error = process.communicate()
            good &= process.returncode == status and (number == signal.SIGKILL or one_line(error, "--resume"))
        return good and goes_on(root, expected)

    return attempt


def mounted(root: Path, size: str) -> None:
    root.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)], check=True)


def disk_full(root: Path, expected: dict[str, bytes]) -> bool:
    mounted(root, "4m")
    try:
        process = start(root, "--resume")
        # Something else fills the disk while it trains.
        reach(process, root, 100)
        with suppress(OSError), open(root / "other", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        _, error = process.communicate()
        good = process.returncode == 1 and one_line(error, "No space left on device", str(root), "--resume")
        (root / "other").unlink()
        return good and goes_on(root, expected)
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", str(root)], check=True)


def read_only(root: Path, expected: dict[str, bytes]) -> bool:
    mounted(root, "4m")
    try:
        process = start(root, "--resume")
        reach(process, root, 200)
        process.kill()
        process.wait()
        subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True)
        process = start(root, "--resume")
        _, error = process.communicate()
        good = process.returncode == 1 and one_line(error, "Read-only file system", str(root))
        subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True)
        return good and goes_on(root, expected)
    finally:
        process.kill()
        process.wait()
        subprocess.run(["umount", str(root)], check=True)


def vanished(root: Path, expected: dict[str, bytes]) -> bool:
    process = start(root)
    reach(process, root, 200)
    root.rename(root.with_name("elsewhere"))
    _, error = process.communicate()
    good = process.returncode == 1 and one_line(error, str(root)) and not root.exists()
    root.with_name("elsewhere").rename(root)
    return good and goes_on(root, expected)


def closed_output(root: Path, expected: dict[str, bytes]) -> bool:
    read, write = os.pipe()
    process = start(root, stdout=write)
    os.close(write)
    reach(process, root, 200)
    os.close(read)
    _, error = process.communicate()
    return process.returncode == 1 and one_line(error, "standard output was closed", str(root)) and goes_on(root, expected)


def double_start(root: Path, expected: dict[str, bytes]) -> bool:
    """Two at the same time in a new folder, and a third while one of them trains."""
    both = [start(root, "--resume"), start(root, "--resume")]
    while newest(root) < 50 and any(process.poll() is None for process in both):
        time.sleep(0.002)
    third = start(root, "--resume")
    said = [process.communicate()[1] for process in (*both, third)]
    refused = [error for process, error in zip((*both, third), said, strict=True) if process.returncode == 2]
    done = [process for process in (*both, third) if process.returncode == 0]
    # The third may come when the first has ended, and finds nothing to do.
    return len(done) >= 1 and all(one_line(error, "in use by process") for error in refused) and bits(root) == expected


def flipped(whole: Path) -> Callable[[Path, dict[str, bytes]], bool]:
    """One bit of the newest checkpoint is another: found, said, and made again from the one before."""

    def attempt(root: Path, expected: dict[str, bytes]) -> bool:
        shutil.copytree(whole, root)
        place = root / "checkpoints" / "800"
        path = random.choice(files(place))
        content = bytearray(path.read_bytes())
        bit = random.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        process = start(root, "--resume")
        output, _ = process.communicate()
        return process.returncode == 0 and "checkpoints/800 is damaged and passed over" in output and bits(root) == expected

    return attempt


def corrupted(whole: Path) -> Callable[[Path, dict[str, bytes]], bool]:
    """The newest checkpoint is cut short, emptied, renamed or without one of its files."""

    def attempt(root: Path, expected: dict[str, bytes]) -> bool:
        shutil.copytree(whole, root)
        place = root / "checkpoints" / "800"
        way = random.choice(["cut", "empty", "renamed", "missing"])
        if way == "cut":
            path = random.choice(files(place))
            os.truncate(path, random.randrange(path.stat().st_size))
        elif way == "empty":
            shutil.rmtree(place)
            place.mkdir()
        elif way == "renamed":
            shutil.rmtree(place)
            (root / "checkpoints" / "750").rename(place)
        else:
            random.choice(files(place)).unlink()
        process = start(root, "--resume")
        output, error = process.communicate()
        if way == "renamed":
            # Nothing else is left: refused, and never taken for step 800.
            return process.returncode == 2 and one_line(error, "no checkpoint is whole")
        return process.returncode == 0 and "is damaged and passed over" in output and bits(root) == expected

    return attempt


def damaged(whole: Path) -> Callable[[Path, dict[str, bytes]], bool]:
    """A file beside the checkpoints is cut short: refused in one line that names it, and continued when it is deleted."""

    def attempt(root: Path, expected: dict[str, bytes]) -> bool:
        shutil.copytree(whole, root)
        shutil.rmtree(root / "checkpoints" / "800")
        path = root / random.choice(["specs.json", "versions.json"])
        os.truncate(path, random.randrange(1, path.stat().st_size - 2))
        process = start(root, "--resume")
        _, error = process.communicate()
        good = process.returncode == 2 and one_line(error, f"{path.name} is damaged")
        path.unlink()
        return good and goes_on(root, expected)

    return attempt


# SIGKILL at any moment -------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Work:
    """Something that is killed, started again, and has to end like one that was not.

    Attributes:
        command: the command that makes a folder, or goes on with it.
        result: what it has made, by name.
    """

    command: Callable[[Path], list[str]]
    result: Callable[[Path], dict[str, bytes]]


def sets(*bindings: str) -> list[str]:
    return [part for binding in bindings for part in ("--set", binding)]


SMALL = (
    "nets.MLP.width = 32", "nets.MLP.depth = 1", "data.Named.n = 256", "experiment.Train.batch_size = 32",
    "experiment.Train.log_every = 20", "experiment.Train.checkpoint_every = 50", "WARMUP = 2", "grids.Karras.steps = 4",
    "experiment.Sample.n = 64", "experiment.PointEvaluation.projections = 16",
)  # fmt: skip
STUDENT = (
    "STEPS = 40", "experiment.Train.batch_size = 8", "experiment.Train.checkpoint_every = 5", "experiment.Train.log_every = 2",
    "distill.FDistill.gan_weight = 1e-3", "distill.TeacherFeatures.width = 8",
)  # fmt: skip
# Samples of the long sampling, and how many of them are one piece of work.
DRAWN, CHUNK = 20_000, 500


def trained(root: Path) -> dict[str, bytes]:
    """The newest checkpoint and the log."""
    arrays = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(
        root.absolute() / "checkpoints" / str(newest(root)) / "state"
    )
    return {"metrics.jsonl": (root / "metrics.jsonl").read_bytes(), **{name: array.tobytes() for name, array in arrays.items()}}


def drawn(root: Path) -> dict[str, bytes]:
    """The samples: in one file, or in shards beside it."""
    found = {}
    for path in sorted(path for path in (root / "samples" / "long").rglob("*.npz")):
        with np.load(path) as file:
            found |= {f"{path.name} {name}": file[name].tobytes() for name in ("x", "label") if name in file}
    return found


def swept(root: Path) -> dict[str, bytes]:
    """The table, and what every run of it has made."""
    found = {"runs.csv": (root / "runs.csv").read_bytes()}
    for cell in sorted(path.parent for path in root.glob("*/config.gin")):
        with np.load(cell / "samples.npz") as file:
            found |= {f"{cell.name} {name}": value for name, value in trained(cell).items()} | {cell.name: file["x"].tobytes()}
    return found


def works(folder: Path) -> dict[str, Work]:
    """What is killed; the long sampling needs a trained model, which is made in ``folder``."""
    cli = [sys.executable, "-m", "scorelab.run.cli"]
    model = folder / "model"

    def sampling(root: Path) -> list[str]:
        if not model.exists():
            chunk = sets(f"experiment.Sample.chunk = {CHUNK}")
            assert finished(subprocess.Popen([*train, *chunk, "--workdir", str(model)], **quiet())) == 0
        if not root.exists():
            shutil.copytree(model, root)
        # A sampling in one file begins again where it was killed, one in shards goes on: only this line knows which it is.
        return [*cli, "sample", str(root), "--n", str(DRAWN), "--seed", "7", "--name", "long"]

    train = [*cli, "train", "toys/eight_gaussians", *sets(*SMALL, "STEPS = 400")]
    student = [*cli, "train", "paper/2502.15681/digits", *sets(*STUDENT)]
    grid = ["--grid", "training.EMA.decay = [0.9, 0.99]"]
    sweep = [*cli, "sweep", "toys/eight_gaussians", *grid, *sets(*SMALL, "STEPS = 100")]
    return {
        "training": Work(lambda root: [*train, "--workdir", str(root), "--resume"], trained),
        "distillation": Work(lambda root: [*student, "--workdir", str(root), "--resume"], trained),
        "long sampling": Work(sampling, drawn),
        "sweep of two runs": Work(lambda root: [*sweep, "--out", str(root)], swept),
    }


def quiet() -> dict:
    """How a command is started: with its children in a group of its own, since a machine that stops stops all of them."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return dict(env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=ROOT)


def finished(process: subprocess.Popen) -> int:
    process.communicate()
    return process.returncode


def killed(work: Work, whole: Path) -> Callable[[Path, dict[str, bytes]], bool]:
    """SIGKILL of a command and all it has started, at a moment that is uniform over the time it takes."""
    command, began = work.command(whole), time.monotonic()
    assert finished(subprocess.Popen(command, **quiet())) == 0
    length, expected = time.monotonic() - began, work.result(whole)

    def attempt(root: Path, _: dict[str, bytes]) -> bool:
        # One that has ended before it was killed is no try: the machine was faster this time.
        while True:
            process = subprocess.Popen(work.command(root), **quiet())
            try:
                process.wait(random.uniform(0.0, length))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                break
            shutil.rmtree(root)
        return finished(subprocess.Popen(work.command(root), **quiet())) == 0 and work.result(root) == expected

    return attempt


# Two hosts ---------------------------------------------------------------------------------------------------------------
def two_hosts(root: Path) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = ("--hosts", "2", "--coordinator", f"localhost:{port}")
    return [start(root, "--resume", *flags, "--host", str(host)) for host in (0, 1)]


def ends(processes: list[subprocess.Popen]) -> tuple[list[int], list[str]]:
    said = [process.communicate()[1] for process in processes]
    return [process.returncode for process in processes], said


def whole_on_two(folder: Path) -> dict[str, bytes]:
    assert ends(two_hosts(folder))[0] == [0, 0]
    return bits(folder)


def of_hosts(number: int, everywhere: bool, expected: dict[str, bytes]) -> Callable[[Path, dict[str, bytes]], bool]:
    """A signal to one of two hosts, or to both; a kill ends the other one with a line that names the lost host."""

    def attempt(root: Path, _: dict[str, bytes]) -> bool:
        processes, victim = two_hosts(root), random.randrange(2)
        reach(processes[0], root, random.randrange(50, 700, 50))
        for process in processes if everywhere else processes[victim : victim + 1]:
            process.send_signal(number)
        status, said = ends(processes)
        if number == signal.SIGTERM:
            good = status == [0, 0] and all(one_line(error, "SIGTERM", "--resume") for error in said)
        else:
            good = status[1 - victim] == 1 and one_line(said[1 - victim], f"host {victim} has ended", "--resume")
        return good and ends(two_hosts(root))[0] == [0, 0] and bits(root) == expected

    return attempt


def written(rows: list[dict]) -> None:
    """The table of the repository with the rows of this measurement in their place."""
    kept = json.loads(KEPT.read_text())["rows"] if KEPT.is_file() else []
    new = {row["fault"]: row for row in rows}
    rows = [new.pop(row["fault"], row) for row in kept] + list(new.values())
    KEPT.write_text(json.dumps(dict(rows=rows), indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=8, help="tries of each fault")
    parser.add_argument("--only", help="faults whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help=f"write the rows to {KEPT.relative_to(ROOT)}")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/compiled")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        whole = Path(folder) / "whole"
        process = start(whole)
        _, error = process.communicate()
        assert process.returncode == 0, error
        expected = bits(whole)
        made: dict[str, Callable[[Path, dict[str, bytes]], bool]] = {}

        def late(name: str, make: Callable[[], Callable[[Path, dict[str, bytes]], bool]]):
            """A case whose run without a fault is made when it is first tried."""

            def attempt(root: Path, expected: dict[str, bytes]) -> bool:
                if name not in made:
                    made[name] = make()
                return made[name](root, expected)

            return attempt

        @functools.cache
        def killable() -> dict[str, Work]:
            return works(Path(folder))

        on_two = functools.cache(lambda: whole_on_two(Path(folder) / "two"))
        cases = {
            "SIGKILL, twice in a run": signalled(signal.SIGKILL, -signal.SIGKILL),
            "SIGTERM, twice in a run": signalled(signal.SIGTERM, 0),
            "Ctrl-C, twice in a run": signalled(signal.SIGINT, 130),
            "disk full": disk_full,
            "read-only folder": read_only,
            "folder moved away and back": vanished,
            "standard output closed": closed_output,
            "started three times at once": double_start,
            "one bit flipped in the newest checkpoint": flipped(whole),
            "newest checkpoint cut, emptied, renamed, incomplete": corrupted(whole),
            "specs.json or versions.json cut short": damaged(whole),
        }
        for name in ("training", "distillation", "long sampling", "sweep of two runs"):
            each = Path(folder) / name.replace(" ", "-")
            cases[f"SIGKILL at any moment: {name}"] = late(name, lambda name=name, each=each: killed(killable()[name], each))
        for title, number, everywhere in (
            ("SIGTERM on both of two hosts", signal.SIGTERM, True),
            ("SIGTERM on one of two hosts", signal.SIGTERM, False),
            ("SIGKILL of one of two hosts", signal.SIGKILL, False),
        ):
            cases[title] = late(title, lambda n=number, e=everywhere: of_hosts(n, e, on_two()))
        rows: list[dict] = []
        print("| fault | tried | survived | lost | seconds |\n| --- | ---: | ---: | ---: | ---: |")
        for name, attempt in cases.items():
            if arguments.only and arguments.only not in name:
                continue
            began, survived, tried = time.monotonic(), 0, 0
            for _ in range(arguments.tries):
                try:
                    survived += attempt(Path(folder) / f"try{tried}", expected)
                    tried += 1
                except (subprocess.CalledProcessError, PermissionError) as error:
                    print(f"(not tried: {error})", file=sys.stderr)
                    break
                finally:
                    for path in Path(folder).glob("try*"):
                        shutil.rmtree(path)
            seconds = time.monotonic() - began
            print(f"| {name} | {tried} | {survived} | {tried - survived} | {seconds:.0f} |", flush=True)
            rows.append(
                dict(fault=name, tried=tried, survived=survived, lost=tried - survived, seconds=round(seconds), seed=arguments.seed)
            )
            if arguments.keep:
                written(rows)


if __name__ == "__main__":
    main()
