r"""Manifolds in which points move along geodesics: the torus, spheres, rotations, and products of them.

A space is given by the exponential and the logarithm. :math:`\exp_x(v)` is where the geodesic from ``x`` with the velocity ``v`` is
after a unit of time, and :math:`\log_x(w)` the shortest ``v`` with :math:`\exp_x(v) = w`. Points and tangent vectors are arrays
``(batch, *event)`` in an embedding, and a tangent vector at ``x`` is orthogonal to what leaves the space there.

Angles are :math:`2\,\mathrm{atan2}(|x-w|, |x+w|)`, with a series below a thousandth. The inverse cosine of an inner product has no
digits in float32 below an angle of a hundredth, and is NaN for one unit vector in five with itself.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, Key, is_traced, on_host, per_example
from scorelab.validation import require_int, require_real, require_spec

__all__ = ["Euclidean", "Product", "Rotations", "Space", "Sphere", "SquaredDistance", "Torus"]

# Below this angle functions of it are series, whose first term left out is of the fourth order.
_SMALL = 1e-3
# How far a point of the data may be off the space: far above float32 rounding, far below what is meant to lie elsewhere.
_OFF = 1e-4
# Ends nearer than this to each other's cut locus have no single shortest geodesic.
CUT = 1e-6


@dataclass(frozen=True)
class Space(abc.ABC):
    """A manifold with closed geodesics in an embedding; a new one states the methods below. Events may have axes before its own."""

    @abc.abstractmethod
    def exp(self, x: Array, v: Array) -> jax.Array:
        r""":math:`\exp_x(v)`, on the space up to rounding."""

    @abc.abstractmethod
    def log(self, x: Array, w: Array) -> jax.Array:
        r""":math:`\log_x(w)`; of no meaning at the cut locus (:meth:`clearance`)."""

    @abc.abstractmethod
    def project(self, x: Array, v: Array) -> jax.Array:
        """The part of ``v`` in the tangent space at ``x``."""

    @abc.abstractmethod
    def transport(self, x: Array, w: Array, v: Array) -> jax.Array:
        """``v``, tangent at ``x``, carried to ``w`` in parallel along the geodesic between the two."""

    @abc.abstractmethod
    def distance(self, x: Array, w: Array) -> jax.Array:
        """The length of the shortest geodesic, ``(batch,)``."""

    @abc.abstractmethod
    def clearance(self, x: Array, w: Array) -> jax.Array:
        """How far ``w`` is from the cut locus of ``x``, where the shortest geodesic is not the only one, ``(batch,)``."""

    @abc.abstractmethod
    def log_dilation(self, x: Array, y: Array, t: Array) -> jax.Array:
        r""":math:`\log|\partial w/\partial y|` in volumes, where :math:`y = \exp_x(t\log_x w)`, ``(batch,)``.

        Minus infinity where no ``w`` before the cut locus leads there. ``t`` is a scalar above 0.
        """

    @abc.abstractmethod
    def log_volume(self, event: tuple[int, ...]) -> float:
        """The logarithm of the volume of the space of points of this shape; ValueError where it is infinite."""

    @abc.abstractmethod
    def uniform(self, key: Key, shape: tuple[int, ...]) -> jax.Array:
        """Independent points of the uniform law, of the shape ``(n, *event)``."""

    def norm(self, v: Array) -> jax.Array:
        """The length of tangent vectors, ``(batch,)``: the distance to where they lead."""
        return jnp.sqrt(_total(v**2))

    def retract(self, y: Array) -> jax.Array:
        """The nearest point of the space, in the same sheet of its embedding."""
        return jnp.asarray(y)

    def canonical(self, y: Array) -> jax.Array:
        """The nearest point in the form in which samples are given."""
        return self.retract(y)

    def embed(self, y: Array) -> jax.Array:
        """What a network is shown: a smooth function of the point, equal for equal points, with more channels on the last axis."""
        return jnp.asarray(y)

    def off(self, x: Array) -> Array:
        """How far rows are from the space, ``(n,)``: on the host for a host array, which keeps its precision."""
        return _like(x).zeros(len(x))

    def check_event(self, where: str, event: tuple[int, ...]) -> None:
        """Raise ValueError for a shape that points of the space cannot have."""
        if not event:
            raise ValueError(f"{where} has events of shape (): expected points of {self!r}, with at least one axis")

    def has(self, x: Array) -> Array:
        """Whether rows are on the space, as far as they have to be, ``(n,)``; not a number is off it."""
        return self.off(x) <= _OFF

    def check(self, where: str, x: Array) -> None:
        """Raise ValueError unless all rows ``(n, *event)`` are on the space; traced ones are looked at for their shape alone."""
        require_real(where, x)
        self.check_event(where, jnp.shape(x)[1:])
        if is_traced(x) or not len(x):
            return
        rows = np.asarray(on_host(x), np.float64)
        off = self.off(rows)
        # Not a number is off the space too.
        if (wrong := np.flatnonzero(~(off <= _OFF))).size:
            worst = wrong[np.argmax(np.nan_to_num(off[wrong], nan=np.inf))]
            raise ValueError(
                f"{where} has {len(wrong)} of {len(x)} rows off {self!r}, the first is row {wrong[0]}; row {worst} is off by "
                f"{off[worst]:.3g}: expected at most {_OFF:g}; {self.wanted}"
            )

    @property
    def wanted(self) -> str:
        """What points are, for messages."""
        return "finite numbers"


@dataclass(frozen=True)
class Euclidean(Space):
    """Flat space, for a part of a :class:`Product` that is not curved, such as the place of a body beside its orientation."""

    def exp(self, x, v) -> jax.Array:
        return jnp.asarray(x) + v

    def log(self, x, w) -> jax.Array:
        return jnp.asarray(w) - x

    def project(self, x, v) -> jax.Array:
        return jnp.asarray(v)

    def transport(self, x, w, v) -> jax.Array:
        return jnp.asarray(v)

    def distance(self, x, w):
        return _root(_total(self.log(x, w) ** 2))

    def clearance(self, x, w):
        return jnp.full(len(x), jnp.inf, jnp.result_type(x, float))

    def log_dilation(self, x, y, t):
        return jnp.full(len(y), -math.prod(y.shape[1:]) * jnp.log(t), y.dtype)

    def log_volume(self, event) -> float:
        raise ValueError("the volume of Euclidean() is infinite: expected another law than the uniform one")

    def uniform(self, key, shape) -> jax.Array:
        raise ValueError("Euclidean() has no uniform law: expected another base, such as densities.Gaussian")

    def off(self, x):
        xp = _like(x)
        return xp.where(xp.isfinite(x), 0.0, xp.inf).reshape(len(x), -1).max(1)


@dataclass(frozen=True)
class Torus(Euclidean):
    r"""Angles in radians, with the period :math:`2\pi` in every element of an event of any shape; given in :math:`[-\pi, \pi]`.

    A network is shown their cosines and sines.
    """

    def exp(self, x, v):
        return wrapped(x + v)

    def log(self, x, w):
        return wrapped(w - x)

    def clearance(self, x, w):
        return math.pi - jnp.max(jnp.abs(self.log(x, w)).reshape(len(x), -1), axis=1)

    def log_dilation(self, x, y, t):
        reach = jnp.max(jnp.abs(self.log(x, y)).reshape(len(y), -1), axis=1)
        return jnp.where(reach <= math.pi * t, super().log_dilation(x, y, t), -jnp.inf)

    def log_volume(self, event) -> float:
        return math.prod(event) * math.log(2 * math.pi)

    def uniform(self, key, shape) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-math.pi, maxval=math.pi)

    def canonical(self, y):
        return wrapped(y)

    def embed(self, y):
        return jnp.concatenate([jnp.cos(y), jnp.sin(y)], axis=-1)

    def off(self, x):
        # Both usual ranges are taken, from -pi to pi and from 0 to 2 pi; degrees are not.
        xp = _like(x)
        return xp.maximum(xp.abs(xp.where(xp.isfinite(x), x, xp.inf)) - 2 * math.pi, 0.0).reshape(len(x), -1).max(1)

    @property
    def wanted(self) -> str:
        """Angles."""
        return "angles in radians, from -2 pi to 2 pi"


@dataclass(frozen=True)
class Sphere(Space):
    """Unit vectors along the last axis, ``(..., d)`` with ``d >= 2``; axes before it number independent vectors."""

    def exp(self, x, v):
        square = jnp.sum(v**2, axis=-1, keepdims=True)
        return self.retract(_cosine(square) * x + _sinc(square) * v)

    def log(self, x, w):
        across, along = _split(x, w)
        sine = _root(jnp.sum(across**2, axis=-1, keepdims=True))
        angle = jnp.arctan2(sine, along)
        small = (angle < _SMALL) | (sine == 0)
        return across * jnp.where(small, 1 + angle**2 / 6, angle / jnp.where(small, 1.0, sine))

    def project(self, x, v) -> jax.Array:
        return jnp.asarray(v) - jnp.sum(x * v, axis=-1, keepdims=True) * x

    def transport(self, x, w, v) -> jax.Array:
        # Undefined between antipodes, where the denominator is 0.
        both = 1 + jnp.sum(x * w, axis=-1, keepdims=True)
        return jnp.asarray(v) - jnp.sum(w * v, axis=-1, keepdims=True) / jnp.maximum(both, jnp.finfo(x.dtype).tiny) * (x + w)

    def distance(self, x, w):
        return _root(_total(self._angle(x, w) ** 2))

    def clearance(self, x, w):
        return math.pi - jnp.max(self._angle(x, w).reshape(len(x), -1), axis=1)

    def log_dilation(self, x, y, t):
        return self._dilation(self._angle(x, y), t, math.pi, y.shape[-1])

    def log_volume(self, event) -> float:
        d = event[-1]
        return math.prod(event[:-1]) * (math.log(2) + d / 2 * math.log(math.pi) - math.lgamma(d / 2))

    def uniform(self, key, shape) -> jax.Array:
        return self.canonical(jax.random.normal(key, shape))

    def retract(self, y):
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)

    def off(self, x):
        xp = _like(x)
        return xp.abs(xp.linalg.norm(x, axis=-1) - 1).reshape(len(x), -1).max(1)

    def check_event(self, where, event):
        super().check_event(where, event)
        if event[-1] < 2:
            raise ValueError(f"{where} has events of shape {event}: expected unit vectors (..., d), d >= 2, for {self!r}")

    @property
    def wanted(self) -> str:
        """Unit vectors."""
        return "unit vectors along the last axis"

    def _angle(self, x: Array, w: Array) -> jax.Array:
        """Between unit vectors, ``(batch, ...)``."""
        return 2 * jnp.arctan2(_root(jnp.sum((x - w) ** 2, -1)), _root(jnp.sum((x + w) ** 2, -1)))

    @staticmethod
    def _dilation(angle: Array, t: Array, reach: float, d: int) -> jax.Array:
        # The volume of a shell is sin(r)^(d - 2) dr.
        inside = angle <= reach * t
        far = jnp.where(inside, angle / t, 0.0)
        near = jnp.where(inside, angle, 0.0)
        ratio = (d - 2) * (jnp.log(jnp.abs(_sinc(far**2))) - jnp.log(_sinc(near**2))) - (d - 1) * jnp.log(t)
        return _total(jnp.where(inside, ratio, -jnp.inf))


@dataclass(frozen=True)
class Rotations(Sphere):
    r"""Rotations of space as unit quaternions ``(..., 4)``, the real part first; :math:`q` and :math:`-q` are one rotation.

    Distances are angles of rotation, up to :math:`\pi`, so the volume is :math:`8\pi^2`, and a tangent vector of a quaternion is
    half as long as the rotation it stands for. Samples have a real part of at least 0. A network is shown the rotation matrix.
    """

    def log(self, x, w):
        return super().log(x, jnp.where(jnp.sum(x * w, axis=-1, keepdims=True) < 0, -w, w))

    def norm(self, v):
        return 2 * super().norm(v)

    def distance(self, x, w):
        return 2 * _root(_total(self._angle(x, w) ** 2))

    def clearance(self, x, w):
        return 2 * (math.pi / 2 - jnp.max(self._angle(x, w).reshape(len(x), -1), axis=1))

    def log_dilation(self, x, y, t):
        return self._dilation(self._angle(x, y), t, math.pi / 2, 4)

    def log_volume(self, event) -> float:
        return math.prod(event[:-1]) * math.log(8 * math.pi**2)

    def canonical(self, y):
        return self.retract(jnp.where(y[..., :1] < 0, -y, y))

    def embed(self, y):
        return matrix(y).reshape(*y.shape[:-1], 9)

    def check_event(self, where, event):
        Space.check_event(self, where, event)
        if event[-1] != 4:
            raise ValueError(f"{where} has events of shape {event}: expected unit quaternions (..., 4) for {self!r}")

    @property
    def wanted(self) -> str:
        """Unit quaternions."""
        return "unit quaternions along the last axis"

    def _angle(self, x, w):
        # The nearer of the two quaternions of w.
        across, along = _split(x, w)
        return jnp.arctan2(_root(jnp.sum(across**2, axis=-1)), jnp.abs(along[..., 0]))


@dataclass(frozen=True)
class Product(Space):
    """Several spaces side by side along the last axis of an event: distances add in squares, and geodesics move in each.

    Attributes:
        parts: pairs of a space and its number of channels, as ``((Torus(), 2), (Sphere(), 3), (Rotations(), 4))``.
    """

    parts: tuple[tuple[Space, int], ...]

    def __post_init__(self):
        try:
            parts = tuple((space, size) for space, size in self.parts)
        except (TypeError, ValueError):
            parts = ()
        if not parts:
            raise ValueError(f"Product.parts = {self.parts!r}: expected pairs of a space and its number of channels")
        object.__setattr__(self, "parts", parts)
        for i, (space, size) in enumerate(parts):
            require_spec(self, Space, **{f"parts[{i}][0]": space})
            require_int(self, 1, **{f"parts[{i}][1]": size})
            space.check_event(f"Product.parts[{i}]", (size,))

    @property
    def size(self) -> int:
        """Channels of all parts together."""
        return sum(size for _, size in self.parts)

    def split(self, y: Array) -> tuple[Array, ...]:
        """The parts of points."""
        ends = np.cumsum([size for _, size in self.parts])
        return tuple(y[..., end - size : end] for end, (_, size) in zip(ends, self.parts, strict=True))

    def exp(self, x, v):
        return self._joined("exp", x, v)

    def log(self, x, w):
        return self._joined("log", x, w)

    def project(self, x, v) -> jax.Array:
        return self._joined("project", x, v)

    def transport(self, x, w, v) -> jax.Array:
        return self._joined("transport", x, w, v)

    def retract(self, y):
        return self._joined("retract", y)

    def canonical(self, y):
        return self._joined("canonical", y)

    def embed(self, y):
        return self._joined("embed", y)

    def distance(self, x, w):
        return _root(_added([d**2 for d in self._each("distance", x, w)]))

    def norm(self, v):
        return _root(_added([d**2 for d in self._each("norm", v)]))

    def clearance(self, x, w):
        return jnp.min(jnp.stack(self._each("clearance", x, w)), axis=0)

    def log_dilation(self, x, y, t):
        split = zip(self.parts, self.split(x), self.split(y), strict=True)
        return _added([space.log_dilation(a, b, t) for (space, _), a, b in split])

    def log_volume(self, event) -> float:
        return sum(space.log_volume((*event[:-1], size)) for space, size in self.parts)

    def uniform(self, key, shape) -> jax.Array:
        keys = jax.random.split(key, len(self.parts))
        return jnp.concatenate(
            [space.uniform(k, (*shape[:-1], size)) for k, (space, size) in zip(keys, self.parts, strict=True)], axis=-1
        )

    def off(self, x):
        xp = _like(x)
        return xp.max(xp.stack(self._each("off", x)), axis=0)

    def check_event(self, where, event):
        super().check_event(where, event)
        if event[-1] != self.size:
            raise ValueError(f"{where} has events of shape {event}: expected (..., {self.size}), the channels of {self!r}")

    @property
    def wanted(self) -> str:
        """What each part is."""
        return ", then ".join(space.wanted for space, _ in self.parts)

    def _each(self, method: str, *arrays: Any) -> list[Any]:
        split = zip(*map(self.split, arrays), strict=True)
        return [getattr(space, method)(*part) for (space, _), part in zip(self.parts, split, strict=True)]

    def _joined(self, method: str, *arrays: Array) -> jax.Array:
        return jnp.concatenate(self._each(method, *arrays), axis=-1)


@dataclass(frozen=True)
class SquaredDistance:
    """The cost of a coupling on a space, for :class:`scorelab.data.Assignment`: squared lengths of geodesics.

    Attributes:
        space: the space.
        event: the shape of a point, None for vectors.
    """

    space: Space
    event: tuple[int, ...] | None = None

    def __post_init__(self):
        require_spec(self, Space, space=self.space)
        object.__setattr__(self, "event", None if self.event is None else tuple(self.event))

    def __call__(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """Of all rows of ``x`` ``(n, d)`` and ``w`` ``(m, d)``: ``(n, m)``."""
        event = x.shape[1:] if self.event is None else self.event
        for name, rows in dict(x=x, w=w).items():
            if rows.ndim != 2 or rows.shape[1] != math.prod(event):
                raise ValueError(f"SquaredDistance.{name} has shape {rows.shape}: expected (n, {math.prod(event)})")
            self.space.check(f"SquaredDistance.{name}", np.asarray(rows).reshape(len(rows), *event))
        one, other = (jnp.asarray(a).reshape(len(a), *event) for a in (x, w))
        return np.asarray(_all_pairs(self.space)(one, other), np.float64) ** 2


@functools.cache
def _all_pairs(space: Space) -> Callable[[Array, Array], Array]:
    one = lambda a, w: space.distance(jnp.broadcast_to(a, w.shape), w)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def geodesic(space: Space, x: Array, w: Array, t: Array) -> tuple[jax.Array, jax.Array]:
    r""":math:`y_t = \exp_x(t\log_x w)` and :math:`dy/dt`, for ``t`` a scalar or ``(batch,)``."""
    v = space.log(x, w)
    return jax.jvp(lambda t: space.exp(x, per_example(t, x) * v), (t,), (jnp.ones_like(t),))


def matrix(q: Array) -> jax.Array:
    """The rotation matrices ``(..., 3, 3)`` of unit quaternions ``(..., 4)``."""
    a, b, c, d = (q[..., i] for i in range(4))
    rows = (
        (a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)),
        (2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)),
        (2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d),
    )
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def wrapped(angle: Array) -> jax.Array:
    r"""Angles in :math:`[-\pi, \pi]`; small ones keep their digits, which a remainder would take away."""
    return jnp.asarray(angle) - 2 * math.pi * jnp.round(angle / (2 * math.pi))


def _split(x: Array, w: Array) -> tuple[jax.Array, jax.Array]:
    """The part of ``w`` that is orthogonal to ``x``, and the cosine, with the digits of a small angle and of one near pi."""
    along = jnp.sum(x * w, axis=-1, keepdims=True)
    # Orthogonal to x, w is w - x and w + x alike, and one of the two is a small difference.
    difference = jnp.where(along < 0, w + x, w - x)
    return difference - jnp.sum(x * difference, axis=-1, keepdims=True) * x, along


def _root(square: Array) -> jax.Array:
    """The square root, with the derivative 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _cosine(square: Array) -> jax.Array:
    """The cosine, of the square of an angle."""
    small = square < _SMALL**2
    return jnp.where(small, 1 - square / 2, jnp.cos(jnp.sqrt(jnp.where(small, 1.0, square))))


def _sinc(square: Array) -> jax.Array:
    """``sin(a) / a``, of the square of an angle."""
    small = square < _SMALL**2
    angle = jnp.sqrt(jnp.where(small, 1.0, square))
    return jnp.where(small, 1 - square / 6, jnp.sin(angle) / angle)


def _added(values: list[Array]) -> jax.Array:
    return jnp.sum(jnp.stack(values), axis=0)


def _like(x: Array) -> Any:
    """The module of functions of an array: numpy for a host array."""
    return np if isinstance(x, np.ndarray) else jnp


def _total(value: Array) -> jax.Array:
    """The sum over the event, ``(batch,)``."""
    return jnp.sum(value.reshape(len(value), -1), axis=1)
