r"""Whether noise is large against data: what a walk that begins as pure noise gets wrong.

Under the law :math:`N(m, s^2)` the probability flow takes the prior :math:`N(b_T, \sigma_T^2)` not to the law but to the mean
:math:`m - s\,\delta` and the deviation :math:`s\,(1-\kappa)`,

.. math:: \delta = \frac{\alpha_T\,m}{\sqrt{\alpha_T^2s^2+\sigma_T^2}},\qquad
          \kappa = 1 - \frac{\sigma_T}{\sqrt{\alpha_T^2s^2+\sigma_T^2}},

however exact the model and however fine the grid.
"""

from __future__ import annotations

import math
from typing import Any

from scorelab.processes.linear_gaussian import LinearGaussian
from scorelab.warn import warn

# In deviations of the data: seen in some thousand samples, and far above the bias of a usual grid.
TOLERATED = 0.05


class ScaleWarning(UserWarning):
    """The noise of a process is not large against the data, so that samples which begin as pure noise are off."""


class KnowsScale:
    """A model that may know how large its data are."""

    process: LinearGaussian

    def scale(self) -> tuple[float, float] | None:
        """Root mean square of the mean and of the deviation of the data in the chart, per element, where they are at hand."""
        return None

    def matched(self) -> Any:
        """The :class:`scorelab.densities.Gaussian` with the moments of the data in the chart, where it is at hand."""
        return None


def prior_error(process: LinearGaussian, t: float, *, mean: float, std: float) -> tuple[float, float]:
    r""":math:`|\delta|` and :math:`\kappa` at the host time ``t``: deviations by which the mean is off, the share lost in width.

    Args:
        process: the forward process.
        t: where the walk begins.
        mean: root mean square of the mean of the data, per element, in the chart.
        std: root mean square deviation of the data, per element, in the chart.
    """
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    root = math.hypot(alpha * std, sigma)
    return abs(alpha * mean) / root, 1 - sigma / root


def warn_scale(where: str, process: LinearGaussian, t: float, *, mean: float = 0.0, std: float) -> None:
    """Warn with both numbers and what to change where :func:`prior_error` is above a twentieth of a deviation."""
    error = max(prior_error(process, t, mean=mean, std=std))
    if error > TOLERATED:
        warn(
            f"{where}: data with mean {mean:.4g} and standard deviation {std:.4g} under noise of at most "
            f"{float(process.noise_ratio(t)):.4g} at t = {t:.4g}: samples that begin as pure noise are off by {error:.2g} standard "
            "deviations; scale the data (to a deviation of about 0.5), raise the noise (sigma_max, t_max), or begin with "
            "starts.GaussianMoments",
            ScaleWarning,
        )


def warn_start(where: str, process: LinearGaussian, t: float, *, start: tuple[float, float], model: tuple[float, float]) -> None:
    """Warn where the noised law of a start is not that of the model: both as (mean, deviation) of the clean data."""
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    own, other = (math.hypot(alpha * std, sigma) for _, std in (start, model))
    error = max(alpha * abs(start[0] - model[0]) / other, abs(own / other - 1))
    if error > TOLERATED:
        warn(
            f"{where}: the law of the start has mean {start[0]:.4g} and standard deviation {start[1]:.4g}, that of the model "
            f"{model[0]:.4g} and {model[1]:.4g}: at t = {t:.4g} they differ by {error:.2g} of their noised deviation; expected a "
            "start with the law of the model",
            ScaleWarning,
        )
