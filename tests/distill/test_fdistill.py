"""The learner of f-distill: its gradient against the theorem, who may change in which step, exact parts, resumption, statistics."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from scorelab import densities, distill, losses, models, processes, sample, schedules, solvers, training
from scorelab.grids import Explicit, Karras
from scorelab.models import nets
from scorelab.training.loop import compiled
from tests.precision import double

pytestmark = pytest.mark.usefixtures("quick_compilation")

EDM = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.05, sigma_max=3.0))
VP = processes.Gaussian(schedule=schedules.VPLinear())
LOG = processes.GeometricBrownianMotion(sigma=1.5, mu=0.4)  # the offset is not 0
FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
PROCESSES = {"edm": EDM, "vp": VP, "log": LOG, "flow": FLOW}
UNIFORM = losses.UniformTimes()
KEY = jax.random.key(0)


def gaussian(mean, std):
    return densities.Gaussian.diagonal(jnp.reshape(mean, 1), jnp.reshape(std, 1) ** 2)


@dataclasses.dataclass(frozen=True)
class Affine(distill.Student):
    """The student ``m + s z``, in the chart: its law is known."""

    mean: float = 0.6
    std: float = 0.8

    def init(self, key, x, cond, teacher):
        return {"mean": jnp.asarray(self.mean, x.dtype), "std": jnp.asarray(self.std, x.dtype)}

    def draw(self, params, key, like, cond):
        return params["mean"] + params["std"] * jax.random.normal(key, like.shape, like.dtype)

    def bind(self, params):
        return lambda z, cond=None: params["mean"] + params["std"] * z

    def law(self, params):
        return gaussian(params["mean"], params["std"])


def exact(divergence, process, **options):
    """A learner all of whose parts are known in closed form."""
    defaults = dict(
        student=Affine(), fake=distill.KnownScore(law=Affine().law), ratio=distill.ExactRatio(), n_aux=0, times=UNIFORM,
        weight=distill.score_weight, normalisation=None, ema=None, optimizer=optax.sgd(0.1), clip_norm=None,
    )  # fmt: skip
    return distill.FDistill(models.ExactModel(gaussian(-0.3, 1.1), process), divergence=divergence, **defaults | options)


def begin(learner, batch):
    """The first state; compiled, which is faster than hundreds of operations one by one."""
    return jax.jit(learner.init)(KEY, batch)


def slope(learner, state, batch, key=KEY):
    """The gradient of the student's loss."""
    return jax.jit(jax.grad(lambda params: learner.objective(params, state, batch, key)[0]))(state.params)


def slopes(learner, batch, keys):
    """The same at the first state for many keys, one after another, in one program."""

    @jax.jit
    def all_of_them(keys):
        state = learner.init(KEY, batch)
        return jax.lax.map(lambda key: jax.grad(lambda p: learner.objective(p, state, batch, key)[0])(state.params), keys)

    return jax.device_get(all_of_them(keys))


def batch_of(process, n, dtype=float):
    return {"x": np.asarray(process.decode(np.zeros((n, 1))), dtype)}


def crossed(default, *columns):
    """All combinations; those that are not named are of the long tail."""
    cases = itertools.product(*columns)
    return [pytest.param(*case, id="-".join(case), marks=() if case in default else pytest.mark.long) for case in cases]


# The gradient ---------------------------------------------------------------------------------------------------------
DIVERGENCES = {"rkl": distill.ReverseKL(), "js": distill.JensenShannon(), "fkl": distill.ForwardKL()}


@pytest.mark.parametrize(
    ("which", "name"), crossed([("rkl", "edm"), ("js", "vp"), ("fkl", "log")], DIVERGENCES, ["edm", "vp", "log"])
)
@double
def test_the_gradient_is_that_of_the_divergence(which, name):
    divergence, process, n = DIVERGENCES[which], PROCESSES[name], 200_000
    # Times where neither law dominates the variance of the estimate.
    t_low = {"edm": 0.3, "vp": 0.2, "log": 0.2}[name]
    times = Band(t_low, {"edm": 2.0, "vp": 0.9, "log": 0.9}[name])
    learner = exact(divergence, process, times=times)
    x = np.linspace(-12, 12, 2401)

    def divergence_at(theta, t):
        """By quadrature at one time; the noise and the offset are those of the kernel."""
        alpha, sigma, offset = process.alpha(t), process.sigma(t), process.offset(t)
        log_prob = lambda y, m, s: (
            -0.5 * (y - alpha * m - offset) ** 2 / (alpha**2 * s**2 + sigma**2)
            - 0.5 * jnp.log(2 * jnp.pi * (alpha**2 * s**2 + sigma**2))
        )
        y = x + offset
        log_p, log_q = log_prob(y, -0.3, 1.1), log_prob(y, theta["mean"], theta["std"])
        return jnp.sum(jnp.exp(log_q) * divergence.f(jnp.exp(log_p - log_q))) * (x[1] - x[0])

    ts, weights = np.linspace(t_low, times.high, 41), np.full(41, 1.0)
    weights[0] = weights[-1] = 0.5
    total = lambda theta: jnp.sum(weights / 40 * jax.vmap(lambda t: divergence_at(theta, t))(ts))
    expected = jax.jit(jax.grad(total))({"mean": 0.6, "std": 0.8})
    parts = slopes(learner, batch_of(process, n // 20), jax.random.split(jax.random.key(7), 20))
    for which, found in parts.items():
        error = found.std(ddof=1) / math.sqrt(len(found))
        assert abs(found.mean() - float(expected[which])) < 4 * error + 1e-4, (which, found.mean(), expected[which], error)
        assert error < 0.05 * abs(float(expected[which])) + 5e-3  # the test can tell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band(losses.Times):
    """Uniform times between two ends."""

    low: float
    high: float

    def __init__(self, low, high):
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)
        object.__setattr__(self, "stratified", True)

    def time(self, u, process):
        return self.low + (self.high - self.low) * u


@double
def test_reverse_kl_without_normaliser_is_the_difference_of_denoisers():
    learner = exact(distill.ReverseKL(), EDM, weight=distill.unit_weight)
    found = slope(learner, begin(learner, batch_of(EDM, 2)), batch_of(EDM, 64))

    # The same draws by hand: keys are split into sample, time and noise.
    @jax.jit
    def draws():
        key_draw, key_times, key_noise = jax.random.split(KEY, 3)
        z, noise = (jax.random.normal(key, (64, 1)) for key in (key_draw, key_noise))
        return z, UNIFORM(key_times, EDM, 64)[:, None], noise

    z, t, noise = map(np.asarray, draws())
    y = 0.6 + 0.8 * z + t * noise
    shrink = lambda m, s: m + s**2 / (s**2 + t**2) * (y - m)
    difference = shrink(0.6, 0.8) - shrink(-0.3, 1.1)
    assert float(found["mean"]) == pytest.approx(np.mean(difference), rel=1e-6)
    assert float(found["std"]) == pytest.approx(np.mean(difference * z), rel=1e-6)


BOUNDED = {
    "srkl": distill.SoftenedReverseKL(), "js": distill.JensenShannon(), "le_cam": distill.LeCam(), "alpha": distill.Alpha(0.3)
}  # fmt: skip


@pytest.mark.parametrize(("which", "name"), crossed([("srkl", "edm"), ("js", "log")], BOUNDED, ["edm", "log"]))
@double
def test_at_the_optimal_discriminator_the_gan_term_is_the_divergence(which, name):
    # The loss phi(l) has the x-gradient phi'(l) (s_p - s_q) = -h (s_p - s_q): no score network is needed, only its ratio.
    divergence, process = BOUNDED[which], PROCESSES[name]
    scores = exact(divergence, process)
    gan = exact(divergence, process, score_weight=0.0, gan_weight=1.0, gan_divergence=divergence)
    ours, theirs = (slopes(learner, batch_of(process, 64), KEY[None]) for learner in (scores, gan))
    for which in ("mean", "std"):
        assert float(ours[which][0]) == pytest.approx(float(theirs[which][0]), rel=1e-6)


@double
def test_a_perfect_student_has_no_gradient():
    learner = exact(distill.ForwardKL(), VP, student=Affine(-0.3, 1.1), normalisation=distill.Normalisation())
    grads = slope(learner, begin(learner, batch_of(VP, 2)), batch_of(VP, 32))
    # alpha differences of equal numbers, amplified by the score weight at small times.
    assert max(abs(float(g)) for g in grads.values()) < 1e-8


@double
def test_exact_ratios_average_to_one():
    process = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.05, sigma_max=5.0))
    law = densities.GaussianMixture(np.array([0.3, 0.7]), np.array([[-2.0], [1.5]]), np.array([[[0.16]], [[0.36]]]))
    parts = models.ExactModel(law, process), models.ExactModel(gaussian(0.4, 1.3), process)
    x = np.linspace(-40, 40, 16001)
    logits = jax.jit(lambda sigma: distill.ExactRatio().logit((), x[:, None], sigma, None, *parts))
    for sigma in (0.1, 1.0, 3.0):
        logit = np.asarray(logits(sigma))
        q = stats.norm.pdf(x, 0.4, math.hypot(1.3, sigma))
        p = 0.3 * stats.norm.pdf(x, -2, math.hypot(0.4, sigma)) + 0.7 * stats.norm.pdf(x, 1.5, math.hypot(0.6, sigma))
        seen = (q > 0) & (p > 0)
        assert np.sum(q[seen] * np.exp(logit[seen])) * (x[1] - x[0]) == pytest.approx(1, abs=1e-6)
        normal = (q > 1e-200) & (p > 1e-200)
        np.testing.assert_allclose(logit[normal], np.log(p[normal] / q[normal]), rtol=1e-9, atol=1e-9)


@dataclasses.dataclass(frozen=True)
class OfClass(models.base.KnowsDensity):
    """The law N(m_c, s_c^2) of a class under EDM, which is no ExactModel."""

    mean = np.array([-1.5, 0.3])
    std = np.array([0.4, 1.2])
    process = EDM

    def __call__(self, y, t, cond=None):
        mean, variance, t = (jnp.asarray(v)[:, None] for v in (self.mean[cond], self.std[cond] ** 2, t))
        total = variance + t**2
        denoised = (t**2 * mean + variance * y) / total
        log_prob = -0.5 * ((y - mean) ** 2 / total + jnp.log(2 * jnp.pi * total))[:, 0]
        return models.exact.ExactPrediction(denoised=denoised, eps=(y - denoised) / t, log_prob=log_prob, t=t[:, 0], process=EDM)


@double
def test_exact_ratios_are_those_of_any_densities_and_see_the_condition():
    rng, teacher = np.random.default_rng(0), OfClass()
    y, t, cond = rng.normal(size=(50, 1)), rng.uniform(0.05, 3.0, 50), np.arange(50) % 2
    found = distill.ExactRatio().logit((), y, t, cond, teacher, models.ExactModel(gaussian(0.4, 1.3), EDM))
    log_p = stats.norm.logpdf(y[:, 0], teacher.mean[cond], np.hypot(teacher.std[cond], t))
    np.testing.assert_allclose(found, log_p - stats.norm.logpdf(y[:, 0], 0.4, np.hypot(1.3, t)), rtol=1e-9, atol=1e-9)
    with pytest.raises(TypeError, match=r"ExactRatio\.fake = None: expected a KnowsDensity"):
        distill.ExactRatio().logit((), y, t, cond, teacher, None)


@pytest.mark.parametrize("name", [*(pytest.param(name, marks=pytest.mark.long) for name in ("edm", "vp")), "log"])
def test_exact_parts_bring_the_student_to_the_teacher(name):
    process = PROCESSES[name]
    # Between two Gaussians the student can be the teacher, whatever the divergence and the normalisation.
    learner = exact(
        distill.JensenShannon(), process, optimizer=optax.adam(0.02), weight=distill.noise_weight,
        normalisation=distill.Normalisation(), times=losses.UniformTimes(stratified=True),
    )  # fmt: skip
    state = training.fit(learner, Zeros(process), steps=300, key=KEY)
    # Adam moves about lr sqrt(noise) around the fixed point.
    assert float(state.params["mean"]) == pytest.approx(-0.3, abs=0.08)
    assert abs(float(state.params["std"])) == pytest.approx(1.1, abs=0.08)


class Zeros:
    """Data whose values do not matter."""

    def __init__(self, process, n=256):
        self.x = np.asarray(process.decode(np.zeros((n, 1), np.float32)))

    def at(self, step):
        return {"x": self.x}


# Networks -------------------------------------------------------------------------------------------------------------
def small(process=EDM, *, width=16, num_classes=0, dtype="float32"):
    net = nets.MLP(width=width, depth=1, embed=8, num_classes=num_classes, zero_init=False, dtype=dtype)
    return models.Denoiser(net=net, process=process, data_std=1.0)


@functools.cache
def bound(process=EDM, **options):
    denoiser = small(process, **options)
    x = process.decode(np.zeros((2, 3), np.float32))
    cond = np.zeros(2, np.int32) if options.get("num_classes") else None
    return denoiser.bind(jax.jit(denoiser.init)(jax.random.key(5), x, cond))


class Points:
    """Batches as a pure function of the step."""

    def __init__(self, process=EDM, n=16, classes=0):
        self.process, self.n, self.classes = process, n, classes

    def at(self, step):
        rng = np.random.default_rng((3, step))
        batch = {"x": np.asarray(self.process.decode(rng.normal(size=(self.n, 3)).astype(np.float32)))}
        return batch | {"cond": rng.integers(0, self.classes, self.n).astype(np.int32)} if self.classes else batch


def networks(process=EDM, *, teacher=None, classes=0, **options):
    """A learner with three networks."""
    defaults = dict(
        ratio=distill.TeacherFeatures(names=("layer0",), width=8, num_classes=classes), n_aux=2, gan_weight=0.1,
        optimizer=optax.sgd(1e-2, momentum=0.9), times=losses.UniformTimes() if process is not EDM else losses.KarrasTimes(),
    )  # fmt: skip
    return distill.FDistill(bound(process, num_classes=classes) if teacher is None else teacher, **defaults | options)


# The parts that compile fastest.
BARE = dict(ratio=distill.UnitRatio(), divergence=distill.ReverseKL(), gan_weight=0.0, normalisation=None)
CASES = {
    "f-distill": dict(),
    "log chart": dict(process=LOG),
    "rectified flow": dict(process=FLOW),
    "classes": dict(classes=4),
    "own discriminator": dict(ratio=distill.Discriminator(denoiser=small(), smooth=0.1)),
    "two steps": dict(student=distill.FewStep(denoiser=small(), times=(3.0, 0.8))),
    "Diff-Instruct": BARE,
    "Diff-Instruct, two steps": BARE | dict(student=distill.FewStep(denoiser=small(), times=(3.0, 0.8))),
    "DMD2": dict(divergence=distill.ReverseKL(), weight=distill.DMDWeight(), gan_weight=1e-3),
    "GAN alone": dict(score_weight=0.0, gan_weight=1.0),
    "GAN alone, own discriminator": dict(
        score_weight=0.0, gan_weight=1.0, ratio=distill.Discriminator(denoiser=small(), smooth=0.1)
    ),
}
# Every kind of student, score, ratio and weight once.
EACH = ("DMD2", "Diff-Instruct, two steps", "GAN alone, own discriminator")


def equal(a, b):
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_one_auxiliary_update_is_no_loop():
    # The gradient of a convolution inside of one is ten times slower on the CPU, even where it is passed once.
    batch, key = Points().at(0), jax.random.key(0)

    def loops(n_aux):
        learner = networks(**BARE, n_aux=n_aux)
        state = jax.eval_shape(learner.init, key, batch)
        # How a scan keeps what every pass returns.
        return "dynamic_update_index_in_dim" in jax.jit(learner.update).lower(state, batch, key).as_text()

    assert not loops(1)
    assert loops(2)


@pytest.mark.parametrize("case", [pytest.param(case, marks=() if case in EACH else pytest.mark.long) for case in CASES])
def test_every_member_learns_and_touches_only_its_own(case):
    options = dict(CASES[case])
    process, classes = options.pop("process", EDM), options.get("classes", 0)
    learner, data = networks(process, **options), Points(process, classes=classes)
    batch = data.at(0)

    @jax.jit
    def steps(batch):
        state = learner.init(KEY, batch)
        aux, _ = learner.aux_step(state, batch, KEY)
        # A head begins at logit zero, whose gradient is zero: the student moves after the discriminator has.
        return state, aux, *learner.student_step(aux, batch, KEY)

    state, aux, student, metrics = steps(batch)
    # Gradient isolation, as equality of trees.
    ours = lambda state: (state.params, state.opt_states[0], state.averages, state.means)
    assert equal(ours(aux), ours(state))
    assert equal((student.fake, student.ratio, student.opt_states[1:]), (aux.fake, aux.ratio, aux.opt_states[1:]))
    trained = {"fake": learner.uses_fake, "ratio": not isinstance(learner.ratio, distill.UnitRatio)}
    for name, moves in trained.items():
        assert equal(getattr(aux, name), getattr(state, name)) != moves, name
    assert not equal(student.params, state.params)
    assert all(np.isfinite(float(v)) for v in metrics.values())
    made = learner.generator(student)
    z = jnp.ones((2, 5, 3) if "two steps" in case else (5, 3))
    cond = np.arange(5) % 4 if classes else None
    assert jax.eval_shape(made, z, cond).shape == (5, 3)


def test_every_optimiser_gets_the_loss_it_looks_at():
    # Losses that do not fall by a factor of 2 in a step: the rate is halved at every one after the first.
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=0.5, cooldown=0)
    slow = optax.chain(optax.sgd(1e-6), plateau)
    learner = networks(optimizer=slow, fake_optimizer=slow, ratio_optimizer=slow)

    @jax.jit
    def steps(batch):
        state = learner.init(KEY, batch)
        for _ in range(3):
            state, _ = learner.update(state, batch, KEY)
        return state

    # One update of the student in a step, two of the other two.
    assert [float(state[1].scale) for state in steps(Points().at(0)).opt_states] == [0.25, 0.5**5, 0.5**5]


def test_a_batch_that_is_no_number_leaves_all_networks_as_they_were():
    class Poisoned(Points):
        def at(self, step):
            batch = super().at(step)
            return {"x": np.where(step == 1, np.nan, batch["x"]).astype(np.float32)}

    # The discriminator sees the data.
    learner, seen = networks(), {}

    class Seen:
        every = 1

        def __call__(self, step, state, window):
            seen[step] = jax.tree.map(np.array, jax.device_get(state))

    with pytest.warns(training.SkippedBatchWarning, match="the batch of step 2 "):
        training.fit(learner, Poisoned(), steps=3, key=KEY, hooks=[Seen()], skip_nonfinite=1)
    assert int(seen[2].step) == 2
    assert equal(dataclasses.replace(seen[2], step=seen[1].step), seen[1])
    assert not equal(seen[3].ratio, seen[2].ratio)


@pytest.fixture(scope="module")
def untrained():
    """A learner with three networks, and its first state."""
    learner = networks()
    return learner, begin(learner, Points().at(0))


def test_networks_begin_as_the_teacher(untrained):
    (learner, state), teacher = untrained, bound()
    assert equal(state.params, teacher.params)
    assert equal(state.fake, teacher.params)
    # So the first student is one step of the teacher's sampler.
    z = np.float32(np.random.default_rng(1).normal(size=(4, 3)))
    found, expected = jax.jit(lambda z: (learner.generator(state)(z), teacher(3.0 * z, jnp.float32(3.0)).denoised))(z)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    fresh = networks(teacher=teacher, student=distill.FewStep(denoiser=small(), from_teacher=False))
    assert not equal(jax.jit(lambda: fresh.init(KEY, Points().at(0)).params)(), teacher.params)


def test_a_teacher_of_another_shape_is_refused():
    learner = networks(student=distill.FewStep(denoiser=small(width=24)))
    with pytest.raises(ValueError, match=r"Denoiser\.init\.like has parameters of the shapes"):
        jax.eval_shape(learner.init, KEY, Points().at(0))


@pytest.mark.parametrize("sampler", [solvers.Heun(), solvers.Renoise()], ids=["heun", "renoise"])
def test_a_one_step_student_is_a_model_for_any_sampler(sampler, untrained):
    learner, state = untrained
    out = sample(learner.model(state), solver=sampler, grid=Karras(1), key=KEY, shape=(6, 3), keep="all")
    assert int(out.diagnostics["model_calls"]) == 1
    made = jax.jit(lambda z: learner.generator(state)(z))(np.asarray(out.trajectory[0]) / 3.0)
    np.testing.assert_allclose(out.x, made, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "times"), [pytest.param("edm", (3.0, 0.8), id="edm"), pytest.param("vp", (1.0, 0.3), id="vp", marks=pytest.mark.long)]
)
def test_a_two_step_student_trains_on_what_its_sampler_meets(name, times):
    # Observation over many draws, half the examples are first-step outputs, half have been through both.
    process = PROCESSES[name]
    student = distill.FewStep(denoiser=small(process), times=times)
    one = distill.FewStep(denoiser=small(process))

    @jax.jit
    def made():
        params = student.init(KEY, jnp.zeros((2, 3)), None, None)
        z = jax.random.normal(jax.random.key(1), (2, 4000, 3))
        return params, student.draw(params, KEY, jnp.zeros((4000, 3)), None), student.bind(params)(z), one.bind(params)(z[0])

    params, *points = made()
    drawn, both, first = (np.asarray(x, np.float64) for x in points)
    for moment in (1, 2):
        mixed = 0.5 * (np.mean(both**moment, 0) + np.mean(first**moment, 0))
        spread = np.std(drawn**moment, 0) / math.sqrt(4000)
        assert np.all(np.abs(np.mean(drawn**moment, 0) - mixed) < 6 * spread)
    out = sample(student.model(params), solver=solvers.Renoise(), grid=Explicit((*times, 0.0)), key=KEY, shape=(4000, 3))
    x, spread = np.asarray(out.x, np.float64), np.std(both, 0) * math.sqrt(2 / 4000)
    assert np.all(np.abs(np.mean(x, 0) - np.mean(both, 0)) < 5 * spread)
    # The sampler has coefficients of its own: deviations agree to their standard error, about 1 / sqrt(2 n) each.
    np.testing.assert_allclose(np.std(x, 0), np.std(both, 0), rtol=5 * math.sqrt(2 / 4000))


def test_the_teacher_is_an_argument_and_not_in_the_state():
    one, other = bound(), jax.tree.map(lambda p: 2 * np.asarray(p), bound())
    learners = [networks(teacher=teacher, **RESUMED) for teacher in (one, other)]
    states = [training.fit(learner, Points(), steps=4, key=KEY) for learner in learners]
    size = sum(leaf.size for leaf in jax.tree.leaves(states[0]))
    again = [compiled(learner, training.loop._as_is, training.data_mesh())[1] for learner in learners]
    assert again[0].program is again[1].program  # one program for both teachers
    assert not equal(states[0].params, states[1].params)
    parts = (states[0].params, states[0].fake, states[0].ratio, states[0].opt_states, states[0].averages)
    assert size == sum(leaf.size for leaf in jax.tree.leaves(parts)) + 1 + 10 + sum(v.size for v in states[0].running.values())


# The warm-up is three steps. The tests share the program.
RESUMED = dict(
    warmup=3, optimizer=optax.adam(1e-2), normalisation=distill.Normalisation(decay=0.5), ema=(training.EMA(), training.PowerEMA())
)


class Recorder:
    def __init__(self, every):
        self.every, self.states = every, {}

    def __call__(self, step, state, window):
        self.states[step] = jax.tree.map(np.array, jax.device_get(state))


def test_a_killed_distillation_resumes_bit_for_bit():
    learner = networks(**RESUMED)
    saver = Recorder(5)
    whole = training.fit(learner, Points(), steps=10, key=KEY, hooks=[saver])
    again = training.fit(learner, Points(), steps=10, key=KEY, state=saver.states[5])
    assert equal(whole, again)
    assert jax.tree.structure(whole) == jax.tree.structure(again)
    assert not np.array_equal(saver.states[5].means, np.ones(10))  # there was something to lose
    # Before the end of the warm-up only the others move.
    early = training.fit(learner, Points(), steps=3, key=KEY)
    first = begin(learner, Points().at(0))
    assert equal(early.params, first.params)
    assert equal(early.opt_states[0], first.opt_states[0])
    assert not equal(early.fake, first.fake)
    assert int(early.step) == 3
    # Its first update is the first of the average too: beta = min(.999, 1 / 10), as if training had begun here.
    moved = training.fit(learner, Points(), steps=4, key=KEY)
    for old, new, average in zip(*(jax.tree.leaves(t) for t in (first.params, moved.params, moved.averages[0])), strict=True):
        old, new = np.asarray(old), np.asarray(new)
        np.testing.assert_allclose(average, old + 0.9 * (new - old), rtol=1e-5, atol=1e-7)


def test_low_precision_networks_keep_wide_weights():
    learner = networks(teacher=bound(dtype="bfloat16"))

    @jax.jit
    def whole(batch):
        state = learner.init(KEY, batch)
        return jax.value_and_grad(lambda params: learner.objective(params, state, batch, KEY), has_aux=True)(state.params)

    (loss, (means, seen, _, _)), grads = whole(Points().at(0))
    assert {loss.dtype, means.dtype, seen["h"].dtype, seen["ratio"].dtype, seen["gap"].dtype} == {jnp.dtype("float32")}
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_guidance_reaches_the_teacher_alone():
    guided = [models.ClassifierFreeGuidance(model=bound(num_classes=4), scale=scale) for scale in (1.0, 3.0)]
    learners = [networks(teacher=teacher, classes=4, weight=distill.unit_weight, **BARE) for teacher in guided]
    batch = Points(classes=4).at(0)

    @jax.jit
    def parts(learner, batch):
        state = learner.init(KEY, batch)
        moves = jax.grad(lambda params: learner.objective(params, state, batch, KEY)[0])(state.params)
        return state, moves, learner.aux_step(state, batch, KEY)[0].fake

    (state, moves, fake), (same, others, same_fake) = (parts(learner, batch) for learner in learners)
    assert equal(state, same)
    assert not equal(moves, others)
    assert equal(fake, same_fake)


# Rewards and pairs ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("low", "high"),
    [pytest.param(0.05, 0.0501, marks=pytest.mark.long), pytest.param(0.9999, 1.0, marks=pytest.mark.long), (0.05, 3.0)],
)
@double
def test_a_reward_shifts_the_mean_as_the_noise_levels_say(low, high):
    # p = N(0, 1), r = lam x: min E[-r] + E_t KL(q_t || p_t) has the mean lam / E_t[1 / (1 + sigma_t^2)] and keeps the variance;
    # only without noise is it the tilted law, with the mean lam.
    lam = 0.7
    process = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.05, sigma_max=3.0))
    # The mean over log-uniform noise in closed form: the integral of dlog s / (1 + s^2) is log s - log(1 + s^2) / 2.
    inner = lambda s: math.log(s) - 0.5 * math.log1p(s**2)
    mean = lam * math.log(high / low) / (inner(high) - inner(low))
    times = losses.UniformLogSNRTimes(log_snr_min=-2 * math.log(high), log_snr_max=-2 * math.log(low), stratified=True)
    learner = distill.FDistill(
        models.ExactModel(gaussian(0.0, 1.0), process), Affine(mean, 1.0), fake=distill.KnownScore(law=Affine().law), n_aux=0,
        divergence=distill.ReverseKL(), normalisation=None, weight=distill.score_weight, times=times, ema=None,
        reward=lambda x: lam * x[:, 0],
    )  # fmt: skip
    for which, values in slopes(learner, batch_of(process, 4096), jax.random.split(KEY, 16)).items():
        # At the fixed point the gradient is a mean of zeros; without the shift it would be lam - mean / ... of order .1.
        assert abs(values.mean()) < 4 * values.std(ddof=1) / 4 + 1e-6, which
    # At one noise level it is lam (1 + sigma^2).
    known = {0.0501: 0.70175, 1.0: 1.4, 3.0: 0.97342}[high]
    assert mean == pytest.approx(known, abs=2e-4)


def test_rewards_with_conditions_and_pairs_reach_the_student():
    teacher = bound(num_classes=4)
    data = Points(classes=4)
    batch = data.at(0)
    plain = networks(teacher=teacher, classes=4, **BARE)
    state = begin(plain, batch)
    value = lambda who, batch: jax.jit(who.objective)(state.params, state, batch, KEY)
    base, _ = value(plain, batch)
    reward = lambda x, cond: x[:, 0] * (cond == 1)
    wanted = networks(teacher=teacher, classes=4, **BARE, reward=reward, with_cond=True, reward_weight=2.0)
    loss, (_, _, _, metrics) = value(wanted, batch)
    assert float(loss) == pytest.approx(float(base) - 2 * float(metrics["reward"]), rel=1e-5)
    assert "reward" in metrics
    # The student starts as one step of the teacher: pairs made by it are matched already.
    z, cond = np.float32(np.random.default_rng(1).normal(size=(8, 3))), np.arange(8) % 4
    pairs = {
        "pair_noise": z,
        "pair_x": np.asarray(jax.jit(lambda z, cond: plain.generator(state)(z, cond))(z, cond)),
        "pair_cond": cond,
    }
    regressed = networks(teacher=teacher, classes=4, **BARE, pair_weight=0.5)
    bare = {k: v for k, v in pairs.items() if k != "pair_cond"}
    with pytest.raises(ValueError, match=r"batch has no \['pair_cond'\]"):
        jax.eval_shape(regressed.objective, state.params, state, batch | bare, KEY)
    assert float(value(regressed, batch | pairs)[0]) == pytest.approx(float(base), rel=1e-5)
    off = pairs | {"pair_x": pairs["pair_x"] + 1.0}
    assert float(value(regressed, batch | off)[0]) == pytest.approx(float(base) + 0.5, rel=1e-5)
    with pytest.raises(ValueError, match=r"batch has no \['pair_cond', 'pair_noise', 'pair_x'\]"):
        jax.eval_shape(regressed.objective, state.params, state, batch, KEY)


def in_parts(learner, batch, n):
    """The state and the metrics after an update in ``n`` parts, from the same state and draws."""

    @jax.jit
    def updated(batch):
        return learner.update(learner.init(KEY, batch), batch, KEY)

    learner = dataclasses.replace(learner, accumulate=n)
    return jax.device_get(updated(batch))


@pytest.mark.parametrize("case", ["all of it", pytest.param("SiD", marks=pytest.mark.long)])
def test_a_batch_in_parts_is_the_batch(case):
    # Steps of one times the gradient, so that what has moved is the gradient.
    plain = dict(optimizer=optax.sgd(1.0), fake_optimizer=optax.sgd(1.0), ratio_optimizer=optax.sgd(1.0), clip_norm=None, n_aux=2)
    batch, teacher = Points(n=24, classes=4).at(0), bound(num_classes=4)
    if case == "SiD":
        learner = distill.SiD(teacher, distill.FewStep(denoiser=small(num_classes=4), times=(3.0, 0.8)), **plain)
    else:
        # Weights that are normalised over bins of the whole batch; pairs are fewer than examples.
        pairs = dict(pair_noise=batch["x"][:12], pair_x=2 * batch["x"][:12], pair_cond=batch["cond"][:12])
        batch, parts = batch | pairs, dict(pair_weight=0.1, reward=lambda x: jnp.sin(x[:, 0]))
        learner = distill.FDistill(
            teacher, ratio=distill.Discriminator(denoiser=small(num_classes=4)), gan_weight=0.1, **plain | parts
        )
    (whole, metrics), (cut, cut_metrics) = in_parts(learner, batch, 1), in_parts(learner, batch, 3)
    first = jax.device_get(jax.jit(learner.init)(KEY, batch))
    for name in ("params", "fake", "ratio"):
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), getattr(whole, name), getattr(first, name)))
        assert not moved or max(moved) > 1e-2, name
    # Float32, of numbers of order one summed in another order.
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    jax.tree.map(close, cut, whole)
    assert cut_metrics.keys() == metrics.keys()
    jax.tree.map(close, cut_metrics, metrics)


class Coupled(distill.SiD):
    """An objective that does not say that it is a mean over examples."""

    def student_loss(self, drawn):
        return jnp.var(drawn.y0), (drawn.means, {}, {})


@dataclasses.dataclass(frozen=True)
class Followed(distill.LearnedScore):
    """A fake score with a loss of its own."""

    def loss(self, params, key, batch):
        return super().loss(params, key, batch)


def test_a_batch_that_cannot_be_taken_in_parts_is_refused():
    for make, message in (
        (lambda: networks(accumulate=0), r"FDistill\.accumulate = 0: expected an integer >= 1"),
        (
            lambda: exact(distill.ReverseKL(), EDM, accumulate=2),
            "student = Affine, which .* draw .*: expected 1, or noise",
        ),
        (lambda: networks(accumulate=2, fake=Followed(denoiser=small())), "fake = Followed, which .* loss .*: expected 1, or draw"),
        (lambda: Coupled(bound(), accumulate=2), r"Coupled\.accumulate = 2: expected 1, or by_example = True beside student_loss"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    learner, batch = networks(accumulate=3), Points().at(0)
    with pytest.raises(ValueError, match=r"FDistill\.accumulate = 3 for a batch of 16: expected a divisor of it"):
        jax.eval_shape(learner.update, jax.eval_shape(learner.init, KEY, batch), batch, KEY)


def test_regression_on_a_teachers_pairs_brings_the_student_to_its_flow():
    # The flow of a Gaussian teacher is linear: x = m + (y_T - m) sqrt(s^2 / (s^2 + sigma_T^2)), so the student is known.
    teacher = models.ExactModel(gaussian(-0.3, 1.1), EDM)
    pairs = distill.teacher_pairs(teacher, solver=solvers.Heun(), grid=Karras(40), key=KEY, shape=(512, 1))
    data = distill.WithPairs(Zeros(EDM, 16), pairs, batch_size=128)
    learner = exact(distill.ReverseKL(), EDM, score_weight=0.0, pair_weight=1.0, optimizer=optax.adam(0.05))
    state = training.fit(learner, data, steps=300, key=KEY)
    shrink = 1.1 / math.hypot(1.1, 3.0)
    # Heun's error at 40 steps is below 1e-3.
    assert float(state.params["mean"]) == pytest.approx(-0.3 * (1 - shrink), abs=3e-3)
    assert float(state.params["std"]) == pytest.approx(3.0 * shrink, abs=3e-3)


def test_parts_that_are_not_given_fit_what_is():
    teacher = bound()
    assert isinstance(distill.FDistill(teacher).ratio, distill.Discriminator)
    assert isinstance(distill.FDistill(teacher, divergence=distill.ReverseKL()).ratio, distill.UnitRatio)
    known = distill.FDistill(models.ExactModel(gaussian(0.0, 1.0), EDM), Affine(), fake=distill.KnownScore(law=Affine().law))
    assert isinstance(known.ratio, distill.ExactRatio)
    # The fake score trains where the student asks for it.
    times = losses.UniformTimes()
    assert distill.FDistill(teacher, times=times).fake.objective.times == times
    assert distill.FDistill(teacher, fake=distill.LearnedScore(denoiser=small()), times=times).fake.objective.times == times
    assert isinstance(distill.FDistill(teacher, score_weight=0.0, gan_weight=1.0).fake, distill.NoScore)


# Normalisation and running statistics ---------------------------------------------------------------------------------------------
def test_the_fake_score_learns_from_every_example():
    fake = distill.LearnedScore.at(small(), losses.KarrasTimes())
    x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
    params = fake.denoiser.init(KEY, x)
    moved = jax.jit(jax.vmap(lambda x: fake.loss(params, KEY, {"x": x})))
    others = np.stack([x + 3.0 * (np.arange(6) == i)[:, None] for i in range(6)]).astype(np.float32)
    assert np.all(np.abs(moved(others) - moved(x[None])) > 1e-3)


def test_bins_are_even_in_the_logarithm_of_the_noise():
    bins = distill.Bins.of(losses.UniformLogSNRTimes(), EDM, 10)
    times = losses.UniformLogSNRTimes(stratified=True)
    index = np.asarray(jax.jit(lambda: bins.index(EDM, times(KEY, EDM, 100_000)))())
    share = np.bincount(index, minlength=10) / len(index)
    # The 1 % tails on either side belong to the first and the last bin.
    np.testing.assert_allclose(share[1:-1], 0.098, atol=1e-3)
    np.testing.assert_allclose(bins.centres()[1:] / bins.centres()[:-1], np.exp((bins.high - bins.low) / 10), rtol=1e-6)
    flow = distill.Bins.of(losses.UniformTimes(), FLOW, 10)  # its noise ratio is infinite at the end
    assert np.isfinite([flow.low, flow.high]).all()


def test_normalisation_by_hand():
    bins = distill.Bins(count=2, low=-1.0, high=1.0)
    index, l = np.array([0, 0, 1, 1, 1]), np.array([0.0, 1.0, -1.0, 5.0, 20.0], np.float32)
    r = np.clip(np.exp(np.clip(np.float64(l), -10, 10)), 0.1, 20)
    means = 0.25 * np.array([1.0, 2.0]) + 0.75 * np.array([r[:2].mean(), r[2:].mean()])
    h = r / (means[index] + 1e-6)
    spec, before = distill.Normalisation(bins=2, decay=0.25), np.array([1.0, 2.0], np.float32)

    def run(spec, *arguments):
        return jax.jit(lambda l, index, means: spec(distill.ForwardKL(), l, index, means, bins))(*arguments)

    found, new, clipped = run(spec, l, index, before)
    np.testing.assert_allclose(new, means, rtol=1e-6)
    np.testing.assert_allclose(found, h / (h.mean() + 1e-6), rtol=1e-6)
    # 5 and 10 lie above log 20.
    assert clipped.tolist() == [False, False, False, True, True]
    with jax.enable_x64(True):
        h32, means32, _ = run(spec, l, index, before)
        assert {h32.dtype, means32.dtype} == {jnp.dtype("float32")}
    unclipped = distill.Normalisation(bins=2, clip=None)
    far = run(unclipped, np.array([50.0, 1.0], np.float32), index[:2], before)[2]
    assert far.tolist() == [True, False]
    # An empty bin keeps what it had.
    _, new, _ = run(spec, l[:2], index[:2], before)
    assert float(new[1]) == 2.0
    off = distill.Normalisation(ratio=False, unit_mean=False, clip=None)
    np.testing.assert_allclose(run(off, l[:4], index[:4], new)[0], np.exp(np.float64(l[:4])), rtol=1e-6)


def test_running_statistics_of_an_exact_ratio():
    # E[r] = 1 at every noise level, and the variation of h in closed form: for reverse KL none.
    times = losses.UniformLogSNRTimes(stratified=True)
    learner = exact(distill.ForwardKL(), EDM, times=times, normalisation=distill.Normalisation(), optimizer=optax.sgd(0.0))
    state = training.fit(learner, Zeros(EDM, 4096), steps=40, key=KEY)
    health = learner.diagnostics(state)
    assert set(health) == {"noise", "count", "ratio", "h_cv", "clipped", "accuracy", "gap", "fake_error", "teacher_error"}
    s = np.hypot(0.8, health["noise"])
    p = np.hypot(1.1, health["noise"])
    x = np.linspace(-15, 15, 6001)
    for i in range(10):
        q = stats.norm.pdf(x, 0.6, s[i])
        r = np.clip(stats.norm.pdf(x, -0.3, p[i]) / q, 0, np.exp(10))
        variance = np.sum(q * (r - 1) ** 2) * (x[1] - x[0])
        # About 40 * 4096 / 10 ratios of this variance (fewer in effect, since the past fades); the bin is not one noise level.
        assert abs(health["ratio"][i] - 1) < 6 * math.sqrt(variance / 13_000) + 5e-3
    exact_errors = health["noise"] * 0.8 / s
    np.testing.assert_allclose(health["fake_error"], exact_errors, rtol=0.15)  # a bin spans a factor of 1.5 in the noise
    assert np.all(health["teacher_error"] > health["fake_error"])
    assert np.isnan(health["accuracy"]).all()  # nobody discriminates here


def test_a_discriminator_of_different_laws_is_right():
    data = Points()
    learner = networks(ratio=distill.Discriminator(denoiser=small(width=32)), n_aux=4, score_weight=0.0, gan_weight=1.0,
                       optimizer=optax.sgd(0.0), ratio_optimizer=optax.adam(3e-3), ema=None)  # fmt: skip
    state = training.fit(learner, data, steps=60, key=KEY)
    accuracy = learner.diagnostics(state)["accuracy"]
    # The untrained student is far from the data at small noise, and noise hides the difference.
    assert np.nanmax(accuracy) > 0.8
    assert np.all((accuracy > 0.3) | np.isnan(accuracy))


def test_the_process_is_that_of_the_teacher():
    learner = exact(distill.ReverseKL(), EDM)
    assert learner.process == EDM
    # Noise of one process and a teacher of another would train without a word.
    with pytest.raises(TypeError, match="unexpected keyword argument 'process'"):
        dataclasses.replace(learner, process=VP)


# Bad input ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(student=None, teacher=models.ExactModel(gaussian(0.0, 1.0), EDM)), r"FDistill\.student = None with the teacher Ex"),
        (dict(student=distill.FewStep(denoiser=small(VP))), r"FDistill: teacher\.process = .*EDM.* and student\.process = .*VPLin"),
        (dict(student="one step"), r"FDistill\.student = 'one step': expected a Student"),
        (dict(fake=distill.LearnedScore(denoiser=small(VP))), r"teacher\.process = .*EDM.* and fake\.process = .*VPLinear"),
        (dict(ratio=distill.Discriminator(denoiser=small(VP))), r"teacher\.process = .*EDM.* and ratio\.process = .*VPLinear"),
        (dict(n_aux=-1), r"FDistill\.n_aux = -1: expected an integer >= 0"),
        (dict(ratio=distill.UnitRatio(), gan_weight=0.0), r"FDistill\.ratio = UnitRatio\(\) with divergence = JensenShannon\(\)"),
        (dict(score_weight=0.0, gan_weight=0.0), r"FDistill\.score_weight = gan_weight = 0: expected one of them above 0"),
        (dict(fake=distill.NoScore()), r"FDistill\.fake = NoScore\(\): expected a LearnedScore"),
        (dict(n_aux=0), r"FDistill\.n_aux = 0 with a LearnedScore: expected at least 1"),
        (dict(reward=3.0), r"FDistill\.reward = 3\.0: expected a function"),
        (
            dict(student=distill.FewStep(denoiser=small(), times=(3.0, 1.0)), pair_weight=1.0),
            r"FDistill\.pair_weight = 1\.0: expected 0",
        ),
        (dict(gan_weight=-1.0), r"FDistill\.gan_weight = -1\.0"),
        (dict(divergence="js"), r"FDistill\.divergence = 'js': expected a Divergence"),
        (dict(weight="dmd"), r"FDistill\.weight = 'dmd': expected a function"),
        (dict(ema=3), r"FDistill\.ema = 3: expected EMA"),
        (dict(teacher=lambda y, t, c: y), r"FDistill\.teacher = .*: expected a model, which knows its process"),
    ],
)  # fmt: skip
def test_bad_fields_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        networks(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: distill.Normalisation(clip=(2.0, 1.0)), r"Normalisation\.clip = \(2\.0, 1\.0\): expected two finite"),
        (lambda: distill.FewStep(denoiser=small(), times=(0.8, 3.0)), r"FewStep\.times = .*expected decreasing times"),
        (lambda: distill.FewStep(denoiser=small(), times=(9.0,)), r"FewStep\.times = .*expected decreasing times in"),
        (lambda: distill.Normalisation(clip=(1.0, 2.0, 3.0)), r"Normalisation\.clip = .*expected two finite numbers"),
        (
            lambda: distill.FewStep(denoiser=dataclasses.replace(small(FLOW), predict="eps")),
            r"Denoiser\.predict = 'eps' under .*RectifiedFlow.*: expected another form of prediction",
        ),
        (
            lambda: distill.LearnedScore(denoiser=small(), objective=losses.DenoisingScoreMatching(VP)),
            r"LearnedScore: objective.process = .*VPLinear.* and denoiser.process",
        ),
        (lambda: distill.SiD(bound(), ratio=distill.ExactRatio()), r"SiD\.ratio = ExactRatio\(\): expected None"),
        (lambda: distill.TeacherFeatures(names=()), r"TeacherFeatures\.names = \(\): expected names"),
        (lambda: losses.KarrasTimes(start=0.9, stop=0.1), r"KarrasTimes\.start = 0\.9: expected less than stop"),
        (lambda: losses.KarrasTimes().time(jnp.float32(0.5), FLOW), r"KarrasTimes on .*expected a finite noise ratio"),
    ],
)
def test_bad_parts_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_features_are_named():
    learner = networks(ratio=distill.TeacherFeatures(names=("block3",)))
    with pytest.raises(ValueError, match=r"MLP has no submodule block3"):
        jax.eval_shape(learner.init, KEY, Points().at(0))
