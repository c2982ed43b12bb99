"""The command ``scorelab``: train, sample, evaluate, run all three with a report, and look up data sets."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

# Nothing else is imported here: help and mistakes in the command need not wait for it, and a config may still split the CPU into
# devices, which has to be done before anything uses JAX.

EPILOG = """\
examples:
  scorelab run quickstart                          train, sample, evaluate and report on 8x8 digits
  scorelab run mnist/edm_cpu --workdir runs/a      the same on MNIST (see `scorelab data mnist`)
  scorelab run quickstart --set 'experiment.Experiment.seed = 1' --workdir runs/seed1
  scorelab run quickstart --resume                 continue where a run was stopped
  scorelab sample runs/quickstart --n 1000 --seed 7 --name more
  scorelab run mnist/edm --hosts 2 --host 0 --coordinator node0:7000    on two hosts; the other one is --host 1

exit status: 0 done, 2 a mistake in the command, the config or the data, 1 a failure while running, 130
interrupted.
"""


# What `scorelab pretrained` does, by the word after it.
_PRETRAINED = ("list", "show", "fetch", "convert", "check")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = _parser().parse_args(_words(sys.argv[1:] if argv is None else argv))
    try:
        status, reason = _run_command(arguments)
    except KeyboardInterrupt as error:
        # A run that was stopped says where (faults.Stopped), and SIGTERM is no failure.
        again = "; the same command with --resume continues" if hasattr(arguments, "resume") else ""
        reason = str(error) or "interrupted" + again
        _say(reason)
        status = getattr(error, "status", 130)
    except BrokenPipeError:
        # A pipe that is closed early (scorelab ... | head) is no error of ours.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status, reason = 1, "standard output was closed"
    if (hosts := _hosts()) is not None:
        if reason:
            hosts.leave(status, reason)
        hosts.finish()
    return status


def _words(argv: Sequence[str]) -> list[str]:
    """The command in full: ``pretrained NAME`` is ``pretrained show NAME``."""
    words = list(argv)
    if words[:1] == ["pretrained"] and len(words) > 1 and words[1] not in _PRETRAINED and not words[1].startswith("-"):
        words.insert(1, "show")
    return words


def _run_command(arguments: argparse.Namespace) -> tuple[int, str]:
    """The exit status, and what has failed."""
    import warnings

    from scorelab.errors import ConfigError

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            _join(arguments)
            arguments.command(arguments)
        except ConfigError as error:
            if arguments.debug:
                raise
            _say(f"error: {error}")
            return 2, str(error)
        except BrokenPipeError:
            raise
        except (FloatingPointError, OSError, MemoryError) as error:
            if arguments.debug:
                raise
            _say(f"failed: {error or type(error).__name__}")
            return 1, str(error) or type(error).__name__
        except Exception:
            if (hosts := _hosts()) is not None:
                hosts.await_loss()
            raise
    return 0, ""


def _hosts():
    """The module of the hosts where this is one of several, else None; not imported by a process that is alone."""
    hosts = sys.modules.get("scorelab.hosts")
    return hosts if hosts is not None and hosts.count() > 1 else None


def _say(text: str) -> None:
    hosts = _hosts()
    print(f"scorelab: {'' if hosts is None else hosts.prefix()}{text}", file=sys.stderr)


def _join(arguments: argparse.Namespace) -> None:
    """Meet the other hosts, where the command says that there are some."""
    given = {name: value for name in ("hosts", "host", "coordinator") if (value := getattr(arguments, name, None)) is not None}
    detect, timeout = getattr(arguments, "distributed", False), getattr(arguments, "host_timeout", None)
    if not given and not detect and timeout is None:
        return
    from scorelab import hosts
    from scorelab.errors import ConfigError

    if not given and not detect:
        raise ConfigError(
            f"--host-timeout {timeout} without other hosts: expected --hosts, --host and --coordinator, or --distributed"
        )
    there = " ".join(f"--{name} {value}" for name, value in given.items())
    if detect and given:
        raise ConfigError(f"--distributed with {there}: expected one of the two")
    if not detect and given.get("hosts") != 1 and len(given) < 3:
        missing = " and ".join(f"--{name}" for name in ("hosts", "host", "coordinator") if name not in given)
        raise ConfigError(f"{there} without {missing}: expected all three, or --distributed where JAX detects them")
    hosts.distributed(**given, **({} if timeout is None else dict(timeout=timeout)))


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Our own warnings as a person reads them; others with the place in the code that they are about. Host 0 speaks for all."""
    if (hosts := _hosts()) is not None and not hosts.first():
        return
    ours = category.__module__.partition(".")[0] == "scorelab"
    where = "" if ours else f" ({category.__name__}, {filename}:{lineno})"
    print(f"scorelab: warning: {message}{where}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="scorelab",
        description="Score-based diffusion experiments from config files.",
        epilog=EPILOG,
        formatter_class=formatter,
    )
    parser.add_argument("--version", action=_Version)
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
            help="override a value, such as 'experiment.Train.steps = 100'; may be repeated",
        )  # fmt: skip
        sub.add_argument("--workdir", type=_folder, metavar="DIR", help="where to write (default: runs/<full name of the config>)")
        sub.add_argument("--resume", action="store_true", help="continue the run in the work directory")
        _add_hosts(sub)

    sub = _command(commands, "sample", _sample, "sample the newest checkpoint of a work directory")
    sub.add_argument("workdir", type=_folder, metavar="WORKDIR")
    sub.add_argument("--n", type=_positive, help="number of samples (default: that of the config)")
    sub.add_argument("--seed", type=_seed, help="seed (default: that of the config)")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--name", type=_name, help="name of the set, beside the samples of the run")
    where.add_argument("--out", type=Path, metavar="FILE", help="write the set to this file (.npz)")
    _add_hosts(sub)

    sub = _command(commands, "evaluate", _evaluate, "evaluate the samples of a work directory and write report.html")
    sub.add_argument("workdir", type=_folder, metavar="WORKDIR")
    sub.add_argument("--n", type=_positive, help="number of samples that are compared (default: that of the config)")
    sub.add_argument("--name", type=_name, help="evaluate the set that `sample --name` made")

    sub = _command(commands, "data", _data, "find (or download) a data set and print what it is")
    sub.add_argument("name", metavar="NAME", help="digits, mnist, fashion_mnist, kmnist, cifar10, or a generated set")
    sub.add_argument("--split", help="one split (default: all)")
    sub.add_argument("--no-download", action="store_true", help="look on this machine only")

    sub = _command(commands, "figure", _figure, "make a figure of a paper by name, or list them")
    sub.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="such as 2510.02730/orders; with --list or --all part of one"
    )
    what = sub.add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list the figures, or all that is known of one")
    what.add_argument("--all", action="store_true", help="make all of them and compare their numbers with those on record")
    what.add_argument("--options", action="store_true", help="what --set may say of this figure")
    size = sub.add_mutually_exclusive_group()
    size.add_argument(
        "--full", dest="size", action="store_const", const="full", help="the full size, the default on an accelerator"
    )
    size.add_argument(
        "--small", dest="size", action="store_const", const="small", help="minutes on two cores, the default on a CPU"
    )
    sub.add_argument("--out", type=_folder, metavar="DIR", help="where to write (default: runs/figures/NAME/SIZE)")
    sub.add_argument("--again", action="store_true", help="measure anew what is kept of an earlier making")
    sub.add_argument("--set", dest="settings", action="append", default=[], metavar="OPTION=VALUE", help="may be repeated")

    sub = _command(commands, "sweep", _sweep, "run a config under every combination of values and seeds, with one table")
    sub.add_argument("config", metavar="CONFIG", help="a .gin file, or the name of a shipped one")
    sub.add_argument(
        "--grid", action="append", default=[], metavar="FIELD=[...]",
        help="values of a field, such as 'solvers.Heun.churn = [0.0, 10.0]'; may be repeated",
    )  # fmt: skip
    sub.add_argument("--seeds", type=_positive, default=1, help="experiments of each combination (default: 1)")
    sub.add_argument("--set", dest="overrides", action="append", default=[], metavar="BINDING", help="a value of all of them")
    sub.add_argument("--out", type=_folder, metavar="DIR", help="where to write (default: runs/sweeps/<full name of the config>)")
    sub.add_argument("--jobs", type=_positive, default=1, help="runs at the same time on this machine (default: 1)")
    sub.add_argument(
        "--cluster", action="append", metavar="NAME=VALUE",
        help="run through submitit with these parameters, such as cluster=slurm, slurm_partition=gpu; may be repeated",
    )  # fmt: skip

    sub = _command(commands, "compare", _compare, "show runs beside one another on one page, with what differs")
    sub.add_argument("workdirs", type=_folder, nargs="+", metavar="WORKDIR")
    sub.add_argument("--out", type=Path, default=Path("compare.html"), metavar="FILE", help="the page (default: compare.html)")

    sub = _command(commands, "configs", _configs, "list the experiments that can be run by name")
    sub.add_argument("pattern", nargs="?", default="", metavar="PART", help="part of a name, such as mnist (default: all)")

    _add_pretrained(commands)

    _command(commands, "doctor", _doctor, "print versions, devices and data, and test this machine against exact laws")
    return parser


def _add_hosts(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("several hosts", "the same command on each, with a work directory that all of them see")
    group.add_argument("--hosts", type=_positive, metavar="N", help="how many there are")
    group.add_argument("--host", type=_host, metavar="I", help="which of them this is, from 0")
    group.add_argument("--coordinator", metavar="ADDRESS:PORT", help="where the others reach host 0")
    group.add_argument("--distributed", action="store_true", help="all three as JAX detects them: SLURM, Cloud TPU, Kubernetes")
    group.add_argument("--host-timeout", type=_positive, metavar="SECONDS", help="within which all have to come (default: 300)")


def _add_pretrained(commands) -> None:
    text = "trained models of the package, and published checkpoints: list, show, fetch, convert, check"
    actions = _command(commands, "pretrained", _pretrained, text).add_subparsers(metavar="ACTION")
    _command(actions, "list", _pretrained, "list the models of the package and the published checkpoints (the default)")
    sub = _command(actions, "show", _pretrained, "print the card of a model, or what is known of a published checkpoint")
    sub.add_argument("name", metavar="NAME", help="such as digits-edm; `pretrained NAME` is the same")
    text = "download a published checkpoint from its repository and convert it; needs the package huggingface-hub"
    sub = _command(actions, "fetch", _fetch, text)
    sub.add_argument("name", metavar="NAME", help="of a published checkpoint that list has, such as ddpm-cifar10-32")
    sub.add_argument("--out", type=_folder, metavar="DIR", help="a new folder (default: one below the folder for downloads)")
    sub.add_argument("--revision", metavar="COMMIT", help="of the repository (default: its newest commit, which is written down)")
    sub = _command(actions, "convert", _convert, "write a checkpoint as safetensors, without torch and without running it")
    sub.add_argument(
        "source",
        type=Path,
        metavar="SOURCE",
        help="a .pkl, .pth, .bin or .safetensors file, or a folder of diffusers: a model or a pipeline",
    )
    sub.add_argument("--out", type=_folder, metavar="DIR", help="a new folder (default: one below the folder for downloads)")
    sub.add_argument("--name", type=_name, help="of the model (default: that of the source)")
    sub.add_argument("--entry", help="of the outermost dict, such as state_dict, where several have tensors")
    sub.add_argument("--licence", help="of the weights (default: that of a published checkpoint of this name)")
    sub.add_argument("--url", help="where the source comes from")
    sub = _command(actions, "check", _check, "compare hashes of a converted folder, or print what a checkpoint holds")
    sub.add_argument("source", type=Path, metavar="SOURCE", help="a converted folder, a checkpoint, or a folder of diffusers")


def _command(commands, name: str, command, text: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
    if command not in (_data, _configs, _pretrained, _fetch, _convert, _check, _doctor, _figure, _sweep):
        help = "let a config that comes with data (a work directory, a kept model) import any code"
        sub.add_argument("--trust", action="store_true", help=help)
    sub.set_defaults(command=command)
    return sub


class _Version(argparse.Action):
    """Prints the version; looking it up takes as long as everything else, so not for other commands."""

    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, dest=argparse.SUPPRESS, nargs=0, help="show the version and exit")

    def __call__(self, parser, namespace, values, option_string=None):
        import importlib.metadata

        try:
            version = importlib.metadata.version("scorelab")
        except importlib.metadata.PackageNotFoundError:
            version = "(not installed)"
        print(f"scorelab {version}")
        parser.exit()


def _integer(text: str, low: int, high: int | None, expected: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < low or (high is not None and value > high):
        raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
    return value


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("'': expected a folder")
    return Path(text)


def _positive(text: str) -> int:
    return _integer(text, 1, None, "an integer >= 1")


def _host(text: str) -> int:
    return _integer(text, 0, None, "an integer >= 0")


def _seed(text: str) -> int:
    # scorelab.validation.SEEDS, whose import takes a second.
    return _integer(text, 0, 2**32 - 1, f"an integer seed in [0, {2**32 - 1}]")


def _name(text: str) -> str:
    if not text or text.startswith(".") or set(text) & set("/\\:") or text != text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name of a file, without a folder")
    return text


@contextmanager
def _importing() -> Iterator[None]:
    """Leave at once when interrupted: extension modules that are interrupted half way swallow it, or crash."""
    import signal
    import threading

    def leave(number, frame) -> None:
        os.write(2, b"scorelab: interrupted\n")
        os._exit(130)

    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    before = signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# Each command imports what it needs.
def _train(arguments: argparse.Namespace) -> None:
    _from_config(arguments, whole=False)


def _run(arguments: argparse.Namespace) -> None:
    _from_config(arguments, whole=True)


def _from_config(arguments: argparse.Namespace, *, whole: bool) -> None:
    # At once: the imports, the data and the measured moments take seconds.
    # An output that nobody reads is named where the work directory is known.
    with suppress(BrokenPipeError):
        if (hosts := _hosts()) is None or hosts.first():
            print(f"{'config':<9} reading {arguments.config} ...", flush=True)
    with _importing():
        from scorelab.run import pipeline

    pipeline.from_config(
        arguments.config,
        arguments.overrides,
        arguments.workdir,
        resume=arguments.resume,
        whole=whole,
        trust=arguments.trust,
    )


def _sample(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import pipeline

    pipeline.sample_workdir(
        arguments.workdir, n=arguments.n, seed=arguments.seed, name=arguments.name, out=arguments.out, trust=arguments.trust
    )


def _evaluate(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import pipeline

    pipeline.evaluate_workdir(arguments.workdir, n=arguments.n, name=arguments.name, trust=arguments.trust)


def _data(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run.datasets import print_data

    print_data(arguments.name, split=arguments.split, download=not arguments.no_download)


def _sweep(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import sweep

    cluster = None if arguments.cluster is None else sweep.parameters(arguments.cluster)
    sweep.sweep(
        arguments.config,
        arguments.grid,
        seeds=arguments.seeds,
        overrides=arguments.overrides,
        out=arguments.out or sweep.folder_of(arguments.config),
        jobs=arguments.jobs,
        cluster=cluster,
    )


def _compare(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.config.trust import allowing
        from scorelab.run.compare import compare

    with allowing("*") if arguments.trust else nullcontext():
        compare(arguments.workdirs, arguments.out)


def _configs(arguments: argparse.Namespace) -> None:
    from scorelab.run.shipped import print_configs

    print_configs(arguments.pattern)


def _pretrained(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import carried

    if (name := getattr(arguments, "name", None)) is None:
        carried.print_list()
    else:
        carried.print_model(name)


def _fetch(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import carried

    carried.fetch(arguments.name, arguments.out, revision=arguments.revision)


def _convert(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import carried

    how = {name: getattr(arguments, name) for name in ("name", "entry", "licence", "url")}
    carried.convert(arguments.source, arguments.out, **how)


def _check(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run import carried

    carried.check(arguments.source)


def _figure(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.errors import ConfigError
        from scorelab.run import gallery

    several = arguments.list or arguments.all
    if not arguments.name and not several:
        raise ConfigError("figure: expected a name, --list or --all")
    if several and arguments.settings:
        raise ConfigError(f"--set {arguments.settings[0]}: expected the name of one figure that it is for")
    if arguments.list:
        gallery.print_figures(arguments.name)
        return
    how = dict(size=arguments.size, out=arguments.out, again=arguments.again)
    if not arguments.all:
        gallery.make(arguments.name, **how, settings=arguments.settings, options=arguments.options)
    elif not gallery.make_all(arguments.name, **how):
        sys.exit(1)


def _doctor(arguments: argparse.Namespace) -> None:
    with _importing():
        from scorelab.run.doctor import doctor

    doctor()


if __name__ == "__main__":
    sys.exit(main())
