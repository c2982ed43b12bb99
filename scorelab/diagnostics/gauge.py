"""Which part of a model's error changes what it samples: the gauge residual, and the projection of the error on gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.densities import Density
from scorelab.diagnostics.blocks import standard_error
from scorelab.diagnostics.levels import by_level
from scorelab.divergence import BLOCK, dot, pushed, signs, trace
from scorelab.losses.conservativity import predicted_noise
from scorelab.models.base import Model, Wraps, ask
from scorelab.models.exact import ExactModel
from scorelab.models.function import as_pytree
from scorelab.processes.base import Noised
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_int, require_positive, require_seed, require_spec

# Gradients of potentials that are held at once, as numbers.
_MOST = 1 << 27

Potentials = Callable[[Array], Array]


@dataclass(frozen=True, kw_only=True)
class GaugeResidual:
    r"""What :func:`gauge_residual` returns: float64 arrays ``(k,)``, means over the points, in units of predicted noise.

    With :math:`e = \hat\epsilon_\theta - \hat\epsilon = -\sigma r`, ``d`` elements of a point, and its projection
    :math:`Pe` on the gradients of the potentials:

    Attributes:
        sigmas: the noise ratios.
        mean_square: :math:`E[g^2]/d`, with :math:`g = -\sigma^2(\nabla\!\cdot r + r\cdot\nabla\log p)`.
        standard_error: of ``mean_square``, over the points; NaN for a single point.
        error: :math:`E|e|^2/d`.
        gradient: :math:`E|Pe|^2/d`, the part of ``error`` that is a gradient and so changes the law, as far as the potentials
            have it: a lower bound. A fit to few points finds a share of about ``potentials / (n d)`` in anything.
        remainder: ``error - gradient``, exactly. It changes nothing where ``remainder_residual`` is zero.
        remainder_residual: :math:`E[g^2]/d` of :math:`e - Pe`: what the potentials do not explain of the residual.
        potentials: how many there are, 0 for none; then the last three are NaN.
    """

    sigmas: np.ndarray
    mean_square: np.ndarray
    standard_error: np.ndarray
    error: np.ndarray
    gradient: np.ndarray
    remainder: np.ndarray
    remainder_residual: np.ndarray
    potentials: int


def quadratic(z: Array) -> jax.Array:
    r"""The potentials :math:`z_i` and :math:`z_iz_j` of points ``(n, d)``, ``(n, d + d(d+1)/2)``: every linear gradient field."""
    i, j = np.triu_indices(z.shape[1])
    return jnp.concatenate([z, z[:, i] * z[:, j]], axis=1)


@dataclass(frozen=True)
class Waves:
    r"""The potentials :func:`quadratic` and ``count`` waves :math:`\cos(w\cdot z + b)` with :math:`w\sim N(0, c^2 I)`.

    Attributes:
        count: how many waves.
        frequency: :math:`c`, over the deviation of the points.
        seed: of the random numbers, drawn on the host.
    """

    count: int = 100
    frequency: float = 2.0
    seed: int = 0

    def __post_init__(self):
        require_int(self, 1, count=self.count)
        require_positive(self, frequency=self.frequency)
        require_seed(self, seed=self.seed)

    def __call__(self, z: Array) -> jax.Array:
        """Of points ``(n, d)``, ``(n, d + d(d+1)/2 + count)``."""
        random = np.random.default_rng(self.seed)
        wave = self.frequency * random.normal(size=(z.shape[1], self.count))
        phase = random.uniform(0, 2 * np.pi, self.count)
        return jnp.concatenate([quadratic(z), jnp.cos(z @ jnp.asarray(wave, z.dtype) + jnp.asarray(phase, z.dtype))], axis=1)


def gauge_residual(
    model: Model,
    law: Density,
    data: Array,
    sigmas: Array,
    *,
    potentials: Potentials | None = quadratic,
    probes: int = 0,
    cond: Pytree = None,
    key: Key | None = None,
    batch: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> GaugeResidual:
    r"""How far the error of a model is from a gauge, which changes the score and nothing that is sampled, beside an exact law.

    The error :math:`r = s_\theta - \nabla\log p_t` moves the marginals of the flow by :math:`\nabla\!\cdot(p_t r)` alone. So
    they stay those of the law where

    .. math:: \nabla\!\cdot r + r\cdot\nabla\log p_t = 0

    at all times; :math:`r = J\nabla\log p_t` with a constant antisymmetric :math:`J` is an example, which is no gradient. Every
    error is :math:`r = \nabla\psi + r_0` with a gauge :math:`r_0`, and the two are orthogonal,

    .. math:: E|s_\theta - s|^2 = E|\nabla\psi|^2 + E|r_0|^2,\qquad E[\nabla\psi\cdot r_0] = -\int\psi\,\nabla\!\cdot(p\,r_0) = 0 .

    Here :math:`\psi` is a combination of given potentials, found by least squares over the points. That is exact where the
    potentials are rich enough (quadratic ones for a linear error of a Gaussian), and ``remainder_residual`` says whether they are.

    Args:
        model: the model.
        law: the law of the data in the chart, or one that the chart knows.
        data: draws of the law in data space, ``(n, *event)``. The residual is zero at any points; expectations are of these.
        sigmas: noise ratios :math:`\sigma/\alpha` ``(k,)``, in the units of the chart.
        potentials: a hashable JAX function of points ``(n, d)``, flattened, centred and over their deviation, that returns
            ``(n, m)``: :func:`quadratic`, :class:`Waves` or your own. None for no decomposition. It takes memory for ``n d m``
            numbers, so it is for few dimensions.
        probes: 0 for the exact divergence; else the number, 2 or more, of Rademacher probes. Squares are without bias, so
            that they may be below zero by chance.
        cond: the model's conditions, with leading axis ``n``.
        key: PRNG key, ``jax.random.key(0)`` by default.
        batch: points evaluated at once.
        progress: called with (points done, points wanted) after each batch.

    Returns:
        Residual and decomposition by noise level.

    Raises:
        ValueError: as :func:`scorelab.diagnostics.by_level`; points of another shape than the law's, more potentials than
            points.
        TypeError: a law that is no :class:`scorelab.densities.Density`, a process that is not linear-Gaussian, what is no model.

    Source: arXiv 2402.03845; the projection on given potentials is ours.
    """
    where = "gauge_residual"
    require_int(where, 0, probes=probes)
    if probes == 1:
        raise ValueError(f"{where}.probes = 1: expected 0, or 2 and more, since the square of one estimate is biased")
    if not isinstance(law, Density):
        raise TypeError(f"{where}.law = {law!r}: expected a Density")
    model = as_pytree(where, model)
    require_spec(where, LinearGaussian, process=model.process)
    data = np.asarray(data)
    if data.shape[1:] != tuple(law.event) or data.ndim == 0:
        raise ValueError(f"{where}.data has shape {data.shape}: expected (n, *{tuple(law.event)}), as law has")
    count = 0 if potentials is None else _count(where, potentials, len(data), int(np.prod(law.event)))
    pair = _Beside(model, ExactModel(law, model.process))
    sigmas, at = by_level(_Error(probes), pair, data, sigmas, cond=cond, key=key, batch=batch, progress=progress, where=where)

    size = at.error[0, 0].size
    square = (at.residual**2 - at.scatter) / size
    flat = lambda value: value.reshape(*value.shape[:2], size)
    error, truth, y = flat(at.error), flat(at.truth), flat(at.y)
    missing = np.full(len(sigmas), np.nan)
    parts = [missing, missing, missing]
    if potentials is not None:
        found = []
        for k in range(len(sigmas)):
            fitted, its_residual = _projected(potentials, y[k], error[k], truth[k], at.sigma[k, 0])
            rest = np.mean((at.residual[k] - its_residual) ** 2 - at.scatter[k]) / size
            found.append((np.mean(fitted**2), np.mean((error[k] - fitted) ** 2), rest))
        parts = [np.array(part) for part in zip(*found, strict=True)]
    return GaugeResidual(
        sigmas=sigmas,
        mean_square=square.mean(axis=1),
        standard_error=standard_error(square),
        error=np.mean(error**2, axis=(1, 2)),
        gradient=parts[0],
        remainder=parts[1],
        remainder_residual=parts[2],
        potentials=count,
    )


class _AtPoint(NamedTuple):
    """What is kept of every point; all with a leading axis of points."""

    y: Array
    error: Array
    truth: Array
    sigma: Array
    residual: Array
    scatter: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Beside(Wraps):
    """A model with the exact one beside it, so that the numbers of both are leaves."""

    model: Any
    exact: ExactModel

    def __call__(self, y: Array, t: Array | float, cond: Pytree = None) -> Any:
        return ask(self.model, y, t, cond)


@dataclass(frozen=True)
class _Error:
    """The error of a model at noised points, its gauge residual, and the variance of the latter's estimate."""

    probes: int

    def __call__(self, model: Model, noised: Noised) -> _AtPoint:
        model = cast(_Beside, model)
        said = predicted_noise("gauge_residual", model.model, noised)
        exact = predicted_noise("gauge_residual", model.exact, noised._replace(cond=None))
        error, product = pushed(lambda y: said(y) - exact(y), noised.y)
        truth = exact(noised.y)
        sigma = jnp.broadcast_to(model.process.sigma(noised.t), noised.y.shape[:1])
        if self.probes:
            estimate = lambda v: dot(v, product(v))
            each = jax.lax.map(estimate, signs(noised.keys, self.probes, noised.y), batch_size=min(self.probes, BLOCK))
            spread, scatter = jnp.mean(each, axis=0), sigma**2 * jnp.var(each, axis=0, ddof=1) / self.probes
        else:
            spread, scatter = trace(product, noised.y), jnp.zeros_like(sigma)
        return _AtPoint(noised.y, error, truth, sigma, sigma * spread - dot(error, truth), scatter)


def _count(where: str, potentials: Potentials, n: int, size: int) -> int:
    """How many potentials there are; ValueError for what is not one row of them for each point, or too many for the points."""
    if not callable(potentials):
        raise TypeError(f"{where}.potentials = {potentials!r}: expected a function of points (n, d), or None")
    shape = jax.eval_shape(potentials, jax.ShapeDtypeStruct((3, size), jnp.result_type(float))).shape
    if len(shape) != 2 or shape[0] != 3 or not shape[1]:
        raise ValueError(f"{where}.potentials returned shape {shape} for points (3, {size}): expected (3, m)")
    if shape[1] > n:
        raise ValueError(f"{where}.potentials are {shape[1]} for {n} points: expected at most as many, fewer potentials, or None")
    if n * size * shape[1] > _MOST:
        raise ValueError(
            f"{where}.potentials are {shape[1]} for {n} points of {size} elements: expected at most {_MOST} numbers in all, fewer "
            "potentials, or None"
        )
    return shape[1]


def _projected(potentials: Potentials, y: np.ndarray, error: np.ndarray, truth: np.ndarray, sigma: float):
    """The projection of ``error`` ``(n, d)`` on the gradients of the potentials, and the gauge residual ``(n,)`` of that."""
    scale = max(float(y.std(axis=0).max()), np.finfo(np.float64).tiny)
    gradients, laplacians = (np.asarray(v, np.float64) for v in _derivatives((y - y.mean(axis=0)) / scale, potentials=potentials))
    if bad := np.count_nonzero(~np.isfinite(gradients)) + np.count_nonzero(~np.isfinite(laplacians)):
        raise ValueError(
            f"gauge_residual.potentials have {bad} derivatives that are not finite: expected none at the noised points"
        )
    if not np.all(np.isfinite(error)):
        # A model that says nothing finite is told by all numbers alike.
        return np.full_like(error, np.nan), np.full(len(error), np.nan)
    rows = np.moveaxis(gradients, 1, 2).reshape(-1, gradients.shape[1])
    # Potentials have any size; least squares are to see none of it.
    norms = np.linalg.norm(rows, axis=0)
    norms[norms == 0] = 1.0
    weights = np.linalg.lstsq(rows / norms, error.ravel(), rcond=None)[0] / norms
    fitted = (rows @ weights).reshape(error.shape)
    return fitted, sigma / scale * (laplacians @ weights) - np.sum(fitted * truth, axis=1)


@functools.partial(jax.jit, static_argnames="potentials")
def _derivatives(z, *, potentials):
    """Gradients ``(n, m, d)`` and Laplacians ``(n, m)``."""
    of_one = lambda point: potentials(point[None])[0]
    slope = lambda point, unit: jax.jvp(of_one, (point,), (unit,))[1]
    curve = lambda point, unit: jax.jvp(lambda point: slope(point, unit), (point,), (unit,))[1]
    # One direction at a time for all points: memory for one derivative of each potential.
    along = lambda unit: jax.vmap(lambda point: (slope(point, unit), curve(point, unit)))(z)
    slopes, curves = jax.lax.map(along, jnp.eye(z.shape[1], dtype=z.dtype))
    return jnp.moveaxis(slopes, 0, 2), jnp.sum(curves, axis=0)
