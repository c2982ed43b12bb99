"""A network that computes in bfloat16 moves the law of the samples by less than the discretisation of 20 steps does.

The law is a mixture of two Gaussians on the line, 0.3 N(-1, 0.25^2) + 0.7 N(0.6, 0.4^2). The network says what the exact law asks
it to say; its input and its output are rounded to 8 bits, as those of every network are. All that is around it is the library's.
Both runs begin at the same quantiles of the noised law and draw the same noise, so the mean distance between samples with one id
bounds the distance W1 of the two laws from above. What 20 steps are off is bounded from below. Without noise it is the W1 between
the samples and the quantiles of the law. With noise that would see nothing below the W1 of as many independent draws, 1.4e-2. So
20 steps are compared with 80 along the same Brownian paths. A corrector, whose steps are no part of a path, is taken as it is: at
20 steps it is off by more than twice that.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, models, processes, sample, schedules, solvers, starts
from scorelab.models.denoiser import PARAMETERISATIONS
from scorelab.processes import gammas
from scorelab.solvers import epsilons
from tests.contracts.members import SOLVERS

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
N, STEPS = 4096, 20
# Steps that are compared with them along the same paths, and how many times the N points.
FINE, BATCHES = 4 * STEPS, 4
WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 0.6]), np.array([0.25, 0.4])
LAW = densities.GaussianMixture(WEIGHTS, MEANS[:, None], (STDS**2)[:, None])
SCALE = float(np.sqrt(WEIGHTS @ (STDS**2 + MEANS**2)))
VP = processes.Gaussian(schedule=schedules.VPLinear())
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_min=1e-4, sigma_max=1e4))


def line(alpha=1.0, sigma=0.0):
    """Points and the distribution function of the noised law at them."""
    x = np.linspace(-6, 6, 100_001) * np.hypot(alpha, sigma)
    below = [w * stats.norm.cdf(x, alpha * m, np.hypot(alpha * s, sigma)) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True)]
    return x, sum(below)


def quantiles(alpha=1.0, sigma=0.0):
    x, below = line(alpha, sigma)
    return np.interp((np.arange(N) + 0.5) / N, below, x)


def floor():
    """The mean of W1 between the law and N independent draws: their distribution function deviates by sqrt(F (1 - F) / N)."""
    x, below = line()
    return float(np.sqrt(2 / np.pi / N) * np.sum(np.sqrt(below * (1 - below))) * (x[1] - x[0]))


def distance(a, b):
    return float(np.mean(np.abs(np.sort(a) - np.sort(b))))


def at_least(coarse, fine):
    """A bound from below of W1 between two laws on the line, of batches of points ``(batches, n)`` that belong together.

    W1 is the integral of ``|F - G|``, and the integral of ``F - G`` over a bin is the mean of ``clip(y) - clip(x)``. Points that
    belong together lie close, so that it varies little. Its sign in a bin is that of the other half of the batches, and where
    that is wrong the sum only becomes smaller.
    """
    edges = [-np.inf, *quantiles()[64::128], np.inf]
    # Bins without an end: what lies beyond ten deviations is none of the samples.
    edges = np.clip(edges, -10, 10)
    inside = lambda x: np.mean(np.clip(x[..., None], edges[:-1], edges[1:]), axis=1)
    gaps = inside(fine) - inside(coarse)
    one, other = np.mean(gaps[::2], axis=0), np.mean(gaps[1::2], axis=0)
    return float(np.sign(one) @ other + np.sign(other) @ one) / 2


def steps_are_off(model, solver, start):
    """A bound from below of W1 between the law of the samples at 20 steps and the law itself, of a solver with noise.

    At four times the steps an error of order 1 is a quarter of ``e``, that at 20 steps. Between the two it is ``5 e / 4`` at most.
    """
    path = solver if solver.along_path else solvers.Brownian(solver=solver)
    begin = starts.Fixed(np.tile(start, BATCHES)[:, None].astype(np.float32))
    run = dict(solver=path, key=KEY, shape=(BATCHES * N, 1), start=begin, chunk=N)
    ends = (np.float64(sample(model, grid=grids.LogSNR(steps), **run).x).reshape(BATCHES, N) for steps in (STEPS, FINE))
    return 0.8 * at_least(*ends)


def rounded(low, value):
    return jnp.where(low, value.astype(jnp.bfloat16).astype(value.dtype), value)


@dataclass(frozen=True)
class Exact:
    """What the exact law asks of a network on a variance-preserving process, rounded where its parameter says so."""

    predict: str = "edm"
    shares_noise_level = True

    def init(self, key, x, c_noise, cond=None):
        return jnp.zeros((), bool)

    def apply(self, low, x, c_noise, cond=None):
        def one(x, c_noise):
            ratio = jnp.exp(4 * c_noise)
            alpha = jax.lax.rsqrt(1 + ratio**2)
            sigma = ratio * alpha
            y = x * jnp.sqrt((alpha * SCALE) ** 2 + sigma**2)
            denoised = LAW.denoise(EDM, (y / alpha)[None], ratio)[0]
            c = PARAMETERISATIONS[self.predict](alpha, sigma, SCALE, 0.0)
            return (denoised - c.p * y) / c.q

        seen = rounded(low, x)
        return rounded(low, jax.vmap(one)(seen, jnp.broadcast_to(c_noise, (len(x),))))


def both(model_of, solver, grid, start):
    """Samples in float32 and in bfloat16, from one program."""
    run = dict(solver=solver, grid=grid, key=KEY, shape=(N, 1), start=starts.Fixed(start[:, None].astype(np.float32)), chunk=N)
    return [np.asarray(sample(model_of(jnp.asarray(low)), **run).x, np.float64)[:, 0] for low in (False, True)]


def assert_less_than_the_steps(wide, low, *, steps=None, stochastic=False, roundings=2):
    if steps is None:
        # Twice the floor: its spread from run to run is well below itself.
        steps = distance(wide, quantiles()) - 2 * floor() * stochastic
    moved = float(np.mean(np.abs(low - wide)))
    assert 0 < moved < steps, f"bfloat16 moves the law by at most {moved:.1e}, {STEPS} steps by {steps:.1e}"
    # 2^-9 for each rounding, seen through a denoised point of order one: the cause is the rounding and nothing else.
    assert moved < roundings * 2**-9


# A solver of each kind; the rest, and the other parameterisations, are in the long tail. An adaptive solver has no steps to compare
# with, and Renoise none at all: it asks for the end of the flow.
STEPWISE = [s for s in SOLVERS if s.calls_per_step is not None and not isinstance(s, solvers.Renoise)]
USUAL = (solvers.DPMSolverPP(order=3), solvers.Heun(), solvers.UniPC(predictor_order=3), solvers.EulerMaruyama(),
         solvers.PredictorCorrector())  # fmt: skip
CASES = [
    *(pytest.param(s, "edm", marks=() if s in USUAL else pytest.mark.long) for s in STEPWISE),
    *(pytest.param(solvers.DPMSolverPP(order=3), p, marks=pytest.mark.long) for p in ("eps", "x0", "v", "flow")),
    *(pytest.param(solvers.EulerMaruyama(), p, marks=pytest.mark.long) for p in ("eps", "x0", "v", "flow")),
]


@pytest.mark.parametrize(("solver", "predict"), CASES, ids=str)
def test_the_law_of_the_samples(solver, predict):
    grid = grids.LogSNR(STEPS)
    t = np.float64(grid.times(VP)[0])
    denoiser = models.Denoiser(net=Exact(predict), process=VP, predict=predict, data_std=SCALE)
    start = quantiles(float(VP.alpha(t)), float(VP.sigma(t)))
    wide, low = both(denoiser.bind, solver, grid, start)
    along = solver.stochastic and solver.order >= 1
    steps = steps_are_off(denoiser.bind(jnp.asarray(False)), solver, start) if along else None
    # A network that states a point or a noise has its whole rounding at one end of the noise range.
    roundings = 4 if predict in ("eps", "x0") else 2
    assert_less_than_the_steps(wide, low, steps=steps, stochastic=solver.stochastic, roundings=roundings)


def test_what_bounds_the_distance_of_two_laws_from_below():
    # Laws that are shifted by less than independent draws would show, along points that belong together; and twice the same law.
    x = np.random.default_rng(0).normal(0, 0.5, (BATCHES, N))
    near = x + 0.05 * np.random.default_rng(1).normal(size=x.shape)
    wider = near * math.sqrt(0.5**2 / (0.5**2 + 0.05**2))
    # Its own noise: .05 of 16384 points, a bin at a time.
    assert at_least(x, wider) == pytest.approx(0.0, abs=1e-3)
    assert at_least(x, wider + 3e-3) == pytest.approx(3e-3, abs=1e-3)
    # The distance of N(0, .5^2) and N(0, .52^2).
    assert at_least(x, 1.04 * wider) == pytest.approx(0.02 * math.sqrt(2 / math.pi), abs=1e-3)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class RoundedField:
    """The exact field of an interpolant, each part rounded as a network's would be."""

    low: jax.Array
    model: models.ExactModel

    @property
    def process(self):
        return self.model.process

    def __call__(self, y, t, cond=None):
        found = models.ask(self.model, rounded(self.low, y), t)
        parts = dict(velocity=rounded(self.low, found.velocity), eta=rounded(self.low, found.eta))
        return self.process.predict(y, t, **parts)


# With less noise than this the SDE is off by less in 20 steps than can be seen among so many independent draws.
@pytest.mark.parametrize("solver", [solvers.InterpolantODE(), solvers.InterpolantSDE(epsilon=epsilons.Constant(3.0))], ids=str)
def test_the_law_of_the_samples_of_an_interpolant(solver):
    process = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(1), 1.0), gamma=gammas.Brownian(scale=0.5))
    start = stats.norm.ppf((np.arange(N) + 0.5) / N)
    exact = models.ExactModel(LAW, process)
    wide, low = both(lambda low: RoundedField(low, exact), solver, grids.Uniform(STEPS), start)
    assert_less_than_the_steps(wide, low, stochastic=solver.stochastic)
