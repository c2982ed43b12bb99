"""Laws of every schedule."""

import functools

import jax
import numpy as np
import pytest

from scorelab import schedules

from .members import SCHEDULES

pytestmark = pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)


def times(schedule, low=1e-6, n=4001):
    logarithmic = np.geomspace(max(low, 1e-12), schedule.t_max, n)
    return np.unique(np.concatenate([logarithmic, np.linspace(schedule.t_min, schedule.t_max, n)]).astype(np.float32))


RATES = ("log_alpha", "log_snr", "alpha", "noise_ratio", "drift_rate", "diffusion_rate", "d_alpha", "d_sigma")


def inside(schedule):
    return np.linspace(schedule.t_min + 1e-3, 0.99 * schedule.t_max, 101)


@functools.cache
def on_device(schedule):
    """Sigma at many times, and every function at some, in float32 and in one program."""
    compiled = jax.jit(lambda many, some: (schedule.sigma(many), {name: getattr(schedule, name)(some) for name in RATES}))
    return jax.tree.map(np.asarray, compiled(times(schedule), inside(schedule).astype(np.float32)))


def test_float32_sigma_is_within_two_parts_in_ten_million_of_float64(schedule):
    t = times(schedule)
    reference = schedule.sigma(t.astype(np.float64))
    got, _ = on_device(schedule)
    assert got.dtype == np.float32
    assert np.max(np.abs(got / reference - 1)) < 2e-7


def test_time_inverts_log_snr(schedule):
    t = np.linspace(schedule.t_min, 0.999 * schedule.t_max, 102)[1:]
    np.testing.assert_allclose(schedule.time(schedule.log_snr(t)), t, rtol=1e-10)


def test_alpha_sigma_and_log_snr_agree(schedule):
    t = np.linspace(schedule.t_min, 0.99 * schedule.t_max, 102)[1:]
    log_snr = 2 * (np.log(schedule.alpha(t)) - np.log(schedule.sigma(t)))
    np.testing.assert_allclose(schedule.log_snr(t), log_snr, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.log(schedule.alpha(t)), schedule.log_alpha(t), rtol=1e-12, atol=1e-14)
    assert np.all(np.diff(schedule.log_snr(t)) < 0)


def test_clean_time_has_no_noise(schedule):
    assert schedule.sigma(np.float64(schedule.clean_time)) == 0
    assert schedule.alpha(np.float64(schedule.clean_time)) == pytest.approx(1.0)


def test_rates_are_the_derivatives_of_the_kernel(schedule):
    # Central differences in float64: relative error h^2 + 1e-16 / h is below 1e-8 at h = 1e-5.
    t = np.linspace(0.05, 0.95, 101) * schedule.t_max
    h = 1e-5 * t
    for rate, function in ((schedule.d_alpha, schedule.alpha), (schedule.d_sigma, schedule.sigma)):
        difference = (function(t + h) - function(t - h)) / (2 * h)
        np.testing.assert_allclose(rate(t), difference, rtol=1e-6, atol=1e-7)
    variance_rate = 2 * schedule.sigma(t) * schedule.d_sigma(t)
    drift = schedule.d_alpha(t) / schedule.alpha(t)
    np.testing.assert_allclose(schedule.drift_rate(t), drift, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(schedule.diffusion_rate(t), variance_rate - 2 * drift * schedule.sigma(t) ** 2, rtol=1e-9)
    base = schedules.GaussianSchedule.diffusion_rate(schedule, t)
    np.testing.assert_allclose(base, schedule.diffusion_rate(t), rtol=1e-9)


def test_straight_coordinate_is_affine(schedule):
    t = np.linspace(0.01, 0.99, 101) * schedule.t_max
    signal, noise = (f(t) / schedule.scale(t) for f in (schedule.alpha, schedule.sigma))
    line = np.polynomial.Polynomial.fit(noise, signal, 1)
    np.testing.assert_allclose(line(noise), signal, atol=1e-10)


def test_jit_and_host_run_the_same_code(schedule):
    t, (_, device) = inside(schedule), on_device(schedule)
    for name in RATES:
        host = np.broadcast_to(getattr(schedule, name)(t), t.shape)
        assert host.dtype == np.float64
        # float32 rounding of t (6e-8) is amplified by at most the logarithmic slope of the function (about 20).
        np.testing.assert_allclose(np.broadcast_to(device[name], t.shape), host, rtol=3e-6, atol=1e-6)


def test_equal_specs_are_one_spec(schedule):
    twin = type(schedule)(**{name: getattr(schedule, name) for name in schedule.__dataclass_fields__})
    assert twin == schedule
    assert hash(twin) == hash(schedule)
