"""From a published checkpoint to a folder of safetensors: without torch, and without running what is in it."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path
from typing import Any

import numpy as np

from scorelab.errors import WeightsError, shown
from scorelab.pretrained import torchfile
from scorelab.pretrained.keys import listed
from scorelab.pretrained.registry import PUBLISHED
from scorelab.pretrained.store import CONFIG, Folder, place, read_json, read_safetensors, sha256, write_folder

# The weights in a folder of diffusers or transformers, the first that is there.
_WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
# What the outermost class of a pickle of modules is.
_KINDS = {"EDMPrecond": "edm", "VPPrecond": "edm", "VEPrecond": "edm", "iDDPMPrecond": "edm", "Precond": "edm2"}


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    entry: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    url: str | None = None,
) -> Folder:
    """Write the tensors of a checkpoint under their published names, with what is known of it, to a new folder.

    The numbers and their types are those of the file. ``config.json`` has the classes and the arguments of a pickle of modules, or
    the ``config.json`` of the source. It has licence, origin, and the SHA-256 of the source and of the result.

    Args:
        source: a file of torch (``.pkl``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``), a safetensors file, or a folder of diffusers.
        out: the new folder; None for one of its name below the folder for downloads.
        entry: of the outermost dict of a file of torch; see ``TorchFile.tensors``.
        name: of the model; None for that of the source without its ending.
        licence: of the weights; None for that of a published checkpoint of this name.
        url: where the source was published; None as for the licence.

    Raises:
        WeightsError: the source cannot be read, is not the published file of this name, or there is something at ``out``.
        ConfigError: neither ``out`` nor a folder for downloads.
        TypeError: ``source`` is no path.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"pretrained.convert.source = {source!r}: expected a path")
    source = Path(source)
    name = source.stem if name is None and source.is_file() else source.name if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise WeightsError(f"convert.name = {name!r}: expected letters, digits, '.', '_' and '-'")
    known = PUBLISHED.get(name)
    out = place(name) if out is None else Path(out)
    tensors, facts = read(source, entry=entry)
    if not tensors:
        raise WeightsError(f"{shown(source)}: no tensors: expected a file of weights")
    files = facts.pop("files")
    hashes = {file.name: sha256(file) for file in files}
    if known is not None and known.sha256 not in (None, *hashes.values()):
        raise WeightsError(
            f"{shown(source)} has the hash {', '.join(hashes.values())}: expected {known.sha256}, of the published {known.file}"
        )
    numbers = sum(array.size for array in tensors.values())
    if known is not None and numbers < (known.parameters or 0):
        raise WeightsError(
            f"{shown(source)} has {numbers:,} numbers: expected {known.parameters:,} or more, of the published {name}"
        )
    config = dict(
        name=name,
        **facts,
        licence=dict(id=licence or (known.licence if known else None), url=known.licence_url if known and not licence else None),
        source=dict(files=hashes, url=url or (known.url if known else None), entry=entry),
        written_by=_writer(),
    )
    return write_folder(out, tensors, config)


def _writer() -> str:
    try:
        return f"scorelab {importlib.metadata.version('scorelab')}"
    except importlib.metadata.PackageNotFoundError:
        return "scorelab, not installed as a package"


def read(source: Path, *, entry: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a checkpoint, and what it says of itself: ``kind``, ``network`` and the ``files`` that were read.

    Errors as :func:`convert`.
    """
    if source.is_dir():
        if entry is not None:
            raise WeightsError(f"{shown(source)}: entry {entry!r} of a folder: expected a file of torch for that")
        return _folder(source)
    if not source.is_file():
        raise WeightsError(f"{shown(source)}: no such file or folder")
    if source.suffix == ".safetensors":
        return read_safetensors(source), dict(kind="tensors", network={}, files=[source])
    found = torchfile.read(source)
    modules = found.modules(entry)
    kind = _KINDS.get(modules[""]["type"], "modules") if modules else "tensors"
    # Of EDM2: the scale of what its network sees.
    more = {"encoder": encoder} if kind == "edm2" and (encoder := found.beside("encoder")) else {}
    return found.tensors(entry), dict(kind=kind, network=modules, **more, files=[source])


def _folder(source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A folder of diffusers or transformers with one model."""
    if (source / "model_index.json").is_file():
        parts = sorted(path.parent.name for path in source.glob(f"*/{CONFIG}"))
        raise WeightsError(f"{shown(source)}: a pipeline of several models: expected one of its folders {', '.join(parts)}")
    weights = next((source / file for file in _WEIGHTS if (source / file).is_file()), None)
    if not (source / CONFIG).is_file() or weights is None:
        raise WeightsError(f"{shown(source)}: expected {CONFIG} and one of {', '.join(_WEIGHTS)}")
    config = read_json(source / CONFIG)
    if "weights" in config and "written_by" in config:
        raise WeightsError(f"{shown(source)}: converted already")
    if weights.suffix == ".json":
        tensors, files = _sharded(weights)
    elif weights.suffix == ".bin":
        tensors, files = torchfile.read(weights).tensors(), [weights]
    else:
        tensors, files = read_safetensors(weights), [weights]
    return tensors, dict(
        kind="diffusers" if "_class_name" in config else "transformers", network=config, files=[*files, source / CONFIG]
    )


def _sharded(index: Path) -> tuple[dict[str, np.ndarray], list[Path]]:
    """The tensors of an index file, each in the file that it says and nowhere else."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(
        isinstance(file, str) and re.fullmatch(r"\w[\w.-]*\.safetensors", file) for file in where.values()
    ):
        raise WeightsError(f"{shown(index)}: expected a weight_map from tensors to safetensors files beside it")
    tensors: dict[str, np.ndarray] = {}
    files = sorted(set(where.values()))
    for file in files:
        part = read_safetensors(index.parent / file)
        wanted = {name for name, its in where.items() if its == file}
        if different := sorted(wanted ^ part.keys()):
            raise WeightsError(
                f"{shown(index.parent / file)}: tensors that it has or that its index says, but not both: {listed(different)}"
            )
        tensors |= part
    return tensors, [*(index.parent / file for file in files), index]
