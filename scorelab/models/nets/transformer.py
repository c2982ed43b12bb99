"""Transformer over the elements of a sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.models.nets.blocks import check_width, positions, transformed
from scorelab.models.nets.layers import Embedding, beside_estimate, check_common, check_inputs


class Transformer(nn.Module):
    """Transformer of sequences ``(batch, n, d)``, to the same shape, float32; the parameters do not depend on ``n``.

    Every element is a token: a linear map of its ``d`` numbers, and the sines and cosines of its place. The blocks are those of the
    :class:`DiT`. There is no convolution: differentiation inside loops is fast with either value of ``loop_safe``, which is
    there so that ``net.clone(loop_safe=True)`` holds for every network. The output is exactly zero at initialisation.
    Vaswani et al. 2017, arXiv:1706.03762; Peebles and Xie 2022, arXiv:2212.09748.

    Attributes:
        width: Token width, a multiple of 2 and of ``heads``.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of a block's MLP over ``width``.
        num_classes: 0, or the number of labels; label ``num_classes`` is the null label and what ``cond=None``
            means.
        dropout: Rate on each branch, used when ``train=True`` with a ``"dropout"`` rng.
        dtype: Compute dtype, "float32" or "bfloat16"; parameters, statistics and softmax stay float32.
        remat: Recompute each block in the backward pass instead of storing its activations.
    """

    width: int = 64
    depth: int = 3
    heads: int = 4
    mlp_ratio: int = 4
    num_classes: int = 0
    dropout: float = 0.0
    dtype: str = "float32"
    loop_safe: bool = False
    remat: bool = False

    # One noise level for the whole batch is embedded once, as (1,), instead of once per example.
    shares_noise_level = True
    takes_estimate = True

    def __post_init__(self):
        sizes = dict(width=self.width, heads=self.heads, depth=self.depth, mlp_ratio=self.mlp_ratio)
        check_width("Transformer", parts=2, **sizes)
        check_common("Transformer", num_classes=self.num_classes, dropout=self.dropout, dtype=self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        cond: jax.Array | None = None,
        *,
        estimate: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Evaluate on ``x (batch, n, d)``, ``c_noise (batch,)`` and labels, ``()`` or ``(batch,)``."""
        check_inputs(x, c_noise)
        if x.ndim != 3:
            raise ValueError(f"x has shape {x.shape}: Transformer accepts sequences (batch, n, d)")
        emb = Embedding(self.width, self.num_classes, self.dtype, name="embedding")(c_noise, cond)
        tokens = nn.Dense(self.width, dtype=self.dtype, name="in")(beside_estimate(x, estimate).astype(self.dtype))
        tokens = tokens + jnp.asarray(positions(x.shape[1:2], self.width), self.dtype)
        return transformed(self, tokens, emb, x.shape[-1], train).astype(jnp.float32)
