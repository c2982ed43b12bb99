"""Rewards by CLIP: the cosine of the oracle, a chain of linear layers as one map, and both inside a sampler."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, fk, grids, models, pretrained, processes, sample, schedules, solvers
from scorelab.errors import ConfigError, WeightsError
from scorelab.pretrained import clip, rewards, store
from tests.pretrained.test_clip import STORED, converted, made

pytestmark = pytest.mark.usefixtures("quick_compilation")
# As the published predictor: linear layers at these places, with dropout between.
WIDTHS = {0: (12, 10), 2: (10, 8), 4: (8, 5), 6: (5, 3), 7: (3, 1)}


def chain(widths=WIDTHS):
    rng = np.random.default_rng(2)
    found = {}
    for i, (inner, outer) in widths.items():
        found[f"layers.{i}.weight"] = rng.standard_normal((outer, inner)).astype(np.float32)
        found[f"layers.{i}.bias"] = rng.standard_normal(outer).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def towers():
    """The vision tower of a CLIP with its parameters, and a prompt of the file as a target."""
    net, tensors, _ = made("both")
    tree = clip.params(net, tensors)
    return dict(net=net.vision_model, params={"params": tree["params"]["vision_model"]})


def unseen(dtype):
    """Images on [-1, 1] whose preprocessing is what the oracle was shown: they have its size, so nothing is resized."""
    unit = STORED["pixels"] * np.array(clip.STD) + np.array(clip.MEAN)
    return jnp.asarray(2 * unit - 1, dtype)


def test_the_cosine_and_its_gradient_are_those_of_the_oracle(towers):
    scale = np.exp(float(made("both")[1]["logit_scale"]))
    with jax.enable_x64(True):
        cotangent = STORED["both/cotangent/logits"] * scale

        @jax.jit
        def asked(x):
            # Targets may have any length.
            cosine = lambda x, target: rewards.ClipCosine(**towers, target=3 * target)(x)
            found, pull = jax.vjp(lambda x: jax.vmap(cosine, (None, 0), 1)(x, STORED["both/texts"]), x)
            return found, pull(cotangent)[0]

        found, gradient = asked(unseen(np.float64))
        assert np.abs(found - STORED["both/logits"] / scale).max() < 1e-12
        # Of images on [-1, 1]: the scale is halved, and divided by the deviation of its channel.
        wanted = STORED["both/gradient"] / (2 * np.array(clip.STD))
        assert np.abs(gradient - wanted).max() < 1e-11 * np.abs(wanted).max()


def test_gradients_are_slopes_through_resizing(towers):
    weight, offset = rewards.affine(chain())
    with jax.enable_x64(True):
        x, v = (jnp.asarray(np.random.default_rng(i).uniform(-1, 1, (2, 20, 27, 1))) for i in range(2))
        both = (
            rewards.ClipCosine(**towers, target=STORED["both/texts"][0]),
            rewards.Aesthetic(**towers, weight=weight, offset=offset),
        )
        asked = jax.jit(jax.value_and_grad(lambda x: sum(reward(x).sum() for reward in both)))
        slope = lambda h: (asked(x + h * v)[0] - asked(x - h * v)[0]) / (2 * h)
        # Two central differences, of which the error of the order of the square of the step is taken away.
        extrapolated = (4 * slope(1e-4) - slope(2e-4)) / 3
        assert abs(jnp.vdot(asked(x)[1], v) - extrapolated) < 1e-9 * abs(extrapolated)


def test_a_chain_of_linear_layers_is_one_map(towers):
    tensors = chain()
    weight, offset = rewards.affine(tensors)
    assert weight.dtype == np.float64
    x = np.random.default_rng(0).standard_normal((5, 12))
    y = x
    for i in WIDTHS:
        y = y @ tensors[f"layers.{i}.weight"].astype(np.float64).T + tensors[f"layers.{i}.bias"]
    assert np.allclose(x @ weight + offset, y[:, 0], rtol=1e-13)
    # Of points of length one, and on the scale that is said.
    reward = rewards.Aesthetic(**towers, weight=weight, offset=offset, low=0.0, high=255.0)
    images = np.random.default_rng(1).uniform(0, 255, (3, 16, 16, 3)).astype(np.float32)
    points = np.asarray(clip.image_features(reward.net, reward.params, jnp.asarray(images / 255)))
    wanted = points / np.linalg.norm(points, axis=1, keepdims=True) @ weight + offset
    # Float32, as everywhere.
    assert np.allclose(reward(images), wanted, rtol=1e-5)


def test_published_shape_of_the_predictor():
    widths = {0: (768, 1024), 2: (1024, 128), 4: (128, 64), 6: (64, 16), 7: (16, 1)}
    assert rewards.affine(chain(widths))[0].shape == (768,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: {}, "no tensors"),
        (lambda t: t | {"layers.1.running_mean": np.zeros(3)}, "'layers.1.running_mean': expected layers.0.weight"),
        (lambda t: {k: v for k, v in t.items() if k != "layers.2.bias"}, r"layers\.2: expected a weight and a bias each"),
        (
            lambda t: {k: v for k, v in t.items() if "2" not in k},
            r"layers.0 \(10, 12\) \(10,\), .*: expected maps from one to the next",
        ),
        (lambda t: {k: v for k, v in t.items() if "7" not in k}, "the last to one number"),
        (lambda t: t | {"layers.7.bias": np.zeros(2)}, "the last to one number"),
        (lambda t: t | {"layers.00.weight": np.zeros((10, 12))}, r"'layers\.00\.weight': expected layers\.0\.weight"),
        (lambda t: t | {f"layers.{'9' * 5000}.weight": np.zeros((1, 1))}, r"'layers\.9+': expected layers\.0\.weight"),
        (
            lambda t: t | {"layers.7.bias": np.zeros(1, np.complex64)},
            r"'layers\.7\.bias' is complex64: expected numbers of floating",
        ),
        (lambda t: t | {"layers.7.bias": np.array([np.nan])}, r"'layers\.7\.bias' has numbers that are not finite: expected none"),
    ],
)
def test_other_predictors_are_refused(change, reason):
    with pytest.raises(WeightsError, match=reason):
        rewards.affine(change(chain()), name="file")


def test_they_are_built_from_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path))
    folder, tokenizer = converted(tmp_path / "pretrained", "both")
    found = pretrained.clip_cosine("both", tokenizer, "")
    # The prompt of the first row of the file; float32.
    assert np.allclose(clip.unit(found.target), STORED["both/texts"][0], atol=1e-5)
    # None is the one that came with the weights.
    with pytest.raises(WeightsError, match=r"both: no tokenizer/: expected pretrained\.clip_cosine\.tokenizer"):
        pretrained.clip_cosine("both", None, "")
    shutil.copytree(tokenizer, folder.path / "tokenizer")
    assert np.array_equal(pretrained.clip_cosine("both", None, "").target, found.target)
    x = unseen(np.float32)
    assert np.abs(found(x)).max() <= 1
    file = store.write_safetensors(tmp_path / "predictor.safetensors", chain())
    aesthetic = pretrained.aesthetic(str(folder.path), file, low=0.0)
    assert (aesthetic.low, aesthetic(x).shape) == (0.0, (2,))
    vision, _ = converted(tmp_path / "pretrained", "vision")
    assert pretrained.aesthetic("vision", str(file)).net.hidden_act == "gelu"
    with pytest.raises(WeightsError, match="a VisionTower: expected a CLIP with both towers"):
        pretrained.clip_cosine(vision.path, tokenizer, "a cat")
    with pytest.raises(ConfigError, match=r"pretrained\.aesthetic\.folder = 'none': no such converted model"):
        pretrained.aesthetic("none", file)
    other = store.write_safetensors(tmp_path / "other.safetensors", chain({0: (11, 1)}))
    with pytest.raises(WeightsError, match=r"Aesthetic\.weight has shape \(11,\): expected \(12,\)"):
        pretrained.aesthetic("both", other)
    with pytest.raises(ValueError, match=r"ClipCosine\.target has shape \(11,\)"):
        rewards.ClipCosine(net=found.net, params=found.params, target=np.ones(11))
    with pytest.raises(ValueError, match="low = 1"):
        pretrained.clip_cosine("both", tokenizer, "a cat", low=1.0)
    tower, tensors, _ = made("vision")
    without = tower.clone(projection_dim=None)
    with pytest.raises(ValueError, match=r"Aesthetic\.net has no projection"):
        rewards.Aesthetic(net=without, params=clip.params(tower, tensors), weight=np.ones(12), offset=0.0)


def test_they_steer_inside_a_sampler_and_another_prompt_is_another_leaf(towers):
    process = processes.Gaussian(schedule=schedules.EDM())
    base = models.ExactModel(densities.Gaussian(np.zeros((8, 8, 1)), np.full((8, 8, 1), 0.3)), process)

    def steered(target):
        reward = rewards.ClipCosine(**towers, target=target)
        potential = fk.Difference(reward, 5.0, every=2)
        solver = fk.FeynmanKac(base=solvers.DDIM(eta=1.0), potential=potential, policy=fk.Never(), particles=8)
        out = sample(base, solver=solver, grid=grids.Karras(4), key=jax.random.key(0), shape=(8, 8, 8, 1))
        # Nothing was resampled, so the weights are those of the whole path: the reward of its end. Float32, and 5 times a cosine.
        assert np.ptp(out.log_weights - 5 * reward(out.x)) < 1e-4
        return out

    one, two = (steered(target) for target in STORED["both/texts"][:2])
    assert np.ptp(one.log_weights) > 1e-3
    assert np.ptp(one.log_weights - two.log_weights) > 1e-3
    reward = rewards.ClipCosine(**towers, target=STORED["both/texts"][0])
    assert reward == reward
    assert reward != rewards.ClipCosine(**towers, target=STORED["both/texts"][1])
    leaves, structure = jax.tree.flatten(reward)
    assert jax.tree.unflatten(structure, leaves).net == reward.net
    assert structure == jax.tree.structure(rewards.ClipCosine(**towers, target=STORED["both/texts"][1]))
