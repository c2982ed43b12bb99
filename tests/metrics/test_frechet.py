"""Frechet distance against closed forms."""

import jax
import numpy as np
import pytest

from scorelab.data import Arrays
from scorelab.metrics import Coordinates, feature_moments, frechet, frechet_distance, pixels, report


def random_cov(rng, d, rank=None):
    a = rng.normal(size=(d, rank or d))
    return a @ a.T


# Float64 rounding of a d = 6 problem with entries of order 10, times a safety factor of about 1000.
EXACT = {"rtol": 1e-11, "atol": 1e-11}


def test_commuting_covariances():
    """|dmu|^2 + sum (sqrt(a) - sqrt(b))^2 for a common eigenbasis."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    a, b, m1, m2 = rng.uniform(0, 4, 6), rng.uniform(0, 4, 6), rng.normal(size=6), rng.normal(size=6)
    expected = np.sum((m1 - m2) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    found = frechet_distance(m1, basis * a @ basis.T, m2, basis * b @ basis.T)
    np.testing.assert_allclose(found, expected, **EXACT)


def test_non_commuting_two_by_two():
    """tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2 M with positive eigenvalues, M = C1 C2."""
    rng = np.random.default_rng(1)
    c1, c2 = random_cov(rng, 2), random_cov(rng, 2)
    product = c1 @ c2
    assert np.abs(product - product.T).max() > 0.1
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    expected = 2.0 + np.trace(c1) + np.trace(c2) - 2 * root
    np.testing.assert_allclose(frechet_distance([0, 0], c1, [1, 1], c2), expected, **EXACT)


def test_covariance_pushed_by_a_known_optimal_map():
    """For a symmetric positive map T the plan x -> T x is optimal: W^2 = E |x - T x|^2 = tr((1 - T) C (1 -
    T)).
    """
    rng = np.random.default_rng(2)
    c, t = random_cov(rng, 6), random_cov(rng, 6)
    gap = np.eye(6) - t
    zero = np.zeros(6)
    np.testing.assert_allclose(frechet_distance(zero, c, zero, t @ c @ t), np.trace(gap @ c @ gap), rtol=1e-10)


def test_singular_covariances():
    """Point masses, and lines at a right angle, where the cross term vanishes."""
    zero = np.zeros((3, 3))
    assert frechet_distance([1, 0, 0], zero, [0, 2, 0], zero) == pytest.approx(5.0, rel=1e-15)
    c1, c2 = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 0])
    assert frechet_distance([0, 0, 0], c1, [0, 0, 0], c2) == pytest.approx(13.0, rel=1e-15)


def test_symmetry_and_zero():
    rng = np.random.default_rng(3)
    c1, c2, m1, m2 = random_cov(rng, 5), random_cov(rng, 5, rank=2), rng.normal(size=5), rng.normal(size=5)
    np.testing.assert_allclose(frechet_distance(m1, c1, m2, c2), frechet_distance(m2, c2, m1, c1), **EXACT)
    # A root of rounding error: sqrt(eps) relative to the trace is the worst case for a difference of roots.
    assert frechet_distance(m1, c2, m1, c2) < 1e-7 * np.trace(c2)


def test_empirical_moments_are_those_of_the_samples():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(50, 3))
    found = frechet(x, x + np.array([3.0, 0.0, 4.0]), Coordinates())
    # A shift leaves the covariance alone: exactly |shift|^2.
    assert found.value == pytest.approx(25.0, rel=1e-9)
    assert (found.n, found.reference_n, found.label) == (50, 50, "FID-coordinates")


def test_requests_that_make_no_sense_are_refused():
    eye = np.eye(2)
    with pytest.raises(ValueError, match="positive semi-definite"):
        frechet_distance([0, 0], -eye, [0, 0], eye)
    with pytest.raises(ValueError, match="symmetric"):
        frechet_distance([0, 0], [[1.0, 1.0], [0.0, 1.0]], [0, 0], eye)
    with pytest.raises(ValueError, match="expected"):
        frechet_distance([0, 0, 0], eye, [0, 0], eye)
    with pytest.raises(ValueError, match="not finite"):
        frechet(np.full((3, 2), np.nan), np.ones((3, 2)), Coordinates())
    with pytest.raises(ValueError, match="equal widths"):
        frechet(np.ones((3, 2)), np.ones((3, 4)), Coordinates())


class OnDisk:
    """Rows that are read when they are asked for, which says how many at most."""

    def __init__(self, x):
        self.x, self.most = x, 0
        self.shape, self.dtype = x.shape, x.dtype

    def __len__(self):
        return len(self.x)

    def __getitem__(self, item):
        rows = self.x[item]
        self.most = max(self.most, len(rows))
        return rows


def test_moments_of_samples_on_disk_are_those_of_all_of_them():
    """2,001 rows far from zero, in blocks of 1,000 of which the last has one row."""
    rng = np.random.default_rng(3)
    x = 1e3 + rng.normal(size=(2001, 4)) @ rng.normal(size=(4, 4))
    y = rng.normal(size=(50, 4))
    stored = OnDisk(x)
    found = feature_moments(stored, Coordinates())
    assert stored.most == 1000
    # Float64 rounding of numbers of order 1e3 under a deviation of order one, times a safety factor of about 1000.
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-9)
    one, other = frechet(stored, y, Coordinates()), frechet(x, y, Coordinates())
    assert (one.n, one.reference_n, one.extractor) == (other.n, other.reference_n, other.extractor) == (2001, 50, "coordinates")
    np.testing.assert_allclose(one.value, other.value, rtol=1e-9)
    with pytest.raises(ValueError, match="x has 1 samples: expected at least 2"):
        feature_moments(OnDisk(x[:1]), Coordinates())
    with pytest.raises(ValueError, match="x gives points of width 4 and y of width 3"):
        frechet(stored, y[:, :3], Coordinates())


def test_a_report_reads_images_on_disk_in_blocks():
    images = np.random.default_rng(0).integers(0, 256, (2200, 3, 3, 1), dtype=np.uint8)
    train, test = (Arrays(x=images[part], levels=256, name="made", split="train") for part in (slice(1000), slice(1000, 2200)))
    stored = OnDisk(images)
    one, other = (report(x, train, test, pixels(), n=64, key=jax.random.key(0)) for x in (stored, images))
    assert one == other
    assert 0 < stored.most <= 64
