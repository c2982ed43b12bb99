r"""The exact fields of an interpolant between Gaussian mixtures, whatever joins the two.

The joint law of data and base is a mixture of pieces. For a piece ``k`` with weight :math:`\pi_k`, means :math:`m, n`,
covariances :math:`P, Q` and the cross-covariance :math:`S = \mathrm{Cov}(x, w)`,

.. math:: \mu_k = \alpha m + \beta n,\quad C_k = \alpha^2P + \beta^2Q + \alpha\beta(S+S^\top) + \gamma^2I,\quad
          q_k = C_k^{-1}(y-\mu_k),\quad r_k \propto \pi_k\,N(y;\mu_k, C_k),

.. math:: D = \sum_k r_k\big(m + (\alpha P+\beta S)q_k\big),\quad W = \sum_k r_k\big(n + (\beta Q+\alpha S^\top)q_k\big),\quad
          \nabla\log p = -\sum_k r_kq_k,\quad \eta = -\gamma\,\nabla\log p .

Of independent ends a piece is a pair of components, and ``S`` is 0.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Pytree, is_traced
from scorelab.densities import Gaussian, GaussianMixture
from scorelab.densities.base import Unnormalised, as_parameter
from scorelab.models.base import KnowsDensity
from scorelab.processes.interpolant import FlowPrediction, StochasticInterpolant
from scorelab.processes.predictions import HasDenoised, HasLatent, HasLogProb, HasScore
from scorelab.validation import require_number, require_spec

_sum = functools.partial(jnp.einsum, precision="highest")
# What float32 leaves of moments that are equal.
_CLOSE = 1e-4


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ExactInterpolantPrediction(FlowPrediction, HasLatent, HasScore, HasDenoised, HasLogProb):
    r"""That of known laws, finite at both ends too.

    Attributes:
        eta: :math:`E[z\mid y_t]`.
        score: :math:`\nabla\log p_t`.
        denoised: :math:`E[x\mid y_t]`.
        base: :math:`E[w\mid y_t]`.
        log_prob: :math:`\log p_t(y)`, ``(batch,)``.
    """

    eta: Array
    score: Array
    denoised: Array
    base: Array
    log_prob: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The joint law of data and base as a mixture of Gaussian pieces; its numbers are leaves.

    Attributes:
        log_weights: ``(K,)``.
        data_means: ``(K, d)``.
        base_means: ``(K, d)``.
        data_covs: ``(K, d, d)``.
        base_covs: ``(K, d, d)``.
        cross: :math:`S`, ``(K, d, d)``.
    """

    log_weights: Array
    data_means: Array
    base_means: Array
    data_covs: Array
    base_covs: Array
    cross: Array

    @classmethod
    def independent(cls, law: GaussianMixture, base: GaussianMixture) -> Pieces:
        """Every component of the one law with every component of the other."""
        if law.event != base.event:
            raise ValueError(
                f"the base of an interpolant has points of shape {base.event}: expected {law.event}, those of the data"
            )
        (v, m, p), (w, n, q) = _components(law), _components(base)
        i, j = (index.ravel() for index in np.indices((len(v), len(w))))
        return cls(
            log_weights=v[i] + w[j], data_means=m[i], base_means=n[j], data_covs=p[i], base_covs=q[j], cross=jnp.zeros_like(p[i])
        )

    @classmethod
    def joined(
        cls, law: Gaussian | GaussianMixture, base: Gaussian | GaussianMixture, *, plan: ArrayLike | None = None, std: float = 0.0
    ) -> Pieces:
        r"""Components joined by a plan, and inside a pair of components by entropic optimal transport.

        .. math:: S = \tfrac12\Big(P^{1/2}\big(4P^{1/2}QP^{1/2}+\sigma^4I\big)^{1/2}P^{-1/2} - \sigma^2I\Big),

        the minimiser of :math:`E|x-w|^2/2` with the entropy weighed by :math:`\sigma^2`. With it, a linear path and
        ``Brownian(scale=std)`` are the Schroedinger bridge between two Gaussians; :math:`\sigma=0` is optimal transport.

        Args:
            law: of the data.
            base: the base.
            plan: the weight of every pair of components, ``(components of law, of base)``; None for one component each.
            std: :math:`\sigma`, the deviation of the reference process, at least 0.

        Raises:
            ValueError: a plan without the weights of the components as its sums, or covariances of the data that are singular.
        """
        require_number("Pieces.joined", 0.0, 1e6, std=std)
        data, other = require_mixture("Pieces.joined.law", law), require_mixture("Pieces.joined.base", base)
        if data.event != other.event:
            raise ValueError(f"Pieces.joined.base has points of shape {other.event}: expected {data.event}, those of the data")
        (v, m, p), (w, n, q) = (tuple(np.asarray(a, np.float64) for a in _components(each)) for each in (data, other))
        plan = np.ones((1, 1)) if plan is None else np.asarray(plan, np.float64)
        fits = plan.shape == (len(v), len(w)) and np.all(plan >= 0)
        if not fits or max(np.max(abs(plan.sum(1) - np.exp(v))), np.max(abs(plan.sum(0) - np.exp(w)))) > _CLOSE:
            raise ValueError(
                f"Pieces.joined.plan = {plan.tolist()}: expected weights of {len(v)} x {len(w)} pairs, >= 0, whose sums are "
                f"{np.exp(v).round(6).tolist()} and {np.exp(w).round(6).tolist()}"
            )
        i, j = np.nonzero(plan)
        cross = np.stack([entropic_cross_covariance(p[a], q[b], std) for a, b in zip(i, j, strict=True)])
        made = (np.log(plan[i, j]), m[i], n[j], p[i], q[j], cross)
        names = ("log_weights", "data_means", "base_means", "data_covs", "base_covs", "cross")
        return cls(**{name: as_parameter(value) for name, value in zip(names, made, strict=True)})

    def base_moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of the base, on the host."""
        w, n, q = (np.asarray(a, np.float64) for a in (jnp.exp(self.log_weights), self.base_means, self.base_covs))
        return _moments(w, n, q)

    def fields(self, process: StochasticInterpolant, y: Array, t: Array) -> ExactInterpolantPrediction:
        """The prediction for ``y`` ``(batch, *event)`` at one time ``t``, or at a time for each ``(batch,)``."""
        if (size := math.prod(y.shape[1:])) != self.data_means.shape[1]:
            raise ValueError(
                f"the exact bridge got points of shape {y.shape}: expected events of {self.data_means.shape[1]} elements"
            )
        pieces = jax.tree.map(lambda a: jnp.asarray(a, y.dtype), self)
        flat, c = y.reshape(len(y), size), process.coefficients(t)
        if jnp.ndim(t):
            at = lambda y, *c: jax.tree.map(lambda a: a[0], _fields(pieces, y[None], *c))
            parts = jax.vmap(at)(flat, c.alpha, c.beta, c.gamma)
        else:
            parts = _fields(pieces, flat, c.alpha, c.beta, c.gamma)
        denoised, w, score, log_prob = (part.reshape(y.shape) if part.ndim == 2 else part for part in parts)
        c = c.like(y)
        velocity = c.d_alpha * denoised + c.d_beta * w - c.rate * score
        found = dict(velocity=velocity, eta=-c.gamma * score, score=score, denoised=denoised, base=w, log_prob=log_prob)
        return ExactInterpolantPrediction(y=y, t=t, process=process, **found)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ExactBridge(KnowsDensity):
    """The exact fields of an interpolant whose data and base are joined by known pieces.

    Args:
        pieces: the joint law (:meth:`Pieces.joined`).
        process: the interpolant (static), with the base of the pieces.

    Raises:
        ValueError: a base with other moments than that of the pieces, from which sampling would begin.
    """

    pieces: Pieces
    process: StochasticInterpolant = field(metadata={"static": True})

    def __post_init__(self):
        require_spec(self, StochasticInterpolant, process=self.process)
        if not isinstance(self.pieces, Pieces) or is_traced(self.pieces) or not all(map(_is_array, jax.tree.leaves(self.pieces))):
            return
        _, n, q = _components(require_mixture("StochasticInterpolant.base", self.process.base))
        weights = np.asarray(require_mixture("", self.process.base).weights, np.float64)
        for mine, theirs in zip(self.pieces.base_moments(), _moments(weights, *map(np.asarray, (n, q))), strict=True):
            if mine.shape != theirs.shape or not np.allclose(mine, theirs, atol=_CLOSE * (1 + np.abs(theirs).max())):
                raise ValueError(
                    f"ExactBridge.pieces has a base of mean or covariance {mine.tolist()}: expected {theirs.tolist()}, as the base "
                    "of the process has"
                )

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> ExactInterpolantPrediction:
        """Predict for ``y`` of shape ``(batch, *event)``; ``cond`` is ignored."""
        self.process.check_times("ExactBridge.t", t)
        return self.pieces.fields(self.process, y, jnp.asarray(t, y.dtype))


def require_mixture(where: str, law: Unnormalised) -> GaussianMixture:
    """A law as a mixture of Gaussians; TypeError for one that is none."""
    if isinstance(law, Gaussian):
        return GaussianMixture.of([1.0], [law])
    if not isinstance(law, GaussianMixture):
        raise TypeError(f"{where} = {law!r}: expected a Gaussian or a GaussianMixture, whose bridges have a closed form")
    return law


def entropic_cross_covariance(p: np.ndarray, q: np.ndarray, std: float = 0.0) -> np.ndarray:
    """``Cov(x, w)`` of two Gaussians with the covariances ``p`` and ``q`` under entropic transport; see :meth:`Pieces.joined`.

    Raises:
        ValueError: a singular ``p``.
    """
    values, basis = np.linalg.eigh(p)
    if values.min() <= 1e-12 * values.max():
        raise ValueError(f"Pieces.joined.law has a component with the variances {values}: expected them above 0")
    root, inverse = (basis * values**power @ basis.T for power in (0.5, -0.5))
    inner, turn = np.linalg.eigh(4 * root @ q @ root + std**4 * np.eye(len(p)))
    return 0.5 * (root @ (turn * np.sqrt(np.maximum(inner, 0.0))) @ turn.T @ inverse - std**2 * np.eye(len(p)))


def _is_array(leaf: object) -> bool:
    return isinstance(leaf, Array)


def _moments(weights: np.ndarray, means: np.ndarray, covs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = weights @ means
    return mean, np.einsum("k,kij->ij", weights, covs) + (means - mean).T @ (weights[:, None] * (means - mean))


def _components(law: GaussianMixture) -> tuple[Array, Array, Array]:
    """Log-weights ``(K,)``, means ``(K, d)`` and covariances ``(K, d, d)``."""
    covariances = jax.vmap(lambda g: g.covariance())(law.components)
    return law.log_weights, law.components.mean.reshape(len(law.log_weights), -1), covariances


def _fields(pieces: Pieces, y: Array, alpha: Array, beta: Array, gamma: Array) -> tuple[Array, Array, Array, Array]:
    """``D``, ``W`` and the score ``(batch, d)``, and ``log p`` ``(batch,)``, at one time."""
    m, n, p, q, s = pieces.data_means, pieces.base_means, pieces.data_covs, pieces.base_covs, pieces.cross
    size, transposed = y.shape[1], jnp.swapaxes(s, 1, 2)
    noise = jnp.asarray(gamma, y.dtype) ** 2 * jnp.eye(size, dtype=y.dtype)
    roots = jnp.linalg.cholesky(alpha**2 * p + beta**2 * q + alpha * beta * (s + transposed) + noise)
    # The inverse of the root and not of the covariance: a product with it whitens, and keeps the digits of a narrow direction.
    whiten = solve_triangular(roots, jnp.broadcast_to(jnp.eye(size, dtype=y.dtype), roots.shape), lower=True)
    white = _sum("kde,bke->bkd", whiten, y[:, None] - (alpha * m + beta * n))
    solved = _sum("kde,bkd->bke", whiten, white)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(roots, axis1=-2, axis2=-1)), -1)
    joint = pieces.log_weights - 0.5 * (jnp.sum(white**2, -1) + log_det + size * math.log(2 * math.pi))
    log_prob = jax.nn.logsumexp(joint, axis=1)
    r = jnp.exp(joint - log_prob[:, None])
    weighted = r[..., None] * solved
    denoised = _sum("bk,kd->bd", r, m) + _sum("kde,bke->bd", alpha * p + beta * s, weighted)
    w = _sum("bk,kd->bd", r, n) + _sum("kde,bke->bd", beta * q + alpha * transposed, weighted)
    return denoised, w, -jnp.sum(weighted, 1), log_prob
