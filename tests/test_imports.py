"""Imports go one way, and a few libraries are known in one place."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in (ROOT / "scorelab").rglob("*.py")}


def imported(path):
    """What a file imports anywhere, at its top, inside functions or for types alone: modules, and members as ``module.member``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


IMPORTS = {name: set(imported(path)) for name, path in FILES.items()}


def test_imports_have_no_cycle():
    module = lambda name: name if name in FILES else name.rpartition(".")[0]
    graph = {name: {module(other) for other in others} & FILES.keys() for name, others in IMPORTS.items()}
    assert "scorelab.config" in graph["scorelab.run.pipeline"]
    graphlib.TopologicalSorter(graph).prepare()  # its error names the modules of a cycle


@pytest.mark.parametrize(
    ("library", "place"),
    [
        ("flax", ("scorelab.models.nets", "scorelab.pretrained")),
        ("gin", "scorelab.config"),
        ("rich", "scorelab.experiment"),
        ("matplotlib", "scorelab.viz"),
    ],
)
def test_a_library_is_known_in_one_place(library, place):
    users = {name for name, others in IMPORTS.items() if any(other.split(".")[0] == library for other in others)}
    assert users
    assert all(name.startswith(place) for name in users), users


PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def packages_of(name):
    """The packages and modules right below ``scorelab`` that one of them imports."""
    files = [file for file in FILES if file.split(".")[1:2] == [name]]
    return {other.split(".")[1] for file in files for other in IMPORTS[file] if other.startswith("scorelab.")} - {name}


def test_imports_go_the_way_of_the_architecture_page():
    (block,) = (part for part in PAGE.split("```") if "schedules <-" in part)
    layers = [layer.strip().split(", ") for layer in block.removeprefix("text").split("<-")]
    above = {name: {later for layer in layers[i:] for later in layer} - {name} for i, names in enumerate(layers) for name in names}
    assert len(above) > 20
    assert {name: packages_of(name) & later for name, later in above.items()} == {name: set() for name in above}
    # What stands beside, and below.
    assert not {"walk", "sampling", "solvers", "fk", "experiment"} & (packages_of("data") | packages_of("metrics"))
    assert not packages_of("viz") & {*above, "data", "metrics"}
    below = (
        "arrays", "pytrees", "randomness", "validation", "names", "errors", "warn", "files", "lock", "callbacks", "fingerprints",
        "hosts", "lasting", "allocation",
    )  # fmt: skip
    for name in below:
        assert not packages_of(name) & set(above), name


def test_the_architecture_page_has_every_module():
    there = {name.split(".")[1] for name in FILES if "." in name}
    table = set(PAGE[PAGE.index("## Folders") : PAGE.index("## Decisions")].replace("|", " ").replace(",", " ").split())
    assert {name for name in there if not {f"`{name}/`", f"`{name}.py`"} & table} == set()
