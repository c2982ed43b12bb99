"""Weights of published models on this machine: a folder of ``model.safetensors`` and ``config.json``, with hashes and licence."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from scorelab.data.files import CACHE_DIR_VARIABLE, cache_dir
from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.files import naming, replacing, sync_folder, temporary, write_json

# Of the layout of a folder.
FORMAT = 1
TENSORS, CONFIG = "model.safetensors", "config.json"
# The most bytes of a JSON file.
_JSON = 1 << 24
# Those of safetensors that arrays have.
_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    "complex64",
)  # fmt: skip


def sha256(path: Path) -> str:
    """The hash of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; WeightsError where the file holds none."""
    try:
        if path.stat().st_size > _JSON:
            raise ValueError(f"{path.stat().st_size:,} bytes, expected at most {_JSON:,}")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{shown(path)}: expected a JSON object: {error}") from error
    return found


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, bfloat16 too.

    Raises:
        WeightsError: the file is not there, is damaged, or has a type that arrays have not. The message names the file.
    """
    try:
        with safetensors.safe_open(path, framework="np") as file:
            found = dict(file.get_tensors())
    except Exception as error:
        raise WeightsError(f"{shown(path)}: not a safetensors file that can be read: {error}") from error
    for name, array in found.items():
        if array.dtype.name not in _DTYPES:
            raise WeightsError(f"{shown(path)}: tensor {name!r} is {array.dtype}: expected one of {', '.join(_DTYPES)}")
    return found


def _require_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    for name, array in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise WeightsError(f"{shown(path)}: tensor {name!r}: expected a name other than __metadata__")
        if array.dtype.name not in _DTYPES:
            raise WeightsError(f"{shown(path)}: tensor {name!r} is {array.dtype}: expected one of {', '.join(_DTYPES)}")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
    """Write tensors complete or not at all, so that any program with safetensors reads them.

    Raises:
        WeightsError: a type that the format has not, or no text as a name.
        OSError: the file cannot be written.
    """
    _require_tensors(path, tensors)
    # It writes memory as it lies, so a transposed view would come back as other numbers.
    ordered = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    with replacing(path) as partial:
        try:
            safetensors.numpy.save_file(ordered, partial, metadata={"format": "pt"})
        except safetensors.SafetensorError as error:
            raise OSError(f"{shown(path)}: {error}") from error
    return path


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A converted model whose files are those that its config says.

    Attributes:
        path: the folder.
        config: what ``config.json`` says: format, kind, network, licence, source and weights.
    """

    path: Path
    config: dict[str, Any]

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors by their published names."""
        return read_safetensors(self.path / TENSORS)


def open_folder(path: Path) -> Folder:
    """A converted model, its hash compared.

    Raises:
        WeightsError: no such folder, another format, or weights with another hash than at their conversion.
    """
    if not (path / CONFIG).is_file():
        raise WeightsError(f"{shown(path)}: no {CONFIG}: expected a folder that scorelab pretrained convert wrote")
    config = read_json(path / CONFIG)
    weights = config.get("weights")
    if "format" not in config or not isinstance(weights, dict) or not isinstance(weights.get("sha256"), str):
        raise WeightsError(
            f"{shown(path / CONFIG)}: no format and hash of weights: expected one that scorelab pretrained convert wrote"
        )
    if config["format"] != FORMAT:
        raise WeightsError(f"{shown(path / CONFIG)}: format {config['format']!r}: expected {FORMAT}, by this version of scorelab")
    if not (path / TENSORS).is_file():
        raise WeightsError(f"{shown(path)}: no {TENSORS}")
    if (found := sha256(path / TENSORS)) != weights["sha256"]:
        raise WeightsError(f"{shown(path / TENSORS)} has the hash {found}: expected {weights['sha256']}, as at its conversion")
    return Folder(path=path, config=config)


def write_folder(path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> Folder:
    """Write a converted model, complete or not at all.

    Args:
        path: a folder that is not there yet.
        tensors: by their published names.
        config: everything but ``format`` and ``weights``, which are added.

    Raises:
        WeightsError: there is something at ``path``, or the tensors cannot be written.
    """
    if os.path.lexists(path):
        raise WeightsError(f"{shown(path)} is there already: expected a new folder; remove it, or choose another")
    # Before there is anything to take away, and by the name that was asked for.
    _require_tensors(path, tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    shutil.rmtree(partial, ignore_errors=True)
    with naming(path):
        try:
            partial.mkdir()
            file = write_safetensors(partial / TENSORS, tensors)
            weights = dict(
                sha256=sha256(file),
                bytes=file.stat().st_size,
                tensors=len(tensors),
                numbers=sum(math.prod(array.shape) for array in tensors.values()),
            )
            write_json(partial / CONFIG, dict(format=FORMAT, **config, weights=weights))
            sync_folder(partial)
            # Onto a folder that another process made meanwhile this fails, and changes nothing.
            partial.rename(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                shutil.rmtree(partial, ignore_errors=True)
    return open_folder(path)


def place(name: str) -> Path:
    """The folder of a converted model by name; ConfigError without a folder for downloads."""
    if (root := cache_dir()) is None:
        raise ConfigError(f"no folder for converted models: expected {CACHE_DIR_VARIABLE} to be set, or a folder given by --out")
    return root / "pretrained" / name


def find(name: str | os.PathLike[str]) -> Path | None:
    """The folder of a converted model by its path or its name, None where there is none."""
    if not isinstance(name, str | os.PathLike) or not os.fspath(name).strip():
        return None
    root = cache_dir()
    places = [Path(name)] if root is None else [Path(name), root / "pretrained" / name]
    return next((path for path in places if _is_folder(path)), None)


def _is_folder(path: Path) -> bool:
    """Whether there is a converted model; a name that no file can have is none."""
    try:
        return (path / TENSORS).is_file() and (path / CONFIG).is_file()
    except OSError:
        return False


def converted() -> list[str]:
    """The names of the converted models on this machine."""
    root = cache_dir()
    found = root.glob(f"pretrained/*/{CONFIG}") if root is not None else ()
    return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))
