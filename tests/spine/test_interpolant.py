r"""A two-sided interpolant, in one file outside the library: data at one end, another law at the other, and noise between them.

.. math:: y_t = (1-t)\,x_0 + t\,x_1 + \gamma_t z,\qquad \gamma_t = \sqrt{2t(1-t)},\qquad
          u(y, t) = E[\dot y_t\mid y_t = y] .

For independent ends :math:`N(m_i, s_i^2)` the law of :math:`y_t` is Gaussian with the mean :math:`m_t = (1-t)m_0 + t m_1` and the
variance :math:`v_t = (1-t)^2s_0^2 + t^2s_1^2 + \gamma_t^2`, and :math:`u = \dot m_t + \tfrac{\dot v_t}{2v_t}(y - m_t)`:
the flow takes a point ``k`` deviations from one mean to the point ``k`` deviations from the other. Source: Albergo et al. (2023),
arXiv 2303.08797.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scorelab as sl
from scorelab.arrays import per_example
from scorelab.processes import HasVelocity
from scorelab.randomness import per_example_keys

KEY = jax.random.key(0)
DATA, BASE = (np.array([1.0, -2.0]), 0.5), (np.array([-3.0, 0.5]), 2.0)


@dataclass(frozen=True, kw_only=True)
class Interpolant(sl.processes.Process):
    """Data at ``t = 0``, ``mean + std N(0, I)`` at ``t = 1``, and the noise ``gamma``."""

    mean: tuple[float, ...]
    std: float
    t_min: float = 1e-3
    t_max: float = 1.0

    @property
    def domain(self):
        return 0.0, 1.0

    def perturb(self, key, batch, t):
        key_base, key_noise = jax.random.split(key)
        base = jnp.asarray(self.mean) + self.std * jax.random.normal(key_base, batch.shape)
        z, t = jax.random.normal(key_noise, batch.shape), jnp.asarray(t)
        s = per_example(t, batch)
        gamma = jnp.sqrt(2 * s * (1 - s))
        return sl.processes.Noised(y=(1 - s) * batch + s * base + gamma * z, y0=batch, noise=(base, z), t=t)

    def prior(self):
        return Base()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Base(sl.processes.Start):
    def draw(self, keys, ids, process, t, event):
        z = jax.vmap(lambda key: jax.random.normal(key, event))(keys)
        return jnp.asarray(process.mean) + process.std * z

    def log_prob(self, y, process, t):
        return jnp.sum(jax.scipy.stats.norm.logpdf(y, jnp.asarray(process.mean), process.std), axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Moving(HasVelocity):
    velocity: jax.Array
    t: jax.Array
    process: Interpolant = field(metadata={"static": True})


PROCESS = Interpolant(mean=tuple(BASE[0]), std=BASE[1])


def moments(t):
    """Mean and variance at ``t``, and their rates."""
    (m0, s0), (m1, s1) = DATA, BASE
    mean, d_mean = (1 - t) * m0 + t * m1, m1 - m0
    variance = (1 - t) ** 2 * s0**2 + t**2 * s1**2 + 2 * t * (1 - t)
    return mean, d_mean, variance, -2 * (1 - t) * s0**2 + 2 * t * s1**2 + 2 - 4 * t


def exact(y, t, cond=None):
    t = per_example(jnp.asarray(t), y)
    mean, d_mean, variance, d_variance = moments(t)
    return Moving(velocity=d_mean + d_variance / (2 * variance) * (y - mean), t=jnp.asarray(t), process=PROCESS)


MODEL = sl.models.FunctionModel(exact, PROCESS, returns="prediction")


class MidpointRow(NamedTuple):
    """One stage of the midpoint rule: ``y`` goes to ``base + dt velocity``."""

    t: np.ndarray
    step: np.ndarray
    dt: np.ndarray
    first: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Midpoint(sl.solvers.Solver):
    process_type = Interpolant
    needs = (HasVelocity,)
    order = 2
    stochastic = False
    calls_per_step = 2

    def table(self, process, times):
        dt, middle = np.diff(times), (times[:-1] + times[1:]) / 2
        pairs = lambda a, b: np.stack([a, b], axis=1).ravel()
        steps = np.arange(len(dt))
        one = np.ones(len(dt), np.int32)
        return MidpointRow(t=pairs(times[:-1], middle), step=pairs(steps, steps), dt=pairs(dt / 2, dt), first=pairs(one, 0 * one))

    def init(self, process, y, log_weights):
        return y

    def update(self, keys, y, prediction, carry, row):
        base = jnp.where(row.first > 0, y, carry)
        return base + row.dt * prediction.velocity, base


@dataclass(frozen=True)
class Matching(sl.losses.Loss):
    r""":math:`\\lVert u - \\dot y_t\\rVert^2/d`; times away from the ends, where :math:`\\dot\\gamma` is infinite."""

    process: Interpolant

    def draw(self, key, batch):
        key_times, key_noise = jax.random.split(key)
        t = jax.random.uniform(key_times, (len(batch["x"]),), minval=0.05, maxval=0.95)
        return self.process.perturb(key_noise, batch["x"], t)

    def error(self, model, noised):
        t, (base, z) = per_example(noised.t, noised.y), noised.noise
        rate = base - noised.y0 + (1 - 2 * t) / jnp.sqrt(2 * t * (1 - t)) * z
        return jnp.mean((sl.models.ask(model, noised.y, noised.t).velocity - rate) ** 2, axis=1)


def test_the_flow_takes_one_law_to_the_other():
    x1 = BASE[0] + BASE[1] * np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    want = DATA[0] + DATA[1] / BASE[1] * (x1 - BASE[0])
    out = sl.sample(MODEL, solver=Midpoint(), grid=sl.grids.Uniform(40), key=KEY, shape=x1.shape, start=sl.starts.Fixed(x1))
    # The variance is quadratic in time, which the midpoint rule follows: what is left is float32 at values up to 8, 40 times.
    np.testing.assert_allclose(out.x, want, atol=40 * 8 * 2**-24)


def test_samples_of_the_prior_have_the_law_of_the_data():
    n = 20_000
    x = np.asarray(sl.sample(MODEL, solver=Midpoint(), grid=sl.grids.Uniform(80), key=KEY, shape=(n, 2)).x)
    # Four standard errors, and the error of the solver.
    np.testing.assert_allclose(x.mean(0), DATA[0], atol=4 * DATA[1] / np.sqrt(n) + 3e-3)
    np.testing.assert_allclose(x.std(0), DATA[1], atol=4 * DATA[1] / np.sqrt(2 * n) + 3e-3)


@dataclass(frozen=True)
class Affine(sl.models.Trainable):
    """Velocities that are affine in the point, with coefficients that are polynomials of the time."""

    process: Interpolant

    def init(self, key, x, cond=None, like=None):
        return jnp.zeros((2, 4, x.shape[1]))

    def bind(self, params, dropout=None):
        return BoundAffine(params, self.process)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BoundAffine:
    params: jax.Array
    process: Interpolant = field(metadata={"static": True})

    def __call__(self, y, t, cond=None):
        powers = jnp.broadcast_to(jnp.asarray(t), y.shape[:1])[:, None] ** jnp.arange(4)
        slope, shift = (jnp.einsum("np,pd->nd", powers, coefficients) for coefficients in self.params)
        return Moving(velocity=slope * y + shift, t=jnp.asarray(t), process=self.process)


def test_the_loss_has_the_exact_velocity_as_its_minimiser():
    x = np.asarray(DATA[0] + DATA[1] * np.random.default_rng(1).normal(size=(20_000, 2)), np.float32)
    batches = sl.data.Batches({"x": x}, batch_size=2048, seed=0)
    schedule = optax.cosine_decay_schedule(0.05, 2000)
    learner = sl.training.ScoreLearner(Affine(PROCESS), Matching(PROCESS), optax.adam(schedule), ema=None)
    model = learner.model(sl.training.fit(learner, batches, steps=2000, key=KEY))
    y = np.asarray(BASE[0] + np.random.default_rng(2).normal(size=(64, 2)), np.float32)
    for t in (0.2, 0.5, 0.8):
        mean, _, variance, _ = moments(t)
        y = np.asarray(mean + np.sqrt(variance) * np.random.default_rng(3).normal(size=(256, 2)), np.float32)
        error = np.asarray(model(y, jnp.float32(t)).velocity - exact(y, jnp.float32(t)).velocity)
        # Of the size of a velocity (4 and more) a twentieth: cubic polynomials do not hold the exact coefficients.
        assert np.sqrt(np.mean(error**2)) < 0.2


def test_a_flow_is_refused_where_a_score_is_needed():
    with pytest.raises(TypeError, match="expected a LinearGaussian"):
        sl.log_likelihood(MODEL, np.zeros((3, 2), np.float32))


def test_ids_give_the_points_of_the_base():
    keys = per_example_keys(jax.random.split(KEY)[0], jnp.arange(3))
    start = Base().draw(keys, jnp.arange(3), PROCESS, jnp.float32(1.0), (2,))
    out = sl.sample(MODEL, solver=Midpoint(), grid=sl.grids.Uniform(4), key=KEY, shape=(3, 2), keep="all")
    np.testing.assert_array_equal(out.trajectory[0], start)
