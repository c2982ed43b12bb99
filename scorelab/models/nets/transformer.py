"""Transformer over the elements of a sequence."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.arrays import Pytree
from scorelab.models.nets.blocks import check_width, positions, transformed
from scorelab.models.nets.conditions import Condition, attended, check_fields, concatenated, entries, of_network
from scorelab.models.nets.dense import Dense
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
        num_classes: short for ``condition=Label(num_classes)``; 0 for no labels.
        condition: what it is told beside the noised point (:mod:`scorelab.models.nets.conditions`), of any kind.
        dropout: Rate on each branch, used when ``train=True`` with a ``"dropout"`` rng.
        dtype: Compute dtype, "float32" or "bfloat16"; parameters, statistics and softmax stay float32.
        remat: Recompute each block in the backward pass instead of storing its activations.
        fused_attention: Attention by cuDNN's kernel where device, ``dtype`` and head size allow. It has first
            derivatives in reverse mode only: unset it, with the same parameters, for what differentiates otherwise.
    """

    width: int = 64
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
        sizes = dict(width=self.width, heads=self.heads, depth=self.depth, mlp_ratio=self.mlp_ratio)
        check_width("Transformer", parts=2, **sizes)
        check_common(
            "Transformer",
            num_classes=self.num_classes,
            dropout=self.dropout,
            dtype=self.dtype,
            fused_attention=self.fused_attention,
        )
        check_fields("Transformer", self.condition, self.num_classes, ("embedding", "channels", "tokens"))
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
        """Evaluate on ``x (batch, n, d)``, ``c_noise (batch,)`` or ``(1,)`` and a condition."""
        check_inputs(x, c_noise)
        if x.ndim != 3:
            raise ValueError(f"x has shape {x.shape}: Transformer accepts sequences (batch, n, d)")
        given = entries("Transformer", of_network(self), cond, len(x))
        emb = Embedding(self.width, self.dtype, name="embedding")(c_noise, given)
        sequence = concatenated(given, beside_estimate(x, estimate).astype(self.dtype))
        tokens = Dense(self.width, dtype=self.dtype, name="in")(sequence)
        tokens = tokens + jnp.asarray(positions(x.shape[1:2], self.width), self.dtype)
        seen = attended(given, len(x), self.width, self.dtype)
        return transformed(self, tokens, emb, seen, x.shape[-1], train).astype(jnp.float32)
