"""What the method says of trained networks, on one that the package carries."""

import dataclasses

import jax
import numpy as np
import pytest

from scorelab import densities, diagnostics, grids, pretrained, sample, solvers, starts
from scorelab.errors import ConfigError


@pytest.fixture(scope="module")
def digits():
    """(process, model, law, data in [-1, 1]) of the kept model of the 8x8 digits."""
    kept = pretrained.load("digits-edm")
    assert kept.origin["step"] == 10_000
    x = kept.encoded()
    return kept.config.process, kept.model, densities.Gaussian.from_data(x), x


def test_the_data_of_a_model_are_those_it_was_trained_on(digits):
    kept = pretrained.load("digits-edm")
    # Pixels k = 0 to 16 lie at (2 k + 1) / 17 - 1.
    np.testing.assert_allclose(digits[-1], (2.0 * kept.data().x + 1) / 17 - 1, atol=1e-6)
    assert len(kept.data("test")) == 297
    other = dataclasses.replace(kept, record=kept.record | {"data_sha256": "of another set"})
    with pytest.raises(ConfigError, match=r"Loaded\.data = digits with the hash a00e.*: expected of another set, as it was"):
        other.encoded()


def test_a_gaussian_explains_its_score_at_high_noise(digits):
    _, model, law, x = digits
    laws = {"full": law, "isotropic": densities.Gaussian.from_data(x, covariance="isotropic")}
    found = diagnostics.explained_variance(model, laws, x[:128], [0.5, 1.0, 5.0, 20.0])
    full, isotropic = found["full"].mean_of_ratios, found["isotropic"].mean_of_ratios
    assert np.all(full[2:] > 0.99)
    assert np.all(np.diff(full) > 0)
    assert np.all(full[:2] > isotropic[:2] + 0.05)


@pytest.fixture(scope="module")
def walked(digits):
    _, model, _, _ = digits
    options = dict(solver=solvers.Heun(), grid=grids.Karras(18), key=jax.random.key(0), shape=(64, 8, 8, 1))
    return sample(model, keep="all", **options)


def test_its_trajectories_are_those_of_the_gaussian_at_high_noise(digits, walked):
    process, model, law, _ = digits
    error = diagnostics.trajectory_error(walked, law)
    assert np.all(error[walked.times >= 5] < 1e-2)
    assert error[-1] > 0.1  # and not at the end: the samples are digits, not draws of a Gaussian
    denoised = diagnostics.denoised_along(model, walked)
    emergence = diagnostics.feature_emergence(denoised, walked.times, law, process, features=30)
    known = np.isfinite(emergence.sigma_half)
    ranks = [np.argsort(np.argsort(v[known])) for v in (emergence.sigma_half, emergence.predicted)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


@pytest.mark.long
def test_a_jump_to_three_deviations_costs_nothing(digits, walked):
    _, model, law, _ = digits
    # To three deviations nothing that Heun's own error does not exceed; to half a deviation, another image.
    fine = sample(model, solver=solvers.Heun(), grid=grids.Karras(60), key=jax.random.key(0), shape=(64, 8, 8, 1)).x

    def distance(start):
        options = dict(solver=solvers.Heun(), grid=grids.Karras(18), key=jax.random.key(0), shape=(64, 8, 8, 1), start=start)
        return float(np.sqrt(np.mean((sample(model, **options).x - fine) ** 2)))

    plain = float(np.sqrt(np.mean((walked.x - fine) ** 2)))
    assert distance(starts.Teleport(law)) < 2 * plain
    with pytest.warns(starts.TeleportWarning):
        assert distance(starts.Teleport(law, sigma_skip=1.0)) > 4 * plain
