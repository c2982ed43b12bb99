"""The command line and the record of an experiment: numbers with the command and the versions that made them, and figures."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

import scorelab as sl
from scorelab import viz
from scorelab.config.explain import one_line
from scorelab.errors import ConfigError
from scorelab.validation import require_seed


def script(main: Callable[[], None]) -> None:
    """Run a script; data, models or runs that are not there, or not what they should be, end in one line and exit status 2."""
    try:
        main()
    except (ConfigError, FileNotFoundError, sl.data.DataCorrupt, sl.metrics.WeightsError) as error:
        print(f"{Path(sys.argv[0]).name}: error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(2)


def parse(doc: str, name: str, **options: int) -> argparse.Namespace:
    """The command line: ``--out``, and integer options with these defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/figures") / name, help="folder of the figures and numbers")
    for option, default in options.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    arguments = parser.parse_args()
    if "seed" in options:
        try:
            require_seed(name, seed=arguments.seed)
        except ValueError as error:
            parser.error(str(error))
    return arguments


def record(arguments: argparse.Namespace, name: str, numbers, *, label: str | None = None, **figures) -> None:
    """Write the numbers with the command and the versions to ``{label}.json``, each figure to ``{label}_{its name}.png``.

    ``name`` is that of the script, and the label unless another one is given.
    """
    label = name if label is None else label
    # Folders differ from machine to machine: only the name of the run that was looked at is kept.
    given = {option: f"runs/{v.name}" if option == "workdir" and v else v for option, v in vars(arguments).items()}
    given = {option: " ".join(v) if isinstance(v, list) else v for option, v in given.items()}
    options = "".join(f" --{option} {v}" for option, v in given.items() if v is not None and not isinstance(v, Path))
    versions = dict(scorelab=sl.__version__, python=platform.python_version(), jax=jax.__version__, numpy=np.__version__)
    document = dict(command=f"python experiments/{name}.py{options}", versions=versions, numbers=numbers)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{label}.json").write_text(json.dumps(document, indent=1) + "\n")
    for which, figure in figures.items():
        print("wrote", viz.save(figure, arguments.out / f"{label}_{which}.png"))
