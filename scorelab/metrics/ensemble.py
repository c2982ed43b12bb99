r"""Ensembles against the truth: error of the mean, spread, CRPS, and ranks.

An ensemble is an array ``(members, cases, *event)``, the truth ``(cases, *event)``: one case of many points is
``x[:, None]`` and ``truth[None]``. Weights are ``(members,)`` or ``(members, cases)``, not negative; they are normalised.
A metric averages over points and cases; its ``n`` counts members, its ``reference_n`` cases, and its ``stderr`` is
over cases (None for one case), since the points of one case are not independent. With the weights :math:`w` of a case
summing to 1, :math:`1/\sum_i w_i^2` takes the place of the number of members :math:`M` in every correction for a finite ensemble.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from scorelab.metrics.value import MetricValue, numbers


def rmse(ensemble: np.ndarray, truth: np.ndarray, *, weights: np.ndarray | None = None) -> MetricValue:
    """Root of the mean square of (ensemble mean - truth), in the units of the data.

    For members drawn from the law of the truth its
    square is :math:`1 + 1/M` times their variance on average.
    """
    x, y, w = _points(ensemble, truth, weights)
    error = _error_of_mean(x, y, w)
    value = float(np.sqrt(error.mean()))
    stderr = _stderr(error / (2 * value)) if value > 0 else 0.0
    return MetricValue(name="RMSE", value=value, stderr=stderr, n=len(x), reference_n=len(y))


def spread_skill(ensemble: np.ndarray, truth: np.ndarray, *, weights: np.ndarray | None = None) -> MetricValue:
    r"""Root of :math:`(1 + 1/M)\,\overline{s^2}/\overline{e^2}`, spread over error: 1 where truth and members are exchangeable.

    Below 1 the ensemble is overconfident. The variance :math:`s^2` of the members is the unbiased one, :math:`e` is the error of
    their mean. Means are over cases and points before the ratio is taken. Needs two members
    with weight.
    Source: Fortin et al., "Why should ensemble spread match the RMSE of the ensemble mean?", 2014.
    """
    x, y, w = _points(ensemble, truth, weights)
    error = _error_of_mean(x, y, w)
    square = _concentration(w)
    deviation = x - np.sum(w[..., None] * x, 0)
    variance = np.sum(w[..., None] * deviation**2, 0).mean(-1) / (1 - square) * (1 + square)
    if not error.any():
        raise ValueError("ensemble has the truth as its mean in every case: expected an error to compare the spread with")
    value = float(np.sqrt(variance.mean() / error.mean()))
    relative = variance / max(variance.mean(), np.finfo(np.float64).tiny) - error / error.mean()
    return MetricValue(name="spread-skill", value=value, stderr=_stderr(0.5 * value * relative), n=len(x), reference_n=len(y))


def crps(ensemble: np.ndarray, truth: np.ndarray, *, weights: np.ndarray | None = None) -> MetricValue:
    r"""The fair continuous ranked probability score of each point, averaged; in the units of the data, small is good.

    .. math:: \sum_i w_i|x_i-y| - \frac{\sum_{i\ne j} w_iw_j|x_i-x_j|}{2\,(1-\sum_i w_i^2)}

    is unbiased for that of the law the members are drawn from, whatever :math:`M`, and so not
    positive always. Needs two members with weight.
    Source: Ferro, "Fair scores for ensemble forecasts", 2014.
    """
    x, y, w = _points(ensemble, truth, weights)
    square = _concentration(w)
    distance = np.sum(w[..., None] * np.abs(x - y), 0)
    order = np.argsort(x, 0)
    ranked, weight = np.take_along_axis(x, order, 0), np.take_along_axis(np.broadcast_to(w[..., None], x.shape), order, 0)
    # Half the sum over pairs: every point pays its distance to those below it.
    below, mass = np.cumsum(weight * ranked, 0) - weight * ranked, np.cumsum(weight, 0) - weight
    pairs = np.sum(weight * (ranked * mass - below), 0)
    values = (distance - pairs / (1 - square)[:, None]).mean(-1)
    return MetricValue(name="CRPS", value=float(values.mean()), stderr=_stderr(values), n=len(x), reference_n=len(y))


def rank_histogram(key: jax.Array, ensemble: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often the truth has each rank among the members, over cases and points: counts ``(members + 1,)``.

    Flat where truth and members are exchangeable, a U where the ensemble is too narrow. Equal values are ranked at random.
    Ranks of neighbouring points are not independent: a chi-square test is one of cases of a single point, :func:`rank_test` one of
    cases of many.
    Source: Hamill, "Interpretation of rank histograms for verifying ensemble forecasts", 2001.
    """
    x, y, _ = _points(ensemble, truth, None)
    return np.bincount(_ranks(key, x, y).ravel(), minlength=len(x) + 1)


class Uniformity(NamedTuple):
    """A test of flat ranks: its ``statistic``, the ``p_value`` under flatness, and the share of the ranks in each of the bins."""

    statistic: float
    p_value: float
    shares: np.ndarray


def rank_test(key: jax.Array, ensemble: np.ndarray, truth: np.ndarray, *, bins: int | None = None) -> Uniformity:
    r"""Hotelling's test that the ranks of the truth are flat, where the points of a case depend on one another.

    Every case has its own histogram, :math:`h_c`, the shares of its points in all bins but one. Exchangeable members have
    :math:`E h_c = u`, flat, and independent cases

    .. math:: T^2 = n\,(\bar h-u)^\top S^{-1}(\bar h-u),\qquad \frac{n-b+1}{(n-1)(b-1)}\,T^2\sim F_{b-1,\,n-b+1}

    with the covariance ``S`` of the :math:`h_c`, for ``n`` cases and ``b`` bins; asymptotically in ``n``, since shares
    are no Gaussians. A small p-value says that the ensemble is not calibrated; a large one that nothing was found.

    Args:
        key: of the ranks of equal values.
        ensemble: ``(members, cases, *event)``.
        truth: ``(cases, *event)``.
        bins: of equal numbers of ranks, a divisor of ``members + 1``; None for one of each rank.

    Raises:
        ValueError: bins that do not divide the ranks, at most as many cases as bins, histograms of cases that do not vary.
    """
    x, y, _ = _points(ensemble, truth, None)
    ranks, cases = _ranks(key, x, y), len(y)
    bins = len(x) + 1 if bins is None else bins
    if not isinstance(bins, int) or bins < 2 or (len(x) + 1) % bins:
        raise ValueError(f"rank_test.bins = {bins!r}: expected a divisor of the {len(x) + 1} ranks, at least 2")
    if cases <= bins:
        raise ValueError(f"rank_test got {cases} cases for {bins} bins: expected more cases than bins, or fewer bins")
    shares = np.stack([np.mean(ranks // ((len(x) + 1) // bins) == b, -1) for b in range(bins)], -1)
    gap, covariance = shares.mean(0)[:-1] - 1 / bins, np.atleast_2d(np.cov(shares[:, :-1].T))
    if np.linalg.matrix_rank(covariance) < bins - 1:
        raise ValueError(f"rank_test: the histograms of {cases} cases do not vary in all of {bins} bins: expected fewer bins")
    square = cases * float(gap @ np.linalg.solve(covariance, gap))
    scaled = square * (cases - bins + 1) / ((cases - 1) * (bins - 1))
    from scipy import stats  # half a second to import, and only this function needs it

    return Uniformity(square, float(stats.f.sf(scaled, bins - 1, cases - bins + 1)), shares.mean(0))


def _ranks(key, x, y) -> np.ndarray:
    """The number of members below the truth, (cases, points); equal values count at random."""
    below, ties = np.sum(x < y, 0), np.sum(x == y, 0)
    chance = np.asarray(jax.random.uniform(key, y.shape), np.float64)
    return below + np.floor(chance * (ties + 1)).astype(int)


def _points(ensemble, truth, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float64 members (M, cases, points), truth (cases, points) and normalised weights (M, cases); errors name the argument."""
    x, y = numbers(ensemble, "ensemble"), numbers(truth, "truth")
    if x.ndim < 2 or x.shape[1:] != y.shape or not x.size:
        raise ValueError(f"ensemble has shape {x.shape}, truth {y.shape}: expected (members, cases, *event) and (cases, *event)")
    members, cases = x.shape[:2]
    w = np.ones((members, cases)) if weights is None else numbers(weights, "weights")
    if w.shape not in ((members,), (members, cases)):
        raise ValueError(f"weights has shape {w.shape}: expected ({members},) or ({members}, {cases})")
    w = np.broadcast_to(w.reshape(members, -1), (members, cases))
    if w.min() < 0 or w.sum(0).min() <= 0:
        raise ValueError("weights has a negative value, or a case without weight: expected weights >= 0 with a positive sum")
    return x.reshape(members, cases, -1), y.reshape(cases, -1), w / w.sum(0)


def _error_of_mean(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The squared error of the mean of each case, averaged over its points: (cases,)."""
    return np.mean((np.sum(w[..., None] * x, 0) - y) ** 2, -1)


def _concentration(w: np.ndarray) -> np.ndarray:
    """sum w^2 of each case, (cases,); ValueError where one member has all the weight."""
    square = np.sum(w**2, 0)
    if np.max(square) > 1 - 1e-9:
        raise ValueError("ensemble has a case with all weight on one member: expected at least two members with weight")
    return square


def _stderr(values: np.ndarray) -> float | None:
    """The standard error of the mean of values (cases,)."""
    return None if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))
