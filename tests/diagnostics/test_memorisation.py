"""Laws of the distances to training points: what they are for copies, for fresh points, and for samples of another law."""

import jax
import numpy as np
import pytest

from scorelab import densities, diagnostics, models, processes, schedules
from scorelab.data import Named, Pixels, Subset
from scorelab.experiment import DataSpec, Memorisation
from scorelab.grids import Karras


def normal(seed, n, d=3):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_copies_are_told_from_fresh_points():
    train, held = normal(0, 100), normal(1, 200)
    copies = diagnostics.memorisation(train[:50], train, held)
    assert (copies.ratio, copies.copied, copies.nearest) == (0.0, 1.0, 1.0)
    both = diagnostics.memorisation(train[:2], train, np.concatenate([train[:2], held]))
    assert both.nearest == 0.5
    near = train[:50] + 1e-3 * normal(2, 50) / np.linalg.norm(normal(2, 50), axis=1, keepdims=True)
    found = diagnostics.memorisation(near, train, held)
    # Rounding of |a|^2 + |b|^2, some 1e-15, against squared distances of 1e-6.
    np.testing.assert_allclose(found.distances, 1e-3, rtol=1e-8)
    assert found.ratio == pytest.approx(1e-3 / found.floor_distances.mean(), rel=1e-8)
    fresh = diagnostics.memorisation(normal(3, 400), train, held)
    # Both are means of the same law given the training points.
    assert abs(fresh.ratio - 1) < 4 * fresh.standard_error
    share = lambda n, p: 4 * np.sqrt(p * (1 - p) / n)
    p = fresh.copied_floor
    assert abs(fresh.copied - p) < share(400, p) + share(200, p)


def test_distances_are_those_of_pairs_far_from_the_origin():
    x, train, held = (1e6 + normal(seed, n) for seed, n in ((0, 30), (1, 40), (2, 50)))
    found = diagnostics.memorisation(x, train, held)
    pairs = np.sort(np.linalg.norm(x[:, None] - train, axis=2), axis=1)
    np.testing.assert_allclose(found.distances, pairs[:, 0], rtol=1e-6)
    assert found.copied == np.mean(pairs[:, 0] <= pairs[:, 1] / 3)
    images = found.ratio, diagnostics.memorisation(*(points.reshape(-1, 3, 1, 1) for points in (x, train, held))).ratio
    assert images[0] == images[1]


@pytest.mark.parametrize("scale", [1.0, 0.2, 3.0])
def test_samples_of_any_law_are_nearest_to_training_points_as_often_as_these_are_many(scale):
    """Training and held-out points are exchangeable: m / (m + k) on average, however bad the samples."""
    found = [diagnostics.memorisation(scale * normal((1, i), 2), normal((2, i), 5), normal((3, i), 10)) for i in range(600)]
    nearest = np.array([each.nearest for each in found])
    assert found[0].nearest_floor == 1 / 3
    # Four standard errors over independent draws of all points.
    assert abs(nearest.mean() - 1 / 3) < 4 * nearest.std() / np.sqrt(600)


def test_the_standard_error_is_that_of_the_ratio_over_samples_and_held_out_points():
    train = normal(0, 50)
    found = [diagnostics.memorisation(normal((1, i), 40), train, normal((2, i), 60)) for i in range(200)]
    spread, said = np.std([each.ratio for each in found]), np.mean([each.standard_error for each in found])
    # The deviation of 200 numbers is known to a twentieth.
    assert said == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ((normal(0, 4), normal(1, 1), normal(2, 4)), r"train gives points of shape \(1, 3\): expected \(n, d\) with n at least 2"),
        ((normal(0, 4, 2), normal(1, 4), normal(2, 4)), r"samples has 2 numbers in a point beside 3 of train"),
        ((normal(0, 4), normal(1, 4), normal(2, 4, 5)), r"held_out has 5 numbers in a point beside 3 of train"),
        ((normal(0, 4), normal(1, 4), normal(1, 4)), r"held_out has points of train alone"),
        ((np.full((4, 3), np.nan), normal(1, 4), normal(2, 4)), r"samples has 12 values that are not finite"),
        ((np.zeros(4), normal(1, 4), normal(2, 4)), r"samples has shape \(4,\): expected \(n, \*event\)"),
    ],
)
def test_what_does_not_fit_is_named(sets, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.memorisation(*sets)


def test_the_stage_tells_the_law_of_the_data_from_its_training_points():
    """Two exact models of the digits: the empirical law, which returns its points, and one Gaussian, which knows none of them."""
    data = DataSpec(dataset=Subset(source=Named(name="digits"), n=100), transform=Pixels(levels=17))
    process = processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0))
    x = np.asarray(data.transform.encode(data.load().x))
    question = Memorisation(n=60, grid=Karras(12, t_max=20.0))
    laws = {"copies": densities.Empirical(x), "smooth": densities.Gaussian.from_data(x)}
    found = {name: question(models.ExactModel(law, process), data, jax.random.key(0)) for name, law in laws.items()}
    # A stored digit comes back level by level.
    assert found["copies"].values["ratio"] < 0.02
    assert found["copies"].values["copied"] > 0.95
    assert found["copies"].values["nearest"] == 1.0
    assert found["smooth"].values["copied"] < 0.1
    assert found["smooth"].values["ratio"] > 0.5
    # Both laws of the distance: those of the copies end near zero, where those of held-out digits have not begun.
    samples, held_out = (line.get_xdata() for line in found["copies"].figure.axes[0].lines)
    assert len(samples) == 60
    assert np.max(samples) < np.min(held_out)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Memorisation(n=1), r"Memorisation\.n = 1"),
        (lambda: Memorisation(solver=3), r"Memorisation\.solver = 3"),
        (lambda: Memorisation(grid=None), r"Memorisation\.grid = None"),
    ],
)
def test_fields_of_the_stage_are_checked(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_copies_are_told_where_training_points_are_stored_twice():
    train, held_out = normal(1, 40), normal(2, 40)
    samples = train + 1e-3 * normal(3, 40)
    once = diagnostics.memorisation(samples, train, held_out)
    twice = diagnostics.memorisation(samples, np.concatenate([train, train]), held_out)
    assert once.copied == twice.copied > 0.9
    assert once.ratio == pytest.approx(twice.ratio, rel=1e-12)
    with pytest.raises(ValueError, match="train has one point many times"):
        diagnostics.memorisation(samples, np.repeat(train[:1], 5, axis=0), held_out)
