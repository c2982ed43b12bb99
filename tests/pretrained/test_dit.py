"""The transformer of DiT against an oracle, its published sizes, and as a model."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, processes, sample, schedules, solvers, starts
from scorelab.errors import WeightsError
from scorelab.pretrained import dit, kinds, lora, store
from tests.pretrained.crafted import FILES
from tests.pretrained.derivatives import require_derivatives
from tests.pretrained.drawn_weights import drawn, error, keys_digest, require_digest, text, zeros

STORED = np.load(FILES.parent / "pretrained_dit.npz")
CASES = STORED["cases"].tolist()
# Of the largest number: in float64 sums are formed in another order; in float32 the oracle itself is 3e-7 off its float64.
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Name, network and published tensors of a case."""
    info = text(STORED[f"{request.param}/info"])
    tensors = drawn(info["shapes"], 7)
    if request.param == "one":
        for name in tensors:
            if tail := name.partition(".norm1.emb.")[2]:
                tensors[name] = tensors[f"transformer_blocks.0.norm1.emb.{tail}"]
    require_digest(tensors, info["sha256"])
    return request.param, dit.network(info["config"]), tensors


def of(name, part, dtype="float64"):
    return jnp.asarray(STORED[f"{name}/{part}"], dtype)


def told(t, dtype="float64"):
    """What a denoiser says of the noise at indices of the chain."""
    return jnp.asarray(-schedules.Discrete().log_snr(t) / 8, dtype)


@functools.partial(jax.jit, static_argnums=0)
def asked(net, tree, x, c_noise, labels):
    return net.apply(tree, x, c_noise, labels)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
def test_output_and_gradients_are_those_of_the_oracle(case, dtype):
    name, net, tensors = case
    with jax.enable_x64(dtype == "float64"):
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), dit.params(net, tensors))
        x, cotangent = of(name, "x", dtype), of(name, "cotangent", dtype)
        c_noise, labels = told(STORED[f"{name}/t"], dtype), STORED[f"{name}/labels"]

        require_derivatives(
            lambda tree, x: net.apply(tree, x, c_noise, labels), tree, x, cotangent, output=STORED[f"{name}/output"],
            gradient=STORED[f"{name}/gradient"], slopes=STORED[f"{name}/slopes"], published=dit.published, tensors=tensors,
            dtype=dtype,
        )  # fmt: skip


def test_other_sides_the_original_waves_and_one_embedding(case):
    name, net, tensors = case
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), dit.params(net, tensors))
        x, labels = of(name, "x"), STORED[f"{name}/labels"]
        c_noise = told(STORED[f"{name}/t"])
        assert error(asked(net, tree, of(name, "larger_x"), c_noise, labels), STORED[f"{name}/larger"]) < 1e-12
        original = net.clone(freq_shift=0)
        assert error(asked(original, tree, x, c_noise, labels), STORED[f"{name}/freq_shift_0"]) < 1e-12
        one = net.clone(one_embedding=True)
        if name == "each":
            with pytest.raises(WeightsError, match=r"transformer_blocks_1_norm1_emb: expected the weights of transformer_blocks_0"):
                dit.params(one, tensors)
            return
        shared = dit.params(one, tensors)
        assert len(shared["params"]) == len(tree["params"]) - net.num_layers + 1
        out = asked(one, jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), shared), x, c_noise, labels)
        assert error(out, STORED[f"{name}/output"]) < 1e-12


def test_published_names_come_back(case):
    name, net, tensors = case
    for each in (net, net.clone(one_embedding=True)) if name == "one" else (net,):
        found = dit.published(dit.params(each, tensors))
        assert sorted(found) == sorted(tensors)
        assert all(array.tobytes() == tensors[key].tobytes() for key, array in found.items())


@pytest.mark.parametrize("name", ["DiT-XL-2-256", "DiT-XL-2-512"])
def test_the_published_sizes_have_the_published_names_and_numbers(name):
    info = text(STORED[f"published/{name}"])
    net = dit.network(info["config"])
    shapes = dit.shapes(net)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == info["numbers"]
    assert keys_digest(dit.published(zeros(shapes))) == info["sha256"]
    # 27 of 28 embeddings are copies: two matrices with biases, and a table of 1001 rows.
    width = 1152
    copy = 256 * width + width + width**2 + width + 1001 * width
    one = dit.shapes(net.clone(one_embedding=True))
    assert sum(int(np.prod(shape)) for shape in one.values()) == info["numbers"] - 27 * copy
    assert keys_digest(dit.published(zeros(one))) == info["sha256"]


def test_ten_guided_steps_are_those_of_the_published_pipeline(case):
    name, net, tensors = case
    with jax.enable_x64(True):
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), dit.params(net, tensors))
        process = processes.Gaussian(schedule=net.schedule)
        model = models.Denoiser(net=net, process=process, predict="eps", data_std=1.0).bind(tree)
        out = sample(
            models.ClassifierFreeGuidance(model=model, scale=4.0),
            solver=solvers.DDIM(),
            grid=grids.Explicit(tuple(STORED[f"{name}/timesteps"]), clean=True),
            key=jax.random.key(0),
            shape=STORED[f"{name}/x"].shape,
            start=starts.Fixed(STORED[f"{name}/x"]),
            cond=jnp.asarray(STORED[f"{name}/labels"] % net.num_classes),
        )
        # Ten calls amplify the rounding of one.
        assert error(out.x, STORED[f"{name}/sampled"]) < 1e-9


def test_no_class_is_the_last_one_and_what_is_none_is_not_a_number(case):
    name, net, tensors = case
    x, c_noise, tree = of(name, "x", "float32"), told(STORED[f"{name}/t"], "float32"), dit.params(net, tensors)
    none = asked(net, tree, x, c_noise, jnp.full(3, net.num_classes))
    assert np.array_equal(asked(net, tree, x, c_noise, None), none)
    found = np.asarray(asked(net, tree, x, c_noise, jnp.array([net.num_classes, net.num_classes + 1, -1])))
    assert np.array_equal(found[0], none[0])
    assert np.isnan(found[1:]).all()


TINY = dict(num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=4, num_embeds_ada_norm=3, out_channels=8)


def folder(path, *, copied, config=TINY, name="DiTTransformer2DModel"):
    """A converted folder of drawn weights, the same embedding in all blocks or not."""
    net = dit.network(config)
    tensors = drawn({key: array.shape for key, array in dit.published(zeros(dit.shapes(net))).items()}, 1)
    if copied:
        tensors |= {key: tensors[key.replace("blocks.1", "blocks.0")] for key in tensors if "blocks.1.norm1.emb" in key}
    return store.write_folder(path, tensors, dict(kind="diffusers", network=dict(config, _class_name=name))), tensors


@pytest.mark.parametrize("copied", [True, False])
def test_a_converted_folder_is_a_model_under_every_process(copied, tmp_path):
    converted, tensors = folder(tmp_path / "out", copied=copied, name="Transformer2DModel" if copied else "DiTTransformer2DModel")
    model = dit.model(converted)
    assert model.denoiser.net.one_embedding is copied
    # Linear betas, which the published ones are in float32.
    levels = model.process.schedule.levels()
    np.testing.assert_allclose(levels, schedules.Discrete().levels(), rtol=1e-6)
    net = dit.network(TINY, model.process.schedule)
    tree, labels = dit.params(net, tensors), jnp.array([2, 0])
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    edm = dit.model(converted, processes.Gaussian(schedule=schedules.EDM(sigma_min=0.01, sigma_max=157.0)))
    for t in (3.0, 400.25, 990.0):
        alpha, sigma = (float(f(t)) for f in (model.process.alpha, model.process.sigma))
        c_noise = jnp.full(2, -model.process.log_snr(t) / 8, jnp.float32)
        eps = asked(net, tree, x, c_noise, labels)
        wanted = (x - sigma * eps) / alpha
        # Float32: the denoised point is a difference of numbers that are larger by 1 / alpha, the index is known to 5e-5.
        most = 1e-5 * (1 + sigma) / alpha * np.abs(x).max()
        assert np.abs(model(x, t, labels).denoised - wanted).max() < most
        assert np.abs(edm(x / alpha, sigma / alpha, labels).denoised - wanted).max() < most


def test_beyond_both_ends_of_the_chain_it_is_told_the_end():
    """Noise levels of EDM reach below and above those of the chain, 0.01 and 157."""
    net, edm = dit.DiT(**TINY), processes.Gaussian(schedule=schedules.EDM(sigma_min=0.002))
    tensors = drawn({key: array.shape for key, array in dit.published(zeros(dit.shapes(net))).items()}, 1)
    tree, x = dit.params(net, tensors), jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    ask = lambda c_noise: asked(net, tree, x, jnp.full(2, c_noise, jnp.float32), jnp.array([2, 0]))
    for sigma, end, inside in ((0.002, 0.0, 4.0), (200.0, 999.0, 980.0)):
        wanted = ask(told(end, "float32"))
        # Float32 knows the index of an end to 1e-4.
        assert error(ask(-edm.log_snr(sigma) / 8), wanted) < 1e-4
        # An index as far inside as these levels are outside is told from the end.
        assert error(ask(told(inside, "float32")), wanted) > 1e-3


def test_adapters_fit_a_model_in_bfloat16(tmp_path):
    model = dit.model(folder(tmp_path / "in", copied=True)[0])
    narrow = kinds.narrowed(model, "bfloat16")
    rng, at = np.random.default_rng(0), "params/transformer_blocks_0/attn1.to_q/kernel"
    adapter = {at: dict(down=rng.normal(size=(16, 2)).astype("f4"), up=rng.normal(size=(2, 16)).astype("f4"))}
    saved = lora.save(tmp_path / "out", narrow, adapter)
    assert set(store.read_safetensors(saved / lora.TENSORS)) == {
        f"base_model.model.transformer_blocks.0.attn1.to_q.lora_{factor}.weight" for factor in "AB"
    }
    kernel = lambda model: model.params["params"]["transformer_blocks_0"]["attn1.to_q"]["kernel"]
    found = kernel(lora.load(narrow, saved, scale=0.5))
    assert found.dtype == jnp.bfloat16
    wanted = kernel(narrow).astype("f4") + 0.5 * adapter[at]["down"] @ adapter[at]["up"]
    # The sum in float32, rounded once to 8 bits.
    assert np.abs(np.asarray(found, "f4") - wanted).max() <= 2**-8 * np.abs(wanted).max()
    kept = lora.load(narrow, saved, merged=False)
    assert all(np.array_equal(kept.adapter[at][which], adapter[at][which]) for which in ("down", "up"))


def test_other_tensors_are_refused_and_named(case):
    _, net, tensors = case
    less = {key: value for key, value in tensors.items() if key != "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"}
    for each in (net, net.clone(one_embedding=True)):
        with pytest.raises(WeightsError, match=r"1 missing: transformer_blocks_1_norm1_emb/timestep_embedder\.linear_1/bias"):
            dit.params(each, less)
        with pytest.raises(WeightsError, match=r"1 unexpected: transformer_blocks_7_norm1_emb/timestep_embedder\.linear_1/bias"):
            dit.params(each, tensors | {"transformer_blocks.7.norm1.emb.timestep_embedder.linear_1.bias": np.zeros(32, "f4")})
    with pytest.raises(WeightsError, match=r"1 of another shape: proj_out_1/kernel"):
        dit.params(net, tensors | {"proj_out_1.weight": np.zeros((2, 2), "f4")})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(_class_name="PixArtTransformer2DModel"), "_class_name = 'PixArtTransformer2DModel': expected DiT"),
        (dict(norm_type="ada_norm_single"), "norm_type = 'ada_norm_single': expected 'ada_norm_zero'"),
        (dict(cross_attention_dim=768), "cross_attention_dim = 768: expected None"),
        (dict(colour=3), "fields colour of DiT: expected activation_fn"),
        (dict(one_embedding=True), "fields one_embedding of DiT: expected"),
        (dict(activation_fn="geglu"), "activation_fn = 'geglu': expected one of 'gelu-approximate', 'gelu'"),
        (dict(out_channels=5), "out_channels = 5: expected one of None, 4, 8"),
        (dict(num_embeds_ada_norm=None), "num_embeds_ada_norm = None: expected an integer"),
        (dict(num_attention_heads=3, attention_head_dim=3), "expected a product that 4 divides"),
        (dict(num_layers=10**9), "num_layers = 1000000000: expected an integer of at most 65,536"),
        (dict(num_layers=1000), "1,000 blocks: expected at most 256"),
        (dict(num_attention_heads=10000), "width = 720,000: expected at most 65,536"),
        (dict(attention_bias="no"), "attention_bias = 'no': expected true or false"),
        (dict(norm_elementwise_affine=0), "norm_elementwise_affine = 0: expected False"),
        (dict(patch_size=3), "patch_size = 3: expected a divisor of sample_size = 32"),
    ],
)
def test_other_configs_are_refused(config, reason):
    with pytest.raises(WeightsError, match=reason):
        dit.network(config)


def test_other_inputs_and_folders_are_refused(tmp_path):
    net = dit.network(TINY)
    for shape in ((1, 4, 6, 4), (1, 5, 5, 4), (1, 4, 4, 3), (4, 4, 4)):
        with pytest.raises(ValueError, match=r"DiT got x of shape .*: expected \(batch, side, side, 4\)"):
            jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(1))
    with pytest.raises(ValueError, match="label"):
        dit.model(folder(tmp_path / "in", copied=True)[0])(jnp.zeros((1, 4, 4, 4)), 3.0, jnp.array([4]))
    other = store.write_folder(tmp_path / "out", dict(a=np.zeros(1)), dict(kind="tensors", network={}))
    with pytest.raises(WeightsError, match="kind 'tensors', class None: expected diffusers, DiTTransformer2DModel"):
        dit.model(other)


def test_features_of_a_block_are_found_by_name(tmp_path):
    model = dit.model(folder(tmp_path / "out", copied=True)[0])
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    (tokens,) = model.denoiser.features(model.params, x, jnp.float32(100.0), names=("transformer_blocks_0",))
    assert tokens.shape == (2, 4, 16)
    assert {"/".join(path) for path in flax.traverse_util.flatten_dict(model.params["params"])} >= {
        "transformer_blocks_1/attn1.to_q/kernel",
        "pos_embed_proj/kernel",
    }


def test_derivatives_of_both_modes_and_maps_agree():
    net = dit.network(TINY)
    with jax.enable_x64(True):
        tensors = drawn({key: array.shape for key, array in dit.published(zeros(dit.shapes(net))).items()}, 1)
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float64"), dit.params(net, tensors))
        x, direction, cotangent = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 4))
        c_noise = told(np.full(1, 300.0))
        ask = lambda x: net.apply(tree, x, c_noise, jnp.array([0, 2]))

        @jax.jit
        def both():
            out, along = jax.jvp(ask, (x,), (direction,))
            _, pull = jax.vjp(ask, x)
            mapped = jax.vmap(lambda x, label: net.apply(tree, x[None], c_noise, label[None])[0])(x, jnp.array([0, 2]))
            return out, mapped, jnp.vdot(along, cotangent), jnp.vdot(direction, pull(cotangent)[0])

        out, mapped, forward, backward = both()
        assert error(mapped, np.asarray(out)) < 1e-12
        assert abs(forward - backward) < 1e-12 * float(jnp.linalg.norm(direction) * jnp.linalg.norm(cotangent))
