"""What meets is compared: processes, shapes, dtypes, ids, labels and times; a wrong one is refused where it enters."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import scorelab as sl
from scorelab.models import Denoiser, ExactModel, FunctionModel, ask, nets
from scorelab.processes import ScaleWarning
from scorelab.sampling import _walk

LAW = sl.densities.Gaussian(np.zeros(2), 1.0)
EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM(sigma_max=20.0))
VP = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())
FLOW = sl.processes.Gaussian(schedule=sl.schedules.RectifiedFlow())
COSINE = sl.processes.Gaussian(schedule=sl.schedules.VPCosine())
VE = sl.processes.Gaussian(schedule=sl.schedules.VE())
MODEL, OTHER = ExactModel(LAW, EDM), ExactModel(LAW, VP)
# It says that it is of one process, and its predictions are of another.
ABOUT_ANOTHER = FunctionModel(OTHER, EDM, returns="prediction")
KEY = jax.random.key(0)
Y = np.ones((4, 2), np.float32)
NET = Denoiser(net=nets.MLP(width=8, depth=1, embed=8, num_classes=5), process=EDM)


def parameters(net):
    """Random ones of the right shapes, without a program for each."""
    shapes = jax.eval_shape(lambda: net.init(KEY, Y, jnp.zeros(4), jnp.zeros(4, jnp.int32)))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def sample(model, **options):
    options = dict(solver=sl.solvers.DDIM(), grid=sl.grids.Karras(3), key=KEY, shape=(4, 2)) | options
    return sl.sample(model, **options)


def returns(shape, dtype=jnp.float32):
    return FunctionModel(lambda y, t, cond: jnp.zeros(shape, dtype), EDM)


def traced(act):
    """What is refused while it is traced needs no programs."""
    return jax.eval_shape(act)


# Processes ------------------------------------------------------------------------------------------------------------
def score_loss(model):
    return traced(lambda: sl.losses.DenoisingScoreMatching(EDM)(KEY, model, {"x": Y}))


def consistency(teacher):
    return sl.distill.ConsistencyDistillation(EDM, grid=sl.grids.Karras(4, clean=False), teacher=teacher)


@pytest.mark.parametrize(
    "meet",
    [
        lambda: sample(ABOUT_ANOTHER),
        lambda: sl.likelihood.log_likelihood(ABOUT_ANOTHER, np.ones((4, 2))),
        lambda: score_loss(OTHER),
        lambda: traced(lambda: sl.models.ClassifierFreeGuidance(model=MODEL, unconditional=OTHER)(Y, 1.0)),
        lambda: traced(lambda: sl.models.Autoguidance(model=MODEL, weak=OTHER)(Y, 1.0)),
        lambda: traced(lambda: consistency(OTHER)(KEY, MODEL, {"x": Y})),
        lambda: sl.distill.straightness(ABOUT_ANOTHER, grid=sl.grids.Karras(3), key=KEY, shape=(4, 2)),
        lambda: sl.training.ScoreLearner(NET, sl.losses.DenoisingScoreMatching(VP), optax.sgd(0.1)),
    ],
    ids=["sample", "likelihood", "loss", "guidance", "autoguidance", "distillation", "straightness", "learner"],
)
def test_two_processes_that_meet_are_both_named(meet):
    with pytest.raises(ValueError, match=r"EDM\(.*VPLinear\(|VPLinear\(.*EDM\("):
        meet()


# Shapes ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 1), (4,), (1, 2), (), (2, 4), (4, 2, 1)])
def test_a_prediction_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"has shape \(.*\) for y of shape \(4, 2\)"):
        sample(returns(shape))
    with pytest.raises(ValueError, match=r"for y of shape \(4, 2\)"):
        score_loss(returns(shape))
    with pytest.raises(ValueError, match=r"for y of shape \(4, 2\)"):
        traced(lambda: sl.models.ClassifierFreeGuidance(model=returns(shape), scale=2.0)(Y, 1.0))


@pytest.mark.parametrize("shape", [(4, 1), (4,), ()])
def test_a_bare_model_of_another_shape_is_refused(shape):
    def bare(y, t, cond):
        zeros = jnp.zeros(shape)
        return sl.processes.GaussianPrediction(denoised=zeros, eps=zeros, t=t, process=EDM)

    with pytest.raises(ValueError, match=r"bare: denoised has shape .* for y of shape \(4, 2\)"):
        sample(FunctionModel(bare, EDM, returns="prediction"))
    with pytest.raises(TypeError, match="returned an array: expected a prediction"):
        sample(FunctionModel(lambda y, t, cond: y, EDM, returns="prediction"))
    with pytest.raises(TypeError, match=r"sample\.model = .*: expected a model, which knows its process"):
        sample(bare)


def test_a_network_of_another_shape_neither_trains_nor_samples():
    class Narrow:
        def init(self, key, x, c_noise, cond):
            return {"w": jnp.ones(())}

        def apply(self, params, x, c_noise, cond):
            return params["w"] * x[:, :1]

    narrow = Denoiser(net=Narrow(), process=EDM)
    learner = sl.training.ScoreLearner(narrow, sl.losses.DenoisingScoreMatching(EDM), optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"the output of Narrow has shape \(4, 1\) for y of shape \(4, 2\)"):
        sl.training.fit(learner, sl.data.Batches({"x": np.ones((4, 2), np.float32)}, 4), steps=1, key=KEY)
    with pytest.raises(ValueError, match="the output of Narrow"):
        sample(narrow.bind({"w": jnp.ones(())}))


# Dtypes ---------------------------------------------------------------------------------------------------------------
SOLVERS = [
    sl.solvers.Heun(), sl.solvers.DPMSolverPP(order=3), sl.solvers.DEIS(order=3), sl.solvers.UniPC(),
    sl.solvers.DPMSolverPP(order=2, eta=1.0), sl.solvers.EulerMaruyama(),
]  # fmt: skip


def low(y, t, cond):
    return (y / (1 + t**2)).astype(jnp.bfloat16)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: f"{type(s).__name__}-{getattr(s, 'order', '')}")
def test_a_model_in_bfloat16_is_cast_to_the_working_precision(solver):
    walk = lambda: jax.eval_shape(lambda key: sample(FunctionModel(bare, EDM, returns="prediction"), solver=solver, key=key).x, KEY)
    assert walk().dtype == jnp.float32
    with jax.enable_x64(True):
        assert walk().dtype == jnp.float64


def bare(y, t, cond):
    """Past every constructor that casts."""
    denoised = low(y, t, cond)
    return sl.processes.GaussianPrediction(denoised=denoised, eps=((y - denoised) / t).astype(jnp.bfloat16), t=t, process=EDM)


def test_every_form_of_a_prediction_has_the_dtype_of_y():
    def forms(y):
        answer = ask(FunctionModel(low, EDM), y, jnp.float32(1.0))
        return answer.denoised, answer.eps, answer.score, answer.velocity

    answer = jax.jit(forms)(Y)
    assert [form.dtype for form in answer] == [jnp.float32] * 4
    np.testing.assert_array_equal(answer[0], 0.5)  # exact in bfloat16


# Ids, keys, labels, scales ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "ids", [[0, 1, 2], [0.0, 1.0, 2.0, 3.0], [-1, 0, 1, 2], [2**40, 2**40 + 1, 0, 1], [2**31, 0, 1, 2], [True] * 4, [[0, 1, 2, 3]]]
)
def test_ids_that_would_be_other_ids_are_refused(ids):
    with pytest.raises(ValueError, match=r"sample\.ids .*: expected integers"):
        sample(MODEL, ids=np.asarray(ids))


@pytest.mark.parametrize("key", [0, None, np.zeros(3, np.uint32), jax.random.split(KEY)])
def test_what_is_no_key(key):
    with pytest.raises(TypeError, match=r"sample\.key is .*expected one PRNG key"):
        sample(MODEL, key=key)


@pytest.mark.parametrize("cond", [[0, 1, 2, 9], [0, 1, 2, -4], [0, 1, 2, 6]])
def test_labels_that_are_no_classes(cond):
    network = NET.bind(parameters(NET.net))
    for use in (
        lambda: sample(network, cond=np.asarray(cond)),
        lambda: network(Y, 1.0, np.asarray(cond)),
        lambda: sample(sl.models.ClassifierFreeGuidance(model=network, scale=2.0), cond=np.asarray(cond)),
        lambda: sl.models.Conditioned(model=network, cond=np.asarray(cond[-1])),
        lambda: sl.likelihood.log_likelihood(network, np.ones((4, 2)), cond=np.asarray(cond)),
    ):
        with pytest.raises(ValueError, match=r"cond has labels .*: expected 0 to 4, the classes of Label\(num_classes=5\)"):
            use()


def test_a_traced_label_that_is_no_class_is_not_a_number():
    free = nets.MLP(width=8, depth=1, embed=8, num_classes=5, zero_init=False)
    network = Denoiser(net=free, process=EDM).bind(parameters(free))
    found = jax.jit(lambda cond: network(Y, 1.0, cond).denoised)(np.array([0, 5, 6, -4], np.int32))
    np.testing.assert_array_equal(np.isnan(found).all(1), [False, False, True, True])


def test_scales_of_each_sample_go_with_the_chunks():
    weak = FunctionModel(lambda y, t, cond: jnp.zeros_like(y), EDM)
    scale = np.array([0.0, 1.0, 2.0, 3.0, 4.0], np.float32)
    for guided in (
        sl.models.Autoguidance(model=MODEL, weak=weak, scale=scale),
        sl.models.RewardGradient(model=MODEL, reward=linear, scale=scale),
    ):
        parts = sample(guided, shape=(5, 2), chunk=2).x
        # One by one, with the scale of each: to the bit, since it is the same program.
        for i in range(5):
            alone = dataclasses.replace(guided, scale=scale[i : i + 1])
            np.testing.assert_array_equal(sample(alone, shape=(1, 2), chunk=2, ids=np.array([i])).x[0], parts[i])
        with pytest.raises(ValueError, match=rf"sample\.{type(guided).__name__}\.scale has a leaf of shape \(5,\)"):
            sample(guided)


def linear(x):
    return x[:, 0]


# Times ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (VP, sl.grids.Uniform(20, t_max=1000.0)),
        (FLOW, sl.grids.Uniform(20, t_max=2.0)),
        (COSINE, sl.grids.Uniform(20, t_max=1.5)),
        (COSINE, sl.grids.Quadratic(20, t_max=1.0)),
        (EDM, sl.grids.Explicit((np.inf, 1.0, 0.0))),
        (EDM, sl.grids.Explicit((1.0, -1.0))),
        (EDM, sl.grids.Explicit((20.0, 1.0, 1.0 - 1e-12, 0.0))),
        (VE, sl.grids.Uniform(5, t_max=100.0)),
        (EDM, sl.grids.Karras(5, t_max=1e39)),
    ],
    ids=str,
)
def test_times_outside_the_domain_of_the_schedule(process, grid):
    with pytest.raises(ValueError, match=r"expected (times from|noise levels|times further apart)|infinite noise level"):
        grid.times(process)


def test_a_grid_of_ones_own_is_looked_at():
    class Backwards(sl.grids.Grid):
        def times(self, process):
            return np.array([0.0, 1.0])

    with pytest.raises(ValueError, match=r"Backwards\.times = .*strictly decreasing"):
        sample(MODEL, grid=Backwards())


@pytest.mark.parametrize("t", [-1.0, 2.0, np.nan, np.array([0.5, 3.0])])
def test_host_times_are_looked_at_wherever_they_enter(t):
    law = ExactModel(LAW, FLOW)
    for use in (
        lambda: FLOW.perturb(KEY, np.ones((2, 2), np.float32), t),
        lambda: law(Y[:2], t),
        lambda: FunctionModel(lambda y, t, cond: y, FLOW)(Y[:2], t),
    ):
        with pytest.raises(ValueError, match=r"\.t = .*: expected times from 0 to 1, the domain of .*RectifiedFlow"):
            use()


# Likelihood -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(t_min=3.0, t_max=1.0), r"t_min = 3\.0: expected less than t_max = 1\.0"),
        (dict(t_min=0.0), "t_min = 0.0: expected a time with noise"),
        (dict(t_max=-1.0), "expected times from 0 to inf"),
        (dict(x=np.array([[0.0, 1.0], [np.nan, 1.0], [1.0, np.inf]])), "rows that are not finite: 1, 2 of 3"),
        (dict(x=np.zeros((0, 2))), r"shape \(0, 2\): expected \(n, \*event\) with at least one row"),
        (dict(x=np.zeros(2)), r"expected \(n, \*event\)"),
        (dict(cond=np.zeros(3)), "expected a leading axis of 2"),
        (dict(start=sl.starts.Fixed(np.zeros((2, 2)))), "given points have no density"),
    ],
)
def test_what_has_no_likelihood(options, message):
    with pytest.raises(ValueError, match=message):
        sl.likelihood.log_likelihood(MODEL, **(dict(x=np.zeros((2, 2))) | options))


def test_a_row_whose_flow_breaks_is_named():
    broken = FunctionModel(lambda y, t, cond: jnp.where(y[:, :1] > 90, jnp.nan, y / (1 + t**2)), EDM)
    with pytest.raises(FloatingPointError, match=r"not finite on the way of the rows 1 of 3"):
        sl.likelihood.log_likelihood(broken, np.array([[0.0, 1.0], [89.0, 0.0], [0.5, 0.5]]))


# The scale of the data --------------------------------------------------------------------------------------------------
def test_a_walk_from_noise_that_is_not_large_against_the_data_warns_with_both_numbers():
    law = sl.densities.Gaussian(np.full(2, 50.0), 1e4)
    edm = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    with pytest.warns(ScaleWarning, match="mean 50 and standard deviation 100 under noise of at most 80"):
        sample(ExactModel(law, edm))
    with pytest.warns(ScaleWarning, match="Denoiser.data_std: .*standard deviation 100 under noise of at most 80"):
        Denoiser(net=nets.MLP(), process=edm, data_std=100.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScaleWarning)
        sample(ExactModel(law, edm), start=sl.starts.GaussianMoments(law))
        sample(ExactModel(LAW, edm))


def test_warnings_point_at_the_line_of_the_user():
    law = sl.densities.Gaussian(np.full(2, 50.0), 1e4)
    edm = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    x = np.zeros((2, 2))
    calls = [
        lambda: sample(ExactModel(law, edm)),
        lambda: sl.likelihood.log_likelihood(ExactModel(law, edm), x),
        lambda: Denoiser(net=nets.MLP(), process=edm, data_std=100.0),
    ]
    for call in calls:
        with pytest.warns(ScaleWarning) as caught:
            call()
        assert caught[0].filename == __file__


def test_many_large_numbers_are_no_infinity():
    """Each is finite, and their sum is not."""
    law = sl.densities.Gaussian(np.zeros(2000), 1.0)
    edm = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    start = sl.starts.Fixed(np.full((2, 2000), 3e35, np.float32))
    run = dict(solver=sl.solvers.DDIM(), grid=sl.grids.Karras(2), key=jax.random.key(0), shape=(2, 2000), start=start)
    assert np.all(np.asarray(sl.sample(ExactModel(law, edm), **run).diagnostics["first_bad_step"]) == -1)


def test_the_scale_of_a_law_is_that_of_its_moments():
    one = sl.densities.Gaussian(np.array([3.0, -4.0]), np.array([[2.0, 0.5], [0.5, 1.0]]))
    np.testing.assert_allclose(one.scale(), (np.sqrt(25 / 2), np.sqrt(3 / 2)), rtol=1e-6)  # float32 parameters
    weights, variances = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.3])
    means = np.array([[1.0, 2.0], [3.0, 4.0], [-1.0, 0.0]])
    mean = weights @ means
    variance = weights @ (variances[:, None] + means**2) - mean**2
    mixture = sl.densities.GaussianMixture(weights, means, variances)
    np.testing.assert_allclose(mixture.scale(), (np.sqrt(np.mean(mean**2)), np.sqrt(np.mean(variance))), rtol=1e-6)


# Training ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            dict(label=np.array([0, 1, 2, 9], np.int32)),
            r"at step 1 .*cond has labels 0 to 9: expected 0 to 4, the classes of",
        ),
        (dict(x=np.array([[0, 1], [np.nan, 0], [0, 0], [np.inf, 1]], "f")), r"batch\['x'\] has 2 values that are not finite"),
    ],
    ids=["class", "data"],
)
def test_a_loss_that_is_no_number_names_its_cause(spoil, message):
    arrays = dict(x=np.ones((4, 2), np.float32), label=np.arange(4, dtype=np.int32)) | spoil
    data = sl.training.Prepared(sl.data.Batches(arrays, 4), cond="label")
    with pytest.raises(sl.training.NonFiniteLoss, match=message):
        sl.training.fit(LEARNER, data, steps=1, key=KEY)


LEARNER = sl.training.ScoreLearner(NET, sl.losses.DenoisingScoreMatching(EDM), optax.sgd(0.1), ema=None)


@pytest.mark.parametrize("weighting", [lambda process, t: t[:, None], lambda process, t: jnp.ones((1, 1))])
def test_a_weighting_of_another_shape_is_refused(weighting):
    learner = sl.training.ScoreLearner(NET, sl.losses.DenoisingScoreMatching(EDM, weighting=weighting), optax.sgd(0.1), ema=None)
    batch = {"x": Y, "cond": None}
    with pytest.raises(ValueError, match=r"weighting returned shape .* for t of shape \(4,\): expected that or \(\)"):
        jax.eval_shape(lambda: learner.update(learner.init(KEY, batch), batch, KEY))


def test_a_first_model_of_another_process_is_refused():
    other = Denoiser(net=NET.net, process=VP).bind({})
    with pytest.raises(ValueError, match=r"ScoreLearner: denoiser\.process = .*EDM.* and initial\.process = .*VPLinear"):
        sl.training.ScoreLearner(NET, sl.losses.DenoisingScoreMatching(EDM), optax.sgd(0.1), initial=other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=np.nan), "scale = nan: expected a finite number"),
        (dict(scale="2"), "scale"),
        (dict(scale=np.ones((4, 2))), r"expected a finite number, or one for each sample \(n,\)"),
        (dict(interval=(5.0, 1.0)), "expected noise ratios"),
        (dict(interval=(np.nan, 1.0)), "expected noise ratios"),
        (dict(interval=[5.0, 1.0]), "interval = .5.0, 1.0.: expected noise ratios"),
        (dict(interval=np.array([5.0, 1.0])), "expected noise ratios"),
        (dict(interval=(jnp.float32(5.0), np.array(1.0))), "expected noise ratios"),
        (dict(interval=None), "interval = None: expected noise ratios"),
        (dict(interval=(0.0, 1.0, 2.0)), "expected noise ratios"),
        (dict(interval=(np.zeros(4), 1.0)), "expected noise ratios"),
        (dict(interval=3.0), "expected noise ratios"),
    ],
)
def test_guidance_that_cannot_be_meant(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sl.models.ClassifierFreeGuidance(model=MODEL, **options)


@pytest.mark.parametrize("interval", [[0.5, 2.0], np.array([0.5, 2.0]), jnp.array([0.5, 2.0])], ids=lambda i: type(i).__name__)
def test_an_interval_of_another_kind_is_the_tuple(interval):
    guided = sl.models.ClassifierFreeGuidance(model=MODEL, scale=3.0, interval=interval)
    assert guided.active() == (0.5, 2.0)


class Level:
    """A model that is no pytree: all data are at ``w``."""

    process = EDM

    def __init__(self, w):
        self.w, self.more = w, {"shift": 0.0}

    def __call__(self, y, t, cond=None):
        return EDM.predict(y, t, denoised=jnp.full_like(y, self.w + self.more["shift"]))


def test_a_model_that_was_changed_is_not_answered_by_the_old_program():
    model = Level(1.0)
    at = lambda: float(sample(model).x[0, 0])
    found = [at()]
    for name, level in (("w", 5.0), ("more", {"shift": 2.0}), ("w", jnp.ones(2))):
        setattr(model, name, level)
        found.append(at())
    model.more["shift"] = 4.0
    found.append(at())
    # The last step of DDIM lands on the denoised point.
    np.testing.assert_allclose(found, [1.0, 5.0, 7.0, 3.0, 5.0], rtol=1e-6)


def test_a_model_that_was_not_changed_compiles_nothing():
    model = Level(2.0)
    sample(model)
    before = _walk._cache_size()
    model.w = 4.0 / 2
    sample(model)
    assert _walk._cache_size() == before


@pytest.mark.parametrize("cond", [["a"] * 4, np.array([None] * 4), np.array(["a"] * 4), "cats"])
def test_conditions_that_are_no_numbers(cond):
    with pytest.raises(ValueError, match=r"sample\.cond has a leaf .*: expected"):
        sample(MODEL, cond=cond)


def test_a_start_of_another_law_than_the_models_warns():
    with pytest.warns(ScaleWarning, match="the law of the start has mean 500"):
        sample(MODEL, start=sl.starts.Noised(sl.densities.Gaussian(np.full(2, 500.0), 1.0)))
    with pytest.raises(ValueError, match=r"Fixed\.points has 8 values that are not finite"):
        sample(MODEL, start=sl.starts.Fixed(np.full((4, 2), np.nan)))


def test_pairs_and_straightness_look_at_their_start():
    short = sl.starts.Fixed(np.ones((2, 2), np.float32))
    walk = dict(grid=sl.grids.Karras(3), key=KEY, shape=(4, 2), start=short)
    with pytest.raises(ValueError, match="expected one for each sample id"):
        sl.distill.teacher_pairs(MODEL, solver=sl.solvers.DDIM(), **walk)
    with pytest.raises(ValueError, match="expected one for each sample id"):
        sl.distill.straightness(MODEL, **walk)


@pytest.mark.parametrize("t", [jnp.float32(500.0), jnp.float32(-3.0)])
def test_a_time_that_is_known_is_looked_at(t):
    with pytest.raises(ValueError, match=r"expected times from 0 to 1, the domain of .*VPLinear"):
        ExactModel(LAW, VP)(Y, t)


# Numbers --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("act", "name"),
    [
        (lambda z: EDM.perturb(KEY, z, 0.5), "encode.x"),
        (lambda z: EDM.noised(z, Y, 0.5), "noised.eps"),
        (lambda z: EDM.predict(Y, 0.5, denoised=z), "predict.denoised"),
        (LAW.log_prob, "Gaussian: points"),
        (sl.densities.Gaussian.from_data, "from_data.points"),
        (lambda z: sample(MODEL, start=sl.starts.Fixed(z)), "Fixed.points"),
        (lambda z: sl.likelihood.log_likelihood(MODEL, z), "log_likelihood.x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers_that_are_not_real_are_refused(act, name):
    with pytest.raises(ValueError, match=f"{name}.* complex64: expected real numbers"):
        act(Y.astype(np.complex64))


def test_traced_numbers_of_a_law_made_on_the_host_are_refused():
    with pytest.raises(ValueError, match=r"Gaussian\.mean is traced.*Gaussian\.diagonal"):
        jax.grad(lambda mean: jnp.sum(sl.densities.Gaussian(mean, 1.0).log_prob(Y)))(jnp.zeros(2))
    slope = jax.grad(lambda mean: jnp.sum(sl.densities.Gaussian.diagonal(mean, np.ones(2)).log_prob(Y)))(jnp.zeros(2))
    np.testing.assert_allclose(slope, [4.0, 4.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [(dict(mesh=3), TypeError, "sample.mesh = 3: expected a Mesh"), (dict(progress=3), TypeError, "sample.progress = 3")],
)
def test_options_of_another_kind_are_refused(option, error, message):
    with pytest.raises(error, match=message):
        sample(MODEL, **option)
