"""Laws on manifolds with exact densities: uniform, wrapped normal, von Mises-Fisher, isotropic matrix Fisher, and products.

Densities are against the volume of the space (:mod:`scorelab.processes.spaces`). That of the rotations is :math:`8\\pi^2`.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from scorelab.arrays import Array, Key
from scorelab.densities.base import (
    Density,
    Unnormalised,
    as_parameter,
    check_numbers,
    check_points,
    law_pytree,
    require_known,
)
from scorelab.processes.spaces import Euclidean, Product, Rotations, Space, Sphere, Torus, wrapped
from scorelab.validation import require_spec

# Wider than this a wrapped normal law is the uniform one to 1e-7.
_WIDEST = 6.0


class SpaceLaw(Unnormalised):
    """A law on a space, normalised against its volume; a new one states ``event``, ``sample`` and ``log_prob``.

    Attributes:
        space: of :mod:`scorelab.processes.spaces`.
    """

    space: Space

    @abc.abstractmethod
    def sample(self, key: Key, n: int) -> Float[jax.Array, " {n} *event"]:
        """``n`` independent points in canonical form, ``(n, *event)``."""

    def score(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch *event"]:
        r""":math:`\nabla\log p(x)` in the tangent space at ``x``, in the metric of the embedding, shaped like ``x``."""
        gradient = jax.grad(lambda z: jnp.sum(self.log_prob(self.space.retract(z))))(jnp.asarray(x))
        return self.space.project(x, gradient)


@law_pytree(static=("space", "shape"))
class Uniform(SpaceLaw):
    """The uniform law of a space of finite volume.

    Args:
        space: the space.
        event: the shape of a point.

    Raises:
        ValueError: an event that points of the space cannot have; an infinite volume.
    """

    def __init__(self, space: Space, event: Sequence[int]):
        require_spec(self, Space, space=space)
        if not isinstance(event, Sequence) or isinstance(event, str):
            raise TypeError(f"Uniform.event = {event!r}: expected the shape of a point, such as (3,)")
        self.space, self.shape = space, tuple(event)
        if not all(type(size) is int and size > 0 for size in self.shape):
            raise ValueError(f"Uniform.event = {event!r}: expected a tuple of integers above 0")
        space.check_event("Uniform.event", self.shape)
        space.log_volume(self.shape)

    @property
    def event(self):
        """The shape of a point."""
        return self.shape

    def sample(self, key, n):
        return self.space.uniform(key, (n, *self.shape))

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Minus the logarithm of the volume, everywhere."""
        x = check_points(self, x)
        return jnp.full(len(x), -self.space.log_volume(self.shape), jnp.result_type(x, float))


class SpaceMixture(SpaceLaw):
    """A mixture on a space; a new one states the log-densities and the draws of its components.

    Attributes:
        log_weights: ``(K,)``.
    """

    log_weights: jax.Array

    @abc.abstractmethod
    def _log_probs(self, x: jax.Array) -> jax.Array:
        """Of every component, ``(K, batch)``."""

    @abc.abstractmethod
    def _draw(self, key: Key, which: jax.Array) -> jax.Array:
        """A point of the component ``which``, ``event``."""

    @property
    def weights(self) -> jax.Array:
        """``(K,)``."""
        return jnp.exp(self.log_weights)

    def sample(self, key, n):
        key_which, key_draw = jax.random.split(key)
        which = jax.random.categorical(key_which, self.log_weights, shape=(n,))
        return self.space.canonical(jax.vmap(self._draw)(jax.random.split(key_draw, n), which))

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """Log-density against the volume, ``(batch,)``."""
        return jax.nn.logsumexp(self.log_weights[:, None] + self._log_probs(check_points(self, x)), axis=0)


@law_pytree("log_weights", "means", "stds", static=("windings",))
class WrappedNormalMixture(SpaceMixture):
    r"""Normal laws of angles, wrapped: :math:`p(x) = \sum_k w_k\prod_i\sum_{j}N(x_i + 2\pi j;\,\mu_{ki}, s_{ki}^2)`.

    Args:
        weights: ``(K,)``, positive; normalised here.
        means: ``(K, *event)``, angles in radians.
        stds: one for all, ``(K,)`` or ``(K, *event)``, from 0 up to 6; wider ones are uniform to rounding.
    """

    space = Torus()

    def __init__(self, weights: ArrayLike, means: ArrayLike, stds: ArrayLike):
        means, log_weights = _mixture(self, weights, means=means)
        check_numbers(self, stds=stds)
        stds = np.asarray(stds, np.float64)
        if stds.shape not in ((), means.shape[:1], means.shape) or not np.all((stds > 0) & (stds <= _WIDEST)):
            raise ValueError(
                f"WrappedNormalMixture.stds = {stds.tolist()}: expected numbers in (0, {_WIDEST:g}], one, or of shape "
                f"{means.shape[:1]} or {means.shape}"
            )
        stds = np.broadcast_to(stds.reshape(stds.shape + (1,) * (means.ndim - stds.ndim)), means.shape)
        self.space.check("WrappedNormalMixture.means", means)
        self.log_weights, self.means, self.stds = (as_parameter(a) for a in (log_weights, means, stds))
        # What is left out is more than nine deviations away.
        self.windings = max(1, math.ceil(9 * stds.max() / (2 * math.pi)))

    @property
    def event(self):
        """The shape of a point."""
        return self.means.shape[1:]

    def _log_probs(self, x):
        away = wrapped(x - self.means[:, None])[..., None] + 2 * math.pi * jnp.arange(-self.windings, self.windings + 1)
        stds = self.stds[:, None, ..., None]
        terms = jax.nn.logsumexp(-0.5 * (away / stds) ** 2, axis=-1) - jnp.log(stds[..., 0]) - 0.5 * math.log(2 * math.pi)
        return jnp.sum(terms.reshape(*terms.shape[:2], -1), axis=2)

    def _draw(self, key, which):
        return self.means[which] + self.stds[which] * jax.random.normal(key, self.event, self.means.dtype)


@law_pytree("log_weights", "means", "concentrations", "log_constants")
class VonMisesFisherMixture(SpaceMixture):
    r"""On the unit sphere of :math:`\mathbb R^d`, :math:`p(x) = \sum_k w_k\,C_d(\kappa_k)\,e^{\kappa_k\,\mu_k\cdot x}`.

    .. math:: C_d(\kappa) = \kappa^{d/2-1}/\big((2\pi)^{d/2}I_{d/2-1}(\kappa)\big)

    Args:
        weights: ``(K,)``, positive; normalised here.
        means: unit vectors ``(K, d)``, ``d >= 2``.
        concentrations: one for all, or ``(K,)``, at least 0; the deviation about a mean is :math:`\kappa^{-1/2}` per direction.

    Source of the sampler: Wood (1994), "Simulation of the von Mises Fisher distribution".
    """

    space = Sphere()

    def __init__(self, weights: ArrayLike, means: ArrayLike, concentrations: ArrayLike):
        means, log_weights = _mixture(self, weights, means=means)
        self.space.check("VonMisesFisherMixture.means", means)
        kappa = _concentrations(self, concentrations, means)
        d = means.shape[1]
        order = d / 2 - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            log_constants = order * np.log(kappa) - d / 2 * math.log(2 * math.pi) - np.log(_scaled_bessel(order, kappa))
        # Where the series of the Bessel function has one term left, the law is uniform.
        log_constants = np.where(kappa < 1e-8, -self.space.log_volume((d,)), log_constants)
        self.log_weights, self.means = as_parameter(log_weights), as_parameter(means)
        self.concentrations, self.log_constants = as_parameter(kappa), as_parameter(log_constants)

    @property
    def event(self):
        """``(d,)``."""
        return self.means.shape[1:]

    def _log_probs(self, x):
        # The cosine less one, from the difference: near a mean it is small.
        drop = -0.5 * jnp.sum((x - self.means[:, None]) ** 2, axis=-1)
        return self.concentrations[:, None] * drop + self.log_constants[:, None]

    def _draw(self, key, which):
        mean, kappa, (d,) = self.means[which], self.concentrations[which], self.event
        b = (d - 1) / (jnp.sqrt(4 * kappa**2 + (d - 1) ** 2) + 2 * kappa)
        peak = (1 - b) / (1 + b)
        log_peak = kappa * peak + (d - 1) * jnp.log(4 * b / (1 + b) ** 2)
        key_side, key_loop = jax.random.split(key)

        def propose(key):
            key_beta, key_accept = jax.random.split(key)
            # The first coordinate of a uniform unit vector has a symmetric beta law.
            normal = jax.random.normal(key_beta, (d,), mean.dtype)
            z = 0.5 * (1 + normal[0] / jnp.linalg.norm(normal))
            below = 2 * b * z / (1 - (1 - b) * z)
            log_ratio = kappa * (1 - below) + (d - 1) * jnp.log(1 - peak * (1 - below)) - log_peak
            return below, jnp.log(jax.random.uniform(key_accept, (), mean.dtype)) <= log_ratio

        below = _accepted(key_loop, propose)
        side = self.space.retract(self.space.project(mean, jax.random.normal(key_side, (d,), mean.dtype)))
        return (1 - below) * mean + jnp.sqrt(below * (2 - below)) * side


@law_pytree("log_weights", "modes", "concentrations", "log_constants", "envelopes")
class RotationMixture(SpaceMixture):
    r"""Isotropic matrix Fisher laws of rotations.

    .. math:: p(R) = \sum_k w_k\,\frac{e^{\kappa_k\cos\theta_k}}{8\pi^2\,(I_0(\kappa_k)-I_1(\kappa_k))}

    :math:`\theta_k` is the angle of the rotation from the mode ``k``. In quaternions they are Bingham laws.

    Args:
        weights: ``(K,)``, positive; normalised here.
        modes: unit quaternions ``(K, 4)``, the real part first.
        concentrations: one for all, or ``(K,)``, at least 0; the angle of rotation about each axis has the deviation
            :math:`\kappa^{-1/2}`.

    Source of the sampler: Kent, Ganeiban and Mardia (2018), "A new unified approach for the simulation of a wide class of
    directional distributions", arXiv 1310.8110.
    """

    space = Rotations()

    def __init__(self, weights: ArrayLike, modes: ArrayLike, concentrations: ArrayLike):
        modes, log_weights = _mixture(self, weights, modes=modes)
        self.space.check("RotationMixture.modes", modes)
        kappa = _concentrations(self, concentrations, modes)
        log_constants = -math.log(8 * math.pi**2) - np.log(_scaled_bessel(0, kappa) - _scaled_bessel(1, kappa))
        # The root b of 1/b + 3/(b + 4 kappa) = 1, from the one of the two forms that does not cancel.
        half, root = 4 * kappa - 4, np.sqrt((4 * kappa - 4) ** 2 + 16 * kappa)
        with np.errstate(divide="ignore", invalid="ignore"):
            envelopes = np.where(half > 0, 8 * kappa / (half + root), (root - half) / 2)
        self.log_weights, self.modes = as_parameter(log_weights), as_parameter(modes)
        self.concentrations, self.log_constants = as_parameter(kappa), as_parameter(log_constants)
        self.envelopes = as_parameter(envelopes)

    @property
    def event(self):
        """``(4,)``."""
        return self.modes.shape[1:]

    def _log_probs(self, x):
        # The square of the sine of half the angle, from the part across the mode.
        modes = self.modes[:, None]
        along = jnp.sum(x * modes, axis=-1, keepdims=True)
        near = x - jnp.where(along < 0, -1, 1) * modes
        across = near - jnp.sum(near * modes, axis=-1, keepdims=True) * modes
        return -2 * self.concentrations[:, None] * jnp.sum(across**2, axis=-1) + self.log_constants[:, None]

    def _draw(self, key, which):
        kappa, b = self.concentrations[which], self.envelopes[which]
        widths = jnp.stack([jnp.ones_like(b), *[1 / jnp.sqrt(1 + 4 * kappa / b)] * 3])

        def propose(key):
            key_normal, key_accept = jax.random.split(key)
            turn = self.space.retract(widths * jax.random.normal(key_normal, (4,), kappa.dtype))
            square = jnp.sum(turn[1:] ** 2)
            log_ratio = -2 * kappa * square + (4 - b) / 2 - 2 * jnp.log(4 / b) + 2 * jnp.log(1 + 4 * kappa * square / b)
            return turn, jnp.log(jax.random.uniform(key_accept, (), kappa.dtype)) <= log_ratio

        return _turned(self.modes[which], _accepted(key, propose))


@law_pytree("log_weights", "components", static=("space",))
class ProductMixture(SpaceMixture):
    r"""On a product of spaces, :math:`p(x) = \sum_k w_k\prod_j p_{kj}(x_j)`: parts side by side along the last axis.

    Args:
        weights: ``(K,)``, positive; normalised here.
        components: for each of the ``K`` a tuple with a law for each part, of points ``(d,)``: laws on a space, or laws of
            :mod:`scorelab.densities` for a part that is not curved. Part ``j`` is in one space in all components.
    """

    space: Any

    def __init__(self, weights: ArrayLike, components: Sequence[Sequence[Any]]):
        components = tuple(tuple(laws) for laws in components)
        if not components or not components[0] or any(len(laws) != len(components[0]) for laws in components):
            raise ValueError(
                f"ProductMixture.components has {[len(laws) for laws in components]} parts: expected equally many, one or more"
            )
        for law in (law for laws in components for law in laws):
            require_spec(self, SpaceLaw | Density, components=law)
            if len(law.event) != 1:
                raise ValueError(f"ProductMixture.components has a law of points {law.event}: expected vectors (d,)")
        parts = [tuple((getattr(law, "space", Euclidean()), law.event[0]) for law in laws) for laws in components]
        if any(each != parts[0] for each in parts):
            raise ValueError(f"ProductMixture.components are on {parts}: expected one product for all")
        _, log_weights = _mixture(self, weights, components=np.zeros((len(components), 1)))
        self.space, self.components, self.log_weights = Product(parts=parts[0]), components, as_parameter(log_weights)

    @property
    def event(self):
        """``(d,)``, the channels of all parts."""
        return (self.space.size,)

    def _log_probs(self, x):
        parts = self.space.split(x)
        each = [sum(law.log_prob(part) for law, part in zip(laws, parts, strict=True)) for laws in self.components]
        return jnp.stack(each)

    def _draw(self, key, which):
        keys = jax.random.split(key, len(self.components[0]))
        draws = [jnp.concatenate([law.sample(k, 1)[0] for k, law in zip(keys, laws, strict=True)]) for laws in self.components]
        return jnp.stack(draws)[which]


def on_torus() -> WrappedNormalMixture:
    """Six clusters of two angles on a curve that goes around the torus."""
    turn = 2 * math.pi * np.arange(6) / 6
    return WrappedNormalMixture(np.ones(6), wrapped(np.stack([turn, 2 * turn + 0.5], 1)), [[0.35, 0.15]] * 6)


def on_sphere() -> VonMisesFisherMixture:
    """Seven clusters of unit vectors on a spiral from pole to pole."""
    height = np.linspace(0.9, -0.9, 7)
    turn, radius = 1.5 * math.pi * height, np.sqrt(1 - height**2)
    return VonMisesFisherMixture(np.ones(7), np.stack([radius * np.cos(turn), radius * np.sin(turn), height], 1), 30.0)


def on_rotations() -> RotationMixture:
    """Five clusters of rotations: by 0, 90 and 180 degrees about one axis, and by 120 degrees about two others."""
    angles = np.deg2rad([0, 90, 180, 120, 120])
    axes = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 1, 1], [1, -1, -1]]) / np.sqrt([1, 1, 1, 3, 3])[:, None]
    return RotationMixture(np.ones(5), np.concatenate([np.cos(angles / 2)[:, None], np.sin(angles / 2)[:, None] * axes], 1), 25.0)


def on_product() -> ProductMixture:
    """Four clusters of two angles beside a unit vector, which belong together."""
    angles = np.array([[-2.5, 0], [-1, 2], [1, -2], [2.8, 1]])
    vectors = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / math.sqrt(3)
    parts = [
        (WrappedNormalMixture([1.0], a[None], 0.3), VonMisesFisherMixture([1.0], v[None], 15.0))
        for a, v in zip(angles, vectors, strict=True)
    ]
    return ProductMixture([0.4, 0.3, 0.2, 0.1], parts)


def _mixture(law: SpaceLaw, weights: ArrayLike, **centres: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The centres ``(K, *event)`` and the normalised log-weights ``(K,)`` on the host; ValueError for others."""
    ((name, values),) = centres.items()
    require_known(law, weights=weights, **centres)  # pyright: ignore[reportArgumentType]
    check_numbers(law, weights=weights, **centres)
    weights, values = np.asarray(weights, np.float64), np.asarray(values, np.float64)
    where = type(law).__name__
    if values.ndim < 2 or not len(values):
        raise ValueError(f"{where}.{name} has shape {values.shape}: expected (K, *event)")
    if weights.shape != values.shape[:1] or not np.all(weights > 0):
        raise ValueError(f"{where}.weights = {weights.tolist()}: expected {len(values)} positive numbers")
    return values, np.log(weights / weights.sum())


def _concentrations(law: SpaceLaw, values: ArrayLike, centres: np.ndarray) -> np.ndarray:
    require_known(law, concentrations=values)  # pyright: ignore[reportArgumentType]
    check_numbers(law, concentrations=values)
    values = np.asarray(values, np.float64)
    if centres.ndim != 2 or values.shape not in ((), centres.shape[:1]) or not np.all((values >= 0) & (values <= 1e6)):
        raise ValueError(
            f"{type(law).__name__}.concentrations = {values.tolist()} of {centres.shape} centres: expected numbers from 0 to 1e6, "
            "one or one for each of the vectors"
        )
    return np.broadcast_to(values, centres.shape[:1])


def _accepted(key: Key, propose: Callable[[Key], tuple[jax.Array, jax.Array]]) -> jax.Array:
    """The first proposal that is accepted."""

    def again(state):
        key, _, _ = state
        key, key_now = jax.random.split(key)
        return key, *propose(key_now)

    return jax.lax.while_loop(lambda state: ~state[2], again, again((key, None, None)))[1]


def _turned(p: jax.Array, q: jax.Array) -> jax.Array:
    """The quaternion product ``p q``, ``(4,)``."""
    real = p[0] * q[0] - jnp.dot(p[1:], q[1:], precision="highest")
    return jnp.concatenate([real[None], p[0] * q[1:] + q[0] * p[1:] + jnp.cross(p[1:], q[1:])])


def _scaled_bessel(order: float, kappa: np.ndarray) -> np.ndarray:
    r""":math:`e^{-\kappa}I_\nu(\kappa)`."""
    # Imported where it is used: it takes as long as the rest of the laws.
    from scipy import special

    return special.ive(order, kappa)
