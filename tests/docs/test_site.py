"""What the site is held to after every build, and what of it needs no build."""

import importlib
import inspect
import pkgutil
import runpy

import pytest

import scorelab

from .blocks import ROOT

faults = runpy.run_path(str(ROOT / "docs" / "_ext" / "whole_pages.py"))["faults"]

GOOD = """
<link rel="stylesheet" href="_static/site.css"><link rel="canonical" href="https://example.org/page">
<script src="_static/doctools.js"></script><style>a { background: url(data:image/png;base64,AA==) }</style>
<p>The solver <a href="https://example.org">Heun</a> is <code>:class:`Heun`</code>, <math><mi>\\sigma</mi></math>.</p>
<pre>r\"\"\":math:`y = \\log x`.\"\"\"</pre><img src="_images/a.png">
"""
BAD = {
    "a role": "<p>See :class:<code>Heun</code>.</p>",
    "a formula's role": "<p>:math:<cite>x</cite></p>",
    "a directive": "<p>.. math:: x = y</p>",
    "a signature": "<dt>f(x: ~jax.Array = &lt;factory&gt;)</dt>",
    "LaTeX": "<p>the noise \\sigma of it</p>",
    "single backticks": "<p>See <cite>Heun</cite>.</p>",
    "a reference without a target": '<p><span class="problematic">`x`_</span></p>',
    "a sentence taken for a type": '<dl><dt class="field-odd">Type<span>:</span></dt><dd>None</dd></dl>',
    "a script": '<script src="https://example.org/mathjax.js"></script>',
    "a style": '<link rel="stylesheet" href="//example.org/a.css">',
    "a picture": '<img src="http://example.org/a.png">',
    "another size of a picture": '<img src="a.png" srcset="b.png 1x, https://example.org/c.png 2x">',
    "a font": "<style>@font-face { src: url('https://example.org/a.woff2') }</style>",
    "an attribute's style": '<p style="background: url(https://example.org/a.png)">x</p>',
}


def test_a_whole_page_has_no_faults():
    assert faults(GOOD) == []


@pytest.mark.parametrize("page", BAD.values(), ids=BAD)
def test_a_broken_page_is_found(page):
    assert faults(GOOD + page)


def test_style_sheets_are_read_and_notebooks_have_pictures():
    assert faults("@import 'https://example.org/a.css';", css=True)
    assert faults("a { color: red }", css=True) == []
    assert faults(GOOD, notebook=True)
    assert faults(GOOD + 2 * '<img src="_images/b.png">', notebook=True) == []


def test_the_tables_of_trained_models_have_a_row_for_each():
    pytest.importorskip("docutils")
    tables = runpy.run_path(str(ROOT / "docs" / "_ext" / "model_cards.py"))["tables"]
    for head, rows in tables():
        assert [row[0] for row in rows] == list(scorelab.pretrained.names())
        assert all(len(row) == len(head) and all(row) for row in rows)


def modules():
    """The modules of the package that a user imports, and what each of them calls public."""
    for found in pkgutil.walk_packages(scorelab.__path__, "scorelab."):
        module = importlib.import_module(found.name)
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield module, getattr(module, "__all__", None)


def test_every_public_name_is_on_a_page_of_the_reference():
    text = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.rst"))
    packages = {module.__name__ for module, names in modules() if names is not None}
    top = {f"scorelab.{name}" for name in scorelab.__all__ if inspect.ismodule(getattr(scorelab, name))}
    assert {name for name in packages | top if f"automodule:: {name}\n" not in text} == set()


def test_every_public_method_says_what_it_does_or_inherits_it():
    silent = [
        f"{module.__name__}.{name}.{method}"
        for module, _ in modules()
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and cls.__module__ == module.__name__ and not name.startswith("_")
        for method, value in vars(cls).items()
        if not method.startswith("_") and (inspect.isfunction(value) or isinstance(value, property | classmethod | staticmethod))
        # The default of a field may be a function, and is no method.
        if method not in getattr(cls, "__dataclass_fields__", {})
        if not inspect.getdoc(getattr(cls, method))
    ]
    assert silent == []
