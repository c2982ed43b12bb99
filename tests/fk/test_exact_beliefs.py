"""The exact intermediate rewards of the experiment on them, against quadrature in the plane."""

import pathlib
import runpy
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The narrowest Gaussian has the deviation .2, eight steps of the grid: the trapezoid is then right to rounding.
SIDE = np.linspace(-4.0, 4.0, 321)
X = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), -1).reshape(-1, 2)


@pytest.fixture(scope="module")
def experiment():
    """The experiment, as a module."""
    return SimpleNamespace(**runpy.run_path(str(ROOT / "experiments" / "2501.06848" / "intermediate.py")))


def grid(experiment):
    """Masses of the law on the grid, and rewards there."""
    square = np.sum((X[:, None] - experiment.MEANS) ** 2, axis=2)
    mass = np.exp(-square / (2 * experiment.VARIANCE)) @ experiment.SHARES
    return mass / mass.sum(), -0.5 * experiment.PRECISION * np.sum((X - experiment.CENTRE) ** 2, axis=1)


@pytest.mark.parametrize("sigma", [0.2, 1.0, 5.0])
def test_beliefs_given_a_noisy_point(experiment, sigma):
    mass, r = grid(experiment)
    y = np.array([[0.5, 0.3], [1.5, -1.0], [-2.0, 0.2]])
    log_w = np.log(mass) - np.sum((y[:, None] - X) ** 2, axis=2) / (2 * sigma**2)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    points, t = jnp.asarray(y, jnp.float32), jnp.float32(experiment.PROCESS.schedule.time(-2 * np.log(sigma)))
    # float32, on numbers of order ten.
    np.testing.assert_allclose(experiment.exact_twist(points, t), np.log(w @ np.exp(r)), atol=2e-4)
    np.testing.assert_allclose(experiment.exact_mean(points, t), w @ r, atol=2e-4)


def test_the_tilted_law(experiment):
    mass, r = grid(experiment)
    log_z, mean = experiment.tilted()
    w = mass * np.exp(r)
    np.testing.assert_allclose([log_z, mean], [np.log(w.sum()), (w @ r) / w.sum()], rtol=1e-9)
