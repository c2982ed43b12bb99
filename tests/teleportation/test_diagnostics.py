"""Explained variance, and paths from noise to data, beside closed forms written once more in NumPy."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import Samples, densities, diagnostics, grids, models, sample, solvers

from .targets import EDM, FLOW, LOG, VP, covariance, spectrum

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(7)
PROCESSES = [EDM, VP, FLOW, LOG]
MEAN, BASIS, VARIANCES = spectrum(5, high=4.0, low=1e-2, seed=3)
COV = covariance(BASIS, VARIANCES)
LAW = densities.Gaussian(MEAN, COV)
SIGMAS = (0.1, 0.5, 1.8)

OTHER_MEAN, OTHER_COV = MEAN + 0.3, 0.5 * COV + 0.2 * np.eye(5)
OTHER = densities.Gaussian(OTHER_MEAN, OTHER_COV)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


# Explained variance ---------------------------------------------------------------------------------------------------


def clean(n, seed=0):
    return MEAN + np.random.default_rng(seed).normal(size=(n, 5)) @ covariance(BASIS, np.sqrt(VARIANCES))


def affine(mean, cov, sigma, of):
    """The exact prediction of a Gaussian, ``matrix @ z + vector`` with ``z = (y - b) / alpha - MEAN``: free of the process."""
    gain = (sigma * np.eye(5) if of == "score" else cov) @ np.linalg.inv(cov + sigma**2 * np.eye(5))
    return gain, gain @ (MEAN - mean) + (0 if of == "score" else mean)


def expected_ratio_of_means(sigma, of, n):
    """The limit for many points of LAW as the model and OTHER as the law, and the standard error of n points.

    With z ~ N(0, C + sigma^2) both means are of squares |Az + a|^2, so tr(A S A') + |a|^2; the error is that of a quotient,
    from the variance 2 tr((QS)^2) + l'Sl of the quadratic form z'Qz + l'z.
    """
    (a, u), (b, v) = affine(MEAN, COV, sigma, of), affine(OTHER_MEAN, OTHER_COV, sigma, of)
    s = COV + sigma**2 * np.eye(5)
    error, size = (np.trace(m @ s @ m.T) + w @ w for m, w in ((a - b, u - v), (a, u)))
    share = error / size
    q = (a - b).T @ (a - b) - share * a.T @ a
    line = 2 * ((a - b).T @ (u - v) - share * a.T @ u)
    return 1 - share, np.sqrt((2 * np.trace(q @ s @ q @ s) + line @ s @ line) / n) / size


# What is compared is free of the process: each is asked once, the other combinations in the long tail.
ASKED = {(EDM, "score"), (EDM, "denoised"), (VP, "score"), (FLOW, "denoised"), (LOG, "score")}


@pytest.mark.parametrize(
    ("process", "of"),
    [
        pytest.param(process, of, marks=() if (process, of) in ASKED else pytest.mark.long)
        for process in PROCESSES
        for of in ("score", "denoised")
    ],
    ids=repr,
)
def test_one_gaussian_beside_another_on_every_process(process, of):
    n = 4000
    data = process.decode(clean(n))
    laws = {"same": LAW, "other": OTHER}
    found = diagnostics.explained_variance(models.ExactModel(LAW, process), laws, data, SIGMAS, of=of, key=KEY, batch=1500)
    for k, sigma in enumerate(SIGMAS):
        exact, deviation = expected_ratio_of_means(sigma, of, n)
        assert abs(found["other"].ratio_of_means[k] - exact) < 4 * deviation
        assert deviation < 0.1 * (1 - exact)  # the comparison above says something
    np.testing.assert_array_equal(found["other"].sigmas, SIGMAS)
    # What float32 rounding leaves of a difference of the same numbers, squared.
    for value in (found["same"].mean_of_ratios, found["same"].ratio_of_means):
        np.testing.assert_allclose(value, 1, rtol=0, atol=1e-10)


def test_the_same_score_by_other_means_is_explained_to_rounding():
    def score(y, t, cond):
        return -jnp.linalg.solve(jnp.asarray(COV, y.dtype) + t**2 * jnp.eye(5), (y - jnp.asarray(MEAN, y.dtype)).T).T

    model = models.FunctionModel(score, EDM, returns="score")
    found = diagnostics.explained_variance(model, LAW, clean(200), (0.1, 2.0, 80.0))
    # float32 and condition numbers up to (4 + 0.01) / (0.01 + 0.01) = 200.
    np.testing.assert_allclose(found.mean_of_ratios, 1, rtol=0, atol=(200 * 1e-6) ** 2)


def test_the_mean_of_ratios_is_an_average_over_angles():
    # In two dimensions without means both norms scale with |z|, so the ratio depends on the angle of z, which is uniform.
    n, model_variances, law_variances = 4000, np.array([2.0, 0.1]), np.array([1.0, 0.4])
    data = np.random.default_rng(1).normal(size=(n, 2)) * np.sqrt(model_variances)
    model = models.ExactModel(densities.Gaussian(np.zeros(2), model_variances), EDM)
    found = diagnostics.explained_variance(model, densities.Gaussian(np.zeros(2), law_variances), data, (0.3, 1.0), batch=n)
    angle = np.linspace(0, 2 * np.pi, 2000, endpoint=False)
    for k, sigma in enumerate(found.sigmas):
        noised = np.sqrt(model_variances + sigma**2)[:, None] * np.array([np.cos(angle), np.sin(angle)])
        said, explained = (noised / (v + sigma**2)[:, None] for v in (model_variances, law_variances))
        share = 1 - np.sum((said - explained) ** 2, axis=0) / np.sum(said**2, axis=0)
        assert abs(found.mean_of_ratios[k] - share.mean()) < 4 * share.std() / np.sqrt(n)
        # The standard error of a standard deviation is below 2 % here.
        np.testing.assert_allclose(found.standard_error[k], share.std() / np.sqrt(n), rtol=0.08)


def test_a_law_in_data_space_is_taken_into_the_chart():
    laws = {"logs": OTHER, "points": densities.LogNormalMixture([1.0], [OTHER_MEAN], [OTHER_COV])}
    found = diagnostics.explained_variance(models.ExactModel(LAW, LOG), laws, np.exp(clean(20)), SIGMAS)
    np.testing.assert_allclose(found["points"].mean_of_ratios, found["logs"].mean_of_ratios, rtol=1e-4)


def test_noise_depends_on_key_point_and_level_only():
    model, data = models.ExactModel(LAW, EDM), clean(50)
    whole = diagnostics.explained_variance(model, OTHER, data, SIGMAS, key=KEY)
    parts = diagnostics.explained_variance(model, OTHER, data, (*SIGMAS, 5.0), key=KEY, batch=7)
    again = diagnostics.explained_variance(model, OTHER, data, SIGMAS)
    np.testing.assert_allclose(parts.mean_of_ratios[:3], whole.mean_of_ratios, rtol=1e-4)
    assert np.all(np.abs(again.mean_of_ratios - whole.mean_of_ratios) > 1e-4)


def test_the_model_is_called_once_per_block_and_compiled_once():
    calls = []

    def denoised(y, t, cond):
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * y

    model = models.FunctionModel(denoised, EDM)
    progress = []
    diagnostics.explained_variance(
        model, {"a": LAW, "b": OTHER, "c": densities.Empirical(clean(9))}, clean(10), SIGMAS, batch=4,
        progress=lambda *done: progress.append(done),
    )  # fmt: skip
    jax.effects_barrier()
    assert len(calls) == 3 * len(SIGMAS)
    assert progress == [(4, 10), (8, 10), (10, 10)]
    # The function has the name of its module.
    module = importlib.import_module("scorelab.diagnostics.explained_variance")
    before = module._predict._cache_size(), module._squared_error._cache_size()
    diagnostics.explained_variance(model, LAW.affine(1.5, 0.1), clean(10), (0.05, 70.0), batch=4)
    assert (module._predict._cache_size(), module._squared_error._cache_size()) == before


def test_every_point_has_its_condition():
    # A model that repeats its condition c, beside a law that is a point m: 1 - |c - m|^2 / |c|^2, whatever the noise.
    said = np.random.default_rng(2).normal(size=(10, 5)).astype(np.float32)
    model = models.FunctionModel(_repeat, EDM)
    point = densities.Gaussian(MEAN, 0.0)
    found = diagnostics.explained_variance(model, point, clean(10), (0.5, 3.0), of="denoised", cond=said, batch=4)
    share = 1 - np.sum((said - MEAN) ** 2, axis=1) / np.sum(said**2, axis=1)
    ratio = 1 - np.sum((said - MEAN) ** 2) / np.sum(said**2)
    np.testing.assert_allclose(found.mean_of_ratios, share.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, share.std(ddof=1) / np.sqrt(10), rtol=1e-5)
    np.testing.assert_allclose(found.ratio_of_means, ratio, rtol=1e-5)


def _repeat(y, t, cond):
    return cond


# Paths ------------------------------------------------------------------------------------------------------------------


def flow(process, y, s, t):
    """The closed form in NumPy: mean and gain of every direction at both times."""
    (begin, before), (end, after) = ((kernel_mean(process, u), kernel_variances(process, u)) for u in (s, t))
    return end + (y - begin) @ covariance(BASIS, np.sqrt(after / before))


def kernel_mean(process, t):
    return float(process.alpha(t)) * MEAN + float(process.offset(t))


def kernel_variances(process, t):
    return float(process.alpha(t)) ** 2 * VARIANCES + float(process.sigma(t)) ** 2


def walked(process, times, n=8):
    """Samples that follow the closed form at the given times."""
    begin = float(process.sigma(times[0])) * np.random.default_rng(4).normal(size=(n, 5))
    states = np.stack([flow(process, begin, times[0], t) for t in times])
    path = process.decode(jnp.asarray(states))
    none = jnp.zeros(n)
    return states, Samples(
        x=path[-1], log_weights=none, log_z=none, diagnostics={}, trajectory=path, times=np.asarray(times), process=process
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("process", "grid"), [pytest.param(EDM, grids.Karras, marks=pytest.mark.long), (LOG, grids.LogSNR)], ids=["EDM", "LOG"]
)
def test_on_a_gaussian_the_trajectory_error_is_that_of_the_solver(process, grid):
    law, ends = densities.Gaussian(MEAN, COV), []
    for steps in (24, 48):
        out = sample(models.ExactModel(law, process), solver=solvers.Heun(), grid=grid(steps), key=KEY, shape=(8, 5), keep="all")
        found = diagnostics.trajectory_error(out, law)
        y = np.asarray(process.encode(out.trajectory))
        exact = np.stack([flow(process, y[0], out.times[0], t) for t in out.times])
        means = np.stack([kernel_mean(process, t) for t in out.times])[:, None]
        error = np.sum((y - exact) ** 2, (1, 2)) / np.sum((y - means) ** 2, (1, 2))
        np.testing.assert_allclose(found, error, rtol=1e-8, atol=1e-24)
        assert found[0] == 0
        ends.append(found[-1])
    # A squared error of order 2 falls by 2^4.
    assert 10 < ends[0] / ends[1] < 25


def test_on_a_mixture_the_error_grows_as_the_noise_falls():
    mixture = densities.GaussianMixture([1.0, 1.0], [[-1.0, 0.0], [1.0, 0.0]], [0.01, 0.01])
    law = densities.Gaussian(np.zeros(2), np.array([1.01, 0.01]))
    model, grid = models.ExactModel(mixture, EDM), grids.Karras(24)
    out = sample(model, solver=solvers.Heun(), grid=grid, key=KEY, shape=(64, 2), keep="all")
    error = diagnostics.trajectory_error(out, law)
    visible = out.times > 0.1  # below it the modes are alone, and nothing changes
    assert np.all(np.diff(error[visible]) > 0)
    # The first moment in which the two laws differ is the fourth: a relative (1 / sigma)^4 in the score, squared.
    assert error[out.times > 6].max() < 6.0**-8
    assert error[-1] > 1e-2


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("process", "times"), [(EDM, (80.0, 3.0, 0.0)), (FLOW, (1.0, 0.5, 0.02)), (LOG, (1.0, 0.3, 0.0))], ids=["EDM", "FLOW", "LOG"]
)
def test_denoised_along_a_path(process, times):
    states, out = walked(process, times)
    law = densities.Gaussian(MEAN, COV)
    found = diagnostics.denoised_along(models.ExactModel(law, process), out, batch=3)
    for k, t in enumerate(times):
        gain = float(process.alpha(t)) * VARIANCES / kernel_variances(process, t)
        exact = MEAN + (states[k] - kernel_mean(process, t)) @ covariance(BASIS, gain)
        np.testing.assert_allclose(found[k], states[k] if process.sigma(t) == 0 else exact, atol=1e-10)


def test_denoised_along_a_path_under_conditions():
    said = np.random.default_rng(2).normal(size=(8, 5)).astype(np.float32)
    states, out = walked(EDM, (80.0, 3.0, 0.0))
    found = diagnostics.denoised_along(models.FunctionModel(_repeat, EDM), out, said, batch=3)
    np.testing.assert_array_equal(found[:2], np.stack([said, said]))
    np.testing.assert_allclose(found[2], states[2], rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("process", "grid"), [(EDM, grids.Karras(60)), (VP, grids.LogSNR(60)), (LOG, grids.LogSNR(60))], ids=["EDM", "VP", "LOG"]
)
def test_features_emerge_at_sqrt_3_lambda(process, grid):
    # Variances in increasing order, as eigh gives them, the first of a null direction after rounding.
    variances = VARIANCES[:4]
    law = densities.Gaussian.low_rank(MEAN, BASIS[:, ::-1], np.append(1e-17, variances[::-1]))
    _, out = walked(process, grid.times(process))
    denoised = diagnostics.denoised_along(models.ExactModel(densities.Gaussian(MEAN, COV), process), out)
    found = diagnostics.feature_emergence(denoised, out.times, law, process)
    assert found.curve.shape == (61, 4)
    np.testing.assert_allclose(found.predicted, np.sqrt(3 * variances), rtol=1e-9)
    with np.errstate(over="ignore"):
        ratio = np.asarray(process.noise_ratio(out.times))[:, None]
    np.testing.assert_allclose(found.curve, np.sqrt(variances / (variances + ratio**2)), atol=1e-7)
    # In u = log sigma the curve has slope 3/8 and curvature below 0.2 at one half; nodes are at most 0.25 apart there, so that
    # the interpolation is off by at most 0.25^2 / 8 * 0.2 / (3/8) = 4e-3.
    reached = found.predicted < ratio[0]
    np.testing.assert_allclose(found.sigma_half[reached], found.predicted[reached], rtol=4e-3)
    assert np.all(np.isnan(found.sigma_half[~reached]))
    assert reached.sum() >= 3
    slope = np.polyfit(np.log(found.predicted[reached]), np.log(found.sigma_half[reached]), 1)[0]
    assert slope == pytest.approx(1, abs=2e-3)
    two = diagnostics.feature_emergence(denoised, out.times, law, process, features=2)
    np.testing.assert_array_equal(two.sigma_half, found.sigma_half[:2])


def test_a_feature_below_the_last_noise_level_has_no_half():
    # One half at 0.17, between 0.5 and clean data, where the logarithm of the noise ratio cannot be interpolated.
    denoised = np.array([0.01, 0.3, 1.0]).reshape(3, 1, 1)
    found = diagnostics.feature_emergence(denoised, (5.0, 0.5, 0.0), densities.Gaussian(np.zeros(1), np.array([0.01])), EDM)
    assert np.isnan(found.sigma_half[0])
    np.testing.assert_allclose(found.curve[:, 0], denoised.ravel())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("process", "t", "grid"),
    [
        (EDM, 2.0, grids.Karras(64, t_max=2.0)),
        pytest.param(VP, 0.5, grids.LogSNR(64, t_max=0.5), marks=pytest.mark.long),
        (LOG, 0.4, grids.LogSNR(64, t_max=0.4)),
    ],
    ids=["EDM", "VP", "LOG"],
)
def test_sensitivity_is_the_gain_of_the_flow(process, t, grid):
    law = densities.Gaussian(MEAN, COV)
    y = np.random.default_rng(5).normal(size=(5, 5))
    directions = BASIS.T  # state k is pushed along direction k
    options = dict(t=t, size=0.3, solver=solvers.Heun(), grid=grid, key=KEY)
    model = models.ExactModel(law, process)
    found = np.asarray(diagnostics.perturbation_sensitivity(model, y, directions, **options))
    gain = np.sqrt(VARIANCES / kernel_variances(process, t))
    # The flow is linear, so that only the error of 64 steps of order 2 is left.
    np.testing.assert_allclose(found, gain[:, None] * directions, atol=2e-3 * gain.max())
    one = diagnostics.perturbation_sensitivity(model, y, directions[1], **options)
    np.testing.assert_allclose(one, np.tile(found[1], (5, 1)), atol=1e-9)


def test_planarity_of_a_rotation_and_of_what_leaves_it():
    rng = np.random.default_rng(6)
    frame = np.linalg.qr(rng.normal(size=(6, 3)))[0].T
    angle = np.linspace(0, 1.2, 7)[:, None, None] * np.ones((1, 4, 1))
    flat = 3 * np.cos(angle) * frame[0] + 2 * np.sin(angle) * frame[1]
    # Scaling every state, as from the variance-exploding to the variance-preserving form, changes nothing.
    scaled = flat * np.geomspace(80, 1, 7)[:, None, None]
    for path in (flat, scaled, scaled.reshape(7, 4, 2, 3, 1)):
        np.testing.assert_allclose(diagnostics.planarity(path), 1, rtol=1e-12)
    height = np.array([0.0, 0.2, 0.5, 1.0, 2.0, 0.1, 0.0])[:, None] * np.ones(4)
    square = np.sum(flat**2, axis=2)
    found = diagnostics.planarity(flat + height[..., None] * frame[2])
    np.testing.assert_allclose(found, square / (square + height**2), rtol=1e-12)


def test_planarity_with_ends_in_one_direction():
    first = np.random.default_rng(8).normal(size=(1, 5)).astype(np.float32)
    across = np.linalg.svd(first.astype(np.float64))[2][1:2]
    path = np.stack([first, 4 * first + 3 * np.linalg.norm(first) * across, np.zeros((1, 5)), (0.1 * first).astype(np.float32)])
    # The second state is 4 along the line and 3 across it; the rounding of the last one adds no direction.
    np.testing.assert_allclose(diagnostics.planarity(path)[:, 0], [1, 16 / 25, 1, 1], rtol=1e-6)


# What is refused --------------------------------------------------------------------------------------------------------


EXACT = models.ExactModel(LAW, EDM)
FOUR = np.exp(clean(4))  # positive, for the log chart


def _variance(data=FOUR, sigmas=SIGMAS, law=LAW, process=EDM, **options):
    return diagnostics.explained_variance(models.ExactModel(LAW, process), law, data, sigmas, **options)


def _push(direction=BASIS[0], **options):
    options = dict(t=2.0, size=0.1, solver=solvers.Heun(), grid=grids.Karras(4, t_max=2.0), key=KEY) | options
    return diagnostics.perturbation_sensitivity(models.ExactModel(LAW, EDM), clean(4), direction, **options)


def _emergence(shape=(3, 2, 5), law=LAW, times=(5.0, 1.0, 0.0), **options):
    return diagnostics.feature_emergence(np.zeros(shape), times, law, EDM, **options)


def _without_trajectory():
    return sample(models.ExactModel(LAW, EDM), solver=solvers.DDIM(), grid=grids.Karras(2), key=KEY, shape=(2, 5))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: _variance(sigmas=(1.0, -2.0)), "sigmas has the value -2: expected noise ratios from 0.002 to 80"),
        (lambda: _variance(sigmas=(1.0, 0.0)), "sigmas has the value 0"),
        (lambda: _variance(sigmas=(100.0,)), "sigmas has the value 100: expected noise ratios from 0.002 to 80"),
        (lambda: _variance(sigmas=(1e-3,), process=VP), "sigmas has the value 0.001"),
        (lambda: _variance(sigmas=(2.1,), process=LOG), "expected noise ratios from .* to 2, those of"),
        (lambda: _variance(sigmas=(np.inf,), process=FLOW), "sigmas has the value inf"),
        (lambda: _variance(sigmas=1.0), r"sigmas has shape \(\): expected \(k,\)"),
        (lambda: _variance(data=np.zeros((4, 3))), r"data has shape \(4, 3\): expected \(n, \*\(5,\)\), as law has"),
        (lambda: _variance(law={"a": LAW, "b": densities.Gaussian(np.zeros(3), 1.0)}), r"expected \(n, \*\(3,\)\), as b has"),
        (lambda: _variance(law={}), "has no laws: expected at least one"),
        (lambda: _variance(data=np.zeros((0, 5))), r"data has shape \(0, 5\): expected at least one point"),
        (lambda: _variance(of="noise"), "of = 'noise': expected 'score' or 'denoised'"),
        (lambda: _variance(batch=0), "batch = 0: expected a positive integer"),
        (lambda: _variance(cond=np.zeros(3)), r"cond has a leaf of shape \(3,\): expected a leading axis of 4"),
        (lambda: diagnostics.trajectory_error(_without_trajectory(), LAW), "no trajectory: expected samples .* keep='all'"),
        (lambda: diagnostics.denoised_along(EXACT, _without_trajectory()), "no trajectory"),
        (
            lambda: diagnostics.trajectory_error(walked(EDM, (2.0, 1.0))[1], densities.Gaussian(np.zeros(3), 1.0)),
            r"points of shape \(5,\): expected \(3,\)",
        ),
        (lambda: _push(direction=np.zeros(3)), r"direction has shape \(3,\): expected \(5,\) or \(4, 5\)"),
        (lambda: _push(t=3.0), "grid begins at 2: expected t = 3"),
        (lambda: _push(size=0.0), "size = 0.0: expected a finite number above 0"),
        (lambda: _emergence(shape=(2, 2, 5)), r"denoised has shape \(2, 2, 5\): expected \(3, n, \*\(5,\)\)"),
        (lambda: _emergence(times=(2.0, 1.0, -1.0)), "feature_emergence.times = -1"),
        (lambda: _emergence(features=0), "features = 0: expected an integer >= 1"),
        (lambda: _emergence(law=densities.Gaussian(MEAN, 1.0)), "no direction with a variance"),
        (lambda: _variance(data=np.full((4, 5), np.nan)), "explained_variance.data has 20 values that are not finite"),
        (lambda: diagnostics.planarity(np.full((3, 2, 5), np.nan)), "planarity.trajectory has 30 values that are not finite"),
        (lambda: diagnostics.denoised_along(EXACT, walked(VP, (0.8, 0.5))[1]), "expected the same process"),
        (lambda: diagnostics.planarity(np.zeros((4, 2))), r"trajectory has shape \(4, 2\)"),
    ],
)
def test_what_does_not_fit_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: _variance(law="gaussian"), "explained_variance.law = 'gaussian': expected a Density"),
        (lambda: diagnostics.explained_variance(lambda y, t, cond: y, LAW, clean(4), SIGMAS), "expected a model, which knows its"),
        (
            lambda: diagnostics.explained_variance(
                models.FunctionModel(lambda y, t, cond: y, EDM, returns="prediction"), LAW, clean(4), SIGMAS
            ),
            "expected a prediction",
        ),
        (
            lambda: diagnostics.trajectory_error(walked(EDM, (2.0, 1.0))[1], densities.GaussianMixture.of([1.0], [LAW])),
            "expected a Gaussian",
        ),
        (lambda: _emergence(law=densities.Empirical(clean(4))), "expected a Gaussian"),
    ],
)
def test_what_is_of_another_kind_is_named(make, match):
    with pytest.raises(TypeError, match=match):
        make()
