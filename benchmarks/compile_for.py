"""Programs compiled ahead of time for TPUs that are not there: what they need, what they exchange, and what limits them.

    python -m benchmarks.compile_for v5e:2x2                          # every program of every network, under every mesh
    python -m benchmarks.compile_for v5e:16x16 dit_b2 --programs training --meshes data sharded
    python -m benchmarks.compile_for v5e:2x2 small --ops 10           # where the compiler expects the cycles to go
    python -m benchmarks.compile_for --table                          # the rows that are kept, as text

It needs libtpu (pip install '.[tpu]') and no TPU. A topology is a generation and the sides of its grid of chips: v5e:2x2 (4 chips),
v5e:8x8, v5e:16x16, v6e:2x2, v5p:2x2x1, v4:4x4x4.

Every program is the one that `fit` and `sample` run, compiled in a process of its own. Its row is kept in
experiments/results/scaling/tpu.json as soon as it is there, and is not compiled again unless --again is given.

    training      a step of `fit`: loss, gradient, clipping, Adam, average of the parameters
    sampler       the walk of `sample` with Heun; numbers of a call of the model, the loop counted once
    smc           that with weighted particles that are resampled in every step, a population on each chip; likewise
    distillation  a step of f-distill: teacher, fake score and student

    data          parameters on every chip, the batch split
    sharded       parameters, optimiser and averages split over all chips as well; samplers as under data
    hybrid        likewise, with kernels split over groups of four chips that share their examples

A network of many equal blocks takes many minutes to compile. --depths 2 4 compiles two shallow ones and extrapolates, since what
a program needs is affine in the number of blocks; such rows say so.

Where a walk starts is drawn by a program of its own, once for all its steps. It is compiled as well, to know where the start lies,
and is in no row.

The times are bounds and no measurements. A bound is the larger of FLOPs over the peak and bytes over the bandwidth of the memory.
The bytes that have to be sent, over the bandwidth of the links, come in addition. `limit` names the largest of the three.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chips import TPUS, Chip
from benchmarks.hlo import collectives, cycles, loops

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "experiments" / "results" / "scaling"
PROGRAMS = ("training", "sampler", "smc", "distillation")
MESHES = ("data", "sharded", "hybrid")
CONFIGS = ("small", "dit_b2", "dit_xl2", "adm")
# Chips that split the kernels of a hybrid mesh among them.
MODEL = 4
# Calls of the model in a loop of the sampler: 18 steps of Heun.
STEPS = 18
# libtpu takes a topology where there is no TPU to ask for one; nothing is used that only one process may use.
ALONE = dict(
    TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost", JAX_PLATFORMS="cpu",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
)  # fmt: skip


class Config(NamedTuple):
    """A network at a size of the literature.

    Attributes:
        net: the network, bfloat16.
        event: the shape of a sample.
        batch: examples on a chip in training; half of it in a distillation, which holds three networks.
        sampled: samples on a chip.
    """

    net: Any
    event: tuple[int, ...]
    batch: int
    sampled: int


def config(name: str) -> Config:
    """A network by name, with 1000 classes, and its batches; the blocks of the large ones are computed again in the gradient.

    DiT-B/2 and DiT-XL/2 are those of arXiv 2212.09748, table 1, on latents of 256 x 256 images. The U-Net of ADM for 64 x 64 images
    is that of arXiv 2105.05233, table 4: 192 channels, three blocks, attention at 32, 16 and 8. It has six heads everywhere.
    """
    from scorelab.models import nets

    common = dict(num_classes=1000, dtype="bfloat16")
    latents = (32, 32, 4)
    match name:
        case "small":
            return Config(nets.DiT(patch=4, width=128, depth=1, heads=2, **common), (16, 16, 4), 16, 16)
        case "dit_b2":
            return Config(nets.DiT(patch=2, width=768, depth=12, heads=12, **common), latents, 16, 64)
        case "dit_xl2":
            return Config(nets.DiT(patch=2, width=1152, depth=28, heads=16, remat=True, **common), latents, 16, 32)
        case "adm":
            attention = (False, True, True, True)
            net = nets.UNet(channels=(192, 384, 576, 768), blocks=3, attention=attention, heads=6, remat=True, **common)
            return Config(net, (64, 64, 3), 16, 32)
    raise ValueError(f"compile_for: config {name}: expected one of {', '.join(CONFIGS)}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one program needs on one chip.

    Attributes:
        topology: as asked for.
        chips: their number.
        config: the network.
        program: one of ``PROGRAMS``.
        mesh: one of ``MESHES``.
        batch: examples, samples or particles on a chip.
        parameters: of the network.
        calls: how often the loop of the program runs, 1 without one; all that follows is of one trip.
        flops: as XLA counts them.
        bytes: between memory and chip, likewise.
        arguments: bytes of parameters, optimiser, averages and batch.
        temporaries: bytes beside them.
        memory: bytes altogether, with what is returned and the program; what it would need where it does not fit.
        fits: whether that is there.
        exchanged: kind of collective -> (how many, bytes that each chip has to send); those of a few numbers are ``"few numbers"``.
        compute: seconds, FLOPs over the peak.
        traffic: seconds, bytes over the bandwidth of the memory.
        network: seconds, bytes sent over those of the links.
        compiled: seconds that it took to compile.
        jax: version.
        depths: the two depths that were compiled, from which the row is extrapolated; None where the network itself was.
    """

    topology: str
    chips: int
    config: str
    program: str
    mesh: str
    batch: int
    parameters: int
    calls: int
    flops: float
    bytes: float
    arguments: float
    temporaries: float
    memory: float
    fits: bool
    exchanged: dict[str, tuple[int, float]]
    compute: float
    traffic: float
    network: float
    compiled: float
    jax: str
    depths: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What a row is kept by."""
        return f"{self.topology} {self.config} {self.program} {self.mesh} {self.batch} {self.depths or ''}".strip()

    @property
    def bound(self) -> float:
        """Seconds of a step, or of a call of the model, at the least, where nothing is sent while something is computed."""
        return max(self.compute, self.traffic) + self.network

    @property
    def limit(self) -> str:
        """What takes the longest."""
        if not self.fits:
            return "memory"
        return max((self.compute, "compute"), (self.traffic, "bandwidth"), (self.network, "links"))[1]


# The programs ---------------------------------------------------------------------------------------------------------------


def sharding_of(kind: str, chips: int) -> Any:
    """How parameters and batch are split.

    Raises:
        ValueError: no such kind, or a grid of chips that it does not divide.
    """
    from scorelab.training import Sharding

    model = MODEL if chips > MODEL else 2
    match kind:
        case "data":
            return Sharding()
        case "sharded":
            return Sharding(fully_sharded=True)
        case "hybrid" if chips % model == 0:
            return Sharding(model=model, fully_sharded=True)
        case "hybrid":
            raise ValueError(f"compile_for: mesh hybrid on {chips} chips: expected a multiple of {model}")
    raise ValueError(f"compile_for: mesh {kind}: expected one of {', '.join(MESHES)}")


class Place(NamedTuple):
    """Where a program runs.

    Attributes:
        sharding: of the state.
        mesh: of the chips.
        batch: examples, samples or particles on all of them.
    """

    sharding: Any
    mesh: Any
    batch: int

    def whole(self, tree: Any) -> Any:
        """Shapes of parameters, or of a state, split as the sharding says."""
        return self.sharding.place(tree, self.mesh)

    def rows(self, tree: Any) -> Any:
        """Shapes of a batch, split over its axis."""
        import jax
        from jax.sharding import NamedSharding, PartitionSpec

        place = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree)


def process() -> Any:
    """The process of all configs."""
    import scorelab as sl

    return sl.processes.Gaussian(schedule=sl.schedules.EDM())


def key_shape() -> Any:
    """The shape of a key."""
    import jax

    return jax.eval_shape(lambda: jax.random.key(0))


def parameters(config: Config) -> tuple[Any, Any]:
    """The denoiser of a config, and the shapes of its parameters."""
    import jax
    import jax.numpy as jnp

    import scorelab as sl

    denoiser = sl.models.Denoiser(net=config.net, process=process())
    init = lambda key: denoiser.init(key, jnp.zeros((1, *config.event)), jnp.zeros(1, jnp.int32))
    return denoiser, jax.eval_shape(init, key_shape())


def step(learner: Any, config: Config, place: Place) -> Any:
    """A step of ``fit``."""
    import jax
    import jax.numpy as jnp

    from scorelab.training import Prepare
    from scorelab.training.loop import compiled

    prepare = Prepare(cond="label")
    shapes = jax.ShapeDtypeStruct
    examples = {"x": shapes((place.batch, *config.event), jnp.float32), "label": shapes((place.batch,), jnp.int32)}
    state = jax.eval_shape(lambda learner, examples, key: learner.init(key, prepare(examples)), learner, examples, key_shape())
    _, update = compiled(learner, prepare, place.mesh, sharding=place.sharding)
    return update.lower(place.whole(state), place.rows(examples), place.whole(key_shape()))


def training(config: Config, place: Place) -> Any:
    """A step of a :class:`scorelab.training.ScoreLearner`."""
    import optax

    import scorelab as sl

    loss = sl.losses.DenoisingScoreMatching(process(), label_dropout=0.1, null_label=config.net.num_classes)
    denoiser = sl.models.Denoiser(net=config.net, process=process())
    return step(sl.training.ScoreLearner(denoiser, loss, optax.adam(1e-4)), config, place)


def distillation(config: Config, place: Place) -> Any:
    """A step of reverse KL by f-distill."""
    import jax

    import scorelab as sl

    denoiser, shapes = parameters(config)
    parts = dict(divergence=sl.distill.ReverseKL(), ratio=sl.distill.UnitRatio(), n_aux=1)
    learner = jax.eval_shape(lambda params: sl.distill.FDistill(denoiser.bind(params), **parts), shapes)
    return step(learner, config, place)


def walked(config: Config, place: Place, solver: Any) -> Any:
    """The walk of a chunk of ``sample``, from where its start lies; drawing that is a program of its own, which is not counted."""
    import jax
    import jax.numpy as jnp

    import scorelab as sl
    from scorelab import sampling, walk
    from scorelab.solvers.base import population_size

    denoiser, shapes = parameters(config)
    ids = place.rows(jax.ShapeDtypeStruct((place.batch,), jnp.int32))
    times = sl.grids.Karras(STEPS).times(process())
    rows = walk.working_precision(solver.table(process(), times))
    # `sample` brings parameters together along the axis of the samples before it walks.
    params = replace(place.sharding, fully_sharded=False).place(shapes, place.mesh)
    plan = walk.Plan(
        denoiser.bind(params), place.batch, config.event, population_size(solver, place.batch), process().prior(), times, rows, ids
    )
    visit = walk.Visit(plan.model, place.whole(key_shape()), ids, ids)
    with sampling._spanning(plan, place.mesh):
        drawn = walk.drawn.lower(*sampling._begins(plan, visit), event=plan.event).compile()
        lies = lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)
        begun = jax.tree.map(lies, drawn.out_info, drawn.output_shardings)
        return sampling._walk.lower(walk.Held(solver), visit, begun, plan.rows, keep="last")


def sampler(config: Config, place: Place) -> Any:
    """The walk of ``sample`` with Heun."""
    import scorelab as sl

    return walked(config, place, sl.solvers.Heun())


def smc(config: Config, place: Place) -> Any:
    """The walk of ``sample`` with a population in each row of the mesh, weighed and resampled in every step."""
    import scorelab as sl
    from benchmarks.smc import brightness

    potential = sl.fk.Difference(brightness, 5.0)
    population = place.batch // place.mesh.shape["data"]
    base = sl.solvers.DDIM(eta=1.0)
    return walked(config, place, sl.fk.FeynmanKac(base=base, potential=potential, policy=sl.fk.Always(), particles=population))


def lowering(program: str) -> Callable[[Config, Place], Any]:
    """The function that lowers a program for the chips of a mesh."""
    return dict(training=training, sampler=sampler, smc=smc, distillation=distillation)[program]


# One row --------------------------------------------------------------------------------------------------------------------


def devices_of(topology: str) -> list:
    """The chips of a topology that is compiled for.

    Raises:
        ValueError: there is none of that name; the message says what libtpu says.
    """
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:
        raise ValueError(f"compile_for: topology {topology}: {str(error).splitlines()[0]}") from error


def depth_of(spec: Config) -> str:
    """The field of the network that says how many blocks it has."""
    return "depth" if hasattr(spec.net, "depth") else "blocks"


def extrapolated(name: str, shallow: Row, deeper: Row, chip: Chip, depths: tuple[int, int]) -> Row:
    """The row of a network from those of shallower ones: what a block needs is added as often as there are blocks.

    Numbers of a stack of equal blocks are affine in their number, up to what the compiler does at its ends.
    """
    spec = config(name)
    blocks = (getattr(spec.net, depth_of(spec)) - depths[0]) / (depths[1] - depths[0])
    line = lambda a, b: a + blocks * (b - a)
    fields = ("flops", "bytes", "arguments", "temporaries", "memory", "compute", "traffic", "network")
    found = {field: line(getattr(shallow, field), getattr(deeper, field)) for field in fields}
    exchanged = {}
    for kind in {**shallow.exchanged, **deeper.exchanged}:
        (many, sent), (more, further) = (row.exchanged.get(kind, (0, 0.0)) for row in (shallow, deeper))
        exchanged[kind] = max(1, round(line(many, more))), max(0.0, line(sent, further))
    return replace(
        deeper, **found, exchanged=exchanged, depths=depths, parameters=round(line(shallow.parameters, deeper.parameters)),
        fits=found["memory"] <= chip.hbm, compiled=shallow.compiled + deeper.compiled,
    )  # fmt: skip


def examined(
    topology: str, name: str, program: str, kind: str, batch: int | None, ops: int = 0, depths: tuple[int, int] | None = None
) -> Row:
    """Compile one program, or two of shallower networks, and read what it needs.

    Raises:
        ValueError: a topology, a config or a mesh that is none.
    """
    chip = TPUS[topology.partition(":")[0]]
    if depths is None:
        return compiled_row(topology, name, config(name), program, kind, batch, ops)
    field = depth_of(config(name))
    if (most := getattr(config(name).net, field)) < depths[1]:
        raise ValueError(f"compile_for: --depths {depths[0]} {depths[1]} of {name}: expected at most its {field}, {most}")
    small = [config(name)._replace(net=config(name).net.clone(**{field: depth})) for depth in depths]
    rows = [compiled_row(topology, name, spec, program, kind, batch, ops) for spec in small]
    if not all(row.flops for row in rows):
        raise RuntimeError(f"compile_for: {name} of {depths[1]} blocks does not fit: expected a smaller --batch or fewer blocks")
    return extrapolated(name, *rows, chip, depths)


def compiled_row(topology: str, name: str, spec: Config, program: str, kind: str, batch: int | None, ops: int) -> Row:
    """The row of one program that is compiled.

    Raises:
        ValueError: a topology or a mesh that is none.
    """
    import jax

    devices = devices_of(topology)
    chip = TPUS[topology.partition(":")[0]]
    each = batch or dict(training=spec.batch, distillation=max(1, spec.batch // 2)).get(program, spec.sampled)
    sharding = sharding_of(kind, len(devices))
    place = Place(sharding, sharding.mesh(devices), each * len(devices))
    lowered = lowering(program)(spec, place)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters(spec)[1]))
    known = dict(
        topology=topology, chips=len(devices), config=name, program=program, mesh=kind, batch=each, parameters=count,
        jax=jax.__version__,
    )  # fmt: skip
    began = time.perf_counter()
    try:
        found = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return too_large(str(error), known, time.perf_counter() - began)
    took, text = time.perf_counter() - began, found.as_text()
    if ops:
        print_cycles(text, ops)
    return read(found.cost_analysis(), found.memory_analysis(), text, chip, known, took)


def read(costs: Any, memory: Any, text: str, chip: Chip, known: dict[str, Any], took: float) -> Row:
    """The row of a compiled program."""
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    needed += memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    found = collectives(text, known["chips"])
    # A sampler's costs are those of a trip: what is outside of its loop is small beside a network.
    calls = max([1, *loops(text)]) if known["program"] in ("sampler", "smc") else 1
    exchanged: dict[str, tuple[int, float]] = {}
    for each in found:
        kind = "few numbers" if each.small else each.kind
        many, sent = exchanged.get(kind, (0, 0.0))
        # Of the loop likewise one trip.
        exchanged[kind] = many + 1, sent + each.bytes / max(1, each.times)
    return Row(
        **known, calls=calls, flops=costs["flops"], bytes=costs["bytes accessed"], arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes, memory=needed, fits=needed <= chip.hbm, exchanged=exchanged,
        compute=costs["flops"] / chip.peak, traffic=costs["bytes accessed"] / chip.bandwidth,
        network=sum(sent for _, sent in exchanged.values()) / chip.link, compiled=took,
    )  # fmt: skip


def too_large(message: str, known: dict[str, Any], took: float) -> Row:
    """The row of a program that the compiler refused for its memory.

    Raises:
        RuntimeError: it was refused for another reason.
    """
    used = re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
    if not used:
        raise RuntimeError(f"compile_for: {message.splitlines()[0]}")
    needed = float(used.group(1)) * 2 ** (10 * (" KMGT".index(used.group(2))))
    nothing = dict.fromkeys(("flops", "bytes", "arguments", "temporaries", "compute", "traffic", "network"), 0.0)
    return Row(**known, **nothing, calls=1, memory=needed, fits=False, exchanged={}, compiled=took)


def print_cycles(text: str, count: int) -> None:
    """The operations on which the compiler expects the most cycles."""
    found = cycles(text)
    total = sum(found.values())
    for source, spent in found.most_common(count):
        print(f"{spent / total:6.1%}  {source}")


# The table ------------------------------------------------------------------------------------------------------------------

HEAD = (
    "| topology | network | program | mesh | a chip | GFLOP | GB moved | memory, GB | fits | sent, MB | collectives | bound, ms "
    "| links | limit |\n|---|---|---|---|---:|---:|---:|---:|---|---:|---|---:|---:|---|"
)


def line(row: Row) -> str:
    """A row as text."""
    blocks = "" if row.depths is None else f" ({row.depths[0]}, {row.depths[1]})"
    start = f"| {row.topology} | {row.config}{blocks} | {row.program} | {row.mesh} | {row.batch} "
    memory = f"| {row.memory / 1e9:.1f} | {'yes' if row.fits else 'no'} "
    if not row.flops:
        return f"{start}| | {memory}| | | | | memory |"
    kinds = ", ".join(f"{many} {kind}" for kind, (many, _) in sorted(row.exchanged.items())) or "none"
    sent = sum(sent for _, sent in row.exchanged.values())
    return (
        f"{start}| {row.flops / 1e9:.0f} | {row.bytes / 1e9:.2f} {memory}| {sent / 1e6:.1f} | {kinds} | {1e3 * row.bound:.2f} "
        f"| {row.network / row.bound:.0%} | {row.limit} |"
    )


def kept(folder: Path) -> dict[str, Row]:
    """The rows that are kept, by name."""
    path = folder / "tpu.json"
    return {row.name: row for row in map(_row, json.loads(path.read_text()))} if path.exists() else {}


def keep(rows: dict[str, Row], folder: Path) -> None:
    """Write the rows and their table, in the order of topology, config, program and mesh."""
    from scorelab.files import write_text

    orders = (list(CONFIGS), list(PROGRAMS), list(MESHES))
    place = lambda row: (
        row.chips,
        row.topology,
        *(o.index(v) for o, v in zip(orders, (row.config, row.program, row.mesh), strict=True)),
    )
    ordered = sorted(rows.values(), key=place)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "tpu.json", json.dumps([asdict(row) for row in ordered], indent=1) + "\n")
    write_text(folder / "tpu.txt", "\n".join([HEAD, *map(line, ordered)]) + "\n")


def _row(values: dict[str, Any]) -> Row:
    depths = values.get("depths")
    exchanged = {kind: tuple(pair) for kind, pair in values["exchanged"].items()}
    return Row(**values | dict(exchanged=exchanged, depths=None if depths is None else tuple(depths)))


# The command ----------------------------------------------------------------------------------------------------------------


def apart(arguments: list[str], timeout: float) -> tuple[int, str, Row | None]:
    """One row from a process of its own: its status, the last line of what it said, and the row."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks.compile_for", *arguments, "--row", str(out)]
        try:
            done = subprocess.run(command, cwd=ROOT, env=os.environ | ALONE, stderr=subprocess.PIPE, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            return 1, f"it was not compiled in {timeout:.0f} s", None
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        return done.returncode, said, _row(json.loads(out.read_text())) if out.exists() else None


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; ends with 2 and a message where it asks for what is not there."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compile_for", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("topology", nargs="?", metavar="TOPOLOGY")
    parser.add_argument("config", nargs="?", metavar="CONFIG", help=f"one of {', '.join(CONFIGS)}; all but small by default")
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--meshes", nargs="+", default=list(MESHES), choices=MESHES)
    parser.add_argument("--batch", type=int, help="examples, samples or particles on a chip")
    parser.add_argument(
        "--depths", type=int, nargs=2, metavar=("A", "B"), help="compile networks of A and of B blocks, and extrapolate from both"
    )
    parser.add_argument("--ops", type=int, default=0, metavar="N", help="print the N operations of the most expected cycles")
    parser.add_argument("--again", action="store_true", help="compile rows that are kept again")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for a row")
    parser.add_argument("--out", type=Path, default=KEPT, help="the folder of tpu.json and tpu.txt")
    parser.add_argument("--table", action="store_true", help="print the rows that are kept, and compile nothing")
    parser.add_argument("--row", type=Path, help=argparse.SUPPRESS)
    found = parser.parse_args(arguments)
    if found.table:
        return found
    if found.topology is None:
        parser.error("expected a TOPOLOGY such as v5e:2x2")
    flat = {"v5e": 2, "v6e": 2}
    shape = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", found.topology)
    sides = shape.group(2).split("x") if shape else []
    if not shape or shape.group(1) not in TPUS or len(sides) != flat.get(shape.group(1), 3):
        parser.error(f"TOPOLOGY = {found.topology}: expected such as v5e:2x2, v6e:4x4, v5p:2x2x1 or v4:4x4x4")
    if found.config is not None and found.config not in CONFIGS:
        parser.error(f"CONFIG = {found.config}: expected one of {', '.join(CONFIGS)}")
    for name, least in {"batch": 1, "timeout": 1, "ops": 0}.items():
        if (value := getattr(found, name)) is not None and not value >= least:
            parser.error(f"--{name} {value}: expected at least {least}")
    if found.depths is not None and not 1 <= found.depths[0] < found.depths[1]:
        parser.error(f"--depths {found.depths[0]} {found.depths[1]}: expected two numbers of blocks, the smaller one first")
    if importlib.util.find_spec("libtpu") is None:
        parser.error("libtpu is not installed: expected it beside jax (pip install '.[tpu]'); no TPU is needed")
    return found


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 where all rows are there, 1 where one failed, 2 for what cannot be asked for."""
    options = parsed(arguments)
    rows = kept(options.out)
    if options.table:
        print("\n".join([HEAD, *map(line, rows.values())]))
        return 0
    if options.row:
        try:
            depths = options.depths and tuple(options.depths)
            row = examined(
                options.topology, options.config, options.programs[0], options.meshes[0], options.batch, options.ops, depths
            )
        except (ValueError, RuntimeError) as error:
            print(error, file=sys.stderr)
            return 2 if isinstance(error, ValueError) else 1
        options.row.write_text(json.dumps(asdict(row)))
        return 0
    print(HEAD, flush=True)
    status = 0
    names = CONFIGS[1:] if options.config is None else (options.config,)
    for name, program, mesh in ((n, p, m) for n in names for p in options.programs for m in options.meshes):
        wanted = [options.topology, name, "--programs", program, "--meshes", mesh, "--ops", str(options.ops)]
        wanted += ["--batch", str(options.batch)] if options.batch else []
        wanted += ["--depths", *map(str, options.depths)] if options.depths else []
        same = [
            row for row in rows.values()
            if (row.topology, row.config, row.program, row.mesh) == (options.topology, name, program, mesh)
            and (options.batch is None or row.batch == options.batch)
        ]  # fmt: skip
        if same and not options.again:
            print("\n".join(map(line, same)), flush=True)
            continue
        code, said, row = apart(wanted, options.timeout)
        if row is None:
            print(f"{name}, {program}, {mesh} is left out: {said}", file=sys.stderr, flush=True)
            if code == 2:
                return 2
            status = 1
            continue
        # Others may have kept rows in the meantime.
        rows = kept(options.out) | {row.name: row}
        keep(rows, options.out)
        print(line(row), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
