"""Exponentiated gradient descent: an optimiser that multiplies weights and never changes their signs."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from scorelab.arrays import Array, Pytree

# Magnitudes stay between these. Below the floor one unit in the last place of a float32 would be no normal number,
# which compiled code may flush to zero.
FLOOR, CEILING = 1e-30, 1e30


class ExponentiatedState(NamedTuple):
    """The number of updates so far, int32."""

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]: the name that optax gives it


def exponentiated_gradient(learning_rate: float | optax.Schedule, *, max_exponent: float = 10.0) -> optax.GradientTransformation:
    r"""Multiplicative updates of signed weights: mirror descent with the entropy of :math:`|w|` as the mirror map.

    .. math:: w \leftarrow w\,e^{-\eta\,g\,\mathrm{sign}(w)}
              \quad\Leftrightarrow\quad \log|w| \leftarrow \log|w| - \eta\,\frac{\partial L}{\partial |w|} .

    The sign of a weight never changes (Dale's law), and weights spread on a logarithmic scale. With the negative score
    of :math:`\log x` as the gradient this is the noiseless step of multiplicative diffusion.

    A weight of exactly 0 stays 0, so initialise away from zero and leave biases to an ordinary optimiser::

        optimizer = optax.partition(
            {"multiply": exponentiated_gradient(0.1), "add": optax.adam(1e-3)},
            lambda params: jax.tree.map(lambda p: "multiply" if p.ndim > 1 else "add", params),
        )

    Weights move by :math:`\eta g` in relative size, so rates are larger than those of gradient descent. It comes last
    in ``optax.chain``; momentum, clipping or normalisation of the gradient go before it.

    Args:
        learning_rate: :math:`\eta`, above 0, or a schedule, a function of the number of updates so far.
        max_exponent: the largest size of the exponent of one step. Shrinking is limited further to a factor of eight
            units of the rounding of the weights' type (``exp(-13.9)`` in float32, 1/16 in bfloat16): optax adds
            updates, and closer to ``-w`` the sum would round to 0. An infinite gradient becomes the largest step, NaN stays
            NaN. Magnitudes stay between 1e-30 and 1e30, or what of
            that the type can hold.

    Raises:
        ValueError: a learning rate or ``max_exponent`` that is not a finite number above 0; an update without ``params``.

    Source: Kivinen & Warmuth (1997), "Exponentiated gradient versus gradient descent"; for signed weights Cornford et
    al. (2024) and "Dale meets Langevin" (arXiv 2510.02730).
    """
    if not callable(learning_rate):
        _require_positive(learning_rate=learning_rate)
    _require_positive(max_exponent=max_exponent)

    def init(params: Pytree) -> ExponentiatedState:
        return ExponentiatedState(jnp.zeros((), jnp.int32))

    def update(updates: Pytree, state: Pytree, params: Pytree | None = None) -> tuple[Pytree, ExponentiatedState]:
        if params is None:
            raise ValueError("exponentiated_gradient: params = None: expected the parameters, update(grads, state, params)")
        rate = cast(Array, learning_rate(state.count)) if callable(learning_rate) else learning_rate  # optax allows complex ones
        moves = jax.tree.map(lambda g, w: _move(g, w, rate, max_exponent), updates, params)
        return moves, ExponentiatedState(jnp.asarray(optax.safe_increment(state.count)))

    return optax.GradientTransformation(init, update)


def _move(gradient: Array, weight: Array, rate: Array | float, max_exponent: Array | float) -> Array:
    """``w (exp(-rate g sign w) - 1)``, limited so that the rounded sum with ``w`` keeps its sign and a normal size."""
    kind = jnp.finfo(weight.dtype)
    w = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
    exponent = -rate * gradient.astype(w.dtype) * jnp.sign(w)
    size = jnp.log(jnp.abs(w))
    low, high = math.log(max(FLOOR, float(kind.tiny))), math.log(min(CEILING, float(kind.max) / 2))
    exponent = jnp.clip(exponent, low - size, high - size)
    # Last, so that it holds also for weights that begin outside the range.
    exponent = jnp.clip(exponent, jnp.maximum(-max_exponent, math.log(8 * float(kind.eps))), max_exponent)
    # The where is for infinite gradients, whose product with the sign of 0 is not a number.
    return jnp.where(w == 0, 0.0, w * jnp.expm1(exponent)).astype(weight.dtype)


def _require_positive(**arguments: Array | float) -> None:
    for name, value in arguments.items():
        # optax.inject_hyperparams passes JAX arrays, which under jit have no value to look at.
        if isinstance(value, jax.Array):
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value < math.inf:
            raise ValueError(f"exponentiated_gradient.{name} = {value!r}: expected a finite number above 0")
