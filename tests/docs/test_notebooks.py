"""The notebooks run from top to bottom, their training cut short, and are stored without outputs."""

import os
import re

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


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    # The kernel is a process of its own: it must see the package that is being tested.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(path, as_version=4)
    # Every cell runs as it is stored, but for the number of training steps: no picture is compared.
    for cell in notebook.cells:
        if cell.cell_type == "code":
            fits = cell.source.count("training.fit(")
            cell.source, changes = re.subn(r"(training\.fit\(.*?\bsteps=)\d[\d_]*", r"\g<1>40", cell.source, flags=re.DOTALL)
            assert changes == fits
    here = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=here).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    text = "".join(output.get("text", "") for output in outputs)
    assert "floor" in text
