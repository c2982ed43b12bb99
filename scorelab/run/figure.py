"""Figures and tables of papers: what a script declares, the work it keeps, and the record of what it found.

A script has one :class:`Figure` and one function, which measures in cells and writes once::

    FIGURE = Figure(__doc__, answers="Figure 3", claims="...", look_for="...", minutes=dict(small=1, full=20, gpu=None),
                    options=dict(n=1000, seeds=3), small=dict(n=50))

    def main(record):
        found = record.cells(measure, {f"seed {s}": (record.options.n, s) for s in range(record.options.seeds)})
        record.write(found, claims=[...], curves=viz.lines(...))

    if __name__ == "__main__":
        FIGURE.make(main)
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import inspect
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np

from scorelab import __version__, viz
from scorelab import config as configs
from scorelab.arrays import Pytree
from scorelab.config.explain import one_line
from scorelab.data import DataCorrupt
from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.experiment import Experiment, trained_state
from scorelab.experiment.workdir import Workdir
from scorelab.files import DamagedFile, read_npz, write_npz, write_text
from scorelab.lock import Lock
from scorelab.run.pipeline import from_config

__all__ = ["Claim", "Figure", "Record", "plus_minus", "script"]

Verdict = Literal["reproduced", "in shape", "not reproduced", "not comparable"]
# The options that add cells and change none.
_EXTENDS = ("seeds",)
# The most bytes of a cell.
_CELL = 1 << 31
# What a script says and draws changes no number that was measured.
_TOLD = re.compile(r"FIGURE|main|claims|\w*(?:figure|panel)\w*")
# Where an array stood in a cell.
_ARRAY = "$array"
_RESERVED = ("out", "full", "small", "again")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, what was found, and whether they agree.

    Attributes:
        says: the paper's statement, with its number where it has one.
        value: the number found.
        spread: its standard deviation over the seeds, 0 where nothing is drawn.
        unit: what the number is, such as ``"nats"`` or ``"FID at 6 of 18 steps skipped"``.
        verdict: ``"reproduced"``; ``"in shape"`` where the direction is right and the size is not; ``"not reproduced"``;
            ``"not comparable"`` where data, networks or sizes differ too much to say.
        why: the reason of the verdict.
    """

    says: str
    value: float
    spread: float
    unit: str
    verdict: Verdict
    why: str

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"Claim.verdict = {self.verdict!r}: expected one of {', '.join(get_args(Verdict))}")
        for name in ("value", "spread"):
            if not np.ndim(getattr(self, name)) == 0:
                raise ValueError(f"Claim.{name} has the shape {np.shape(getattr(self, name))}: expected one number")
            object.__setattr__(self, name, float(getattr(self, name)))


@dataclass(frozen=True)
class Figure:
    """What a script makes, as ``scorelab figure --list`` tells it.

    ``answers``, ``claims``, ``look_for`` and ``minutes`` are written as literals: the list reads them without running the script.

    Attributes:
        doc: the docstring of the script; its first sentence is the title.
        answers: the figure or table of the paper, ``""`` where there is none.
        claims: what the paper says it shows.
        look_for: what to see in ours.
        minutes: of two CPU cores at ``small`` and ``full`` size and of one accelerator, ``gpu``; None where it was not measured.
        options: the default of each option at full size. A tuple has the values to choose from, the first by default; a list those
            of which any may be given, all by default; a type is that of an option without a default.
        small: the defaults at small size, which is that of a CPU.
    """

    doc: str
    answers: str = field(kw_only=True)
    claims: str = field(kw_only=True)
    look_for: str = field(kw_only=True)
    minutes: Mapping[str, float | None] = field(kw_only=True)
    options: Mapping[str, Any] = field(kw_only=True, default_factory=dict)
    small: Mapping[str, Any] = field(kw_only=True, default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.minutes) != {"small", "full", "gpu"}:
            raise ValueError(f"Figure.minutes has {', '.join(self.minutes)}: expected small, full and gpu")
        if wrong := sorted(set(self.options) & {*_RESERVED}):
            raise ValueError(f"Figure.options has {wrong[0]}, which every figure has: expected another name")
        if wrong := sorted(set(self.small) - set(self.options)):
            raise ValueError(f"Figure.small has {wrong[0]}: expected one of the options {', '.join(self.options)}")

    def make(self, main: Callable[[Record], None]) -> None:
        """Run the script of ``main`` with the options of the command line; ConfigError where another process writes there."""

        def locked():
            record = self.record(main)
            with Lock(record.out, print):
                main(record)

        script(locked)

    def record(self, main: Callable[[Record], None], argv: Sequence[str] | None = None) -> Record:
        """The record that ``main`` writes to, with the options of ``argv``, by default those of the command line."""
        file = Path(inspect.getfile(main)).resolve()
        name = f"{file.parent.name}/{file.stem}"
        arguments = self._parser(name).parse_args(argv)
        # Without a smaller size there is only one.
        small = bool(self.small) and (arguments.small or (not arguments.full and jax.default_backend() == "cpu"))
        chosen = {k: v[0] if isinstance(v, tuple) else None if isinstance(v, type) else v for k, v in self.options.items()}
        defaults = chosen | dict(self.small) if small else chosen
        given = {k: v for k, v in vars(arguments).items() if k in self.options and v is not None}
        options = defaults | given
        for option, value in options.items():
            # None of something is asked for where one of the sizes does.
            sizes = [chosen[option], self.small.get(option, chosen[option])]
            least = 0 if option == "seed" or any(isinstance(size, int) and size < 1 for size in sizes) else 1
            if isinstance(value, int) and not least <= value < 2**32:
                raise ConfigError(f"--set {option}={value}: expected an integer from {least} to {2**32 - 1}")
        changed = {k: v for k, v in given.items() if v != defaults[k]}
        # Other data, methods or sizes are another result, which has its own folder; more seeds are more of the same.
        told = {k: v.name if isinstance(v, Path) else v for k, v in changed.items() if k not in _EXTENDS}
        words = [str(v) if isinstance(self.options[k], tuple) else f"{k}={v}" for k, v in told.items()]
        variant = re.sub(r"[^\w.=-]+", "_", "-".join(["small" if small else "full", *words]))
        out = arguments.out or Path("runs/figures", name, variant)
        _require_free(out, name)
        return Record(
            name=name,
            variant=variant,
            options=argparse.Namespace(**options),
            out=out,
            command=_command(name, small, changed),
            again=arguments.again,
        )

    def _parser(self, name: str) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            prog=f"scorelab figure {name}",
            description=self.doc,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        size = parser.add_mutually_exclusive_group()
        size.add_argument("--full", action="store_true", help="the full size, the default on an accelerator")
        text = " ".join(f"--{_flag(k)} {v}" for k, v in self.small.items()) or "the same"
        size.add_argument("--small", action="store_true", help=f"the size of a CPU, the default there: {text}")
        parser.add_argument("--out", type=Path, help=f"folder of the result, runs/figures/{name}/SIZE by default")
        parser.add_argument("--again", action="store_true", help="measure anew what is kept")
        for option, default in self.options.items():
            kind: dict[str, Any] = dict(type=default if isinstance(default, type) else type(default), help=f"{default} by default")
            if isinstance(default, list):
                kind = dict(nargs="+", choices=default, help="all by default")
            elif isinstance(default, tuple):
                kind = dict(choices=default, help=f"{default[0]} by default")
            elif isinstance(default, type):
                kind["help"] = None
            parser.add_argument(f"--{_flag(option)}", **kind)
        return parser


@dataclass(frozen=True, kw_only=True)
class Record:
    """One making of a figure: its options, its finished cells, and what it writes to the folder ``out``."""

    name: str
    variant: str
    options: argparse.Namespace
    out: Path
    command: str
    again: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)

    def cells(self, measure: Callable[..., Any], arguments: Mapping[str, tuple]) -> dict[str, Any]:
        """``measure(*arguments[name])`` for every name, each kept in ``out`` when it is done, and not done twice.

        What is returned is nested mappings with names as keys, lists, numbers, strings, None and arrays. A kept cell counts where
        its arguments, the options, the code of the folder and the version are the same; ``--again`` counts none. Code that only
        speaks or draws is left out: ``FIGURE``, ``main``, ``claims``, and what is called a figure or a panel.
        """
        begun, done, found = time.monotonic(), 0, {}
        for i, (name, given) in enumerate(arguments.items()):
            head = f"[{i + 1}/{len(arguments)}] {name}"
            stamp, path = self._stamp(name, measure, given), self.out / "cells" / f"{_slug(name)}.npz"
            if not self.again and (kept := _read_cell(path, stamp)) is not None:
                found[name], self.seconds[name], runs = kept
                self.runs.update(runs)
                print(f"{head}: kept", flush=True)
                continue
            print(f"{head} ...", flush=True)
            # Before the work, and not after it.
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path.parent / ".writable", "")
            before, earlier = time.monotonic(), set(self.runs)
            value = measure(*given)
            self.seconds[name] = time.monotonic() - before
            runs = {run: how for run, how in self.runs.items() if run not in earlier}
            found[name] = _write_cell(path, stamp, value, self.seconds[name], runs)
            done += 1
            left = (time.monotonic() - begun) / done * (len(arguments) - i - 1)
            print(f"{head}: {self.seconds[name]:.1f} s" + (f", about {left:.0f} s left" if left >= 1 else ""), flush=True)
        return found

    def cell(self, name: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """``measure(*arguments)`` as the only one of :meth:`cells`."""
        return self.cells(measure, {name: arguments})[name]

    def trained(self, name: str, config: str, *overrides: str) -> tuple[Experiment, Pytree]:
        """The experiment of a config and its last state, trained in ``out/runs/name`` as far as that is not done there.

        Errors are those of ``scorelab train --resume``.
        """
        root = self.out / "runs" / name
        self.runs[name] = dict(config=config, overrides=list(overrides))
        return trained(config, overrides, root)

    def write(self, numbers: Any, *, claims: Sequence[Claim] = (), **figures: Any) -> None:
        """Write ``result.json``, ``numbers.csv`` and each figure as PNG and PDF.

        Args:
            numbers: nested mappings, lists, numbers, strings and arrays.
            claims: what the paper says beside what was found.
            figures: figures by name.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        document = _finite(dict(
            name=self.name, variant=self.variant, command=self.command, options=_plain(vars(self.options)), runs=self.runs,
            versions=configs.versions(), seconds={name: round(s, 2) for name, s in self.seconds.items()},
            claims=[vars(claim) for claim in claims], figures=list(figures), numbers=_plain(numbers),
        ))  # fmt: skip
        for name, figure in figures.items():
            viz.save(figure, self.out / f"{name}.png")
            viz.save(figure, self.out / f"{name}.pdf")
        write_text(self.out / "numbers.csv", _table(document["numbers"]))
        write_text(self.out / "result.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
        for claim in claims:
            print(f"{claim.verdict}: {claim.says} Here {value_of(claim.value, claim.spread)} {claim.unit}. {claim.why}")
        print(f"wrote {shown(self.out)}: result.json, numbers.csv{''.join(f', {name}.png, {name}.pdf' for name in figures)}")

    def _stamp(self, name: str, measure: Callable[..., Any], arguments: tuple) -> str:
        # More seeds add cells, and change none but those that go through the seeds themselves.
        through = _reads(measure, _EXTENDS)
        options = {k: v for k, v in vars(self.options).items() if through or k not in _EXTENDS}
        file = Path(inspect.getfile(measure)).resolve()
        parts = (__version__, name, measure.__qualname__, _sources(file.parent), repr(_known(options)), repr(_known(arguments)))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def script(main: Callable[[], None]) -> None:
    """Run ``main``; data, models or runs that are not there, or not what they should be, end in one line and exit status 2."""
    try:
        main()
    except (ConfigError, FileNotFoundError, DataCorrupt, WeightsError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)


def trained(config: str, overrides: Sequence[str], root: Path) -> tuple[Experiment, Pytree]:
    """The experiment of a config and its last state, trained in the work directory ``root`` as far as that is not done there."""
    from_config(config, overrides, root, resume=root.exists(), whole=False)
    experiment = configs.load(config, overrides).experiment
    return experiment, trained_state(experiment, Workdir(root))[0]


def plus_minus(values: Any, digits: int = 3) -> str:
    """Mean and standard deviation of numbers, as text."""
    values = np.asarray(values, np.float64)
    return f"{values.mean():.{digits}f} ± {values.std(ddof=values.size > 1):.{digits}f}"


def value_of(value: float, spread: float) -> str:
    """A number with its spread, as text."""
    return f"{value:.4g}" + (f" ± {spread:.2g}" if spread else "")


def require_option(name: str, text: str) -> list[str]:
    """``option=value`` of ``--set`` as words of the script's command line."""
    option, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"\w+", option.strip()) or option.strip() in (*_RESERVED, "help") or not value.strip():
        raise ConfigError(f"--set {text}: expected option=value, with an option of {name} (scorelab figure {name} --options)")
    return [f"--{_flag(option.strip())}", *value.strip().strip("\"'").split(",")]


def _reads(measure: Callable[..., Any], names: Sequence[str]) -> bool:
    """Whether a function, or one of its file that it calls, reads an attribute of one of these names."""
    body = ast.parse(Path(inspect.getfile(measure)).read_text(encoding="utf-8"))
    defined = {node.name: node for node in ast.walk(body) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    reached, waiting = set(), [measure.__name__]
    while waiting:
        name = waiting.pop()
        if name in defined and name not in reached:
            reached.add(name)
            for node in ast.walk(defined[name]):
                if isinstance(node, ast.Attribute) and node.attr in names:
                    return True
                waiting += [node.id] if isinstance(node, ast.Name) else [node.attr] if isinstance(node, ast.Attribute) else []
    return False


def _sources(folder: Path) -> str:
    """What the scripts of a folder measure with: all their code but statements, claims, drawings and ``main``."""
    kept = []
    for file in sorted(folder.glob("*.py")):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        named = lambda node: getattr(node, "name", "") or getattr(getattr(node, "targets", [None])[0], "id", "")
        kept += [ast.unparse(node) for node in body[1:] if not _TOLD.fullmatch(named(node))]
    return "\n".join(kept)


def _known(value: Any) -> Any:
    """What is known of an argument of a cell: arrays by their hash, paths in full, other objects by their type."""
    if isinstance(value, Mapping):
        return {str(key): _known(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_known(v) for v in value]
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, Path):
        return _place(value)
    return value if isinstance(value, bool | int | float | str) or value is None else type(value).__qualname__


def _place(path: Path) -> str:
    """A path in full, with the time of its last change: a work directory may be trained further."""
    changed = max((p.stat().st_mtime_ns for p in (path, path / "checkpoints") if p.exists()), default=0)
    return f"{path.resolve()} {changed}"


def _require_free(out: Path, name: str) -> None:
    """ConfigError where ``out`` is no folder, or has the result of another figure."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: it is a file; expected a folder")
    try:
        other = json.loads((out / "result.json").read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other != name:
        raise ConfigError(f"--out {out}: it has the result of {other}; expected another folder")


def _flag(option: str) -> str:
    return option.replace("_", "-")


def _slug(name: str) -> str:
    """A file name, told apart from those of names that differ in what it cannot hold."""
    return f"{re.sub(r'[^a-z0-9.+-]+', '_', name.lower())}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def _command(name: str, small: bool, given: Mapping[str, Any]) -> str:
    words = {k: ",".join(map(str, v)) if isinstance(v, list) else str(_plain(v)) for k, v in given.items()}
    return f"scorelab figure {name} {'--small' if small else '--full'}" + "".join(f" --set {k}={word}" for k, word in words.items())


def _plain(value: Any, array: Callable[[np.ndarray], Any] = np.ndarray.tolist) -> Any:
    """Mappings, lists, numbers, text and None; arrays as ``array`` writes them."""
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str) or key == _ARRAY]:
            raise TypeError(f"a name of the numbers is {wrong[0]!r}: expected text other than {_ARRAY!r}")
        return {key: _plain(v, array) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, array) for v in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return array(np.asarray(value)) if np.ndim(value) else np.asarray(value).item()
    if isinstance(value, Path):
        # Folders differ from machine to machine: only the name of one that was looked at is kept.
        return f"runs/{value.name}"
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    raise TypeError(f"the numbers have {type(value).__name__}: expected mappings, lists, numbers, text and arrays")


def _finite(value: Any) -> Any:
    """Numbers that are not finite as text, since JSON has none."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def _rows(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield (*where, "" if value is None else str(value))
        return
    for key, part in items:
        yield from _rows(part, (*where, str(key)))


def _table(numbers: Any) -> str:
    """One row for each number: the names that lead to it, then its value."""
    rows = list(_rows(numbers))
    depth = max((len(row) for row in rows), default=1) - 1
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(f"name_{i + 1}" for i in range(depth)), "value"])
    writer.writerows([*row[:-1], *[""] * (depth + 1 - len(row)), row[-1]] for row in rows)
    return text.getvalue()


def _unpacked(value: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if _ARRAY in value:
            return arrays[f"a{value[_ARRAY]}"]
        return {key: _unpacked(v, arrays) for key, v in value.items()}
    return [_unpacked(v, arrays) for v in value] if isinstance(value, list) else value


def _write_cell(path: Path, stamp: str, value: Any, seconds: float, runs: Mapping[str, Any]) -> Any:
    """Write it and return it as it will be read."""
    arrays: dict[str, np.ndarray] = {}

    def aside(array: np.ndarray) -> dict[str, int]:
        arrays[f"a{len(arrays)}"] = array
        return {_ARRAY: len(arrays) - 1}

    head = json.dumps(dict(stamp=stamp, seconds=seconds, runs=runs, value=_plain(value, aside)))
    write_npz(path, arrays | {"head": np.asarray(head)})
    kept = _read_cell(path, stamp)
    if kept is None:
        raise OSError(f"{shown(path)} does not hold what was written to it")
    return kept[0]


def _read_cell(path: Path, stamp: str) -> tuple[Any, float, dict[str, Any]] | None:
    """The value, its seconds and its trainings; None where there is none, it is damaged, or it was measured under another stamp."""
    try:
        arrays = read_npz(path, limit=_CELL)
        head = json.loads(str(arrays.pop("head")))
        return (_unpacked(head["value"], arrays), head["seconds"], head["runs"]) if head["stamp"] == stamp else None
    except FileNotFoundError:
        return None
    except (DamagedFile, KeyError, ValueError):
        print(f"{shown(path)} is damaged: measured again", flush=True)
        return None
