"""Sequences, volumes and images with exact laws: the samples have them, and the statistics see where they do not."""

import jax
import numpy as np
import pytest
from scipy import stats

from scorelab import densities
from scorelab.data import Named, load, shapes
from scorelab.experiment import DataSpec, StatisticEvaluation

EVENTS = {"gaussian_process": (32, 1), "switching": (32, 1), "blobs": (12, 12, 12, 1), "spots": (30, 21, 3)}
N = 2000


@pytest.fixture(scope="module")
def drawn():
    return {name: load(name, n=N, seed=3).x for name in EVENTS}


@pytest.mark.parametrize("name", EVENTS)
def test_sets_are_functions_of_their_seed_and_split(name, drawn):
    assert (drawn[name].shape, drawn[name].dtype) == ((N, *EVENTS[name]), np.float32)
    few = [load(name, split, n=20, seed=seed).sha256 for split, seed in (("train", 3), ("train", 3), ("train", 4), ("test", 3))]
    assert few[0] == few[1]
    assert len({*few}) == 3
    assert {value.shape for value in (f(drawn[name]) for f in shapes.STATISTICS[name].values())} == {(N,)}
    with pytest.raises(ValueError, match=r"n = 0: expected an integer >= 1"):
        getattr(shapes, name)(0, 0)


def test_the_process_has_its_covariance(drawn):
    x = drawn["gaussian_process"][..., 0].astype(np.float64)
    covariance = densities.oscillation(32)
    # Entries by hand: half a period apart, and one period apart.
    assert covariance[0, 4] == pytest.approx(-np.exp(-0.5))
    assert covariance[3, 11] == pytest.approx(np.exp(-1.0))
    # The standard error of an entry of unit variances is at most sqrt(2 / n); of 528 entries one in 2 * 10^7 is five off.
    np.testing.assert_allclose(x.T @ x / N, covariance, atol=5 * np.sqrt(2 / N))
    distance = shapes.mahalanobis(x[..., None])
    assert distance.mean() == pytest.approx(1.0, abs=5 * np.sqrt(2 / 32 / N))
    assert stats.kstest(32 * distance, stats.chi2(32).cdf).pvalue > 1e-4
    law = densities.gaussian_process()
    np.testing.assert_allclose(
        law.log_prob(x[:3, :, None].astype(np.float32)),
        stats.multivariate_normal(np.zeros(32), covariance).logpdf(x[:3]),
        rtol=1e-4,
    )


def test_the_chain_leaves_its_states_as_it_says(drawn):
    x = drawn["switching"]
    state = shapes.upper(x)
    before, after = state[:, :-1], state[:, 1:]
    for which, probability in zip((False, True), shapes.LEAVES, strict=True):
        here = before == which
        error = np.sqrt(probability * (1 - probability) / here.sum())
        assert np.mean(after[here] != which) == pytest.approx(probability, abs=4.5 * error)
    # 31 pairs, each a switch with probability 2 * (1/4) * 0.15; and the share of the upper state is 1/4 at every place.
    switches, upper = (shapes.STATISTICS["switching"][name](x) for name in ("switches", "time in the upper state"))
    for values, expected in ((switches, 31 * 0.075), (upper, 0.25)):
        assert values.mean() == pytest.approx(expected, abs=4.5 * values.std() / np.sqrt(N))
    np.testing.assert_allclose(state.mean(0), 0.25, atol=5 * np.sqrt(3 / 16 / N))
    # Runs that begin and end inside are geometric; those of the lower state are longer.
    np.testing.assert_allclose(np.abs(x).mean(), 1.0, atol=5 * 0.2 / np.sqrt(x.size))
    assert shapes.longest_run(np.array([[[1.0], [1], [-1], [-1], [-1], [1]]])) == 3


def test_blobs_lie_everywhere_alike_and_are_found_again(drawn):
    x = drawn["blobs"]
    named = {name: f(x) for name, f in shapes.STATISTICS["blobs"].items()}
    for axis in ("depth", "height", "width"):
        assert stats.kstest(named[axis], stats.uniform(3.5, 4.0).cdf).pvalue > 1e-4
    assert stats.kstest(named["amplitude"], stats.uniform(0.5, 1.0).cdf).pvalue > 1e-4
    # The borders cut the blob, which moves its mean by less than a hundredth of a voxel.
    assert named["residual"].max() < 0.01
    places = np.stack([named[axis] for axis in ("depth", "height", "width")], 1)
    assert np.abs(np.corrcoef(places.T) - np.eye(3)).max() < 5 / np.sqrt(N)
    one = 0.7 * shapes.bump(np.array([[4.0, 5.5, 6.25]]), (12, 12, 12), 1.5)[..., None]
    np.testing.assert_allclose(shapes.centres(one), [[4.0, 5.5, 6.25]], atol=0.01)
    np.testing.assert_allclose(shapes.amplitudes(one, 1.5)[0], 0.7, atol=0.005)
    # Another width, and two blobs, are no blob.
    for other in (
        shapes.bump(np.array([[5.0] * 3]), (12,) * 3, 2.0),
        shapes.bump(np.array([[4.0] * 3, [7.0] * 3]), (12,) * 3, 1.5).sum(0)[None],
    ):
        assert shapes.residual(other[..., None], 1.5) > 0.2


def test_spots_have_their_places_and_the_shares_of_their_colours(drawn):
    named = {name: f(drawn["spots"]) for name, f in shapes.STATISTICS["spots"].items()}
    assert stats.kstest(named["row"], stats.uniform(5, 19).cdf).pvalue > 1e-4
    assert stats.kstest(named["column"], stats.uniform(5, 10).cdf).pvalue > 1e-4
    counts = np.bincount(named["colour"], minlength=3)
    assert stats.chisquare(counts, N * np.array([1 / 2, 1 / 3, 1 / 6])).pvalue > 1e-4
    assert named["residual"].max() < 0.01
    # A spot of two colours is none.
    assert shapes.residual(np.roll(drawn["spots"][:5], 1, axis=-1) + drawn["spots"][:5], 2.5, channels=1).min() > 0.5


def test_the_evaluation_tells_how_far_a_statistic_is_off(drawn):
    data = DataSpec(dataset=Named(name="switching", n=1000))
    evaluation = StatisticEvaluation(n=500)
    evaluation.check(data, 500)
    at, off = (
        {value.name: value for value in evaluation(points, data, jax.random.key(0))}
        for points in (drawn["switching"][:500], -drawn["switching"][:500])
    )
    assert list(at) == [f"W1 of {name}" for name in data.dataset.statistics]
    assert (at["W1 of switches"].n, at["W1 of switches"].reference_n) == (500, 10_000)
    # Of the mirrored chain the upper state has three quarters: its law is moved by a half, while the switches stay as they are.
    assert off["W1 of time in the upper state"].value == pytest.approx(0.5, abs=0.05)
    assert at["W1 of time in the upper state"].value < 0.05
    assert off["W1 of switches"].value == at["W1 of switches"].value
    for name, statistic in data.dataset.statistics.items():
        # That of 500 exact draws: of the size of the standard error of their mean.
        assert 0 < at[f"W1 of {name}"].floor < 3 * statistic(drawn["switching"]).std() / np.sqrt(500)
    for dataset, message in (
        ("rings", "rings: expected a generated set with statistics"),
        ("digits", "digits: expected a generated"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.check(DataSpec(dataset=Named(name=dataset)), 500)
    with pytest.raises(ValueError, match=r"StatisticEvaluation\.n = 500: expected at most the number of samples, Sample\.n = 9"):
        evaluation.check(data, 9)
    with pytest.raises(ValueError, match=r"StatisticEvaluation\.n = 500: expected at most the number of samples, 3"):
        evaluation(drawn["switching"][:3], data, jax.random.key(0))
    with pytest.raises(ValueError, match=r"StatisticEvaluation\.seed = 4294967295: expected at most"):
        StatisticEvaluation(seed=2**32 - 1)
