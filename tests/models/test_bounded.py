"""Bounds of the denoised mean: nothing where they hold the data, a bias in closed form where they do not; and rescaled guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import scorelab as sl
from scorelab import config, densities, diagnostics, fk, grids, models, processes, sample, schedules, solvers, starts
from scorelab.experiment import Sample
from scorelab.experiment.checks import check
from tests.precision import double
from tests.run.conftest import TINY

pytestmark = pytest.mark.usefixtures("quick_compilation")

VP = processes.Gaussian(schedule=schedules.VPLinear())
EDM = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.01))
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
LOG = processes.GeometricBrownianMotion(sigma=2.0, mu=0.7)  # the offset is not 0
TIMES = {VP: (0.05, 0.4, 0.9), EDM: (0.02, 0.5, 20.0), FLOW: (0.05, 0.5, 1.0), LOG: (0.01, 0.3, 0.9)}
KEY = jax.random.key(3)


def points(*shape, seed=3):
    return np.random.default_rng(seed).normal(size=shape)


def wide(process, d=5):
    """An exact model of a law much wider than one."""
    return models.ExactModel(densities.Gaussian(np.linspace(-1, 2, d), 4.0), process)


def pulled(model, scale=0.7):
    return models.RewardGradient(model=model, reward=lambda x: jnp.sum(x, -1), scale=scale)


def wrappers(model):
    return [
        models.Clipped(model=model, low=-0.5, high=1.5),
        models.DynamicThreshold(model=model, quantile=0.6, size=0.8),
        models.ClassifierFreeGuidance(
            model=model, unconditional=models.FunctionModel(small, model.process), scale=3.0, rescale=0.7
        ),
    ]


def small(y, t, cond=None):
    return 0.9 * jnp.tanh(y)


def equal(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


# What all have in common ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", TIMES, ids=repr)
@double
def test_the_pair_is_one_of_the_point(process):
    y, t = 3 * points(3, 5), np.array(TIMES[process])
    alpha, sigma, offset = (np.asarray(f(t))[:, None] for f in (process.alpha, process.sigma, process.offset))
    whole = wrappers(wide(process))
    for out, plain in jax.jit(lambda: [(model(y, t), model.model(y, t)) for model in whole])():
        np.testing.assert_allclose(alpha * out.denoised + offset + sigma * out.eps, y, rtol=1e-9)
        assert np.max(np.abs(out.denoised - plain.denoised)) > 0.1


@double
def test_guided_predictions_keep_what_they_are_made_of():
    y, t = 3 * points(4, 5), 0.4
    model = wide(VP)
    for guided, plain in zip(wrappers(pulled(model)), wrappers(model), strict=True):
        found, base = jax.jit(lambda g=guided, p=plain: (g(y, t), p(y, t)))()
        assert isinstance(found, models.GuidedPrediction)
        np.testing.assert_allclose(found.base.denoised, base.denoised, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.score, found.base.score + found.gradient, rtol=1e-9, atol=1e-12)
        assert not isinstance(found.base, models.GuidedPrediction)
    # Where the bounds do nothing, the gradient is that of the model.
    far = models.Clipped(model=pulled(model), low=-1e6, high=1e6)
    np.testing.assert_allclose(far(y, t).gradient, pulled(model)(y, t).gradient, rtol=1e-9)


def test_weighted_particles_of_a_guided_model_in_bounds_have_the_law_without_guidance():
    # The weights undo the pull, whatever it is: averages are those of the chain in bounds that is not pulled.
    n, law = 8_000, densities.Gaussian(np.array([0.2]), 1.5)
    chain = dict(grid=grids.LogSNR(12, t_min=0.05), key=KEY, shape=(n, 1))
    model = models.ExactModel(law, VP)
    plain = sample(models.Clipped(model=model), solver=solvers.DDIM(eta=1.0), **chain)
    weighted = fk.FeynmanKac(base=solvers.DDIM(eta=1.0), policy=fk.Never())
    out = sample(models.Clipped(model=pulled(model, 0.3)), solver=weighted, **chain)
    weights = np.exp(out.log_weights - np.max(out.log_weights))
    weights /= weights.sum()
    x, w = np.asarray(out.x[:, 0], np.float64), np.asarray(weights, np.float64)
    exact = np.asarray(plain.x[:, 0], np.float64)
    for moment in (lambda x: x, np.square):
        value = np.sum(w * moment(x))
        error = np.sqrt(np.sum(w**2 * (moment(x) - value) ** 2) + np.var(moment(exact)) / n)
        assert abs(value - np.mean(moment(exact))) < 4 * error
    # The pull by itself moves the mean by far more than that.
    assert np.mean(x) - np.mean(exact) > 8 * np.std(exact) / np.sqrt(n)


# Clipping ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", TIMES, ids=repr)
def test_inside_the_bounds_nothing_changes(process):
    # All atoms lie in the box, so every denoised mean does.
    rng = np.random.default_rng(0)
    exact = models.ExactModel(densities.Empirical(rng.uniform(-0.9, 0.9, (20, 5)).astype(np.float32)), process)
    for model in (exact, models.FunctionModel(small, process)):
        for bounded in (models.Clipped(model=model), models.DynamicThreshold(model=model)):
            for t in TIMES[process]:
                y = points(6, 5).astype(np.float32)
                plain, out, moved = jax.jit(lambda y, b=bounded, t=t: (b.model(y, t), b(y, t), b.moved(y, t)))(y)
                assert np.all(np.isfinite(plain.denoised))
                assert equal((out.denoised, out.eps), (plain.denoised, plain.eps))
                assert not np.any(moved)


LOW, HIGH, MEAN, STD = -0.8, 1.0, 0.3, 1.1


def clipped_moments():
    """Mean and variance of a normal variable that is clipped."""
    a, b = (LOW - MEAN) / STD, (HIGH - MEAN) / STD
    inside = stats.truncnorm(a, b, loc=MEAN, scale=STD)
    below, above = stats.norm.cdf(a), stats.norm.sf(b)
    part = 1 - below - above
    mean = below * LOW + above * HIGH + part * inside.mean()
    square = below * LOW**2 + above * HIGH**2 + part * inside.moment(2)
    return mean, square - mean**2


@pytest.mark.parametrize("process", [EDM, VP], ids=repr)
def test_clipping_gives_the_clipped_law_and_not_the_law(process, optimised):
    # Along the flow of a normal law |D - m| grows; where D meets the bound it stays there, and y goes straight to it.
    n, law = 20_000, densities.Gaussian(np.array([MEAN]), STD**2)
    model = models.ExactModel(law, process)
    clipped = models.Clipped(model=model, low=LOW, high=HIGH)
    start = sl.starts.GaussianMoments(law)
    options = dict(solver=solvers.Heun(), grid=grids.Karras(60), key=KEY, shape=(n, 1), start=start)
    plain, out = sample(model, **options), sample(clipped, keep="all", **options)
    # The kink costs Heun its second order: a step over it is off by the square of its length, a hundredth here.
    np.testing.assert_allclose(out.x, np.clip(plain.x, LOW, HIGH), atol=0.02)
    mean, variance = clipped_moments()
    x = np.asarray(out.x, np.float64)
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / n) + 0.005
    assert abs(x.var() - variance) < 4 * variance * np.sqrt(2 / n) + 0.005
    # The bias, and what tells of it.
    assert variance < 0.5 * STD**2
    share = diagnostics.bounded_along(clipped, out)
    outside = stats.norm.cdf((LOW - MEAN) / STD) + stats.norm.sf((HIGH - MEAN) / STD)
    assert share.shape == (60, n)
    assert abs(share[-1].mean() - outside) < 4 * np.sqrt(outside * (1 - outside) / n) + 0.002
    assert share[0].mean() < 0.01


@pytest.mark.filterwarnings("ignore::scorelab.processes.scale.ScaleWarning")
def test_one_step_gives_the_clipped_mean():
    # One step from noise is D itself: under N(m, s^2) and y = sigma z, a normal variable that is clipped.
    process, n = EDM, 20_000
    model = models.Clipped(model=models.ExactModel(densities.Gaussian(np.array([0.0]), 4.0), process), low=-1.0, high=1.0)
    grid = grids.Explicit((3.0,), clean=True)
    x = np.asarray(sample(model, solver=solvers.DDIM(), grid=grid, key=KEY, shape=(n, 1)).x, np.float64)
    spread = 4.0 / 13.0 * 3.0
    inside = stats.truncnorm(-1 / spread, 1 / spread, scale=spread)
    out = 2 * stats.norm.sf(1 / spread)
    variance = out + (1 - out) * inside.var()
    assert abs(np.var(x) - variance) < 4 * np.sqrt(2 / n) * variance
    assert abs(np.mean(np.abs(x) == 1) - out) < 4 * np.sqrt(out / n)


def test_the_flow_in_bounds_has_a_density_and_an_inverse():
    process = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.1, sigma_max=40.0))
    law = densities.Gaussian(np.array([MEAN]), STD**2)
    model = models.Clipped(model=models.ExactModel(law, process), low=LOW, high=HIGH)
    x = np.linspace(-3, 3.5, 1301, dtype=np.float32)[:, None]
    found = sl.log_likelihood(model, x, start=sl.starts.GaussianMoments(law), rtol=1e-6, atol=1e-6)
    density = np.exp(np.asarray(found.log_prob, np.float64))
    # The trapezoidal rule over peaks of width 0.1 at both bounds, and kinks that an adaptive step crosses.
    assert np.trapezoid(density, x[:, 0]) == pytest.approx(1, abs=0.01)
    grid = grids.Karras(120)
    data = np.array([[-0.6], [0.1], [0.7]], np.float32)
    z = sl.invert(model, data, solver=solvers.Heun(), grid=grid)
    back = sample(model, solver=solvers.Heun(), grid=grid, key=KEY, shape=(3, 1), start=sl.starts.Fixed(z))
    np.testing.assert_allclose(back.x, data, atol=0.02)


@double
def test_the_bounds_are_those_of_the_chart_and_one_for_each_sample():
    model, y = wide(LOG), 3 * points(4, 5)
    low, high = np.array([-1.0, -0.5, 0.0, 0.5]), np.array([0.0, 0.5, 1.0, 1.5])
    out = models.Clipped(model=model, low=low, high=high)(y, 0.3).denoised
    np.testing.assert_array_equal(out, np.clip(model(y, 0.3).denoised, low[:, None], high[:, None]))
    whole = models.Clipped(model=wide(EDM), low=low, high=high)
    arguments = dict(solver=solvers.DDIM(), grid=grids.Karras(3), key=KEY, shape=(4, 5))
    together, apart = sample(whole, **arguments).x, sample(whole, chunk=3, **arguments).x
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    assert np.all((together >= low[:, None]) & (together <= high[:, None]))


def test_a_law_in_bounds_is_not_the_gaussian_that_it_was_without():
    model = models.ExactModel(densities.Gaussian(np.array([MEAN]), STD**2), EDM)
    clipped = models.Clipped(model=model, low=LOW, high=HIGH)
    np.testing.assert_allclose(model.matched().mean, [MEAN], rtol=1e-6)
    assert clipped.matched() is None
    assert models.Conditioned(model=clipped).matched() is None
    assert clipped.active() == (0.0, np.inf)
    # What is noised has the scale that it had.
    assert clipped.scale() == model.scale()


# Dynamic thresholding --------------------------------------------------------------------------------------------------------


@double
def test_the_threshold_is_the_published_one():
    model, y, t = wide(VP, 50), 3 * points(6, 50), 0.3
    d = np.asarray(model(y, t).denoised)
    for quantile, size, limit in ((0.995, 1.0, None), (0.5, 2.0, 2.5), (1.0, 0.5, 1.0), (1e-6, 3.0, None)):
        s = np.maximum(np.quantile(np.abs(d), quantile, axis=1, keepdims=True), size)
        s = s if limit is None else np.minimum(s, limit)
        expected = np.clip(d, -s, s) / s * size
        found = jax.jit(models.DynamicThreshold(model=model, quantile=quantile, size=size, limit=limit).bound)(d)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert np.max(np.abs(found)) <= size * (1 + 1e-12)
    each = np.linspace(0.2, 1.0, 6)
    found = models.DynamicThreshold(model=model, quantile=each).bound(d)
    alone = [models.DynamicThreshold(model=model, quantile=q).bound(d[i : i + 1])[0] for i, q in enumerate(each)]
    np.testing.assert_allclose(found, np.stack(alone), rtol=1e-12)
    # The largest threshold is the size: clipping.
    equals = models.DynamicThreshold(model=model, size=2.0, limit=2.0)
    np.testing.assert_array_equal(equals.bound(d), np.clip(d, -2.0, 2.0))
    # A sample by itself: another one beside it changes nothing.
    one = models.DynamicThreshold(model=model, quantile=0.9)
    np.testing.assert_array_equal(one.bound(d)[2], one.bound(d[2:3])[0])


# The noise that is kept ------------------------------------------------------------------------------------------------------


@double
def test_the_noise_that_is_kept_is_that_of_the_model_without_bounds():
    # The step of DDIM as it is published (arXiv 2010.02502, eq. 12), of a mean in bounds and a noise without.
    grid = grids.Explicit((0.4, 0.1))
    model = wide(VP)
    y = 3 * points(4, 5)
    prediction = model(y, 0.4)
    bounded = models.Clipped(model=model, low=LOW, high=HIGH)
    chain = dict(grid=grid, key=KEY, shape=y.shape, start=starts.Fixed(y))
    out = sample(bounded, solver=solvers.KeptNoise(solver=solvers.DDIM()), **chain)
    alpha, sigma = VP.alpha(np.float64(0.1)), VP.sigma(np.float64(0.1))
    wanted = alpha * np.clip(prediction.denoised, LOW, HIGH) + sigma * prediction.eps
    np.testing.assert_allclose(out.x, wanted, rtol=1e-12, atol=1e-12)
    follows = sample(bounded, solver=solvers.DDIM(), **chain)
    assert np.max(np.abs(follows.x - out.x)) > 0.1
    # Where nothing is moved the two are the same, up to the rounding of the point.
    far = models.Clipped(model=model, low=-100.0, high=100.0)
    plain, kept = (sample(far, solver=s, **chain).x for s in (solvers.DDIM(), solvers.KeptNoise(solver=solvers.DDIM())))
    np.testing.assert_allclose(plain, kept, rtol=1e-12, atol=1e-12)


def test_kept_noise_is_for_models_in_bounds_and_walks_by_themselves():
    kept = solvers.KeptNoise(solver=solvers.DDIM(eta=1.0))
    chain = dict(grid=grids.Uniform(2), key=KEY, shape=(4, 5))
    with pytest.raises(TypeError, match="KeptNoise with ExactModel: expected a model in bounds"):
        sample(wide(VP), solver=kept, **chain)
    with pytest.raises(TypeError, match=r"KeptNoise got a GaussianPrediction from a solver around it"):
        sample(models.Clipped(model=wide(VP)), solver=fk.FeynmanKac(base=kept, policy=fk.Never()), **chain)
    for solver in (solvers.Heun(), solvers.Diffrax(), kept):
        with pytest.raises(ValueError, match=r"KeptNoise\.solver = .*expected a solver of independent samples"):
            solvers.KeptNoise(solver=solver)
    with pytest.raises(TypeError, match=r"KeptNoise\.solver"):
        solvers.KeptNoise(solver=3)


# Rescaled guidance -----------------------------------------------------------------------------------------------------------


def guidance(w, rescale, kind="cfg", process=VP):
    strong, weak = wide(process, 12), models.FunctionModel(small, process)
    if kind == "cfg":
        return models.ClassifierFreeGuidance(model=strong, unconditional=weak, scale=w, rescale=rescale)
    return models.Autoguidance(model=strong, weak=weak, scale=w, rescale=rescale)


def std(prediction):
    return np.std(np.asarray(prediction.denoised, np.float64), axis=1)


@pytest.mark.parametrize("kind", ["cfg", "auto"])
@double
def test_full_rescaling_gives_the_deviation_of_the_condition(kind):
    y, t = 3 * points(5, 12), 0.4
    plain, out = guidance(4.0, None, kind), guidance(4.0, 1.0, kind)
    strong = plain.model(y, t)
    np.testing.assert_allclose(std(out(y, t)), std(strong), rtol=1e-12)
    assert np.all(std(plain(y, t)) > 1.2 * std(strong))
    # The published mixture, by hand.
    d, share = np.asarray(plain(y, t).denoised), np.array([0.0, 0.3, 0.7, 0.9, 1.0])
    expected = share[:, None] * d * (std(strong) / std(plain(y, t)))[:, None] + (1 - share)[:, None] * d
    np.testing.assert_allclose(guidance(4.0, share, kind)(y, t).denoised, expected, rtol=1e-12)


def test_without_rescaling_or_guidance_nothing_changes():
    y, t = (3 * points(5, 12)).astype(np.float32), 0.4
    call = jax.jit(lambda model: model(y, t))
    pair = lambda model: (lambda p: (p.denoised, p.eps))(call(model))
    assert equal(pair(guidance(4.0, 0.0)), pair(guidance(4.0, None)))
    assert equal(pair(guidance(1.0, 1.0)), pair(guidance(1.0, None)))
    assert not equal(pair(guidance(4.0, 1.0)), pair(guidance(4.0, None)))
    # Outside of the interval the scale is one.
    outside = models.ClassifierFreeGuidance(
        model=wide(VP, 12), unconditional=models.FunctionModel(small, VP), scale=4.0, rescale=1.0, interval=(5.0, 9.0)
    )
    assert equal(pair(outside), pair(guidance(1.0, None)))
    # An event of one number has no deviation.
    one = models.ClassifierFreeGuidance(model=wide(VP, 1), unconditional=models.FunctionModel(small, VP), scale=4.0, rescale=1.0)
    found = jax.jit(lambda y: one(y, t))(y[:, :1])
    assert np.all(np.isfinite([found.denoised, found.eps]))


def test_numbers_are_leaves():
    traced = []

    @jax.jit
    def call(model, y):
        traced.append(model)
        return model(y, 0.5).denoised

    model, y = wide(VP), jnp.ones((2, 5))
    for number in (0.3, 0.6):
        call(models.Clipped(model=model, low=-number, high=number), y)
        call(models.DynamicThreshold(model=model, quantile=number, size=number), y)
        call(models.ClassifierFreeGuidance(model=model, scale=2.0, rescale=number), y)
    assert len(traced) == 3


# Configs and refusals ----------------------------------------------------------------------------------------------------------


def test_a_config_bounds_and_rescales():
    def applied(*sets):
        experiment = config.load("toys/rings", (*TINY, *sets)).experiment
        return experiment.one(Sample).applied(model, experiment.data)[0]

    model = wide(VP)
    clipped = applied("experiment.Sample.clip = (-1.5, 2.0)")
    assert isinstance(clipped, models.Clipped)
    assert (clipped.low, clipped.high) == (-1.5, 2.0)
    outer = applied("experiment.Sample.threshold = 0.99", "experiment.Sample.guidance = 3.0", "experiment.Sample.rescale = 0.7")
    assert isinstance(outer, models.DynamicThreshold)
    assert (outer.quantile, outer.model.scale, outer.model.rescale) == (0.99, 3.0, 0.7)
    assert applied() is model


def test_thresholds_of_data_are_none_of_a_logarithm():
    whole = config.load("toys/concentrations", (*TINY, "experiment.Sample.threshold = 0.9")).experiment
    with pytest.raises(ValueError, match=r"Sample\.threshold = 0\.9 under GeometricBrownianMotion"):
        check(whole)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: models.Clipped(model=wide(VP), low=1.0, high=-1.0), ValueError, r"Clipped\.low = 1\.0 with high = -1\.0"),
        (lambda: models.Clipped(model=wide(VP), low=np.nan), ValueError, r"Clipped\.low = nan"),
        (lambda: models.Clipped(model=wide(VP), low=None)(np.zeros((2, 5), "f4"), 0.5), TypeError, r"Clipped\.low = None: exp"),
        (lambda: models.DynamicThreshold(model=wide(VP), size=None)(np.zeros((2, 5), "f4"), 0.5), TypeError, r"size = None: exp"),
        (lambda: models.DynamicThreshold(model=wide(VP), quantile=1.5), ValueError, r"quantile = 1\.5: expected a number in"),
        (lambda: models.DynamicThreshold(model=wide(VP), quantile=0.0), ValueError, r"quantile = 0\.0: expected a finite number"),
        (lambda: models.DynamicThreshold(model=wide(VP), size=-1.0), ValueError, r"size = -1\.0"),
        (lambda: models.DynamicThreshold(model=wide(VP), limit=0.5), ValueError, r"limit = 0\.5 with size = 1\.0: expected"),
        (lambda: models.DynamicThreshold(model=wide(VP), limit=np.inf), ValueError, r"limit = inf: expected a finite number"),
        (lambda: guidance(2.0, 1.5), ValueError, r"ClassifierFreeGuidance\.rescale = 1\.5: expected numbers from 0 to 1"),
        (lambda: guidance(2.0, -0.5), ValueError, r"rescale = -0\.5: expected a finite number of at least 0"),
        (lambda: Sample(clip=(1.0, 0.0)), ValueError, r"Sample\.clip = \(1\.0, 0\.0\): expected two numbers"),
        (lambda: Sample(clip=(-1.0, 1.0), threshold=0.9), ValueError, r"Sample\.threshold = 0\.9 with clip = .*expected one of"),
        (lambda: Sample(threshold=2.0), ValueError, r"Sample\.threshold = 2\.0"),
        (lambda: Sample(rescale=0.5), ValueError, r"Sample\.rescale = 0\.5 without guidance"),
        (lambda: diagnostics.bounded_along(wide(VP), None), TypeError, r"bounded_along\.model = .*expected a Bounded"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_is_accepted(make, error, match):
    with pytest.raises(error, match=match):
        make()
