"""Precision, recall, density and coverage: explicit sums and laws."""

import math

import numpy as np
import pytest

from scorelab.metrics import precision_recall


def blobs(rng, n, centres, width=0.1):
    centres = np.asarray(centres, float)
    return centres[rng.integers(len(centres), size=n)] + width * rng.normal(size=(n, 2))


def test_definition_by_explicit_loops():
    rng = np.random.default_rng(0)
    x, y, k = rng.normal(size=(12, 2)), rng.normal(size=(15, 2)) + 0.7, 3

    def radius(z, i):
        return sorted(math.dist(z[i], z[j]) for j in range(len(z)) if j != i)[k - 1]

    in_y = [[math.dist(a, b) <= radius(y, j) for j, b in enumerate(y)] for a in x]
    in_x = [[math.dist(a, b) <= radius(x, i) for i, a in enumerate(x)] for b in y]
    found = precision_recall(x, y, k=k)
    assert found.precision == pytest.approx(np.mean([any(row) for row in in_y]))
    assert found.recall == pytest.approx(np.mean([any(row) for row in in_x]))
    assert found.density == pytest.approx(np.sum(in_y) / (k * len(x)))
    assert found.coverage == pytest.approx(np.mean(np.any(in_y, axis=0)))


def test_equal_laws_have_the_known_density_and_coverage():
    """Exact for any continuous law: a sample is in B_k(y) with chance k / m, coverage by counting orders of
    neighbours.
    """
    n, m, k, repeats = 60, 50, 3, 200
    rng = np.random.default_rng(1)
    found = [precision_recall(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k=k) for _ in range(repeats)]
    # Around y the other m - 1 points and the n samples are exchangeable: uncovered when the first k are all
    # points of y.
    uncovered = math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(k))
    for name, expected in (("density", 1.0), ("coverage", 1 - uncovered)):
        values = [getattr(f, name) for f in found]
        assert abs(np.mean(values) - expected) < 4 * np.std(values) / math.sqrt(repeats)
    assert np.mean([f.precision for f in found]) > 0.85
    assert np.mean([f.recall for f in found]) > 0.85


def test_disjoint_sets_have_zero():
    rng = np.random.default_rng(2)
    found = precision_recall(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)) + 100)
    assert (found.precision, found.recall, found.density, found.coverage) == (0, 0, 0, 0)


def test_a_dropped_mode_costs_recall_and_not_precision():
    rng = np.random.default_rng(3)
    reference = blobs(rng, 400, [(0, 0), (10, 0)])
    found = precision_recall(blobs(rng, 400, [(0, 0)]), reference)
    half = (reference[:, 0] < 5).mean()
    assert found.precision > 0.9
    assert 0.8 * half < found.recall <= half
    assert found.coverage <= half


def test_an_invented_mode_costs_precision_and_not_recall():
    rng = np.random.default_rng(4)
    samples = blobs(rng, 400, [(0, 0), (10, 0)])
    found = precision_recall(samples, blobs(rng, 400, [(0, 0)]))
    assert found.precision <= (samples[:, 0] < 5).mean()
    assert found.recall > 0.8


def test_a_far_origin_and_duplicates_are_harmless():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    near, far = precision_recall(x, y), precision_recall(x + 1e5, y + 1e5)
    assert (near.precision, near.recall) == (far.precision, far.recall)
    same = np.zeros((10, 2))
    assert precision_recall(same, same).precision == 1.0


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="k=5: expected 1 to 4"):
        precision_recall(np.zeros((5, 2)), np.zeros((9, 2)), k=5)


@pytest.mark.parametrize("k", [2.5, True, 0])
def test_a_number_of_neighbours_is_an_integer(k):
    x = np.zeros((9, 2))
    with pytest.raises(ValueError, match=f"precision_recall.k = {k}: expected an integer >= 1"):
        precision_recall(x, x, k=k)


def test_every_point_repeated_is_covered_by_itself():
    # Radii of zero, in many dimensions and far from the origin: equal rows have distance zero, not its rounding.
    rng = np.random.default_rng(10)
    y = np.repeat(1e3 * rng.normal(size=(30, 40)) + 1e4, 5, axis=0)
    found = precision_recall(rng.permutation(y), y, k=3)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density == pytest.approx(5 / 3)
