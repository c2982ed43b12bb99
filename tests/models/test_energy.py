"""Laws of energies: the score is the gradient of a scalar, and an energy that is exact does all that an exact law does."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import densities, fk, grids, log_likelihood, losses, sample, solvers, starts
from scorelab.data import Batches
from scorelab.models import BoundEnergy, ClassifierFreeGuidance, Denoiser, Energy, ExactModel, KnowsDensity, ask, conditioned
from scorelab.models.denoiser import PARAMETERISATIONS
from scorelab.models.nets import MLP, UNet
from scorelab.pretrained import own
from scorelab.processes import Gaussian, GeometricBrownianMotion, HasDenoised, HasLogProb, HasNoise, HasScore
from scorelab.schedules import EDM, RectifiedFlow, VPLinear
from scorelab.training import EMA, ScoreLearner, fit
from tests.contracts import members, test_losses
from tests.precision import double

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
STD = 0.7
PROCESSES = [
    *(Gaussian(schedule=s) for s in (EDM(), VPLinear(), RectifiedFlow(t_max=0.99))),
    GeometricBrownianMotion(sigma=2.0, mu=0.5),
]
by_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)
MEAN, VARIANCE = np.array([0.4, -0.3]), np.array([0.3, 0.8])


@dataclass(frozen=True)
class Waves:
    """A network that is no gradient, in the precision of its input; a condition moves its waves."""

    width: int = 5

    def init(self, key, x, c_noise, cond=None):
        size = x[0].size
        first, last, shift = jax.random.split(key, 3)
        return {
            "in": jax.random.normal(first, (size, self.width)),
            "out": jax.random.normal(last, (self.width, size)),
            "shift": jax.random.normal(shift, (self.width,)),
        }

    def apply(self, params, x, c_noise, cond=None):
        moved = c_noise[:, None] + params["shift"] * (1 if cond is None else cond[:, None])
        return (jnp.sin(x.reshape(len(x), -1) @ params["in"] + moved) @ params["out"]).reshape(x.shape)


@dataclass(frozen=True)
class Normal:
    """The network of the energy of N(mean, diag(variance)) under ``"edm"``: what is left of its log-density, over x."""

    std: float = STD

    def init(self, key, x, c_noise, cond=None):
        return {"mean": jnp.asarray(MEAN), "variance": jnp.asarray(VARIANCE)}

    def apply(self, params, x, c_noise, cond=None):
        # phi = (r/s) (|x|^2 / 2 - |z - mean|^2 / 2(variance + r^2)) without its constant, of z = sqrt(s^2 + r^2) x and the ratio r.
        ratio = jnp.exp(4 * c_noise)[:, None]
        square, width = self.std**2 + ratio**2, params["variance"] + ratio**2
        return ratio / self.std * (x / 2 - (square * x / 2 - jnp.sqrt(square) * params["mean"]) / width)


def waves(process, predict="edm", event=(2,)):
    energy = Energy(net=Waves(), process=process, predict=predict, data_std=STD)
    params = energy.init(KEY, event)
    return energy.bind(jax.tree.map(lambda p: p.astype(float), params))


def normal(process):
    energy = Energy(net=Normal(), process=process, data_std=STD)
    return energy.bind(energy.init(KEY, (2,)))


def exact(process):
    return ExactModel(densities.Gaussian.diagonal(MEAN, VARIANCE), process)


def points(process, n=6):
    """Noised points at as many times, from the smallest to the largest noise."""
    rng = np.random.default_rng(0)
    t = np.linspace(process.t_min, process.t_max, n)
    alpha, sigma, offset = (np.broadcast_to(f(t), n)[:, None] for f in (process.alpha, process.sigma, process.offset))
    return jnp.asarray(alpha * rng.normal(size=(n, 2)) + offset + sigma * rng.normal(size=(n, 2))), jnp.asarray(t)


def relative(a, b):
    return float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b)))


# The law of an energy ---------------------------------------------------------------------------------------------------------
@by_process
@double
def test_the_score_is_the_gradient_of_the_log_density_in_every_parameterisation(process):
    y, t = points(process)
    for predict in PARAMETERISATIONS:
        model = waves(process, predict)

        def both(y, t, model=model):
            return jax.grad(lambda y: jnp.sum(model.log_prob(y, t)))(y), ask(model, y, t)

        gradient, prediction = jax.jit(both)(y, t)
        # By row, since scores grow as the noise falls. That of "consistency" is 0 at the smallest noise.
        for row in range(len(y)):
            np.testing.assert_allclose(prediction.score[row], gradient[row], rtol=0, atol=1e-10 * jnp.abs(gradient[row]).max())
        alpha, sigma, offset = (np.broadcast_to(f(t), len(t))[:, None] for f in (process.alpha, process.sigma, process.offset))
        np.testing.assert_allclose(alpha * prediction.denoised + offset + sigma * prediction.eps, y, rtol=1e-10, atol=1e-10)


@double
def test_the_jacobian_is_symmetric_and_that_of_the_same_network_as_a_field_is_not():
    model = waves(PROCESSES[0])
    free = Denoiser(net=Waves(), process=PROCESSES[0], data_std=STD).bind(model.params)
    y = jnp.array([[0.3, -0.8], [1.5, 0.2]])

    def asymmetry(model, t):
        jacobian = jax.vmap(jax.jacfwd(lambda y: ask(model, y[None], t).score[0]))(y)
        return relative(jacobian, jacobian.swapaxes(1, 2))

    for t in (0.05, 1.0, 20.0):
        assert asymmetry(model, t) < 1e-10
        assert asymmetry(free, t) > 1e-4


@by_process
@double
def test_an_energy_that_is_a_normal_law_is_the_exact_model_of_it(process):
    y, t = points(process)
    found, expected = ask(normal(process), y, t), ask(exact(process), y, t)
    np.testing.assert_allclose(found.denoised, expected.denoised, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.eps, expected.eps, rtol=1e-8, atol=1e-10)
    # Up to a constant of t: differences between points of one noise level.
    for time in t:
        off = normal(process).log_prob(y, time) - exact(process).log_prob(y, time)
        scale = float(jnp.max(jnp.abs(exact(process).log_prob(y, time))))
        assert float(jnp.ptp(off)) < 1e-10 * (1 + scale)


@double
def test_a_gradient_of_the_loss_is_its_slope():
    """By finite differences: a step of 1e-5 leaves 1e-10 of curvature, and 1e-11 of rounding, of a slope of order one."""
    process = PROCESSES[0]
    model = waves(process)
    loss = losses.DenoisingScoreMatching(process)
    noised = loss.draw(KEY, {"x": np.random.default_rng(0).normal(size=(16, 2))})
    along = jax.tree.map(lambda p: jnp.asarray(np.random.default_rng(p.size).normal(size=p.shape)), model.params)

    def value(h):
        params = jax.tree.map(lambda p, v: p + h * v, model.params, along)
        return jnp.mean(loss.error(model.denoiser.bind(params, dropout=KEY), noised))

    value = jax.jit(value)
    slope = jax.jit(jax.grad(value))(0.0)
    assert relative((value(1e-5) - value(-1e-5)) / 2e-5, slope) < 1e-7
    assert abs(float(slope)) > 1e-2


# An exact energy goes where an exact law goes ---------------------------------------------------------------------------------
FAMILIES = list({type(solver): solver for solver in members.SOLVERS}.values())


@pytest.mark.parametrize("solver", FAMILIES, ids=lambda s: type(s).__name__)
def test_samples_of_every_kind_of_solver_are_those_of_the_exact_law(solver):
    draw = lambda model: sample(model, solver=solver, grid=grids.LogSNR(4), key=KEY, shape=(8, 2)).x
    # Four steps in float32: some hundred roundings, and the tolerance of an adaptive solver.
    np.testing.assert_allclose(draw(normal(PROCESSES[1])), draw(exact(PROCESSES[1])), rtol=1e-3, atol=1e-3)


def rising(t):
    return 1.5 - 0.5 * t


def test_weighted_particles_are_those_of_the_exact_law():
    def draw(model):
        # A power that changes with time weighs by the log-density.
        corrected = fk.weighted([model, exact(PROCESSES[1])], [rising, 1.0], laws=[exact(PROCESSES[1]).law])
        solver = fk.FeynmanKac(base=solvers.EulerMaruyama(), potential=corrected.potential, policy=fk.Never())
        grid = grids.LogSNR(4, clean=False)
        return sample(corrected.model, solver=solver, start=corrected.start, grid=grid, key=KEY, shape=(8, 2))

    ours, theirs = draw(normal(PROCESSES[1])), draw(exact(PROCESSES[1]))
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-3, atol=1e-3)
    # The constants of the log-densities are the same for all particles.
    centred = lambda out: out.log_weights - np.mean(out.log_weights)
    # They are sums of some hundred in float32.
    np.testing.assert_allclose(centred(ours), centred(theirs), atol=1e-5 * np.abs(theirs.log_weights).max())
    assert np.ptp(theirs.log_weights) > 0.1


@double
def test_the_likelihood_of_the_flow_differs_as_the_log_density():
    process = PROCESSES[1]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 2)))
    # The law itself at t_max, where the data are not quite forgotten.
    flow = log_likelihood(normal(process), x, start=starts.GaussianMoments(exact(process).law), key=KEY).log_prob
    difference = flow - normal(process).log_prob(x, process.t_min)
    # The tolerance of the adaptive solver.
    np.testing.assert_allclose(difference, np.mean(difference), atol=1e-4)
    assert np.ptp(flow) > 1.0


# An energy sees no former estimate, and this one has no member of a condition that an augmentation could be told by.
APART = ("self-conditioned", "augmented", "augmented before")
ROWS = {name: loss for name, loss in test_losses.LOSSES.items() if hasattr(loss.process, "schedule") and name not in APART}


@pytest.mark.parametrize("name", ROWS)
def test_losses_of_gaussian_noise_are_those_of_the_exact_law(name):
    loss = ROWS[name]
    noised = loss.draw(KEY, test_losses.batch(loss.process, 6))
    params = {"mean": test_losses.TRUTH[:2], "variance": jnp.exp(test_losses.TRUTH[2:])}
    model = Energy(net=Normal(), process=loss.process, data_std=STD).bind(params)
    expected = np.asarray(loss.error(test_losses.learned(test_losses.TRUTH, loss), noised))
    # Float32; a weight that grows as the noise falls multiplies the rounding of the score.
    np.testing.assert_allclose(loss.error(model, noised), expected, rtol=5e-3, atol=5e-4 * np.abs(expected).max() + 1e-12)


# Networks, conditions, training -----------------------------------------------------------------------------------------------
def drawn(energy, event, cond=None):
    """Parameters with nothing at its zero initialisation, so that every one of them acts."""
    shapes = jax.eval_shape(lambda key: energy.init(key, event, cond), KEY)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: (rng.normal(size=p.shape) / np.sqrt(max(p.shape[0], 1))).astype(p.dtype), shapes)


@pytest.mark.parametrize("name", members.NETWORKS)
def test_every_network_makes_an_energy(name):
    net, event = members.NETWORKS[name]
    process, label = PROCESSES[0], np.array([0, 1, members.CLASSES], np.int32)
    energy = Energy(net=net, process=process)
    params, y = drawn(energy, event, label), np.random.default_rng(1).normal(size=(3, *event)).astype(np.float32)

    @jax.jit
    def both(params, y, t, label):
        model = energy.bind(params)
        return ask(model, y, t, label), jax.grad(lambda y: jnp.sum(model.log_prob(y, t, label)))(y)

    times = np.full(3, 0.8, np.float32)
    prediction, gradient = both(params, y, times, label)
    assert (prediction.denoised.shape, prediction.denoised.dtype, prediction.log_prob.shape) == (y.shape, np.float32, (3,))
    # Two programs of one float32 sum, of some hundred terms.
    assert relative(prediction.score, gradient) < 1e-4
    # No label is the null label, and the others act.
    null, _ = both(params, y, times, np.full(3, members.CLASSES, np.int32))
    np.testing.assert_allclose(null.denoised[2], prediction.denoised[2], rtol=1e-4, atol=1e-4)
    assert np.abs(null.denoised[0] - prediction.denoised[0]).max() > 1e-4


def test_one_noise_level_for_all_is_that_of_each():
    net, event = members.NETWORKS["mlp"]  # which embeds it once
    energy = Energy(net=net, process=PROCESSES[0])
    params, y = drawn(energy, event), np.random.default_rng(1).normal(size=(3, *event)).astype(np.float32)
    shared, each = jax.jit(lambda model: [ask(model, y, t) for t in (0.8, np.full(3, 0.8, np.float32))])(energy.bind(params))
    for name in ("denoised", "eps", "log_prob"):
        np.testing.assert_allclose(getattr(shared, name), getattr(each, name), rtol=1e-4, atol=1e-4)


def test_a_convolution_is_loop_safe_where_it_is_asked_and_plain_where_it_is_trained():
    energy = Energy(net=UNet(channels=(4,), attention=()), process=PROCESSES[0])
    params, y = drawn(energy, (4, 4, 1)), np.random.default_rng(1).normal(size=(2, 4, 4, 1)).astype(np.float32)
    ways = {
        "asked": energy.bind(params),
        "trained": energy.bind(params, dropout=KEY),
        "loop_safe": dataclasses.replace(energy, net=energy.net.clone(loop_safe=True)).bind(params, dropout=KEY),
    }
    said = {name: str(jax.make_jaxpr(lambda y, model=model: model(y, 1.0).eps)(y)) for name, model in ways.items()}
    assert {name for name, text in said.items() if "loop_safe_conv" in text} == {"asked", "loop_safe"}
    assert ways["asked"].denoiser == energy
    asked, trained = jax.jit(lambda: [ways[name](y, 1.0).denoised for name in ("asked", "trained")])()
    np.testing.assert_allclose(asked, trained, rtol=1e-4, atol=1e-5)


def test_the_log_density_alone_has_no_backward_pass_and_a_call_has_one():
    """By the operations of the compiled program: a value costs one pass, the pair two, and the value beside the pair nothing."""
    energy = Energy(net=MLP(width=64, depth=2, embed=16), process=PROCESSES[0])
    params, y = drawn(energy, (2,)), np.zeros((64, 2), np.float32)

    def cost(fn):
        return jax.jit(fn).lower(energy.bind(params), y).compile().cost_analysis()["flops"]

    value = cost(lambda model, y: model.log_prob(y, 1.0))
    pair = cost(lambda model, y: ask(model, y, 1.0).denoised)
    all_of_it = cost(lambda model, y: (lambda p: (p.denoised, p.eps, p.score, p.log_prob))(ask(model, y, 1.0)))
    assert 1.5 * value < pair < 3 * value
    assert all_of_it < 1.05 * pair


def test_dropout_is_one_mask_for_the_scalar_and_its_gradient():
    energy = Energy(net=MLP(width=16, depth=2, embed=8, dropout=0.5), process=PROCESSES[0])
    params, y = drawn(energy, (2,)), np.random.default_rng(1).normal(size=(3, 2)).astype(np.float32)

    def both(key):
        model = energy.bind(params, dropout=key)
        return ask(model, y, 0.8).score, jax.grad(lambda y: jnp.sum(model.log_prob(y, 0.8)))(y)

    (score, gradient), (other, _) = jax.jit(both)(KEY), jax.jit(both)(jax.random.key(1))
    assert relative(score, gradient) < 1e-4
    assert relative(other, score) > 1e-2
    assert energy.bind(params).dropout is None


def test_it_learns_a_normal_law_under_labels_that_are_dropped():
    process, cond = PROCESSES[1], np.repeat(np.arange(2, dtype=np.int32), 64)
    x = np.random.default_rng(0).normal(np.where(cond == 0, -1.0, 1.0)[:, None], 0.5, (128, 2)).astype(np.float32)
    loss = losses.DenoisingScoreMatching(process, label_dropout=0.2, null_label=2)
    energy = Energy(net=MLP(width=32, depth=1, embed=16, num_classes=2), process=process, data_std=1.1)
    learner = ScoreLearner(energy, loss, optax.adam(5e-3), ema=EMA(decay=0.98))
    state = fit(learner, Batches({"x": x, "cond": cond}, 64), steps=300, key=KEY)
    model = learner.model(state)
    assert isinstance(model, BoundEnergy)
    assert isinstance(model, KnowsDensity)
    # Under its label each half has its own mean, and without one the score is that of both: 0 between them.
    y, none = jnp.array([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]), jnp.full(3, 2)
    t = float(process.schedule.time(np.log(4.0)))  # alpha = 2 sigma
    alpha = float(process.alpha(t))
    ask_under = jax.jit(lambda label: ask(model, alpha * y, t, label))
    zero, one, neither = (ask_under(label) for label in (jnp.zeros(3, int), jnp.ones(3, int), none))
    # The exact means are halfway from the point to that of the label, for the last one -1/2 and 1/2.
    assert zero.denoised[2].mean() < -0.2 < 0.2 < one.denoised[2].mean()
    assert np.abs(neither.denoised[2]).max() < 0.2
    # The higher density is where the label says.
    assert zero.log_prob[0] > zero.log_prob[2] > zero.log_prob[1]
    assert one.log_prob[0] < one.log_prob[2] < one.log_prob[1]


def test_what_is_asked_of_a_prediction_is_there_and_guidance_takes_it():
    process = PROCESSES[0]
    model = waves(process)
    prediction = ask(model, jnp.zeros((3, 2)), 1.0)
    for capability in (HasDenoised, HasNoise, HasScore, HasLogProb):
        assert isinstance(prediction, capability)
    y, t, cond = jnp.array([[0.3, 0.4], [1.0, -1.0]]), jnp.array([0.5, 2.0]), jnp.array([2.0, 3.0])
    guided = ClassifierFreeGuidance(model=model, scale=2.0)(y, t, cond)
    a, b = ask(model, y, t, cond), ask(model, y, t)
    np.testing.assert_allclose(guided.denoised, 2 * a.denoised - b.denoised, rtol=1e-4, atol=1e-5)
    fixed = conditioned(model, jnp.array(2.0))
    np.testing.assert_allclose(fixed.log_prob(y, t)[0], a.log_prob[0], rtol=1e-5)


def test_many_energies_are_one_program():
    energy = Energy(net=Waves(), process=PROCESSES[0], data_std=STD)
    several = jax.vmap(lambda key: energy.init(key, (2,)))(jax.random.split(KEY, 3))
    y, t = jnp.ones((4, 2)), jnp.float32(1.0)
    together = jax.jit(jax.vmap(lambda params: energy.bind(params)(y, t).denoised))(several)
    one_by_one = jax.lax.map(lambda params: energy.bind(params)(y, t).denoised, several)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-6)
    alone = energy.bind(jax.tree.map(lambda p: p[1], several))(y, t).denoised
    np.testing.assert_allclose(together[1], alone, rtol=1e-5, atol=1e-6)


def test_its_weights_are_written_and_come_back_as_an_energy(tmp_path):
    energy = Energy(net=MLP(width=8, depth=1, embed=8), process=PROCESSES[0], data_std=0.3)
    model = energy.bind(drawn(energy, (2,)))
    again = own.model(own.export(model, tmp_path / "out", event=(2,)))
    assert again.denoiser == energy
    assert isinstance(again, BoundEnergy)
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, model.params))
    as_field = Denoiser(net=energy.net, process=energy.process, data_std=0.3)
    assert own.model(own.export(as_field.bind(model.params), tmp_path / "field", event=(2,))).denoiser == as_field


# What is refused --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Total(Waves):
    """One number for each example, which is no field."""

    def apply(self, params, x, c_noise, cond=None):
        return jnp.sum(super().apply(params, x, c_noise, cond), -1)


@pytest.mark.parametrize(
    ("act", "error", "match"),
    [
        (lambda: Energy(net=Waves(), process=EDM()), TypeError, r"Energy\.process = EDM\(.*: expected a LinearGaussian"),
        (lambda: Energy(net=Waves(), process=PROCESSES[0], predict="energy"), ValueError, r"Energy\.predict = 'energy'"),
        (lambda: Energy(net=Waves(), process=PROCESSES[0], data_std=0.0), ValueError, r"Energy\.data_std = 0"),
        (lambda: Energy(net=jnp.sin, process=PROCESSES[0]), TypeError, r"Energy\.net = .*: expected an object with init and apply"),
        (
            lambda: Energy(net=MLP(), process=PROCESSES[0], self_condition=True), ValueError,
            r"Energy\.self_condition = True: expected False",
        ),
        (
            lambda: Energy(net=Total(), process=PROCESSES[0]).bind(waves(PROCESSES[0]).params)(jnp.ones((4, 2)), 1.0), ValueError,
            r"the output of Total has shape \(4,\) for y of shape \(4, 2\)",
        ),
        (
            lambda: Energy(net=Waves(), process=PROCESSES[0]).init(
                KEY, (2,), like=Denoiser(net=Waves(), process=PROCESSES[0]).bind(waves(PROCESSES[0]).params)
            ),
            TypeError, r"(?s)Energy\.init\.like = .*: expected a BoundEnergy",
        ),
        (lambda: waves(PROCESSES[1])(jnp.ones((2, 2)), 1.5), ValueError, r"Energy\.t = 1\.5: expected times from 0 to 1"),
    ],
    ids=["process", "predict", "data_std", "net", "self_condition", "output", "like", "t"],
)  # fmt: skip
def test_what_is_no_energy_is_named(act, error, match):
    with pytest.raises(error, match=match):
        act()
