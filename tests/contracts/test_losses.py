"""What every loss promises: at the truth its gradient is zero, and elsewhere it is not; a new one adds a row."""

from dataclasses import dataclass, field, fields, is_dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab import densities, distill, losses, models, processes, schedules

KEY = jax.random.key(0)
N = 20_000
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0))
VP = processes.Gaussian(schedule=schedules.VPLinear())
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
GBM = processes.GeometricBrownianMotion(sigma=1.5, mu=0.5)
# Mean and log-variance of the data in the chart; the numbers that a loss has to find.
TRUTH = jnp.array([0.4, -0.3, -1.0, -0.2])
LAW = densities.Gaussian.diagonal(TRUTH[:2], jnp.exp(TRUTH[2:]))
BRIDGE = processes.StochasticInterpolant(base=densities.Gaussian(np.array([1.0, 0.5]), np.array([0.5, 1.5])))
STRAIGHT = processes.StochasticInterpolant(gamma=processes.gammas.Zero(), base=BRIDGE.base)


def model(parameters, process):
    return models.ExactModel(densities.Gaussian.diagonal(parameters[:2], jnp.exp(parameters[2:])), process)


def pairs(x, process):
    """Noise that the flow of the law joins with the data: deviations from the mean."""
    y = np.asarray(process.encode(x))
    return ((y - np.asarray(TRUTH[:2])) / np.exp(0.5 * np.asarray(TRUTH[2:]))).astype(np.float32)


# A loss, and what is learned where that is not the data's own law.
LOSSES = {
    "denoising, EDM": losses.DenoisingScoreMatching(EDM),
    "denoising, VP": losses.DenoisingScoreMatching(VP, weighting=losses.VWeighting(), times=losses.UniformTimes()),
    "denoising, flow": losses.DenoisingScoreMatching(FLOW, weighting=losses.FlowWeighting(), times=losses.UniformTimes()),
    "implicit": losses.ImplicitScoreMatching(VP),
    "implicit, probes": losses.ImplicitScoreMatching(EDM, probes=2, times=losses.LogNormalTimes()),
    "implicit, reverse mode": losses.ImplicitScoreMatching(VP, reverse=True),
    "regularised": losses.Regularised(losses.DenoisingScoreMatching(EDM), ((lambda model, noised: jnp.zeros(len(noised.y)), 2.0),)),
    "augmented": losses.ScoreAugmented(losses.DenoisingScoreMatching(EDM), (losses.Brightness(3.0),), identity=0.2),
    "augmented before": losses.ScoreAugmented(losses.DenoisingScoreMatching(VP), (losses.Brightness(3.0),), before=True),
    "regularised, conservativity": losses.Regularised(losses.DenoisingScoreMatching(VP), ((losses.Conservativity(), 1.0),)),
    "regularised, Fokker-Planck": losses.Regularised(
        losses.DenoisingScoreMatching(EDM, times=losses.LogNormalTimes(mean=0.0)), ((losses.FokkerPlanck(), 0.5),)
    ),
    "self-conditioned": losses.SelfConditioned(losses.DenoisingScoreMatching(EDM)),
    "multiplicative denoising": losses.MultiplicativeDenoisingScoreMatching(GBM),
    "multiplicative explicit": losses.MultiplicativeExplicitScoreMatching(GBM, LAW),
    "non-negative": losses.NonNegativeScoreMatching(GBM, times=losses.UniformTimes()),
    "interpolant": losses.InterpolantMatching(BRIDGE),
    "interpolant, v": losses.InterpolantMatching(BRIDGE, heads=("v", "eta"), times=losses.UniformTimes()),
    "interpolant, s": losses.InterpolantMatching(BRIDGE, heads=("u", "s")),
    "interpolant, v and s": losses.InterpolantMatching(BRIDGE, heads=("v", "s"), times=losses.UniformTimes()),
    "interpolant, no noise": losses.InterpolantMatching(STRAIGHT, heads=("u",)),
    "non-negative, probes": losses.NonNegativeScoreMatching(GBM, probes=2, times=losses.UniformTimes()),
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Seeing(models.Wraps, models.SeesEstimate):
    """An exact model to which a former estimate says nothing new."""

    model: models.ExactModel
    estimate: jax.Array | float | None = None

    @property
    def waits(self):
        return self.estimate is None

    def informed(self, estimate):
        return Seeing(self.model, estimate)

    def __call__(self, y, t, cond=None):
        return models.ask(self.model, y, t, cond)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scaled(models.Wraps):
    """The exact model of data that are multiplied by a known factor, with the noise or before it is added."""

    model: models.ExactModel
    before: bool = field(metadata={"static": True})

    def __call__(self, y, t, cond=None):
        factor = 3.0 ** cond["augmentation"]
        law = self.model.law
        if self.before:
            mean, variance = factor * law.mean, factor**2 * jnp.diagonal(law.covariance())
            alpha, sigma = (of(t)[:, None] for of in (self.process.alpha, self.process.sigma))
            denoised = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (y - alpha * mean)
        else:
            denoised = factor * models.ask(self.model, y / factor, t).denoised
        return self.process.predict(y, t, denoised=denoised)


def learned(parameters, loss):
    exact = model(parameters, loss.process)
    if isinstance(loss, losses.ScoreAugmented):
        return Scaled(exact, loss.before)
    return Seeing(exact) if isinstance(loss, losses.SelfConditioned) else exact


def batch(process, n=N):
    y = np.asarray(LAW.sample(KEY, n))
    return {"x": np.asarray(process.decode(jnp.asarray(y)))}


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_is_zero_at_the_truth_and_nowhere_near_it(name):
    loss = LOSSES[name]
    noised = loss.draw(KEY, batch(loss.process))
    gradients = jax.jit(jax.jacfwd(lambda parameters: loss.error(learned(parameters, loss), noised)))
    at, off = (np.asarray(gradients(TRUTH + shift)) for shift in (0.0, jnp.array([0.3, -0.3, 0.4, -0.4])))
    # Four and a half standard errors: of four numbers in each of a dozen rows one in three thousand is further out by chance.
    bound = lambda each: 4.5 * each.std(0) / np.sqrt(N) + 1e-6
    assert np.all(np.isfinite(at))
    np.testing.assert_array_less(np.abs(at.mean(0)), bound(at))
    assert np.any(np.abs(off.mean(0)) > 2 * bound(off))


@pytest.mark.parametrize("name", LOSSES)
def test_an_error_is_a_function_of_its_arguments_and_one_number_for_each_example(name):
    loss = LOSSES[name]
    noised = loss.draw(KEY, batch(loss.process, 6))
    exact = learned(TRUTH, loss)
    errors, metrics = jax.jit(lambda noised: loss.evaluate(exact, noised))(noised)
    assert errors.shape == (6,)
    assert all(jnp.shape(value) == () for value in metrics.values())
    np.testing.assert_array_equal(errors, jax.jit(lambda noised: loss.evaluate(exact, noised))(noised)[0])
    # An example does not see its batch: its error is its own, up to the rounding of sums of two.
    first = jax.tree.map(lambda leaf: leaf[:3], noised)
    np.testing.assert_allclose(loss.error(exact, first), errors[:3], rtol=2e-4, atol=1e-5)


def test_relatives_are_losses_too():
    teacher = model(TRUTH, FLOW)
    grid = sl.grids.Uniform(4, t_max=0.99, clean=False)
    relatives = [
        distill.ConsistencyTraining(FLOW, grid=grid),
        distill.ConsistencyDistillation(FLOW, grid=grid, teacher=teacher),
        distill.ProgressiveDistillation(FLOW, teacher=teacher, grid=sl.grids.Uniform(4, t_max=0.99)),
        distill.Reflow(FLOW),
    ]
    data = batch(FLOW, 5)
    for loss in relatives:
        assert isinstance(loss, losses.Loss)
        noised = loss.draw(KEY, data | {"noise": pairs(data["x"], FLOW)})
        assert loss.error(teacher, noised).shape == (5,)


def test_the_teacher_is_what_progressive_distillation_learns_when_its_steps_are_exact():
    """Along a line in the straight coordinate two steps are one: with a law of no variance every step is exact."""
    point = models.ExactModel(densities.Gaussian.diagonal(TRUTH[:2], jnp.full(2, 1e-12)), FLOW)
    loss = distill.ProgressiveDistillation(FLOW, teacher=point, grid=sl.grids.Uniform(4, t_max=0.99))
    data = {"x": np.broadcast_to(np.asarray(TRUTH[:2]), (32, 2)).astype(np.float32)}
    np.testing.assert_allclose(loss(KEY, point, data), 0.0, atol=1e-8)


def test_terms_are_added_with_their_weights_and_reported():
    def square(model, noised):
        return jnp.sum(noised.y**2, axis=1)

    plain = losses.DenoisingScoreMatching(EDM)
    loss = losses.Regularised(plain, ((square, 0.5), (lambda model, noised: jnp.ones(len(noised.y)), 2.0)))
    exact, data = model(TRUTH, EDM), batch(EDM, 4)
    noised = loss.draw(KEY, data)
    errors, metrics = loss.evaluate(exact, noised)
    np.testing.assert_allclose(errors, plain.error(exact, noised) + 0.5 * square(exact, noised) + 2.0, rtol=1e-5)
    assert float(metrics["square"]) == pytest.approx(float(jnp.mean(square(exact, noised))), rel=1e-5)
    assert loss.process == EDM
    # Two terms of one name are two metrics.
    twice = losses.Regularised(plain, ((square, 0.5), (square, 2.0))).evaluate(exact, noised)[1]
    assert twice["square"] == twice["square_2"] == metrics["square"]


LABELS = losses.DenoisingScoreMatching(EDM, label_dropout=0.25, null_label=3)
MEMBERS = losses.DenoisingScoreMatching(
    EDM, condition_dropout=losses.ConditionDropout(condition=models.nets.Label(3), rate=0.5, together=0.2)
)
# Losses around another one.
AROUND = {
    losses.Regularised: lambda loss: losses.Regularised(loss, ((lambda model, noised: noised.t, 1.0),)),
    losses.SelfConditioned: losses.SelfConditioned,
    losses.ScoreAugmented: lambda loss: losses.ScoreAugmented(loss, (losses.Brightness(),), member=None),
}


@pytest.mark.parametrize("kind", AROUND)
@pytest.mark.parametrize(("loss", "share"), [(LABELS, 0.25), (MEMBERS, 0.2 + 0.8 * 0.5)])
def test_a_loss_around_another_says_what_that_one_drops(kind, loss, share):
    around = AROUND[kind](loss)
    for name in ("process", "label_dropout", "null_label", "condition_dropout"):
        assert getattr(around, name) == getattr(loss, name)
    assert around.unconditional == pytest.approx(share)
    data = {"x": np.zeros((4000, 2), np.float32), "cond": np.zeros(4000, np.int32)}
    # Four standard errors of 4000 coins.
    assert abs(np.mean(around.draw(KEY, data).cond == 3) - share) < 4 * 0.5 / np.sqrt(4000)


def test_every_loss_around_another_is_in_the_table_or_refuses_dropped_conditions():
    public = [getattr(losses, name) for name in losses.__all__]
    names = lambda kind: {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    kinds = {kind for kind in public if isinstance(kind, type) and issubclass(kind, losses.Loss)}
    assert {kind for kind in kinds if "loss" in names(kind)} == set(AROUND)
    for loss in (LABELS, MEMBERS):
        with pytest.raises(ValueError, match=r"losses\.Joint\.a has label_dropout = .*expected 0 and None"):
            losses.Joint(a=loss)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: losses.Regularised(losses.DenoisingScoreMatching(EDM), ()), "expected pairs"),
        (lambda: losses.Regularised(losses.DenoisingScoreMatching(EDM), ((3, 1.0),)), "expected pairs"),
        (lambda: losses.Regularised(losses.DenoisingScoreMatching(EDM), (losses.Conservativity(),)), "expected pairs"),
        (lambda: losses.Regularised(losses.DenoisingScoreMatching(EDM), ((losses.Conservativity, 1.0),)), "expected pairs"),
        (lambda: losses.Regularised(losses.DenoisingScoreMatching(EDM), ((abs, np.nan),)), "terms"),
        (lambda: losses.Regularised(abs, ((abs, 1.0),)), "expected a Loss"),
        (lambda: losses.ImplicitScoreMatching(EDM, probes=-1), "probes = -1"),
        (lambda: losses.ImplicitScoreMatching(3), "expected a LinearGaussian"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()


def test_a_term_of_another_shape_is_refused():
    loss = losses.Regularised(losses.DenoisingScoreMatching(EDM), ((lambda model, noised: noised.y, 1.0),))
    with pytest.raises(ValueError, match="one per example"):
        loss(KEY, model(TRUTH, EDM), batch(EDM, 4))
