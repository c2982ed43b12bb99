r"""A process on integers, in one file outside the library: bits that flip, with their exact reverse; trained, sampled and steered.

Every bit flips at the rate one, so that after a time ``t`` it differs from where it began with the probability
:math:`f(t) = (1-e^{-2t})/2`. The reverse step draws the clean bit from what the model believes, and then the bit at the earlier
time from the bridge between the two: exact for bits that are independent, on any grid.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import scorelab as sl
from scorelab import fk
from scorelab.processes import HasLogits

KEY = jax.random.key(0)
P_ONE = np.array([0.9, 0.5, 0.2, 0.05])


def flips(t):
    """The probability that a bit differs after the time ``t``."""
    return -0.5 * jnp.expm1(-2 * t)


@dataclass(frozen=True, kw_only=True)
class Bits(sl.processes.Process):
    """Bits 0 and 1, int32, that flip at the rate one."""

    t_min: float = 1e-3
    t_max: float = 4.0

    def perturb(self, key, batch, t):
        flipped = jax.random.bernoulli(key, jnp.broadcast_to(flips(jnp.asarray(t)[..., None]), batch.shape))
        return sl.processes.Noised(y=batch ^ flipped.astype(batch.dtype), y0=batch, noise=flipped, t=jnp.asarray(t))

    def prior(self):
        return FairCoins()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FairCoins(sl.processes.Start):
    def draw(self, keys, ids, process, t, event):
        return jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, event))(keys).astype(jnp.int32)

    def log_prob(self, y, process, t):
        return jnp.full(len(y), -y[0].size * math.log(2))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Believed(HasLogits):
    """``logits`` of one against zero, of every clean bit."""

    logits: jax.Array
    t: jax.Array
    process: Bits = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Exact:
    """What independent bits with the probabilities ``p`` of one are believed to have been."""

    p: jax.Array
    process: Bits = field(metadata={"static": True})

    def __call__(self, y, t, cond=None):
        seen = jnp.log1p(-flips(t)) - jnp.log(flips(t))
        logits = jnp.log(self.p) - jnp.log1p(-self.p) + jnp.where(y == 1, seen, -seen)
        return Believed(logits=logits, t=jnp.asarray(t), process=self.process)


class BridgeRow(NamedTuple):
    """One step: flips from clean data to ``s``, and from ``s`` to ``t``."""

    t: np.ndarray
    step: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Bridge(sl.solvers.Solver):
    process_type = Bits
    needs = (HasLogits,)
    order = 1
    stochastic = True

    def table(self, process, times):
        times = np.asarray(times)
        f = lambda t: -0.5 * np.expm1(-2 * t)
        return BridgeRow(t=times[:-1], step=np.arange(len(times) - 1), before=f(times[1:]), after=f(times[:-1] - times[1:]))

    def update(self, keys, y, prediction, carry, row):
        def one(key, y, logits):
            clean, middle = jax.random.split(key)
            y0 = jax.random.bernoulli(clean, jax.nn.sigmoid(logits)).astype(y.dtype)
            of = lambda bit: jnp.where(bit == y0, 1 - row.before, row.before) * jnp.where(bit == y, 1 - row.after, row.after)
            return jax.random.bernoulli(middle, of(1) / (of(0) + of(1))).astype(y.dtype)

        return jax.vmap(one)(keys, y, prediction.logits), carry


@dataclass(frozen=True)
class CrossEntropy(sl.losses.Loss):
    process: Bits

    def draw(self, key, batch):
        key_times, key_noise = jax.random.split(key)
        t = jax.random.uniform(key_times, (len(batch["x"]),), minval=self.process.t_min, maxval=self.process.t_max)
        return self.process.perturb(key_noise, batch["x"], t)

    def error(self, model, noised):
        logits = sl.models.ask(model, noised.y, noised.t).logits
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, noised.y0.astype(logits.dtype)), axis=1)


@dataclass(frozen=True)
class Linear(sl.models.Trainable):
    """A learned logit of each bit beside what is seen of it, which is known."""

    process: Bits

    def init(self, key, x, cond=None, like=None):
        return jnp.zeros(x.shape[1:])

    def bind(self, params, dropout=None):
        return Bound(params, self.process)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bound:
    prior: jax.Array
    process: Bits = field(metadata={"static": True})

    def __call__(self, y, t, cond=None):
        t = jnp.asarray(t).reshape(-1, *(1,) * (y.ndim - 1)) if jnp.ndim(t) else t
        return Exact(jax.nn.sigmoid(self.prior), self.process)(y, t)


PROCESS = Bits()
EXACT = Exact(jnp.asarray(P_ONE), PROCESS)
WALK = dict(solver=Bridge(), key=KEY)


@pytest.mark.parametrize("grid", [sl.grids.Uniform(1), sl.grids.Uniform(8)], ids=["one step", "eight"])
def test_samples_have_the_law_of_the_data_on_any_grid(grid):
    n = 20_000
    x = np.asarray(sl.sample(EXACT, grid=grid, shape=(n, 4), **WALK).x)
    assert x.dtype == np.int32
    # The prior is not quite that of t = 4: a bias of at most f'(4) = exp(-8), far below the error of the counts.
    for bit, p in enumerate(P_ONE):
        assert stats.binomtest(int(x[:, bit].sum()), n, p).pvalue > 1e-4
    pair = stats.chi2_contingency(np.histogram2d(x[:, 1], x[:, 2], bins=2)[0]).pvalue
    assert pair > 1e-4


def test_a_sample_depends_on_its_id_alone():
    run = dict(grid=sl.grids.Uniform(4), **WALK)
    together = sl.sample(EXACT, shape=(6, 4), **run)
    np.testing.assert_array_equal(sl.sample(EXACT, shape=(2, 4), ids=np.array([4, 1]), **run).x, together.x[np.array([4, 1])])


def test_it_is_trained_to_what_is_known():
    rng = np.random.default_rng(0)
    x = (rng.random((50_000, 4)) < P_ONE).astype(np.int32)
    batches = sl.data.Batches({"x": x}, batch_size=4096, seed=0)
    learner = sl.training.ScoreLearner(Linear(PROCESS), CrossEntropy(PROCESS), optax.adam(0.05), ema=None)
    state = sl.training.fit(learner, batches, steps=400, key=KEY)
    found = np.asarray(jax.nn.sigmoid(learner.model(state).prior))
    # Four standard deviations of the frequencies in the data, and as much for the last steps of the optimiser.
    np.testing.assert_allclose(found, P_ONE, atol=0.02)


def count(x):
    """How many bits are one."""
    return jnp.sum(x, axis=1).astype(jnp.float32)


@dataclass(frozen=True)
class Twist(fk.Intermediate):
    r""":math:`\log E[e^{\lambda r(x_0)}\mid y_t]` of the number of ones under independent bits: no better belief exists."""

    def value(self, reward, scale, keys, y, prediction):
        p = jax.nn.sigmoid(prediction.logits)
        return jnp.sum(jnp.log1p(p * jnp.expm1(scale)), axis=1)


def test_weights_on_integers_follow_the_tilted_law():
    scale = 1.5
    solver = fk.FeynmanKac(base=Bridge(), potential=fk.Difference(count, scale, intermediate=Twist()), resample_final=False)
    n = 8192
    out = sl.sample(EXACT, solver=solver, grid=sl.grids.Uniform(6), key=KEY, shape=(n, 4))
    log_z = np.sum(np.log1p(P_ONE * np.expm1(scale)))
    tilted = P_ONE * math.exp(scale) / (1 + P_ONE * math.expm1(scale))
    weights = np.asarray(fk.normalised(out.log_weights))
    ess = 1 / np.sum(weights**2)
    found = weights @ np.asarray(out.x)
    # Four standard errors of a mean of as many particles as are left in effect, of which resampling makes copies.
    np.testing.assert_allclose(found, tilted, atol=4 * np.sqrt(tilted * (1 - tilted) / min(ess, n / 4)).max())
    assert abs(float(out.log_z) - log_z) < 0.05


def test_a_solver_of_another_kind_of_process_is_refused():
    with pytest.raises(TypeError, match="expected a LinearGaussian"):
        sl.sample(EXACT, solver=sl.solvers.DDIM(), grid=sl.grids.Uniform(4), key=KEY, shape=(4, 2))
    with pytest.raises(TypeError, match="expected a LinearGaussian"):
        sl.sample(EXACT, solver=Bridge(), grid=sl.grids.Karras(4), key=KEY, shape=(4, 4))
    gaussian = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    model = sl.models.ExactModel(sl.densities.Gaussian(np.zeros(2), 1.0), gaussian)
    with pytest.raises(TypeError, match=r"Bridge.*expected a Bits"):
        sl.sample(model, solver=Bridge(), grid=sl.grids.Uniform(4), key=KEY, shape=(4, 2))


def test_what_a_prediction_does_not_say_is_named():
    @dataclass(frozen=True, kw_only=True)
    class Wants(Bridge):
        needs = (sl.processes.HasScore,)

    with pytest.raises(TypeError, match="Wants needs HasScore of a prediction, and Believed does not have it"):
        sl.sample(EXACT, solver=Wants(), grid=sl.grids.Uniform(4), key=KEY, shape=(4, 4))
