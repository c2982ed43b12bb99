"""The site: ``sphinx-build -W --keep-going -n docs docs/_build/html``."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import scorelab  # noqa: E402

project = "scorelab"
author = copyright = "The scorelab developers"
version = release = scorelab.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "mathml", "model_cards", "public_names", "whole_pages"]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]

# Markdown and notebooks.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# What the notebooks print lies in them; tests/docs/test_notebooks.py holds it to their code.
nb_execution_mode = "off"
nb_merge_streams = True

# The reference. A method is described where its interface is: what an override adds stands in the docstring of its class.
autodoc_default_options = {"members": True, "show-inheritance": True, "special-members": "__call__"}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {name: name for name in ("Array", "BatchTime", "Coefficient", "Key", "Pytree", "Scalar", "Time")}
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The pages load nothing from elsewhere.
html_theme = "furo"
html_title = "scorelab"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
