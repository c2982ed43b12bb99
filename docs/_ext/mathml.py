"""Formulas as MathML, converted when the site is built: a page needs no script, no font and no network to show them.

A formula that cannot be converted is an error of the build, at the place where it stands.
"""

import re

import math_core
from docutils import nodes
from sphinx.util import logging

logger = logging.getLogger(__name__)
PRIME = re.compile(r"<msup>(<mi>[^<]*</mi>)<mo>([′″‴])</mo></msup>")
converter = math_core.LatexToMathML(fancy_error=False)


def mathml(node, display):
    """The formula of a node; lines of a displayed one are aligned at ``&``."""
    latex = node.astext()
    if display and r"\\" in latex and r"\begin{" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    try:
        text = converter.convert_with_local_state(latex, displaystyle=display)
    except math_core.LatexError as error:
        logger.error("formula %r: %s", latex, error, location=node)
        return ""
    # Chromium draws what is marked as an accent into the letter, and a prime, which is raised already, far above it.
    return PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">\2</mo></mrow>', text.replace(' accent="true"', ""))


def visit_inline(translator, node):
    translator.body.append(mathml(node, display=False))
    raise nodes.SkipNode


def visit_display(translator, node):
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(mathml(node, display=True) + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
