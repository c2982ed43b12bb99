"""From a published checkpoint or pipeline to folders of safetensors: without torch, and without running what is in it."""

from __future__ import annotations

import importlib.metadata
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scorelab.errors import WeightsError, shown
from scorelab.pretrained import torchfile
from scorelab.pretrained.keys import listed
from scorelab.pretrained.registry import PUBLISHED, Published
from scorelab.pretrained.store import (
    CONFIG,
    FORMAT,
    PIPELINE,
    Folder,
    Pipeline,
    copy,
    is_converted,
    new_folder,
    open_any,
    place,
    read_json,
    read_safetensors,
    sha256,
    write_config,
    write_folder,
    write_tensors,
)  # fmt: skip

# The weights in a folder of diffusers or transformers, the first that is there.
WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors.index.json",
    "model.safetensors.index.json", "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
# The endings of single files.
FILES = (".pkl", ".pth", ".pt", ".bin", ".ckpt", ".safetensors")
# What a pipeline says of its parts, and how its noise is said.
INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
# The files of a tokenizer.
TOKENIZER = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json")
# Parts that say nothing of the model: they look at its images.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
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
    revision: str | None = None,
) -> Folder | Pipeline:
    """Write the tensors of a checkpoint under their published names, with what is known of it, to a new folder.

    The numbers and their types are those of the file. ``config.json`` has the classes and the arguments of a pickle of modules, or
    the ``config.json`` of the source. It has licence, origin, and the SHA-256 of the source and of the result.

    Args:
        source: a file of torch (``.pkl``, ``.pth``, ``.pt``, ``.bin``, ``.ckpt``), a safetensors file, or a folder of diffusers:
            one model, or a pipeline with ``model_index.json``, whose models become folders of one.
        out: the new folder; None for one of its name below the folder for downloads.
        entry: of the outermost dict of a file of torch; see ``TorchFile.tensors``.
        name: of the model; None for that of the source without its ending.
        licence: of the weights; None for that of a published checkpoint of this name.
        url: where the source was published; None as for the licence.
        revision: of a repository, its commit.

    Raises:
        WeightsError: the source cannot be read, is not the published file of this name, or there is something at ``out``.
        ConfigError: neither ``out`` nor a folder for downloads.
        TypeError: ``source`` or ``out`` is no path, or another argument is no text.
    """
    if not isinstance(source, str | Path):
        raise TypeError(f"pretrained.convert.source = {source!r}: expected a path")
    if not isinstance(out, str | Path | None):
        raise TypeError(f"pretrained.convert.out = {out!r}: expected a path or None")
    if out is not None and not _is_text(os.fspath(out), "surrogateescape"):
        raise WeightsError(f"convert.out = {str(out)!r}: expected a path without NUL and surrogates")
    for field, value in dict(entry=entry, name=name, licence=licence, url=url, revision=revision).items():
        if not isinstance(value, str | None):
            raise TypeError(f"pretrained.convert.{field} = {value!r}: expected text or None")
        if value is not None and not _is_text(value):
            raise WeightsError(f"convert.{field} = {value!r}: expected text without NUL and surrogates")
    source = Path(source)
    name = source.stem if name is None and source.is_file() else source.name if name is None else name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise WeightsError(f"convert.name = {name!r}: expected letters, digits, '.', '_' and '-'")
    known = PUBLISHED.get(name)
    out = place(name) if out is None else Path(out)
    said = dict(
        licence=dict(id=licence or (known.licence if known else None), url=known.licence_url if known and not licence else None),
        written_by=writer(),
    )
    origin = dict(url=url or (known.url if known else None)) | (dict(revision=revision) if revision else {})
    if (source / INDEX).is_file():
        _require_no_entry(source, entry)
        return _convert_pipeline(source, out, name, known, said, origin)
    tensors, facts = read(source, entry=entry)
    if not tensors:
        raise WeightsError(f"{shown(source)}: no tensors: expected a file of weights")
    hashes = {file.name: sha256(file) for file in facts.pop("files")}
    _require_published(source, known, hashes, _numbers(tensors))
    config = dict(name=name, **facts, **said, source=dict(files=hashes, **origin, entry=entry))
    return write_folder(out, tensors, config, _tokenizer(source, "tokenizer") if source.is_dir() else {})


def _is_text(value: str, errors: str = "strict") -> bool:
    """Whether a file can have it as its content or, with ``surrogateescape``, as its name."""
    try:
        return b"\0" not in value.encode(errors=errors)
    except UnicodeEncodeError:
        return False


def _convert_pipeline(
    source: Path, out: Path, name: str, known: Published | None, said: dict[str, Any], origin: dict[str, Any]
) -> Pipeline:
    """A pipeline of diffusers, one folder for each of its models."""
    index = read_json(source / INDEX)
    require_known(index, shown(source / INDEX))
    models, copied, left_out = parts(source)
    with new_folder(out) as partial:
        numbers = 0
        for part, place in models.items():
            tensors, facts = read_model(place)
            hashes = {file.name: sha256(file) for file in facts.pop("files")}
            (partial / part).mkdir()
            write_tensors(partial / part, tensors, dict(name=part, **facts, **said, source=dict(files=hashes, **origin)))
            numbers += _numbers(tensors)
        _require_published(source, known, {}, numbers)
        files = copy(copied, partial)
        hashes = {INDEX: sha256(source / INDEX)}
        config = dict(
            format=FORMAT, name=name, kind=PIPELINE, network=index, parts=list(models), files=files, left_out=left_out,
            numbers=numbers, **said, source=dict(files=hashes, **origin),
        )  # fmt: skip
        write_config(partial, config)
    found = open_any(out)
    assert isinstance(found, Pipeline)
    return found


def require_known(index: Any, name: str) -> None:
    """Raise ``WeightsError`` for a pipeline whose parts have the classes of known ones, and that no network here is part of."""
    if isinstance(index, Mapping) and (kind := str(index.get("_class_name"))).startswith("StableDiffusionXL"):
        raise WeightsError(
            f"{name}: _class_name = {kind!r}: expected a pipeline with one text encoder, as Stable Diffusion 1.x and 2.x are; of "
            "SDXL the autoencoder is read, from its folder vae by itself"
        )


def parts(source: Path) -> tuple[dict[str, Path], dict[str, Path], list[str]]:
    """Of a pipeline of diffusers: the folders of its models by part, the files that are copied, and the parts that are left out.

    A part lies in a folder of its name or, where there is none, in the folder of the pipeline itself, as in the first repositories.

    Raises:
        WeightsError: a part that ``model_index.json`` names is not there.
    """
    models: dict[str, Path] = {}
    copied: dict[str, Path] = {}
    left_out = []
    for part, said in read_json(source / INDEX).items():
        if not isinstance(said, list) or len(said) != 2 or said[1] is None:
            continue
        if not re.fullmatch(r"[a-z]\w{0,59}", part) or not isinstance(said[1], str):
            what = f"part {part[:80]!r} of class {repr(said[1])[:80]}"
            raise WeightsError(f"{shown(source / INDEX)}: {what}: expected names of a folder, of up to 60 letters, and of a class")
        place = source / part if (source / part).is_dir() else source
        if part in LEFT_OUT:
            left_out.append(part)
        elif said[1].endswith("Scheduler"):
            copied[f"{part}/{SCHEDULER}"] = _there(place / SCHEDULER, part)
        elif "Tokenizer" in said[1]:
            if not (found := _tokenizer(place, part)):
                raise WeightsError(
                    f"{shown(place)}: part {part!r} has none of {', '.join(TOKENIZER)}: expected the files of a tokenizer"
                )
            copied |= found
        else:
            models[part] = _there(place / CONFIG, part).parent
    if not models or len(set(models.values())) < len(models):
        several = f"one folder for the parts {', '.join(models)}" if models else "no parts with weights"
        raise WeightsError(
            f"{shown(source / INDEX)}: {several}: expected a pipeline of diffusers, one folder for each of its models"
        )
    return models, copied, left_out


def _tokenizer(folder: Path, part: str) -> dict[str, Path]:
    """The files of a tokenizer that lie in a folder."""
    return {f"{part}/{file}": folder / file for file in TOKENIZER if (folder / file).is_file()}


def _there(file: Path, part: str) -> Path:
    if not file.is_file():
        raise WeightsError(f"{shown(file)}: no such file: expected it, of the part {part!r} that {INDEX} names")
    return file


def _numbers(tensors: dict[str, np.ndarray]) -> int:
    return sum(array.size for array in tensors.values())


def _require_no_entry(source: Path, entry: str | None) -> None:
    if entry is not None:
        raise WeightsError(f"{shown(source)}: entry {entry!r} of a folder: expected a file of torch for that")


def _require_published(source: Path, known: Published | None, hashes: dict[str, str], numbers: int) -> None:
    """Raise ``WeightsError`` where weights are not those of the published checkpoint whose name they are to have."""
    if known is None:
        return
    if known.sha256 not in (None, *hashes.values()):
        raise WeightsError(
            f"{shown(source)} has the hash {', '.join(hashes.values())}: expected {known.sha256}, of the published {known.file}"
        )
    # Of torch: what a file's name ends with is the beginning of its hash.
    digits = re.search(r"-([0-9a-f]{8})\.pth$", known.file)
    if digits and not any(digest.startswith(digits[1]) for digest in hashes.values()):
        raise WeightsError(
            f"{shown(source)} has the hash {', '.join(hashes.values())}: expected {digits[1]}..., as the name of {known.file} says"
        )
    if numbers < (known.parameters or 0):
        raise WeightsError(
            f"{shown(source)} has {numbers:,} numbers: expected {known.parameters:,} or more, of the published {known.name}"
        )


def writer() -> str:
    """This version, as a ``config.json`` has it."""
    try:
        return f"scorelab {importlib.metadata.version('scorelab')}"
    except importlib.metadata.PackageNotFoundError:
        return "scorelab, not installed as a package"


def read(source: Path, *, entry: str | None = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of a checkpoint, and what it says of itself: ``kind``, ``network`` and the ``files`` that were read.

    Errors as :func:`convert`.
    """
    if source.is_dir():
        _require_no_entry(source, entry)
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
    if (source / INDEX).is_file():
        inside = ", ".join(sorted(path.parent.name for path in source.glob(f"*/{CONFIG}")))
        raise WeightsError(f"{shown(source)}: a pipeline of several models: expected one of its folders {inside}")
    return read_model(source)


def read_model(source: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors of one model in a folder of diffusers or transformers, and what it says of itself; errors as :func:`convert`."""
    if is_converted(source):
        raise WeightsError(f"{shown(source)}: converted already")
    weights = next((source / file for file in WEIGHTS if (source / file).is_file()), None)
    if not (source / CONFIG).is_file() or weights is None:
        raise WeightsError(f"{shown(source)}: expected {CONFIG} and one of {', '.join(WEIGHTS)}")
    config = read_json(source / CONFIG)
    if weights.suffix == ".json":
        tensors, files = _sharded(weights)
    elif weights.suffix == ".bin":
        tensors, files = torchfile.read(weights).tensors(), [weights]
    else:
        tensors, files = read_safetensors(weights), [weights]
    facts: dict[str, Any] = dict(kind="diffusers" if "_class_name" in config else "transformers", network=config)
    files = [*files, source / CONFIG]
    if (source / SCHEDULER).is_file():
        facts["scheduler"] = read_json(source / SCHEDULER)
        files.append(source / SCHEDULER)
    return tensors, dict(**facts, files=files)


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
