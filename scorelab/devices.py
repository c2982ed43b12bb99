"""The devices that work is spread over: all cores of a CPU as devices of JAX, and when a spread pays.

XLA computes a convolution of the CPU on one thread. Split into devices, the CPU computes one part of the batch on each.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scorelab.allocation import keep_freed
from scorelab.arrays import Key, Pytree
from scorelab.pytrees import is_model_pytree
from scorelab.validation import require_int

# What a function with an argument ``mesh`` takes.
Spread: TypeAlias = Mesh | Literal["auto"] | None

# Floating point operations of one step that a device of the CPU should have at least. Below it, starting the operations of a
# network once more on another device costs more than it gains: benchmarks/cores.py has the measurement.
LEAST_WORK = 1.5e8
# The same of an update, for each number of a training state, which every device sums and updates as a whole. A U-Net of images of
# 28 x 28 pixels has it from 11 a device on. Products of matrices have threads of their own: no MLP was faster on two devices.
LEAST_WORK_PER_NUMBER = 3000.0
# More devices of one CPU than any machine has cores; JAX needs 0.2 s and 120 MB to start with as many.
MOST_DEVICES = 1024
# The axis over which batches are split, and the one over which networks are.
DATA, MODEL = "data", "model"
# JAX's name of the number of CPU devices.
_NUMBER = "jax_num_cpu_devices"


def cores() -> int:
    """The number of cores that this process may use: those it is bound to, and not more than its control group pays for.

    A share of a core is left out: a thread that has to wait for its turn holds up all others.
    """
    # Windows and macOS bind no process to cores.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(bound, _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _quota(groups: Path, root: Path) -> float:
    """Cores that the control groups of a process allow, infinite where nothing limits them.

    Every group on the way up has its own limit. Version 2 writes ``quota period`` into one file, version 1 into two.
    """
    quota = float("inf")
    for line in _lines(groups):
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        place = top / path.strip("/")
        # Seen from inside a container, the group may lie above what is mounted there.
        for folder in (place, *place.parents) if place.is_relative_to(top) and place.is_dir() else (top,):
            if controllers:
                found = _lines(folder / "cpu.cfs_quota_us") + _lines(folder / "cpu.cfs_period_us")
            else:
                found = " ".join(_lines(folder / "cpu.max")).split()
            # "max" in version 2 and -1 in version 1 stand for no limit.
            if len(found) == 2 and found[0].isdigit() and found[1].isdigit() and int(found[1]):
                quota = min(quota, int(found[0]) / int(found[1]))
            if folder == top:
                break
    return quota


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def use_all_cores(count: int | None = None) -> int:
    """Make the CPU as many devices of JAX as there are cores, so that ``mesh="auto"`` can use them; their number is returned.

    Call it before anything is computed: in a script or a notebook right after the imports. On a machine with an accelerator JAX
    computes there as before. Several calls are as good as one. What a program frees stays with the process
    (:mod:`scorelab.allocation`).

    Args:
        count: the number of devices. None keeps the number that JAX was told already (``JAX_NUM_CPU_DEVICES``, ``XLA_FLAGS``, an
            earlier call). Where it was told none, it is that of the cores this process may use, by its affinity and the quota of
            its control group. Of several processes on one machine each gets its share by ``count``. More than there are cores
            gain nothing, but are what a test of many devices asks for.

    Raises:
        ValueError: a count that is no integer from 1 to ``MOST_DEVICES``.
        RuntimeError: JAX has started on the CPU with another number of devices.
    """
    if count is not None:
        require_int("use_all_cores", 1, count=count)
        if count > MOST_DEVICES:
            raise ValueError(f"use_all_cores.count = {count}: expected an integer from 1 to {MOST_DEVICES}")
    told = _told()
    wanted = int(count) if count is not None else told or cores()
    if not started():
        keep_freed()
        if count is not None or not told:
            jax.config.update(_NUMBER, wanted)
        return wanted
    running = len(jax.local_devices(backend="cpu"))
    # What the CPU is beside an accelerator matters to nothing that is computed there.
    if running != wanted and jax.default_backend() == "cpu":
        raise RuntimeError(
            f"use_all_cores: JAX already runs with {running} device(s) of the CPU: expected a call before anything is computed, to "
            f"have {wanted}; in a notebook restart the kernel, or set JAX_NUM_CPU_DEVICES={wanted} before Python starts"
        )
    return running


def started() -> bool:
    """Whether JAX has looked for its devices, after which their number stays."""
    from jax._src import xla_bridge  # there is no public way to ask without starting it

    return xla_bridge.backends_are_initialized()


def _told() -> int | None:
    """The number of CPU devices that JAX was told, None where it was not."""
    if (number := getattr(jax.config, _NUMBER)) > 0:
        return number
    name = "--xla_force_host_platform_device_count="
    flags = [flag.removeprefix(name) for flag in os.environ.get("XLA_FLAGS", "").split() if flag.startswith(name)]
    return int(flags[-1]) if flags and flags[-1].isdigit() else None


def require_mesh(owner: str, mesh: Any) -> None:
    """Raise ``TypeError`` unless ``mesh`` is a mesh, ``"auto"`` or None; ``ValueError`` for a mesh of explicit or manual axes."""
    if not (mesh is None or isinstance(mesh, Mesh) or (isinstance(mesh, str) and mesh == "auto")):
        raise TypeError(f"{owner}.mesh = {mesh!r}: expected a Mesh, 'auto' or None")
    if isinstance(mesh, Mesh) and (kinds := [kind for kind in mesh.axis_types if kind != AxisType.Auto]):
        raise ValueError(f"{owner}.mesh has axes of the type {kinds[0]}: expected AxisType.Auto, which training.data_mesh() makes")


def sampling_mesh(rows: int, work: Callable[[], float], *, unit: int = 1, share: int | None = None) -> Mesh | None:
    """The mesh that ``sample(mesh="auto")`` takes, over devices of this process; None where a single device is as fast.

    On accelerators it has all of them that get rows. On a CPU it has as many as get ``LEAST_WORK`` each.

    Args:
        rows: samples of one step.
        work: floating point operations of one step; asked where there are several devices of the CPU.
        unit: rows that stay together on one device.
        share: rows of which every device gets the same number of units; None where rows may be filled up.
    """
    count = _worthwhile(rows, lambda: work() / LEAST_WORK, unit, share)
    return None if count == 1 else mesh_of(jax.local_devices()[:count])


def _worthwhile(rows: int, most_by_work: Callable[[], float], unit: int = 1, share: int | None = None) -> int:
    """How many devices of this process gain by a share of the rows."""
    devices = jax.local_devices()
    most = min(len(devices), rows // unit)
    if most > 1 and devices[0].platform == "cpu":
        most = max(1, min(most, int(most_by_work())))
    if share is not None:
        return next((count for count in range(most, 1, -1) if share % (unit * count) == 0), 1)
    # The fewest devices that are as fast: of 16 rows on 5 devices one has 4, and so have those on 4.
    return -(-rows // -(-rows // most)) if most > 1 else 1


def mesh_of(devices: Sequence[Any], model: int = 1) -> Mesh:
    """A mesh over devices with the axis ``DATA`` and, where ``model`` is above one, ``MODEL`` of as many devices in a row."""
    sizes, names = ((len(devices),), (DATA,)) if model == 1 else ((len(devices) // model, model), (DATA, MODEL))
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def training_mesh(learner: Any, batch: Pytree, key: Key) -> Mesh:
    """The mesh that ``fit(mesh="auto")`` trains on: devices that divide the batch and gain by it.

    On accelerators, and where there are several processes, it has all devices. On a CPU it has as many as get
    ``LEAST_WORK`` floating point operations of an update each, and ``LEAST_WORK_PER_NUMBER`` for every number of the state.

    Args:
        learner: what is trained.
        batch: this process's part of a batch as ``learner.update`` gets it, arrays or their shapes.
        key: a PRNG key.
    """
    devices = jax.devices()
    rows = min((leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.shape), default=1)

    def most() -> float:
        if is_model_pytree(learner):
            state = jax.eval_shape(_begun, key, batch, learner)
        else:
            state = jax.eval_shape(functools.partial(_begun_by, learner=learner), key, batch)
        numbers = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))
        if is_model_pytree(learner):
            work = operations(_updated, state, batch, key, learner)
        else:
            work = operations(_updated_by, state, batch, key, learner=learner)
        return work / max(LEAST_WORK, LEAST_WORK_PER_NUMBER * numbers)

    if jax.process_count() == 1 and devices[0].platform == "cpu":
        # Every part of the batch that is differentiated on its own is spread.
        devices = devices[: _worthwhile(rows, most, share=rows // getattr(learner, "accumulate", 1))]
    return mesh_of(devices)


def _update(state: Pytree, batch: Pytree, key: Key, learner: Any) -> Pytree:
    return learner.update(state, batch, key)


def _init(key: Key, batch: Pytree, learner: Any) -> Pytree:
    return learner.init(key, batch)


# Traced once for equal learners and shapes, however often it is asked.
_updated, _updated_by = jax.jit(_update), jax.jit(_update, static_argnames="learner")
_begun, _begun_by = jax.jit(_init), jax.jit(_init, static_argnames="learner")


def operations(function: Any, *arguments: Pytree, **static: Any) -> float:
    """Floating point operations of a jitted function of arguments like these, the body of a loop counted once.

    Nothing is compiled. The answer is kept: a second question of equal shapes costs nothing.
    """
    leaves, structure = jax.tree.flatten(arguments)
    # Shapes and dtypes alone: where the arrays lie does not matter.
    leaves = [leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf) for leaf in leaves]
    types = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=leaf.weak_type) for leaf in leaves)
    return _operations(function, structure, types, tuple(sorted(static.items())))


@functools.lru_cache(maxsize=256)
def _operations(function: Any, structure: Any, types: tuple, static: tuple) -> float:
    arguments = jax.tree.unflatten(structure, types)
    cost = function.lower(*arguments, **dict(static)).cost_analysis()
    return float((cost or {}).get("flops", 0.0))


def by_rows(mesh: Mesh) -> NamedSharding:
    """Rows spread over the first axis of a mesh."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))


def filled(rows: int, mesh: Mesh) -> int:
    """The next number of rows that the first axis divides."""
    count = mesh.shape[mesh.axis_names[0]]
    return -(-rows // count) * count


def replicated(mesh: Mesh) -> NamedSharding:
    """The layout of what is everywhere."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(tree: Pytree, mesh: Mesh) -> Pytree:
    """``tree`` on every device of a mesh of this process; as it is on one of several processes, where compiled programs do it.

    No copy where it lies there already, unlike ``training.parallel.replicate``.
    """
    return tree if mesh.is_multi_process else jax.device_put(tree, replicated(mesh))


def mesh_of_split(tree: Pytree) -> Mesh | None:
    """The mesh of a leaf that is split over another axis than the first, that of the rows; None where there is no such leaf."""
    for leaf in jax.tree.leaves(tree):
        layout = getattr(leaf, "sharding", None)
        if not isinstance(layout, NamedSharding) or not isinstance(layout.mesh, Mesh):
            continue
        if any(name is not None for name in _without(layout.mesh.axis_names[0], layout.spec)):
            return layout.mesh
    return None


def whole_along_rows(tree: Pytree, mesh: Mesh) -> Pytree:
    """Parameters on the devices of ``mesh``: whole along its first axis, that of the rows, and split over its others as they were.

    It is one message, and none at every call of the network. What lies on another mesh becomes whole.
    """

    def leaf(value: Any) -> Any:
        layout = getattr(value, "sharding", None)
        if not isinstance(layout, NamedSharding) or layout.mesh != mesh:
            return everywhere(value, mesh)
        spec = _without(mesh.axis_names[0], layout.spec)
        return value if spec == layout.spec else jax.device_put(value, NamedSharding(mesh, spec))

    return jax.tree.map(leaf, tree)


def _without(axis: str, spec: PartitionSpec) -> PartitionSpec:
    """What is left of a layout where nothing is split over ``axis``; a dimension may be split over several."""
    drop = lambda names: (tuple(name for name in names if name != axis) or None) if isinstance(names, tuple) else names
    return PartitionSpec(*(None if names == axis else drop(names) for names in spec))
