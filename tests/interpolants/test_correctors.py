"""Correctors of interpolants: the rate against the Fokker-Planck equation, and the laws of powers, products and tilts."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from scorelab import densities, fk, grids, models, processes, sample, schedules, solvers, starts
from scorelab.models.nets import MLP
from scorelab.processes import gammas, paths
from scorelab.randomness import per_example_keys
from scorelab.solvers import epsilons

from ..fk.chains import cloud_distance

KEY = jax.random.key(3)
COV = np.array([[0.5, 0.2], [0.2, 0.3]])
Y = np.random.default_rng(0).normal(size=(8, 2))


def experts():
    """Three in the plane, each with a path, a latent noise and a base of its own."""
    rng = np.random.default_rng(0)
    law = lambda k: densities.GaussianMixture(rng.uniform(0.2, 1, k), rng.normal(size=(k, 2)), rng.uniform(0.1, 0.6, (k, 2)))
    forms = [
        (paths.Linear(), gammas.Brownian(), law(2)),
        (paths.Trigonometric(), gammas.Quadratic(), densities.Gaussian(np.array([0.4, -0.3]), np.array([[1.2, 0.3], [0.3, 0.7]]))),
        (paths.Linear(), gammas.SineSquared(), law(3)),
    ]
    under = lambda path, gamma, base: processes.StochasticInterpolant(path=path, gamma=gamma, base=base)
    return [models.ExactModel(law(3), under(*form)) for form in forms]


def bend(y, t, process, cond):
    """A tilt that is neither quadratic nor constant in time."""
    return jnp.sin(3 * t) * jnp.cos(y[:, 0]) * y[:, 1] + t**2 * jnp.tanh(y[:, 0] * y[:, 1])


CHANGING = (lambda t: 0.5 + 0.3 * jnp.sin(t), lambda t: -0.4 * jnp.cos(t), 1.2)


def rates(anchors, *, exponents=CHANGING, tilt=bend, t=0.37, noises=(0.0, 0.5, 2.0)):
    r"""For every anchor the rate, and for every epsilon what the Fokker-Planck equation asks for.

    :math:`h = \partial_\tau\Phi + \nabla\cdot v + v\cdot\nabla\Phi - \epsilon(\Delta\Phi + |\nabla\Phi|^2)` for the drift
    :math:`v = -u + \epsilon\nabla\Phi` of the solver.
    """
    with jax.enable_x64(True):
        members, keys = experts(), jax.random.split(jax.random.key(1), len(Y))
        compositions = [fk.weighted(members, exponents, tilt=tilt, anchor=anchor).model for anchor in anchors]

        def of(model, y, t):
            phi = lambda y, t: model.log_density(y[None], t)[0]
            slope = jax.vmap(jax.grad(phi, argnums=(0, 1)), (0, None))
            (gradient, change), hessian = slope(y, t), jax.vmap(jax.hessian(phi), (0, None))(y, t)
            square = jnp.trace(hessian, axis1=1, axis2=2) + jnp.sum(gradient**2, axis=1)
            asked = []
            for eps in noises:

                def drift(y, eps=eps):
                    said = model(y[None], t)
                    return (-said.velocity - eps / said.process.gamma.gamma(t) * said.eta)[0]

                v = jax.vmap(drift)(y)
                divergence = jnp.trace(jax.vmap(jax.jacfwd(drift))(y), axis1=1, axis2=2)
                asked.append(-change + divergence + jnp.sum(v * gradient, axis=1) - eps * square)
            return model.evaluate(y, t, None, keys, 0).rate, jnp.stack(asked)

        return [tuple(map(np.asarray, jax.jit(of)(model, jnp.asarray(Y), jnp.asarray(t)))) for model in compositions]


@pytest.mark.parametrize("anchor", ["score", "flow"])
def test_the_rate_balances_the_fokker_planck_equation_for_any_noise(anchor):
    ((rate, asked),) = rates([anchor])
    # Terms of size 10 in float64; measured 5e-15.
    for balance in asked:
        np.testing.assert_allclose(rate, balance, rtol=1e-12, atol=1e-12)


def test_weights_without_a_divergence():
    """With the exponents for the anchor the rate holds no Jacobian of an expert: that of the heads alone, written out."""
    b = np.array([0.7, -0.4, 1.1])
    ((rate, _),) = rates(["score"], exponents=tuple(b), tilt=None, noises=(0.0,))
    with jax.enable_x64(True):
        said = [model(jnp.asarray(Y), 0.37) for model in experts()]
    c, s = (np.stack(values) for values in ([-p.velocity for p in said], [p.score for p in said]))
    anchor = np.einsum("i,ind->nd", b, c)
    written = sum(bi * np.sum((anchor - ci) * si, axis=1) for bi, ci, si in zip(b, c, s, strict=True))
    np.testing.assert_allclose(rate, written, rtol=1e-12, atol=1e-12)


def mixture(weights, means, deviations):
    column = lambda values: np.asarray(values, np.float64)[:, None]
    return densities.GaussianMixture(weights, column(means), column(deviations) ** 2)


LINE = np.linspace(-12.0, 12.0, 6001)
BASE, OTHER_BASE = mixture((0.5, 0.5), (-1, 1.5), (0.8, 0.6)), mixture((0.5, 0.5), (-0.5, 1), (0.9, 0.8))
BRIDGE = processes.StochasticInterpolant(base=BASE)
OTHER = processes.StochasticInterpolant(path=paths.Trigonometric(), gamma=gammas.Quadratic(), base=OTHER_BASE)
FREE = models.ExactModel(mixture((0.3, 0.4, 0.3), (-3, 0.5, 4), (0.5, 0.8, 0.5)), BRIDGE)
BOUND = models.ExactModel(mixture((0.15, 0.6, 0.25), (-3, 0.5, 4), (0.5, 0.8, 0.5)), BRIDGE)
SECOND = models.ExactModel(mixture((0.3, 0.4, 0.3), (-2, 0.5, 3), (0.7, 0.6, 0.7)), OTHER)
EPSILON = epsilons.Proportional(4.0)
NOISY, FLOW = solvers.InterpolantSDE(epsilon=EPSILON, rule="heun"), solvers.InterpolantODE()
POPULATIONS, PARTICLES, STEPS = 8, 4096, 40


def parabola(x):
    return -0.5 * (x[:, 0] - 2.0) ** 2


@jax.jit
def log_density(model, y, t):
    return model.log_density(y, t)


def run(corrected, *, base=NOISY, steps=STEPS, particles=PARTICLES, populations=POPULATIONS, grid=None, **options):
    policy = fk.EssBelow(0.5) if base.stochastic else fk.Never()
    solver = fk.FeynmanKac(base=base, potential=corrected.potential, policy=policy, particles=particles)
    n = populations * particles
    walk = dict(start=corrected.start, key=jax.random.key(0), shape=(n, 1), chunk=n) | options
    return sample(corrected.model, solver=solver, grid=grid or grids.Arcsine(steps), **walk)


def against(corrected, out, t=0.0):
    """KS of every population to the target at ``t``, and its Z in units of the exact one."""
    logs = log_density(corrected.model, jnp.asarray(LINE, jnp.float32)[:, None], jnp.asarray(t))
    x = np.asarray(out.x)[:, 0].reshape(len(out.log_z), -1)
    found = [cloud_distance(a, w, LINE, logs) for a, w in zip(x, np.asarray(out.log_weights).reshape(x.shape), strict=True)]
    return np.array([ks for ks, *_ in found]), np.exp(np.asarray(out.log_z, np.float64) - found[0][2])


# KS and its spread over populations of 4096 at 200 steps of an independent implementation, and what the drift alone has.
LAWS = {
    "tilt": (lambda: fk.tilted(FREE, parabola), NOISY, 0.017, 0.008, 0.261),
    "tilt of the flow": (lambda: fk.tilted(FREE, parabola), FLOW, 0.020, 0.004, 0.392),
    "square": (lambda: fk.annealed(FREE, 2.0), NOISY, 0.016, 0.005, 0.063),
    "square without a divergence": (lambda: fk.annealed(FREE, 2.0, anchor="score"), NOISY, 0.028, 0.008, 0.277),
    "guidance": (lambda: fk.geometric(FREE, BOUND, 3.0), NOISY, 0.022, 0.007, 0.103),
    "product of two bridges": (lambda: fk.product([FREE, SECOND]), NOISY, 0.016, 0.005, 0.064),
}


@pytest.mark.parametrize("name", LAWS)
def test_weighted_particles_have_the_law_and_its_constant(name):
    build, base, ks, spread, _ = LAWS[name]
    corrected = build()
    found, z = against(corrected, run(corrected, base=base))
    # Two spreads of one population for the mean of eight.
    assert found.mean() < ks + 2 * spread
    # Unbiased but for the steps: at most .007 at 40 of them.
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / np.sqrt(POPULATIONS) + 0.01


def test_a_tilt_of_a_flow_without_latent_noise_needs_its_velocity_alone():
    process = processes.StochasticInterpolant(gamma=gammas.Zero(), base=BASE)
    exact = models.ExactModel(FREE.law, process)
    heads = models.FunctionModel(lambda y, t, cond: process.predict(y, t, velocity=exact(y, t).velocity), process, "prediction")
    out = run(fk.tilted(heads, parabola), base=FLOW, populations=4)
    found, z = against(fk.tilted(exact, parabola), out)
    assert found.mean() < 0.028
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / 2 + 0.01
    for build, match in (
        (lambda: walk(fk.tilted(heads, parabola)), "expected a gamma that is not zero"),
        (lambda: walk(fk.annealed(heads, 2.0), FLOW), "Composition.models: <lambda> needs HasScore"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            build()


def test_the_drift_alone_has_another_law():
    corrected = fk.tilted(FREE, parabola)
    out = sample(corrected.model, solver=FLOW, grid=grids.Arcsine(STEPS), key=KEY, shape=(PARTICLES, 1))
    logs = log_density(corrected.model, jnp.asarray(LINE, jnp.float32)[:, None], jnp.asarray(0.0))
    assert cloud_distance(np.asarray(out.x)[:, 0], np.zeros(PARTICLES), LINE, logs)[0] == pytest.approx(0.392, abs=0.03)


def short(process, t):
    return 0.5 * (1 - t)


def flat(x):
    """The same for all points."""
    return jnp.ones(len(x))


def test_a_tilt_ends_at_its_target_whatever_its_ramp_and_where_the_grid_ends():
    """Half is left out by the ramp, and what the ramp has not given at the last node is added: of a number, all of it."""
    for grid in (grids.Uniform(5), grids.Uniform(5, t_min=0.2, clean=False)):
        out = run(fk.tilted(FREE, flat, 10.0, ramp=short), grid=grid, particles=8, populations=1)
        np.testing.assert_allclose(out.log_weights, 10.0, rtol=1e-5)
    corrected = fk.tilted(FREE, parabola, ramp=short)
    logs = np.asarray(log_density(fk.annealed(FREE, 1.0).model, jnp.asarray(LINE, jnp.float32)[:, None], jnp.asarray(0.0)))
    exact = np.log(np.trapezoid(np.exp(logs.astype(np.float64) + np.asarray(parabola(LINE[:, None]))), LINE))
    z = np.exp(np.asarray(run(corrected).log_z, np.float64) - exact)
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / np.sqrt(POPULATIONS) + 0.01


def draw(start, process, event=(1,), n=20_000):
    ids = jnp.arange(n)
    one = lambda keys: (y := start.draw(keys, ids, process, jnp.float32(1.0), event), start.log_weight(y, process, 1.0))
    return jax.jit(one)(per_example_keys(KEY, ids))


STARTS = {
    "shared base": (lambda: fk.annealed(FREE, 2.0), BRIDGE), "two bases": (lambda: fk.product([FREE, SECOND]), BRIDGE),
    "tilt that has begun": (lambda: fk.tilted(FREE, parabola, ramp=lambda process, t: 1 - 0.5 * t), BRIDGE),
}  # fmt: skip


@pytest.mark.parametrize("name", STARTS)
def test_the_weights_of_the_start_average_to_the_mass_of_the_target(name):
    build, process = STARTS[name]
    corrected = build()
    logs = np.asarray(log_density(corrected.model, jnp.asarray(LINE, jnp.float32)[:, None], jnp.asarray(1.0)), np.float64)
    y, log_weight = draw(corrected.start, process)
    w = np.exp(np.asarray(log_weight, np.float64)) / np.trapezoid(np.exp(logs), LINE)
    assert abs(w.mean() - 1) < 4 * w.std() / np.sqrt(len(w))
    # The points are of the density that they are said to have.
    density = np.exp(np.asarray(corrected.start.log_prob(jnp.asarray(LINE, jnp.float32)[:, None], process, 1.0), np.float64))
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(LINE))])
    assert stats.kstest(np.asarray(y, np.float64)[:, 0], lambda v: np.interp(v, LINE, mass)).pvalue > 1e-3


def test_nothing_is_to_be_weighed_where_the_exponents_sum_to_one_and_the_base_is_shared():
    for corrected in (fk.geometric(FREE, BOUND, 3.0), fk.tilted(FREE, parabola)):
        np.testing.assert_array_equal(draw(corrected.start, BRIDGE, n=50)[1], 0.0)


def test_powers_of_gaussian_bases_are_drawn_themselves():
    """Weights are one number, the log of the integral of the product."""
    bases = densities.Gaussian(np.array([0.4, -0.3]), np.array([[1.2, 0.3], [0.3, 0.7]])), densities.Gaussian(np.zeros(2), 0.5)
    under = [processes.StochasticInterpolant(base=base) for base in bases]
    law = densities.Gaussian(np.array([1.0, -1.0]), 0.3)
    corrected = fk.weighted([models.ExactModel(law, process) for process in under], [1.5, -0.4], anchor="score")
    y, log_weight = draw(corrected.start, under[0], (2,))
    covs = [np.array([[1.2, 0.3], [0.3, 0.7]]), 0.5 * np.eye(2)]
    precision = 1.5 * np.linalg.inv(covs[0]) - 0.4 * np.linalg.inv(covs[1])
    pull = 1.5 * np.linalg.solve(covs[0], [0.4, -0.3])
    mean, cov = np.linalg.solve(precision, pull), np.linalg.inv(precision)
    np.testing.assert_allclose(log_weight, log_weight[0], atol=2e-5)
    logs = 1.5 * stats.multivariate_normal([0.4, -0.3], covs[0]).logpdf(mean) - 0.4 * stats.multivariate_normal(
        [0, 0], covs[1]
    ).logpdf(mean)
    assert float(log_weight[0]) == pytest.approx(logs - stats.multivariate_normal(mean, cov).logpdf(mean), abs=1e-4)
    np.testing.assert_allclose(np.mean(y, 0), mean, atol=4 * np.sqrt(cov.max() / 20_000))
    np.testing.assert_allclose(np.cov(np.asarray(y).T), cov, atol=4 * cov.max() * np.sqrt(2 / 20_000))


def network(process, heads=("u", "eta"), **options):
    field = models.InterpolantField(net=MLP(width=8, depth=1, **options), process=process, heads=heads)
    params = field.init(jax.random.key(1), np.zeros((1, 2), np.float32))
    # Fresh ones say 0.
    return field.bind(jax.tree.map(lambda leaf: leaf + 0.3 * jax.random.normal(KEY, leaf.shape), params))


POINTS = processes.StochasticInterpolant(base=np.random.default_rng(1).normal(size=(50, 2)).astype(np.float32))


def plane(x):
    return -jnp.sum(x**2, axis=1)


@pytest.mark.filterwarnings("ignore:a composition of interpolants")
def test_networks_are_weighed_from_end_to_end_and_a_base_of_points_will_do():
    """Their scores are not known at either end, where the rate is not asked: weights are numbers, and differ."""
    model = network(POINTS, num_classes=3)
    label = np.full(64, 2, np.int32)
    for corrected, cond in ((fk.geometric(model, model, 1.5), label), (fk.tilted(model, plane), label)):
        for rule in ("trapezoid", "left"):
            walk = corrected._replace(potential=dataclasses.replace(corrected.potential, rule=rule))
            out = run(walk, particles=64, populations=1, steps=6, shape=(64, 2), cond=cond)
            assert np.all(np.isfinite(out.log_weights))
            assert np.all(np.isfinite(out.x))
            assert int(out.diagnostics["bad_weights"][0]) == 0
            assert np.ptp(out.diagnostics["ess"]) > 0


def test_langevin_steps_at_each_time_keep_the_law():
    # Euler's rule of the flow at 60 steps, and the relative bias snr^2 of the corrections.
    law, process = (
        densities.Gaussian(np.array([1.0, -0.5]), COV),
        processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), 1.0)),
    )
    solver = solvers.PredictorCorrector(predictor=solvers.InterpolantODE(rule="euler"), corrections=2, snr=0.2)
    out = sample(models.ExactModel(law, process), solver=solver, grid=grids.Arcsine(60), key=KEY, shape=(8000, 2))
    np.testing.assert_allclose(np.mean(out.x, 0), [1.0, -0.5], atol=4 * np.sqrt(0.5 / 8000) + 0.02)
    np.testing.assert_allclose(np.cov(np.asarray(out.x).T), COV, atol=4 * 0.5 * np.sqrt(2 / 8000) + 0.5 * 0.04)
    # A correction moves points: with none of them the flow alone would have kept the order of its start.
    table = solver.table(process, grids.Arcsine(4).times(process))
    gamma = np.asarray(process.gamma.gamma(table.t[table.correct > 0]))
    np.testing.assert_allclose(table.e[table.correct > 0], -2 * 0.2**2 * gamma)
    np.testing.assert_allclose(table.n[table.correct > 0], 2 * 0.2 * gamma)
    assert np.all(table.t > 0)


def test_langevin_steps_alone_bring_points_to_the_law_of_their_time():
    process, law = (
        processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(1), 1.0)),
        densities.Gaussian(np.array([2.0]), 0.1),
    )
    many = solvers.PredictorCorrector(predictor=solvers.InterpolantODE(rule="euler"), corrections=400, snr=0.3)
    grid, far = grids.Explicit((0.51, 0.5)), starts.Fixed(np.full((4000, 1), -3.0, np.float32))
    x = np.asarray(sample(models.ExactModel(law, process), solver=many, grid=grid, start=far, key=KEY, shape=(4000, 1)).x)
    # 400 steps of 2 (.3)^2 / 4 at the precision 1 / (1/40 + 1/4 + 1/4): a memory of exp(-34), and the relative bias of a step.
    variance = 0.1 / 4 + 1 / 4 + 1 / 4
    assert x.mean() == pytest.approx(1.0, abs=4 * np.sqrt(variance / 4000))
    assert x.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / 4000) + 0.045)


VP = processes.Gaussian(schedule=schedules.VPLinear())
ON_THE_LINE = dict(grid=grids.Arcsine(4), key=KEY, shape=(8, 1))
SILENT = processes.StochasticInterpolant(gamma=gammas.Zero(), base=densities.Gaussian(np.zeros(2), 1.0))
NARROW, WIDE = (models.ExactModel(mixture((1.0,), (0.0,), (s,)), BRIDGE) for s in (0.5, 0.8))
ENDLESS = dataclasses.replace(BRIDGE, path=paths.Mirror(), base=None)


def walk(corrected, base=NOISY, **options):
    policy = fk.EssBelow(0.5) if base.stochastic else fk.Never()
    solver = fk.FeynmanKac(base=base, potential=corrected.potential, policy=policy)
    return sample(corrected.model, solver=solver, **(ON_THE_LINE | dict(start=corrected.start) | options))


@pytest.mark.filterwarnings("ignore:a composition of interpolants")
@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: fk.annealed(FREE, 2.0, laws=[3.0]), "TemperedBase.laws = 3.0: expected a Gaussian"),
        (lambda: fk.annealed(FREE, 2.0, laws=[FREE.law.matched()] * 2), "weighted.laws has 2 laws"),
        (lambda: dataclasses.replace(fk.tilted(FREE, parabola).model, exponents=(2.0,)), "Composition.alone with the exponents"),
        (lambda: fk.annealed(FREE, -2.0), "annealed.beta = -2.0: expected a finite number above 0"),
        (lambda: fk.annealed(FREE, 2.0, noise=0.5), "Composition.noise = 0.5 under .*: expected none"),
        (lambda: fk.product([FREE, models.ExactModel(FREE.law, VP)]), r"Composition.models\[1\].process = .*: expected a Stoch"),
        (lambda: fk.product([models.ExactModel(FREE.law, VP), FREE]), "expected the same process"),
        (lambda: walk(fk.annealed(network(POINTS), 2.0), shape=(8, 2)), "the base of expert 0 of a composition is points"),
        (lambda: walk(fk.tilted(network(POINTS, ("u",)), plane), shape=(8, 2)), "InterpolantSDE needs HasLatent"),
        (
            lambda: walk(fk.geometric(*[network(POINTS, ("u",))] * 2, 2.0), shape=(8, 2)),
            "Composition.models: Conditioned needs HasScore",
        ),
        (lambda: walk(fk.tilted(models.ExactModel(FREE.law, ENDLESS), parabola)), "has the data at both ends"),
        (lambda: walk(fk.annealed(FREE, 2.0), start=starts.Prior()), "sample.start = Base has no weights for"),
        (lambda: walk(fk.annealed(FREE, 2.0), grid=grids.Explicit((0.9, 0.0))), "begins at t = 0.9: expected t = 1"),
        (lambda: walk(fk.annealed(FREE, 2.0), grid=grids.Explicit((1.0, 0.0))), "expected one inside"),
        (
            lambda: walk(fk.annealed(FREE, 2.0), solvers.PredictorCorrector(predictor=solvers.InterpolantSDE(rule="euler"))),
            "composition of interpolants.base = PredictorCorrector.*: expected a InterpolantODE or InterpolantSDE",
        ),
        # Components of .5 against .8 with the powers -2 and 3: the tail of the first is lifted by more than the second has.
        (lambda: walk(fk.geometric(NARROW, WIDE, 3.0)), r"exponents \[-2.0, 3.0\] at t = .*: expected a product that falls off"),
        (lambda: walk(fk.weighted([FREE, BOUND], [-1.0, 0.5])), "at t = 1: expected a product that falls off"),
        (lambda: solvers.PredictorCorrector().table(BRIDGE, np.array([1.0, 0.5])), "DDIM.process = .*: expected a LinearGaussian"),
        (
            lambda: solvers.PredictorCorrector(predictor=solvers.InterpolantODE(rule="euler")).table(SILENT, np.array([1.0, 0.5])),
            "expected a gamma that is not zero",
        ),
    ],
)
def test_what_has_no_corrector_is_refused_by_name(build, match):
    with pytest.raises((TypeError, ValueError), match=match):
        build()


def test_a_product_of_which_nothing_is_known_is_warned_about():
    model = network(processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(2), 1.0)))
    times = grids.Arcsine(4).times(model.process)
    with pytest.warns(starts.TemperedWarning, match="nothing is known of the data of an expert"):
        fk.geometric(model, model, 3.0).start.on_grid(model.process, times)
    narrow, wide = (densities.Gaussian(np.zeros(2), v) for v in (0.1, 1.0))
    with pytest.warns(starts.TemperedWarning, match="that of the moments does not"):
        fk.geometric(model, model, 3.0, laws=[narrow, wide]).start.on_grid(model.process, times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fk.geometric(model, model, 3.0, laws=[wide, narrow]).start.on_grid(model.process, times)
        fk.annealed(model, 2.0).start.on_grid(model.process, times)


def test_a_correction_of_a_config_finds_its_form():
    solver = fk.FeynmanKac(base=NOISY)
    model, made, start = fk.Correction(kind="annealed", beta=2.0)(FREE, solver)
    assert isinstance(model, fk.FlowComposition)
    assert isinstance(start, starts.TemperedBase)
    assert made.base == NOISY
