r"""Points with labels, noised together: exact joint, conditional and marginal laws, weights on the whole, and training.

The label is one of three symbols that is replaced by a fair draw at the rate one; the point is Gaussian around the mean of its
label. Given both noised parts, label ``k`` has the posterior :math:`\pi_k\,N(y;\alpha m_k,\alpha^2s^2+\sigma^2)\,P_t(k\to\ell)`.
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
from scorelab.arrays import per_example
from scorelab.processes import HasLogits, JointPrediction

KEY = jax.random.key(0)
WEIGHTS, MEANS, STD = np.array([0.5, 0.3, 0.2]), np.array([-2.0, 0.0, 3.0]), 0.4


@dataclass(frozen=True, kw_only=True)
class Symbols(sl.processes.Process):
    """One of three symbols, replaced by a fair draw at the rate one."""

    t_min: float = 1e-3
    t_max: float = 8.0

    @property
    def domain(self):
        return 0.0, self.t_max

    def perturb(self, key, batch, t):
        replaced, fresh = jax.random.split(key)
        gone = jax.random.bernoulli(replaced, jnp.broadcast_to(-jnp.expm1(-jnp.asarray(t)), batch.shape))
        y = jnp.where(gone, jax.random.randint(fresh, batch.shape, 0, 3), batch)
        return sl.processes.Noised(y=y.astype(jnp.int32), y0=batch, noise=gone, t=jnp.asarray(t))

    def prior(self):
        return Fair()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Fair(sl.processes.Start):
    def draw(self, keys, ids, process, t, event):
        return jax.vmap(lambda key: jax.random.randint(key, event, 0, 3))(keys).astype(jnp.int32)

    def log_prob(self, y, process, t):
        return jnp.full(len(y), -math.log(3))


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Symbol(HasLogits):
    logits: jax.Array
    t: jax.Array
    process: Symbols = field(metadata={"static": True})


# The range of times is that of the symbols: a joint walk has one.
POINT = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_max=8.0))
PROCESS = sl.processes.Joint(point=POINT, label=Symbols())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Exact:
    """The exact predictions; the logits are those of the three labels, ``(batch, 3)``."""

    log_weights: jax.Array
    process: sl.processes.Joint = field(metadata={"static": True})

    def __call__(self, y, t, cond=None):
        t = self.process.times(t)
        alpha, sigma = (jnp.asarray(f(t["point"])).reshape(-1, 1) for f in (POINT.alpha, POINT.sigma))
        means, variance = jnp.asarray(MEANS, y["point"].dtype), alpha**2 * STD**2 + sigma**2
        kept = jnp.exp(-jnp.asarray(t["label"])).reshape(-1, 1)
        seen = jnp.where(y["label"][:, None] == jnp.arange(3), kept + (1 - kept) / 3, (1 - kept) / 3)
        near = -0.5 * (y["point"] - alpha * means) ** 2 / variance
        logits = self.log_weights + near + jnp.log(seen)
        each = means + STD**2 * alpha / variance * (y["point"] - alpha * means)
        denoised = jnp.sum(jax.nn.softmax(logits) * each, axis=1, keepdims=True)
        point = POINT.predict(y["point"], t["point"], denoised=denoised)
        label = Symbol(logits=logits, t=jnp.asarray(t["label"]), process=self.process["label"])
        return JointPrediction(parts=dict(point=point, label=label), t=t, process=self.process)


EXACT = Exact(jnp.asarray(np.log(WEIGHTS)), PROCESS)


class SymbolRow(NamedTuple):
    """Kept with these probabilities from clean data to ``s``, and from ``s`` to ``t``."""

    t: np.ndarray
    step: np.ndarray
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Bridge(sl.solvers.Solver):
    process_type = Symbols
    needs = (HasLogits,)
    order = 1
    stochastic = True

    def table(self, process, times):
        times = np.asarray(times)
        step = np.arange(len(times) - 1)
        return SymbolRow(t=times[:-1], step=step, before=np.exp(-times[1:]), after=np.exp(times[1:] - times[:-1]))

    def update(self, keys, y, prediction, carry, row):
        def one(key, y, logits):
            clean, middle = jax.random.split(key)
            y0 = jax.random.categorical(clean, logits)
            symbols = jnp.arange(3)
            chance = lambda to, kept: jnp.where(symbols == to, kept + (1 - kept) / 3, (1 - kept) / 3)
            return jax.random.categorical(middle, jnp.log(chance(y0, row.before)) + jnp.log(chance(y, row.after))).astype(y.dtype)

        return jax.vmap(one)(keys, y, prediction.logits), carry


@dataclass(frozen=True)
class CrossEntropy(sl.losses.PredictionLoss):
    process: Symbols

    def draw(self, key, batch):
        key_times, key_noise = jax.random.split(key)
        t = jax.random.uniform(key_times, (len(batch["x"]),), minval=1e-3, maxval=4.0)
        return self.process.perturb(key_noise, batch["x"], t)

    def judge(self, prediction, noised):
        return optax.softmax_cross_entropy_with_integer_labels(prediction.logits, noised.y0), {}


# The clocks of the parts are one: the walk ends where both are clean.
GRID = sl.grids.Explicit(tuple(np.append(np.geomspace(8.0, 0.02, 120), 0.0)))
SOLVER = sl.solvers.Joint(point=sl.solvers.DDIM(eta=1.0), label=Bridge())
N = 6000


def sampled(model=EXACT, solver=SOLVER, start=None, n=N, **options):
    shape = dict(point=(n, 1), label=(n,))
    return sl.sample(model, solver=solver, grid=GRID, key=KEY, shape=shape, start=start, **options)


def normal(x, k):
    """The p-value of the Kolmogorov-Smirnov test for the law of the points with label ``k``."""
    return stats.kstest(x, "norm", args=(MEANS[k], STD)).pvalue


def test_the_joint_law():
    out = sampled()
    x, label = np.asarray(out.x["point"])[:, 0], np.asarray(out.x["label"])
    # Steps of 5 % in the noise leave a bias of a few hundredths in each part, on top of the counts' four standard errors.
    np.testing.assert_allclose(np.bincount(label, minlength=3) / N, WEIGHTS, atol=4 * 0.5 / np.sqrt(N) + 0.02)
    for k in range(3):
        mine = x[label == k]
        np.testing.assert_allclose([mine.mean(), mine.std()], [MEANS[k], STD], atol=0.06)


def test_a_part_that_is_held_conditions_the_others():
    label = np.full(N, 2, np.int32)
    start = sl.starts.Joint(dict(point=sl.starts.Prior(), label=sl.starts.Fixed(label)))
    solver = sl.solvers.Joint(point=sl.solvers.DDIM(eta=1.0), label=sl.solvers.Hold())
    out = sampled(solver=solver, start=start)
    np.testing.assert_array_equal(out.x["label"], label)
    x = np.asarray(out.x["point"])[:, 0]
    # The law of the points of that label alone; without the condition four of five lie elsewhere.
    np.testing.assert_allclose([x.mean(), x.std()], [MEANS[2], STD], atol=0.05)


def test_a_part_that_is_not_there_leaves_the_marginal_law():
    """At the end of its process a label says nothing."""
    out = EXACT({"point": jnp.array([[0.3]]), "label": jnp.array([1])}, {"point": 0.5, "label": 8.0})
    other = EXACT({"point": jnp.array([[0.3]]), "label": jnp.array([2])}, {"point": 0.5, "label": 8.0})
    np.testing.assert_allclose(out.parts["point"].denoised, other.parts["point"].denoised, atol=3 * math.exp(-8.0))
    law = sl.densities.GaussianMixture(WEIGHTS, MEANS[:, None], STD**2)
    marginal = sl.models.ExactModel(law, POINT)(jnp.array([[0.3]]), 0.5).denoised
    np.testing.assert_allclose(out.parts["point"].denoised, marginal, atol=3 * math.exp(-8.0))


def reward(x):
    """One for the third label."""
    return (x["label"] == 2).astype(jnp.float32)


@dataclass(frozen=True)
class Twist(fk.Intermediate):
    r""":math:`\\log E[e^{\\lambda 1[k=2]}\\mid y_t]`."""

    def value(self, reward, scale, keys, y, prediction):
        return jnp.log1p(jax.nn.softmax(prediction.parts["label"].logits)[:, 2] * jnp.expm1(scale))


def test_weights_on_the_whole():
    scale = 2.0
    solver = fk.FeynmanKac(base=SOLVER, potential=fk.Difference(reward, scale, intermediate=Twist()))
    out = sampled(solver=solver)
    z = 1 + WEIGHTS[2] * math.expm1(scale)
    weights = np.asarray(fk.normalised(out.log_weights))
    label, x = np.asarray(out.x["label"]), np.asarray(out.x["point"])[:, 0]
    assert abs(float(out.log_z) - math.log(z)) < 0.08
    assert abs(weights @ (label == 2) - WEIGHTS[2] * math.exp(scale) / z) < 0.06
    # The points go with their labels.
    assert abs(np.average(x[label == 2], weights=weights[label == 2]) - MEANS[2]) < 0.08


def test_weights_of_the_samples_alone_need_no_belief():
    """Importance sampling on the whole, whose predictions have no denoised mean."""
    scale = 2.0
    out = sampled(solver=fk.FeynmanKac(base=SOLVER, potential=fk.FinalOnly(reward, scale), policy=fk.Never()))
    label = np.asarray(out.x["label"])
    np.testing.assert_allclose(out.log_weights, scale * (label == 2), atol=1e-6)
    # Four standard errors of the share of the label and the bias of the steps, as above, times its weight.
    z, error = 1 + WEIGHTS[2] * math.expm1(scale), 4 * math.sqrt(WEIGHTS[2] * (1 - WEIGHTS[2]) / N) + 0.02
    assert abs(math.exp(float(out.log_z)) - z) < error * math.expm1(scale)
    with pytest.raises(TypeError, match="Denoised needs HasDenoised of a prediction, and JointPrediction does not have it"):
        sampled(solver=fk.FeynmanKac(base=SOLVER, potential=fk.Difference(reward, scale)), n=8)


def test_the_whole_is_pruned():
    n, steps = 64, len(GRID.times(PROCESS)) - 1
    pruning = sl.search.Pruning(reward, {steps // 2: 8, steps - 1: 2}, particles=32, intermediate=Twist())
    run = dict(solver=SOLVER, grid=GRID, key=KEY, shape=dict(point=(n, 1), label=(n,)))
    out, whole = sl.search.prune(EXACT, pruning=pruning, **run), sl.sample(EXACT, **run)
    assert (out.ids // 32).tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(out.x["label"], whole.x["label"][out.ids])
    np.testing.assert_allclose(out.x["point"], whole.x["point"][out.ids], atol=2e-5)
    # Half way the label is all but decided, and a fifth of 32 have it.
    np.testing.assert_array_equal(out.rewards, 1.0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PulledPoint(sl.models.Wraps):
    """A model with a gradient added to the score of its point."""

    model: Exact

    def __call__(self, y, t, cond=None):
        whole = self.model(y, t, cond)
        point = sl.models.GuidedPrediction.of(whole.parts["point"], jnp.ones_like(y["point"]))
        return JointPrediction(parts=dict(whole.parts, point=point), t=whole.t, process=self.process)


def test_guidance_of_a_part_is_not_taken_for_the_law_by_weighted_particles():
    with pytest.raises(
        ValueError, match=r"FeynmanKac.base = Joint.* with a guided part of a JointPrediction: expected parts without"
    ):
        sampled(PulledPoint(EXACT), solver=fk.FeynmanKac(base=SOLVER), n=8)


def test_one_network_call_serves_all_parts():
    calls = []

    def counted(y, t, cond=None):
        calls.append(1)
        return EXACT(y, t)

    model = sl.models.FunctionModel(counted, PROCESS, returns="prediction")
    loss = sl.losses.Joint(point=sl.losses.DenoisingScoreMatching(POINT), label=CrossEntropy(Symbols()))
    batch = {"x": dict(point=np.zeros((8, 1), np.float32), label=np.zeros(8, np.int32))}
    errors, metrics = loss.evaluate(model, loss.draw(KEY, batch))
    assert errors.shape == (8,)
    assert set(metrics) == {"point_loss", "label_loss"}
    assert len(calls) == 1


def test_the_gradient_of_the_loss_is_zero_at_the_truth():
    n = 40_000
    rng = np.random.default_rng(0)
    label = rng.choice(3, size=n, p=WEIGHTS).astype(np.int32)
    point = (MEANS[label] + STD * rng.normal(size=n)).astype(np.float32)[:, None]
    point_loss = sl.losses.DenoisingScoreMatching(POINT, weighting=sl.losses.VWeighting())
    loss = sl.losses.Joint(point=point_loss, label=CrossEntropy(Symbols()))
    noised = loss.draw(KEY, {"x": dict(point=point, label=label)})
    each = jax.jit(jax.jacfwd(lambda log_weights: loss.error(Exact(log_weights, PROCESS), noised)))(EXACT.log_weights)
    each = np.asarray(each)
    assert np.all(np.isfinite(each))
    np.testing.assert_array_less(np.abs(each.mean(0)), 4 * each.std(0) / np.sqrt(n))
    wrong = jax.jit(jax.jacfwd(lambda log_weights: loss.error(Exact(log_weights, PROCESS), noised)))(jnp.zeros(3))
    assert np.any(np.abs(np.asarray(wrong).mean(0)) > 8 * np.asarray(wrong).std(0) / np.sqrt(n))


@dataclass(frozen=True, kw_only=True)
class Needy(sl.solvers.DDIM):
    needs = (HasLogits,)


def another(y, t, cond=None):
    """A part that answers under another process than it has."""
    prediction = EXACT(y, t)
    vp = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
    parts = prediction.parts | {"point": vp.predict(y["point"], 0.5, denoised=prediction.parts["point"].denoised)}
    return JointPrediction(parts=parts, t=prediction.t, process=PROCESS)


def skipping():
    """A start that jumps over the first steps, which the other parts would walk."""
    return sl.starts.Teleport(sl.densities.Gaussian(np.zeros(1), np.eye(1)), 2.0)


HELD = sl.solvers.Joint(point=sl.solvers.DDIM(), label=sl.solvers.Hold())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flat(Fair):
    """A start of labels with an axis too many."""

    def draw(self, keys, ids, process, t, event):
        return jnp.zeros((len(keys), 1), jnp.int32)


@dataclass(frozen=True, kw_only=True)
class Cut(Bridge):
    """A solver of a part that returns another shape."""

    def update(self, keys, y, prediction, carry, row):
        return y[:, None], carry


def both(y, t, cond=None):
    process = sl.processes.Joint(a=POINT, b=POINT)
    parts = {name: POINT.predict(y[name], t[name], denoised=jnp.zeros_like(y[name])) for name in ("a", "b")}
    return JointPrediction(parts=parts, t=t, process=process)


def longer():
    """Parts whose ends differ: at that of the shorter one the other is not its prior."""
    process = sl.processes.Joint(a=sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_max=30.0)), b=POINT)
    model = sl.models.FunctionModel(both, process, returns="prediction")
    solver = sl.solvers.Joint(a=sl.solvers.DDIM(), b=sl.solvers.DDIM())
    return sl.sample(model, solver=solver, grid=sl.grids.Uniform(4), key=KEY, shape=dict(a=(4, 1), b=(4, 1)))


def test_the_parts_keep_their_signs_and_report():
    """Two parts of noise that multiplies, one with signs: both walk in data space, and what flips is named by the part."""
    own = sl.processes.GeometricBrownianMotion(sigma=0.5, mu=0.1)
    signed = sl.processes.GeometricBrownianMotion(sigma=0.5, mu=0.1, signed=True)
    process = sl.processes.Joint(a=own, b=signed)

    def zeros(y, t, cond=None):
        parts = {name: process[name].predict(y[name], t[name], denoised=jnp.zeros_like(y[name])) for name in ("a", "b")}
        return JointPrediction(parts=parts, t=t, process=process)

    pattern = np.array([-1.0, 1.0, -1.0])
    start = sl.starts.Joint(dict(a=sl.starts.Prior(), b=sl.starts.Signed(sl.starts.Prior(), pattern)))
    solver = sl.solvers.Joint(a=sl.solvers.EulerMaruyama(coords="ambient"), b=sl.solvers.EulerMaruyama())
    model = sl.models.FunctionModel(zeros, process, returns="prediction")
    shape = dict(a=(5, 2), b=(5, 3))
    out = sl.sample(model, solver=solver, grid=sl.grids.Uniform(200), key=KEY, shape=shape, start=start, keep="all")
    np.testing.assert_array_equal(np.sign(out.trajectory["b"]), np.broadcast_to(pattern, (201, 5, 3)))
    np.testing.assert_array_equal(np.sign(out.x["a"]), 1.0)
    assert out.diagnostics["a_sign_flips"].shape == (5,)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: sl.processes.Joint(), "no parts"),
        (lambda: sl.processes.Joint(point=3), "expected a Process"),
        (lambda: sl.starts.Joint({"point": 1}), "starts.Joint.point = 1: expected a Start"),
        (lambda: sl.starts.Joint(3), "starts.Joint.parts = 3: expected a Mapping"),
        (
            lambda: sampled(start=sl.starts.Joint({"point": sl.starts.Prior()})),
            "JointStart has .*expected the same",
        ),
        (lambda: sampled(solver=HELD, n=4), "sample.start gives no points for label, which is held: expected starts.Joint"),
        (lambda: sampled(solver=HELD, start=PROCESS.prior(), n=4), "sample.start gives no points for label"),
        (lambda: sampled(solver=fk.FeynmanKac(base=HELD, policy=fk.Never()), n=4), "sample.start gives no points for label"),
        (
            lambda: sampled(start=sl.starts.Joint(dict(point=sl.starts.Prior(), label=Flat())), n=4),
            r"JointStart.draw returned points of shape \{'label': \(4, 1\), 'point': \(4, 1\)\}: expected \{.*'label': \(4,\)",
        ),
        (
            lambda: sampled(solver=sl.solvers.Joint(point=sl.solvers.DDIM(), label=Cut()), n=4),
            r"Cut.update returned int32 \(4, 1\)",
        ),
        (lambda: PROCESS.perturb(KEY, {"point": np.zeros((2, 1))}, 0.1), r"expected a dictionary with \['label', 'point'\]"),
        (lambda: PROCESS.perturb(KEY, {"point": np.zeros((2, 1)), "label": np.zeros(2, int)}, {"point": 0.1}), "one for each"),
        (lambda: sampled(solver=sl.solvers.Joint(point=sl.solvers.DDIM())), "expected .*label.*point"),
        (lambda: sampled(solver=sl.solvers.Joint(point=Bridge(), label=Bridge())), "expected a Symbols"),
        (lambda: sampled(solver=sl.solvers.Joint(point=sl.solvers.Heun(), label=Bridge())), "as many in every step"),
        (lambda: sl.solvers.Joint(point=fk.FeynmanKac()), "independent samples"),
        (lambda: sampled(solver=sl.solvers.Joint(point=Needy(), label=Bridge())), "Needy needs HasLogits"),
        (
            lambda: sampled(model=sl.models.FunctionModel(another, PROCESS, returns="prediction")),
            "another: point: .*expected the same",
        ),
        (lambda: longer(), r"Joint.a walks .*from 0 to 30: expected those that all parts have, 0 to 8"),
        (
            lambda: sampled(start=sl.starts.Joint(dict(point=skipping(), label=Fair()))),
            "JointStart.point = .* skips part of the grid",
        ),
        (lambda: sl.sample(EXACT, solver=SOLVER, grid=GRID, key=KEY, shape=dict(point=(4, 1), label=(5,))), "same number of"),
        (lambda: sl.sample(EXACT, solver=SOLVER, grid=GRID, key=KEY, shape=(4, 1)), "expected the same"),
        (lambda: sl.sample(EXACT, solver=sl.solvers.DDIM(), grid=GRID, key=KEY, shape=(4, 1)), "expected a LinearGaussian"),
    ],
)
def test_errors(act, message):
    with pytest.raises((ValueError, TypeError), match=message):
        act()


def test_a_trajectory_has_all_parts():
    out = sampled(n=3, keep="all")
    assert {name: part.shape for name, part in out.trajectory.items()} == {"point": (121, 3, 1), "label": (121, 3)}
    assert per_example(jnp.zeros(3), out.x["point"]).shape == (3, 1)
