"""KID and MMD: unbiasedness and closed forms."""

import itertools

import numpy as np
import pytest

from scorelab.metrics import (
    Coordinates,
    crps,
    frechet,
    frechet_distance,
    kid,
    mmd,
    mmd2_unbiased,
    precision_recall,
    sinkhorn,
    wasserstein_1d,
)
from scorelab.metrics.kernel import cubic, median_bandwidth

POINTS = Coordinates()


def gaussian_overlap(h, delta, variance):
    """E exp(-|x - y|^2 / 2h^2) for x - y ~ N(delta, diag(variance)): a Gaussian integral."""
    total = variance + h * h
    return np.prod(h / np.sqrt(total)) * np.exp(-np.sum(delta**2 / total) / 2)


def test_definition_by_explicit_sums():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 1

    def k(a, b):
        return (a @ b / 3 + 1) ** 3

    xx = np.mean([k(a, b) for a, b in itertools.permutations(x, 2)])
    yy = np.mean([k(a, b) for a, b in itertools.permutations(y, 2)])
    xy = np.mean([k(a, b) for a in x for b in y])
    # Float64 rounding of sums of about 40 terms of order 10.
    assert kid(x, y, POINTS, subsets=1).value == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(23, 2)), rng.normal(size=(17, 2))
    whole = mmd2_unbiased(x, y, cubic)
    monkeypatch.setattr("scorelab.metrics.kernel._BLOCK", 4)
    assert mmd2_unbiased(x, y, cubic) == pytest.approx(whole, rel=1e-12)


@pytest.mark.parametrize("metric", [lambda x, y: kid(x, y, POINTS, subsets=1), lambda x, y: mmd(x, y, 1.0)])
def test_equal_laws_have_mean_zero(metric):
    rng = np.random.default_rng(2)
    values = [metric(rng.normal(size=(20, 2)), rng.normal(size=(30, 2))).value for _ in range(1500)]
    assert min(values) < 0
    # Four standard errors: exceeded by chance once in 16,000.
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_cubic_kernel_between_gaussians():
    """x ~ N(0, 1), y ~ N(m, 1), d = 1: MMD^2 = sum over j = 1..3 of C(3, j) (E x^j - E y^j)^2 = 3 m^2 + 3
    m^4 + (m^3 + 3m)^2.
    """
    m, n, repeats = 0.5, 40, 2000
    expected = 3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2
    rng = np.random.default_rng(3)
    values = [kid(rng.normal(size=(n, 1)), m + rng.normal(size=(n, 1)), POINTS, subsets=1).value for _ in range(repeats)]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(repeats)


@pytest.mark.parametrize("bandwidth", [0.7, (0.5, 2.0)])
def test_gaussian_kernel_between_gaussians(bandwidth):
    delta, s1, s2 = np.array([0.8, -0.3]), np.array([1.0, 0.5]), np.array([0.4, 2.0])
    expected = np.mean(
        [
            gaussian_overlap(h, 0 * delta, 2 * s1)
            + gaussian_overlap(h, 0 * delta, 2 * s2)
            - 2 * gaussian_overlap(h, delta, s1 + s2)
            for h in np.atleast_1d(bandwidth)
        ]
    )
    rng = np.random.default_rng(4)
    values = [
        mmd(np.sqrt(s1) * rng.normal(size=(60, 2)), delta + np.sqrt(s2) * rng.normal(size=(50, 2)), bandwidth).value
        for _ in range(800)
    ]
    assert abs(np.mean(values) - expected) < 4 * np.std(values) / np.sqrt(len(values))


def test_standard_error_bounds_the_spread():
    """`stderr` is that of the block mean, which no unbiased full estimate exceeds; the truth is known from
    repeats.
    """
    rng = np.random.default_rng(5)
    found = [kid(rng.normal(size=(100, 2)), rng.normal(size=(100, 2)) + 0.7, POINTS, seed=i) for i in range(150)]
    spread = np.std([s.value for s in found])
    stated = np.sqrt(np.mean([s.stderr**2 for s in found]))
    # 150 repeats of 10 blocks: the ratio of the two deviations has a relative error near 1/sqrt(300) +
    # 1/sqrt(2700).
    assert stated > 0.8 * spread
    assert stated < 3 * spread


def test_median_bandwidth_of_known_points():
    x, y = np.array([[0.0], [1.0]]), np.array([[3.0]])
    assert median_bandwidth(x, y) == pytest.approx(2.0)
    assert mmd(x, np.array([[3.0], [3.0]]), None).name == "MMD2(h=2)"


def test_mmd_of_points_far_from_the_origin():
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(30, 2)), rng.normal(size=(30, 2)) + 1
    # Adding 1e6 rounds the points themselves at 1e-10.
    assert mmd(x + 1e6, y + 1e6, 1.0).value == pytest.approx(mmd(x, y, 1.0).value, abs=1e-8)


def test_requests_that_make_no_sense_are_refused():
    x = np.zeros((10, 2))
    with pytest.raises(ValueError, match="subsets=6: expected 1 to 5"):
        kid(x, x, POINTS, subsets=6)
    for bad in (0.0, -1.0, (), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="bandwidth"):
            mmd(x, x, bad)
    with pytest.raises(ValueError, match="median distance is zero"):
        mmd(x, x)


def test_widths_whose_square_is_zero_or_infinite_have_their_limits():
    x = np.random.default_rng(8).normal(size=(12, 2))
    assert mmd(x, x + 1, 1e-200).value == 0  # no two points are alike
    assert mmd(x, x + 1, 1e200).value == pytest.approx(0, abs=1e-15)  # all are


@pytest.mark.parametrize("subsets", [2.5, True, 0])
def test_a_number_of_subsets_is_an_integer(subsets):
    x = np.random.default_rng(9).normal(size=(12, 2))
    with pytest.raises(ValueError, match=f"kid.subsets = {subsets}: expected an integer >= 1"):
        kid(x, x, POINTS, subsets=subsets)


DATA = np.random.default_rng(10).normal(size=(20, 2))
PAIRS = {
    "kid": lambda x: kid(x, DATA, POINTS),
    "mmd": lambda x: mmd(x, DATA, 1.0),
    "frechet": lambda x: frechet(x, DATA, POINTS),
    "precision_recall": lambda x: precision_recall(x, DATA),
    "median_bandwidth": lambda x: median_bandwidth(x, DATA),
    "mmd2_unbiased": lambda x: mmd2_unbiased(x, DATA, cubic),
    "sinkhorn": lambda x: sinkhorn(x, DATA, 1.0),
    "wasserstein_1d": lambda x: wasserstein_1d(x, DATA),
    "crps": lambda x: crps(x[:, None], DATA[:1]),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_points_that_are_no_finite_numbers_are_refused(name, bad):
    x = DATA.copy()
    x[3] = bad
    if (name, bad) != ("crps", 1e200):  # of degree one: nothing overflows
        with pytest.raises(ValueError, match=r"not finite|at most|overflows|finite values"):
            PAIRS[name](x)
    for other in (x.astype(str), x.astype(complex), x.astype(object)):
        with pytest.raises(ValueError, match="expected real numbers"):
            PAIRS[name](other)


def test_sets_that_do_not_fit_are_refused():
    for x in (DATA[:0], DATA[:1], DATA[:, :1]):
        with pytest.raises(ValueError, match="gives points"):
            mmd2_unbiased(x, DATA, cubic)
    for x in (DATA[:0], DATA[:, :1]):
        with pytest.raises(ValueError, match="gives points"):
            median_bandwidth(x, DATA)
    for arguments in ([[np.nan, 0], np.eye(2)], [[0, 0], np.full((2, 2), np.nan)]):
        with pytest.raises(ValueError, match=r"1 has . values that are not finite"):
            frechet_distance(*arguments, [0, 0], np.eye(2))
    with pytest.raises(ValueError, match="overflow"):
        frechet_distance([1e200, 0], np.eye(2), [0, 0], np.eye(2))
