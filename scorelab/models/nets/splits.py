"""How the networks are split over the axis ``"model"`` of a mesh of devices: which axis of which array, and activations.

Of two matrices in a row the first is split over its outputs and the second over its inputs. So what is between them stays where it
is, and one sum over the devices follows (Shoeybi et al. 2019, arXiv 1909.08053).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

_OUTPUTS, _INPUTS = -1, -2

# One row for arrays of one kind: the end of their place in the tree of parameters, and the axis that is split. What no row names
# stays whole: first and last layers, which are thin, and the norms that see all channels. A network whose layers have other names
# gets rows of its own here.
SPLITS: tuple[tuple[re.Pattern[str], int], ...] = (
    # Transformers: blocks, and the attention to the tokens of a condition.
    (re.compile(r"/(qkv|mlp_in|q|kv)/(kernel|bias)$"), _OUTPUTS),
    (re.compile(r"/(block\d+|\w*condition|\w*_attention)/out/kernel$|/mlp_out/kernel$"), _INPUTS),
    # Modulations, one for each example, are small beside what they modulate, and used whole.
    (re.compile(r"/(modulation|film)/kernel$"), _INPUTS),
    # The embedding of the noise level, which all networks have.
    (re.compile(r"/embedding/hidden/(kernel|bias)$"), _OUTPUTS),
    (re.compile(r"/embedding/out/kernel$"), _INPUTS),
    # Residual blocks of a U-Net: the norm between the two convolutions has groups of channels, which are split as these are.
    (re.compile(r"/conv1/(kernel|bias)$|/norm2/(scale|bias)$"), _OUTPUTS),
    (re.compile(r"/conv2/kernel$"), _INPUTS),
    # Layers of an MLP.
    (re.compile(r"/layer\d+/dense/kernel$"), _INPUTS),
)


def split_axis(place: str, shape: tuple[int, ...], ways: int) -> int | None:
    """The axis of an array that is split ``ways`` times, counted from the front; None where it stays whole.

    ``place`` is where it is in a tree, ``.../block0/qkv/kernel``: parameters, averages and an optimiser's records end alike.
    An axis that ``ways`` does not divide is not split.
    """
    if ways == 1:
        return None
    for pattern, axis in SPLITS:
        if pattern.search(f"/{place}"):
            return len(shape) + axis if len(shape) >= -axis and shape[axis] % ways == 0 else None
    return None


class Constraints(NamedTuple):
    """What is demanded of a network while a training step on several devices is traced.

    Attributes:
        activations: of ``(batch, ..., width)`` between two blocks.
        heads: of a kernel ``(inputs, parts, heads, width of a head)``, which is split by heads.
        model: how often.
    """

    activations: Callable[[Any], Any] = lambda h: h
    heads: Callable[[Any], Any] = lambda kernel: kernel
    model: int = 1


_NONE = Constraints()
constraints: ContextVar[Constraints] = ContextVar("constraints", default=_NONE)


def between_blocks(h: jax.Array) -> jax.Array:
    """The activations ``(batch, ..., width)`` between two blocks of a network, split as ``Sharding.activations`` says."""
    return constraints.get().activations(h)
