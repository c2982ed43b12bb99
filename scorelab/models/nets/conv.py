"""Channel-last convolution in one, two or three dimensions, with channel-last derivatives of every order, for loops on the CPU."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# The names of the axes of sequences, images and volumes.
_AXES = {1: "h", 2: "hw", 3: "dhw"}


class _Geometry(NamedTuple):
    """Static description of one SAME convolution: input size, such as (height, width), side of the kernel, stride."""

    size: tuple[int, ...]
    kernel: int
    stride: int

    @property
    def rank(self) -> int:
        return len(self.size)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.stride,) * self.rank

    @property
    def layout(self) -> tuple[str, str, str]:
        axes = _AXES[self.rank].upper()
        return f"N{axes}C", f"{axes}IO", f"N{axes}C"

    @property
    def out(self) -> tuple[int, ...]:
        return tuple(-(-side // self.stride) for side in self.size)

    @property
    def padding(self) -> list[tuple[int, int]]:
        """Zeros before and after each axis; the odd one goes last, as lax's "SAME" does."""
        total = [max((o - 1) * self.stride + self.kernel - s, 0) for s, o in zip(self.size, self.out, strict=True)]
        return [(p // 2, p - p // 2) for p in total]


def _forward(x, w, *, geometry):
    return lax.conv_general_dilated(x, w, geometry.strides, geometry.padding, dimension_numbers=geometry.layout)


def _input_gradient(dy, w, *, geometry):
    # A stride-1 convolution of dy, zeros inserted between its pixels, with the kernel mirrored along every axis.
    # Written with the ordinary layouts: only those have a fast path in a loop body on the CPU.
    k, stride = geometry.kernel, geometry.stride
    before = [k - 1 - low for low, _ in geometry.padding]
    after = [s + k - 2 - (o - 1) * stride - b for s, o, b in zip(geometry.size, geometry.out, before, strict=True)]
    turned = rearrange(w[(slice(None, None, -1),) * geometry.rank], "... i o -> ... o i")
    return lax.conv_general_dilated(
        dy,
        turned,
        (1,) * geometry.rank,
        list(zip(before, after, strict=True)),
        lhs_dilation=geometry.strides,
        dimension_numbers=geometry.layout,
    )


def _kernel_gradient(x, dy, *, geometry):
    # One (C x NHW)(NHW x O) product per kernel tap; sums over images and pixels are kept in float32.
    k, stride, axes = geometry.kernel, geometry.stride, _AXES[geometry.rank]
    x = jnp.pad(x, ((0, 0), *geometry.padding, (0, 0)))

    def taps(*at):
        if len(at) < geometry.rank:
            return jnp.stack([taps(*at, i) for i in range(k)])
        ends = (i + (out - 1) * stride + 1 for i, out in zip(at, geometry.out, strict=True))
        window = lax.slice(x, (0, *at, 0), (x.shape[0], *ends, x.shape[-1]), (1, *geometry.strides, 1))
        return jnp.einsum(f"n{axes}c,n{axes}o->co", window, dy, preferred_element_type=jnp.float32)

    return taps().astype(x.dtype)


# All three are the same trilinear form sum(y * conv(x, w)) with one argument left out, so each one's
# derivatives are the other two: registering them as bilinear primitives closes the family under jvp and
# transposition of any order. custom_vjp would forbid forward mode, and linear_call has neither a batching
# rule nor second derivatives.
_conv_p = Primitive("loop_safe_conv")
_input_p = Primitive("loop_safe_conv_input_gradient")
_kernel_p = Primitive("loop_safe_conv_kernel_gradient")

ad.defbilinear(
    _conv_p,
    lambda ct, x, w, *, geometry: _input_p.bind(ct, w, geometry=geometry),
    lambda ct, x, w, *, geometry: _kernel_p.bind(x, ct, geometry=geometry),
)
ad.defbilinear(
    _input_p,
    lambda ct, dy, w, *, geometry: _conv_p.bind(ct, w, geometry=geometry),
    lambda ct, dy, w, *, geometry: _kernel_p.bind(ct, dy, geometry=geometry),
)
ad.defbilinear(
    _kernel_p,
    lambda ct, x, dy, *, geometry: _input_p.bind(dy, ct, geometry=geometry),
    lambda ct, x, dy, *, geometry: _conv_p.bind(x, ct, geometry=geometry),
)


def _image_batching(primitive, args, dims, *, geometry):
    """Kernel shared: fold the new axis into the batch. Kernel batched: one image batch after the other."""
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    images, kernel = (a if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True))
    if dims[1] is None:
        out = primitive.bind(rearrange(images, "v n ... -> (v n) ..."), kernel, geometry=geometry)
        return rearrange(out, "(v n) ... -> v n ...", v=size), 0
    # A loop is what these primitives are safe in; the grouped convolution that vmap would give is not.
    if dims[0] is None:
        return lax.map(lambda w: primitive.bind(images, w, geometry=geometry), kernel), 0
    return lax.map(lambda a: primitive.bind(*a, geometry=geometry), (images, kernel)), 0


def _kernel_batching(args, dims, *, geometry):
    # Only pads, slices and matrix products inside: batching and differentiating those is loop-safe as it
    # stands.
    return jax.vmap(partial(_kernel_gradient, geometry=geometry), in_axes=dims)(*args), 0


batching.primitive_batchers[_conv_p] = partial(_image_batching, _conv_p)
batching.primitive_batchers[_input_p] = partial(_image_batching, _input_p)
batching.primitive_batchers[_kernel_p] = _kernel_batching


def _register(primitive, implementation, shape):
    primitive.def_impl(jax.jit(implementation, static_argnames="geometry"))
    primitive.def_abstract_eval(lambda a, b, *, geometry: a.update(shape=shape(a, b, geometry), weak_type=False))
    mlir.register_lowering(primitive, mlir.lower_fun(implementation, multiple_results=False))


_register(_conv_p, _forward, lambda x, w, g: (x.shape[0], *g.out, w.shape[-1]))
_register(_input_p, _input_gradient, lambda dy, w, g: (dy.shape[0], *g.size, w.shape[-2]))
_register(_kernel_p, _kernel_gradient, lambda x, dy, g: (g.kernel,) * g.rank + (x.shape[-1], dy.shape[-1]))


def convolve(x: jax.Array, w: jax.Array, *, stride: int = 1, loop_safe: bool = False) -> jax.Array:
    """SAME cross-correlation of channel-last sequences, images or volumes with a kernel of equal sides.

        y[n, p, q, o] = sum_{i, j, c} x[n, s p + i - a, s q + j - b, c] w[i, j, c, o]

    for images, with stride s and zeros outside; (a, b) is the leading padding of lax's "SAME".

    Autodiff of the plain convolution creates convolutions that XLA's CPU backend runs 8 to 37 times slower
    inside ``scan``, ``fori_loop`` and ``while_loop`` than outside: its fast path in a loop body covers the
    ordinary channel-last layout only. With ``loop_safe`` the input gradient is a channel-last convolution
    and the kernel gradient one matrix product per tap of the kernel, fast everywhere. The forward pass is the same
    operation, and reverse mode, forward mode, ``vmap`` and derivatives of any order work with both. Under ``shard_map``
    ``loop_safe`` wants x and w to vary over the same mesh axes: ``jax.lax.pcast`` the parameters first. A kernel of side 1 is
    a matrix product, with the same bits, whatever ``loop_safe`` is.

    Args:
        x: (batch, length, in), (batch, height, width, in) or (batch, depth, height, width, in).
        w: Kernel, (k, in, out), (k, k, in, out) or (k, k, k, in, out), of the dtype of ``x``.
        stride: 1 or 2.
        loop_safe: Keep the derivatives channel-last. Slower for weight gradients outside loops.

    Returns:
        (batch, ceil(height / stride), ceil(width / stride), out) for images, of the dtype of ``x``.

    Raises:
        ValueError: If the shapes, the dtypes or the stride do not fit.
    """
    if stride not in (1, 2):
        raise ValueError(f"conv.stride = {stride!r}: expected 1 or 2")
    if (rank := x.ndim - 2) not in _AXES:
        raise ValueError(f"x has shape {x.shape}: expected (batch, *sides, channels) with one, two or three sides")
    if w.ndim != x.ndim or len(set(w.shape[:rank])) != 1 or w.shape[-2] != x.shape[-1]:
        raise ValueError(f"w has shape {w.shape}: expected {'(' + 'k, ' * rank}{x.shape[-1]}, out)")
    if x.dtype != w.dtype:
        raise ValueError(f"w has dtype {w.dtype}: expected the dtype of x, {x.dtype}")
    if w.shape[0] == 1:
        # The same products. As a convolution, XLA takes two to eight times as long for the gradient of its kernel on the CPU.
        x = x[:, *[slice(None, None, stride)] * rank]
        return lax.dot_general(x, w.reshape(w.shape[-2:]), (((x.ndim - 1,), (0,)), ((), ())))
    geometry = _Geometry(size=x.shape[1:-1], kernel=w.shape[0], stride=stride)
    return _conv_p.bind(x, w, geometry=geometry) if loop_safe else _forward(x, w, geometry=geometry)
