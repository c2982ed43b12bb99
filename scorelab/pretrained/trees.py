"""From published names of tensors to the tree of a network's parameters, and back: strict, and without a number changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from scorelab.errors import WeightsError
from scorelab.pretrained.keys import Shapes, differences, require_real

Path = tuple[str, ...]
# How a tensor of torch lies in a tree, by the name of the layout: the order of its axes, None for the same.
AXES = {
    "conv": (2, 3, 1, 0),  # (out, in, k, k) to (k, k, in, out)
    "linear": (1, 0),  # (out, in) to (in, out)
    "same": None,
}


def params(
    expected: Shapes,
    tensors: Mapping[str, np.ndarray],
    place: Callable[[str], tuple[Path, str] | None],
    *,
    name: str,
    network: str,
) -> dict[str, Any]:
    """The parameters of a network: every tensor is used once, and every place filled once.

    Args:
        expected: shapes by places in the tree, such as ``conv_in/kernel``: of :func:`shapes`.
        tensors: by their published names.
        place: from a published name to the place in the tree, ``("conv_in", "kernel")``, and the layout, a key of ``AXES``; None
            for a tensor that the network does without.
        name: of the file, for messages.
        network: its class, for messages.

    Raises:
        WeightsError: a tensor that the network has not, or the other way round, or of another shape, or of integers, or two for one
            place, or numbers that are not finite; each is named.
    """
    flat: dict[str, np.ndarray] = {}
    keys: dict[str, str] = {}
    for key, array in tensors.items():
        if (found := place(key)) is None:
            continue
        (path, layout), axes = found, AXES[found[1]]
        at = "/".join(path)
        if at in flat:
            raise WeightsError(f"{name}: tensors {keys[at]!r} and {key!r} for the one {at}: expected one of them")
        if axes is not None and array.ndim != len(axes):
            raise WeightsError(f"{name}: tensor {key!r} of shape {array.shape}: expected {len(axes)} axes, as a {layout} layer has")
        flat[at], keys[at] = array if axes is None else array.transpose(axes), key
    if different := differences({at: array.shape for at, array in flat.items()}, expected):
        raise WeightsError(f"{name}: {'; '.join(different)}: expected the {len(expected):,} tensors of {network}")
    require_real({keys[at]: array for at, array in flat.items()}, name)
    return {"params": unflatten_dict({tuple(at.split("/")): flat[at] for at in expected})}


def published(tree: Mapping[str, Any], key: Callable[[Path], tuple[str, str]]) -> dict[str, np.ndarray]:
    """The other direction of :func:`params`: the tensors by their published names, bit by bit.

    Args:
        tree: of parameters, ``{"params": ...}``.
        key: from a place in the tree to the published name and the layout.

    Raises:
        WeightsError: one name for two places.
    """
    flat: dict[Any, Any] = flatten_dict(tree["params"])
    found: dict[str, np.ndarray] = {}
    for path, value in flat.items():
        (name, layout), array = key(path), np.asarray(value)
        if name in found:
            raise WeightsError(f"{'/'.join(path)}: its published name {name!r} is that of another one")
        axes = AXES[layout]
        found[name] = array if axes is None else array.transpose(np.argsort(axes))
    return found


def shapes(net: nn.Module, *inputs: Any, **named: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters by their places in the tree, ``"conv_in/kernel"``, found without computing anything.

    Args:
        net: a module, which is called with ``inputs`` and ``named``.
        inputs: arrays, or their ``jax.ShapeDtypeStruct``.
        named: arguments by name that are static.
    """
    init = lambda key, *inputs: net.init(key, *inputs, **named)
    tree = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), *inputs)
    flat: dict[Any, Any] = flatten_dict(tree["params"])
    return {"/".join(path): leaf.shape for path, leaf in flat.items()}
