"""The networks of EDM against an oracle, and against the parameter counts of the published files."""

import hashlib
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, pretrained, sample, solvers
from scorelab.errors import ConfigError, WeightsError
from scorelab.models.base import check_condition
from scorelab.pretrained import edm, store
from scorelab.pretrained.layers import fir, resample
from scorelab.pretrained.registry import PUBLISHED
from tests.pretrained.crafted import FILES

STORED = np.load(FILES.parent / "edm.npz")
CASES = STORED["cases"].tolist()
pytestmark = pytest.mark.usefixtures("quick_compilation")
NCSNPP = dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=(1, 3, 3, 1))


def drawn(shapes):
    """The weights of the script that made the file, whose words these are."""
    rng = np.random.default_rng(7)
    found = {}
    for name, shape in shapes.items():
        uniform = 2 * rng.random(shape) - 1
        if "norm" in name:
            uniform = (1 if name.endswith("weight") else 0) + 0.3 * uniform
        elif name.endswith("weight"):
            uniform = uniform * (3 / np.prod(shape[1:])) ** 0.5
        elif not name.endswith("freqs"):
            uniform = 0.3 * uniform
        found[name] = uniform.astype(np.float32)
    return found


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """Name, network, published tensors and info of a case."""
    info = json.loads(str(STORED[f"{request.param}/info"]))
    tensors = drawn(info["shapes"])
    digest = hashlib.sha256(b"".join(value.tobytes() for value in tensors.values())).hexdigest()
    assert digest == info["sha256"], "NumPy draws other numbers: make the file anew"
    outer = dict(type="EDMPrecond", args=[], kwargs={}, attributes={})
    net = edm.network({"": outer, "model": dict(type=info["kind"], args=[], kwargs=info["config"])})
    taps = getattr(net, "resample_filter", (1, 1))
    tensors |= {name: fir(taps)[None, None].astype(np.float32) for name in info["filters"]}
    return request.param, net, tensors, info


def stored(name, part, dtype):
    return jnp.asarray(STORED[f"{name}/{part}"], dtype)


# Of the largest number: in float64 the sums are formed in another order; in float32 the oracle itself is 1.5e-6 off its float64.
MOST = dict(float64=1e-12, float32=1e-5)


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
def test_output_and_gradient_are_those_of_the_oracle(case, dtype):
    name, net, tensors, _ = case
    with jax.enable_x64(dtype == "float64"):
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), edm.params(net, tensors))
        labels = jnp.asarray(STORED[f"{name}/labels"]) if net.num_classes else None
        x, c_noise, cotangent = (stored(name, part, dtype) for part in ("x", "c_noise", "cotangent"))
        # As one that was trained without classes as well.
        net = net.clone(label_dropout=0.1)

        @jax.jit
        def asked(tree, x, cond):
            out, pull = jax.vjp(lambda x: net.apply(tree, x, c_noise, cond), x)
            return out, pull(cotangent)[0]

        out, gradient = asked(tree, x, labels)
        # The label after the last is none.
        without = asked(tree, x, jnp.full_like(labels, net.num_classes))[0] if net.num_classes else out
        assert out.dtype == gradient.dtype == dtype
        for found, part in ((out, "output"), (gradient, "gradient"), (without, "without_label")):
            wanted = STORED[f"{name}/{part}"]
            assert np.abs(np.asarray(found) - wanted).max() < MOST[dtype] * np.abs(wanted).max(), part


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_is_no_class_is_no_number(dropout):
    net = edm.SongUNet(8, label_dim=3, label_dropout=dropout)
    rows = edm.one_hot(net, jnp.array([0, 2, 3, 4, -1]), 5, jnp.float32)
    # The label after the last is a number where there was none of them in training.
    known = 3 if dropout else 2
    assert np.array_equal(rows[:known], np.eye(4)[[0, 2, 3], :3][:known])
    assert np.isnan(rows[known:]).all()
    assert np.array_equal(np.ravel(edm.one_hot(net, jnp.asarray(1), 5, jnp.float32)), [0, 1, 0])


def test_published_names_come_back(case):
    _, net, tensors, info = case
    found = edm.published(edm.params(net, tensors))
    assert sorted(found) == sorted(info["shapes"])
    assert all(array.tobytes() == tensors[name].tobytes() for name, array in found.items())


def test_the_tree_is_flat_where_features_are_looked_for(case):
    _, net, tensors, info = case
    tree = edm.params(net, tensors)["params"]
    assert {"enc_16x16_conv", "enc_16x16_block0", "enc_8x8_down", "dec_8x8_block0", "dec_16x16_up"} <= set(tree)
    assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == sum(int(np.prod(shape)) for shape in info["shapes"].values())


def test_other_tensors_are_refused_and_named(case):
    _, net, tensors, info = case
    less = {name: value for name, value in tensors.items() if name != "model.map_layer0.bias"}
    with pytest.raises(WeightsError, match="1 missing: map_layer0/bias: expected"):
        edm.params(net, less)
    with pytest.raises(WeightsError, match="1 unexpected: enc_16x16_more/kernel"):
        edm.params(net, tensors | {"model.enc.16x16_more.weight": np.zeros((3, 3, 3, 3), np.float32)})
    with pytest.raises(WeightsError, match=r"expected names that begin with 'model\.'"):
        edm.params(net, tensors | {"other": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"1 of another shape: enc_16x16_conv/kernel"):
        edm.params(net, tensors | {"model.enc.16x16_conv.weight": np.zeros((1, 2, 3, 3), np.float32)})
    with pytest.raises(WeightsError, match="expected 4 axes"):
        edm.params(net, tensors | {"model.enc.16x16_conv.weight": np.zeros((1, 2), np.float32)})
    with pytest.raises(WeightsError, match="is not the filter of"):
        edm.params(net, tensors | {info["filters"][0]: 2 * tensors[info["filters"][0]]})


# Hashes of the names and shapes of all tensors.
LISTED = {
    "edm-cifar10-32x32-uncond-vp": "aac7df893d49faa7",
    "edm-cifar10-32x32-cond-vp": "8969f86e89de87b8",
    "edm-cifar10-32x32-uncond-ve": "7fc2f8325bca2ad3",
    "edm-ffhq-64x64-uncond-vp": "56f8a05525c360c8",
    "edm-ffhq-64x64-uncond-ve": "da66fc1899032b8d",
    "edm-imagenet-64x64-cond-adm": "ff1bd8b0dcbba02e",
}


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("edm-cifar10-32x32-uncond-vp", edm.SongUNet(32, channel_mult=(2, 2, 2), augment_dim=9)),
        ("edm-cifar10-32x32-cond-vp", edm.SongUNet(32, channel_mult=(2, 2, 2), augment_dim=9, label_dim=10)),
        ("edm-cifar10-32x32-uncond-ve", edm.SongUNet(32, channel_mult=(2, 2, 2), augment_dim=9, **NCSNPP)),
        ("edm-ffhq-64x64-uncond-vp", edm.SongUNet(64, augment_dim=9)),
        ("edm-ffhq-64x64-uncond-ve", edm.SongUNet(64, augment_dim=9, **NCSNPP)),
        (
            "edm-imagenet-64x64-cond-adm",
            edm.DhariwalUNet(
                64, label_dim=1000, model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, attn_resolutions=(32, 16, 8)
            ),
        ),
    ],
)
def test_the_published_sizes_have_the_published_numbers(name, net):
    shapes = edm.shapes(net)
    listed = hashlib.sha256(json.dumps(sorted((path, list(shape)) for path, shape in shapes.items())).encode()).hexdigest()[:16]
    assert listed == LISTED[name]
    # Frequencies are no parameter.
    assert sum(int(np.prod(shape)) for path, shape in shapes.items() if path != "map_noise/freqs") == PUBLISHED[name].parameters


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("side", [4, 6])
def test_resampling_is_adjoint_and_keeps_constants(taps, side):
    with jax.enable_x64(True):
        x, y = (
            jax.random.normal(jax.random.key(0), (1, 2 * side, 2 * side, 2)),
            jax.random.normal(jax.random.key(1), (1, side, side, 2)),
        )
        down, up = resample(x, taps, "down"), resample(y, taps, "up")
        assert down.shape == y.shape
        assert up.shape == x.shape
        # Twice the sides is four times as many pixels: one is 4 times the transpose of the other.
        assert abs(4 * jnp.vdot(down, y) - jnp.vdot(x, up)) < 1e-12 * jnp.linalg.norm(x) * jnp.linalg.norm(y) * 4
        inside = resample(jnp.ones_like(x), taps, "down")[:, 1:-1, 1:-1], resample(jnp.ones_like(y), taps, "up")[:, 2:-2, 2:-2]
        assert all(np.allclose(part, 1, atol=1e-15) for part in inside)
        mean = x.reshape(1, side, 2, side, 2, 2).mean((2, 4))
        if taps == (1, 1):
            assert np.allclose(down, mean, atol=1e-14)
            assert np.array_equal(up, jnp.repeat(jnp.repeat(y, 2, 1), 2, 2))


TINY = dict(img_resolution=8, model_channels=16, channel_mult=[1], num_blocks=1, attn_resolutions=[], label_dim=3)


def folder(path, outer, more=None, tensors=None, **attributes):
    """A converted file of a tiny network, and the network itself with its parameters."""
    module = dict(type="SongUNet", args=[], kwargs=TINY | (more or {}))
    net = edm.SongUNet(**TINY)
    rng = np.random.default_rng(0)
    leaves = {tuple(key.split("/")): rng.standard_normal(shape).astype("f4") / 4 for key, shape in edm.shapes(net).items()}
    tree = {"params": flax.traverse_util.unflatten_dict(leaves)}
    config = dict(kind="edm", network={"": dict(type=outer, args=[], kwargs={}, attributes=attributes), "model": module})
    return store.write_folder(path, edm.published(tree) | (tensors or {}), config), net, tree


def test_no_class_is_what_a_network_was_trained_with_or_nothing(tmp_path):
    noise = jnp.zeros((2, 8, 8, 3))

    def asked(model, cond=None):
        return jax.eval_shape(lambda model, cond: model(noise, jnp.float32(1.0), cond).denoised, model, cond)

    told = edm.model(folder(tmp_path / "told", "EDMPrecond")[0])
    dropped = edm.model(folder(tmp_path / "dropped", "EDMPrecond", dict(label_dropout=0.1))[0])
    assert asked(told, jnp.array([0, 2])).shape == noise.shape
    refused = pytest.raises(ValueError, match=r"cond = None for SongUNet with classes: expected integer labels 0 to 2")
    with refused:
        asked(told)
    with refused:
        asked(models.ClassifierFreeGuidance(model=told, scale=2.0), jnp.array([0, 2]))
    with refused:
        sample(told, solver=solvers.DDIM(), grid=grids.Karras(steps=2), key=jax.random.key(0), shape=(2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"labels 0 to 3: expected integer labels 0 to 2"):
        check_condition(told, np.array([0, 3]))
    # A label of each trained network is none of the other.
    check_condition(dropped, np.array([0, 3]))
    for model, cond in (
        (dropped, None), (models.ClassifierFreeGuidance(model=dropped, scale=2.0), jnp.array([0, 2])),
        (models.ClassifierFreeGuidance(model=told, scale=2.0, unconditional=dropped), jnp.array([0, 2])),
    ):  # fmt: skip
        assert asked(model, cond).shape == noise.shape
    with pytest.raises(WeightsError, match="label_dropout = 'x': expected a finite number"):
        edm.network({"": dict(type="EDMPrecond"), "model": dict(type="SongUNet", kwargs=TINY | dict(label_dropout="x"))})


# D by the formulas of arXiv 2206.00364, table 1, at noise levels of which the time of VP is known.
def edm_denoised(net, x, sigma):
    root = np.sqrt(sigma**2 + 0.6**2)
    return 0.6**2 / root**2 * x + sigma * 0.6 / root * net(x / root, np.log(sigma) / 4)


def vp_denoised(net, x, sigma):
    t = {sigma_of: t for t, sigma_of in VP_LEVELS}[sigma]
    return x - sigma * net(x / np.sqrt(sigma**2 + 1), 999 * t)


def ve_denoised(net, x, sigma):
    return x + sigma * net(x, np.log(sigma / 2))


VP_LEVELS = [(t, float(np.sqrt(np.expm1(19.9 * t**2 / 2 + 0.1 * t)))) for t in (0.05, 0.4, 0.9)]


@pytest.mark.parametrize(
    ("outer", "attributes", "denoised", "levels"),
    [
        ("EDMPrecond", dict(sigma_min=0, sigma_max="inf", sigma_data=0.6), edm_denoised, (0.002, 80.0)),
        ("VPPrecond", dict(sigma_min=9.765625e-4, sigma_max=152.167), vp_denoised, (0.002, 80.0)),
        ("VEPrecond", dict(sigma_min=0.02, sigma_max=100.0), ve_denoised, (0.02, 80.0)),
    ],
)
def test_a_converted_file_is_a_model_with_its_preconditioner(outer, attributes, denoised, levels, tmp_path):
    converted, net, tree = folder(tmp_path / "out", outer, **attributes)
    model = edm.model(converted)
    assert (model.process.t_min, model.process.t_max) == levels
    x = np.asarray(jax.random.normal(jax.random.key(3), (2, 8, 8, 3)))
    label = jnp.array([0, 2])
    raw = lambda x, c: np.asarray(net.apply(tree, jnp.asarray(x, jnp.float32), jnp.full((2,), c, jnp.float32), label))
    for _, sigma in VP_LEVELS:
        found = np.asarray(model(jnp.asarray(sigma * x, jnp.float32), sigma, label).denoised)
        wanted = denoised(raw, sigma * x, sigma)
        # Float32, as above; the difference of two numbers of the size of sigma.
        assert np.abs(found - wanted).max() < 1e-5 * max(1, sigma) * np.abs(x).max()


def iddpm_levels(steps=1000):
    """The noise levels of iDDPM, by the formulas of Karras et al. (2022), section C.3.4 and table 1."""
    abar = lambda j: np.sin(np.pi / 2 * j / (steps * 1.008)) ** 2
    u = np.zeros(steps + 1)
    for j in range(steps, 0, -1):
        u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar(j - 1) / abar(j), 0.001) - 1)
    return u


def six(tensors):
    """The tensors of a network that returns three more channels, which are not looked at."""
    last = {name: value for name, value in tensors.items() if "aux_conv" in name}
    return {name: np.concatenate([value, 100 + value]) for name, value in last.items()}


def test_iddpm_asks_at_the_nearest_level_and_takes_the_mean(tmp_path):
    u = iddpm_levels()
    # As the paper has them.
    assert np.allclose(u[[0, 1, 999]], (20291, 641.7, 0.00642), rtol=1e-3)
    _, net, tree = folder(tmp_path / "three", "EDMPrecond")
    more = six(edm.published(tree)) | {"u": u.astype("f4")}
    attributes = dict(sigma_min=float(u[999]), sigma_max=float(u[0]), M=1000)
    converted, _, _ = folder(tmp_path / "six", "iDDPMPrecond", dict(out_channels=6), more, **attributes)
    model = edm.model(converted)
    assert (model.process.t_min, model.process.t_max) == (float(np.float32(u[999])), 80)
    assert np.array_equal(edm.published(model.params)["u"], u.astype("f4"))
    x = np.asarray(jax.random.normal(jax.random.key(3), (2, 8, 8, 3)))
    label = jnp.array([0, 2])
    # A level itself, and one between two that is nearer to the first of them.
    for j, sigma in ((150, u[150]), (400, u[400]), (998, u[998]), (400, 0.6 * u[400] + 0.4 * u[401])):
        noise = net.apply(tree, jnp.asarray(sigma * x / np.sqrt(sigma**2 + 1), jnp.float32), jnp.full(2, 999.0 - j), label)
        found = np.asarray(model(jnp.asarray(sigma * x, jnp.float32), sigma, label).denoised)
        assert np.abs(found - (sigma * x - sigma * np.asarray(noise))).max() < 1e-5 * max(1, sigma) * np.abs(x).max()
    with pytest.raises(WeightsError, match="the levels u: expected finite ones that decrease to 0"):
        edm.params(model.denoiser.net, converted.tensors() | {"u": u[::-1].astype("f4")})
    with pytest.raises(WeightsError, match=r"tensor 'u': expected names that begin with 'model\.'"):
        edm.params(net, edm.published(tree) | {"u": u})


def test_the_constants_of_a_preconditioner_are_those_of_the_file(tmp_path):
    converted, _, _ = folder(tmp_path / "out", "VPPrecond", beta_d=9.9, beta_min=0.2, M=500)
    net = edm.model(converted).denoiser.net
    assert (net.beta_d, net.beta_min, net.steps) == (9.9, 0.2, 500)
    # sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1.
    t = np.array([0.1, 0.5, 1.0])
    c = np.log(np.expm1(9.9 * t**2 / 2 + 0.2 * t)) / 8
    assert np.allclose(net.asked(jnp.zeros((3, 8, 8, 3)), jnp.asarray(c, jnp.float32))[1], 499 * t, rtol=1e-5)


def test_a_converted_file_is_a_model_by_name_and_by_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path))
    converted, _, tree = folder(tmp_path / "pretrained" / "mine", "EDMPrecond", sigma_data=0.6)
    for name in ("mine", str(converted.path)):
        found = pretrained.model(name)
        assert found.denoiser.data_std == 0.6
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (found.params, tree)), strict=True))
    # A folder of that name hides no model of the package.
    folder(tmp_path / "pretrained" / "digits-edm", "EDMPrecond")
    assert not isinstance(pretrained.model("digits-edm").denoiser.net, edm.SongUNet)
    for name in ("yours", "", "x" * 5000):
        with pytest.raises(ConfigError, match="no such model, file or folder"):
            pretrained.model(name)
    with pytest.raises(TypeError, match=r"pretrained\.load\.name = 3"):
        pretrained.model(3)


def test_the_scale_of_images_is_that_of_the_paper():
    levels = np.arange(256, dtype=np.uint8)
    x = np.asarray(edm.LEVELS.encode(levels))
    # Float32: half a unit in the last place of 1.
    assert np.abs(x - (levels / 127.5 - 1)).max() < 1.2e-7
    y = np.linspace(-1.1, 1.1, 2001) + 1e-5
    assert np.array_equal(edm.LEVELS.decode(y), np.clip(np.floor(127.5 * y + 128), 0, 255).astype(np.uint8))


def test_a_folder_of_another_kind_is_no_model(tmp_path):
    converted, _, _ = folder(tmp_path / "text", "EDMPrecond", sigma_data="x")
    with pytest.raises(WeightsError, match="text: sigma_data = 'x': expected a number"):
        edm.model(converted)
    converted, _, _ = folder(tmp_path / "digits", "EDMPrecond", sigma_data="0.5")
    with pytest.raises(WeightsError, match=r"digits: sigma_data = '0\.5': expected a number"):
        edm.model(converted)
    other = store.write_folder(tmp_path / "out", dict(a=np.zeros(1)), dict(kind="tensors", network={}))
    with pytest.raises(WeightsError, match="kind 'tensors': expected edm"):
        edm.model(other)


@pytest.mark.parametrize(
    ("outer", "inner", "reason"),
    [
        ("Precond", dict(type="SongUNet"), "Precond around SongUNet: expected EDMPrecond"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, out_channels=6)), "out_channels = 6: expected 3, as"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, steps=6)), "fields steps of SongUNet"),
        (
            "EDMPrecond",
            dict(type="SongUNet", kwargs=dict(img_resolution=8, channel_mult=[1, "2"])),
            r"channel_mult = \[1, '2'\]: expected a list",
        ),
        ("EDMPrecond", dict(type="DhariwalUNet", kwargs=dict(img_resolution=8.5)), "img_resolution = 8.5"),
        ("EDMPrecond", dict(type="UNet"), "EDMPrecond around UNet"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, colour=3)), "fields colour of SongUNet"),
        ("EDMPrecond", dict(type="SongUNet", kwargs={}), "img_resolution"),
        ("EDMPrecond", dict(type="SongUNet", args=[8]), "arguments without names"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=[8]), r"kwargs = \[8\]: expected a table"),
        ([], dict(type="SongUNet"), r"\[\] around SongUNet: expected EDMPrecond"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, label_dim=True)), "label_dim = True"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, num_blocks=100)), "804 blocks: expected at most 256"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, channel_mult=[])), "channel_mult of no level"),
        ("EDMPrecond", dict(type="SongUNet", kwargs=dict(img_resolution=8, model_channels=60000)), "width = 240,000: expected"),
        (
            "EDMPrecond",
            dict(type="SongUNet", kwargs=dict(img_resolution=8, encoder_type="skip")),
            "encoder_type = 'skip': expected",
        ),
    ],
)
def test_other_networks_are_refused(outer, inner, reason):
    with pytest.raises(WeightsError, match=reason):
        edm.network({"": dict(type=outer), "model": inner})
