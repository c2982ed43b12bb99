"""Points of CLIP as features of a distance: those of the oracle, and the distance by its formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import metrics, pretrained
from scorelab.errors import WeightsError
from scorelab.pretrained import clip
from scorelab.pretrained.registry import PUBLISHED
from tests.pretrained.test_clip import STORED, converted

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder, _ = converted(tmp_path_factory.mktemp("clip"), "both")
    return pretrained.ClipFeatures(weights=str(folder.path), batch_size=4)


def test_points_are_those_of_the_oracle(features):
    """Grey levels that its preprocessing, without a change of size, brings to what the oracle was shown; float32."""
    levels = 255 * (STORED["pixels"] * np.array(clip.STD) + np.array(clip.MEAN))
    found = features.forward(features.params, jnp.asarray(levels, jnp.float32))
    np.testing.assert_allclose(found, STORED["both/images"], atol=1e-5)


def test_the_distance_is_that_of_its_formula(features):
    rng = np.random.default_rng(0)
    x, y = (rng.integers(low, high, (6, 20, 24, 3), np.uint8) for low, high in ((0, 256), (80, 200)))
    a, b = features(x).astype(np.float64), features(y).astype(np.float64)
    # Length one, in float32.
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, atol=1e-6)
    k = lambda a, b: np.exp(-(np.linalg.norm(a[:, None] - b, axis=-1) ** 2) / 200)
    other = ~np.eye(6, dtype=bool)
    wanted = k(a, a)[other].mean() + k(b, b)[other].mean() - 2 * k(a, b).mean()
    found = metrics.mmd(x, y, 10.0, features=features)
    # Sums of numbers near 1 whose differences these are.
    assert found.value == pytest.approx(wanted, abs=1e-12)
    assert found.extractor == features.id
    # The published code counts pairs of an image with itself as well: above by at most 4 / 200 for n in each set.
    excess = k(a, a).mean() + k(b, b).mean() - 2 * k(a, b).mean() - wanted
    assert 0 < excess < 2 * 4 / 200 / 6


def test_what_is_no_clip_is_refused(features, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path))
    folder, _ = converted(tmp_path / "pretrained", "vision")
    digest = folder.config["weights"]["sha256"][:8]
    named = pretrained.ClipFeatures(weights="vision")
    assert named.id == f"clip(vision-{digest})"
    assert features != named
    with pytest.raises(WeightsError, match=r"ClipFeatures\.weights = 'clip-vit-large-patch14-336': no such converted model"):
        _ = pretrained.ClipFeatures().id
    converted(tmp_path / "pretrained", "text_gelu")
    with pytest.raises(WeightsError, match="a TextTower: expected a VisionTower"):
        _ = pretrained.ClipFeatures(weights="text_gelu").params
    with pytest.raises(TypeError, match=r"ClipFeatures\.weights = 3"):
        pretrained.ClipFeatures(weights=3)
    with pytest.raises(ValueError, match=r"ClipFeatures\.levels = 17"):
        pretrained.ClipFeatures(levels=17)
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 1\): expected 3 channels"):
        named(np.zeros((2, 8, 8, 1), np.uint8))


def test_the_count_of_the_published_tower_is_that_of_its_network():
    """ViT-L/14 at 336: 24 layers of 1024, of which only the positions know the size of images."""
    text = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    vision = dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    config = dict(model_type="clip", text_config=text, vision_config=vision | dict(image_size=336), projection_dim=768)
    found = clip.shapes(clip.network(config))
    assert sum(int(np.prod(shape)) for shape in found.values()) == PUBLISHED["clip-vit-large-patch14-336"].parameters
