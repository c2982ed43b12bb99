"""Data parallelism: the state on every device, the batch split over its leading axis.

The step is one program over global arrays, so means over the batch are global means and random numbers depend
on the key alone: one device and many agree up to the order of summation.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scorelab.arrays import Pytree


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:  # pyright: ignore[reportInvalidTypeForm]: jax has no stub of it
    """A mesh with the one axis ``"data"`` over ``devices``, by default all devices of all processes."""
    devices = jax.devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("data_mesh.devices = []: expected at least one device")
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: everything everywhere."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(tree: Pytree, mesh: Mesh) -> Pytree:
    """A copy of ``tree`` on every device of the mesh.

    Always a copy: the training step consumes its state, which must leave the caller's arrays alive.
    """
    tree, whole = jax.tree.map(_strong, _own(tree)), replicated(mesh)
    if jax.process_count() > 1:
        return jax.tree.map(lambda leaf: _everywhere(leaf, whole), tree)
    return jax.device_put(tree, whole, may_alias=False)


def shard_batch(batch: Pytree, mesh: Mesh) -> Pytree:
    """This process's part of a batch of host arrays as global arrays, split over the leading axis.

    Raises:
        ValueError: the number of examples is not a multiple of this process's devices in the mesh.
    """
    count = mesh.local_mesh.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if not leaf.shape or leaf.shape[0] % count:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} has shape {leaf.shape}: expected a leading axis that is "
                f"a multiple of {count} devices; change the batch size, or pass mesh=data_mesh(devices)"
            )
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    # The caller may reuse its host buffer while the step is still waiting in the queue.
    batch = _own(batch)
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def _everywhere(leaf: Pytree, layout: NamedSharding) -> jax.Array:
    """A copy of an array that every process has, or that is spread over them, as one global array of this layout."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_everywhere(jax.random.key_data(leaf), layout), impl=jax.random.key_impl(leaf))
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.jit(jnp.copy, out_shardings=layout)(leaf)
    host = np.array(leaf)
    return jax.make_array_from_callback(host.shape, layout, lambda index: host[index])


def _own(tree: Pytree) -> Pytree:
    # device_put(may_alias=False) does not hold for NumPy arrays: on the CPU the device array is the caller's memory
    # wherever that happens to be aligned.
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def _strong(leaf: Pytree) -> Pytree:
    # A weakly typed leaf comes back strongly typed from the first step, which would compile the step again.
    return leaf.astype(leaf.dtype) if getattr(leaf, "weak_type", False) else leaf
