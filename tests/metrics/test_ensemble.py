"""Metrics of ensembles against closed forms, and as laws of exchangeable members."""

import jax
import numpy as np
import pytest
from scipy import stats

from scorelab.metrics import crps, rank_histogram, rank_test, rmse, spread_skill

KEY = jax.random.key(0)


def exchangeable(members, cases, points=1, spread=1.0, seed=0):
    """Members and a truth of one law in every case, or members ``spread`` times as wide."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(cases, points))
    return centre + spread * rng.normal(size=(members, cases, points)), centre + rng.normal(size=(cases, points))


def z(metric, expected):
    """Distance to the expectation in standard errors."""
    return abs(metric.value - expected) / metric.stderr


# Laws --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "spread"), [(2, 1.0), (5, 1.0), (40, 0.3), (5, 2.0)])
def test_crps_is_that_of_the_law_behind_the_members(members, spread):
    # Fair: the number of members does not enter. E over the truth of the closed form for N(0, spread^2).
    x, y = exchangeable(members, 20_000, spread=spread)
    density, mass = stats.norm.pdf, stats.norm.cdf
    gap = np.linspace(-8, 8, 4001)
    u = gap / spread
    closed = spread * (u * (2 * mass(u) - 1) + 2 * density(u) - 1 / np.sqrt(np.pi))
    assert z(crps(x, y), np.trapezoid(closed * density(gap), gap)) < 4


def test_crps_of_one_point_is_the_sum_over_pairs():
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=7), 0.3, rng.random(7)
    w /= w.sum()
    pairs = np.sum(w[:, None] * w * np.abs(x[:, None] - x)) / (1 - np.sum(w**2))
    found = crps(x[:, None], np.array([y]), weights=w)
    assert found.value == pytest.approx(np.sum(w * np.abs(x - y)) - pairs / 2, rel=1e-12)
    assert (found.n, found.reference_n, found.stderr) == (7, 1, None)


@pytest.mark.parametrize("members", [2, 3, 20])
def test_spread_is_error_where_members_and_truth_are_exchangeable(members):
    x, y = exchangeable(members, 20_000)
    assert z(spread_skill(x, y), 1.0) < 4
    # The square of the error of the mean is (1 + 1/M) variances.
    assert z(rmse(x, y), np.sqrt(1 + 1 / members)) < 4


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_the_ratio_is_that_of_the_widths(spread):
    # Error of the mean: 1 + spread^2 / M; what the spread predicts: spread^2 (1 + 1 / M).
    x, y = exchangeable(10, 20_000, spread=spread)
    assert z(spread_skill(x, y), spread * np.sqrt(1.1 / (1 + spread**2 / 10))) < 4


def test_weighted_members_are_as_good_as_drawn_ones():
    # Proposals N(0, 4) with the weights of N(0, 1): the law of the truth, given that the weights are known.
    rng = np.random.default_rng(0)
    cases, members = 4000, 400
    centre = rng.normal(size=(cases, 1))
    noise = 2 * rng.normal(size=(members, cases, 1))
    weights = stats.norm.pdf(noise[..., 0]) / stats.norm.pdf(noise[..., 0], scale=2)
    truth = centre + rng.normal(size=(cases, 1))
    x = centre + noise
    # Weights that depend on the members leave a bias of order 1 / M.
    assert abs(spread_skill(x, truth, weights=weights).value - 1) < 4 * spread_skill(x, truth, weights=weights).stderr + 1 / members
    assert spread_skill(x, truth).value > 1.5
    exact = crps(*exchangeable(members, cases, seed=3))
    found = crps(x, truth, weights=weights)
    assert abs(found.value - exact.value) < 4 * np.hypot(found.stderr, exact.stderr) + 1 / members


@pytest.mark.parametrize("metric", [rmse, spread_skill, crps])
def test_weights_leave_out_and_need_not_be_normalised(metric):
    x, y = exchangeable(6, 50, points=3)
    weights = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    kept = metric(x[weights > 0], y)
    for given in (weights, 7 * weights, np.tile(weights[:, None], (1, 50))):
        found = metric(x, y, weights=given)
        assert (found.value, found.stderr) == pytest.approx((kept.value, kept.stderr), rel=1e-12)


@pytest.mark.parametrize("metric", [rmse, spread_skill, crps])
def test_the_standard_error_is_that_of_repetitions(metric):
    found = [metric(*exchangeable(5, 60, points=4, seed=seed)) for seed in range(300)]
    spread = np.std([f.value for f in found], ddof=1)
    # A standard deviation of 300 values has a relative error of 4 %; the linearised ones are biased by about 1 / 60.
    assert np.mean([f.stderr for f in found]) == pytest.approx(spread, rel=0.18)


def test_the_shape_of_an_event_does_not_matter():
    x, y = exchangeable(5, 8, points=6)
    for metric in (rmse, spread_skill, crps):
        assert metric(x.reshape(5, 8, 2, 3), y.reshape(8, 2, 3)).value == pytest.approx(metric(x, y).value, rel=1e-12)


# Ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_are_uniform_where_members_and_truth_are_exchangeable():
    counts = rank_histogram(KEY, *exchangeable(9, 20_000))
    assert counts.shape == (10,)
    assert counts.sum() == 20_000
    assert stats.chisquare(counts).pvalue > 1e-4
    # Equal values, such as amounts of rain, are ranked at random.
    x, y = exchangeable(9, 20_000)
    assert stats.chisquare(rank_histogram(KEY, np.round(np.maximum(x, 0)), np.round(np.maximum(y, 0)))).pvalue > 1e-4
    # A narrow ensemble has a U.
    narrow = rank_histogram(KEY, *exchangeable(9, 20_000, spread=0.5))
    assert min(narrow[0], narrow[-1]) > 2 * narrow[1:-1].max()


def test_the_rank_counts_the_members_below():
    x = np.array([0.0, 1.0, 2.0])[:, None]
    for truth, rank in ((-1.0, 0), (0.5, 1), (1.5, 2), (3.0, 3)):
        assert rank_histogram(KEY, x, np.array([truth])).tolist() == np.eye(4, dtype=int)[rank].tolist()


def dependent(members, cases, points, spread, rng):
    """As ``exchangeable``, with points that share 80 % of their variance."""
    noise = np.sqrt(0.8) * rng.normal(size=(members + 1, cases, 1)) + np.sqrt(0.2) * rng.normal(size=(members + 1, cases, points))
    return spread * noise[1:], noise[0]


@pytest.mark.parametrize(("members", "points", "bins", "cases"), [(9, 1, 5, 120), (9, 20, 10, 60), (9, 20, 5, 30)])
def test_flat_ranks_are_rejected_as_often_as_the_level_says(members, points, bins, cases):
    rng, trials, level = np.random.default_rng(0), 600, 0.1
    found = [rank_test(KEY, *dependent(members, cases, points, 1.0, rng), bins=bins).p_value for _ in range(trials)]
    # Four standard errors of the share of 600 trials, and a third of the level for shares that are no Gaussians.
    assert abs(np.mean(np.array(found) < level) - level) < 4 * np.sqrt(level * (1 - level) / trials) + level / 3
    # Pooled, the points would be taken for independent: the chi-square test rejects most of the time.
    if points > 1:
        pooled = [stats.chisquare(rank_histogram(KEY, *dependent(members, cases, points, 1.0, rng))).pvalue for _ in range(100)]
        assert np.mean(np.array(pooled) < level) > 0.5
    # An ensemble of half the width is found, with cases enough for a shift of the outer bins by several standard errors.
    assert rank_test(KEY, *dependent(members, 10 * cases, points, 0.5, rng), bins=bins).p_value < 1e-6


def test_the_rank_test_of_two_bins_is_that_of_a_mean():
    # With two bins it is the square of Student's test of the share of low ranks.
    x, y = exchangeable(9, 40, points=6, spread=0.8)
    found = rank_test(KEY, x, y, bins=2)
    low = np.mean(np.sum(x < y, 0) < 5, -1)
    reference = stats.ttest_1samp(low, 0.5)
    assert found.statistic == pytest.approx(reference.statistic**2, rel=1e-9)
    assert found.p_value == pytest.approx(reference.pvalue, rel=1e-9)
    np.testing.assert_allclose(found.shares, [low.mean(), 1 - low.mean()], rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "cases", "match"),
    [
        (dict(bins=3), 40, r"rank_test.bins = 3: expected a divisor of the 10 ranks"),
        (dict(bins=1), 40, "bins = 1"),
        (dict(), 10, "10 cases for 10 bins"),
        (dict(bins=2), 3, None),
    ],
)
def test_a_test_of_ranks_needs_cases_and_bins_that_fit(options, cases, match):
    x, y = exchangeable(9, cases, points=5)
    if match is None:
        rank_test(KEY, x, y, **options)
        with pytest.raises(ValueError, match="do not vary"):
            rank_test(KEY, x, y + 100, **options)
    else:
        with pytest.raises(ValueError, match=match):
            rank_test(KEY, x, y, **options)


# What is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (dict(truth=np.zeros((4, 2))), r"truth \(4, 2\): expected \(members, cases, \*event\)"),
        (dict(ensemble=np.zeros(3), truth=np.zeros(())), "expected"),
        (dict(weights=np.ones(4)), r"weights has shape \(4,\): expected \(3,\) or \(3, 5\)"),
        (dict(weights=np.array([1.0, -1.0, 2.0])), "negative"),
        (dict(weights=np.zeros(3)), "without weight"),
        (dict(ensemble=np.full((3, 5, 2), np.nan)), "ensemble has 30 values that are not finite"),
    ],
)
def test_what_is_refused_says_what_is_accepted(change, match):
    arguments = dict(ensemble=np.arange(30.0).reshape(3, 5, 2), truth=np.zeros((5, 2))) | change
    for metric in (rmse, spread_skill, crps):
        with pytest.raises(ValueError, match=match):
            metric(arguments.pop("ensemble"), arguments.pop("truth"), **arguments)
        arguments = dict(ensemble=np.arange(30.0).reshape(3, 5, 2), truth=np.zeros((5, 2))) | change


def test_one_member_has_no_spread():
    for metric in (spread_skill, crps):
        with pytest.raises(ValueError, match="at least two members"):
            metric(np.zeros((1, 4)), np.ones(4))
        with pytest.raises(ValueError, match="at least two members"):
            metric(np.zeros((2, 4)), np.ones(4), weights=np.array([1.0, 0.0]))
    assert rmse(np.zeros((1, 4)), np.ones(4)).value == 1.0
    with pytest.raises(ValueError, match="an error to compare"):
        spread_skill(np.array([[-1.0], [1.0]]), np.zeros(1))
