"""Further arrays of a data set, those that are derived of its points, and conditions by name."""

import numpy as np
import pytest

from scorelab.data import ArrayFile, Arrays, Batches, Indexed, Moments, Named, Pixels, SuperResolution
from scorelab.experiment import DataSpec, PointEvaluation, StatisticEvaluation
from scorelab.training import Prepare, Prepared

DIGITS = Named(name="digits")
RNG = np.random.default_rng(0)


def test_super_resolution_is_the_exact_average_of_blocks():
    fine, coarse = DIGITS.load("test"), SuperResolution(source=DIGITS, factor=4).load("test")
    np.testing.assert_array_equal(coarse.x, fine.x)
    np.testing.assert_array_equal(coarse.label, fine.label)
    assert coarse.more["coarse"].shape == (len(fine), 2, 2, 1)
    assert coarse.sha256 != fine.sha256
    # Sums of levels are integers: the average of the blocks as numbers is exact but for one rounding to float32.
    numbers = 2 * (fine.x.astype(np.float64) + 0.5) / 17 - 1
    for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
        block = numbers[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4, 0]
        np.testing.assert_allclose(coarse.more["coarse"][:, i, j, 0], block.mean((1, 2)), rtol=0, atol=2**-24)
    # They are those of the pixels as the network sees them.
    seen = np.asarray(Pixels(levels=17).encode(fine.x), np.float64).reshape(-1, 2, 4, 2, 4, 1).mean((2, 4))
    np.testing.assert_allclose(coarse.more["coarse"], seen, atol=1e-6)


def test_moments_are_mean_and_deviation():
    found = Moments(source=DIGITS).load("test")
    numbers = np.asarray(Pixels(levels=17).encode(found.x), np.float64).reshape(len(found), -1)
    np.testing.assert_allclose(found.more["moments"], np.stack([numbers.mean(1), numbers.std(1)], 1), rtol=1e-5, atol=1e-6)
    scaled = Moments(source=DIGITS, centre=(-0.3, 0.7), scale=(0.1, 0.2)).load("test").more["moments"]
    np.testing.assert_allclose(scaled * [0.1, 0.2] + [-0.3, 0.7], found.more["moments"], rtol=1e-5)


def test_derived_arrays_of_rows_that_are_read_when_asked_for():
    rows = [{"x": RNG.integers(0, 17, (4, 4, 1)).astype(np.uint8)} for _ in range(9)]
    source = Indexed(train=rows, levels=17, looked_at=3)
    batch = SuperResolution(source=source).batches(4, seed=0).at(1)
    np.testing.assert_array_equal(batch["coarse"], SuperResolution(source=source).of(batch["x"], 17))
    seen = {bytes(x) for step in range(2) for x in SuperResolution(source=source).batches(4, seed=0).at(step)["x"]}
    assert len(seen) == 8  # not the three that are looked at


def test_a_factor_that_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"SuperResolution\.factor = 3 for points of shape \(8, 8, 1\)"):
        SuperResolution(source=DIGITS, factor=3).load("test")
    with pytest.raises(ValueError, match=r"has the array 'coarse': expected one without"):
        SuperResolution(source=SuperResolution(source=DIGITS)).load("test")


def stored(n=6):
    vector = RNG.normal(size=(n, 3)).astype(np.float32)
    vector[2] = np.nan
    return {
        "x": RNG.integers(0, 17, (n, 4, 4, 1)).astype(np.uint8),
        "label": np.arange(n, dtype=np.int32) % 2,
        "vector": vector,
        "image": RNG.integers(0, 17, (n, 2, 2, 1)).astype(np.uint8),
        "other": RNG.normal(size=(n, 1)).astype(np.float32),
    }


def test_batches_keep_every_array_and_conditions_are_taken_by_name():
    columns = stored()
    more = {key: columns[key] for key in ("vector", "image", "other")}
    arrays = Arrays(x=columns["x"], label=columns["label"], name="s", split="train", num_classes=2, levels=17, more=more)
    assert not arrays.more["vector"].flags.writeable
    data = Prepared(Batches(arrays, 3), transform=Pixels(levels=17), cond=("label", "vector", "image"))
    batch = data.at(0)
    assert set(batch) == set(columns)
    got = data.prepare(batch)
    assert set(got) == {"x", "cond", "other"}
    np.testing.assert_array_equal(got["other"], batch["other"])
    np.testing.assert_array_equal(got["cond"]["label"], batch["label"])
    np.testing.assert_array_equal(got["cond"]["vector"], batch["vector"])
    # Stored as pixels, they have the scale of the data.
    np.testing.assert_array_equal(got["cond"]["image"], Pixels(levels=17).encode(batch["image"]))
    by_member = Prepare(cond={"kind": "label"})
    assert by_member == Prepare(cond=(("kind", "label"),))
    assert set(by_member(batch)["cond"]) == {"kind"}
    assert set(by_member(batch)) == {"x", "cond", "vector", "image", "other"}
    assert Prepare()(batch)["cond"] is None


@pytest.mark.parametrize("cond", [None, "label", {"kind": "label"}])
def test_an_array_named_cond_is_the_condition_or_is_refused(cond):
    # Left out in silence, it would be a training without its condition.
    columns = {"x": np.zeros((4, 2), np.float32), "label": np.arange(4) % 2, "cond": np.arange(4)}
    said = "an array that is named 'cond': expected cond='cond', or no such array"
    with pytest.raises(ValueError, match=rf"^Prepared\.cond = .*{said}"):
        Prepared(Batches(columns, 2), cond=cond)
    # Where rows are read when they are asked for, it is seen in the first batch.
    with pytest.raises(ValueError, match=rf"^Prepare\.cond = .*{said}"):
        Prepare(cond=cond)(columns)
    assert set(Prepare(cond=cond)({**columns, "cond": None})) == {"x", "cond", *(() if cond else ("label",))}


def test_an_array_named_cond_is_taken_where_it_is_named():
    columns = {"x": np.zeros((4, 2), np.float32), "label": np.arange(4) % 2, "cond": np.arange(4)}
    data = Prepared(Batches(columns, 4), cond="cond")
    batch = data.at(0)
    got = data.prepare(batch)
    np.testing.assert_array_equal(got["cond"], batch["cond"])
    np.testing.assert_array_equal(got["label"], batch["label"])
    members = Prepared(Batches(columns, 4), cond=("label", "cond"))
    np.testing.assert_array_equal(members.prepare(batch)["cond"]["cond"], batch["cond"])


def test_own_files_and_rows_have_further_arrays(tmp_path):
    columns = stored()
    np.savez(tmp_path / "train.npz", **columns)
    file = ArrayFile(train=str(tmp_path / "train.npz"), label_key="label", levels=17, more=("vector", "image"))
    rows = [{key: value[i] for key, value in columns.items()} for i in range(6)]
    indexed = Indexed(train=rows, label_key="label", num_classes=2, levels=17, more=("vector", "image"))
    for arrays in (file.load(), indexed.load()):
        for key in ("vector", "image"):
            np.testing.assert_array_equal(arrays.more[key], columns[key])
    assert set(indexed.batches(2, 0).at(0)) == {"x", "label", "vector", "image"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"x": np.zeros((2, 1), np.float32)}, "expected another name than x, label and cond"),
        ({"v": np.zeros((3, 1), np.float32)}, r"more\['v'\] is float32 \(3, 1\): expected float32 \(2, \*row\)"),
        ({"v": np.zeros((2, 1))}, r"more\['v'\] is float64"),
        ({"v": np.array([[0, np.nan], [1, 1]], np.float32)}, "1 rows that are not finite, the first is row 0"),
        ({"v": np.full((2, 1, 1, 1), 99, np.uint8)}, "has the value 99: expected 0 to levels - 1 = 16"),
        ({"v": np.array([-1, 0], np.int32)}, "has the value -1: expected classes"),
    ],
)
def test_further_arrays_that_do_not_fit_are_named(more, message):
    with pytest.raises(ValueError, match=message):
        Arrays(x=np.zeros((2, 4, 4, 1), np.uint8), name="s", split="train", levels=17, more=more)


@pytest.mark.parametrize("cond", [(), 3, ("label", "label"), (("a", "b", "c"),), {"a": 1}])
def test_names_that_are_none_are_refused(cond):
    with pytest.raises(TypeError, match=r"Prepare\.cond = .*: expected None, the name of an array"):
        Prepare(cond=cond)


def test_a_condition_that_is_partly_nan_is_refused_before_the_training():
    columns = {"x": np.zeros((3, 2), np.float32), "v": np.array([[0, 1], [np.nan] * 2, [np.nan, 1]], np.float32)}
    with pytest.raises(ValueError, match=r"Prepared\.cond = 'v' has values that are NaN or infinite, first in row 2"):
        Prepared(Batches(columns, 2), cond="v")


def test_a_derived_set_has_the_statistics_and_the_draws_of_its_source():
    source = Named(name="spots", n=20)
    derived = Moments(source=source)
    assert (derived.generated, derived.statistics) == (True, source.statistics)
    assert derived.statistics
    fresh, same = derived.draw(5, seed=3), source.draw(5, seed=3)
    np.testing.assert_array_equal(fresh.x, same.x)
    np.testing.assert_allclose(fresh.more["moments"][:, 0], same.x.reshape(5, -1).mean(1), rtol=1e-5, atol=1e-6)
    for evaluation in (PointEvaluation(), StatisticEvaluation()):
        evaluation.check(DataSpec(dataset=derived, cond="moments"), 5)
    of_files = Moments(source=DIGITS)
    assert not of_files.generated
    assert not of_files.statistics
    with pytest.raises(ValueError, match="expected a generated set"):
        of_files.draw(5, seed=3)
