"""Laws of the parameterisations: what every row keeps, and the boundary condition of a consistency model."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.models.denoiser import PARAMETERISATIONS, Denoiser
from scorelab.processes import Gaussian, GeometricBrownianMotion
from scorelab.schedules import EDM, RectifiedFlow, VPLinear

PROCESSES = [
    *(Gaussian(schedule=s) for s in (EDM(), VPLinear(), RectifiedFlow())),
    GeometricBrownianMotion(sigma=2.0, mu=0.5),
]


@dataclass(frozen=True)
class Linear:
    def init(self, key, x, c_noise, cond=None):
        return jnp.array([0.7, -0.4])

    def apply(self, params, x, c_noise, cond=None):
        return params[0] * x + params[1] + c_noise[:, None]


@pytest.mark.parametrize("predict", PARAMETERISATIONS)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)
def test_every_parameterisation_gives_a_consistent_pair(process, predict):
    with jax.enable_x64(True):
        t = jnp.linspace(process.t_min, process.t_max, 9)[:-1]
        p, q, m, n = Denoiser(net=Linear(), process=process, predict=predict, data_std=0.7).coefficients(t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        np.testing.assert_allclose(alpha * p + sigma * m, 1.0, rtol=1e-12)
        np.testing.assert_allclose(alpha * q + sigma * n, 0.0, atol=1e-12 * float(jnp.max(jnp.abs(alpha * q)) + 1))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)
def test_a_consistency_model_is_the_identity_at_the_smallest_noise_level(process):
    denoiser = Denoiser(net=Linear(), process=process, predict="consistency", data_std=0.7)
    model = denoiser.bind(jnp.array([5.0, -3.0]))
    clean, eps = np.random.default_rng(0).normal(size=(2, 64, 2)).astype(np.float32)
    alpha, sigma, offset = (float(f(process.t_min)) for f in (process.alpha, process.sigma, process.offset))
    y = alpha * clean + offset + sigma * eps
    prediction = model(jnp.asarray(y), process.t_min)
    # Whatever the network says, up to the rounding of the time to float32.
    np.testing.assert_allclose(prediction.denoised, (y - offset) / alpha, atol=2e-6)
    np.testing.assert_allclose(model(jnp.asarray(y), jnp.full(64, process.t_min)).denoised, prediction.denoised, atol=1e-6)


def test_the_consistency_coefficients_are_the_published_ones():
    # Song et al. (2023), appendix C, in the noise ratio, which is the noise level there.
    std, process = 0.5, PROCESSES[0]
    with jax.enable_x64(True):
        t = jnp.array([0.002, 0.0021, 0.3, 7.0, 80.0])
        c = Denoiser(net=Linear(), process=process, predict="consistency", data_std=std).coefficients(t)
        np.testing.assert_allclose(c.p, std**2 / ((t - 0.002) ** 2 + std**2), rtol=1e-12)
        np.testing.assert_allclose(c.q, std * (t - 0.002) / np.sqrt(t**2 + std**2), atol=1e-12)


def test_a_consistency_model_is_finite_where_alpha_is_zero():
    process = PROCESSES[2]
    model = Denoiser(net=Linear(), process=process, predict="consistency").bind(jnp.array([0.7, -0.4]))
    assert np.isfinite(model(jnp.ones((2, 2)), 1.0).denoised).all()
    assert np.isfinite(model(jnp.ones((2, 2)), 1.0).eps).all()
