"""The equivalences between the losses of multiplicative diffusion, against quadrature and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, losses, models, processes, schedules

from .targets import PAPER, PROCESSES, correlated, three_modes

KEY = jax.random.key(3)


def times(process):
    """Log-SNR from 0.5, or from the least that the process has, to 6."""
    least = float(process.log_snr(process.t_max))
    return losses.UniformLogSNRTimes(log_snr_min=max(0.5, least), log_snr_max=6.0)


TIMES = times(PAPER)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Distorted:
    """The exact model plus a fixed smooth error in the predicted noise."""

    def __init__(self, law, process, size=0.4, frequency=2.0):
        self.exact, self.process, self.size, self.frequency = models.ExactModel(law, process), process, size, frequency

    def __call__(self, y, t, cond=None):
        error = self.size * jnp.sin(self.frequency * y[..., ::-1] + 0.3)
        return self.process.predict(y, t, eps=self.exact(y, t).eps + error)


@pytest.mark.parametrize("name", PROCESSES)
def test_m_dsm_with_the_variance_as_weight_is_noise_matching(name):
    process = PROCESSES[name]
    law = correlated()
    model = Distorted(law, process)
    loss = losses.MultiplicativeDenoisingScoreMatching(process, times=times(process))

    @jax.jit
    def both():
        key_times, key_noise, _ = jax.random.split(KEY, 3)
        x, t = law.sample(KEY, 64), loss.times(key_times, process, 64)
        noised = process.perturb(key_noise, x, t)
        return *loss.evaluate(model, loss.draw(KEY, {"x": x})), model(noised.y, t).eps - noised.noise

    got, metrics, eps_error = jax.device_get(both())
    np.testing.assert_allclose(got, 0.5 * np.mean(eps_error**2, 1), rtol=1e-12)
    assert float(metrics["eps_mse"]) == pytest.approx(float(np.mean(eps_error**2)), rel=1e-12)


def test_m_dsm_is_its_formula_for_any_weight():
    # 1/2 lambda || x o s + 1 + eps / sqrt(v) ||^2 with the Stein score s of the model, written out.
    law = correlated()
    model = Distorted(law, PAPER)

    def weighting(process, t):
        return 1.0 + jnp.sin(5 * t) ** 2

    loss = losses.MultiplicativeDenoisingScoreMatching(PAPER, times=TIMES, weighting=weighting)

    @jax.jit
    def both():
        key_times, key_noise, _ = jax.random.split(KEY, 3)
        x, t = law.sample(KEY, 64), TIMES(key_times, PAPER, 64)
        noised = PAPER.perturb(key_noise, x, t)
        error = PAPER.decode(noised.y) * model(noised.y, t).stein_score + 1 + noised.noise / PAPER.sigma(t)[:, None]
        return loss(KEY, model, {"x": x}), 0.5 * weighting(PAPER, t) * jnp.mean(error**2, 1)

    np.testing.assert_allclose(*both(), rtol=1e-10)


@pytest.mark.parametrize("name", ["paper", pytest.param("growing", marks=pytest.mark.long), "time-varying"])
def test_m_dsm_is_m_esm_up_to_a_constant_of_the_data(name):
    process, law, n = PROCESSES[name], correlated(), 200_000
    dsm = losses.MultiplicativeDenoisingScoreMatching(process, times=times(process))
    esm = losses.MultiplicativeExplicitScoreMatching(process, law, times=times(process))
    model, exact = Distorted(law, process), models.ExactModel(law, process)

    @jax.jit
    def values():
        x = law.sample(jax.random.key(1), n)
        return [loss(KEY, m, {"x": x}) for loss, m in ((esm, model), (dsm, model), (dsm, exact), (esm, exact))]

    explicit, implied, least, zero = map(np.asarray, values())
    difference = implied - least - explicit
    assert abs(difference.mean()) < 3 * difference.std() / np.sqrt(n)
    assert explicit.mean() > 30 * difference.std() / np.sqrt(n)
    np.testing.assert_allclose(zero, 0.0, atol=1e-20)


def random_model(coefficients):
    a, b, c = coefficients
    score = lambda y, t, cond: a * jnp.tanh(b * y) + c * jnp.sin(y[..., ::-1]) - 0.5 * y
    return models.FunctionModel(score, PAPER, returns="score")


def coefficients(seed):
    return np.random.default_rng(seed).normal(size=3)


@pytest.mark.parametrize("law", [three_modes(), correlated(2, seed=4)], ids=["1d", "2d"])
def test_implicit_score_matching_is_explicit_score_matching_less_half_the_square_of_the_score(law):
    # Both objectives per element, by the trapezoid rule on a grid of log x.
    side = np.linspace(-6.0, 6.0, 40_001 if law.event == (1,) else 401)
    y = np.stack(np.meshgrid(*[side] * law.event[0], indexing="ij"), -1).reshape(-1, law.event[0])
    weight = lambda y: jnp.exp(law.logs.log_prob(y)) * (side[1] - side[0]) ** law.event[0]

    @jax.jit
    def constants(y, coefficients):
        x, weights = jnp.exp(y), weight(y)
        score = law.hyvarinen_score(x)

        def difference(coefficients):
            model = random_model(coefficients)
            implicit = losses.NonNegativeScoreMatching(PAPER)(KEY, model, {"x": x})
            error = model(y, jnp.full(len(x), PAPER.t_min)).hyvarinen_score - score
            return weights @ (0.5 * jnp.mean(error**2, 1) - implicit)

        return jax.lax.map(difference, coefficients), weights @ (0.5 * jnp.mean(score**2, 1))

    found, half_square = constants(y, np.stack([coefficients(seed) for seed in range(4)]))
    np.testing.assert_allclose(found, half_square, atol=1e-5)


def test_hutchinsons_estimate_of_the_implicit_loss_is_unbiased():
    law = correlated(3)
    model = random_model(coefficients(1))

    @jax.jit
    def both():
        x = jnp.broadcast_to(law.sample(KEY, 1), (2000, 3))
        value = lambda probes, x: losses.NonNegativeScoreMatching(PAPER, **probes)(KEY, model, {"x": x})
        return value({}, x[:1])[0], value(dict(probes=2), x)

    exact, estimate = map(np.asarray, both())
    assert estimate.std() > 1e-3
    assert abs(estimate.mean() - exact) < 4 * estimate.std() / np.sqrt(len(estimate))


def test_implicit_score_matching_of_noised_data_has_its_minimum_at_the_exact_score():
    # Directional derivative at the exact model: zero within its standard error; away from it, not.
    law, n = correlated(), 100_000
    loss = losses.NonNegativeScoreMatching(PAPER, times=TIMES)

    @jax.jit
    def slopes(at):
        x = law.sample(jax.random.key(1), n)
        value = lambda size: loss(KEY, Distorted(law, PAPER, size), {"x": x})
        return jax.jvp(value, (at,), (1.0,))[1]

    for at, low, high in ((0.0, 0.0, 4.0), (0.3, 8.0, np.inf)):
        g = np.asarray(slopes(at))
        assert low <= abs(g.mean()) / (g.std() / np.sqrt(n)) < high


def test_regression_on_the_m_dsm_target_recovers_the_hyvarinen_score():
    # 169 Gaussian bumps, a constant and log x: the least-squares fit of -1 - eps / sqrt(v) at t = 0.3. What remains is
    # the noise of n targets on 172 coefficients (about 172 / n of the target's variance) and what the bumps cannot hold.
    law, t, n = correlated(), 0.3, 200_000

    @jax.jit
    def drawn():
        noised = PAPER.perturb(KEY, law.sample(jax.random.key(1), n), t)
        exact = law.noised(PAPER, t).hyvarinen_score(PAPER.decode(noised.y[:20_000]))
        return noised.y, -1 - noised.noise / PAPER.sigma(t), exact

    y, target, exact = map(np.asarray, drawn())
    centres = np.linspace(-3.0, 3.0, 13)

    def features(y):
        one = np.exp(-((y[:, :, None] - centres) ** 2) / (2 * 0.5**2))
        return np.concatenate([(one[:, 0, :, None] * one[:, 1, None]).reshape(len(y), -1), np.ones((len(y), 1)), y], 1)

    gram, moment = 1e-6 * np.eye(172), np.zeros((172, 2))
    for part in np.array_split(np.arange(n), 10):
        f = features(y[part])
        gram, moment = gram + f.T @ f, moment + f.T @ target[part]
    fitted = features(y[:20_000]) @ np.linalg.solve(gram, moment)
    assert np.mean((fitted - exact) ** 2) / np.mean(exact**2) < 1e-3


def test_the_losses_name_what_they_were_given():
    additive = processes.Gaussian(schedule=schedules.EDM())
    for build in (
        lambda: losses.MultiplicativeDenoisingScoreMatching(additive),
        lambda: losses.NonNegativeScoreMatching(additive),
        lambda: losses.MultiplicativeExplicitScoreMatching(additive, three_modes()),
    ):
        with pytest.raises(TypeError, match="GeometricBrownianMotion"):
            build()
    with pytest.raises(TypeError, match="Density"):
        losses.MultiplicativeExplicitScoreMatching(PAPER, densities)
    with pytest.raises(TypeError, match="floating"):
        losses.NonNegativeScoreMatching(PAPER)(KEY, random_model(coefficients(1)), {"x": jnp.ones((2, 1), jnp.int32)})
    assert hash(losses.MultiplicativeDenoisingScoreMatching(PAPER)) == hash(losses.MultiplicativeDenoisingScoreMatching(PAPER))
