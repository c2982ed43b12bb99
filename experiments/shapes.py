"""Train a network on sequences, volumes and images with exact laws, and print how far its samples are from them.

    python experiments/shapes.py
    python experiments/shapes.py --names gaussian_process switching

Each set is trained by its config, ``configs/shapes``, in ``--workdir``, and what is complete there is used again. The table is that
of docs/networks.md; pictures are in the report of each work directory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scorelab.experiment.evaluate import read_metrics
from scorelab.experiment.workdir import read_lines
from scorelab.run.figure import script
from scorelab.run.pipeline import from_config

NAMES = ("gaussian_process", "switching", "blobs", "spots")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES), help="all by default")
    parser.add_argument("--workdir", type=Path, default=Path("runs/shapes"), help="%(default)s by default")
    arguments = parser.parse_args()
    rows = [row for name in arguments.names for row in measured(name, arguments.workdir / name)]
    print("\n".join(rows))


def measured(name: str, root: Path) -> list[str]:
    """The rows of the table for one set, Markdown."""
    workdir = from_config(f"shapes/{name}", (), root, resume=root.exists(), whole=True)
    values, record = read_metrics(workdir)
    seconds = sum(line["seconds"] for _, line in read_lines(workdir.timings_log))
    print(f"{name}: {seconds:.0f} s of training by the clock, {record['step']} steps", flush=True)
    return [f"| `{name}` | {value.name} | {value.value:.3g} | {value.floor:.3g} | {value.n} |" for value in values]


if __name__ == "__main__":
    script(main)
