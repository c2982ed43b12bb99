"""The dimension of data, read off exact scores: closed forms on linear manifolds and spheres, and where each estimator is wrong."""

from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ive

from scorelab import data, densities, experiment, models, processes, schedules
from scorelab.diagnostics import FlowJacobian, NoiseSlope, ScoreSVD, SymmetricJacobian, intrinsic_dimension
from tests.precision import double

pytestmark = pytest.mark.usefixtures("quick_compilation")

VE = processes.Gaussian(schedule=schedules.VE(sigma_min=0.001, sigma_max=100.0))
VP = processes.Gaussian(schedule=schedules.VPLinear())
LOG = processes.GeometricBrownianMotion(sigma=2.0, mu=0.5)
GAUSSIAN = {"VE": VE, "VP": VP}
METHODS = ("symmetric", "svd", "flow", "slope")
KEY = jax.random.key(3)
# Float64 through products of 64 numbers rounds by 1e-14; this is what closed forms are asked for.
CLOSED = 1e-8


def linear(variances, size, seed=0):
    """A linear manifold: law, points ``(n, size)``, and their coordinates on it. One program for all dimensions of a size."""
    rng = np.random.default_rng(seed)
    basis, mean = np.linalg.qr(rng.normal(size=(size, size)))[0], rng.normal(size=size)
    full = np.zeros(size)
    full[: len(variances)] = variances
    z = rng.normal(size=(4, size)) * np.sqrt(full)
    return densities.Gaussian.low_rank(mean, basis, full), mean + z @ basis.T, z


def shares(variances, size, sigma):
    """The eigenvalues of H, decreasing."""
    across = np.ones(size - len(variances))
    return np.sort(np.concatenate([across, sigma**2 / (np.asarray(variances) + sigma**2)]))[::-1]


# Linear manifolds ----------------------------------------------------------------------------------------------------------

SPECTRA = {
    "flat": lambda k: np.ones(k),
    "geometric": lambda k: np.geomspace(4.0, 0.04, k),
    "one large": lambda k: np.where(np.arange(k) == 0, 1e4, 0.3),
}


@pytest.mark.parametrize("process", GAUSSIAN.values(), ids=GAUSSIAN)
@double
def test_linear_manifolds_have_their_closed_forms(process):
    sigmas = np.array([0.02, 0.1])
    for k in (2, 8, 32):
        for kind, variances in SPECTRA.items():
            variances = variances(k)
            law, x, z = linear(variances, 64)
            model = models.ExactModel(law, process)
            exact = np.stack([shares(variances, 64, sigma) for sigma in sigmas])[:, None]
            for method in ("symmetric", "svd"):
                found = intrinsic_dimension(model, x, sigmas, method=method)
                np.testing.assert_allclose(
                    found.spectrum, np.broadcast_to(exact, (2, 4, 64)), atol=CLOSED, rtol=CLOSED, err_msg=kind
                )
                assert np.all(found.dimension == k)
                assert np.all(found.clear)
                np.testing.assert_allclose(found.gap, np.broadcast_to(1 - exact[..., 64 - k], (2, 4)), atol=CLOSED)
            found, r2, v = intrinsic_dimension(model, x, sigmas, method="slope"), sigmas[:, None, None] ** 2, variances
            slope = np.sum(v / (v + r2) + r2 * z[:, :k] ** 2 / (v + r2) ** 2, axis=-1)
            np.testing.assert_allclose(found.dimension, slope, atol=CLOSED)
            assert found.spectrum is None


@pytest.mark.parametrize("process", GAUSSIAN.values(), ids=GAUSSIAN)
@double
def test_the_flow_has_its_closed_form(process):
    variances, sigmas = np.array([4.0, 1.0, 0.04]), np.array([0.02, 0.1])
    law, x, _ = linear(variances, 6)
    # Out to the scale of the data, and far beyond.
    for end in (2.0, 80.0):
        # The rule has order 4: 64 steps to 80 are off by 1e-5, and 1024 by 65536 times less.
        found = intrinsic_dimension(models.ExactModel(law, process), x, sigmas, method=FlowJacobian(sigma_max=end, steps=1024))
        s = sigmas[:, None]
        exact = np.concatenate([np.sqrt((variances + s**2) / (variances + end**2)), np.repeat(s / end, 3, axis=1)], axis=1)
        exact = np.sort(exact, axis=1)[:, None, ::-1]
        np.testing.assert_allclose(found.spectrum, np.broadcast_to(exact, (2, 4, 6)), rtol=CLOSED)
        assert np.all(found.dimension == 3)


@double
def test_the_rule_of_the_flow_has_order_four():
    law, x, _ = linear([1.0, 0.1], 4)
    model, errors = models.ExactModel(law, VP), []
    for steps in (16, 32):
        found = intrinsic_dimension(model, x, 0.1, method=FlowJacobian(sigma_max=10.0, steps=steps)).spectrum[0, 0]
        exact = np.sort(np.concatenate([np.sqrt((np.array([1.0, 0.1]) + 0.01) / (np.array([1.0, 0.1]) + 100)), [0.01, 0.01]]))[::-1]
        errors.append(np.abs(found / exact - 1).max())
    # Sixteen times less, but for the next order.
    assert 12 < errors[0] / errors[1] < 24


@pytest.mark.parametrize("process", [*GAUSSIAN.values(), LOG], ids=[*GAUSSIAN, "log"])
@pytest.mark.parametrize("method", METHODS)
def test_in_float32_every_method_is_right(process, method):
    k, size = 5, 12
    law, y0, _ = linear(np.linspace(1.0, 0.3, k), size)
    x = np.exp(y0) if process is LOG else y0
    found = intrinsic_dimension(models.ExactModel(law, process), x, (0.05, 0.08), method=method)
    # The slope is off by r^2 (z^2/lambda - 1)/lambda in each direction, and z^2/lambda is below 10 here.
    assert np.all(np.abs(found.dimension - k) <= (k * 10 * 0.08**2 / 0.3 if method == "slope" else 0))
    assert found.mean.shape == found.standard_error.shape == (2,)
    if method != "slope":
        assert np.all(found.clear)


@pytest.mark.parametrize("method", METHODS)
def test_no_dimension_and_all_of_them(method):
    # Apart by 100 deviations of the noise: points.
    points = np.array([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0], [0.0, -8.0, 0.0]])
    nothing = models.ExactModel(densities.Empirical(points), VE)
    np.testing.assert_allclose(intrinsic_dimension(nothing, points, 0.1, method=method).dimension, 0, atol=1e-5)
    for size in (1, 3):
        law = densities.Gaussian(np.zeros(size), 1.0)
        found = intrinsic_dimension(models.ExactModel(law, VP), np.full((2, size), 0.5), 0.05, method=method)
        # Of the slope: size (v/(v + r^2) + r^2 z^2/(v + r^2)^2) with z = 1/2, a quarter of 1 percent of 3 below.
        np.testing.assert_allclose(found.dimension, size, atol=0.006 if method == "slope" else 0)
        assert np.all(found.clear)
        dot = models.ExactModel(densities.Gaussian(np.zeros(size), 0.0), VP)
        np.testing.assert_allclose(intrinsic_dimension(dot, np.zeros((2, size)), 0.05, method=method).dimension, 0, atol=1e-5)


# Curved ones ---------------------------------------------------------------------------------------------------------------


def bessel_ratio(order, rho, terms=400):
    r""":math:`I_{\nu+1}/I_\nu` from :math:`R_\nu = 1/(2(\nu+1)/\rho + R_{\nu+1})`, downwards from a bound of Amos (1974)."""
    last = order + terms
    start = rho / (last + 0.5 + jnp.sqrt((last + 1.5) ** 2 + rho**2))
    step = lambda ratio, i: (1 / (2 * (order + terms - i) / rho + ratio), None)
    return jax.lax.scan(step, start, jnp.arange(terms))[0]


def sphere(k, size, process, radius=1.0):
    """The exact model of the uniform law on a sphere of dimension ``k`` in the first ``k + 1`` of ``size`` coordinates."""

    def denoised(y, t, cond=None):
        alpha, sigma = process.alpha(t), process.sigma(t)
        u = y[:, : k + 1] / alpha
        norm = jnp.linalg.norm(u, axis=1, keepdims=True)
        mean = radius * u / norm * bessel_ratio((k - 1) / 2, radius * norm * (alpha / sigma) ** 2)
        return jnp.pad(mean, ((0, 0), (0, size - k - 1)))

    return models.FunctionModel(denoised, process)


def on_sphere(k, size, radius=1.0):
    u = np.random.default_rng(k).normal(size=(3, k + 1))
    return np.pad(radius * u / np.linalg.norm(u, axis=1, keepdims=True), ((0, 0), (0, size - k - 1)))


@pytest.mark.parametrize("process", GAUSSIAN.values(), ids=GAUSSIAN)
@double
def test_spheres_have_their_closed_forms(process):
    size, sigmas = 12, np.array([0.05, 0.15])
    for k, radius in ((1, 1.0), (2, 1.5), (7, 1.0)):
        model, x = sphere(k, size, process, radius), on_sphere(k, size, radius)
        rho = (radius / sigmas) ** 2
        a = ive((k + 1) / 2, rho) / ive((k - 1) / 2, rho)
        # D = R A(R|u|/r^2) u/|u|: along the sphere it grows by A, across it by the derivative of A, 1 - A^2 - k A/rho.
        radial = rho * (1 - a**2 - k * a / rho)
        exact = np.sort(np.stack([1 - radial, *[1 - a] * k, *[1 + 0 * a] * (size - k - 1)], axis=1))[:, ::-1]
        found = intrinsic_dimension(model, x, sigmas, method=SymmetricJacobian(draws=0))
        np.testing.assert_allclose(found.spectrum, np.broadcast_to(exact[:, None], found.spectrum.shape), atol=CLOSED)
        assert np.all(found.dimension == k)
        slope = intrinsic_dimension(model, x, sigmas, method="slope").dimension
        exact = k * a + radial + (radius - radius * a) ** 2 / sigmas**2
        np.testing.assert_allclose(slope, np.broadcast_to(exact[:, None], slope.shape), atol=CLOSED)
        # A(rho) = 1 - k/(2 rho) + ..., so that the curvature moves it by k (2 - k)/(4 rho), and terms in 1/rho^2.
        np.testing.assert_allclose(slope[0], k + k * (2 - k) / (4 * rho[0]), atol=k**3 / rho[0] ** 2)


@pytest.mark.parametrize("method", [*METHODS, SymmetricJacobian(draws=5)], ids=str)
@pytest.mark.parametrize("process", GAUSSIAN.values(), ids=GAUSSIAN)
@double
def test_spheres_in_many_dimensions(process, method):
    k, size = 4, 24
    found = intrinsic_dimension(sphere(k, size, process), on_sphere(k, size), 0.04, method=method)
    # Of the slope: k (k - 2) r^2 / 4.
    np.testing.assert_allclose(found.dimension, k, atol=0.02 if method == "slope" else 0)
    assert np.all(found.clear)


@pytest.mark.parametrize("method", METHODS)
def test_every_point_has_the_dimension_of_its_own_part(method):
    # A line, a plane, a space of three and a point, ten apart, in five dimensions.
    size, parts = 5, (1, 2, 3, 0)
    means = 10.0 * np.eye(size)[: len(parts)]
    covs = np.stack([np.diag(1.0 * (np.arange(size) < k)) for k in parts])
    law = densities.GaussianMixture(np.ones(len(parts)), means, covs)
    x = means + np.array([np.where(np.arange(size) < k, 0.6, 0.0) for k in parts])
    found = intrinsic_dimension(models.ExactModel(law, VE), x, 0.05, method=method)
    # Of the slope: k r^2 (z^2 - 1) = 3 * .0025 * .64.
    np.testing.assert_allclose(found.dimension[0], parts, atol=0.006 if method == "slope" else 0)
    assert np.all(found.clear)


# What the documentation says of where they fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["symmetric", "svd", "flow"])
@double
def test_a_direction_counts_while_its_variance_is_above_the_noise(method):
    variances = np.array([1.0, 0.3, 0.01, 1e-4])
    law, x, _ = linear(variances, 8)
    model = models.ExactModel(law, VE)
    for sigma, k, clear in ((0.001, 4, True), (0.03, 3, True), (0.2, 2, True), (3.0, 0, True)):
        found = intrinsic_dimension(model, x, sigma, method=method)
        assert np.all(found.dimension == k), sigma
        assert np.all(found.clear) == clear
    # As much noise as data: the edge is in the middle of the spectrum.
    found = intrinsic_dimension(model, x, 0.1, method=method)
    assert not np.any(found.gap > 0.5 + 1e-4)
    # Thinner than the noise it is a manifold; noise thinner than it sees all dimensions.
    thick = densities.Gaussian.low_rank(np.zeros(8), np.eye(8)[:, :2], np.ones(2), tail=0.01**2)
    for sigma, k in ((0.05, 2), (0.002, 8)):
        assert np.all(intrinsic_dimension(models.ExactModel(thick, VE), np.zeros((1, 8)), sigma, method=method).dimension == k)


@double
def test_without_centring_the_svd_has_one_dimension_too_few():
    # The score at a point of the manifold is r z/(lambda + r^2) long, here sqrt(32)/4 = 1.4 times the values of normal directions.
    k, size, sigma = 32, 64, 0.25
    h = shares(np.ones(k), size, sigma)
    mean = np.where(h < 0.9, sigma / (1 + sigma**2), 0.0)
    plain = np.sqrt(np.linalg.eigvalsh(np.diag(h**2) + np.outer(mean, mean))[::-1])
    read = lambda spectrum: ScoreSVD().read(spectrum[None, None], np.array([sigma]), VE, size)[0].item()
    assert (read(h), read(plain)) == (k, k - 1)
    law, x, z = linear(np.ones(k), size)
    assert np.linalg.norm(z, axis=1).min() > 4.0
    assert np.all(intrinsic_dimension(models.ExactModel(law, VE), x, sigma, method="svd").dimension == k)


SIZE, FLAT = 10, 4
BASIS = np.linalg.qr(np.random.default_rng(5).normal(size=(SIZE, SIZE)))[0][:, :FLAT]
TURN = np.zeros((FLAT, FLAT))
TURN[0, 1], TURN[1, 0], TURN[2, 3], TURN[3, 2] = 1.0, -1.0, 1.0, -1.0


def manifold(process=VE):
    """The exact model, in the precision of the test."""
    return models.ExactModel(densities.Gaussian.low_rank(np.zeros(SIZE), BASIS, np.ones(FLAT)), process)


def along(c):
    """The exact score plus the gauge ``c A K A^T x``, which turns along the manifold and moves no density."""
    law, gauge = manifold().law, BASIS @ TURN @ BASIS.T
    return models.FunctionModel(lambda y, t, cond: law.noised(VE, t).score(y) + c * y @ gauge.T, VE, returns="score")


@double
def test_a_gauge_along_the_manifold_leaves_the_symmetric_jacobian_alone():
    sigma, x = 0.1, np.random.default_rng(6).normal(size=(5, FLAT)) @ BASIS.T
    plain = manifold()
    for c in (1.0, 1 / sigma**2, 5 / sigma**2):
        model = along(c)
        found = intrinsic_dimension(model, x, sigma)
        np.testing.assert_allclose(found.spectrum[0], np.broadcast_to(shares(np.ones(FLAT), SIZE, sigma), (5, SIZE)), atol=CLOSED)
        assert np.all(found.dimension == FLAT)
        # The square of the gauge is added: r^2 c^2 |z|^2.
        moved = intrinsic_dimension(model, x, sigma, method="slope").dimension
        moved -= intrinsic_dimension(plain, x, sigma, method="slope").dimension
        np.testing.assert_allclose(moved[0], (sigma * c) ** 2 * np.sum(x**2, axis=1), rtol=CLOSED)
    # At c r^2 = 1 the four dimensions are hundreds by the slope, and normal by the singular values.
    strong = along(1 / sigma**2)
    assert np.mean(intrinsic_dimension(strong, x, sigma, method="slope").dimension) > 100
    assert np.all(intrinsic_dimension(strong, x, sigma, method="svd").dimension == 0)


@double
def test_a_gauge_across_the_manifold_moves_eigenvalues_and_no_count():
    # J s with J antisymmetric: between a normal and a tangent direction the eigenvalues become (1 + h +- (1 - h) sqrt(1 + a^2))/2.
    sigma, a, h = 0.1, 1.5, 0.01 / 1.01
    flat = densities.Gaussian.low_rank(np.zeros(4), np.eye(4)[:, :2], np.ones(2))
    turn = np.zeros((4, 4))
    turn[0, 2], turn[2, 0], turn[1, 3], turn[3, 1] = 1.0, -1.0, 1.0, -1.0
    score = lambda y, t, cond: flat.noised(VE, t).score(y) @ (np.eye(4) + a * turn).T
    found = intrinsic_dimension(models.FunctionModel(score, VE, returns="score"), np.ones((1, 4)), sigma)
    root = (1 - h) * np.sqrt(1 + a**2)
    exact = np.repeat([(1 + h + root) / 2, (1 + h - root) / 2], 2)
    np.testing.assert_allclose(found.spectrum[0, 0], exact, atol=CLOSED)
    assert found.dimension.item() == 2


@double
def test_a_flow_far_out_takes_modes_for_a_dimension():
    # Two points: beyond their distance noise sees a cloud, and what it adds to log Y there is no longer log r.
    points = np.array([[1.0, 0.0], [-1.0, 0.0]])
    model = models.ExactModel(densities.Empirical(points), VE)
    assert np.all(intrinsic_dimension(model, points, 0.05, method="flow").dimension == 0)
    far = intrinsic_dimension(model, points, 0.05, method=FlowJacobian(sigma_max=50.0, steps=64))
    assert np.all(far.dimension == 1)


@double
def test_singular_values_take_a_negative_curvature_for_a_normal_direction():
    # Halfway between two lines the posterior variance is that of the choice: H = 1 - a^2/r^2, which is -3 here.
    law = densities.GaussianMixture(
        np.ones(2), np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), np.diag([0.0, 1.0, 0.0])[None].repeat(2, 0)
    )
    model, sigma = models.ExactModel(law, VE), 0.5
    found = intrinsic_dimension(model, np.zeros((1, 3)), sigma, method=SymmetricJacobian(draws=0))
    np.testing.assert_allclose(found.spectrum[0, 0], [1.0, 0.2, -3.0], atol=CLOSED)
    assert found.dimension.item() == 2
    assert intrinsic_dimension(model, np.zeros((1, 3)), sigma, method="svd").dimension.item() != 2


# What every call promises ---------------------------------------------------------------------------------------------------


def asked(y, t, cond):
    """The manifold of the condition: its rows say which directions there are."""
    return y * cond


@pytest.mark.parametrize("method", METHODS)
@double
def test_points_have_a_shape_and_a_condition_and_no_batch(method):
    rng = np.random.default_rng(1)
    cond = (rng.random((7, 2, 3, 1)) < 0.5).astype(float)
    x = rng.normal(size=cond.shape) * cond
    model = models.FunctionModel(asked, VE)
    ask = lambda rows, **options: intrinsic_dimension(
        model, x[rows], (0.1, 0.4), method=method, cond=cond[rows], key=KEY, **options
    )
    found = ask(slice(None))
    np.testing.assert_allclose(found.dimension, np.broadcast_to(cond.sum((1, 2, 3)), (2, 7)), atol=1e-9)
    # Another block of points adds up in another order, which moves the last digits.
    parts = ask(slice(None), batch=2)
    np.testing.assert_allclose(parts.dimension, found.dimension, atol=1e-12)
    np.testing.assert_allclose(parts.gap, found.gap, atol=1e-12)
    # A point does not depend on those behind it.
    np.testing.assert_allclose(ask(slice(3)).dimension, found.dimension[:, :3], atol=1e-12)


def test_hutchinson_is_unbiased():
    law, x, _ = linear([1.0, 0.5, 0.2], 8)
    model, x = models.ExactModel(law, VP), np.repeat(x[:1], 400, axis=0)
    exact = intrinsic_dimension(model, x[:1], 0.3, method="slope").dimension.item()
    found = intrinsic_dimension(model, x, 0.3, method=NoiseSlope(probes=2))
    assert found.standard_error[0] > 0
    assert abs(found.mean[0] - exact) < 4 * found.standard_error[0]


def test_draws_are_averaged():
    # H of a mixture moves with the point. The mean of 8 draws is one of 8 runs with a noise each, up to their spread.
    law = densities.GaussianMixture(np.ones(2), np.array([[1.0, 0.0], [-1.0, 0.0]]), 0.1)
    model, x = models.ExactModel(law, VE), np.zeros((200, 2))
    one, eight = (intrinsic_dimension(model, x, 0.6, method=SymmetricJacobian(draws=n)).spectrum[0, :, -1] for n in (1, 8))
    # The variance is an eighth, and known to 20 % from 200 points.
    assert 0.06 < eight.var() / one.var() < 0.25


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_finite_has_no_dimension(method):
    broken = models.FunctionModel(lambda y, t, cond: jnp.where(y[:, :1] > 0, jnp.nan, 0 * y), VE)
    found = intrinsic_dimension(broken, np.array([[5.0, 0.0], [-5.0, 0.0]]), 0.1, method=method)
    assert np.isnan(found.dimension[0, 0])
    assert not found.clear[0, 0]
    assert np.isfinite(found.dimension[0, 1])


MODEL, X = manifold(), np.zeros((2, SIZE))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: intrinsic_dimension(MODEL, X, 0.1, method="pca"), "intrinsic_dimension.method = 'pca': expected one of 'symm"),
        (lambda: intrinsic_dimension(MODEL, X, 0.0), "sigmas has the value 0: expected noise ratios from 0.001 to 100"),
        (lambda: intrinsic_dimension(MODEL, X, [0.1, np.nan]), "sigmas has the value nan"),
        (lambda: intrinsic_dimension(MODEL, X, "a"), "intrinsic_dimension.sigmas is <U1: expected real numbers"),
        (lambda: intrinsic_dimension(MODEL, X + 1j, 0.1), "intrinsic_dimension.data is complex128: expected real numbers"),
        (lambda: intrinsic_dimension(MODEL, X[0], 0.1), r"data has shape \(10,\)"),
        (lambda: intrinsic_dimension(MODEL, X / 0, 0.1), "data has 20 values that are not finite"),
        (lambda: intrinsic_dimension(MODEL, X, 0.1, batch=0), "batch = 0: expected a positive integer"),
        (lambda: intrinsic_dimension(MODEL, X, 0.1, cond=np.zeros(3)), "expected a leading axis of 2"),
        (lambda: intrinsic_dimension(MODEL, X, 0.5, method=FlowJacobian(sigma_max=0.5)), "0.5: expected at least 1.5 times"),
        (lambda: intrinsic_dimension(MODEL, X, 0.5, method=FlowJacobian(sigma_max=1e3)), "at most 100, the largest of"),
        (lambda: ScoreSVD(perturbations=3), "ScoreSVD.perturbations = 3: expected an even number"),
        (lambda: SymmetricJacobian(draws=-1), "SymmetricJacobian.draws = -1: expected an integer >= 0"),
        (lambda: NoiseSlope(probes=0.5), "NoiseSlope.probes = 0.5"),
        (lambda: FlowJacobian(steps=0), "FlowJacobian.steps = 0"),
        (lambda: experiment.IntrinsicDimension(method="pca"), "IntrinsicDimension.method = 'pca'"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_wrong_is_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_process_that_ends_in_pure_noise_has_an_answer():
    flow = processes.Gaussian(schedule=schedules.RectifiedFlow())
    for method in METHODS[:3]:
        assert np.all(intrinsic_dimension(manifold(flow), X, 0.1, method=method).dimension == FLAT)


def test_another_kind_of_process_is_refused():
    bridge = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), 1.0))
    with pytest.raises(TypeError, match="expected a LinearGaussian"):
        intrinsic_dimension(models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), bridge), np.zeros((1, 2)), 0.1)
    with pytest.raises(TypeError, match="expected a model, which knows its process"):
        intrinsic_dimension(lambda y, t, cond: y, X, 0.1)


# The stage -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts(data.DataSet):
    """Thirty points of a line, class 0, and thirty of a plane, class 1."""

    name: str = "parts"

    def load(self, split="train"):
        z = np.random.default_rng(0).uniform(-1, 1, size=(60, 4)).astype(np.float32)
        label = np.repeat([0, 1], 30).astype(np.int32)
        x = z * np.where(label[:, None] == 0, [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 0.0]) + 10 * label[:, None] * np.eye(4)[3]
        return data.Arrays(x=x.astype(np.float32), label=label, name="parts", split=split, num_classes=2)


@pytest.mark.parametrize("method", METHODS)
def test_the_stage_tells_classes_apart(method):
    means, covs = 10 * np.outer([0.0, 1.0], np.eye(4)[3]), np.stack([np.diag([1.0, 0, 0, 0]), np.diag([0.0, 1, 1, 0])])
    model = models.ExactModel(densities.GaussianMixture(np.ones(2), means, covs), VE)
    question = experiment.IntrinsicDimension(n=40, levels=2, sigma_min=0.02, sigma_max=0.1, method=method)
    found = question(model, experiment.DataSpec(dataset=Parts()), KEY)
    # Of the slope: k r^2 (z^2 - 1).
    np.testing.assert_allclose(found.values["by_class"], [[1, 1], [2, 2]], atol=0.02 if method == "slope" else 0)
    assert found.values["at_noise_ratio"] == pytest.approx(0.02)
    assert found.values["dimension"].shape == (40,)
    over, histogram = found.figure.axes
    assert (over.get_ylabel(), histogram.get_ylabel()) == ("dimension", "share of the points")
    shares = np.array([line.get_ydata() for line in histogram.lines])
    np.testing.assert_allclose(shares, np.eye(2))


def test_the_stage_refuses_before_the_training():
    asked = lambda **options: experiment.IntrinsicDimension(**options).check(SimpleNamespace(process=VE, learner=None))
    asked(sigma_max=50.0)
    for options, match in (
        (dict(sigma_max=200.0), "IntrinsicDimension.sigma_max = 200.0: expected 0.001 to 100"),
        (dict(method=FlowJacobian(sigma_max=0.5)), "FlowJacobian.sigma_max = 0.5 from the noise ratio 1: expected at least"),
        (dict(sigma_max=90.0, method="flow"), "from the noise ratio 90: expected at least"),
    ):
        with pytest.raises(ValueError, match=match):
            asked(**options)
