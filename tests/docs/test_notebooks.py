"""The notebooks show what their present code prints; their controls compile nothing; what they name exists."""

import ast
import importlib
import inspect
import itertools
import re
import runpy

import pytest
from jax import monitoring

from .blocks import ROOT
from .test_prose import MOST, sentences, words

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipywidgets")
refresh = runpy.run_path(str(ROOT / "notebooks" / "refresh.py"))
NOTEBOOKS = refresh["notebooks"]()
MOST_BYTES = 600_000


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def printed(cell):
    """What a cell wrote, without its pictures."""
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


# What is stored --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_shows_what_its_present_code_printed(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert refresh["fresh"](notebook), f"run: python notebooks/refresh.py {name}"
    cells = refresh["code"](notebook)
    assert [cell.execution_count for cell in cells] == [1 + i for i in range(len(cells))]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    assert NOTEBOOKS[name].stat().st_size < MOST_BYTES


def test_changed_code_is_not_fresh():
    notebook = read("quickstart")
    refresh["code"](notebook)[-1].source += "\n"
    assert not refresh["fresh"](notebook)
    # Prose may change without running anything.
    notebook = read("quickstart")
    next(cell for cell in notebook.cells if cell.cell_type == "markdown").source += " More."
    assert refresh["fresh"](notebook)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_sentences_are_short(name):
    prose = "\n\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    assert [sentence for sentence in sentences(prose) if words(sentence) > MOST] == []


# What they print is reproduced ------------------------------------------------------------------------------
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.(\d+))?(?:e([-+]\d+))?")


def differences(stored, found, spread):
    """The lines whose words differ, or whose numbers differ by more than ``spread`` and one unit of the last printed digit."""
    wrong = []
    for was, now in itertools.zip_longest(stored.splitlines(), found.splitlines(), fillvalue=""):
        same = NUMBER.sub("#", was) == NUMBER.sub("#", now)
        for a, b in zip(NUMBER.finditer(was), NUMBER.finditer(now), strict=False):
            digit = 10.0 ** (int(a[2] or 0) - len(a[1] or ""))
            same &= abs(float(a[0]) - float(b[0])) <= spread * abs(float(a[0])) + 1.01 * digit
        if not same:
            wrong.append(f"{was!r} was printed, now {now!r}")
    return wrong


def test_what_differs_is_found():
    assert differences("W1 0.50, 3 modes", "W1 0.52, 3 modes", 0.05) == []
    assert differences("error 1.0e-05", "error 1.1e-05", 0.0) == []
    assert len(differences("W1 0.50\nn 30", "W1 0.56\nn 30", 0.05)) == 1
    assert len(differences("error 1.0e-05", "error 1.3e-05", 0.05)) == 1
    assert len(differences("W1 0.50", "W2 0.50", 0.05)) == 1
    assert len(differences("W1 0.50", "W1 0.50\nmore", 0.05)) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_prints_the_same_again(name):
    stored = read(name)
    # The spread is the one that the notebook states to its reader.
    (spread,) = re.findall(r"printed numbers may differ by (\d+) %", stored.cells[0].source)
    before, after = refresh["code"](stored), refresh["code"](refresh["run"](NOTEBOOKS[name]))
    wrong = [line for a, b in zip(before, after, strict=True) for line in differences(printed(a), printed(b), int(spread) / 100)]
    assert not wrong, "\n".join(wrong)
    pictures = [
        [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in cells] for cells in (before, after)
    ]
    assert pictures[0] == pictures[1]


# Controls ---------------------------------------------------------------------------------------------------
# A control of numbers changes leaves; another value of a choice is another program. The first choices are the quickest.
CHOSEN = {
    "samplers": (dict(solver="DPM-Solver++ 2M", steps=5), dict(solver="DDIM", steps=5)),
    "steering": (dict(particles=256), {}),
    "interpolants": ({}, {}),
}
NUMBERS = {
    "samplers": {"noise": (0.35, 1.0), "guidance": (0.0, 2.5)},
    "steering": {"guidance": (1.0, 2.3), "temperature": (0.5, 1.7)},
    "interpolants": {"noise": (0.0, 4.5, 16.0)},
}


@pytest.fixture
def compiled():
    """The programs that JAX compiles, or reads from its cache, from now on."""
    names = []
    record = lambda event, seconds, **_: names.append(event) if event.endswith("backend_compile_duration") else None
    monitoring.register_event_duration_secs_listener(record)
    yield names
    monitoring.unregister_event_duration_listener(record)


class Shown(list):
    """In the place of the notebook's display: the pictures, one after the other."""

    def __call__(self, shown, **_):
        if hasattr(shown, "data"):
            self.append(shown.data)
        return self

    update = __call__


@pytest.mark.parametrize("name", CHOSEN)
def test_controls_of_numbers_redraw_and_compile_nothing(name, compiled):
    scope = {}
    for cell in refresh["code"](read(name)):
        if "redraw" in cell.metadata.get("tags", []):
            exec(compile(cell.source, name, "exec"), scope)
    pictures = scope["display"] = Shown()
    controls, (first, second) = scope["CONTROLS"], CHOSEN[name]
    assert set(controls) == {*first, *NUMBERS[name]}
    for control, value in first.items():
        controls[control].value = value
    scope["connect"](scope["picture"], controls)
    assert len(pictures) == 1
    assert compiled
    for choices in ({}, second):
        for control, value in choices.items():
            controls[control].value = value
        compiled.clear()
        for control, values in NUMBERS[name].items():
            for value in values:
                before = len(pictures)
                controls[control].value = value
                assert controls[control].value == value
                assert len(pictures) == before + 1
                # Another picture: a number that reached nothing would compile nothing either.
                assert pictures[-1] != pictures[-2]
        assert not compiled


# What they name exists --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_cells_parse_and_what_they_import_is_there(name):
    modules, asked = {}, 0
    for cell in refresh["code"](read(name)):
        # Line magics and shell lines belong to the notebook's shell.
        tree = ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in cell.source.splitlines()))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for imported in node.names:
                    modules[imported.asname or imported.name.split(".")[0]] = importlib.import_module(imported.name)
            elif isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for imported in node.names:
                    if not hasattr(module, imported.name):  # a module of the package, then
                        importlib.import_module(f"{node.module}.{imported.name}")
                    modules[imported.asname or imported.name] = getattr(module, imported.name)
        # What is taken from an imported module exists, `sl.solvers.Heun` say.
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and (chain := dotted(node)) and inspect.ismodule(modules.get(chain[0])):
                value = modules[chain[0]]
                for part in chain[1:]:
                    if not inspect.ismodule(value):
                        break
                    assert hasattr(value, part), ".".join(chain)
                    value, asked = getattr(value, part), asked + 1
    assert asked > 5


def dotted(node):
    """The names of ``a.b.c``, or None where it starts with anything but a name."""
    names = []
    while isinstance(node, ast.Attribute):
        names, node = [node.attr, *names], node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None
