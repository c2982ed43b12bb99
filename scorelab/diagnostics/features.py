"""When the directions of the data's covariance appear in what a model takes for the clean data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scorelab.arrays import Array
from scorelab.densities import Gaussian
from scorelab.diagnostics.blocks import require_finite
from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.validation import require_int


@dataclass(frozen=True, kw_only=True)
class Emergence:
    r"""What :func:`feature_emergence` returns, in order of decreasing variance :math:`\lambda_k`; float64.

    Attributes:
        sigma_half: the noise ratio at which half of feature ``k`` is there, ``(features,)``; NaN where the grid does not
            say, since the feature never passes one half between two of its times at finite noise levels.
        predicted: the same for Gaussian data, :math:`\sqrt{3\lambda_k}`, ``(features,)``.
        curve: how much of the feature is there, ``(times, features)``, one at the last time.
    """

    sigma_half: np.ndarray
    predicted: np.ndarray
    curve: np.ndarray


def feature_emergence(denoised: Array, times: Array, law: Gaussian, process: LinearGaussian, *, features: int = 30) -> Emergence:
    r"""When each principal direction of the data appears in the denoised mean on the way from noise to data.

    .. math:: c_k(t) = \frac{\sum_i c^{(i)}_k(t)\,c^{(i)}_k(0)}{\sum_i c^{(i)}_k(0)^2}, \qquad
              c^{(i)}_k(t) = u_k^\top\big(D^{(i)}_t - \mu\big) :

    the coordinate along direction ``k`` relative to its last value, by least squares over the samples. For Gaussian data it
    is :math:`\sqrt{\lambda_k/(\lambda_k+\sigma^2)}` at noise ratio :math:`\sigma`, half of it at :math:`\sqrt{3\lambda_k}`:
    directions of large variance come first.

    Args:
        denoised: ``(times, n, *event)`` in the chart, from :func:`scorelab.diagnostics.denoised_along`.
        times: the grid that was walked, ``out.times``.
        law: the Gaussian with the data's moments in the chart.
        process: the process that was walked.
        features: the number of directions, those of largest variance. Directions outside the law's basis and those without
            variance (up to rounding) are no features; where fewer are left, there are fewer.

    Returns:
        The curves, and their half points, which are the first passage of one half from below, interpolated in the logarithm of the
        noise ratio.

    Raises:
        ValueError: shapes that do not fit each other, a law without a direction of its own (isotropic), ``features < 1``,
            times that the process does not have, values that are not finite.
        TypeError: a law that is not a Gaussian.

    Source: arXiv 2412.09726.
    """
    times = np.asarray(times, np.float64)
    if not isinstance(law, Gaussian):
        raise TypeError(f"feature_emergence.law = {law!r}: expected a Gaussian")
    if np.ndim(denoised) < 2 or np.shape(denoised)[2:] != law.event or times.shape != np.shape(denoised)[:1]:
        raise ValueError(
            f"feature_emergence.denoised has shape {np.shape(denoised)}: expected ({len(np.atleast_1d(times))}, n, *{law.event}), "
            "as times and law have"
        )
    require_int("feature_emergence", 1, features=features)
    process.check_times("feature_emergence.times", times)
    require_finite("feature_emergence.denoised", denoised)
    variances, basis = _directions(law, features)
    mean = np.asarray(law.mean, np.float64).reshape(-1)
    coordinates = np.stack([(np.asarray(d, np.float64).reshape(len(d), -1) - mean) @ basis for d in denoised])
    curve = np.einsum("tnk,nk->tk", coordinates, coordinates[-1]) / np.sum(coordinates[-1] ** 2, axis=0)
    return Emergence(sigma_half=_half(curve, -0.5 * process.log_snr(times)), predicted=np.sqrt(3 * variances), curve=curve)


def _directions(law: Gaussian, features: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest variances and the columns of the basis that belong to them."""
    variances = np.asarray(law.eigenvalues, np.float64)
    order = np.argsort(-variances, kind="stable")
    # The covariance was decomposed in float64: what is smaller than its rounding is a null direction.
    some = variances[order] > variances.max(initial=0.0) * law.size * np.finfo(np.float64).eps
    kept = order[some][:features]
    if len(kept) == 0:
        raise ValueError("feature_emergence.law has no direction with a variance: expected a full or low-rank covariance")
    return variances[kept], np.asarray(law.basis, np.float64)[:, kept]


def _half(curve: np.ndarray, log_ratio: Array) -> np.ndarray:
    passes = (curve[:-1] < 0.5) & (curve[1:] >= 0.5)
    before, column = np.argmax(passes, axis=0), np.arange(curve.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):  # between times of infinite or no noise there is no interpolation
        part = (0.5 - curve[before, column]) / (curve[before + 1, column] - curve[before, column])
        half = np.exp(log_ratio[before] + part * (log_ratio[before + 1] - log_ratio[before]))
    known = passes.any(axis=0) & np.isfinite(log_ratio[before]) & np.isfinite(log_ratio[before + 1])
    return np.where(known, half, np.nan)
