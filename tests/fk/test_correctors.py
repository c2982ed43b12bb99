"""Correctors on laws whose powers, products and tilts are known, and the start of their particles.

KS of n independent points has the mean .87 / sqrt(n) and the deviation .26 / sqrt(n): three deviations up it is .021 for 8192
points of which three quarters are left in effect, .030 for 4096. Tolerances are above that, or, where resampling has added to
it, above the mean and three deviations over the populations that experiments/2503.02819/closed_form.py draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, fk, grids, models, processes, sample, schedules, solvers, starts
from scorelab.models.nets import MLP

from .chains import VP, cloud_distance

T_MIN, N, STEPS = 1e-3, 8192, 80
LINE = np.linspace(-10.0, 10.0, 8001)


def mixture(weights, means, deviations, process=VP):
    """A mixture on the line, with three components whatever it needs, so that all cases share compiled programs."""
    weights, means, deviations = (list(v) for v in (weights, means, deviations))
    while len(weights) < 3:
        weights = [*weights[:-1], weights[-1] / 2, weights[-1] / 2]
        means, deviations = [*means, means[-1]], [*deviations, deviations[-1]]
    law = densities.GaussianMixture(weights, np.array(means, float)[:, None], np.array(deviations, float)[:, None] ** 2)
    return models.ExactModel(law, process)


FREE, BOUND = mixture((0.4, 0.3, 0.3), (-3, 0, 3), (0.8, 0.6, 0.8)), mixture((0.15, 0.6, 0.25), (-3, 0, 3), (0.8, 0.6, 0.8))
FIRST, SECOND = mixture((0.5, 0.5), (-2, 1), (0.6, 0.8)), mixture((0.3, 0.7), (-1, 2), (0.7, 0.6))
HARD, EASY = mixture((0.3, 0.4, 0.3), (-3, 0.5, 4), (0.3, 0.8, 0.5)), mixture((0.3, 0.4, 0.3), (-2, 0.5, 2.5), (0.5,) * 3)
NORMAL, THREE = mixture((1.0,), (0.5,), (1.0,)), mixture((0.3, 0.4, 0.3), (-3, 0.5, 4), (0.5, 0.8, 0.5))


@jax.jit
def log_density(model, y, t):
    return model.log_density(y, t)


def run(corrected, *, t_max=None, steps=STEPS, n=N, policy=None, start=None, base=None, grid=None, plain=False):
    """The corrected sampler; its drift alone, without weights, where ``plain``."""
    # Of order one, the drift of a power of a density needs many times as many steps.
    base = solvers.DPMSolverPP(order=2, eta=1.0) if base is None else base
    solver = base if plain else fk.FeynmanKac(base=base, potential=corrected.potential, policy=policy or fk.EssBelow(0.5))
    # Small steps at small times, where the target is narrow.
    grid = grids.Quadratic(steps, t_max=t_max, t_min=T_MIN, clean=False) if grid is None else grid
    options = dict(start=start or corrected.start, key=jax.random.key(0), shape=(n, *corrected.model.models[-1].law.event))
    return sample(corrected.model, solver=solver, grid=grid, chunk=n, **options)


def against(corrected, out, *, weighted=True, t=T_MIN, points=None):
    """KS and W1 to the exact target on the line, and the error of log Z."""
    logs = log_density(corrected.model, jnp.asarray(LINE, jnp.float32)[:, None], jnp.asarray(t))
    x = np.asarray(out.x if points is None else points)[:, 0]
    ks, w1, log_z = cloud_distance(x, out.log_weights if weighted else np.zeros(N), LINE, logs)
    return ks, w1, float(out.log_z) - log_z


def resampled(out):
    return int(np.sum(out.diagnostics["resampled"]))


def smallest_ess(out):
    return float(np.min(out.diagnostics["ess"])) / len(out.x)


def test_guidance_is_the_geometric_mean_once_weighted():
    corrected = fk.geometric(FREE, BOUND, 2.0)
    assert len(corrected.start.laws) == 2  # the moments of an exact law are known under no condition too
    out = run(corrected)
    # Nothing was resampled: these are the points of plain guidance, and the weights are what corrects them.
    assert resampled(out) == 0
    ks, _, d_log_z = against(corrected, out)
    plain, _, _ = against(corrected, out, weighted=False)
    assert ks < 0.025
    assert ks < 0.5 * plain
    assert abs(d_log_z) < 0.03


def test_guidance_towards_a_class_has_a_bounded_constant():
    """q_0 = sum_k w_k q_k >= w_c q_c: the integral of q_0^(1 - b) q_c^b is 1 to w_c^(1 - b), and an error alone takes it past."""
    b, share = 1.5, 0.3
    bound = (b - 1) * np.log(1 / share)
    corrected = fk.geometric(FREE, mixture((1.0,), (0.0,), (0.6,)), b)
    out = run(corrected)
    assert abs(against(corrected, out)[2]) < 0.03
    # The modes hardly overlap: almost all of the bound is used.
    assert 0.9 * bound < out.log_z < bound
    # The class at half of its width, as a network that has learned it too well.
    assert run(fk.geometric(FREE, mixture((1.0,), (0.0,), (0.3,)), b)).log_z > bound


def weight_moments(b, v, v_c, centre):
    r"""Mean and variance of the log-weights of :math:`N(0,v)^{1-b}N(c,v_c)^b` without resampling, in closed form up to sums.

    In the noise ratio s, :math:`dz = 2s\,S\,|ds| + \sqrt{2s}\,dw` and the rate is :math:`b(b-1)\,s\,\Delta^2` with
    :math:`\Delta = a + Bz`. For the Gaussian z with the mean m and the covariance C, and :math:`u=a+Bm`, the mean is
    :math:`\int r(u^2+B^2C)` and the variance :math:`\iint rr'(4uu'BB'C+2B^2B'^2C^2)`.
    """
    ratio = lambda t: float(VP.noise_ratio(t))
    s = np.geomspace(ratio(1.0), ratio(T_MIN), 3001)
    step, middle = s[:-1] - s[1:], np.sqrt(s[:-1] * s[1:])
    log_gain = lambda s: (1 - b) * np.log(v + s**2) + b * np.log(v_c + s**2)
    pull = lambda s: b * centre / (v_c + s**2)
    half, whole = np.exp(log_gain(s[1:]) - log_gain(middle)), np.exp(log_gain(s[1:]) - log_gain(s[:-1]))
    precision = (1 - b) / (v + s[0] ** 2) + b / (v_c + s[0] ** 2)
    mean, variance = [pull(s[0]) / precision], [1 / precision]
    for k, ds in enumerate(step):
        mean.append(whole[k] * mean[-1] + half[k] * 2 * middle[k] * pull(middle[k]) * ds)
        variance.append(whole[k] ** 2 * variance[-1] + half[k] ** 2 * 2 * middle[k] * ds)
    few = slice(None, None, 5)
    s, mean, variance = s[few], np.array(mean)[few], np.array(variance)[few]
    later = np.tril(np.exp(log_gain(s)[:, None] - log_gain(s)) * variance)
    cov = later + np.tril(later, -1).T
    a, slope = centre / (v_c + s**2), 1 / (v + s**2) - 1 / (v_c + s**2)
    u, r = a + slope * mean, b * (b - 1) * s * np.abs(np.gradient(s))
    r[[0, -1]] /= 2
    expected = np.sum(r * (u**2 + slope**2 * variance))
    tilt, square = r * u * slope, r * slope**2
    return expected, 4 * tilt @ cov @ tilt + 2 * square @ cov**2 @ square


def test_what_an_error_does_to_the_weights():
    # Two Gaussians of one variance have the same gap everywhere: equal weights. An error of the variance makes them differ.
    b, v, centre = 2.0, 0.5, 1.0
    for error in (0.0, 0.1, 0.2):
        v_c = v * (1 + error)
        out = run(fk.geometric(mixture((1.0,), (0.0,), (v**0.5,)), mixture((1.0,), (centre,), (v_c**0.5,)), b))
        assert resampled(out) == 0
        log_w = np.asarray(out.log_weights, np.float64)
        mean, variance = weight_moments(b, v, v_c, centre)
        # The trapezoid in 80 steps leaves .003 of the mean.
        assert log_w.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / N) + 0.005)
        # Nearly normal, so that its deviation is the root of 2 / N, in relation; float32 where it is none.
        assert log_w.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / N), abs=1e-10)


# Second-order base: a quarter of the bias of Z at half the steps, measured as .26 for the anchor "score" at 80.
@pytest.mark.parametrize(
    ("anchor", "steps", "bias"), [("flow", STEPS, 0.005), pytest.param("score", 2 * STEPS, 0.065, marks=pytest.mark.long)]
)
def test_a_product_needs_the_weights(anchor, steps, bias):
    corrected = fk.product([FIRST, SECOND], anchor=anchor)
    groups, particles = 64, 512
    base, grid = solvers.DPMSolverPP(order=2, eta=1.0), grids.Quadratic(steps, t_min=T_MIN, clean=False)
    solver = fk.FeynmanKac(base=base, potential=corrected.potential, policy=fk.EssBelow(0.5), particles=particles)
    shape = (groups * particles, 1)
    options = dict(grid=grid, start=corrected.start, key=jax.random.key(0), shape=shape, chunk=shape[0])
    out = sample(corrected.model, solver=solver, **options)
    logs = log_density(corrected.model, jnp.asarray(LINE, jnp.float32)[:, None], jnp.asarray(T_MIN))
    x = np.asarray(out.x, np.float64)[:, 0].reshape(groups, particles)
    w = np.exp(np.asarray(out.log_weights, np.float64).reshape(groups, particles))
    w /= w.sum(1, keepdims=True)
    log_z = np.asarray(out.log_z, np.float64)
    # Populations count by their own estimate of Z. That estimate is unbiased, but for the steps.
    ks, _, exact = cloud_distance(x.ravel(), (np.log(w) + log_z[:, None]).ravel(), LINE, logs)
    z = np.exp(log_z - exact)
    assert abs(z.mean() - 1) < 4 * z.std() / np.sqrt(groups) + bias
    # Weights of the anchor "score" have heavy tails, so its error is judged by the spread of the populations (jackknife).
    density = np.exp(np.asarray(logs, np.float64) - np.max(logs))
    levels = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    points = np.interp(levels, np.cumsum(density) / density.sum(), LINE)
    parts = z[:, None] * np.stack([np.sum(w * (x <= point), axis=1) for point in points], axis=1)
    without = (parts.sum(0) - parts) / (z.sum() - z)[:, None]
    error = np.sqrt((groups - 1) / groups * np.sum((without - without.mean(0)) ** 2, axis=0))
    assert np.all(np.abs(parts.sum(0) / z.sum() - levels) < 4 * error + 0.01)
    if anchor == "flow":
        assert ks < 0.04
    plain, _, _ = against(corrected, run(corrected, plain=True), weighted=False)
    assert plain > 0.06


def parabola(centre, width, x):
    return -0.5 * ((x[:, 0] - centre) / width) ** 2


def reward(x):
    return -jnp.sum(x**2, axis=1)


def tilted(model, centre, width, **options):
    reward = jax.tree_util.Partial(parabola, jnp.asarray(centre), jnp.asarray(width))
    return fk.tilted(model, reward, ramp=linear, **options)


def linear(process, t):
    return 1 - t


def test_tilts_of_a_gaussian_and_of_a_mixture():
    corrected = tilted(NORMAL, 2.0, 0.5)
    out = run(corrected)
    ks, w1, d_log_z = against(corrected, out)
    assert ks < 0.035
    assert w1 < 0.03
    assert abs(d_log_z) < 0.08
    # The left rule on the same points, so that the difference is that of the quadratures.
    left = tilted(NORMAL, 2.0, 0.5, rule="left")
    same = run(left)
    assert (resampled(out), resampled(same)) == (0, 0)
    np.testing.assert_allclose(out.x, same.x, atol=1e-4)
    assert abs(against(left, same)[2]) > 2 * abs(d_log_z)

    corrected = tilted(THREE, 3.0, 1.0)
    ks, _, d_log_z = against(corrected, run(corrected))
    assert ks < 0.035
    assert abs(d_log_z) < 0.06


def halfway(process, t):
    return 0.5 * (1 - t)


def test_a_tilt_ends_at_its_target_whatever_the_ramp_is_worth_there():
    reward = jax.tree_util.Partial(parabola, jnp.asarray(1.5), jnp.asarray(1.0))
    out = run(fk.tilted(NORMAL, reward, ramp=halfway), n=4096)
    # N(.5, 1) with the whole parabola: N(1, 1/2), and half of the ramp would be N(.83, 2/3). Noise of t = .001 is far below.
    w, x = np.asarray(fk.normalised(out.log_weights), np.float64), np.asarray(out.x, np.float64)[:, 0]
    left = float(out.diagnostics["final_ess"])
    assert abs(w @ x - 1.0) < 4 * np.sqrt(0.5 / left)
    assert abs(w @ (x - w @ x) ** 2 - 0.5) < 4 * 0.5 * np.sqrt(2 / left)
    # Four standard errors of the mean of weights, of the relative variance n / ess - 1, and the bias of 80 steps seen above.
    assert abs(float(out.log_z) + 0.5 * np.log(2) + 0.25) < 4 * np.sqrt((4096 / left - 1) / 4096) + 0.03


@pytest.mark.parametrize("beta", [*(pytest.param(beta, marks=pytest.mark.long) for beta in (2.0, 5.0)), 10.0])
def test_the_flow_anchor_finds_the_narrow_mode_at_low_temperature(beta):
    corrected = fk.annealed(HARD, beta)
    out = run(corrected, t_max=0.4)
    ks, _, _ = against(corrected, out)
    scaled = fk.annealed(HARD, beta, anchor="score")
    plain, _, _ = against(scaled, run(scaled, plain=True), weighted=False)
    # About half of the points are left in effect, and a third of the ancestors at the lowest temperature.
    assert ks < 0.03
    assert out.diagnostics["unique_roots"] > 0.2 * N
    assert plain > 0.15


def test_the_flow_anchor_is_quiet_from_pure_noise_on():
    corrected = fk.annealed(EASY, 5.0)
    out = run(corrected)
    ks, _, d_log_z = against(corrected, out)
    scaled = fk.annealed(EASY, 5.0, anchor="score")
    plain, _, _ = against(scaled, run(scaled, plain=True), weighted=False)
    assert (resampled(out), smallest_ess(out) > 0.4) == (0, True)
    assert ks < 0.03
    assert abs(d_log_z) < 0.06
    assert plain > 0.1


POLICIES = {"every-step": fk.Always(), "birth-death": fk.BirthDeath()}


# Policies themselves are in test_steering.py and test_resampling.py.
@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_the_score_anchor_from_moderate_noise_under_every_policy(policy):
    corrected = fk.annealed(EASY, 2.0, anchor="score")
    out = run(corrected, t_max=0.4, policy=POLICIES[policy], steps=40, n=4096)
    ks, _, d_log_z = against(corrected, out)
    assert ks < 0.06
    assert abs(d_log_z) < 0.12


def warming(t):
    return 3.0 - 2.0 * t


def test_a_power_that_grows_on_the_way():
    # From the law itself at full noise to its cube: the weights know the log-density where the exponent changes.
    corrected = fk.weighted([EASY], [warming])
    out = run(corrected)
    ks, _, d_log_z = against(corrected, out)
    assert ks < 0.03
    assert abs(d_log_z) < 0.06


def test_a_reward_without_a_gradient_on_top_of_a_corrector():
    corrected = fk.geometric(FREE, BOUND, 2.0)
    reward = jax.tree_util.Partial(parabola, jnp.asarray(1.0), jnp.asarray(1.0))
    both = fk.SumPotential((corrected.potential, fk.Difference(reward, 1.0, every=5)))
    out = run(fk.Corrected(corrected.model, both, corrected.start))
    x = jnp.asarray(LINE, jnp.float32)[:, None]
    logs = log_density(corrected.model, x, jnp.asarray(T_MIN)) + reward(x)
    ks, _, log_z = cloud_distance(np.asarray(out.x)[:, 0], out.log_weights, LINE, logs)
    assert ks < 0.04
    assert abs(float(out.log_z) - log_z) < 0.06


def forty():
    centres = np.random.default_rng(0).uniform(-40, 40, (40, 2)) / 25
    return models.ExactModel(densities.GaussianMixture(np.ones(40), centres, np.full(40, (1.313 / 25) ** 2)), VP)


@pytest.mark.long
@pytest.mark.usefixtures("optimised")
def test_forty_modes_in_the_plane():
    model = forty()
    centres = np.asarray(model.law.components.mean)
    nearest = lambda x: np.argmin(((np.asarray(x)[:, None] - centres) ** 2).sum(-1), axis=1)
    axis = np.linspace(-1.9, 1.9, 400)
    plane = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    corrected = fk.annealed(model, 3.0)
    logs = np.asarray(log_density(corrected.model, jnp.asarray(plane, jnp.float32), jnp.asarray(T_MIN)), np.float64)
    mass = np.exp(logs - logs.max())
    exact = np.bincount(nearest(plane), mass / mass.sum(), minlength=40)
    out = run(corrected, t_max=0.4, n=4096, steps=50)
    found = np.bincount(nearest(out.x), fk.normalised(out.log_weights), minlength=40)
    tv = 0.5 * np.abs(found - exact).sum()
    assert tv < 0.12
    # The emptiest mode had .35 of its mass here, .13 with half as many particles.
    assert np.all(found > exact / 10)


def test_the_weights_do_not_depend_on_the_noise():
    corrected = fk.geometric(FREE, BOUND, 2.0, noise=0.5)
    out = run(corrected, base=solvers.DPMSolverPP(order=2, eta=0.5), n=4096)
    ks, _, d_log_z = against(corrected, out)
    assert ks < 0.04
    assert abs(d_log_z) < 0.04


def test_powers_on_the_log_chart_are_those_of_its_density():
    gbm = processes.GeometricBrownianMotion(sigma=2.0, mu=2.5)
    law = densities.LogNormalMixture([0.3, 0.4, 0.3], np.array([[-2.0], [0.5], [2.5]]), np.full((3, 1), 0.25))
    corrected = fk.annealed(models.ExactModel(law, gbm), 3.0)
    out = run(corrected, t_max=4.0, n=4096)
    ks, _, d_log_z = against(corrected, out, points=np.log(np.asarray(out.x)))
    assert ks < 0.04
    assert abs(d_log_z) < 0.06


def test_a_power_under_edm():
    edm = processes.Gaussian(schedule=schedules.EDM())
    model = mixture((0.3, 0.4, 0.3), (-2, 0.5, 2.5), (0.5,) * 3, process=edm)
    corrected = fk.annealed(model, 3.0)
    grid = grids.Explicit(tuple(grids.Karras(STEPS + 1, t_max=20.0, t_min=0.01).times(edm)[:-1]))
    out = run(corrected, grid=grid, n=4096)
    ks, _, d_log_z = against(corrected, out, t=0.01)
    assert ks < 0.04
    assert abs(d_log_z) < 0.06


def test_a_start_in_the_middle_needs_the_moments():
    corrected, at_first = fk.annealed(HARD, 2.0), {}
    for name, law in (("matched", HARD.law.matched()), ("unit", densities.Gaussian(np.zeros(1), 1.0))):
        start = starts.Tempered(exponents=(2.0,), laws=(law,), target=corrected.model)
        out = run(corrected, t_max=0.4, start=start)
        # Where the density is known, the weights of the start make up for a bad one, as far as there are points to weigh.
        assert against(corrected, out)[0] < 0.05
        at_first[name] = float(out.diagnostics["ess"][0]) / N
    assert at_first["unit"] < 0.5 * at_first["matched"]


def test_probes_in_twenty_dimensions():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(20, 20)) / 4
    mean, cov = rng.normal(size=20), root @ root.T + 0.1 * np.eye(20)
    beta, n = 2.0, 2048
    corrected = fk.annealed(models.ExactModel(densities.Gaussian(mean, cov), VP), beta)
    out = run(corrected, n=n)
    alpha, sigma = float(VP.alpha(T_MIN)), float(VP.sigma(T_MIN))
    noised = alpha**2 * cov + sigma**2 * np.eye(20)
    log_z = 0.5 * (1 - beta) * np.linalg.slogdet(2 * np.pi * noised)[1] - 0.5 * 20 * np.log(beta)
    w = np.asarray(fk.normalised(out.log_weights), np.float64)
    x = np.asarray(out.x, np.float64)
    whiten = np.linalg.inv(np.linalg.cholesky(noised / beta))
    z = (x - alpha * mean) @ whiten.T
    # Nearly all points are left in effect. Eigenvalues of a sample covariance: up to (1 + sqrt(d / n))^2 = 1.21.
    assert smallest_ess(out) > 0.9
    assert np.linalg.norm(w @ z) < 4.5 / np.sqrt(n) * np.sqrt(20) / 2
    assert np.abs(np.linalg.eigvalsh((z * w[:, None]).T @ z) - 1).max() < 0.3
    # A deviation of .005 from the probes, the rest from 80 steps.
    assert abs(float(out.log_z) - log_z) < 0.1


def test_the_rate_in_single_precision():
    points, rates = np.random.default_rng(0).normal(size=(64, 1)) * 2, []
    for double in (True, False):
        with jax.enable_x64(double):
            model = fk.annealed(mixture((0.3, 0.4, 0.3), (-3, 0.5, 4), (0.3, 0.8, 0.5)), 5.0).model
            keys = jax.random.split(jax.random.key(0), 64)
            evaluate = jax.jit(lambda t, y, model=model, keys=keys: model.evaluate(y, t, None, keys, 0).rate)
            found = [evaluate(jnp.asarray(t), jnp.asarray(points)) for t in (0.01, 0.4, 1.0)]
            assert found[0].dtype == (jnp.float64 if double else jnp.float32)
            rates.append(np.asarray(found, np.float64))
    # Largest 6e-5 of what is summed.
    np.testing.assert_allclose(rates[1], rates[0], rtol=1e-3, atol=1e-3)


LAWS = (
    densities.Gaussian(np.array([0.5, -1.0]), np.array([[1.0, 0.3], [0.3, 0.5]])),
    densities.Gaussian(np.array([-0.2, 0.4]), np.array([[2.0, -0.4], [-0.4, 3.0]])),
    densities.Gaussian.low_rank(np.array([1.0, 0.0]), np.array([[0.6], [0.8]]), np.array([0.7]), tail=0.2),
)


def draw(start, t, event):
    keys = jax.random.split(jax.random.key(1), 20_000)
    return jax.jit(lambda start, keys, t: start.draw(keys, np.arange(20_000), VP, t, event))(start, keys, t)


STAND_INS = [((2.5,), LAWS[:1]), ((1.5, -0.4, 0.3), LAWS), ((3.0, 1.0), LAWS[:1]), ((2.0,), ())]


@pytest.mark.parametrize(("exponents", "laws"), STAND_INS, ids=["power", "product", "one-law", "no-moments"])
def test_the_start_is_the_product_of_powers(exponents, laws):
    start = starts.Tempered(exponents=exponents, laws=laws)
    members = laws or (densities.Gaussian(np.zeros(2), 0.0),)
    powers = exponents if len(members) == len(exponents) else [sum(exponents)]

    @jax.jit
    def at(y, t):
        logs = sum(b * law.noised(VP, t).log_prob(y) for b, law in zip(powers, members, strict=True))
        law = start.at(VP, t, (2,))
        return logs - start.log_prob(y, VP, t), start.log_weight(y, VP, t), law.mean, law.covariance()

    y, t = 2 * np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32), np.float32(0.4)
    rest, constant, mean, cov = (np.asarray(value, np.float64) for value in at(y, t))
    # Up to the constant, which is what log_weight is: nothing else is known of the target.
    np.testing.assert_allclose(rest, constant, atol=1e-3)
    np.testing.assert_allclose(constant, constant[0], atol=1e-3)
    drawn = np.asarray(draw(start, t, (2,)), np.float64)
    # Four standard errors of a mean and of a covariance.
    deviation = np.sqrt(np.diag(cov))
    assert np.all(np.abs(drawn.mean(0) - mean) < 4 * deviation / np.sqrt(20_000))
    assert np.all(np.abs(np.cov(drawn.T) - cov) < 4 * np.outer(deviation, deviation) * np.sqrt(2 / 20_000))


def test_the_weights_of_the_start_average_to_the_mass_of_the_target():
    corrected, t = fk.weighted([EASY, FIRST, SECOND], [1.5, 1.0, -0.5]), jnp.asarray(0.4)
    points = jnp.asarray(LINE, jnp.float32)[:, None]
    mass = np.exp(np.asarray(log_density(corrected.model, points, t), np.float64)).sum() * (LINE[1] - LINE[0])
    y = draw(corrected.start, t, (1,))
    log_weight = jax.jit(lambda start, y, t: start.log_weight(y, VP, t))
    w = np.exp(np.asarray(log_weight(corrected.start, y, t), np.float64)) / mass
    assert abs(w.mean() - 1) < 4 * w.std() / np.sqrt(len(w))
    assert w.std() < 1  # a stand-in, and a good one
    # A tilt is part of the target, also where no density is known.
    tilt = lambda y, t, process, cond: -jnp.sum(y**2, axis=1)
    blind = models.FunctionModel(fn=lambda y, t, cond: y, process=VP)
    start = fk.weighted([blind], [1.0], tilt=tilt, laws=[EASY.law.matched()]).start
    np.testing.assert_allclose(log_weight(start, y, t), -np.sum(np.asarray(y) ** 2, axis=1), atol=1e-4)


@pytest.mark.parametrize(
    ("exponents", "laws"), [((1.0, -0.9), (LAWS[1], LAWS[0])), ((1.0, -2.0), ()), ((1.0, -1.0), ()), ((lambda t: t - 2.0,), ())]
)
def test_a_product_without_a_variance_is_refused(exponents, laws):
    start = starts.Tempered(exponents=exponents, laws=laws)
    with pytest.raises(ValueError, match="expected a product with a positive variance"):
        start.on_grid(VP, np.array([0.1, 0.01]))


def plain(variance):
    return models.ExactModel(densities.Gaussian(np.zeros(1), variance), VP)


def test_a_product_without_a_law_on_the_way_is_refused():
    r"""Of N(0, 1) and N(0, 4) to the powers -1 and 2 the precision is :math:`-1 + 2/(1 + 3\alpha^2)`, below 0 for alpha^2 > 1/3."""
    times = grids.Uniform(50, t_min=T_MIN).times(VP)
    start = fk.weighted([plain(1.0), plain(4.0)], [-1.0, 2.0]).start
    last = times[np.asarray(VP.alpha(times)) ** 2 < 1 / 3][-1]
    start.on_grid(VP, times[times >= last])
    with pytest.raises(
        ValueError, match=rf"Tempered.exponents = \(-1.0, 2.0\) at t = {times[times < last][0]:.4g}: expected a product"
    ):
        start.on_grid(VP, times)
    # Powers 1 - b and b that begin at the first law alone, and end with the precision -7 + 8/4.
    falling = [lambda t: 1 - 8 * (1 - t), lambda t: 8 * (1 - t)]
    with pytest.raises(ValueError, match="expected a product with a positive variance"):
        fk.weighted([plain(1.0), plain(4.0)], falling).start.on_grid(VP, times)


def test_moments_of_a_product_without_a_law_are_warned_about():
    times = grids.Uniform(50, t_min=T_MIN).times(VP)
    wide, narrow = mixture((1.0,), (0.0,), (2.0,)), mixture((1.0,), (0.0,), (1.0,))
    with pytest.warns(starts.TemperedWarning, match="which the Gaussians of the experts' moments have not"):
        fk.weighted([narrow, wide], [-1.0, 2.0]).start.on_grid(VP, times)
    # What a tilt adds is not known: this one makes it a law.
    tilt = lambda y, t, process, cond: -3 * jnp.sum(y**2, axis=1)
    with pytest.warns(starts.TemperedWarning):
        fk.weighted([plain(1.0), plain(4.0)], [-1.0, 2.0], tilt=tilt).start.on_grid(VP, times)


def test_narrow_directions_do_not_hide_a_law():
    """Of two laws with variances w and 1.1 w along one basis, with powers -1 and 2, the precision is positive at every noise.

    Rounding of a float32 basis, in units of the narrow directions, is more than the precision along the wide ones.
    """
    points = np.random.default_rng(0).normal(size=(400, 32)) * np.geomspace(1.0, 1e-4, 32)
    law = densities.Gaussian.from_data(points @ np.linalg.qr(points[:32])[0], rank=8)
    experts = [models.ExactModel(law, VP), models.ExactModel(law.affine(np.sqrt(1.1)), VP)]
    fk.weighted(experts, [-1.0, 2.0]).start.on_grid(VP, np.array([1.0, 1e-4, 1e-5, 1e-6]))


def test_the_event_of_the_moments_is_checked():
    with pytest.raises(ValueError, match="laws has points of shape"):
        starts.Tempered(exponents=(2.0,), laws=LAWS[:1]).check_arrays(4, (3,))


EDM = processes.Gaussian(schedule=schedules.EDM())
MISTAKEN = models.FunctionModel(lambda y, t, cond: EDM.predict(y, t, eps=y), VP, returns="prediction")


@pytest.mark.parametrize(
    "build",
    [
        lambda a, b: fk.product([a, b]),
        lambda a, b: fk.geometric(a, b, 2.0),
        lambda a, b: fk.weighted([a, a, b], [1.0, 1.0, -0.5]),
    ],
    ids=["product", "geometric", "weighted"],
)
def test_experts_under_two_processes_are_refused(build):
    with pytest.raises(ValueError, match=r"Composition: model 0.*VPLinear.* and model \d.*EDM"):
        build(FIRST, mixture((0.3, 0.7), (-1, 2), (0.7, 0.6), process=EDM))
    # One that predicts for another process than it says is refused when it is called.
    model = build(FIRST, MISTAKEN).model
    for call in (lambda y: model(y, 0.5), lambda y: model.evaluate(y, 0.5, None, jax.random.split(jax.random.key(0), 2), 0)):
        with pytest.raises(ValueError, match=r"process.*VPLinear.* and prediction.process.*EDM"):
            jax.eval_shape(call, jnp.zeros((2, 1)))


def test_a_start_of_another_process_than_the_composition_is_refused():
    model = mixture((0.5, 0.5), (-2, 1), (0.6, 0.8), process=EDM)
    with pytest.raises(ValueError, match=r"Tempered: sampled.*EDM.* and target.*VPLinear"):
        run(fk.product([model, model]), start=fk.product([FIRST, SECOND]).start, t_max=10.0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fk.annealed(FIRST, np.float32(-1.0)), "annealed.beta"),
        (lambda: fk.annealed(FIRST, "2"), "annealed.beta = '2': expected a number"),
        (lambda: fk.annealed(FIRST, jnp.ones(2)), "annealed.beta = .*: expected a number"),
        (lambda: fk.annealed(3.0, 2.0), "Composition.models = 3.0: expected a model"),
        (lambda: fk.product(FIRST), "product.models = .*: expected a list"),
        (lambda: fk.weighted([FIRST], 2.0), "weighted.exponents = 2.0: expected a list"),
        (lambda: fk.weighted([FIRST], [np.inf]), "Composition.exponents = inf: expected a finite number"),
        (lambda: fk.weighted([FIRST], [1.0], tilt=2.0), "Composition.tilt = 2.0: expected a function"),
        (lambda: fk.geometric(FIRST, SECOND, jnp.ones(2)), "geometric.beta = .*: expected a number"),
        (lambda: fk.tilted(FIRST, reward, jnp.ones(4)), "Tilt.scale = .*: expected a number"),
        (lambda: fk.tilted(FIRST, reward, np.nan), "Tilt.scale = nan: expected a finite number"),
        (lambda: fk.product([FIRST], jnp.asarray(np.nan)), "product.beta"),
        (lambda: fk.tilted(FIRST, lambda x: x).model.log_tilt(jnp.zeros((2, 1)), 0.5), r"Tilt.reward returned shape \(2, 1\)"),
        (
            lambda: fk.weighted([FIRST], [1.0], tilt=lambda y, t, process, cond: y).model.log_tilt(jnp.zeros((2, 1)), 0.5),
            r"Composition.tilt returned shape \(2, 1\)",
        ),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


class Own(starts.Prior):
    """A start that weighs its points itself."""

    def weighs(self, process):
        return True

    def log_weight(self, y, process, t, cond=None):
        return jnp.ones(len(y))


FUNCTION = models.FunctionModel(fn=lambda y, t, cond: y, process=VP)


def test_a_start_that_does_not_begin_at_the_product_is_refused():
    # Its missing weights would be a wrong log_z, and wrong samples, without a sign of it.
    square, message = fk.annealed(EASY, 2.0), r"^sample.start .*: expected the start that annealed, .* returned"
    refused = [
        (square, starts.Prior(), 1.0),
        (square, starts.Noised(EASY.law), 0.4),
        (fk.product([FIRST, SECOND]), starts.Prior(), 1.0),
        (fk.geometric(FREE, BOUND, 2.0), starts.Noised(BOUND.law), 0.4),
        (fk.tilted(NORMAL, reward), starts.Noised(NORMAL.law), 0.4),
        (fk.annealed(FUNCTION, 2.0), starts.Prior(), 1.0),
        (square, fk.annealed(EASY, 3.0).start, 1.0),
        (square, fk.annealed(HARD, 2.0).start, 1.0),
        (square, starts.Tempered(exponents=(3.0,)), 1.0),
        (fk.tilted(NORMAL, reward), fk.annealed(NORMAL, 1.0).start, 1.0),
    ]
    for corrected, start, t in refused:
        with pytest.raises(ValueError, match=message):
            corrected.potential.check_start(start, corrected.model, t)
    for potential in (square.potential, fk.SumPotential((square.potential, fk.Difference(reward)))):
        with pytest.raises(ValueError, match=message):
            run(square._replace(potential=potential), start=starts.Prior())


def test_starts_that_begin_at_the_product_are_accepted():
    accepted = [
        (fk.annealed(EASY, 2.0), Own()),
        (fk.annealed(EASY, 1.0), starts.Noised(EASY.law)),
        (fk.tilted(NORMAL, reward), starts.Noised(NORMAL.law)),
        (fk.annealed(EASY, 2.0), fk.annealed(EASY, 2.0).start),
        (fk.annealed(FUNCTION, 2.0), starts.Tempered(exponents=(2.0,), laws=(EASY.law.matched(),))),
        (fk.weighted([EASY], [warming]), fk.weighted([EASY], [warming]).start),
    ]
    for corrected, start in accepted:
        corrected.potential.check_start(start, corrected.model, 1.0)


def test_labels_of_the_experts_are_checked():
    denoiser = models.Denoiser(net=MLP(width=4, depth=1, num_classes=3), process=VP)
    bound = denoiser.bind({})
    labels = np.full(4, 9, np.int32)
    for corrected in (fk.geometric(bound, bound, 2.0), fk.annealed(bound, 2.0)):
        with pytest.raises(ValueError, match="labels 9 to 9: expected 0 to 2"):
            sample(
                corrected.model, solver=fk.FeynmanKac(potential=corrected.potential), grid=grids.Uniform(4, t_min=T_MIN),
                key=jax.random.key(0), shape=(4, 1), start=corrected.start, cond=labels,
            )  # fmt: skip


def test_an_expert_that_predicts_for_another_process_than_it_says_is_refused_when_it_is_sampled():
    corrected = fk.weighted([MISTAKEN], [2.0], laws=[densities.Gaussian(np.zeros(1), 1.0)])
    solver = fk.FeynmanKac(base=solvers.DPMSolverPP(order=2, eta=1.0), potential=corrected.potential)
    grid = grids.Quadratic(4, t_min=T_MIN, clean=False)
    with pytest.raises(ValueError, match=r"VPLinear.* and .*EDM"):
        sample(corrected.model, solver=solver, grid=grid, start=corrected.start, key=jax.random.key(0), shape=(4, 1))
