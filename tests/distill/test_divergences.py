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


@pytest.fixture(params=list(MEMBERS))
def member(request):
    return MEMBERS[request.param]


def curvature(member, r):
    """f'' r^2 by double automatic differentiation."""
    return jax.vmap(jax.grad(jax.grad(lambda r: member.f(r))))(r) * r**2


@double
def test_h_is_the_curvature_of_f(member):
    r = jnp.exp(jnp.asarray(L))
    np.testing.assert_allclose(member.h(jnp.asarray(L)), curvature(member, r), rtol=1e-9)


def test_h_in_single_precision(member):
    with jax.enable_x64(True):
        exact = np.asarray(curvature(member, jnp.exp(jnp.asarray(L))))
    found = member.h(jnp.asarray(L, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact, rtol=1e-5)


@double
def test_a_divergence_is_convex_and_zero_at_equality(member):
    assert float(member.f(jnp.asarray(1.0))) == pytest.approx(0, abs=1e-15)
    assert np.all(np.asarray(member.h(jnp.asarray(L))) > 0)


@double
def test_the_generator_loss_descends_by_h(member):
    slope = jax.vmap(jax.grad(lambda l: member.generator_loss(l)))(jnp.asarray(L))
    np.testing.assert_allclose(slope, -member.h(jnp.asarray(L)), rtol=1e-9)


@double
def test_weights_stay_finite_far_out(member):
    far = jnp.asarray([-300.0, 300.0])
    assert np.all(np.isfinite(member.log_h(far)))
    assert np.all(np.isfinite(jax.vmap(jax.grad(lambda l: member.log_h(l)))(far)))


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


@pytest.mark.parametrize("case", list(CASES))
@double
def test_weighted_score_differences_are_the_gradient_of_the_divergence(member, case):
    (mean_p, std_p), (mean_q, std_q), sigma = CASES[case]
    x = jnp.asarray(X)
    dx = X[1] - X[0]
    log_p = gaussian_log_prob(x, mean_p, std_p**2 + sigma**2)

    def divergence(theta):
        """By quadrature; the student is N(m, s^2), noised."""
        log_q = gaussian_log_prob(x, theta[0], theta[1] ** 2 + sigma**2)
        return jnp.sum(jnp.exp(log_q) * member.f(jnp.exp(log_p - log_q))) * dx

    theta = jnp.asarray([mean_q, std_q])
    expected = jax.grad(divergence)(theta)
    var_q = std_q**2 + sigma**2
    log_q = gaussian_log_prob(x, mean_q, var_q)
    difference = -(x - mean_p) / (std_p**2 + sigma**2) + (x - mean_q) / var_q
    # E[dy/dtheta | y] for y = m + s z + sigma n: 1 for the mean, E[z | y] = s (y - m) / var for the deviation.
    paths = jnp.stack([jnp.ones_like(x), std_q * (x - mean_q) / var_q])
    found = -jnp.sum(jnp.exp(log_q) * member.h(log_p - log_q) * difference * paths, axis=1) * dx
    # Quadrature is exact to rounding where h q is small at the ends of the grid; 4e-5 for the heaviest tails.
    heavy = isinstance(member, distill.Pearson) or getattr(member, "a", 0) > 1
    np.testing.assert_allclose(found, expected, rtol=4e-5 if heavy else 1e-6)


# What the docstrings say of variances ---------------------------------------------------------------------------------
def variance(member, m):
    """Var_q(h) / E_q[h]^2 for p = N(m, 1), q = N(0, 1)."""
    x = jnp.asarray(X)
    q = jnp.exp(gaussian_log_prob(x, 0.0, 1.0))
    q = q / jnp.sum(q)
    h = member.h(m * x - m**2 / 2)
    return float(jnp.sum(q * h**2) / jnp.sum(q * h) ** 2 - 1)


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


@pytest.mark.parametrize("name", list(CLOSED))
@pytest.mark.parametrize("m", [0.5, 1.0, 1.5])
@double
def test_variance_in_closed_form(name, m):
    assert variance(MEMBERS[name], m) == pytest.approx(CLOSED[name](m), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize(("name", "value"), [("srkl", 0.112), ("js", 0.256), ("le_cam", 0.305)])
@double
def test_variance_of_bounded_weights(name, value):
    # From independent quadrature (scipy), to the digits shown.
    def moment(k):
        share = lambda x: special.expit(x - 0.5)  # r / (1 + r)
        h = {"srkl": lambda u: 1 - u, "js": lambda u: u, "le_cam": lambda u: 8 * u**2 * (1 - u)}[name]
        return stats.norm.expect(lambda x: h(share(x)) ** k)

    assert moment(2) / moment(1) ** 2 - 1 == pytest.approx(value, abs=1e-3)
    assert variance(MEMBERS[name], 1.0) == pytest.approx(moment(2) / moment(1) ** 2 - 1, rel=1e-6)


@double
def test_relatives_agree_where_they_meet():
    l = jnp.asarray(L)
    pairs = [
        (distill.Alpha(0.0), distill.ReverseKL(), 1), (distill.Alpha(1.0), distill.ForwardKL(), 1),
        (distill.Alpha(0.5), distill.SquaredHellinger(), 4), (distill.Alpha(2.0), distill.Pearson(), 0.5),
        (distill.Alpha(-1.0), distill.Neyman(), 0.5), (distill.SkewedJensenShannon(0.5), distill.JensenShannon(), 0.5),
    ]  # fmt: skip
    for one, other, factor in pairs:
        np.testing.assert_allclose(one.h(l), factor * other.h(l), rtol=1e-12)


# Capacity: one Gaussian for two modes ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "start", "mean", "std", "value"),
    [
        ("rkl", -2.0, -2.00, 0.60, 0.356), ("rkl", 2.0, 2.00, 0.61, 1.202), ("rkl", 0.0, -2.00, 0.60, 0.356),
        ("srkl", 2.0, 2.00, 0.61, 0.519), ("js", -2.0, -2.00, 0.61, 0.234), ("js", 0.0, -0.834, 1.887, 0.311),
        ("sqhel", 0.0, -0.816, 1.848, 0.175), ("sqhel", 2.0, 1.97, 0.66, 0.450),
        # Moment matching: the mean and the deviation of the mixture.
        ("fkl", -2.0, -0.800, 1.9287, 0.558), ("fkl", 2.0, -0.800, 1.9287, 0.558), ("jeffreys", 0.0, -0.774, 1.681, 1.726),
    ],
)  # fmt: skip
@double
def test_what_one_gaussian_does_to_two_modes(name, start, mean, std, value):
    # Adam on the quadrature; the forward KL is moment matching, the others to the digits shown.
    member, x = MEMBERS[name], jnp.asarray(np.linspace(-12, 12, 801))
    dx = float(x[1] - x[0])
    log_p = jnp.logaddexp(
        math.log(0.7) + gaussian_log_prob(x, -2.0, 0.36), math.log(0.3) + gaussian_log_prob(x, 2.0, 0.36)
    )

    def divergence(theta):
        log_q = gaussian_log_prob(x, theta[0], jnp.exp(2 * theta[1]))
        return jnp.sum(jnp.exp(log_q) * member.f(jnp.exp(log_p - log_q))) * dx

    @jax.jit
    def descend(theta):
        def step(_, state):
            theta, m, v, k = state
            g = jax.grad(divergence)(theta)
            m, v, k = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2, k + 1
            return theta - 5e-3 * (m / (1 - 0.9**k)) / (jnp.sqrt(v / (1 - 0.999**k)) + 1e-8), m, v, k

        return jax.lax.fori_loop(0, 4000, step, (theta, jnp.zeros(2), jnp.zeros(2), 0.0))[0]

    theta = descend(jnp.asarray([start, math.log(0.6 if start else 1.0)]))
    assert float(theta[0]) == pytest.approx(mean, abs=0.01)
    assert math.exp(theta[1]) == pytest.approx(std, abs=0.01)
    assert float(divergence(theta)) == pytest.approx(value, abs=2e-3)


@pytest.mark.parametrize("wrong", [lambda: distill.Alpha(5.0), lambda: distill.SkewedJensenShannon(0.0)])
def test_parameters_out_of_range_are_named(wrong):
    with pytest.raises(ValueError, match=r"(Alpha\.a|SkewedJensenShannon\.c) = .*expected a number in"):
        wrong()
