"""Inversion: the latent of the flow of a Gaussian in closed form, and the way there and back under every deterministic solver."""

from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
import scipy.linalg

import scorelab as sl
from scorelab import densities, grids, models, processes, schedules, solvers, starts
from scorelab.models.per_sample import PER_SAMPLE
from scorelab.walk import NonFiniteSample

KEY = jax.random.key(0)
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_max=20.0))
VP = processes.Gaussian(schedule=schedules.VPLinear())
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
LOG = processes.GeometricBrownianMotion(sigma=1.5, mu=0.5)
LAW = densities.Gaussian(np.array([0.5, -0.2]), np.array([[0.6, 0.2], [0.2, 0.3]]))
MIXTURE = densities.GaussianMixture([0.6, 0.4], np.array([[-1.0, 0.0], [1.0, 0.5]]), 0.2)
X = np.asarray(LAW.sample(KEY, 16))
SOLVERS = [
    solvers.DDIM(),
    solvers.DPMSolverPP(order=2),
    solvers.DPMSolverPP(order=3),
    solvers.DEIS(),
    solvers.Heun(),
    solvers.UniPC(),
    solvers.ProbabilityFlowEuler(),
    solvers.Diffrax(),
]


@pytest.mark.parametrize("process", [EDM, VP, LOG], ids=["EDM", "VP", "log chart"])
def test_the_latent_is_where_the_flow_of_a_gaussian_comes_from(process):
    model = models.ExactModel(LAW, process)
    grid = grids.LogSNR(60, clean=False)
    times = grid.times(process)
    y = np.asarray(process.noised(np.zeros_like(X), X, float(times[-1])).y)
    exact = LAW.flow(process, y, times[-1], times[0])
    x = process.decode(X)
    errors = [
        np.abs(sl.invert(model, x, solver=solvers.Heun(), grid=grids.LogSNR(n, clean=False)) - exact).max() for n in (60, 120)
    ]
    # Second order: a quarter of the error for half the steps, with a quarter of that to spare.
    assert errors[0] < 0.03 * np.abs(exact).max()
    assert errors[1] < 0.32 * errors[0]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{s.order}")
def test_there_and_back(solver):
    model = models.ExactModel(MIXTURE, EDM)
    grid = grids.Karras(160, t_min=0.01)
    z = sl.invert(model, X, solver=solver, grid=grid)
    back = sl.sample(model, solver=solver, grid=grid, key=KEY, shape=X.shape, start=starts.Fixed(z)).x
    # Twice the error of the solver, which for first order at 160 steps is that of the step in the log noise, and the noise .01.
    np.testing.assert_allclose(back, X, atol=0.12 if solver.order == 1 else 0.02)


def test_first_order_comes_back_to_first_order():
    model = models.ExactModel(MIXTURE, EDM)
    errors = []
    for steps in (100, 200, 400):
        grid = grids.Karras(steps, t_min=1e-4)
        z = sl.invert(model, X, solver=solvers.DDIM(), grid=grid)
        back = sl.sample(model, solver=solvers.DDIM(), grid=grid, key=KEY, shape=X.shape, start=starts.Fixed(z)).x
        errors.append(np.abs(back - X).max())
    # Half the steps, half the error; a fifth of that to spare.
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.6 * errors[1]


def test_the_latents_of_data_are_noise():
    n = 4000
    model = models.ExactModel(LAW, EDM)
    x = np.asarray(LAW.sample(jax.random.key(1), n))
    z = np.asarray(sl.invert(model, x, solver=solvers.Heun(), grid=grids.Karras(40)))
    # The law of the data noised to 20, of which its own deviation is a thousandth.
    want = np.sqrt(400 + np.array([0.6, 0.3]))
    np.testing.assert_allclose(z.std(0), want, rtol=4 / np.sqrt(2 * n) + 0.01)


def test_chunks_and_conditions():
    def shifted(y, t, cond):
        return EDM.predict(y, t, denoised=np.float32(0.1) * y + cond[:, None])

    model = models.FunctionModel(shifted, EDM, returns="prediction")
    cond = np.linspace(-1, 1, len(X)).astype(np.float32)
    run = dict(solver=solvers.DDIM(), grid=grids.Karras(12), cond=cond)
    whole = sl.invert(model, X, **run)
    np.testing.assert_allclose(sl.invert(model, X, chunk=5, **run), whole, rtol=1e-5, atol=1e-5)
    one = sl.invert(model, X[3:4], **(run | dict(cond=cond[3:4])))
    np.testing.assert_allclose(one, whole[3:4], rtol=1e-5, atol=1e-5)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Shrunk:
    """A number for every sample inside the model."""

    factor: np.ndarray = field(metadata=PER_SAMPLE)
    process: processes.Gaussian = field(default=EDM, metadata={"static": True})

    def __call__(self, y, t, cond=None):
        return self.process.predict(y, t, denoised=self.factor.reshape(-1, 1) * y / (1 + t**2))


def test_a_number_for_every_sample_goes_with_its_chunk():
    factor = np.linspace(0.2, 1.0, len(X)).astype(np.float32)
    run = dict(solver=solvers.DDIM(), grid=grids.Karras(12))
    whole = sl.invert(Shrunk(factor), X, **run)
    np.testing.assert_allclose(sl.invert(Shrunk(factor), X, chunk=5, **run), whole, rtol=1e-5, atol=1e-5)
    one = sl.invert(Shrunk(factor[9:10]), X[9:10], **run)
    np.testing.assert_allclose(one, whole[9:10], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver=solvers.DDIM(eta=1.0)), "expected a deterministic solver"),
        (dict(solver=3), "expected a Solver"),
        (dict(x=np.zeros(2)), r"shape \(2,\)"),
        (dict(x=np.zeros((0, 2))), "at least one row"),
        (dict(x=X + 0j), "complex"),
        (dict(x=np.where(np.arange(16)[:, None] == 3, np.nan, X)), "not finite: 3 of 16"),
        (dict(grid=grids.Explicit((1.0, 0.0))), "two or more"),
        (dict(cond=np.zeros(3)), "invert.cond"),
        (dict(model=lambda y, t, cond: y), "knows its process"),
        (dict(chunk=0), "chunk = 0"),
        (dict(model=Shrunk(np.ones(3))), r"invert.Shrunk.factor has a leaf of shape \(3,\)"),
        (
            dict(model=models.ExactModel(LAW, FLOW), solver=solvers.DPMSolverPP(order=2), grid=grids.Uniform(6)),
            r"has no finite steps .* up to t = 1, where alpha is 0",
        ),
    ],
)
def test_errors(change, message):
    arguments = dict(model=models.ExactModel(LAW, EDM), x=X, solver=solvers.DDIM(), grid=grids.Karras(5)) | change
    model, x = arguments.pop("model"), arguments.pop("x")
    with pytest.raises((ValueError, TypeError), match=message):
        sl.invert(model, x, **arguments)


def test_a_flow_that_breaks_is_named():
    broken = models.FunctionModel(lambda y, t, cond: y * np.nan, EDM)
    with pytest.raises(NonFiniteSample, match="step 0 of"):
        sl.invert(broken, X, solver=solvers.DDIM(), grid=grids.Karras(5))


def test_rectified_flow_is_inverted_up_to_pure_noise():
    model = models.ExactModel(LAW, FLOW)
    z = sl.invert(model, X, solver=solvers.Heun(), grid=grids.Uniform(200))
    # At t = 1 the law of the flow is N(0, 1) without a trace of the data: the flow of a Gaussian whitens it by its square root.
    mean, root = np.array([0.5, -0.2]), scipy.linalg.sqrtm(np.array([[0.6, 0.2], [0.2, 0.3]]))
    np.testing.assert_allclose(z, np.linalg.solve(root, (X - mean).T).T, atol=0.02)
