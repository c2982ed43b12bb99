"""The command ``scorelab``: train, sample, evaluate, run all three with a report, and look up data sets."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from scorelab.run.sources import ConfigError

EPILOG = """\
examples:
  scorelab run quickstart                          train, sample, score and report on 8x8 digits
  scorelab run mnist/edm_cpu --workdir runs/a      the same on MNIST (see `scorelab data mnist`)
  scorelab run quickstart --set 'experiment.Experiment.seed = 1' --workdir runs/seed1
  scorelab run quickstart --resume                 continue where a run was stopped
  scorelab sample runs/quickstart --n 1000 --seed 7 --name more

exit status: 0 done, 2 a mistake in the command, the config or the data, 1 a failure while running, 130
interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except ConfigError as error:
        if arguments.debug:
            raise
        print(f"scorelab: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # A pipe that is closed early (scorelab data | head) is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (FloatingPointError, OSError) as error:
        if arguments.debug:
            raise
        print(f"scorelab: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        # A run that was stopped says where (faults.Stopped), and SIGTERM is no failure.
        text = str(error) or "interrupted; the same command with --resume continues"
        print(f"scorelab: {text}", file=sys.stderr)
        return getattr(error, "status", 130)
    return 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="scorelab",
        description="Score-based diffusion experiments from config files.",
        epilog=EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action="version", version=f"scorelab {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, command, text in (
        ("run", _run, "train, sample, evaluate and write report.html"),
        ("train", _train, "train only"),
    ):
        sub = _command(commands, name, command, text)
        sub.add_argument(
            "config",
            metavar="CONFIG",
            help="a .gin file, or the name of a shipped one (quickstart, mnist/edm)",
        )
        sub.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="BINDING",
            help="override a value, such as 'experiment.Experiment.steps = 100'; may be repeated",
        )  # fmt: skip
        sub.add_argument(
            "--workdir", type=Path, metavar="DIR", help="where to write (default: runs/<config name>)"
        )
        sub.add_argument("--resume", action="store_true", help="continue the run in the work directory")

    sub = _command(commands, "sample", _sample, "sample the newest checkpoint of a work directory")
    sub.add_argument("workdir", type=Path, metavar="WORKDIR")
    sub.add_argument("--n", type=_positive, help="number of samples (default: that of the config)")
    sub.add_argument("--seed", type=_natural, help="seed (default: that of the config)")

    sub = _command(
        commands, "evaluate", _evaluate, "score the samples of a work directory and write report.html"
    )
    sub.add_argument("workdir", type=Path, metavar="WORKDIR")

    sub = _command(commands, "data", _data, "find (or download) a data set and print what it is")
    sub.add_argument(
        "name", metavar="NAME", help="digits, mnist, fashion_mnist, kmnist, cifar10, or a two-dimensional toy"
    )
    sub.add_argument("--split", help="one split (default: all)")
    sub.add_argument("--no-download", action="store_true", help="look on this machine only")
    return parser


def _command(commands, name: str, command, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    sub.set_defaults(command=command)
    return sub


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected an integer >= 1")
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value}: expected an integer >= 0")
    return value


def _version() -> str:
    try:
        return importlib.metadata.version("scorelab")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# Imported inside the commands: `scorelab --help` need not wait for JAX, and the number of CPU devices must be
# set before anything uses it.
def _train(arguments: argparse.Namespace) -> None:
    from scorelab.run import pipeline

    pipeline.from_config(
        arguments.config, arguments.overrides, arguments.workdir, resume=arguments.resume, whole=False
    )


def _run(arguments: argparse.Namespace) -> None:
    from scorelab.run import pipeline

    pipeline.from_config(
        arguments.config, arguments.overrides, arguments.workdir, resume=arguments.resume, whole=True
    )


def _sample(arguments: argparse.Namespace) -> None:
    from scorelab.run import pipeline

    pipeline.sample_workdir(arguments.workdir, n=arguments.n, seed=arguments.seed)


def _evaluate(arguments: argparse.Namespace) -> None:
    from scorelab.run import pipeline

    pipeline.evaluate_workdir(arguments.workdir)


def _data(arguments: argparse.Namespace) -> None:
    from scorelab.run.datasets import print_data

    print_data(arguments.name, split=arguments.split, download=not arguments.no_download)


if __name__ == "__main__":
    sys.exit(main())
