"""The Gaussian's probability flow in closed form, and its statistics from data."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from scorelab import densities

from .targets import EDM, FLOW, LOG, VP, covariance, spectrum

MEAN, BASIS, VARIANCES = spectrum()
COV = covariance(BASIS, VARIANCES)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def gaussian():
    return densities.Gaussian(MEAN, COV)


@functools.partial(jax.jit, static_argnums=(1, 3))
def score(law, process, y, t):
    """Of the noised law, as one program."""
    return law.noised(process, t).score(y)


def noise(n=4, scale=1.0, d=20):
    return scale * np.random.default_rng(1).normal(size=(n, d))


# The ODEs of the literature, written with the matrix and not with its eigenvectors: (rhs, beginning, ends).
def _ve(sigma, x):
    # dx / d sigma = -sigma score
    return sigma * np.linalg.solve(COV + sigma**2 * np.eye(20), (x - MEAN).T).T


def _vp(t, x):
    # dx / dt = -(beta / 2)(x + score), log alpha = -int beta / 2, with the rate and the deviation of the schedule's paper.
    alpha2 = np.exp(-(0.1 * t + 0.5 * (20.0 - 0.1) * t**2))
    score = -np.linalg.solve(alpha2 * COV + (1 - alpha2) * np.eye(20), (x - np.sqrt(alpha2) * MEAN).T).T
    return -0.5 * (0.1 + (20.0 - 0.1) * t) * (x + score)


@pytest.mark.parametrize(
    ("process", "field", "times", "scale"),
    [(EDM, _ve, (80.0, 20.0, 5.0, 1.0, 0.1, 0.002), 80.0), (VP, _vp, (1.0, 0.8, 0.5, 0.2, 0.01), 1.0)],
    ids=["VE", "VP"],
)
def test_flow_solves_the_probability_flow(process, field, times, scale):
    y = noise(scale=scale)
    rhs = lambda t, x: field(t, x.reshape(y.shape)).ravel()
    law, x = gaussian(), y.ravel()
    for s, t in itertools.pairwise(times):
        x = integrate.solve_ivp(rhs, (s, t), x, method="DOP853", rtol=1e-11, atol=1e-13).y[:, -1]
        np.testing.assert_allclose(law.flow(process, y, times[0], t), x.reshape(y.shape), atol=1e-9)


def test_flow_of_one_process_is_that_of_another():
    # x_vp(t) = alpha_t x_ve(sigma_t / alpha_t), for every process with an identity chart.
    law, y = gaussian(), noise()
    for process, s, t in ((VP, 1.0, 0.3), (FLOW, 0.9, 0.25)):
        ratios = [float(process.noise_ratio(u)) for u in (s, t)]
        through = process.alpha(t) * law.flow(EDM, y / process.alpha(s), *ratios)
        np.testing.assert_allclose(law.flow(process, y, s, t), through, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [EDM, VP, FLOW, LOG], ids=repr)
def test_flow_is_a_semigroup(process):
    law, y = gaussian(), noise()
    s, u, t = (float(process.t_max) * f for f in (1.0, 0.4, 0.05))
    np.testing.assert_allclose(law.flow(process, law.flow(process, y, s, u), u, t), law.flow(process, y, s, t), atol=1e-12)
    np.testing.assert_allclose(law.flow(process, y, s, s), y, atol=1e-12)
    jacobian = jax.jit(jax.jacobian(lambda z: law.flow(process, z[None], s, t)[0]))(y[0])
    np.testing.assert_allclose(law.flow_log_det(process, s, t), np.linalg.slogdet(jacobian)[1], rtol=1e-10)


@pytest.mark.parametrize("process", [EDM, FLOW, LOG], ids=repr)
def test_flow_and_denoiser_at_clean_data(process):
    # Given eigenvectors: those of a matrix with variances from 20 to 1e-6 are known to 1e-9 only, and gains reach 1e4.
    law, x, t = densities.Gaussian.low_rank(MEAN, BASIS, VARIANCES), noise(), 0.6 * process.t_max
    y = law.flow(process, x, 0.0, t)
    np.testing.assert_allclose(law.flow(process, y, t, 0.0), x, atol=1e-9)
    root = covariance(BASIS, np.sqrt((process.alpha(t) ** 2 * VARIANCES + process.sigma(t) ** 2) / VARIANCES))
    np.testing.assert_allclose(y, process.alpha(t) * MEAN + process.offset(t) + (x - MEAN) @ root, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(law.denoise(process, x, 0.0), x, atol=1e-12)
    part = densities.Gaussian.low_rank(MEAN, BASIS[:, :3], VARIANCES[:3])  # at clean data, its own points stay
    on_support = MEAN + noise(d=3) @ BASIS[:, :3].T
    np.testing.assert_allclose(part.denoise(process, on_support, 0.0), on_support, atol=1e-12)


def test_flow_from_the_noise_of_rectified_flow():
    # alpha = 0 at t = 1, where there is no noise ratio: N(0, I) goes to N(m, C) by m + C^(1/2) z.
    root = covariance(BASIS, np.sqrt(VARIANCES))
    np.testing.assert_allclose(gaussian().flow(FLOW, noise(), 1.0, 0.0), MEAN + noise() @ root, atol=1e-12)


def test_low_rank_flow():
    y = noise(scale=80.0)
    whole = densities.Gaussian.low_rank(MEAN, BASIS, VARIANCES)
    np.testing.assert_allclose(whole.flow(EDM, y, 80.0, 5.0), gaussian().flow(EDM, y, 80.0, 5.0), atol=1e-10)
    part = densities.Gaussian.low_rank(MEAN, BASIS[:, :7], VARIANCES[:7])
    cut = densities.Gaussian(MEAN, covariance(BASIS[:, :7], VARIANCES[:7]))
    np.testing.assert_allclose(part.flow(EDM, y, 80.0, 0.1), cut.flow(EDM, y, 80.0, 0.1), atol=1e-10)
    # What lies across the basis is noise that shrinks with sigma, and is kept.
    across = y - MEAN - (y - MEAN) @ BASIS[:, :7] @ BASIS[:, :7].T
    moved = part.flow(EDM, MEAN + across, 80.0, 5.0) - MEAN
    np.testing.assert_allclose(moved, across * 5 / 80, atol=1e-11)


def test_denoiser_along_the_path_and_the_score():
    law, y, sigma = gaussian(), noise(scale=80.0), 0.7
    x = law.flow(EDM, y, 80.0, sigma)
    denoised = law.denoise(EDM, x, sigma)
    np.testing.assert_allclose(denoised, x + sigma**2 * law.noised(EDM, sigma).score(x), atol=1e-10)
    gains = VARIANCES / np.sqrt((VARIANCES + sigma**2) * (VARIANCES + 80.0**2))
    np.testing.assert_allclose(denoised, MEAN + (y - MEAN) @ covariance(BASIS, gains), atol=1e-10)


def test_flow_carries_the_noised_law():
    n = 200_000
    law = gaussian()
    y = MEAN + np.random.default_rng(2).normal(size=(n, 20)) @ covariance(BASIS, np.sqrt(VARIANCES + 80.0**2))
    x = np.asarray(jax.jit(lambda y: law.flow(EDM, y, 80.0, 0.5))(y))
    exact = COV + 0.25 * np.eye(20)
    # E |S - C|_F^2 = (tr(C)^2 + |C|_F^2) / n; three times its root is 1.9 % of |C|_F.
    expected = np.sqrt((np.trace(exact) ** 2 + np.sum(exact**2)) / n)
    assert np.linalg.norm(np.cov(x.T) - exact) < 3 * expected
    assert 3 * expected < 0.03 * np.linalg.norm(exact)


def test_half_of_a_feature_is_there_at_sqrt_3_lambda():
    law, y = gaussian(), noise(scale=80.0)
    for k in (0, 5, 12):
        sigmas = np.sqrt(3 * VARIANCES[k]), 1e-12
        coordinate = [(law.denoise(EDM, law.flow(EDM, y, 80.0, s), s) - MEAN) @ BASIS[:, k] for s in sigmas]
        np.testing.assert_allclose(coordinate[0] / coordinate[1], 0.5, atol=1e-8)


# Statistics ---------------------------------------------------------------------------------------------------------


def points(n=3000, dtype=np.float64):
    root = covariance(BASIS, np.sqrt(VARIANCES))
    return (MEAN + np.random.default_rng(3).normal(size=(n, 20)) @ root).astype(dtype)


def test_moments_are_those_of_the_data():
    x = points().reshape(-1, 4, 5, 1)
    law = densities.Gaussian.from_data(x)
    assert law.event == (4, 5, 1)
    np.testing.assert_allclose(law.covariance(), np.cov(x.reshape(len(x), -1).T), atol=1e-12)
    np.testing.assert_allclose(law.mean, x.mean(0), atol=1e-13)
    assert np.all(np.diff(law.eigenvalues) <= 0)  # leading directions first


@pytest.mark.parametrize("sizes", [(3000,), (1, 0, 2999, 0), (7,) * 428 + (4,)], ids=["whole", "uneven", "small"])
def test_an_iterator_of_blocks_gives_the_same(sizes):
    x = points()
    ends = list(itertools.accumulate(sizes))
    blocks = (x[end - size : end] for end, size in zip(ends, sizes, strict=True))
    law, whole = densities.Gaussian.from_data(blocks), densities.Gaussian.from_data(x)
    np.testing.assert_allclose(law.covariance(), whole.covariance(), atol=1e-12)
    np.testing.assert_allclose(law.mean, whole.mean, atol=1e-13)


def test_float32_points_far_from_zero_are_summed_in_float64():
    # Single precision sums of squares around 1000 would be off by more than the variance of 1e-4 here.
    x = (1000 + 0.01 * np.random.default_rng(0).normal(size=(50_000, 3))).astype(np.float32)
    law = densities.Gaussian.from_data(x)
    np.testing.assert_allclose(law.covariance(), np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("method", ["eigh", "randomized", "streaming"])
def test_rank_keeps_the_leading_directions(method):
    x = points()
    exact = np.linalg.eigvalsh(np.cov(x.T))[::-1]
    source = (x[low : low + 250] for low in range(0, len(x), 250)) if method == "streaming" else x
    law = densities.Gaussian.from_data(source, rank=4, method=method)
    # Randomised and incremental SVDs are exact up to the part of the spectrum they cut off: a relative 4e-2 in variance here.
    np.testing.assert_allclose(law.eigenvalues, exact[:4], rtol=1e-10 if method == "eigh" else 0.04)
    np.testing.assert_allclose(law.basis.T @ law.basis, np.eye(4), atol=1e-12)
    leading = np.linalg.eigh(np.cov(x.T))[1][:, ::-1][:, :4]
    assert np.all(np.linalg.svd(leading.T @ np.asarray(law.basis))[1] > 0.99)
    assert float(law.tail) == 0
    source = (x[low : low + 250] for low in range(0, len(x), 250)) if method == "streaming" else x
    spread = densities.Gaussian.from_data(source, rank=4, method=method, tail="mean")
    total = float(spread.eigenvalues.sum() + 16 * spread.tail)
    assert total == pytest.approx(np.trace(np.cov(x.T)), rel=1e-9)


def test_streaming_equals_eigh_at_full_rank():
    x = points()
    streamed = densities.Gaussian.from_data((x[low : low + 13] for low in range(0, len(x), 13)), rank=20, method="streaming")
    np.testing.assert_allclose(streamed.covariance(), np.cov(x.T), atol=1e-9)


def test_negative_eigenvalues_are_clipped():
    x = np.concatenate([points(500), np.full((500, 6), 0.3)], axis=1)[:, :22]
    x[:, 21] = x[:, 20]  # null directions
    law = densities.Gaussian.from_data(x.astype(np.float32))
    assert float(law.eigenvalues.min()) >= 0
    moved = law.flow(EDM, noise(d=22), 80.0, 1e-3)
    assert np.all(np.isfinite(moved))


def test_isotropic_and_mean_only():
    x = points()
    isotropic = densities.Gaussian.from_data(x, covariance="isotropic")
    np.testing.assert_allclose(isotropic.covariance(), np.trace(np.cov(x.T)) / 20 * np.eye(20), rtol=1e-12)
    mean = densities.Gaussian.from_data(iter(np.split(x, 3)), covariance="zero")
    y, sigma = noise(), 2.0
    np.testing.assert_allclose(mean.noised(EDM, sigma).score(y), (x.mean(0) - y) / sigma**2, rtol=1e-10)


def test_values_in_0_1_and_in_minus_1_1():
    x = np.random.default_rng(0).uniform(size=(400, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    moved, again = densities.Gaussian.from_data(x).affine(2.0, -1.0), densities.Gaussian.from_data(2 * x - 1)
    np.testing.assert_allclose(moved.mean, again.mean, atol=1e-12)
    np.testing.assert_allclose(moved.eigenvalues, again.eigenvalues, atol=1e-12)
    np.testing.assert_allclose(moved.covariance(), again.covariance(), atol=1e-12)


def test_a_stored_gaussian_knows_its_data_and_range(tmp_path):
    x = points(200)
    stored = densities.save_gaussian(tmp_path / "moments.npz", densities.Gaussian.from_data(x), data_sha256="ab12", interval=(0, 1))
    same = densities.load_gaussian(stored, data_sha256="ab12")
    np.testing.assert_array_equal(same.covariance(), densities.Gaussian.from_data(x).covariance())
    moved, again = densities.load_gaussian(stored, interval=(-1, 1)), densities.Gaussian.from_data(2 * x - 1)
    np.testing.assert_allclose(moved.mean, again.mean, atol=1e-12)
    np.testing.assert_allclose(moved.covariance(), again.covariance(), atol=1e-11)
    assert [path.name for path in tmp_path.iterdir()] == ["moments.npz"]
    with pytest.raises(ValueError, match="data with hash ab12: expected cd34"):
        densities.load_gaussian(stored, data_sha256="cd34")
    with pytest.raises(ValueError, match=r"interval = .1, 0.: expected two finite"):
        densities.load_gaussian(stored, interval=(1, 0))
    np.savez(tmp_path / "other.npz", x=x)
    with pytest.raises(ValueError, match="has no basis"):
        densities.load_gaussian(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        densities.save_gaussian(tmp_path / "moments", densities.Gaussian(x[0], 1.0), data_sha256="")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(points=np.zeros(5)), r"shape \(5,\)"),
        (dict(points=np.zeros((1, 5))), "1 points: expected at least 2"),
        (dict(points=np.zeros((1, 5)), covariance="isotropic"), "1 points with covariance = 'isotropic': expected at least 2"),
        (dict(points=np.full((4, 2), np.nan)), "point 0 has a value that is not finite"),
        (dict(points=iter([np.zeros((3, 2)), np.zeros((3, 4))])), "one event shape"),
        (dict(points=iter([])), "no points"),
        (dict(points=np.zeros((9, 5)), rank=6), "rank = 6"),
        (dict(points=np.zeros((9, 5)), method="randomized"), "rank = None"),
        (dict(points=np.zeros((9, 5)), method="svd"), "method = 'svd'"),
        (dict(points=np.zeros((9, 5)), rank=2, tail=0.1), "tail = 0.1"),
        (dict(points=np.zeros((3, 5)), rank=4, method="streaming"), "at most the number of points, 3"),
        (dict(points=np.zeros((9, 5)), covariance="diagonal"), "covariance = 'diagonal'"),
        (dict(points=np.zeros((9, 5)), covariance="zero", rank=2), "got rank"),
    ],
)
def test_bad_points_and_options_are_named(arguments, match):
    with pytest.raises(ValueError, match=match):
        densities.Gaussian.from_data(**arguments)


@pytest.mark.parametrize(
    ("basis", "eigenvalues", "tail", "match"),
    [
        (np.full((3, 1), np.nan), [1.0], 0.0, "not orthonormal"),
        (np.eye(3)[:, :1], [-1.0], 0.0, "low_rank.eigenvalues has a value that is negative"),
        (np.eye(3)[:, :1], [1.0], np.nan, "low_rank.tail has a value that is negative or not finite"),
    ],
)
def test_bad_low_rank_gaussians_are_named(basis, eigenvalues, tail, match):
    with pytest.raises(ValueError, match=match):
        densities.Gaussian.low_rank(np.zeros(3), basis, eigenvalues, tail)


# Mixtures -----------------------------------------------------------------------------------------------------------


def clusters(n=900):
    rng = np.random.default_rng(5)
    label = np.arange(n) % 3
    shift = np.array([[4.0, 0, 0, 0], [0, -5.0, 0, 0], [0, 0, 6.0, 1.0]])
    return shift[label] + rng.normal(size=(n, 4)) * np.array([1.0, 0.5, 0.3, 0.2]), label


def test_fit_finds_separate_clusters():
    x, label = clusters()
    fitted = densities.GaussianMixture.fit(x, 3, floor=1e-5)
    known = [x[label == k] for k in range(3)]
    order = np.argsort([np.argmin(np.linalg.norm(fitted.components.mean - c.mean(0), axis=1)) for c in known])
    assert sorted(order.tolist()) == [0, 1, 2]
    np.testing.assert_allclose(fitted.weights, 1 / 3, rtol=1e-12)
    for c in known:
        k = int(np.argmin(np.linalg.norm(fitted.components.mean - c.mean(0), axis=1)))
        component = jax.tree.map(lambda leaf: leaf[k], fitted.components)
        np.testing.assert_allclose(component.covariance(), np.cov(c.T, ddof=0) + 1e-5 * np.eye(4), atol=1e-10)


def test_fit_with_one_component_is_the_gaussian():
    x, _ = clusters()
    fitted = densities.GaussianMixture.fit(x, 1, floor=0.0)
    law = densities.Gaussian(x.mean(0), np.cov(x.T, ddof=0))
    y = 3 * noise(d=4)
    np.testing.assert_allclose(score(fitted, EDM, y, 1.0), score(law, EDM, y, 1.0), atol=1e-12)


def test_fit_survives_clusters_of_one_point():
    x = np.concatenate([np.zeros((50, 3)) + 1e-3 * noise(50, d=3), 100 * np.eye(3)])
    fitted = densities.GaussianMixture.fit(x, 4, rank=2)
    assert np.all(np.isfinite(jax.jit(lambda law: law.log_prob(x))(fitted)))
    assert len(fitted.weights) == 4


def test_low_rank_mixture_and_delta_scores_are_gradients():
    x, label = clusters(60)
    mixture = densities.GaussianMixture.per_class(x, label, rank=2)
    np.testing.assert_allclose(mixture.weights, 1 / 3, rtol=1e-12)
    y = noise(8, 2.0, d=4)

    def low_rank(z, sigma):
        found = [np.cov(x[label == k].T) for k in range(3)]
        squares = [np.linalg.eigh(c) for c in found]
        covs = [(v[:, 2:] * w[2:]) @ v[:, 2:].T + sigma**2 * np.eye(4) for w, v in squares]
        logs = [jax.scipy.stats.multivariate_normal.logpdf(z, x[label == k].mean(0), c) for k, c in enumerate(covs)]
        return jax.nn.logsumexp(jnp.stack(logs))

    def delta(z, sigma):
        return jax.nn.logsumexp(-jnp.sum((z - x) ** 2, -1) / (2 * sigma**2))

    for law, log_density in ((mixture, low_rank), (densities.Empirical(x), delta)):
        for sigma in (0.3, 5.0):
            expected = jax.jit(jax.vmap(jax.grad(lambda z: log_density(z, sigma))))(y)
            np.testing.assert_allclose(score(law, EDM, y, sigma), expected, rtol=1e-10, atol=1e-10)


def test_equal_points_are_an_isotropic_gaussian():
    y, centre = noise(d=4), np.arange(4.0)
    same = densities.Empirical(np.tile(centre, (9, 1)))
    np.testing.assert_allclose(score(same, EDM, y, 0.7), score(densities.Gaussian(centre, 0.0), EDM, y, 0.7), rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda x, k: densities.GaussianMixture.fit(x, 0), "components = 0"),
        (lambda x, k: densities.GaussianMixture.fit(x, 10_000), "at most the 900 points"),
        (lambda x, k: densities.GaussianMixture.fit(x, 2, floor=-1.0), "floor = -1"),
        (lambda x, k: densities.GaussianMixture.fit(x[:30], 20, rank=4, method="randomized"), "points of the smallest"),
        (lambda x, k: densities.GaussianMixture.per_class(x, k[:5]), "label is int64"),
        (lambda x, k: densities.GaussianMixture.per_class(x, k, num_classes=4), "expected two or more of each of 4"),
    ],
)
def test_bad_mixtures_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make(*clusters())
