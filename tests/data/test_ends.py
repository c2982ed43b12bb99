"""Data sets for the ends of a bridge: classes, numbers, coarse images, and points with their base."""

import numpy as np
import pytest

from scorelab.data import Arrays, Classes, DataSet, Encoded, Identity, Indexed, Named, Pixels, SuperResolution, Upsampled, WithBase

DIGITS = Named(name="digits")


def test_classes_are_the_rows_of_their_labels():
    whole, found = DIGITS.load("test"), Classes(source=DIGITS, classes=(7, 2)).load("test")
    rows = [i for i, label in enumerate(whole.label) if label in (2, 7)]
    np.testing.assert_array_equal(found.x, whole.x[rows])
    np.testing.assert_array_equal(found.label, whole.label[rows])
    assert (found.name, found.num_classes, found.levels) == ("digits-72", 10, 17)
    # Features that were trained on the whole set are features of this one.
    assert Classes(source=DIGITS, classes=(7, 2)).known_as == ("digits-72", "digits")
    coarse = Classes(source=SuperResolution(source=DIGITS), classes=(7, 2)).load("test")
    np.testing.assert_array_equal(coarse.more["coarse"], SuperResolution(source=DIGITS).load("test").more["coarse"][rows])


def test_encoded_points_are_those_that_the_process_sees():
    scale = Pixels(levels=17)
    found = Encoded(source=DIGITS, transform=scale).load()
    np.testing.assert_array_equal(found.x, scale.encode(DIGITS.load().x))
    assert found.levels is None
    Identity().check(found.x)


def test_upsampled_images_are_constant_on_blocks_and_keep_the_averages():
    found = Upsampled(source=DIGITS, factor=4).load("test").x
    blocks = found.reshape(-1, 2, 4, 2, 4, 1)
    assert np.all(blocks == blocks[:, :, :1, :, :1])
    coarse = SuperResolution(source=DIGITS, factor=4).load("test").more["coarse"]
    np.testing.assert_array_equal(blocks[:, :, 0, :, 0], coarse)
    # The average of blocks is the best guess that is constant on them.
    x = np.asarray(Pixels(levels=17).encode(DIGITS.load("test").x), np.float64)
    off = np.mean((x - found) ** 2)
    assert off < min(np.mean((x - found - 0.01) ** 2), np.mean((x - found + 0.01) ** 2))


def test_a_base_belongs_to_its_row():
    base = Upsampled(source=DIGITS, factor=2)
    pairs = WithBase(source=DIGITS, base=base)
    batch = pairs.batches(16, seed=3).at(5)
    x = np.asarray(Pixels(levels=17).encode(batch["x"]), np.float64)
    np.testing.assert_allclose(x.reshape(16, 4, 2, 4, 2, 1).mean((2, 4)), batch["base"][:, ::2, ::2], atol=1e-6)
    assert pairs.load().sha256 != DIGITS.load().sha256
    assert pairs.known_as == ("digits-paired", "digits")
    assert base.name != Upsampled(source=DIGITS, factor=4).name
    with pytest.raises(ValueError, match=r"has the array 'base': expected one without"):
        WithBase(source=pairs, base=base).load()


def test_fresh_draws_are_made_as_the_stored_points_are():
    rings = Named(name="rings", n=100)
    pairs = WithBase(source=rings, base=Encoded(source=rings))
    assert (pairs.generated, pairs.statistics, Encoded(source=rings).generated) == (True, rings.statistics, True)
    fresh = pairs.draw(5, seed=3)
    np.testing.assert_array_equal(fresh.x, rings.draw(5, seed=3).x)
    np.testing.assert_array_equal(fresh.more["base"], fresh.x)
    assert not WithBase(source=rings, base=Encoded(source=Indexed(train=[{"x": np.zeros(2, np.float32)}]))).generated
    assert not Classes(source=rings, classes=(0,)).generated


def test_rows_that_are_read_when_asked_for_are_paired_then():
    rows = [{"x": np.full((4, 4, 1), i, np.uint8), "label": i % 2} for i in range(9)]
    source = Indexed(train=rows, levels=17, label_key="label", num_classes=2, looked_at=3)
    base = Upsampled(source=source, factor=2)
    batches = [WithBase(source=source, base=base).batches(4, seed=0).at(step) for step in range(2)]
    assert len({int(x[0, 0, 0]) for batch in batches for x in batch["x"]}) == 8  # not the three that are looked at
    for batch in batches:
        np.testing.assert_allclose(batch["base"], 2 * (batch["x"] + np.float64(0.5)) / 17 - 1, atol=1e-6)
        np.testing.assert_array_equal(batch["label"], batch["x"][:, 0, 0, 0] % 2)
    with pytest.raises(ValueError, match="9 when asked for and 1500 in memory"):
        WithBase(source=source, base=Upsampled(source=DIGITS)).batches(4, seed=0)
    with pytest.raises(ValueError, match="expected a set in memory"):
        Classes(source=source, classes=(1,)).batches(4, seed=0)


class Stamped(DataSet):
    name = "stamped"

    def __init__(self, number):
        self.number = number

    def stamp(self):
        return self.number

    def load(self, split="train"):
        return Arrays(x=np.zeros((3, 2), np.float32), name=self.name, split=split)


def test_what_changes_the_parts_changes_the_whole():
    kinds = [lambda s: Encoded(source=s), lambda s: WithBase(source=s, base=DIGITS), lambda s: WithBase(source=DIGITS, base=s)]
    assert all(kind(Stamped(1)).stamp() != kind(Stamped(2)).stamp() for kind in kinds)


UNLABELLED = Indexed(train=[{"x": np.zeros(2, np.float32)}] * 4, name="points")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: Classes(source=DIGITS, classes=()), "expected at least one class"),
        (lambda: Classes(source=DIGITS, classes=(1, 1)), "none twice"),
        (lambda: Classes(source=DIGITS, classes=(1.5,)), "classes"),
        (lambda: Classes(source="digits", classes=(1,)), "expected a DataSet"),
        (lambda: Classes(source=DIGITS, classes=(3, 12)).load(), "no points of class 12"),
        (lambda: Classes(source=UNLABELLED, classes=(1,)).load(), "has no labels"),
        (lambda: Classes(source=DIGITS, classes=(1,)).load("valid"), "expected one of train, test"),
        (lambda: Encoded(source=DIGITS).load(), r"expected Pixels\(levels=17\)"),
        (lambda: Encoded(source=DIGITS, transform=Pixels()).load(), "levels"),
        (lambda: Encoded(source=DIGITS, transform=3), "expected a Transform"),
        (lambda: Upsampled(source=DIGITS, factor=3).load(), "factor = 3"),
        (lambda: Upsampled(source=UNLABELLED).load(), "expected images"),
        (lambda: Upsampled(source=DIGITS, factor=1), "factor"),
        (lambda: WithBase(source=DIGITS, base=DIGITS).load(), "such as an Encoded set"),
        (lambda: WithBase(source=DIGITS, base=Encoded(source=UNLABELLED)).load(), "a row for each of digits"),
        (lambda: WithBase(source=DIGITS, base=None), "expected a DataSet"),
    ],
)
def test_errors(act, message):
    with pytest.raises((TypeError, ValueError), match=message):
        act()
