"""Tabulated schedules and schedules that end in pure noise: the published numbers, the published samplers, the prior."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import config, densities, grids, log_likelihood, models, processes, sample, schedules, solvers
from scorelab.processes.scale import prior_error
from tests.run.conftest import TINY
from tests.stepping import walk

SD = dict(alphas_cumprod="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = dict(alphas_cumprod="squaredcos_cap_v2")
RECIPES = {"ddpm": {}, "sd": SD, "cosine": COSINE}
REFERENCES = Path(__file__).parent.parent / "references" / "diffusers.npz"
KEY = jax.random.key(5)


def betas(name):
    """The published recipes, one number after the other."""
    if name == "ddpm":
        return [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    if name == "sd":
        low, high = 0.00085**0.5, 0.012**0.5
        return [(low + (high - low) * i / 999) ** 2 for i in range(1000)]
    bar = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return [min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)]


def products(name):
    found, total = [], 1.0
    for beta in betas(name):
        total *= 1 - beta
        found.append(total)
    return np.array(found)


@pytest.mark.parametrize("name", RECIPES)
def test_the_levels_are_the_published_products(name):
    schedule, exact = schedules.Discrete(**RECIPES[name]), products(name)
    index = np.arange(1000.0)
    # A thousand products round by 1e-13; the cap of the cosine makes the last of them 2.4e-9.
    np.testing.assert_allclose(schedule.levels(), exact, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(index) ** 2, exact, rtol=1e-12)
    np.testing.assert_allclose(schedule.sigma(index) ** 2, 1 - exact, rtol=1e-10)
    given = schedules.Discrete(alphas_cumprod=tuple(exact.tolist()))
    np.testing.assert_allclose(given.log_snr(index + 0.3), schedule.log_snr(index + 0.3), rtol=1e-9, atol=1e-9)
    assert given.steps == 1000
    assert len(repr(given)) < 200
    assert repr(schedules.Discrete(steps=9)).startswith("Discrete(alphas_cumprod='linear', beta_start=0.0001")


def test_the_last_levels_are_those_in_print():
    # Those of DDPM and of Stable Diffusion: the latter as the signal that is left, 0.0683 (Lin et al. 2024, section 3.1).
    assert schedules.Discrete().levels()[-1] == pytest.approx(4.036e-5, abs=5e-9)
    assert schedules.Discrete(**SD).alpha(np.float64(999)) == pytest.approx(0.068265, abs=5e-7)


@pytest.mark.parametrize("name", RECIPES)
def test_zero_terminal_is_the_published_rescaling(name):
    root = np.sqrt(products(name))
    published = (root - root[-1]) * root[0] / (root[0] - root[-1])
    schedule = schedules.Discrete(**RECIPES[name], zero_terminal=True)
    index = np.arange(1000.0)
    np.testing.assert_allclose(schedule.alpha(index), published, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(schedule.sigma(index) ** 2, 1 - published**2, rtol=1e-8)
    assert schedule.alpha(np.float64(999)) == 0
    assert float(jax.jit(schedule.alpha)(np.float32(999))) == 0
    assert np.all(np.diff(schedule.log_snr(np.linspace(0, 999, 9991))) < 0)


def test_levels_of_another_library_give_its_trajectory():
    # The levels stored by diffusers are float32: 4e-8 each, relative.
    with np.load(REFERENCES) as stored:
        alpha, sigma, steps = (stored[f"ddim_eta1/{part}"] for part in ("alpha", "sigma", "timesteps"))
        x, noise = stored["ddim_eta1/x"], stored["noise"]
        law = densities.GaussianMixture(*(stored[f"mixture/{name}"] for name in ("weights", "means", "covs")))
        assert json.loads(str(stored["ddim_eta1/info"]))["coordinates"] == "vp"
    process = processes.Gaussian(schedule=schedules.Discrete())
    times = grids.Explicit(tuple(map(float, steps)), clean=True).times(process)
    np.testing.assert_allclose(process.alpha(times), alpha, rtol=1e-6)
    np.testing.assert_allclose(process.sigma(times), sigma, rtol=1e-6)
    with jax.enable_x64(True):
        model = models.ExactModel(law, process)
        go = jax.jit(lambda y, z: walk(solvers.DDIM(eta=1.0), process, model, times, y, z))
        ours = np.asarray(go(np.asarray(x[0], float), np.asarray(noise, float)))
    assert np.max(np.abs(ours - x)) < 5e-6 * np.max(np.abs(x))


@pytest.mark.parametrize("stride", [1, 20])
def test_ancestral_sampling_is_that_of_ddpm(stride):
    # Ho et al. (2020), eq. 6 and 7, with the betas of the chain that is walked: the posterior mean and its ("small") variance.
    bar = products("ddpm")
    index = np.arange(200, 0, -stride)
    process = processes.Gaussian(schedule=schedules.Discrete())
    model = models.FunctionModel(clean, process)
    rng = np.random.default_rng(0)
    y, noise = rng.normal(size=(3, 2)), rng.normal(size=(len(index) - 1, 3, 2))
    x, states = y, [y]
    for t, s, z in zip(index[:-1], index[1:], noise, strict=True):
        alpha = bar[t] / bar[s]
        beta = 1 - alpha
        mean = np.sqrt(bar[s]) * beta / (1 - bar[t]) * np.tanh(x) + np.sqrt(alpha) * (1 - bar[s]) / (1 - bar[t]) * x
        x = mean + np.sqrt((1 - bar[s]) / (1 - bar[t]) * beta) * z
        states.append(x)
    times = grids.Explicit(tuple(index)).times(process)
    with jax.enable_x64(True):
        ours = jax.jit(lambda y, z: walk(solvers.DDIM(eta=1.0), process, model, times, y, z))(y, noise)
    np.testing.assert_allclose(ours, states, rtol=1e-9, atol=1e-11)


def clean(y, t, cond=None):
    return jax.numpy.tanh(y)


def test_every_grid_ends_with_a_denoising_step():
    process = processes.Gaussian(schedule=schedules.Discrete(steps=50))
    law = models.ExactModel(densities.Gaussian(np.zeros(2), 0.01), process)
    for grid in (grids.Uniform(5), grids.LogSNR(5), grids.Karras(5)):
        times = grid.times(process)
        assert (times[0], times[-2], times[-1]) == (49, 0, -np.inf)
        for solver in (solvers.DDIM(eta=1.0), solvers.Heun(), solvers.DPMSolverPP(order=3)):
            assert np.all(np.isfinite(sample(law, solver=solver, grid=grid, key=KEY, shape=(4, 2)).x))


# Pure noise at the end ---------------------------------------------------------------------------------------------------

M, S = 3.0, 0.5
SHORT = schedules.VPLinear(beta_max=6.0)
PAIRS = [
    (SHORT, schedules.ZeroTerminal(schedule=SHORT)),
    (schedules.Discrete(beta_end=0.006), schedules.Discrete(beta_end=0.006, zero_terminal=True)),
]


@pytest.mark.filterwarnings("ignore::scorelab.processes.scale.ScaleWarning")
@pytest.mark.parametrize(("plain", "moved"), PAIRS, ids=["continuous", "discrete"])
@pytest.mark.parametrize("solver", [solvers.DDIM(), solvers.DPMSolverPP(order=2, eta=1.0), solvers.Heun()], ids=repr)
def test_a_mean_far_from_zero_is_met_without_a_bias(plain, moved, solver):
    n, found = 20_000, {}
    for schedule in (plain, moved):
        process = processes.Gaussian(schedule=schedule)
        model = models.ExactModel(densities.Gaussian(np.array([M]), S**2), process)
        x = sample(model, solver=solver, grid=grids.Uniform(250), key=KEY, shape=(n, 1), chunk=n).x
        found[schedule] = float(np.mean(np.asarray(x, np.float64)))
    # Four standard errors, and the first-order error of 250 steps in the mean (measured for DDIM: 0.002).
    tolerance = 4 * S / np.sqrt(n) + 0.006
    assert abs(found[moved] - M) < tolerance
    # What is left of the mean in the noise is missing, as the flow of a Gaussian says; noise forgets some of it.
    delta = prior_error(processes.Gaussian(schedule=plain), plain.t_max, mean=M, std=S)[0]
    expected = M - S * delta
    assert abs(expected - M) > 2 * tolerance
    if not solver.stochastic:
        assert abs(found[plain] - expected) < tolerance


@pytest.mark.parametrize("schedule", [moved for _, moved in PAIRS], ids=["continuous", "discrete"])
def test_the_first_step_is_finite_from_pure_noise(schedule):
    process = processes.Gaussian(schedule=schedule)
    assert process.alpha(np.float64(process.t_max)) == 0
    assert float(jax.jit(process.alpha)(np.float32(process.t_max))) == 0
    assert process.sigma(np.float64(process.t_max)) == pytest.approx(1, abs=1e-15)
    times = grids.Uniform(8).times(process)
    deterministic = (solvers.DDIM(), solvers.DPMSolverPP(order=3), solvers.UniPC(), solvers.DEIS(), solvers.Heun())
    for solver in (*deterministic, solvers.DDIM(eta=1.0)):
        for column in jax.tree.leaves(solver.table(process, times)._replace(t=times[0])):
            assert np.all(np.isfinite(column)), solver


@pytest.mark.parametrize("schedule", [moved for _, moved in PAIRS], ids=["continuous", "discrete"])
def test_the_flow_goes_up_to_pure_noise(schedule):
    # Its rates are finite there, so that the likelihood is that of the law at t_min, and the latent of a point its quantile.
    process = processes.Gaussian(schedule=schedule)
    end, h = np.float64(process.t_max), 1e-6 * process.t_max
    for rate, function in ((process.d_alpha, process.alpha), (process.d_sigma, process.sigma)):
        # The slope of a secant: off by h times the curvature.
        assert rate(end) == pytest.approx((function(end) - function(end - h)) / h, rel=1e-4, abs=1e-4 / process.t_max)
    model = models.ExactModel(densities.Gaussian(np.array([M]), S**2), process)
    x = np.array([[2.0], [3.0], [3.7]], np.float32)
    alpha, sigma = (float(f(np.float64(process.t_min))) for f in (process.alpha, process.sigma))
    exact = stats.norm(alpha * M, np.hypot(alpha * S, sigma))
    found = log_likelihood(model, x)
    # An adaptive step over a kink of the table is off by more than it knows: 1e-2 at these tolerances, 1e-4 at 1e-8 (measured).
    atol = 0.02 if isinstance(schedule, schedules.Discrete) else 2e-3
    np.testing.assert_allclose(found.log_prob, exact.logpdf(x[:, 0]), atol=atol)
    np.testing.assert_allclose(found.latent[:, 0], (x[:, 0] - exact.mean()) / exact.std(), atol=atol)


@pytest.mark.parametrize("schedule", [moved for _, moved in PAIRS], ids=["continuous", "discrete"])
def test_noise_cannot_be_predicted_from_pure_noise(schedule):
    process = processes.Gaussian(schedule=schedule)
    net = models.nets.MLP(width=4, depth=1)
    with pytest.raises(ValueError, match="alpha is 0 at t_max"):
        models.Denoiser(net=net, process=process, predict="eps")
    y = np.ones((2, 3), np.float32)
    for predict in ("v", "x0", "flow", "edm"):
        denoiser = models.Denoiser(net=net, process=process, predict=predict)
        out = jax.jit(lambda p, d=denoiser: d.bind(p)(y, np.float32(process.t_max)))(denoiser.init(KEY, (3,)))
        assert np.all(np.isfinite([out.denoised, out.eps]))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: schedules.Discrete(alphas_cumprod="sigmoid"), "alphas_cumprod = 'sigmoid': expected one of 'linear', 'scaled"),
        (lambda: schedules.Discrete(alphas_cumprod=(0.9, 0.95, 0.5)), "expected one of .*decreasing numbers in"),
        (lambda: schedules.Discrete(alphas_cumprod=(0.9, 0.5, 0.0)), "decreasing numbers in"),
        *(
            (
                lambda bad=bad: schedules.Discrete(alphas_cumprod=bad),
                r"Discrete\.alphas_cumprod = .*three or more decreasing numbers",
            )
            for bad in (5, None, (), (0.9, 0.5), [0.9, "a", 0.1], ((0.9, 0.5), 0.1, 0.05), np.array([0.9, 0.5, 0.1], complex))
        ),
        (lambda: jax.jit(lambda bar: schedules.Discrete(alphas_cumprod=bar).levels())(np.array([0.9, 0.5, 0.1])), "alphas_cumprod"),
        (lambda: schedules.Discrete(alphas_cumprod=(0.9, 0.5, 0.1), steps=4), "Discrete.steps = 4 with 3 numbers"),
        (lambda: schedules.Discrete(steps=2), r"Discrete\.steps = 2"),
        (lambda: schedules.Discrete(alphas_cumprod="squaredcos_cap_v2", beta_end=0.1), "Discrete.beta_end = 0.1: expected None"),
        (lambda: schedules.Discrete(beta_start=1.5), r"Discrete\.beta_start = 1\.5"),
        (lambda: schedules.Discrete(zero_terminal=1), "zero_terminal = 1"),
        (lambda: schedules.ZeroTerminal(schedule=schedules.EDM()), "ZeroTerminal.schedule = EDM.*variance-preserving"),
        (lambda: schedules.ZeroTerminal(schedule=schedules.RectifiedFlow()), "variance-preserving"),
        (lambda: schedules.ZeroTerminal(schedule=schedules.Discrete()), r"Discrete\(zero_terminal=True\)"),
    ],
)
def test_what_is_refused_says_what_is_accepted(make, match):
    with pytest.raises(ValueError, match=match):
        make()


class Elsewhere:
    """An array of another library, which NumPy reads by its protocol."""

    def __array__(self, dtype=None, copy=None):
        return np.asarray([0.75, 0.5, 0.125], dtype)


@pytest.mark.parametrize("given", [jnp.array([0.75, 0.5, 0.125]), np.array([0.75, 0.5, 0.125]), [0.75, 0.5, 0.125], Elsewhere()])
def test_any_array_of_numbers_is_a_table(given):
    # The numbers are exact in float32.
    assert schedules.Discrete(alphas_cumprod=given) == schedules.Discrete(alphas_cumprod=(0.75, 0.5, 0.125))


@pytest.mark.parametrize(
    ("sets", "schedule"),
    [
        (("schedules.Discrete.alphas_cumprod = 'scaled_linear'", "schedules.Discrete.beta_start = 0.00085",
          "schedules.Discrete.beta_end = 0.012"), schedules.Discrete(**SD)),
        (("schedules.Discrete.zero_terminal = True",), schedules.Discrete(zero_terminal=True)),
        (("schedules.Discrete.alphas_cumprod = (0.9, 0.5, 0.1)",), schedules.Discrete(alphas_cumprod=(0.9, 0.5, 0.1))),
        (("schedules.ZeroTerminal.schedule = @schedules.VPCosine()",), schedules.ZeroTerminal(schedule=schedules.VPCosine())),
    ],
    ids=str,
)  # fmt: skip
def test_a_config_builds_it(sets, schedule):
    kind = type(schedule).__name__
    chosen = (f"processes.Gaussian.schedule = @schedules.{kind}()", "models.Denoiser.predict = 'v'", *sets)
    assert config.load("toys/rings", (*TINY, *chosen)).experiment.process == processes.Gaussian(schedule=schedule)
