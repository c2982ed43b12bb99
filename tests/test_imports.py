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
    [("flax", "scorelab.models.nets"), ("gin", "scorelab.config"), ("rich", "scorelab.experiment"), ("matplotlib", "scorelab.viz")],
)
def test_a_library_is_known_in_one_place(library, place):
    users = {name for name, others in IMPORTS.items() if any(other.split(".")[0] == library for other in others)}
    assert users
    assert all(name.startswith(place) for name in users), users
