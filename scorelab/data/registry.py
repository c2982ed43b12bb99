"""The data sets by name: the files of each one, their hashes and addresses, and its loader.

A set of your own needs no entry here: any :class:`scorelab.data.DataSet` goes where these go.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

from scorelab.data import shapes, toy
from scorelab.data.arrays import Arrays
from scorelab.data.base import DataSet
from scorelab.data.files import PublishedFile
from scorelab.data.loaders import CifarBinary, Digits, Halves, IdxImages, IdxSplit, NpzImages, Published, Toy
from scorelab.names import did_you_mean
from scorelab.validation import require_int, require_seed

MNIST_MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
# The second address knows no https; it comes last, and what it serves is hashed like everything else.
FASHION_MNIST_MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
KMNIST_MIRRORS = ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",)
CIFAR10_MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)


def _idx_set(
    name: str,
    mirrors: tuple[str, ...],
    train: tuple[tuple[str, str | None], ...],
    test: tuple[tuple[str, str | None], ...],
) -> IdxImages:
    """A set laid out as MNIST is; ``train`` and ``test`` are ((sha256, raw sha256) of images, of labels)."""

    def file(stem: str, hashes: tuple[str, str | None], raw_size: int) -> PublishedFile:
        return PublishedFile(
            name=f"{stem}-ubyte.gz",
            sha256=hashes[0],
            raw_sha256=hashes[1],
            raw_size=raw_size,
            urls=tuple(f"{mirror}{stem}-ubyte.gz" for mirror in mirrors),
        )

    def split(prefix: str, n: int, hashes: tuple[tuple[str, str | None], ...]) -> IdxSplit:
        images = file(f"{prefix}-images-idx3", hashes[0], 16 + n * 784)
        return IdxSplit(images=images, labels=file(f"{prefix}-labels-idx1", hashes[1], 8 + n), shape=(n, 28, 28))

    return IdxImages(name=name, train=split("train", 60000, train), test=split("t10k", 10000, test))


# sha256 of the published .gz: tensorflow_datasets' checksum lists. sha256 of the content: taken from files
# with those hashes; the training images of KMNIST were not at hand, so only their .gz can be checked.
MNIST = _idx_set(
    "mnist",
    MNIST_MIRRORS,
    (
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        (
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
    ),
    (
        (
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        (
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
)
FASHION_MNIST = _idx_set(
    "fashion_mnist",
    FASHION_MNIST_MIRRORS,
    (
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        (
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    (
        (
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        (
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
)
KMNIST = _idx_set(
    "kmnist",
    KMNIST_MIRRORS,
    (
        ("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", None),
        (
            "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
            "2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b",
        ),
    ),
    (
        (
            "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
            "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e",
        ),
        (
            "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
            "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6",
        ),
    ),
)
CIFAR10 = CifarBinary(
    name="cifar10",
    archive=PublishedFile(
        name="cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        urls=tuple(f"{mirror}cifar-10-binary.tar.gz" for mirror in CIFAR10_MIRRORS),
    ),
    records=10000,
)
# The first 4000 training images, unpacked from lossless PNG sheets; there is no published address or
# checksum for it.
CIFAR10_SUBSET = NpzImages(
    name="cifar10_subset",
    folders=("cifar10-subset", "cifar10_subset"),
    file=PublishedFile(
        name="cifar10_train_first4000_images.npz",
        sha256="eb14369cfc5a272e5e6e79092f4587c72d3f7064cf6106e942dc69ffdf514040",
    ),
    key="images",
    shape=(4000, 32, 32, 3),
)
KMNIST_HALVES = Halves(name="kmnist_halves", source=KMNIST)
_TOYS = (
    toy.eight_gaussians, toy.rings, toy.swiss_roll, toy.checkerboard, toy.pinwheel, toy.two_moons,
    toy.concentrations, toy.synaptic_weights, toy.regimes, shapes.gaussian_process, shapes.switching, shapes.blobs, shapes.spots,
    toy.on_torus, toy.on_sphere, toy.on_rotations, toy.on_product,
)  # fmt: skip

_EVENTS = {
    "synaptic_weights": (16,), "regimes": (16, 16, 1), "gaussian_process": (32, 1), "switching": (32, 1),
    "blobs": (12, 12, 12, 1), "spots": (30, 21, 3),
    "on_sphere": (3,), "on_rotations": (4,), "on_product": (5,),
}  # fmt: skip

SETS: Mapping[str, DataSet] = MappingProxyType(
    {s.name: s for s in (Digits(), MNIST, FASHION_MNIST, KMNIST, KMNIST_HALVES, CIFAR10, CIFAR10_SUBSET)}
    | {s.__name__: Toy(name=s.__name__, sampler=s, event=_EVENTS.get(s.__name__, (2,))) for s in _TOYS}
)


def names() -> tuple[str, ...]:
    """Every name ``load`` accepts."""
    return tuple(SETS)


def unknown_name(field: str, name: object) -> str:
    """The message about a name that no set has, with the nearest one."""
    return f"{field} = {name!r}: expected one of {', '.join(SETS)}. {did_you_mean(str(name), SETS)}".rstrip()


def load(
    name: str,
    split: str = "train",
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    n: int | None = None,
    seed: int | None = None,
) -> Arrays:
    """One split of a data set by name, with every byte checked against a published hash.

    Files are looked for in ``data_dir`` (else SCORELAB_DATA_DIR) under ``<name>/``, spelled with ``_`` or ``-``,
    compressed or not, then in the cache (SCORELAB_CACHE_DIR, else pooch's), then downloaded there unless
    ``download=False``. ``n`` and ``seed`` (defaults 10000 and 0) belong to the generated sets and are refused by
    the others.

    Raises ValueError for an unknown name or split and for an ``n`` that does not fit into memory, DataNotFound where a file can be
    found nowhere, DataCorrupt where one is damaged. One data set is never replaced by another.
    """
    if not isinstance(name, str) or name not in SETS:
        raise ValueError(unknown_name("load.name", name))
    if n is not None:
        require_int(load, 1, n=n)
    if seed is not None:
        require_seed(load, seed=seed)
    member = Named(name=name, n=n, seed=seed).member
    member.require_split(split)
    return member.load(split, data_dir=data_dir, download=download) if isinstance(member, Published) else member.load(split)


@dataclass(frozen=True, kw_only=True)
class Named(DataSet):
    """One of the sets above by its name, as configs and :func:`load` take it.

    Attributes:
        name: as in :func:`names`.
        n: number of points of a generated set, None for 10000; other sets take none.
        seed: seed of a generated set, None for 0.
    """

    name: str
    n: int | None = None
    seed: int | None = None

    def __post_init__(self):
        if not isinstance(self.name, str) or self.name not in SETS:
            raise ValueError(unknown_name("Named.name", self.name))
        if self.n is not None:
            require_int(self, 1, n=self.n)
        if self.seed is not None:
            require_seed(self, seed=self.seed)
        for field, value in self._given.items():
            if not SETS[self.name].generated:
                raise ValueError(f"Named.{field} = {value} for {self.name}: expected None, since only generated sets take one")

    @property
    def _given(self) -> dict[str, int]:
        return {field: value for field, value in (("n", self.n), ("seed", self.seed)) if value is not None}

    @property
    def member(self) -> DataSet:
        """The set itself."""
        return dataclasses.replace(cast(Any, SETS[self.name]), **self._given)

    @property
    def splits(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the set."""
        return SETS[self.name].splits

    @property
    def generated(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the set."""
        return SETS[self.name].generated

    @property
    def known_as(self) -> tuple[str, ...]:
        """As the set."""
        return SETS[self.name].known_as

    @property
    def statistics(self):
        """As the set."""
        return SETS[self.name].statistics

    def load(self, split: str = "train") -> Arrays:
        """One split; errors as :func:`load`."""
        self.require_split(split)
        return self.member.load(split)

    def draw(self, n: int, seed: int) -> Arrays:
        """As the set."""
        return self.member.draw(n, seed)
