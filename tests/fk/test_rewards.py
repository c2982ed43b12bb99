"""Rewards of images: values against NumPy and images made by hand, gradients, and use inside samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import data, densities, fk, grids, models, processes, sample, schedules, solvers
from scorelab.errors import WeightsError
from scorelab.fk import rewards
from scorelab.metrics import small_cnn, smallcnn

TEST = data.load("digits", "test")
SCALE = data.Pixels(levels=17)
X = np.asarray(SCALE.encode(TEST.x[:6]))
BASE = solvers.DPMSolverPP(order=2, eta=1.0)
LABELS = np.asarray(TEST.label[:6], np.int32)


def value(reward, *of):
    """As one program."""
    return np.asarray(jax.jit(reward)(*of))


def picture(*rows):
    """Rows of ``#`` and ``.`` as one image in [-1, 1], ``(1, height, width, 1)``."""
    return np.array([[1.0 if c == "#" else -1.0 for c in row] for row in rows], np.float32)[None, :, :, None]


def test_class_log_probs_are_those_of_the_metrics():
    expected = np.log(small_cnn("digits").class_probabilities(TEST.x[:6]))
    for label in (0, 7):
        found = value(rewards.ClassLogProb(dataset="digits", label=label), X)
        np.testing.assert_allclose(found, expected[:, label], rtol=1e-4, atol=1e-4)
    found = value(rewards.ClassLogProb(dataset="digits"), X, LABELS)
    np.testing.assert_allclose(found, expected[np.arange(6), LABELS], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda scale: rewards.ClassLogProb(dataset="digits", label=3, **scale),
        lambda scale: rewards.Symmetry(**scale),
        lambda scale: rewards.LitPixels(threshold=0.3, **scale),
        lambda scale: rewards.Thickness(threshold=0.3, **scale),
    ],
    ids=["class", "symmetry", "lit", "thickness"],
)
def test_a_positive_scale_gives_the_same_reward(build):
    positive = data.Positive(levels=17)
    found = value(build(dict(low=positive.low, high=positive.high)), np.asarray(positive.encode(TEST.x[:6])))
    np.testing.assert_allclose(found, value(build({}), X), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_class_is_that_of_finite_differences():
    reward = rewards.ClassLogProb(dataset="digits", label=4)
    gradient = np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(reward(x))))(X))
    direction = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
    step = 3e-4
    slope = (value(reward, X + step * direction) - value(reward, X - step * direction)) / (2 * step)
    # Float32 values of order 10 make errors of 1e-6 / step; kinks of ReLU cross out in proportion to the step.
    np.testing.assert_allclose(np.sum(gradient * direction, axis=(1, 2, 3)), slope, rtol=3e-2, atol=3e-2)


def test_loop_safe_changes_neither_values_nor_gradients():
    cnn = small_cnn("digits")
    unit = (X + 1) / 2

    def total(unit, on):
        features, logits = smallcnn.apply(cnn.params, unit, cnn.architecture, loop_safe=on)
        return jnp.sum(jnp.sin(features)) + jnp.sum(jnp.sin(logits))

    plain, safe = (jax.jit(jax.value_and_grad(total), static_argnums=1)(unit, on) for on in (False, True))
    # Sums in another order.
    np.testing.assert_allclose(safe[0], plain[0], rtol=1e-4)
    np.testing.assert_allclose(safe[1], plain[1], rtol=1e-3, atol=1e-4)
    logits = [jax.jit(lambda unit, on=on: cnn.unit_logits(unit, loop_safe=on))(unit) for on in (True, False)]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)


def test_lit_pixels_and_symmetry_against_numpy():
    unit = (X + 1) / 2
    for threshold in (0.2, 0.5):
        found = value(rewards.LitPixels(threshold=threshold), X)
        np.testing.assert_allclose(found, (unit > threshold).mean(axis=(1, 2, 3)), rtol=1e-6)
    for axis, mirrored in ((0, unit[:, ::-1]), (1, unit[:, :, ::-1])):
        np.testing.assert_allclose(value(rewards.Symmetry(axis=axis), X), -np.abs(unit - mirrored).mean(axis=(1, 2, 3)), rtol=1e-5)


def test_symmetry_of_hand_made_images():
    upright = picture(".#.", ".#.", "##.")
    assert value(rewards.Symmetry(), upright)[0] == pytest.approx(-2 / 9)
    assert value(rewards.Symmetry(axis=0), upright)[0] == pytest.approx(-2 / 9)
    assert value(rewards.Symmetry(), picture("#.#", ".#.", "###"))[0] == 0
    assert value(rewards.Symmetry(axis=0), picture("#..", ".#.", "#.."))[0] == 0


def stroke(width, angle, size=96, length=64):
    """A bar through the middle, ``(1, size, size, 1)`` in [-1, 1]."""
    across, along = np.mgrid[:size, :size] - (size - 1) / 2
    turned = np.cos(angle) * across - np.sin(angle) * along, np.sin(angle) * across + np.cos(angle) * along
    lit = (np.abs(turned[0]) < width / 2) & (np.abs(turned[1]) < length / 2)
    return np.where(lit, 1.0, -1.0).astype(np.float32)[None, :, :, None]


def test_thickness_is_the_width_of_a_stroke_of_any_direction():
    cases = [(width, angle) for width in (4, 8) for angle in np.linspace(0, np.pi, 9)]
    found = value(rewards.Thickness(), np.concatenate([stroke(*case) for case in cases]))
    # Half the perimeter is width + length; the count of lines is right to 5.2 %, the pixels of the bar to another few.
    np.testing.assert_allclose(found, [width * 64 / (width + 64) for width, _ in cases], rtol=0.1)


def test_thickness_of_a_square_by_hand():
    # 3 x 3: straight lines cross 12 times, diagonal ones 20 times (each of the two directions meets 5 lines twice).
    square = picture(".....", ".###.", ".###.", ".###.", ".....")
    by_hand = 18 / (np.pi / 8 * (12 + 20 / np.sqrt(2)))
    assert value(rewards.Thickness(), square)[0] == pytest.approx(by_hand)
    # Nothing, and what touches the border: it ends there.
    none, full = value(rewards.Thickness(), np.concatenate([picture("...", "...", "..."), picture("###", "###", "###")]))
    assert (none, full) == (0, pytest.approx(by_hand))
    # A grey stroke is there above the threshold only.
    assert value(rewards.Thickness(threshold=0.6), np.zeros((1, 3, 3, 1), np.float32))[0] == 0


SPECS = [
    rewards.ClassLogProb(dataset="digits", label=3),
    rewards.LitPixels(threshold=0.4),
    rewards.Symmetry(axis=0),
    rewards.Thickness(),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: type(s).__name__)
def test_rewards_are_hashable_specs(spec):
    assert hash(spec) == hash(type(spec)(**{name: getattr(spec, name) for name in spec.__dataclass_fields__}))
    assert {spec: 1}[spec] == 1
    assert value(spec, X).shape == (6,)
    assert np.all(np.isfinite(value(spec, X)))


def test_they_steer_and_guide_inside_a_sampler():
    # The first call of a classifier may be inside a trace: what is kept must be arrays.
    rewards._classifier.cache_clear()
    process = processes.Gaussian(schedule=schedules.EDM())
    law = densities.Gaussian.from_data(np.asarray(SCALE.encode(data.load("digits").x)))
    base = models.ExactModel(law, process)
    reward = rewards.ClassLogProb(dataset="digits", label=3)
    guided = models.RewardGradient(model=base, reward=reward)
    options = dict(grid=grids.Karras(6), key=jax.random.key(0), shape=(16, 8, 8, 1))
    potential = fk.SumPotential((fk.Difference(reward, 2.0, every=2), fk.Difference(rewards.Symmetry(), 1.0, every=2)))
    out = sample(guided, solver=fk.FeynmanKac(base=BASE, potential=potential, particles=8), **options)
    assert np.all(np.isfinite(out.log_z))
    # Conditions in the place of a label: populations of two classes.
    reward, cond = rewards.ClassLogProb(dataset="digits"), np.repeat(np.array([0, 4], np.int32), 8)
    solver = fk.FeynmanKac(base=BASE, potential=fk.Difference(reward, 2.0, with_cond=True), particles=8)
    out = sample(models.Conditioned(model=base), solver=solver, cond=cond, **options)
    assert np.exp(value(reward, out.x, cond)).mean() > 0.3


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: rewards.ClassLogProb(dataset="cifar10"), WeightsError, "name='cifar10'"),
        (lambda: rewards.ClassLogProb(dataset="digits", label=10), ValueError, "label = 10"),
        (lambda: rewards.ClassLogProb(dataset="digits", label=-1), ValueError, "label = -1"),
        (lambda: rewards.ClassLogProb(dataset="digits", loop_safe="no"), ValueError, "loop_safe"),
        (lambda: rewards.ClassLogProb(dataset="digits")(X), ValueError, "without conditions"),
        (lambda: rewards.ClassLogProb(dataset="digits", label=1)(X, LABELS), ValueError, "with conditions"),
        (lambda: rewards.LitPixels(threshold=2.0), ValueError, "threshold = 2.0"),
        (lambda: rewards.LitPixels(low=1.0), ValueError, "low = 1.0, high = 1.0"),
        (lambda: rewards.Thickness(high=np.inf), ValueError, "finite"),
        (lambda: rewards.Symmetry(axis=2), ValueError, "axis = 2"),
        (lambda: rewards.Symmetry()(X[0]), ValueError, r"shape \(8, 8, 1\)"),
    ],
)
def test_errors_name_the_field(build, error, message):
    with pytest.raises(error, match=message):
        build()
