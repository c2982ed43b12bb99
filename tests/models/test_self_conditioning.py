"""A network that sees its former estimate: what it sees, in which call, with which solver; and where it is refused."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab import fk, losses, models, solvers
from scorelab.models import Denoiser, FunctionModel, informed
from scorelab.models.nets import MLP
from scorelab.processes import Gaussian
from scorelab.schedules import EDM, VPLinear
from scorelab.starts import Fixed
from tests.contracts.members import SOLVERS

KEY = jax.random.key(0)
PROCESS = Gaussian(schedule=EDM(sigma_min=0.05, sigma_max=5.0))
GRID = sl.grids.Karras(5)
TABLES = [solver for solver in SOLVERS if not isinstance(solver, solvers.Diffrax)]
# The default run has every class of solvers once.
KINDS = {type(solver): solver for solver in TABLES}.values()
every_solver = pytest.mark.parametrize(
    "solver", [pytest.param(s, marks=() if s in KINDS else pytest.mark.long, id=repr(s)) for s in TABLES]
)


@dataclass(frozen=True)
class Net:
    """A network by a function of what it sees: x, the condition and the former estimate, each as it comes in."""

    fn: object
    takes_estimate: bool = True
    num_classes: int = 2

    def init(self, key, x, c_noise, cond=None, *, estimate=None):
        return jnp.ones(())

    def apply(self, params, x, c_noise, cond=None, *, estimate=None):
        return params * self.fn(x, cond, estimate)


def counting(x, cond, estimate):
    return estimate + 1.0


def labelled(x, cond, estimate):
    return estimate + (1.0 if cond is None else 2.0)


def lineage(x, cond, estimate):
    return jnp.where(estimate == 0, x, estimate)


def ignoring(x, cond, estimate):
    return jnp.tanh(x)


def model(fn, *, self_condition=True, process=PROCESS, predict="x0", std=1.0):
    # F is the denoised point itself, and data_std is one, so that the network gives and sees points as they are.
    denoiser = Denoiser(net=Net(fn), process=process, predict=predict, data_std=std, self_condition=self_condition)
    return denoiser.bind(jnp.ones(()))


draw = partial(sl.sample, grid=GRID, key=KEY, shape=(6, 2))


@every_solver
def test_a_network_that_ignores_its_estimate_gives_bitwise_the_samples_of_the_plain_one(solver):
    plain = draw(model(ignoring, self_condition=False), solver=solver)
    told = draw(model(ignoring), solver=solvers.SelfConditioned(solver))
    np.testing.assert_array_equal(told.x, plain.x)
    assert told.diagnostics["model_calls"] == plain.diagnostics["model_calls"]


@every_solver
def test_a_call_sees_what_was_denoised_in_the_call_before(solver):
    """A network that adds one to what it sees says k in call k; so does a plain model that counts the rows of the table."""
    rows = solver.table(PROCESS, GRID.times(PROCESS))
    told = draw(model(counting), solver=solvers.SelfConditioned(solver), keep="all")
    calls = np.arange(1, len(rows.t) + 1)
    # Where two calls are at one time (a corrector at the node of the next step), the time does not tell them apart.
    if len(np.unique(rows.t)) == len(rows.t):
        order = np.argsort(rows.t)  # churn goes back in time
        times, counts = jnp.asarray(rows.t[order], jnp.float32), jnp.asarray(calls[order], jnp.float32)
        plain = FunctionModel(lambda y, t, cond: jnp.full_like(y, jnp.interp(t, times, counts)), PROCESS)
        # Interpolation of counts at float32 times: a few ulp of the largest count, times the gain of the steps.
        np.testing.assert_allclose(told.trajectory, draw(plain, solver=solver, keep="all").trajectory, atol=1e-4)
    if isinstance(solver, solvers.Heun | solvers.Renoise | solvers.DDIM):
        # Their last step ends at the denoised point of the last call.
        np.testing.assert_allclose(told.x, len(calls), rtol=1e-6)


def test_the_last_estimate_is_seen_at_any_scale_of_the_data_and_under_any_process():
    process = Gaussian(schedule=VPLinear())
    # D = std * (D / std + 1) where the network says what it sees plus one, and F is D over std.
    out = draw(model(counting, process=process, std=0.25), solver=solvers.SelfConditioned(solvers.DDIM()))
    expected = 0.0
    for _ in range(5):
        expected = expected / 0.25 + 1.0
    np.testing.assert_allclose(out.x, expected, rtol=1e-5)


def test_a_particle_takes_its_estimate_along():
    points = np.random.default_rng(0).uniform(3, 5, (64, 2)).astype(np.float32)
    # The network repeats what it said first, which is its first input: every particle ends where its root began.
    base = solvers.SelfConditioned(solvers.DDIM(eta=1.0))
    reward = lambda x: jnp.sum(x, axis=-1)
    solver = fk.FeynmanKac(base=base, potential=fk.Difference(reward, 30.0), policy=fk.Always(), particles=32)
    out = sl.sample(model(lineage), solver=solver, grid=GRID, key=KEY, shape=(64, 2), start=Fixed(points))
    root = np.asarray(out.diagnostics["root"]) + 32 * (np.arange(64) // 32)
    assert len(np.unique(root)) < 40  # it was resampled
    sigma = float(GRID.times(PROCESS)[0])
    np.testing.assert_allclose(out.x, points[root] / np.sqrt(1 + sigma**2), rtol=1e-5)


def test_under_guidance_both_calls_see_the_guided_estimate():
    cond = np.zeros(6, np.int32)
    for scale in (1.0, 3.0):
        guided = models.ClassifierFreeGuidance(model=model(labelled), scale=scale)
        out = draw(guided, solver=solvers.SelfConditioned(solvers.DDIM()), cond=cond)
        # Each call adds 1 without the condition and 2 with it.
        np.testing.assert_allclose(out.x, 5 * (1 + scale), rtol=1e-5)


def total(x):
    return jnp.sum(x, axis=-1)


SEEN = models.LinearMeasurement(matrix=np.eye(2)[:1], values=np.ones(1), std=0.5)
INSIDE = {
    "RewardGradient": lambda m: models.RewardGradient(model=m, reward=total, scale=0.3),
    "Clipped": lambda m: models.Clipped(model=models.RewardGradient(model=m, reward=total, scale=0.3)),
    "DPS": lambda m: models.DPS(model=m, measurement=SEEN, grid=GRID),
    "SDA": lambda m: models.SDA(model=m, measurement=SEEN),
    "PiGDM": lambda m: models.PiGDM(model=m, measurement=SEEN),
    "TweedieCovariance": lambda m: models.TweedieCovariance(model=m, measurement=SEEN),
    "Composition": lambda m: fk.composition.Composition(models=(m, m), exponents=(1.0, -0.5)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_network_is_told_inside_every_model_made_of_it(name):
    inside = INSIDE[name]
    told = draw(inside(model(ignoring)), solver=solvers.SelfConditioned(solvers.DDIM()))
    np.testing.assert_array_equal(told.x, draw(inside(PLAIN), solver=solvers.DDIM()).x)
    with pytest.raises(ValueError, match=r"sample\.model sees its former estimate"):
        draw(inside(model(ignoring)), solver=solvers.DDIM())
    # What it is told there is the estimate itself: a model that is told 2 says 3, before anything is added to it.
    y = jnp.ones((2, 2))
    three = FunctionModel(lambda y, t, cond: jnp.full_like(y, 3.0), PROCESS)
    said = informed(inside(model(counting)), jnp.full_like(y, 2.0))(y, 1.0)
    np.testing.assert_allclose(said.denoised, inside(three)(y, 1.0).denoised, rtol=1e-6)


def test_a_reward_leaves_a_network_that_ignores_its_point_alone():
    """What a network says that does not look at its input has no gradient: each call adds 1, and the reward nothing."""
    guided = models.RewardGradient(model=model(counting), reward=total)
    np.testing.assert_allclose(draw(guided, solver=solvers.SelfConditioned(solvers.DDIM())).x, 5.0, rtol=1e-6)


def test_samples_do_not_depend_on_the_chunk():
    run = dict(solver=solvers.SelfConditioned(solvers.DPMSolverPP(order=2, eta=1.0)))
    fn = lambda x, cond, estimate: jnp.tanh(x + estimate)
    told = model(fn)
    np.testing.assert_array_equal(draw(told, chunk=2, **run).x, draw(told, chunk=2, ids=np.arange(6), **run).x)
    np.testing.assert_allclose(draw(told, chunk=2, **run).x, draw(told, **run).x, rtol=1e-6)


TOLD = model(counting)
PLAIN = model(ignoring, self_condition=False)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: draw(TOLD, solver=solvers.Heun()), r"sample\.model sees its former .*SelfConditioned\(solver\) does"),
        (lambda: draw(PLAIN, solver=solvers.SelfConditioned(solvers.Heun())), r"solver = SelfCond.*BoundDenoiser sees none"),
        (lambda: TOLD(jnp.ones((2, 2)), 1.0), "was asked without its former estimate"),
        (lambda: TOLD.informed(jnp.ones((2, 3)))(jnp.ones((2, 2)), 1.0), "the former estimate has shape"),
        (lambda: sl.log_likelihood(TOLD, jnp.ones((2, 2))), r"log_likelihood\.model sees its former estimate"),
        (lambda: sl.invert(TOLD, jnp.ones((2, 2)), solver=solvers.Heun(), grid=GRID), r"invert\.model sees its former"),
        (
            lambda: sl.invert(TOLD, jnp.ones((2, 2)), solver=solvers.SelfConditioned(solvers.Heun()), grid=GRID),
            r"invert\.solver = SelfConditioned",
        ),
        (lambda: solvers.SelfConditioned(solvers.Diffrax()), r"SelfConditioned\.solver = Diffrax.*an adaptive one"),
        (lambda: solvers.SelfConditioned(fk.FeynmanKac()), r"FeynmanKac\(base=SelfConditioned"),
        (lambda: solvers.SelfConditioned(solvers.SelfConditioned(solvers.Heun())), "independent points"),
        (lambda: solvers.SelfConditioned(solvers.Joint(a=solvers.DDIM())), "of one part"),
        (lambda: solvers.Joint(a=solvers.SelfConditioned(solvers.DDIM())), r"solvers\.Joint\.a = SelfConditioned"),
        (
            lambda: solvers.PredictorCorrector(predictor=solvers.SelfConditioned(solvers.DDIM())),
            r"expected SelfConditioned\(PredictorCorrector",
        ),
        (lambda: replace(TOLD.denoiser, net=Net(counting, takes_estimate=False)), r"self_condition = True for Net: expected False"),
        (lambda: replace(TOLD.denoiser, self_condition=1), r"Denoiser\.self_condition = 1"),
        (lambda: losses.SelfConditioned(losses.DenoisingScoreMatching(PROCESS), share=1.5), r"SelfConditioned\.share = 1\.5"),
    ],
)  # fmt: skip
def test_what_has_no_former_estimate_is_refused(act, message):
    with pytest.raises(ValueError, match=message):
        act()


def test_a_model_that_is_told_none_is_an_ordinary_one():
    blind = informed(model(lambda x, cond, estimate: jnp.tanh(x) + estimate), 0.0)
    plain = model(ignoring, self_condition=False)
    np.testing.assert_array_equal(draw(blind, solver=solvers.Heun()).x, draw(plain, solver=solvers.Heun()).x)
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal(sl.log_likelihood(blind, x).log_prob, sl.log_likelihood(plain, x).log_prob)


# Training -----------------------------------------------------------------------------------------------------------------
INNER = losses.DenoisingScoreMatching(PROCESS)
BATCH = {"x": np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)}


def linear(x, cond, estimate):
    return 0.3 * x + 0.5 * estimate


def bound(scale):
    return Denoiser(net=Net(linear), process=PROCESS, predict="x0", data_std=1.0, self_condition=True).bind(scale)


def test_half_of_the_examples_see_the_first_estimate_and_the_others_zeros():
    loss, told = losses.SelfConditioned(INNER), bound(jnp.ones(()))
    noised = loss.draw(KEY, BATCH)
    sees = np.asarray(noised.extra[1])
    assert abs(sees.mean() - 0.5) < 4 * 0.5 / 20  # four standard errors of 400 coins
    blind = informed(told, 0.0)
    first = blind(noised.y, noised.t).denoised
    zeros, seeing = INNER.error(blind, noised), INNER.error(informed(told, first), noised)
    np.testing.assert_allclose(loss.error(told, noised), np.where(sees, seeing, zeros), rtol=1e-6)
    assert np.abs(seeing - zeros).min() > 0
    # What the loss itself draws is as without it.
    for mine, theirs in zip(noised[:5], INNER.draw(KEY, BATCH)[:5], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not loss.draw(KEY, BATCH)._replace(extra=None).extra
    for share, expected in ((0.0, zeros), (1.0, seeing)):
        sure = losses.SelfConditioned(INNER, share=share)
        np.testing.assert_allclose(sure.error(told, sure.draw(KEY, BATCH)), expected, rtol=1e-6)


def test_the_first_call_has_no_gradient():
    loss = losses.SelfConditioned(INNER, share=1.0)
    noised = loss.draw(KEY, BATCH)
    total = lambda scale: jnp.mean(loss.error(bound(scale), noised))
    first = informed(bound(jnp.ones(())), 0.0)(noised.y, noised.t).denoised
    fixed = lambda scale: jnp.mean(INNER.error(informed(bound(scale), first), noised))
    got, expected = (float(jax.grad(f)(jnp.ones(()))) for f in (total, fixed))
    assert got == pytest.approx(expected, rel=1e-6)
    # Through the first call it would be another number.
    whole = lambda s: jnp.mean(INNER.error(informed(bound(s), informed(bound(s), 0.0)(noised.y, noised.t).denoised), noised))
    assert abs(float(jax.grad(whole)(jnp.ones(()))) - expected) > 1e-3


def test_terms_inside_see_the_same_model_and_those_outside_are_refused():
    term = lambda model, noised: jnp.mean(model(noised.y, noised.t).denoised ** 2, axis=1)
    told = bound(jnp.ones(()))
    inside = losses.SelfConditioned(losses.Regularised(INNER, ((term, 1.0),)), share=0.0)
    noised = inside.draw(KEY, BATCH)
    blind = informed(told, 0.0)
    np.testing.assert_allclose(inside.error(told, noised), INNER.error(blind, noised) + term(blind, noised), rtol=1e-5)
    outside = losses.Regularised(losses.SelfConditioned(INNER), ((term, 1.0),))
    with pytest.raises(ValueError, match="without its former estimate"):
        outside.error(told, outside.draw(KEY, BATCH))
    with pytest.raises(ValueError, match=r"losses\.SelfConditioned tells the model .* sees none"):
        inside.error(PLAIN, noised)


def test_a_network_is_trained_and_sampled_with_its_estimate():
    import optax

    from scorelab.training import ScoreLearner

    denoiser = Denoiser(net=MLP(width=16, depth=1, embed=16), process=PROCESS, self_condition=True)
    learner = ScoreLearner(denoiser, losses.SelfConditioned(INNER), optax.adam(1e-2), ema=None)
    state = jax.jit(learner.init)(KEY, BATCH)
    assert state.params["params"]["in"]["kernel"].shape == (4, 16)
    update = jax.jit(learner.update)
    for i in range(3):
        state, metrics = update(state, BATCH, jax.random.key(i))
    assert np.isfinite(metrics["loss"])
    # The weights of the estimate have a gradient: they moved.
    before = jax.jit(learner.init)(KEY, BATCH).params["params"]["in"]["kernel"][2:]
    assert np.abs(state.params["params"]["in"]["kernel"][2:] - before).max() > 1e-3
    out = draw(learner.model(state), solver=solvers.SelfConditioned(solvers.Heun()))
    assert np.isfinite(out.x).all()


def test_a_config_says_it_in_a_few_lines_and_is_refused_before_the_training_where_one_is_missing():
    from scorelab import config, experiment

    short = ["data.Named.n = 100", "nets.MLP.width = 8", "nets.MLP.depth = 1", "grids.Karras.steps = 3", "experiment.Sample.n = 8"]
    short += ["experiment.Evaluate.evaluations = ()", "experiment.Train.batch_size = 8"]
    lines = [
        "models.Denoiser.self_condition = True",
        "training.ScoreLearner.loss = @losses.SelfConditioned()\nlosses.SelfConditioned.loss = @losses.DenoisingScoreMatching()",
        "experiment.Sample.solver = @solvers.SelfConditioned()\nsolvers.SelfConditioned.solver = @solvers.Heun()",
    ]
    bindings = [line for part in lines for line in part.split("\n")]
    experiment.check(config.load("toys/rings", [*short, *bindings]).experiment)
    with pytest.raises(ValueError, match=r"sample\.model sees its former estimate"):
        experiment.check(config.load("toys/rings", [*short, *bindings[:3]]).experiment)
    with pytest.raises(ValueError, match=r"sample\.solver = SelfConditioned .*sees none"):
        experiment.check(config.load("toys/rings", [*short, *bindings[1:]]).experiment)


@pytest.mark.parametrize(
    "around",
    [
        lambda s: solvers.Brownian(solver=solvers.SelfConditioned(s)),
        lambda s: solvers.SelfConditioned(solvers.Brownian(solver=s)),
    ],
)
def test_noise_along_a_path_and_a_former_estimate_go_together(around):
    """Either may be around the other: the path is the same one, and the estimate too."""
    told = draw(model(ignoring), solver=around(solvers.DDIM(eta=1.0)))
    plain = draw(model(ignoring, self_condition=False), solver=solvers.Brownian(solver=solvers.DDIM(eta=1.0)))
    np.testing.assert_array_equal(told.x, plain.x)


def test_a_step_along_a_path_is_weighed_by_the_noise_that_it_draws():
    """Guided particles read the noise of their step: through a solver that tells the estimate it is the same."""
    guided = lambda network: models.RewardGradient(model=network, reward=total, scale=0.5)
    particles = partial(fk.FeynmanKac, policy=fk.Never())
    path = solvers.Brownian(solver=solvers.DDIM(eta=1.0))
    told = draw(guided(model(ignoring)), solver=particles(base=solvers.SelfConditioned(path)))
    plain = draw(guided(PLAIN), solver=particles(base=path))
    np.testing.assert_array_equal(told.x, plain.x)
    np.testing.assert_array_equal(told.log_weights, plain.log_weights)
    assert np.std(told.log_weights) > 0.1
