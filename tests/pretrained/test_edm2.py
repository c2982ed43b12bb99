"""The network of EDM2 against its formulas in NumPy, and against the parameter counts of the paper."""

import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import pretrained
from scorelab.errors import WeightsError
from scorelab.models import ClassifierFreeGuidance
from scorelab.pretrained import edm2, kinds, lora, store
from tests.pretrained import crafted

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY = dict(
    img_resolution=8, img_channels=2, label_dim=3, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[4],
    channels_per_head=8, clip_act=2.0, label_balance=0.6, concat_balance=0.4, res_balance=0.35, attn_balance=0.25,
)  # fmt: skip
SIGMAS = np.array([0.02, 1.0, 40.0])


def modules(**more):
    outer = dict(type="Precond", args=[], kwargs=dict(sigma_data=0.6), attributes=dict(sigma_data=0.6))
    return {"": outer, "unet": dict(type="UNet", args=[], kwargs=TINY | more)}


def drawn(net):
    """Weights as a file has them, small enough that the epsilon of their magnitude is seen."""
    rng = np.random.default_rng(1)
    found = {}
    for place, shape in edm2.shapes(net).items():
        value = rng.standard_normal(shape).astype("f4")
        found[place] = 0.01 * value if place.endswith("kernel") else value
    tree = {"params": {}}
    for place, value in found.items():
        at = tree["params"]
        *outer, leaf = place.split("/")
        for part in outer:
            at = at.setdefault(part, {})
        at[leaf] = value
    training = {"logvar_fourier.freqs": value, "logvar_fourier.phases": value, "logvar_linear.weight": value}
    return edm2.published(tree) | training


# The paper's formulas (appendix B of arXiv 2312.02696) for images (b, c, h, w), in float64.
def normalised(x, axis):
    return x / (1e-4 + np.sqrt(np.mean(x**2, axis, keepdims=True)))


def mp_silu(x):
    return x / (1 + np.exp(-x)) / 0.596


def mp_sum(a, b, t):
    return ((1 - t) * a + t * b) / np.hypot(1 - t, t)


def mp_cat(a, b, t):
    na, nb = a.shape[1], b.shape[1]
    return np.concatenate([(1 - t) / np.sqrt(na) * a, t / np.sqrt(nb) * b], 1) * np.sqrt((na + nb) / ((1 - t) ** 2 + t**2))


class Reference:
    """A network by its published names."""

    def __init__(self, tensors, config):
        self.w = {name.removeprefix("unet."): value.astype("f8") for name, value in tensors.items()}
        self.config = config

    def weight(self, name):
        w = self.w[f"{name}.weight"]
        return normalised(w, tuple(range(1, w.ndim))) / np.sqrt(w[0].size)

    def linear(self, name, x):
        return x @ self.weight(name).T

    def conv(self, name, x):
        w = self.weight(name)
        k, (h, width) = w.shape[-1], x.shape[2:]
        x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
        return sum(np.einsum("oi,bihw->bohw", w[:, :, i, j], x[:, :, i : i + h, j : j + width]) for i in range(k) for j in range(k))

    def block(self, name, x, embedding):
        if name.endswith("down"):
            x = (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4
        if name.endswith("up"):
            x = x.repeat(2, 2).repeat(2, 3)
        encoder, changes = name.startswith("enc"), f"{name}.conv_skip.weight" in self.w
        if encoder:
            x = normalised(self.conv(f"{name}.conv_skip", x) if changes else x, 1)
        y = self.conv(f"{name}.conv_res0", mp_silu(x))
        c = 1 + self.w[f"{name}.emb_gain"] * self.linear(f"{name}.emb_linear", embedding)
        y = self.conv(f"{name}.conv_res1", mp_silu(y * c[:, :, None, None]))
        if changes and not encoder:
            x = self.conv(f"{name}.conv_skip", x)
        x = mp_sum(x, y, self.config["res_balance"])
        if f"{name}.attn_qkv.weight" in self.w:
            b, _, h, w = x.shape
            parts = self.conv(f"{name}.attn_qkv", x).reshape(b, -1, self.config["channels_per_head"], 3, h * w)
            q, k, v = np.moveaxis(normalised(parts, 2), 3, 0)
            logits = np.einsum("nhcq,nhck->nhqk", q, k) / np.sqrt(q.shape[2])
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            found = np.einsum("nhqk,nhck->nhcq", weights / weights.sum(-1, keepdims=True), v)
            x = mp_sum(x, self.conv(f"{name}.attn_proj", found.reshape(x.shape)), self.config["attn_balance"])
        return np.clip(x, -self.config["clip_act"], self.config["clip_act"])

    def __call__(self, x, c_noise, one_hot):
        waves = np.sqrt(2) * np.cos(np.outer(c_noise, self.w["emb_fourier.freqs"]) + self.w["emb_fourier.phases"])
        classes = self.linear("emb_label", one_hot * np.sqrt(self.config["label_dim"]))
        embedding = mp_silu(mp_sum(self.linear("emb_noise", waves), classes, self.config["label_balance"]))
        x = np.concatenate([x, np.ones_like(x[:, :1])], 1)
        skips = []
        for name in ("enc.8x8_conv", "enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0"):
            x = self.conv(name, x) if "conv" in name else self.block(name, x, embedding)
            skips.append(x)
        for name in ("4x4_in0", "4x4_in1", "4x4_block0", "4x4_block1", "8x8_up", "8x8_block0", "8x8_block1"):
            x = mp_cat(x, skips.pop(), self.config["concat_balance"]) if "block" in name else x
            x = self.block(f"dec.{name}", x, embedding)
        return self.w["out_gain"] * self.conv("out_conv", x)


@pytest.fixture(scope="module")
def case():
    """Network, tensors, reference, input, labels and their rows."""
    net = edm2.network(modules())
    tensors = drawn(net)
    x = np.random.default_rng(2).standard_normal((3, 8, 8, 2))
    return net, tensors, Reference(tensors, TINY), x, np.array([2, 0, 1]), np.eye(3)[[2, 0, 1]]


def channels_first(x):
    return np.moveaxis(x, -1, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_output_is_that_of_the_formulas(case, dtype):
    net, tensors, reference, x, labels, one_hot = case
    c_noise = np.log(SIGMAS) / 4
    wanted = reference(channels_first(x), c_noise, one_hot)
    with jax.enable_x64(dtype == "float64"):
        tree = edm2.params(net, {name: value.astype(dtype) for name, value in tensors.items()})
        assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(tree))
        given = [jnp.asarray(value, dtype) for value in (x, c_noise)]
        apply = jax.jit(net.apply)
        found = apply(tree, *given, jnp.asarray(labels))
        assert found.dtype == dtype
        # Of the largest number: sums in another order, as for the networks of EDM.
        most = dict(float64=1e-12, float32=1e-5)[dtype] * np.abs(wanted).max()
        assert np.abs(channels_first(np.asarray(found)) - wanted).max() < most
        # It was never trained without a class.
        assert np.isnan(apply(tree, *given, jnp.array([2, 0, TINY["label_dim"]]))).all((1, 2, 3)).tolist() == [False, False, True]
        with pytest.raises(ValueError, match="cond = None for UNet with classes: expected integer labels 0 to 2"):
            apply(tree, *given, None)


def test_gradient_is_that_of_the_formulas(case):
    # Without the bound of activations, at which a difference has a kink.
    _, tensors, _, x, labels, one_hot = case
    net, reference = edm2.network(modules(clip_act=None)), Reference(tensors, TINY | dict(clip_act=np.inf))
    rng, c_noise = np.random.default_rng(3), np.log(SIGMAS) / 4
    along, towards = (rng.standard_normal(x.shape) for _ in range(2))
    with jax.enable_x64(True):
        tree = edm2.params(net, {name: value.astype("f8") for name, value in tensors.items()})
        gradient = jax.jit(jax.grad(lambda x: jnp.vdot(net.apply(tree, x, jnp.asarray(c_noise), jnp.asarray(labels)), along)))(x)
    at = lambda s: np.vdot(reference(channels_first(x + s * towards), c_noise, one_hot), channels_first(along))
    h = 1e-3
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    # The difference is of fourth order: its error is about h^4, and 1e-16 / h of rounding.
    assert abs(np.vdot(np.asarray(gradient), towards) - slope) < 1e-9 * abs(slope)


def test_some_activations_are_clipped(case):
    # So that the bound is under test.
    _, tensors, reference, x, _, one_hot = case
    unbound = Reference(tensors, TINY | dict(clip_act=np.inf))
    args = np.moveaxis(x, -1, 1), np.log(SIGMAS) / 4, one_hot
    assert np.abs(unbound(*args) - reference(*args)).max() > 1e-3


def test_published_names_come_back(case):
    net, tensors, *_ = case
    found = edm2.published(edm2.stored(net, tensors))
    assert sorted(found) == sorted(name for name in tensors if not name.startswith("logvar"))
    assert all(value.tobytes() == tensors[name].tobytes() for name, value in found.items())
    # Half precision, as in published files, is widened before it is divided.
    half = edm2.params(net, {name: value.astype("f2") for name, value in tensors.items()})["params"]["enc_8x8_conv"]["kernel"]
    assert half.dtype == np.float32
    assert np.allclose(np.square(half.astype("f8")).sum((0, 1, 2)), (1 / (1 + 1e-4 / 0.01)) ** 2, rtol=0.01)


def test_other_tensors_are_refused_and_named(case):
    net, tensors, *_ = case
    with pytest.raises(WeightsError, match="1 missing: out_gain: expected"):
        edm2.params(net, {name: value for name, value in tensors.items() if name != "unet.out_gain"})
    with pytest.raises(WeightsError, match=r"tensor 'logvar_more': expected names that begin with 'unet\.'"):
        edm2.params(net, tensors | {"logvar_more": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"1 unexpected: enc_8x8_conv/bias"):
        edm2.params(net, tensors | {"unet.enc.8x8_conv.bias": np.zeros(16)})


# Millions of parameters, in the paper's table of model sizes; hashes of the names and shapes of all tensors.
@pytest.mark.parametrize(
    ("channels", "millions", "digest"),
    [
        (128, 124.7, "eea2a7bcbbe2c51d"), (192, 280.2, "17145d075dddc6bd"), (256, 497.8, "93e1a0a9787d264b"),
        (320, 777.5, "db9e88f130b316fd"), (384, 1119.3, "2788d9d50757fd28"), (448, 1523.2, "805c07757fed7377"),
    ],
    ids=["XS", "S", "M", "L", "XL", "XXL"],
)  # fmt: skip
def test_the_published_sizes_have_the_published_numbers(channels, millions, digest):
    shapes = edm2.shapes(edm2.UNet(64, 4, 1000, model_channels=channels))
    # Frequencies and phases are no parameters.
    count = sum(math.prod(shape) for place, shape in shapes.items() if "fourier" not in place)
    assert round(count / 1e6, 1) == millions
    listed = json.dumps(sorted((place, list(shape)) for place, shape in shapes.items()))
    assert hashlib.sha256(listed.encode()).hexdigest()[:16] == digest


def test_a_converted_file_is_a_model_with_its_preconditioner(case, tmp_path):
    _, tensors, reference, x, labels, one_hot = case
    converted = store.write_folder(tmp_path / "out", tensors, dict(kind="edm2", network=modules()))
    model = edm2.model(converted)
    assert (model.process.t_min, model.process.t_max, model.denoiser.data_std) == (0.002, 80, 0.6)
    # Table 1 of arXiv 2206.00364.
    sigma = SIGMAS[:, None, None, None]
    root = np.sqrt(sigma**2 + 0.6**2)
    raw = np.moveaxis(reference(np.moveaxis(sigma * x / root, -1, 1), np.log(SIGMAS) / 4, one_hot), 1, -1)
    wanted = 0.6**2 / root**2 * sigma * x + 0.6 * sigma / root * raw
    found = model(jnp.asarray(sigma * x, jnp.float32), jnp.asarray(SIGMAS, jnp.float32), jnp.asarray(labels)).denoised
    assert np.abs(np.asarray(found) - wanted).max() < 1e-5 * np.abs(wanted).max()
    with pytest.raises(ValueError, match="cond = None for UNet with classes"):
        jax.eval_shape(lambda model, y: ClassifierFreeGuidance(model=model, scale=2.0)(y, 1.0, jnp.asarray(labels)), model, x)
    with pytest.raises(WeightsError, match="kind 'edm': expected edm2"):
        edm2.model(store.write_folder(tmp_path / "other", tensors, dict(kind="edm", network=modules())))
    # An adapter of the file's kernels is added before they are normalised, and these are.
    for each in (model, kinds.narrowed(model, "bfloat16")):
        with pytest.raises(WeightsError, match=r"adapter: edm2\.UNet: expected another network"):
            lora.load(each, tmp_path / "adapter")
        with pytest.raises(WeightsError, match=r"adapter: edm2\.UNet: expected another network"):
            lora.save(tmp_path / "adapter", each, {})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(colour=3), "fields colour of UNet"), (dict(img_resolution="8"), "img_resolution = '8'"),
        (dict(channel_mult=3), "channel_mult = 3: expected a list"), (dict(label_dim=-1), "label_dim = -1"),
        (dict(res_balance="0.3"), r"res_balance = '0\.3': expected a finite number"),
        (dict(num_blocks=200), "blocks: expected at most 256"),
    ],
)  # fmt: skip
def test_other_networks_are_refused(change, reason):
    with pytest.raises(WeightsError, match=reason):
        edm2.network(modules(**change))


def encoder(**attributes):
    return dict(type="StabilityVAEEncoder", args=[], kwargs={}, attributes=attributes)


def test_the_scale_of_latents_is_that_of_the_encoder():
    scale, shift = edm2.latent_scale(dict(encoder=encoder()))
    raw = np.array([5.81, 3.25, 0.12, -2.15]) + np.array([4.17, 4.62, 3.71, 3.28])
    # One standard deviation above the mean is at half of one, as the network expects it.
    assert np.allclose(np.array(scale) * raw + shift, 0.5)
    assert edm2.latent_scale(dict(encoder=encoder(scale=[2.0, 3.0], bias=[0.0, 1.0]))) == ((2.0, 3.0), (0.0, 1.0))
    # Without an encoder they are pixels, of one channel or of three.
    assert edm2.latent_scale({}) is None
    for channels in (1, 3):
        assert edm2.latent_scale(dict(network=modules(img_channels=channels))) is None
    assert edm2.latent_scale(dict(network=modules(img_channels=2), encoder=dict(type="StandardRGBEncoder"))) is None
    with pytest.raises(WeightsError, match="img_channels = 2 without an encoder"):
        edm2.latent_scale(dict(network=modules(img_channels=2)))
    for bad in (dict(scale=[1.0, float("nan")], bias=[0, 0]), dict(scale=["x"]), dict(scale=[1.0, 2.0], bias=[1.0, 2.0, 3.0])):
        with pytest.raises(WeightsError, match="encoder"):
            edm2.latent_scale(dict(encoder=encoder(**bad)))
    with pytest.raises(WeightsError, match="encoder = 3: expected a table"):
        edm2.latent_scale(dict(encoder=3))
    with pytest.raises(WeightsError, match="encoder 'Other': expected StandardRGBEncoder or"):
        edm2.latent_scale(dict(encoder=dict(type="Other")))


def test_the_encoder_of_a_pickle_is_kept(tmp_path):
    def array(*values):
        dtype = crafted.call(crafted.named("numpy", "dtype"), crafted.text("f4"), b"\x89", b"\x88")
        parts = crafted.blob(np.array(values, "<f4").tobytes()), dtype, crafted.tupled(crafted.number(len(values)))
        return crafted.call(crafted.named("numpy._core.numeric", "_frombuffer"), *parts, crafted.text("C"))

    weights = crafted.dictionary(out_gain=crafted.tensor(of=crafted.nested()))
    ema = crafted.persistent(class_name=crafted.text("Precond"), state=crafted.dictionary(_parameters=weights))
    state = crafted.dictionary(scale=array(0.125, 0.25), bias=array(-1, 2), large=array(*range(65)))
    made = crafted.persistent(class_name=crafted.text("StabilityVAEEncoder"), state=state)
    (tmp_path / "x.pkl").write_bytes(crafted.program(crafted.dictionary(ema=ema, encoder=made), 4))
    folder = pretrained.convert(tmp_path / "x.pkl", tmp_path / "out")
    assert folder.config["kind"] == "edm2"
    assert folder.config["encoder"]["attributes"] == dict(scale=[0.125, 0.25], bias=[-1.0, 2.0])
    assert edm2.latent_scale(folder.config) == ((0.125, 0.25), (-1.0, 2.0))
