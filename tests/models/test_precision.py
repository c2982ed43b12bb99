"""What is computed in bfloat16 when a network is told to, and what stays in float32: read from the traced programs."""

from collections import Counter
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import config, densities, distill, fk, grids, losses, models, processes, sample, schedules, solvers, training
from scorelab.models.nets import MLP, DiT, Transformer, UNet, layers
from scorelab.models.nets.dense import Dense
from scorelab.models.nets.heads import Heads
from tests.contracts.members import CLASSES, NETWORKS
from tests.contracts.test_conditions import ALL, LINE, VOLUME, given
from tests.programs import products, result_types, traced

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(0)
EDM = processes.Gaussian(schedule=schedules.EDM())
BRIDGE = processes.StochasticInterpolant(base=densities.Gaussian(np.zeros(3), 1.0))
# Every network of the contract, and those that attend with every condition; both forms of the convolution.
NETS = {
    **NETWORKS,
    "unet, loop-safe": (NETWORKS["unet"][0].clone(loop_safe=True), NETWORKS["unet"][1]),
    "unet, all conditions": (UNet(channels=(4, 8), condition=ALL), (8, 4, 2)),
    "volumes, all conditions": (UNet(channels=(4, 8), condition=VOLUME), (4, 2, 2, 2)),
    "dit, all conditions": (DiT(patch=4, width=16, depth=2, heads=2, condition=ALL), (8, 12, 1)),
    "transformer, all conditions": (Transformer(width=16, depth=2, heads=2, condition=LINE), (6, 2)),
    # More tokens than the few numbers that may be summed in bfloat16.
    "transformer": (NETWORKS["transformer"][0], (12, 2)),
    "rematerialised": (DiT(patch=4, width=16, depth=1, heads=2, remat=True), (8, 8, 1)),
}


def problem(name):
    """A network in bfloat16, the shapes of its parameters, and the sum of squares of its output as a function of them and x."""
    net, event = NETS[name]
    net = net.clone(dtype="bfloat16")
    n = 4 if net.condition else 16
    cond = np.zeros(n, np.int32) if net.num_classes else given(net.condition, event) if net.condition else None
    x, c = np.zeros((n, *event), np.float32), np.zeros(n, np.float32)
    params = jax.eval_shape(lambda: net.init(KEY, x, c, cond, estimate=x))
    return params, jax.ShapeDtypeStruct(x.shape, x.dtype), lambda p, x: jnp.sum(net.apply(p, x, c, cond, estimate=x) ** 2)


def factors(fn, *args, known=0):
    """How often networks multiply factors of which types; they ask for no precision, theirs is jax_default_matmul_precision.

    ``known`` is the number of products of known laws, which have every digit.
    """
    found = products(fn, *args)
    assert sum(p.exact for p in found) == known
    found = [p for p in found if not p.exact]
    assert {p.precision for p in found} == {()}
    return Counter((p.left, p.right) for p in found)


@pytest.mark.parametrize("name", NETS)
def test_every_product_has_factors_in_bfloat16(name):
    params, x, loss = problem(name)
    ways = (loss, jax.grad(loss, (0, 1)), lambda p, x: jax.jvp(lambda x: loss(p, x), (x,), (x,)))
    for fn in ways:
        found = factors(fn, params, x)
        assert set(found) == {("bfloat16", "bfloat16")}
        assert sum(found.values()) > 5
    # Parameters, and so their gradients, stay in float32.
    assert result_types(params) == result_types(jax.eval_shape(jax.grad(loss, (0, 1)), params, x)) == {"float32"}


def test_the_same_networks_in_float32_have_none_in_bfloat16():
    net, event = NETS["dit"]
    x, c = np.zeros((2, *event), np.float32), np.zeros(2, np.float32)
    params = jax.eval_shape(net.init, KEY, x, c)
    assert set(factors(lambda p: net.apply(p, x, c), params)) == {("float32", "float32")}


SUMS = ("reduce_sum", "cumsum", "scatter-add", "scatter_add", "reduce_window_sum")


@pytest.mark.parametrize("name", NETS)
def test_no_sum_of_many_numbers_is_in_bfloat16(name):
    """A sum in bfloat16 stands still at 256 times its terms: statistics of norms, and gradients of what is added to many."""
    params, x, loss = problem(name)
    seen = 0
    for equation in traced(jax.grad(loss, (0, 1)), params, x):
        if equation.primitive.name in SUMS and str(equation.outvars[0].aval.dtype) == "bfloat16":
            terms = equation.invars[0].aval.size / equation.outvars[0].aval.size
            # Doubling the sides of an image or a volume makes four or eight of one pixel.
            assert equation.primitive.name == "reduce_sum", equation
            assert terms <= 8, equation
        seen += equation.primitive.name in SUMS
    assert seen > 5


def test_the_gradient_of_a_bias_is_its_sum():
    x, slope = np.zeros((65_536, 1), np.float32), np.random.default_rng(0).normal(0.1, 1.0, (65_536, 1)).astype(np.float32)
    params = {"params": {"kernel": np.zeros((1, 1), np.float32), "bias": np.zeros(1, np.float32)}}
    loss = lambda p: jnp.sum(Dense(1, dtype="bfloat16").apply(p, x).astype(jnp.float32) * slope)
    found = jax.jit(jax.grad(loss))(params)["params"]["bias"]
    # The slopes are rounded to bfloat16 on their way, and float32 sums them: 1e-5 is some roundings of the total.
    expected = np.sum(slope.astype(jnp.bfloat16).astype(np.float64))
    np.testing.assert_allclose(found, [expected], rtol=1e-5)


def test_the_dense_layer_is_that_of_flax():
    x = np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)
    ours, theirs = Dense(4), nn.Dense(4)
    for net in (ours, theirs):
        assert jax.tree.map(jnp.shape, net.init(KEY, x)) == {"params": {"kernel": (3, 4), "bias": (4,)}}
    params = theirs.init(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(KEY, x), params)
    loss = lambda net: jax.value_and_grad(lambda p: jnp.sum(jnp.sin(net.apply(p, x))))(params)
    jax.tree.map(np.testing.assert_array_equal, loss(ours), loss(theirs))


@pytest.mark.parametrize("predict", ["edm", "eps", "x0", "v", "flow"])
def test_preconditioning_is_float32_around_a_network_in_bfloat16(predict):
    """D and eps are the float64 combination of y and of what the network says, to the rounding of float32."""
    net = MLP(width=16, depth=1, embed=16, zero_init=False, dtype="bfloat16")
    process = processes.Gaussian(schedule=schedules.VPLinear())
    denoiser = models.Denoiser(net=net, process=process, predict=predict, data_std=0.7)
    params = denoiser.init(jax.random.key(1), (3,))
    y = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    for t in (0.01, 0.5, 0.97):
        answer, output = denoiser.bind(params)(y, np.float32(t)), denoiser.network_output(params, y, np.float32(t))
        assert result_types(answer) == result_types(output) == {"float32"}
        # What a network in bfloat16 says is a number of bfloat16.
        np.testing.assert_array_equal(output, np.asarray(output.astype(jnp.bfloat16), np.float32))
        c, f = denoiser.coefficients(np.float64(np.float32(t))), np.asarray(output, np.float64)
        for found, (a, b) in ((answer.denoised, (c.p, c.q)), (answer.eps, (c.m, c.n))):
            a, b = np.float64(a), np.float64(b)
            # Rounding of the coefficients and of two products; alpha and sigma of a float32 time have a few units more.
            size = np.abs(a * y) + np.abs(b * f)
            assert np.max(np.abs(found - (a * y + b * f)) / size) < 3e-6


@lru_cache
def teacher(dtype="bfloat16", **options):
    net = MLP(width=16, depth=2, embed=16, dtype=dtype, **options)
    denoiser = models.Denoiser(net=net, process=EDM)
    return denoiser.bind(denoiser.init(KEY, (3,)))


BATCH = {"x": np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)}
LEARNERS = {
    "score": lambda: training.ScoreLearner(
        teacher().denoiser, losses.DenoisingScoreMatching(EDM), optax.adam(1e-3), ema=(training.EMA(), training.PowerEMA())
    ),
    "implicit score": lambda: training.ScoreLearner(teacher().denoiser, losses.ImplicitScoreMatching(EDM), optax.adam(1e-3)),
    "fdistill": lambda: distill.FDistill(teacher()),
    "fdistill, features": lambda: distill.FDistill(
        teacher(), ratio=distill.TeacherFeatures(names=("layer0",), width=8, dtype="bfloat16"), gan_weight=0.1
    ),
    "sid": lambda: distill.SiD(teacher()),
    "interpolant": lambda: training.ScoreLearner(
        models.InterpolantField(net=teacher().denoiser.net, process=BRIDGE), losses.InterpolantMatching(BRIDGE), optax.adam(1e-3)
    ),
    "consistency": lambda: training.ScoreLearner(
        models.Denoiser(net=teacher().denoiser.net, process=EDM, predict="consistency"),
        distill.ConsistencyDistillation(EDM, grid=grids.Karras(6), teacher=teacher()), optax.adam(1e-3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARNERS)
def test_an_update_multiplies_in_bfloat16_and_keeps_its_state_in_float32(name):
    learner = LEARNERS[name]()
    state = jax.eval_shape(learner.init, KEY, BATCH)
    new, metrics = jax.eval_shape(learner.update, state, BATCH, KEY)
    assert result_types(state) == result_types(new) == result_types(metrics) == {"float32"}
    assert jax.tree.map(jnp.result_type, state) == jax.tree.map(jnp.result_type, new)
    # The base of the interpolant is drawn in the eigenvectors of its Gaussian, and turned back.
    known = 2 * (name == "interpolant")
    assert set(factors(learner.update, state, BATCH, KEY, known=known)) == {("bfloat16", "bfloat16")}


def reward(x):
    return -jnp.sum(x**2, axis=-1)


SAMPLERS = {
    "Heun": (solvers.Heun(churn=4.0), lambda model: model),
    "UniPC": (solvers.UniPC(), lambda model: model),
    "Euler-Maruyama": (solvers.EulerMaruyama(), lambda model: model),
    "particles": (
        fk.FeynmanKac(base=solvers.EulerMaruyama(), potential=fk.Difference(reward, 1.0, every=2), particles=4),
        lambda model: models.RewardGradient(model=model, reward=reward, scale=0.5),
    ),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_multiplies_in_bfloat16_and_keeps_points_and_weights_in_float32(name):
    solver, around = SAMPLERS[name]
    model = around(teacher())

    def draw(key):
        return sample(model, solver=solver, grid=grids.Karras(4), key=key, shape=(8, 3), keep="all")

    out = jax.eval_shape(lambda key: [getattr(draw(key), part) for part in ("x", "log_weights", "log_z", "trajectory")], KEY)
    assert result_types(out) == {"float32"}
    assert set(factors(lambda key: draw(key).x, KEY)) == {("bfloat16", "bfloat16")}
    # What the loop carries from step to step: points, weights and the solver's memory, none of it in bfloat16.
    loops = [e for e in traced(lambda key: draw(key).x, KEY) if e.primitive.name == "scan"]
    assert loops
    for loop in loops:
        carried = loop.outvars[: loop.params["num_carry"]]
        assert "bfloat16" not in {str(v.aval.dtype) for v in carried}


# Attention -----------------------------------------------------------------------------------------------------------


def heads(dtype, n=5, m=7, d=8):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(3, tokens, 2, d)), dtype) for tokens in (n, m, m)]


@jax.jit
def both_ways(q, k, v):
    """Ours and that of JAX: the values, and gradients of a smooth function of them."""
    theirs = lambda *args: jax.nn.dot_product_attention(*args, implementation="xla")
    smooth = lambda f: lambda *args: jnp.sum(jnp.sin(f(*args).astype(jnp.float32)))
    return [(f(q, k, v), jax.grad(smooth(f), (0, 1, 2))(q, k, v)) for f in (layers.attend, theirs)]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 3e-6), ("bfloat16", 3 * 2**-8)])
def test_attention_is_that_of_jax(dtype, tolerance):
    ours, theirs = both_ways(*heads(dtype))
    for found, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert found.dtype == expected.dtype == jnp.dtype(dtype)
        # A few roundings of the type on sums of seven: in units of the largest entry.
        found, expected = (np.asarray(a, np.float64) for a in (found, expected))
        assert np.max(np.abs(found - expected)) < tolerance * np.max(np.abs(expected))


@jax.jit
def derivatives(q, k, v, dq):
    attended = lambda q: layers.attend(q, k, v)
    forward = jax.jvp(attended, (q,), (dq,))[1]
    second = jax.jvp(lambda q: jax.grad(lambda q: jnp.sum(attended(q) ** 3))(q), (q,), (dq,))[1]
    h = 1e-5
    difference = lambda f: (f(q + h * dq) - f(q - h * dq)) / (2 * h)
    slope = difference(jax.grad(lambda q: jnp.sum(attended(q) ** 3)))
    batched = jax.vmap(lambda q: layers.attend(q[None], k[:1], v[:1])[0])(q)
    return forward, difference(attended), second, slope, batched, layers.attend(q, jnp.stack([k[0]] * 3), jnp.stack([v[0]] * 3))


def test_attention_has_derivatives_of_every_mode_and_order():
    with jax.enable_x64(True):
        q, k, v = heads("float64")
        forward, difference, second, slope, batched, repeated = derivatives(q, k, v, jnp.cos(q))
        # Central differences of step 1e-5 in float64: 1e-10 each, of terms of order ten in the second.
        np.testing.assert_allclose(forward, difference, atol=1e-8)
        np.testing.assert_allclose(second, slope, atol=1e-7)
        np.testing.assert_allclose(batched, repeated, atol=1e-14)


class Cuda:
    platform_version = "PJRT C API\ncuda 12090"


@pytest.mark.parametrize(
    ("dtype", "size", "kernel"), [("bfloat16", 64, True), ("bfloat16", 12, False), ("bfloat16", 136, False), ("float32", 64, False)]
)
def test_the_fused_kernel_is_asked_for_where_it_exists(monkeypatch, dtype, size, kernel):
    asked = []
    q, k, v = heads(dtype, d=size)
    plain = layers.attend(q, k, v)
    # On this machine nothing changes.
    np.testing.assert_array_equal(np.asarray(layers.attend(q, k, v, fused=True), np.float32), np.asarray(plain, np.float32))
    monkeypatch.setattr(layers, "get_backend", Cuda)
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, implementation: asked.append(implementation) or q)
    layers.attend(q, k, v)
    assert not asked
    layers.attend(q, k, v, fused=True)
    assert asked == (["cudnn"] if kernel else [])


def test_every_network_that_attends_hands_the_choice_on(monkeypatch):
    chosen = []
    attend = layers.attend
    spy = lambda q, k, v, *, fused=False: chosen.append(fused) or attend(q, k, v)
    for module in ("layers", "blocks", "unet"):
        monkeypatch.setattr(f"scorelab.models.nets.{module}.attend", spy)
    for name in ("unet, all conditions", "dit, all conditions", "transformer, all conditions"):
        net, event = NETS[name]
        x, c, cond = np.zeros((4, *event), np.float32), np.zeros(4, np.float32), given(net.condition, event)
        for fused in (False, True):
            chosen.clear()
            shapes = jax.eval_shape(net.clone(fused_attention=fused).init, KEY, x, c, cond)
            assert set(chosen) == {fused}
            assert len(chosen) > 1
            assert jax.tree.structure(shapes) == jax.tree.structure(jax.eval_shape(net.init, KEY, x, c, cond))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DiT(dtype="float16"), "DiT.dtype = 'float16': expected one of"),
        (lambda: Transformer(fused_attention="cudnn"), "Transformer.fused_attention = 'cudnn': expected True or False"),
        (lambda: UNet(fused_attention=1), "UNet.fused_attention = 1: expected True or False"),
        (lambda: Heads(dtype="bf16"), "Heads.dtype = 'bf16': expected one of"),
        (lambda: distill.TeacherFeatures(names=("layer0",), dtype="half"), "TeacherFeatures.dtype = 'half': expected one of"),
    ],
)
def test_errors_name_the_field(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_one_line_of_a_config_sets_it():
    for line, wanted in (("models.nets.MLP.dtype = 'bfloat16'", "bfloat16"), ("models.nets.MLP.depth = 1", "float32")):
        loaded = config.load("toys/rings", (line,)).experiment
        assert loaded.learner.denoiser.net.dtype == wanted


def test_heads_in_bfloat16_come_close():
    features = (np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32), np.ones((6, 5), np.float32))
    c = np.linspace(-1, 1, 6).astype(np.float32)
    net = Heads(width=16, num_classes=CLASSES)
    params = jax.tree.map(
        lambda leaf: 0.3 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(net.init, KEY, features, c, np.zeros(6, np.int32)),
    )
    apply = lambda net: jax.jit(net.apply)(params, features, c, np.zeros(6, np.int32))
    low = net.clone(dtype="bfloat16")
    assert set(factors(lambda p: low.apply(p, features, c), params)) == {("bfloat16", "bfloat16")}
    found, expected = np.asarray(apply(low)), np.asarray(apply(net))
    assert found.dtype == np.float32
    # 2^-9 per rounding, some ten of them in a row: within 10 * 2^-9 of the scale.
    assert 0 < np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 10 * 2**-9
