"""Divergences against their definitions: the weight h, the theorem by quadrature, the GAN identity, variances in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from scorelab import distill
from tests.precision import double

pytestmark = pytest.mark.usefixtures("quick_compilation")

# One row each: the divergence, and whether h is bounded.
MEMBERS = {
    "rkl": distill.ReverseKL(),
    "srkl": distill.SoftenedReverseKL(),
    "js": distill.JensenShannon(),
    "sqhel": distill.SquaredHellinger(),
    "fkl": distill.ForwardKL(),
    "jeffreys": distill.Jeffreys(),
    "alpha_half": distill.Alpha(0.5),
    "alpha_-1.5": distill.Alpha(-1.5),
    "alpha_0": distill.Alpha(0.0),
    "alpha_1": distill.Alpha(1.0),
    "alpha_1.7": distill.Alpha(1.7),
    "skewed_half": distill.SkewedJensenShannon(0.5),
    "skewed_.1": distill.SkewedJensenShannon(0.1),
    "skewed_.8": distill.SkewedJensenShannon(0.8),
    "le_cam": distill.LeCam(),
    "neyman": distill.Neyman(),
    "pearson": distill.Pearson(),
}
L = np.linspace(-6, 6, 241)
M = [0.5, 1.0, 1.5]


FAR = np.array([-300.0, 300.0])


@pytest.fixture(params=list(MEMBERS))
def name(request):
    return request.param


@pytest.fixture(scope="module")
def found():
    """What the tests look at, of all members, in one program: the weight and its definition in float64, and far out."""

    def of(member, l):
        # f'' r^2 by double automatic differentiation.
        curvature = jax.vmap(jax.grad(jax.grad(member.f)))(jnp.exp(l)) * jnp.exp(2 * l)
        return dict(
            h=member.h(l),
            curvature=curvature,
            slope=jax.vmap(jax.grad(member.generator_loss))(l),
            zero=member.f(jnp.ones(())),
            far=(member.log_h(jnp.asarray(FAR)), jax.vmap(jax.grad(member.log_h))(jnp.asarray(FAR))),
        )

    with jax.enable_x64(True):
        return jax.device_get(jax.jit(lambda l: {name: of(member, l) for name, member in MEMBERS.items()})(L))


@pytest.fixture(scope="module")
def single():
    """The weights in float32."""
    return jax.device_get(jax.jit(lambda l: {name: member.h(l) for name, member in MEMBERS.items()})(np.float32(L)))


def test_h_is_the_curvature_of_f(name, found):
    np.testing.assert_allclose(found[name]["h"], found[name]["curvature"], rtol=1e-9)


def test_h_in_single_precision(name, found, single):
    assert single[name].dtype == np.float32
    np.testing.assert_allclose(single[name], found[name]["curvature"], rtol=1e-5)


def test_a_divergence_is_convex_and_zero_at_equality(name, found):
    assert float(found[name]["zero"]) == pytest.approx(0, abs=1e-15)
    assert np.all(found[name]["h"] > 0)


def test_the_generator_loss_descends_by_h(name, found):
    np.testing.assert_allclose(found[name]["slope"], -found[name]["h"], rtol=1e-9)


def test_weights_stay_finite_far_out(name, found):
    for values in found[name]["far"]:
        assert np.all(np.isfinite(values))


# The theorem ----------------------------------------------------------------------------------------------------------
# The sum is spectrally accurate for smooth densities that vanish at the ends.
X = np.linspace(-14, 14, 2801)
CASES = {
    "wide": ((0.3, 1.2), (-0.4, 1.0), 0.5),
    "shifted": ((0.0, 1.0), (1.5, 0.8), 0.0),
    "noisier": ((-0.7, 0.9), (0.5, 1.1), 1.3),
}


def gaussian_log_prob(x, mean, var):
    return -0.5 * (x - mean) ** 2 / var - 0.5 * jnp.log(2 * jnp.pi * var)


@pytest.fixture(scope="module")
def theorem():
    """Both sides for each member: a row for each case."""
    dx = X[1] - X[0]

    def sides(member, x, p, q, sigma):
        (mean_p, std_p), (mean_q, std_q) = p, q
        log_p = gaussian_log_prob(x, mean_p, std_p**2 + sigma**2)

        def divergence(theta):
            """By quadrature; the student is N(m, s^2), noised."""
            log_q = gaussian_log_prob(x, theta[0], theta[1] ** 2 + sigma**2)
            return jnp.sum(jnp.exp(log_q) * member.f(jnp.exp(log_p - log_q))) * dx

        expected = jax.grad(divergence)(q)
        var_q = std_q**2 + sigma**2
        log_q = gaussian_log_prob(x, mean_q, var_q)
        difference = -(x - mean_p) / (std_p**2 + sigma**2) + (x - mean_q) / var_q
        # E[dy/dtheta | y] for y = m + s z + sigma n: 1 for the mean, E[z | y] = s (y - m) / var for the deviation.
        paths = jnp.stack([jnp.ones_like(x), std_q * (x - mean_q) / var_q])
        return -jnp.sum(jnp.exp(log_q) * member.h(log_p - log_q) * difference * paths, axis=1) * dx, expected

    cases = [np.array(column) for column in zip(*CASES.values(), strict=True)]
    with jax.enable_x64(True):
        of = lambda member, x: jax.vmap(lambda *case: sides(member, x, *case))(*cases)
        return jax.device_get(jax.jit(lambda x: {name: of(member, x) for name, member in MEMBERS.items()})(X))


@pytest.mark.parametrize("case", list(CASES))
def test_weighted_score_differences_are_the_gradient_of_the_divergence(name, case, theorem):
    found, expected = (side[list(CASES).index(case)] for side in theorem[name])
    # Quadrature is exact to rounding where h q is small at the ends of the grid; 4e-5 for the heaviest tails.
    heavy = isinstance(MEMBERS[name], distill.Pearson) or getattr(MEMBERS[name], "a", 0) > 1
    np.testing.assert_allclose(found, expected, rtol=4e-5 if heavy else 1e-6)


# What the docstrings say of variances ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def variances():
    """Var_q(h) / E_q[h]^2 for p = N(m, 1), q = N(0, 1), a number for each m in M."""
    q = stats.norm.pdf(X) / np.sum(stats.norm.pdf(X))

    def of(h):
        return np.sum(q * h**2, axis=1) / np.sum(q * h, axis=1) ** 2 - 1

    l = np.outer(M, X) - np.square(M)[:, None] / 2
    with jax.enable_x64(True):
        weights = jax.jit(lambda l: {name: member.h(l) for name, member in MEMBERS.items()})(l)
        return {name: of(np.asarray(h)) for name, h in weights.items()}


CLOSED = {
    "rkl": lambda m: 0.0,
    "sqhel": lambda m: math.expm1(m**2 / 4),
    "fkl": lambda m: math.expm1(m**2),
    "jeffreys": lambda m: math.expm1(m**2) / 4,
    "neyman": lambda m: math.expm1(m**2),
    "pearson": lambda m: math.expm1(4 * m**2),
    "alpha_half": lambda m: math.expm1(m**2 / 4),
    "alpha_-1.5": lambda m: math.expm1(2.25 * m**2),
    "alpha_1.7": lambda m: math.expm1(1.7**2 * m**2),
}


@pytest.mark.parametrize("closed", list(CLOSED))
@pytest.mark.parametrize("m", M)
def test_variance_in_closed_form(closed, m, variances):
    assert variances[closed][M.index(m)] == pytest.approx(CLOSED[closed](m), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("bounded", "value"), [("srkl", 0.112), ("js", 0.256), ("le_cam", 0.305)])
def test_variance_of_bounded_weights(bounded, value, variances):
    # From independent quadrature (scipy), to the digits shown.
    def moment(k):
        share = lambda x: special.expit(x - 0.5)  # r / (1 + r)
        h = {"srkl": lambda u: 1 - u, "js": lambda u: u, "le_cam": lambda u: 8 * u**2 * (1 - u)}[bounded]
        return stats.norm.expect(lambda x: h(share(x)) ** k)

    assert moment(2) / moment(1) ** 2 - 1 == pytest.approx(value, abs=1e-3)
    assert variances[bounded][M.index(1.0)] == pytest.approx(moment(2) / moment(1) ** 2 - 1, rel=1e-6)


def test_relatives_agree_where_they_meet():
    pairs = [
        (distill.Alpha(0.0), distill.ReverseKL(), 1), (distill.Alpha(1.0), distill.ForwardKL(), 1),
        (distill.Alpha(0.5), distill.SquaredHellinger(), 4), (distill.Alpha(2.0), distill.Pearson(), 0.5),
        (distill.Alpha(-1.0), distill.Neyman(), 0.5), (distill.SkewedJensenShannon(0.5), distill.JensenShannon(), 0.5),
    ]  # fmt: skip
    with jax.enable_x64(True):
        weights = jax.jit(lambda l: [(one.h(l), other.h(l)) for one, other, _ in pairs])(L)
    for (one, other), (*_, factor) in zip(weights, pairs, strict=True):
        np.testing.assert_allclose(one, factor * np.asarray(other), rtol=1e-12)


# Capacity: one Gaussian for two modes ---------------------------------------------------------------------------------
# Divergence, start, and the minimum: mean, deviation and value, to the digits shown.
MINIMA = [
    ("rkl", -2.0, -2.00, 0.60, 0.356), ("rkl", 2.0, 2.00, 0.61, 1.202), ("rkl", 0.0, -2.00, 0.60, 0.356),
    ("srkl", 2.0, 2.00, 0.61, 0.519), ("js", -2.0, -2.00, 0.61, 0.234), ("js", 0.0, -0.834, 1.887, 0.311),
    ("sqhel", 0.0, -0.816, 1.848, 0.175), ("sqhel", 2.0, 1.97, 0.66, 0.450),
    # Moment matching: the mean and the deviation of the mixture.
    ("fkl", -2.0, -0.800, 1.9287, 0.558), ("fkl", 2.0, -0.800, 1.9287, 0.558), ("jeffreys", 0.0, -0.774, 1.681, 1.726),
]  # fmt: skip


@double
def test_what_one_gaussian_does_to_two_modes():
    # Adam on the quadrature, all starts at once; the forward KL is moment matching, the others to the digits shown.
    # The sum is accurate to exp(-2 (pi std / step)^2), nothing at a step of a fifth of the smallest deviation.
    x = np.linspace(-12, 12, 201)
    log_p = np.log(0.7 * stats.norm.pdf(x, -2.0, 0.6) + 0.3 * stats.norm.pdf(x, 2.0, 0.6))

    def divergences(theta):
        log_q = gaussian_log_prob(x, theta[:, :1], jnp.exp(2 * theta[:, 1:]))
        ratio = jnp.exp(log_p - log_q)
        f = [MEMBERS[name].f(ratio[i]) for i, (name, *_) in enumerate(MINIMA)]
        return jnp.sum(jnp.exp(log_q) * jnp.stack(f), axis=1) * (x[1] - x[0])

    @jax.jit
    def descend(theta):
        def step(_, state):
            theta, m, v, k = state
            g = jax.grad(lambda theta: jnp.sum(divergences(theta)))(theta)
            m, v, k = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, k + 1
            return theta - 5e-3 * (m / (1 - 0.9**k)) / (jnp.sqrt(v / (1 - 0.999**k)) + 1e-8), m, v, k

        theta = jax.lax.fori_loop(0, 4000, step, (theta, jnp.zeros_like(theta), jnp.zeros_like(theta), 0.0))[0]
        return theta, divergences(theta)

    theta, values = map(np.asarray, descend(np.array([[start, math.log(0.6 if start else 1.0)] for _, start, *_ in MINIMA])))
    for (name, start, mean, std, value), (found, log_std), least in zip(MINIMA, theta, values, strict=True):
        assert float(found) == pytest.approx(mean, abs=0.01), (name, start)
        assert math.exp(log_std) == pytest.approx(std, abs=0.01), (name, start)
        assert float(least) == pytest.approx(value, abs=2e-3), (name, start)


@pytest.mark.parametrize("wrong", [lambda: distill.Alpha(5.0), lambda: distill.SkewedJensenShannon(0.0)])
def test_parameters_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=r"(Alpha\.a|SkewedJensenShannon\.c) = .*expected a number in"):
        wrong()
