r"""The dimension of the manifold that data lie on, at each of its points, as a model's score at small noise tells it.

All is in the coordinate :math:`u=(y-b)/\alpha=y_0+r\epsilon` of a linear-Gaussian process, with the noise ratio
:math:`r=\sigma/\alpha`: the same for every process. The normalised Jacobian of the score there is

.. math:: H = -r^2\,\nabla_u^2\log p = \sigma\,\frac{\partial\hat\epsilon}{\partial y} = I - \frac{\mathrm{Cov}(y_0\mid y)}{r^2} .

It is 1 across a manifold, and :math:`r^2/(\lambda+r^2)` along a direction in which the data have the variance :math:`\lambda`.
So a dimension is that of a noise level: a direction counts while its variance is above :math:`r^2`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, Pytree
from scorelab.diagnostics.blocks import standard_error
from scorelab.diagnostics.levels import by_level, noise_levels
from scorelab.divergence import BLOCK, dot, pushed, signs, trace
from scorelab.losses.conservativity import predicted_noise
from scorelab.models.base import Model, ask, require_model
from scorelab.processes.base import Noised
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.randomness import folded, per_example_normal
from scorelab.schedules import namespace
from scorelab.validation import require_choice, require_int, require_positive, require_real, require_spec

# Of a cut, in a spectrum that goes from 1 to 0: no other gap can be as wide.
CLEAR = 0.5
# Entries of Jacobians that are held at once, where the caller does not say how many points.
_HELD = 1 << 22
# How far out a flow goes in units of the noise where it begins, and at least: on a shorter way all values are alike.
_REACH, _LEAST = 3.0, 1.5

Method = Literal["symmetric", "svd", "flow", "slope"]


class DimensionEstimator(abc.ABC):
    """How a dimension is read off a score; hashable. A new one states what it computes at a point, and how that is read."""

    @abc.abstractmethod
    def __call__(self, model: Model, noised: Noised) -> Array:
        """The spectrum ``(batch, d)`` at each point, decreasing; or the dimension itself, ``(batch,)``."""

    @abc.abstractmethod
    def read(self, found: np.ndarray, sigmas: np.ndarray, process: LinearGaussian, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Dimensions and gaps ``(k, n)`` from what was found at ``k`` levels, ``(k, n, d)`` or ``(k, n)``; ``size`` is ``d``."""

    def check(self, process: LinearGaussian, sigmas: np.ndarray) -> None:
        """Raise ValueError where the process has no answer at these noise ratios."""
        return None


@dataclass(frozen=True, kw_only=True)
class SymmetricJacobian(DimensionEstimator):
    r"""The eigenvalues of :math:`(H+H^\top)/2`; the dimension is the number of those below one half.

    A network's Jacobian need not be symmetric. Its antisymmetric part along the manifold changes no density (a gauge), and no
    number here.

    Attributes:
        draws: noised points around a clean one whose Jacobians are averaged. With 0 the clean point is taken itself, which no
            network has seen at this noise level.

    Source: after arXiv 2402.03845.
    """

    draws: int = 1

    def __post_init__(self):
        require_int(self, 0, draws=self.draws)

    def __call__(self, model, noised):
        r"""The eigenvalues: 1 across a linear manifold, and :math:`r^2/(\lambda+r^2)` along it."""
        if self.draws == 0:
            return _symmetric(_normalised_jacobian(model, noised, _clean(model, noised)))

        def one(noise):
            return _normalised_jacobian(model, noised, model.process.noised(noise, noised.y0, noised.t).y)

        noise = noised.noise[None]
        if self.draws > 1:
            more = jax.vmap(lambda j: per_example_normal(folded(noised.keys, j), noised.y0))(jnp.arange(1, self.draws))
            noise = jnp.concatenate([noise, more])
        return _symmetric(jnp.mean(jax.lax.map(one, noise), axis=0))

    def read(self, found, sigmas, process, size):
        return _cut(found, np.sum(found < 0.5, axis=-1))


@dataclass(frozen=True, kw_only=True)
class ScoreSVD(DimensionEstimator):
    r"""The singular values of centred scores around a point; the dimension is the number of those behind the largest gap.

    The scores :math:`r\,s(y_0+r\epsilon_i)` less their mean are the rows of a matrix, here divided by the root of their number. The
    noise comes in pairs :math:`\pm\sqrt d\,q` along random orthonormal bases, so that its covariance is the identity. A linear
    score then has the singular values of :math:`H` exactly; as many independent draws would spread equal ones threefold.

    It takes any large value for a normal direction. So it is wrong where the field has a gauge along the manifold, and between
    modes, where :math:`H` has negative eigenvalues.

    Attributes:
        perturbations: how many, per element of a point; an even number.

    Source: arXiv 2212.12611, as the neighbour of arXiv 2402.03845.
    """

    perturbations: int = 4

    def __post_init__(self):
        require_int(self, 2, perturbations=self.perturbations)
        if self.perturbations % 2:
            raise ValueError(f"ScoreSVD.perturbations = {self.perturbations}: expected an even number, since noise comes in pairs")

    def __call__(self, model, noised):
        r"""The singular values: 1 across a linear manifold, and :math:`r^2/(\lambda+r^2)` along it."""
        y0, process = noised.y0, model.process
        size = math.prod(y0.shape[1:])
        bases = jax.vmap(lambda key: jax.random.orthogonal(key, size, (self.perturbations // 2,), y0.dtype))(noised.keys)
        half = math.sqrt(size) * jnp.moveaxis(bases.reshape(len(y0), -1, size), 1, 0).reshape(-1, *y0.shape)

        def scores(noise):
            y = process.noised(noise, y0, noised.t).y
            return ask(model, y, noised.t, noised.cond).eps.reshape(len(y0), size)

        rows = jax.lax.map(scores, jnp.concatenate([half, -half]), batch_size=min(2 * len(half), BLOCK))
        rows = jnp.moveaxis(rows - jnp.mean(rows, axis=0), 0, 1)
        return jnp.linalg.svd(rows / math.sqrt(rows.shape[1]), compute_uv=False)

    def read(self, found, sigmas, process, size):
        # Above 1 there is no gap: all are normal directions.
        padded = np.clip(found, 0, 1)
        ends = np.ones((*found.shape[:-1], 1))
        gaps = -np.diff(np.concatenate([ends, padded, 0 * ends], axis=-1), axis=-1)
        return _cut(found, size - np.argmax(gaps, axis=-1))


@dataclass(frozen=True, kw_only=True)
class FlowJacobian(DimensionEstimator):
    r"""The singular values of the probability flow from larger noise to the data; the dimension counts those that do not vanish.

    With :math:`\ell=\log r` the flow and its Jacobian go outwards, from a point noised to :math:`r`, by

    .. math:: \frac{du}{d\ell} = r\,\hat\epsilon(u, r), \qquad \frac{dY}{d\ell} = H\,Y .

    The singular values :math:`s` of :math:`Y^{-1}` are :math:`r/r_{max}` across a linear manifold, and
    :math:`\sqrt{(\lambda+r^2)/(\lambda+r_{max}^2)}` along it. There :math:`(s^{-2}-1)/(r_{max}^2/r^2-1)` is
    :math:`r^2/(\lambda+r^2)`; a direction counts where it is below one half.

    A flow that ends above the scale at which the data curve, or lie side by side, sees them there as a cloud of all dimensions.

    Attributes:
        sigma_max: the noise ratio where the flow ends; by default three times the one it begins at, or the largest of the process.
        steps: of the classical Runge-Kutta rule, equal in :math:`\log r`. Each takes four Jacobians.

    Source: arXiv 2402.03845, where the flow goes on to the largest noise.
    """

    sigma_max: float | None = None
    steps: int = 16

    def __post_init__(self):
        require_int(self, 1, steps=self.steps)
        if self.sigma_max is not None:
            require_positive(self, sigma_max=self.sigma_max)

    def ends(self, process: LinearGaussian, sigmas: Array) -> Array:
        """The noise ratios where the flows end that begin at ``sigmas``."""
        most = float(process.noise_ratio(process.t_max))
        return namespace(sigmas).minimum(_REACH * sigmas if self.sigma_max is None else self.sigma_max + 0 * sigmas, most)

    def check(self, process, sigmas):
        begin, most = float(np.max(sigmas)), float(process.noise_ratio(process.t_max))
        end = most if self.sigma_max is None else self.sigma_max
        # Rounding of the largest one is no other level.
        if not _LEAST * begin <= end <= most * (1 + 1e-6):
            raise ValueError(
                f"FlowJacobian.sigma_max = {self.sigma_max} from the noise ratio {begin:g}: expected at least {_LEAST} times that, "
                f"and at most {most:.4g}, the largest of {process!r}"
            )

    def __call__(self, model, noised):
        """The singular values of the way back, from the larger noise to the data."""
        process, y0 = model.process, noised.y0
        size = math.prod(y0.shape[1:])
        begin = -process.log_snr(noised.t) / 2
        h = (jnp.log(self.ends(process, jnp.exp(begin))) - begin) / self.steps

        def rate(level, point):
            u, columns = point
            t = jnp.clip(process.schedule.time(-2 * level), process.t_min, process.t_max)
            alpha, offset, ratio = process.alpha(t), process.offset(t), jnp.exp(level)
            flow, product = pushed(lambda u: ratio * ask(model, alpha * u + offset, t, noised.cond).eps, u)
            return flow, jax.lax.map(product, columns, batch_size=min(size, BLOCK))

        def step(point, i):
            # Place of a stage, its part in the next one, its part in the step: one Jacobian in the program.
            table = jnp.array([[0, 1 / 2, 1 / 6], [1 / 2, 1 / 2, 1 / 3], [1 / 2, 1, 1 / 3], [1, 0, 1 / 6]], y0.dtype)

            def stage(carry, row):
                k = rate(begin + (i + row[0]) * h, carry[0])
                after = jax.tree.map(lambda a, k: a + row[1] * h * k, point, k)
                return (after, jax.tree.map(lambda a, k: a + row[2] * h * k, carry[1], k)), None

            (_, after), _ = jax.lax.scan(stage, (point, point), table)
            return after, None

        unit = jnp.broadcast_to(jnp.eye(size, dtype=y0.dtype).reshape(size, 1, *y0.shape[1:]), (size, *y0.shape))
        u = y0 + noised.noise * process.noise_ratio(noised.t)
        (u, columns), _ = jax.lax.scan(step, (u, unit), jnp.arange(self.steps, dtype=y0.dtype))
        outwards = jnp.linalg.svd(jnp.moveaxis(columns.reshape(size, len(y0), size), 0, 1), compute_uv=False)
        return _where_finite(u, 1 / outwards[:, ::-1])

    def read(self, found, sigmas, process, size):
        growth = (self.ends(process, sigmas) / sigmas)[:, None, None] ** 2
        share = (found[..., ::-1] ** -2 - 1) / (growth - 1)
        return _cut(share, np.sum(share < 0.5, axis=-1))


@dataclass(frozen=True, kw_only=True)
class NoiseSlope(DimensionEstimator):
    r"""The slope of the log-density over the noise level at a clean point, :math:`d+r^2(\nabla\!\cdot s+|s|^2)`, not rounded.

    By the Fokker-Planck equation it is :math:`d+\partial\log p_r(u)/\partial\log r`; in other words
    :math:`d-\mathrm{tr}\,H+|\hat\epsilon|^2`. At the point :math:`z` of a linear manifold it is
    :math:`\sum_i\big[\lambda_i/(\lambda_i+r^2)+r^2z_i^2/(\lambda_i+r^2)^2\big]`.

    It needs no matrix. It has no spectrum either that would show an error, and its square is that of the field, gauge included.

    Attributes:
        probes: 0 for the exact divergence, one product for each element of a point; else the number of Rademacher probes.

    Source: FLIPD, arXiv 2406.03537.
    """

    probes: int = 0

    def __post_init__(self):
        require_int(self, 0, probes=self.probes)

    def __call__(self, model, noised):
        """The slope."""
        y = _clean(model, noised)
        eps, product = pushed(predicted_noise("intrinsic_dimension", model, noised), y)
        probes = signs(noised.keys, self.probes, y) if self.probes else None
        return math.prod(y.shape[1:]) - model.process.sigma(noised.t) * trace(product, y, probes) + dot(eps, eps)

    def read(self, found, sigmas, process, size):
        # 1 at a whole number that can be a dimension, 0 halfway between two.
        away = np.abs(found - np.clip(np.round(found), 0, size))
        return found, 1 - 2 * away


METHODS: dict[str, DimensionEstimator] = {
    "symmetric": SymmetricJacobian(),
    "svd": ScoreSVD(),
    "flow": FlowJacobian(),
    "slope": NoiseSlope(),
}


@dataclass(frozen=True, kw_only=True)
class IntrinsicDimension:
    r"""What :func:`intrinsic_dimension` returns, in float64: ``k`` noise ratios, ``n`` points, ``d`` elements of a point.

    Attributes:
        sigmas: the noise ratios ``(k,)``.
        dimension: of every point, ``(k, n)``: a whole number, but for the slope; NaN where the model said what is not finite.
        spectrum: what it was read off, ``(k, n, d)``, decreasing; None for the slope. Its numbers are those that the estimator
            names: eigenvalues of :class:`SymmetricJacobian`, singular values of :class:`ScoreSVD` and :class:`FlowJacobian`.
        gap: how far apart the numbers on the two sides of the cut are, ``(k, n)``, on a scale on which a normal direction has 1
            and a tangent one :math:`r^2/(\lambda+r^2)`. Numbers beyond 0 and 1 count as these. Of a slope: 1 where it is a whole
            number from 0 to ``d``, and 0 halfway between two.
        clear: whether the gap is at least one half, ``(k, n)``. Elsewhere the spectrum has no edge, and the dimension depends on
            where the line is drawn.
    """

    sigmas: np.ndarray
    dimension: np.ndarray
    spectrum: np.ndarray | None
    gap: np.ndarray
    clear: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over the points, ``(k,)``."""
        return self.dimension.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of the mean, over the points, ``(k,)``; NaN for a single point."""
        return standard_error(self.dimension)


def intrinsic_dimension(
    model: Model,
    data: Array,
    sigmas: Array | float,
    *,
    method: Method | DimensionEstimator = "symmetric",
    cond: Pytree = None,
    key: Key | None = None,
    batch: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IntrinsicDimension:
    r"""The dimension of the data around each point, at each noise ratio.

    A direction counts where the variance of the data along it is above :math:`r^2`: choose ``sigmas`` below what is to be
    resolved, and above the level to which the model was trained, or the thickness of the data. Below that thickness all ``d``
    directions count, and rightly so.

    The default is ``"symmetric"``. It alone is right for every gauge along the manifold, which networks that are free fields may
    have. It needs no gap, so it may find 0 or ``d``, and it sees the sign of an eigenvalue. ``"slope"`` is the cheapest, and the
    only one for points of very many elements.

    Args:
        model: a model of a linear-Gaussian process.
        data: points in data space, ``(n, *event)``.
        sigmas: noise ratios :math:`\sigma/\alpha` ``(k,)`` or one number, in the units of the chart.
        method: ``"symmetric"``, ``"svd"``, ``"flow"`` or ``"slope"``; or one of these with other options, a
            :class:`SymmetricJacobian`, :class:`ScoreSVD`, :class:`FlowJacobian` or :class:`NoiseSlope`.
        cond: the model's conditions, with leading axis ``n``.
        key: PRNG key, ``jax.random.key(0)`` by default. The random numbers of point ``i`` at a level depend on the key, ``i`` and
            the number of the level only.
        batch: points evaluated at once; by default as many as keep their Jacobians in 16 MiB, and at most 256.
        progress: called with (points done, points wanted) after each batch.

    Raises:
        ValueError: no data, data or noise ratios that are not finite, noise ratios that the process does not have, another method,
            a flow that ends before it begins.
        TypeError: another kind of process, what is no model.

    Source: arXiv 2402.03845; the single estimators name theirs.
    """
    where = "intrinsic_dimension"
    require_model(where, model)
    require_spec(where, LinearGaussian, process=model.process)
    estimator = as_estimator(where, method)
    data = np.asarray(data)
    require_real(f"{where}.data", data)
    require_real(f"{where}.sigmas", np.asarray(sigmas))
    sigmas, _ = noise_levels(where, model.process, np.atleast_1d(np.asarray(sigmas, np.float64)))
    estimator.check(model.process, sigmas)
    size = math.prod(data.shape[1:])
    if batch is None:
        batch = max(1, min(256, _HELD // max(size, 1) ** 2))
    sigmas, found = by_level(estimator, model, data, sigmas, cond=cond, key=key, batch=batch, progress=progress, where=where)
    known = np.isfinite(found).reshape(*found.shape[:2], -1).all(axis=-1)
    dimension, gap = estimator.read(found, sigmas, model.process, size)
    dimension, gap = (np.where(known, value, np.nan) for value in (dimension, gap))
    return IntrinsicDimension(
        sigmas=sigmas, dimension=dimension, spectrum=found if found.ndim == 3 else None, gap=gap, clear=gap >= CLEAR
    )


def as_estimator(where: object, method: str | DimensionEstimator) -> DimensionEstimator:
    """The estimator of a name, or the given one; ValueError naming the field ``method`` of ``where`` for anything else."""
    if isinstance(method, DimensionEstimator):
        return method
    require_choice(where, tuple(METHODS), method=method)
    return METHODS[method]


def _clean(model: Model, noised: Noised) -> Array:
    """The clean points, on the scale of the noised ones."""
    return model.process.alpha(noised.t) * noised.y0 + model.process.offset(noised.t)


def _normalised_jacobian(model: Model, noised: Noised, y: Array) -> Array:
    """``H`` at points ``y`` shaped ``(batch, *event)``, transposed: ``(batch, d, d)``."""
    size = math.prod(y.shape[1:])
    value, product = pushed(predicted_noise("intrinsic_dimension", model, noised), y)

    def column(i):
        unit = jnp.zeros(size, y.dtype).at[i].set(1.0).reshape(y.shape[1:])
        return product(jnp.broadcast_to(unit, y.shape)).reshape(len(y), size)

    columns = jax.lax.map(column, jnp.arange(size), batch_size=min(size, BLOCK))
    return _where_finite(value, model.process.sigma(noised.t) * jnp.moveaxis(columns, 0, 1))


def _where_finite(value: Array, derived: Array) -> Array:
    """NaN where a point's ``value`` is not finite: its derivative may be."""
    known = jnp.isfinite(value).reshape(len(value), -1).all(axis=1)
    return jnp.where(known.reshape(-1, *(1,) * (derived.ndim - 1)), derived, jnp.nan)


def _symmetric(jacobian: Array) -> Array:
    return jnp.linalg.eigvalsh((jacobian + jacobian.mT) / 2)[:, ::-1]


def _cut(share: np.ndarray, dimension: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The dimension, and the gap between the last normal direction and the first tangent one of a decreasing ``share``."""
    ends = np.ones((*share.shape[:-1], 1))
    padded = np.concatenate([ends, np.clip(share, 0, 1), 0 * ends], axis=-1)
    normal = (share.shape[-1] - dimension)[..., None]
    above, below = (np.take_along_axis(padded, normal + i, axis=-1)[..., 0] for i in (0, 1))
    return dimension, above - below
