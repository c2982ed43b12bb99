"""One prepared run on a GPU: utilisation, overhead, weighted particles, compile times, and models trained to the end.

    python -m benchmarks.gpu                        # what is not kept yet, for twelve minutes at the most
    python -m benchmarks.gpu --only training smc    # some of the rows
    python -m benchmarks.gpu --tiny --out FOLDER    # everything at a size for a CPU, to see that it works

Every row is measured in a process of its own under a time limit, and kept in experiments/results/gpu/rows.json when it is there. A
row that is kept is not measured again. A training that meets its limit is saved and goes on in the next call. `table.md` beside
the rows is what they say.

Model FLOP utilisation is the FLOPs of the network, and three times those of a forward pass for a training step, over time and peak
(benchmarks/chips.py). Nothing is counted for what is computed again, for the optimiser or for the sampler. The FLOPs of a forward
pass are those that XLA counts in the program before it is compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chips import GPUS

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "experiments" / "results" / "gpu"
# Goals of the utilisation: (training, sampling).
GOALS = (0.4, 0.5)
STEPS = 18


class Size(NamedTuple):
    """A network at a size, with the examples of a training step and the samples of a call."""

    net: Any
    event: tuple[int, ...]
    batch: int
    samples: int


def size(name: str, tiny: bool) -> Size:
    """The networks of the table; the large ones as in :func:`benchmarks.compile_for.config`, without recomputation."""
    from benchmarks.compile_for import config
    from scorelab.models import nets

    if name == "unet":
        channels = (8, 8) if tiny else (64, 128, 128)
        net = nets.UNet(channels=channels, attention=(False,) * (len(channels) - 1) + (True,), dtype="bfloat16", heads=2)
        return Size(net, (28, 28, 1), 4 if tiny else 256, 8 if tiny else 4096)
    if tiny:
        small = dict(dit_b2=nets.DiT(patch=4, width=16, depth=1, heads=2), adm=nets.UNet(channels=(8, 8), heads=2))[name]
        return Size(small.clone(num_classes=10, dtype="bfloat16"), (8, 8, 4), 4, 4)
    large = config(name)
    return Size(large.net.clone(remat=False), large.event, dict(dit_b2=256, adm=64)[name], dict(dit_b2=256, adm=128)[name])


# What the rows measure ------------------------------------------------------------------------------------------------------


def peak() -> float | None:
    """FLOP/s of the device that is here; None where its peak is not in the table."""
    import jax

    kind = jax.devices()[0].device_kind
    return next((chip.peak for name, chip in GPUS.items() if name in kind), None)


def forward_flops(spec: Size, batch: int) -> float:
    """FLOPs of the network on a batch, with a label and a noise level for each example."""
    import jax
    import jax.numpy as jnp

    shape = jax.ShapeDtypeStruct
    arguments = shape((batch, *spec.event), jnp.float32), shape((batch,), jnp.float32)
    labels = shape((batch,), jnp.int32) if spec.net.num_classes else None
    params = jax.eval_shape(spec.net.init, jax.random.key(0), *arguments, labels)
    return jax.jit(spec.net.apply).lower(params, *arguments, labels).cost_analysis()["flops"]


def timed(call: Callable[[], Any], rounds: int) -> dict[str, float]:
    """Seconds of the first call, which compiles, and the median and quartiles of those after it."""
    import jax
    import numpy as np

    def seconds():
        began = time.perf_counter()
        jax.block_until_ready(call())
        return time.perf_counter() - began

    first, later = seconds(), [seconds() for _ in range(rounds)]
    low, middle, high = np.quantile(later, [0.25, 0.5, 0.75])
    return dict(first=first, seconds=float(middle), low=float(low), high=float(high))


def utilisation(flops: float, found: dict[str, float], goal: float) -> dict[str, Any]:
    """What a row of the table holds of a program of so many FLOPs; no share of the peak where that is not known."""
    most = peak()
    share = {} if most is None else dict(share=flops / found["seconds"] / most, goal=goal)
    return dict(**found, tflops=flops / found["seconds"] / 1e12, **share)


def bound(spec: Size) -> Any:
    """The network of a row as a model, with parameters that are not those of its start."""
    import jax
    import jax.numpy as jnp

    from benchmarks.common import EDM, perturbed
    from scorelab.models import Denoiser

    denoiser = Denoiser(net=spec.net, process=EDM)
    labels = jnp.zeros(1, jnp.int32) if spec.net.num_classes else None
    return denoiser.bind(perturbed(jax.jit(denoiser.init)(jax.random.key(0), jnp.zeros((1, *spec.event)), labels)))


def training(name: str, tiny: bool) -> dict[str, Any]:
    """Steps of ``fit`` on a batch that lies on the device, ten in a row, as ``fit`` calls them ahead of the device."""
    import jax
    import numpy as np
    import optax

    import scorelab as sl
    from benchmarks.common import EDM
    from scorelab.training.loop import compiled

    spec = size(name, tiny)
    rng = np.random.default_rng(0)
    batch = {"x": rng.normal(0, 0.5, (spec.batch, *spec.event)).astype(np.float32)}
    batch["label"] = rng.integers(0, 10, spec.batch).astype(np.int32)
    loss = sl.losses.DenoisingScoreMatching(EDM, label_dropout=0.1, null_label=spec.net.num_classes)
    learner = sl.training.ScoreLearner(sl.models.Denoiser(net=spec.net, process=EDM), loss, optax.adam(1e-4))
    mesh = sl.training.data_mesh(jax.devices()[:1])
    init, update = compiled(learner, sl.training.Prepare(cond="label"), mesh)
    batch, key = jax.device_put(batch), jax.random.key(0)
    states, each = [init(batch, key)], 2 if tiny else 10

    def steps():
        for _ in range(each):
            states[0], metrics = update(states[0], batch, key)
        return metrics

    found = timed(steps, 2 if tiny else 7)
    found |= {part: found[part] / each for part in ("seconds", "low", "high")}
    return utilisation(3 * forward_flops(spec, spec.batch), found, GOALS[0]) | dict(batch=spec.batch, memory=memory())


def memory() -> float | None:
    """Bytes of the device at the highest; None where it does not say."""
    import jax

    said = jax.devices()[0].memory_stats() or {}
    return said.get("peak_bytes_in_use")


def sampling(name: str, tiny: bool) -> dict[str, Any]:
    """``sample`` with Heun, conditioned."""
    import jax
    import jax.numpy as jnp

    import scorelab as sl

    spec = size(name, tiny)
    steps, n = 2 if tiny else STEPS, spec.samples
    labels = jnp.arange(n, dtype=jnp.int32) % 10
    options = dict(solver=sl.solvers.Heun(), grid=sl.grids.Karras(steps), key=jax.random.key(1), shape=(n, *spec.event))
    model = bound(spec)
    found = timed(lambda: sl.sample(model, cond=labels, chunk=n, **options).x, 1 if tiny else 5)
    calls = 2 * steps - 1
    return utilisation(calls * forward_flops(spec, n), found, GOALS[1]) | dict(batch=n, calls=calls, memory=memory())


def overhead(name: str, tiny: bool) -> dict[str, Any]:
    """``sample`` over its calls of the network, without a condition: the median ratio of each solver."""
    import scorelab as sl
    from benchmarks.common import bare_calls, drawn, in_turns

    spec = size(name, tiny)
    n, steps = min(spec.samples, 256), 2 if tiny else STEPS
    grid, model = sl.grids.Karras(steps), bound(spec)
    chosen = {
        "Heun": (sl.solvers.Heun(), 2 * steps - 1),
        "DPM-Solver++ 2M": (sl.solvers.DPMSolverPP(order=2), steps),
        "Euler-Maruyama": (sl.solvers.EulerMaruyama(), steps),
    }
    functions = {"bare": bare_calls(model, spec.event, n, steps)}
    functions |= {title: drawn(model, (n, *spec.event), solver, grid, chunk=n) for title, (solver, _) in chosen.items()}
    calls = dict(bare=steps, **{title: count for title, (_, count) in chosen.items()})
    rows = in_turns(functions, 2 if tiny else 7, base="bare", calls=calls)
    return dict(batch=n) | {row.case: row.value for row in rows}


def smc(name: str, tiny: bool) -> dict[str, Any]:
    """A population that is weighed and resampled in every step, over as many plain samples."""
    import scorelab as sl
    from benchmarks.common import drawn, in_turns
    from benchmarks.smc import brightness

    spec = size(name, tiny)
    n, grid, base = spec.samples, sl.grids.Karras(2 if tiny else STEPS), sl.solvers.DDIM(eta=1.0)
    weighed = sl.fk.FeynmanKac(base=base, potential=sl.fk.Difference(brightness, 5.0), policy=sl.fk.Always())
    model = bound(spec)
    functions = {
        title: drawn(model, (n, *spec.event), solver, grid, chunk=n) for title, solver in dict(plain=base, smc=weighed).items()
    }
    (row,) = in_turns(functions, 2 if tiny else 7, base="plain")
    return dict(particles=n, ratio=row.value, low=row.low, high=row.high, plain=row.base)


def compiling(name: str, tiny: bool) -> dict[str, Any]:
    """Seconds to trace and compile the network, and a sampler of it over that."""
    import jax
    import jax.numpy as jnp

    import scorelab as sl
    from benchmarks.compilation import _sampler, _seconds

    spec = size(name, tiny)
    model, n = bound(spec), 4 if tiny else 64
    net = jax.jit(lambda m, y, t: m.denoiser.network_output(m.params, y, t))
    found = {"network": [], "Heun": []}
    for _ in range(1 if tiny else 3):
        jax.clear_caches()
        found["network"].append(_seconds(lambda: net.lower(model, jnp.zeros((n, *spec.event)), jnp.float32(1.0))))
        jax.clear_caches()
        found["Heun"].append(_sampler(model, spec.event, n, sl.solvers.Heun(), STEPS))
    each = {title: statistics.median(seconds) for title, seconds in found.items()}
    return dict(seconds=each["network"], sampler=each["Heun"], ratio=each["Heun"] / each["network"])


# What is trained ------------------------------------------------------------------------------------------------------------

FASHION = ("data.Named.name = 'fashion_mnist'", "metrics.small_cnn.dataset_name = 'fashion_mnist'")
# Ends on the way, and bfloat16 in the networks that have it.
LONG = ("nets.UNet.dtype = 'bfloat16'", "experiment.Train.checkpoint_every = 1000")
TINY = (
    "experiment.Train.batch_size = 8", "experiment.Train.log_every = 2", "experiment.Train.checkpoint_every = 2", "STEPS = 4",
    "experiment.Sample.n = 64", "experiment.ImageEvaluation.n = 64",
)  # fmt: skip
TINY_NET = (
    "WARMUP = 2", "nets.UNet.channels = (8, 8)", "nets.UNet.blocks = 1", "nets.UNet.attention = (False, True)",
    "nets.UNet.heads = 2", "nets.UNet.dtype = 'float32'",
)  # fmt: skip
CONFIGS = {
    "EDM": "mnist/edm",
    "multiplicative": "paper/2510.02730/mnist_gpu",
    "interpolant": str(ROOT / "benchmarks" / "mnist_interpolant.gin"),
}


class Run(NamedTuple):
    """A training by its config, and what is bound otherwise."""

    config: str
    bindings: tuple[str, ...]
    small: tuple[str, ...]


def runs() -> dict[str, Run]:
    """The trainings; the distilled one is from a teacher that the package carries, which there is for MNIST alone."""
    steps = ("STEPS = 12000",)
    small = {name: (*TINY_NET, f"grids.{'Arcsine' if name == 'interpolant' else 'Karras'}.steps = 2") for name in CONFIGS}
    found = {f"trained MNIST {name}": Run(config, LONG + steps, small[name]) for name, config in CONFIGS.items()}
    found["trained MNIST distilled"] = Run("paper/2502.15681/mnist", ("STEPS = 6000", "experiment.Sample.n = 10000",
        "experiment.ImageEvaluation.n = 10000", "experiment.Train.checkpoint_every = 1000"), ())  # fmt: skip
    found |= {f"trained Fashion-MNIST {name}": Run(config, LONG + steps + FASHION, small[name]) for name, config in CONFIGS.items()}
    return found


def trained(name: str, run: Run, folder: Path, tiny: bool, limit: float) -> dict[str, Any] | str:
    """The metrics of a training, or what kept it from its end; it goes on where it was."""
    workdir = folder / "runs" / name.replace(" ", "_").lower()
    bindings = (*run.bindings, *(TINY + run.small if tiny else ()))
    command = [sys.executable, "-m", "scorelab.run.cli", "run", run.config, "--workdir", str(workdir), "--resume"]
    command += [part for binding in bindings for part in ("--set", binding)]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        # A signal is a request to save and to end.
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        return f"it goes on in the next call, after {limit:.0f} s"
    if process.returncode:
        return (said.strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
    file = workdir / "metrics.json"
    if not file.is_file():
        return "it ended without metrics.json"
    values = {f"{metric['name']}": metric["value"] for metric in json.loads(file.read_text())["metrics"]}
    return dict(seconds=time.monotonic() - began, **values)


# The rows -------------------------------------------------------------------------------------------------------------------

# Name -> (function, network, seconds).
MEASURED: dict[str, tuple[Callable[[str, bool], dict[str, Any]], str, float]] = {
    "training dit_b2": (training, "dit_b2", 90),
    "sampling dit_b2": (sampling, "dit_b2", 60),
    "training adm": (training, "adm", 150),
    "sampling adm": (sampling, "adm", 90),
    "overhead dit_b2": (overhead, "dit_b2", 90),
    "overhead unet": (overhead, "unet", 60),
    "smc unet": (smc, "unet", 60),
    "compiling dit_b2": (compiling, "dit_b2", 90),
    "compiling unet": (compiling, "unet", 60),
}
TRAINING_LIMIT = 120.0


def measured(name: str, tiny: bool, limit: float) -> dict[str, Any] | str:
    """A row from a process of its own, or what kept it from being there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.gpu", "--row", name, "--out", str(out), *(["--tiny"] if tiny else [])]
        try:
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return f"it was not measured in {limit:.0f} s"
        if not out.exists():
            return (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return json.loads(out.read_text())


def table(rows: dict[str, dict[str, Any]]) -> str:
    """The rows as text."""
    lines = ["| row | device | numbers |", "|---|---|---|"]
    for name, row in rows.items():
        numbers = [f"{key} {_short(value)}" for key, value in row.items() if key not in ("device", "jax") and value is not None]
        lines.append(f"| {name} | {row['device']} | {', '.join(numbers)} |")
    return "\n".join(lines) + "\n"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> dict[str, str]:
    """Device and version, from a process of its own: this one must not hold the memory of the device."""
    said = "dict(device=jax.devices()[0].device_kind, jax=jax.__version__, kind=jax.default_backend())"
    code = f"import jax, json; print(json.dumps({said}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def chosen(only: list[str]) -> list[str]:
    """The rows whose names have one of the words in them.

    Raises:
        SystemExit: a word that is in none.
    """
    names = [*MEASURED, *runs()]
    for word in only:
        if not any(word in name for name in names):
            raise SystemExit(f"benchmarks.gpu: --only {word}: expected a part of one of {', '.join(names)}")
    return [name for name in names if not only or any(word in name for word in only)]


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 where every row is there, 1 where one is left, 2 for what cannot be asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="rows whose names have one of these in them")
    parser.add_argument("--seconds", type=float, default=720, help="for all rows together")
    parser.add_argument("--tiny", action="store_true", help="small networks on any device; needs --out")
    parser.add_argument("--out", type=Path, default=KEPT)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.seconds > 0:
        parser.error(f"--seconds {options.seconds}: expected a number above 0")
    if options.tiny and options.out == KEPT:
        parser.error("--tiny without --out: expected a folder, since the kept rows are those of a GPU")
    if options.row:
        function, network, _ = MEASURED[options.row]
        options.out.write_text(json.dumps(function(network, options.tiny)))
        return 0
    names = chosen(options.only)
    here = machine()
    if here.pop("kind") != "gpu" and not options.tiny:
        parser.error(f"the device is a {here['device']}: expected a GPU, or --tiny")
    began, file = time.monotonic(), options.out / "rows.json"
    options.out.mkdir(parents=True, exist_ok=True)
    rows = json.loads(file.read_text()) if file.exists() else {}
    # A CPU is slower than a GPU, even at small things.
    left, slack = [], 10 if options.tiny else 1
    for name in names:
        if name in rows:
            continue
        remaining = options.seconds - (time.monotonic() - began)
        if remaining < 10:
            left.append(name)
            print(f"{name} is left: no time", flush=True)
            continue
        if name in MEASURED:
            found = measured(name, options.tiny, min(MEASURED[name][2] * slack, remaining))
        else:
            found = trained(name, runs()[name], options.out, options.tiny, min(TRAINING_LIMIT * slack, remaining))
        if isinstance(found, str):
            left.append(name)
            print(f"{name} is left: {found}", flush=True)
            continue
        rows[name] = here | found
        _write(file, json.dumps(rows, indent=1) + "\n")
        _write(options.out / "table.md", table(rows))
        print(table({name: rows[name]}).splitlines()[-1], flush=True)
    return 1 if left else 0


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
