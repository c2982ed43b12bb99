r"""The start of a composition: noise at the temperature of the product, from which a Feynman-Kac run weighs on."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from scorelab.arrays import Array, Key, Pytree, is_traced, on_host
from scorelab.densities import Gaussian
from scorelab.models.exact import ExactModel
from scorelab.models.guidance import Conditioned
from scorelab.processes.base import Start, require_same_process
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.pytrees import partly_static
from scorelab.validation import require_spec
from scorelab.warn import warn

# A check of the whole grid takes a decomposition at each time: in more dimensions than these, a few times are looked at.
_DIMENSIONS, _TIMES = 128, 8
_product = functools.partial(jnp.matmul, precision="highest")


class TemperedWarning(UserWarning):
    """A product that may have no law: the powers of the Gaussians that stand in for its experts have none."""


@partly_static("exponents", "laws", "target")
@dataclass(frozen=True, kw_only=True)
class Tempered(Start):
    r"""The Gaussian stand-in for :math:`\prod_i q_i^{b_i}` at the first grid time, with the log-weights that make it right.

    .. math:: \prod_i N(\alpha_t\mu_i+b_t,\ \alpha_t^2\Sigma_i+\sigma_t^2)^{b_i},\qquad
              \text{without moments}\quad N(b_t,\ \sigma_t^2/B),\quad B=\textstyle\sum_i b_i .

    Without moments it needs a start at high noise; with them it may begin in the middle, where a composition has just begun to
    differ from a Gaussian. Log-weights are :math:`\Phi - \log q` with the :math:`\Phi` of ``target`` where that is known, and with
    that of the Gaussians otherwise, so that ``log_z`` means :math:`\log\int e^\Phi` either way.

    Args:
        exponents: :math:`b_i`, numbers or functions of time, with a sum above zero.
        laws: Gaussians with the moments of the experts in the chart (:meth:`scorelab.densities.Gaussian.from_data`), one for all
            experts or one for each; () where they are not known.
        target: what ``log_density(y, t, cond)`` and ``log_tilt(y, t, cond)`` are asked of, a :class:`scorelab.fk.Composition`.

    Raises:
        ValueError: exponents whose sum is not positive; a product that is not normalisable at the first grid time, or at a later
            noisy one where the experts are exact Gaussians without a tilt; a target under another process.

    Warns:
        TemperedWarning: the product of the Gaussians is not normalisable at a later grid time, where they only stand in for the
            experts.
    """

    exponents: tuple[Array | float | Callable[[Array | float], Array], ...] = (1.0,)
    laws: tuple[Gaussian, ...] = ()
    target: Any = field(default=None)

    def __post_init__(self):
        if len(self.laws) not in (0, 1, len(self.exponents)):
            raise ValueError(
                f"Tempered has {len(self.laws)} laws and {len(self.exponents)} exponents: expected no law, one, or one for each"
            )

    def on_grid(self, process, times):
        """Itself, after a look at the process of the target, and at whether the product at the noisy times has a variance."""
        require_spec(self, LinearGaussian, process=process)
        if self.target is not None:
            require_same_process("Tempered", sampled=process, target=self.target.process)
        if not is_traced(self.exponents, self.laws):
            self._look(process, times)
        return self, times

    def _look(self, process: LinearGaussian, times: np.ndarray) -> None:
        with jax.ensure_compile_time_eval():
            exact = self._experts()
        laws = [_Spectral(law) for law in exact or self.laws]
        noisy = times[np.broadcast_to(np.asarray(process.sigma(times)), times.shape) > 0]
        if laws and laws[0].size > _DIMENSIONS:
            noisy = noisy[np.unique(np.linspace(0, len(noisy) - 1, _TIMES).round().astype(int))]
        for t in noisy:
            alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
            with jax.ensure_compile_time_eval():
                exponents = tuple(float(b) for b in self._at(jnp.asarray(t, jnp.float32)))
            if _has_law(exponents, laws, alpha, sigma):
                continue
            message = (
                f"Tempered.exponents = {exponents} at t = {t:.4g}: expected a product with a positive variance in every direction"
            )
            if t == times[0]:
                raise ValueError(f"{message}; start at higher noise or with smaller exponents")
            if exact and self.target.tilt is None:
                raise ValueError(f"{message}; end at higher noise or with smaller exponents")
            warn(
                f"{message}, which the Gaussians of the experts' moments have not: log_z and weights may mean nothing",
                TemperedWarning,
            )
            return

    def _experts(self) -> list[Gaussian]:
        """The laws of the experts of the target where all are known to be Gaussians, else nothing."""
        models = [model.model if isinstance(model, Conditioned) else model for model in getattr(self.target, "models", ())]
        laws = [model.law.in_chart(model.process.chart) for model in models if isinstance(model, ExactModel)]
        known = [law for law in laws if isinstance(law, Gaussian) and not is_traced(law)]
        return known if len(known) == len(models) else []

    def check_arrays(self, count, event):
        for law in self.laws:
            if law.event != tuple(event):
                raise ValueError(f"Tempered.laws has points of shape {law.event}: expected {tuple(event)}")

    def at(self, process: LinearGaussian, t: Array | float, event: tuple[int, ...]) -> Gaussian:
        """The Gaussian at the time ``t``."""
        exponents = self._at(t)
        total = sum(exponents)
        if not self.laws:
            prior = Gaussian._make(jnp.zeros(event, jnp.result_type(t)), jnp.zeros((math.prod(event), 0)), jnp.zeros(0), 0.0, event)
            return power_of(prior.noised(process, t), total)
        noised = [law.noised(process, t) for law in self.laws]
        return power_of(noised[0], total) if len(noised) == 1 else product_of(noised, exponents)

    def draw(self, keys: Key, ids: Int[Array, " batch"], process, t: Float[Array, ""], event) -> Float[Array, " batch *event"]:
        law = self.at(process, t, event)
        return jax.vmap(lambda key: law.sample(key, 1)[0])(keys).astype(t.dtype)

    def log_prob(self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float) -> Float[Array, " batch"]:
        """The log-density of the Gaussian."""
        return self.at(process, t, y.shape[1:]).log_prob(y)

    def weighs(self, process):
        """It does."""
        return True

    def log_weight(
        self, y: Float[Array, " batch *event"], process, t: Float[Array, ""] | float, cond: Pytree = None
    ) -> Float[Array, " batch"]:
        r""":math:`\Phi(y, t) - \log q(y)`."""
        log_density = None if self.target is None else self.target.log_density(y, t, cond)
        if log_density is None:
            tilt = 0.0 if self.target is None else self.target.log_tilt(y, t, cond)
            log_density = self._stand_in(y, process, t) + tilt
        return log_density - self.log_prob(y, process, t)

    def _stand_in(
        self, y: Float[Array, " batch *event"], process: LinearGaussian, t: Float[Array, ""] | float
    ) -> Float[Array, " batch"]:
        r""":math:`\sum_i b_i\log N_i(y)`."""
        if len(self.laws) > 1:
            terms = (b * law.noised(process, t).log_prob(y) for b, law in zip(self._at(t), self.laws, strict=True))
            return jnp.asarray(sum(terms))
        one = Tempered(exponents=(1.0,), laws=self.laws).at(process, t, y.shape[1:])
        return sum(self._at(t)) * one.log_prob(y)

    def _at(self, t: Float[Array, ""] | float) -> tuple[Array | float, ...]:
        return tuple(b(t) if callable(b) else b for b in self.exponents)


class _Spectral:
    """A Gaussian on the host in float64, its basis orthonormal to that precision."""

    def __init__(self, law: Gaussian):
        self.size = law.size
        self.basis = np.linalg.qr(on_host(law.basis).astype(np.float64))[0]
        self.eigenvalues, self.tail = on_host(law.eigenvalues).astype(np.float64), float(law.tail)

    def precision(self, alpha: float, sigma: float) -> np.ndarray:
        """Of the noised law, ``(d, d)``."""
        inside, across = (1 / (alpha**2 * variance + sigma**2) for variance in (self.eigenvalues, self.tail))
        if self.basis.shape[1] == self.size:
            return (self.basis * inside) @ self.basis.T
        return across * np.eye(self.size) + (self.basis * (inside - across)) @ self.basis.T


def _has_law(exponents: tuple[float, ...], laws: list[_Spectral], alpha: float, sigma: float) -> bool:
    """Whether the product of powers of the noised Gaussians, of one where there is one for all or none, has a precision above 0."""
    if len(laws) < 2:
        return 0 < sum(exponents) < math.inf
    parts = [b * law.precision(alpha, sigma) for b, law in zip(exponents, laws, strict=True)]
    values = np.linalg.eigvalsh(sum(parts))
    # Below rounding of the parts a difference is none.
    return bool(values[0] > 1e-12 * max(np.abs(part).max() for part in parts))


def power_of(law: Gaussian, power: Array | float) -> Gaussian:
    """The normalised power of a Gaussian."""
    return Gaussian._make(law.mean, law.basis, law.eigenvalues / power, law.tail / power, law.event)


def product_of(laws: list[Gaussian], exponents: tuple[Array | float, ...]) -> Gaussian:
    """The normalised product of powers of Gaussians; variances of any sign where there is none."""
    event, size = laws[0].event, laws[0].size
    precision, pull = jnp.zeros((size, size)), jnp.zeros(size)
    for law, b in zip(laws, exponents, strict=True):
        inside = law.basis / law.eigenvalues
        across = 0.0 if law.basis.shape[1] == size else (jnp.eye(size) - _product(law.basis, law.basis.T)) / law.tail
        mine = b * (_product(inside, law.basis.T) + across)
        precision = precision + mine
        pull = pull + _product(mine, law.mean.reshape(-1))
    values, vectors = jnp.linalg.eigh(precision)
    mean = _product(vectors, _product(vectors.T, pull) / values)
    return Gaussian._make(mean.reshape(event), vectors, 1 / values, jnp.zeros(()), event)
