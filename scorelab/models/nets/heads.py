"""Classifiers on the features of another network."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from scorelab.models.nets.conditions import Label, entries
from scorelab.models.nets.layers import Conv, Embedding
from scorelab.validation import require_int


class Heads(nn.Module):
    """One head for each feature: strided convolutions down to 4x4, two hidden layers with noise and class, one logit."""

    width: int = 64
    num_classes: int = 0

    def __post_init__(self):
        require_int("Heads", 1, width=self.width)
        super().__post_init__()

    @nn.compact
    def __call__(self, features: tuple[jax.Array, ...], c_noise: jax.Array, cond: jax.Array | None = None) -> jax.Array:
        """The mean logit of features with a leading batch axis, ``(batch,)`` float32."""
        known = Label(self.num_classes) if self.num_classes else None
        given = entries("Heads", known, cond if known else None, len(c_noise))
        emb = Embedding(self.width, "float32", name="embedding")(c_noise, given)
        logits = []
        for i, h in enumerate(features):
            h = h.astype(jnp.float32)
            stage = 0
            while h.ndim == 4 and min(h.shape[1:3]) > 4:
                h = nn.silu(Conv(self.width, stride=2, name=f"down{i}_{stage}")(h))
                stage += 1
            h = nn.LayerNorm(name=f"norm{i}")(h.reshape(len(h), -1))
            h = nn.silu(nn.Dense(self.width, name=f"in{i}")(h) + nn.Dense(self.width, name=f"noise{i}")(emb))
            h = nn.silu(nn.Dense(self.width, name=f"hidden{i}")(h))
            logits.append(nn.Dense(1, kernel_init=nn.initializers.zeros, name=f"out{i}")(h)[:, 0])
        return jnp.mean(jnp.stack(logits), axis=0)
