"""The law of a finite data set, and the isotropic mixture it becomes under noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scorelab.arrays import Array, Key, Scalar, is_traced
from scorelab.densities.base import Density, as_parameter, check_numbers, check_points, check_variances, law_pytree
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_int


@law_pytree("centres", "variance", static=("block",))
class IsotropicMixture(Density):
    r""":math:`\tfrac1n\sum_i N(c_i, v I)` with very many centres, evaluated a block of centres at a time.

    Memory is ``batch * block`` whatever ``n`` is: the blocks are folded by a running log-sum-exp.

    Args:
        centres: ``(n, *event)``.
        variance: ``v``; 0 makes a mixture of points, which has no density until it is noised.
        block: centres per block (static).

    Raises:
        ValueError: no centres, numbers that are not finite, a variance below 0.
    """

    def __init__(self, centres: Float[Array, " n *event"], variance: Scalar, block: int = 1024):
        require_int(self, 1, block=block)
        name = "data" if isinstance(self, Empirical) else "centres"
        check_numbers(self, **{name: centres})
        check_variances(self, variance=variance)
        if np.ndim(centres) < 1 or len(centres) < 1:
            raise ValueError(f"{type(self).__name__}.{name} has shape {np.shape(centres)}: expected (n, *event) with n at least 1")
        if np.ndim(variance) != 0:
            raise ValueError(f"{type(self).__name__}.variance has shape {np.shape(variance)}: expected one number")
        self.centres, self.variance, self.block = as_parameter(centres), as_parameter(variance), block

    @staticmethod
    def _make(centres: Float[jax.Array, " n *event"], variance: Float[jax.Array, ""], block: int) -> IsotropicMixture:
        # Past the checks of the constructor: what is made from a law that passed them is not copied to the host again.
        law = object.__new__(IsotropicMixture)
        law.centres, law.variance, law.block = centres, variance, block
        return law

    @property
    def event(self):
        """The shape of one point."""
        return self.centres.shape[1:]

    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points."""
        key_which, key_noise = jax.random.split(key)
        centres = self.centres[jax.random.randint(key_which, (n,), 0, len(self.centres))]
        return centres + jnp.sqrt(self.variance) * jax.random.normal(key_noise, centres.shape, centres.dtype)

    def _posterior(self, x: Float[Array, " batch *event"]) -> tuple[Float[jax.Array, " batch"], Float[jax.Array, " batch *event"]]:
        r"""``logsumexp_i`` of :math:`-|x-c_i|^2/2v` and the posterior mean of the centre, in one pass over the data."""
        x = check_points(self, x)
        flat = x.reshape(len(x), -1)
        centres = self.centres.reshape(len(self.centres), -1)
        n, block = len(centres), min(self.block, len(centres))
        padding = -n % block
        centres = jnp.pad(centres, ((0, padding), (0, 0))).reshape(-1, block, flat.shape[1])
        valid = jnp.pad(jnp.ones(n, bool), (0, padding)).reshape(-1, block)

        def fold(carry, chunk):
            top, total, mean = carry
            c, ok = chunk
            # Differences, not |x|^2 - 2xc + |c|^2: at small variance the exponent needs every digit of them.
            square = jax.lax.map(lambda row: jnp.sum((row - c) ** 2, -1), flat, batch_size=64)
            logits = jnp.where(ok, -0.5 * square / self.variance, -jnp.inf)
            new_top = jnp.maximum(top, logits.max(-1))
            weights = jnp.exp(logits - new_top[:, None])
            shrink = jnp.exp(top - new_top)
            among = jnp.matmul(weights, c, precision="highest")
            return (new_top, total * shrink + weights.sum(-1), mean * shrink[:, None] + among), None

        start = (jnp.full(len(flat), -jnp.inf, flat.dtype), jnp.zeros(len(flat), flat.dtype), jnp.zeros_like(flat))
        (top, total, mean), _ = jax.lax.scan(fold, start, (centres, valid))
        return top + jnp.log(total), (mean / total[:, None]).reshape(x.shape)

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log density; raises ``ValueError`` for a mixture of points (variance 0)."""
        self._require_density()
        size = max(int(np.prod(self.event)), 1)
        log_sum, _ = self._posterior(x)
        return log_sum - jnp.log(1.0 * len(self.centres)) - 0.5 * size * jnp.log(2 * jnp.pi * self.variance)

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`(E[c\mid x] - x)/v`."""
        self._require_density()
        return (self._posterior(x)[1] - x) / self.variance

    def noised(self, process: LinearGaussian, t: Scalar) -> IsotropicMixture:
        r"""Centres :math:`\alpha c_i + b`, variance :math:`\alpha^2 v + \sigma^2`."""
        alpha = process.alpha(t)
        return self._make(
            jnp.asarray(alpha * self.centres + process.offset(t)),
            jnp.asarray(alpha**2 * self.variance + process.sigma(t) ** 2),
            self.block,
        )

    def denoise(self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar) -> Float[jax.Array, " batch *event"]:
        r""":math:`\bar c + \alpha v\,(y - b - \alpha\bar c)/(\alpha^2 v + \sigma^2)`, with :math:`\bar c` the posterior centre."""
        alpha, sigma, offset = process.alpha(t), process.sigma(t), process.offset(t)
        centre = self._posterior_centre(process, y, t)
        return centre + alpha * self.variance / (alpha**2 * self.variance + sigma**2) * (y - offset - alpha * centre)

    def _posterior_centre(
        self, process: LinearGaussian, y: Float[Array, " batch *event"], t: Scalar
    ) -> Float[jax.Array, " batch *event"]:
        # Work in the clean coordinate: dividing the noised centres by alpha again would lose digits.
        alpha, sigma = process.alpha(t), process.sigma(t)
        signal = jnp.where(alpha > 0, alpha, 1.0)
        clean = self._make(self.centres, jnp.asarray(self.variance + (sigma / signal) ** 2), self.block)
        found = clean._posterior((y - process.offset(t)) / signal)[1]
        # In pure noise all centres are equally likely.
        return jnp.where(alpha > 0, found, jnp.mean(self.centres, axis=0)).astype(found.dtype)

    def _require_density(self):
        if not is_traced(self.variance) and float(self.variance) == 0:
            raise ValueError(f"{type(self).__name__} with variance 0 is a set of points and has no density: use noised(process, t)")


@law_pytree("centres", "variance", static=("block",))
class Empirical(IsotropicMixture):
    """The delta mixture on a data set: its noised law is what an over-fitted network learns.

    Args:
        data: ``(n, *event)``, in the process's chart.
        block: data points per block (static).
    """

    def __init__(self, data: Float[Array, " n *event"], block: int = 1024):
        super().__init__(data, 0.0, block)
