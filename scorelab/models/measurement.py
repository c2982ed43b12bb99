r"""Linear measurements of a clean point, :math:`m = H y_0 + \eta`, :math:`\eta\sim N(0, R)`, and posteriors in closed form."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, is_traced
from scorelab.densities import ConditionedField, Density, Gaussian, GaussianField, GaussianMixture, Mixture
from scorelab.densities.base import as_parameter
from scorelab.pytrees import partly_static

# Accelerators multiply float32 matrices with 8 to 10 bits unless told otherwise.
product = functools.partial(jnp.matmul, precision="highest")


@partly_static("matrix", "values", "std")
@dataclass(frozen=True, kw_only=True)
class LinearMeasurement:
    r"""Numbers measured of a clean point of the chart, :math:`m = H y_0 + \eta` with independent Gaussian noise.

    ``H`` acts on the flattened event, ``d = prod(event)``. On the identity chart that is data space; a law on another chart
    (multiplicative noise) is measured in its own coordinate, the logarithm. A pytree of three leaves: other values, sensors
    of the same number, and noise levels do not recompile.

    Attributes:
        matrix: ``H``, ``(k, d)``.
        values: ``m``, ``(k,)``.
        std: standard deviation of the noise, above 0: a scalar or ``(k,)``.

    Raises:
        ValueError: shapes that do not fit one another, values that are not finite, noise that is not above 0.
    """

    matrix: Array
    values: Array
    std: Array | float

    def __post_init__(self):
        for name in ("matrix", "values", "std"):
            value = as_parameter(getattr(self, name))
            object.__setattr__(self, name, value)
            if not is_traced(value) and not np.all(np.isfinite(value)):
                raise ValueError(f"LinearMeasurement.{name} has a value that is not finite: expected none")
        k = self.matrix.shape[0] if self.matrix.ndim == 2 else 0
        if not k:
            raise ValueError(f"LinearMeasurement.matrix has shape {self.matrix.shape}: expected (k, d) with k at least 1")
        if self.values.shape != (k,):
            raise ValueError(f"LinearMeasurement.values has shape {self.values.shape}: expected ({k},), as many as rows")
        if np.shape(self.std) not in ((), (k,)):
            raise ValueError(f"LinearMeasurement.std has shape {np.shape(self.std)}: expected () or ({k},)")
        if not is_traced(self.std) and np.min(self.std) <= 0:
            raise ValueError(f"LinearMeasurement.std has the value {np.min(self.std):.3g}: expected numbers above 0")

    @classmethod
    def stacked(cls, measurements: Sequence[LinearMeasurement]) -> LinearMeasurement:
        """Several modalities as one measurement: their rows one after another, each with its own noise."""
        if not measurements or len({m.matrix.shape[1] for m in measurements}) > 1:
            widths = [m.matrix.shape[1] for m in measurements]
            raise ValueError(f"LinearMeasurement.stacked got matrices of widths {widths}: expected one width, at least one matrix")
        stds = [jnp.broadcast_to(m.std, m.values.shape) for m in measurements]
        return cls(
            matrix=jnp.concatenate([m.matrix for m in measurements]),
            values=jnp.concatenate([m.values for m in measurements]),
            std=jnp.concatenate(stds),
        )

    @classmethod
    def averages(
        cls, shape: Sequence[int], block: Sequence[int], *, values: Array | float, std: Array | float
    ) -> LinearMeasurement:
        """Averages over the blocks that tile an event, in the order of its elements: a coarse image of it.

        Args:
            shape: the event, such as ``(*grid, channels)``.
            block: the sides of a block, one for every axis of ``shape`` and a divisor of it; 1 for channels.
            values: what was measured, ``(k,)``, or one number for all until :meth:`observing` draws them.
            std: as in the class.
        """
        shape, block = tuple(shape), tuple(block)
        fits = len(block) == len(shape) and all(isinstance(b, int) and b >= 1 for b in block)
        if not fits or any(n % b for n, b in zip(shape, block, strict=True)):
            raise ValueError(f"LinearMeasurement.averages.block = {block}: expected a divisor for every axis of shape = {shape}")
        rows = functools.reduce(
            np.kron, [np.kron(np.eye(n // b), np.full((1, b), 1 / b)) for n, b in zip(shape, block, strict=True)]
        )
        return cls(matrix=rows, values=_for_all(values, len(rows)), std=std)

    @classmethod
    def points(cls, shape: Sequence[int], places: Array, *, values: Array | float, std: Array | float) -> LinearMeasurement:
        """Single elements of an event, such as stations on a grid.

        Args:
            shape: the event, such as ``(*grid, channels)``.
            places: integer indices ``(k, len(shape))`` of the elements, none negative.
            values: what was measured, ``(k,)``, or one number for all until :meth:`observing` draws them.
            std: as in the class.
        """
        shape, places = tuple(shape), np.asarray(places)
        if places.ndim != 2 or places.shape[1] != len(shape) or not np.issubdtype(places.dtype, np.integer) or not len(places):
            raise ValueError(
                f"LinearMeasurement.points.places is {places.dtype} {places.shape}: expected integers (k, {len(shape)}), an index "
                f"for every axis of shape = {shape}"
            )
        if np.any(places < 0) or np.any(places >= shape):
            outside = places[np.any((places < 0) | (places >= shape), axis=1)][0].tolist()
            raise ValueError(f"LinearMeasurement.points.places has {outside}: expected indices from 0 within shape = {shape}")
        rows = np.zeros((len(places), math.prod(shape)))
        rows[np.arange(len(places)), np.ravel_multi_index(tuple(places.T), shape)] = 1.0
        return cls(matrix=rows, values=_for_all(values, len(rows)), std=std)

    def observing(self, key: Key, y0: Array) -> LinearMeasurement:
        """The same measurement with the values it has of a clean point ``event`` of the chart, noise drawn by ``key``."""
        y0 = jnp.asarray(y0)
        clean = -dataclasses.replace(self, values=jnp.zeros_like(self.values)).residual(y0[None])[0]
        noise = jnp.sqrt(self.noise(clean.dtype)) * jax.random.normal(key, clean.shape, clean.dtype)
        return dataclasses.replace(self, values=clean + noise)

    def noise(self, dtype: jnp.dtype) -> Array:
        """The variances of the noise, the diagonal of ``R``, ``(k,)``."""
        return jnp.broadcast_to(jnp.asarray(self.std, dtype) ** 2, self.values.shape)

    def residual(self, y0: Array) -> Array:
        """``m - H y0`` for points ``(batch, *event)``: ``(batch, k)``."""
        y0 = jnp.asarray(y0)
        size = math.prod(y0.shape[1:])
        if y0.ndim < 2 or size != self.matrix.shape[1]:
            raise ValueError(
                f"LinearMeasurement.matrix has shape {self.matrix.shape} for points of shape {y0.shape}: "
                f"expected (batch, *event) with {self.matrix.shape[1]} elements in an event"
            )
        return self.values.astype(y0.dtype) - product(y0.reshape(-1, size), self.matrix.astype(y0.dtype).T)

    def adjoint(self, weights: Array, like: Array) -> Array:
        """``H^T w`` for ``w`` ``(batch, k)``, in the shape of ``like`` ``(batch, *event)``."""
        return product(weights, self.matrix.astype(like.dtype)).reshape(like.shape)

    def log_likelihood(self, y0: Array) -> Array:
        r""":math:`\log N(m; H y_0, R)` for clean points ``(batch, *event)`` of the chart: ``(batch,)``, in nats, normalised."""
        residual = self.residual(y0)
        noise = self.noise(residual.dtype)
        return -0.5 * jnp.sum(residual**2 / noise + jnp.log(2 * math.pi * noise), -1)


def _for_all(values: Array | float, k: int) -> Array:
    return jnp.full(k, values) if np.ndim(values) == 0 else as_parameter(values)


@functools.singledispatch
def exact_posterior(law: Density, measurement: LinearMeasurement) -> Density:
    r"""The law of a clean point given its measurement, in closed form and in float64 on the host.

    .. math:: K = CH^\top(R + HCH^\top)^{-1},\qquad \mu' = \mu + K(m - H\mu),\qquad C' = (I-KH)\,C\,(I-KH)^\top + KRK^\top ;

    each component of a mixture so, with its weight times its evidence :math:`N(m; H\mu_k, R + HC_kH^\top)`. That of a
    :class:`scorelab.densities.Gaussian` is dense. That of a :class:`scorelab.densities.GaussianField` takes ``k`` filters and no
    matrix of its size.

    Args:
        law: a ``Gaussian``, a ``GaussianMixture``, a ``GaussianField`` or a ``Mixture`` of fields, of the chart.
        measurement: what was measured.

    Raises:
        TypeError: for any other law.
    """
    raise TypeError(
        f"exact_posterior.law is a {type(law).__name__}: expected a Gaussian, a GaussianField, or a mixture of one of them"
    )


@exact_posterior.register
def _(law: Gaussian, measurement: LinearMeasurement) -> Gaussian:
    return _condition(law, measurement)[0]


@exact_posterior.register
def _(law: GaussianField, measurement: LinearMeasurement) -> ConditionedField:
    return _condition_field(law, measurement)[0]


@exact_posterior.register
def _(law: GaussianMixture, measurement: LinearMeasurement) -> GaussianMixture:
    weights, posteriors = _condition_each(law, measurement, _condition)
    return GaussianMixture.of(weights, posteriors)


@exact_posterior.register
def _(law: Mixture, measurement: LinearMeasurement) -> Mixture:
    if not isinstance(law.components, GaussianField):
        kind = type(law.components).__name__
        raise TypeError(f"exact_posterior.law is a Mixture of {kind} laws: expected GaussianField laws, and measurements stacked")
    return Mixture(*_condition_each(law, measurement, _condition_field))


def _condition_each(law: Mixture, measurement: LinearMeasurement, condition: Callable) -> tuple[np.ndarray, list]:
    """The weights and the components of the posterior of a mixture."""
    parts = [condition(jax.tree.map(lambda a, k=k: a[k], law.components), measurement) for k in range(len(law.log_weights))]
    log_weights = np.asarray(law.log_weights, np.float64) + [evidence for _, evidence in parts]
    # A mixture has positive weights: those below the least number are it.
    weights = np.maximum(np.exp(log_weights - log_weights.max()), np.finfo(np.float32).tiny)
    return weights, [posterior for posterior, _ in parts]


def _condition_field(law: GaussianField, measurement: LinearMeasurement) -> tuple[ConditionedField, float]:
    """The posterior of a field and the log evidence."""
    values = np.asarray(measurement.values, np.float64)
    posterior = law.given(measurement.matrix, values, np.broadcast_to(np.asarray(measurement.std, np.float64) ** 2, values.shape))
    return posterior, float(posterior.log_evidence)


def _condition(law: Gaussian, measurement: LinearMeasurement) -> tuple[Gaussian, float]:
    """The posterior of a Gaussian and the log evidence."""
    basis, eigenvalues, tail, mean = (np.asarray(a, np.float64) for a in (law.basis, law.eigenvalues, law.tail, law.mean))
    identity = np.eye(law.size)
    cov = (basis * eigenvalues) @ basis.T + tail * (identity - basis @ basis.T)
    h, values, std = (np.asarray(a, np.float64) for a in (measurement.matrix, measurement.values, measurement.std))
    noise = np.broadcast_to(std**2, values.shape)
    if h.shape[1] != law.size:
        raise ValueError(f"LinearMeasurement.matrix has shape {h.shape} for a law of {law.size} elements: expected (k, {law.size})")
    total = np.diag(noise) + h @ cov @ h.T
    gain = np.linalg.solve(total, h @ cov).T
    residual = values - h @ mean.reshape(-1)
    keep = identity - gain @ h
    posterior = keep @ cov @ keep.T + (gain * noise) @ gain.T
    square = residual @ np.linalg.solve(total, residual)
    evidence = -0.5 * (square + np.linalg.slogdet(2 * math.pi * total)[1])
    return Gaussian((mean.reshape(-1) + gain @ residual).reshape(law.event), (posterior + posterior.T) / 2), float(evidence)
