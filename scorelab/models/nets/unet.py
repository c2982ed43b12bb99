"""U-Net for images, volumes and sequences: residual blocks with noise modulation, optional attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import repeat

from scorelab.arrays import Pytree
from scorelab.models.nets.conditions import Condition, attended, check_fields, concatenated, entries, of_network
from scorelab.models.nets.layers import (
    Conv,
    CrossAttention,
    Embedding,
    GroupNorm,
    attend,
    beside_estimate,
    check_common,
    check_inputs,
    group_count,
    projected,
)
from scorelab.models.nets.splits import between_blocks
from scorelab.validation import require_int


class ResBlock(nn.Module):
    """Residual block skip(x) + conv(silu(film(norm(conv(silu(norm(x))))))), skip(x) at initialisation."""

    features: int
    dropout: float
    dtype: str
    loop_safe: bool

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        """Map x (batch, *sides, in) and emb (batch, width) to (batch, *sides, features)."""
        conv = {"dtype": self.dtype, "loop_safe": self.loop_safe}
        film = nn.Dense(2 * self.features, dtype=self.dtype, name="film")(emb)
        scale, shift = jnp.split(film, 2, axis=-1)
        h = nn.silu(GroupNorm(group_count(x.shape[-1]), name="norm1")(x))
        h = Conv(self.features, name="conv1", **conv)(h)
        h = nn.silu(GroupNorm(group_count(self.features), name="norm2")(h, scale, shift))
        h = nn.Dropout(self.dropout, deterministic=self.dropout == 0.0)(h)
        h = Conv(self.features, zero_init=True, name="conv2", **conv)(h)
        if x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1, name="skip", **conv)(x)
        return x + h


class AttentionBlock(nn.Module):
    """Residual multi-head self-attention over pixels, identity at initialisation; softmax in float32."""

    heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Attend over the pixels of x (batch, *sides, channels)."""
        channels = x.shape[-1]
        h = GroupNorm(group_count(channels), name="norm")(x)
        q, k, v = projected(h.reshape(len(x), -1, channels), 3, self.heads, channels, self.dtype, name="qkv")
        h = attend(q, k, v).reshape(x.shape)
        return x + nn.Dense(channels, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)


def upsample(x: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Nearest-neighbour doubling of every side, cut to ``size``: 4x4 -> 7x7 when the level above was 7x7."""
    # At odd sizes coarse pixel i is centred on fine pixel 2i, so cutting the end keeps the two aligned.
    axes = "dhw"[3 - len(size) :]
    x = repeat(x, f"b {' '.join(axes)} c -> b {' '.join(f'({a} {a}2)' for a in axes)} c", **{f"{a}2": 2 for a in axes})
    return x[:, *(slice(side) for side in size)]


class UNet(nn.Module):
    """ADM-style U-Net of images ``(batch, height, width, channels)``, to the same shape, float32.

    With another number of sides it is one of volumes ``(batch, depth, height, width, channels)`` or of sequences
    ``(batch, length, channels)``: convolutions, norms and attention have as many axes as the event. Per level ``blocks`` residual
    blocks down and ``blocks + 1`` up with skip connections; strided convolutions down, nearest-neighbour and a convolution up.
    Sides of any size are fine, odd ones too (28, 14, 7, 4), down to ``2 ** (levels - 1)``. The output is exactly zero at
    initialisation. After Dhariwal and Nichol 2021, arXiv:2105.05233, and Karras et al. 2022, arXiv:2206.00364, appendix F.

    Attributes:
        channels: Width of each level; each level after the first halves every side.
        blocks: Residual blocks per level.
        attention: Per level, whether its blocks are followed by attention; () for none; None for the last
            level.
        heads: Attention heads; must divide the width of the levels that attend.
        num_classes: short for ``condition=Label(num_classes)``; 0 for no labels.
        condition: what it is told beside the noised point (:mod:`scorelab.models.nets.conditions`), of any kind; a ``Sequence``
            needs levels that attend.
        dropout: Rate inside residual blocks, used when ``train=True`` with a ``"dropout"`` rng.
        dtype: Compute dtype, "float32" or "bfloat16"; parameters, statistics and softmax stay float32.
        loop_safe: set it to differentiate the network inside a loop on the CPU. Same
            parameters.
        remat: Recompute each block in the backward pass instead of storing its activations.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    attention: tuple[bool, ...] | None = None
    heads: int = 2
    num_classes: int = 0
    condition: Condition | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    loop_safe: bool = False
    remat: bool = False

    # One noise level for the whole batch is embedded once, as (1,), instead of once per example.
    shares_noise_level = True
    takes_estimate = True

    def __post_init__(self):
        if not isinstance(self.channels, tuple) or not self.channels:
            raise ValueError(f"UNet.channels = {self.channels!r}: expected a non-empty tuple of integers >= 1")
        for width in self.channels:
            require_int("UNet", 1, channels=width)
        require_int("UNet", 1, blocks=self.blocks, heads=self.heads)
        check_common("UNet", num_classes=self.num_classes, dropout=self.dropout, dtype=self.dtype)
        check_fields("UNet", self.condition, self.num_classes, ("embedding", "channels", "tokens"))
        levels = len(self.channels)
        attention = self.attention
        if attention is not None and (
            not isinstance(attention, tuple) or len(attention) not in (0, levels) or not all(isinstance(a, bool) for a in attention)
        ):
            raise ValueError(f"UNet.attention = {attention!r}: expected None, () or a tuple of {levels} booleans")
        if not any(self._attends) and self.condition and any(member.way == "tokens" for _, member in self.condition.members):
            raise ValueError(f"UNet.attention = {attention!r} with condition = {self.condition!r}: expected levels that attend")
        for width, used in zip(self.channels, self._attends, strict=True):
            if used and width % self.heads:
                raise ValueError(f"UNet.heads = {self.heads}: expected a divisor of the attending width {width}")
        super().__post_init__()

    @property
    def _attends(self) -> tuple[bool, ...]:
        levels = len(self.channels)
        if self.attention is None:
            return (*[False] * (levels - 1), True)
        return self.attention or (False,) * levels

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: Pytree = None,
        *,
        estimate: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Evaluate on ``x (batch, *sides, channels)``, ``c_noise (batch,)`` or ``(1,)`` and a condition."""
        check_inputs(x, c_noise)
        if not 3 <= x.ndim <= 5:
            raise ValueError(f"x has shape {x.shape}: UNet accepts (batch, *sides, channels) with one, two or three sides")
        smallest = 2 ** (len(self.channels) - 1)
        if min(x.shape[1:-1]) < smallest:
            raise ValueError(
                f"x has shape {x.shape}: UNet with {len(self.channels)} levels accepts sides >= {smallest}; fewer channels "
                "are fewer levels"
            )
        block_class, attention_class = (nn.remat(ResBlock), nn.remat(AttentionBlock)) if self.remat else (ResBlock, AttentionBlock)
        crossing_class = nn.remat(CrossAttention) if self.remat else CrossAttention
        conv = {"dtype": self.dtype, "loop_safe": self.loop_safe}
        given = entries("UNet", of_network(self), cond, len(x))
        emb = Embedding(4 * self.channels[0], self.dtype, name="embedding")(c_noise, given)

        seen = attended(given, len(x), emb.shape[-1], self.dtype)

        # Names are explicit because remat would change the automatic ones, and with them the parameter tree.
        def block(h, width, attend_, name):
            rate = self.dropout if train else 0.0
            h = between_blocks(block_class(width, rate, self.dtype, self.loop_safe, name=name)(h, emb))
            if not attend_:
                return h
            h = attention_class(self.heads, self.dtype, name=f"{name}_attention")(h)
            if seen is None:
                return h
            pixels = h.reshape(len(h), -1, h.shape[-1])
            pixels = crossing_class(self.heads, self.dtype, name=f"{name}_condition")(pixels, seen)
            return pixels.reshape(h.shape)

        levels = list(zip(self.channels, self._attends, strict=True))
        h = Conv(self.channels[0], name="in", **conv)(concatenated(given, beside_estimate(x, estimate).astype(self.dtype)))
        skips = [h]
        for i, (width, attends) in enumerate(levels):
            if i:
                h = Conv(width, stride=2, name=f"down{i}", **conv)(h)
                skips.append(h)
            for j in range(self.blocks):
                h = block(h, width, attends, f"down{i}_{j}")
                skips.append(h)

        width, attends = levels[-1]
        h = block(h, width, attends, "middle_0")
        h = block(h, width, False, "middle_1")

        for i, (width, attends) in reversed(list(enumerate(levels))):
            if h.shape[1:-1] != (size := skips[-1].shape[1:-1]):
                h = Conv(width, name=f"up{i}", **conv)(upsample(h, size))
            for j in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], -1), width, attends, f"up{i}_{j}")

        h = nn.silu(GroupNorm(group_count(self.channels[0]), name="norm")(h))
        return Conv(x.shape[-1], zero_init=True, name="out", **conv)(h).astype(jnp.float32)
