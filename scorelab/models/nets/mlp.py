"""Residual MLP for points and tiny images."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.arrays import Pytree
from scorelab.models.nets.conditions import Condition, check_fields, entries, of_network
from scorelab.models.nets.layers import Embedding, beside_estimate, check_common, check_inputs
from scorelab.models.nets.splits import between_blocks
from scorelab.validation import require_int


class Layer(nn.Module):
    """Residual layer h + W silu((1 + scale) norm(h) + shift), scale and shift linear in the embedding."""

    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array) -> jax.Array:
        """Map h (batch, width) and emb (batch, embed) to (batch, width)."""
        width = h.shape[-1]
        film = nn.Dense(2 * width, dtype=self.dtype, name="film")(emb)
        scale, shift = jnp.split(film, 2, axis=-1)
        u = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)(h)
        u = nn.silu((u * (1.0 + scale) + shift).astype(self.dtype))
        u = nn.Dropout(self.dropout, deterministic=self.dropout == 0.0)(u)
        return h + nn.Dense(width, dtype=self.dtype, name="dense")(u)


class MLP(nn.Module):
    """Residual MLP of ``(batch, *event)``, to the same shape, float32; the event is flattened inside.

    Right for points and for images up to about 8x8; at 28x28 a DiT or a UNet learns far more per
    CPU-second. There is no convolution: differentiation inside loops is fast with either value of
    ``loop_safe``, which is there so that ``net.clone(loop_safe=True)`` holds for every network.

    Attributes:
        width: Hidden width.
        depth: Number of residual layers, one hidden matrix product each.
        embed: Width of the noise and class embedding that modulates every layer.
        num_classes: short for ``condition=Label(num_classes)``; 0 for no labels.
        condition: what it is told beside the noised point (:mod:`scorelab.models.nets.conditions`): a ``Label``, a ``Vector``, or a
            ``Composite`` of them.
        zero_init: Start with an output of exactly zero.
        dropout: Rate inside the layers, used when ``train=True`` with a ``"dropout"`` rng.
        dtype: Compute dtype, "float32" or "bfloat16"; parameters and statistics stay float32.
        remat: Recompute each layer in the backward pass instead of storing its activations.
    """

    width: int = 256
    depth: int = 4
    embed: int = 64
    num_classes: int = 0
    condition: Condition | None = None
    zero_init: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    loop_safe: bool = False
    remat: bool = False

    # One noise level for the whole batch is embedded once, as (1,), instead of once per example.
    shares_noise_level = True
    takes_estimate = True

    def __post_init__(self):
        require_int("MLP", 1, width=self.width, depth=self.depth, embed=self.embed)
        check_common("MLP", num_classes=self.num_classes, dropout=self.dropout, dtype=self.dtype)
        check_fields("MLP", self.condition, self.num_classes, ("embedding",))
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
        """Evaluate on ``x (batch, *event)``, ``c_noise (batch,)`` or ``(1,)`` and a condition."""
        check_inputs(x, c_noise)
        size = math.prod(x.shape[1:])
        given = entries("MLP", of_network(self), cond, len(x))
        emb = Embedding(self.embed, self.dtype, name="embedding")(c_noise, given)

        seen = beside_estimate(x, estimate)
        h = nn.Dense(self.width, dtype=self.dtype, name="in")(seen.astype(self.dtype).reshape(len(x), -1))
        layer = nn.remat(Layer) if self.remat else Layer
        for i in range(self.depth):
            h = between_blocks(layer(self.dropout if train else 0.0, self.dtype, name=f"layer{i}")(h, emb))
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        h = nn.Dense(size, dtype=self.dtype, kernel_init=init, name="out")(nn.silu(h))
        return h.reshape(x.shape).astype(jnp.float32)
