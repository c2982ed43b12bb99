"""One device to many: a mesh with the axes ``data`` and ``model``, and how state and batch are laid out over it.

The step is one program over global arrays, so means over the batch are global means and random numbers depend
on the key alone: one device and many agree up to the order of summation, whatever the layout.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from scorelab.arrays import Array, Pytree
from scorelab.devices import DATA, MODEL, mesh_of, replicated
from scorelab.models.nets.splits import Constraints, constraints, split_axis
from scorelab.validation import require_choice, require_int, require_spec


def data_mesh(devices: Sequence[jax.Device] | None = None, model: int = 1) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]: jax has no stub of it
    """A mesh over ``devices``, by default all devices of all processes, with the axis ``"data"``.

    With ``model`` above one it has the axes ``"data"`` and ``"model"``: ``model`` devices in a row share the work of one network.
    """
    require_int("data_mesh", 1, model=model)
    try:
        devices = jax.devices() if devices is None else list(devices)
    except TypeError:
        raise TypeError(f"data_mesh.devices = {devices!r}: expected devices, such as jax.devices()[:2]") from None
    if not devices or not all(isinstance(device, jax.Device) for device in devices) or len(set(devices)) < len(devices):
        raise ValueError(f"data_mesh.devices = {devices}: expected at least one device, each once")
    if len(devices) % model:
        raise ValueError(f"data_mesh.model = {model}: expected a divisor of the {len(devices)} devices")
    return mesh_of(devices, model)


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How a training is laid out over devices: the batch is split over the axis ``data``, the state as stated here.

    ``Sharding()`` is data parallel: every device has the whole state. ``Sharding(fully_sharded=True)`` keeps one part of all
    parameters, optimiser states and averages on each device, and brings a parameter together where it is used (ZeRO, arXiv
    1910.02054).
    ``Sharding(model=4)`` splits the kernels of a network over four devices (tensor parallel, arXiv 1909.08053), by the table in
    ``scorelab/models/nets/splits.py``. Both at once are a hybrid.

    An axis that the devices do not divide is not split. ``data`` takes the largest axis that it divides and ``model`` has not
    taken; an array without such an axis stays whole on every device. What an optimiser or an average keeps of a parameter lies as
    the parameter does.

    Attributes:
        model: devices that share one network; a divisor of the number of devices.
        fully_sharded: split the state over ``data`` as well.
        activations: what is demanded between the blocks of a network. ``"batch"``: split over ``data`` by examples, and whole over
            ``model``. ``"positions"``: tokens, or rows of images, split over ``model`` as well, so that each device keeps a part of
            them for the backward pass (arXiv 2205.05198). None leaves it to the compiler.
        smallest: arrays of fewer elements stay whole: biases are not worth a message.
    """

    model: int = 1
    fully_sharded: bool = False
    activations: Literal["batch", "positions"] | None = None
    smallest: int = 1024

    def __post_init__(self):
        require_int(self, 1, model=self.model, smallest=self.smallest)
        require_choice(self, (True, False), fully_sharded=self.fully_sharded)
        require_choice(self, (None, "batch", "positions"), activations=self.activations)
        if self.activations == "positions" and self.model == 1:
            raise ValueError("Sharding.activations = 'positions' with model = 1: expected model above 1, over which they are split")

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]: as above
        """The mesh of this layout: :func:`data_mesh` with its ``model``."""
        devices = jax.devices() if devices is None else list(devices)
        if len(devices) % self.model:
            raise ValueError(f"Sharding.model = {self.model}: expected a divisor of the {len(devices)} devices")
        if jax.process_count() > 1 and jax.local_device_count() % self.model:
            raise ValueError(
                f"Sharding.model = {self.model}: expected a divisor of the {jax.local_device_count()} devices of a process, since "
                "every process brings examples of its own"
            )
        return data_mesh(devices, self.model)

    def check(self, mesh: Mesh | AbstractMesh) -> None:
        """Raise ``TypeError`` or ``ValueError`` for what is no mesh of this layout."""
        require_spec("Sharding", Mesh | AbstractMesh, mesh=mesh)
        if DATA not in mesh.shape or mesh.shape.get(MODEL, 1) != self.model:
            raise ValueError(f"mesh has the axes {dict(mesh.shape)}: expected 'data', and 'model' of Sharding.model = {self.model}")

    @property
    def whole(self) -> bool:
        """Whether every device has the whole state."""
        return self.model == 1 and not self.fully_sharded

    def of(self, tree: Pytree, mesh: Mesh | AbstractMesh) -> Pytree:
        """The layout of each leaf of a state, or of shapes of one: a tree of ``NamedSharding``."""
        self.check(mesh)

        def leaf(path, value):
            place = jax.tree_util.keystr(path, simple=True, separator="/")
            return NamedSharding(mesh, self._split(place, np.shape(value), mesh))

        return jax.tree_util.tree_map_with_path(leaf, tree)

    def place(self, tree: Pytree, mesh: Mesh) -> Pytree:
        """A copy of ``tree`` on the devices of ``mesh``; of shapes (``ShapeDtypeStruct``), shapes that say where they lie."""
        leaves, structure = jax.tree.flatten(tree)
        layout = jax.tree.leaves(self.of(tree, mesh))
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
            placed = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s) for x, s in zip(leaves, layout, strict=True)]
            return jax.tree.unflatten(structure, placed)
        return _copied(tree, jax.tree.unflatten(structure, layout))

    def _split(self, place: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
        axes: list[str | None] = [None] * len(shape)
        if math.prod(shape) >= self.smallest:
            if (axis := split_axis(place, shape, self.model)) is not None:
                axes[axis] = MODEL
            ways = mesh.shape[DATA] if self.fully_sharded else 1
            free = [i for i, size in enumerate(shape) if axes[i] is None and size % ways == 0]
            if free and ways > 1:
                axes[max(free, key=lambda i: shape[i])] = DATA
        while axes and axes[-1] is None:
            # (None,) and () mean the same and are different layouts to the compiler's cache.
            axes.pop()
        return PartitionSpec(*axes)


def replicate(tree: Pytree, mesh: Mesh) -> Pytree:
    """A copy of ``tree`` on every device of the mesh.

    Always a copy: the training step consumes its state, which must leave the caller's arrays alive.
    """
    return _copied(tree, replicated(mesh))


def shard_batch(batch: Pytree, mesh: Mesh) -> Pytree:
    """This process's part of a batch of host arrays as global arrays, split over the leading axis.

    Raises:
        ValueError: the number of examples is not a multiple of this process's devices along the axis ``data``.
    """
    count = mesh.local_mesh.shape[DATA]
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not leaf.shape or leaf.shape[0] % count:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}: expected a leading axis that is "
                f"a multiple of {count} devices; change the batch size, or pass mesh=data_mesh(devices)"
            )
    sharding = NamedSharding(mesh, PartitionSpec(DATA))
    # The caller may reuse its host buffer while the step is still waiting in the queue.
    batch = _own(batch)
    if mesh.size == 1:
        return _taken(sharding)(batch)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


@functools.lru_cache(maxsize=16)
def _taken(sharding: NamedSharding) -> Any:
    """``device_put`` to one device in a fifth of the time, which the step of a small network notices."""
    return jax.jit(lambda batch: batch, in_shardings=sharding, out_shardings=sharding)


# The layout of the step that is being traced; None where everything is whole.
_tracing: ContextVar[tuple[Sharding, Mesh] | None] = ContextVar("tracing", default=None)


@contextmanager
def laid_out(sharding: Sharding, mesh: Mesh) -> Iterator[None]:
    """While a step is traced: :func:`gathered` and the networks know the layout."""
    token = _tracing.set((sharding, mesh) if sharding.fully_sharded else None)
    demanded = {}
    if sharding.activations is not None:
        demanded["activations"] = functools.partial(_activations, sharding, mesh)
    if sharding.model > 1:
        by_heads = NamedSharding(mesh, PartitionSpec(None, None, MODEL, None))
        demanded |= dict(heads=lambda kernel: jax.lax.with_sharding_constraint(kernel, by_heads), model=sharding.model)
    token_nets = constraints.set(Constraints(**demanded))
    try:
        yield
    finally:
        _tracing.reset(token)
        constraints.reset(token_nets)


def gathered(params: Pytree) -> Pytree:
    """Parameters as a network uses them, in a fully sharded step: together over ``data``. Anywhere else as they are.

    To be called inside the function that is differentiated: the gradient is split again where it is summed. Without it the compiler
    would rather move activations, as its collectives show.
    """
    if (found := _tracing.get()) is None:
        return params
    sharding, mesh = found
    used = replace(sharding, fully_sharded=False).of(params, mesh)

    def leaf(value, used, split):
        if used == split:
            return value
        if not jnp.issubdtype(value.dtype, jnp.floating):
            return jax.lax.with_sharding_constraint(value, used)
        return _gathered(value, used, split)

    return jax.tree.map(leaf, params, used, sharding.of(params, mesh))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gathered(leaf: Array, used: NamedSharding, split: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(leaf, used)


# The transpose of a constraint is the same constraint: it would have the whole gradient on every device.
_gathered.defvjp(
    lambda leaf, used, split: (_gathered(leaf, used, split), None),
    lambda used, split, _, cotangent: (jax.lax.with_sharding_constraint(cotangent, split),),
)


def _activations(sharding: Sharding, mesh: Mesh, h: Array) -> Array:
    axes: list[str | None] = [None] * h.ndim
    if h.shape[0] % mesh.shape[DATA] == 0:
        axes[0] = DATA
    if sharding.activations == "positions" and h.ndim > 2 and h.shape[1] % sharding.model == 0:
        axes[1] = MODEL
    return jax.lax.with_sharding_constraint(h, NamedSharding(mesh, PartitionSpec(*axes)))


def _copied(tree: Pytree, layout: Pytree) -> Pytree:
    if jax.process_count() > 1:
        layouts = jax.tree.map(lambda _: layout, tree) if isinstance(layout, NamedSharding) else layout
        return jax.tree.map(_global, jax.tree.map(_strong, tree), layouts)
    # device_put(may_alias=False) does not hold on fewer devices than before: the array there would be the part that was there.
    copied = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, _own(tree))
    return jax.device_put(jax.tree.map(_strong, copied), layout)


def _global(leaf: Pytree, layout: NamedSharding) -> jax.Array:
    """A copy of an array that every process has, or that is spread over them, as one global array of this layout."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_global(jax.random.key_data(leaf), layout), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=layout)(leaf)
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index])


def _own(tree: Pytree) -> Pytree:
    # Nor does it hold for NumPy arrays: on the CPU the device array is the caller's memory wherever that happens to be aligned.
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def _strong(leaf: Pytree) -> Pytree:
    # A weakly typed leaf comes back strongly typed from the first step, which would compile the step again.
    return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf
