"""Learned intermediate rewards against their closed forms on a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from scorelab import densities, fk, models, processes, schedules, training

from .chains import VP

SCALE = 0.5


def reward(x):
    return x[:, 0]


class Draws:
    """Batches from the Gaussian, a function of the step."""

    def at(self, step):
        return {"x": np.random.default_rng(step).normal(0.5, 1.0, (512, 1)).astype(np.float32)}


@pytest.mark.parametrize("target", ["mean", "twist"])
def test_the_regression_finds_its_closed_form(target):
    # x_0 given y_t is N(D, s^2): the mean reward is D, the twist D + scale s^2 / 2.
    net = models.Denoiser(net=models.nets.MLP(width=64, depth=2), process=VP, data_std=1.0)
    learner = fk.RewardLearner(net, reward, optax.adam(optax.cosine_decay_schedule(3e-3, 800)), target=target, scale=SCALE)
    state = training.fit(learner, Draws(), steps=800, key=jax.random.key(0))
    found = learner.model(state)
    errors, spread = [], []
    believed, rng = jax.jit(lambda y, t: found(y, t)), np.random.default_rng(1)
    for t in (0.05, 0.2, 0.5, 1.0):
        # Data are N(.5, 1).
        alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
        total = alpha**2 + sigma**2
        y = 0.5 * alpha + np.sqrt(total) * rng.normal(size=(500, 1)).astype(np.float32)
        exact = 0.5 + alpha / total * (y[:, 0] - 0.5 * alpha) + (SCALE / 2 * sigma**2 / total if target == "twist" else 0.0)
        errors.append(np.asarray(believed(y, np.float32(t))) - exact)
        spread.append(exact)
    # 400,000 draws of deviation below 1 and a few hundred effective parameters: an error of a few hundredths.
    assert np.sqrt(np.mean(np.square(errors))) < 0.07
    assert np.std(spread) > 0.5
    if target == "twist":
        # At full noise the two targets differ by 1/4 of a unit: the twist is found, and not the mean.
        assert np.mean(errors[-1]) == pytest.approx(0.0, abs=0.07)
    steering = fk.Difference(reward, SCALE, intermediate=fk.Learned(found))
    assert len(jax.tree.leaves(steering)) == 1 + len(jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(target="median"), ValueError, "target = 'median'"),
        (dict(scale=0.0), ValueError, "scale = 0.0"),
        (dict(reward=3), TypeError, "reward = 3"),
    ],
)
def test_errors_name_the_field(change, error, message):
    net = models.Denoiser(net=models.nets.MLP(), process=VP)
    options = dict(reward=reward) | change
    with pytest.raises(error, match=message):
        fk.RewardLearner(net, options.pop("reward"), optax.adam(1e-3), **options)


def test_one_number_per_point_in_any_shape():
    net = models.Denoiser(net=models.nets.MLP(width=8, depth=1), process=VP)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1))))
    learned = fk.LearnedReward(params=jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params), denoiser=net)
    assert jax.eval_shape(lambda y: learned(y, 0.5), np.zeros((3, 4, 4, 1), np.float32)).shape == (3,)
    # Noise levels of another process are other noise levels.
    y, edm = jnp.zeros((3, 4, 4, 1)), processes.Gaussian(schedule=schedules.EDM())
    with pytest.raises(ValueError, match=r"Learned: sampled.*EDM.* and learned.*VPLinear"):
        jax.eval_shape(lambda: fk.Learned(learned).value(None, 1.0, None, y, edm.predict(y, 0.5, eps=y)))


def test_the_best_beliefs_of_a_gaussian_are_those_in_closed_form():
    # x_0 given y_t is N(D, C): a sampled belief of a linear reward, and the likelihood of a measurement.
    rng, t = np.random.default_rng(0), 0.4
    alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
    y = rng.normal(size=(3, 2)).astype(np.float32)
    ask = jax.jit(lambda model, y, t: model(y, t))
    unit = ask(models.ExactModel(densities.Gaussian(np.zeros(2), 1.0), VP), y, np.float32(t))
    variance, draws, scale = sigma**2 / (alpha**2 + sigma**2), 4000, 0.7
    keys = jax.random.split(jax.random.key(0), 3)
    posterior = fk.Posterior(samples=draws, data_std=1.0)
    found = jax.jit(lambda *seen: posterior.value(lambda x: x[:, 0], jnp.asarray(scale), *seen))(keys, y, unit)
    exact = scale * np.asarray(unit.denoised)[:, 0] + scale**2 * variance / 2
    # Five standard errors of the mean of a log-normal.
    np.testing.assert_allclose(found, exact, atol=5 * np.sqrt(np.expm1(scale**2 * variance) / draws))

    root, mean, matrix, noise = rng.normal(size=(2, 2)), rng.normal(size=2), rng.normal(size=(1, 2)), 0.3
    cov, values = root @ root.T + 0.2 * np.eye(2), rng.normal(size=1)
    law = densities.Gaussian(mean, cov)
    prediction = ask(models.ExactModel(law, VP), y, np.float32(t))
    measurement = models.LinearMeasurement(matrix=matrix, values=values, std=noise)
    belief = fk.Blurred(measurement=measurement, law=law)
    blurred = jax.jit(lambda *seen: belief.value(None, jnp.asarray(1.0), *seen))(keys, y, prediction)
    # Of the joint Gaussian of y_t and m.
    gain = alpha * cov @ np.linalg.inv(alpha**2 * cov + sigma**2 * np.eye(2))
    centre = (mean + (np.asarray(y, np.float64) - alpha * mean) @ gain.T) @ matrix.T
    spread = matrix @ (cov - alpha * gain @ cov) @ matrix.T + noise**2
    np.testing.assert_allclose(blurred, stats.norm.logpdf(values, centre, np.sqrt(spread))[:, 0], atol=1e-4)


def test_a_reward_of_another_shape_would_broadcast_and_is_refused():
    net = models.Denoiser(net=models.nets.MLP(width=8, depth=1), process=VP)
    learner = fk.RewardLearner(net, lambda x: x, optax.adam(1e-3))
    batch = {"x": np.zeros((4, 1), np.float32)}
    with pytest.raises(ValueError, match=r"reward returned shape \(4, 1\): expected \(4,\)"):
        jax.eval_shape(lambda: learner.update(learner.init(jax.random.key(0), batch), batch, jax.random.key(1)))
