"""Between stored values and the numbers a diffusion sees: one affine scale and its bits/dim."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from scorelab.arrays import is_traced

# Most fraction bits of the dequantisation noise: on [-1, 1] 8 bits of level + 14 + half a step fit float32's 24
# exactly, see ``dequantise``.
_NOISE_BITS = 14


def _bits_per_dim(log_prob, log_det: float, event_shape: tuple[int, ...]):
    return -(log_prob + log_det) / (math.prod(event_shape) * math.log(2))


class Transform(abc.ABC):
    """Stored values to what a diffusion sees, and back; a new one states ``encode`` and ``decode``, which undoes it.

    ``levels`` is the number of levels of the stored values, None for values that are continuous.
    """

    levels: int | None = None

    def check(self, x: np.ndarray, levels: int | None = None) -> None:  # noqa: B027
        """Raise TypeError or ValueError where stored data, of ``levels`` levels where that is known, do not fit."""

    @abc.abstractmethod
    def encode(self, x) -> jax.Array:
        """Stored values as floating point numbers."""

    @abc.abstractmethod
    def decode(self, y) -> jax.Array:
        """Back to stored values."""


class Cells(Transform):
    """Integer levels x in {0, .., levels - 1} on cells of equal width that fill the interval [low, high].

    y = low + (high - low) (x + u) / levels, with u = 1/2 in ``encode`` (cell centres) and u uniform on (0, 1)
    in ``dequantise``. Both stay strictly inside (low, high). ``decode`` returns the cell y lies in, so it undoes
    both exactly. A subclass says ``levels``, ``low`` and ``high``.
    """

    levels: int  # pyright: ignore[reportIncompatibleVariableOverride]: never None here
    low: float
    high: float

    def _check(self, **fields: float) -> None:
        for field in ("levels", *fields):
            if isinstance(value := getattr(self, field), np.generic):
                object.__setattr__(self, field, value.item())
        fields = {field: getattr(self, field) for field in fields}
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or not 2 <= self.levels <= 256:
            raise ValueError(f"{type(self).__name__}.levels = {self.levels!r}: expected an integer from 2 to 256, as uint8 has")
        for field, value in fields.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{type(self).__name__}.{field} = {value!r}: expected a finite number")
        if self.low < self.high and self.noise_bits < 4:
            given = ", ".join(f"{field}={value}" for field, value in fields.items())
            raise ValueError(
                f"{given}: cells of [{self.low}, {self.high}] / {self.levels} are too narrow for float32: "
                "expected an interval nearer to zero, or a wider one"
            )

    def _affine(self, value: jax.Array) -> jax.Array:
        return self.low + value * ((self.high - self.low) / self.levels)

    def _as_float(self, x) -> jax.Array:
        given, x = x, jnp.asarray(x)
        if x.dtype != jnp.uint8:
            raise TypeError(f"x is {x.dtype}: expected uint8 levels 0 to {self.levels - 1}")
        # Under jit a value cannot be looked at; ``check`` looks at the data before.
        if self.levels < 256 and not is_traced(given) and x.size and int(np.max(given)) >= self.levels:
            raise ValueError(f"x has the value {np.max(given)}: expected levels 0 to {self.levels - 1}, as {self!r} has")
        return x.astype(jnp.float32)

    def check(self, x: np.ndarray, levels: int | None = None) -> None:
        """Raise where stored data do not fit, before any of it is used: TypeError for a dtype, ValueError for values.

        ``levels`` is the number of levels the data set has, None where it is not known. Another number than that of the scale is
        refused in both directions: too few would run out of the cells, too many would leave the upper cells empty.
        """
        if np.asarray(x).dtype != np.uint8:
            raise TypeError(f"{self!r} for data that are {np.asarray(x).dtype}: expected uint8 levels, or Identity() for numbers")
        if levels is not None and levels != self.levels:
            raise ValueError(f"{self!r} for data with {levels} levels: expected levels = {levels}")
        if np.size(x) and int(np.max(x)) >= self.levels:
            raise ValueError(f"{self!r} for data with the value {int(np.max(x))}: expected 0 to levels - 1 = {self.levels - 1}")

    def encode(self, x) -> jax.Array:
        """Centre of each level's cell: uint8 (...) -> float32 (...) strictly inside (low, high)."""
        return self._affine(self._as_float(x) + 0.5)

    def decode(self, y) -> jax.Array:
        """The level whose cell holds y, values outside [low, high] clipped: float (...) -> uint8 (...).

        ValueError for values that are NaN, which have no level (not under jit).
        """
        if not is_traced(y) and (bad := int(np.sum(np.isnan(y)))):
            raise ValueError(f"y has {bad} values that are NaN: expected numbers")
        cell = jnp.floor((jnp.asarray(y, jnp.float32) - self.low) * (self.levels / (self.high - self.low)))
        return jnp.clip(cell, 0, self.levels - 1).astype(jnp.uint8)

    def dequantise(self, key: jax.Array, x) -> jax.Array:
        """Uniform noise inside each level's cell: uint8 (...) -> float32 (...), ``decode`` undoes it exactly.

        u is uniform on the midpoints of 2^b equal parts of (0, 1): mean 1/2 and variance (1 - 4^-b) / 12, with
        b = ``noise_bits``. A float32 uniform number near one would be rounded into the next cell at the upper
        levels.
        Source: Theis, van den Oord, Bethge, "A note on the evaluation of generative models", 2016, arXiv
        1511.01844.
        """
        x = self._as_float(x)
        bits = jax.random.bits(key, x.shape, jnp.uint16) >> (16 - self.noise_bits)
        return self._affine(x + (bits.astype(jnp.float32) + 0.5) * 2.0**-self.noise_bits)

    def at(self, x, v) -> jax.Array:
        """The point at the place v in the level's cell: uint8 (...) and float (...) in [0, 1] -> float32 (...).

        A place within 2^-(b+1) of an end of the cell, b = ``noise_bits``, is moved there, so that ``decode`` undoes it exactly.
        """
        part = 2.0 ** -(self.noise_bits + 1)
        return self._affine(self._as_float(x) + jnp.clip(jnp.asarray(v, jnp.float32), part, 1 - part))

    @property
    def noise_bits(self) -> int:
        """How many bits the dequantisation noise has, at most 14, so that half a part of a cell is four float32 steps or more."""
        largest = max(abs(self.low), abs(self.high))
        step = 2.0 ** (math.ceil(math.log2(largest)) - 24)
        return min(_NOISE_BITS, math.floor(math.log2((self.high - self.low) / (self.levels * step))) - 3)

    def log_det(self, event_shape: tuple[int, ...]) -> float:
        r"""The logarithm of :math:`|dy/d(x+u)|`, ``d log((high - low) / levels)`` in nats, for ``d`` values in an event."""
        return math.prod(event_shape) * math.log((self.high - self.low) / self.levels)

    def bits_per_dim(self, log_prob, event_shape: tuple[int, ...]):
        """-(log p_Y(y) + log_det) / (d log 2) for y = dequantise(key, x).

        Its mean over u bounds the code length of x from above.

        ``log_prob`` in nats, any shape, summed over the event. The uniform law on the cube has exactly
        log2(levels).
        Source: Theis et al. 2016, section 3.1 (Jensen's inequality on P(x) = integral of p over the cell).
        """
        return _bits_per_dim(log_prob, self.log_det(event_shape), event_shape)


@dataclass(frozen=True, kw_only=True)
class Pixels(Cells):
    """Levels as cells of [low, high]: 0 maps to half a cell above low, levels - 1 to half a cell below high."""

    levels: int = 256
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        self._check(low=self.low, high=self.high)
        if not self.low < self.high:
            raise ValueError(f"Pixels.low = {self.low}: expected less than high = {self.high}")


@dataclass(frozen=True, kw_only=True)
class Positive(Cells):
    """Images as positive numbers, y = offset + scale img with img = x / (levels - 1) in [0, 1].

    What multiplicative diffusion needs: raw pixels are mostly zero, and zero never moves. The levels are the
    centres of cells as in ``Pixels``; values beyond the outermost cells decode to the outermost levels.
    Source: arXiv 2510.02730, with offset = scale = 1.
    """

    levels: int = 256
    offset: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        self._check(offset=self.offset, scale=self.scale)
        if self.scale <= 0:
            raise ValueError(f"Positive.scale = {self.scale}: expected a number above 0")
        if self.low <= 0:
            raise ValueError(
                f"Positive.offset = {self.offset}: expected more than scale / (2 (levels - 1)) = "
                f"{self.offset - self.low:.4g}, so that the whole cell of level 0 is positive"
            )

    @property
    def low(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The lower end of the cell of level 0."""
        return self.offset - 0.5 * self.scale / (self.levels - 1)

    @property
    def high(self) -> float:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The upper end of the cell of the last level."""
        return self.offset + self.scale + 0.5 * self.scale / (self.levels - 1)


@dataclass(frozen=True, kw_only=True)
class Identity(Transform):
    """The same interface for data that is continuous already: nothing is scaled, nothing is added."""

    def check(self, x: np.ndarray, levels: int | None = None) -> None:
        """Raise ValueError for data with levels, which samples would not come back to, and for numbers that are not finite."""
        if levels is not None:
            raise ValueError(f"Identity() for data with {levels} levels: expected Pixels(levels={levels}), or another scale")
        if not np.isfinite(x).all():
            raise ValueError("Identity() for data with values that are NaN or infinite: expected finite numbers")

    def encode(self, x) -> jax.Array:
        """x as float32."""
        return jnp.asarray(x, jnp.float32)

    def decode(self, y) -> jax.Array:
        """y unchanged."""
        return jnp.asarray(y)

    def dequantise(self, key: jax.Array, x) -> jax.Array:
        """x as float32; the key is not used."""
        return self.encode(x)

    def log_det(self, event_shape: tuple[int, ...]) -> float:
        """Zero, since values are not scaled."""
        return 0.0

    def bits_per_dim(self, log_prob, event_shape: tuple[int, ...]):
        """-log p(x) / (d log 2): it depends on the unit of x and may be negative."""
        return _bits_per_dim(log_prob, 0.0, event_shape)
