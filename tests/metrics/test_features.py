"""Feature extractors, their stored weights, and the report that uses them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.data import Pixels, load
from scorelab.errors import WeightsError
from scorelab.metrics import MetricValue, pixels, report, small_cnn, smallcnn


@pytest.fixture(scope="module")
def digits():
    return load("digits"), load("digits", "test")


def test_stored_digits_classifier_reaches_its_recorded_accuracy(digits):
    train, test = digits
    features = small_cnn("digits")
    assert features.record["data_sha256"] == train.sha256
    found = (features.logits(test.x).argmax(-1) == test.label).mean()
    # One image of rounding: another machine may break a near tie the other way.
    assert abs(found - features.record["test_accuracy"]) <= 1.01 / len(test)
    assert found > 0.95


def test_features_are_standardised_over_the_training_images(digits):
    z = small_cnn("digits")(digits[0].x).astype(np.float64)
    # Moments of 1500 float32 rows.
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-4)
    assert np.mean(z**2) == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "kmnist"])
def test_every_stored_classifier_restores(name):
    features = small_cnn(name)
    images = np.zeros((3, *features.architecture.shape), np.uint8)
    assert features(images).shape == (3, features.architecture.width)
    assert features.id == f"smallcnn({name}-{features.record['sha256'][:8]})"
    assert {"command", "seed", "versions", "data_sha256", "note"} <= set(features.record)
    assert (smallcnn.WEIGHTS / features.record["file"]).stat().st_size < 1e6


def test_the_batch_size_changes_nothing_and_equal_ids_are_equal(digits):
    images = digits[1].x[:41]
    a, b = small_cnn("digits"), small_cnn("digits")
    object.__setattr__(b, "batch_size", 16)
    assert a == b
    assert hash(a) == hash(b)
    # Float32 sums in another order.
    np.testing.assert_allclose(a(images), b(images), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(a.class_probabilities(images).sum(-1), 1, rtol=1e-5)


def test_unit_logits_are_the_same_network_and_differentiable(digits):
    features = small_cnn("digits")
    images = digits[1].x[:4]
    unit = Pixels(levels=17, low=0.0, high=1.0).encode(images)
    np.testing.assert_allclose(features.unit_logits(unit), features.logits(images), rtol=1e-4, atol=1e-4)

    def reward(u):
        return features.unit_logits(u)[:, 3].sum()

    gradient = jax.grad(reward)(unit)
    direction = jax.random.normal(jax.random.key(0), unit.shape)
    step = 1e-3
    slope = (reward(unit + step * direction) - reward(unit - step * direction)) / (2 * step)
    # Central difference in float32 of a value of order 10: rounding about 1e-6 * 10 / 1e-3 = 1e-2, and ReLU
    # kinks.
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(slope), rel=2e-2, abs=5e-2)


def test_images_of_another_kind_are_refused(digits):
    images = digits[1].x[:3]
    features = small_cnn("digits")
    with pytest.raises(ValueError, match="float32"):
        features(images.astype(np.float32))
    with pytest.raises(ValueError, match="expected uint8"):
        features(np.zeros((3, 28, 28, 1), np.uint8))
    with pytest.raises(ValueError, match="value 200: expected 0 to levels - 1 = 16"):
        features(np.full((1, 8, 8, 1), 200, np.uint8))
    with pytest.raises(ValueError, match="at least one image"):
        features(images[:0])
    with pytest.raises(ValueError, match="value 16"):
        pixels(levels=16)(np.full((1, 2, 2, 1), 16, np.uint8))
    np.testing.assert_array_equal(pixels(levels=17)(images)[0], (images[0].ravel() + np.float32(0.5)) / 17)


def test_weights_are_checked_against_their_record(tmp_path):
    architecture = smallcnn.Architecture(shape=(8, 8, 1), convolutions=((4, 1),), width=3, num_classes=2)
    params = smallcnn.init(jax.random.key(0), architecture)
    assert {key: value.shape for key, value in params.items()} == architecture.param_shapes()
    params = smallcnn.with_moments(params, np.random.default_rng(0).normal(size=(9, 3)))
    digest = smallcnn.save("made_up", params, architecture, {"levels": 17}, tmp_path)
    assert digest == smallcnn.save("made_up", params, architecture, {"levels": 17}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "made_up.npz"]
    features = small_cnn("made_up", folder=tmp_path)
    assert features.id == f"smallcnn(made_up-{digest[:8]})"
    for key, value in features.params.items():
        np.testing.assert_array_equal(value, params[key])
    with pytest.raises(WeightsError, match=r"name='other'.*made_up"):
        small_cnn("other", folder=tmp_path)
    path = tmp_path / "made_up.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(WeightsError, match=r"made_up\.npz: sha256"):
        small_cnn("made_up", folder=tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match="is missing"):
        small_cnn("made_up", folder=tmp_path)
    path.write_bytes(content)
    index = json.loads((tmp_path / "index.json").read_text())
    index["made_up"]["architecture"]["width"] = 5
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="shapes"):
        small_cnn("made_up", folder=tmp_path)


def test_report_orders_data_above_noise_and_prints_its_floor(digits):
    train, test = digits
    features = small_cnn("digits")
    noise = np.random.default_rng(0).integers(0, 17, (200, 8, 8, 1), np.uint8)
    key = jax.random.key(0)
    of_noise = report(noise, train, test, features, n=150, key=key)
    of_data = report(test.x, train, test, features, n=150, key=key)
    by_name = {value.name: value for value in of_data}
    for value in of_noise:
        assert value.extractor == features.id
        assert (value.n, value.floor) == (150, by_name[value.name].floor)
    for good, bad in zip(of_data[:2], of_noise[:2], strict=True):
        assert bad.value > 5 * abs(good.value)
    for good, bad in zip(of_data[2:], of_noise[2:], strict=True):
        assert bad.value < good.value
    text = str(of_noise[0])
    assert text.startswith(f"FID-{features.id} = ")
    assert "(n=150, floor train/test " in text
    with pytest.raises(ValueError, match="n=500: expected 2 to 200, the number of images in samples"):
        report(noise, train, test, features, n=500, key=key)


def test_a_value_takes_a_floor_of_its_own_kind_only():
    value = MetricValue(name="FID", value=12.3, extractor="smallcnn(mnist-1a2b3c4d)", n=2000, reference_n=2000)
    floor = MetricValue(name="FID", value=1.9, extractor="smallcnn(mnist-1a2b3c4d)", n=2000, reference_n=2000)
    assert str(value.with_floor(floor)) == ("FID-smallcnn(mnist-1a2b3c4d) = 12.3  (n=2000, floor train/test 1.9)")
    other = MetricValue(name="FID", value=1.9, extractor="smallcnn(mnist-1a2b3c4d)", n=100, reference_n=2000)
    with pytest.raises(ValueError, match="floor has n=100: expected 2000"):
        value.with_floor(other)
    with pytest.raises(ValueError, match="n=0"):
        MetricValue(name="FID", value=1.0, n=0)
    assert str(MetricValue(name="MMD2", value=0.5, n=10, reference_n=20, stderr=0.1)) == ("MMD2 = 0.5 ± 0.1  (n=10 against 20)")
