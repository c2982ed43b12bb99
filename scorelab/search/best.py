"""Best of N: the plainest search."""

from __future__ import annotations

import jax.numpy as jnp

from scorelab.typing import Array


def best_of(x: Array, rewards: Array, particles: int) -> Array:
    r"""The sample with the largest reward of every ``particles`` in a row: ``(n, *event)`` to ``(n / particles, *event)``.

    **Not a sampler of the tilt**: it goes to the largest reward as ``particles`` grows, with no :math:`\lambda` to say how
    far. What steering is compared with at equal cost. NaN counts as the least; the first of equal ones is taken.

    Raises:
        ValueError: when ``rewards`` is not ``(n,)``, or ``n`` no multiple of ``particles``.
    """
    x, rewards = jnp.asarray(x), jnp.asarray(rewards)
    if rewards.shape != x.shape[:1]:
        raise ValueError(f"best_of.rewards has shape {rewards.shape}: expected {x.shape[:1]}, one per sample")
    if particles < 1 or len(x) % particles:
        raise ValueError(f"best_of.particles = {particles}: expected a divisor of the {len(x)} samples")
    groups = jnp.where(jnp.isnan(rewards), -jnp.inf, rewards).reshape(-1, particles)
    return x[jnp.arange(len(groups)) * particles + jnp.argmax(groups, axis=1)]
