"""Weights of published models on this machine: a folder of ``model.safetensors`` and ``config.json``, with hashes and licence.

A pipeline is a folder of such folders, one for each of its models, beside the files of its tokenizer and of its scheduler.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
# The kind of a folder of several models.
PIPELINE = "pipeline"
# A name of a file or of a folder in a config, that every system takes: 255 bytes are usual, and a letter has up to 4.
_NAME = r"\w[\w.-]{0,59}"
# The most bytes of a JSON file, of a file that is copied, and of one with weights: the largest published one has 11 GB.
_JSON, _COPIED, _WEIGHTS = 1 << 24, 1 << 26, 1 << 34
# Those of safetensors that arrays have.
_DTYPES = (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
    "complex64",
)  # fmt: skip
# The same by their names in a file.
_HEADER = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64")


def sha256(path: Path) -> str:
    """The hash of the content of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"the number {text[:20]}, which is not finite")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            # Of two values readers take the first or the last.
            raise ValueError(f"the key {key[:80]!r} twice")
        found[key] = value
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; WeightsError where the file holds none, a key twice, or what JSON has not: NaN, infinity, half a character."""
    try:
        if path.stat().st_size > _JSON:
            raise ValueError(f"{path.stat().st_size:,} bytes, expected at most {_JSON:,}")
        text = path.read_text(encoding="utf-8")
        found = json.loads(text, parse_constant=_finite, parse_float=_finite, object_pairs_hook=_unique)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}")
        if "\\u" in text:
            # Half of a pair can be written as an escape, and is no character.
            json.dumps(found, ensure_ascii=False).encode()
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{shown(path)}: expected a JSON object: {error}") from error
    return found


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file by name, bfloat16 too.

    Raises:
        WeightsError: the file is not there, is damaged, has a tensor twice, a type that arrays have not, or more than 16 GiB. The
            message names the file.
    """
    _require_weights(path)
    try:
        with safetensors.safe_open(path, framework="np") as file:
            with open(path, "rb") as raw:
                header = json.loads(raw.read(int.from_bytes(raw.read(8), "little")), object_pairs_hook=_unique)
            for name, said in header.items():
                if name != "__metadata__" and said["dtype"] not in _HEADER:
                    raise ValueError(f"tensor {name[:80]!r} is {said['dtype']}, expected one of {', '.join(_HEADER)}")
            return dict(file.get_tensors())
    except Exception as error:
        raise WeightsError(f"{shown(path)}: not a safetensors file that can be read: {error}") from error


def _require_weights(path: Path) -> None:
    """Raise ``WeightsError`` for what is no file, as a pipe that would be waited for, and for one that is too large to be read."""
    if not path.is_file():
        raise WeightsError(f"{shown(path)}: no such file: expected a file of weights")
    if (size := path.stat().st_size) > _WEIGHTS:
        raise WeightsError(f"{shown(path)}: {size:,} bytes: expected at most {_WEIGHTS:,}")


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

    def network(self, kind: str, *classes: str) -> Mapping[str, Any]:
        """What its config says of the network; WeightsError where it is of another kind, or not of one of ``classes``."""
        network = self.config.get("network", {})
        found, wanted = f"kind {self.config.get('kind')!r}", kind
        whole = self.config.get("kind") == kind and isinstance(network, Mapping)
        if classes:
            said = network.get("_class_name") if isinstance(network, Mapping) else None
            whole = whole and said in classes
            found, wanted = f"{found}, class {said!r}", f"{kind}, {' or '.join(classes)}"
        if not whole:
            raise WeightsError(f"{shown(self.path)}: {found}: expected {wanted}")
        return network

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors by their published names."""
        return read_safetensors(self.path / TENSORS)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Several converted models that belong together, each in a folder of its own.

    Attributes:
        path: the folder.
        config: what ``config.json`` says: format, kind, network (its ``model_index.json``), parts, files, licence and source.
        parts: the converted models by the names of their folders, such as ``unet``.
    """

    path: Path
    config: dict[str, Any]
    parts: dict[str, Folder]

    def folder(self, name: str) -> Path | None:
        """The folder of what has no weights, such as ``tokenizer``; None where there is none."""
        return self.path / name if any(file.startswith(f"{name}/") for file in self.config.get("files", {})) else None

    def read(self, file: str) -> dict[str, Any] | None:
        """One of its JSON files, such as ``scheduler/scheduler_config.json``; None where it has not got it."""
        return read_json(self.path / file) if file in self.config.get("files", {}) else None


def is_converted(path: Path) -> bool:
    """Whether a folder has the ``config.json`` of a conversion."""
    return (path / CONFIG).is_file() and "written_by" in read_json(path / CONFIG)


def _config(path: Path) -> dict[str, Any]:
    if not (path / CONFIG).is_file():
        raise WeightsError(f"{shown(path)}: no {CONFIG}: expected a folder that scorelab pretrained convert wrote")
    config = read_json(path / CONFIG)
    weights, parts, files = config.get("weights"), config.get("parts", []), config.get("files", {})
    whole = isinstance(weights, dict) and isinstance(weights.get("sha256"), str)
    if config.get("kind") == PIPELINE:
        whole = parts != []
    whole = whole and isinstance(parts, list) and isinstance(files, dict) and all(map(_is_inside, (*parts, *files)))
    if "format" not in config or not whole:
        raise WeightsError(
            f"{shown(path / CONFIG)}: no format and hash of weights: expected one that scorelab pretrained convert wrote"
        )
    if config["format"] != FORMAT:
        raise WeightsError(f"{shown(path / CONFIG)}: format {config['format']!r}: expected {FORMAT}, by this version of scorelab")
    return config


def _is_inside(name: Any) -> bool:
    """Whether a name is one of a file or of a folder below the folder that says it."""
    return isinstance(name, str) and re.fullmatch(rf"{_NAME}(/{_NAME})?", name) is not None


def open_folder(path: Path) -> Folder:
    """A converted model, its hash compared.

    Raises:
        WeightsError: no such folder, several models, another format, or weights with another hash than at their conversion.
    """
    config = _config(path)
    if config.get("kind") == PIPELINE:
        raise WeightsError(f"{shown(path)}: a pipeline: expected one of its folders {', '.join(config['parts'])}")
    if not (path / TENSORS).is_file():
        raise WeightsError(f"{shown(path)}: no {TENSORS}")
    _require_weights(path / TENSORS)
    require_sha256(path / TENSORS, config["weights"]["sha256"])
    _require_files(path, config.get("files", {}))
    return Folder(path=path, config=config)


def open_any(path: Path) -> Folder | Pipeline:
    """A converted model or pipeline, all hashes compared; errors as :func:`open_folder`."""
    config = _config(path)
    if config.get("kind") != PIPELINE:
        return open_folder(path)
    _require_files(path, config.get("files", {}))
    return Pipeline(path=path, config=config, parts={part: open_folder(path / part) for part in config["parts"]})


def _require_files(path: Path, files: Mapping[str, str]) -> None:
    for file, digest in files.items():
        if not (path / file).is_file():
            raise WeightsError(f"{shown(path)}: no {file}")
        require_sha256(path / file, digest)


def copy(files: Mapping[str, Path], folder: Path) -> dict[str, str]:
    """Copy small files to places below a folder; their hashes."""
    found = {}
    for file, source in files.items():
        if (size := source.stat().st_size) > _COPIED:
            raise WeightsError(f"{shown(source)}: {size:,} bytes: expected at most {_COPIED:,}")
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, folder / file)
        found[file] = sha256(folder / file)
    return found


def require_sha256(path: Path, expected: str) -> None:
    """Raise ``WeightsError`` where a file has another hash than at its conversion."""
    if (found := sha256(path)) != expected:
        raise WeightsError(f"{shown(path)} has the hash {found}: expected {expected}, as at its conversion")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write to, which becomes ``path`` at the end, whole or not at all; WeightsError where there is something."""
    if os.path.lexists(path):
        raise WeightsError(f"{shown(path)} is there already: expected a new folder; remove it, or choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary(path)
    shutil.rmtree(partial, ignore_errors=True)
    with naming(path):
        try:
            partial.mkdir()
            yield partial
            sync_folder(partial)
            # Onto a folder that another process made meanwhile this fails, and changes nothing.
            partial.rename(path)
            sync_folder(path.parent)
        finally:
            with suppress(OSError):
                shutil.rmtree(partial, ignore_errors=True)


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    """The two files of a converted model, in a folder that is there."""
    file = write_safetensors(folder / TENSORS, tensors)
    weights = dict(
        sha256=sha256(file),
        bytes=file.stat().st_size,
        tensors=len(tensors),
        numbers=sum(math.prod(array.shape) for array in tensors.values()),
    )
    write_config(folder, dict(format=FORMAT, **config, weights=weights))


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``; WeightsError where it would be none that :func:`read_json` reads."""
    try:
        write_json(folder / CONFIG, config, limit=_JSON)
    except (TypeError, ValueError, RecursionError) as error:
        raise WeightsError(f"{CONFIG} of {config.get('name')!r} cannot be written: {error}") from error


def write_folder(
    path: Path, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any], copied: Mapping[str, Path] | None = None
) -> Folder:
    """Write a converted model, complete or not at all.

    Args:
        path: a folder that is not there yet.
        tensors: by their published names.
        config: everything but ``format``, ``weights`` and ``files``, which are added.
        copied: small files to be copied, by their places below the folder.

    Raises:
        WeightsError: there is something at ``path``, or the tensors cannot be written.
    """
    # Before there is anything to take away, and by the name that was asked for.
    _require_tensors(path, tensors)
    with new_folder(path) as partial:
        files = copy(copied or {}, partial)
        write_tensors(partial, tensors, dict(config) | (dict(files=files) if files else {}))
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
    """Whether there is a converted model or pipeline; a name that no file can have is none, nor is a folder as it was published."""
    try:
        if not (path / CONFIG).is_file():
            return False
        config = read_json(path / CONFIG)
    except OSError:
        return False
    except WeightsError:
        # One whose config is damaged, which is refused by what it is.
        return (path / TENSORS).is_file()
    return "format" in config or "weights" in config


def converted() -> list[str]:
    """The names of the converted models on this machine."""
    root = cache_dir()
    found = root.glob(f"pretrained/*/{CONFIG}") if root is not None else ()
    return sorted(path.parent.name for path in found if not path.parent.name.startswith("."))
