"""Steering on a linear-Gaussian chain, whose tilted law and constant are known exactly."""

from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import fk, grids, models, sample, solvers
from scorelab.fk.potentials import stated
from scorelab.fk.resampling import checked

from .chains import BASE, CENTRE, GRID, MODEL, SCALE, VP, chain_law, moments, reward, tilted_law

KEY = jax.random.key(5)
PARTICLES, GROUPS = 512, 64
MEAN, VARIANCE, LOG_Z = tilted_law(*chain_law())
GUIDED = models.RewardGradient(model=MODEL, reward=reward, scale=0.5 * SCALE)


def run(potential, model=MODEL, policy=None, particles=PARTICLES, groups=GROUPS, key=KEY, base=BASE, grid=GRID, **options):
    solver = fk.FeynmanKac(base=base, potential=potential, policy=policy or fk.EssBelow(0.5), particles=particles, **options)
    return sample(model, solver=solver, grid=grid, key=key, shape=(particles * groups, 1), chunk=particles * groups)


def assert_tilted(out, groups=GROUPS, law=(MEAN, VARIANCE, LOG_Z)):
    mean, variance = moments(out, groups)
    # Four standard errors of the average over populations, plus the bias of a ratio estimate, of order 1 / particles.
    for values, exact in ((mean, law[0]), (variance, law[1])):
        assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / np.sqrt(groups) + 2 / PARTICLES
    z = np.exp(np.asarray(out.log_z, np.float64) - law[2])
    # E[Z] is unbiased whatever the number of particles, under every policy.
    assert abs(z.mean() - 1) < 3 * z.std(ddof=1) / np.sqrt(groups) + 1 / PARTICLES


def constrained(bound, shift, curve, outside, x):
    """A parabola above ``bound``, and ``outside`` below."""
    return jnp.where(x[:, 0] > bound, shift - 0.5 * curve * (x[:, 0] - CENTRE) ** 2, outside)


def bounded(bound, shift, curve, outside):
    """Numbers are leaves: rewards that differ in them share a program."""
    return jax.tree_util.Partial(constrained, *(np.float32(v) for v in (bound, shift, curve, outside)))


PARABOLA = bounded(-np.inf, 0, 1, 0)


@pytest.fixture(scope="module")
def ordinary():
    """The run that several tests look at."""
    return run(fk.Difference(PARABOLA, SCALE, every=5))


def test_the_tilted_law_and_its_constant(ordinary):
    assert_tilted(ordinary)


# Never, and every so many steps, are below. The schemes themselves are in test_resampling.py.
@pytest.mark.parametrize(
    ("policy", "resampler"),
    [
        (fk.Always(), fk.multinomial),
        # That islands keep their mass, and so the estimate, is in test_resampling.py.
        pytest.param(fk.Islands(4), fk.systematic, marks=pytest.mark.long),
        pytest.param(fk.Always(), fk.systematic, marks=pytest.mark.long),
        pytest.param(fk.BirthDeath(), fk.systematic, marks=pytest.mark.long),
    ],
    ids=lambda p: getattr(p, "__name__", type(p).__name__),
)
def test_the_tilted_law_and_its_constant_under_every_policy(policy, resampler):
    assert_tilted(run(fk.Difference(reward, SCALE, every=5), policy=policy, resampler=resampler))


def test_birth_and_death_have_the_law_of_a_chain_with_an_event_at_every_step():
    # Increments of the size of the root of a step, not of a step: first order in them would leave log Z off by a unit.
    grid = grids.Uniform(100, t_min=1e-3, clean=False)
    out = run(fk.Difference(reward, SCALE), policy=fk.BirthDeath(), grid=grid)
    assert_tilted(out, law=tilted_law(*chain_law(grid)))


LEARNED = fk.Learned(lambda y, t: -0.5 * (y[:, 0] - 1.0) ** 2)
OUTSIDE = fk.Posterior(samples=3, data_std=1.0, temper_inside=False)


@pytest.mark.parametrize(
    "potential",
    [
        fk.FinalOnly(PARABOLA, SCALE),
        fk.Difference(PARABOLA, SCALE, every=3, window=(0.2, 0.9), temper=lambda p: p**2),
        pytest.param(fk.Difference(reward, SCALE, every=5, intermediate=OUTSIDE), marks=pytest.mark.long),
        fk.SumPotential(
            (fk.Difference(reward, 0.5 * SCALE, every=5), fk.Difference(reward, 0.5 * SCALE, every=7, intermediate=LEARNED))
        ),
        pytest.param(fk.Difference(PARABOLA, SCALE, every=3, window=(0.2, 0.9)), marks=pytest.mark.long),
        pytest.param(fk.Difference(PARABOLA, SCALE, every=5, temper=lambda p: p**2), marks=pytest.mark.long),
        pytest.param(fk.Difference(reward, SCALE, every=5, intermediate=LEARNED), marks=pytest.mark.long),
    ],
    ids=["final", "window-and-temper", "posterior-outside", "together-and-learned", "window", "temper", "learned"],
)
def test_every_way_of_splitting_the_reward_has_the_same_target(potential):
    assert_tilted(run(potential))


def test_a_guided_proposal_is_weighed_by_its_density_and_lowers_the_variance(ordinary):
    out = run(fk.Difference(reward, SCALE, every=5), model=GUIDED)
    assert_tilted(out)
    assert np.std(np.asarray(out.log_z)) < 0.6 * np.std(np.asarray(ordinary.log_z))


@pytest.mark.parametrize(
    "model",
    [
        models.RewardGradient(model=models.RewardGradient(model=MODEL, reward=reward, scale=0.3), reward=reward, scale=0.2),
        pytest.param(models.ClassifierFreeGuidance(model=GUIDED, unconditional=MODEL, scale=1.2), marks=pytest.mark.long),
    ],
    ids=["guided twice", "guidance of a guided model"],
)
def test_guidance_inside_guidance_is_weighed_too(model):
    assert_tilted(run(fk.Difference(reward, SCALE, every=5), model=model))


def multistep_law(base):
    """Mean and variance of the last state of a rule with two values: affine maps of the state and the previous denoised mean."""
    times = GRID.times(VP)
    table = base.table(VP, times)
    # Of (y, previous denoised mean); the first row gives the previous one no weight.
    mean, cov = np.zeros(2), np.diag([float(VP.sigma(times[0])) ** 2, 0.0])
    for t, a, b, o, n in zip(table.t, table.a, table.b, table.o, table.n, strict=True):
        alpha, sigma = float(VP.alpha(t)), float(VP.sigma(t))
        # D = .5 + gain (y - .5 alpha) for data N(.5, 1).
        gain = alpha / (alpha**2 + sigma**2)
        step, shift = np.array([[a + b[0] * gain, b[1]], [gain, 0.0]]), 0.5 * (1 - gain * alpha)
        mean = step @ mean + np.array([o + b[0] * shift, shift])
        cov = step @ cov @ step.T + np.diag([n**2, 0.0])
    return mean[0], cov[0, 0]


def test_a_guided_proposal_of_another_base_solver():
    # A multistep one: its history is that of the unguided chain. Little guidance: the step of second order multiplies it.
    base, gently = solvers.DPMSolverPP(order=2, eta=1.0), models.RewardGradient(model=MODEL, reward=reward, scale=0.3)
    out = run(fk.Difference(reward, SCALE, every=5), model=gently, base=base)
    assert_tilted(out, law=tilted_law(*multistep_law(base)))


@pytest.mark.long
@pytest.mark.parametrize("policy", [fk.Never(), fk.Always(), fk.EssBelow(0.5)], ids=lambda p: type(p).__name__)
def test_sixteen_particles_estimate_the_constant_without_bias(policy):
    out = run(fk.Difference(reward, SCALE, every=10), policy=policy, particles=16, groups=4096)
    z = np.exp(np.asarray(out.log_z, np.float64) - LOG_Z)
    assert abs(z.mean() - 1) < 3 * z.std(ddof=1) / np.sqrt(len(z))
    # Its logarithm is biased (Jensen), so this is a test of the mean and of nothing else.
    assert np.log(z).mean() < -2 * np.log(z).std() / np.sqrt(len(z))


@pytest.mark.long
def test_dropping_the_weights_where_nothing_is_resampled_would_be_seen():
    # The published code forgets the weights of a step that it does not resample at.
    class Forgetful(fk.EssBelow):
        def move(self, key, log_weights, resampler, node, progress):
            moved = super().move(key, log_weights, resampler, node, progress)
            return moved._replace(log_weights=jnp.zeros_like(log_weights))

    out = run(fk.Difference(reward, SCALE, every=5), policy=Forgetful(0.5))
    mean, _ = moments(out, GROUPS)
    assert abs(mean.mean() - MEAN) > 5 * mean.std() / np.sqrt(GROUPS)


RULES = (fk.Difference, fk.Max, fk.Sum, fk.Current, fk.FinalOnly)


def recorded(*rules):
    """Three populations of eight under all the rules at once, with their paths and ancestors."""
    with jax.enable_x64(True):
        parts = [rule(reward, SCALE, every=5) for rule in rules]
        potential = parts[0] if len(parts) == 1 else fk.SumPotential(tuple(parts))
        solver = fk.FeynmanKac(base=BASE, potential=potential, policy=fk.Every(10), particles=8, record_ancestors=True)
        return sample(MODEL, solver=solver, grid=GRID, key=KEY, shape=(24, 1), keep="all")


@pytest.fixture(scope="module")
def together():
    return recorded(*RULES)


def assert_sums(rules, out):
    """What is left in the weights is what came after the last resampling."""
    end = -0.5 * SCALE * (np.asarray(out.x).reshape(3, 8) - CENTRE) ** 2
    rest = sum(end - replayed(rule, out, every=5, again=10) for rule in rules)
    np.testing.assert_allclose(np.asarray(out.log_weights).reshape(3, 8), rest, atol=1e-9)


def test_the_log_g_of_a_path_sum_to_the_reward_of_its_end(together):
    # Along the path of every survivor: what is summed is gathered with the particle.
    assert together.diagnostics["resampled"].sum() == 3 * 4
    assert_sums(RULES, together)


@pytest.mark.long
@pytest.mark.parametrize("rule", RULES, ids=lambda r: r.__name__)
def test_the_log_g_of_a_path_under_one_rule(rule):
    out = recorded(rule)
    # Without events the weights stay equal, and nothing is resampled.
    assert out.diagnostics["resampled"].sum() == (0 if rule is fk.FinalOnly else 3 * 4)
    assert_sums((rule,), out)


def replayed(rule, out, every, again):
    """The sum of log G up to the last resampling, along the lineage of every survivor, from the recorded path."""
    ancestors = np.asarray(out.diagnostics["ancestors"])
    groups, calls, particles = ancestors.shape
    # States at a node are those before resampling there.
    states, times = np.asarray(out.trajectory), out.times
    place = np.tile(np.arange(particles), (groups, 1))
    lineage = {}
    for node in range(calls - 1, -1, -1):
        place = np.take_along_axis(ancestors[:, node], place, axis=1)
        lineage[node] = place
    total, memory = np.zeros((groups, particles)), np.full((groups, particles), -np.inf if rule is fk.Max else 0.0)
    last = max(node for node in range(1, calls) if node % again == 0)
    for node in range(1, last + 1):
        if node % every or rule is fk.FinalOnly:
            continue
        y = states[node].reshape(groups, particles, 1)
        y = np.take_along_axis(y, lineage[node][:, :, None], axis=1).reshape(-1, 1)
        # Data are N(.5, 1).
        alpha, sigma = float(VP.alpha(times[node])), float(VP.sigma(times[node]))
        believed = 0.5 + alpha / (alpha**2 + sigma**2) * (y - 0.5 * alpha)
        value = -0.5 * SCALE * (believed.reshape(groups, particles) - CENTRE) ** 2
        if rule is fk.Difference:
            gain = value - total
        elif rule is fk.Current:
            gain = value
        else:
            memory = np.maximum(memory, value) if rule is fk.Max else memory + value
            gain = memory
        total = total + gain
    return total


@pytest.mark.long
def test_max_and_sum_concentrate_more_than_they_should(ordinary):
    # What their docstrings say: far fewer particles are left in effect than under the difference.
    left = [float(np.mean(run(rule(reward, SCALE, every=5)).diagnostics["final_ess"])) for rule in (fk.Sum, fk.Max)]
    assert left[0] < left[1] < 0.2 * float(np.mean(ordinary.diagnostics["final_ess"]))


# The one with a memory, and those without in the long tail.
BASES = [
    solvers.DPMSolverPP(order=2, eta=1.0),
    *(pytest.param(base, marks=pytest.mark.long) for base in (BASE, solvers.PredictorCorrector())),
]


@pytest.mark.parametrize("base", BASES, ids=str)
def test_without_weights_it_is_the_base_solver(base):
    # Up to the order of sums in two programs: 50 steps of float64 on values of order one.
    with jax.enable_x64(True):
        plain = sample(MODEL, solver=base, grid=GRID, key=KEY, shape=(64, 1))
        solver = fk.FeynmanKac(base=base, policy=fk.Always(), particles=16)
        out = sample(MODEL, solver=solver, grid=GRID, key=KEY, shape=(64, 1))
    # Systematic resampling of equal weights is the identity.
    np.testing.assert_allclose(out.x, plain.x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(out.log_weights, 0.0)
    np.testing.assert_allclose(out.log_z, 0.0, atol=1e-5)
    np.testing.assert_array_equal(out.diagnostics["root"], np.tile(np.arange(16), 4))


@pytest.mark.parametrize("rule", [fk.Difference, pytest.param(fk.FinalOnly, marks=pytest.mark.long)], ids=lambda r: r.__name__)
def test_weights_that_are_not_spent_are_those_of_importance_sampling(rule):
    with jax.enable_x64(True):
        out = run(rule(reward, SCALE, every=5), policy=fk.Never(), groups=4)
    np.testing.assert_array_equal(out.diagnostics["root"], np.tile(np.arange(PARTICLES), 4))
    log_w = -0.5 * SCALE * (np.asarray(out.x)[:, 0] - CENTRE) ** 2
    np.testing.assert_allclose(out.log_weights, log_w, atol=1e-12)
    np.testing.assert_allclose(out.log_z, np.log(np.mean(np.exp(log_w.reshape(4, -1)), axis=1)), atol=1e-12)


def test_populations_do_not_see_one_another():
    solver = fk.FeynmanKac(base=BASE, potential=fk.Difference(reward, SCALE, every=5), particles=32)
    options = dict(solver=solver, grid=GRID, key=KEY)
    whole = sample(MODEL, shape=(128, 1), chunk=64, **options)
    part = sample(MODEL, shape=(64, 1), chunk=64, ids=np.arange(64, 128), **options)
    np.testing.assert_array_equal(np.asarray(whole.x)[64:], part.x)
    np.testing.assert_array_equal(np.asarray(whole.log_z)[2:], part.log_z)
    assert whole.diagnostics["ess"].shape == (4, 50)
    assert whole.log_z.shape == whole.diagnostics["unique_roots"].shape == (4,)

    # One population of all samples reports itself without the axis of populations.
    def one():
        out = sample(MODEL, shape=(32, 1), **options | dict(solver=fk.FeynmanKac(base=BASE, potential=solver.potential)))
        return out.log_z, out.diagnostics["ess"]

    assert [value.shape for value in jax.eval_shape(one)] == [(), (50,)]


def test_resampling_at_the_end_keeps_the_law_and_the_constant(ordinary):
    equal = run(fk.Difference(PARABOLA, SCALE, every=5), resample_final=True)
    assert_tilted(equal)
    np.testing.assert_array_equal(equal.log_weights, 0.0)
    np.testing.assert_allclose(equal.log_z, ordinary.log_z, atol=1e-5)
    # What is reported of the end is what the last resampling found.
    np.testing.assert_allclose(equal.diagnostics["final_ess"], ordinary.diagnostics["final_ess"], rtol=1e-5)


def test_one_of_each_population_is_a_fair_draw():
    # Weights 1 : 3 of two values in 4000 populations: the second is drawn three times in four, to four standard errors.
    log_w = np.tile(np.log([1.0, 3.0]), 4000).astype(np.float32)
    index = np.asarray(fk.one_of_each(KEY, log_w, 2))
    np.testing.assert_array_equal(index // 2, np.arange(4000))
    assert np.mean(index % 2) == pytest.approx(0.75, abs=4 * np.sqrt(0.75 * 0.25 / 4000))


def test_diagnostics_count_roots_and_ancestors(together):
    roots = np.asarray(together.diagnostics["root"]).reshape(3, -1)
    np.testing.assert_array_equal(together.diagnostics["unique_roots"], [len(np.unique(r)) for r in roots])
    ancestors = np.asarray(together.diagnostics["ancestors"])
    lineage = np.tile(np.arange(8), (3, 1))
    for node in range(ancestors.shape[1] - 1, -1, -1):
        lineage = np.take_along_axis(ancestors[:, node], lineage, axis=1)
    np.testing.assert_array_equal(lineage, roots)
    np.testing.assert_array_equal(np.flatnonzero(together.diagnostics["resampled"][0]), [10, 20, 30, 40])


def test_weights_that_are_not_numbers_count_as_zero_and_are_reported():
    with pytest.warns(fk.WeightsWarning, match="NaN"):
        out = run(fk.FinalOnly(bounded(0.5, 0, 1, np.nan), SCALE))
    assert np.all(np.asarray(out.log_weights)[np.asarray(out.x)[:, 0] <= 0.5] == -np.inf)
    np.testing.assert_array_equal(out.diagnostics["bad_weights"], (np.asarray(out.x).reshape(GROUPS, -1) <= 0.5).sum(1))
    with pytest.warns(fk.WeightsWarning, match=f"{GROUPS} populations"):
        dead = run(fk.Difference(bounded(np.inf, 0, 0, -np.inf), SCALE, every=5))
    # Nothing to choose from: the identity, so that the points are those of weights that were never spent.
    np.testing.assert_allclose(dead.x, out.x, atol=1e-5)
    np.testing.assert_array_equal(dead.log_z, -np.inf)


CONSTRAINTS = [(0, 0, -np.inf), (-100, 1, -np.inf), (0, 1, -1e30), (-100, 0, -1e6), (0, 1, np.nan)]
BELIEVED = fk.Posterior(samples=16, data_std=1.0)
BELIEFS = [
    (CONSTRAINTS, fk.Denoised()),
    (CONSTRAINTS[:1], BELIEVED),
    pytest.param(CONSTRAINTS[1:2], BELIEVED, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("constraints", "intermediate"), BELIEFS, ids=["denoised", "posterior", "posterior-parabola"])
def test_a_constraint_has_its_law_and_its_constant(constraints, intermediate):
    from scorelab.sampling import _walk

    # A denoised mean below the bound says nothing about the sample: half of the paths cross it on the way.
    programs = _walk._cache_size()
    for scale, (shift, curve, outside) in zip((1.0, 2.0, 1.0, 1.0, 0.5), constraints, strict=False):
        potential = fk.Difference(bounded(0.5, shift, curve, outside), scale, every=5, intermediate=intermediate)
        with pytest.warns(fk.WeightsWarning, match="NaN") if np.isnan(outside) else nullcontext():
            out = run(potential)
        mean, variance, log_z = tilted_law(*chain_law(), scale=scale * curve)
        above = stats.truncnorm((0.5 - mean) / np.sqrt(variance), np.inf, mean, np.sqrt(variance))
        log_z += stats.norm.logsf(0.5, mean, np.sqrt(variance)) + scale * shift
        assert_tilted(out, law=(above.mean(), above.var(), log_z))
    # Scales and rewards with other numbers reuse the program.
    assert _walk._cache_size() <= programs + 1


def test_what_is_impossible_half_way_counts_as_the_least_of_the_others():
    nan, inf = np.nan, np.inf
    value = np.asarray([1.0, -inf, -3.0, -2e4, nan, inf, -inf, nan, -7e6, -1.0, -7e6 - 1, -9e6])
    filled, says = jax.jit(stated, static_argnums=1)(value, 3)
    filled, says = np.asarray(filled), np.asarray(says)
    np.testing.assert_array_equal(filled[:4], [1, -3, -3, -3])
    np.testing.assert_array_equal(says, [True] * 4 + [False] * 4 + [True] * 4)
    np.testing.assert_array_equal(filled[8:], -1.0)


def test_the_derivative_of_the_constant_is_that_of_whole_paths():
    # d log Z / d lambda is the mean reward of the tilted law; with weights that forget what they were, it has the wrong sign.
    def constant(scale):
        out = run(fk.Difference(reward, scale, every=10), policy=fk.Every(20), groups=8)
        return jnp.mean(out.log_z), out

    found, out = jax.grad(constant, has_aux=True)(SCALE)
    rewards, log_w = np.asarray(reward(out.x)).reshape(8, -1), np.asarray(out.log_weights).reshape(8, -1)
    assert np.ptp(log_w) > 0
    mean = np.mean(np.sum(rewards * np.asarray(fk.normalised(log_w)), axis=1))
    np.testing.assert_allclose(found, mean, rtol=1e-3)
    # Four standard errors, as of a tenth of the particles: copies have the same first ancestors.
    deviation = np.sqrt(VARIANCE * (MEAN - CENTRE) ** 2 + VARIANCE**2 / 2)
    assert abs(mean + 0.5 * ((MEAN - CENTRE) ** 2 + VARIANCE)) < 4 * deviation / np.sqrt(8 * PARTICLES / 10)


def test_a_solver_with_several_calls_in_a_step_asks_for_rewards_once():
    asked = []
    counted = fk.Callback(lambda x: asked.append(1) or -0.5 * (x[:, 0] - 2.5) ** 2)
    base = solvers.PredictorCorrector(predictor=BASE, corrections=2)
    run(fk.Difference(counted, SCALE, every=10), base=base, groups=1)
    assert len(asked) == 5


def test_a_caller_may_compile_around_it():
    solver = fk.FeynmanKac(base=BASE, potential=fk.Difference(reward, SCALE, every=5), particles=32)

    def draw(key):
        out = sample(MODEL, solver=solver, grid=GRID, key=key, shape=(64, 1), chunk=64)
        return out.x, out.log_z

    for inside, outside in zip(jax.jit(draw)(KEY), draw(KEY), strict=True):
        np.testing.assert_allclose(inside, outside, atol=1e-5)


@pytest.mark.long
def test_limited_increments_of_events_are_counted():
    out = run(fk.Difference(reward, SCALE, every=5), groups=2, clip=0.5)
    assert np.all(np.asarray(out.diagnostics["clipped"]) > 0)


def test_limited_increments_are_counted():
    last = run(fk.FinalOnly(reward, SCALE), groups=2, clip=0.1)
    assert np.all(np.asarray(last.diagnostics["clipped"]) > 0)
    assert np.ptp(np.asarray(last.log_weights).reshape(2, -1), axis=1).max() < 0.2 + 1e-5


def test_conditions_reach_the_reward():
    target = lambda x, cond: -0.5 * (x[:, 0] - cond) ** 2
    solver = fk.FeynmanKac(base=BASE, potential=fk.Difference(target, SCALE, every=5, with_cond=True), particles=PARTICLES)
    centres = np.repeat([-2.0, 2.0], PARTICLES)
    model = models.Conditioned(model=MODEL)
    out = sample(model, solver=solver, grid=GRID, key=KEY, shape=(2 * PARTICLES, 1), cond=centres)
    found, _ = moments(out, 2)
    mean, variance = chain_law()
    exact = (mean / variance + SCALE * np.array([-2.0, 2.0])) / (1 / variance + SCALE)
    np.testing.assert_allclose(found, exact, atol=4 * np.sqrt(VARIANCE / PARTICLES) * 2)


def sampled(solver):
    return sample(MODEL, solver=solver, grid=GRID, key=KEY, shape=(10, 1))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: fk.FeynmanKac(base=solvers.DDIM()), ValueError, "expected a stochastic solver"),
        (lambda: fk.FeynmanKac(base=fk.FeynmanKac()), ValueError, "itself"),
        (lambda: fk.FeynmanKac(particles=0), ValueError, "particles = 0"),
        (lambda: fk.FeynmanKac(clip=-1.0), ValueError, "clip = -1.0"),
        (lambda: fk.FeynmanKac(potential=reward), TypeError, "potential"),
        (lambda: fk.EssBelow(1.5), ValueError, "threshold = 1.5"),
        (lambda: fk.Always(window=(0.5, 0.2)), ValueError, "window"),
        (lambda: fk.Difference(3.0), TypeError, "reward = 3.0"),
        (lambda: fk.Difference(reward, every=0), ValueError, "every = 0"),
        (lambda: run(fk.Difference(reward, SCALE, every=1000), groups=1), ValueError, "every = 1000, .* leave no event"),
        (lambda: run(fk.Difference(reward, SCALE, window=(0.991, 0.999)), groups=1), ValueError, "leave no event"),
        (lambda: fk.Posterior(samples=0), ValueError, "samples = 0"),
        (lambda: fk.SumPotential((fk.Zero(), fk.Corrector())), ValueError, "first place"),
        (lambda: fk.SumPotential(()), ValueError, "at least one"),
        (lambda: fk.Difference(reward, "2"), TypeError, "scale = '2'"),
        (lambda: fk.Difference(reward, np.nan), ValueError, "scale = nan: expected a finite number"),
        (lambda: fk.Difference(reward, jnp.ones(4)), TypeError, "Difference.scale = .*: expected a number"),
        (lambda: fk.Difference(reward, window=0.5), ValueError, r"Difference.window = 0.5: expected \(low, high\)"),
        (lambda: fk.Difference(reward, window=(0.0, 0.5, 1.0)), ValueError, r"Difference.window = .*: expected \(low, high\)"),
        (lambda: fk.EssBelow(window=0.5), ValueError, r"EssBelow.window = 0.5: expected \(low, high\)"),
        (lambda: fk.Difference(reward, temper=3), TypeError, "Difference.temper = 3: expected a function"),
        (lambda: fk.Difference(reward, with_cond=1), ValueError, "Difference.with_cond = 1"),
        (lambda: run(fk.Difference(reward, temper=lambda p: np.inf), groups=1), ValueError, "temper is not finite at 0.0"),
        (
            lambda: run(fk.Difference(reward, intermediate=fk.Learned(lambda y, t: y)), groups=1),
            ValueError,
            r"Learned.value returned shape",
        ),
        (lambda: run(fk.Difference(lambda x: x, SCALE), groups=1), ValueError, "one per sample"),
        (lambda: run(fk.Zero(), policy=fk.Islands(5), groups=1), ValueError, "divisor"),
        (lambda: sampled(fk.FeynmanKac(particles=7)), ValueError, "multiple of 7"),
        (lambda: sampled(fk.FeynmanKac(potential=fk.Corrector())), TypeError, "annealed"),
        (lambda: run(fk.Zero(), model=GUIDED, base=solvers.EulerMaruyama(coords="ambient"), groups=1), ValueError, "mean plus"),
        (lambda: fk.killing(KEY, jnp.zeros(4), 5), ValueError, "killing.n = 5"),
        (lambda: fk.systematic(KEY, jnp.zeros((2, 4))), ValueError, "log_weights has shape"),
    ],
)
def test_errors_name_the_field(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize(
    ("resampler", "error", "message"),
    [
        (lambda key, w: jnp.arange(len(w) + 1), ValueError, r"resampler returned shape \(9,\): expected \(8,\)"),
        (lambda key, w: jnp.ones(()).astype(int), ValueError, r"resampler returned shape \(\)"),
        (lambda key, w: 1.0 * jnp.arange(len(w)), TypeError, "resampler returned float32: expected integers"),
    ],
)
def test_what_a_resampler_returns_is_checked(resampler, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(checked(resampler), KEY, jnp.zeros(8))


@pytest.mark.parametrize("policy", [fk.Always(), fk.Islands(2, inside=fk.Always(), across=fk.Always())], ids=["always", "islands"])
def test_ancestors_out_of_range_are_no_particles(policy):
    log_w = jnp.arange(8.0)[None]
    solver = fk.FeynmanKac(policy=policy, resampler=lambda key, w: jnp.arange(len(w)).at[1].set(100).at[0].set(-1))
    unused = dict(t=None, step=None, base=None, potential=None)
    row = fk.ParticleRow(**unused, enter=jnp.asarray(1), stay=jnp.asarray(0), node=jnp.asarray(1), progress=jnp.asarray(0.5))
    moved, lost = solver._move(jax.random.split(KEY, 8), log_w, row)
    gone = ~np.isfinite(moved.log_weights[0])
    # Inside two islands of four the first two of each, and across them those two of the first island.
    expected = [0, 1] if isinstance(policy, fk.Always) else [0, 1, 4, 5]
    assert np.flatnonzero(gone).tolist() == expected
    assert lost.tolist() == [len(expected)]
    np.testing.assert_array_equal(moved.index[0], np.arange(8))
