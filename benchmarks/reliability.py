"""What a run survives: faults made on purpose, and whether it goes on from them to the same bits.

    python benchmarks/reliability.py                     # some minutes on two cores
    python benchmarks/reliability.py --tries 20

A small training (800 steps on points in the plane, a checkpoint every 50) is run once without a fault. Then it is run
again, once for each try: a fault hits it at a random moment, and the same command with `--resume` goes on until the end. A
try has survived where the parameters, the averages, the optimiser's records and the log of the metrics are then those of the
first run, bit for bit, and where the fault was told in one line. It is lost where the run cannot go on, ends elsewhere, or says
nothing. The disk that is full and the one that is read-only are small file systems in memory: mounting one takes the rights to.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import orbax.checkpoint as ocp

ROOT = Path(__file__).resolve().parents[1]
BINDINGS = (
    "nets.MLP.width = 32", "nets.MLP.depth = 1", "data.Named.n = 256", "experiment.Train.batch_size = 32",
    "experiment.Train.log_every = 20", "experiment.Train.checkpoint_every = 50", "STEPS = 800", "WARMUP = 2",
)  # fmt: skip
COMMAND = ("train", "toys/eight_gaussians", *(part for binding in BINDINGS for part in ("--set", binding)))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=8, help="tries of each fault")
    parser.add_argument("--only", help="faults whose name has this in it")
    parser.add_argument("--seed", type=int, default=0)
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
            print(f"| {name} | {tried} | {survived} | {tried - survived} | {time.monotonic() - began:.0f} |", flush=True)


if __name__ == "__main__":
    main()
