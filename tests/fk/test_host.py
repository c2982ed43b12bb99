"""Rewards that are Python functions give what the same reward in JAX gives."""

import jax
import numpy as np
import pytest

from scorelab import NonFiniteSample, fk, models, processes, sample, schedules

from .chains import BASE, GRID, LAW, MODEL, SCALE, VP, reward

KEY = jax.random.key(7)


class InNumPy:
    """The parabola in NumPy, with a count of its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        assert isinstance(x, np.ndarray)
        return -0.5 * (x[:, 0] - 2.5) ** 2


def solver(with_reward, **options):
    return fk.FeynmanKac(base=BASE, potential=fk.Difference(with_reward, SCALE, every=10), particles=128, **options)


def arguments(shape=(512, 1)):
    return dict(grid=GRID, key=KEY, shape=shape)


# With a last resampling, the one way that has it in Python; the other is that of the samples in JAX.
@pytest.mark.parametrize("final", [False, True])
def test_both_ways_agree_with_a_reward_in_jax(final):
    inside = sample(MODEL, solver=solver(reward, resample_final=final), **arguments())
    called, between = InNumPy(), InNumPy()
    results = [fk.sample_between(MODEL, solver=solver(fk.Callback(between), resample_final=final), **arguments())]
    if not final:
        results.append(sample(MODEL, solver=solver(fk.Callback(called)), **arguments()))
    # Four events inside the walk and the samples.
    assert [counted.calls for counted in (between, called)[: len(results)]] == [5] * len(results)
    for out in results:
        # NumPy and XLA round the reward differently, which moves weights, and with luck no index.
        np.testing.assert_allclose(out.x, inside.x, atol=1e-5)
        np.testing.assert_allclose(out.log_weights, inside.log_weights, atol=1e-4)
        np.testing.assert_allclose(out.log_z, inside.log_z, atol=1e-4)
        np.testing.assert_allclose(out.diagnostics["ess"], inside.diagnostics["ess"], rtol=1e-3)
        np.testing.assert_array_equal(out.diagnostics["resampled"], inside.diagnostics["resampled"])
        np.testing.assert_array_equal(out.diagnostics["root"], inside.diagnostics["root"])


def test_a_callable_between_the_stretches_may_use_jax_and_reports_progress():
    seen = []
    in_jax = fk.Callback(lambda x: np.asarray(jax.jit(reward)(x)))
    fk.sample_between(MODEL, solver=solver(in_jax), progress=lambda done, total: seen.append((done, total)), **arguments())
    assert seen[-1] == (50, 50)
    assert [done for done, _ in seen] == [10, 11, 20, 21, 30, 31, 40, 41, 50]


def test_a_large_batch_does_not_hang_the_callback():
    # The arrays that reach the host are larger than what JAX copies in line.
    reward_of_images = fk.Callback(lambda x: x.reshape(len(x), -1).mean(1))
    process = VP
    law = fk.FeynmanKac(base=BASE, potential=fk.Difference(reward_of_images, 1.0, every=25), particles=256)
    from scorelab import densities

    model = models.ExactModel(densities.Gaussian(np.zeros((28, 28, 1)), 0.25), process)
    out = sample(model, solver=law, grid=GRID, key=KEY, shape=(512, 28, 28, 1))
    assert np.all(np.isfinite(out.log_weights))


def mistaken(x):
    """A reward with an error of its own."""
    raise KeyError("no such prompt")


@pytest.mark.parametrize("ways", [sample, fk.sample_between], ids=["inside", "between"])
@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (mistaken, KeyError, "no such prompt"),
        # The check is that of the callback, wherever it is called; between the stretches also below.
        pytest.param(lambda x: x, ValueError, r"Callback\.fn returned .* \(128, 1\)", marks=pytest.mark.long),
    ],
)
def test_what_a_reward_raises_arrives_as_itself(ways, fn, error, message, caplog):
    walk = fk.FeynmanKac(base=BASE, potential=fk.Difference(fk.Callback(fn), SCALE, every=10), particles=64)
    with pytest.raises(error, match=message):
        ways(MODEL, solver=walk, **arguments(shape=(128, 1)))
    # JAX would print the traceback of its own thread as well.
    assert not caplog.records


def test_a_derivative_passes_by_what_looks_at_numbers():
    def looked_at(ess):
        fk.FeynmanKac().review(dict(bad_weights=np.zeros(1), final_ess=ess))
        return ess[0]

    assert jax.grad(looked_at)(np.zeros(1, np.float32)) == 1
    with pytest.raises(TypeError, match=r"Callback\.fn under a transformation"):
        jax.grad(lambda x: fk.Callback(InNumPy()).on_host(x).sum())(np.zeros((2, 1), np.float32))


def test_a_prediction_for_another_process_is_refused():
    other = models.ExactModel(LAW, processes.Gaussian(schedule=schedules.EDM()))
    model = models.FunctionModel(lambda y, t, cond: other(y, t), VP, returns="prediction")
    with pytest.raises(ValueError, match=r"process.*VPLinear.* and prediction.*EDM"):
        fk.sample_between(model, solver=solver(fk.Callback(InNumPy())), **arguments())
    with pytest.raises(TypeError, match=r"sample_between\.model = .*: expected a model, which knows its process"):
        fk.sample_between(model.fn, solver=solver(fk.Callback(InNumPy())), **arguments())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: solver(reward), TypeError, "expected a Callback"),
        (lambda: fk.FeynmanKac(base=BASE), TypeError, "expected a Steering"),
        (lambda: BASE, TypeError, "expected a FeynmanKac"),
        (lambda: fk.FeynmanKac(potential=fk.Difference(fk.Callback(InNumPy()), with_cond=True)), ValueError, "with_cond"),
        (lambda: fk.FeynmanKac(potential=fk.Difference(fk.Callback(InNumPy())), particles=7), ValueError, "multiple of 7"),
        (lambda: solver(fk.Callback(lambda x: x)), ValueError, "one per sample"),
        (lambda: solver(fk.Callback(lambda x: np.array(["a"] * len(x)))), ValueError, "expected numbers"),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        fk.sample_between(MODEL, solver=build(), **arguments())


def test_a_model_that_breaks_is_reported_with_its_step():
    broken = models.FunctionModel(lambda y, t, cond: jax.numpy.where(t < 0.5, np.nan, 1.0) * y, VP, returns="eps")
    step = int(np.argmax(GRID.times(VP) < 0.5))
    with pytest.raises(NonFiniteSample, match=f"step {step} of 50"):
        fk.sample_between(broken, solver=solver(fk.Callback(InNumPy())), **arguments())
