"""Write docs/benchmarks.md from the kept table, experiments/results/benchmarks/table.json.

    python -m benchmarks.page

The page begins with what is asked, and which rows answer it; then every part of the suite has its rows. What the table does not
have is called not measured. Reasons for missed goals are in notes.toml beside the table: the name of a part, and a text.
"""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from pathlib import Path
from typing import NamedTuple

from benchmarks import run
from benchmarks.common import Row
from scorelab.files import write_text

PAGE = run.ROOT / "docs" / "benchmarks.md"
# What `python -m benchmarks.gpu` leaves.
GPU = run.ROOT / "experiments" / "results" / "gpu" / "table.md"
HEAD = """\
# Speed and memory, measured

Every number here comes from one command, `python -m benchmarks.run --keep`, and this page is written from its table by
`python -m benchmarks.page`. What is compared runs interleaved in one process, round by round. A number is the median over rounds.
The quartiles stand beside it, and the ratio in CPU seconds of the process, which other programs disturb less. A goal is met where
the smaller of both ratios meets it.
"""


class Asked(NamedTuple):
    """A question of the overview: the rows of a part whose case matches."""

    says: str
    part: str
    rows: str = ""


ASKED = (
    Asked("sampling over the bare network, every solver, batches of 16 and more", "sampling.overhead", r"batch (?!1$)"),
    Asked("sampling over the bare network, every solver, batch 1", "sampling.overhead", r"batch 1$"),
    Asked("multiplicative noise and interpolants", "sampling.kinds"),
    Asked("in-painting, and networks that are told their estimate", "sampling.around"),
    Asked("guidance", "sampling.options", "guidance"),
    Asked('`keep="all"`', "sampling.options", "keep"),
    Asked("samples in shards over samples in memory", "sampling.shards", "over"),
    Asked("a small call", "sampling.dispatch", "of sample"),
    Asked("SMC with rewards, resampling at every step", "smc.overhead"),
    Asked("SMC along reward gradients, over guidance by them", "smc.gradient", "steered"),
    Asked("a teleported start over a network call", "teleport.jump", "full rank"),
    Asked("a training step", "training.step"),
    Asked("a distillation step over a training step", "distillation.step"),
    Asked("a likelihood over the products that it takes", "likelihood.value"),
    Asked("compilation of a sampler over that of its network", "compilation.compiling"),
    Asked("programs that a sweep compiles", "compilation.programs"),
    Asked("a first call", "compilation.calls", "first"),
    Asked("a steady call", "compilation.calls", "second"),
    Asked("memory against steps", "memory.plan", "steps over"),
    Asked("memory against particles", "memory.plan", "particles"),
    Asked("memory against chunks", "memory.plan", "chunk"),
    Asked("memory of a long sampling", "memory.long"),
    Asked("random numbers, over one key for a batch", "randomness.draws"),
    Asked("other libraries on torch", "peers.torch"),
    Asked("diffrax", "peers.diffrax"),
    Asked("particle filters of other libraries", "peers.filters"),
)


def known() -> dict[str, str]:
    """The parts of the suite, and what each measures."""
    parts = {}
    for subject in (*run.SUBJECTS, *run.PEERS):
        for name, part in run.parts_of(subject).items():
            parts[f"{subject}.{name}"] = inspect.getdoc(part).partition("\n\n")[0].replace("\n", " ").replace("``", "`")
    return parts


def value_of(row: Row) -> str:
    """The value with its unit."""
    return f"{row.value:.3f}" if row.unit == "x" else f"{row.value:.3g} {row.unit}"


def spread_of(row: Row) -> str:
    """The quartiles, nothing where there is one number."""
    form = ".3f" if row.unit == "x" else ".3g"
    return "" if row.low == row.high else f"{row.low:{form}} to {row.high:{form}}"


def cells(*texts: str) -> str:
    """A line of a table."""
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


def overview(rows: dict[str, list[Row]]) -> list[str]:
    """What is asked, the middle and the worst of the rows that answer it, and whether their goals are met."""
    lines = ["| what | rows | median | worst | goal | met |", "| --- | ---: | ---: | --- | ---: | --- |"]
    for each in ASKED:
        found = sorted((row for row in rows.get(each.part, []) if re.search(each.rows, row.case)), key=lambda row: row.value)
        if not found:
            lines.append(cells(each.says, "", "", "not measured", "", ""))
            continue
        # Rows of several units have no order.
        one = len({row.unit for row in found}) == 1
        goals = [row for row in found if row.goal is not None]
        missed = sum(not run.met(row) for row in goals)
        worst = max(goals, key=lambda row: row.value / row.goal) if goals else found[-1]
        middle = value_of(found[len(found) // 2]) if one else ""
        met = "" if not goals else "all" if not missed else f"{missed} of {len(goals)} missed"
        goal = f"{worst.goal:g}" if worst.goal is not None else ""
        lines.append(cells(each.says, str(len(found)), middle, f"{value_of(worst)}, {worst.case}", goal, met))
    return lines


def part_of(name: str, says: str, found: list[Row], why: str) -> list[str]:
    """A part: what it measures, its rows, and why goals are missed."""
    lines = [f"### {name}", "", says, ""]
    if not found:
        return [*lines, f"Not measured: `python -m benchmarks.run --only {name} --keep` does it.", ""]
    lines += ["| case | median | quartiles | CPU time | goal | over |", "| --- | ---: | --- | ---: | ---: | --- |"]
    for row in found:
        goal = "" if row.goal is None else f"{row.goal:g}{'' if run.met(row) else ', missed'}"
        cpu = "" if row.cpu is None else f"{row.cpu:.3f}"
        lines.append(cells(row.case, value_of(row), spread_of(row), cpu, goal, row.base))
    return [*lines, "", *([why.strip(), ""] if why else [])]


def page(table: dict, notes: dict[str, str], gpu: str) -> str:
    """The text of the page."""
    rows = {name: [Row(**row) for row in found] for name, found in table.get("rows", {}).items()}
    parts = known()
    if wrong := [name for name in notes if name not in parts]:
        raise ValueError(f"notes.toml has {wrong[0]}: expected parts of the suite, {', '.join(parts)}")
    lines = [HEAD]
    if machine := table.get("machine"):
        load = f", load {machine['load']:.2g} when it began" if machine.get("load") is not None else ""
        lines += [
            f"Measured on {machine['processor'].strip()}, {machine['cores']} cores, with Python {machine['python']} and JAX "
            f"{machine['jax']} on {machine['device']}, {machine['rounds']} rounds{load}.",
            "",
        ]
        if (run.TABLE / "ratios.png").is_file():
            lines += ["![All ratios with their quartiles and goals](../experiments/results/benchmarks/ratios.png)", ""]
    lines += ["## What is asked", "", *overview(rows), "", "## On a GPU", ""]
    lines += [
        gpu.strip() or "Not measured: `python -m benchmarks.gpu` does it on a machine that has one, in a quarter of an hour.",
        "",
    ]
    lines += ["## Every part", ""]
    for name, says in parts.items():
        lines += part_of(name, says, rows.get(name, []), notes.get(name, ""))
    return "\n".join(lines).rstrip() + "\n"


def kept() -> tuple[dict, dict[str, str], str]:
    """The table of the repository, the notes on it, and the table of a GPU, empty where there are none."""
    table, notes = run.TABLE / "table.json", run.TABLE / "notes.toml"
    return (
        json.loads(table.read_text(encoding="utf-8")) if table.is_file() else {},
        tomllib.loads(notes.read_text(encoding="utf-8")) if notes.is_file() else {},
        GPU.read_text(encoding="utf-8") if GPU.is_file() else "",
    )


def write(path: Path = PAGE) -> None:
    """Write the page of the kept table."""
    write_text(path, page(*kept()))


if __name__ == "__main__":
    write()
    print(f"wrote {PAGE.relative_to(run.ROOT)}")
