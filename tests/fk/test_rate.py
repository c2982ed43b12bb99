"""The rate of the weights against the Fokker-Planck equation, by automatic differentiation."""

import dataclasses

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


PATHS = {
    "constant": (VP, 0.37, CONSTANT, None), "changing": (VP, 0.37, CHANGING, bend), "edm": (EDM, 0.8, CHANGING, bend),
    "geometric-brownian": (GBM, 0.002, CONSTANT, bend),
}  # fmt: skip
# Every path, anchor and noise once; the other combinations are in the long tail.
FEW = [
    ("constant", "score", (0.7,)), ("changing", "flow", (0.0,)), ("edm", "score", (2.0,)), ("geometric-brownian", "flow", (0.7,)),
]  # fmt: skip
ALL = [pytest.param(path, anchor, (0.0, 0.7, 2.0), marks=pytest.mark.long) for path in PATHS for anchor in ("score", "flow")]


@pytest.mark.parametrize(("path", "anchor", "noises"), [*FEW, *ALL])
def test_the_rate_balances_the_fokker_planck_equation(path, anchor, noises):
    r"""h = d_s Phi + div v + v . grad Phi - c^2/2 (Lap Phi + |grad Phi|^2) for the drift the prediction gives, for any noise."""
    process, time, exponents, tilt = PATHS[path]
    with jax.enable_x64(True):
        members = experts(process)
        y = np.random.default_rng(0).normal(size=(16, 2))
        keys = jax.random.split(jax.random.key(1), 16)
        of_noise = [fk.weighted(members, exponents, tilt=tilt, anchor=anchor, noise=kappa).model for kappa in noises]

        def both_sides():
            t = jnp.asarray(time)
            g2 = process.schedule.diffusion_rate(t)

            def phi(y, t):
                return of_noise[0].log_density(y[None], t)[0]

            def of_target(y):
                return jax.grad(phi, argnums=(0, 1))(y, t), jax.hessian(phi)(y, t)

            (gradient, change), hessian = jax.vmap(of_target)(y)
            square = jnp.trace(hessian, axis1=1, axis2=2) + jnp.sum(gradient**2, axis=1)

            def balance(kappa, model):
                def velocity(y):
                    return -process.latent_drift(y[None], t)[0] + 0.5 * g2 * (1 + kappa) * model(y[None], t).score[0]

                moved, divergence = jax.vmap(velocity)(y), jnp.trace(jax.vmap(jax.jacfwd(velocity))(y), axis1=1, axis2=2)
                return -change + divergence + jnp.sum(moved * gradient, axis=1) - 0.5 * kappa * g2 * square

            rates = [model.evaluate(jnp.asarray(y), t, None, keys, 0).rate for model in of_noise]
            return rates, [balance(*pair) for pair in zip(noises, of_noise, strict=True)]

        for rate, balance in zip(*jax.jit(both_sides)(), strict=True):
            np.testing.assert_allclose(rate, balance, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("anchor", ["score", "flow"])
@pytest.mark.parametrize("exponents", [(2.5, -1.5), (1.5, -0.75, 0.25)])
def test_a_rate_of_near_experts_keeps_its_digits_at_low_noise(exponents, anchor):
    r"""Points N(m_i, v) of exponents with the sum 1: h = -g^2/2 sum_{i<j} b_i b_j |m_i - m_j|^2 / (v + sigma^2)^2.

    Scores are about 1 / sigma and differ by a hundredth of that. Each has three roundings of 2^-24, so their difference is off by
    3e-5 of itself at most, and its square by 6e-5. A difference of squares would be off by a hundred times as much.
    """
    sigma, variance, d = 2.0**-7, 2.0**-20, 16
    rng = np.random.default_rng(0)
    mean = rng.normal(size=d)
    means = [np.float32(mean + 0.01 * sigma * rng.normal(size=d)) for _ in exponents]
    y = np.float32(mean + sigma * rng.normal(size=(32, d)))
    members = [models.ExactModel(densities.Gaussian.diagonal(m, np.full(d, np.float32(variance))), EDM) for m in means]
    model = fk.weighted(members, exponents, anchor=anchor).model
    t = jnp.float32(EDM.schedule.time(-2 * np.log(sigma)))
    rate = jax.jit(lambda y: model.evaluate(y, t, None, jax.random.split(jax.random.key(1), len(y)), 0).rate)(y)
    assert rate.dtype == jnp.float32
    gap = lambda i, j: np.sum((means[i].astype(float) - means[j]) ** 2)
    apart = sum(exponents[i] * exponents[j] * gap(i, j) for j in range(len(exponents)) for i in range(j))
    # Of EDM the noise level is the time, so that g^2 = 2 sigma.
    np.testing.assert_allclose(rate, -sigma * apart / (variance + sigma**2) ** 2, rtol=1e-4)


def test_published_cases():
    """Propositions 3.1 to 3.4 of arXiv 2503.02819, written out."""
    reward, ramp = lambda x: jnp.sin(x[:, 0]) + x[:, 1] ** 2, lambda process, t: 1 - t
    b = 2.3
    with jax.enable_x64(True):
        q1, q2, _ = experts(VP)
        keys = jax.random.split(jax.random.key(1), 8)
        cases = [
            fk.geometric(q1, q2, b), fk.annealed(q1, b, anchor="score"), fk.product([q1, q2], b, anchor="score"),
            fk.tilted(q1, reward, b, ramp=ramp),
        ]  # fmt: skip

        @jax.jit
        def ours_and_theirs(y, t):
            s1, s2, g2 = q1(y, t).score, q2(y, t).score, VP.schedule.diffusion_rate(t)
            dot = lambda a, b: jnp.sum(a * b, axis=1)
            div_f, f = 2 * VP.schedule.drift_rate(t), VP.latent_drift(y, t)
            slope = jax.grad(lambda x: jnp.sum(reward(x)))(y)
            published = [
                0.5 * g2 * b * (b - 1) * dot(s1 - s2, s1 - s2),
                (b - 1) * (div_f + 0.5 * g2 * b * dot(s1, s1)),
                b * (b - 1) * 0.5 * g2 * dot(s1 + s2, s1 + s2) + b * g2 * dot(s1, s2) + (2 * b - 1) * div_f,
                b * reward(y) - b * (1 - t) * dot(slope, f) + 0.5 * g2 * b * (1 - t) * dot(slope, s1),
            ]
            rates = [case.model.evaluate(y, t, None, keys, 0).rate for case in cases]
            # The drift has half of the gradient.
            return rates, published, cases[-1].model(y, t).score, s1 + 0.5 * b * (1 - t) * slope

        rates, published, drift, expected = ours_and_theirs(np.random.default_rng(0).normal(size=(8, 2)), 0.4)
        for found, exact in zip(rates, published, strict=True):
            np.testing.assert_allclose(found, exact, rtol=1e-10)
        np.testing.assert_allclose(drift, expected, rtol=1e-10)


ASKED = []


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shifted(models.base.KnowsDensity):
    """N(c, v) in every element under the condition c, N(0, v) without one."""

    variance: float
    process = VP

    def __call__(self, y, t, cond=None):
        ASKED.append(cond)
        c = jnp.zeros((len(y), 1)) if cond is None else cond[:, None]
        law = densities.Gaussian.diagonal(jnp.zeros(y.shape[1]), self.variance * jnp.ones(y.shape[1]))
        prediction = models.ExactModel(law, VP)(y - VP.alpha(t) * c, t)
        return dataclasses.replace(prediction, denoised=prediction.denoised + c)


def test_conditions_reach_every_expert_but_the_unconditional_one():
    b, v, t = 2.3, 0.4, 0.37
    y, cond = np.random.default_rng(0).normal(size=(8, 2)), np.linspace(-2, 3, 8)
    with jax.enable_x64(True):
        model, keys = Shifted(v), jax.random.split(jax.random.key(1), 8)
        geometric = fk.geometric(model, model, b).model
        changing = fk.weighted([model], [lambda t: 1 + t], anchor="score").model

        @jax.jit
        def found(y, t, cond):
            rates = [composition.evaluate(y, t, cond, keys, 0).rate for composition in (geometric, changing)]
            logs = [composition.log_density(y, t, cond) for composition in (geometric, changing)]
            return rates, logs, geometric(y, t, cond).score

        (rate, changing_rate), (log, changing_log), score = found(y, t, cond)
        # With one call of each: the rate takes the density from the prediction.
        ASKED.clear()
        jax.eval_shape(lambda y, cond: changing.evaluate(y, jnp.asarray(t), cond, keys, 0), y, cond)
        assert len(ASKED) == 1
        alpha, sigma, f, g2 = (float(h(t)) for h in (VP.alpha, VP.sigma, VP.schedule.drift_rate, VP.schedule.diffusion_rate))
    total = alpha**2 * v + sigma**2
    bound, free = (-(y - alpha * c) / total for c in (cond[:, None], 0.0))
    log_bound, log_free = (-0.5 * total * np.sum(s**2, axis=1) - np.log(2 * np.pi * total) for s in (bound, free))
    np.testing.assert_allclose(log, (1 - b) * log_free + b * log_bound, rtol=1e-10)
    np.testing.assert_allclose(score, (1 - b) * free + b * bound, rtol=1e-10)
    np.testing.assert_allclose(rate, 0.5 * g2 * b * (b - 1) * np.sum((bound - free) ** 2, axis=1), rtol=1e-10)
    np.testing.assert_allclose(changing_log, (1 + t) * log_bound, rtol=1e-10)
    expected = t * (2 * f + 0.5 * g2 * (1 + t) * np.sum(bound**2, axis=1)) - log_bound
    np.testing.assert_allclose(changing_rate, expected, rtol=1e-10)


def test_hutchinson_probes_are_unbiased_for_the_divergence():
    with jax.enable_x64(True):
        rng = np.random.default_rng(3)
        cov = rng.normal(size=(20, 20)) / 4
        law = densities.Gaussian(rng.normal(size=20), cov @ cov.T + 0.1 * np.eye(20))
        model, _, _ = fk.annealed(models.ExactModel(law, VP), 2.0)
        y, t = np.tile(rng.normal(size=(1, 20)), (4000, 1)), np.float64(0.3)
        keys = jax.random.split(jax.random.key(1), 4000)
        rate = jax.jit(lambda y, keys, probes: model.evaluate(y, t, None, keys, probes).rate, static_argnums=2)
        exact = rate(y[:1], keys[:1], 0)[0]
        estimates = {probes: np.asarray(rate(y, keys, probes)) for probes in (1, 8)}
        for probes, values in estimates.items():
            assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(4000), probes
        assert estimates[8].var() == pytest.approx(estimates[1].var() / 8, rel=0.15)
        # More than 16 dimensions: eight probes unless told otherwise.
        np.testing.assert_allclose(rate(y, keys, None), estimates[8], rtol=1e-12)


ONE = experts(VP)[0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda m: fk.annealed(m, 0.0), ValueError, "annealed.beta = 0.0"),
        (lambda m: fk.product([m, m], -1.0), ValueError, "product.beta = -1.0"),
        (lambda m: fk.weighted([m], [1.0, 2.0]), ValueError, "1 models and 2 exponents"),
        (lambda m: fk.weighted([m], [1.0], anchor="best"), ValueError, "anchor = 'best'"),
        (lambda m: fk.annealed(m, 2.0, rule="right"), ValueError, "rule = 'right'"),
        (lambda m: fk.weighted([models.FunctionModel(lambda y, t, cond: y, VP)], [lambda t: t]), ValueError, "log_prob"),
        (lambda m: fk.weighted([m, m, m], [1, 1, 1], laws=[m.law, m.law]), ValueError, "laws has 2"),
        (lambda m: fk.annealed(m, 2.0, anchors="flow"), TypeError, "anchors"),
        (lambda m: fk.annealed(m, 2.0, noise=-1.0), ValueError, "noise = -1.0"),
        (lambda m: fk.tilted(m, 3.0), TypeError, "Tilt.reward = 3.0"),
        (
            lambda m: fk.annealed(models.RewardGradient(model=m, reward=lambda x: x[:, 0]), 2.0).model(jnp.zeros((2, 2)), 0.5),
            ValueError,
            r"Composition.models: RewardGradient gives guided predictions.*expected .* a tilt",
        ),
    ],
)
def test_errors_name_the_field(build, error, message):
    with pytest.raises(error, match=message):
        build(ONE)
