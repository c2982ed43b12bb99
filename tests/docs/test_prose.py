"""Sentences of the pages that a contributor reads are short."""

import re

import pytest

from .blocks import ROOT

MOST = 30
# A cell of a table, an item of a list and a paragraph end a sentence, whether or not a full stop does.
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
BREAK = re.compile(r"\n\s*\n|\n\s*(?:[-*#]|\d+\.)\s|\||\n(?=#)")
# Code and links are one word each, whatever is in them.
CODE, LINK = re.compile(r"`[^`]+`"), re.compile(r"\[([^\[\]]*)\]\([^)]*\)")
END = re.compile(r"(?<=[.!?])[\"')*]*\s+")


def sentences(text):
    text = LINK.sub(r"\1", CODE.sub("code", FENCE.sub("\n\n", text)))
    for part in BREAK.split(text):
        yield from (sentence for sentence in END.split(" ".join(part.split())) if sentence)


def words(sentence):
    return sum(any(character.isalnum() for character in word) for word in sentence.split())


def test_what_counts_as_a_sentence():
    text = (
        "# A title\n\nOne `a. b c` two. Three\nfour?\n\n- five [six seven](there.md), 8 %\n- nine\n\n"
        "```python\nno word. here\n```\n| ten | eleven |\n"
    )
    assert [words(sentence) for sentence in sentences(text)] == [2, 3, 2, 4, 1, 1, 1]


@pytest.mark.parametrize(
    "page",
    [
        "docs/architecture.md",
        "CONTRIBUTING.md",
        "docs/configs.md",
        "docs/data.md",
        "docs/concepts.md",
        "docs/first_hour.md",
        "docs/howto.md",
        "docs/recipes.md",
        "docs/networks.md",
        "docs/interpolants.md",
        "docs/fields.md",
        "docs/coming_from.md",
        "docs/limits.md",
        "docs/scaling.md",
        "docs/precision.md",
        "docs/pretrained.md",
        "docs/reliability.md",
    ],
)
def test_sentences_are_short(page):
    long = [s for s in sentences((ROOT / page).read_text(encoding="utf-8")) if words(s) > MOST]
    assert not long, f"{page} has sentences of more than {MOST} words:\n" + "\n".join(long)
