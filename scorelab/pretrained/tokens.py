r"""The tokenizer of CLIP: from prompts to integers, by the vocabulary and the merges that a published folder has.

Text is composed (NFC), lower-cased and cut into contractions, runs of letters, single digits, and runs of the rest. The bytes of
each piece are merged pairwise, the pair of the lowest rank first, the leftmost of equal ones; its last symbol ends with ``</w>``.

Source: Sennrich et al. (2016), arXiv:1508.07909, on bytes as in Radford et al. (2019); Radford et al. (2021), arXiv:2103.00020.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from scorelab.errors import WeightsError, shown
from scorelab.pretrained.keys import listed
from scorelab.pretrained.store import read_json
from scorelab.validation import require_int

# What Unicode calls white space, which is not what Python does: U+001C to U+001F are none.
_SPACES = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(code) for code in range(0x2000, 0x200B)}
_WHOLE = re.compile(r"(<\|)(startoftext|endoftext)(\|>)|'(?:s|t|re|ve|m|ll|d)")
_START, _END = "<|startoftext|>", "<|endoftext|>"
_ROLES = dict(bos_token=_START, eos_token=_END, unk_token=_END, pad_token=_END)
# More than that is no length of a prompt: what a config says that has none.
_LONGEST = 10_000
# The most tokens that are looked for as they stand: what looks for them takes a second to make.
_ADDED = 10_000
# Numbers of tokens are int32.
_LARGEST = 2**31 - 1


def _bytes() -> dict[int, str]:
    """A printable character for each byte: itself where it is one, and else the next one from U+0100 on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_CHARACTERS = _bytes()


def _kind(character: str) -> str:
    """``L`` for a letter, ``N`` for a number, a space, and ``.`` for the rest."""
    kind = unicodedata.category(character)[0]
    return kind if kind in "LN" else " " if character in _SPACES else "."


def _normal(text: str) -> str:
    """``text`` composed and lower-cased."""
    # Each character by itself: the capital sigma at the end of a word becomes the small one of its middle.
    return "".join(map(str.lower, unicodedata.normalize("NFC", text)))


def pieces(text: str) -> Iterator[str]:
    """The pieces of a prompt that merges stay inside of, lower-cased; white space is between them."""
    text = _normal(text)
    kinds = "".join(map(_kind, text))
    at = 0
    while at < len(text):
        if whole := _WHOLE.match(text, at):
            yield from (part for part in whole.groups() if part) if whole[1] else (whole[0],)
            at = whole.end()
            continue
        end = at + 1
        if (kind := kinds[at]) in "L.":
            while end < len(text) and kinds[end] == kind:
                end += 1
        if kind != " ":
            yield text[at:end]
        at = end


@dataclass(frozen=True, kw_only=True)
class Added:
    """A token that is found in a prompt as it stands, before anything is merged.

    Attributes:
        text: what is looked for.
        id: its number.
        normalised: looked for in composed and lower-cased text.
    """

    text: str
    id: int
    normalised: bool = False


class _Finder:
    """What finds added tokens in a text, made once: of many it is slow to make."""

    def __init__(self, added: Sequence[Added]):
        self.ids = {token.text: token.id for token in added}
        self._pattern = re.compile("(" + "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) + ")")

    def split(self, text: str) -> Iterator[str | int]:
        """The numbers of the tokens, and the text between them; of two at one place the longer one."""
        for part in self._pattern.split(text) if self.ids else [text]:
            if part:
                yield self.ids.get(part, part)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """Prompts to ``(n, length)`` numbers of tokens, as ``CLIPTokenizer`` of transformers makes them.

    Attributes:
        vocab: from symbols to their numbers.
        merges: pairs of symbols that become one, in the order of their rank.
        start: the number before every prompt.
        end: the number after every prompt, also after one that had to be cut.
        pad: the number of what is missing to ``length``: ``end`` in SD 1, and 0 (``!``) in SD 2.
        unknown: the number of a symbol that ``vocab`` has not.
        added: tokens that are found as they stand, at most 10,000. The padding is one, so in SD 2 each ``!`` of a prompt is 0.
        length: of every row.

    Every number is of one text alone, and below 2**31.
    """

    vocab: Mapping[str, int] = field(repr=False)
    merges: Sequence[tuple[str, str]] = field(repr=False)
    start: int
    end: int
    pad: int
    unknown: int
    added: tuple[Added, ...] = ()
    length: int = 77
    _ranks: dict[tuple[str, str], int] = field(init=False, repr=False)
    _found: tuple[_Finder, _Finder] = field(init=False, repr=False)

    def __post_init__(self):
        require_int(self, 3, length=self.length)
        if len(self.added) > _ADDED:
            raise ValueError(f"Tokenizer.added has {len(self.added):,} tokens: expected at most {_ADDED:,}")
        roles = dict(start=self.start, end=self.end, pad=self.pad, unknown=self.unknown)
        numbers = {**self.vocab, **{token.text: token.id for token in self.added}}
        if wrong := [f"{text!r} {number!r}" for text, number in (*roles.items(), *numbers.items()) if not _is_number(number)]:
            raise ValueError(f"Tokenizer with the numbers {listed(wrong)}: expected integers from 0 to {_LARGEST}")
        first: dict[int, str] = {}
        if wrong := [
            f"{other!r} and {text!r}" for text, number in numbers.items() if (other := first.setdefault(number, text)) != text
        ]:
            raise ValueError(f"Tokenizer.vocab and added with one number for {listed(wrong)}: expected a number for each text")
        wrong = [f"{a!r} {b!r}" for a, b in self.merges if not {a, b, a + b} <= self.vocab.keys()]
        if wrong:
            raise ValueError(
                f"Tokenizer.merges with {listed(wrong)}: expected pairs that are in the vocabulary, as is what they become"
            )
        object.__setattr__(self, "_ranks", {pair: rank for rank, pair in enumerate(self.merges)})
        late = [token.normalised for token in self.added]
        split = tuple(
            _Finder([token for token, its in zip(self.added, late, strict=True) if its == which]) for which in (False, True)
        )
        object.__setattr__(self, "_found", split)

    @property
    def most(self) -> int:
        """The largest number that a row can have."""
        return max(self.start, self.end, self.pad, self.unknown, *self.vocab.values(), *(token.id for token in self.added))

    def tokens(self, prompt: str) -> list[int]:
        """The numbers of a prompt, however many, without start and end.

        Raises:
            TypeError: something else than a text.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"Tokenizer got the prompt {prompt!r}: expected a text")
        plain, late = self._found
        found: list[int] = []
        for part in plain.split(prompt):
            for inner in [part] if isinstance(part, int) else late.split(_normal(part)) if late.ids else [part]:
                found += [inner] if isinstance(inner, int) else [id for piece in pieces(inner) for id in self._merged(piece)]
        return found

    def __call__(self, prompts: str | Sequence[str]) -> np.ndarray:
        """Numbers ``(n, length)`` int32 of one prompt or of several: start, what fits, end, padding.

        Raises:
            TypeError: something else than texts.
        """
        if not isinstance(prompts, Sequence):
            raise TypeError(f"Tokenizer got the prompts {prompts!r}: expected a text or several")
        rows = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            row = [self.start, *self.tokens(prompt)[: self.length - 2], self.end]
            rows.append(row + [self.pad] * (self.length - len(row)))
        return np.array(rows, np.int32).reshape(-1, self.length)

    def _merged(self, piece: str) -> list[int]:
        symbols = [_CHARACTERS[byte] for byte in piece.encode("utf-8", "surrogatepass")]
        symbols[-1] += "</w>"
        never = len(self.merges)
        while len(symbols) > 1:
            found = [self._ranks.get(pair, never) for pair in pairwise(symbols)]
            if (least := min(found)) == never:
                break
            at = found.index(least)
            symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
        return [self.vocab.get(symbol, self.unknown) for symbol in symbols]


def _is_number(number: Any) -> bool:
    return type(number) is int and 0 <= number <= _LARGEST


def read(folder: str | Path, *, length: int | None = None) -> Tokenizer:
    """The tokenizer of a published folder: of ``vocab.json`` and ``merges.txt``, or of ``tokenizer.json`` where these are not.

    ``tokenizer_config.json`` and ``special_tokens_map.json`` say which token pads, and which are found as they stand.

    Args:
        folder: where the files lie, such as ``tokenizer`` of Stable Diffusion.
        length: of every row; None for that of the config, or 77.

    Raises:
        WeightsError: a file is missing or damaged, or asks for what this tokenizer has not.
    """
    folder = Path(folder)
    whole = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else {}
    vocab, merges = _vocabulary(folder, whole)
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    if (kind := config.get("tokenizer_class") or "CLIPTokenizer") not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise WeightsError(f"{shown(file)}: tokenizer_class {kind!r}: expected CLIPTokenizer")
    if "added_tokens_decoder" in config:
        said = config["added_tokens_decoder"]
        known = [(token, number) for number, token in said.items()] if isinstance(said, dict) else [(said, None)]
    else:
        # Of a version that had no table of them yet: then the map of special tokens has the last word.
        said = whole.get("added_tokens", [])
        tokens = said if isinstance(said, list) else [said]
        known = [(token, token.get("id") if isinstance(token, dict) else None) for token in tokens]
        file = folder / "special_tokens_map.json"
        config |= read_json(file) if file.is_file() else {}
        file = folder / "added_tokens.json"
        later = read_json(file) if file.is_file() else {}
        special = [_token(folder, role, config[role])[0] for role in _ROLES if config.get(role) is not None]
        known += [(dict(content=text, normalized=text not in special), number) for text, number in later.items()]
    table: dict[str, Added] = {}
    for token, number in known:
        text, normalised = _token(folder, "added token", token)
        table[text] = Added(text=text, id=_number(folder, text, vocab.get(text, number)), normalised=normalised)
    more = []
    for name in ("additional_special_tokens", "extra_special_tokens"):
        if not isinstance(several := config.get(name) or [], list):
            raise WeightsError(f"{shown(folder)}: {name} {several!r}: expected a list of tokens")
        more += several
    if other := [text for token in more if (text := _token(folder, "special token", token)[0]) not in table]:
        raise WeightsError(f"{shown(folder)}: special tokens {listed(other)}: expected them among the added tokens, with a number")
    numbers, named = {}, {}
    for role, default in _ROLES.items():
        text, normalised = _token(folder, role, default if config.get(role) is None else config[role])
        # Of several roles of a token the last one says how it is found.
        named[text] = table.get(text) or Added(text=text, id=_number(folder, text, vocab.get(text)), normalised=normalised)
        numbers[role] = named[text].id
    rows = _length(config.get("model_max_length", 77)) if length is None else length
    try:
        return Tokenizer(
            vocab=vocab, merges=merges, start=numbers["bos_token"], end=numbers["eos_token"], pad=numbers["pad_token"],
            unknown=numbers["unk_token"], added=tuple((table | named).values()), length=rows,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{shown(folder)}: {error}") from error


def _length(said: Any) -> Any:
    """What a config says; 77 for a number that is no length of anything, which stands for none."""
    return 77 if isinstance(said, int | float) and said > _LONGEST else said


def _vocabulary(folder: Path, whole: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Symbols and merges."""
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        vocab: Any = read_json(folder / "vocab.json")
        try:
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        except (OSError, ValueError) as error:
            raise WeightsError(f"{shown(folder / 'merges.txt')}: expected text in UTF-8: {error}") from error
        merges: Any = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    elif isinstance(model := whole.get("model"), dict):
        vocab, merges = model.get("vocab"), model.get("merges")
    else:
        raise WeightsError(f"{shown(folder)}: expected vocab.json and merges.txt, or tokenizer.json")
    if not isinstance(vocab, dict) or not all(type(number) is int and number >= 0 for number in vocab.values()):
        raise WeightsError(f"{shown(folder)}: the vocabulary is no table from symbols to numbers")
    pairs: Any = (
        [tuple(merge.split(" ")) if isinstance(merge, str) else merge for merge in merges] if isinstance(merges, list) else [()]
    )
    is_pair = lambda pair: isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
    wrong = [repr(pair) for pair in pairs if not is_pair(pair)]
    if wrong:
        raise WeightsError(f"{shown(folder)}: merges {listed(wrong)}: expected two symbols each")
    return vocab, [(pair[0], pair[1]) for pair in pairs]


def _token(folder: Path, role: str, token: Any) -> tuple[str, bool]:
    """The text of a token, and whether it is looked for in normalised text."""
    said = token if isinstance(token, dict) else dict(content=token)
    if not isinstance(said.get("content"), str) or not said["content"]:
        raise WeightsError(f"{shown(folder)}: {role} {token!r}: expected a text")
    if wrong := [name for name in ("lstrip", "rstrip", "single_word") if said.get(name)]:
        raise WeightsError(f"{shown(folder)}: {role} {said['content']!r} with {', '.join(wrong)}: expected none of these")
    return said["content"], bool(said.get("normalized", False))


def _number(folder: Path, text: str, number: Any) -> int:
    """The number of a token."""
    # More digits than those of the largest one would only have to be read.
    if not re.fullmatch(r"[0-9]{1,10}", str(number)):
        raise WeightsError(f"{shown(folder)}: the token {text!r} has the number {number!s:.40}: expected one, in the vocabulary")
    return int(number)
