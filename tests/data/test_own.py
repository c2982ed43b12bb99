"""Data of one's own: files, folders of images, rows by number; what is refused, and by which name."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from scorelab.data import ArrayFile, Batches, Identity, ImageFolder, Indexed, Named, Pixels, load
from scorelab.files import DamagedFile
from scorelab.training import Prepared

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3
POINTS = RNG.normal(size=(20, 3))


def save_images(folder, images, suffix=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}{suffix}")


# Arrays in files -------------------------------------------------------------------------------------------------------
def test_arrays_in_files(tmp_path):
    np.savez(tmp_path / "a.npz", x=IMAGES, y=LABELS)
    np.savez(tmp_path / "b.npz", x=IMAGES[:4], y=LABELS[:4])
    data = ArrayFile(train=str(tmp_path / "a.npz"), test=str(tmp_path / "b.npz"), label_key="y")
    train, test = data.load(), data.load("test")
    np.testing.assert_array_equal(train.x, IMAGES)
    np.testing.assert_array_equal(train.label, LABELS)
    assert (data.name, data.splits, train.levels, train.num_classes, len(test)) == ("a", ("train", "test"), 256, 3, 4)


def test_one_array_of_numbers(tmp_path, monkeypatch):
    np.save(tmp_path / "points.npy", POINTS)
    monkeypatch.setenv("WHERE", str(tmp_path))
    data = ArrayFile(train="$WHERE/points.npy")
    np.testing.assert_allclose(data.load().x, POINTS, rtol=1e-6)
    assert (data.splits, data.load().levels, data.load().label) == (("train",), None, None)
    np.save(tmp_path / "volumes.npy", np.zeros((2, 4, 4, 4), np.float64))
    assert ArrayFile(train=str(tmp_path / "volumes.npy")).load().event_shape == (4, 4, 4)
    np.save(tmp_path / "grey.npy", IMAGES[..., 0])
    assert ArrayFile(train=str(tmp_path / "grey.npy")).load().event_shape == (6, 5, 1)


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        (dict(z=IMAGES), {}, r"has the arrays \['z'\]: expected one that is named 'x'"),
        (dict(x=IMAGES), dict(label_key="y"), "expected one that is named 'y'"),
        (dict(x=IMAGES, y=LABELS / 2), dict(label_key="y"), r"y is float64 of shape \(12,\): expected integers"),
        (dict(x=IMAGES, y=LABELS - 1), dict(label_key="y"), "values from -1 to 1: expected classes"),
        (dict(x=IMAGES, y=LABELS[:5]), dict(label_key="y"), r"label is int32 \(5,\): expected int32 \(12,\)"),
        (dict(x=IMAGES.astype(np.int64)), {}, "x is int64: expected uint8 levels or floating point"),
        (dict(x=IMAGES), dict(levels=17), "expected 0 to levels - 1 = 16"),
        (dict(x=np.where(np.arange(20)[:, None] == 7, np.nan, POINTS)), {}, "1 rows that are not finite, the first is row 7"),
        (dict(x=POINTS + 1j), {}, "complex128: expected"),
        (dict(x=np.array([object()])), {}, "not arrays that can be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, arrays, options, message):
    np.savez(tmp_path / "a.npz", allow_pickle=True, **arrays)
    with pytest.raises((ValueError, DamagedFile), match=message):
        ArrayFile(train=str(tmp_path / "a.npz"), **options).load()


def test_files_that_are_not_there_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ArrayFile.train = .*no\.npz'"):
        ArrayFile(train=str(tmp_path / "no.npz")).load()
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DamagedFile, match=r"cut\.npz: not arrays"):
        ArrayFile(train=str(tmp_path / "cut.npz")).load()
    with pytest.raises(ValueError, match=r"ArrayFile\.train = 'a\.csv': expected the name of an .npz or .npy file"):
        ArrayFile(train="a.csv")
    with pytest.raises(ValueError, match=r"a\.split = 'test': expected one of train"):
        ArrayFile(train="a.npz").load("test")


# Folders of images -----------------------------------------------------------------------------------------------------
def test_a_folder_of_images(tmp_path):
    save_images(tmp_path / "plain", IMAGES)
    data = ImageFolder(root=str(tmp_path / "plain"))
    np.testing.assert_array_equal(data.load().x, IMAGES)
    assert (data.name, data.splits, data.load().label) == ("plain", ("train",), None)
    grey = ImageFolder(root=str(tmp_path / "plain"), channels=1).load().x
    # The luminance of ITU-R 601, which PIL rounds.
    np.testing.assert_allclose(grey[..., 0], IMAGES @ [0.299, 0.587, 0.114], atol=1.0)


def test_folders_inside_are_classes_and_splits(tmp_path):
    for split, part in (("train", IMAGES), ("test", IMAGES[:6])):
        for number, name in enumerate(("ant", "bee", "cat")):
            save_images(tmp_path / "set" / split / name, part[number::3])
    data = ImageFolder(root=str(tmp_path / "set"))
    train, test = data.load(), data.load("test")
    np.testing.assert_array_equal(train.label, np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(train.x[4:8], IMAGES[1::3])
    assert (data.splits, len(test), train.num_classes) == (("train", "test"), 6, 3)


def test_images_are_cropped_in_the_middle_and_resampled(tmp_path):
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    save_images(tmp_path / "wide", [wide])
    x = ImageFolder(root=str(tmp_path / "wide"), size=(5, 5)).load().x
    np.testing.assert_array_equal(x, np.full((1, 5, 5, 3), 200))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: ImageFolder(root=str(p / "none")).load(), "ImageFolder.root = .*none': no such folder"),
        (lambda p: ((p / "empty").mkdir(), ImageFolder(root=str(p / "empty")).load()), "expected files ending in .png"),
        (lambda p: ImageFolder(root=str(p), channels=4), "ImageFolder.channels = 4: expected 1 or 3"),
        (lambda p: ImageFolder(root=str(p), size=8), r"ImageFolder.size = 8: expected \(height, width\)"),
        (lambda p: ImageFolder(root=str(p), size=(8, 0)), "ImageFolder.size = 0: expected an integer >= 1"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path, make, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make(tmp_path)


def test_images_of_two_sizes_or_broken_are_named(tmp_path):
    save_images(tmp_path / "two", IMAGES[:1])
    Image.fromarray(IMAGES[0][:4]).save(tmp_path / "two" / "small.png")
    with pytest.raises(ValueError, match=r"small.png is \(4, 5, 3\), 000.png \(6, 5, 3\): expected one size, or ImageFolder.size"):
        ImageFolder(root=str(tmp_path / "two")).load()
    (tmp_path / "two" / "small.png").write_bytes(b"\x89PNG but cut")
    with pytest.raises(DamagedFile, match=r"small\.png: not an image"):
        ImageFolder(root=str(tmp_path / "two")).load()
    save_images(tmp_path / "mixed" / "ant", IMAGES[:1])
    save_images(tmp_path / "mixed", IMAGES[:1])
    with pytest.raises(ValueError, match="has images beside the folders ant"):
        ImageFolder(root=str(tmp_path / "mixed")).load()


# Rows by number --------------------------------------------------------------------------------------------------------
class Counted:
    """Rows that say which of them were read."""

    def __init__(self, n):
        self.n, self.read = n, []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        self.read.append(index)
        return {"image": np.full((4, 4), index % 256, np.uint8), "kind": index % 5, "path": "ignored"}


def test_a_batch_reads_its_own_rows_and_the_same_ones_again():
    rows = Counted(1000)
    data = Indexed(train=rows, x_key="image", label_key="kind", looked_at=50)
    batches = data.batches(32, seed=3)
    assert not rows.read
    batch = batches.at(40)
    np.testing.assert_array_equal(rows.read, batches.indices(40))
    np.testing.assert_array_equal(batch["x"][:, 0, 0, 0], np.array(rows.read) % 256)
    np.testing.assert_array_equal(batch["label"], np.array(rows.read) % 5)
    assert (batch["x"].dtype, batch["x"].shape, batch["label"].dtype) == (np.uint8, (32, 4, 4, 1), np.int32)
    again = data.batches(32, seed=3).at(40)
    np.testing.assert_array_equal(again["x"], batch["x"])
    # The same order as that of arrays in memory, and of several hosts together.
    memory = Batches(dict(x=np.arange(1000)), 32, seed=3).at(40)["x"]
    np.testing.assert_array_equal(memory, batches.indices(40))
    parts = [batches.at(40, host, 2)["label"] for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), batch["label"])


def test_what_is_looked_at_is_spread_over_all_rows():
    rows = Counted(1000)
    arrays = Indexed(train=rows, x_key="image", looked_at=50).load()
    assert len(arrays) == 50
    assert (rows.read[0], rows.read[-1]) == (0, 999)
    assert len(Indexed(train=Counted(7), x_key="image").load()) == 7


def test_rows_are_prepared_as_arrays_are():
    data = Indexed(train=Counted(64), x_key="image", label_key="kind")
    prepared = Prepared(data.batches(8, seed=0), transform=Pixels(), cond="label")
    batch = prepared.prepare(prepared.at(0))
    assert batch["x"].shape == (8, 4, 4, 1)
    assert batch["cond"].dtype == np.int32


def test_rows_of_a_hugging_face_data_set():
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    rows = datasets.Dataset.from_dict({"x": POINTS.tolist()})
    batch = Indexed(train=rows).batches(4, seed=0).at(0)
    assert batch["x"].shape == (4, 3)


def test_rows_of_a_grain_source():
    grain = pytest.importorskip("grain.python", reason="needs the package grain")
    source = grain.MapDataset.source([{"x": row} for row in POINTS])
    assert Indexed(train=source).batches(4, seed=0).at(0)["x"].shape == (4, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Indexed(train=3), "Indexed.train = 3: expected rows by number, with a length"),
        (lambda: Indexed(train=Counted(4), test=iter([])), "Indexed.test = "),
        (lambda: Indexed(train=Counted(4)).load(), r"a row has \['image', 'kind', 'path'\]: expected 'x'"),
        (lambda: Indexed(train=[{"x": np.zeros(2)}, {"x": np.zeros(3)}]).load(), "rows have x of shapes"),
        (lambda: Indexed(train=[{"x": ["a"]}]).load(), "x of a row is <U1: expected"),
        (lambda: Indexed(train=Counted(4), x_key="image").batches(5, 0), "batch_size = 5: expected 1 to n = 4"),
    ],
)
def test_rows_that_do_not_fit_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


# Sets by name ----------------------------------------------------------------------------------------------------------
def test_a_set_by_name_is_what_load_returns():
    for name, options in (("digits", {}), ("rings", dict(n=20, seed=4))):
        for split in ("train", "test"):
            assert Named(name=name, **options).load(split).sha256 == load(name, split, **options).sha256
    assert Named(name="kmnist_halves").known_as == ("kmnist_halves", "kmnist")
    assert dataclasses.replace(Named(name="rings", n=5), seed=3) == Named(name="rings", n=5, seed=3)


def test_fresh_points_of_a_generated_set():
    rings = Named(name="rings", n=20)
    assert rings.generated
    assert rings.draw(7, seed=1).x.shape == (7, 2)
    assert rings.draw(20, seed=5).sha256 != rings.load("test").sha256
    with pytest.raises(ValueError, match="digits: expected a generated set"):
        Named(name="digits").draw(3, seed=0)
    Identity().check(rings.load().x)
