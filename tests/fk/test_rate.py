"""The rate of the weights against the Fokker-Planck equation, by automatic differentiation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, fk, models, processes, schedules

VP = processes.Gaussian(schedule=schedules.VPLinear())
EDM = processes.Gaussian(schedule=schedules.EDM())
GBM = processes.GeometricBrownianMotion(sigma=25.0, mu=25.0**2 / 2 + 2.0)


def experts(process, seed=0):
    rng = np.random.default_rng(seed)
    laws = [
        densities.GaussianMixture(rng.uniform(0.2, 1, 3), rng.normal(size=(3, 2)), rng.uniform(0.1, 0.6, (3, 2))) for _ in range(3)
    ]
    return [models.ExactModel(law, process) for law in laws]


def bend(y, t, process, cond):
    """A tilt that is neither quadratic nor constant in time."""
    return jnp.sin(3 * t) * jnp.cos(y[:, 0]) * y[:, 1] + t**2 * jnp.tanh(y[:, 0] * y[:, 1])


CONSTANT, CHANGING = (0.7, -0.4, 1.1), (lambda t: 0.5 + 0.3 * jnp.sin(t), lambda t: -0.4 * jnp.cos(t), 1.2)


@pytest.mark.parametrize("anchor", ["score", "flow"])
@pytest.mark.parametrize(
    ("process", "time", "exponents", "tilt"),
    [(VP, 0.37, CONSTANT, None), (VP, 0.37, CHANGING, bend), (EDM, 0.8, CHANGING, bend), (GBM, 0.002, CONSTANT, bend)],
    ids=["constant", "changing", "edm", "geometric-brownian"],
)
def test_the_rate_balances_the_fokker_planck_equation(anchor, process, time, exponents, tilt):
    r"""h = d_s Phi + div v + v . grad Phi - c^2/2 (Lap Phi + |grad Phi|^2) for the drift the prediction gives, for any noise."""
    with jax.enable_x64(True):
        members = experts(process)
        y = jax.random.normal(jax.random.key(0), (16, 2))
        keys = jax.random.split(jax.random.key(1), 16)
        t = jnp.asarray(time)

        def both_sides(kappa):
            model, _, _ = fk.weighted(members, exponents, tilt=tilt, anchor=anchor, noise=kappa)
            g2 = process.schedule.diffusion_rate(t)

            def phi(y, t):
                return model.log_density(y[None], t)[0]

            def velocity(y):
                return -process.latent_drift(y[None], t)[0] + 0.5 * g2 * (1 + kappa) * model(y[None], t).score[0]

            def master(y):
                gradient, hessian = jax.grad(phi)(y, t), jax.hessian(phi)(y, t)
                flow = -jax.grad(phi, argnums=1)(y, t) + jnp.trace(jax.jacfwd(velocity)(y)) + velocity(y) @ gradient
                return flow - 0.5 * kappa * g2 * (jnp.trace(hessian) + gradient @ gradient)

            return model.evaluate(y, t, None, keys, 0).rate, jax.vmap(master)(y)

        for rate, balance in jax.jit(lambda: [both_sides(kappa) for kappa in (0.0, 0.7, 2.0)])():
            np.testing.assert_allclose(rate, balance, rtol=1e-10, atol=1e-9)


def test_published_cases():
    """Propositions 3.1 to 3.4 of arXiv 2503.02819, written out."""
    with jax.enable_x64(True):
        q1, q2, _ = experts(VP)
        y, t = jax.random.normal(jax.random.key(0), (8, 2)), jnp.asarray(0.4)
        keys = jax.random.split(jax.random.key(1), 8)
        s1, s2, g2 = q1(y, t).score, q2(y, t).score, VP.schedule.diffusion_rate(t)
        dot = lambda a, b: jnp.sum(a * b, axis=1)
        div_f = 2 * VP.schedule.drift_rate(t)
        evaluate = jax.jit(lambda model: model.evaluate(y, t, None, keys, 0).rate)
        rate = lambda corrected: evaluate(corrected.model)
        b = 2.3
        np.testing.assert_allclose(rate(fk.geometric(q1, q2, b)), 0.5 * g2 * b * (b - 1) * dot(s1 - s2, s1 - s2), rtol=1e-10)
        power = (b - 1) * (div_f + 0.5 * g2 * b * dot(s1, s1))
        np.testing.assert_allclose(rate(fk.annealed(q1, b, anchor="score")), power, rtol=1e-10)
        both = b * (b - 1) * 0.5 * g2 * dot(s1 + s2, s1 + s2) + b * g2 * dot(s1, s2) + (2 * b - 1) * div_f
        np.testing.assert_allclose(rate(fk.product([q1, q2], b, anchor="score")), both, rtol=1e-10)

        reward, ramp = lambda x: jnp.sin(x[:, 0]) + x[:, 1] ** 2, lambda process, t: 1 - t
        slope = jax.grad(lambda x: jnp.sum(reward(x)))(y)
        corrected = fk.tilted(q1, reward, b, ramp=ramp)
        f = VP.latent_drift(y, t)
        tilt = b * reward(y) - b * (1 - t) * dot(slope, f) + 0.5 * g2 * b * (1 - t) * dot(slope, s1)
        np.testing.assert_allclose(rate(corrected), tilt, rtol=1e-10)
        # The drift has half of the gradient.
        np.testing.assert_allclose(corrected.model(y, t).score, s1 + 0.5 * b * (1 - t) * slope, rtol=1e-10)


def test_hutchinson_probes_are_unbiased_for_the_divergence():
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        cov = rng.normal(size=(20, 20)) / 4
        law = densities.Gaussian(rng.normal(size=20), cov @ cov.T + 0.1 * np.eye(20))
        model, _, _ = fk.annealed(models.ExactModel(law, VP), 2.0)
        y, t = jnp.tile(jax.random.normal(jax.random.key(0), (1, 20)), (4000, 1)), jnp.asarray(0.3)
        keys = jax.random.split(jax.random.key(1), 4000)
        rate = jax.jit(lambda y, keys, probes: model.evaluate(y, t, None, keys, probes).rate, static_argnums=2)
        exact = rate(y[:1], keys[:1], 0)[0]
        estimates = {probes: np.asarray(rate(y, keys, probes)) for probes in (1, 8)}
        for probes, values in estimates.items():
            assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(4000), probes
        assert estimates[8].var() == pytest.approx(estimates[1].var() / 8, rel=0.15)
        # More than 16 dimensions: eight probes unless told otherwise.
        np.testing.assert_allclose(rate(y, keys, None), estimates[8], rtol=1e-12)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda m: fk.annealed(m, 0.0), ValueError, "annealed.beta = 0.0"),
        (lambda m: fk.product([m, m], -1.0), ValueError, "product.beta = -1.0"),
        (lambda m: fk.weighted([m], [1.0, 2.0]), ValueError, "1 models and 2 exponents"),
        (lambda m: fk.weighted([m], [1.0], anchor="best"), ValueError, "anchor = 'best'"),
        (lambda m: fk.annealed(m, 2.0, rule="right"), ValueError, "rule = 'right'"),
        (lambda m: fk.weighted([lambda y, t, cond: None], [lambda t: t]), ValueError, "log_prob"),
        (lambda m: fk.weighted([m, m, m], [1, 1, 1], laws=[m.law, m.law]), ValueError, "laws has 2"),
        (lambda m: fk.annealed(m, 2.0, anchors="flow"), TypeError, "anchors"),
        (lambda m: fk.annealed(m, 2.0, noise=-1.0), ValueError, "noise = -1.0"),
        (lambda m: fk.tilted(m, 3.0), TypeError, "Tilt.reward = 3.0"),
    ],
)
def test_errors_name_the_field(build, error, message):
    with pytest.raises(error, match=message):
        build(experts(VP)[0])
