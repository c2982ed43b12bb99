"""The code blocks of the Markdown files."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """The blocks of ``language`` in a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [body for kind, body in BLOCK.findall(text) if kind == language]


def named(page):
    """The blocks that open with ``# file.name``, by file name."""
    found = {}
    for body in blocks(page, "python"):
        first = re.match(r"# ([\w.]+\.(?:py|gin))\n", body)
        if first:
            found[first.group(1)] = body
    return found
