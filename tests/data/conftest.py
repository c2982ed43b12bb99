"""Fixtures shared by the data tests."""

import gzip
import hashlib
import os
import struct

import numpy as np
import pytest

from scorelab.data import registry
from scorelab.data.files import PublishedFile
from scorelab.data.loaders import IdxImages, IdxSplit


@pytest.fixture
def real_data_dir():
    """Folder with the published files."""
    folder = os.environ.get("SCORELAB_DATA_DIR")
    if not folder:
        pytest.skip("SCORELAB_DATA_DIR is not set (a folder with mnist/, fashion-mnist/, ...)")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's own download folder."""
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path / "cache"))


class Published:
    """A data set of idx files made for a test: its content, its description and where its files go."""

    def __init__(self, urls: tuple[str, ...] = ()):
        rng = np.random.default_rng(0)
        self.urls, self.content, self.raw = urls, {}, {}
        self.images = {split: rng.integers(0, 256, (n, 5, 4), np.uint8) for split, n in self.sizes.items()}
        self.labels = {split: rng.integers(0, 10, n).astype(np.uint8) for split, n in self.sizes.items()}

    sizes = {"train": 7, "test": 3}

    def file(self, name: str, array: np.ndarray) -> PublishedFile:
        header = struct.pack(f">{1 + array.ndim}I", 0x0800 + array.ndim, *array.shape)
        self.raw[name] = header + array.tobytes()
        self.content[name] = gzip.compress(self.raw[name], mtime=1)
        return PublishedFile(
            name=name,
            sha256=hashlib.sha256(self.content[name]).hexdigest(),
            raw_sha256=hashlib.sha256(self.raw[name]).hexdigest(),
            raw_size=len(self.raw[name]),
            urls=tuple(url + name for url in self.urls),
        )

    def member(self, name: str = "kana_set") -> IdxImages:
        splits = {
            split: IdxSplit(
                images=self.file(f"{split}-images.gz", self.images[split]),
                labels=self.file(f"{split}-labels.gz", self.labels[split]),
                shape=self.images[split].shape,
            )
            for split in self.sizes
        }
        return IdxImages(name=name, **splits)

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.content.items():
            (folder / name).write_bytes(content)


@pytest.fixture
def publish(monkeypatch):
    """Enter a made-up data set `kana_set` in the registry, with its mirrors; returns it."""

    def enter(urls: tuple[str, ...] = ()) -> Published:
        published = Published(urls)
        monkeypatch.setattr(registry, "SETS", {**registry.SETS, "kana_set": published.member()})
        return published

    return enter
