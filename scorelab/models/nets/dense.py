"""The dense layer, and sums that are float32 in both directions whatever the compute dtype.

The gradient of a number that is added to many is a sum over them. In bfloat16 such a sum stands still at 256 times its terms:
on the CPU, the gradient of a bias that is the sum of 65,536 ones would be 8192.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dense(nn.Module):
    """``x @ kernel + bias`` over the last axis, in the compute dtype; ``kernel (in, features)`` and ``bias`` are float32.

    The product is one of the compute dtype; the bias is added in float32, and so its gradient is summed in float32.
    """

    features: int
    dtype: str = "float32"
    kernel_init: Callable = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(..., in)`` to ``(..., features)`` in the compute dtype."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        y = jax.lax.dot_general(x.astype(self.dtype), kernel.astype(self.dtype), (((x.ndim - 1,), (0,)), ((), ())))
        return added(y, bias)


def wide(x: jax.Array) -> jax.Array:
    """``x`` in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def added(x: jax.Array, y: jax.Array) -> jax.Array:
    """``x + y`` by float32, in the dtype of ``x``; ``y`` may be one for many."""
    return (wide(x) + wide(y)).astype(x.dtype)


def gated(x: jax.Array, gate: jax.Array, h: jax.Array) -> jax.Array:
    """``x + gate h`` by float32, in the dtype of ``x``; ``gate`` may be one for many."""
    return (wide(x) + wide(gate) * wide(h)).astype(x.dtype)


def repeated(x: jax.Array, batch: int) -> jax.Array:
    """``x`` of one row or ``batch`` rows as ``(batch, ...)``."""
    return jnp.broadcast_to(wide(x), (batch, *x.shape[1:])).astype(x.dtype)
