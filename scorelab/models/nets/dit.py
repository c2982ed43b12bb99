"""Diffusion transformer over image patches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from scorelab.arrays import Pytree
from scorelab.models.nets.blocks import check_width, positions, transformed
from scorelab.models.nets.conditions import Condition, attended, check_fields, concatenated, entries, of_network
from scorelab.models.nets.dense import Dense
from scorelab.models.nets.layers import Embedding, beside_estimate, check_common, check_inputs
from scorelab.validation import require_int


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Cut images (b, h p, w p, c) into a row of patches (b, h w, p p c)."""
    return rearrange(x, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(tokens: jax.Array, patch: int, rows: int) -> jax.Array:
    """Inverse of ``patchify`` for images of ``rows`` rows of patches."""
    return rearrange(tokens, "b (h w) (p q c) -> b (h p) (w q) c", p=patch, q=patch, h=rows)


class DiT(nn.Module):
    """Diffusion transformer of ``(batch, height, width, channels)``, to the same shape, float32.

    Patches are embedded by a matrix product, so there is no convolution: differentiation inside loops is
    fast with either value of ``loop_safe``, which is there so that ``net.clone(loop_safe=True)`` holds for
    every network. An image whose sides are no multiples of ``patch`` is filled up with zeros below and to the right, and the
    result is cut. The output is exactly zero at initialisation. Peebles and Xie 2022, arXiv:2212.09748.

    Attributes:
        patch: Side of a patch, best one that divides the image. Large patches (7 at 28x28, 16 tokens) are fast on the CPU.
        width: Token width, a multiple of 4 and of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over ``width``.
        num_classes: short for ``condition=Label(num_classes)``; 0 for no labels.
        condition: what it is told beside the noised point (:mod:`scorelab.models.nets.conditions`), of any kind.
        dropout: Rate on each branch, used when ``train=True`` with a ``"dropout"`` rng.
        dtype: Compute dtype, "float32" or "bfloat16"; parameters, statistics and softmax stay float32.
        remat: Recompute each block in the backward pass instead of storing its activations.
        fused_attention: Attention by cuDNN's kernel where device, ``dtype`` and head size allow. It has first
            derivatives in reverse mode only: unset it, with the same parameters, for what differentiates otherwise.
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
    fused_attention: bool = False

    # One noise level for the whole batch is embedded once, as (1,), instead of once per example.
    shares_noise_level = True
    takes_estimate = True

    def __post_init__(self):
        require_int("DiT", 1, patch=self.patch)
        sizes = dict(width=self.width, heads=self.heads, depth=self.depth, mlp_ratio=self.mlp_ratio)
        check_width("DiT", parts=4, **sizes)
        check_common(
            "DiT", num_classes=self.num_classes, dropout=self.dropout, dtype=self.dtype, fused_attention=self.fused_attention
        )
        check_fields("DiT", self.condition, self.num_classes, ("embedding", "channels", "tokens"))
        super().__post_init__()

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
        """Evaluate on ``x (batch, height, width, channels)``, ``c_noise (batch,)`` or ``(1,)`` and a condition."""
        check_inputs(x, c_noise)
        if x.ndim != 4:
            raise ValueError(f"x has shape {x.shape}: DiT accepts (batch, height, width, channels)")
        height, width, channels = x.shape[1:]
        given = entries("DiT", of_network(self), cond, len(x))
        emb = Embedding(self.width, self.dtype, name="embedding")(c_noise, given)

        image = concatenated(given, beside_estimate(x, estimate).astype(self.dtype))
        missing = -height % self.patch, -width % self.patch
        if any(missing):
            image = jnp.pad(image, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        sides = image.shape[1] // self.patch, image.shape[2] // self.patch
        tokens = Dense(self.width, dtype=self.dtype, name="in")(patchify(image, self.patch))
        tokens = tokens + jnp.asarray(positions(sides, self.width), self.dtype)
        seen = attended(given, len(x), self.width, self.dtype)
        h = unpatchify(transformed(self, tokens, emb, seen, self.patch**2 * channels, train), self.patch, sides[0])
        return h[:, :height, :width].astype(jnp.float32)
