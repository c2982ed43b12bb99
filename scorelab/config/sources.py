"""Config files before gin sees them: where they lie, what they include, and where each binding stands."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gin import config_parser

from scorelab.errors import ConfigError, shown
from scorelab.names import did_you_mean

PACKAGE = Path(__file__).resolve().parent.parent
# In a checkout the configs lie beside the package; in a wheel they lie inside it.
CONFIG_ROOTS = (PACKAGE.parent / "configs",) if (PACKAGE.parent / "pyproject.toml").is_file() else (PACKAGE / "configs",)
INCLUDE = re.compile(r"""^(\s*include\s+)(['"])(.+?)\2\s*(#.*)?$""")
IMPORT = re.compile(r"^(import|from)\s")
# The process of an experiment is that of its learner, and that of a distillation is its teacher's; kept models and work directories
# of earlier versions name it twice.
FORMER = re.compile(r"^([\w./]+[./])?(Experiment|FDistill|SiD)\.process = .*$", re.MULTILINE)
# Marks an include whose path was made absolute here, so that gin asks our reader for it and not the working
# folder.
SCHEME = "scorelab-config:"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A line of a config file, or an override (``line`` None)."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


@dataclass(frozen=True, kw_only=True)
class Binding:
    """One statement ``selector.field = value``; a macro has the selector "" and its name as ``field``.

    References and macros in ``value`` are text: ``"@name"``, ``"%NAME"``. ``file`` is where it stands, None for an override.
    """

    scope: str
    selector: str
    field: str
    value: Any
    place: Place
    file: Path | None


def find_config(name: str) -> Path:
    """The file meant by ``name``: a path, or the name of a config shipped with the package.

    ``configs/quickstart.gin``, ``quickstart.gin`` and ``quickstart`` all find the shipped file where no file
    of that path exists. Raises ConfigError with the nearest name and what is shipped.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if path.name and not path.is_absolute():
        inner = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) and len(path.parts) > 1 else path
        inner = inner if inner.suffix else inner.with_suffix(".gin")
        for root in CONFIG_ROOTS:
            if (root / inner).is_file():
                return (root / inner).resolve()
    shipped = dict.fromkeys(str(f.relative_to(r)) for r in CONFIG_ROOTS for f in sorted(r.rglob("*.gin")))
    beside = [str(path.parent / f.name) for f in path.parent.glob("*.gin")] if path.parent.is_dir() else []
    # Endings are alike in all names and would make any two of them near.
    known = [file.removesuffix(".gin") for file in (*beside, *shipped)]
    near = did_you_mean(name.removeprefix("configs/").removesuffix(".gin"), known)
    raise ConfigError(f"{name}: no such config file; shipped configs: {', '.join(shipped) or 'none'}\n{near}".rstrip())


def config_name(path: Path) -> str:
    """The full name of a config, which names its work directory, the same whether it was given by path or by name.

    ``mnist/edm`` for a shipped one and for ``configs/mnist/edm.gin`` in any checkout; for another file its path from the working
    folder, ``mine/digits`` for ``mine/digits.gin``, or else the whole path.
    """
    for root in CONFIG_ROOTS:
        if path.is_relative_to(root.resolve()):
            return str(path.relative_to(root.resolve()).with_suffix(""))
    path = path.with_suffix("")
    inside = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.relative_to(path.anchor)
    return str(Path(*inside.parts[1:]) if inside.parts[0] == "configs" and len(inside.parts) > 1 else inside)


def files(path: Path) -> Iterator[Path]:
    """A config file and those that it includes, in the order in which they are read."""
    yield path
    for line in iter(Lines(path).readline, ""):
        if match := INCLUDE.match(line.rstrip()):
            yield from files(Path(match.group(3).removeprefix(SCHEME)))


class Lines:
    """A config file for gin's parser: includes made absolute, overrides appended after the last line.

    Overrides are read in the scope of the file, so they can use everything the file imports. Of a config that was ``carried``, in a
    kept model or a work directory, what this version no longer takes is left out; ``outdated`` says that there is such a line.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = (), *, carried: bool = False):
        self.name = str(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{shown(path)}: cannot be read: {error}") from error
        self.outdated = carried and bool(FORMER.search(text))
        if self.outdated:
            text = FORMER.sub("", text)
        lines = [self._resolved(i, line, path) for i, line in enumerate(text.splitlines(), 1)]
        # Overrides may also name what only an included file imports.
        imports = sorted(set(_imports(lines))) if overrides else []
        if imports and not any(IMPORT.match(line) for line in lines):
            imports = ["from __gin__ import dynamic_registration", *imports]
        self.own_lines = len(lines) + len(imports)
        self._lines = iter([*lines, *imports, *overrides])

    @staticmethod
    def _resolved(number: int, line: str, path: Path) -> str:
        if not (match := INCLUDE.match(line)):
            return line
        wanted = match.group(3)
        candidates = [path.parent / wanted, *(root / wanted for root in CONFIG_ROOTS)]
        found = next((c.resolve() for c in candidates if c.is_file()), None)
        if found is None:
            raise ConfigError(f"{shown(path)}:{number}: include '{wanted}': no such file, looked in {shown(path.parent)}")
        return f"{match.group(1)}'{SCHEME}{found}'"

    def readline(self) -> str:
        """The next line with its line end, or "" after the last."""
        line = next(self._lines, None)
        return "" if line is None else line + "\n"

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *details) -> None:
        return None


def open_include(path: str) -> Lines:
    """gin's reader for includes that ``Lines`` has resolved."""
    return Lines(Path(path.removeprefix(SCHEME)))


def is_include(path: str) -> bool:
    """True for the includes that ``open_include`` reads."""
    return path.startswith(SCHEME)


def _imports(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        if match := INCLUDE.match(line):
            included = open_include(match.group(3))
            text = list(iter(included.readline, ""))
            yield from _imports(text)
            yield from (s.strip() for s in text if IMPORT.match(s) and "__gin__" not in s)


class _Text(config_parser.ParserDelegate):
    """Reads references and macros as text: finding lines needs no import."""

    def configurable_reference(self, scoped_configurable_name, evaluate) -> Any:
        return f"@{scoped_configurable_name}"

    def macro(self, macro_name) -> Any:
        return f"%{macro_name}"


def bindings(path: Path, overrides: Sequence[str] = ()) -> Iterator[Binding]:
    """Every binding of a file, its includes and the overrides, in the order in which they take effect.

    Raises SyntaxError as gin does.
    """
    lines = Lines(path, overrides)
    for statement in config_parser.ConfigParser(lines, _Text()):
        if isinstance(statement, config_parser.IncludeStatement):
            yield from bindings(Path(statement.filename.removeprefix(SCHEME)))
        elif isinstance(statement, config_parser.BindingStatement):
            place = place_of(path, statement.location.line_num, lines, overrides)
            selector, field = statement.selector, statement.arg_name
            if not field:
                selector, field = "", selector
            file = path if statement.location.line_num <= lines.own_lines else None
            yield Binding(scope=statement.scope, selector=selector, field=field, value=statement.value, place=place, file=file)


def place_of(path: Path, line: int, lines: Lines, overrides: Sequence[str]) -> Place:
    """A line number of ``lines`` as a place a person can look at."""
    rest = line - lines.own_lines
    if rest <= 0:
        return Place(source=shown(path), line=line)
    for override in overrides:
        rest -= override.count("\n") + 1
        if rest <= 0:
            return Place(source=f"--set '{override}'")
    return Place(source=shown(path))
