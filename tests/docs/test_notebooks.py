"""The notebooks are stored without outputs, and what they name exists; the build of the site runs them."""

import ast
import importlib
import inspect

import pytest

from .blocks import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None
            assert not cell.outputs


def code_of(path):
    nbformat = pytest.importorskip("nbformat")
    return [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_code_cells_parse_and_what_they_import_is_there(path):
    modules, asked = {}, 0
    for source in code_of(path):
        # Line magics and shell lines belong to the notebook's shell.
        tree = ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines()))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for name in node.names:
                    modules[name.asname or name.name.split(".")[0]] = importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    if not hasattr(module, name.name):  # a module of the package, then
                        importlib.import_module(f"{node.module}.{name.name}")
                    modules[name.asname or name.name] = getattr(module, name.name)
        # What is taken from an imported module exists, `sl.solvers.Heun` say.
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (chain := dotted(node)) and inspect.ismodule(modules.get(chain[0])):
                value = modules[chain[0]]
                for name in chain[1:]:
                    if not inspect.ismodule(value):
                        break
                    assert hasattr(value, name), ".".join(chain)
                    value, asked = getattr(value, name), asked + 1
    assert asked > 5


def dotted(node):
    """The names of ``a.b.c``, or None where it starts with anything but a name."""
    names = []
    while isinstance(node, ast.Attribute):
        names, node = [node.attr, *names], node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None
