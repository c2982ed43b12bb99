"""``scorelab pretrained``: trained models that the package carries, and published ones that were converted on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from scorelab import pretrained
from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.metrics.smallcnn import WEIGHTS
from scorelab.names import did_you_mean
from scorelab.pretrained import store, torchfile
from scorelab.pretrained.conversion import read
from scorelab.pretrained.registry import PUBLISHED


def print_list() -> None:
    """Print the models of the package, the classifiers, and the published checkpoints, with one line each."""
    known = pretrained.names()
    width = max(map(len, known))
    for each in known:
        card = pretrained.card(each)
        print(f"{each:<{width}}  {card.what} {card.metrics[0].name} {card.metrics[0]}")
    print("\nclassifiers, scorelab.metrics.small_cnn(NAME)")
    for each, record in sorted(json.loads((WEIGHTS / "index.json").read_text(encoding="utf-8")).items()):
        print(f"{each:<{width}}  {record['test_accuracy']:.1%} of {record['test_size']:,} test images; {record['note']}")
    print("\npublished checkpoints, scorelab pretrained convert FILE")
    here = store.converted()
    width = max(map(len, (*PUBLISHED, *here)))
    for each in (*PUBLISHED, *(name for name in here if name not in PUBLISHED)):
        row = PUBLISHED.get(each)
        what = f"{row.what}; {row.licence}" if row else "converted from a file of your own"
        print(f"{each:<{width}}  {what}; {'here' if each in here else 'not here'}")


def print_model(name: str) -> None:
    """Print the card of a model, or what is known of a published one; ConfigError for an unknown name."""
    converted = store.converted()
    if name in pretrained.names():
        print(f"{name}: {pretrained.card(name)}")
    elif name in PUBLISHED or name in converted:
        print(name)
        if name in PUBLISHED:
            print(PUBLISHED[name])
        if name in converted:
            print_folder(store.open_folder(store.place(name)))
    else:
        known = tuple(dict.fromkeys((*pretrained.names(), *PUBLISHED, *converted)))
        raise ConfigError(f"pretrained {name}: expected one of {', '.join(known)}. {did_you_mean(name, known)}".rstrip())


def print_folder(folder: store.Folder) -> None:
    """Print what a converted model is."""
    config = folder.config
    weights, source, licence = (config.get(part) or {} for part in ("weights", "source", "licence"))
    lines = {
        "here": f"{shown(folder.path)}, kind {config.get('kind')}, format {config['format']}, {config.get('written_by')}",
        "weights": f"{weights.get('tensors'):,} tensors, {weights.get('numbers'):,} numbers, sha256 {weights['sha256']}",
        "from": "; ".join(f"{file}, sha256 {digest}" for file, digest in (source.get("files") or {}).items()),
        "licence": licence.get("id") or "not stated: ask where the file comes from",
    }
    print("\n".join(f"  {name:<8}  {text}" for name, text in lines.items()))


def convert(source: Path, out: Path | None, **how: str | None) -> None:
    """Convert a checkpoint and print what became of it."""
    print_folder(pretrained.convert(source, out, **how))


def check(path: Path) -> None:
    """Print what a converted folder, a checkpoint or a folder of diffusers holds, every hash compared and nothing of it run.

    Raises:
        WeightsError: it is damaged, or not what its config says.
    """
    if (
        (path / store.TENSORS).is_file()
        and (path / store.CONFIG).is_file()
        and "written_by" in store.read_json(path / store.CONFIG)
    ):
        folder = store.open_folder(path)
        tensors, said = folder.tensors(), folder.config["weights"]
        if len(tensors) != said.get("tensors") or sum(array.size for array in tensors.values()) != said.get("numbers"):
            raise WeightsError(f"{shown(path)}: {len(tensors):,} tensors: expected {said.get('tensors')}, as at the conversion")
        print_folder(folder)
        print(f"{shown(path)}: whole")
        return
    if path.is_file() and path.suffix != ".safetensors":
        found = torchfile.read(path)
        print(f"{shown(path)}: a file of torch, {found.form}, {found.size:,} bytes")
        for entry in found.entries:
            _print_tensors(f"entry {entry or 'the whole'}", found.tensors(entry))
        return
    tensors, facts = read(path)
    _print_tensors(f"{shown(path)}: {facts['kind']}", tensors)


def _print_tensors(what: str, tensors: dict) -> None:
    kinds = ", ".join(sorted({array.dtype.name for array in tensors.values()}))
    print(f"{what}: {len(tensors):,} tensors of {kinds}, {sum(array.size for array in tensors.values()):,} numbers")
