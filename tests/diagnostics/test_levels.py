"""What is asked noise level by noise level: the common form of the diagnostics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import config, diagnostics, experiment, models, processes, schedules
from scorelab.densities import Gaussian

PROCESS = processes.Gaussian(schedule=schedules.VPLinear())
MODEL = models.ExactModel(Gaussian([0.0, 1.0], 0.5), PROCESS)
DATA = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
SIGMAS = (0.1, 1.0)


def noise(model, noised):
    """What was drawn, the clean points, and a number of each example's own key."""
    return noised.noise[:, 0], noised.y0[:, 1], jax.vmap(jax.random.uniform)(noised.keys)


def asked(**options):
    return diagnostics.by_level(noise, MODEL, where="here", **{"data": DATA, "sigmas": SIGMAS} | options)


def test_values_are_of_every_point_at_every_level_whatever_the_batch():
    sigmas, whole = asked()
    np.testing.assert_array_equal(sigmas, SIGMAS)
    assert all(value.shape == (2, 7) and value.dtype == np.float64 for value in whole)
    for part, parts in zip(whole, asked(batch=3)[1], strict=True):
        np.testing.assert_array_equal(part, parts)
    np.testing.assert_array_equal(whole[1], [DATA[:, 1]] * 2)
    # Another level and another key have other noise, and the term's own numbers are not the noise's.
    assert len(np.unique(np.concatenate([whole[0].ravel(), asked(key=jax.random.key(1))[1][0].ravel()]))) == 28
    assert len(np.unique(whole[2])) == 14


def test_points_are_noised_to_the_ratios():
    def scaled(model, noised):
        t = noised.t
        return (noised.y - model.process.alpha(t) * noised.y0)[:, 0] / noised.noise[:, 0] / model.process.alpha(t)

    _, ratio = diagnostics.by_level(scaled, MODEL, DATA, SIGMAS)
    # Float32, divided by noise that may be small.
    np.testing.assert_allclose(np.median(ratio, axis=1), SIGMAS, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(data=DATA * 1j), r"here\.data is complex"),
        (dict(data=np.array([["a", "b"]])), r"here\.data is .*expected real numbers"),
        (dict(data=DATA[:0]), r"here\.data has shape \(0, 2\): expected"),
        (dict(data=DATA * np.nan), r"here\.data has 14 values that are not finite"),
        (dict(sigmas=("a",)), r"here\.sigmas is .*expected real numbers"),
        (dict(sigmas=(1j,)), r"here\.sigmas is complex"),
        (dict(sigmas=(0.1, 1e9)), r"here\.sigmas has the value 1e\+09"),
        (dict(cond=jnp.zeros(3)), r"here\.cond has a leaf of shape"),
        (dict(batch=0), r"here\.batch = 0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        asked(**options)


def test_a_term_without_a_value_for_each_point_is_named():
    with pytest.raises(ValueError, match=r"by_level\.term returned shape \(\) for 7 points"):
        diagnostics.by_level(lambda model, noised: jnp.mean(noised.y), MODEL, DATA, SIGMAS)


def test_a_key_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"here\.key is 3"):
        asked(key=3)


QUESTIONS = (
    experiment.ExplainedVariance, experiment.Conservativity, experiment.FokkerPlanck, experiment.IntrinsicDimension, experiment.Gap,
)  # fmt: skip


@pytest.mark.parametrize("name", ["paper/2502.15681/digits", "paper/2502.15681/digits_consistency"])
def test_a_student_is_asked_for_no_score(name):
    made = config.load(name).experiment
    for question in QUESTIONS:
        with pytest.raises(ValueError, match=f"{question.__name__} of a student of .*: expected a learner of a denoised mean"):
            question().check(made)
