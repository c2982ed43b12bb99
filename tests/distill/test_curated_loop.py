"""The map of the self-consuming loop obeys its closed forms, and draws follow the map."""

import pathlib
import runpy
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def curated():
    """The experiment, as a module."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "experiments" / "2407.09499" / "curated_loop.py")))


def test_two_candidates_are_bradley_and_terry(curated):
    p, r = RNG.dirichlet(np.ones(5)), RNG.normal(size=5)
    pairs = p[:, None] * p[None, :]
    wins = 1 / (1 + np.exp(r[None, :] - r[:, None]))
    # The winner of a pair: first or second place.
    np.testing.assert_allclose(curated.curate(p, r, 2), np.sum(pairs * wins + pairs.T * wins, axis=1), rtol=1e-12)


@pytest.mark.parametrize("k", [3, 4])
def test_more_candidates_are_a_sum_over_all_tuples(curated, k):
    p, r = RNG.dirichlet(np.ones(3)), RNG.normal(size=3)
    exact = np.zeros(3)
    for chosen in np.ndindex(*[3] * k):
        chosen = np.array(chosen)
        weights = np.exp(r[chosen])
        np.add.at(exact, chosen, np.prod(p[chosen]) * weights / weights.sum())
    np.testing.assert_allclose(curated.curate(p, r, k), exact, rtol=1e-8)


def test_few_and_many_candidates(curated):
    p, r = RNG.dirichlet(np.ones(6)), RNG.normal(size=6)
    np.testing.assert_array_equal(curated.curate(p, r, 1), p)
    tilt = p * np.exp(r) / np.sum(p * np.exp(r))
    np.testing.assert_allclose(curated.curate(p, r, np.inf), tilt, rtol=1e-12)
    # The distance to the limit falls as 1 / K (the self-normalisation of importance sampling).
    errors = [np.abs(curated.curate(p, r, k) - tilt).max() for k in (50, 500)]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.1)
    with pytest.raises(ValueError, match="k = 0"):
        curated.curate(p, r, 0)


def test_the_pure_loop_is_a_power_of_the_tilt_and_loses_all_variance(curated):
    p, r = curated.WEIGHTS, curated.STATES
    laws = curated.loop(p, r, np.inf, 1.0, 12)
    for t in (1, 5, 12):
        exact = p * np.exp(t * r)
        np.testing.assert_allclose(laws[t], exact / exact.sum(), rtol=1e-10)
    mean, variance = curated.moments(laws, r)
    assert np.all(np.diff(mean) > 0)
    assert mean[-1] == pytest.approx(r.max(), abs=2e-3)
    assert variance[0] == pytest.approx(np.sum(p * r**2) - np.sum(p * r) ** 2)
    assert variance[-1] < 1e-3 < 0.5 < variance[0]
    # With K = 2 more slowly, since a state is at most doubled.
    slow, _ = curated.moments(curated.loop(p, r, 2, 1.0, 12), r)
    assert np.all(np.diff(slow) > 0)
    assert np.all(slow[1:] < mean[1:])


def test_real_data_bound_the_loop(curated):
    p, r = curated.WEIGHTS, curated.STATES
    laws = curated.loop(p, r, 2, 0.5, 60)
    # A fixed point of the map, with no less than half of the real law anywhere.
    np.testing.assert_allclose(laws[-1], 0.5 * p + 0.5 * curated.curate(laws[-1], r, 2), atol=1e-12)
    assert np.all(laws >= 0.5 * p)
    mean, variance = curated.moments(laws, r)
    assert mean[0] < mean[1] < mean[-1] < r.max() - 1
    assert variance[-1] > 0.5


def test_draws_follow_the_map(curated):
    p, r, n = curated.WEIGHTS, curated.STATES, 200_000
    for k in (2, 5):
        rng = np.random.default_rng(k)
        states = rng.choice(len(p), (n, k), p=p)
        kept = curated.keep_one(rng, states, r[states])
        exact = curated.curate(p, r, k)
        # Four binomial deviations.
        assert np.all(np.abs(np.bincount(kept, minlength=6) / n - exact) < 4 * np.sqrt(exact / n))


def test_the_grid_is_fine_enough(curated):
    density = np.exp(np.asarray(curated.LAW.log_prob(curated.POINTS), np.float64))
    step = curated.SIDE[1] - curated.SIDE[0]
    assert density.sum() * step**2 == pytest.approx(1, abs=1e-5)
    mean, _ = curated.moments(density[None] / density.sum(), curated.reward(curated.POINTS))
    # -|x - c|^2 / 4 of a mixture: squared distances of the modes, and twice the variance .09.
    assert mean[0] == pytest.approx(-0.25 * (0.4 * 16 + 0.5 * 8 + 0.18), abs=1e-4)
