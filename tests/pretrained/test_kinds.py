"""Converted folders and pipelines as models: each part by its family, and what it takes to use them beside."""

import importlib
import json
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import pretrained
from scorelab.data import Pixels
from scorelab.errors import ConfigError, WeightsError
from scorelab.models import Denoiser
from scorelab.pretrained import edm, edm2, kinds, store
from scorelab.processes import Gaussian
from scorelab.run.cli import main
from scorelab.schedules import EDM
from tests.pretrained import crafted
from tests.pretrained.test_edm import folder as edm_folder
from tests.pretrained.test_edm2 import drawn as edm2_drawn
from tests.pretrained.test_edm2 import encoder as edm2_encoder
from tests.pretrained.test_edm2 import modules as edm2_modules

SCHEDULER = dict(_class_name="DDIMScheduler", beta_end=0.02)
INDEX = dict(
    _class_name="TinyPipeline",
    _diffusers_version="0.6.0",
    feature_extractor=["transformers", "CLIPFeatureExtractor"],
    id2label={"0": "tench"},
    requires_safety_checker=True,
    safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
    scheduler=["diffusers", "DDIMScheduler"],
    text_encoder=["transformers", "TinyText"],
    tokenizer=["transformers", "CLIPTokenizer"],
    unet=["diffusers", "TinyUNet"],
    vae=["diffusers", "TinyVAE"],
    image_encoder=[None, None],
)


@pytest.fixture(autouse=True)
def downloads(tmp_path, monkeypatch):
    """A folder for downloads of its own."""
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pretrained"


def written(folder, content):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text(json.dumps(content))


def tensors(*values):
    return {f"w{i}": np.full((2, 2), value, "f4") for i, value in enumerate(values)}


@pytest.fixture
def source(tmp_path):
    """A pipeline as it is published."""
    root = tmp_path / "tiny"
    written(root / "model_index.json", INDEX)
    written(root / "unet" / "config.json", dict(_class_name="TinyUNet", sample_size=4, in_channels=1))
    store.write_safetensors(root / "unet" / "diffusion_pytorch_model.safetensors", tensors(1, 2))
    # Another variant of the weights, which is not taken.
    store.write_safetensors(root / "unet" / "diffusion_pytorch_model.fp16.safetensors", tensors(9, 9))
    written(root / "vae" / "config.json", dict(_class_name="TinyVAE"))
    file = crafted.archive(crafted.state_dict(crafted.tensor()), {"0": np.arange(4, dtype="<f4").tobytes()})
    (root / "vae" / "diffusion_pytorch_model.bin").write_bytes(file)
    written(root / "text_encoder" / "config.json", dict(architectures=["TinyText"]))
    store.write_safetensors(root / "text_encoder" / "model.safetensors", tensors(4))
    written(root / "tokenizer" / "vocab.json", {"a": 0})
    (root / "tokenizer" / "merges.txt").write_text("#version\n")
    (root / "tokenizer" / "README.md").write_text("is not copied")
    written(root / "scheduler" / "scheduler_config.json", SCHEDULER)
    written(root / "safety_checker" / "config.json", dict(architectures=["StableDiffusionSafetyChecker"]))
    written(root / "feature_extractor" / "preprocessor_config.json", {})
    return root


def change(path, **fields):
    path.write_text(json.dumps({key: value for key, value in (json.loads(path.read_text()) | fields).items() if value != "gone"}))


def inside(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_pipeline_becomes_a_folder_of_folders(source, downloads):
    found = pretrained.convert(source, licence="CC0-1.0", url="https://example.org/tiny")
    assert found.path == downloads / "tiny"
    assert inside(found.path) == [
        "config.json", "scheduler/scheduler_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "unet/config.json", "unet/model.safetensors", "vae/config.json",
        "vae/model.safetensors",
    ]  # fmt: skip
    config = found.config
    assert (config["kind"], config["parts"], config["numbers"]) == ("pipeline", ["text_encoder", "unet", "vae"], 16)
    assert config["left_out"] == ["feature_extractor", "safety_checker"]
    assert config["network"] == INDEX
    assert found.read("scheduler/scheduler_config.json") == SCHEDULER
    assert found.folder("tokenizer") == found.path / "tokenizer"
    assert found.folder("tokenizer_2") is None
    assert all(np.array_equal(value, tensors(1, 2)[name]) for name, value in found.parts["unet"].tensors().items())
    assert np.array_equal(found.parts["vae"].tensors()["w0"], np.arange(4))
    for part in (found, *found.parts.values()):
        assert part.config["licence"] == dict(id="CC0-1.0", url=None)
        assert part.config["source"]["url"] == "https://example.org/tiny"
    assert set(found.parts["vae"].config["source"]["files"]) == {"config.json", "diffusion_pytorch_model.bin"}
    with pytest.raises(WeightsError, match="converted already"):
        pretrained.convert(found.path, downloads / "again")


def test_a_pipeline_whose_model_lies_beside_its_index(tmp_path):
    # As google/ddpm-cifar10-32.
    root = tmp_path / "ddpm"
    written(root / "model_index.json", dict(scheduler=["diffusers", "DDPMScheduler"], unet=["diffusers", "TinyUNet"]))
    written(root / "config.json", dict(_class_name="TinyUNet"))
    written(root / "scheduler_config.json", SCHEDULER)
    store.write_safetensors(root / "diffusion_pytorch_model.safetensors", tensors(3))
    found = pretrained.convert(root)
    assert inside(found.path) == [
        "config.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/model.safetensors",
    ]
    assert found.read("scheduler/scheduler_config.json") == SCHEDULER
    index = json.loads((root / "model_index.json").read_text())
    written(root / "model_index.json", index | dict(vae=["diffusers", "TinyVAE"]))
    with pytest.raises(WeightsError, match="one folder for the parts unet, vae: expected a pipeline"):
        pretrained.convert(root, tmp_path / "both")
    # Without the index it is one model, which has its scheduler and its tokenizer with it.
    (root / "model_index.json").unlink()
    written(root / "vocab.json", {"a": 0})
    alone = pretrained.convert(root, tmp_path / "alone")
    assert alone.config["scheduler"] == SCHEDULER
    assert inside(alone.path) == ["config.json", "model.safetensors", "tokenizer/vocab.json"]
    (alone.path / "tokenizer" / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"vocab\.json has the hash"):
        store.open_folder(alone.path)


def test_a_pipeline_is_there_whole_or_not_at_all(source, tmp_path):
    out = tmp_path / "out"
    (source / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="vae"):
        pretrained.convert(source, out)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    out.mkdir()
    with pytest.raises(WeightsError, match="is there already"):
        pretrained.convert(source, out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda root: (root / "unet" / "config.json").unlink(), r"no such file: expected it, of the part 'unet'"),
        (lambda root: (root / "scheduler" / "scheduler_config.json").unlink(), r"scheduler_config\.json: no such file"),
        (lambda root: [file.unlink() for file in (root / "tokenizer").iterdir()], "part 'tokenizer' has none of vocab"),
        (lambda root: (root / "text_encoder" / "model.safetensors").unlink(), r"text_encoder: expected config\.json and one of"),
        (lambda root: change(root / "model_index.json", **{"../up": ["diffusers", "TinyUNet"]}), r"part '\.\./up'"),
        (lambda root: change(root / "model_index.json", unet=["diffusers", 3]), "of class 3"),
        (lambda root: (root / "model_index.json").write_text("{}"), "no parts with weights"),
        (lambda root: (root / "model_index.json").write_text("[]"), "expected a JSON object"),
    ],
)
def test_a_pipeline_that_is_not_whole_is_refused(source, broken, reason, downloads):
    broken(source)
    with pytest.raises(WeightsError, match=reason):
        pretrained.convert(source)
    assert not downloads.exists() or not list(downloads.iterdir())


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (lambda root: (root / "tokenizer" / "vocab.json").write_text("{}"), r"vocab\.json has the hash"),
        (lambda root: (root / "tokenizer" / "vocab.json").unlink(), r"no tokenizer/vocab\.json"),
        (lambda root: (root / "unet" / "model.safetensors").write_bytes(b"x"), r"model\.safetensors has the hash"),
        (lambda root: change(root / "config.json", parts=["../unet"]), "no format and hash"),
        (lambda root: change(root / "config.json", files=["a"]), "no format and hash"),
        (lambda root: change(root / "config.json", format=2), "format 2: expected 1"),
        (lambda root: change(root / "config.json", parts=["unet", "other"]), r"no config\.json"),
    ],
)
def test_a_pipeline_that_was_changed_is_refused(source, broken, reason):
    found = pretrained.convert(source)
    assert store.open_any(found.path).parts.keys() == found.parts.keys()
    broken(found.path)
    with pytest.raises(WeightsError, match=reason):
        store.open_any(found.path)
    assert main(["pretrained", "check", str(found.path)]) == 2


class Net(nn.Module):
    """A network of images of which one number is told apart from another."""

    sample_size: int | None = 4
    in_channels: int = 1
    num_classes: int = 0
    center_input_sample: bool = False

    @nn.compact
    def __call__(self, x, c_noise, cond=None, *, train=False):
        w = self.param("w", nn.initializers.ones, (2, 2)).astype(x.dtype)
        return x * w[0, 0] + (0 if cond is None else jnp.mean(cond))


@pytest.fixture
def families(monkeypatch):
    """Families of the classes of the pipeline, which say what they were given."""
    given, module = {}, types.ModuleType("tiny_families")

    def model(folder, process=None, **more):
        given.update(more, scheduler=folder.config.get("scheduler"))
        process = Gaussian(schedule=EDM(sigma_min=0.01, sigma_max=50.0)) if process is None else process
        tree = {"params": dict(w=folder.tensors()["w0"].astype("f2"))}
        stated = folder.config.get("network") or {}
        net = Net(**{name: stated[name] for name in ("sample_size", "center_input_sample") if name in stated})
        return Denoiser(net=net, process=process, predict="eps", data_std=1.0).bind(tree)

    class Latents:
        net = types.SimpleNamespace(scaling_factor=0.5, shift_factor=3.0)
        transform = kinds.LEVELS
        event_shape = (2, 2, 1)

        def encode(self, x, key=None):
            return x[:, ::2, ::2] + (0 if key is None else 100)

        def decode(self, z):
            return z.repeat(2, 1).repeat(2, 2)

    class Text:
        empty = np.full((3, 5), 0.25, "f4")

        def __init__(self, folder, tokenizer):
            given["tokenizer"] = tokenizer

        def __call__(self, prompts):
            return np.stack([self.empty] * len(prompts))

    module.transform = lambda folder: None
    module.model, module.latents, module.load = model, lambda folder: Latents(), Text
    monkeypatch.setitem(sys.modules, "tiny_families", module)
    for name, role in dict(TinyUNet="model", TinyVAE="latents", TinyText="text").items():
        function = "load" if role == "text" else role
        flags = dict(latent=True, null=True) if role == "model" else {}
        monkeypatch.setitem(kinds.FAMILIES, name, kinds.Family("tiny_families", function, role, **flags))
    monkeypatch.setitem(kinds.FAMILIES, "TinyPixels", kinds.Family("tiny_families", "model", "model"))
    return given


def test_a_pipeline_is_a_model_with_what_it_takes_to_use_it(source, families):
    pretrained.convert(source, licence="CC0-1.0")
    who = pretrained.load("tiny")
    assert isinstance(who, pretrained.Converted)
    assert families["scheduler"] == who.config["scheduler"] == SCHEDULER
    assert np.array_equal(families["null_context"], np.full((3, 5), 0.25))
    assert families["tokenizer"].name == "tokenizer"
    assert who.licence == dict(id="CC0-1.0", url=None)
    assert (who.event_shape, who.classes) == ((4, 4, 1), None)
    # Half precision of the file is single precision here.
    assert {leaf.dtype.name for leaf in jax.tree.leaves(who.model.params)} == {"float32"}
    context = who.prompt(["a", "b"])
    assert context.shape == (2, 3, 5)
    y = jnp.ones((2, 4, 4, 1))
    assert np.allclose(who.model(y, 1.0, context).eps, 1 / np.sqrt(2) + 0.25)
    images = np.arange(2 * 8 * 8, dtype=np.uint8).reshape(2, 8, 8, 1)
    z = who.encode(images)
    assert np.allclose(z, images[:, ::2, ::2] / 127.5 - 1, atol=1e-6)
    assert np.allclose(who.encode(images, jax.random.key(0)), z + 100)
    assert np.array_equal(who.decode(z), images[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    process = Gaussian(schedule=EDM(sigma_min=0.5, sigma_max=5.0))
    assert pretrained.load("tiny", process=process).model.process == pretrained.model("tiny", process=process).process == process


def test_a_model_of_pixels_has_no_latents_and_no_text(source, families):
    index = dict(unet=INDEX["unet"], scheduler=INDEX["scheduler"])
    written(source / "unet" / "config.json", dict(_class_name="TinyPixels"))
    written(source / "model_index.json", index)
    written(source / "scheduler" / "scheduler_config.json", dict(_class_name="ScoreSdeVeScheduler"))
    pretrained.convert(source)
    who = pretrained.load("tiny")
    assert (who.latents, who.text) == (None, None)
    assert "null_context" not in families
    # Images of this scheduler are k / 255.
    levels = np.arange(256, dtype=np.uint8)
    assert np.allclose(who.transform.encode(levels), levels / 255, atol=1e-7)
    assert np.array_equal(who.decode(who.encode(levels)), levels)
    with pytest.raises(WeightsError, match=r"Converted\.prompt of 'tiny': it has no text encoder"):
        who.prompt("a")


@pytest.mark.parametrize("dtype", kinds.DTYPES)
def test_images_that_the_network_centres_are_from_zero_to_one(dtype, families, tmp_path):
    def loaded(**fields):
        config = dict(kind="diffusers", network=dict(fields), scheduler=SCHEDULER)
        path = store.write_folder(tmp_path / f"out{len(list(tmp_path.iterdir()))}", tensors(1), config).path
        return pretrained.load(str(path), dtype=dtype)

    # It has x at 2 x - 1: levels k / 255, whatever the scheduler.
    assert loaded(_class_name="TinyPixels", center_input_sample=True).transform == kinds.UNIT
    assert loaded(_class_name="TinyPixels").transform == kinds.LEVELS
    # Of a model of latents that is no scale of images.
    assert loaded(_class_name="TinyUNet", center_input_sample=True).transform is None


def test_a_config_without_sides_has_no_shape(families, tmp_path):
    config = dict(kind="diffusers", name="free", network=dict(_class_name="TinyPixels", sample_size=None))
    who = pretrained.load(str(store.write_folder(tmp_path / "out", tensors(1), config).path))
    with pytest.raises(WeightsError, match=r"event_shape of 'free': sample_size is null in its config.*expected a shape"):
        _ = who.event_shape
    assert repr(who) == "Converted('free', event_shape=None, classes=None, licence=None)"


def test_pipelines_of_sdxl_are_refused_by_name(source, families, tmp_path):
    """Before anything is converted, and where an earlier version has converted one."""
    change(source / "model_index.json", _class_name="StableDiffusionXLPipeline")
    with pytest.raises(WeightsError, match=r"model_index\.json: _class_name = 'StableDiffusionXLPipeline': expected .*1\.x"):
        pretrained.convert(source, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    change(source / "model_index.json", _class_name="TinyPipeline")
    place = pretrained.convert(source, tmp_path / "whole", licence="MIT").path
    assert "classes=None, licence='MIT', with latents, with text)" in repr(pretrained.load(str(place)))
    said = json.loads((place / "config.json").read_text())
    written(place / "config.json", said | dict(network=dict(_class_name="StableDiffusionXLInpaintPipeline")))
    with pytest.raises(WeightsError, match="whole: _class_name = 'StableDiffusionXLInpaintPipeline': expected a pipeline with"):
        pretrained.load(str(place))


def test_what_is_no_denoiser_is_refused_by_name(source, families, tmp_path):
    whole = pretrained.convert(source, tmp_path / "whole").path
    with pytest.raises(WeightsError, match="TinyVAE is for latents: expected a denoiser"):
        pretrained.load(str(whole / "vae"))
    with pytest.raises(WeightsError, match=r"a pipeline: expected one of its folders text_encoder, unet, vae"):
        store.open_folder(whole)
    # A part alone is a model as well, of latents that nothing here makes images of.
    alone = pretrained.load(str(whole / "unet"))
    assert (alone.text, alone.latents, alone.transform) == (None, None, None)
    with pytest.raises(WeightsError, match=r"have no autoencoder: expected pretrained\.load\(\.\.\., autoencoder="):
        alone.decode(jnp.zeros((1, 4, 4, 1)))
    assert pretrained.load(str(whole / "unet"), autoencoder=str(whole / "vae")).decode(jnp.zeros((1, 4, 4, 1))).shape == (
        1,
        8,
        8,
        1,
    )
    with pytest.raises(WeightsError, match=r"as its autoencoder: expected one, of a model of latents"):
        pretrained.load(str(whole / "unet"), autoencoder=str(whole / "text_encoder"))
    with pytest.raises(ConfigError, match=r"pretrained\.load\.autoencoder = 'other': expected the name"):
        pretrained.load(str(whole / "unet"), autoencoder="other")
    for name, fields, reason in (
        ("two", dict(unet_2=["diffusers", "TinyUNet"]), "two parts for model: expected one"),
        ("tokens", dict(tokenizer="gone"), "a text encoder without a tokenizer"),
        ("none", dict(unet="gone"), "expected a denoiser among text_encoder, vae"),
    ):
        written(source / "unet_2" / "config.json", dict(_class_name="TinyUNet"))
        store.write_safetensors(source / "unet_2" / "model.safetensors", tensors(1))
        written(source / "model_index.json", INDEX)
        change(source / "model_index.json", **fields)
        pretrained.convert(source, tmp_path / name)
        with pytest.raises(WeightsError, match=reason):
            pretrained.load(str(tmp_path / name))
    for config, reason in (
        (dict(kind="diffusers", network=dict(_class_name="Other")), "kind 'diffusers', class 'Other': expected one of EDMPrecond"),
        (dict(kind="diffusers", network=dict(_class_name=["x"])), "kind 'diffusers': expected one of"),
        (dict(kind="diffusers", network=None), "kind 'diffusers': expected one of"),
        (dict(kind="tensors", network={}), "kind 'tensors': expected one of"),
    ):
        place = store.write_folder(tmp_path / f"other{len(list(tmp_path.iterdir()))}", tensors(1), config).path
        with pytest.raises(WeightsError, match=reason):
            pretrained.load(str(place))


def test_a_network_of_this_package_keeps_its_process(families, tmp_path, monkeypatch):
    monkeypatch.setitem(kinds.FAMILIES, "scorelab", kinds.Family("tiny_families", "model", "model", own=True))
    config = dict(kind="scorelab", network={}, event=[4, 4, 1])
    place = str(store.write_folder(tmp_path / "mine", tensors(1), config).path)
    who = pretrained.load(place)
    assert (who.event_shape, who.transform, who.licence) == ((4, 4, 1), None, dict(id=None, url=None))
    with pytest.raises(WeightsError, match=r"mine: process = .*: expected None for a network of scorelab"):
        pretrained.load(place, process=who.model.process)
    with pytest.raises(WeightsError, match="mine: dtype = 'bfloat16': expected 'float32' for a network of scorelab"):
        pretrained.load(place, dtype="bfloat16")


def test_names_that_are_not_here_say_what_to_do(source, tmp_path, monkeypatch):
    with pytest.raises(WeightsError, match=r"a published model as it came: expected scorelab pretrained convert .*tiny first"):
        pretrained.load(str(source))
    with pytest.raises(WeightsError, match="a published model as it came"):
        pretrained.model(str(source / "unet"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"not on this machine: .*then scorelab pretrained fetch ddpm-cifar10-32"):
        pretrained.load("ddpm-cifar10-32")
    with pytest.raises(ConfigError, match=r"uncond-vp.pkl, then scorelab pretrained convert edm-cifar10-32x32-uncond-vp\.pkl"):
        pretrained.model("edm-cifar10-32x32-uncond-vp")
    with pytest.raises(ValueError, match="dtype = 'float16': expected"):
        pretrained.load("digits-edm", dtype="float16")
    with pytest.raises(ValueError, match=r"load\.dtype = 'bfloat16' for digits-edm: expected 'float32'"):
        pretrained.load("digits-edm", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"process = .* for digits-edm: expected None"):
        pretrained.load("digits-edm", process=Gaussian(schedule=EDM()))
    mine = pretrained.load("digits-edm")
    assert (mine.latents, mine.text) == (None, None)


def test_latents_of_edm2_have_a_scale_for_each_channel(source, families, tmp_path):
    vae = pretrained.convert(source / "vae", tmp_path / "vae").path
    config = dict(kind="edm2", network=edm2_modules(img_channels=1), encoder=edm2_encoder(scale=[2.0], bias=[-1.0]))
    place = store.write_folder(tmp_path / "edm2", edm2_drawn(edm2.network(config["network"])), config).path
    who = pretrained.load(str(place), autoencoder=str(vae))
    assert (who.event_shape, who.classes, who.latents.event_shape) == ((8, 8, 1), 3, (2, 2, 1))
    images = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    x = images / 127.5 - 1
    # The stand-in makes s (h - m) of h with s = 1/2, m = 3, and the network has 2 h - 1.
    assert np.allclose(who.encode(images), 2 * (x[:, ::2, ::2] / 0.5 + 3) - 1, atol=1e-5)
    assert np.array_equal(who.decode(who.encode(images)), images[:, ::2, ::2].repeat(2, 1).repeat(2, 2))
    with pytest.raises(ValueError, match=r"latents of shape \(1, 2, 2, 3\): expected 1 channels"):
        who.decode(jnp.zeros((1, 2, 2, 3)))
    assert pretrained.load(str(place)).transform is None
    pixels = store.write_folder(tmp_path / "pixels", store.open_folder(place).tensors(), dict(config, encoder=None)).path
    assert pretrained.load(str(pixels)).transform == kinds.LEVELS
    with pytest.raises(WeightsError, match=r"\(Precond\), .*vae as its autoencoder: expected one, of a model of latents"):
        pretrained.load(str(pixels), autoencoder=str(vae))
    # Four channels are no image: without the encoder of the file their scale is not known, with an autoencoder or without.
    lost = dict(kind="edm2", network=edm2_modules(img_channels=4))
    four = str(store.write_folder(tmp_path / "four", edm2_drawn(edm2.network(lost["network"])), lost).path)
    for named in ({}, dict(autoencoder=str(vae))):
        with pytest.raises(WeightsError, match=r"img_channels = 4 without an encoder.*: expected 1 or 3, pixels, or the whole"):
            pretrained.load(four, **named)


@pytest.mark.usefixtures("quick_compilation")
def test_bfloat16_is_that_of_kernels_and_of_the_computation(tmp_path):
    converted, _, _ = edm_folder(tmp_path / "out", "EDMPrecond", sigma_data=0.6)
    wide, narrow = (pretrained.load(str(converted.path), dtype=dtype).model for dtype in kinds.DTYPES)
    types = {leaf.ndim > 1: leaf.dtype.name for leaf in jax.tree.leaves(narrow.params)}
    assert types == {True: "bfloat16", False: "float32"}
    assert (narrow.denoiser.net.num_classes, narrow.denoiser.net.shares_noise_level) == (3, True)
    assert hash(narrow.denoiser) == hash(pretrained.load(str(converted.path), dtype="bfloat16").model.denoiser)
    x, label = jax.random.normal(jax.random.key(3), (2, 8, 8, 3)), jnp.array([0, 2])
    ask = jax.jit(lambda model: model(x, 1.0, label))
    a, b = (np.asarray(ask(model).denoised, "f8") for model in (wide, narrow))
    assert a.dtype == b.dtype
    # Eight bits of a product, and their sums: as published networks are compared in this type.
    assert 1e-5 < np.abs(a - b).max() / np.abs(a).max() < 3e-2
    assert np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    (found,) = narrow.denoiser.features(narrow.params, x, jnp.float32(1.0), label, names=("enc_8x8_block0",))
    assert found.dtype == jnp.bfloat16
    with pytest.raises(AttributeError, match="nothing"):
        _ = narrow.denoiser.net.nothing


def test_every_family_has_its_function():
    for name, family in kinds.FAMILIES.items():
        module = importlib.import_module(family.module)
        assert callable(getattr(module, family.function)), name
    assert isinstance(kinds.UNIT, Pixels)
    assert kinds.LEVELS == edm.LEVELS
