"""``scorelab data NAME``: where a set is, and what it is."""

from __future__ import annotations

import os

from scorelab.data import DataCorrupt, DataNotFound, load
from scorelab.data.files import DATA_DIR_VARIABLE, cache_dir
from scorelab.data.registry import SETS, names
from scorelab.errors import ConfigError
from scorelab.names import did_you_mean


def print_data(name: str, *, split: str | None = None, download: bool = True) -> None:
    """Load every split (or one) of a data set, downloading where allowed, and print shapes, labels and
    hashes.

    Raises ConfigError for an unknown name or split, and where nothing can be loaded; a set with one complete
    split is printed with the reason the other is missing.
    """
    if name not in names():
        raise ConfigError(f"data {name}: expected one of {', '.join(names())}. {did_you_mean(name, names())}".rstrip())
    splits = SETS[name].splits
    if split is not None and split not in splits:
        raise ConfigError(f"data {name} --split {split}: expected one of {', '.join(splits)}")
    print(f"{DATA_DIR_VARIABLE} = {os.environ.get(DATA_DIR_VARIABLE) or '(not set)'}, downloads go to {cache_dir()}")
    failures = []
    for part in (split,) if split is not None else splits:
        try:
            arrays = load(name, part, download=download)
        except (DataNotFound, DataCorrupt) as error:
            failures.append(str(error))
            continue
        scale = "continuous" if arrays.levels is None else f"levels 0 to {arrays.levels - 1}"
        labels = "no labels" if arrays.num_classes is None else f"{arrays.num_classes} classes"
        print(f"{name}/{part}: {arrays.x.dtype} {arrays.x.shape}, {scale}, {labels}, sha256 {arrays.sha256}")
    if failures:
        raise ConfigError("\n".join(failures))
