"""Run notebooks from top to bottom, and keep what they print: ``python notebooks/refresh.py [NAME ...]``.

Without names it runs those whose code is another than the one that was run, or that another version of scorelab ran.
"""

import argparse
import base64
import hashlib
import io
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

import scorelab
from scorelab.files import write_text

HERE = Path(__file__).resolve().parent
# A view of a control is nothing without its kernel; the picture beside it stays.
CONTROLS = "application/vnd.jupyter.widget-view+json"


def notebooks():
    """All of them, by name."""
    return {path.stem: path for path in sorted(HERE.glob("*.ipynb"))}


def code(notebook):
    """Its code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def stamp(notebook):
    """What is written into a notebook that was run: the version that ran it, and the hash of the code that was run."""
    text = "\0".join(cell.source for cell in code(notebook))
    return {"version": scorelab.__version__, "code": hashlib.sha256(text.encode()).hexdigest()}


def fresh(notebook):
    """Whether it shows what its present code printed."""
    return notebook.metadata.get("scorelab") == stamp(notebook)


def small(png):
    """A picture (base64) in 64 colours: a third of the bytes of a cloud of points, and the same to the eye."""
    out = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(64).save(out, "png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def run(path):
    """A notebook with the outputs of its code, run in a kernel of its own that sees this checkout."""
    notebook = nbformat.read(path, as_version=4)
    where = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    # As a reader runs it, whatever the environment of a test is.
    environment = {"JAX_PLATFORMS": "cpu"} | os.environ | {"PYTHONPATH": where, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
        store_widget_state=False,
        record_timing=False,
        coalesce_streams=True,
    ).execute(env=environment)
    for cell in code(notebook):
        cell.outputs = [output for output in cell.outputs if CONTROLS not in output.get("data", {})]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "scorelab": stamp(notebook),
        }
    )
    nbformat.validate(notebook)
    return notebook


def main(arguments=None):
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(notebooks())}")
    names = parser.parse_args(arguments).names
    if unknown := set(names) - set(notebooks()):
        parser.error(f"no notebook {', '.join(sorted(unknown))}: expected some of {', '.join(notebooks())}")
    stale = [name for name, path in notebooks().items() if not fresh(nbformat.read(path, as_version=4))]
    for name in names or stale:
        began = time.monotonic()
        notebook = run(notebooks()[name])
        write_text(notebooks()[name], nbformat.writes(notebook) + "\n")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
