"""After a build every page is read as a browser would: markup left as text and files from elsewhere are errors of the build."""

import re
from html.parser import HTMLParser
from pathlib import Path

# Roles, directives, LaTeX and signatures that reached the reader as they are written.
RAW = re.compile(r"(?<!\S)~\w+\.|:(?:class|func|meth|attr|mod|exc|data|obj|math|ref|doc|term):|\.\. [\w-]+::|\\[a-zA-Z]{2,}|\$\$")
ELSEWHERE = re.compile(r"(?:https?:)?//")
LOADED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href",),
    "img": ("src", "srcset"),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href",),
    "video": ("src", "poster"),
}
LITERAL = {"pre", "code", "script", "style", "math"}
PICTURES = 3


class Reader(HTMLParser):
    """Collects the faults and the pictures of a page."""

    def __init__(self):
        super().__init__()
        self.faults, self.pictures, self.depth = [], 0, 0

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.depth += tag in LITERAL
        self.pictures += tag == "img"
        if tag == "cite" or re.search(r"\b(?:problematic|system-message)\b", attrs.get("class") or ""):
            self.faults.append(f"line {self.getpos()[0]}: markup that was not understood, <{tag}>")
        # A link to the page's own address on the web is no file to load.
        loaded = () if tag == "link" and attrs.get("rel") in ("canonical", "next", "prev") else LOADED.get(tag, ())
        for name in loaded:
            if any(ELSEWHERE.match(part) for part in re.split(r"[,\s]+", attrs.get(name) or "")):
                self.faults.append(f"line {self.getpos()[0]}: <{tag}> loads {attrs[name]}")
        self.style(attrs.get("style") or "")

    def handle_endtag(self, tag):
        self.depth -= tag in LITERAL

    def handle_data(self, text):
        if self.depth == 0 and (raw := RAW.search(text)):
            self.faults.append(f"line {self.getpos()[0]}: {raw.group()!r} as text")
        if self.lasttag == "style":
            self.style(text)

    def style(self, text):
        """Faults of CSS."""
        self.faults += [f"style loads {url}" for url in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", text)]


def faults(text, *, css=False, notebook=False):
    """What is wrong with the text of a page or of a style sheet, in words; a notebook has pictures."""
    reader = Reader()
    reader.style(text) if css else reader.feed(text)
    few = [f"{reader.pictures} pictures, of at least {PICTURES}"] if notebook and reader.pictures < PICTURES else []
    # What stands before a colon in the first line of a property's docstring is read as its type.
    types = ["the first sentence of a property has a colon"] if re.search(r'<dt class="field-\w+">Type<', text) else []
    return reader.faults + few + types


def read_everything(app, exception):
    """Report the faults of all that was built."""
    from sphinx.util import logging

    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.outdir)
    for path in sorted([*root.rglob("*.html"), *root.rglob("*.css")]):
        notebook = path.parent == root / "notebooks"
        for fault in faults(path.read_text(encoding="utf-8"), css=path.suffix == ".css", notebook=notebook):
            logging.getLogger(__name__).error("%s: %s", path.relative_to(root), fault)


def setup(app):
    app.connect("build-finished", read_everything)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
