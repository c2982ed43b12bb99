"""The form every metric returns: no number without its extractor, its sample size and its floor."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike

from scorelab.metrics.features import Features


@dataclass(frozen=True, kw_only=True)
class MetricValue:
    """One number with what is needed to read it.

    ``extractor`` is the id of the features, ``n`` the number of samples compared, ``reference_n`` that of the set
    compared with (None for metrics of one set), ``stderr`` a standard error, ``floor`` the same metric between
    train and test data at equal n: no generator can be told from the data below (for similarities: above)
    it. Two values compare only at equal extractor and n.
    """

    name: str
    value: float
    n: int
    extractor: str | None = None
    reference_n: int | None = None
    stderr: float | None = None
    floor: float | None = None

    def __post_init__(self):
        if not self.name or self.n < 1:
            raise ValueError(f"name={self.name!r}, n={self.n}: expected a name and at least one sample")

    @property
    def label(self) -> str:
        """The name with the extractor, as in ``FID-smallcnn(mnist-1a2b3c4d)``, never plain ``FID``."""
        return self.name if self.extractor is None else f"{self.name}-{self.extractor}"

    def with_floor(self, floor: MetricValue) -> MetricValue:
        """This value with the value of ``floor`` as its floor; both must be the same metric at the same n."""
        for field in ("name", "extractor", "n", "reference_n"):
            if getattr(self, field) != getattr(floor, field):
                raise ValueError(f"floor has {field}={getattr(floor, field)}: expected {getattr(self, field)}")
        return replace(self, floor=floor.value)

    def __float__(self) -> float:
        return float(self.value)

    def __str__(self) -> str:
        error = "" if self.stderr is None else f" ± {self.stderr:.2g}"
        size = f"n={self.n}"
        if self.reference_n not in (None, self.n):
            size += f" against {self.reference_n}"
        floor = "" if self.floor is None else f", floor train/test {self.floor:.4g}"
        return f"{self.label} = {self.value:.4g}{error}  ({size}{floor})"


def numbers(x: np.ndarray, name: str) -> np.ndarray:
    """x in float64; ValueError naming the argument for strings, complex numbers and values that are not finite."""
    z = np.asarray(x)
    if not (z.dtype == bool or jnp.issubdtype(z.dtype, jnp.floating) or jnp.issubdtype(z.dtype, jnp.integer)):
        raise ValueError(f"{name} is {z.dtype}: expected real numbers")
    z = z.astype(np.float64)
    if not np.isfinite(z).all():
        raise ValueError(f"{name} has {np.count_nonzero(~np.isfinite(z))} values that are not finite: expected none")
    return z


def points(
    x: np.ndarray, features: Features | None, name: str, least: int = 2, power: int = 1, dtype: DTypeLike = np.float64
) -> np.ndarray:
    """``features(x)``, or x itself for None, as float64 (n, d); errors name the argument.

    Raises ValueError for another number of dimensions, fewer than ``least`` rows, values that are not finite,
    or so large that sums of their differences to the ``power`` cannot be represented in ``dtype``.
    """
    z = numbers(x if features is None else features(x), name)
    if z.ndim != 2 or len(z) < least or not z.size:
        raise ValueError(f"{name} gives points of shape {z.shape}: expected (n, d) with n at least {least}")
    # A difference is at most twice the largest value; a sum has no more terms than there are pairs of numbers.
    most = float((np.finfo(dtype).max / float(z.size) ** 2) ** (1 / power) / 4)
    if power > 1 and np.abs(z).max() > most:
        raise ValueError(f"{name} has a value of size {np.abs(z).max():.3g}: expected at most {most:.3g}, or sums overflow")
    return z


def point_pair(
    x: np.ndarray,
    y: np.ndarray,
    features: Features | None,
    least: int = 2,
    power: int = 1,
    dtype: DTypeLike = np.float64,
) -> tuple[np.ndarray, np.ndarray]:
    """``points`` of both sets, (n, d) and (m, d) of one width d."""
    a, b = (points(z, features, name, least, power, dtype) for name, z in (("x", x), ("y", y)))
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"x gives points of width {a.shape[1]} and y of width {b.shape[1]}: expected equal widths")
    return a, b


def extractor_id(features: Features | None) -> str | None:
    """The id to print; None where points are compared as they are."""
    return None if features is None else features.id
