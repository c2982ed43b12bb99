"""Classifiers on the features of another network."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.models.nets.conditions import Label, entries
from scorelab.models.nets.dense import Dense
from scorelab.models.nets.layers import Conv, Embedding, check_common
from scorelab.validation import require_int


class Heads(nn.Module):
    """One head for each feature: strided convolutions down to 4x4, two hidden layers with noise and class, one logit.

    ``dtype`` is the compute dtype, "float32" or "bfloat16"; parameters, statistics and logits stay float32.
    """

    width: int = 64
    num_classes: int = 0
    dtype: str = "float32"

    def __post_init__(self):
        require_int("Heads", 1, width=self.width)
        check_common("Heads", num_classes=self.num_classes, dropout=0.0, dtype=self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], c_noise: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """The mean logit of features with a leading batch axis, ``(batch,)`` float32."""
        known = Label(self.num_classes) if self.num_classes else None
        given = entries("Heads", known, cond if known else None, len(c_noise))
        emb = Embedding(self.width, self.dtype, name="embedding")(c_noise, given)
        dense = lambda width, name, **options: Dense(width, dtype=self.dtype, name=name, **options)
        logits = []
        for i, h in enumerate(features):
            h = h.astype(self.dtype)
            stage = 0
            while h.ndim == 4 and min(h.shape[1:3]) > 4:
                h = nn.silu(Conv(self.width, stride=2, dtype=self.dtype, name=f"down{i}_{stage}")(h))
                stage += 1
            h = nn.LayerNorm(dtype=jnp.float32, name=f"norm{i}")(h.reshape(len(h), -1)).astype(self.dtype)
            h = nn.silu(dense(self.width, f"in{i}")(h) + dense(self.width, f"noise{i}")(emb))
            h = nn.silu(dense(self.width, f"hidden{i}")(h))
            logits.append(dense(1, f"out{i}", kernel_init=nn.initializers.zeros)(h)[:, 0])
        return jnp.mean(jnp.stack(logits).astype(jnp.float32), axis=0)
