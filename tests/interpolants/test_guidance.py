"""Guidance of interpolants: the fields of a law in closed form; and what asks for a linear-Gaussian process says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, grids, losses, models, processes, sample, schedules, solvers, starts
from scorelab.processes import gammas

pytestmark = pytest.mark.usefixtures("quick_compilation")

COV = np.array([[0.5, 0.2], [0.2, 0.3]])
STRONG, WEAK, SCALE = np.array([1.0, -0.5]), np.array([-0.3, 0.2]), 2.5
EDM = processes.Gaussian(schedule=schedules.EDM())


def process(gamma=None):
    """In the precision of the moment."""
    return processes.StochasticInterpolant(gamma=gamma or gammas.Brownian(), base=densities.Gaussian(np.array([0.4, 0.1]), 0.8))


def exact(mean, under):
    return models.ExactModel(densities.Gaussian(mean, COV), under)


def guided(under, **options):
    options = dict(scale=SCALE) | options
    return models.ClassifierFreeGuidance(model=exact(STRONG, under), unconditional=exact(WEAK, under), **options)


@pytest.mark.parametrize("gamma", [gammas.Brownian(), gammas.Zero()], ids=repr)
def test_guidance_of_two_normal_laws_of_one_width_is_the_normal_law_of_the_extrapolated_mean(gamma):
    # Velocity and latent noise are affine in the mean of the data, so guidance moves the mean alone.
    mean, names = WEAK + SCALE * (STRONG - WEAK), ("velocity", "denoised", *(() if gamma.silent else ("eta", "score")))
    with jax.enable_x64(True):
        under, y = process(gamma), jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
        auto = models.Autoguidance(model=exact(STRONG, under), weak=exact(WEAK, under), scale=SCALE)
        for t in (0.1, 0.5, 0.9):
            wanted = exact(mean, under)(y, t)
            for model in (guided(under), auto, guided(under, scale=np.full(6, SCALE))):
                found = model(y, t)
                for name in names:
                    np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-9, atol=1e-9)


def test_samples_of_a_guided_interpolant_are_those_of_that_law():
    under, mean = process(), WEAK + SCALE * (STRONG - WEAK)
    arguments = dict(solver=solvers.InterpolantSDE(), grid=grids.Uniform(20), key=jax.random.key(1), shape=(8, 2))
    found, wanted, plain = (sample(model, **arguments).x for model in (guided(under), exact(mean, under), exact(STRONG, under)))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)
    assert np.abs(found - plain).max() > 0.5


def reward(x):
    return jnp.sum(x, -1)


POINTS = np.zeros((4, 2), np.float32)
GAUSSIAN = densities.Gaussian(STRONG, COV)
MODELS = {
    "Clipped": lambda model: models.Clipped(model=model),
    "DynamicThreshold": lambda model: models.DynamicThreshold(model=model),
    "RewardGradient": lambda model: models.RewardGradient(model=model, reward=reward),
    "Known": lambda model: models.Known(model=model, values=np.zeros(2), mask=np.array([1, 0])),
}
STARTS = {
    "NoisedPoints": starts.NoisedPoints(POINTS),
    "Noised": starts.Noised(GAUSSIAN),
    "GaussianMoments": starts.GaussianMoments(GAUSSIAN),
    "ClassAverage": starts.ClassAverage(POINTS),
    "Tempered": starts.Tempered(),
}
ARGUMENTS = dict(solver=solvers.InterpolantODE(), grid=grids.Uniform(4), key=jax.random.key(1), shape=(4, 2))


@pytest.mark.parametrize("name", MODELS)
def test_models_of_denoised_means_name_the_process_that_they_expect(name):
    with pytest.raises(TypeError, match=rf"{name}\.process = StochasticInterpolant.*: expected a LinearGaussian"):
        MODELS[name](exact(STRONG, process()))(jnp.zeros((4, 2)), 0.5)


@pytest.mark.parametrize("name", STARTS)
def test_starts_of_noised_data_name_the_process_that_they_expect(name):
    with pytest.raises(TypeError, match=rf"{name}\.process = StochasticInterpolant.*: expected a LinearGaussian"):
        sample(exact(STRONG, process()), start=STARTS[name], **ARGUMENTS)


@pytest.mark.parametrize("times", [losses.LogNormalTimes(), losses.UniformLogSNRTimes(), losses.KarrasTimes()], ids=repr)
def test_times_of_noise_levels_name_the_process_that_they_expect(times):
    with pytest.raises(TypeError, match=rf"{type(times).__name__}\.process = StochasticInterpolant.*: expected a LinearGaussian"):
        times(jax.random.key(0), process(), 4)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(interval=(0.1, 2.0)), r"ClassifierFreeGuidance\.interval = \(0\.1, 2\.0\) under Stoch.*: expected one scale at all"),
        (dict(rescale=0.7), r"ClassifierFreeGuidance\.rescale = 0\.7"),
        (dict(scale=models.ScaleAt((0.1, 1.0), (1.0, 2.0))), r"ClassifierFreeGuidance\.scale = ScaleAt"),
    ],
)
def test_guidance_by_noise_ratios_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        guided(process(), **options)


def test_guidance_of_other_kinds_of_processes_is_refused():
    joint = processes.Joint(image=EDM, vector=EDM)
    with pytest.raises(TypeError, match=r"ClassifierFreeGuidance\.process = Joint.*: expected a LinearGaussian or Stochastic"):
        models.ClassifierFreeGuidance(model=models.FunctionModel(reward, joint, returns="prediction"))
