"""Speed in one table: ratios to the bare network, to a plain call, or to another library on the same work.

    python -m benchmarks.run                             # everything but the peers
    python -m benchmarks.run --quick                     # fewer networks and rounds
    python -m benchmarks.run --only sampling training    # some of the subjects, or of their parts (sampling.overhead)
    python -m benchmarks.run --only peers                # other libraries (pip install '.[peers]')

Whatever is compared runs interleaved in one process, round by round, and a number is the median over rounds with its quartiles;
the ratio in CPU seconds stands beside it, since other programs disturb wall seconds more. Every part has a process of its own.

The table of the repository is experiments/results/benchmarks/table.json. A run is compared with it, and --keep writes it anew, with
the picture of the ratios and the page docs/benchmarks.md. Rows that are missing a package are named and left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import Row

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "experiments" / "results" / "benchmarks"
SUBJECTS = (
    "sampling", "compilation", "smc", "teleport", "training", "distillation", "likelihood", "memory", "randomness", "nets", "cores",
)  # fmt: skip
PEERS = ("peers",)
# A row has changed where the intervals between its quartiles are apart, by more than this share.
NOTICED = 0.03


def parts_of(subject: str) -> dict:
    """Part -> function, of a module of this folder."""
    return importlib.import_module(f"benchmarks.{subject}").PARTS


def machine() -> dict:
    """Where the numbers come from."""
    import jax

    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return dict(
        processor=model or platform.processor() or platform.machine(), cores=os.cpu_count(), python=platform.python_version(),
        jax=jax.__version__, device=jax.devices()[0].device_kind,
    )  # fmt: skip


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def chosen(only: list[str]) -> list[tuple[str, str]]:
    """The subjects and parts that are asked for; all but the peers by default.

    Raises:
        SystemExit: a name that is none of them.
    """
    known = {subject: list(parts_of(subject)) for subject in (*SUBJECTS, *PEERS) if _there(subject)}
    if not only:
        return [(subject, part) for subject in SUBJECTS for part in known[subject]]
    found = []
    for name in only:
        subject, _, part = name.partition(".")
        if subject not in known or (part and part not in known[subject]):
            names = [f"{s}.{p}" for s, parts in known.items() for p in parts]
            raise SystemExit(f"benchmarks.run: --only {name}: expected one of {', '.join([*known, *names])}")
        found += [(subject, p) for p in known[subject] if not part or p == part]
    return found


def _there(subject: str) -> bool:
    return (Path(__file__).parent / f"{subject}.py").exists()


def measured(subject: str, part: str, rounds: int, quick: bool) -> list[Row] | str:
    """The rows of a part, from a process of its own; what it said where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        options = ["--part", f"{subject}.{part}", "--rounds", str(rounds), "--out", str(out), *(["--quick"] if quick else [])]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.run", *options],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        if not out.exists():
            return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return [Row(**row) for row in json.loads(out.read_text())]


def one_part(name: str, rounds: int, quick: bool, out: Path) -> None:
    """Measure one part in this process."""
    subject, _, part = name.partition(".")
    rows = [dataclasses.asdict(row) for row in parts_of(subject)[part](rounds, quick)]
    out.write_text(json.dumps(rows))


def line(row: Row, former: Row | None) -> str:
    """A row as text."""
    value = f"{row.value:.3g} {row.unit}" if row.unit != "x" else f"{row.value:.3f}"
    spread = (
        "" if row.low == row.high else f"{row.low:.3f} to {row.high:.3f}" if row.unit == "x" else f"{row.low:.3g} to {row.high:.3g}"
    )
    cpu = "" if row.cpu is None else f"{row.cpu:.3f}"
    goal = "" if row.goal is None else f"{row.goal:g}{'' if met(row) else ' missed'}"
    return f"| {row.case} | {value} | {spread} | {cpu} | {goal} | {change(row, former)} | {row.base} |"


def met(row: Row) -> bool:
    """Whether the goal is met, by the smaller of both clocks: the other one has other programs in it."""
    return row.goal is None or min(row.value, row.value if row.cpu is None else row.cpu) <= row.goal


def change(row: Row, former: Row | None) -> str:
    """What became of a row of the table; nothing where the intervals overlap."""
    if former is None or former.value == 0 or row.unit != former.unit:
        return "" if former is not None else "new"
    ratio = row.value / former.value
    apart = row.low > former.high or row.high < former.low
    return f"{ratio:.2f} times" if apart and abs(ratio - 1) > NOTICED else ""


def picture(rows: dict[str, list[Row]], path: Path) -> None:
    """All ratios with their quartiles and goals."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [(part, row) for part, found in rows.items() for row in found if row.unit == "x"]
    if not shown:
        return
    figure, axes = plt.subplots(figsize=(9, 0.22 * len(shown) + 1), layout="constrained")
    for i, (_, row) in enumerate(shown):
        axes.plot([row.low, row.high], [i, i], color="0.6", lw=3)
        axes.plot(row.value, i, "o", color="C0" if met(row) else "C3", ms=4)
        if row.goal is not None:
            axes.plot(row.goal, i, "|", color="C2", ms=9)
    axes.set_yticks(range(len(shown)), [f"{part}: {row.case}" for part, row in shown], fontsize=6)
    axes.set(
        xscale="log", xlabel="time, as a ratio (dot: median; bar: quartiles; green: goal; red: goal missed)", ylim=(len(shown), -1)
    )
    axes.axvline(1, color="0.8", lw=1, zorder=0)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="SUBJECT[.PART]")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--keep", action="store_true", help="write the table and the picture of the repository, and its page")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 15)
    if rounds < 1:
        parser.error(f"--rounds {rounds}: expected at least 1")
    if options.keep and options.quick:
        parser.error("--keep with --quick: expected a whole measurement")
    if options.part:
        one_part(options.part, rounds, options.quick, options.out)
        return
    names = chosen(options.only)
    kept = json.loads((TABLE / "table.json").read_text()) if (TABLE / "table.json").exists() else dict(rows={})
    said = machine()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    print(", ".join(f"{key} {value}" for key, value in said.items()) + f", {rounds} rounds, load {load}")
    found: dict[str, list[Row]] = {}
    for subject, part in names:
        name = f"{subject}.{part}"
        rows = measured(subject, part, rounds, options.quick)
        if isinstance(rows, str):
            print(f"\n{name} is left out: {rows}", flush=True)
            continue
        former = {row["case"]: Row(**row) for row in kept["rows"].get(name, [])}
        print(f"\n{name}\n\n| case | median | quartiles | CPU time | goal | change | base |\n|---|---|---|---|---|---|---|")
        for row in rows:
            print(line(row, former.get(row.case)), flush=True)
        found[name] = rows
    table = dict(
        machine=said | dict(load=load, rounds=rounds), rows={n: [dataclasses.asdict(r) for r in rows] for n, rows in found.items()}
    )
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")
    if options.keep:
        TABLE.mkdir(parents=True, exist_ok=True)
        # Parts that were not asked for keep their rows.
        table["rows"] = kept["rows"] | table["rows"]
        (TABLE / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        picture({name: [Row(**row) for row in rows] for name, rows in table["rows"].items()}, TABLE / "ratios.png")
        # The page reads the table, and this module.
        importlib.import_module("benchmarks.page").write()
    missed = [f"{name}: {row.case}" for name, rows in found.items() for row in rows if not met(row)]
    print(f"\n{sum(map(len, found.values()))} rows, {len(missed)} goals missed" + "".join(f"\n  {each}" for each in missed))


if __name__ == "__main__":
    main()
