"""Scripts of experiments: their command line, and the record of their numbers and figures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scorelab import config as configs
from scorelab import viz
from scorelab.arrays import Pytree
from scorelab.config.explain import one_line
from scorelab.data import DataCorrupt
from scorelab.errors import ConfigError, shown
from scorelab.experiment import Experiment, trained_state
from scorelab.experiment.workdir import Workdir
from scorelab.files import write_text
from scorelab.metrics import WeightsError
from scorelab.run.pipeline import from_config
from scorelab.validation import require_seed

__all__ = ["parse", "plus_minus", "record", "script", "trained"]


def script(main: Callable[[], None]) -> None:
    """Run ``main``; data, models or runs that are not there, or not what they should be, end in one line and exit status 2."""
    try:
        main()
    except (ConfigError, FileNotFoundError, DataCorrupt, WeightsError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)


def parse(doc: str, *, small: Mapping[str, Any] | None = None, **options: Any) -> argparse.Namespace:
    """The command line of a script: one ``--option`` for each keyword, ``--out`` for the folder of numbers and figures.

    Args:
        doc: the docstring of the script, which ``--help`` prints.
        small: the defaults under ``--small``, for a look that takes seconds to minutes; without it there is no such option.
        options: the default of each option. A tuple has the values to choose from, the first by default; a list those of which any
            may be given, all by default; a type is that of an option without a default.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path("runs/figures") / Path(sys.argv[0]).resolve().parent.name
    parser.add_argument("--out", type=Path, default=folder, help="folder of the numbers and figures, %(default)s by default")
    for option, default in options.items():
        flag = f"--{option.replace('_', '-')}"
        if isinstance(default, type):
            parser.add_argument(flag, type=default)
        elif isinstance(default, tuple | list):
            several: dict[str, Any] = {"nargs": "*"} if isinstance(default, list) else {}
            parser.add_argument(flag, choices=default, default=default if several else default[0], **several)
        else:
            parser.add_argument(flag, type=type(default), default=default, help="%(default)s by default")
    if small is not None:
        parser.add_argument("--small", action="store_true", help=", ".join(f"--{name} {value}" for name, value in small.items()))
        if parser.parse_known_args()[0].small:
            parser.set_defaults(**small)
    arguments = parser.parse_args()
    try:
        require_seed(Path(sys.argv[0]).stem, **{name: value for name, value in vars(arguments).items() if name == "seed"})
    except ValueError as error:
        parser.error(str(error))
    return arguments


def record(arguments: argparse.Namespace, numbers: Any, *, label: str | None = None, **figures: Any) -> None:
    """Write numbers, command and versions to ``{label}.json`` in ``--out``, and each figure to ``{label}_{its name}.png``.

    Args:
        arguments: those of :func:`parse`; the command has every one of them, whether it was given or not.
        numbers: what JSON can hold, and arrays.
        label: None for the name of the script, with ``--data`` where there is one.
        figures: figures by name.
    """
    file = Path(sys.argv[0]).resolve()
    label = "_".join([file.stem, *filter(None, [getattr(arguments, "data", None)])]) if label is None else label
    given = {name: value for name, value in vars(arguments).items() if name not in ("out", "small") and value is not None}
    options = "".join(f" --{name.replace('_', '-')} {_written(value)}" for name, value in given.items())
    where = shown(file) if file.is_relative_to(Path.cwd()) else f"{file.parent.name}/{file.name}"
    document = dict(command=f"python {where}{options}", versions=configs.versions(), numbers=numbers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out / f"{label}.json", json.dumps(document, indent=1, default=lambda v: np.asarray(v).tolist()) + "\n")
    for name, figure in figures.items():
        print("wrote", viz.save(figure, arguments.out / f"{label}_{name}.png"))


def _written(value: Any) -> str:
    # Folders differ from machine to machine: only the name of one that was looked at is kept.
    if isinstance(value, Path):
        return f"runs/{value.name}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def trained(config: str, overrides: Sequence[str], root: Path) -> tuple[Experiment, Pytree]:
    """The experiment of a config and its last state, trained in the work directory ``root`` as far as that is not done there.

    Errors are those of ``scorelab train --resume``.
    """
    from_config(config, overrides, root, resume=root.exists(), whole=False)
    experiment = configs.load(config, overrides).experiment
    return experiment, trained_state(experiment, Workdir(root))[0]


def plus_minus(values: Any, digits: int = 3) -> str:
    """Mean and standard deviation of numbers, as text."""
    values = np.asarray(values, np.float64)
    return f"{values.mean():.{digits}f} ± {values.std(ddof=values.size > 1):.{digits}f}"
