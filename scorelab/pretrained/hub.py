"""The files of a published repository from huggingface.co: with the optional package ``huggingface-hub``, and only when asked."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.names import did_you_mean
from scorelab.pretrained.conversion import INDEX, LEFT_OUT, SCHEDULER, TOKENIZER, WEIGHTS, convert
from scorelab.pretrained.registry import PUBLISHED, Published
from scorelab.pretrained.store import CONFIG, Folder, Pipeline, place


def fetch(
    name: str, out: str | Path | None = None, *, revision: str | None = None, say: Callable[[str], Any] = print
) -> Folder | Pipeline:
    """Download what a published model needs, and convert it.

    The licence is said before anything is downloaded. All files are of one commit, which the result has as ``source.revision``: the
    same again is ``revision`` of that. What was loaded of a file before an interruption is not loaded again.

    Args:
        name: of a published checkpoint that has a repository.
        out: the new folder; None for one of its name below the folder for downloads.
        revision: a commit, branch or tag of the repository; None for the newest commit.
        say: what is done with each line of text.

    Raises:
        ConfigError: no such checkpoint, none with a repository, or the package is not installed; the message says which files to
            put where.
        WeightsError: the repository cannot be read or lacks files, or as ``convert``.
    """
    row = PUBLISHED.get(name) if isinstance(name, str) else None
    if row is None:
        known = tuple(each.name for each in PUBLISHED.values() if each.repo)
        raise ConfigError(f"fetch.name = {name!r}: expected one of {', '.join(known)}. {did_you_mean(str(name), known)}".rstrip())
    if row.repo is None:
        raise ConfigError(
            f"fetch.name = {name!r}: it has no repository: get {row.url}, then scorelab pretrained convert {row.file}"
        )
    client, target = _client(row), place(row.name) if out is None else Path(out)
    if os.path.lexists(target):
        raise WeightsError(f"{shown(target)} is there already: expected a new folder; remove it, or choose another")
    say(f"{row.name}: {row.what}")
    say(f"licence of the weights: {row.licence}, {row.licence_url}")
    try:
        found = client.HfApi().model_info(row.repo, revision=revision)
        commit, files = found.sha, needed([each.rfilename for each in found.siblings or ()], row.repo)
        if not re.fullmatch(r"[0-9a-f]{40}", str(commit)):
            raise WeightsError(f"fetch {name}: {row.url}: commit {commit!r}: expected one of 40 hexadecimal digits")
        say(f"{row.url} at {commit}: {len(files)} files")
        folder = client.snapshot_download(row.repo, revision=commit, allow_patterns=files)
    except WeightsError:
        raise
    except Exception as error:
        # Of the network, of the disk, of access: whatever it is, it is what the person has to know.
        text = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"fetch {name}: {row.url}: {text}") from error
    if missing := [file for file in files if not (Path(folder) / file).is_file()]:
        raise WeightsError(f"fetch {name}: {row.url} at {commit}: {', '.join(missing)} did not come")
    return convert(folder, target, name=row.name, revision=commit)


def _client(row: Published) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ConfigError(
            f"fetch {row.name}: the package huggingface-hub is not installed: expected pip install 'scorelab[pretrained]', or the "
            f"files of {row.url} ({CONFIG} and weights of each model, {INDEX}, {SCHEDULER}, tokenizer) in a folder "
            f"{row.name}/, then scorelab pretrained convert {row.name}"
        ) from error


def needed(files: Iterable[str], repo: str) -> list[str]:
    """Of the files of a repository, those that a conversion reads: one set of weights of each model, never two.

    Raises:
        WeightsError: a model without weights that can be read, or no model.
    """
    by_folder: dict[str, set[str]] = {}
    for file in files:
        path = PurePosixPath(file)
        if len(path.parts) <= 2 and ".." not in path.parts and not path.is_absolute():
            by_folder.setdefault(str(path.parent), set()).add(path.name)
    wanted = []
    for folder, inside in sorted(by_folder.items()):
        if folder in LEFT_OUT:
            continue
        chosen = [each for each in (INDEX, SCHEDULER, *TOKENIZER) if each in inside]
        weights = next((each for each in WEIGHTS if each in inside), None)
        if CONFIG in inside and weights is None and (folder != "." or INDEX not in inside):
            raise WeightsError(f"{repo}: {folder} has {CONFIG} and none of {', '.join(WEIGHTS)}: expected one of them")
        if CONFIG in inside and weights is not None:
            chosen += [CONFIG, weights]
            if weights.endswith(".index.json"):
                part = re.compile(re.escape(weights.removesuffix(".safetensors.index.json")) + r"-\d+-of-\d+\.safetensors")
                chosen += sorted(each for each in inside if part.fullmatch(each))
        wanted += [each if folder == "." else f"{folder}/{each}" for each in chosen]
    if not any(PurePosixPath(file).name == CONFIG for file in wanted):
        raise WeightsError(f"{repo}: no folder with {CONFIG} and weights: expected a repository of diffusers or transformers")
    return wanted
