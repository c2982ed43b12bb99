"""Power spectra against the eigenvalues of the laws that the fields are drawn from."""

import jax
import numpy as np
import pytest

from scorelab.densities import GaussianField, PowerLaw
from scorelab.metrics import power_spectrum, shell_average, spectral_error

LAWS = [
    GaussianField((16, 16, 1), PowerLaw(exponent=4.0, knee=2.0), variance=0.7),
    GaussianField((32, 1), PowerLaw(exponent=3.0, knee=3.0)),
    GaussianField((6, 12, 2), PowerLaw(exponent=2.0, knee=2.0), variance=[1.0, 0.2]),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: str(law.event))
def test_the_spectrum_of_draws_is_that_of_their_law(law):
    x = np.asarray(law.sample(jax.random.key(0), 2000))
    found, wanted = power_spectrum(x), shell_average(law.spectrum)
    # The largest of some ten standardised errors: beyond 4 by chance in one of 1600.
    assert np.max(np.abs(found.power - wanted) / found.stderr) < 4
    one = power_spectrum(x[:1])
    assert np.isnan(one.stderr).all()
    error = spectral_error(x, wanted)
    # The mean of squares of s normal numbers with these deviations; the lowest shells have few modes and most of it.
    relative = found.stderr / found.power
    assert error.floor == pytest.approx(np.sqrt(np.mean(relative**2)), rel=1e-12)
    assert abs(error.value**2 - error.floor**2) < 4 * np.sqrt(2 * np.sum(relative**4)) / len(wanted)


def test_a_plane_wave_has_its_power_at_its_wave_number():
    i, j = np.meshgrid(np.arange(16), np.arange(16), indexing="ij")
    x = np.cos(2 * np.pi * (3 * i + 4 * j) / 16)[None, ..., None]
    found = power_spectrum(x)
    assert found.wave_number[5] == 5
    # Mean square 1/2, of 256 points, spread over the modes that round to 5.
    modes = np.rint(np.hypot(*np.meshgrid(*[np.fft.fftfreq(16, 1 / 16)] * 2)))
    assert found.power[5] == pytest.approx(128 / np.sum(modes == 5), rel=1e-12)
    np.testing.assert_allclose(np.delete(found.power, 5), 0, atol=1e-20)


def test_parseval():
    x = np.random.default_rng(0).normal(size=(3, 5, 8, 2))
    found = power_spectrum(x)
    shell = np.rint(8 * np.hypot(*np.meshgrid(np.fft.fftfreq(8), np.fft.fftfreq(5)))).astype(int).ravel()
    counts = np.bincount(shell)
    assert found.power @ counts[counts > 0] / 40 == pytest.approx(np.mean(x**2), rel=1e-12)


def test_twice_the_amplitude_is_log_four():
    law = LAWS[0]
    x = 2 * np.asarray(law.sample(jax.random.key(1), 500))
    error = spectral_error(x, shell_average(law.spectrum))
    assert abs(error.value - np.log(4)) < 4 * error.stderr + error.floor**2


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: power_spectrum(np.zeros((3, 4))), r"fields has shape \(3, 4\)"),
        (lambda: power_spectrum(np.full((3, 4, 1), np.nan)), "fields has 12 values"),
        (lambda: shell_average(np.ones(4)), r"spectrum has shape \(4,\)"),
        (lambda: spectral_error(np.ones((3, 4, 1)), np.ones(2)), "reference has shape"),
        (lambda: spectral_error(np.ones((3, 4, 1)), np.zeros(3)), "all above 0"),
        (lambda: spectral_error(np.ones((3, 4, 1)), np.ones(3)), "no power in shell 1"),
    ],
)
def test_what_is_refused_says_what_is_accepted(make, match):
    with pytest.raises(ValueError, match=match):
        make()
