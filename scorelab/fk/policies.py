r"""Policies: when to resample, and what the weights are afterwards.

A policy takes the log-weights of one population to a :class:`ResampleResult`: ancestors, the log-weights they carry on, and what
went into the normalising constant. **Weights are never dropped**: where nothing is done they are carried as they are, and where
they are used up their derivative is carried, so that ``jax.grad`` of the normalising constant sees the weights along whole paths.
"""

from __future__ import annotations

import abc
from dataclasses import KW_ONLY, dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from scorelab.arrays import Array, Key
from scorelab.fk.checks import require_window
from scorelab.fk.resampling import OUTSIDE, Resampler, multinomial
from scorelab.fk.weights import ess, log_mean_exp
from scorelab.validation import require_int, require_number, require_spec


class ResampleResult(NamedTuple):
    """What a policy decided for one population.

    Attributes:
        index: the ancestor of each particle, ``(N,)``.
        log_weights: the weights after it, ``(N,)``.
        log_z: what moved from the weights into the normalising constant.
        resampled: whether anything was done.
    """

    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    log_weights: Array
    log_z: Array
    resampled: Array


def only_derivative(log_weights: Float[Array, " particles"], index: Int[Array, " offspring"]) -> Float[jax.Array, " offspring"]:
    """Zeros, with the derivative of the ``log_weights`` (those above minus infinity) of the ancestors ``index``.

    Offspring have their weights as expectation, which is all that a derivative needs to know of how they were drawn; without
    this, that of ``log_z`` has the wrong sign already for a parabola. Source: Scibior & Wood, arXiv 2106.10314.
    """
    mine = jnp.where(jnp.isfinite(log_weights), log_weights, 0.0)[index]
    return mine - jax.lax.stop_gradient(mine)


@dataclass(frozen=True)
class Policy(abc.ABC):
    """What is done with the weights; a new one that only says when to resample is a :class:`When`.

    Attributes:
        window: the part of the walk, as fractions of its steps, in which resampling is allowed. Weights accumulate outside.
    """

    _: KW_ONLY
    window: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        object.__setattr__(self, "window", require_window(self, self.window))

    @abc.abstractmethod
    def move(
        self,
        key: Key,
        log_weights: Float[Array, " particles"],
        resampler: Resampler,
        node: Int[Array, ""],
        progress: Float[Array, ""],
    ) -> ResampleResult:
        """Decide for one population; ``node`` counts the grid times from 0, ``progress`` goes from 0 to 1."""

    def may(self, log_weights: Float[Array, " particles"], progress: Float[Array, ""]) -> Bool[Array, ""]:
        """Inside the window, and some weight is finite: else there is nothing to choose from, and the mass stays zero."""
        return (progress >= self.window[0]) & (progress <= self.window[1]) & (jnp.max(log_weights) > -jnp.inf)


@dataclass(frozen=True)
class When(Policy):
    """Resampling at some times; a new one states ``wants``."""

    @abc.abstractmethod
    def wants(self, log_weights: Float[Array, " particles"], node: Int[Array, ""]) -> Bool[jax.Array, ""]:
        """Whether to resample now."""

    def move(
        self,
        key: Key,
        log_weights: Float[Array, " particles"],
        resampler: Resampler,
        node: Int[Array, ""],
        progress: Float[Array, ""],
    ) -> ResampleResult:
        """Resample where the policy wants to and may."""
        # Resampling equal weights would only lose particles.
        differ = jnp.max(log_weights) > jnp.min(log_weights)
        now = self.may(log_weights, progress) & differ & self.wants(log_weights, node)
        index = jnp.where(now, resampler(key, log_weights), jnp.arange(len(log_weights), dtype=jnp.int32))
        gained = jnp.where(now, log_mean_exp(log_weights), 0.0)
        return ResampleResult(index, jnp.where(now, only_derivative(log_weights - gained, index), log_weights), gained, now)


@dataclass(frozen=True)
class Never(When):
    """Sequential importance sampling: weights only."""

    def wants(self, log_weights: Float[Array, " particles"], node: Int[Array, ""]) -> Bool[jax.Array, ""]:
        return jnp.zeros((), bool)


@dataclass(frozen=True)
class Always(When):
    """At every node where weights change."""

    def wants(self, log_weights: Float[Array, " particles"], node: Int[Array, ""]) -> Bool[jax.Array, ""]:
        return jnp.ones((), bool)


@dataclass(frozen=True)
class Every(When):
    """At the grid times whose number is a multiple of ``steps`` (0 is the start)."""

    steps: int

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 1, steps=self.steps)

    def wants(self, log_weights: Float[Array, " particles"], node: Int[Array, ""]) -> Bool[jax.Array, ""]:
        """By the number of the node."""
        return node % self.steps == 0


@dataclass(frozen=True)
class EssBelow(When):
    """Where the effective sample size is below the fraction ``threshold`` of the particles.

    It is never below 1, so that few particles need a higher threshold: two of them are never resampled at 0.5. The decision
    depends on the weights alone, so the estimate of the normalising constant stays unbiased (Whiteley, Lee & Heine, 2016).
    """

    threshold: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        require_number(self, 0.0, 1.0, threshold=self.threshold)

    def wants(self, log_weights: Float[Array, " particles"], node: Int[Array, ""]) -> Bool[jax.Array, ""]:
        """By the weights."""
        return ess(log_weights) < self.threshold * len(log_weights)


@dataclass(frozen=True)
class BirthDeath(Policy):
    r"""The jump process of weights: whoever is below the mean may die, and a copy of one above it takes the place.

    With :math:`v_i = w_i/\bar w`, particle ``i`` dies with probability :math:`(1-v_i)^+`, and a copy of ``j``, drawn in proportion
    to :math:`(v_j-1)^+`, takes its place. Offspring are :math:`v_i` on average and :math:`\log Z` grows by :math:`\log\bar w`, so
    the estimate of ``Z`` is unbiased for steps of any size. Weights of a rate, :math:`w_i = e^{h_i\,d\tau}`, jump at the rates
    :math:`(h_i-\bar h)^\pm` in the limit of small steps. Those of an intermediate reward change by :math:`\sqrt{d\tau}`: their
    number of jumps grows as :math:`d\tau^{-1/2}`, and fewer events (``every``) lose fewer particles.

    Source: arXiv 2503.02819, Proposition 4.1, which has :math:`h_i-\bar h` in the place of :math:`v_i-1`: right for rates only.
    """

    def move(
        self,
        key: Key,
        log_weights: Float[Array, " particles"],
        resampler: Resampler,
        node: Int[Array, ""],
        progress: Float[Array, ""],
    ) -> ResampleResult:
        n = len(log_weights)
        now = self.may(log_weights, progress)
        mean = log_mean_exp(log_weights)
        excess = jnp.expm1(log_weights - jnp.where(now, mean, 0.0))  # v - 1
        key_die, key_born = jax.random.split(key)
        dies = jax.random.uniform(key_die, (n,), log_weights.dtype) < -excess
        # Nobody is above the mean where all are equal, up to rounding, and then nobody dies.
        parents = multinomial(key_born, jnp.log(jnp.maximum(excess, 0.0)))
        place = jnp.arange(n, dtype=jnp.int32)
        index = jnp.where(now & dies & jnp.any(excess > 0), parents, place)
        gained = jnp.where(now, mean, 0.0)
        carried = jnp.where(now, only_derivative(log_weights - gained, index), log_weights)
        return ResampleResult(index, carried, gained, jnp.any(index != place))


@dataclass(frozen=True)
class Islands(Policy):
    """Resampling inside islands, which carry their mass in the weights, and rarely across all of them.

    Particles of different islands may live on different devices: only the masses are exchanged until ``across`` fires.

    Attributes:
        count: islands in a population; the particles are dealt out evenly, in order.
        inside: the policy of each island.
        across: the policy of the population as a whole, for the weights the islands end up with.
    """

    count: int
    inside: Policy = field(default_factory=EssBelow)
    across: Policy = field(default_factory=lambda: EssBelow(0.2))

    def __post_init__(self):
        super().__post_init__()
        require_int(self, 1, count=self.count)
        require_spec(self, Policy, inside=self.inside, across=self.across)

    def move(
        self,
        key: Key,
        log_weights: Float[Array, " particles"],
        resampler: Resampler,
        node: Int[Array, ""],
        progress: Float[Array, ""],
    ) -> ResampleResult:
        n = len(log_weights)
        if n % self.count:
            raise ValueError(f"Islands.count = {self.count}: expected a divisor of the {n} particles of a population")
        key_inside, key_across = jax.random.split(key)
        parts = log_weights.reshape(self.count, -1)
        decide = jax.vmap(lambda k, lw: self.inside.move(k, lw, resampler, node, progress))
        local = decide(jax.random.split(key_inside, self.count), parts)
        # What an island would put into the constant stays with its particles: islands are weighed against one another.
        carried = (local.log_weights + local.log_z[:, None]).reshape(n)
        index = jnp.reshape(local.index + jnp.arange(self.count)[:, None] * (n // self.count), n)
        moved = self.across.move(key_across, carried, resampler, node, progress)
        # An ancestor across the islands that is no particle stays none.
        index = index.at[moved.index].get(mode="fill", fill_value=OUTSIDE)
        return ResampleResult(index, moved.log_weights, moved.log_z, jnp.any(local.resampled) | moved.resampled)
