"""Laws of the parameterisations: what every row keeps, and the boundary condition of a consistency model."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.models import FunctionModel
from scorelab.models.denoiser import PARAMETERISATIONS, Denoiser
from scorelab.processes import Gaussian, GeometricBrownianMotion
from scorelab.schedules import EDM, RectifiedFlow, VPLinear

PROCESSES = [
    *(Gaussian(schedule=s) for s in (EDM(), VPLinear(), RectifiedFlow())),
    GeometricBrownianMotion(sigma=2.0, mu=0.5),
]


CLOSE = Gaussian(schedule=RectifiedFlow(t_max=0.999))


@dataclass(frozen=True)
class Linear:
    def init(self, key, x, c_noise, cond=None):
        return jnp.array([0.7, -0.4])

    def apply(self, params, x, c_noise, cond=None):
        return params[0] * x + params[1] + c_noise[:, None]


@pytest.mark.parametrize("predict", PARAMETERISATIONS)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p.schedule).__name__)
def test_every_parameterisation_gives_a_consistent_pair(process, predict):
    if predict == "eps" and process.alpha(process.t_max) == 0:
        process = Gaussian(schedule=RectifiedFlow(t_max=0.99))  # see the refusal below
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


@pytest.mark.parametrize("predict", [name for name in PARAMETERISATIONS if name != "eps"])
def test_a_model_is_finite_where_alpha_is_zero(predict):
    # There y is the noise, whatever the network says; the denoised point is one of F, -F, y - F and data_std F.
    process, y, params = PROCESSES[2], jnp.array([[1.0, -2.0], [0.3, 0.4]]), jnp.array([0.7, -0.4])
    denoiser = Denoiser(net=Linear(), process=process, predict=predict, data_std=0.25)
    prediction, output = denoiser.bind(params)(y, 1.0), denoiser.network_output(params, y, 1.0)
    expected = {"x0": output, "v": -output, "flow": y - output, "edm": 0.25 * output, "consistency": 0.25 * output}[predict]
    np.testing.assert_allclose(prediction.eps, y, rtol=1e-6)
    np.testing.assert_allclose(prediction.denoised, expected, rtol=1e-6)
    assert np.isfinite(prediction.velocity).all()


@pytest.mark.parametrize("t_max", [1.0, 1 - 1e-9])
def test_what_gives_no_denoised_point_where_alpha_is_zero_is_refused(t_max):
    process = Gaussian(schedule=RectifiedFlow(t_max=t_max))
    with pytest.raises(ValueError, match=r"Denoiser\.predict = 'eps' under .*RectifiedFlow.*expected another form .*t_max=0\.99"):
        Denoiser(net=Linear(), process=process, predict="eps")
    for returns in ("eps", "score", "stein"):
        with pytest.raises(ValueError, match=rf"FunctionModel\.returns = '{returns}' under .*t_max=0\.99"):
            FunctionModel(lambda y, t, cond: y, process, returns=returns)
    y = jnp.array([[1.0, -2.0]])
    for returns in ("denoised", "velocity"):
        prediction = FunctionModel(lambda y, t, cond: 0.5 * y, process, returns=returns)(y, t_max)
        np.testing.assert_allclose(prediction.denoised, 0.5 * y, rtol=1e-6)  # the velocity is eps - D with eps = y
        np.testing.assert_allclose(prediction.eps, y, rtol=1e-6)


@pytest.mark.parametrize("process", [*(p for p in PROCESSES if not isinstance(p.schedule, RectifiedFlow)), CLOSE], ids=repr)
def test_noise_is_a_prediction_wherever_there_is_signal(process):
    assert Denoiser(net=Linear(), process=process, predict="eps").predict == "eps"
    prediction = FunctionModel(lambda y, t, cond: 0.5 * y, process, returns="eps")(jnp.ones((2, 2)), process.t_max)
    assert np.isfinite(prediction.denoised).all()
