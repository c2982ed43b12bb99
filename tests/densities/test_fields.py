"""Fields on periodic grids against the dense Gaussians that they are, and their posteriors against dense formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, metrics, models, processes, sampling, schedules, solvers
from scorelab.densities import GaussianField, Matern, Mixture, PowerLaw, SquaredExponential
from scorelab.densities.spectra import wave_numbers
from scorelab.models import LinearMeasurement

from ..precision import double

PROCESSES = [
    processes.Gaussian(schedule=schedules.EDM()),
    processes.Gaussian(schedule=schedules.VPLinear()),
    processes.Gaussian(schedule=schedules.RectifiedFlow()),
]
# Odd and even sides have other sets of self-conjugate modes; a side of 1 or 2 has nothing else.
SHAPES = [(7, 1), (2, 1), (1, 1), (5, 6, 1), (6, 5, 2), (3, 2, 4, 2)]
# Float64 keeps 16 digits; the spectra below span 2 to 4, the noised ones fewer.
CLOSE = dict(rtol=1e-9, atol=1e-11)


def dense(shape, spectrum, variance=1.0):
    """The covariance as a sum over modes of cosines, (d, d): what the law is defined to be."""
    grid, channels = shape[:-1], shape[-1]
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, len(grid))
    phase = 2 * np.pi * np.einsum("ia,ka->ik", places / np.array(grid), places)
    cosine = np.cos(phase[:, None] - phase[None])
    values = spectrum(grid).ravel()
    covariance = cosine @ values / len(values)
    return np.kron(covariance, np.diag(np.broadcast_to(variance, channels)))


def field(shape, exponent=2.5, seed=0):
    rng = np.random.default_rng(seed)
    spectrum, variance = PowerLaw(exponent=exponent, knee=1.5), rng.uniform(0.3, 1.0, shape[-1])
    mean = rng.normal(size=shape)
    return GaussianField(shape, spectrum, mean=mean, variance=variance), mean.ravel(), dense(shape, spectrum, variance)


def gaussian(law, mean, covariance):
    return densities.Gaussian(mean.reshape(law.event), covariance)


def agree(law, reference, x, process):
    """Log-density, score and denoised points of a law and of a dense one, at more than one noise level."""
    for a, b in ((law, reference), (law.noised(process, 0.3), reference.noised(process, 0.3))):
        np.testing.assert_allclose(a.log_prob(x), b.log_prob(x), **CLOSE)
        np.testing.assert_allclose(a.score(x), b.score(x), **CLOSE)
    for t in (1e-4, 0.7):
        np.testing.assert_allclose(law.denoise(process, x, t), reference.denoise(process, x, t), **CLOSE)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@double
def test_a_field_is_the_dense_gaussian(shape):
    law, mean, covariance = field(shape)
    np.testing.assert_allclose(law.covariance(), covariance, atol=1e-13)
    np.testing.assert_allclose(np.broadcast_to(law.variance, shape).ravel(), np.diag(covariance), atol=1e-13)
    x = np.random.default_rng(1).normal(size=(3, *shape))
    reference = stats.multivariate_normal(mean, covariance).logpdf(x.reshape(3, -1))
    np.testing.assert_allclose(law.log_prob(x), reference, **CLOSE)
    agree(law, gaussian(law, mean, covariance), x, PROCESSES[len(shape) % 3])
    assert law.scale() == pytest.approx(gaussian(law, mean, covariance).scale(), rel=1e-12)
    np.testing.assert_allclose(law.matched().covariance(), covariance, atol=1e-12)


@double
def test_draws_are_a_root_of_the_covariance():
    # A draw is the mean and a linear map of standard normal numbers: the map times its transpose is the covariance, exactly.
    law, _, covariance = field((4, 3, 1))
    key = jax.random.key(0)
    draws = (np.asarray(law.sample(key, 400)) - law.mean).reshape(400, -1)
    white = np.asarray(jax.random.normal(key, (400, 12)))
    root = np.linalg.lstsq(white, draws, rcond=None)[0]
    np.testing.assert_allclose(white @ root, draws, atol=1e-12)
    np.testing.assert_allclose(root.T @ root, covariance, atol=1e-12)


@double
def test_modes_without_variance_stay_at_their_mean():
    spectrum = np.where(wave_numbers((6, 6)) <= 1.0, 1.0, 0.0)[..., None]
    law = GaussianField((6, 6, 1), spectrum, mean=2.0)
    y = np.random.default_rng(0).normal(size=(2, 6, 6, 1))
    reference = gaussian(law, np.full(36, 2.0), np.asarray(law.covariance()))
    for t in (0.01, 0.8):
        np.testing.assert_allclose(law.denoise(PROCESSES[1], y, t), reference.denoise(PROCESSES[1], y, t), **CLOSE)
    modes = np.fft.fft2(np.asarray(law.denoise(PROCESSES[1], y, 0.5))[..., 0] - 2)
    np.testing.assert_allclose(modes[:, spectrum[..., 0] == 0], 0, atol=1e-12)


def test_spectra_are_those_of_their_covariances():
    # Well resolved kernels are the periodic sums of their images; Matern 1/2 and 3/2 have closed forms in one dimension.
    n, length = 64, 4.0
    lag = np.arange(n) + n * np.arange(-5, 6)[:, None]
    row = lambda spectrum: np.fft.ifft(spectrum((n,))).real
    exponential = np.exp(-((lag / length) ** 2) / 2).sum(0)
    np.testing.assert_allclose(row(SquaredExponential(length=length)), exponential / exponential[0], atol=1e-12)
    u = np.sqrt(3) * np.abs(lag) / 12
    matern = ((1 + u) * np.exp(-u)).sum(0)
    # The modes that the grid does not resolve are left out: a share of about 4 / (3 pi) (sqrt(3) / 12 pi)^3 = 4e-5 of the variance,
    # which falls on the two sides of the normalisation.
    np.testing.assert_allclose(row(Matern(length=12.0, smoothness=1.5)), matern / matern[0], atol=1e-4)
    two = SquaredExponential(length=2.0)((16, 32))
    np.testing.assert_allclose(two, two[:, :1] * two[:1] / two[0, 0], rtol=1e-12)
    for spectrum in (PowerLaw(exponent=4.0, knee=3.0), Matern(length=3.0), PowerLaw(exponent=2.0, knee=1.0, cutoff=5.0)):
        assert spectrum((16, 8)).mean() == pytest.approx(1.0, rel=1e-12)
    law = PowerLaw(exponent=4.0, knee=3.0, cutoff=6.0)((32,))
    np.testing.assert_allclose(law[3] / law[0], 0.25 * np.exp(-0.25), rtol=1e-12)
    # On a long grid the unit is the longest side.
    assert wave_numbers((8, 32))[1, 0] == 4
    assert wave_numbers((8, 32))[0, 1] == 1


# Posteriors ----------------------------------------------------------------------------------------------------


def measured(law, seed=0):
    """Averages over blocks and a few points of the first channel, of a draw of the law."""
    shape, rng = law.event, np.random.default_rng(seed)
    block = (*(2 if side % 2 == 0 else 1 for side in shape[:-1]), 1)
    places = np.stack([rng.integers(0, side, 3) for side in shape[:-1]] + [np.zeros(3, int)], -1)
    parts = [
        LinearMeasurement.averages(shape, block, values=0.0, std=0.1),
        LinearMeasurement.points(shape, places, values=0.0, std=[0.05, 0.2, 1.0]),
    ]
    return LinearMeasurement.stacked(parts).observing(jax.random.key(seed), law.sample(jax.random.key(seed + 9), 1)[0])


@pytest.mark.parametrize("shape", [(8, 1), (5, 6, 1), (4, 4, 2)], ids=str)
@double
def test_the_posterior_of_a_field_is_the_dense_one(shape):
    law, mean, covariance = field(shape)
    measurement, reference = measured(law), gaussian(law, mean, covariance)
    posterior, exact = models.exact_posterior(law, measurement), models.exact_posterior(reference, measurement)
    np.testing.assert_allclose(posterior.mean, exact.mean, atol=1e-11)
    np.testing.assert_allclose(posterior.covariance(), exact.covariance(), atol=1e-11)
    np.testing.assert_allclose(posterior.variance.ravel(), np.diag(exact.covariance()), atol=1e-11)
    h, r = np.asarray(measurement.matrix), np.asarray(measurement.noise(jnp.float64))
    evidence = stats.multivariate_normal(h @ mean, np.diag(r) + h @ covariance @ h.T).logpdf(measurement.values)
    assert posterior.log_evidence == pytest.approx(evidence, rel=1e-11)
    x = np.random.default_rng(1).normal(size=(3, *shape))
    for process in PROCESSES[: len(shape)]:
        agree(posterior, exact, x, process)
    noised, dense_noised = (p.noised(PROCESSES[1], 0.4).noised(PROCESSES[0], 0.5) for p in (posterior, exact))
    np.testing.assert_allclose(noised.log_prob(x), dense_noised.log_prob(x), **CLOSE)
    np.testing.assert_allclose(noised.covariance(), dense_noised.covariance(), atol=1e-11)
    np.testing.assert_allclose(noised.variance.ravel(), np.diag(dense_noised.covariance()), atol=1e-11)


@double
def test_posterior_draws_have_the_posterior_covariance():
    # Draws are affine in standard normal numbers: their root is found by regression, without Monte Carlo error.
    law, *_ = field((4, 3, 1))
    posterior = models.exact_posterior(law, measured(law))
    for each in (posterior, posterior.noised(PROCESSES[1], 0.4)):
        key, n, k = jax.random.key(0), 600, len(each.values)
        one, two = jax.random.split(key)
        white = np.concatenate([jax.random.normal(one, (n, 12)), jax.random.normal(two, (n, k))], 1)
        draws = np.asarray(each.sample(key, n)).reshape(n, -1)
        found = np.linalg.lstsq(np.concatenate([np.ones((n, 1)), white], 1), draws, rcond=None)[0]
        np.testing.assert_allclose(found[0], each.mean.ravel(), atol=1e-11)
        np.testing.assert_allclose(found[1:].T @ found[1:], each.covariance(), atol=1e-11)


@double
def test_the_posterior_of_a_mixture_of_fields_is_the_dense_one():
    parts = [field((4, 4, 1), exponent, seed) for seed, exponent in enumerate((2.0, 4.0))]
    law = Mixture([0.7, 0.3], [one for one, *_ in parts])
    reference = densities.GaussianMixture([0.7, 0.3], [m.reshape(4, 4, 1) for _, m, _ in parts], [c for *_, c in parts])
    measurement = measured(law)
    x = np.random.default_rng(1).normal(size=(3, 4, 4, 1))
    for a, b in ((law, reference), (models.exact_posterior(law, measurement), models.exact_posterior(reference, measurement))):
        np.testing.assert_allclose(a.weights, b.weights, rtol=1e-9)
        agree(a, b, x, PROCESSES[0])
        assert a.scale() == pytest.approx(b.scale(), rel=1e-9)
        np.testing.assert_allclose(a.matched().covariance(), b.matched().covariance(), atol=1e-11)


def test_a_large_field_needs_no_matrix():
    # 65536 elements: a covariance would take 17 GB.
    law = GaussianField((256, 256, 1), PowerLaw(exponent=3.0, knee=4.0))
    places = np.array([[0, 0, 0], [128, 17, 0]])
    measurement = LinearMeasurement.points(law.event, places, values=[2.0, -1.0], std=0.01)
    posterior = models.exact_posterior(law, measurement)
    # By themselves, two stations far apart: the mean there is the value times 1 / (1 + std^2), up to their correlation.
    correlation = np.fft.ifft2(PowerLaw(exponent=3.0, knee=4.0)((256, 256))).real[128, 17]
    c = np.array([[1.0, correlation], [correlation, 1.0]])
    gain = c @ np.linalg.inv(c + 1e-4 * np.eye(2))
    np.testing.assert_allclose(posterior.mean[tuple(places.T)], gain @ [2.0, -1.0], rtol=1e-5)
    np.testing.assert_allclose(posterior.variance[tuple(places.T)], np.diag(c - gain @ c), rtol=1e-3)
    assert law.matched() is None
    assert posterior.matched() is None
    draws = np.asarray(posterior.sample(jax.random.key(0), 16))[(slice(None), *places.T)]
    # 16 draws: five standard errors of a deviation of 0.01, and rounding of values of size one.
    np.testing.assert_allclose(draws.mean(0), gain @ [2.0, -1.0], atol=5 * 0.01 / 4)


def test_float32_keeps_the_posterior_of_precise_stations():
    """The oracle is made in float64: what float32 keeps of it is rounding, also where noise is a thousandth of the field."""
    law = GaussianField((12, 12, 1), PowerLaw(exponent=4.0, knee=3.0))
    places = np.stack(np.meshgrid([0, 4, 8], [1, 5, 9], [0]), -1).reshape(-1, 3)
    measurement = LinearMeasurement.points(law.event, places, values=np.linspace(-1, 1, 9), std=1e-3)
    posterior = models.exact_posterior(law, measurement)
    with jax.enable_x64(True):
        wide = GaussianField((12, 12, 1), PowerLaw(exponent=4.0, knee=3.0))
        again = LinearMeasurement.points(law.event, places, values=np.linspace(-1, 1, 9), std=1e-3)
        exact = models.exact_posterior(wide, again)
        np.testing.assert_allclose(posterior.mean, exact.mean, atol=3e-6)
        # Variances are differences of numbers near one, of which the leaves keep seven digits.
        np.testing.assert_allclose(posterior.variance, exact.variance, atol=2e-6)
        covariance = np.asarray(exact.covariance())[np.ix_(*[np.ravel_multi_index(places.T, law.event)] * 2)]
    stations = np.asarray(posterior.sample(jax.random.key(0), 20_000), np.float64)[(slice(None), *places.T)]
    # The variance of 20000 normal numbers has a relative standard error of a hundredth; 4 of them.
    np.testing.assert_allclose(stations.var(0), np.diag(covariance), rtol=0.04)


def test_the_tweedie_covariance_samples_the_posterior_of_a_field():
    """The 32-point field of arXiv 2506.22780's setting: averages and sensors, 1500 samples against the closed form."""
    k = np.fft.fftfreq(32, 1 / 32)
    law = GaussianField((32, 1), PowerLaw(exponent=4.0, knee=3.0))
    spectrum = (1 + (k / 3) ** 2) ** -2
    np.testing.assert_allclose(law.spectrum[:, 0], spectrum / spectrum.mean(), rtol=1e-6)
    parts = [
        LinearMeasurement.averages(law.event, (4, 1), values=0.0, std=0.1),
        LinearMeasurement.points(law.event, [[2, 0], [9, 0], [17, 0], [27, 0]], values=0.0, std=0.05),
    ]
    truth = law.sample(jax.random.key(4), 1)[0]
    measurement = LinearMeasurement.stacked(parts).observing(jax.random.key(5), truth)
    posterior = models.exact_posterior(law, measurement)
    process, n = processes.Gaussian(schedule=schedules.EDM()), 1500
    model = models.TweedieCovariance(model=models.ExactModel(law, process), measurement=measurement)
    out = sampling.sample(model, solver=solvers.Heun(), grid=grids.Karras(40), key=jax.random.key(6), shape=(n, *law.event))
    x = np.asarray(out.x, np.float64)
    # Four standard errors of the mean of every point, and of its variance, of which 40 steps of Heun add up to 3 %.
    assert np.all(np.abs(x.mean(0) - posterior.mean) < 4 * np.sqrt(posterior.variance / n) + 0.01 * np.sqrt(posterior.variance))
    assert np.all(np.abs(x.var(0) / posterior.variance - 1) < 4 * np.sqrt(2 / n) + 0.03)
    # Truth and draws of the posterior are exchangeable: their distances under its own covariance have one law, chi-square.
    exact = np.asarray(posterior.sample(jax.random.key(7), n), np.float64)
    covariance = np.asarray(posterior.covariance(), np.float64)
    # The same 3 % of 32, and half of that for directions of little variance, of which Heun's steps leave more.
    for draws, slack in ((exact, 0.0), (x, 1.5)):
        centred = (draws - np.asarray(posterior.mean)).reshape(n, -1)
        square = np.sum(centred * np.linalg.solve(covariance, centred.T).T, 1)
        assert abs(square.mean() - 32) < 4 * np.sqrt(64 / n) + slack


def test_exact_draws_are_calibrated_for_a_mixture_of_fields():
    """Truths of the law, posterior draws: ratio 1, flat ranks, and the power of the law, within their errors."""
    law, cases, members = densities.regimes(8), 60, 7
    truths = law.sample(jax.random.key(0), cases)
    blank = LinearMeasurement.averages(law.event, (4, 4, 1), values=0.0, std=0.1)
    draw = jax.jit(lambda p, key: p.sample(key, members))
    keys = jax.random.split(jax.random.key(1), cases)
    x = np.stack([
        draw(models.exact_posterior(law, blank.observing(key, truth)), jax.random.fold_in(key, 1))
        for key, truth in zip(keys, truths, strict=True)
    ], 1)  # fmt: skip
    ratio = metrics.spread_skill(x, truths)
    assert abs(ratio.value - 1) < 4 * ratio.stderr
    assert metrics.rank_test(jax.random.key(2), x, truths, bins=4).p_value > 1e-3
    # A member and the truth differ by twice the posterior variance: the fair CRPS is that of exchangeable members.
    half = np.mean(np.abs(x[0] - x[1]), (1, 2, 3)) / 2
    crps = metrics.crps(x, truths)
    assert abs(crps.value - half.mean()) < 4 * np.hypot(crps.stderr, half.std() / np.sqrt(cases))
    means = [metrics.power_spectrum(np.asarray(mean)[None]).power for mean in law.components.mean]
    power = sum(
        w * (metrics.shell_average(s) + m) for w, s, m in zip(np.asarray(law.weights), law.components.spectrum, means, strict=True)
    )
    found = metrics.power_spectrum(x[0])
    assert np.max(np.abs(found.power - power) / found.stderr) < 4.5


# Log-normal fields -----------------------------------------------------------------------------------------------


def test_a_log_gaussian_field_is_exact_in_data_space_and_under_geometric_brownian_motion():
    logs = GaussianField((4, 4, 1), Matern(length=1.5), mean=0.2, variance=0.3)
    law = densities.LogNormalMixture.of(logs)
    dense_law = densities.LogNormalMixture.of(densities.GaussianMixture.of([1.0], [logs.matched()]))
    x = np.asarray(law.sample(jax.random.key(0), 5))
    process = processes.GeometricBrownianMotion(sigma=1.0)
    y = np.log(x)
    for a, b in ((law, dense_law), (law.noised(process, 0.5), dense_law.noised(process, 0.5))):
        np.testing.assert_allclose(a.log_prob(x), b.log_prob(x), rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(a.score(x), b.score(x), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(law.denoise(process, y, 0.5), dense_law.denoise(process, y, 0.5), rtol=1e-4, atol=1e-4)
    # E exp(y) = exp(mu + v / 2), and a standard error of its own.
    draws = np.asarray(law.sample(jax.random.key(1), 20_000), np.float64).mean((1, 2, 3))
    assert abs(draws.mean() - np.exp(0.35)) < 4 * draws.std() / np.sqrt(20_000)
    assert models.ExactModel(law, process)(jnp.asarray(y), 0.5).denoised.shape == x.shape
    with pytest.raises(TypeError, match=r"LogNormalMixture: expected"):
        models.exact_posterior(law, LinearMeasurement.points((4, 4, 1), [[0, 0, 0]], values=0.0, std=1.0))
    with pytest.raises(TypeError, match=r"of\.logs"):
        densities.LogNormalMixture.of(densities.Rings())


# Measurements ------------------------------------------------------------------------------------------------------


def test_averages_and_points_are_those_of_the_array():
    x = np.random.default_rng(0).normal(size=(3, 4, 6, 2)).astype(np.float32)
    coarse = LinearMeasurement.averages((4, 6, 2), (2, 3, 1), values=0.0, std=0.1)
    blocks = x.reshape(3, 2, 2, 2, 3, 2).mean((2, 4))
    np.testing.assert_allclose(-coarse.residual(x), blocks.reshape(3, -1), atol=1e-6)
    places = np.array([[0, 0, 0], [3, 5, 1], [2, 1, 0]])
    stations = LinearMeasurement.points((4, 6, 2), places, values=[1.0, 2.0, 3.0], std=0.1)
    np.testing.assert_allclose(np.array([1.0, 2.0, 3.0]) - stations.residual(x), x[(slice(None), *places.T)], atol=1e-6)
    many = jax.vmap(lambda key: coarse.observing(key, x[0]).values)(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(many.mean(0), blocks[0].ravel(), atol=5 * 0.1 / np.sqrt(4000))
    # The deviation of 4000 normal numbers has a relative standard error of 1 / sqrt(8000).
    np.testing.assert_allclose(many.std(0), 0.1, rtol=5 / np.sqrt(8000))


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GaussianField((8,), PowerLaw(exponent=2.0, knee=1.0)), r"shape = \(8,\): expected \(\*grid, channels\)"),
        (lambda: GaussianField(16, 1.0), r"GaussianField\.shape = 16: expected \(\*grid, channels\).*such as \(16, 1\)"),
        (
            lambda: GaussianField((4, 1), 1.0).sample(jax.random.key(0), -1),
            r"GaussianField\.sample\.n = -1: expected an integer >= 0",
        ),
        (
            lambda: GaussianField((4, 1), 1.0).given(np.ones((1, 4)), [1.0], [1.0]).sample(jax.random.key(0), 1.5),
            r"sample\.n = 1\.5",
        ),
        (lambda: GaussianField((8, 0), PowerLaw(exponent=2.0, knee=1.0)), "shape = 0"),
        (lambda: GaussianField((4, 1), np.array([1.0, 2.0, 3.0, 4.0])[:, None]), "differs between the modes k and -k"),
        (lambda: GaussianField((4, 1), -1.0), "below 0"),
        (lambda: GaussianField((4, 1), 1.0, variance=-1.0), "below 0"),
        (lambda: GaussianField((4, 1), np.nan), "GaussianField.spectrum has 1 values that are not finite"),
        (lambda: GaussianField((4, 1), np.ones(3)), r"spectrum has shape \(3,\): expected one that broadcasts to \(4, 1\)"),
        (lambda: GaussianField((4, 1), 1.0, mean=np.ones((3, 1))), "mean has shape"),
        (lambda: GaussianField((4, 1), 1.0).log_prob(np.ones((2, 5, 1))), r"expected \(batch, 4, 1\)"),
        (lambda: GaussianField((4, 1), 1.0).score(np.ones((2, 5, 1))), r"expected \(batch, 4, 1\)"),
        (lambda: GaussianField((4, 1), 1.0).given(np.ones((1, 3)), [1.0], [1.0]), "given got a matrix"),
        (lambda: GaussianField((4, 1), 1.0).given(np.ones((1, 4)), [1.0], [0.0]), "noise above 0"),
        (lambda: PowerLaw(exponent=-1.0, knee=1.0), "PowerLaw.exponent = -1.0"),
        (lambda: PowerLaw(exponent=1.0, knee=1.0, cutoff=0.0), "PowerLaw.cutoff = 0.0"),
        (lambda: Matern(length=0.0), "Matern.length"),
        (lambda: Mixture([1.0, -1.0], [GaussianField((4, 1), 1.0)] * 2), "Mixture.weights"),
        (lambda: Mixture([1.0, 1.0], [GaussianField((4, 1), 1.0), GaussianField((6, 1), 1.0)]), "events"),
        (lambda: densities.regimes(6), "regimes.side = 6"),
        (lambda: LinearMeasurement.averages((4, 4, 1), (3, 4, 1), values=0.0, std=1.0), r"averages.block = \(3, 4, 1\)"),
        (lambda: LinearMeasurement.averages((4, 4, 1), (2, 2), values=0.0, std=1.0), "a divisor for every axis"),
        (lambda: LinearMeasurement.averages((4, 1), (2, 1), values=np.ones(3), std=1.0), r"values has shape \(3,\)"),
        (lambda: LinearMeasurement.points((4, 4, 1), [[0, 0]], values=0.0, std=1.0), "an index for every axis"),
        (lambda: LinearMeasurement.points((4, 1), [[-1, 0]], values=0.0, std=1.0), r"places has \[-1, 0\]"),
        (lambda: LinearMeasurement.points((4, 1), [[4, 0]], values=0.0, std=1.0), r"places has \[4, 0\]"),
    ],
)
def test_what_is_refused_says_what_is_accepted(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_mixtures_hold_laws_of_one_kind():
    one = GaussianField((4, 1), 1.0)
    with pytest.raises(TypeError, match="ConditionedField, GaussianField: expected one"):
        Mixture([1.0, 1.0], [one, one.given(np.ones((1, 4)), [1.0], [1.0])])
    with pytest.raises(TypeError, match=r"GaussianField\.given"):
        densities.ConditionedField()
