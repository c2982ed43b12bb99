"""Best of N: the plainest search."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scorelab.arrays import Array, Pytree


def best_of(x: Pytree, rewards: Array, particles: int) -> Pytree:
    r"""The sample with the largest reward of every ``particles`` in a row: ``(n, *event)`` to ``(n / particles, *event)``.

    **Not a sampler of the tilt**: it goes to the largest reward as ``particles`` grows, with no :math:`\lambda` to say how
    far. What steering is compared with at equal cost. NaN counts as the least; the first of equal ones is taken.

    Raises:
        ValueError: when ``rewards`` is not ``(n,)``, or ``n`` no multiple of ``particles``.
    """
    x, rewards = jax.tree.map(jnp.asarray, (x, rewards))
    n = jax.tree.leaves(x)[0].shape[:1]
    if rewards.shape != n:
        raise ValueError(f"best_of.rewards has shape {rewards.shape}: expected {n}, one per sample")
    if particles < 1 or len(rewards) % particles:
        raise ValueError(f"best_of.particles = {particles}: expected a divisor of the {len(rewards)} samples")
    groups = jnp.where(jnp.isnan(rewards), -jnp.inf, rewards).reshape(-1, particles)
    best = jnp.arange(len(groups)) * particles + jnp.argmax(groups, axis=1)
    return jax.tree.map(lambda leaf: leaf[best], x)
