"""Files that are missing, damaged, packed otherwise or served by mirrors."""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import struct
import sys
import tarfile
import threading
import tracemalloc
import zipfile

import numpy as np
import pytest

from scorelab.data import DataCorrupt, DataNotFound, load, registry
from scorelab.data.files import PublishedFile
from scorelab.data.formats import read_cifar10_binary, read_npz_images
from scorelab.data.loaders import CifarBinary, NpzImages


@pytest.fixture
def mirror(tmp_path):
    """A web server over a folder: (base address, folder, list of the paths asked for)."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append(self.path)

        def log_message(self, format, *arguments):
            """Nothing on the terminal."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", folder, asked
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("folder", ["kana_set", "kana-set"])
@pytest.mark.parametrize("packing", ["as published", "compressed again", "unpacked"])
def test_every_packing_gives_the_published_arrays(publish, tmp_path, folder, packing):
    published = publish()
    published.write(tmp_path / folder)
    if packing != "as published":
        for name, raw in published.raw.items():
            path = tmp_path / folder / name
            path.unlink()
            if packing == "unpacked":
                path.with_suffix("").write_bytes(raw)
            else:
                path.write_bytes(gzip.compress(raw, compresslevel=1, mtime=99))
    for split in ("train", "test"):
        arrays = load("kana_set", split, data_dir=tmp_path, download=False)
        np.testing.assert_array_equal(arrays.x[..., 0], published.images[split])
        np.testing.assert_array_equal(arrays.label, published.labels[split])
        assert (arrays.x.dtype, arrays.label.dtype) == (np.uint8, np.int32)
        assert (arrays.levels, arrays.num_classes, arrays.split) == (256, 10, split)


def test_the_variable_is_used_where_no_folder_is_given(publish, tmp_path, monkeypatch):
    publish().write(tmp_path / "there" / "kana_set")
    monkeypatch.setenv("SCORELAB_DATA_DIR", str(tmp_path / "there"))
    assert len(load("kana_set", download=False)) == 7
    with pytest.raises(DataNotFound):
        load("kana_set", data_dir=tmp_path / "elsewhere", download=False)


def damage_truncated(raw):
    return gzip.compress(raw)[:-9]


def damage_not_gzip(raw):
    return raw


def damage_magic(raw):
    return gzip.compress(struct.pack(">I", 0x0D03) + raw[4:])


def damage_shape(raw):
    return gzip.compress(raw[:4] + struct.pack(">I", 8) + raw[8:])


def damage_short(raw):
    return gzip.compress(raw[:-1])


def damage_long(raw):
    return gzip.compress(raw + b"\0")


def damage_one_pixel(raw):
    return gzip.compress(raw[:-1] + bytes([raw[-1] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncated, "truncated gzip"),
        (damage_not_gzip, "not a valid gzip"),
        (damage_magic, "wrong idx magic 0x00000d03, expected 0x00000803"),
        (damage_shape, "idx shape"),
        (damage_short, "wrong size"),
        (damage_long, "wrong size"),
        (damage_one_pixel, "wrong content"),
    ],
)
def test_damage_is_reported_by_file_and_kind(publish, tmp_path, damage, words):
    published = publish()
    published.write(tmp_path / "kana_set")
    path = tmp_path / "kana_set" / "train-images.gz"
    path.write_bytes(damage(published.raw["train-images.gz"]))
    with pytest.raises(DataCorrupt, match=words) as caught:
        load("kana_set", data_dir=tmp_path, download=False)
    assert str(path) in str(caught.value)
    assert len(load("kana_set", "test", data_dir=tmp_path, download=False)) == 3


def test_a_hash_of_the_packed_file_only_accepts_nothing_else(publish, tmp_path, monkeypatch):
    published = publish()
    images = registry.SETS["kana_set"].train.images
    object.__setattr__(images, "raw_sha256", None)
    published.write(tmp_path / "kana_set")
    assert len(load("kana_set", data_dir=tmp_path, download=False)) == 7
    path = tmp_path / "kana_set" / images.name
    path.write_bytes(gzip.compress(published.raw[images.name], mtime=99))
    with pytest.raises(DataCorrupt, match="exactly as published"):
        load("kana_set", data_dir=tmp_path, download=False)


def test_the_error_for_a_missing_file_says_everything(publish, tmp_path, monkeypatch):
    monkeypatch.delenv("SCORELAB_DATA_DIR", raising=False)
    published = publish(("http://127.0.0.1:9/a/", "http://127.0.0.1:9/b/"))
    published.write(tmp_path / "kana-set")
    (tmp_path / "kana-set" / "train-images.gz").unlink()
    with pytest.raises(DataNotFound) as caught:
        load("kana_set", data_dir=tmp_path)
    message, file = str(caught.value), registry.SETS["kana_set"].train.images
    for part in (file.name, file.sha256, *file.urls, "SCORELAB_DATA_DIR", "load('digits')"):
        assert part in message
    for looked in (tmp_path / "kana_set", tmp_path / "kana-set", tmp_path / "cache" / "kana_set"):
        assert str(looked) in message
    assert len(load("kana_set", "test", data_dir=tmp_path)) == 3
    with pytest.raises(DataNotFound, match="is not set"):
        load("kana_set", download=False)


def test_an_empty_folder_is_an_error_for_a_named_set(tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELAB_DATA_DIR", str(tmp_path))
    for name in ("mnist", "fashion_mnist", "kmnist", "cifar10", "cifar10_subset"):
        with pytest.raises(DataNotFound, match="download=False"):
            load(name, download=False)
    with pytest.raises(DataNotFound, match="under no address"):
        load("cifar10_subset")


def test_mirrors_are_tried_in_turn_and_the_cache_is_used_after(publish, mirror, tmp_path):
    address, served, asked = mirror
    published = publish((f"{address}gone/", f"{address}wrong/", f"{address}right/"))
    (served / "wrong").mkdir()
    for name in published.content:
        (served / "wrong" / name).write_bytes(b"an error page")
    published.write(served / "right")
    (tmp_path / "empty").mkdir()
    arrays = load("kana_set", "test", data_dir=tmp_path / "empty")
    np.testing.assert_array_equal(arrays.x[..., 0], published.images["test"])
    order = [path for path in asked if path.endswith("test-images.gz")]
    assert order == [f"/{where}/test-images.gz" for where in ("gone", "wrong", "right")]
    asked.clear()
    assert load("kana_set", "test").sha256 == arrays.sha256
    assert not asked
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept == ["test-images.gz", "test-labels.gz"]


def test_wrong_content_on_every_mirror_leaves_nothing_behind(publish, mirror, tmp_path):
    address, served, _ = mirror
    published = publish((address,))
    for name in published.content:
        (served / name).write_bytes(b"an error page")
    with pytest.raises(DataNotFound, match="hash"):
        load("kana_set", data_dir=tmp_path)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("cache", [True, False])
def test_without_pooch_the_error_names_the_extra(publish, tmp_path, monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "pooch", None)
    if not cache:
        monkeypatch.delenv("SCORELAB_CACHE_DIR")
    publish(("http://127.0.0.1:9/",))
    with pytest.raises(DataNotFound, match=r"pip install 'scorelab\[data\]'"):
        load("kana_set", data_dir=tmp_path)


def test_cifar_binary_archive(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    records = {f"data_batch_{i}.bin": rng.integers(0, 10, (2, 3073), np.uint8) for i in range(1, 6)}
    records["test_batch.bin"] = rng.integers(0, 10, (2, 3073), np.uint8)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, table in records.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = table.nbytes
            archive.addfile(member, io.BytesIO(table.tobytes()))
    content = buffer.getvalue()
    file = PublishedFile(name="c.tar.gz", sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(registry, "SETS", {"cifar10": CifarBinary(name="cifar10", archive=file, records=2)})
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "c.tar.gz").write_bytes(content)
    train = load("cifar10", data_dir=tmp_path)
    assert train.x.shape == (10, 32, 32, 3)
    third = records["data_batch_2.bin"][0]
    assert train.label[2] == third[0]
    assert train.x[2, 4, 7, 1] == third[1 + 1024 + 4 * 32 + 7]
    assert load("cifar10", "test", data_dir=tmp_path).x.shape == (2, 32, 32, 3)


def test_a_pickle_is_not_opened(tmp_path, monkeypatch):
    class Trap:
        def __reduce__(self):
            return (exec, ("raise SystemExit('a pickle was opened')",))

    buffer = io.BytesIO()
    np.savez(buffer, images=np.array([Trap()], object), allow_pickle=True)
    for content in (buffer.getvalue(), pickle.dumps(Trap())):
        file = PublishedFile(name="a.npz", sha256=hashlib.sha256(content).hexdigest())
        member = NpzImages(name="s", folders=("s",), file=file, key="images", shape=(1, 1, 1, 1))
        monkeypatch.setattr(registry, "SETS", {"s": member})
        (tmp_path / "s").mkdir(exist_ok=True)
        (tmp_path / "s" / "a.npz").write_bytes(content)
        with pytest.raises(DataCorrupt, match=r"a\.npz"):
            load("s", data_dir=tmp_path)


def test_mirrors_are_reached_over_https_where_they_offer_it():
    sets = [registry.SETS[name] for name in ("mnist", "fashion_mnist", "kmnist")]
    parts = [part for member in sets for part in (member.train, member.test)]
    files = [file for part in parts for file in (part.images, part.labels)] + [registry.SETS["cifar10"].archive]
    for file in files:
        assert file.urls[0].startswith("https://")
        assert all(url.startswith("https://") or ".s3-website." in url for url in file.urls)


@pytest.mark.parametrize("known", [True, False])
def test_a_bomb_is_not_unpacked(publish, tmp_path, known):
    """128 MB of zeros in 128 kB: the hash is compared first, and nothing is unpacked beyond the size that is expected."""
    published = publish()
    images = registry.SETS["kana_set"].train.images
    if not known:
        object.__setattr__(images, "raw_sha256", None)
    published.write(tmp_path / "kana_set")
    (tmp_path / "kana_set" / images.name).write_bytes(gzip.compress(bytes(1 << 27), compresslevel=9))
    tracemalloc.start()
    with pytest.raises(DataCorrupt):
        load("kana_set", data_dir=tmp_path, download=False)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    # Not packed, but larger than anything published: read no further than to see that.
    path = tmp_path / "kana_set" / images.unpacked_name
    (tmp_path / "kana_set" / images.name).unlink()
    with open(path, "wb") as file:
        file.truncate(1 << 34)
    if known:
        with pytest.raises(DataCorrupt):
            load("kana_set", data_dir=tmp_path, download=False)


def test_archives_with_false_sizes_are_refused(tmp_path):
    bomb = io.BytesIO()
    np.savez_compressed(bomb, images=np.zeros((1 << 26,), np.uint8))
    # A header that claims a terabyte in an array of a few bytes.
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 40,)})
    liar = io.BytesIO()
    with zipfile.ZipFile(liar, "w") as archive:
        archive.writestr("images.npy", header.getvalue() + b"abc")
    tracemalloc.start()
    for content in (bomb.getvalue(), liar.getvalue(), b"PK", b""):
        with pytest.raises(DataCorrupt, match=r"here\.npz"):
            read_npz_images(content, "images", (4, 4), "here.npz")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("a")
        member.size = 1 << 26
        archive.addfile(member, io.BytesIO(bytes(1 << 26)))
    tar = buffer.getvalue()
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    with pytest.raises(DataCorrupt, match="more bytes"):
        read_cifar10_binary(tar, ("a",), 2, "c.tar")
    assert tracemalloc.get_traced_memory()[1] - held < 4 << 20
    tracemalloc.stop()
