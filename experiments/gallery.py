"""Write docs/gallery.md from the results on record, or put new results on record.

    scorelab figure --all                            make every figure
    python experiments/gallery.py --take runs/figures   put what was made on record, and write the page
    python experiments/gallery.py                    write the page

The page has each figure with its command, its numbers beside the paper's claims and a verdict, and then, for each paper, every
figure and table that it has, by `paper.toml` in the paper's folder.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tomllib
from pathlib import Path
from typing import get_args

from scorelab.errors import ConfigError
from scorelab.files import write_text
from scorelab.run.figure import Verdict, script, value_of
from scorelab.run.gallery import EXPERIMENTS, RESULTS, Statement, read_result, statements

PAGE = EXPERIMENTS.parent / "docs" / "gallery.md"
HEAD = """\
# Gallery: figures of papers, made again

Every figure and table below has one command. Without `--full` it runs at a small size, within minutes on two CPU cores.
`scorelab figure --list` has all names, and `scorelab figure --all` makes all figures and compares their numbers with those here.

A verdict is one of four. *Reproduced*: the number or the law holds here. *In shape*: the direction is right and the size is not.
*Not reproduced*: it is not so here. *Not comparable*: data, networks or sizes differ too much to say. Numbers are mean and
standard deviation, as each row says.
"""


def variants(name: str) -> list[dict]:
    """The results on record of a figure, the full size first, and the default data first."""
    found = [read_result(file.parent) for file in sorted((RESULTS / name).glob("*/result.json"))]
    return sorted(
        found, key=lambda result: (not result["variant"].startswith("full"), result["variant"].count("-"), result["variant"])
    )


def cell(text: str) -> str:
    """Text that does not end a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def entry(one: Statement) -> list[str]:
    """One figure: what it answers, its pictures, commands and claims."""
    lines = [f"### {one.name}", "", one.title, ""]
    lines += [f"*{one.answers}.* The paper: {one.claims}" if one.answers else one.claims, "", f"Look for: {one.look_for}", ""]
    found = variants(one.name)
    if not found:
        return [*lines, f"No result is on record: `scorelab figure {one.name}` makes it ({one.time}).", ""]
    for shown, result in enumerate(found):
        # The small size of what there is at full size is on record for comparisons only.
        if shown and result["variant"].startswith("small"):
            continue
        folder = Path("..", "experiments", "results", result["name"], result["variant"])
        for picture in result["figures"]:
            lines += [f"![{one.title.rstrip('.')}: {picture.replace('_', ' ')}]({folder.as_posix()}/{picture}.png)", ""]
        device = result["versions"]["devices"]
        seconds = sum(result["seconds"].values())
        spent = f", {seconds / 60:.1f} min on {device['count']} {device['kind']}" if seconds else ""
        lines += [f"`{result['command']}`{spent}", ""]
        if result["claims"]:
            lines += ["| the paper | here | verdict | why |", "| --- | --- | --- | --- |"]
        for claim in result["claims"]:
            number = value_of(float(claim["value"]), float(claim["spread"]))
            row = (claim["says"], f"{number} {claim['unit']}", claim["verdict"], claim["why"])
            lines.append(f"| {' | '.join(map(cell, row))} |")
        lines.append("")
    return lines


def contents(paper: str, stated: dict, figures: dict[str, Statement]) -> list[str]:
    """Every figure and table of one paper."""
    lines = ["| of the paper | what it shows | here |", "| --- | --- | --- |"]
    for item in stated["shows"]:
        by = [f"{paper}/{name}" for name in item.get("by", [])]
        if unknown := [name for name in by if name not in figures]:
            raise ValueError(f"{paper}/paper.toml: {item['of']} is by {unknown[0]}: expected a figure of this folder")
        here = ", ".join(f"[{name}](#{anchor(name)})" for name in by) or f"not attempted: {item['why']}"
        lines.append(f"| {item['of']} | {cell(item['what'])} | {here} |")
    return [*lines, ""]


def anchor(name: str) -> str:
    """The anchor of a heading, as GitHub and MyST write it."""
    return "".join(c for c in name.lower() if c.isalnum() or c in "-_")


def page() -> str:
    """The text of the page."""
    figures = statements()
    papers = {paper: tomllib.loads((EXPERIMENTS / paper / "paper.toml").read_text(encoding="utf-8")) for paper in folders(figures)}
    lines = [HEAD, *overview(papers, figures), ""]
    for paper, stated in papers.items():
        lines += [f"## {stated['title']} (arXiv {paper})", ""]
        for name, one in figures.items():
            if name.startswith(f"{paper}/"):
                lines += entry(one)
    lines += ["## Everything in these papers", ""]
    for paper, stated in papers.items():
        if "shows" in stated:
            lines += [
                f"**{stated['title']}** ([arXiv {paper}](https://arxiv.org/abs/{paper}))",
                "",
                *contents(paper, stated, figures),
            ]
    return "\n".join(lines).rstrip() + "\n"


def overview(papers: dict[str, dict], figures: dict[str, Statement]) -> list[str]:
    """How many figures each paper has here, and how many claims have which verdict, at the largest size on record."""
    kinds = get_args(Verdict)
    lines = [f"| paper | figures | {' | '.join(kinds)} |", "| --- |" + " ---: |" * (1 + len(kinds))]
    for paper, stated in papers.items():
        names = [name for name in figures if name.startswith(f"{paper}/")]
        found = [claim["verdict"] for name in names for result in variants(name)[:1] for claim in result["claims"]]
        lines.append(f"| {stated['title']} | {len(names)} | {' | '.join(str(found.count(kind)) for kind in kinds)} |")
    return lines


def folders(figures: dict[str, Statement]) -> list[str]:
    """The papers that have figures here."""
    return sorted({name.partition("/")[0] for name in figures})


def take(made: Path) -> None:
    """Put results on record: numbers and pictures, in the place of those that were there."""
    known = statements()
    for file in sorted(made.rglob("result.json")):
        result = read_result(file.parent)
        if result["name"] not in known or not all(
            re.fullmatch(r"[\w.=-]+", word) for word in (result["variant"], *result["figures"])
        ):
            raise ConfigError(
                f"{file}: name {result['name']}, variant {result['variant']}: expected a figure of `scorelab figure --list`"
            )
        if missing := [name for name in result["figures"] if not (file.parent / f"{name}.png").is_file()]:
            raise ConfigError(f"{file.parent}: expected {missing[0]}.png beside its result")
        folder = RESULTS / result["name"] / result["variant"]
        # Whole beside it first: what was on record stays until the new one is there.
        fresh = folder.with_name(f".{folder.name}.new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name in ("result.json", *(f"{figure}.png" for figure in result["figures"])):
            shutil.copyfile(file.parent / name, fresh / name)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def main() -> None:
    """Parse the command line, put on record, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", type=Path, metavar="DIR", help="a folder of results to put on record first")
    arguments = parser.parse_args()
    if arguments.take is not None:
        take(arguments.take)
    write_text(PAGE, page())
    print(f"wrote {PAGE.relative_to(EXPERIMENTS.parent)}")


if __name__ == "__main__":
    script(main)
