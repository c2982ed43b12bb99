"""Radially averaged power spectra of fields on periodic grids, and how far they are from those of a law."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scorelab.densities.spectra import wave_numbers
from scorelab.metrics.value import MetricValue, numbers


class PowerSpectrum(NamedTuple):
    """The mean power of the modes of every shell.

    Attributes:
        wave_number: of the shells, ``(s,)``, in cycles along the longest side: shell ``j`` has the modes that round to ``j``.
        power: variance of a mode, averaged over the shell and the channels, ``(s,)``.
        stderr: standard error of ``power`` over the fields, ``(s,)``; NaN for one field.
    """

    wave_number: np.ndarray
    power: np.ndarray
    stderr: np.ndarray


def power_spectrum(fields: np.ndarray) -> PowerSpectrum:
    r"""The radially averaged power spectrum of fields ``(n, *grid, channels)``.

    .. math:: P_j = \mathrm{mean}_{k:\,|k|\to j}\,\mathrm{mean}_x\,|\hat x_k|^2,\qquad
              \hat x = N^{-1/2}\sum_s x_s e^{-2\pi i k\cdot s/n} ,

    so that a :class:`scorelab.densities.GaussianField` of mean zero has the shell averages of its eigenvalues, and the average
    over all modes is the mean square of a point. Subtract the mean of a law first where it has one.

    Raises:
        ValueError: another number of axes, values that are not finite.
    """
    x = numbers(fields, "fields")
    if x.ndim < 3 or not x.size:
        raise ValueError(f"fields has shape {x.shape}: expected (n, *grid, channels) with at least one grid axis")
    axes = tuple(range(1, x.ndim - 1))
    power = np.mean(np.abs(np.fft.fftn(x, axes=axes, norm="ortho")) ** 2, -1).reshape(len(x), -1)
    found, shells = _shells(power, x.shape[1:-1])
    error = shells.std(0, ddof=1) / np.sqrt(len(x)) if len(x) > 1 else np.full(len(found), np.nan)
    return PowerSpectrum(found.astype(np.float64), shells.mean(0), error)


def shell_average(spectrum: np.ndarray) -> Float[np.ndarray, " s"]:
    """Eigenvalues ``(*grid, channels)``, such as those of a law, averaged over shells and channels as in :func:`power_spectrum`."""
    values = numbers(spectrum, "spectrum")
    if values.ndim < 2 or not values.size:
        raise ValueError(f"spectrum has shape {values.shape}: expected (*grid, channels)")
    return _shells(values.mean(-1).reshape(1, -1), values.shape[:-1])[1][0]


def spectral_error(fields: np.ndarray, reference: np.ndarray) -> MetricValue:
    r"""Root mean square over shells of :math:`\log(P_j/P^*_j)`, in nats: how far the power of fields is from a reference.

    Its ``floor`` is what fields of the reference itself have by chance, the root mean square of the relative standard errors;
    None for one field.

    Args:
        fields: ``(n, *grid, channels)``.
        reference: power of every shell ``(s,)``, above 0: :func:`shell_average` of a law, or the ``power`` of other fields.

    Raises:
        ValueError: a reference of another length or without power in a shell, fields without power in one.
    """
    found, wanted = power_spectrum(fields), numbers(reference, "reference")
    if wanted.shape != found.power.shape or not np.all(wanted > 0):
        raise ValueError(f"reference has shape {wanted.shape}: expected the power of {len(found.power)} shells, all above 0")
    if not np.all(found.power > 0):
        empty = int(np.flatnonzero(found.power <= 0)[0])
        raise ValueError(f"fields have no power in shell {empty}: expected some in every shell, since logarithms are compared")
    ratio = np.log(found.power / wanted)
    value, relative = float(np.sqrt(np.mean(ratio**2))), found.stderr / found.power
    # The linearised error of the root of a mean of squares, with shells that do not know of one another.
    stderr = float(np.sqrt(np.sum((ratio * relative) ** 2)) / (len(ratio) * value)) if value > 0 and len(fields) > 1 else None
    floor = float(np.sqrt(np.mean(relative**2))) if len(fields) > 1 else None
    return MetricValue(name="spectral error", value=value, stderr=stderr, n=len(fields), floor=floor)


def _shells(power: np.ndarray, grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The shells that have modes, ``(s,)``, and the means of the columns of ``power`` ``(n, modes)`` over them, ``(n, s)``."""
    shell = np.rint(wave_numbers(grid)).astype(int).ravel()
    counts = np.bincount(shell)
    sums = np.stack([np.bincount(shell, weights=row) for row in power])
    found = np.flatnonzero(counts)
    return found, sums[:, found] / counts[found]
