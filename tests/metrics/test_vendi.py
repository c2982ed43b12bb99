"""Identities of the Vendi score."""

import math

import numpy as np
import pytest

from scorelab.metrics import Coordinates, hill_number, vendi, vendi_from_kernel, vendi_from_points

ORDERS = [0, 0.3, 1, 2, 3.5, math.inf]


def laplace(z, w):
    return np.exp(-np.abs(z - w.T))


def random_kernel(rng, n, d):
    z = rng.normal(size=(n, d))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z, z @ z.T


@pytest.mark.parametrize("q", ORDERS)
def test_unlike_and_equal_items(q):
    # Rounding of an eigenvalue solver, then an exponent of 1 / (1 - q) of order one.
    assert vendi_from_kernel(np.eye(7), q) == pytest.approx(7, rel=1e-12)
    assert vendi_from_kernel(np.ones((7, 7)), q) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("k", [0.0, 0.6, 0.9])
def test_two_items_have_eigenvalues_one_plus_minus_k_halves(k):
    l = np.array([(1 + k) / 2, (1 - k) / 2])
    kernel = np.array([[1, k], [k, 1]])
    assert vendi_from_kernel(kernel) == pytest.approx(math.exp(-np.sum(l * np.log(l))), rel=1e-12)
    assert vendi_from_kernel(kernel, 2) == pytest.approx(2 / (1 + k * k), rel=1e-12)
    assert vendi_from_kernel(kernel, 3) == pytest.approx(np.sum(l**3) ** -0.5, rel=1e-12)
    assert vendi_from_kernel(kernel, math.inf) == pytest.approx(2 / (1 + k), rel=1e-12)
    assert vendi_from_kernel(kernel, 0) == 2


def test_three_pairs_of_duplicates():
    """Three items, each twice, 10 apart under exp(-|a - b|): three up to e^-10; of rank three exactly."""
    z = np.repeat([[0.0], [10.0], [20.0]], 2, axis=0)
    for q in (0.5, 1, 2):
        assert vendi(z, laplace, q=q).value == pytest.approx(3, abs=1e-6)
    assert vendi(z, laplace, q=0).value == 3


def test_block_of_two_similar_and_one_other():
    """Eigenvalues of K / 3 are 1.9 / 3, 0.1 / 3 and 1 / 3."""
    kernel = np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1.0]])
    l = np.array([1.9, 0.1, 1.0]) / 3
    assert vendi_from_kernel(kernel) == pytest.approx(math.exp(-np.sum(l * np.log(l))), rel=1e-12)


@pytest.mark.parametrize("q", [0.5, 1, 2, 3, math.inf])
def test_weights_stand_for_repeated_items(q):
    z, kernel = random_kernel(np.random.default_rng(0), 3, 5)
    repeated = np.repeat(np.arange(3), [5, 3, 2])
    weights = np.array([0.5, 0.3, 0.2])
    expected = vendi_from_kernel(kernel[np.ix_(repeated, repeated)], q)
    # Small orders weigh the repeated items' zero eigenvalues, cut at rounding level: ten digits are left.
    assert vendi_from_kernel(kernel, q, weights) == pytest.approx(expected, rel=1e-10)
    assert vendi_from_points(z, q, weights) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("q", ORDERS)
@pytest.mark.parametrize(("n", "d"), [(200, 8), (6, 20)])
def test_primal_and_dual_agree(q, n, d):
    z, kernel = random_kernel(np.random.default_rng(1), n, d)
    scaled = z * np.random.default_rng(2).uniform(0.1, 5, (n, 1))
    assert vendi_from_points(scaled, q) == pytest.approx(vendi_from_kernel(kernel, q), rel=1e-9)


def test_order_two_needs_no_eigenvalues():
    _, kernel = random_kernel(np.random.default_rng(3), 100, 30)
    l = np.linalg.eigvalsh(kernel / 100)
    assert vendi_from_kernel(kernel, 2) == pytest.approx(1 / np.sum(l**2), rel=1e-12)
    # Continuity at 2, where the other branch takes over; the slope in q is below the value itself.
    assert vendi_from_kernel(kernel, 2 + 1e-7) == pytest.approx(vendi_from_kernel(kernel, 2), rel=1e-6)


def test_order_is_monotone_and_continuous_at_one_and_infinity():
    _, kernel = random_kernel(np.random.default_rng(4), 50, 10)
    values = [vendi_from_kernel(kernel, q) for q in ORDERS]
    assert values == sorted(values, reverse=True)
    assert values[0] == 10
    assert vendi_from_kernel(kernel, 1 + 1e-6) == pytest.approx(values[2], rel=1e-5)
    # (sum l^q)^(1/(1-q)) lies within n^(1/(q-1)) and max(l)^(1/(q-1)) of the limit.
    assert vendi_from_kernel(kernel, 4000.0) == pytest.approx(values[-1], rel=2e-3)


def test_rounding_of_zero_eigenvalues_is_not_counted():
    z = np.repeat(np.random.default_rng(5).normal(size=(3, 40)), 20, axis=0)
    assert vendi_from_points(z, 0) == 3
    assert hill_number(np.array([0.5, 0.5, -1e-17, 1e-18]), 0) == 2


def test_independent_package_formula():
    """exp of the von Neumann entropy of K / n, through a matrix logarithm in place of the eigenvalues'
    entropy.
    """
    from scipy.linalg import logm

    _, kernel = random_kernel(np.random.default_rng(6), 12, 40)
    rho = kernel / 12
    assert vendi_from_kernel(kernel) == pytest.approx(np.exp(-np.trace(rho @ logm(rho)).real), rel=1e-9)


def test_a_centre_is_taken_out_and_named():
    x = np.array([[100.0, 1.0], [100.0, -1.0], [101.0, 0.0], [99.0, 0.0]])
    assert vendi(x, features=Coordinates()).value == pytest.approx(1, abs=1e-2)
    found = vendi(x, features=Coordinates(), centre=np.array([100.0, 0.0]))
    assert found.value == pytest.approx(2, rel=1e-12)
    assert found.label == "Vendi(q=1, centred)-coordinates"


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="ones on the diagonal"):
        vendi_from_kernel(2 * np.eye(3))
    with pytest.raises(ValueError, match="semi-definite"):
        vendi_from_kernel(np.array([[1, 2.0], [2.0, 1]]))
    with pytest.raises(ValueError, match="q=-1"):
        vendi_from_kernel(np.eye(3), -1)
    with pytest.raises(ValueError, match="sum 1"):
        vendi_from_kernel(np.eye(3), 1, np.ones(3))
    with pytest.raises(ValueError, match="1 zero rows"):
        vendi_from_points(np.array([[0.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="centre has shape"):
        vendi(np.ones((3, 2)), centre=np.ones(3))


@pytest.mark.parametrize("gap", [0.3, 1e-3, 1e-9, 1e-12, -1e-12, -1e-3])
def test_orders_near_one_have_the_limit(gap):
    # At q = 1 + g the number is exp(H - g V / 2 + O(g^2)), H the entropy and V the variance of -log l.
    l = np.array([0.5, 0.3, 0.15, 0.05])
    entropy = -np.sum(l * np.log(l))
    variance = np.sum(l * (np.log(l) + entropy) ** 2)
    assert hill_number(l, 1 + gap) == pytest.approx(np.exp(entropy - gap * variance / 2), rel=0.1 * gap**2 + 1e-12)
    assert hill_number(np.full(7, 1 / 7), 1 + gap) == pytest.approx(7, rel=1e-13)


def test_the_score_does_not_depend_on_the_length_of_the_rows():
    z = np.random.default_rng(3).normal(size=(20, 4))
    for scale in (1e-200, 1e-30, 1e200, np.geomspace(1e-300, 1e300, 20)[:, None]):
        assert vendi(z * scale).value == pytest.approx(vendi(z).value, rel=1e-12)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: hill_number(np.array([0.5, np.nan]), 1), "eigenvalues has 1 values that are not finite"),
        (lambda: hill_number(np.zeros(3), 1), "sum 0: expected"),
        (lambda: hill_number(np.ones(2), 2), "sum 2: expected"),
        (lambda: hill_number(np.array([1.5, -0.5]), 2), "expected non-negative"),
        (lambda: hill_number(np.array([0.5, 0.5]), -1), "q=-1: expected a number from 0"),
        (lambda: vendi_from_kernel(np.full((3, 3), np.nan), q=2), "9 values that are not finite"),
        (lambda: vendi_from_kernel(np.array([[1.0, 2.0], [2.0, 1.0]]), q=2), "an entry of size 2: expected at most 1"),
    ],
)
def test_numbers_that_are_no_spectrum_are_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()
