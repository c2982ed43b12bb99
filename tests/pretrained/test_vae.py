"""The autoencoder of latent diffusion against an oracle, its published sizes, and as a map between images and latents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.errors import WeightsError
from scorelab.pretrained import store, vae
from tests.pretrained.crafted import FILES
from tests.pretrained.derivatives import require_derivatives
from tests.pretrained.drawn_weights import drawn, error, keys_digest, require_digest, text, zeros

STORED = np.load(FILES.parent / "pretrained_vae.npz")
CASES = STORED["cases"].tolist()
# Of the largest number: in float64 sums are formed in another order; in float32 the oracle itself is 3e-6 off its float64.
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Name, network and published tensors of a case."""
    info = text(STORED[f"{request.param}/info"])
    tensors = drawn(info["shapes"], 7)
    require_digest(tensors, info["sha256"])
    return request.param, vae.network(info["config"]), tensors


def bound(net, tensors, dtype="float32", **options):
    """The autoencoder with its weights."""
    return vae.Latents(params=jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), vae.params(net, tensors)), net=net, **options)


def of(name, part, dtype="float64"):
    return jnp.asarray(STORED[f"{name}/{part}"], dtype)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
@pytest.mark.parametrize(("part", "given", "which"), [("moments", "image", "encoder"), ("decoded", "z", "decoder")])
def test_outputs_and_gradients_are_those_of_the_oracle(case, part, given, which, dtype):
    name, net, tensors = case
    with jax.enable_x64(dtype == "float64"):
        tree, x, cotangent = bound(net, tensors, dtype).params, of(name, given, dtype), of(name, f"{part}_cotangent", dtype)

        require_derivatives(
            lambda tree, x: net.apply(tree, x, part=which),
            tree,
            x,
            cotangent,
            output=STORED[f"{name}/{part}"],
            gradient=STORED[f"{name}/{part}_gradient"],
            slopes=STORED[f"{name}/{part}_slopes"],
            published=vae.published,
            tensors=tensors,
            dtype=dtype,
        )


def test_tiles_are_blended_as_in_the_oracle(case):
    name, net, tensors = case
    scale, shift, channels = net.scaling_factor, net.shift_factor or 0.0, net.latent_channels
    with jax.enable_x64(True):
        latents = bound(net, tensors, "float64", tile=8)
        found = latents.decode((of(name, "large_z") - shift) * scale)
        assert error(found, STORED[f"{name}/large_decoded"]) < 1e-12
        mean, deviation = latents.moments(of(name, "large_image"))
        wanted = STORED[f"{name}/large_moments"]
        assert error(mean / scale + shift, wanted[..., :channels]) < 1e-12
        assert error(deviation / scale, np.exp(np.clip(wanted[..., channels:], -30, 20) / 2)) < 1e-12
        # What fits into a tile is not taken apart.
        z = of(name, "z")
        assert np.array_equal(latents.decode(z), bound(net, tensors, "float64").decode(z))


def test_latents_are_scaled_and_shifted(case):
    name, net, tensors = case
    scale, shift, channels = net.scaling_factor, net.shift_factor or 0.0, net.latent_channels
    with jax.enable_x64(True):
        latents = bound(net, tensors, "float64")
        moments, image = STORED[f"{name}/moments"], of(name, "image")
        assert error(latents.encode(image), (moments[..., :channels] - shift) * scale) < 1e-12
        assert error(latents.decode((of(name, "z") - shift) * scale), STORED[f"{name}/decoded"]) < 1e-12
        # A draw is mean + deviation * noise, and the noise of an image is that of its id.
        key = jax.random.key(3)
        drawn_, deviation = latents.encode(image, key), np.exp(np.clip(moments[..., channels:], -30, 20) / 2) * scale
        noise = (np.asarray(drawn_) - (moments[..., :channels] - shift) * scale) / deviation
        wanted = [jax.random.normal(jax.random.fold_in(key, i), (noise[0].size,), "float64") for i in (0, 1)]
        assert error(noise, np.stack(wanted).reshape(noise.shape)) < 1e-10
        assert error(latents.encode(image[1:], key, ids=np.array([1])), drawn_[1:]) < 1e-12


@pytest.fixture(scope="module")
def tiny():
    """A network that compiles quickly, with drawn weights."""
    blocks = dict(down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    net = vae.network(dict(blocks, block_out_channels=[4, 8], norm_num_groups=2, mid_block_add_attention=False))
    return net, drawn({key: array.shape for key, array in vae.published(zeros(vae.shapes(net))).items()}, 4)


def test_chunks_change_nothing_and_neither_do_gradients(tiny):
    with jax.enable_x64(True):
        latents, z = bound(*tiny, "float64"), jax.random.normal(jax.random.key(0), (3, 4, 4, 4))
        total = lambda latents, z, chunk: jnp.sum(jnp.sin(latents.decode(z, chunk=chunk)))
        weighted = jax.jit(jax.value_and_grad(total, (0, 1)), static_argnums=2)
        whole, parts = weighted(latents, z, None), weighted(latents, z, 2)
        # The same sums in another order.
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            assert np.abs(a - b).max() < 1e-11 * max(1.0, np.abs(a).max())
        images = jnp.tanh(jax.random.normal(jax.random.key(1), (3, 8, 8, 3)))
        assert error(latents.encode(images, chunk=1), latents.encode(images)) < 1e-12


def test_chunks_take_the_memory_of_one(tiny):
    latents = bound(*tiny)

    def bytes_of(n, chunk):
        total = jax.grad(lambda z: jnp.sum(latents.decode(z, chunk=chunk) ** 2))
        z = jax.ShapeDtypeStruct((n, 8, 8, 4), jnp.float32)
        return jax.jit(total).lower(z).compile().memory_analysis().temp_size_in_bytes

    # Of eight at once about eight times the memory of one; chunk after chunk that of one, and the images.
    assert bytes_of(8, 1) < 2 * bytes_of(1, None) < bytes_of(8, None) / 2


def test_weights_are_leaves_and_no_constants(tiny):
    net, tensors = tiny
    latents = bound(net, tensors, chunk=1)
    reward = lambda latents, z: jax.grad(lambda z: jnp.sum(latents(z)))(z)
    program = jax.make_jaxpr(reward)(latents, jnp.zeros((2, 4, 4, net.latent_channels)))
    assert sum(np.size(constant) for constant in program.consts) < 100
    assert len(jax.tree.leaves(latents)) == len(tensors)


def test_published_names_come_back_from_those_of_today_and_of_the_first_files(case):
    _, net, tensors = case
    found = vae.published(vae.params(net, tensors))
    assert sorted(found) == sorted(tensors)
    assert all(array.tobytes() == tensors[key].tobytes() for key, array in found.items())
    if net.mid_block_add_attention:
        renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        old = {}
        for key, array in tensors.items():
            for now, then in renamed.items():
                key = key.replace(f"attentions.0.{now}.", f"attentions.0.{then}.")
            # As convolutions, in the very first.
            old[key] = array[:, :, None, None] if "attentions" in key and array.ndim == 2 else array
        assert len(old.keys() - tensors.keys()) == 16
        again = vae.published(vae.params(net, old))
        assert all(array.tobytes() == tensors[key].tobytes() for key, array in again.items())


@pytest.mark.parametrize("name", ["sd", "sd3"])
def test_the_published_sizes_have_the_published_names_and_numbers(name):
    info = text(STORED[f"published/{name}"])
    net = vae.network(info["config"])
    shapes = vae.shapes(net)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == info["numbers"]
    assert keys_digest(vae.published(zeros(shapes))) == info["sha256"]
    assert vae.Latents(params={}, net=net).event_shape == (64, 64, net.latent_channels)


def test_stored_images_go_there_and_back(tiny):
    latents, z = bound(*tiny), jax.random.normal(jax.random.key(0), (2, 4, 4, 4))
    x = np.asarray(latents.decode(z), np.float64)
    found = np.asarray(latents.pixels(z))
    assert found.dtype == np.uint8
    # As in diffusers: (x / 2 + .5) clipped to [0, 1], times 255, rounded; up to halves, and to float32 of x.
    wanted = 255 * np.clip(x / 2 + 0.5, 0, 1)
    assert np.abs(found - wanted).max() < 0.5 + 1e-4
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, *x.shape[1:]), np.uint8)
    key = jax.random.key(1)
    blocks = list(latents.blocks(images, key, batch=2))
    assert [len(block) for block in blocks] == [2, 2, 1]
    assert error(np.concatenate(blocks), np.asarray(latents.encode(images / np.float32(127.5) - 1, key))) < 1e-5


def test_other_tensors_are_refused_and_named(case):
    _, net, tensors = case
    less = {key: value for key, value in tensors.items() if key != "decoder.conv_norm_out.bias"}
    with pytest.raises(WeightsError, match="1 missing: decoder_conv_norm_out/bias: expected"):
        vae.params(net, less)
    with pytest.raises(WeightsError, match="1 unexpected: encoder_down_blocks_7_resnets_0/conv1/bias"):
        vae.params(net, tensors | {"encoder.down_blocks.7.resnets.0.conv1.bias": np.zeros(3, "f4")})
    with pytest.raises(WeightsError, match="1 of another shape: encoder_conv_in/kernel"):
        vae.params(net, tensors | {"encoder.conv_in.weight": np.zeros((1, 2, 3, 3), "f4")})


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (dict(_class_name="VQModel"), "_class_name = 'VQModel': expected AutoencoderKL"),
        (dict(act_fn="relu"), "act_fn = 'relu': expected 'silu'"),
        (dict(latents_mean=[0.0]), r"latents_mean = \[0.0\]: expected None"),
        (dict(colour=3), "fields colour of AutoencoderKL: expected block_out_channels"),
        (dict(down_block_types=["AttnDownEncoderBlock2D"]), "down_block_types = .*: expected 1 times 'DownEncoderBlock2D'"),
        (dict(block_out_channels=[64, 128]), "down_block_types = .*: expected 2 times 'DownEncoderBlock2D'"),
        (dict(block_out_channels=[40]), "block_out_channels = .40,.: expected integers that norm_num_groups = 32 divides"),
        (dict(scaling_factor=0), "scaling_factor = 0: expected a finite number above 0"),
        (dict(sample_size=[32, 64]), r"sample_size = \[32, 64\]: expected an integer"),
        (dict(layers_per_block=10**9), "layers_per_block = 1000000000: expected an integer of at most 65,536"),
        (dict(layers_per_block=1000), "2,001 blocks: expected at most 256"),
        (dict(use_quant_conv=1), "use_quant_conv = 1: expected true or false"),
        (dict(scaling_factor="0.2"), r"scaling_factor = '0\.2': expected a finite number"),
    ],
)
def test_other_configs_are_refused(config, reason):
    with pytest.raises(WeightsError, match=reason):
        vae.network(config)


def test_other_inputs_and_folders_are_refused(case, tmp_path):
    _, net, tensors = case
    latents, colours, key = bound(net, tensors), net.in_channels, jax.random.key(0)
    image = np.zeros((2, 8, 8, colours), np.float32)
    with pytest.raises(ValueError, match=r"encode got uint8 .*; stored images have their scale by Latents\.transform\.encode"):
        latents.encode(image.astype(np.uint8))
    with pytest.raises(ValueError, match=r"Latents of an image of 8 x 7 pixels: expected sides that \d divides"):
        latents.encode(image[:, :, :7])
    with pytest.raises(ValueError, match=r"Latents\.decode got float32 of shape \(2, 8, 8, \d\): expected"):
        latents.decode(image)
    with pytest.raises(ValueError, match=r"Latents\.encode got float32 of shape \(0, 8, 8, \d\): expected"):
        latents.encode(image[:0])
    with pytest.raises(ValueError, match=r"Latents\.encode\.ids is int32 \(3,\): expected integers \(2,\)"):
        latents.encode(image, key, ids=np.arange(3, dtype=np.int32))
    with pytest.raises(ValueError, match=r"Latents\.chunk = 0: expected an integer >= 1"):
        latents.encode(image, chunk=0)
    with pytest.raises(ValueError, match=r"Latents\.tile = 6: expected a multiple of 4"):
        bound(net, tensors, tile=6)
    config = dict(text(STORED[f"{CASES[0]}/info"])["config"], _class_name="AutoencoderKL")
    other = store.write_folder(tmp_path / "out", dict(a=np.zeros(1)), dict(kind="diffusers", network=dict(config, _class_name="X")))
    with pytest.raises(WeightsError, match="kind 'diffusers', class 'X': expected diffusers, AutoencoderKL"):
        vae.latents(other)
