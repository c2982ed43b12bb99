"""The mixtures of experiments/2412.09726/fitted.py as score models: against a Cholesky solve, and against the exact law."""

import runpy
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.densities import Gaussian, GaussianMixture
from scorelab.models import ExactModel
from scorelab.processes import Gaussian as Process
from scorelab.schedules import EDM
from tests.run.conftest import ROOT


@pytest.fixture(scope="module")
def script():
    folder = ROOT / "experiments" / "2412.09726"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return SimpleNamespace(**runpy.run_path(str(folder / "fitted.py")))


def draws(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_the_derivative_is_that_of_a_cholesky_solve_also_for_equal_eigenvalues(script):
    alpha, sigma, points = jnp.array([0.5, 0.9, 1.0]), jnp.array([0.5, 1.0, 2.0]), draws(2, 3, 4)
    of_out, of_log_det = draws(2, 3, 4, seed=1), draws(2, 3, seed=2)
    factors = jnp.stack([draws(4, 4, seed=3), jnp.eye(4)])

    def by_cholesky(cov, x):
        noised = (alpha**2)[:, None, None] * cov[:, None] + (sigma**2)[:, None, None] * jnp.eye(4)
        root = jnp.linalg.cholesky(noised)
        out = jax.scipy.linalg.cho_solve((root, True), x[..., None])[..., 0]
        return out, 2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), -1)

    def total(solve, factors, x):
        out, log_det = solve(factors @ factors.mT, x)
        return jnp.sum(of_out * out) + jnp.sum(of_log_det * log_det)

    ours, theirs = (
        jax.value_and_grad(lambda *given, solve=solve: total(solve, *given), (0, 1))(factors, points)
        for solve in (lambda cov, x: script.solved(cov, alpha, sigma, x), by_cholesky)
    )
    # Condition numbers stay below a hundred: two digits less than the rounding of float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, theirs)


@pytest.mark.parametrize("rank", [2, 4])
def test_the_model_is_that_of_its_exact_law(script, rank):
    y = np.asarray(draws(64, 2, 2) * jnp.array([[1.0, 0.3], [0.1, 2.0]]))
    process = Process(schedule=EDM())
    ansatz = script.Ansatz(process, Gaussian.from_data(y), GaussianMixture.fit(y, 3, seed=0), rank)
    params = ansatz.init(jax.random.key(0), y)
    model = ansatz.bind(params | dict(factors=params["factors"] + 0.3 * draws(3, 4, rank, seed=1)))
    exact, t = ExactModel(model.law((2, 2)), process), jnp.geomspace(0.1, 10.0, 64)
    points = y + t[:, None, None] * draws(64, 2, 2, seed=2)
    one_by_one = jnp.concatenate([exact(points[i : i + 1], t[i]).denoised for i in range(0, 64, 9)])
    # The denoised mean is y + sigma^2 score: it loses the digits of points of size 10.
    np.testing.assert_allclose(model(points, t).denoised[::9], one_by_one, atol=1e-4)
