"""CLIP against an oracle, and against the names and sizes of published files."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.errors import WeightsError
from scorelab.pretrained import clip, store, text
from tests.pretrained.crafted import FILES
from tests.pretrained.test_tokens import written

STORED = np.load(FILES.parent / "pretrained_clip.npz")
CASES = ("text_quick", "text_gelu", "vision", "both")
pytestmark = pytest.mark.usefixtures("quick_compilation")
# Of the largest number, outputs and derivatives: in float64 sums are formed in another order.
MOST = dict(float64=(1e-12, 1e-11), float32=(1e-5, 2e-5))
IDS = STORED["ids"]


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
        else:
            uniform = 0.3 * uniform
        found[name] = np.asarray(uniform, np.float32)
    return found


def made(name):
    """Network, published tensors and info of a case."""
    info = json.loads(str(STORED[f"{name}/info"]))
    tensors = drawn(info["shapes"])
    digest = hashlib.sha256(b"".join(value.tobytes() for value in tensors.values())).hexdigest()
    assert digest == info["sha256"], "NumPy draws other numbers: make the file anew"
    return clip.network(info["config"]), tensors, info


def parts(net, tree, x):
    """Outputs by their names in the file."""
    if isinstance(net, clip.CLIP):
        texts, images = net.text_model, net.vision_model
        own = lambda part: {"params": tree["params"][part]}
        return dict(
            logits=net.apply(tree, IDS, x),
            texts=clip.unit(texts.apply(own("text_model"), IDS).projected),
            images=clip.unit(images.apply(own("vision_model"), x).projected),
        )
    found = net.apply(tree, x if isinstance(net, clip.VisionTower) else IDS)
    return {name: part for name, part in found._asdict().items() if part is not None}


def close(found, wanted, most):
    return np.abs(np.asarray(found) - wanted).max() < most * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=pytest.mark.long)])
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_the_oracle(name, dtype):
    net, tensors, _ = made(name)
    with jax.enable_x64(dtype == "float64"):
        tree = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), clip.params(net, tensors))
        x = jnp.asarray(STORED["pixels"], dtype)
        cotangents = {key.split("/")[-1]: jnp.asarray(STORED[key], dtype) for key in STORED if key.startswith(f"{name}/cotangent/")}

        @jax.jit
        def asked(tree, x):
            def value(tree, x):
                found = parts(net, tree, x)
                return sum(jnp.vdot(cotangents[part], found[part]) for part in cotangents), found

            (_, found), (of_tree, of_x) = jax.value_and_grad(value, (0, 1), has_aux=True)(tree, x)
            return found, sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(of_tree), strict=True)), of_x

        found, along, gradient = asked(tree, x)
        assert set(found) == {key.split("/")[1] for key in STORED if key.startswith(f"{name}/")} - {
            "info",
            "along",
            "cotangent",
            "gradient",
        }
        for part, value in found.items():
            assert value.dtype == dtype
            assert close(value, STORED[f"{name}/{part}"], MOST[dtype][0]), part
        # A sum over all parameters, of terms as large as their norm.
        assert abs(along - STORED[f"{name}/along"]) < MOST[dtype][1] * max(abs(STORED[f"{name}/along"]), 1)
        if f"{name}/gradient" in STORED:
            assert close(gradient, STORED[f"{name}/gradient"], MOST[dtype][1])


def test_the_two_rules_of_the_end_differ_where_tokens_were_added():
    # Row 1 has a token that is larger than the end token.
    (old, tensors, _), (new, _, _) = made("text_quick"), made("text_gelu")
    assert (old.eos_token_id, new.eos_token_id) == (2, IDS[0, 1])
    other = old.clone(eos_token_id=new.eos_token_id)
    tree = clip.params(old, tensors)
    at = lambda net, ids: np.asarray(net.apply(tree, ids).pooled)
    same = (at(old, IDS) == at(other, IDS)).all(1)
    assert same.tolist() == [True, False, True, True]
    # Without an end there is nothing to pool, and a number that is no token is none.
    assert np.isnan(at(other, IDS[:, :1])).all()
    assert np.isfinite(at(old, IDS[:, :1])).all()
    for wrong in (-1, old.vocab_size):
        assert np.isnan(at(old, np.array([[IDS[0, 0], wrong]]))).all()


def test_tokens_see_those_before_them_alone():
    net, tensors, _ = made("text_gelu")
    tree = clip.params(net, tensors)
    changed = IDS.copy()
    changed[:, 9] += 1
    before, after = (np.asarray(net.apply(tree, ids).last) for ids in (IDS, changed))
    assert np.array_equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any((0, 2)).all()


@pytest.mark.parametrize("name", CASES)
def test_published_names_come_back(name):
    net, tensors, info = made(name)
    tree = clip.params(net, tensors)
    found = clip.published(tree)
    # Those of files have the prefix of their tower, also where the oracle's module has none, and where it saves none.
    plain = lambda key: key if name == "both" else key.removeprefix("text_model.").removeprefix("vision_model.")
    assert sorted(map(plain, found)) == sorted(map(plain, info["shapes"])) == sorted(map(plain, info["saved"]))
    stems = {key.split(".")[0] for key in found}
    assert stems <= {"text_model", "vision_model", "text_projection", "visual_projection", "logit_scale"}
    given = {plain(key): value for key, value in tensors.items()}
    assert all(array.tobytes() == given[plain(key)].tobytes() for key, array in found.items())
    # With the prefix, without, and with the buffer of old files.
    for keys in ({key: found[key] for key in reversed(found)}, given if name != "both" else tensors):
        buffer = {("text_model." if name == "both" else "") + "embeddings.position_ids": np.arange(20)[None]}
        again = clip.params(net, keys | buffer)
        assert all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (again, tree)), strict=True))


def test_other_tensors_are_refused_and_named():
    net, tensors, _ = made("text_gelu")
    with pytest.raises(WeightsError, match="1 missing: final_layer_norm/bias: expected"):
        clip.params(net, {key: value for key, value in tensors.items() if key != "final_layer_norm.bias"})
    with pytest.raises(WeightsError, match="1 unexpected: text_projection/kernel"):
        clip.params(net, tensors | {"text_projection.weight": np.zeros((12, 32), np.float32)})
    with pytest.raises(WeightsError, match="1 unexpected: vision_model/post_layernorm/scale"):
        clip.params(net, tensors | {"vision_model.post_layernorm.weight": np.zeros(32, np.float32)})
    with pytest.raises(WeightsError, match="unexpected: logit_scale"):
        clip.params(net, tensors | {"logit_scale": np.zeros((), np.float32)})
    with pytest.raises(WeightsError, match=r"tensors 'final_layer_norm.bias' and 'text_model.final_layer_norm.bias' for the one"):
        clip.params(net, tensors | {"text_model.final_layer_norm.bias": tensors["final_layer_norm.bias"]})
    with pytest.raises(WeightsError, match="expected 2 axes, as a linear layer has"):
        clip.params(net, tensors | {"encoder.layers.0.mlp.fc1.weight": np.zeros((2, 2, 1), np.float32)})
    both, tensors, _ = made("both")
    with pytest.raises(WeightsError, match="1 missing: logit_scale: expected"):
        clip.params(both, {key: value for key, value in tensors.items() if key != "logit_scale"})


@pytest.mark.parametrize("name", ["sd1", "sd2", "clip-vit-large-patch14", "clip-vit-base-patch32"])
def test_published_sizes_have_the_published_names_and_numbers(name):
    said = json.loads(str(STORED[f"sizes/{name}"]))
    net = clip.network(said["config"])
    tree: dict = {}
    for path, shape in clip.shapes(net).items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        # Without memory.
        node[leaf] = np.broadcast_to(np.float32(0), shape)
    found = clip.published({"params": tree})
    assert sum(value.size for value in found.values()) == said["parameters"]
    # transformers 5 calls a tower alone by no prefix.
    lines = sorted(f"{key if 'patch' in name else key.removeprefix('text_model.')} {value.shape}" for key, value in found.items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == said["sha256"]


# As in the folder of SD 1.5, and as of OpenAI's CLIP with patches of 14, with fields that all configs had once.
SD1 = dict(
    _name_or_path="openai/clip-vit-large-patch14", architectures=["CLIPTextModel"], attention_dropout=0.0, bos_token_id=0,
    dropout=0.0, eos_token_id=2, hidden_act="quick_gelu", hidden_size=768, initializer_factor=1.0, initializer_range=0.02,
    intermediate_size=3072, layer_norm_eps=1e-05, max_position_embeddings=77, model_type="clip_text_model", num_attention_heads=12,
    num_hidden_layers=12, pad_token_id=1, projection_dim=768, torch_dtype="float32", transformers_version="4.22.0.dev0",
    vocab_size=49408,
)  # fmt: skip
LARGE = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12, projection_dim=768)
OLD = dict(
    architectures=["CLIPModel"], initializer_factor=1.0, logit_scale_init_value=2.6592, model_type="clip", projection_dim=768,
    text_config=dict(add_cross_attention=False, bad_words_ids=None, hidden_size=768, top_p=1.0, pruned_heads={}, hidden_act="gelu"),
    text_config_dict=LARGE, vision_config_dict=None,
    vision_config=dict(hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=24, patch_size=14),
)  # fmt: skip


def test_configs_of_published_folders_are_read():
    tower = clip.network(SD1)
    assert (tower.eos_token_id, tower.hidden_act, tower.projection_dim, tower.num_hidden_layers) == (2, "quick_gelu", None, 12)
    assert clip.network(SD1 | dict(architectures=["CLIPTextModelWithProjection"])).projection_dim == 768
    both = clip.network(OLD)
    # The second table replaces the first, defaults included.
    assert both.text_model == clip.TextTower(768, 3072, 12, 12, projection_dim=768)
    assert both.vision_model == clip.VisionTower(1024, 4096, 24, 16, patch_size=14, projection_dim=768)
    assert hash(both) == hash(clip.network(OLD))
    sides = dict(model_type="clip_vision_model", image_size=[32, 32], patch_size=[8, 8])
    assert (clip.network(sides).image_size, clip.network(sides).patch_size) == (32, 8)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "expected one of CLIPTextModel"),
        (SD1 | dict(architectures=["T5EncoderModel"]), r"\['T5EncoderModel'\] of model_type 'clip_text_model'"),
        (SD1 | dict(architectures=["CLIPModel"]), "CLIPModel"),
        (SD1 | dict(architectures="CLIPTextModel"), "expected one of"),
        (SD1 | dict(colour=3), "fields colour of TextTower: expected eos_token_id"),
        (SD1 | dict(pruned_heads={"0": [1]}), "pruned_heads"),
        (SD1 | dict(hidden_act="gelu_new"), "hidden_act = 'gelu_new'"),
        (SD1 | dict(num_attention_heads=7), "num_attention_heads = 7: expected a divisor of 768"),
        (SD1 | dict(eos_token_id=None), "eos_token_id"),
        (SD1 | dict(hidden_size=0), "hidden_size = 0"),
        (SD1 | dict(num_hidden_layers=10**9), "num_hidden_layers = 1000000000: expected an integer of at most 65,536"),
        (SD1 | dict(num_hidden_layers=1000), "1,000 blocks: expected at most 256"),
        (SD1 | dict(vocab_size=49408.0), r"vocab_size = 49408\.0: expected an integer"),
        (OLD | dict(vision_config=dict(image_size=60000, patch_size=1)), "tokens = 3,600,000,000: expected at most 65,536"),
        (SD1 | dict(layer_norm_eps=-1e-5), "layer_norm_eps"),
        (OLD | dict(vision_config=[3]), r"vision_config = \[3\]: expected a table"),
        (OLD | dict(vision_config=dict(patch_size=[14, 16])), "patch_size"),
        (OLD | dict(projection_dim=None), "projection_dim = None and None: expected one number for both"),
        (OLD | dict(vision_config=dict(rotary=True)), "config.json, vision_config: fields rotary"),
    ],
)
def test_other_networks_are_refused(config, reason):
    with pytest.raises(WeightsError, match=reason):
        clip.network(config)


def test_towers_refuse_what_is_not_theirs():
    (tower, tensors, _), (vision, weights, _) = made("text_gelu"), made("vision")
    tree, of_vision = clip.params(tower, tensors), clip.params(vision, weights)
    for wrong in (IDS[0], IDS.astype(np.float32), np.tile(IDS, 2)):
        with pytest.raises(ValueError, match=r"TextTower got .*: expected integers \(n, length\), at most 20 long"):
            tower.apply(tree, jnp.asarray(wrong))
    with pytest.raises(ValueError, match=r"VisionTower got images \(2, 8, 8, 3\): expected \(n, 16, 16, 3\)"):
        vision.apply(of_vision, jnp.zeros((2, 8, 8, 3)))
    for wrong in (jnp.zeros((8, 8, 3)), jnp.zeros((2, 8, 8, 4)), jnp.zeros((2, 0, 8, 3)), jnp.zeros((2, 8, 8, 3), jnp.uint8)):
        with pytest.raises(ValueError, match=r"clip\.seen got \w+ images \(.*: expected floats"):
            clip.seen(wrong)


@pytest.mark.parametrize("name", ["wide", "high", "small", "exact"])
def test_images_are_seen_as_published(name):
    image = STORED[f"images/{name}"]
    mean, std = np.array(clip.MEAN), np.array(clip.STD)
    with jax.enable_x64(True):
        unit = jnp.asarray(image[None], jnp.float64) / 255
        plain = np.asarray(clip.seen(unit, 16)[0]) * std + mean
        # The same filter in torch, in float64.
        assert np.abs(plain - STORED[f"images/{name}/plain"]).max() < 1e-12
    # The published preprocessing is of bytes: it rounds and cuts after each pass of the filter, and that is all the difference.
    height, width, _ = image.shape
    high, wide = (16 * side // min(height, width) for side in (height, width))
    top, left = (high - 16) // 2, (wide - 16) // 2

    def passed(*shapes):
        levels = np.float32(image)
        for shape in shapes:
            levels = np.clip(np.round(np.asarray(jax.image.resize(levels, (*shape, 3), "cubic"))), 0, 255)
        return levels[top : top + 16, left : left + 16]

    # Along the rows first, or along the columns, as each of the two has it.
    either = passed((height, wide), (high, wide)), passed((high, width), (high, wide))
    for kind in ("torchvision", "pil"):
        wanted = 255 * (STORED[f"images/{name}/{kind}"] * std + mean)
        # Its coefficients are rounded as well, so that what is near a half may go the other way.
        assert min((np.abs(wanted - levels) > 0.01).mean() for levels in either) < 0.01
    grey = jnp.asarray(image[None, :, :, :1] / np.float32(255))
    assert np.allclose(clip.seen(grey, 16), clip.seen(jnp.repeat(grey, 3, -1), 16), atol=1e-6)


def converted(path, name):
    """A converted folder of a case, and the folder of a tokenizer."""
    _, tensors, info = made(name)
    folder = store.write_folder(path / name, tensors, dict(kind="transformers", network=info["config"]))
    return folder, written(path / "sd1", "sd1")


def test_a_folder_is_a_text_encoder(tmp_path):
    folder, tokenizer = converted(tmp_path, "text_gelu")
    found = text.load(folder, tokenizer)
    prompts = ["a photo of a cat", "", "a photo of a cat"]
    net, tensors, _ = made("text_gelu")
    # As the towers are asked above; equal prompts once, so that this is the program of what follows.
    wanted = text._encoded(net, clip.params(net, tensors), found.tokenizer(prompts[:2]))
    twice = lambda part: np.asarray(part)[[0, 1, 0]]
    # Rows are sorted, and another batch may sum in another order: float32.
    assert np.allclose(found(prompts), twice(wanted.last), atol=1e-5)
    assert np.allclose(found.pooled(prompts), twice(wanted.pooled), atol=1e-5)
    assert np.allclose(text.load(folder, tokenizer, layer="penultimate")(prompts), twice(wanted.penultimate), atol=1e-5)
    assert np.allclose(found.empty, wanted.last[1], atol=1e-5)
    assert found.empty is found.empty
    with pytest.raises(ValueError, match=r"TextEncoder\.net has no projection"):
        found.projected(prompts)
    with pytest.raises(ValueError, match="TextEncoder got no prompts"):
        found([])
    with pytest.raises(WeightsError, match="layer = 'first'"):
        text.load(folder, tokenizer, layer="first")
    with pytest.raises(WeightsError, match=r"TextEncoder\.tokenizer has rows of 77 with numbers up to"):
        text.load(folder, written(tmp_path / "long", "sd1", tokenizer_config__json=None))
    ended = net.clone(eos_token_id=7)
    other = text.encoder(ended, found.params, tokenizer)
    assert other(prompts).shape == (3, 20, 32)
    with pytest.raises(ValueError, match=r"TextEncoder\.net\.eos_token_id = 7: expected \d+, that of the tokenizer"):
        other.pooled(prompts)
    both, _ = converted(tmp_path, "both")
    assert text.load(both, tokenizer).projected(prompts).shape == (3, 12)
    vision, _ = converted(tmp_path, "vision")
    with pytest.raises(WeightsError, match="a VisionTower: expected a TextTower, or a CLIP with both"):
        text.load(vision, tokenizer)
    other = store.write_folder(tmp_path / "other", dict(a=np.zeros(1)), dict(kind="tensors", network={}))
    with pytest.raises(WeightsError, match="kind 'tensors': expected transformers"):
        text.load(other, tokenizer)
