"""``scorelab pretrained``: trained models that the package carries, and published ones that were converted on this machine."""

from __future__ import annotations

import json
from pathlib import Path

from scorelab import pretrained
from scorelab.errors import ConfigError, WeightsError, shown
from scorelab.metrics.smallcnn import WEIGHTS
from scorelab.names import did_you_mean
from scorelab.pretrained import conversion, kinds, store, torchfile
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
    print("\npublished checkpoints, scorelab pretrained show NAME")
    here = store.converted()
    width = max(map(len, (*PUBLISHED, *here)))
    for each in (*PUBLISHED, *(name for name in here if name not in PUBLISHED)):
        row = PUBLISHED.get(each)
        what = f"{row.what}; {row.licence}" if row else "converted from a file of your own"
        print(f"{each:<{width}}  {what}; {'here' if each in here else 'not here'}")


def print_model(name: str) -> None:
    """Print the card of a model, or what is known of a published or a converted one; ConfigError for what is none of them."""
    if name in pretrained.names():
        print(f"{name}: {pretrained.card(name)}")
        return
    found = store.find(name)
    if name not in PUBLISHED and found is None:
        known = (*pretrained.names(), *PUBLISHED, *store.converted())
        raise ConfigError(
            f"pretrained show {name}: expected one of {', '.join(pretrained.names())}, another one that scorelab pretrained list "
            f"has, or the folder of a converted model. {did_you_mean(name, known)}".rstrip()
        )
    print(name)
    if name in PUBLISHED:
        print(PUBLISHED[name])
    if found is not None:
        print_folder(store.open_any(found))


def print_folder(folder: store.Folder | store.Pipeline) -> None:
    """Print what a converted model or pipeline is."""
    config = folder.config
    source, licence = (config.get(part) or {} for part in ("source", "licence"))
    if isinstance(folder, store.Pipeline):
        weights = [_weights(part.config["weights"], f"{name}: {kinds.class_of(part)}, ") for name, part in folder.parts.items()]
    else:
        weights = [_weights(config["weights"])]
    lines = [
        ("here", f"{shown(folder.path)}, kind {config.get('kind')}, format {config['format']}, {config.get('written_by')}"),
        *(("weights", each) for each in weights),
        *(("from", f"{file}, sha256 {digest}") for file, digest in (source.get("files") or {}).items()),
        *((("commit", source["revision"]),) if source.get("revision") else ()),
        ("licence", licence.get("id") or "not stated: ask where the file comes from"),
    ]
    print("\n".join(f"  {name:<8}  {text}" for name, text in lines))


def _weights(said: dict, before: str = "") -> str:
    return f"{before}{said.get('tensors'):,} tensors, {said.get('numbers'):,} numbers, sha256 {said['sha256']}"


def fetch(name: str, out: Path | None, *, revision: str | None) -> None:
    """Download a published checkpoint, convert it and print what became of it."""
    print_folder(pretrained.fetch(name, out, revision=revision))


def convert(source: Path, out: Path | None, **how: str | None) -> None:
    """Convert a checkpoint and print what became of it."""
    print_folder(pretrained.convert(source, out, **how))


def check(path: Path) -> None:
    """Print what a converted folder, a checkpoint or a folder of diffusers holds, every hash compared and nothing of it run.

    Raises:
        WeightsError: it is damaged, or not what its config says.
    """
    if store.is_converted(path):
        found = store.open_any(path)
        for folder in found.parts.values() if isinstance(found, store.Pipeline) else (found,):
            tensors, said = folder.tensors(), folder.config["weights"]
            if len(tensors) != said.get("tensors") or sum(array.size for array in tensors.values()) != said.get("numbers"):
                raise WeightsError(
                    f"{shown(folder.path)}: {len(tensors):,} tensors: expected {said.get('tensors')}, as at the conversion"
                )
        print_folder(found)
        print(f"{shown(path)}: whole")
        return
    if path.is_file() and path.suffix != ".safetensors":
        found = torchfile.read(path)
        print(f"{shown(path)}: a file of torch, {found.form}, {found.size:,} bytes")
        for entry in found.entries:
            _print_tensors(f"entry {entry or 'the whole'}", found.tensors(entry))
        return
    if (path / conversion.INDEX).is_file():
        models, copied, left_out = conversion.parts(path)
        for name, place in models.items():
            tensors, facts = conversion.read_model(place)
            _print_tensors(f"{name}: {facts['kind']}", tensors)
        print(
            f"{shown(path)}: a pipeline, with {', '.join(copied) or 'nothing'} beside, without {', '.join(left_out) or 'nothing'}"
        )
        return
    tensors, facts = conversion.read(path)
    _print_tensors(f"{shown(path)}: {facts['kind']}", tensors)


def _print_tensors(what: str, tensors: dict) -> None:
    kinds = ", ".join(sorted({array.dtype.name for array in tensors.values()}))
    print(f"{what}: {len(tensors):,} tensors of {kinds}, {sum(array.size for array in tensors.values()):,} numbers")
