"""Rare modes far away: how far data reach, and where a jump has to end for such modes to keep their share."""

import warnings

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from scorelab import densities, grids, models, sample, solvers, starts
from scorelab.densities.moments import reach

from .targets import EDM

WIDTH = 0.5


def mixture(modes, share, distance, dimension):
    """A standard mode of deviation 1/2 at the origin, and ``modes`` rare ones along the axes."""
    means = np.concatenate([np.zeros((1, dimension)), distance * np.eye(dimension)[:modes]])
    return densities.GaussianMixture([1 - modes * share] + [share] * modes, means, np.full(modes + 1, WIDTH**2))


def points(modes, share, distance, dimension, n, seed=0):
    """Points of that law, with exactly their share in every mode."""
    x = WIDTH * np.random.default_rng(seed).normal(size=(n, dimension))
    for k in range(modes):
        x[k * round(share * n) : (k + 1) * round(share * n), k] += distance
    return x


def share_after_a_jump(sigma, share, distance):
    """Exactly, on the line: the flow is increasing, so it takes the upper quantile of the noised law to the mode."""
    deviation = np.sqrt(WIDTH**2 + sigma**2)
    above = lambda y: (1 - share) * stats.norm.sf(y, 0, deviation) + share * stats.norm.sf(y, distance, deviation) - share
    border = optimize.brentq(above, -9 * deviation, distance + 9 * deviation)
    variance = WIDTH**2 + share * (1 - share) * distance**2
    return stats.norm.sf(border, share * distance, np.sqrt(variance + sigma**2))


def caught(act):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        act()
    return [str(w.message) for w in found]


RARE = [(0.01, 12.0), (0.01, 8.0), (0.03, 12.0), (0.05, 12.0), (0.001, 40.0), (0.2, 6.0), (0.5, 6.0)]


@pytest.mark.parametrize(("share", "distance"), RARE)
def test_an_automatic_jump_keeps_the_share_of_a_rare_mode(share, distance):
    # 4 %: at NEAR = 0.9 of its distance a mode keeps 96.8 % and more of its share, whatever that is.
    law = mixture(1, share, distance, 2).matched()
    times = grids.Karras(40).times(EDM)
    landing = times[starts.Teleport(law).steps_over(EDM, times)]
    assert share_after_a_jump(landing, share, distance) == pytest.approx(share, rel=0.04)
    spread = np.sqrt(WIDTH**2 + share * (1 - share) * distance**2)
    if share < 0.05:  # three deviations would have lost more
        assert share_after_a_jump(3 * spread, share, distance) < 0.9 * share


@pytest.mark.parametrize("made", ["data", "mixture"])
@pytest.mark.parametrize(("modes", "share", "distance", "dimension"), [(1, 0.01, 12.0, 2), (10, 0.01, 8.0, 10)])
def test_samples_of_rare_modes_are_as_many_with_the_jump(modes, share, distance, dimension, made):
    law, n = mixture(modes, share, distance, dimension), 8000
    moments = law.matched() if made == "mixture" else densities.Gaussian.from_data(points(modes, share, distance, dimension, 2000))
    out = sample(
        models.ExactModel(law, EDM), solver=solvers.DPMSolverPP(), grid=grids.Karras(24), key=jax.random.key(1),
        shape=(n, dimension), start=starts.Teleport(moments),
    )  # fmt: skip
    found, exact = np.mean(np.any(np.asarray(out.x)[:, :modes] > distance / 2, axis=1)), modes * share
    # 4 % for the jump (see above), and four standard errors. Jumps to three deviations gave .0065 and .0605.
    assert abs(found - exact) < 0.04 * exact + 4 * np.sqrt(exact * (1 - exact) / n)


@pytest.mark.parametrize("n", [20, 300, 1000, 5000])
@pytest.mark.parametrize("dimension", [1, 2, 10, 50])
def test_gaussian_data_reach_no_further_than_a_gaussian(n, dimension):
    x = np.random.default_rng(n).normal(size=(n, dimension)) * np.geomspace(1, 0.01, dimension)
    assert reach(x - x.mean(0)) == 0
    assert float(densities.Gaussian.from_data(x).reach) == 0


@pytest.mark.parametrize("n", [400, 3000, 20_000])
@pytest.mark.parametrize(
    ("modes", "share", "distance", "dimension"), [(1, 0.01, 12.0, 2), (10, 0.01, 8.0, 10), (1, 0.05, 12.0, 200)]
)
def test_the_reach_of_data_is_the_distance_of_their_rare_modes(n, modes, share, distance, dimension):
    x = points(modes, share, distance, dimension, n)
    # Up to the width of the modes (3 deviations of 1/2), and the distance of the mean from the origin.
    assert abs(reach(x - x.mean(0)) - distance) < 3 * WIDTH


def test_every_way_to_make_a_law_of_data_knows_its_reach():
    x = points(1, 0.01, 12.0, 6, 1000)
    ways = [
        dict(), dict(rank=2), dict(rank=2, method="randomized"), dict(rank=2, method="streaming", tail="mean"),
        dict(covariance="isotropic"), dict(covariance="zero"),
    ]  # fmt: skip
    for way in ways:
        assert float(densities.Gaussian.from_data(x, **way).reach) == pytest.approx(reach(x - x.mean(0)), rel=1e-5)
    blocks = densities.Gaussian.from_data(iter(np.array_split(x, 7)))
    assert float(blocks.reach) == pytest.approx(reach(x - x.mean(0)), rel=1e-5)
    label = np.arange(1000) % 2
    classes = densities.GaussianMixture.per_class(x, label)
    assert classes.components.reach.min() > 11
    assert starts.Teleport(classes, label=label)._target() > 11


def test_the_reach_follows_the_law(tmp_path):
    law = densities.Gaussian.from_data(points(1, 0.01, 12.0, 3, 1000))
    assert float(law.affine(-2.0, 5.0).reach) == pytest.approx(2 * float(law.reach))
    path = densities.save_gaussian(tmp_path / "law.npz", law, data_sha256="0")
    assert float(densities.load_gaussian(path).reach) == float(law.reach)
    assert float(densities.load_gaussian(path, interval=(-3, 3)).reach) == pytest.approx(3 * float(law.reach))
    assert float(densities.Gaussian(np.zeros(3), 1.0).reach) < 0
    assert float(densities.Gaussian(np.zeros(3), 1.0).affine(-2.0).reach) < 0  # what is not known stays so


def test_ordinary_data_keep_their_jump():
    rng = np.random.default_rng(0)
    two = np.where(rng.random((5000, 1)) < 0.5, [[1.0, 0.4]], [[-1.0, -0.2]]) + 0.3 * rng.normal(size=(5000, 2))
    ring = np.stack([np.cos(angle := rng.uniform(0, 2 * np.pi, 5000)), np.sin(angle)], -1) + 0.05 * rng.normal(size=(5000, 2))
    for x in (two, ring, rng.random((5000, 8)), rng.normal(size=(2000, 64))):
        law = densities.Gaussian.from_data(x)
        assert starts.Teleport(law)._target() == pytest.approx(3 * np.sqrt(np.linalg.eigvalsh(np.cov(x.T)).max()), rel=1e-5)


def test_a_jump_that_may_lose_rare_modes_is_warned_about():
    times = grids.Karras(40).times(EDM)
    known = densities.Gaussian.from_data(points(1, 0.01, 12.0, 3, 1000))
    jump = lambda law, *sigma: caught(lambda: starts.Teleport(law, *sigma).on_grid(EDM, times))
    assert jump(known) == jump(known, 13.0) == []
    (message,) = jump(known, 5.0)
    assert f"below the distance of rare points of the data ({float(known.reach):.3g})" in message
    assert f"expected sigma_skip >= {float(known.reach):.3g}" in message
    moments = densities.Gaussian(np.zeros(3), 1.0)
    (message,) = jump(moments)
    assert "chosen from moments alone" in message
    assert jump(moments, 4.0) == []
