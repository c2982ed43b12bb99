"""``scorelab figure``: the figures of papers by name, made one at a time or all, and compared with what is on record."""

from __future__ import annotations

import ast
import json
import math
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorelab.config.sources import PACKAGE
from scorelab.errors import ConfigError, shown
from scorelab.names import did_you_mean
from scorelab.run.figure import require_option, value_of

# In an installed package inside it, in a checkout beside it.
EXPERIMENTS = PACKAGE / "experiments" if (PACKAGE / "experiments").is_dir() else PACKAGE.parent / "experiments"
RESULTS = EXPERIMENTS / "results"
# Two numbers agree within so many standard deviations of their difference; without any, within a relative error, which leaves room
# for the rounding of another machine.
_DEVIATIONS, _ROUNDING = 3.0, 1e-3


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What a script says of its figure, without being run; the fields are those of :class:`~scorelab.run.figure.Figure`."""

    name: str
    file: Path
    title: str
    answers: str
    claims: str
    look_for: str
    minutes: Mapping[str, float | None]

    @property
    def time(self) -> str:
        """Minutes at every size, as text."""
        words = {k: "not measured" if v is None else f"{v:g} min" for k, v in self.minutes.items()}
        return f"two cores: small {words['small']}, full {words['full']}; one accelerator: {words['gpu']}"


def statements() -> dict[str, Statement]:
    """Every figure by name, ``arXiv id/script``."""
    files = sorted(EXPERIMENTS.glob("*/*.py"))
    return {found.name: found for file in files if (found := _statement(file)) is not None}


def _statement(file: Path) -> Statement | None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and getattr(node.targets[0], "id", "") == "FIGURE":
            wanted = ("answers", "claims", "look_for", "minutes")
            literal = {k.arg: k.value for k in node.value.keywords}
            minutes = literal["minutes"]
            if isinstance(minutes, ast.Call):
                literal["minutes"] = ast.Dict([ast.Constant(k.arg) for k in minutes.keywords], [k.value for k in minutes.keywords])
            title = (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")
            found = {name: ast.literal_eval(literal[name]) for name in wanted}
            return Statement(name=f"{file.parent.name}/{file.stem}", file=file, title=title, **found)
    return None


def matching(pattern: str) -> dict[str, Statement]:
    """The figures whose name contains ``pattern``; ConfigError where there is none."""
    everything = statements()
    found = {pattern: everything[pattern]} if pattern in everything else {k: v for k, v in everything.items() if pattern in k}
    if not found:
        papers = ", ".join(dict.fromkeys(name.partition("/")[0] for name in everything))
        raise ConfigError(f"figure {pattern}: no such figure; expected a name, or a paper: {papers}. {_near(pattern, everything)}")
    return found


def _near(name: str, everything: Mapping[str, Statement]) -> str:
    inside = [one for one in everything if name and name in one]
    if len(inside) == 1:
        return f"Did you mean {inside[0]}?"
    return did_you_mean(name, list(everything)) or "`scorelab figure --list` has all names"


def print_figures(pattern: str = "") -> None:
    """Print the names that contain ``pattern`` with what each is, and everything that is known of a single one."""
    found = matching(pattern)
    if len(found) == 1:
        (one,) = found.values()
        print(f"{one.name}: {one.title}\nanswers   {one.answers or 'no figure of the paper'}\nclaims    {one.claims}")
        print(f"look for  {one.look_for}\ntime      {one.time}\nscript    {shown(one.file)}")
        return
    width = max(map(len, found))
    for one in found.values():
        answers = f" [{one.answers}]" if one.answers else ""
        print(f"{one.name:<{width}}  {one.title}{answers}")


def make(name: str, *, size: str | None, out: Path | None, again: bool, settings: Sequence[str], options: bool) -> None:
    """Run the script of a figure in this process.

    Raises:
        ConfigError: no figure has this name, or a setting is no ``option=value``.
    """
    everything = statements()
    if name not in everything:
        raise ConfigError(f"figure {name}: no such figure; expected a name of `scorelab figure --list`. {_near(name, everything)}")
    one = everything[name]
    given = [text.partition("=")[0].strip() for text in settings]
    if twice := [option for option in given if given.count(option) > 1]:
        raise ConfigError(f"--set {twice[0]}=...: it is set twice; expected each option once")
    words = [word for text in settings for word in require_option(name, text)]
    with _as_script(one.file, ["--help"] if options else _words(size, out, again) + words):
        if not options:
            print(f"{one.name}: {one.title}\nclaims    {one.claims}\nlook for  {one.look_for}\ntime      {one.time}", flush=True)
        runpy.run_path(str(one.file), run_name="__main__")


def _words(size: str | None, out: Path | None, again: bool) -> list[str]:
    return [f"--{size}"] * (size is not None) + (["--out", str(out)] if out is not None else []) + ["--again"] * again


@contextmanager
def _as_script(file: Path, words: Sequence[str]):
    argv, path, before = sys.argv, list(sys.path), set(sys.modules)
    sys.argv, sys.path[:] = [str(file), *words], [str(file.parent), *path]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path
        # Two papers may have modules of one name.
        for name in set(sys.modules) - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(file.parent)):
                del sys.modules[name]


def make_all(pattern: str, *, size: str | None, out: Path | None, again: bool) -> bool:
    """Make every figure whose name contains ``pattern``, one after the other, and compare each with its result on record.

    A figure that fails ends no other; its output is in ``make.log`` beside its result. Returns whether all were made and agree.
    """
    import jax

    out = Path("runs/figures") if out is None else out
    size = size or ("small" if jax.default_backend() == "cpu" else "full")
    begun, fine, compared, everything = time.monotonic(), True, 0, matching(pattern)
    width = max(map(len, everything))
    for i, one in enumerate(everything.values()):
        folder = out / one.name / size
        folder.mkdir(parents=True, exist_ok=True)
        print(f"[{i + 1}/{len(everything)}] {one.name:<{width}}  ", end="", flush=True)
        before = time.monotonic()
        with open(folder / "make.log", "w", encoding="utf-8") as log:
            status = subprocess.run(
                [sys.executable, str(one.file), *_words(size, folder, again)], stdout=log, stderr=subprocess.STDOUT, check=False,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            ).returncode  # fmt: skip
        said = f"failed with status {status}, see {shown(folder / 'make.log')}" if status else "made"
        if not status:
            try:
                different = differences(folder)
            except ConfigError as error:
                different = [str(error)]
            compared += different is not None
            said = "no result on record" if different is None else "as on record" if not different else "; ".join(different)
            fine &= not different
        fine &= status == 0
        print(f"{time.monotonic() - before:6.0f} s  {said}", flush=True)
    print(f"{compared} of {len(everything)} figures have a result on record that was compared")
    print(f"{len(everything)} figures in {(time.monotonic() - begun) / 60:.1f} min, in {shown(out)}")
    return fine


def differences(folder: Path) -> list[str] | None:
    """What in the claims of a result is not as on record, numbers beyond their spread and verdicts; None without a record."""
    here = read_result(folder)
    file = RESULTS / here["name"] / here["variant"] / "result.json"
    if not file.is_file():
        return None
    record = read_result(file.parent)
    mine, theirs = ({k: v for k, v in found["options"].items() if k != "seeds"} for found in (here, record))
    if mine != theirs:
        return [f"its options are {mine}: expected {theirs}, as on record"]
    said = [[claim["says"] for claim in result["claims"]] for result in (here, record)]
    if said[0] != said[1]:
        return [f"its claims are {said[0]}: expected {said[1]}, as on record"]
    found = []
    # In their order: a sentence of the paper may have several numbers.
    for mine, claim in zip(here["claims"], record["claims"], strict=True):
        if not agree(mine, claim):
            pair = [f"{value_of(float(c['value']), float(c['spread']))}, {c['verdict']}" for c in (mine, claim)]
            found.append(f"{claim['says']} {pair[0]}: expected {pair[1]}, as on record")
    return found


def agree(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two claims have one verdict, and the same number as far as their spread says."""
    x, y = float(a["value"]), float(b["value"])
    if a["verdict"] != b["verdict"]:
        return False
    if not (math.isfinite(x) and math.isfinite(y)):
        return x == y or (math.isnan(x) and math.isnan(y))
    spread = math.hypot(float(a["spread"]), float(b["spread"]))
    if spread == 0 and a["verdict"] == "not comparable":
        # Of one seed, which does not say how much is chance: another machine rounds another way.
        return True
    return abs(x - y) <= max(_DEVIATIONS * spread, _ROUNDING * abs(y))


def read_result(folder: Path) -> dict[str, Any]:
    """The record of a figure in ``folder``; ConfigError where there is none or it is damaged."""
    file = folder / "result.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {
            key: found[key]
            for key in ("name", "variant", "command", "options", "versions", "seconds", "claims", "figures", "numbers")
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{shown(file)}: no result of a figure: {error}") from error
