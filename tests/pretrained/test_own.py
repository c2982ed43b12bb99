"""Our networks as other programs see them: the same names and numbers in torch, with and without adapters of PEFT."""

import dataclasses
import importlib.util
import json
import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from scorelab import pretrained
from scorelab.data import Identity, Pixels
from scorelab.errors import WeightsError
from scorelab.models import Adapted, Denoiser, FunctionModel, TorchFunction
from scorelab.models.nets import MLP, Composite, DiT, Image, Label, UNet
from scorelab.pretrained import lora, own, store
from scorelab.processes import Gaussian, GeometricBrownianMotion
from scorelab.schedules import EDM, Discrete, VPLinear
from tests.pretrained.crafted import FILES

ROOT = FILES.parents[2]
SCRIPT = FILES.parent / "pretrained_own.py"
STORED = np.load(SCRIPT.with_suffix(".npz"))
MADE = runpy.run_path(str(SCRIPT))
pytestmark = pytest.mark.usefixtures("quick_compilation")
# Float32 of both networks against float64 of torch, of the largest number.
MOST = 1e-5


@dataclasses.dataclass
class Case:
    """A network of the file, as a converted folder and as what torch said of it."""

    name: str
    folder: store.Folder
    model: object

    def stored(self, part):
        return STORED[f"{self.name}/{part}"]

    def asked(self, model):
        """The denoised points and the gradient of the cotangent, as the script asks for them."""
        y, sigma, label, cotangent = (
            None if x is None else jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32)
            for x in MADE["inputs"](MADE["CASES"][self.name])
        )
        return _asked(model, y, sigma, label, cotangent)

    def adapter(self, place, rename=lambda key: key, metadata=None):
        """The adapter of PEFT as a folder, or under other names as a file."""
        prefix = f"{self.name}/adapter/"
        tensors = {rename(key.removeprefix(prefix)): STORED[key] for key in STORED.files if key.startswith(prefix)}
        place.mkdir(exist_ok=True)
        safetensors.numpy.save_file(tensors, place / lora.TENSORS, metadata=metadata)
        if metadata is None:
            (place / lora.CONFIG).write_text(str(self.stored("adapter_config")))
        return place


@jax.jit
def _asked(model, y, sigma, label, cotangent):
    out, pull = jax.vjp(lambda y: model(y, sigma, label).denoised, y)
    return out, pull(cotangent)[0]


def close(found, wanted, most=MOST):
    assert np.abs(np.asarray(found) - wanted).max() < most * np.abs(wanted).max()


@pytest.fixture(scope="module", params=["unet", "dit"])
def case(request, tmp_path_factory):
    name = request.param
    config = json.loads(str(STORED[f"{name}/config"]))
    tensors = MADE["weights"](json.loads(str(STORED[f"{name}/shapes"])), 1)
    folder = store.write_folder(tmp_path_factory.mktemp(name) / "exported", tensors, config)
    return Case(name, folder, own.model(folder))


def test_what_torch_computes_from_the_file_is_what_the_network_computes(case):
    out, gradient = case.asked(case.model)
    close(out, case.stored("denoised"))
    close(gradient, case.stored("gradient"))


def test_an_export_has_the_names_the_bytes_and_the_config_that_torch_read(case, tmp_path):
    folder = own.export(case.model, tmp_path / "again", event=tuple(case.folder.config["event"]), licence="MIT")
    stated = json.loads(str(case.stored("config")))
    # What torch reads; the export states defaults as well.
    network = folder.config["network"]
    assert {key: network[key] for key in stated["network"]} == stated["network"]
    assert {key: folder.config[key] for key in stated if key != "network"} == {k: v for k, v in stated.items() if k != "network"}
    assert {key: list(value.shape) for key, value in folder.tensors().items()} == json.loads(str(case.stored("shapes")))
    for key, value in case.folder.tensors().items():
        assert np.array_equal(folder.tensors()[key], value)
    again = own.model(folder)
    assert again.denoiser == case.model.denoiser
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, case.model.params))
    assert folder.config["licence"]["id"] == "MIT"


@pytest.mark.parametrize(
    ("net", "process", "event"),
    [
        (MLP(width=8, depth=1, embed=8), Gaussian(schedule=VPLinear()), (3,)),
        (UNet(channels=(8,), condition=Composite(kind=Label(2), seen=Image(1))), Gaussian(schedule=EDM()), (4, 4, 1)),
        (UNet(channels=(8, 8)), Gaussian(schedule=EDM()), (4, 1)),
        (UNet(channels=(8, 8)), Gaussian(schedule=Discrete(alphas_cumprod=(0.9, 0.5, 0.1))), (4, 4, 4, 1)),
        (DiT(patch=2, width=8, depth=1, heads=2, dtype="bfloat16"), GeometricBrownianMotion(sigma=0.5), (4, 4, 1)),
    ],
    ids=["points", "conditions", "sequence", "volume", "bfloat16"],
)
def test_networks_of_all_kinds_come_back(net, process, event, tmp_path):
    denoiser = Denoiser(net=net, process=process, predict="v", data_std=0.05, self_condition=True)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: denoiser.init(key, event), jax.random.key(0))
    model = denoiser.bind(jax.tree.map(lambda s: rng.standard_normal(s.shape).astype("f4"), shapes))
    again = own.model(own.export(model, tmp_path / "out", event=event))
    assert again.denoiser == denoiser
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, model.params))


def test_adapters_of_peft_are_added_as_peft_adds_them(case, tmp_path):
    merged = lora.load(case.model, case.adapter(tmp_path / "peft"))
    kept = lora.load(case.model, tmp_path / "peft", merged=False)
    assert isinstance(kept, Adapted)
    for model in (merged, kept):
        close(case.asked(model)[0], case.stored("adapted"))
    # None of it is none of it.
    assert np.array_equal(case.asked(dataclasses.replace(kept, scale=0.0))[0], case.asked(case.model)[0])


def diffusers(key):
    return key.replace("base_model.model.", "unet.")


def diffusers_before(key):
    return diffusers(key).replace("lora_A", "lora.down").replace("lora_B", "lora.up")


def kohya(key):
    module, _, end = key.removeprefix("base_model.model.").partition(".lora_")
    return f"lora_unet_{module.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[end[0]] }{end[1:]}"


@pytest.mark.parametrize("rename", [diffusers, diffusers_before, kohya])
def test_other_names_are_the_same_adapter(rename, case, tmp_path):
    """With the config of PEFT in the metadata, as diffusers has it, or alphas as tensors."""
    wanted = lora.load(case.model, case.adapter(tmp_path / "peft"), merged=False)
    config = json.loads(str(case.stored("adapter_config")))
    stated = {f"unet.{key}": value for key, value in config.items()}
    if rename is diffusers:
        place = case.adapter(tmp_path / "other", rename, {"lora_adapter_metadata": json.dumps(stated)})
    else:
        place = case.adapter(tmp_path / "other", rename, {"format": "pt"})
        tensors = safetensors.numpy.load_file(place / lora.TENSORS)
        # Their alpha over the rank is the scale.
        scales = {m: f.scale * f.down.shape[0] for m, f in lora.read(tmp_path / "peft")[""].items()}
        end = ".lora" if rename is diffusers_before else ""
        prefix = (lambda m: f"unet.{m}") if end else lambda m: f"lora_unet_{m.replace('.', '_')}"
        tensors |= {f"{prefix(module)}.alpha": np.array(alpha, "f4") for module, alpha in scales.items()}
        safetensors.numpy.save_file(tensors, place / lora.TENSORS)
    found = lora.load(case.model, place / lora.TENSORS, part="unet", merged=False)
    assert found.adapter.keys() == wanted.adapter.keys()
    for at, factors in wanted.adapter.items():
        for which in ("down", "up"):
            # Alphas in float32.
            np.testing.assert_allclose(found.adapter[at][which], factors[which], rtol=1e-6)


def test_a_written_adapter_comes_back(case, tmp_path):
    kept = lora.load(case.model, case.adapter(tmp_path / "peft"), merged=False)
    again = lora.load(case.model, lora.save(tmp_path / "out", case.model, kept.adapter), merged=False)
    assert again.adapter.keys() == kept.adapter.keys()
    assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (again.adapter, kept.adapter)), strict=True))
    # Under the names that PEFT itself wrote.
    names = {key.removeprefix(f"{case.name}/adapter/") for key in STORED.files if key.startswith(f"{case.name}/adapter/")}
    assert set(store.read_safetensors(tmp_path / "out" / lora.TENSORS)) == names


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        ({"in.lora_A.weight": (2, 4)}, {}, "in has no up: expected both"),
        ({"in.lora_A.weight": (2, 4), "in.lora_B.weight": (32, 3)}, {}, r"factors \(2, 4\) and \(32, 3\)"),
        (
            {"in.lora_A.weight": (2, 5), "in.lora_B.weight": (32, 2)},
            {},
            r"lora_A of in has shape \(2, 5\)",
        ),
        (
            {"in.lora_A.weight": (2, 4), "in.lora_B.weight": (31, 2)},
            {},
            r"lora_B of in has shape \(31, 2\)",
        ),
        (
            {"on.lora_A.weight": (2, 4), "on.lora_B.weight": (32, 2)},
            {},
            "adapters of on: expected modules",
        ),
        ({"in.lora_magnitude_vector": (32,)}, {}, "tensors in.lora_magnitude_vector: expected pairs"),
        ({"in.hada_w1_a": (2, 3)}, {}, r"other kinds \(DoRA, LoHa, LoKr\)"),
        ({}, {}, "no tensors"),
        (None, dict(r=2, use_dora=True), "use_dora = True: expected False"),
        (None, dict(r=2, bias="all"), "bias = 'all': expected 'none'"),
        (None, dict(r=4), "has rank 2: expected 4"),
        (None, dict(r=2, use_rslora="false"), "use_rslora = 'false': expected true or false"),
        (None, dict(r=2, lora_alpha=True), "lora_alpha = True: expected a finite number"),
        (None, dict(r=2, lora_alpha=10**400), "lora_alpha = 1000.*: expected a finite number"),
        (None, dict(r=2.0), r"r = 2\.0: expected an integer of 1 or more"),
        (None, dict(r=2, rank_pattern=[1]), r"rank_pattern = \[1\]: expected a table"),
        (None, dict(r=2, alpha_pattern="x"), "alpha_pattern = 'x': expected a table"),
        (None, dict(r=2, alpha_pattern={"in": "4"}), r"alpha_pattern\['in'\] = '4': expected a finite number"),
        (None, dict(r=2, rank_pattern={"(a+)+b": 4}), r"rank_pattern has '\(a\+\)\+b': expected the name of a module"),
        (None, dict(r=2, alpha_pattern={"(": 4}), r"alpha_pattern has '\(': expected the name of a module"),
        ({"in.lora_A.weight": (0, 4), "in.lora_B.weight": (32, 0)}, {}, "in has rank 0: expected 1 or more"),
        (
            {"in.lora_A.weight": np.ones((2, 4), "i1"), "in.lora_B.weight": (32, 2)},
            {},
            "tensor 'lora_A of in' is int8: expected numbers of floating point",
        ),
        (
            {"in.lora_A.weight": (2, 4), "in.lora_B.weight": np.full((32, 2), np.nan, "f4")},
            {},
            "not finite in lora_B of in: expected none",
        ),
        (
            {"in.lora_A.weight": (2, 4), "in.lora_B.weight": (32, 2), "in.alpha": np.array(4 + 3j, "c8")},
            {},
            "in.alpha is complex64: expected a real number",
        ),
        (None, dict(r=2, lora_alpha="much"), "lora_alpha = 'much': expected a finite number"),
    ],
)
def test_what_is_no_adapter_of_the_network_is_refused(tensors, config, reason, tmp_path):
    if tensors is None:
        tensors = {"in.lora_A.weight": (2, 4), "in.lora_B.weight": (32, 2)}
    arrays = {key: said if isinstance(said, np.ndarray) else np.ones(said, "f4") for key, said in tensors.items()}
    safetensors.numpy.save_file(arrays, tmp_path / lora.TENSORS)
    if config:
        (tmp_path / lora.CONFIG).write_text(json.dumps(config))
    denoiser = Denoiser(net=DiT(patch=2, width=32, depth=1, heads=4), process=Gaussian(schedule=EDM()))
    shapes = jax.eval_shape(lambda key: denoiser.init(key, (4, 4, 1)), jax.random.key(0))
    model = denoiser.bind(jax.tree.map(lambda s: np.zeros(s.shape, "f4"), shapes))
    with pytest.raises(WeightsError, match=reason):
        lora.load(model, tmp_path)


@pytest.mark.parametrize("key", ["in", "block.in", r"block\.in", "^a.block.in", "n_x|in"])
def test_patterns_are_names_of_modules_or_their_ends(key, tmp_path):
    tensors = {f"a.{module}.lora_{which}.weight": np.ones((2, 2), "f4") for module in ("block.in", "block.main") for which in "AB"}
    safetensors.numpy.save_file(tensors, tmp_path / lora.TENSORS)
    (tmp_path / lora.CONFIG).write_text(json.dumps(dict(r=2, lora_alpha=2, alpha_pattern={key: 8})))
    if "|" in key:
        with pytest.raises(WeightsError, match="alpha_pattern has"):
            lora.read(tmp_path)
        return
    found = lora.read(tmp_path)[""]
    assert (found["a.block.in"].scale, found["a.block.main"].scale) == (4.0, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(kind="edm"), "kind 'edm': expected scorelab"),
        (dict(network=dict(type="Popen")), "'Popen': expected a network"),
        (dict(network=dict(type="UNet", colour=3)), "colour"),
        (dict(process=dict(type="require_same_process")), "expected a network"),
        (
            dict(process=dict(type="Gaussian", schedule=dict(type="Discrete", steps=10**10))),
            "Discrete.steps = 10000000000: expected an",
        ),
        (dict(process=dict(type="Gaussian", schedule=dict(type="EDM", sigma_max=10**400))), "EDM.sigma_max = 1000.*: expected an"),
        (dict(event=[4, 4]), "DiT accepts"),
        (dict(event=[8.5, 7, 1]), r"event = \[8\.5, 7, 1\]: expected a list of integers"),
        (dict(event=[65536] * 300), r"event = \[65536, .*: expected a list of integers from 1 to 65,536, at most 16"),
        (dict(denoiser=3), "denoiser = 3: expected a table"),
        (dict(denoiser=dict(data_std=True)), "Denoiser.data_std = True: expected a finite number"),
        (dict(network=dict(type="DiT", patch=3, depth=10**9)), "DiT.depth = 1000000000: expected an integer of at most 65,536"),
        (dict(network=dict(type="DiT", patch=3, depth=1000)), "DiT: 1,000 blocks: expected at most 256"),
        (dict(network=dict(type="MLP", embed=10**9)), "MLP.embed = 1000000000: expected an integer of at most 65,536"),
        (dict(network=dict(type="UNet", channels=[8] * 16, blocks=100)), "UNet: 1,600 blocks: expected at most 256"),
        (dict(network=dict(type="UNet", remat="false")), "UNet.remat = 'false': expected true or false"),
        (dict(denoiser=dict(predict="w")), "predict"),
        (dict(denoiser=dict(energy=1)), "energy = 1: expected true or false"),
        (dict(network=dict(type="DiT", patch=3, width=32, depth=1, heads=4, mlp_ratio=2)), "unexpected: block1"),
    ],
)
def test_a_config_of_something_else_makes_no_model(change, reason, tmp_path):
    config = json.loads(str(STORED["dit/config"])) | change
    tensors = MADE["weights"](json.loads(str(STORED["dit/shapes"])), 1)
    with pytest.raises(WeightsError, match=reason):
        own.model(store.write_folder(tmp_path / "out", tensors, config))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.full(8, np.inf, "f4"), r"numbers that are not finite in {}: expected none"),
        (np.ones(8, "i4"), r"tensor '{}' is int32: expected numbers of floating point"),
    ],
)
def test_parameters_that_are_no_numbers_are_refused_by_name(value, reason, tmp_path):
    denoiser = Denoiser(net=MLP(width=8, depth=1, embed=8), process=Gaussian(schedule=EDM()))
    shapes = jax.eval_shape(lambda key: denoiser.init(key, (3,)), jax.random.key(0))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, "f4"), shapes)
    folder = own.export(denoiser.bind(zeros), tmp_path / "out", event=(3,))
    name = next(key for key, array in folder.tensors().items() if array.shape == value.shape)
    config = {key: said for key, said in folder.config.items() if key not in ("format", "weights")}
    changed = store.write_folder(tmp_path / "changed", folder.tensors() | {name: value}, config)
    with pytest.raises(WeightsError, match="changed: " + reason.format(re.escape(name))):
        pretrained.load(str(changed.path))
    # What could not be read again is not written.
    broken = jax.tree.map(lambda leaf: value if leaf.shape == value.shape else leaf, zeros)
    with pytest.raises(WeightsError, match=r"none: .*expected n"):
        own.export(denoiser.bind(broken), tmp_path / "none", event=(3,))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("scale", [Pixels(low=-1.0, high=1.0), Pixels(levels=17, low=-256 / 255, high=256 / 255), Identity(), None])
def test_the_scale_of_the_data_comes_back(scale, tmp_path):
    denoiser = Denoiser(net=MLP(width=8, depth=1, embed=8), process=Gaussian(schedule=EDM()))
    shapes = jax.eval_shape(lambda key: denoiser.init(key, (3,)), jax.random.key(0))
    model = denoiser.bind(jax.tree.map(lambda s: np.zeros(s.shape, "f4"), shapes))
    own.export(model, tmp_path / "out", event=(3,), transform=scale)
    who = pretrained.load(str(tmp_path / "out"))
    assert (who.transform, who.event_shape) == (scale, (3,))
    if scale is None:
        with pytest.raises(WeightsError, match=r"'out': its export does not say the scale of its data: .*transform="):
            who.decode(jnp.zeros((1, 3)))
    else:
        x = np.arange(12, dtype="u1" if scale.levels else "f4").reshape(4, 3)
        assert np.array_equal(who.decode(who.encode(x)), x)


@pytest.mark.parametrize(
    ("stated", "reason"),
    [
        (dict(type="ImageFolder", path="."), "'ImageFolder': expected Identity, Pixels"),
        (dict(type="Pixels", levels=1), "Pixels: .*levels = 1"),
        (dict(type="VPLinear"), "'VPLinear': expected Identity, Pixels"),
        (3, "transform 3: expected one of scorelab.data"),
    ],
)
def test_what_is_no_scale_of_this_package_is_refused(stated, reason, tmp_path):
    with pytest.raises(WeightsError, match=reason):
        own.transform(store.write_folder(tmp_path / "out", {"w": np.zeros(1, "f4")}, dict(kind="scorelab", transform=stated)))


def test_what_is_not_of_this_package_is_not_exported(tmp_path):
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Tenth(Identity):
        pass

    class Other(DiT):
        pass

    net = Other(patch=2, width=8, depth=1, heads=2)
    model = Denoiser(net=net, process=Gaussian(schedule=EDM())).bind({"params": {}})
    with pytest.raises(WeightsError, match="'Other': expected a network"):
        own.export(model, tmp_path / "out", event=(4, 4, 1))
    model = Denoiser(net=DiT(patch=2, width=8, depth=1, heads=2), process=Gaussian(schedule=EDM())).bind({"params": {}})
    with pytest.raises(WeightsError, match="missing"):
        own.export(model, tmp_path / "out", event=(4, 4, 1))
    with pytest.raises(WeightsError, match="'Tenth': expected Identity, Pixels"):
        own.export(model, tmp_path / "out", event=(4, 4, 1), transform=Tenth())
    with pytest.raises(TypeError, match="transform"):
        own.export(model, tmp_path / "out", event=(4, 4, 1), transform="Pixels")
    assert not (tmp_path / "out").exists()


def test_the_module_in_torch_reads_an_export_and_is_a_model_again(case):
    """The two directions together: JAX -> safetensors -> torch -> a function on the host -> a model with torch's derivative."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed; the stored outputs stand for it")
    import torch

    networks = runpy.run_path(str(Path(ROOT) / "experiments" / "torch_networks.py"))
    denoiser = networks["load"](case.folder.path)

    def denoised(y, t, cond):
        out = denoiser(y.movedim(-1, 1), torch.ones_like(t), t, None if cond is None else cond.long())
        return out.movedim(1, -1)

    model = FunctionModel(TorchFunction(denoised), case.model.process, returns="denoised")
    for found, wanted in zip(case.asked(model), case.asked(case.model), strict=True):
        close(found, np.asarray(wanted))
