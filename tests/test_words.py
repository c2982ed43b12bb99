"""One word for one thing: names that were replaced are gone, and a score is the gradient of a log-density."""

import io
import itertools
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What had these names is a particle state, an observation, a batch, an event, a running statistic and so on.
REPLACED = {
    "Cloud", "Seen", "Spent", "Moved", "Judged", "Scene", "Health", "Shelf", "Together", "AsIs", "SamplingSpec", "then_clean",
    "chained", "walk.look", "walk.move", "walk.advance", "walk.conclude",
}  # fmt: skip
# What compares samples with data, or writes that down: values of metrics there, and no scores.
COMPARING = ("metrics", "experiment", "run", "config", "pretrained", "data", "viz")
FENCED, CODE = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL), re.compile(r"`([^`\n]+)`")


def source(path):
    """The code of a file: that of pages and notebooks as well."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return "\n".join((*FENCED.findall(text), *CODE.findall(FENCED.sub("", text))))
    if path.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code")
    if path.suffix == ".py":
        # Without comments and strings.
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        return " ".join(token.string for token in tokens if token.type in (tokenize.NAME, tokenize.OP)).replace(" . ", ".")
    return re.sub(r"#.*", "", text)


def names(path):
    """The identifiers of a file, and each with the one before the dot."""
    dotted = re.findall(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", source(path))
    for name in dotted:
        parts = name.split(".")
        yield from parts
        yield from map(".".join, itertools.pairwise(parts))


def files(*places):
    for place in places:
        for path in sorted((ROOT / place).rglob("*")):
            if path.suffix in (".py", ".gin", ".md", ".ipynb") and "_build" not in path.parts and path.is_file():
                yield path


@pytest.mark.parametrize("place", ["scorelab", "experiments", "configs", "docs", "notebooks", "benchmarks"])
def test_replaced_names_are_gone(place):
    left = {(str(path.relative_to(ROOT)), name) for path in files(place) for name in REPLACED.intersection(names(path))}
    assert not left


def test_what_compares_samples_has_metric_values():
    left = {
        (str(path.relative_to(ROOT)), name)
        for path in files(*(f"scorelab/{package}" for package in COMPARING))
        for name in names(path)
        if "score" in name.lower().replace("scorelab", "") and "." not in name
    }
    assert not left


def test_nothing_is_scored():
    # Prose as well: samples are evaluated.
    texts = [*files("scorelab", "configs", "docs", "notebooks"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md"))]
    left = {path.name for path in texts if re.search(r"\b(?:scored|scoring)\b", path.read_text(encoding="utf-8"))}
    assert not left
