r"""ReNO: the noise of a one-step generator is optimised for a reward, sample by sample; the generator stays as it is.

Source: Eyring et al., arXiv 2406.04312.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import gammainc, gammaincc

from scorelab.arrays import Array, Pytree, is_traced, on_host
from scorelab.models.rewards import rewards_of
from scorelab.pytrees import is_model_pytree
from scorelab.validation import require_int

# One object for all calls: optax transformations are compared by identity, and another one would compile anew.
NESTEROV = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(5.0, momentum=0.9, nesterov=True))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NoiseCurves:
    r"""How an ascent went: arrays ``(iterations + 1, batch)``, from the first noise to the last.

    Attributes:
        reward: :math:`r(G(z))`.
        radius: :math:`|z|/\sqrt d`, near 1 for noise.
        p_value: the two-sided probability that the norm of noise is as far out, :math:`2\min(F, 1 - F)` with ``F`` the
            distribution function of :math:`|z|^2` under :math:`\chi^2_d`.
        log_density: :math:`\log` of the density of :math:`|z|` (chi, ``d`` degrees of freedom) over its maximum, at most 0.
    """

    reward: Array
    radius: Array
    p_value: Array
    log_density: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class OptimisedNoise:
    """What :func:`optimise_noise` returns: of every sample the iterate with the largest reward.

    Attributes:
        x: :math:`G(z)`, ``(batch, *event)`` of the generator.
        noise: ``z``.
        reward: ``(batch,)``.
        iteration: when it was met, ``(batch,)``; 0 is the noise one began with.
        curves: of all iterates.
    """

    x: Array
    noise: Array
    reward: Array
    iteration: Array
    curves: NoiseCurves


def optimise_noise(
    generator: Callable[..., Array],
    reward: Callable[..., Array],
    noise: Array,
    *,
    cond: Pytree = None,
    iterations: int = 50,
    weight: Array | float = 1.0,
    regularisation: Array | float = 0.01,
    optimizer: optax.GradientTransformation = NESTEROV,
    with_cond: bool = False,
    check_finite: bool = True,
) -> OptimisedNoise:
    r"""Gradient descent on the noise of every sample, in one compiled scan; the best iterate is kept.

    .. math:: L(z) = -w\,r(G(z, c)) + \rho\Big(\frac{|z|^2}{2} - (d-1)\log|z|\Big)

    The second term is minus the log-density of the norm of ``d`` standard normal numbers: it holds :math:`|z|` at
    :math:`\sqrt{d-1}`. **Not a sampler**: with enough iterations the reward is satisfied by whatever satisfies it, and
    ``curves.p_value`` says when ``z`` has left what the generator was made for. The cost is ``iterations + 1`` calls of the
    generator and the reward, each with its gradient.

    The gradient of a convolution inside a scan is slow on the CPU: build networks and rewards with ``loop_safe=True``.

    Args:
        generator: ``generator(z, cond)`` from standard normal noise to points ``(batch, ...)``; a function (pass the same object
            again) or a callable pytree, whose numbers are leaves. Samples must not see one another.
        reward: ``reward(x)`` or, under ``with_cond``, ``reward(x, cond)``, ``(batch,)``, differentiable; for several rewards
            their weighted sum.
        noise: where to begin, ``(batch, *event)`` in floating point; d is the size of an event.
        cond: conditions with leading axis ``batch``, or None.
        iterations: updates; another number compiles anew.
        weight: ``w``.
        regularisation: :math:`\rho`.
        optimizer: an optax transformation, applied to every sample by itself, so that a global norm is that of one sample's
            gradient. By default clipping to the norm .1 and Nesterov's momentum (rate 5, .9).
        with_cond: whether the reward takes the conditions.
        check_finite: raise for numbers that are not finite (not possible under an outer ``jit``).

    Raises:
        FloatingPointError: a reward or a noise became NaN or infinite; the message names the iteration.
        ValueError: arguments that do not fit each other.
    """
    noise = jnp.asarray(noise)
    if noise.ndim < 2 or not noise.size or not jnp.issubdtype(noise.dtype, jnp.floating):
        raise ValueError(f"optimise_noise.noise is {noise.dtype} of shape {noise.shape}: expected floats (batch, *event)")
    for name, fn in (("generator", generator), ("reward", reward)):
        if not callable(fn):
            raise TypeError(f"optimise_noise.{name} = {fn!r}: expected a function or a callable pytree")
    require_int(optimise_noise, 1, iterations=iterations)
    for name, number in (("weight", weight), ("regularisation", regularisation)):
        if jnp.shape(number) != () or not (is_traced(number) or (math.isfinite(number) and number >= 0)):
            raise ValueError(f"optimise_noise.{name} = {number!r}: expected a finite number >= 0")
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimise_noise.optimizer = {optimizer!r}: expected an optax.GradientTransformation")
    for leaf in jax.tree.leaves(cond):
        if jnp.shape(leaf)[:1] != noise.shape[:1]:
            raise ValueError(f"optimise_noise.cond has a leaf of shape {jnp.shape(leaf)}: expected a leading axis of {len(noise)}")
    # A bare function becomes a pytree without leaves, known by its identity.
    generator, reward = (f if is_model_pytree(f) else jax.tree_util.Partial(f) for f in (generator, reward))
    result, bad = _ascend(
        generator, reward, noise, cond, weight, regularisation,
        iterations=iterations, optimizer=optimizer, with_cond=bool(with_cond),
    )  # fmt: skip
    if check_finite and not is_traced(bad):
        _raise_if_bad(on_host(bad), iterations)
    return result


def radial_penalty(z: Array) -> Array:
    r""":math:`|z|^2/2 - (d-1)\log|z|` ``(batch,)``: minus the log-density of the norm of noise, but for a constant."""
    square = jnp.sum(z**2, axis=tuple(range(1, z.ndim)))
    return 0.5 * (square - (math.prod(z.shape[1:]) - 1) * jnp.log(square))


@functools.partial(jax.jit, static_argnames=("iterations", "optimizer", "with_cond"))
def _ascend(generator, reward, noise, cond, weight, regularisation, *, iterations, optimizer, with_cond):
    def loss(z):
        x = generator(z, cond)
        r = rewards_of("optimise_noise", reward, x, cond, with_cond)
        # The sum's gradient is each sample's own: samples do not see one another.
        each = (-weight * r + regularisation * radial_penalty(z)).astype(z.dtype)
        return jnp.sum(each), (x, r.astype(z.dtype), each)

    def moved(gradient, state, z, value):
        # Those that look at the loss (reduce_on_plateau) get that of the sample.
        return optax.with_extra_args_support(optimizer).update(gradient, state, z, value=value)

    def body(state, iteration):
        z, optimiser, best = state
        gradient, (x, r, value) = jax.grad(loss, has_aux=True)(z)
        better = (r > best["reward"]) & jnp.isfinite(r)
        found = dict(x=x, noise=z, reward=r, iteration=jnp.full(len(z), iteration))
        best = jax.tree.map(lambda new, old: jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old), found, best)
        square = jnp.sum(z**2, axis=tuple(range(1, z.ndim)))
        updates, optimiser = jax.vmap(moved)(gradient, optimiser, z, value)
        return (optax.apply_updates(z, updates), optimiser, best), (r, square)

    x = jax.eval_shape(loss, noise)[1][0]
    best = dict(
        x=jnp.zeros(x.shape, x.dtype), noise=noise, reward=jnp.full(len(noise), -jnp.inf, noise.dtype),
        iteration=jnp.zeros(len(noise), jnp.int32),
    )  # fmt: skip
    # The update after the last look is not used: the network stands in the program once, for the price of one more gradient.
    start = noise, jax.vmap(optimizer.init)(noise), best
    (_, _, best), (r, square) = jax.lax.scan(body, start, jnp.arange(iterations + 1, dtype=jnp.int32))
    finite = jnp.isfinite(r) & jnp.isfinite(square)
    bad = jnp.where(jnp.all(finite, axis=0), -1, jnp.argmin(finite, axis=0))
    return OptimisedNoise(**best, curves=_curves(r, square, math.prod(noise.shape[1:]))), bad


def _curves(reward, square, d) -> NoiseCurves:
    low, high = gammainc(0.5 * d, 0.5 * square), gammaincc(0.5 * d, 0.5 * square)
    top = d - 1
    relative = -0.5 * square if top == 0 else 0.5 * (top * jnp.log(square / top) - (square - top))
    return NoiseCurves(
        reward=reward, radius=jnp.sqrt(square / d), p_value=jnp.minimum(2 * jnp.minimum(low, high), 1.0), log_density=relative
    )


def _raise_if_bad(bad: np.ndarray, iterations: int) -> None:
    if np.any(bad >= 0):
        raise FloatingPointError(
            f"{np.sum(bad >= 0)} of {len(bad)} noises or their rewards are not finite; the first became so in iteration "
            f"{bad[bad >= 0].min()} of {iterations}: expected a smaller step, or a reward with a finite gradient"
        )
