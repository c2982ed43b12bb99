"""Diffusion transformer over image patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from scorelab.arrays import Pytree
from scorelab.models.nets.conditions import Condition, attended, check_fields, concatenated, entries, of_network
from scorelab.models.nets.layers import CrossAttention, Embedding, attend, check_common, check_inputs
from scorelab.validation import require_int


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Cut images (b, h p, w p, c) into a row of patches (b, h w, p p c)."""
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: jax.Array, patch: int, rows: int) -> jax.Array:
    """Inverse of ``patchify`` for images of ``rows`` rows of patches."""
    return rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=rows)


def positions(rows: int, columns: int, width: int) -> np.ndarray:
    """Sine-cosine position embedding of a grid, (rows columns, width): half for the row, half for the column.

    Each half is [sin(w_k p), cos(w_k p)] with w_k = 10000^(-4 k / width), k < width / 4 (arXiv:1706.03762).
    """
    frequencies = 10_000.0 ** -(np.arange(width // 4) / (width // 4))
    row, column = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    waves = [wave(p.reshape(-1, 1) * frequencies) for p in (row, column) for wave in (np.sin, np.cos)]
    return np.concatenate(waves, axis=1).astype(np.float32)


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array, dtype: str) -> jax.Array:
    """Layer norm without parameters, then (1 + scale) x + shift; modulation (batch, 1, width)."""
    x = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32, epsilon=1e-6)(x)
    return (x * (1.0 + scale) + shift).astype(dtype)


class Block(nn.Module):
    """adaLN-zero transformer block, identity at initialisation (Peebles and Xie 2022, arXiv:2212.09748,
    figure 3).

        x <- x + a_1 attention((1 + s_1) norm(x) + b_1),   x <- x + a_2 mlp((1 + s_2) norm(x) + b_2)

    and attention to the tokens of a condition between the two,
    with all six modulations a linear function of the embedding whose weights start at zero.
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

        qkv = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(modulate(x, s1, b1, self.dtype))
        q, k, v = rearrange(qkv, "b t (three n d) -> three b t n d", three=3, n=self.heads)
        h = nn.Dense(width, dtype=self.dtype, name="out")(rearrange(attend(q, k, v), "b t n d -> b t (n d)"))
        x = x + a1 * drop(h)
        if seen is not None:
            x = CrossAttention(self.heads, self.dtype, name="condition")(x, seen)

        h = nn.Dense(self.ratio * width, dtype=self.dtype, name="mlp_in")(modulate(x, s2, b2, self.dtype))
        h = nn.Dense(width, dtype=self.dtype, name="mlp_out")(nn.gelu(h))
        return x + a2 * drop(h)


class DiT(nn.Module):
    """Diffusion transformer of ``(batch, height, width, channels)``, to the same shape, float32.

    Patches are embedded by a matrix product, so there is no convolution: differentiation inside loops is
    fast with either value of ``loop_safe``, which is there so that ``net.clone(loop_safe=True)`` holds for
    every network. The output is exactly zero at initialisation. Peebles and Xie 2022, arXiv:2212.09748.

    Attributes:
        patch: Side of a patch; must divide the image. Large patches (7 at 28x28, 16 tokens) are fast on the
            CPU.
        width: Token width, a multiple of 4 and of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over ``width``.
        num_classes: short for ``condition=Label(num_classes)``; 0 for no labels.
        condition: what it is told beside the noised point (:mod:`scorelab.models.nets.conditions`), of any kind.
        dropout: Rate on each branch, used when ``train=True`` with a ``"dropout"`` rng.
        dtype: Compute dtype, "float32" or "bfloat16"; parameters, statistics and softmax stay float32.
        remat: Recompute each block in the backward pass instead of storing its activations.
    """

    patch: int = 7
    width: int = 128
    depth: int = 3
    heads: int = 4
    mlp_ratio: int = 4
    num_classes: int = 0
    condition: Condition | None = None
    dropout: float = 0.0
    dtype: str = "float32"
    loop_safe: bool = False
    remat: bool = False

    # One noise level for the whole batch is embedded once, as (1,), instead of once per example.
    shares_noise_level = True

    def __post_init__(self):
        require_int(
            "DiT",
            1,
            patch=self.patch,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
        )
        check_common("DiT", num_classes=self.num_classes, dropout=self.dropout, dtype=self.dtype)
        check_fields("DiT", self.condition, self.num_classes, ("embedding", "channels", "tokens"))
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"DiT.width = {self.width}: expected a multiple of 4 and of heads = {self.heads}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, c_noise: jax.Array, cond: Pytree = None, *, train: bool = False) -> jax.Array:
        """Evaluate on ``x (batch, height, width, channels)``, ``c_noise (batch,)`` or ``(1,)`` and a condition."""
        check_inputs(x, c_noise)
        if x.ndim != 4 or x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"x has shape {x.shape}: DiT accepts (batch, height, width, channels) with sides "
                f"that are multiples of patch = {self.patch}"
            )
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        given = entries("DiT", of_network(self), cond, len(x))
        emb = Embedding(self.width, self.dtype, name="embedding")(c_noise, given)

        tokens = nn.Dense(self.width, dtype=self.dtype, name="in")(patchify(concatenated(given, x.astype(self.dtype)), self.patch))
        seen = attended(given, len(x), self.width, self.dtype)
        tokens = tokens + jnp.asarray(positions(rows, columns, self.width), self.dtype)
        block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            rate = self.dropout if train else 0.0
            tokens = block(self.heads, self.mlp_ratio, rate, self.dtype, name=f"block{i}")(tokens, emb, seen)

        zeros = {"dtype": self.dtype, "kernel_init": nn.initializers.zeros}
        scale, shift = rearrange(nn.Dense(2 * self.width, name="modulation", **zeros)(emb), "b (two d) -> two b 1 d", two=2)
        h = nn.Dense(self.patch**2 * x.shape[-1], name="out", **zeros)(modulate(tokens, scale, shift, self.dtype))
        return unpatchify(h, self.patch, rows).astype(jnp.float32)
