"""Every member is lowered for GPUs and TPUs, where there are none: a new one is in the tables here, or named as missing.

What has no rule for a platform, a kernel that is there for the CPU alone, or a call of the host is found while lowering.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import densities, distill, fk, grids, losses, models, processes, sample, schedules, solvers, starts, training
from scorelab.models import nets
from scorelab.processes import spaces
from scorelab.randomness import per_example_keys
from tests.contracts import members, test_losses, test_starts
from tests.interpolants.test_sampling import SOLVERS as OF_INTERPOLANTS

PLATFORMS = ("cuda", "tpu")
KEY = jax.random.key(0)
VP = processes.Gaussian(schedule=schedules.VPLinear())
GBM = processes.GeometricBrownianMotion(sigma=25.0, mu=25.0**2 / 2 + 2.0)
# What members inherit.
ABSTRACT = {
    distill.Distillation, fk.Policy, fk.Potential, fk.Steering, fk.When, losses.Loss, losses.PredictionLoss, solvers.Integrator,
    solvers.Multistep, solvers.Population, solvers.Solver, starts.Start, training.Learner,
}  # fmt: skip
LAW = densities.GaussianMixture([0.4, 0.6], np.array([[-1.0, 0.5], [1.0, 0.0]]), 0.2)
MODEL = models.ExactModel(LAW, VP)


def lowers(function, *arguments):
    """Lower a function of arrays for GPUs and TPUs; nothing is compiled."""
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS


def walks(model, solver, shape=(4, 2), grid=grids.Uniform(3), **options):  # noqa: B008 (a frozen spec)
    # Not an argument: some models look at their arrays, which are none while a program is exported.
    lowers(lambda key: sample(model, solver=solver, grid=grid, key=key, shape=shape, **options).x, KEY)


def rows(tables):
    """The first of every class, and the others in the long tail."""
    found, seen = [], set()
    for name, member in tables:
        kind = type(member)
        found.append(pytest.param(member, id=name, marks=() if kind not in seen else pytest.mark.long))
        seen.add(kind)
    return found


def kinds(package, base):
    """The public members of a kind, without those that others inherit."""
    public = [getattr(package, name) for name in package.__all__]
    return {kind for kind in public if isinstance(kind, type) and issubclass(kind, base)} - ABSTRACT


# Solvers --------------------------------------------------------------------------------------------------------------------

PATH = solvers.Brownian(solver=solvers.DDIM(eta=1.0))
GAUSSIAN = [*members.SOLVERS, PATH]
INTERPOLANT = processes.StochasticInterpolant(base=densities.Gaussian(np.array([0.3, 0.0]), 1.0))
SPHERE = processes.Geodesic(space=spaces.Sphere(), base=densities.Uniform(spaces.Sphere(), (3,)))
PARTS = processes.Joint(a=VP, b=VP)


def together(y, t, cond=None):
    parts = {name: VP.predict(y[name], t[name], denoised=0 * y[name]) for name in y}
    return processes.JointPrediction(parts=parts, t=t, process=PARTS)


@pytest.mark.parametrize("solver", rows((repr(s), s) for s in GAUSSIAN))
def test_solvers_of_gaussian_noise(solver):
    walks(MODEL, solver)


@pytest.mark.parametrize("solver", rows((repr(s), s) for s in OF_INTERPOLANTS))
def test_solvers_of_interpolants(solver):
    walks(models.ExactModel(LAW, INTERPOLANT), solver)


OTHERS = {
    solvers.MultiplicativeAnnealed: lambda solver: walks(
        models.ExactModel(densities.Gaussian(np.zeros(2), 0.3), GBM), solver(), grid=grids.LogSNR(3)
    ),
    solvers.GeodesicODE: lambda solver: walks(
        models.ExactGeodesic.weighted(jnp.eye(3), np.ones(3) / 3, SPHERE), solver(), shape=(4, 3), grid=grids.Quadratic(3)
    ),
    solvers.Joint: lambda solver: walks(
        models.FunctionModel(together, PARTS, returns="prediction"), solver(a=solvers.DDIM(eta=1.0), b=solvers.Hold()),
        shape=dict(a=(4, 2), b=(4, 2)), start=starts.Joint(dict(a=starts.Prior(), b=starts.Fixed(np.zeros((4, 2), np.float32)))),
    ),
    solvers.KeptNoise: lambda solver: walks(models.Clipped(model=MODEL), solver(solver=solvers.DDIM(eta=1.0))),
    solvers.RePaint: lambda solver: walks(
        models.Known(model=MODEL, values=np.zeros(2, np.float32), mask=np.array([True, False])), solver(repeats=2)
    ),
    solvers.SelfConditioned: lambda solver: walks(test_losses.Seeing(MODEL), solver(solvers.DDIM(eta=1.0))),
}  # fmt: skip


@pytest.mark.parametrize("solver", OTHERS, ids=lambda kind: kind.__name__)
def test_solvers_of_other_processes(solver):
    OTHERS[solver](solver)


def test_every_solver_is_lowered():
    lowered = {type(solver) for solver in (*GAUSSIAN, *OF_INTERPOLANTS)} | set(OTHERS) | {solvers.Hold}
    assert kinds(solvers, solvers.Solver) <= lowered


# Populations ----------------------------------------------------------------------------------------------------------------


def reward(x):
    return -jnp.sum(x**2, axis=1)


# The policies, resamplers and beliefs beside the potentials, so that each is in one program at least.
STEERED = [
    fk.FeynmanKac(base=solvers.DDIM(eta=1.0), potential=potential, particles=4, **options)
    for potential, options in (
        (fk.Zero(), dict(policy=fk.Never())),
        (fk.Difference(reward, 1.0), dict(policy=fk.Always(), resampler=fk.systematic)),
        (
            fk.Difference(reward, 1.0, intermediate=fk.Posterior(samples=2, data_std=1.0)),
            dict(policy=fk.Every(2), resampler=fk.ssp),
        ),
        (fk.Max(reward, 1.0), dict(policy=fk.EssBelow(0.5), resampler=fk.multinomial)),
        (fk.Sum(reward, 1.0), dict(policy=fk.Islands(2), resampler=fk.stratified)),
        (fk.Current(reward, 1.0, intermediate=fk.Learned(lambda y, t: y[:, 0])), dict(policy=fk.Always(), resampler=fk.residual)),
        (fk.FinalOnly(reward, 1.0), dict(policy=fk.Always(), resampler=fk.killing)),
        (fk.SumPotential((fk.Difference(reward, 1.0), fk.Max(reward, 0.5))), dict(policy=fk.BirthDeath())),
    )
]
COMPOSED = {
    fk.Corrector: lambda: fk.product([MODEL, MODEL], anchor="score"),
    fk.TiltCorrector: lambda: fk.tilted(MODEL, reward, ramp=lambda process, t: 1.0 - t),
}


@pytest.mark.parametrize("solver", STEERED, ids=lambda solver: type(solver.potential).__name__)
def test_potentials_and_policies(solver):
    walks(MODEL, solver)


@pytest.mark.parametrize("potential", COMPOSED, ids=lambda kind: kind.__name__)
def test_correctors(potential):
    found = COMPOSED[potential]()
    assert isinstance(found.potential, potential)
    solver = fk.FeynmanKac(base=solvers.EulerMaruyama(), potential=found.potential, policy=fk.Always(), particles=4)
    walks(found.model, solver, start=found.start)


def test_every_potential_and_policy_is_lowered():
    lowered = {type(solver.potential) for solver in STEERED} | set(COMPOSED)
    assert kinds(fk, fk.Potential) <= lowered
    assert kinds(fk, fk.Policy) <= {type(solver.policy) for solver in STEERED}


# Starts ---------------------------------------------------------------------------------------------------------------------

STARTS = {
    **test_starts.STARTS,
    "fixed": (starts.Fixed(np.zeros((3, 1), np.float32)), VP),
    "noised points": (starts.NoisedPoints(np.zeros((3, 1), np.float32)), VP),
    "signed": (starts.Signed(starts.Prior(), np.ones((3, 1), np.float32)), GBM),
}


@pytest.mark.parametrize("name", STARTS)
def test_starts(name):
    start, process = STARTS[name]

    def draw(key):
        ids = jnp.arange(3)
        y = start.draw(per_example_keys(key, ids), ids, process, jnp.float32(0.6), (1,))
        return y, start.log_weight(y, process, jnp.float32(0.6))

    lowers(draw, KEY)


def test_every_start_is_lowered():
    # That of several parts is that of its parts, and is lowered with solvers.Joint.
    assert kinds(starts, starts.Start) <= {type(start) for start, _ in STARTS.values()} | {starts.Joint}


# Losses, networks and learners ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", rows(test_losses.LOSSES.items()))
def test_losses_and_their_gradients(loss):
    batch = test_losses.batch(loss.process, 4)

    def mean(parameters, key, batch):
        noised = loss.draw(key, batch)
        return jnp.mean(loss.error(test_losses.learned(parameters, loss), noised))

    lowers(jax.value_and_grad(mean), test_losses.TRUTH, KEY, batch)


def test_every_loss_is_lowered():
    # That of several parts is the sum of those of its parts.
    lowered = {type(loss) for loss in test_losses.LOSSES.values()} | {losses.Joint}
    assert kinds(losses, losses.Loss) <= lowered


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", members.NETWORKS)
def test_networks_and_their_gradients(name, dtype):
    net, event = members.NETWORKS[name]
    net = net.clone(dtype=dtype, dropout=0.1, **({"loop_safe": True} if hasattr(net, "loop_safe") else {}))
    x, noise, label = jnp.zeros((2, *event)), jnp.zeros(2), jnp.zeros(2, jnp.int32)

    def total(params, x, key):
        return jnp.sum(net.apply(params, x, noise, label, train=True, rngs={"dropout": key}))

    params = jax.eval_shape(net.init, KEY, x, noise, label)
    lowers(jax.value_and_grad(total, argnums=(0, 1)), params, x, KEY)


def test_every_network_is_lowered():
    parts = {nets.Conv, nets.GroupNorm}
    assert kinds(nets, nn.Module) - parts == {type(net) for net, _ in members.NETWORKS.values()}


NET = models.Denoiser(net=nets.MLP(width=8, depth=1, embed=8), process=VP, data_std=1.0)
ADAM = optax.adam(1e-3)


def teacher(key):
    return NET.bind(NET.init(key, (2,)))


LEARNERS = {
    "score": lambda key: training.ScoreLearner(
        NET, losses.DenoisingScoreMatching(VP), optax.MultiSteps(ADAM, 2).gradient_transformation(),
        ema=(training.EMA(), training.PowerEMA()),
    ),
    "score, energy": lambda key: training.ScoreLearner(
        models.Energy(net=nets.MLP(width=8, depth=1, embed=8, dropout=0.1), process=VP, data_std=1.0),
        losses.DenoisingScoreMatching(VP), ADAM,
    ),
    "progressive": lambda key: training.ScoreLearner(
        NET, distill.ProgressiveDistillation(VP, teacher=teacher(key), grid=grids.Uniform(4, t_max=0.99)), ADAM
    ),
    "consistency": lambda key: training.ScoreLearner(
        dataclasses.replace(NET, predict="consistency"), distill.ConsistencyDistillation(VP, teacher=teacher(key)), ADAM
    ),
    "reward": lambda key: fk.RewardLearner(NET, lambda x: x[:, 0], ADAM),
    "f-distill": lambda key: distill.FDistill(teacher(key), n_aux=2),
    "SiD": lambda key: distill.SiD(teacher(key), n_aux=1),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_steps_of_learners(name):
    def step(key):
        batch = {"x": jax.random.normal(key, (4, 2))}
        learner = LEARNERS[name](key)
        return learner.update(learner.init(key, batch), batch, key)

    lowers(step, KEY)


def test_every_learner_is_lowered():
    found = {training.ScoreLearner, fk.RewardLearner, distill.FDistill, distill.SiD}
    assert kinds(training, training.Learner) | kinds(fk, training.Learner) | kinds(distill, training.Learner) <= found


@pytest.mark.parametrize(
    "function",
    [lambda x: jnp.linalg.eig(x)[0], lambda x: jax.pure_callback(np.sin, jax.ShapeDtypeStruct((2, 2), np.float32), x)],
    ids=["a kernel of the CPU alone", "a call of the host"],
)
def test_what_has_no_rule_is_found(function):
    with pytest.raises((NotImplementedError, ValueError)):
        lowers(function, jnp.eye(2))
