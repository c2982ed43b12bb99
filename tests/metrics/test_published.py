"""Published statistics and the Inception score: closed forms, another program's values, and an evaluation by both."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import experiment
from scorelab.data import Named
from scorelab.metrics import (
    Coordinates,
    Moments,
    NetworkFeatures,
    effective_classes,
    feature_moments,
    frechet,
    pixels,
    read_moments,
    small_cnn,
    write_moments,
)
from scorelab.pytrees import computed

STORED = np.load(Path(__file__).parents[1] / "references" / "pretrained_inception.npz")


class Known:
    """Features that know the probabilities of rows of logits."""

    id = "known"

    def class_probabilities(self, logits):
        p = np.exp(logits - logits.max(-1, keepdims=True))
        return p / p.sum(-1, keepdims=True)


def test_the_score_is_that_of_torch_fidelity():
    mean, std = STORED["score"]
    found = effective_classes(STORED["score_logits"], Known())
    # Float64 sums in another order.
    assert found.value == pytest.approx(mean, rel=1e-12)
    assert found.stderr * 10**0.5 == pytest.approx(std, rel=1e-10)
    assert str(found).startswith("IS-known = ")


def test_the_score_of_known_tables():
    """Sure of one of k classes that are equally many: k. The same for every sample: 1. Mutual information in general."""
    sure = np.where(np.eye(5)[np.arange(50) % 5] > 0, 0.0, -np.inf)
    assert effective_classes(sure, Known(), splits=1).value == pytest.approx(5, rel=1e-12)
    assert effective_classes(np.zeros((20, 7)), Known(), splits=2).value == pytest.approx(1, rel=1e-12)
    p = np.array([[0.7, 0.3], [0.1, 0.9]])
    entropy = lambda q: -np.sum(q * np.log(q), -1)
    found = effective_classes(np.log(p), Known(), splits=1)
    assert found.value == pytest.approx(np.exp(entropy(p.mean(0)) - entropy(p).mean()), rel=1e-12)
    assert found.stderr is None


def test_what_has_no_score_is_refused():
    with pytest.raises(TypeError, match="expected features with class_probabilities"):
        effective_classes(np.zeros((3, 2)), Coordinates())
    with pytest.raises(ValueError, match="splits = 10 of 3 samples"):
        effective_classes(np.zeros((3, 2)), Known())
    half = Known()
    half.class_probabilities = lambda x: np.full((len(x), 2), 0.4)
    with pytest.raises(ValueError, match="rows that sum to 1"):
        effective_classes(np.zeros((30, 2)), half)


def test_published_statistics_are_moments(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)), 1 + 2 * rng.normal(size=(80, 4))
    moments = feature_moments(y, Coordinates())
    np.savez(tmp_path / "ref.npz", mu=moments.mean, sigma=moments.cov)
    found = read_moments(tmp_path / "ref.npz")
    assert found.n is None
    value, wanted = frechet(x, found, Coordinates()), frechet(x, y, Coordinates())
    # The same numbers in the same program.
    assert value.value == wanted.value
    assert (value.n, value.reference_n) == (60, None)
    assert read_moments(tmp_path / "ref.npz", n=80).n == 80
    again = read_moments(write_moments(tmp_path / "mine.npz", moments))
    assert again.n == 80
    assert all(np.array_equal(a, b) for a, b in zip(again, moments, strict=True))
    with pytest.raises(ValueError, match="n is 80: expected 7"):
        read_moments(tmp_path / "mine.npz", n=7)
    with pytest.raises(ValueError, match=r"frechet\.x has n = None"):
        frechet(found, y, Coordinates())


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        (dict(mu=np.zeros(3)), "no sigma"),
        (dict(mu=np.zeros(3), sigma=np.eye(2)), r"mu has shape \(3,\) and sigma \(2, 2\)"),
        (dict(mu=np.zeros((3, 1)), sigma=np.eye(3)), r"mu has shape \(3, 1\)"),
        (dict(mu=np.zeros(2), sigma=-np.eye(2)), "positive semi-definite"),
        (dict(mu=np.zeros(2), sigma=np.array([[1.0, 1], [0, 1]])), "symmetric"),
        (dict(mu=np.array([0, np.nan]), sigma=np.eye(2)), "not finite"),
        (dict(mu=np.array([None, 1]), sigma=np.eye(2)), "not an npz file of plain arrays"),
        (dict(mu=np.zeros(2), sigma=np.eye(2), n=np.array(1)), "n is 1: expected an integer of at least 2"),
    ],
)
def test_other_files_are_no_statistics(arrays, match, tmp_path):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(ValueError, match=match):
        read_moments(tmp_path / "ref.npz")


class Means(NetworkFeatures):
    """The mean of each channel of images of one channel, and its square: a network of one number."""

    id = "means"
    channels = 1

    @computed
    def params(self):
        return {"power": np.float32(2)}

    def forward(self, params, images):
        mean = images.mean((1, 2))
        return jnp.concatenate([mean, mean ** params["power"]], -1)


def test_features_of_a_network_are_a_few_lines():
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 1), np.uint8)
    found = Means(batch_size=4)(images)
    mean = images.mean((1, 2))
    np.testing.assert_allclose(found, np.concatenate([mean, mean**2], -1), rtol=1e-6)
    assert Means(batch_size=4) == Means(batch_size=64)
    with pytest.raises(ValueError, match="at least one image"):
        Means()(images[:0])
    with pytest.raises(ValueError, match=r"Means\.batch_size = 0"):
        Means(batch_size=0)


def test_an_evaluation_by_published_statistics(tmp_path):
    data = experiment.DataSpec(dataset=Named(name="digits"))
    features = small_cnn("digits")
    train, test = data.load().x, data.load("test").x
    write_moments(tmp_path / "digits.npz", feature_moments(train, features))
    spec = experiment.ReferenceEvaluation(features=features, reference=str(tmp_path / "digits.npz"), n=200)
    spec.check(data, 250)
    key = jax.random.key(0)
    fid, score = spec(test[:250], data, key)
    rows = np.sort(np.asarray(jax.random.permutation(jax.random.split(key)[0], 250)[:200]))
    assert fid.value == pytest.approx(frechet(test[rows], train, features).value, rel=1e-6)
    assert (fid.n, fid.reference_n, fid.label) == (200, len(train), f"FID-{features.id}")
    assert score.value == pytest.approx(effective_classes(test[rows], features).value, rel=1e-6)
    # Held-out digits against held-out digits.
    assert fid.floor == pytest.approx(fid.value, rel=0.5)
    assert 1 < score.floor <= 10
    # Fewer test images than samples: no floor. Features without classes: no score.
    plain = experiment.ReferenceEvaluation(features=pixels(levels=17), reference=str(tmp_path / "pixels.npz"))
    write_moments(tmp_path / "pixels.npz", feature_moments(train, pixels(levels=17)))
    (only,) = plain(np.concatenate([test, test]), data, key)
    assert only.floor is None
    write_moments(tmp_path / "narrow.npz", Moments(9, np.zeros(5), np.eye(5)))
    for bad, samples, match in (
        (spec, 100, "n = 200: expected 10 to 100"),
        (experiment.ReferenceEvaluation(features=features, reference="x", n=9), 100, "n = 9: expected 10 to 100"),
        (experiment.ReferenceEvaluation(features=pixels(), reference="x"), 100, "expected levels = 17"),
        (
            experiment.ReferenceEvaluation(features=features, reference=str(tmp_path / "none.npz")),
            100,
            "expected a file of statistics",
        ),
        # Another extractor's: found before anything is sampled.
        (
            experiment.ReferenceEvaluation(features=features, reference=str(tmp_path / "narrow.npz")),
            100,
            r"narrow\.npz: of 5 features: expected 64, as smallcnn",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            bad.check(data, samples)
    with pytest.raises(TypeError, match=r"ReferenceEvaluation\.features"):
        experiment.ReferenceEvaluation(features=None, reference="x")


def test_moments_of_other_widths_are_refused():
    with pytest.raises(ValueError, match="widths"):
        frechet(np.zeros((5, 3)), Moments(9, np.zeros(2), np.eye(2)), Coordinates())
