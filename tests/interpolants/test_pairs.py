"""Couplings, pairs that a model has made, bases that are points, holes that are filled: closed forms of Gaussians."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import scorelab as sl
from scorelab import (
    data,
    densities,
    distill,
    fk,
    grids,
    invert,
    likelihood,
    losses,
    models,
    processes,
    sample,
    solvers,
    starts,
    training,
)
from scorelab.models.bridge import entropic_cross_covariance
from scorelab.processes import gammas, paths
from scorelab.solvers import epsilons

KEY = jax.random.key(11)
# Covariances of data and base that do not commute.
P, Q = np.array([[0.8, 0.3], [0.3, 0.4]]), np.array([[1.0, -0.4], [-0.4, 1.2]])
STANDARD = densities.Gaussian(np.zeros(2), 1.0)


# ---- assignments


@pytest.mark.parametrize("n", [2, 5, 7])
def test_an_assignment_is_the_permutation_of_least_cost(n):
    rng = np.random.default_rng(n)
    x, w = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    found = data.Assignment().partners(rng, x, w)
    cost = lambda order: np.sum((x - w[list(order)]) ** 2)
    assert sorted(found) == list(range(n))
    assert cost(found) == pytest.approx(min(map(cost, itertools.permutations(range(n)))), rel=1e-12)


def classes(size):
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=512).astype(np.int32)
    x = (np.where(label, 2.0, -2.0)[:, None] * [1.0, 0.0] + 0.4 * rng.normal(size=(512, 2))).astype(np.float32)
    return data.Batches({"x": x, "label": label}, batch_size=size, seed=1)


def test_parts_of_a_batch_are_joined_and_labels_stay_with_their_data():
    whole, parts = (data.Coupled(classes(64), data.Assignment(batch=size), STANDARD, seed=3) for size in (64, 16))
    for step in (0, 2):
        plain, batch = classes(64).at(step), parts.at(step)
        for name in ("x", "label"):
            np.testing.assert_array_equal(batch[name], plain[name])
        # Of each sixteen rows the best permutation, which is not that of all.
        for low in range(0, 64, 16):
            rows = slice(low, low + 16)
            order = data.Assignment().partners(None, batch["x"][rows], batch["base"][rows])
            np.testing.assert_array_equal(order, np.arange(16))
        rows = lambda found: np.array(sorted(map(tuple, found)))
        np.testing.assert_array_equal(rows(batch["base"]), rows(whole.at(step)["base"]))
        cost = lambda found: np.sum((plain["x"] - found["base"]) ** 2)
        assert cost(batch) > cost(whole.at(step))


def test_groups_hold_inside_parts_of_a_batch():
    """Rows of a label keep the law of the base there; blind to it, their mean is .79 (see test_learning)."""
    coupled = data.Coupled(classes(128), data.Assignment(batch=32, groups="label"), STANDARD, seed=5)
    found = [coupled.at(step) for step in range(16)]
    w = np.concatenate([batch["base"][batch["label"] == 1, 0] for batch in found])
    assert stats.kstest(w, stats.norm.cdf).pvalue > 1e-3
    x = np.concatenate([batch["x"][batch["label"] == 1, 0] for batch in found])
    # And they are joined: independent rows have no correlation, which has a standard error of .03 here.
    assert np.corrcoef(x, w)[0, 1] > 0.5


def test_the_entropic_plan_is_the_fixed_point_of_sinkhorn_and_that_of_the_bridge():
    r"""By quadrature, of N(0, 1) and N(0, .3): the cross-covariance of the plan is that of the closed form."""
    x, step = np.linspace(-8.0, 8.0, 601, retstep=True)
    a, b = (stats.norm.pdf(x, scale=scale) * step for scale in (1.0, 0.3**0.5))
    for variance in (2.0, 0.5):
        kernel = np.exp(-((x[:, None] - x) ** 2) / (2 * variance))
        v = np.ones_like(x)
        for _ in range(400):
            u = a / (kernel @ v)
            v = b / (kernel.T @ u)
        plan = u[:, None] * kernel * v
        want = entropic_cross_covariance(np.eye(1), 0.3 * np.eye(1), variance**0.5)[0, 0]
        assert x @ plan @ x == pytest.approx(want, abs=1e-8)


def test_the_plan_of_rows_has_their_marginals():
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=(2, 96, 2))
    plan = np.exp(data.Entropic(std=1.0).log_plan(x, w))
    # The tolerance of the iteration, 1e-3 of the whole.
    assert np.abs(plan.sum(0) - 1 / 96).sum() < 2e-3
    assert np.abs(plan.sum(1) - 1 / 96).sum() < 2e-3


# ---- iterated fitting: between Gaussians every field is linear, and so is the next coupling


def process(std, **options):
    gamma = gammas.Brownian(scale=std) if std else gammas.Zero()
    return processes.StochasticInterpolant(gamma=gamma, base=densities.Gaussian(np.zeros(2), Q), **options)


@functools.cache
def _fields(std):
    """Matrices of velocity and score of the exact bridge with a cross-covariance, at the nodes of a Runge-Kutta rule."""
    made = process(std)
    pieces = models.Pieces.joined(densities.Gaussian(np.zeros(2), P), made.base)
    times = jnp.linspace(0.0, 1.0, 401)

    @jax.jit
    def at(cross):
        model = models.ExactBridge(dataclasses.replace(pieces, cross=cross[None]), made)
        found = jax.vmap(lambda t: (lambda p: (p.velocity, p.score))(model(jnp.eye(2), t)))(times)
        return tuple(jnp.swapaxes(f, 1, 2) for f in found)

    return at


def next_cross(cross, std, down):
    """Cov(x, w) of the ends of the SDE with half of the variance of the reference, walked down or up."""
    with jax.enable_x64(True):
        velocity, score = map(np.asarray, _fields(std)(jnp.asarray(cross)))
    rate = velocity - (0.5 if down else -0.5) * std**2 * score
    rate, h = (-rate[::-1] if down else rate), 1 / 200
    flow = np.eye(2)
    for a, b, c in zip(rate[:-2:2], rate[1:-1:2], rate[2::2], strict=True):
        k1 = a @ flow
        k2 = b @ (flow + h / 2 * k1)
        k3 = b @ (flow + h / 2 * k2)
        flow = flow + h / 6 * (k1 + 2 * k2 + 2 * k3 + c @ (flow + h * k3))
    return flow @ Q if down else P @ flow.T


# Of an independent computation: errors by round, and E|x - w|^2 after six rounds and of the bridge.
ROUNDS = {
    2.0: ((3.4e-2, 4.5e-3, 9.9e-4, 3.4e-4, 1.1e-4, 3.7e-5), 2.4768, 2.4768),
    0.5: ((7.0e-2, 1.9e-2, 1.4e-2, 9.8e-3, 7.1e-3, 5.2e-3), 1.3834, 1.3833),
    0.1: ((3.9e-2, 3.6e-2, 3.4e-2), 0.7527, 0.7515),
}


def cost(cross):
    return np.trace(P + Q) - 2 * np.trace(cross)


@pytest.mark.parametrize("variance", ROUNDS)
def test_rounds_of_iterated_fitting(variance):
    errors, last, limit = ROUNDS[variance]
    std, cross = variance**0.5, np.zeros((2, 2))
    bridge, found = entropic_cross_covariance(P, Q, std), []
    for number in range(6):
        cross = next_cross(cross, std, down=number % 2 == 0)
        found.append(np.abs(cross - bridge).max())
    # Two digits are known, and some of them were rounded twice.
    unit = 10 ** np.floor(np.log10(errors)) / 10
    assert np.all(np.abs(np.array(found[: len(errors)]) - errors) < 0.55 * unit), found
    assert cost(cross) == pytest.approx(last, abs=5.1e-5)
    assert cost(bridge) == pytest.approx(limit, abs=5.1e-5)


def test_the_bridge_is_a_fixed_point_in_both_directions():
    std = 0.5**0.5
    bridge = entropic_cross_covariance(P, Q, std)
    for down in (True, False):
        np.testing.assert_allclose(next_cross(bridge, std, down), bridge, atol=1e-10)


def test_reflow_is_straight_after_one_round_and_not_optimal():
    """Of covariances that do not commute: .56149 for ever, and optimal transport .55876."""
    one = next_cross(np.zeros((2, 2)), 0.0, down=True)
    again = next_cross(one, 0.0, down=False)
    assert cost(one) == pytest.approx(0.56149, abs=5.1e-6)
    np.testing.assert_allclose(again, one, atol=1e-9)
    assert cost(entropic_cross_covariance(P, Q)) == pytest.approx(0.55876, abs=5.1e-6)


def exact(std):
    """The exact bridge of independent ends, whose first round is known."""
    made = process(std)
    pieces = models.Pieces.independent(models.bridge.require_mixture("", densities.Gaussian(np.zeros(2), P)), _mixture(made.base))
    return models.ExactBridge(pieces, made)


def _mixture(law):
    return models.bridge.require_mixture("", law)


@pytest.mark.parametrize("down", [True, False])
@pytest.mark.parametrize("std", [0.0, 0.5**0.5])
def test_pairs_are_those_of_the_first_round(std, down):
    """The sampled ends have the cross-covariance of the exact round, and each its own law."""
    n, model = 8_000, exact(std)
    solver = solvers.InterpolantSDE(epsilon=epsilons.SchroedingerBridge()) if std else solvers.InterpolantODE()
    x = np.asarray(densities.Gaussian(np.zeros(2), P).sample(KEY, n))
    ends = dict(shape=(n, 2)) if down else dict(x=x)
    pairs = distill.rectified_pairs(model, solver=solver, grid=grids.Arcsine(60), key=KEY, **ends)
    if not down:
        np.testing.assert_array_equal(pairs["x"], x)
    x, w = (pairs[name].astype(np.float64) for name in ("x", "base"))
    # Four standard errors of a product of normal numbers with variances .8 and 1.2, and the bias of the steps at the ends.
    close = functools.partial(np.testing.assert_allclose, atol=4 * np.sqrt(2 * 0.8 * 1.2 / n) + 5e-3)
    close(x.T @ w / n, next_cross(np.zeros((2, 2)), std, down))
    close(x.T @ x / n, P)
    close(w.T @ w / n, Q, atol=4 * np.sqrt(2 / n) * 1.2 + 5e-3)


def test_pairs_keep_their_conditions_and_go_into_a_training():
    label = np.arange(64) % 2
    made = process(0.0, coupling=data.Rectified())

    def belief(y, t, cond=None):
        return made.predict(y, t, velocity=-2.0 * (2 * cond[:, None] - 1) * jnp.ones_like(y))

    model = models.FunctionModel(belief, made, returns="prediction")
    walk = functools.partial(distill.rectified_pairs, model, solver=solvers.InterpolantODE(), grid=grids.Uniform(2), key=KEY)
    pairs = walk(shape=(64, 2), cond=label)
    # The velocity is +-2 at all times, so points move by that in a unit of time.
    np.testing.assert_allclose(pairs["x"] - pairs["base"], 2.0 * (2 * label[:, None] - 1) * np.ones((64, 2)), atol=1e-5)
    back = walk(x=pairs["x"], cond=label, chunk=24)
    np.testing.assert_allclose(back["base"], pairs["base"], atol=1e-5)
    batch = data.Batches(pairs, batch_size=16).at(0)
    noised = losses.InterpolantMatching(made, heads=("u",)).draw(KEY, batch)
    # The ends of a row say its condition: they are 2 apart in its direction.
    np.testing.assert_array_equal(noised.cond, np.asarray(batch["x"] > batch["base"])[:, 0])
    # Under a condition too sampling begins at the whole base.
    sample(model, solver=solvers.InterpolantODE(), grid=grids.Uniform(2), key=KEY, shape=(64, 2), cond=label)


def test_noise_upwards_depends_on_the_id_and_not_on_the_chunk():
    x = np.asarray(densities.Gaussian(np.zeros(2), P).sample(KEY, 12))
    walk = functools.partial(invert, exact(0.5**0.5), x, solver=solvers.InterpolantSDE(), grid=grids.Arcsine(8))
    whole = walk(key=KEY)
    np.testing.assert_allclose(walk(key=KEY, chunk=5), whole, atol=1e-5)
    assert np.abs(walk(key=jax.random.key(12)) - whole).max() > 0.1


# ---- the SDE from data to base, by the exact recursion of its table

DATA, BASE = (-1.0, 0.3), (0.3, 1.0)


def _upwards(solver, steps):
    """Mean and variance at ``t = 1``: rows of the table applied to (constant, start, noise of every row before and after)."""
    made = processes.StochasticInterpolant(base=densities.Gaussian(np.array([BASE[0]]), BASE[1]))
    table = solver.table(made, np.linspace(0.0, 1.0, steps + 1))
    rows = len(table.step)

    def fields(t, y):
        """u and eta of two independent Gaussians under a linear path and a Brownian gamma, in closed form."""
        c = (1 - t) ** 2 * DATA[1] + t**2 * BASE[1] + t * (1 - t)
        q = (y - np.eye(1, len(y))[0] * ((1 - t) * DATA[0] + t * BASE[0])) / c
        one = np.eye(1, len(y))[0]
        v = one * (BASE[0] - DATA[0]) + (t * BASE[1] - (1 - t) * DATA[1]) * q
        return v + (0.5 - t) * q, np.sqrt(t * (1 - t)) * q

    unit = np.eye(2 + 2 * rows)
    y, base, before, drawn = unit[1], *np.zeros((3, 2 + 2 * rows))
    for k in range(rows):
        row = {name: float(column[k]) for name, column in table._asdict().items()}
        asked = y + row["before"] * unit[2 + 2 * k]
        u, eta = fields(row["t"], asked)
        drift, noise = u + row["e"] * eta, row["n"] * unit[3 + 2 * k]
        y = row["y"] * asked + row["base"] * base + row["now"] * drift + row["last"] * before + noise + row["again"] * drawn
        base, before, drawn = asked, drift, noise
    return y[0] + y[1] * DATA[0], y[1] ** 2 * DATA[1] + np.sum(y[2:] ** 2)


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (solvers.InterpolantODE(), 2),
        (solvers.InterpolantSDE(epsilon=epsilons.Proportional(4.0)), 2),
        (solvers.InterpolantSDE(epsilon=epsilons.Proportional(4.0), rule="heun"), 2),
        (solvers.InterpolantSDE(epsilon=epsilons.Proportional(4.0), rule="euler"), 1),
        (solvers.InterpolantSDE(epsilon=epsilons.SchroedingerBridge()), 2),
    ],
    ids=str,
)
def test_the_encoding_sde_ends_in_the_base(solver, order):
    errors = np.abs(np.subtract([_upwards(solver, n) for n in (64, 128, 256)], BASE))
    slope = np.log2(errors[1, 1] / errors[2, 1])
    assert slope > order - 0.15, errors
    assert np.all(errors[-1] < (0.02 if order == 1 else 2e-4)), errors


# ---- bases that are points


def pointed(k=0.25, gamma=None, w=(1.0,)):
    """The exact fields of N(.6, .3^2) joined with a point, given the condition."""
    gamma = gammas.Brownian(scale=k) if gamma is None else gamma
    made = processes.StochasticInterpolant(gamma=gamma, base=np.array([w]), coupling=data.Paired(deterministic=True))

    def belief(y, t, cond=None):
        c = made.coefficients(t)
        q = (y - c.alpha * 0.6 - c.beta * w[0]) / (c.alpha**2 * 0.09 + c.gamma**2)
        u = c.d_alpha * (0.6 + c.alpha * 0.09 * q) + c.d_beta * w[0] + c.rate * q
        return made.predict(y, t, velocity=u.astype(y.dtype), eta=(c.gamma * q).astype(y.dtype))

    return models.FunctionModel(belief, made, returns="prediction")


@pytest.mark.parametrize("k", [0.25, 0.5])
@pytest.mark.parametrize("rule", ["strang", "euler"])
@pytest.mark.parametrize("epsilon", [epsilons.SchroedingerBridge(), epsilons.Proportional(8.0)], ids=["bridge", "proportional"])
def test_a_base_that_is_a_point_is_left_by_the_noise_of_gamma(k, rule, epsilon):
    model, n = pointed(k), 8_000
    solver, gamma = solvers.InterpolantSDE(epsilon=epsilon, rule=rule), model.process.gamma
    out = sample(model, solver=solver, grid=grids.Arcsine(60), key=KEY, shape=(n, 1), keep="all")
    x = np.asarray(out.x, np.float64)
    # Four standard errors, and the bias of sixty steps.
    assert x.mean() == pytest.approx(0.6, abs=4 * 0.3 / np.sqrt(n) + 0.005)
    assert x.std() == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(2 * n) + 0.006)
    # After the first step: (1 - s) x + s w with the deviation of gamma, whatever epsilon is. Four standard errors, and the square
    # of the step.
    s, first = out.times[1], np.asarray(out.trajectory[1], np.float64)
    assert first.mean() == pytest.approx(0.6 + s * 0.4, abs=4 * float(gamma.gamma(s)) / np.sqrt(n) + 2 * (1 - s) ** 2)
    assert first.std() == pytest.approx(float(gamma.gamma(s)), rel=4 / np.sqrt(2 * n))


# ---- holes

MEAN, COV = np.array([0.5, -1.0, 0.2]), np.array([[1.0, 0.6, 0.3], [0.6, 0.8, 0.2], [0.3, 0.2, 0.5]])
OUTSIDE = np.array([1.2, -0.4])  # elements 1 and 2 of the point that is known
NOISE = densities.Gaussian(np.zeros(3), 1.0)


def conditional():
    gain = COV[0, 1:] @ np.linalg.inv(COV[1:, 1:])
    return MEAN[0] + gain @ (OUTSIDE - MEAN[1:]), COV[0, 0] - gain @ COV[1:, 0]


def filling(gamma, junk=7.0, only=None):
    """The exact fields of the first element given the others, junk for these, which nobody trains; NaN unless they are ``only``."""
    made = processes.StochasticInterpolant(gamma=gamma, base=NOISE, coupling=data.Inpainting(sides=(1,)))
    gain = COV[0, 1:] @ np.linalg.inv(COV[1:, 1:])
    variance = COV[0, 0] - gain @ COV[1:, 0]

    def belief(y, t, cond=None):
        c = made.coefficients(t)
        centre = MEAN[0] + (y[:, 1:] - MEAN[1:]) @ jnp.asarray(gain, y.dtype)
        if only is not None:
            centre = jnp.where(jnp.all(y[:, 1:] == jnp.asarray(only, y.dtype), axis=1), centre, jnp.nan)
        total = c.alpha**2 * variance + c.beta**2 + c.gamma**2
        q = (y[:, 0] - c.alpha * centre) / total
        u = c.d_alpha * (centre + c.alpha * variance * q) + c.d_beta * c.beta * q + c.rate * q
        heads = dict(velocity=u) | ({} if gamma.silent else dict(eta=c.gamma * q))
        whole = {name: jnp.full_like(y, junk).at[:, 0].set(value.astype(y.dtype)) for name, value in heads.items()}
        return made.predict(y, t, **whole)

    return models.FunctionModel(belief, made, returns="prediction")


SDES = [solvers.InterpolantSDE(), solvers.InterpolantSDE(rule="heun"), solvers.InterpolantSDE(rule="euler")]


@pytest.mark.parametrize(
    ("gamma", "solver"),
    [(gammas.Zero(), solvers.InterpolantODE()), *((gammas.Brownian(scale=0.5), solver) for solver in SDES)],
    ids=["flow", "strang", "heun", "euler"],
)
def test_a_hole_is_filled_by_the_conditional_law_and_nothing_else_moves(gamma, solver):
    n = 6_000
    hole = np.broadcast_to(np.array([1, 0, 0]), (n, 3))
    noise = np.asarray(NOISE.sample(KEY, n))
    start = np.where(hole, noise, np.array([0.0, *OUTSIDE], np.float32)).astype(np.float32)
    model = models.Inpainted(model=filling(gamma, only=OUTSIDE), hole=hole)
    arguments = dict(solver=solver, grid=grids.Arcsine(60), key=KEY, shape=(n, 3), start=starts.Fixed(start))
    out = sample(model, **arguments, keep="all", chunk=4_000)
    np.testing.assert_array_equal(np.asarray(out.trajectory)[:, :, 1:], np.broadcast_to(start[:, 1:], (61, n, 2)))
    x, (mean, variance) = np.asarray(out.x[:, 0], np.float64), conditional()
    bias = 0.02 if solver.order == 1 else 0.005
    assert x.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / n) + bias)
    assert x.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / n) + 2 * bias)


def test_boxes_lie_anywhere_in_a_point_and_inside_of_it():
    rng, coupling = np.random.default_rng(6), data.Inpainting(sides=(2, 3))
    found = coupling.holes(rng, (2_000, 4, 5, 2))
    assert np.all(found.sum((1, 2, 3)) == 2 * 3 * 2)
    assert np.all(found[..., 0] == found[..., 1])
    rows, columns = found.any((2, 3)), found.any((1, 3))
    assert np.all(rows.sum(1) == 2)
    assert np.all(np.abs(np.diff(np.pad(columns, ((0, 0), (1, 1))).astype(int), axis=1)).sum(1) == 2)
    # Three and three places, all as likely: four standard errors of a third.
    for places in (rows.argmax(1), columns.argmax(1)):
        np.testing.assert_allclose(np.bincount(places, minlength=3) / 2_000, 1 / 3, atol=4 * np.sqrt(2 / 9 / 2_000))


def test_batches_with_holes_are_trained_inside_of_them():
    """The base is the data outside; the loss is zero in the mean at the exact fields, and blind to what is said of the outside."""
    x = np.random.default_rng(7).multivariate_normal(MEAN, COV, 4_096).astype(np.float32)
    given = np.broadcast_to(np.array([1, 0, 0]), x.shape)
    made = processes.StochasticInterpolant(gamma=gammas.Brownian(scale=0.5), base=NOISE, coupling=data.Inpainting(hole="mask"))
    prepared = training.Prepared(data.Batches({"x": x, "mask": given}, batch_size=4_096), cond="mask")
    coupled = data.Coupled(prepared, made.coupling, NOISE, seed=2)
    assert not np.array_equal(coupled.at(0)["base"], coupled.at(1)["base"])
    batch = coupled.prepare(coupled.at(0))
    np.testing.assert_array_equal(batch["base"][:, 1:], batch["x"][:, 1:])
    np.testing.assert_array_equal(batch["cond"], batch["mask"])
    assert stats.kstest(np.asarray(batch["base"][:, 0], np.float64), stats.norm.cdf).pvalue > 1e-3
    loss = losses.InterpolantMatching(made)
    noised = loss.draw(KEY, batch)
    np.testing.assert_array_equal(noised.y[:, 1:], batch["x"][:, 1:])
    assert not np.any(noised.noise[1][:, 1:])

    def errors(shift, junk):
        inner = filling(made.gamma, junk)

        def belief(y, t, cond=None):
            found = jax.vmap(lambda y, t: jax.tree.map(lambda a: a[0], _heads(inner(y[None], t))))(y, t)
            return made.predict(y, t, velocity=found[0] + shift, eta=found[1])

        return loss.error(models.FunctionModel(belief, made, returns="prediction"), noised)

    gradient = np.asarray(jax.jacfwd(lambda shift: errors(shift, 7.0))(0.0), np.float64)
    assert abs(gradient.mean()) < 4.5 * gradient.std() / np.sqrt(len(x))
    np.testing.assert_array_equal(errors(0.0, 7.0), errors(0.0, -3.0))
    # A constant error of the velocity is seen in full: the mean is over the hole, and not over the point.
    change = np.asarray(errors(0.5, 7.0) - errors(0.0, 7.0), np.float64)
    assert change.mean() == pytest.approx(0.25, abs=4 * change.std() / np.sqrt(len(x)))


def test_a_base_that_has_a_value_of_the_data_is_learned_from_where_they_are_equal():
    """Both on {-1, 1}, and equal in half of all rows: the best constant velocity is that over all of them, E[w - x]."""
    rng, n = np.random.default_rng(8), 4_096
    points = np.array([[-1.0, 0.0], [1.0, 0.0]], np.float32)
    x = np.stack([np.where(rng.random(n) < 0.7, 1.0, -1.0), np.zeros(n)], 1).astype(np.float32)
    made = processes.StochasticInterpolant(gamma=gammas.Zero(), base=points, coupling=data.Inpainting(hole="mask"))
    hole = np.broadcast_to(np.array([1, 0]), x.shape)
    batches = data.Coupled(data.Batches({"x": x, "mask": hole}, batch_size=n), made.coupling, points, seed=4)
    loss = losses.InterpolantMatching(made, heads=("u",))
    batch = batches.prepare(batches.at(0))
    equal = np.mean(np.asarray(batch["base"][:, 0]) == np.asarray(batch["x"][:, 0]))
    assert equal == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(n))
    noised = loss.draw(KEY, batch)

    def errors(level):
        zero = lambda y, t, cond=None: made.predict(y, t, velocity=jnp.full_like(y, level))
        return loss.error(models.FunctionModel(zero, made, returns="prediction"), noised)

    # A constant velocity is best at E[w - x] = -.4, and the loss there is the variance, 1.84; of w alone 1 and of x alone .84.
    slope = np.asarray(jax.jacfwd(errors)(-0.4), np.float64)
    assert abs(slope.mean()) < 4.5 * slope.std() / np.sqrt(n)
    assert slope.std() > 1
    found = np.asarray(errors(-0.4), np.float64)
    assert found.mean() == pytest.approx(1.84, abs=4.5 * found.std() / np.sqrt(n))


def _weighted(known, particles=2):
    n = len(known)
    model = models.Inpainted(model=filling(gammas.Brownian(scale=0.5)), hole=np.broadcast_to(np.array([1, 0, 0]), (n, 3)))
    start = np.concatenate([np.asarray(NOISE.sample(KEY, n))[:, :1], known], 1).astype(np.float32)
    reward = fk.Difference(reward=lambda x: 3.0 * x[:, 0], scale=1.0)
    solver = fk.FeynmanKac(base=solvers.InterpolantSDE(), potential=reward, policy=fk.Always(), particles=particles)
    return sample(model, solver=solver, grid=grids.Arcsine(8), key=KEY, shape=(n, 3), start=starts.Fixed(start))


def test_particles_of_a_population_know_the_same():
    """A hole is filled beside the outside that it was filled for."""
    known = np.repeat([[1.2, -0.4], [-2.0, 3.0]], 4, axis=0)
    out = _weighted(known, particles=4)
    np.testing.assert_array_equal(out.x[:, 1:], known.astype(np.float32))
    for particles in (8, None):
        with pytest.raises(ValueError, match=r"start differs outside of Inpainted.hole within populations of 8"):
            _weighted(known, particles)


# ---- pairs with noise


def test_noise_beside_the_base_rows_is_fresh_and_has_its_deviation():
    rows = np.random.default_rng(9).normal(size=(512, 3)).astype(np.float32)
    batches = data.Batches({"x": 2 * rows, "base": rows}, batch_size=256, seed=1)
    coupled = data.Coupled(batches, data.Paired(noise=0.7), seed=2)
    z = np.stack([(coupled.at(step)["base"] - batches.at(step)["base"]) / 0.7 for step in range(8)])
    assert stats.kstest(z.ravel(), stats.norm.cdf).pvalue > 1e-3
    np.testing.assert_array_equal(coupled.at(3)["base"], coupled.at(3)["base"])
    # Four standard errors of the correlation of 768 independent numbers.
    assert abs(np.corrcoef(z[0].ravel(), z[1].ravel())[0, 1]) < 4 / np.sqrt(768)
    assert abs(np.corrcoef(z[0].ravel(), batches.at(0)["base"].ravel())[0, 1]) < 4 / np.sqrt(768)
    pixels = data.Batches({"x": np.full((64, 2, 2, 1), 3, np.uint8), "base": np.full((64, 2, 2, 1), 16, np.uint8)}, batch_size=64)
    scaled = data.Coupled(training.Prepared(pixels, transform=data.Pixels(levels=17)), data.Paired(noise=0.1))
    w = np.asarray(scaled.prepare(scaled.at(0))["base"])
    assert w.mean() == pytest.approx(np.asarray(data.Pixels(levels=17).encode(np.uint8(16))), abs=4 * 0.1 / 16)
    assert w.std() == pytest.approx(0.1, rel=4 / np.sqrt(2 * 256))
    with pytest.raises(TypeError, match="expected floating point on the scale of x"):
        data.Coupled(pixels, data.Paired(noise=0.1)).at(0)


@pytest.mark.parametrize(
    ("gamma", "solver"),
    [(gammas.Zero(), solvers.InterpolantODE()), (gammas.Brownian(scale=0.4), solvers.InterpolantSDE())],
    ids=["flow", "sde"],
)
def test_a_base_with_noise_leads_to_the_law_of_the_data_given_the_condition(gamma, solver):
    """Given c, N(c + .6, .3^2) and N(2 c, tau^2): the loss is stationary at the exact fields, and samples have the law."""
    tau, n = 0.5, 8_000
    made = processes.StochasticInterpolant(gamma=gamma, base=np.zeros((1, 1)), coupling=data.Paired(noise=tau))

    def belief(y, t, cond=None, shift=0.0):
        c = made.coefficients(jnp.reshape(t, (-1, 1)))
        mean_x, mean_w = cond + 0.6, 2 * cond
        total = c.alpha**2 * 0.09 + c.beta**2 * tau**2 + c.gamma**2
        q = (y - c.alpha * mean_x - c.beta * mean_w) / total
        u = c.d_alpha * (mean_x + c.alpha * 0.09 * q) + c.d_beta * (mean_w + c.beta * tau**2 * q) + c.rate * q
        heads = {} if gamma.silent else dict(eta=(c.gamma * q).astype(y.dtype))
        return made.predict(y, t, velocity=u.astype(y.dtype) + shift * q.astype(y.dtype), **heads)

    rng = np.random.default_rng(10)
    cond = rng.normal(size=(n, 1)).astype(np.float32)
    x = (cond + 0.6 + 0.3 * rng.normal(size=(n, 1))).astype(np.float32)
    prepared = training.Prepared(data.Batches({"x": x, "c": cond, "base": 2 * cond}, batch_size=n), cond="c")
    coupled = data.Coupled(prepared, made.coupling, seed=3)
    loss = losses.InterpolantMatching(made, heads=("u",) if gamma.silent else ("u", "eta"))
    noised = loss.draw(KEY, coupled.prepare(coupled.at(0)))
    errors = lambda shift: loss.error(
        models.FunctionModel(functools.partial(belief, shift=shift), made, returns="prediction"), noised
    )
    slope = np.asarray(jax.jacfwd(errors)(0.0), np.float64)
    assert abs(slope.mean()) < 4.5 * slope.std() / np.sqrt(n)
    model = models.FunctionModel(belief, made, returns="prediction")
    start = 2 * cond + tau * rng.normal(size=(n, 1)).astype(np.float32)
    out = sample(
        model, solver=solver, grid=grids.Arcsine(60), key=KEY, shape=(n, 1), start=starts.Fixed(start.astype(np.float32)), cond=cond
    )
    rest = np.asarray(out.x, np.float64) - cond
    assert rest.mean() == pytest.approx(0.6, abs=4 * 0.3 / np.sqrt(n) + 0.005)
    assert rest.std() == pytest.approx(0.3, abs=4 * 0.3 / np.sqrt(2 * n) + 0.006)
    # A base that is points has none of the noise.
    with pytest.raises(ValueError, match=r"start = None under Paired\(.*noise=0.5,"):
        sample(model, solver=solver, grid=grids.Arcsine(4), key=KEY, shape=(n, 1))


def _heads(prediction):
    return prediction.velocity, prediction.eta


# ---- refusals


def straight(model=None):
    return distill.straightness(exact(0.0) if model is None else model, grid=grids.Uniform(32), key=KEY, shape=(2_000, 2))


def test_straightness_of_a_flow_between_gaussians():
    """In one dimension the flow of N(0, 1) to N(0, s^2) is known: y_t = y_1 c_t with c^2 = (1-t)^2 s^2 + t^2."""
    s = 0.3
    made = processes.StochasticInterpolant(gamma=gammas.Zero(), base=densities.Gaussian(np.zeros(1), 1.0))
    model = models.ExactModel(densities.Gaussian(np.zeros(1), s**2), made)
    found = distill.straightness(model, grid=grids.Uniform(512), key=KEY, shape=(20_000, 1))
    t = np.linspace(0.0, 1.0, 20_001)
    slope = (t - (1 - t) * s**2) / np.sqrt((1 - t) ** 2 * s**2 + t**2)
    want = np.trapezoid((slope - (1 - s)) ** 2, t)
    # Four standard errors of a mean square, and one Euler step in 512.
    assert float(found) == pytest.approx(want, rel=4 * np.sqrt(2 / 20_000) + 0.01)
    # Joined by optimal transport it is straight: what is left is the rounding of the covariances.
    joined = models.ExactBridge(models.Pieces.joined(densities.Gaussian(np.zeros(1), s**2), made.base), made)
    assert float(distill.straightness(joined, grid=grids.Uniform(64), key=KEY, shape=(2_000, 1))) < 1e-6


def hold(model, shape=(2, 3)):
    return models.Inpainted(model=model, hole=np.zeros(shape, int))


def drawn(model, solver, shape, start=None):
    return sample(model, solver=solver, grid=grids.Uniform(2), key=KEY, shape=shape, start=start)


FLOW, SDE = solvers.InterpolantODE(), solvers.InterpolantSDE()
X = np.zeros((2, 2), np.float32)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: drawn(pointed(), FLOW, (2, 1)), r"Paired\(deterministic=True.*\): expected solvers.InterpolantSDE"),
        (lambda: drawn(pointed(), solvers.Diffrax(), (2, 1)), "Diffrax under"),
        (lambda: invert(pointed(), X[:, :1], solver=FLOW, grid=grids.Uniform(2)), r"InterpolantODE under Paired\("),
        (lambda: invert(pointed(), X[:, :1], solver=solvers.Diffrax(), grid=grids.Uniform(2)), r"Diffrax under Paired\("),
        (lambda: likelihood.log_likelihood(pointed(), X[:, :1]), r"log_likelihood under Paired\(.*a point for each condition"),
        (
            lambda: sl.likelihood_bound(pointed(), X[:, :1], grid=grids.Uniform(2), key=KEY),
            r"likelihood_bound under Paired\(.*a point for each condition",
        ),
        (lambda: pointed(gamma=gammas.Zero()), "expected a gamma that is steep"),
        (lambda: pointed(gamma=gammas.Quadratic()), "expected a gamma that is steep"),
        (lambda: sample(pointed(), solver=SDE, grid=grids.Uniform(1), key=KEY, shape=(2, 1)), "two steps or more"),
        (lambda: data.Paired(deterministic=1.5), "deterministic"),
        (lambda: data.Paired(noise=-0.1), r"Paired\.noise = -0\.1"),
        (lambda: data.Paired(noise=np.inf), r"Paired\.noise = inf"),
        (lambda: data.Paired(noise=0.1, deterministic=True), r"deterministic = True: expected one"),
        (lambda: data.Rectified(first=data.Inpainting(sides=(1,))), "draws from the whole base"),
        (lambda: data.Rectified(first=data.Paired()), "does not need pairs"),
        (lambda: data.Rectified(first=3), "expected a Coupling"),
        (lambda: data.Rectified(groups="label"), "of the coupling first"),
        (lambda: data.Coupled(classes(64), data.Assignment(batch=24), STANDARD).at(0), "a multiple or a divisor"),
        (lambda: epsilons.SchroedingerBridge().values(process(0.0), np.zeros(2)), "expected a Brownian gamma"),
        (lambda: data.Inpainting(hole="base"), "an array of its own"),
        (lambda: models.Inpainted(model=models.ExactModel, hole=np.ones((1, 2))), "not its class"),
        (lambda: models.Inpainted(model=None, hole="hole"), "0 and 1"),
        (
            lambda: processes.StochasticInterpolant(path=processes.paths.Mirror(), coupling=data.Assignment()),
            "with the data at both ends",
        ),
        (
            lambda: data.Coupled(
                data.Batches({"x": np.array([[1.0], [np.nan]], np.float32)}, batch_size=2), data.Entropic(std=1.0),
                densities.Gaussian(np.zeros(1), 1.0),
            ).at(0),
            "1 of 2 rows of the data are not finite",
        ),
        (lambda: invert(exact(1.0), X, solver=SDE, grid=grids.Uniform(2)), "expected one PRNG key"),
        (lambda: distill.rectified_pairs(exact(0.0), solver=FLOW, grid=grids.Uniform(2), key=KEY), "one of shape and x"),
        (
            lambda: distill.rectified_pairs(
                exact(0.0), solver=FLOW, grid=grids.Uniform(2), key=KEY, x=X, start=starts.Fixed(X)
            ),
            "a start with shape only",
        ),
        (
            lambda: distill.rectified_pairs(exact(0.0), solver=solvers.Heun(), grid=grids.Uniform(2), key=KEY, x=X),
            "expected a InterpolantODE",
        ),
        (lambda: straight(pointed()), "InterpolantODE under"),
        (
            lambda: distill.rectified_pairs(exact(0.0), solver=FLOW, grid=grids.Uniform(2, t_max=0.5), key=KEY, x=X),
            "expected 1 to 0",
        ),
        (lambda: data.Inpainting(sides=(0,)), "sides"),
        (lambda: data.Inpainting(sides=()), "a side or more"),
        (lambda: data.Inpainting(sides=(2,), groups="label"), "expected None"),
        (lambda: data.Coupled(classes(64), data.Inpainting(sides=(3,)), STANDARD).at(0), "expected a box inside"),
        (lambda: data.Coupled(classes(64), data.Inpainting(), STANDARD).at(0), "not there"),
        (
            lambda: processes.StochasticInterpolant(
                path=paths.Trigonometric(), gamma=gammas.Quadratic(), base=NOISE, coupling=data.Inpainting(sides=(1,))
            ),
            "expected paths.Linear",
        ),
        (lambda: drawn(filling(gammas.Zero()), FLOW, (2, 3)), "expected models.Inpainted"),
        (lambda: drawn(hold(filling(gammas.Zero())), FLOW, (2, 3)), r"expected start=starts\.Fixed\(w\)"),
        (lambda: drawn(hold(exact(0.0), (2, 2)), FLOW, (2, 2)), "expected models.Inpainted"),
        (lambda: likelihood.log_likelihood(hold(filling(gammas.Zero())), np.zeros((2, 3))), "to be sampled"),
        (lambda: hold(filling(gammas.Zero()), (3,)), "expected 0 and 1"),
        (
            lambda: drawn(hold(filling(gammas.Zero()), (2, 2)), FLOW, (2, 3), starts.Fixed(np.zeros((2, 3), np.float32))),
            "expected the same",
        ),
        (
            lambda: losses.InterpolantMatching(filling(gammas.Zero()).process, heads=("u",)).draw(
                KEY, {"x": jnp.zeros((2, 3)), "base": jnp.zeros((2, 3))}
            ),
            r"batch\['hole'\] is not there",
        ),
    ],
)  # fmt: skip
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_a_coupling_blind_to_the_condition_is_refused_before_pairs_are_made():
    prepared = training.Prepared(classes(64), cond="label")
    with pytest.raises(ValueError, match=r"Assignment.*under the conditions \('label',\)"):
        data.Coupled(prepared, data.Rectified(first=data.Assignment()), STANDARD)
