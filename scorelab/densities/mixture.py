"""Mixtures of Gaussian laws, closed under every linear-Gaussian process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Key, Scalar, is_traced
from scorelab.densities.base import Density, as_parameter, law_pytree
from scorelab.densities.field import DENSE, ConditionedField, GaussianField
from scorelab.densities.gaussian import Gaussian
from scorelab.densities.moments import FAR, moments
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_int, require_number, require_seed


@law_pytree("log_weights", "components")
class Mixture(Density):
    r""":math:`\sum_k w_k p_k` of Gaussian laws of one form and event: fields with several spectra or means, or their posteriors.

    Args:
        weights: ``(K,)``, positive; normalised here.
        components: :class:`GaussianField` laws, or what they are given a measurement; for :class:`Gaussian` laws there is
            :meth:`GaussianMixture.of`.

    Attributes:
        components: the laws in one, every leaf ``(K, ...)``.

    Raises:
        ValueError: weights that are not positive numbers, one for each component; components of more than one event.
        TypeError: components of other kinds, or of more than one.
    """

    def __init__(self, weights: ArrayLike, components: Sequence[GaussianField] | Sequence[ConditionedField]):
        for law in components:
            if not isinstance(law, GaussianField | ConditionedField) or type(law) is not type(components[0]):
                kinds = ", ".join(sorted({type(law).__name__ for law in components}))
                raise TypeError(f"Mixture.components are of the kinds {kinds}: expected one of GaussianField, ConditionedField")
        if len({law.event for law in components}) != 1:
            raise ValueError(f"Mixture.components have the events {[law.event for law in components]}: expected one")
        self._set(weights, components)

    def _set(self, weights, components):
        weights = np.asarray(weights, np.float64)
        if weights.shape != (len(components),) or not np.all(weights > 0) or not np.all(np.isfinite(weights)):
            raise ValueError(f"{type(self).__name__}.weights = {weights!r}: expected {len(components)} positive numbers")
        self.log_weights = as_parameter(np.log(weights / weights.sum()))
        self.components = jax.tree.map(lambda *leaves: jnp.stack(leaves), *components)

    @property
    def event(self):
        """The shape of one point."""
        return self.components.event

    @property
    def weights(self) -> Float[jax.Array, " components"]:
        """The mixture weights, ``(K,)``."""
        return jnp.exp(self.log_weights)

    def _joint_log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " components batch"]:
        """``log w_k + log N_k(x)``, ``(K, batch)``."""
        return self.log_weights[:, None] + jax.vmap(lambda g: g.log_prob(x))(self.components)

    def responsibilities(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " components batch"]:
        """Posterior probability of each component, ``(K, batch)``."""
        return jax.nn.softmax(self._joint_log_prob(x), axis=0)

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        return jax.nn.logsumexp(self._joint_log_prob(x), axis=0)

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`\sum_k \gamma_k(x)\,\nabla\log N_k(x)`."""
        return self._average(self.responsibilities(x), jax.vmap(lambda g: g.score(x))(self.components))

    def noised(self, process: LinearGaussian, t: Scalar) -> Self:
        """The mixture of the noised components; the weights stay."""
        return self._replace_components(jax.vmap(lambda g: g.noised(process, t))(self.components))

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[jax.Array, " batch *event"]:
        """The components' posterior means, weighted by their responsibilities."""
        gamma = self.noised(process, t).responsibilities(y)
        return self._average(gamma, jax.vmap(lambda g: g.denoise(process, y, t))(self.components))

    def _average(
        self, gamma: Float[jax.Array, " components batch"], values: Float[jax.Array, " components batch *event"]
    ) -> Float[jax.Array, " batch *event"]:
        return jnp.sum(jnp.expand_dims(gamma, tuple(range(2, values.ndim))) * values, axis=0)

    def _replace_components(self, components: Any) -> Self:
        new = object.__new__(type(self))
        new.log_weights, new.components = self.log_weights, components
        return new

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points."""
        key_which, key_noise = jax.random.split(key)
        which = jax.random.categorical(key_which, self.log_weights, shape=(n,))
        return _draw_each(self.components, which, jax.random.split(key_noise, len(self.log_weights)))

    def scale(self):
        """See :class:`Density`; from the moments of the components."""
        if is_traced(self):
            return None
        w, means = np.exp(np.asarray(self.log_weights, np.float64)), np.asarray(self.components.mean, np.float64)
        mean = np.tensordot(w, means, axes=1)
        # Slices of known arrays stay known inside an outer jit.
        with jax.ensure_compile_time_eval():
            inside = [jax.tree.map(lambda leaf, k=k: leaf[k], self.components).scale()[1] ** 2 for k in range(len(w))]
        variance = w @ (inside + np.mean((means - mean).reshape(len(w), -1) ** 2, axis=1))
        return float(np.sqrt(np.mean(mean**2))), float(np.sqrt(variance))

    def matched(self) -> Gaussian | None:
        """The dense Gaussian with the mean and the covariance of the mixture; None above 4096 elements."""
        return None if math.prod(self.event) > DENSE else self._matched()

    def _matched(self) -> Gaussian:
        r"""The Gaussian with mean :math:`\sum_k w_k\mu_k` and covariance :math:`\sum_k w_k(\Sigma_k+\delta_k\delta_k^\top)`.

        Its ``reach`` is the largest :math:`|\delta_k|` that is more than four standard deviations along its own direction.
        """
        w, g = np.asarray(self.weights, np.float64), self.components
        means = np.asarray(g.mean, np.float64)
        mean = np.tensordot(w, means, axes=1)
        delta = (means - mean).reshape(len(w), -1)
        covariance = (w[:, None] * delta).T @ delta
        # One component at a time: all their covariances may not fit into memory.
        for k in range(len(w)):
            covariance += w[k] * np.asarray(jax.tree.map(lambda leaf: leaf[k], g).covariance(), np.float64)
        distance = np.linalg.norm(delta, axis=1)
        variance = np.einsum("ki,ij,kj->k", delta, covariance, delta)  # times the squared distance
        return Gaussian(mean, covariance)._reaching(np.max(distance[distance**2 > FAR * np.sqrt(variance)], initial=0.0))


@law_pytree("log_weights", "components")
class GaussianMixture(Mixture):
    r""":math:`\sum_k w_k N(\mu_k, \Sigma_k)`.

    Args:
        weights: ``(K,)``, positive; normalised here.
        means: ``(K, *event)``.
        covs: ``(K,)``, ``(K, *event)`` or ``(K, d, d)``: each as in :class:`Gaussian`.
    """

    def __init__(self, weights: ArrayLike, means: ArrayLike, covs: ArrayLike):
        means, covs = np.asarray(means, np.float64), np.asarray(covs, np.float64)
        if covs.ndim == 0:
            covs = np.full(len(means), covs)
        if len(covs) != len(means):
            raise ValueError(f"GaussianMixture got {len(means)} means and {len(covs)} covs: expected as many")
        self._set(weights, [Gaussian(mean, cov) for mean, cov in zip(means, covs, strict=True)])

    @classmethod
    def of(cls, weights: ArrayLike, components: list[Gaussian]) -> GaussianMixture:
        """From Gaussians of one event shape and one rank (low-rank covariances come in this way)."""
        self = object.__new__(cls)
        self._set(weights, components)
        return self

    @classmethod
    def per_class(cls, points: ArrayLike, label: ArrayLike, *, num_classes: int | None = None, **options: Any) -> GaussianMixture:
        """One Gaussian per class, weighted by frequency.

        Args:
            points: ``(n, *event)``.
            label: ``(n,)`` integers ``0 .. num_classes - 1``, at least two points of each.
            num_classes: the number of classes; None for ``max(label) + 1``.
            **options: as in :meth:`Gaussian.from_data`.
        """
        points, label = np.asarray(points), np.asarray(label)
        if label.shape != points.shape[:1] or not np.issubdtype(label.dtype, np.integer) or label.min(initial=0) < 0:
            raise ValueError(f"per_class.label is {label.dtype} {label.shape}: expected integers >= 0 of shape {points.shape[:1]}")
        if num_classes is not None:
            require_int("per_class", 1, num_classes=num_classes)
        counts = np.bincount(label, minlength=num_classes or 0)
        if len(counts) != (num_classes or len(counts)) or not len(label) or counts.min() < 2:
            raise ValueError(
                f"per_class: the classes have {counts.tolist()} points: expected two or more of each of "
                f"{num_classes or len(counts)} classes, numbered from 0"
            )
        return cls.of(counts, [Gaussian.from_data(points[label == k], **options) for k in range(len(counts))])

    @classmethod
    def fit(
        cls,
        points: Real[Array, " n *event"],
        components: int,
        *,
        rank: int | None = None,
        method: Literal["eigh", "randomized", "streaming"] = "eigh",
        floor: float = 1e-5,
        batch_size: int = 2048,
        seed: int = 42,
    ) -> GaussianMixture:
        """A mixture of the clusters that mini-batch k-means finds, each with its own mean and covariance.

        Args:
            points: ``(n, *event)``.
            components: number of clusters; a cluster that stays empty is left out.
            rank: directions kept of each covariance, None for all.
            method: how the directions are found, as in :meth:`Gaussian.from_data`.
            floor: variance added in every direction, so that a cluster of one point has a density.
            batch_size: of the mini-batch k-means.
            seed: of the mini-batch k-means.

        Source: the fits of arXiv 2412.09726. They keep the k-means weights; no expectation-maximisation follows.
        """
        from sklearn.cluster import MiniBatchKMeans  # takes more than a second, and only this method needs it

        points = np.asarray(points)
        require_int("GaussianMixture.fit", 1, components=components, batch_size=batch_size)
        require_seed("GaussianMixture.fit", seed=seed)
        if components > len(points):
            raise ValueError(f"GaussianMixture.fit.components = {components}: expected at most the {len(points)} points")
        require_number("GaussianMixture.fit", 0.0, np.finfo(np.float32).max, floor=floor)
        flat = points.reshape(len(points), -1)
        kmeans = MiniBatchKMeans(
            components,
            batch_size=batch_size,
            random_state=seed,
            n_init=3,  # pyright: ignore[reportArgumentType]: its type is read off its default, "auto"
        )
        cluster = kmeans.fit_predict(flat)
        clusters = [points[cluster == k] for k in range(components) if np.any(cluster == k)]
        if method != "eigh" and rank is not None and (least := min(map(len, clusters))) < rank:
            raise ValueError(
                f"GaussianMixture.fit.rank = {rank} with method = {method!r}: expected at most the {least} points of the smallest "
                "of the clusters, or method = 'eigh'"
            )
        found = [moments(members, rank=rank, method=method, ddof=0) for members in clusters]
        laws = [Gaussian._make(m.mean, m.basis, m.eigenvalues + floor, m.tail + floor, m.mean.shape, m.reach) for m in found]
        return cls.of([len(members) for members in clusters], laws)

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points."""
        key_which, key_noise = jax.random.split(key)
        which = jax.random.categorical(key_which, self.log_weights, shape=(n,))
        # One draw per component and point would cost K times the memory; gather the component instead.
        g = jax.tree.map(lambda leaf: leaf[which], self.components)
        keys = jax.random.split(key_noise, n)
        return jax.vmap(lambda component, k: component.sample(k, 1)[0])(g, keys)

    def matched(self) -> Gaussian:
        """See :class:`Density`; its ``reach`` is that of the components' means, as in ``scorelab.densities.moments``."""
        return self._matched()


@jax.jit
def _draw_each(components: Any, which: Array, keys: Key) -> jax.Array:
    """A draw of component ``which[i]`` for every ``i``.

    A component may be larger than a point, so that none is copied for each point: all draw, one after another.
    """
    n = len(which)

    def draw(chosen, given):
        k, key, component = given
        mine = jnp.expand_dims(which == k, tuple(range(1, chosen.ndim)))
        return jnp.where(mine, component.sample(key, n), chosen), None

    blank = jnp.zeros((n, *components.event), components.mean.dtype)
    return jax.lax.scan(draw, blank, (jnp.arange(len(keys)), keys, components))[0]
