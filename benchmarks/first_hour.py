"""The page of the first hour, step by step, in an empty folder and a fresh environment, with the time of each step.

    python benchmarks/first_hour.py
    python benchmarks/first_hour.py --out experiments/results/first_hour.json

The commands and files are those of docs/first_hour.md. A step fails where its command fails, or leaves no picture.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What each step leaves behind.
LEAVES = {
    "The first picture": "picture.png",
    "The first steered picture": "steered.png",
    "The first figure of a paper": "runs/figures/2412.09726/explained_variance/small/laws.png",
    "The first solver of your own": "own_solver.png",
}


def named(text: str) -> dict[str, str]:
    """The Python blocks that open with the name of their file."""
    bodies = [body for kind, body in BLOCK.findall(text) if kind == "python"]
    return {found[1]: body for body in bodies if (found := re.match(r"# (\w+\.py)\n", body))}


def steps(page: str) -> dict[str, list[str]]:
    """The commands of each numbered section."""
    sections = re.split(r"^## (?:\d+\. )?(.+)$", page, flags=re.MULTILINE)[1:]
    found = {}
    for title, text in zip(sections[::2], sections[1::2], strict=True):
        commands = [
            line.partition("#")[0].strip() for kind, body in BLOCK.findall(text) if kind == "sh" for line in body.splitlines()
        ]
        if commands:
            found[title] = commands
    return found


def main() -> None:
    """Go through the page, print the times, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the times")
    arguments = parser.parse_args()
    page = (ROOT / "docs" / "first_hour.md").read_text(encoding="utf-8")
    found, begun = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "scorelab").symlink_to(ROOT)
        for name, body in {**named((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")), **named(page)}.items():
            (here / name).write_text(body, encoding="utf-8")
        # Neither the checkout nor an earlier compilation helps.
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "JAX_COMPILATION_CACHE_DIR")}
        for title, commands in steps(page).items():
            wall, cpu = time.monotonic(), _cpu()
            for command in commands:
                words = [sys.executable if word == "python" else word for word in command.split()]
                done = subprocess.run(words, cwd=here, env=clean, capture_output=True, text=True, check=False)
                if done.returncode:
                    sys.exit(f"{title}: {command} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
            if (wanted := LEAVES.get(title)) and not (here / wanted).is_file():
                sys.exit(f"{title}: expected {wanted}, and it is not there")
            found[title] = dict(seconds=round(time.monotonic() - wall, 1), cpu_seconds=round(_cpu() - cpu, 1))
            print(f"{title:32s} {found[title]['seconds']:7.1f} s, {found[title]['cpu_seconds']:7.1f} s of CPU", flush=True)
    print(f"{'in all':32s} {time.monotonic() - begun:7.1f} s")
    if arguments.out is not None:
        record = dict(python=platform.python_version(), cores=os.cpu_count(), steps=found)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
