r"""Power spectra of stationary fields on periodic grids.

A field on a grid of :math:`N = \prod_i n_i` points has the modes :math:`k` with :math:`-n_i/2 < k_i \le n_i/2`. A mode has the
frequency :math:`f_i = k_i/n_i` in cycles per grid spacing. Its wave number is :math:`\max_i(n_i)\,|f|`, in cycles along the longest
side; on a square grid that is :math:`|k|`.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scorelab.validation import require_positive


def frequencies(grid: tuple[int, ...]) -> Float[np.ndarray, " *grid"]:
    """Length of the frequency of every mode in cycles per grid spacing, ``grid``, in the order of ``numpy.fft``."""
    axes = np.meshgrid(*map(np.fft.fftfreq, grid), indexing="ij")
    return np.sqrt(sum(axis**2 for axis in axes))


def wave_numbers(grid: tuple[int, ...]) -> Float[np.ndarray, " *grid"]:
    """Wave number of every mode in cycles along the longest side, ``grid``, in the order of ``numpy.fft``."""
    return max(grid) * frequencies(grid)


class Spectrum(abc.ABC):
    """The shape of a spectrum; a new one is a frozen dataclass that states ``shape``."""

    @abc.abstractmethod
    def shape(self, grid: tuple[int, ...]) -> Float[np.ndarray, " *grid"]:
        """The variance of every mode up to a factor, ``grid``, in the order of ``numpy.fft``."""

    def __call__(self, grid: tuple[int, ...]) -> Float[np.ndarray, " *grid"]:
        r"""The eigenvalues :math:`\lambda_k` of the covariance of a field of variance 1: their mean is 1."""
        shape = np.asarray(self.shape(grid), np.float64)
        return shape / shape.mean()


@dataclass(frozen=True, kw_only=True)
class PowerLaw(Spectrum):
    r""":math:`\lambda_k\propto (1 + (k/k_0)^2)^{-p/2}\,e^{-(k/k_c)^2}`: flat up to a knee, then a power, with an optional cutoff.

    Attributes:
        exponent: ``p``, above 0.
        knee: ``k_0``, in cycles along the longest side, above 0.
        cutoff: ``k_c``, in the same unit; None for no cutoff.
    """

    exponent: float
    knee: float
    cutoff: float | None = None

    def __post_init__(self):
        require_positive(self, exponent=self.exponent, knee=self.knee)
        if self.cutoff is not None:
            require_positive(self, cutoff=self.cutoff)

    def shape(self, grid):
        k = wave_numbers(grid)
        power = (1 + (k / self.knee) ** 2) ** (-self.exponent / 2)
        return power if self.cutoff is None else power * np.exp(-((k / self.cutoff) ** 2))


@dataclass(frozen=True, kw_only=True)
class Matern(Spectrum):
    r""":math:`\lambda_k\propto (1 + (2\pi\ell f)^2/(2\nu))^{-\nu-r/2}` on a grid of rank ``r``, at the resolved modes.

    Attributes:
        length: :math:`\ell`, in grid spacings, above 0.
        smoothness: :math:`\nu`, above 0.
    """

    length: float
    smoothness: float = 1.5

    def __post_init__(self):
        require_positive(self, length=self.length, smoothness=self.smoothness)

    def shape(self, grid):
        square = (2 * math.pi * self.length * frequencies(grid)) ** 2
        return (1 + square / (2 * self.smoothness)) ** (-self.smoothness - len(grid) / 2)


@dataclass(frozen=True, kw_only=True)
class SquaredExponential(Spectrum):
    r""":math:`\lambda_k\propto e^{-2\pi^2\ell^2f^2}`: the covariance is about :math:`e^{-r^2/(2\ell^2)}` if the grid resolves it.

    Attributes:
        length: :math:`\ell`, in grid spacings, above 0. Well above 1 the highest modes have no variance to rounding, and the law
            has no density before it is noised.
    """

    length: float

    def __post_init__(self):
        require_positive(self, length=self.length)

    def shape(self, grid):
        return np.exp(-2 * (math.pi * self.length * frequencies(grid)) ** 2)
