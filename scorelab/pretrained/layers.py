"""Layers of published networks, to the last digit: explicit padding, two-pass statistics, at least float32 where that matters.

Images are ``(batch, height, width, channels)``. Everything is computed in the type of the input, statistics and softmax in
float32 or more, so that a test in float64 is one.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def wide(x: jax.Array) -> jnp.dtype:
    """The type of ``x``, float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def fir(taps: tuple[int, ...]) -> np.ndarray:
    r"""The filter :math:`f f^T / (\sum f)^2`, which has the sum 1."""
    f = np.asarray(taps, np.float64)
    return np.outer(f, f) / f.sum() ** 2


def convolve(x: jax.Array, kernel: jax.Array, padding: int, *, stride: int = 1, dilation: int = 1, groups: int = 1) -> jax.Array:
    """Correlation of images ``(b, h, w, c)`` with ``kernel (k, k, c / groups, out)``, zeros around, as torch counts them."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((padding, padding),) * 2, lhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def resample(x: jax.Array, taps: tuple[int, ...], how: str, padding: int | None = None) -> jax.Array:
    """Each channel at half the sides (``down``) or twice (``up``), smoothed by the filter of ``taps``; zeros around."""
    channels, half = x.shape[-1], (len(taps) - 1) // 2
    kernel = np.repeat(fir(taps)[:, :, None, None], channels, -1)
    if how == "down":
        return convolve(x, jnp.asarray(kernel, x.dtype), half if padding is None else padding, stride=2, groups=channels)
    # A transposed convolution: zeros between, then the filter, which is symmetric.
    return convolve(x, jnp.asarray(4 * kernel, x.dtype), len(taps) - 1 - half, dilation=2, groups=channels)


class Linear(nn.Module):
    """``x @ kernel + bias``, ``kernel (in, out)``."""

    features: int
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map the last axis."""
        y = x @ self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features)).astype(x.dtype)
        return y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype) if self.bias else y


class Conv(nn.Module):
    """Convolution with odd ``size`` and zeros around, after or before a change of the sides.

    Attributes:
        features: channels of the result.
        size: of the kernel.
        how: ``""``, ``"down"`` or ``"up"`` before the convolution.
        taps: of the filter of that.
        fused: ``down`` after the convolution, which has wider zeros around then, and before the bias.
        stride: of the convolution itself.
        padding: zeros on every side; -1 for as many as keep the sides at stride 1.
    """

    features: int
    size: int = 3
    how: str = ""
    taps: tuple[int, ...] = (1, 1)
    fused: bool = False
    stride: int = 1
    padding: int = -1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve images."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        if self.how and not self.fused:
            x = resample(x, self.taps, self.how)
        pad = self.size // 2 if self.padding < 0 else self.padding
        pad += (len(self.taps) - 1) // 2 if self.fused else 0
        y = convolve(x, kernel.astype(x.dtype), pad, stride=self.stride)
        return (resample(y, self.taps, "down", 0) if self.fused else y) + bias


class GroupNorm(nn.Module):
    """Group normalisation, the variance from centred values.

    Attributes:
        epsilon: beside the variance.
        groups: of channels; 0 for ``min(32, channels // 4)``.
    """

    epsilon: float
    groups: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise images."""
        batch, height, width, channels = x.shape
        groups = self.groups or min(32, channels // 4)
        h = x.astype(wide(x)).reshape(batch, height * width, groups, channels // groups)
        h = h - h.mean((1, 3), keepdims=True)
        h = (h * jax.lax.rsqrt(jnp.square(h).mean((1, 3), keepdims=True) + self.epsilon)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return (h * scale + self.param("bias", nn.initializers.zeros, (channels,))).astype(x.dtype)


def attention(qkv: jax.Array, heads: int) -> jax.Array:
    """Self-attention of pixels, ``(b, h, w, 3 c)`` to ``(b, h, w, c)``; channel ``(head d + i) 3 + {0, 1, 2}`` is of q, k, v."""
    batch, height, width, channels = qkv.shape
    parts = qkv.reshape(batch, height * width, heads, channels // (3 * heads), 3)
    q, k, v = (parts[..., i] for i in range(3))
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k).astype(wide(qkv)) / math.sqrt(q.shape[-1])
    out = jnp.einsum("bnqk,bknd->bqnd", nn.softmax(logits, -1).astype(v.dtype), v)
    return out.reshape(batch, height, width, channels // 3)


def waves(c: jax.Array, features: int, *, endpoint: float) -> jax.Array:
    r""":math:`[\cos(w_k c), \sin(w_k c)]` of ``c (b,)``, with :math:`w_k = 10000^{-k / (n - e)}`, n half the features, e 1 or 0."""
    half = features // 2
    frequencies = 10000.0 ** (-np.arange(half) / (half - endpoint))
    angles = c[:, None] * jnp.asarray(frequencies, c.dtype)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class LayerNorm(nn.Module):
    """Normalisation of the last axis, the variance from centred values."""

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis."""
        h = x.astype(wide(x))
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.epsilon)
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        return (h * scale + self.param("bias", nn.initializers.zeros, x.shape[-1:])).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, heads: int, *, causal: bool = False) -> jax.Array:
    """Attention of tokens ``q (b, n, c)`` to ``k (b, m, c)`` and ``v (b, m, c)``; channel ``c`` is of head ``c // d``.

    ``causal`` leaves to each token those before it and itself.
    """
    q, k, v = (part.reshape(*part.shape[:2], heads, part.shape[-1] // heads) for part in (q, k, v))
    logits = jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=wide(q)) / math.sqrt(q.shape[-1])
    if causal:
        logits = jnp.where(jnp.tri(*logits.shape[-2:], dtype=bool), logits, -jnp.inf)
    out = jnp.einsum("bnqk,bknd->bqnd", nn.softmax(logits, -1).astype(v.dtype), v)
    return out.reshape(*out.shape[:2], -1)
