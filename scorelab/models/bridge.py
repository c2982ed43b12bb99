r"""The exact fields of an interpolant between Gaussian mixtures.

For a piece ``k`` of the joint law of data and base, with weight :math:`\pi_k`, means :math:`m, n`, covariances :math:`P, Q`,

.. math:: \mu_k = \alpha m + \beta n,\quad C_k = \alpha^2P + \beta^2Q + \gamma^2I,\quad q_k = C_k^{-1}(y-\mu_k),\quad
          r_k \propto \pi_k\,N(y;\mu_k, C_k),

.. math:: D = \sum_k r_k(m + \alpha Pq_k),\quad W = \sum_k r_k(n + \beta Qq_k),\quad \nabla\log p = -\sum_k r_kq_k,
          \quad \eta = -\gamma\,\nabla\log p .

Data and base are independent, so that a piece is a pair of components.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from scorelab.arrays import Array
from scorelab.densities import Gaussian, GaussianMixture
from scorelab.densities.base import Unnormalised, check_points
from scorelab.processes.interpolant import FlowPrediction, StochasticInterpolant
from scorelab.processes.predictions import HasDenoised, HasLatent, HasLogProb, HasScore

_sum = functools.partial(jnp.einsum, precision="highest")


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


def require_mixture(where: str, law: Unnormalised) -> GaussianMixture:
    """A law as a mixture of Gaussians; TypeError for one that is none."""
    if isinstance(law, Gaussian):
        return GaussianMixture.of([1.0], [law])
    if not isinstance(law, GaussianMixture):
        raise TypeError(f"{where} = {law!r}: expected a Gaussian or a GaussianMixture, whose bridges have a closed form")
    return law


def exact_bridge(law: GaussianMixture, process: StochasticInterpolant, y: Array, t: Array) -> ExactInterpolantPrediction:
    """The prediction for ``y`` ``(batch, *event)`` at one time ``t``, or at a time for each ``(batch,)``."""
    base = require_mixture("StochasticInterpolant.base", law if process.base is None else process.base)
    check_points(law, y)
    # The coefficients outside of the map over examples; a piece has one covariance for all points of one time.
    fields = functools.partial(_fields, _pieces(law, y), _pieces(base, y))
    flat, c = y.reshape(len(y), -1), process.coefficients(t)
    if jnp.ndim(t):
        parts = jax.vmap(lambda y, *c: jax.tree.map(lambda a: a[0], fields(y[None], *c)))(flat, c.alpha, c.beta, c.gamma)
    else:
        parts = fields(flat, c.alpha, c.beta, c.gamma)
    denoised, w, score, log_prob = (part.reshape(y.shape) if part.ndim == 2 else part for part in parts)
    c = c.like(y)
    velocity = c.d_alpha * denoised + c.d_beta * w - c.rate * score
    return ExactInterpolantPrediction(
        y=y,
        velocity=velocity,
        eta=-c.gamma * score,
        score=score,
        denoised=denoised,
        base=w,
        log_prob=log_prob,
        t=t,
        process=process,
    )


def _pieces(law: GaussianMixture, y: Array) -> tuple[Array, Array, Array]:
    """Log-weights ``(K,)``, means ``(K, d)`` and covariances ``(K, d, d)``, in the dtype of ``y``."""
    covariances = jax.vmap(lambda g: g.covariance())(law.components)
    means = law.components.mean.reshape(len(law.log_weights), -1)
    log_weights, means, covariances = (jnp.asarray(a, y.dtype) for a in (law.log_weights, means, covariances))
    return log_weights, means, covariances


def _fields(data, base, y, alpha, beta, gamma):
    (log_w, m, p), (log_v, n, q) = data, base
    size, noise = y.shape[1], jnp.asarray(gamma, y.dtype) ** 2 * jnp.eye(y.shape[1], dtype=y.dtype)
    means = alpha * m[:, None] + beta * n[None]
    roots = jnp.linalg.cholesky(alpha**2 * p[:, None] + beta**2 * q[None] + noise)
    # The inverse of the root and not of the covariance: a product with it whitens, and keeps the digits of a narrow direction.
    whiten = solve_triangular(roots, jnp.broadcast_to(jnp.eye(size, dtype=y.dtype), roots.shape), lower=True)
    white = _sum("ijde,bije->bijd", whiten, y[:, None, None] - means)
    solved = _sum("ijde,bijd->bije", whiten, white)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(roots, axis1=-2, axis2=-1)), -1)
    square = jnp.sum(white**2, -1)
    joint = log_w[:, None] + log_v[None] - 0.5 * (square + log_det + size * math.log(2 * math.pi))
    log_prob = jax.nn.logsumexp(joint, axis=(1, 2))
    r = jnp.exp(joint - log_prob[:, None, None])
    weighted = r[..., None] * solved
    denoised = _sum("bij,id->bd", r, m) + alpha * _sum("ide,bije->bd", p, weighted)
    w = _sum("bij,jd->bd", r, n) + beta * _sum("jde,bije->bd", q, weighted)
    return denoised, w, -jnp.sum(weighted, (1, 2)), log_prob
