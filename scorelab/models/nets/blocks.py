"""What transformers are made of: positions, modulated norms and adaLN-zero blocks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from scorelab.models.nets.layers import CrossAttention, attend, projected
from scorelab.models.nets.splits import between_blocks
from scorelab.validation import require_int


def positions(sides: tuple[int, ...], width: int) -> np.ndarray:
    """Sine-cosine position embedding of a grid, ``(prod(sides), width)``: an equal part of the width for each side.

    Each part is [sin(w_k p), cos(w_k p)] with w_k = 10000^(-k / K), k < K = width / (2 rank) (arXiv:1706.03762).
    """
    count = width // (2 * len(sides))
    frequencies = 10_000.0 ** -(np.arange(count) / count)
    places = np.meshgrid(*map(np.arange, sides), indexing="ij")
    waves = [wave(p.reshape(-1, 1) * frequencies) for p in places for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array, dtype: str) -> jax.Array:
    """Layer norm without parameters, then (1 + scale) x + shift; modulation (batch, 1, width)."""
    x = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32, epsilon=1e-6)(x)
    return (x * (1.0 + scale) + shift).astype(dtype)


def check_width(owner: str, *, width: int, heads: int, parts: int, **others: int) -> None:
    """Raise ValueError unless the width can be cut into ``parts`` for positions and into heads; all are integers >= 1."""
    require_int(owner, 1, width=width, heads=heads, **others)
    if width % parts or width % heads:
        raise ValueError(f"{owner}.width = {width}: expected a multiple of {parts} and of heads = {heads}")


class Block(nn.Module):
    """adaLN-zero transformer block, identity at initialisation (Peebles and Xie 2022, arXiv:2212.09748,
    figure 3).

        x <- x + a_1 attention((1 + s_1) norm(x) + b_1),   x <- x + a_2 mlp((1 + s_2) norm(x) + b_2)

    with all six modulations a linear function of the embedding whose weights start at zero. Between the two it attends to the
    tokens of a condition, where there are some.
    """

    heads: int
    ratio: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """Map tokens (batch, tokens, width) and emb (batch, width) to tokens; ``seen`` are the tokens of a condition."""
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=self.dropout == 0.0)
        modulation = nn.Dense(6 * width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="modulation")(emb)
        s1, b1, a1, s2, b2, a2 = rearrange(modulation, "b (six d) -> six b 1 d", six=6)

        q, k, v = projected(modulate(x, s1, b1, self.dtype), 3, self.heads, width, self.dtype, name="qkv")
        h = nn.Dense(width, dtype=self.dtype, name="out")(rearrange(attend(q, k, v), "b t n d -> b t (n d)"))
        x = x + a1 * drop(h)
        if seen is not None:
            x = CrossAttention(self.heads, self.dtype, name="condition")(x, seen)

        h = nn.Dense(self.ratio * width, dtype=self.dtype, name="mlp_in")(modulate(x, s2, b2, self.dtype))
        h = nn.Dense(width, dtype=self.dtype, name="mlp_out")(nn.gelu(h))
        return x + a2 * drop(h)


def transformed(net: Any, tokens: jax.Array, emb: jax.Array, seen: jax.Array | None, features: int, train: bool) -> jax.Array:
    """The blocks of a transformer and its last layer, ``(batch, tokens, features)``, exactly zero at initialisation.

    ``seen`` are the tokens of a condition ``(batch, m, width)``, None for none.

    Called inside the network ``net``, which has the fields ``width``, ``depth``, ``heads``, ``mlp_ratio``, ``dropout``, ``dtype``
    and ``remat``.
    """
    block = nn.remat(Block) if net.remat else Block
    for i in range(net.depth):
        tokens = block(net.heads, net.mlp_ratio, net.dropout if train else 0.0, net.dtype, name=f"block{i}")(tokens, emb, seen)
        tokens = between_blocks(tokens)
    zeros = {"dtype": net.dtype, "kernel_init": nn.initializers.zeros}
    scale, shift = rearrange(nn.Dense(2 * net.width, name="modulation", **zeros)(emb), "b (two d) -> two b 1 d", two=2)
    return nn.Dense(features, name="out", **zeros)(modulate(tokens, scale, shift, net.dtype))
