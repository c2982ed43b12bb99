"""Numbers of tokens are those of transformers, with a vocabulary that its script has learned."""

import json

import numpy as np
import pytest

from scorelab.errors import WeightsError
from scorelab.pretrained import tokens
from tests.pretrained.crafted import FILES

STORED = np.load(FILES.parent / "pretrained_clip.npz")
PROMPTS, SCAN = (json.loads(str(STORED[f"tokens/{name}"])) for name in ("prompts", "scan"))
VOCAB = json.loads(str(STORED["tokens/vocab"]))
START, END = VOCAB["<|startoftext|>"], VOCAB["<|endoftext|>"]


def written(folder, name, **other):
    """The folder of a tokenizer; ``other`` files replace its own, and are left out where they are None."""
    files = json.loads(str(STORED[f"tokens/{name}/files"]))
    if "tokenizer.json" not in files:
        files |= {"vocab.json": json.dumps(VOCAB), "merges.txt": str(STORED["tokens/merges"])}
    folder.mkdir(exist_ok=True)
    for file, text in (files | {key.replace("__", "."): value for key, value in other.items()}).items():
        if text is not None:
            (folder / file).write_text(text, encoding="utf-8")
    return folder


# The padding of SD 1 is the end token, that of SD 2 is `!`; the last is what transformers 5 saves of that.
@pytest.mark.parametrize("name", ["sd1", "added", "sd2", "saved"])
def test_numbers_are_those_of_the_oracle(name, tmp_path):
    found = tokens.read(written(tmp_path / name, name))
    rows = found(PROMPTS)
    assert rows.dtype == np.int32
    wanted = STORED[f"tokens/{name}/ids"]
    assert [PROMPTS[i] for i in np.flatnonzero((rows != wanted).any(1))] == []
    # Characters of all kinds, ten to a prompt.
    assert [number for prompt in SCAN for number in found.tokens(prompt)] == STORED[f"tokens/{name}/scan"].tolist()


def test_a_row_begins_ends_and_is_filled(tmp_path):
    one, two = (tokens.read(written(tmp_path / name, name)) for name in ("sd1", "sd2"))
    assert one("").tolist() == [[START, END] + [END] * 18]
    assert two("").tolist() == [[START, END] + [0] * 18]
    long = one("a photo of a cat " * 30)
    # The end is kept where a prompt is cut: without it there would be nothing to pool.
    assert long[0, -1] == END
    assert END not in long[0, :-1]
    assert one([]).shape == (0, 20)
    # A padding that is a token is found in prompts too.
    assert [found.tokens("wow!").count(0) for found in (one, two)] == [0, 1]
    assert tokens.read(tmp_path / "sd1", length=77)("a cat").shape == (1, 77)


def test_the_pair_of_the_lowest_rank_is_merged_first_and_the_leftmost_of_equal_ones():
    def merged(*merges, text="aaa"):
        symbols = ["a", "b", "a</w>", "b</w>", *("".join(merge) for merge in merges)]
        vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
        names = {i: symbol for symbol, i in vocab.items()}
        made = tokens.Tokenizer(vocab=vocab, merges=merges, start=0, end=0, pad=0, unknown=1)
        return [names[i] for i in made.tokens(text)]

    assert merged(("a", "a")) == ["aa", "a</w>"]
    assert merged(("a", "a</w>"), ("a", "a")) == ["a", "aa</w>"]
    assert merged(("aa", "a</w>"), ("a", "a")) == ["aaa</w>"]
    # What a merge makes is merged on before the same merge elsewhere: (ab, a) comes between two of (a, b).
    assert merged(("ab", "a"), ("a", "b"), ("b", "a"), text="ababa") == ["aba", "b", "a</w>"]
    # A symbol that is not in the vocabulary.
    assert merged(("a", "a"), text="acb") == ["a", "b", "b</w>"]


def test_settings_come_from_where_transformers_looks(tmp_path):
    config = json.loads(json.loads(str(STORED["tokens/sd2/files"]))["tokenizer_config.json"])
    assert config["pad_token"] == "<|endoftext|>"
    # With a table of added tokens in the config, the map of special tokens is not read.
    table = {str(number): dict(content=text, normalized=False) for text, number in (("<|endoftext|>", END), ("zebra7", END + 1))}
    changed = json.dumps(config | dict(added_tokens_decoder=table, model_max_length=10**30))
    found = tokens.read(written(tmp_path / "a", "sd2", tokenizer_config__json=changed))
    assert (found.pad, found.length) == (END, 77)
    assert found.tokens("a zebra7s")[1:2] == [END + 1] == [found.most]
    # Nothing but the vocabulary: what CLIP has.
    bare = tokens.read(written(tmp_path / "b", "sd1", tokenizer_config__json=None, special_tokens_map__json=None))
    assert (bare.start, bare.end, bare.pad, bare.length) == (START, END, END, 77)


TOKEN = dict(content="!", lstrip=False, rstrip=False, normalized=False, single_word=False)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (dict(vocab__json=None), "expected vocab.json and merges.txt, or tokenizer.json"),
        (dict(vocab__json="[]"), "expected a JSON object"),
        (dict(vocab__json='{"a": "b"}'), "no table from symbols to numbers"),
        (dict(vocab__json='{"a": 0}'), r"Tokenizer.merges with|has the number None"),
        (dict(merges__txt="#version: 0.2\na b c\n"), r"merges \('a', 'b', 'c'\): expected two symbols each"),
        (dict(merges__txt="#version: 0.2\nä ö\n"), "expected pairs that are in the vocabulary"),
        (dict(tokenizer_config__json='{"tokenizer_class": "T5Tokenizer"}'), "'T5Tokenizer': expected CLIPTokenizer"),
        (dict(special_tokens_map__json='{"pad_token": "<pad>"}'), "'<pad>' has the number None"),
        (dict(special_tokens_map__json='{"pad_token": 3}'), "pad_token 3: expected a text"),
        (dict(special_tokens_map__json=json.dumps(dict(pad_token=TOKEN | dict(lstrip=True)))), "'!' with lstrip: expected none"),
        (dict(tokenizer_config__json='{"model_max_length": 2}'), "length = 2"),
        (dict(added_tokens__json='{"<x>": -1}'), "'<x>' has the number -1"),
        (dict(added_tokens__json=json.dumps({"<x>": "9" * 5000})), "'<x>' has the number 9999"),
        (dict(added_tokens__json='{"<x>": 4294967296}'), "numbers '<x>' 4294967296: expected integers from 0 to 2147483647"),
        (
            dict(added_tokens__json=json.dumps({"<x>": START})),
            r"one number for '<\|startoftext\|>' and '<x>': expected a number for",
        ),
        (dict(added_tokens__json=json.dumps({f"<{i}>": 6000 + i for i in range(10_001)})), "tokens: expected at most 10,000"),
        (dict(vocab__json=json.dumps(VOCAB | {"a": 2**40})), "numbers 'a' 1099511627776: expected integers"),
        (dict(vocab__json=json.dumps(dict.fromkeys(VOCAB, 0))), "with one number for .* more: expected a number for each text"),
        (dict(special_tokens_map__json='{"additional_special_tokens": 5}'), "additional_special_tokens 5: expected a list"),
        (dict(special_tokens_map__json='{"additional_special_tokens": "ab"}'), "additional_special_tokens 'ab': expected a list"),
        (dict(tokenizer_config__json='{"extra_special_tokens": {"a": "b"}}'), "extra_special_tokens {'a': 'b'}: expected a list"),
        (
            dict(special_tokens_map__json='{"additional_special_tokens": ["<y>"]}'),
            "special tokens <y>: expected them among the added",
        ),
    ],
)
def test_files_that_are_no_tokenizer_are_refused(files, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        tokens.read(written(tmp_path / "bad", "sd1", **files))


@pytest.mark.parametrize("merge", [5, None, ["a", 5], ["a"]])
def test_merges_are_pairs_of_texts(merge, tmp_path):
    model = json.loads(json.loads(str(STORED["tokens/saved/files"]))["tokenizer.json"])
    model["model"]["merges"] = [merge]
    with pytest.raises(WeightsError, match=r"merges .*: expected two symbols each"):
        tokens.read(written(tmp_path / "bad", "saved", tokenizer__json=json.dumps(model)))


def test_added_tokens_are_looked_for_by_what_was_made_once(tmp_path, monkeypatch):
    more = {f"<{i}>": 6000 + i for i in range(3)}
    found = tokens.read(written(tmp_path / "sd1", "sd1", added_tokens__json=json.dumps(more)))
    monkeypatch.setattr(tokens.re, "compile", None)
    monkeypatch.setattr(tokens.re, "split", None)
    assert found.tokens("<2><0> <1>") == [6002, 6000, 6001]


def test_prompts_are_texts(tmp_path):
    found = tokens.read(written(tmp_path / "sd1", "sd1"))
    for prompts, message in ((3, "prompts 3"), (["a", 3], "prompt 3"), (b"a cat", "prompt 97"), (None, "prompts None")):
        with pytest.raises(TypeError, match=f"Tokenizer got the {message}: expected a text"):
            found(prompts)
