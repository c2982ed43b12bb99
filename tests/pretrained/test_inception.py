"""The Inception network against torch-fidelity at drawn weights, and what is made of its features."""

import hashlib
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from scorelab import metrics, pretrained
from scorelab.errors import WeightsError
from scorelab.pretrained import inception, store
from tests.pretrained.crafted import FILES

SCRIPT = FILES.parent / "pretrained_inception.py"
STORED = np.load(SCRIPT.with_suffix(".npz"))
MADE = runpy.run_path(str(SCRIPT))
SHAPES = json.loads(str(STORED["shapes"]))
IMAGES = MADE["images"]()


@pytest.fixture(scope="module")
def tensors():
    """The drawn weights by their published names; the file has the numbers of batches as well."""
    return MADE["weights"](SHAPES)


@pytest.fixture(scope="module")
def tree(tensors):
    return inception.params(tensors)


@jax.jit
def _network(tree, x):
    with jax.default_matmul_precision("highest"):
        return inception.Inception().apply(tree, x)


def test_names_and_counts_are_those_of_the_published_file():
    """Those that torch-fidelity asks of pt_inception-2015-12-05-6726825d.pth: the file of the test has them from there."""
    assert {key: list(value.shape) for key, value in inception.published(inception.params(MADE["weights"](SHAPES))).items()} == {
        key: shape for key, shape in SHAPES.items() if not key.endswith("num_batches_tracked")
    }
    trained = [shape for at, shape in inception.shapes().items() if not at.endswith(("/mean", "/var"))]
    # 94 convolutions with their norms, and 2049 x 1008 of the last layer.
    assert sum(int(np.prod(shape)) for shape in trained) == 23_850_960


def test_published_names_go_to_the_tree_and_back(tensors, tree):
    back = inception.published(tree)
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)
    counted = {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.int64(3)}
    assert jax.tree.all(jax.tree.map(np.array_equal, inception.params(tensors | counted), tree))
    for broken, match in (
        ({name: tensors[name] for name in tensors if name != "fc.bias"}, "1 missing: fc/bias"),
        (tensors | {"AuxLogits.fc.weight": np.zeros((2, 2), "f4")}, "1 unexpected: AuxLogits"),
        (tensors | {"fc.bias": np.zeros(1000, "f4")}, "of another shape: fc/bias"),
        (tensors | {"fc.bias": np.full(1008, np.nan, "f4")}, r"not finite in fc\.bias: expected none"),
        (
            tensors | {"Mixed_5b.branch1x1.bn.running_var": np.full(64, -1e-9, "f4")},
            "variances below zero in Mixed_5b_branch1x1: expected none",
        ),
    ):
        with pytest.raises(WeightsError, match=match):
            inception.params(broken, name="weights.pth")


@pytest.mark.parametrize("mode", inception.MODES)
def test_layers_are_those_of_torch_fidelity(mode, tree):
    """Float32 here against float64 there, which it rounds to float32."""
    x = np.concatenate([np.asarray(inception.seen(jnp.asarray(image, jnp.float32), mode)) for image in IMAGES])
    found = _network(tree, x)
    for layer in inception.LAYERS:
        wanted = np.concatenate([STORED[f"{mode}/{i}/{layer}"] for i in range(len(IMAGES))])
        assert np.abs(np.asarray(found[layer]) - wanted).max() < 5e-6 * np.abs(wanted).max(), layer


@pytest.mark.long
@pytest.mark.parametrize("mode", inception.MODES)
def test_layers_are_those_of_torch_fidelity_in_float64(mode, tree):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)
        for i, image in enumerate(IMAGES[:2]):
            found = _network(wide, inception.seen(jnp.asarray(image, jnp.float64), mode))
            for layer in inception.LAYERS:
                wanted = STORED[f"{mode}/{i}/{layer}"]
                # Its outputs are float32.
                assert np.abs(np.asarray(found[layer]) - wanted).max() < 1e-6 * np.abs(wanted).max(), layer


def test_images_are_resized_by_the_stated_formula():
    rng = np.random.default_rng(0)
    x = rng.random((1, 7, 400, 1))
    at = {
        "tf1": lambda n: np.arange(299) * float(np.float32(n / 299)),
        "pytorch_fid": lambda n: np.maximum((np.arange(299) + 0.5) * n / 299 - 0.5, 0),
    }
    with jax.enable_x64(True):
        for mode, places in at.items():
            found = np.asarray(inception.resized(jnp.asarray(x), mode))
            rows = np.stack([np.interp(places(7), np.arange(7), x[0, :, i, 0]) for i in range(400)], 1)
            wanted = np.stack([np.interp(places(400), np.arange(400), row) for row in rows])
            np.testing.assert_allclose(found[0, :, :, 0], wanted, atol=1e-12)
        whole = jnp.asarray(rng.integers(0, 256, (1, 299, 299, 3)), jnp.float64)
        for mode in inception.MODES:
            np.testing.assert_allclose(inception.resized(whole, mode), whole, atol=1e-9)


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


def test_features_are_of_the_network_of_the_file(file, tree):
    features = pretrained.InceptionFeatures(weights=str(file), layer="64", batch_size=2)
    # By the stated rule, of this package's tree: names sorted, shape, type and bytes of each.
    digest = hashlib.sha256()
    for _, layer in sorted(tree["params"].items()):
        for _, leaf in sorted(layer.items()):
            digest.update(f"{leaf.shape} float32 ".encode() + leaf.tobytes())
    assert features.id == f"inception(tf1-64-{digest.hexdigest()[:8]})"
    images = np.concatenate([IMAGES[0]] * 3)
    found = features(images)
    assert found.shape == (3, 64)
    assert np.abs(found - STORED["tf1/0/64"]).max() < 5e-6 * np.abs(found).max()
    assert features == pretrained.InceptionFeatures(weights=str(file), layer="64")
    assert features != pretrained.InceptionFeatures(weights=str(file), layer="64", mode="pytorch_fid")
    value = metrics.frechet(images[:2], metrics.feature_moments(images, features), features)
    assert value.label == f"FID-{features.id}"
    # All images are one image.
    assert value.value < 1e-6
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 1\): expected 3 channels.*np.repeat"):
        features(np.zeros((2, 8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="expected uint8"):
        features(np.zeros((2, 8, 8, 3), np.float32))


def test_weights_are_found_by_path_and_name_and_checked(file, tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path))
    absent = pretrained.InceptionFeatures()
    with pytest.raises(WeightsError, match=r"'pt_inception-2015-12-05-6726825d': no such file"):
        _ = absent.id
    # Weights have one id, and what a folder says of its source has no part in it.
    named, counted = "pt_inception-2015-12-05-6726825d", {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.int64(3)}
    store.write_folder(tmp_path / "pretrained" / named, tensors | counted, dict(kind="tensors", source=[1]))
    assert absent.id == pretrained.InceptionFeatures(weights=str(file)).id
    zeros = {name: np.zeros_like(value) for name, value in tensors.items()}
    claimed = dict(kind="tensors", source=dict(files={f"{named}.pth": "6726825d" + "0" * 56}))
    other = pretrained.InceptionFeatures(weights=str(store.write_folder(tmp_path / "zeros", zeros, claimed).path))
    assert other.id not in (absent.id, "inception(tf1-6726825d)")
    wrong = tmp_path / "pt_inception-2015-12-05-6726825d.safetensors"
    wrong.write_bytes(file.read_bytes())
    with pytest.raises(WeightsError, match=r"has the hash .*: expected 6726825d\.\.\., as its name says"):
        _ = pretrained.InceptionFeatures(weights=str(wrong)).id
    for options, match in (
        (dict(mode="torchvision"), r"InceptionFeatures\.mode = 'torchvision'"),
        (dict(layer="1024"), r"InceptionFeatures\.layer = '1024'"),
        (dict(batch_size=0), r"InceptionFeatures\.batch_size = 0"),
        (dict(levels=17), r"InceptionFeatures\.levels = 17"),
    ):
        with pytest.raises(ValueError, match=match):
            pretrained.InceptionFeatures(**options)
    with pytest.raises(TypeError, match=r"InceptionFeatures\.weights = 3"):
        pretrained.InceptionFeatures(weights=3)


def test_features_are_finite(file, tensors, monkeypatch):
    features = pretrained.InceptionFeatures(weights=str(file), layer="64", batch_size=2)
    tree = inception.params(tensors)
    # Finite, and too large for what follows.
    tree["params"]["Conv2d_2b_3x3"]["scale"] = np.full(64, 3e38, "f4")
    monkeypatch.setattr(pretrained.InceptionFeatures, "params", tree)
    with pytest.raises(WeightsError, match=r": [0-9]+ features that are not finite: expected weights of which all are"):
        features(np.concatenate([IMAGES[0]] * 2))


def test_class_probabilities_are_of_the_logits_without_bias(file):
    features = pretrained.InceptionFeatures(weights=str(file), batch_size=1)
    z = STORED["tf1/0/logits_unbiased"].astype(np.float64)
    wanted = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    # An error of the logits of 5e-6 of the largest is that of a probability.
    np.testing.assert_allclose(features.class_probabilities(IMAGES[0]), wanted, rtol=2e-5 * np.abs(z).max())
