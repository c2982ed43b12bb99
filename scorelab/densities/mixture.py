"""Gaussian mixtures, closed under every linear-Gaussian process."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.densities.base import Density, as_parameter, law_pytree
from scorelab.densities.gaussian import Gaussian
from scorelab.typing import Array, Key


@law_pytree("log_weights", "components")
class GaussianMixture(Density):
    r""":math:`\sum_k w_k N(\mu_k, \Sigma_k)`.

    Args:
        weights: ``(K,)``, positive; normalised here.
        means: ``(K, *event)``.
        covs: ``(K,)``, ``(K, *event)`` or ``(K, d, d)``: each as in :class:`Gaussian`.
    """

    def __init__(self, weights: Array, means: Array, covs: Array):
        means, covs = np.asarray(means, np.float64), np.asarray(covs, np.float64)
        if covs.ndim == 0:
            covs = np.full(len(means), covs)
        if len(covs) != len(means):
            raise ValueError(f"GaussianMixture got {len(means)} means and {len(covs)} covs: expected as many")
        self._set(weights, [Gaussian(mean, cov) for mean, cov in zip(means, covs, strict=True)])

    @classmethod
    def of(cls, weights: Array, components: list[Gaussian]) -> GaussianMixture:
        """From Gaussians of one event shape and one rank (low-rank covariances come in this way)."""
        self = object.__new__(cls)
        self._set(weights, components)
        return self

    def _set(self, weights, components):
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(components),) or not np.all(weights > 0) or not np.all(np.isfinite(weights)):
            raise ValueError(f"GaussianMixture.weights = {weights!r}: expected {len(components)} positive numbers")
        self.log_weights = as_parameter(np.log(weights / weights.sum()))
        self.components = jax.tree.map(lambda *leaves: jnp.stack(leaves), *components)

    @property
    def event(self):
        """The shape of one point."""
        return self.components.event

    @property
    def weights(self) -> Array:
        """The mixture weights, ``(K,)``."""
        return jnp.exp(self.log_weights)

    def _joint_log_prob(self, x: Array) -> Array:
        """``log w_k + log N_k(x)``, ``(K, batch)``."""
        return self.log_weights[:, None] + jax.vmap(lambda g: g.log_prob(x))(self.components)

    def responsibilities(self, x: Array) -> Array:
        """Posterior probability of each component, ``(K, batch)``."""
        return jax.nn.softmax(self._joint_log_prob(x), axis=0)

    def sample(self, key: Key, n: int) -> Array:
        """``n`` independent points."""
        key_which, key_noise = jax.random.split(key)
        which = jax.random.categorical(key_which, self.log_weights, shape=(n,))
        # One draw per component and point would cost K times the memory; gather the component instead.
        g = jax.tree.map(lambda leaf: leaf[which], self.components)
        keys = jax.random.split(key_noise, n)
        return jax.vmap(lambda component, k: component.sample(k, 1)[0])(g, keys)

    def log_prob(self, x: Array) -> Array:
        """Log density."""
        return jax.nn.logsumexp(self._joint_log_prob(x), axis=0)

    def score(self, x: Array) -> Array:
        r""":math:`\sum_k \gamma_k(x)\,\nabla\log N_k(x)`."""
        return self._average(self.responsibilities(x), jax.vmap(lambda g: g.score(x))(self.components))

    def noised(self, process, t) -> GaussianMixture:
        """The mixture of the noised components; the weights stay."""
        return self._replace_components(jax.vmap(lambda g: g.noised(process, t))(self.components))

    def denoise(self, process, y, t) -> Array:
        """The components' posterior means, weighted by their responsibilities."""
        gamma = self.noised(process, t).responsibilities(y)
        return self._average(gamma, jax.vmap(lambda g: g.denoise(process, y, t))(self.components))

    def _average(self, gamma: Array, values: Array) -> Array:
        return jnp.sum(jnp.expand_dims(gamma, tuple(range(2, values.ndim))) * values, axis=0)

    def _replace_components(self, components: Gaussian) -> GaussianMixture:
        new = object.__new__(GaussianMixture)
        new.log_weights, new.components = self.log_weights, components
        return new
