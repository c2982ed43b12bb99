"""Transport distances against closed forms and exact assignments."""

import jax
import numpy as np
import pytest
from scipy import special
from scipy.optimize import linear_sum_assignment

from scorelab.metrics import sinkhorn, sliced_wasserstein, wasserstein_1d

KEY = jax.random.key(0)


def test_one_dimension_is_the_sorted_pairing():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 1)), rng.normal(size=(40, 1)) + 1
    for p in (1.0, 2.0, 3.0):
        cost = np.abs(x - y.T) ** p
        best = cost[linear_sum_assignment(cost)].mean()
        assert wasserstein_1d(x, y, p)[0] == pytest.approx(best, rel=1e-12)
    # On a line every direction is +1 or -1, so slicing is exact.
    assert sliced_wasserstein(KEY, x, y).value ** 2 == pytest.approx(wasserstein_1d(x, y)[0], rel=1e-12)


def test_unequal_sizes_are_exact():
    """Repeating every point of each set to a common size leaves its law alone and makes the sizes equal."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(12, 3)), rng.normal(size=(8, 3))
    repeated = wasserstein_1d(np.repeat(x, 2, 0), np.repeat(y, 3, 0))
    np.testing.assert_allclose(wasserstein_1d(x, y), repeated, rtol=1e-12)
    np.testing.assert_allclose(wasserstein_1d(np.zeros((3, 1)), np.array([[1.0], [2.0]]), 1.0), 1.5, rtol=1e-12)


def test_sliced_distance_of_a_shift():
    """Each direction u gives exactly (u . v)^2, whose mean over the sphere is |v|^2 / d."""
    rng = np.random.default_rng(2)
    x, v = rng.normal(size=(50, 5)), np.array([1.0, 2.0, 0, 0, -2.0])
    found = sliced_wasserstein(KEY, x, x[rng.permutation(50)] + v, projections=4000)
    assert abs(found.value - 3 / np.sqrt(5)) < 4 * found.stderr
    # Beta(1/2, 2): variance of (u . v)^2 is 9^2 * 2 (d - 1) / (d^2 (d + 2)); through the root, over 4000
    # directions.
    exact = np.sqrt(81 * 8 / (25 * 7) / 4000) / (2 * 3 / np.sqrt(5))
    assert found.stderr == pytest.approx(exact, rel=0.1)
    assert sliced_wasserstein(KEY, x, x).value == 0.0


def test_sinkhorn_of_a_shift_is_exact_at_any_epsilon():
    """Squared cost splits into the shift and a part that the shift does not change: S(x, x + v) = |v|^2."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(40, 2))
    for epsilon in (0.05, 1.0):
        value = sinkhorn(x, x[::-1] + np.array([0.6, 0.8]), epsilon).value
        # The marginal error allowed by `threshold` is 1e-3 of the mass, at distances of order one.
        assert value == pytest.approx(1.0, abs=5e-3)
    assert sinkhorn(x, x[::-1], 0.1).value == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize(("scale", "p"), [(1.0, 2000.0), (1e-3, 300.0), (1e-200, 2.0), (1e200, 2.0)])
def test_the_sliced_distance_has_the_scale_of_the_points(scale, p):
    # Powers that cannot be represented; for large p it goes to the largest gap over all directions, from below.
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(30, 3)), rng.normal(size=(30, 3)) + 1
    value = sliced_wasserstein(KEY, scale * x, scale * y, p=p, projections=32).value
    if p == 2:
        assert value == pytest.approx(scale * sliced_wasserstein(KEY, x, y, projections=32).value, rel=1e-12)
    else:
        u = np.asarray(jax.random.normal(KEY, (3, 32)), np.float64)
        u /= np.linalg.norm(u, axis=0)
        largest = scale * np.abs(np.sort(x @ u, 0) - np.sort(y @ u, 0)).max()
        # One of 30 * 32 gaps is the largest: its share is at least that, to the power 1/p.
        assert largest * (30 * 32) ** (-1 / p) * (1 - 1e-9) <= value <= largest * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [0.05, *(pytest.param(epsilon, marks=pytest.mark.long) for epsilon in (0.5, 5.0)), 200.0])
def test_sinkhorn_is_not_negative_and_zero_for_equal_laws(epsilon):
    rng = np.random.default_rng(5)
    x = rng.normal(size=(60, 2))
    # The same points, in another order, each of them twice, far from the origin, a single one.
    pairs = [(x, x), (x, x[::-1]), (x, np.repeat(x, 2, 0)), (x + 1e6, x + 1e6), (x[:1], np.repeat(x[:1], 60, 0))]
    for threshold in (1e-3, 0.1):  # however far the potentials have converged
        for a, b in pairs:
            assert 0 <= sinkhorn(a, b, epsilon, threshold=threshold).value < max(1e-6, threshold**2) * epsilon
    # A shift by v is |v|^2 exactly, also where that is far below the marginal error: float64 beside float32 potentials.
    assert sinkhorn(x[:1], x[:1] + 1e-4, epsilon).value == pytest.approx(2e-8, rel=1e-3)


def test_sinkhorn_is_the_one_of_the_converged_float64_iteration():
    rng = np.random.default_rng(6)
    x, y, epsilon = rng.normal(size=(30, 3)), rng.normal(size=(45, 3)) * 0.7 + 0.4, 0.5

    def transport(a, b):
        cost = ((a[:, None] - b[None]) ** 2).sum(-1)
        f = g = 0.0
        for _ in range(2000):
            f = -epsilon * special.logsumexp((g - cost) / epsilon, axis=1, b=1 / len(b))[:, None]
            g = -epsilon * special.logsumexp((f - cost) / epsilon, axis=0, b=1 / len(a))[None]
        return f.mean() + g.mean()

    exact = transport(x, y) - transport(x, x) / 2 - transport(y, y) / 2
    # From below, by the square of the marginal error times the cost.
    value = sinkhorn(x, y, epsilon).value
    assert exact - 1e-4 < value < exact + 1e-7


def test_sinkhorn_goes_to_the_assignment_cost():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 2)) @ np.array([[1.5, 0.5], [0.0, 0.7]]) + 1
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    best = cost[linear_sum_assignment(cost)].mean()
    # OT_e lies within [W, W + e log n] and the self terms within [0, e log n] (the entropy of a plan is at
    # most log n).
    epsilon = 0.01
    assert abs(sinkhorn(x, y, epsilon).value - best) < epsilon * np.log(40) + 5e-3


def test_sinkhorn_between_gaussians_is_near_bures():
    """W_2^2 = |m|^2 + sum (s1 - s2)^2 for diagonal covariances; samples of size n add a bias and a spread."""
    n, m, s1, s2 = 300, np.array([2.0, 0.0]), np.array([1.0, 0.5]), np.array([0.5, 1.5])
    expected = np.sum(m**2) + np.sum((s1 - s2) ** 2)
    values = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        values.append(sinkhorn(s1 * rng.normal(size=(n, 2)), m + s2 * rng.normal(size=(n, 2)), 0.2).value)
    # The value moves with 2 m (difference of sample means): deviation 2 * 2 * sqrt((1 + 1/4) / 300) = 0.26,
    # the rest is smaller; four repeats, four deviations. The bias of the divergence is of order epsilon^2
    # (Chizat et al. 2020).
    assert abs(np.mean(values) - expected) < 4 * 0.26 / np.sqrt(4)


def test_requests_that_make_no_sense_are_refused():
    x = np.random.default_rng(0).normal(size=(10, 2))
    with pytest.raises(ValueError, match="epsilon = 0"):
        sinkhorn(x, x, 0)
    with pytest.raises(RuntimeError, match="max_iterations=1"):
        sinkhorn(x, x + 5, 1e-3, max_iterations=1)
    for option in ({"max_iterations": 0}, {"threshold": 0}, {"threshold": np.nan}):
        with pytest.raises(ValueError, match=f"sinkhorn.{next(iter(option))} = "):
            sinkhorn(x, x, 1.0, **option)
    with pytest.raises(ValueError, match="projections=1"):
        sliced_wasserstein(KEY, x, x, projections=1)
    with pytest.raises(ValueError, match=r"projections = 2\.5: expected an integer"):
        sliced_wasserstein(KEY, x, x, projections=2.5)
    with pytest.raises(ValueError, match="p=inf: expected a finite number"):
        sliced_wasserstein(KEY, x, x, p=np.inf)
    for a, b in ((x[:0], x), (x, x[:, :1])):
        with pytest.raises(ValueError, match=r"expected \(n, k\) and \(m, k\)"):
            wasserstein_1d(a, b)
    with pytest.raises(ValueError, match=r"p=0\.5"):
        sliced_wasserstein(KEY, x, x, p=0.5)
