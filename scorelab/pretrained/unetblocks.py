"""The parts that the published U-Nets and autoencoders of images are made of, under the names of their files.

Images are ``(batch, height, width, channels)``. The residual block is that of Ho et al. (2020), arXiv:2006.11239, with the
variants of Dhariwal & Nichol (2021), arXiv:2105.05233, and of Song et al. (2021), arXiv:2011.13456. The transformer is that of
Rombach et al. (2022), arXiv:2112.10752.
"""

from __future__ import annotations

import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.pretrained.layers import MEAN, Conv, GroupNorm, LayerNorm, Linear, attend, resample
from scorelab.pretrained.trees import Path

# The filter of the blocks with a skip image.
FIR = (1, 3, 3, 1)


class ResnetBlock(nn.Module):
    """A residual block: twice norm, silu and convolution, beside a shortcut.

    Attributes:
        features: channels of the result.
        groups: of the first norm, and of the second one unless ``groups_out`` says otherwise.
        epsilon: of the norms.
        how: ``""``, or ``"down"`` or ``"up"`` of both ways, after the first norm.
        smooth: resample by the filter (1, 3, 3, 1), not by means and repetition; the shortcut has a convolution then.
        scale_shift: the embedding scales and shifts what the second norm gives; else it is added before.
        scale: what the sum is divided by.
        groups_out: of the second norm, 0 for ``groups``.
        dropout: in training.
    """

    features: int
    groups: int = 32
    epsilon: float = 1e-6
    how: str = ""
    smooth: bool = False
    scale_shift: bool = False
    scale: float = 1.0
    groups_out: int = 0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None = None, train: bool = False) -> jax.Array:
        """The block at images ``x`` under ``embedding (b or 1, e)``, to which silu has been applied; None for a block without."""
        h = nn.silu(GroupNorm(self.epsilon, self.groups, name="norm1")(x))
        if self.how:
            x, h = (resample(each, FIR if self.smooth else MEAN, self.how) for each in (x, h))
        h = Conv(self.features, name="conv1")(h)
        norm = GroupNorm(self.epsilon, self.groups_out or self.groups, name="norm2")
        if embedding is None:
            h = norm(h)
        else:
            e = Linear(self.features * (1 + self.scale_shift), name="time_emb_proj")(embedding)[:, None, None]
            if self.scale_shift:
                scale, shift = jnp.split(e, 2, -1)
                h = norm(h) * (1 + scale) + shift
            else:
                h = norm(h + e)
        h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
        h = Conv(self.features, name="conv2")(h)
        if x.shape[-1] != self.features or (self.how and self.smooth):
            x = Conv(self.features, 1, name="conv_shortcut")(x)
        return (x + h) / self.scale


class Downsample(nn.Module):
    """A convolution at half the sides.

    Attributes:
        padding: 1 for zeros on every side; 0 for zeros at the right and at the bottom only, as the first models have it.
    """

    padding: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of images."""
        if self.padding == 0:
            x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
        return Conv(x.shape[-1], stride=2, padding=self.padding, name="conv")(x)


class Upsample(nn.Module):
    """Twice the sides by repetition, then a convolution."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of images."""
        return Conv(x.shape[-1], how="up", name="conv")(x)


def _attention(x: jax.Array, context: jax.Array, heads: int, width: int, bias: bool) -> jax.Array:
    """One matrix each for queries, keys, values and the result, in the module that calls it."""
    matrix = lambda name: Linear(width, bias, name=name)
    out = attend(matrix("to_q")(x), matrix("to_k")(context), matrix("to_v")(context), heads)
    return Linear(x.shape[-1], name="to_out.0")(out)


class Attention(nn.Module):
    """Attention of tokens; queries, keys and values have no bias.

    Attributes:
        heads: their number.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        """Of ``x (b, n, c)`` to ``context (b, m, any)``, or to itself."""
        return _attention(x, x if context is None else context, self.heads, x.shape[-1], False)


class SpatialAttention(nn.Module):
    """Self-attention of pixels with a norm before and a sum after.

    Attributes:
        heads: their number.
        width: channels of all heads together; 0 for as many as the input has.
        groups: of the norm; None for no norm.
        epsilon: of the norm.
        scale: what the sum is divided by.
    """

    heads: int = 1
    width: int = 0
    groups: int | None = 32
    epsilon: float = 1e-6
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Of images."""
        batch, height, width, channels = x.shape
        h = x if self.groups is None else GroupNorm(self.epsilon, self.groups, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        return (_attention(h, h, self.heads, self.width or channels, True).reshape(x.shape) + x) / self.scale


class _FeedForward(nn.Module):
    """Values times the gelu, with the error function, of gates; then back."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = jnp.split(_Gated(8 * x.shape[-1], name="net.0")(x), 2, -1)
        return Linear(x.shape[-1], name="net.2")(value * nn.gelu(gate, approximate=False))


class _Gated(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return Linear(self.features, name="proj")(x)


class TransformerBlock(nn.Module):
    """Attention of tokens to themselves, to a context, and a layer of every token by itself."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Of ``x (b, n, c)`` under ``context (b, m, any)``."""
        x = x + Attention(self.heads, name="attn1")(LayerNorm(name="norm1")(x))
        x = x + Attention(self.heads, name="attn2")(LayerNorm(name="norm2")(x), context)
        return x + _FeedForward(name="ff")(LayerNorm(name="norm3")(x))


class Transformer(nn.Module):
    """Transformer blocks over the pixels, with a norm before and a sum after.

    Attributes:
        heads: of every attention.
        groups: of the norm.
        layers: blocks.
        linear: the two outer maps are stored as matrices, not as convolutions of size 1; the function is the same.
    """

    heads: int
    groups: int = 32
    layers: int = 1
    linear: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Of images under ``context (b, m, any)``."""
        batch, height, width, channels = x.shape
        outer = lambda name: Linear(channels, name=name) if self.linear else Conv(channels, 1, name=name)
        h = outer("proj_in")(GroupNorm(1e-6, self.groups, name="norm")(x))
        h = h.reshape(batch, height * width, channels)
        for i in range(self.layers):
            h = TransformerBlock(self.heads, name=f"transformer_blocks.{i}")(h, context)
        return outer("proj_out")(h.reshape(x.shape)) + x


# What of a published name is one part of a place: `features` of a denoiser looks for flat names at the top.
_NUMBERED = r"(?:resnets|attentions|downsamplers|upsamplers)"
_HEAD = re.compile(
    r"(?:(?:encoder|decoder)\.)?(?:(?:(?:down|up)_blocks\.\d+|mid_block)\.(?:" + _NUMBERED + r"\.\d+|[a-z]+_[a-z]+)|conv_\w+)"
)
# The dots that a head has lost, in turn.
_DOTS = (
    re.compile(r"^((?:en|de)coder)_"),
    re.compile(r"^((?:\w+\.)?(?:(?:down|up)_blocks|mid_block))_"),
    re.compile(r"(_blocks\.\d+)_"),
    re.compile(rf"({_NUMBERED})_(?=\d+$)"),
)
# What a layer is, by the last part of its name; a convolution otherwise.
_NORM = re.compile(r"(?:\w+_)?norm(?:\d|_out)?")
_LINEAR = re.compile(r"linear_\d|time_emb_proj|to_[qkv]|to_out\.0|net\.2|proj")
# Names of attention in the first files.
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def place(key: str, *, linear: bool = False) -> tuple[Path, str]:
    """The place in the tree of a published name, and its layout, as :mod:`scorelab.pretrained.trees` asks for them.

    ``down_blocks.0.resnets.1.conv1.weight`` is at ``("down_blocks_0_resnets_1", "conv1", "kernel")``. ``query``, ``key``, ``value``
    and ``proj_attn`` of the first files are what is called ``to_q``, ``to_k``, ``to_v`` and ``to_out.0`` today.

    Args:
        key: the published name.
        linear: the outer maps of transformers are matrices.
    """
    found = _HEAD.match(key)
    parts = [found[0].replace(".", "_")] if found else []
    *layers, leaf = key[found.end() :].removeprefix(".").split(".") if found else key.split(".")
    for part in layers:
        # A number belongs to the name before it.
        parts[-1:] = [f"{parts[-1]}.{part}"] if part.isdigit() and parts else [*parts[-1:], part]
    if parts and "_attentions_" in parts[0]:
        parts[-1] = _OLD.get(parts[-1], parts[-1])
    if leaf != "weight" or not parts:
        return (*parts, leaf), "same"
    if _NORM.fullmatch(parts[-1]):
        return (*parts, "scale"), "same"
    matrix = _LINEAR.fullmatch(parts[-1]) or (linear and parts[-1] in ("proj_in", "proj_out"))
    return (*parts, "kernel"), "linear" if matrix else "conv"


def key(path: Path, *, linear: bool = False) -> tuple[str, str]:
    """The published name of a place in the tree, and its layout: the other direction of :func:`place`."""
    head, *rest = path[:-1]
    for dot in _DOTS:
        head = dot.sub(r"\1.", head)
    name = ".".join((head, *rest, "weight" if path[-1] in ("kernel", "scale") else path[-1]))
    return name, place(name, linear=linear)[1]
