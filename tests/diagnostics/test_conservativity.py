"""Asymmetry and loops: zero for gradients, closed forms for linear fields, the area integral of the curl, the regulariser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, diagnostics, experiment, losses, models, processes, schedules
from scorelab.data import Named
from scorelab.diagnostics.conservativity import Circle
from scorelab.diagnostics.levels import by_level
from tests.diagnostics.fields import mapped, turn
from tests.precision import double

KEY = jax.random.key(0)
VP = processes.Gaussian(schedule=schedules.VPLinear())
VE = processes.Gaussian(schedule=schedules.VE(sigma_min=0.01, sigma_max=50.0))
GBM = processes.GeometricBrownianMotion(sigma=1.5, mu=0.5)
SIGMAS = (0.3, 1.0, 5.0)
COV = np.array([[1.0, 0.3, 0.1, 0.0], [0.3, 0.5, 0.0, 0.1], [0.1, 0.0, 0.8, 0.2], [0.0, 0.1, 0.2, 0.3]])
MEANS, VARIANCES = np.array([[0.0, 1.0], [1.0, -0.5], [-1.0, -0.5]]), np.array([[0.2, 0.4], [0.3, 0.1], [0.3, 0.3]])


def mixture():
    return densities.GaussianMixture([0.5, 0.3, 0.2], MEANS, VARIANCES)


def gaussian():
    return densities.Gaussian(np.arange(4) / 4, COV)


LAWS = {
    "mixture, VP": (mixture, VP),
    "mixture, VE": (mixture, VE),
    "Gaussian, VP": (gaussian, VP),
    "Gaussian, VE": (gaussian, VE),
    "log-normal mixture": (lambda: densities.LogNormalMixture([0.5, 0.3, 0.2], MEANS, VARIANCES), GBM),
}


@pytest.mark.parametrize("name", LAWS)
@double
def test_exact_scores_are_gradients(name):
    make, process = LAWS[name]
    law = make()
    sigmas = SIGMAS if process is not GBM else (0.3, 1.0)
    found = diagnostics.conservativity(models.ExactModel(law, process), law.sample(KEY, 20), sigmas, probes=0, nodes=64)
    for value in (found.asymmetry, found.mean_square, found.loop, found.circulation):
        np.testing.assert_allclose(value, 0.0, atol=1e-8)


def precision(sigma, alpha):
    """The inverse covariance of the noised Gaussian."""
    return np.linalg.inv(alpha**2 * COV + (alpha * sigma) ** 2 * np.eye(4))


@double
def test_a_linear_gauge_has_its_closed_form():
    """The Jacobian of (I + J) s is -(I + J) P, and its antisymmetric part (J P + P J) / -2, at every point."""
    gauge, sigmas = turn(4, 0.4), np.array(SIGMAS)
    law, alpha = gaussian(), 1 / np.sqrt(1 + sigmas**2)
    found = diagnostics.conservativity(mapped(law, VP, np.eye(4) + gauge), law.sample(KEY, 7), sigmas, probes=0, nodes=0)
    norm = np.linalg.norm
    p = [precision(*at) for at in zip(sigmas, alpha, strict=True)]
    exact = [norm(gauge @ p + p @ gauge) / norm((np.eye(4) + gauge) @ p) for p in p]
    square = [(a * s) ** 4 * norm(gauge @ p + p @ gauge) ** 2 / 4 for p, a, s in zip(p, alpha, sigmas, strict=True)]
    # The noise ratio goes through a time and back.
    np.testing.assert_allclose(found.asymmetry, exact, rtol=1e-8)
    np.testing.assert_allclose(found.mean_square, square, rtol=1e-8)
    np.testing.assert_allclose(found.asymmetry_error, 0.0, atol=1e-8)
    assert np.isnan(found.loop).all()


@double
def test_in_the_plane_with_the_numbers_of_a_turn():
    """With a quarter turn J the Jacobian of (I + a J) s has A = a tr(P) sqrt(2) / sqrt(1 + a^2) / |P|."""
    law = densities.Gaussian(np.zeros(2), np.array([1.0, 0.25]))
    for a in (0.5, 1.0, 100.0):
        found = diagnostics.conservativity(mapped(law, VE, np.eye(2) + turn(2, a)), law.sample(KEY, 3), (0.5,), nodes=0)
        p = 1 / (np.array([1.0, 0.25]) + 0.25)
        # One probe is exact in the plane: the antisymmetric part has one number. The Jacobian's own norm needs both elements.
        exact = diagnostics.conservativity(mapped(law, VE, np.eye(2) + turn(2, a)), law.sample(KEY, 3), (0.5,), probes=0, nodes=0)
        np.testing.assert_allclose(exact.asymmetry, a * p.sum() * np.sqrt(2 / (1 + a * a)) / np.linalg.norm(p), rtol=1e-8)
        np.testing.assert_allclose(found.mean_square, exact.mean_square, rtol=1e-8)


def at_one_point(model, y, t, count, cond=None):
    """The same noised point with ``count`` keys."""
    y = jnp.broadcast_to(jnp.asarray(y), (count, len(y)))
    return processes.Noised(
        y=y, y0=y, noise=jnp.zeros_like(y), t=jnp.asarray(t, y.dtype), cond=cond, keys=jax.random.split(KEY, count)
    )


@double
def test_probes_have_the_exact_norms_for_their_mean():
    model = mapped(gaussian(), VP, np.eye(4) + turn(4, 0.4))
    # A curved field: another matrix at every point.
    curved = models.FunctionModel(lambda y, t, cond: model(y, t).eps + jnp.sin(y @ jnp.asarray(COV)[::-1]), VP, returns="eps")
    noised = at_one_point(curved, [0.3, -1.0, 0.5, 2.0], 0.4, 4096)
    exact = losses.Conservativity(probes=0).squares(curved, jax.tree.map(lambda leaf: leaf[:1] if leaf.ndim else leaf, noised))
    one = losses.Conservativity(probes=1).squares(curved, noised)
    several = losses.Conservativity(probes=3).squares(curved, noised)
    for name in ("asymmetry", "jacobian"):
        for estimate in (getattr(one, name), getattr(several, name)):
            error = float(jnp.std(estimate)) / 64
            assert error > 0
            assert abs(float(jnp.mean(estimate) - getattr(exact, name)[0])) < 4.5 * error
        # The variance of a mean of three.
        assert float(jnp.var(getattr(several, name)) / jnp.var(getattr(one, name))) == pytest.approx(1 / 3, rel=0.15)
    jacobian = jax.jacfwd(lambda y: curved(y[None], noised.t).eps[0])(noised.y[0]) * VP.sigma(noised.t)
    np.testing.assert_allclose(exact.asymmetry[0], jnp.sum((jacobian - jacobian.T) ** 2) / 4, rtol=1e-10)
    np.testing.assert_allclose(exact.jacobian[0], jnp.sum(jacobian**2) / 4, rtol=1e-10)


@double
def test_a_loop_in_the_plane_is_the_area_integral_of_the_curl():
    """Of a J s with a quarter turn J the curl is a (d1 s1 + d2 s2), the Laplacian of the log-density: integrated by Gauss' rule."""
    law, a, radius, sigma, points = mixture(), 0.7, 0.8, 0.6, 5
    model, t = mapped(law, VE, np.eye(2) + turn(2, a)), VE.schedule.time(-2 * np.log(sigma))
    y = 1.5 * np.random.default_rng(0).normal(size=(points, 2))
    noised = processes.Noised(y=jnp.asarray(y), y0=y, noise=y, t=jnp.asarray(t), keys=jax.random.split(KEY, points))
    found = Circle(radius=radius, nodes=64)(model, noised)
    noised_law = law.noised(VE, t)
    curl = jax.jit(jax.vmap(lambda y: a * jnp.trace(jax.hessian(lambda y: noised_law.log_prob(y[None])[0])(y))))
    nodes, weights = np.polynomial.legendre.leggauss(24)
    r, w = radius * sigma * (nodes + 1) / 2, radius * sigma * weights / 2
    angle = np.arange(48) * 2 * np.pi / 48
    disk = (r[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)).reshape(-1, 2)
    area = np.repeat(w * r, 48) * 2 * np.pi / 48
    exact = np.asarray(curl(jnp.asarray(y[:, None] + disk).reshape(-1, 2))).reshape(points, -1) @ area
    assert np.abs(exact).min() > 1e-3
    # Which way round is drawn.
    np.testing.assert_allclose(np.abs(found.integral), np.abs(exact), rtol=1e-8)
    np.testing.assert_allclose(found.coarse, found.integral, rtol=1e-5)


@double
def test_loops_in_random_planes_have_the_norm_of_the_antisymmetric_part():
    """Of a linear field the mean square is (pi r^2)^2 |B|^2 / (d (d - 1)), B = J - J^T, on circles of any size."""
    gauge, law, sigma, radius = turn(4, 0.4), gaussian(), 0.7, 1.3
    model, t = mapped(law, VE, np.eye(4) + gauge), VE.schedule.time(-2 * np.log(sigma))
    found = Circle(radius=radius, nodes=8)(model, at_one_point(model, np.ones(4), t, 4096))
    p = precision(sigma, 1.0)
    exact = (np.pi * (radius * sigma) ** 2 * np.linalg.norm(gauge @ p + p @ gauge)) ** 2 / 12
    square = np.asarray(found.integral) ** 2
    assert abs(square.mean() - exact) < 4.5 * square.std() / 64
    np.testing.assert_allclose(found.coarse, found.integral, rtol=1e-10)


@double
def test_the_length_is_that_of_a_known_field_and_a_turn_alone_has_the_largest_ratios():
    """About the mean J s is tangential and of one length on a circle: |integral| = length, and A = 2."""
    law = densities.Gaussian(np.zeros(2), 1.0)
    model, t = mapped(law, VE, turn(2)), VE.schedule.time(0.0)
    found = Circle(radius=0.5, nodes=8)(model, at_one_point(model, np.zeros(2), t, 2))
    np.testing.assert_allclose(found.length, 2 * np.pi * 0.5**2 / 2, rtol=1e-10)
    np.testing.assert_allclose(np.abs(found.integral), found.length, rtol=1e-10)
    np.testing.assert_allclose(diagnostics.conservativity(model, np.zeros((3, 2)), (1.0,)).asymmetry, 2.0, rtol=1e-10)


@double
def test_a_wrong_score_that_is_a_gradient_passes():
    law = mixture()
    found = diagnostics.conservativity(mapped(law, VP, 1.1 * np.eye(2)), law.sample(KEY, 20), SIGMAS, nodes=64)
    np.testing.assert_allclose(found.asymmetry, 0.0, atol=1e-8)
    np.testing.assert_allclose(found.loop, 0.0, atol=1e-8)


def test_the_regulariser_is_its_diagnostic():
    law = mixture()
    model, data = mapped(law, VP, np.eye(2) + turn(2, 0.3)), np.asarray(law.sample(KEY, 50))
    regulariser = losses.Conservativity(probes=2)
    _, values = by_level(regulariser, model, data, SIGMAS, batch=16)
    found = diagnostics.conservativity(model, data, SIGMAS, probes=2, nodes=0, batch=16)
    np.testing.assert_allclose(values.mean(axis=1), found.mean_square, rtol=1e-5)
    np.testing.assert_allclose(values.std(axis=1, ddof=1) / np.sqrt(50), found.standard_error, rtol=1e-5)
    # Under a loss: the metric of its name is the mean at the points that the loss has seen.
    loss = losses.Regularised(losses.DenoisingScoreMatching(VP), ((regulariser, 0.5),))
    noised = loss.draw(KEY, {"x": data})
    everything = lambda noised: (*loss.evaluate(model, noised), loss.loss.error(model, noised), regulariser(model, noised))
    total, metrics, plain, values = jax.jit(everything)(noised)
    np.testing.assert_allclose(metrics["Conservativity"], jnp.mean(values), rtol=1e-5)
    np.testing.assert_allclose(total - plain, 0.5 * values, rtol=1e-3, atol=1e-5)


@double
def test_its_gradient_is_that_of_the_norm():
    """Of predicted noise M y the value is sigma^2 |M - M^T|^2 / d, with the gradient 4 sigma^2 (M - M^T) / d."""
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    noised = at_one_point(None, np.ones(3), 0.4, 2)

    def value(matrix, probes):
        model = models.FunctionModel(lambda y, t, cond: y @ matrix.T, VP, returns="eps")
        return losses.Conservativity(probes=probes)(model, noised)[0]

    sigma = float(VP.sigma(0.4))
    np.testing.assert_allclose(value(matrix, 0), sigma**2 * jnp.sum((matrix - matrix.T) ** 2) / 3, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(value)(matrix, 0), 4 * sigma**2 * (matrix - matrix.T) / 3, rtol=1e-10)
    np.testing.assert_allclose(jax.grad(value)(matrix + matrix.T, 2), 0.0, atol=1e-12)


NETS = {
    "dense": models.nets.MLP(width=8, depth=1, embed=8),
    "convolutions in loops": models.nets.UNet(channels=(8,), attention=(), loop_safe=True),
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_networks_can_be_trained_on_it(net):
    shape = (2,) if isinstance(net, models.nets.MLP) else (4, 4, 1)
    denoiser = models.Denoiser(net=net, process=VP)
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), denoiser.init(KEY, shape))
    loss = losses.Regularised(losses.DenoisingScoreMatching(VP), ((losses.Conservativity(), 1.0),))
    noised = loss.draw(KEY, {"x": np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)})

    @jax.jit
    def asymmetry(params):
        return jax.value_and_grad(lambda params: jnp.mean(losses.Conservativity()(denoiser.bind(params), noised)))(params)

    value, gradient = asymmetry(params)
    square = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    assert float(value) > 0
    assert np.isfinite(square)
    # A small step down the gradient gains what the gradient says.
    step = 1e-3 * float(value) / square
    moved = jax.tree.map(lambda leaf, slope: leaf - step * slope, params, gradient)
    assert (float(value) - float(asymmetry(moved)[0])) / (step * square) == pytest.approx(1.0, abs=0.05)


def test_the_batch_does_not_matter_and_errors_are_those_over_points():
    law = mixture()
    model, data = mapped(law, VP, np.eye(2) + turn(2, 0.3)), np.asarray(law.sample(KEY, 30))
    calls = []
    whole = diagnostics.conservativity(model, data, SIGMAS, key=KEY)
    parts = diagnostics.conservativity(model, data, SIGMAS, key=KEY, batch=7, progress=lambda *at: calls.append(at))
    for name in ("asymmetry", "asymmetry_error", "loop", "loop_error", "circulation"):
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name), rtol=1e-4, atol=1e-7)
    assert calls[-1] == (30, 30)
    single = diagnostics.conservativity(model, data[:1], SIGMAS)
    assert np.isnan(single.asymmetry_error).all()
    assert np.isfinite(single.asymmetry).all()
    # Over independent sets of points the values scatter by the errors that are told: 24 sets, within a factor of 1.5.
    sets = [
        diagnostics.conservativity(model, np.asarray(law.sample(jax.random.key(k), 100)), (1.0,), key=jax.random.key(k))
        for k in range(24)
    ]
    for name in ("asymmetry", "loop"):
        values, errors = (np.array([getattr(one, which)[0] for one in sets]) for which in (name, f"{name}_error"))
        assert 1 / 1.5 < values.std(ddof=1) / errors.mean() < 1.5


def test_the_stage_has_numbers_and_a_figure():
    spec = experiment.DataSpec(dataset=Named(name="eight_gaussians"), labels=False)
    question = experiment.Conservativity(n=16, sigma_min=0.1, sigma_max=5.0, levels=3)
    finding = question(mapped(mixture(), VP, np.eye(2) + turn(2, 0.3)), spec, KEY)
    assert len(finding.figure.axes) == 2
    assert np.all(finding.values["asymmetry"] > 0.01)
    assert np.all(finding.values["loop"] > 10 * finding.values["quadrature"])
    plain = experiment.Conservativity(n=16, sigma_min=0.1, sigma_max=5.0, levels=3, nodes=0)
    finding = plain(models.ExactModel(mixture(), VP), spec, KEY)
    assert "loop" not in finding.values
    assert len(finding.figure.axes) == 1
    np.testing.assert_allclose(finding.values["asymmetry"], 0.0, atol=1e-5)


def of(**options):
    given = dict(data=np.zeros((3, 2), np.float32), sigmas=SIGMAS) | options
    model = given.pop("model", mapped(mixture(), VP, np.eye(2)))
    return lambda: diagnostics.conservativity(model, given.pop("data"), given.pop("sigmas"), **given)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (of(probes=-1), "conservativity.probes = -1: expected an integer >= 0"),
        (of(nodes=7), "conservativity.nodes = 7: expected 0, or an even number"),
        (of(nodes=2), "conservativity.nodes = 2: expected 0, or an even number"),
        (of(radius=0.0), "conservativity.radius = 0.0: expected a finite number above 0"),
        (of(data=np.zeros((3, 1), np.float32)), r"data has shape \(3, 1\): expected at least two elements"),
        (of(data=np.zeros((0, 2), np.float32)), r"conservativity.data has shape \(0, 2\)"),
        (of(sigmas=(1e9,)), "conservativity.sigmas has the value 1e"),
        (of(model=lambda y, t: y), "expected a model, which knows its process"),
        (of(batch=0), "conservativity.batch = 0"),
        (lambda: losses.Conservativity(probes=1.5), "Conservativity.probes = 1.5: expected an integer >= 0"),
        (lambda: experiment.Conservativity(nodes=5), "Conservativity.nodes = 5: expected 0, or an even number"),
        (lambda: experiment.Conservativity(sigma_min=3.0, sigma_max=2.0), "sigma_min = 3.0: expected less than sigma_max"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_another_kind_of_process_is_refused():
    bridge = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), 1.0))
    model = models.ExactModel(densities.Gaussian(np.ones(2), 0.5), bridge)
    with pytest.raises(TypeError, match="expected a LinearGaussian"):
        diagnostics.conservativity(model, np.zeros((3, 2), np.float32), SIGMAS)
    with pytest.raises(TypeError, match=r"Conservativity.process = .*expected a LinearGaussian"):
        losses.Conservativity()(model, at_one_point(model, np.zeros(2, np.float32), 0.5, 2))
    with pytest.raises(ValueError, match="keys = None"):
        losses.Conservativity()(
            mapped(mixture(), VP, np.eye(2)), at_one_point(None, np.zeros(2, np.float32), 0.5, 2)._replace(keys=None)
        )
