"""Pages that open without a network: text, figures and tables in one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from importlib import resources


def page(title: str, lead: str, sections: Iterable[str]) -> str:
    """A whole page; empty sections are left out."""
    style = (resources.files("scorelab.experiment") / "report.css").read_text(encoding="utf-8")
    title, body = html.escape(title), "".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body><main>"
        f"<header><h1>{title}</h1><p>{html.escape(lead)}</p></header>{body}</main></body></html>\n"
    )


def figure(png: bytes, caption: str) -> str:
    """A picture inside the page, with its caption."""
    data, text = base64.b64encode(png).decode(), html.escape(caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A section of names with what they are; nothing where there are none."""
    rows = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs)
    return f"<section><h2>{html.escape(title)}</h2><dl>{rows}</dl></section>" if rows else ""


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls where it is wider than the screen."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
