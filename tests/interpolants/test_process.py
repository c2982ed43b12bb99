"""Paths, gammas and the exact fields of interpolants, against numbers computed elsewhere and against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import data, densities, losses, models, processes, schedules
from scorelab.processes import gammas, paths

from . import laws

KEY = jax.random.key(0)
Y = np.array([[0.3, -0.7]])
# log p, D, W, the score and u at Y: ten digits of an independent computation in float64.
# ruff: noqa: E501
TABLE = {
    ("linear, Brownian", 0.25): (-2.6860876295, (1.127314944, -0.8978616028), (-0.7281126431, -0.0047070289), (1.938442917, 0.1356108835), (-2.340038316, 0.8592518531)),
    ("linear, Brownian", 0.5): (-2.8698711279, (1.120480192, -0.8569588279), (-0.3866741562, -0.4091967367), (0.2676120724, 0.2676888709), (-1.507154349, 0.4477620913)),
    ("linear, Brownian", 0.9): (-4.0667038050, (0.4565482837, -0.48480712), (0.14681485, -0.8098585057), (-1.357908963, -0.8594818571), (-0.8528970188, -0.6688441286)),
    ("linear, Brownian", 0.0): (-4.2745722862, (0.3, -0.7), (0.1, 0.5), (4.928537339, 0.3214522987), (-2.664268669, 1.039273851)),
    ("linear, Brownian", 1.0): (-4.2976528380, (0.1, -0.4), (0.3, -0.7), (-1.623326991, -0.9638001865), (-0.6116634955, -0.7819000932)),
    ("trigonometric, quadratic", 0.25): (-3.4807123739, (0.9280521808, -0.704803928), (-1.212401612, -0.1725320996), (2.459436017, -0.1268520808), (-2.544362487, 0.2505555584)),
    ("trigonometric, quadratic", 0.9): (-4.3370330290, (0.644073175, -0.5054378036), (0.192130573, -0.6406202743), (-1.315880302, -1.10029782), (-1.021917446, 0.4935241936)),
    ("encoding-decoding", 0.25): (-1.6859450947, (1.304672851, -1.082385802), (0.1, 0.5), (1.409345703, 0.6352283966), (-6.312545698, 2.402600851)),
    ("encoding-decoding", 0.9): (-4.0807139770, (0.1, -0.4), (0.3126087052, -0.7831049603), (-1.890939246, -0.9129763343), (0.2438228031, -1.607055132)),
}  # fmt: skip


@pytest.mark.parametrize(("name", "t"), TABLE, ids=str)
def test_exact_fields_are_those_of_the_table(name, t):
    with jax.enable_x64(True):
        found = models.ExactModel(laws.data(), laws.process(name))(jnp.asarray(Y), t)
    log_prob, *fields = TABLE[name, t]
    # Ten digits are printed.
    np.testing.assert_allclose(found.log_prob[0], log_prob, rtol=1e-9)
    for field, value in zip(("denoised", "base", "score", "velocity"), fields, strict=True):
        np.testing.assert_allclose(getattr(found, field)[0], value, rtol=1e-9, atol=6e-11, err_msg=field)


@pytest.mark.parametrize("name", laws.PAIRS)
def test_the_density_is_carried_by_the_velocity(name):
    r"""d_t log p + div u + u . grad log p = 0, with the time derivative by automatic differentiation, to 1e-10 (measured 1e-13)."""
    with jax.enable_x64(True):
        exact = models.ExactModel(laws.data(), laws.process(name))
        y = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2)))

        @jax.jit
        def residual(y, t):
            one = lambda f: lambda y, t: getattr(exact(y[None], t), f)[0]
            rate = jax.vmap(jax.grad(one("log_prob"), argnums=1), (0, None))(y, t)
            flow = jnp.trace(jax.vmap(jax.jacfwd(one("velocity")), (0, None))(y, t), axis1=1, axis2=2)
            found = exact(y, t)
            gradient = jax.vmap(jax.grad(one("log_prob")), (0, None))(y, t)
            return rate + flow + jnp.sum(found.velocity * found.score, -1), gradient - found.score

        for t in (0.07, 0.3, 0.62, 0.91):
            carried, gradient = residual(y, t)
            np.testing.assert_allclose(carried, 0.0, atol=1e-10)
            np.testing.assert_allclose(gradient, 0.0, atol=1e-10)


@pytest.mark.parametrize("name", laws.PAIRS)
def test_forms_of_a_prediction_say_the_same(name):
    """What the heads of a network give is what is exact: D from y, u and eta; u from v and eta; the score from eta."""
    with jax.enable_x64(True):
        process = laws.process(name)
        y = jnp.asarray(np.random.default_rng(1).normal(size=(8, 2)))
        for t in (0.02, 0.4, 0.77):
            exact = models.ExactModel(laws.data(), process)(y, t)
            c = process.coefficients(np.float64(t))
            np.testing.assert_allclose(c.alpha * exact.denoised + c.beta * exact.base + c.gamma * exact.eta, y, atol=1e-12)
            if process.gamma.silent:
                found = process.predict(y, t, velocity=exact.velocity)
                np.testing.assert_allclose(found.denoised, exact.denoised, rtol=1e-10, atol=1e-12)
                assert not hasattr(found, "score")
                continue
            path_velocity = c.d_alpha * exact.denoised + c.d_beta * exact.base
            for forms in (
                dict(velocity=exact.velocity, eta=exact.eta), dict(path_velocity=path_velocity, score=exact.score),
            ):  # fmt: skip
                found = process.predict(y, t, **forms)
                for field in ("velocity", "eta", "score"):
                    np.testing.assert_allclose(getattr(found, field), getattr(exact, field), rtol=1e-10, atol=1e-11, err_msg=field)
                if not (isinstance(process.path, paths.EncodingDecoding) and t >= 0.5):
                    np.testing.assert_allclose(found.denoised, exact.denoised, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", laws.PAIRS)
def test_rates_are_derivatives_and_the_ends_are_the_ends(name):
    process = laws.process(name)
    t = np.linspace(0.03, 0.97, 40)
    h = 1e-6
    low, high, at = (process.coefficients(t + d) for d in (-h, h, 0.0))
    # Central differences in float64: rounding 1e-16 / h and curvature h^2.
    for value, rate in ((lambda c: c.alpha, at.d_alpha), (lambda c: c.beta, at.d_beta), (lambda c: c.gamma, at.slope)):
        np.testing.assert_allclose((value(high) - value(low)) / (2 * h), rate, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose((high.gamma**2 - low.gamma**2) / (4 * h), at.rate, rtol=1e-6, atol=1e-8)
    ends = process.coefficients(np.array([0.0, 1.0]))
    np.testing.assert_allclose(ends.gamma, 0.0, atol=1e-12)
    np.testing.assert_allclose(ends.alpha, [1, 0] if process.path.two_sided else [1, 1], atol=1e-12)
    np.testing.assert_allclose(ends.beta, [0, 1] if process.path.two_sided else [0, 0], atol=1e-12)


@pytest.mark.parametrize("name", laws.PAIRS)
def test_float32_keeps_the_fields_at_and_near_the_ends(name):
    process = laws.process(name)
    y = np.random.default_rng(2).normal(size=(32, 2))
    with jax.enable_x64(True):
        wide = models.ExactModel(laws.data(), process)
        ends = [0.0, 1e-6, 1e-4, 0.5, 1 - 2.0**-13, 1.0]
        exact = [jax.tree.map(np.asarray, wide(jnp.asarray(y), np.float64(t))) for t in ends]
    narrow = models.ExactModel(laws.data(), process)
    for t, want in zip(ends, exact, strict=True):
        found = narrow(jnp.asarray(y, jnp.float32), jnp.float32(t))
        for field in ("denoised", "base", "score", "velocity", "log_prob"):
            a, b = np.asarray(getattr(found, field), np.float64), getattr(want, field)
            # float32 has 6e-8; the largest error of fields of order one in float32 was 6e-6 in an independent implementation.
            assert np.max(np.abs(a - b)) <= 3e-5 * max(1.0, np.sqrt(np.mean(b**2))), (field, t)


@pytest.mark.parametrize("gamma", [gammas.Zero(), gammas.Brownian(), gammas.Quadratic()], ids=str)
def test_a_gaussian_base_is_a_linear_gaussian_process(gamma):
    """sigma^2 = beta^2 + gamma^2 has the same law, and the same velocity at the same signal and noise up to the change of time."""
    flow = processes.Gaussian(schedule=schedules.RectifiedFlow())
    with jax.enable_x64(True):
        process = processes.StochasticInterpolant(gamma=gamma, base=densities.Gaussian(np.zeros(2), 1.0))
        ours, theirs = models.ExactModel(laws.data(), process), models.ExactModel(laws.data(), flow)
        y = jnp.asarray(np.random.default_rng(3).normal(size=(8, 2)))
        for t in (0.1, 0.5, 0.85):
            noise = lambda t: jnp.sqrt(t**2 + gamma.squared(t)) / (1 - t)
            # The time of rectified flow with that ratio, and the factor between the points.
            s = lambda t: noise(t) / (1 + noise(t))
            k = lambda t: (1 - t) / (1 - s(t))
            found, other = ours(y, t), theirs(y / k(t), s(t))
            np.testing.assert_allclose(found.denoised, other.denoised, rtol=1e-10)
            np.testing.assert_allclose(found.log_prob, other.log_prob - 2 * jnp.log(k(t)), rtol=1e-10)
            moved = jax.grad(k)(t) / k(t) * y + k(t) * jax.grad(s)(t) * other.velocity
            np.testing.assert_allclose(found.velocity, moved, rtol=1e-9, atol=1e-11)


def test_noised_points_have_the_law_that_is_exact():
    """Of perturb: mean and covariance of 20,000 points against alpha^2 P + beta^2 Q + gamma^2 I, four standard errors."""
    process, n = laws.process("linear, Brownian of half"), 20_000
    x = laws.data().sample(KEY, n)
    for t in (0.2, 0.8):
        noised = process.perturb(KEY, x, t)
        c = process.coefficients(np.float64(t))
        (m, p), (b, q) = (laws.moments(*law) for law in (
            (laws.WEIGHTS, laws.MEANS, laws.COVS), (laws.BASE_WEIGHTS, laws.BASE_MEANS, laws.BASE_COVS)
        ))  # fmt: skip
        cov = c.alpha**2 * p + c.beta**2 * q + c.gamma**2 * np.eye(2)
        y = np.asarray(noised.y, np.float64)
        np.testing.assert_allclose(y.mean(0), c.alpha * m + c.beta * b, atol=4 * np.sqrt(cov.max() / n))
        np.testing.assert_allclose(np.cov(y.T), cov, atol=4 * np.sqrt(2 / n) * cov.max())
        # Rows of a time each are the rows of one time.
        w, z = noised.noise
        again = process.noised(z, x, w, np.full(n, t, np.float32))
        np.testing.assert_allclose(again.y, noised.y, rtol=1e-6, atol=1e-6)


def test_a_base_of_points_is_drawn_from_them():
    points = np.random.default_rng(4).normal(size=(5, 2)).astype(np.float32)
    process = processes.StochasticInterpolant(base=points)
    keys = jax.random.split(KEY, 4000)
    drawn = np.asarray(process.prior().draw(keys, jnp.arange(4000), process, jnp.float32(1.0), (2,)))
    counts = np.array([np.sum(np.all(drawn == point, axis=1)) for point in points])
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_base_may_be_a_data_set():
    arrays = data.load("two_moons", n=64)
    process = processes.StochasticInterpolant(base=arrays)
    assert process == processes.StochasticInterpolant(base=arrays.x)
    assert process == processes.StochasticInterpolant(base=data.Named(name="two_moons", n=64))
    with pytest.raises(ValueError, match="data set of uint8"):
        processes.StochasticInterpolant(base=data.load("digits"))


def test_independence_is_no_coupling():
    process = laws.process("linear, Brownian", coupling=data.Independent())
    assert process.perturb(KEY, laws.data().sample(KEY, 4), 0.5).y.shape == (4, 2)
    assert models.ExactModel(laws.data(), process)(jnp.zeros((1, 2)), 0.5).velocity.shape == (1, 2)
    losses.InterpolantMatching(process).draw(KEY, {"x": laws.data().sample(KEY, 4)})
    with pytest.raises(TypeError, match=r"expected a coupling of scorelab.data"):
        laws.process("linear, Brownian", coupling=3)


def test_processes_of_equal_numbers_are_equal():
    one, two = laws.process("linear, Brownian"), laws.process("linear, Brownian")
    assert one == two
    assert hash(one) == hash(two)
    other = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), 1.0))
    assert one != other
    points = np.zeros((3, 2), np.float32)
    assert processes.StochasticInterpolant(base=points) == processes.StochasticInterpolant(base=points.copy())
    assert processes.StochasticInterpolant(base=points) != processes.StochasticInterpolant(base=points + 1)


class Late(paths.Path):
    def alpha(self, t, gamma):
        return 1 - t**2

    def beta(self, t, gamma):
        return t**2


def test_a_path_of_your_own_has_its_derivatives():
    process = processes.StochasticInterpolant(path=Late(), base=laws.base())
    c = process.coefficients(np.array([0.25, 0.5]))
    np.testing.assert_allclose(c.d_beta, [0.5, 1.0], rtol=1e-12)
    assert c.d_beta.dtype == np.float64
    np.testing.assert_allclose(jax.jit(lambda t: process.coefficients(t).d_alpha)(jnp.float32(0.25)), -0.5, rtol=1e-6)


class Backwards(paths.Linear):
    def alpha(self, t, gamma):
        return t


class Open(gammas.Gamma):
    def squared(self, t):
        return t


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: processes.StochasticInterpolant(), "base = None"),
        (lambda: processes.StochasticInterpolant(path=paths.Mirror(), base=laws.base()), "expected None"),
        (lambda: processes.StochasticInterpolant(path=paths.Trigonometric(), gamma=gammas.SineSquared(), base=0), "below 1"),
        (lambda: processes.StochasticInterpolant(path=paths.EncodingDecoding(), base=laws.base()), "1 at t = 1/2"),
        (lambda: processes.StochasticInterpolant(path=Backwards(), base=laws.base()), "alpha, beta"),
        (lambda: processes.StochasticInterpolant(gamma=Open(), base=laws.base()), "gamma.2 = 1 at t = 1"),
        (lambda: processes.StochasticInterpolant(base=np.zeros(3)), "expected finite points"),
        (lambda: processes.StochasticInterpolant(base=np.full((2, 2), np.nan)), "expected finite points"),
        (lambda: processes.StochasticInterpolant(base=laws.base(), margin=-1.0), "margin"),
        (lambda: processes.StochasticInterpolant(path=3, base=laws.base()), "expected a Path"),
        (lambda: processes.StochasticInterpolant(base=densities.Gaussian), "not its class"),
        (lambda: processes.StochasticInterpolant(base=laws.base(), coupling=data.Assignment), "not its class"),
        (
            lambda: processes.StochasticInterpolant(base=densities.Uniform(processes.spaces.Sphere(), (3,))),
            r"is a law on Sphere\(\): expected one on Euclidean\(\)",
        ),
        (
            lambda: models.ExactModel(densities.Gaussian(np.zeros(3), 1.0), laws.process("linear, Brownian"))(jnp.zeros((1, 3)), 0.5),
            r"points of shape \(2,\): expected \(3,\)",
        ),
        (lambda: gammas.Brownian(scale=0.0), "scale"),
        (lambda: laws.process("linear, Brownian").check_times("t", 1.5), "expected times from 0 to 1"),
        (lambda: laws.process("linear, Brownian").predict(Y, 0.5, velocity=Y, path_velocity=Y, eta=Y), "was given"),
        (lambda: laws.process("linear, Brownian").predict(Y, 0.5, path_velocity=Y), "was given"),
        (lambda: laws.process("linear, Brownian").predict(Y, 0.5, velocity=Y[:, :1], eta=Y), "shape"),
        (lambda: laws.process("mirror, Brownian").prior(), "both ends"),
        (lambda: models.ExactModel(densities.Rings(), laws.process("linear, Brownian")), "expected a Gaussian or a Gau"),
    ],
)  # fmt: skip
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_nothing_is_denoised_where_nothing_of_the_data_is_left():
    process = laws.process("encoding-decoding")
    found = process.predict(jnp.asarray(Y), 0.6, velocity=jnp.asarray(Y), eta=jnp.asarray(Y))
    with pytest.raises(ValueError, match=r"expected t below 1/2"):
        _ = found.denoised
    inside = jax.jit(lambda y, t: process.predict(y, t, velocity=y, eta=y).denoised)(jnp.asarray(Y, jnp.float32), jnp.float32(0.6))
    assert np.all(np.isnan(inside))
