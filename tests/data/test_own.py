"""Data of one's own: files, folders of images, rows by number; what is refused, and by which name."""

import dataclasses
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scorelab.data import ArrayFile, Arrays, Batches, DataSet, Identity, ImageFolder, Indexed, Named, Pixels, load
from scorelab.experiment import DataSpec
from scorelab.experiment.describe import describe
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


def deep_png(colour, channels):
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = 2 * (b"\0" + struct.pack(">H", 0x1234) * 3 * channels)
    header = struct.pack(">IIBBBBB", 3, 2, 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refusal(folder, **options):
    """The message about a folder of images, which is not one about a damaged file."""
    with pytest.raises(ValueError) as caught:
        ImageFolder(root=str(folder), **options).load()
    assert not isinstance(caught.value, DamagedFile)
    return str(caught.value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "mode", "content"),
    [
        ("a.png", "I;16", np.full((2, 3), 40_000, np.uint16)),
        ("a.tif", "I;16", np.full((2, 3), 40_000, np.uint16)),
        ("a.tif", "I", np.full((2, 3), 70_000, np.int32)),
        ("a.tif", "F", np.full((2, 3), 0.5, np.float32)),
        ("a.png", "RGB;16B", deep_png(2, 3)),
        ("a.png", "LA;16B", deep_png(4, 2)),
        ("a.png", "RGBA;16B", deep_png(6, 4)),
        ("a.ppm", "RGB;16", b"P6 1 1 65535\n\x12\x34\x12\x34\x12\x34"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_images_of_more_than_8_bits_are_refused(tmp_path, channels, name, mode, content):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        Image.fromarray(content).save(tmp_path / name)
    assert f"{tmp_path / name} has the mode {mode}: expected 8 bits a channel" in refusal(tmp_path, channels=channels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_images_of_8_bits_are_read_in_every_mode(tmp_path, mode):
    # White and black are in every mode, and are not dithered.
    plain = Image.fromarray(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 4, axis=1)).convert("RGB").convert(mode)
    plain.convert("P" if mode == "PA" else mode).save(tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png"))
    for channels in (1, 3):
        x = ImageFolder(root=str(tmp_path), channels=channels).load().x
        expected = np.repeat(np.array([[0, 255], [255, 0]]), 4, axis=1)[None, ..., None]
        np.testing.assert_array_equal(x, np.broadcast_to(expected, x.shape))


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_transparent_pixels_are_refused(tmp_path, mode):
    grey = Image.fromarray(IMAGES[0]).convert(mode)
    grey.save(tmp_path / "a.png", transparency=tuple(grey.getpixel((0, 0))) if mode == "RGB" else grey.getpixel((0, 0)))
    assert "a.png has transparent pixels: expected none" in refusal(tmp_path)
    for other in ("LA", "RGBA"):
        alpha = Image.fromarray(IMAGES[0]).convert(other)
        alpha.putalpha(254)
        alpha.save(tmp_path / "a.png")
        assert "a.png has transparent pixels: expected none" in refusal(tmp_path)


def test_an_opaque_alpha_channel_changes_nothing(tmp_path):
    Image.fromarray(IMAGES[0]).convert("RGBA").save(tmp_path / "a.png")
    np.testing.assert_array_equal(ImageFolder(root=str(tmp_path)).load().x, IMAGES[:1])


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_files_of_several_frames_are_refused(tmp_path, suffix):
    first, *others = map(Image.fromarray, IMAGES[:3])
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=others)
    assert f"a{suffix} has 3 frames: expected one" in refusal(tmp_path)


# What turns a stored image the right way up, by the table of the EXIF standard.
ORIENTED = {
    1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", ORIENTED)
def test_images_are_turned_as_exif_says(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(IMAGES[0]).save(tmp_path / f"a{suffix}", exif=exif)
    np.testing.assert_array_equal(ImageFolder(root=str(tmp_path)).load().x[0], ORIENTED[orientation](IMAGES[0]))


def test_a_class_has_one_number_in_both_splits(tmp_path):
    for name in ("ant", "bee", "cat"):
        save_images(tmp_path / "train" / name, IMAGES[:2])
    save_images(tmp_path / "test" / "bee", IMAGES[:2])
    data = ImageFolder(root=str(tmp_path))
    test = data.load("test")
    np.testing.assert_array_equal(test.label, [1, 1])
    assert test.num_classes == data.load().num_classes == 3
    save_images(tmp_path / "test" / "dog", IMAGES[:1])
    for split in data.splits:
        with pytest.raises(ValueError, match=r"test.dog: expected a class of the folder train, ant, bee, cat"):
            data.load(split)


@pytest.mark.parametrize(("labelled", "other"), [("train", "test"), ("test", "train")])
def test_both_splits_have_labels_or_none(tmp_path, labelled, other):
    save_images(tmp_path / labelled / "ant", IMAGES[:2])
    save_images(tmp_path / other, IMAGES[:2])
    for split in ("train", "test"):
        with pytest.raises(ValueError, match=rf"{labelled} has classes, .*{other} none: expected both or neither"):
            ImageFolder(root=str(tmp_path)).load(split)


def test_names_that_start_with_a_dot_are_left_out(tmp_path):
    save_images(tmp_path / "ant", IMAGES[:2])
    for hidden in (tmp_path / ".ipynb_checkpoints", tmp_path / "ant" / ".cache"):
        save_images(hidden, IMAGES[:1])
    for stub in (tmp_path / "._b.png", tmp_path / "ant" / "._a.png"):
        stub.write_bytes(b"attributes of another file")
    arrays = ImageFolder(root=str(tmp_path)).load()
    assert (len(arrays), arrays.num_classes) == (2, 1)


def test_images_that_would_be_lost_are_refused(tmp_path):
    save_images(tmp_path / "deep" / "ant", IMAGES[:2])
    save_images(tmp_path / "deep" / "ant" / "more", IMAGES[:1])
    assert f"{tmp_path / 'deep/ant/more/000.png'} lies too deep" in refusal(tmp_path / "deep")
    save_images(tmp_path / "beside" / "train", IMAGES[:2])
    save_images(tmp_path / "beside", IMAGES[:1])
    assert f"{tmp_path / 'beside/000.png'} lies beside the folder train" in refusal(tmp_path / "beside")
    save_images(tmp_path / "half" / "test", IMAGES[:2])
    assert "has the folder test and no folder train" in refusal(tmp_path / "half")
    # A class may have the name of a split.
    for kind in ("test", "train"):
        save_images(tmp_path / "vehicles" / "train" / kind, IMAGES[:2])
    np.testing.assert_array_equal(ImageFolder(root=str(tmp_path / "vehicles")).load().label, [0, 0, 1, 1])


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
    data = Indexed(train=rows, x_key="image", label_key="kind", num_classes=5, looked_at=50)
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
    data = Indexed(train=Counted(64), x_key="image", label_key="kind", num_classes=5)
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
        (lambda: Indexed(train=Counted(4)).load(), r"Indexed.train\[0\] has \['image', 'kind', 'path'\]: expected 'x'"),
        (lambda: Indexed(train=[{"x": np.zeros(2)}, {"x": np.zeros(3)}]).load(), r"train\[1\]\['x'\] is float64 \(3,\), Ind"),
        (lambda: Indexed(train=[{"x": ["a"]}]).load(), r"Indexed.train\[0\]\['x'\] is <U1: expected"),
        (lambda: Indexed(train=Counted(4), x_key="image").batches(5, 0), "batch_size = 5: expected 1 to n = 4"),
        (lambda: Indexed(train=[]), r"Indexed.train = \[\]: expected at least one row"),
        (lambda: Indexed(train=Counted(4), test=()), r"Indexed.test = \(\): expected at least one row"),
        (lambda: Indexed(train={"train": Counted(4)}), "Indexed.train = .*: expected rows by number"),
        (lambda: Indexed(train=Counted(4), label_key="kind"), "num_classes = None: expected the number of classes of 'kind'"),
        (lambda: Indexed(train=Counted(4), num_classes=5), "Indexed.num_classes = 5: expected None without label_key"),
        (lambda: Indexed(train=Counted(4), label_key="kind", num_classes=0), "Indexed.num_classes = 0: expected an integer >= 1"),
        (lambda: Indexed(train=[b"bytes"]).load(), r"Indexed.train\[0\] is a bytes: expected a mapping"),
    ],
)
def test_rows_that_do_not_fit_are_refused(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


GREYS = [{"x": np.full((2, 2), i % 4, np.uint8), "label": i % 2} for i in range(9)]
NUMBERS = [{"x": np.full(2, i, np.float64), "label": i % 2} for i in range(9)]


@pytest.mark.parametrize(
    ("rows", "wrong", "message"),
    [
        (GREYS, {"x": np.array([[0, 1], [4, 3]], np.uint8)}, r"\['x'\] has the value 4: expected 0 to levels - 1 = 3"),
        (GREYS, {"label": 2}, r"\['label'\] has the value 2: expected 0 to num_classes - 1 = 1"),
        (GREYS, {"label": -1}, r"\['label'\] has the value -1: expected 0 to num_classes - 1 = 1"),
        (GREYS, {"label": 2**32}, r"\['label'\] has the value 4294967296: expected 0 to num_classes - 1 = 1"),
        (GREYS, {"label": 0.5}, r"\['label'\] is float64 \(\), .* int64 \(\): expected one kind"),
        (GREYS, {"x": np.zeros((2, 2))}, r"\['x'\] is float64 \(2, 2\), .* uint8 \(2, 2\): expected one kind"),
        (NUMBERS, {"x": np.array([0.0, np.nan])}, r"\['x'\] has the value nan: expected finite"),
        (NUMBERS, {"x": np.array([0.0, -1e300])}, r"\['x'\] has the value -1e\+300: expected finite float32 numbers"),
    ],
)
def test_every_row_is_checked_when_it_is_read(rows, wrong, message):
    # Of nine rows two are looked at, the first and the last.
    rows = [*rows[:5], rows[5] | wrong, *rows[6:]]
    data = Indexed(train=rows, test=rows, label_key="label", num_classes=2, levels=4, looked_at=2)
    data.load()
    with pytest.raises(ValueError, match=rf"Indexed\.train\[5\]{message}"):
        data.batches(9, seed=0).at(0)
    with pytest.raises(ValueError, match=rf"Indexed\.test\[5\]{message}"):
        dataclasses.replace(data, looked_at=9).load("test")


def test_a_later_row_without_a_key_is_named():
    rows = [*NUMBERS[:3], {"label": 0}]
    with pytest.raises(ValueError, match=r"Indexed\.train\[3\] has \['label'\]: expected 'x'"):
        Indexed(train=rows).load()


def test_labels_that_were_not_looked_at_count_as_classes():
    assert Indexed(train=Counted(4), x_key="image", label_key="kind", num_classes=5).load().num_classes == 5


def test_rows_of_another_process_are_described_alike():
    one, other = (Indexed(train=Counted(4), test=Counted(3), x_key="image") for _ in range(2))
    assert describe(one) == describe(other)


# In an experiment ------------------------------------------------------------------------------------------------------
def save_later(path, save):
    """Write a file anew, with another time where the clock of the file system is coarse."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    save()
    os.utime(path, ns=(before + 10**9,) * 2)


def test_a_file_that_changed_is_loaded_again(tmp_path):
    path = tmp_path / "a.npz"
    data = DataSpec(dataset=ArrayFile(train=str(path)))
    for shift in (0.0, 3.0):
        save_later(path, lambda x=POINTS + shift: np.savez(path, x=x))
        np.testing.assert_allclose(data.load().x, POINTS + shift, rtol=1e-6)
        np.testing.assert_allclose(data.moments(Identity()), ((POINTS + shift).mean(), POINTS.std()), rtol=1e-5)
    assert data.load() is data.load()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"ArrayFile.train"):
        data.load()


def test_a_folder_that_changed_is_loaded_again(tmp_path):
    data = DataSpec(dataset=ImageFolder(root=str(tmp_path)))
    save_images(tmp_path, IMAGES[:2])
    np.testing.assert_array_equal(data.load().x, IMAGES[:2])
    save_later(tmp_path / "001.png", lambda: Image.fromarray(IMAGES[2]).save(tmp_path / "001.png"))
    np.testing.assert_array_equal(data.load().x, IMAGES[[0, 2]])
    save_images(tmp_path, IMAGES[:3])
    assert len(data.load()) == 3


def test_splits_have_points_of_one_kind(tmp_path):
    for name, x in (("a", POINTS), ("b", POINTS[:, :2]), ("c", IMAGES), ("d", IMAGES.astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", x)
    spec = lambda train, test: DataSpec(dataset=ArrayFile(train=str(tmp_path / train), test=str(tmp_path / test)))
    spec("a.npy", "a.npy").check()
    with pytest.raises(
        ValueError, match=r"test has float32 points of shape \(2,\), train float32 ones of \(3,\): expected the same"
    ):
        spec("a.npy", "b.npy").check()
    with pytest.raises(ValueError, match=r"test has float32 points of shape \(6, 5, 3\), train uint8 ones"):
        spec("c.npy", "d.npy").check()


@dataclasses.dataclass(frozen=True)
class Bare(DataSet):
    """A set that returns its points alone."""

    name: str = "bare"

    def load(self, split="train"):
        return POINTS


def test_a_set_loads_arrays():
    with pytest.raises(TypeError, match=r"Bare\.load\('train'\) is a ndarray: expected Arrays"):
        DataSpec(dataset=Bare()).load()
    assert isinstance(DataSpec(dataset=Named(name="rings", n=5)).load(), Arrays)


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
