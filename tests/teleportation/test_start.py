"""Teleport as a start: the same noise, the tail of the same grid, any solver, no model call."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, grids, likelihood, models, processes, sample, sampling, schedules, solvers, starts

from ..contracts.members import DETERMINISTIC, SOLVERS
from .targets import EDM, FLOW, LOG, VP, covariance, spectrum

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(4)
MEAN, BASIS, VARIANCES = spectrum(6, high=4.0, low=1e-3, seed=2)
LAW = densities.Gaussian(MEAN, covariance(BASIS, VARIANCES))
ONE_CLASS = densities.GaussianMixture.of([1.0], [LAW])
VE = processes.Gaussian(schedule=schedules.VE(sigma_min=0.02, sigma_max=40.0))
GRIDS = {EDM: grids.Karras(12), VE: grids.Karras(12), VP: grids.LogSNR(12), FLOW: grids.Uniform(12), LOG: grids.Uniform(12)}


@functools.partial(jax.jit, static_argnums=(1, 3, 4))
def flow(law, process, y, s, t):
    return law.flow(process, y, float(s), float(t))


def run(process=EDM, solver=None, grid=None, start=None, n=16, law=LAW, **options):
    solver = solvers.Heun() if solver is None else solver
    grid = GRIDS[process] if grid is None else grid
    model = options.pop("model", models.ExactModel(law, process))
    return sample(model, solver=solver, grid=grid, start=start, key=KEY, shape=(n, *law.event), **options)


@pytest.mark.filterwarnings("ignore::scorelab.starts.TeleportWarning")
@pytest.mark.parametrize("process", GRIDS, ids=repr)
def test_the_jump_takes_the_same_noise_along_the_flow_of_the_law(process):
    out = run(process, solvers.DDIM(), start=starts.Teleport(LAW, skip_steps=4), keep="all")
    plain = run(process, solvers.DDIM(), keep="all")
    times = GRIDS[process].times(process)
    np.testing.assert_array_equal(out.times, times[4:])
    begun = process.encode(plain.trajectory[0])
    landed = flow(LAW, process, begun, times[0], times[4])
    # exp and log of the multiplicative chart cost some float32 digits.
    np.testing.assert_allclose(process.encode(out.trajectory[0]), landed, rtol=2e-5, atol=2e-5 * float(np.abs(landed).max()))


def test_no_jump_is_the_plain_start_bit_for_bit():
    plain = run()
    np.testing.assert_array_equal(run(start=starts.Teleport(LAW, skip_steps=0)).x, plain.x)
    for sigma_skip in (1000.0, 75.0):
        with pytest.warns(starts.TeleportWarning, match="over no step"):
            np.testing.assert_array_equal(run(start=starts.Teleport(LAW, sigma_skip)).x, plain.x)
    with pytest.raises(ValueError, match=r"points of shape \(5,\)"):
        run(start=starts.Teleport(densities.Gaussian(np.zeros(5), 1.0), skip_steps=0))


@pytest.mark.parametrize("skip", [0, 4, *(pytest.param(skip, marks=pytest.mark.long) for skip in (1, 5, 11))])
def test_a_jump_costs_no_model_call(skip):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", starts.TeleportWarning)
        assert run(start=starts.Teleport(LAW, skip_steps=skip)).diagnostics["model_calls"] == 2 * (12 - skip) - 1


def test_the_rest_of_a_karras_grid_is_a_karras_grid():
    times = grids.Karras(18).times(EDM)
    np.testing.assert_allclose(grids.Karras(13, t_max=times[5]).times(EDM), times[5:], rtol=1e-9)


def test_a_short_grid_can_begin_where_the_jump_ends():
    # The noise enters at 80 whatever the grid: the same samples as the tail of the long grid.
    grid = grids.Karras(12)
    short = grids.Karras(8, t_max=float(grid.times(EDM)[4]))
    tail = run(start=starts.Teleport(LAW, skip_steps=4))
    again = run(grid=short, start=starts.Teleport(LAW, skip_steps=0, t_from=80.0))
    np.testing.assert_allclose(again.x, tail.x, rtol=1e-5, atol=1e-6)


# A solver sees the tail of the grid and nothing else; those with a memory and with noise say so, and the others in the long tail.
SOME = [solvers.DPMSolverPP(order=3), solvers.UniPC(predictor_order=3), solvers.EulerMaruyama()]


@pytest.mark.parametrize("solver", [s if s in SOME else pytest.param(s, marks=pytest.mark.long) for s in SOLVERS], ids=repr)
def test_every_solver_goes_on_from_the_jump(solver):
    # The tail from the landing point is what the solver does from there by itself: no history of the steps jumped over.
    grid = grids.Karras(12, clean=True)
    out = run(solver=solver, start=starts.Teleport(LAW, skip_steps=4), keep="all")
    landed = np.asarray(out.trajectory[0])
    alone = run(solver=solver, grid=grids.Explicit(tuple(grid.times(EDM)[4:])), start=starts.Fixed(landed))
    np.testing.assert_allclose(out.x, alone.x, rtol=1e-4, atol=1e-5)


SECOND = [s for s, order in DETERMINISTIC.items() if order == 2]


@pytest.mark.parametrize(
    "solver", [s if s == solvers.Heun() else pytest.param(s, marks=pytest.mark.long) for s in SECOND], ids=repr
)
def test_with_a_gaussian_model_a_jump_only_removes_error(solver):
    errors = {}
    for skip in (0, 4):
        out = run(solver=solver, start=starts.Teleport(LAW, skip_steps=skip))
        exact = flow(LAW, EDM, 80.0 * _noise(), 80.0, 0.0)
        errors[skip] = float(jnp.sqrt(jnp.mean((out.x - exact) ** 2)))
    assert errors[4] < errors[0]


def _noise(n=16):
    """The noise of the runs above in units of sigma, from the trajectory of a plain one."""
    return np.asarray(run(keep="all", n=n).trajectory[0]) / np.float32(80.0)


# Without a jump it is that of the contract of solvers.
@pytest.mark.parametrize("fraction", [pytest.param(0, marks=pytest.mark.long), 4])
def test_the_order_of_heun_stays(fraction):
    # Slopes were 2.16 to 2.01 on 36 to 576 steps; the jump itself is exact.
    with jax.enable_x64(True):
        law = densities.Gaussian(MEAN, covariance(BASIS, VARIANCES))
        model, y = models.ExactModel(law, EDM), 80.0 * np.random.default_rng(0).normal(size=(8, 6))
        exact = flow(law, EDM, y, 80.0, 0.0)
        errors = []
        for steps in (48, 96, 192):
            skip = steps // fraction if fraction else 0
            start = starts.Teleport(law, skip_steps=skip, start=starts.Fixed(y))
            out = sample(model, solver=solvers.Heun(), grid=grids.Karras(steps), start=start, key=KEY, shape=y.shape)
            errors.append(float(jnp.sqrt(jnp.mean((out.x - exact) ** 2))))
    slopes = np.diff(np.log2(errors))
    assert np.all((slopes < -1.8) & (slopes > -2.3))


@pytest.mark.parametrize("process", [EDM, VP], ids=repr)
def test_float32_is_within_1e_5_of_float64(process):
    mean, basis, variances = spectrum(64, high=20.0, low=1e-6, seed=1)
    s, t = (80.0, 5.0) if process is EDM else (1.0, 0.3)
    y = float(process.sigma(s)) * np.random.default_rng(0).normal(size=(32, 64))
    single = np.asarray(flow(densities.Gaussian(mean, covariance(basis, variances)), process, y.astype(np.float32), s, t))
    with jax.enable_x64(True):
        double = np.asarray(flow(densities.Gaussian(mean, covariance(basis, variances)), process, y, s, t))
    error = np.max(np.abs(single - double)) / np.max(np.abs(double))
    assert error < 1e-5


def test_a_grid_may_begin_above_the_process():
    grid = grids.Karras(12, t_max=100.0)
    out = run(grid=grid, start=starts.Teleport(LAW, skip_steps=4), keep="all")
    landed = flow(LAW, EDM, run(grid=grid, keep="all").trajectory[0], 100.0, out.times[0])
    np.testing.assert_allclose(out.trajectory[0], landed, rtol=1e-5, atol=1e-4)


def test_sigma_skip_names_the_last_grid_time_at_or_above_it():
    times = grids.Karras(18).times(EDM)
    for start, node in [
        (starts.Teleport(LAW, float(np.float32(times[5]))), 5), (starts.Teleport(LAW, 0.99 * times[5]), 5),
        (starts.Teleport(LAW, 1.01 * times[5]), 4), (starts.Teleport(LAW, 1e-9), 17),
    ]:  # fmt: skip
        assert start.steps_over(EDM, times) == node
    # The same noise ratio on every process, in units of the data.
    vp = grids.LogSNR(50).times(VP)
    node = starts.Teleport(LAW, 5.0).steps_over(VP, vp)
    assert VP.noise_ratio(vp[node]) >= 5.0 > VP.noise_ratio(vp[node + 1])


def test_auto_goes_to_three_standard_deviations():
    times = grids.Karras(60).times(EDM)
    node = starts.Teleport(LAW).steps_over(EDM, times)
    assert times[node] >= 3 * 2.0 > times[node + 1]  # the largest standard deviation of LAW is 2
    wide = densities.GaussianMixture.of([1, 1], [LAW, LAW.affine(2.0)])
    node = starts.Teleport(wide, label=np.zeros(4, int)).steps_over(EDM, times)
    assert times[node] >= 3 * 4.0 > times[node + 1]


# Classes ------------------------------------------------------------------------------------------------------------


def test_one_class_is_no_class():
    start = starts.Teleport(ONE_CLASS, skip_steps=4, label=np.zeros(16, int))
    np.testing.assert_array_equal(run(start=start).x, run(start=starts.Teleport(LAW, skip_steps=4)).x)


def test_each_sample_follows_its_class_whatever_the_batch():
    moved = LAW.affine(0.5, 3.0)
    label = np.arange(20) % 2
    start = starts.Teleport(densities.GaussianMixture.of([1.0, 3.0], [LAW, moved]), skip_steps=4, label=label)
    out = run(start=start, n=20, keep="all")
    y, times = np.asarray(run(n=20, keep="all").trajectory[0]), grids.Karras(12).times(EDM)
    for k, law in enumerate((LAW, moved)):
        landed = flow(law, EDM, y[label == k], times[0], times[4])
        np.testing.assert_allclose(np.asarray(out.trajectory[0])[label == k], landed, rtol=1e-5, atol=1e-4)
    alone = run(start=start, n=3, ids=np.array([17, 2, 5]), keep="all", chunk=3)
    np.testing.assert_allclose(alone.trajectory[0], np.asarray(out.trajectory[0])[[17, 2, 5]], rtol=1e-5, atol=1e-4)


# Laws ---------------------------------------------------------------------------------------------------------------


def test_log_prob_is_that_of_the_linear_map():
    times = grids.Karras(12).times(EDM)
    start, rest = starts.Teleport(LAW, skip_steps=4).on_grid(EDM, times)
    y = jnp.asarray(5 * np.random.default_rng(0).normal(size=(7, 6)), jnp.float32)
    gains = np.sqrt((VARIANCES + times[4] ** 2) / (VARIANCES + times[0] ** 2))
    mean = MEAN - covariance(BASIS, gains) @ MEAN
    expected = stats.multivariate_normal(mean, covariance(BASIS, (80.0 * gains) ** 2)).logpdf(y)
    np.testing.assert_allclose(start.log_prob(y, EDM, rest[0]), expected, rtol=1e-5)


def test_from_the_noised_law_it_lands_on_the_noised_law():
    # In the log chart: log x at the landing time is N(m + b, C + v I), by the moments of 40,000 samples.
    n, times = 40_000, grids.Uniform(12).times(LOG)
    start = starts.Teleport(LAW, skip_steps=6, start=starts.GaussianMoments(LAW))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", starts.TeleportWarning)
        start, rest = start.on_grid(LOG, times)
    y = np.asarray(start.draw(jax.random.split(KEY, n), jnp.arange(n), LOG, jnp.float32(rest[0]), (6,)), np.float64)
    exact = LAW.noised(LOG, rest[0])
    cov = np.asarray(exact.covariance(), np.float64)
    assert np.all(np.abs(y.mean(0) - exact.mean) < 4 * np.sqrt(np.diag(cov) / n))
    # The relative Frobenius error of a covariance is at most sqrt((tr(C)^2 / |C|^2 + 1) / n), here 1.3 %.
    assert np.linalg.norm(np.cov(y.T) - cov) < 0.03 * np.linalg.norm(cov)


@pytest.mark.parametrize("noised", [False, pytest.param(True, marks=pytest.mark.long)], ids=["prior", "noised-law"])
def test_the_likelihood_of_a_teleported_sampler(noised):
    # The flow of a Gaussian model from clean data to the landing, then the jump back to the noise: the exact density.
    t = 6.0
    start = starts.Teleport(LAW, skip_steps=0, t_from=80.0)
    x = LAW.sample(KEY, 5)
    model, options = models.ExactModel(LAW, EDM), dict(t_max=t, rtol=1e-6, atol=1e-6)
    if noised:
        start = dataclasses.replace(start, start=starts.GaussianMoments(LAW))
        exact = LAW.noised(EDM, EDM.t_min).log_prob(x)
    else:
        back = flow(LAW, EDM, x, EDM.t_min, 80.0)
        exact = starts.Prior().log_prob(back, EDM, jnp.float32(80.0)) + LAW.flow_log_det(EDM, EDM.t_min, 80.0)
    found = likelihood.log_likelihood(model, x, start=start, **options)
    np.testing.assert_allclose(found.log_prob, exact, atol=2e-3)
    with pytest.raises(ValueError, match="without a grid to cut"):
        likelihood.log_likelihood(models.ExactModel(LAW, EDM), x, start=starts.Teleport(LAW, 6.0))
    with pytest.raises(ValueError, match="with a mixture"):
        starts.Teleport(ONE_CLASS, skip_steps=0, label=np.zeros(5, int), t_from=80.0).log_prob(x, EDM, jnp.float32(t))


def test_gradients_and_batches_of_laws():
    def mean_of_samples(shift):
        law = densities.Gaussian.low_rank(MEAN, BASIS, VARIANCES)
        law = jax.tree.unflatten(jax.tree.structure(law), [law.mean + shift, *jax.tree.leaves(law)[1:]])
        start = starts.Teleport(law, 9.0)
        options = dict(solver=solvers.DDIM(), grid=grids.Karras(6), key=KEY, shape=(2, 6), check_finite=False)
        return jnp.mean(sample(models.ExactModel(LAW, EDM), start=start, **options).x)

    values = jax.jit(jax.vmap(mean_of_samples))(np.array([0.0, 1.0], np.float32))
    slope = jax.jit(jax.grad(mean_of_samples))(0.0)
    # Everything is linear in the mean of the law.
    np.testing.assert_allclose(slope, values[1] - values[0], rtol=1e-3)
    assert float(slope) > 1e-3


def test_another_law_compiles_nothing():
    run(start=starts.Teleport(LAW, skip_steps=4))
    before = sampling._walk._cache_size()
    run(start=starts.Teleport(LAW.affine(1.1, 0.2), skip_steps=4))
    assert sampling._walk._cache_size() == before


def test_signed_data_jump_in_magnitude():
    signed = processes.GeometricBrownianMotion(sigma=2.0, signed=True)
    pattern = np.array([1, -1, 1, 1, -1, -1])
    start = starts.Signed(starts.Teleport(LAW, skip_steps=5), pattern)
    with pytest.warns(starts.TeleportWarning):
        out = run(signed, grid=grids.Uniform(12), start=start, keep="all")
    plain = run(signed, grid=grids.Uniform(12), start=starts.Signed(starts.Prior(), pattern), keep="all")
    np.testing.assert_array_equal(np.sign(out.x), np.broadcast_to(pattern, out.x.shape))
    landed = flow(LAW, signed, np.log(np.abs(plain.trajectory[0])), plain.times[0], out.times[0])
    assert len(out.times) == 8
    np.testing.assert_allclose(np.log(np.abs(out.trajectory[0])), landed, rtol=1e-4, atol=1e-4)


# What is refused, and what is warned about ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: starts.Teleport(LAW, None), "exactly one"),
        (lambda: starts.Teleport(LAW, 5.0, skip_steps=2), "exactly one"),
        (lambda: starts.Teleport(LAW, -1.0), "sigma_skip = -1.0: expected a finite number above 0"),
        (lambda: starts.Teleport(LAW, skip_steps=-1), "skip_steps = -1"),
        (lambda: run(start=starts.Teleport(LAW, skip_steps=12)), "skip_steps = 12 on a grid of 12 steps: expected at most 11"),
        (lambda: run(start=starts.Teleport(LAW, skip_steps=2, t_from=10.0)), "t_from = 10.0"),
        (lambda: run(start=starts.Teleport(LAW, skip_steps=2, t_from=90.0)), "t_from = 90.0: expected 80.0, the first grid time"),
        (lambda: starts.Teleport(LAW, skip_steps=2, start=starts.Teleport(LAW, skip_steps=3)), "a start without a jump"),
        (lambda: starts.Teleport(LAW, 5.0, start=starts.Signed(starts.Prior(), np.ones(6))), "without signs"),
        (lambda: run(start=starts.Teleport(densities.Gaussian(np.zeros(5), 1.0), 9.0)), r"points of shape \(5,\)"),
        (lambda: run(start=starts.Teleport(ONE_CLASS, 9.0)), "label = None with a GaussianMixture"),
        (lambda: run(start=starts.Teleport(LAW, 9.0, label=np.zeros(16, int))), "with a Gaussian: expected None"),
        (
            lambda: run(start=starts.Teleport(ONE_CLASS, 9.0, label=np.ones(16, int))),
            "values 1 to 1: expected 0 to 0",
        ),
        (
            lambda: run(start=starts.Teleport(ONE_CLASS, 9.0, label=np.zeros(3, int))),
            r"expected integers \(n,\) with n >= 16",
        ),
    ],
)
def test_bad_jumps_are_named(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_law_that_is_no_gaussian_is_refused():
    with pytest.raises(TypeError, match="expected a Gaussian or GaussianMixture"):
        run(start=starts.Teleport(densities.Empirical(np.zeros((3, 6))), 9.0))


@dataclasses.dataclass(frozen=True)
class Late(starts.Prior):
    """Noise that begins one step later."""

    def on_grid(self, process, times):
        return self, times[1:]


def test_a_start_whose_weights_or_steps_the_jump_would_lose_is_refused():
    times = GRIDS[EDM].times(EDM)
    with pytest.raises(ValueError, match=r"Teleport.start = Tempered.*: expected a start without weights"):
        run(start=starts.Teleport(LAW, skip_steps=4, start=starts.Tempered(exponents=(2.0,))))
    with pytest.raises(ValueError, match=r"Teleport.start = Late\(\): expected a start that skips no part"):
        starts.Teleport(LAW, skip_steps=4, start=Late()).on_grid(EDM, times)


def test_a_start_says_of_itself_what_it_says_without_a_jump():
    other = densities.Gaussian(MEAN + 60.0, covariance(BASIS, VARIANCES))
    with pytest.warns(processes.ScaleWarning, match="the law of the start has mean"):
        begin(starts.Teleport(LAW, skip_steps=4, start=starts.Noised(other)), EXACT)


@pytest.mark.parametrize(("deviations", "warned"), [(1.9, True), (2.1, False)])
def test_a_jump_to_where_data_is_not_gaussian_is_warned_about(deviations, warned):
    times = np.array([80.0, 2.0 * deviations, 1.0, 0.0])  # the largest standard deviation of LAW is 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        starts.Teleport(LAW, skip_steps=1).on_grid(EDM, times)
    assert any("below 2 times the largest standard deviation" in str(w.message) for w in caught) == warned
    assert len(caught) == warned


EXACT = models.ExactModel(LAW, EDM)
GUIDED = models.ClassifierFreeGuidance(model=EXACT, scale=2.0, unconditional=EXACT)


def begin(start, model, cond=None):
    """What a walk says before it begins."""
    start, times = start.on_grid(EDM, grids.Karras(12).times(EDM))
    start.suit("sample", model, float(times[0]), cond)


@pytest.mark.parametrize(
    ("model", "warned"),
    [
        (GUIDED, True),
        (dataclasses.replace(GUIDED, interval=(0.0, 5.0)), False),
        (dataclasses.replace(GUIDED, interval=(90.0, 100.0)), False),
        (dataclasses.replace(GUIDED, scale=1.0), False),
        (models.Conditioned(model=GUIDED), True),
        (models.Autoguidance(model=EXACT, weak=EXACT, scale=jnp.full(16, 3.0)), True),
        (models.RewardGradient(model=EXACT, reward=lambda x: 5 * x[:, 0]), True),
        (models.Clipped(model=EXACT, low=-0.1, high=0.1), True),
        (models.Clipped(model=dataclasses.replace(GUIDED, scale=1.0)), True),
        (models.Conditioned(model=models.Conditioned(model=GUIDED)), True),
        (models.ClassifierFreeGuidance(model=models.RewardGradient(model=EXACT, reward=lambda x: x[:, 0])), True),
        (models.Conditioned(model=dataclasses.replace(GUIDED, scale=1.0)), False),
    ],
)
def test_guidance_or_bounds_that_act_during_the_jump_is_warned_about(model, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        begin(starts.Teleport(LAW, skip_steps=4), model)
    assert any("is active: the jump follows the law without it" in str(w.message) for w in caught) == warned
    assert len(caught) == warned


def test_conditions_without_classes_are_warned_about():
    cond = np.zeros(16, np.int32)
    with pytest.warns(starts.TeleportWarning, match="the law of all data"):
        jax.eval_shape(lambda: run(start=starts.Teleport(LAW, skip_steps=4), cond=cond).x)
    with pytest.warns(starts.TeleportWarning, match="the law of all data"):
        begin(starts.Teleport(LAW, skip_steps=4), models.Conditioned(model=EXACT, cond=np.int32(3)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin(starts.Teleport(ONE_CLASS, skip_steps=4, label=cond), EXACT, cond)
