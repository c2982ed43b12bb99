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


# The filter of means of two by two pixels and, upwards, of repetition.
MEAN = (1, 1)


def resample(x: jax.Array, taps: tuple[int, ...], how: str, padding: int | None = None) -> jax.Array:
    """Each channel at half the sides (``down``) or twice (``up``), smoothed by the filter of ``taps``; zeros around."""
    if taps == MEAN and not padding:
        return _half(x) if how == "down" else _twice(x)
    channels, half = x.shape[-1], (len(taps) - 1) // 2
    kernel = np.repeat(fir(taps)[:, :, None, None], channels, -1)
    if how == "down":
        return convolve(x, jnp.asarray(kernel, x.dtype), half if padding is None else padding, stride=2, groups=channels)
    # A transposed convolution: zeros between, then the filter, which is symmetric.
    return convolve(x, jnp.asarray(4 * kernel, x.dtype), len(taps) - 1 - half, dilation=2, groups=channels)


def _half(x: jax.Array) -> jax.Array:
    """The mean of every two by two pixels; a last one without a partner is left out."""
    batch, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2].reshape(batch, height // 2, 2, width // 2, 2, channels)
    return x.mean((2, 4))


def _twice(x: jax.Array) -> jax.Array:
    """Every pixel as two by two of them."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


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
    taps: tuple[int, ...] = MEAN
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
    parts = qkv.reshape(batch, height * width, channels // 3, 3)
    return attend(parts[..., 0], parts[..., 1], parts[..., 2], heads).reshape(batch, height, width, channels // 3)


def waves(c: jax.Array, features: int, *, endpoint: float) -> jax.Array:
    r""":math:`[\cos(w_k c), \sin(w_k c)]` of ``c (b,)``, with :math:`w_k = 10000^{-k / (n - e)}`, n half the features, e 1 or 0."""
    half = features // 2
    frequencies = 10000.0 ** (-np.arange(half) / (half - endpoint))
    angles = c[:, None] * jnp.asarray(frequencies, c.dtype)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class LayerNorm(nn.Module):
    """Normalisation of the last axis, the variance from centred values.

    Attributes:
        epsilon: beside the variance.
        affine: scaled and shifted by parameters.
    """

    epsilon: float = 1e-5
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis."""
        h = x.astype(wide(x))
        h = h - h.mean(-1, keepdims=True)
        h = h * jax.lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + self.epsilon)
        if not self.affine:
            return h.astype(x.dtype)
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


class Table(nn.Module):
    """Rows of numbers, ``(rows, features)``.

    Attributes:
        rows: their number.
        features: of each.
        std: of the numbers that an untrained one draws.
    """

    rows: int
    features: int
    std: float = 0.02

    @nn.compact
    def __call__(self, numbers: jax.Array | None = None) -> jax.Array:
        """The rows of these numbers, NaN for a number that is none; without numbers the whole table."""
        table = jnp.asarray(self.param("embedding", nn.initializers.normal(self.std), (self.rows, self.features)))
        if numbers is None:
            return table
        # Negative ones would count from the end.
        return table.at[jnp.where(numbers < 0, self.rows, numbers)].get(mode="fill", fill_value=jnp.nan)


class Patches(nn.Module):
    """Squares of pixels as tokens, row after row; what is left over at the right and the bottom is left out.

    Attributes:
        features: numbers of a token.
        size: side of a square.
        bias: added to each token.
    """

    features: int
    size: int
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens ``(b, n, features)`` of images."""
        p, (batch, height, width, channels) = self.size, x.shape
        rows, columns = height // p, width // p
        # Squares do not overlap, so their convolution is a product of matrices, whose gradient is fast in a loop too.
        squares = x[:, : rows * p, : columns * p].reshape(batch, rows, p, columns, p, channels).swapaxes(2, 3)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (p, p, channels, self.features)).astype(x.dtype)
        tokens = squares.reshape(batch, rows * columns, -1) @ kernel.reshape(-1, self.features)
        return tokens + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype) if self.bias else tokens
