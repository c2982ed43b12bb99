"""Layers shared by the networks: convolution, group norm, attention, the sum of embeddings, field checks."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.extend.backend import get_backend

from scorelab.models.nets.conditions import Entry, embedded
from scorelab.models.nets.conv import convolve
from scorelab.models.nets.dense import Dense, added
from scorelab.models.nets.splits import constraints
from scorelab.validation import require_int

COMPUTE_DTYPES = ("float32", "bfloat16")


def check_common(owner: str, *, num_classes: int, dropout: float, dtype: str, fused_attention: bool = False) -> None:
    """Raise ValueError unless the fields that every network has are in range."""
    require_int(owner, 0, num_classes=num_classes)
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{owner}.dropout = {dropout!r}: expected a number in [0, 1)")
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"{owner}.dtype = {dtype!r}: expected one of {COMPUTE_DTYPES}")
    if not isinstance(fused_attention, bool):
        raise ValueError(f"{owner}.fused_attention = {fused_attention!r}: expected True or False")


def group_count(channels: int) -> int:
    """Largest number of equal groups of at least 4 channels, at most 32; 1 below 8 channels."""
    return max(g for g in range(1, min(32, max(1, channels // 4)) + 1) if channels % g == 0)


class Conv(nn.Module):
    """SAME convolution of channel-last sequences, images or volumes, ``(batch, *sides, in)`` to ``(..., features)``.

    ``loop_safe`` changes how derivatives are computed, not the function nor its parameters: a network trained
    without it may be rebuilt with it for gradient guidance inside a sampler's scan on the CPU.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    bias: bool = True
    zero_init: bool = False
    dtype: str = "float32"
    loop_safe: bool = False

    def __post_init__(self):
        require_int("Conv", 1, features=self.features, kernel=self.kernel)
        if self.stride not in (1, 2):
            raise ValueError(f"Conv.stride = {self.stride!r}: expected 1 or 2")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve ``(batch, *sides, channels)`` in the compute dtype."""
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        w = self.param("kernel", init, (*(self.kernel,) * (x.ndim - 2), x.shape[-1], self.features), jnp.float32)
        y = convolve(x.astype(self.dtype), w.astype(self.dtype), stride=self.stride, loop_safe=self.loop_safe)
        return added(y, self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)) if self.bias else y


class GroupNorm(nn.Module):
    r"""Group normalisation with a feature-wise modulation folded in (arXiv:1803.08494, arXiv:1709.07871).

    .. math:: y = (1 + \mathrm{scale})\Big(\gamma\,\frac{x - m}{\sqrt{v + \epsilon}} + \beta\Big) + \mathrm{shift}

    Mean :math:`m` and variance :math:`v` run over the pixels and the channels of a group. x: ``(batch, *sides, channels)`` with any
    number of sides; scale, shift: ``(batch, channels)`` or None. Statistics and coefficients are float32; the result
    has the dtype of x.
    """

    groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, scale: jax.Array | None = None, shift: jax.Array | None = None) -> jax.Array:
        """Normalise ``x`` ``(batch, *sides, channels)``, then modulate it."""
        channels = x.shape[-1]
        if self.groups < 1 or channels % self.groups:
            raise ValueError(f"GroupNorm.groups = {self.groups!r}: expected a divisor of {channels} channels")
        # Two stages: a reduction over pixels that keeps the channels contiguous, then a tiny one over the
        # group. XLA's CPU backend takes about half the time of one reduction over a 5-axis view.
        wide, sides = x.astype(jnp.float32), tuple(range(1, x.ndim - 1))
        mean, square = (jnp.mean(rearrange(jnp.mean(v, sides), "b (g c) -> b g c", g=self.groups), -1) for v in (wide, wide * wide))
        # Rounding can take the difference of moments below zero on constant inputs.
        rstd = jax.lax.rsqrt(jnp.maximum(square - mean * mean, 0.0) + self.epsilon)
        # To every channel that of its group, as a sum with zeros. XLA's CPU backend would look up what is repeated for every pixel
        # anew, in a loop that is not vectorised then: up to seven times as long.
        members = np.repeat(np.eye(self.groups, dtype=np.float32), channels // self.groups, axis=1)
        mean, rstd = (jnp.sum(v[:, :, None] * members, 1) for v in (mean, rstd))
        slope = rstd * self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32) - mean * slope
        if scale is not None:
            gain = 1.0 + scale.astype(jnp.float32)
            slope, offset = slope * gain, offset * gain
        if shift is not None:
            offset = offset + shift.astype(jnp.float32)
        slope, offset = (jnp.expand_dims(v, sides) for v in (slope, offset))
        return (wide * slope + offset).astype(x.dtype)


def noise_features(c_noise: jax.Array, features: int) -> jax.Array:
    """Sines and cosines of c_noise at geometric frequencies, (batch,) -> (batch, features), float32.

        [cos(w_k c), sin(w_k c)],   w_k = 1/4 ... 64 radians per unit

    The range suits a log-noise quantity of order 1 such as EDM's log(sigma) / 4: the slowest wave is
    monotone over it, the fastest resolves a change of sigma by 10 %. After Vaswani et al. 2017,
    arXiv:1706.03762, section 3.5.
    """
    # Constants, not a random buffer: the variables of a network are its parameters only.
    frequencies = np.geomspace(0.25, 64.0, features // 2).astype(np.float32)
    angles = jnp.asarray(c_noise, jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class Embedding(nn.Module):
    """Conditioning vector of a noise level and of the members of a condition that enter here, (batch, width).

    e = silu(W_2 silu(W_1 features(c_noise)) + sum of the embeddings of the members)
    """

    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, c_noise: jax.Array, given: tuple[Entry, ...] = ()) -> jax.Array:
        """Embed c_noise (batch,) or (1,) and the :func:`~scorelab.models.nets.conditions.entries` of a condition."""
        features = noise_features(c_noise, 2 * max(8, self.width // 4))
        h = nn.silu(Dense(self.width, dtype=self.dtype, name="hidden")(features))
        h = Dense(self.width, dtype=self.dtype, name="out")(h)
        return nn.silu(embedded(given, h, self.width, self.dtype))


def attend(q: jax.Array, k: jax.Array, v: jax.Array, *, fused: bool = False) -> jax.Array:
    """Softmax attention softmax(q k^T / sqrt(d)) v over (batch, tokens, heads, d), softmax in float32.

    ``fused`` asks for the kernel of cuDNN, which keeps no matrix of weights (Dao et al. 2022, arXiv:2205.14135). It is taken on a
    CUDA device, for factors of 16 bits and a ``d`` that is a multiple of 8 up to 128; elsewhere ``fused`` changes nothing. It
    has first derivatives in reverse mode, and no others.
    """
    if fused and _fits_cudnn(q):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # The same as jax.nn.dot_product_attention(implementation="xla"), whose gradient takes up to six times as long on the CPU.
    weights = nn.softmax(_logits(q, k) * q.shape[-1] ** -0.5, axis=-1)
    return jnp.einsum("bnqk,bknd->bqnd", weights.astype(v.dtype), v)


def _fits_cudnn(q: jax.Array) -> bool:
    fits = q.dtype in (jnp.bfloat16, jnp.float16) and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
    return fits and "cuda" in get_backend().platform_version


@jax.custom_jvp
def _logits(q, k):
    """``q k^T`` in at least float32, of factors of any type."""
    return jnp.einsum("bqnd,bknd->bnqk", q, k, preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))


@_logits.defjvp
def _logits_jvp(primals, tangents):
    # The transpose of the product above multiplies a float32 gradient with bfloat16 factors, which an accelerator does in
    # float32. The tangent of the type of the factors has a transpose of that type.
    (q, k), (dq, dk) = primals, tangents
    out = _logits(q, k)
    along = jnp.einsum("bqnd,bknd->bnqk", dq, k) + jnp.einsum("bqnd,bknd->bnqk", q, dk)
    return out, along.astype(out.dtype)


class ByHeads(nn.Module):
    """The parameters and the function of ``Dense(parts * width)``, as a product that devices share by heads."""

    parts: int
    heads: int
    width: int
    dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(batch, t, any)`` to ``(parts, batch, t, heads, width / heads)``."""
        shape = (self.parts, self.heads, self.width // self.heads)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.parts * self.width), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.parts * self.width,), jnp.float32)
        kernel = constraints.get().heads(kernel.reshape(-1, *shape)).astype(self.dtype)
        bias = jnp.expand_dims(bias.reshape(shape), (1, 2))
        return added(jnp.einsum("btc,cpnd->pbtnd", x.astype(self.dtype), kernel), bias)


def projected(x: jax.Array, parts: int, heads: int, width: int, dtype: str, name: str) -> jax.Array:
    """``parts`` linear maps of tokens ``(batch, t, any)``, as ``(parts, batch, t, heads, width / heads)``; called inside a module.

    Queries, keys and values lie beside one another in one kernel. Split over devices as it lies, they would have to be brought
    together token by token: there the kernel is split by heads instead, which is far less to move.
    """
    model = constraints.get().model
    if model > 1 and heads % model == 0:
        return ByHeads(parts, heads, width, dtype, name=name)(x)
    y = Dense(parts * width, dtype=dtype, name=name)(x)
    return rearrange(y, "b t (p n d) -> p b t n d", p=parts, n=heads)


def beside_estimate(x: jax.Array, estimate: jax.Array | None) -> jax.Array:
    """What a network sees of its input: ``x``, and as further channels the estimate of its former call where it is given one.

    Chen et al. 2022, arXiv:2208.04202, section 3.2. ValueError for an estimate of another shape than ``x``.
    """
    if estimate is None:
        return x
    if estimate.shape != x.shape:
        raise ValueError(f"estimate has shape {estimate.shape}: expected that of x, {x.shape}")
    return jnp.concatenate([x, estimate], axis=-1)


class CrossAttention(nn.Module):
    """Residual attention of ``x (batch, t, width)`` to given tokens ``(batch, m, any)``, identity at initialisation.

        x <- x + W_o attention(q = W_q norm(x), k = W_k tokens, v = W_v tokens)

    Without modulation, as in PixArt (arXiv:2310.00426).
    """

    heads: int
    dtype: str
    fused: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """Attend to the tokens."""
        width = x.shape[-1]
        h = nn.LayerNorm(dtype=jnp.float32, epsilon=1e-6, name="norm")(x).astype(self.dtype)
        q = rearrange(Dense(width, dtype=self.dtype, name="q")(h), "b t (n d) -> b t n d", n=self.heads)
        k, v = projected(tokens.astype(self.dtype), 2, self.heads, width, self.dtype, name="kv")
        h = rearrange(attend(q, k, v, fused=self.fused), "b t n d -> b t (n d)")
        return x + Dense(width, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(h)


def check_inputs(x: jax.Array, c_noise: jax.Array) -> None:
    """Raise ValueError unless there is one noise level per example, or one row for all of them."""
    if x.ndim < 2 or c_noise.shape not in (x.shape[:1], (1,)):
        raise ValueError(f"x has shape {x.shape} and c_noise {c_noise.shape}: expected (batch, *event) and (batch,) or (1,)")
