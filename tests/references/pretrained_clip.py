"""Write ``pretrained_clip.npz``, CLIP on tiny configurations with its tokenizer: ``python tests/references/pretrained_clip.py``.

The oracle is transformers (Apache-2.0; made with transformers 5.24.0, tokenizers 0.23.3, torch 2.14.1 and torchvision 0.29.1 on a
CPU, Python 3.11). Weights are drawn, not stored: uniform numbers of NumPy's PCG64 by the names of the tensors; a hash says whether
they are the same. Networks are computed in float64. The vocabulary is learned from the sentences below.
"""

import collections
import hashlib
import itertools
import json
import random
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from safetensors import safe_open
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

FILE = Path(__file__).resolve().parent / "pretrained_clip.npz"
LENGTH = 20
START, END = "<|startoftext|>", "<|endoftext|>"
SENTENCES = """
a photo of a cat sitting on a table in the evening sun
a photograph of an astronaut riding a horse, highly detailed, 4k, trending on artstation
an oil painting of a fox in the style of the old masters
it's the dog's ball, isn't it? they're here, we've seen them, i'll go, i'm done, he'd say
the quick brown fox jumps over the lazy dog; 1234567890 times!
a small red cube on top of a large blue sphere, studio light, isometric, octane render
two people walking along the beach at sunset, watercolor, soft colours, wide shot
une cafetière bleue à côté d'une fenêtre, façon très élégante
ein schönes großes haus über dem fluss
"""
PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "A Photo OF a CAT",
    "  many   spaces\tand\nlines  ",
    "it's the dog's, they're here; we've, I'll, I'm, he'd",
    "rock'n'roll 'tis ''s 'S 'RE",
    "4k 1234 ½ ² Ⅷ ３",
    "hello!! wow! !",
    'semi-colon; comma, (brackets) [x] {y} "quoted"',
    "café Cafe\u0301 naïve façade",
    "ΟΔΥΣΣΕΥΣ İstanbul STRASSE ẞ",
    "日本の猫 の写真",
    "кот на столе",
    "кот!кот",
    "🐈‍⬛ 👍🏽 ❤️",
    "नमस्ते दुनिया",
    "zero\u200bwidth soft\u00adhyphen no\u00a0break\u3000ideographic",
    "bell\x07 null\x00 unit\x1cseparator del\x7f nel\x85next",
    "<|endoftext|>",
    "a <|endoftext|> b",
    "<|STARTOFTEXT|>x<|EndOfText|>!!",
    "<|endoftext|",
    "word<|startoftext|>word",
    "a photo of a cat sitting on a table in the evening sun " * 3,
    "x" * 50,
    "supercalifragilisticexpialidocious",
    "http://a.b/c?d=e&f=g#h",
    "under_score __x__ snake_case",
    "trailing!",
    "\ufeffmark \ufffd replacement",
    "ﬁ ligature ½ cup",
    "100% & $5.00 €3",
    "e\u0301\u0323 q\u0307\u0323",
    "a <cat-toy> on two <CAT-Toy>s",
]


def drawn(shapes):
    """Float32 weights by name: norms about 1, the rest so that activations keep their size."""
    rng = np.random.default_rng(7)
    found = {}
    for name, shape in shapes.items():
        uniform = 2 * rng.random(shape) - 1
        if "norm" in name:
            uniform = (1 if name.endswith("weight") else 0) + 0.3 * uniform
        elif name.endswith("weight"):
            uniform = uniform * (3 / np.prod(shape[1:])) ** 0.5
        else:
            uniform = 0.3 * uniform
        found[name] = np.asarray(uniform, np.float32)
    return found


def vocabulary():
    """Symbols in the order of CLIP: bytes, bytes that end a word, merges, start and end."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in own] + [chr(256 + i) for i in range(256 - len(own))]
    words = []
    for word in SENTENCES.split():
        letters = [characters[[*own, *(byte for byte in range(256) if byte not in own)].index(byte)] for byte in word.encode()]
        words.append([*letters[:-1], letters[-1] + "</w>"])
    merges = []
    while len(merges) < 270:
        # The most frequent pair; of equal ones the last in the alphabet, so that each run learns the same.
        pairs = collections.Counter(pair for word in words for pair in itertools.pairwise(word))
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        for word in words:
            for i in reversed(range(len(word) - 1)):
                if i + 1 < len(word) and (word[i], word[i + 1]) == merges[-1]:
                    word[i : i + 2] = ["".join(merges[-1])]
    symbols = [*characters, *(character + "</w>" for character in characters), *("".join(merge) for merge in merges), START, END]
    symbols = list(dict.fromkeys(symbols))
    return {symbol: i for i, symbol in enumerate(symbols)}, merges


def folders(root, vocab, merges):
    """The files of a tokenizer as SD 1 and SD 2 have them, with a token added, and as transformers 5 saves that of SD 2."""
    token = lambda text, normalised: dict(content=text, lstrip=False, normalized=normalised, rstrip=False, single_word=False)
    named = dict(bos_token=token(START, True), eos_token=token(END, True), unk_token=token(END, True))
    config = dict(
        tokenizer_class="CLIPTokenizer", do_lower_case=True, add_prefix_space=False, errors="replace", model_max_length=LENGTH
    )
    found = {}
    files = {
        "vocab.json": json.dumps(vocab),
        "merges.txt": "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges),
    }
    for name, pad in dict(sd1=END, sd2="!").items():
        # The padding of the config has no effect: while there is no table of added tokens, the map has the last word.
        found[name] = files | {
            "special_tokens_map.json": json.dumps(named | dict(pad_token=pad)),
            "tokenizer_config.json": json.dumps(config | named | dict(pad_token=END)),
        }
    # A token that was learned later, as textual inversion has it.
    found["added"] = found["sd1"] | {"added_tokens.json": json.dumps({"<cat-toy>": len(vocab)})}
    for name, its in found.items():
        (root / name).mkdir()
        for file, text in its.items():
            (root / name / file).write_text(text, encoding="utf-8")
    transformers.CLIPTokenizer.from_pretrained(root / "sd2").save_pretrained(root / "saved")
    found["saved"] = {path.name: path.read_text(encoding="utf-8") for path in sorted((root / "saved").iterdir())}
    return found


def scanned(count=1200):
    """Characters of every kind that Unicode 14 has, ten to a prompt."""
    rng = random.Random(3)
    pool = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code)) != "Cn"]
    return ["".join(rng.choice(pool) for _ in range(10)) for _ in range(count // 10)]


def tokens(out):
    """Part of the file; the tokenizer of SD 1 and the vocabulary."""
    vocab, merges = vocabulary()
    with tempfile.TemporaryDirectory() as root:
        files = folders(Path(root), vocab, merges)
        scan = scanned()
        for name, its in files.items():
            oracle = transformers.CLIPTokenizer.from_pretrained(Path(root) / name)
            rows = oracle(PROMPTS, padding="max_length", truncation=True, max_length=LENGTH).input_ids
            whole = [oracle(prompt, add_special_tokens=False).input_ids for prompt in scan]
            own = {file: text for file, text in its.items() if file not in ("vocab.json", "merges.txt")}
            out |= {
                f"tokens/{name}/files": np.array(json.dumps(own, ensure_ascii=False)),
                f"tokens/{name}/ids": np.array(rows, np.int16),
                f"tokens/{name}/scan": np.array([id for row in whole for id in row], np.int16),
            }
    out |= {
        "tokens/prompts": np.array(json.dumps(PROMPTS)),
        "tokens/scan": np.array(json.dumps(scan)),
        "tokens/vocab": np.array(json.dumps(vocab)),
        "tokens/merges": np.array(files["sd1"]["merges.txt"]),
    }
    return vocab, out["tokens/sd1/ids"]


def images(out):
    """Part of the file: the preprocessing of bytes, and the same without rounding."""
    rng = np.random.default_rng(5)
    for name, (height, width) in dict(wide=(30, 47), high=(34, 20), small=(9, 9), exact=(16, 16)).items():
        smooth = rng.random((1, 3, height // 4 + 2, width // 4 + 2))
        image = torch.nn.functional.interpolate(torch.tensor(smooth), (height, width), mode="bicubic").clip(0, 1)
        image = (255 * image[0]).round().to(torch.uint8)
        out[f"images/{name}"] = image.permute(1, 2, 0).numpy()
        for kind, processor in dict(torchvision=CLIPImageProcessor, pil=CLIPImageProcessorPil).items():
            given = dict(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
            seen = processor(**given)(images=[image.permute(1, 2, 0).numpy()], return_tensors="np").pixel_values[0]
            out[f"images/{name}/{kind}"] = np.moveaxis(seen, 0, -1).astype(np.float32)
        short = min(height, width)
        high, wide = 16 * height // short, 16 * width // short
        plain = torch.nn.functional.interpolate(image[None].double() / 255, (high, wide), mode="bicubic", antialias=True)[0]
        top, left = (high - 16) // 2, (wide - 16) // 2
        out[f"images/{name}/plain"] = np.moveaxis(plain[:, top : top + 16, left : left + 16].numpy(), 0, -1)


def models(vocab):
    """Class and config of each case. The table has two more rows than the vocabulary: tokens that were added later."""
    text = dict(
        vocab_size=len(vocab) + 2, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=LENGTH, bos_token_id=vocab[START], projection_dim=12,
    )  # fmt: skip
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        projection_dim=12,
    )
    quick, gelu = dict(hidden_act="quick_gelu"), dict(hidden_act="gelu")
    both = dict(
        text_config=text | quick | dict(eos_token_id=vocab[END]),
        vision_config=vision | quick | dict(num_hidden_layers=1),
        projection_dim=12,
    )
    return {
        "text_quick": (transformers.CLIPTextModelWithProjection, transformers.CLIPTextConfig(**text, **quick, eos_token_id=2)),
        "text_gelu": (transformers.CLIPTextModel, transformers.CLIPTextConfig(**text, **gelu, eos_token_id=vocab[END])),
        "vision": (transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**vision, **gelu)),
        "both": (transformers.CLIPModel, transformers.CLIPConfig(**both)),
    }


def networks(out, vocab, rows):
    """Part of the file: outputs and gradients of the networks."""
    rng = np.random.default_rng(8)
    ids = rows[[0, 2, 5, PROMPTS.index(max(PROMPTS, key=len))]].astype(np.int64)
    # A token that was added after the end token, at a place before the end.
    ids[1, 2] = len(vocab) + 1
    pixels = rng.standard_normal((2, 3, 16, 16))
    out |= dict(ids=ids.astype(np.int32), pixels=np.moveaxis(pixels, 1, -1))
    for case, (kind, config) in models(vocab).items():
        config._attn_implementation = "sdpa"
        net = kind(config).double().eval()
        shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        weights = drawn(shapes)
        net.load_state_dict({name: torch.tensor(value).double() for name, value in weights.items()})
        with tempfile.TemporaryDirectory() as folder:
            net.save_pretrained(folder)
            with safe_open(Path(folder) / "model.safetensors", "np") as file:
                saved = sorted(file.keys())
            said = json.loads((Path(folder) / "config.json").read_text())
        given = torch.tensor(pixels, requires_grad=True)
        if case == "both":
            found = net(input_ids=torch.tensor(ids), pixel_values=given)
            parts = dict(logits=found.logits_per_image, texts=found.text_embeds, images=found.image_embeds)
        elif case == "vision":
            found = net(given)
            pooled = net.vision_model(given).pooler_output
            parts = dict(last=found.last_hidden_state, pooled=pooled, projected=found.image_embeds)
        else:
            tower = getattr(net, "text_model", net)
            states = []
            hook = tower.encoder.layers[-2].register_forward_hook(lambda module, inputs, output: states.append(output))
            found = tower(torch.tensor(ids), output_hidden_states=True)
            hook.remove()
            assert torch.equal(found.hidden_states[-2], states[0])
            parts = dict(last=found.last_hidden_state, penultimate=states[0], pooled=found.pooler_output)
            if case == "text_quick":
                parts["projected"] = net(torch.tensor(ids)).text_embeds
        cotangents = {
            name: rng.standard_normal(tuple(part.shape)) for name, part in parts.items() if name in ("last", "pooled", "logits")
        }
        sum((torch.tensor(cotangents[name]) * parts[name]).sum() for name in cotangents).backward()
        # Towards the weights themselves, of which one number is left.
        along = sum(float((value.grad * value.detach()).sum()) for value in net.parameters() if value.grad is not None)
        digest = hashlib.sha256(b"".join(value.tobytes() for value in weights.values())).hexdigest()
        info = dict(config=said, shapes=shapes, saved=saved, sha256=digest)
        out |= {f"{case}/info": np.array(json.dumps(info)), f"{case}/along": np.array(along)}
        out |= {f"{case}/{name}": part.detach().numpy() for name, part in parts.items()}
        out |= {f"{case}/cotangent/{name}": value for name, value in cotangents.items()}
        if given.grad is not None:
            out[f"{case}/gradient"] = np.moveaxis(given.grad.numpy(), 1, -1)


# As published: the text encoders of SD 1 and SD 2, and OpenAI's CLIP with patches of 14 and 32.
_LARGE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
SIZES = {
    "sd1": (transformers.CLIPTextModel, transformers.CLIPTextConfig(**_LARGE)),
    "sd2": (
        transformers.CLIPTextModel,
        transformers.CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
    ),
    "clip-vit-large-patch14": (
        transformers.CLIPModel,
        transformers.CLIPConfig(
            text_config=_LARGE,
            vision_config=dict(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
            ),
            projection_dim=768,
        ),
    ),
    "clip-vit-base-patch32": (transformers.CLIPModel, transformers.CLIPConfig()),
}


def sizes(out):
    """Part of the file: for published sizes the number of parameters, and a hash of names and shapes."""
    for name, (kind, config) in SIZES.items():
        with torch.device("meta"):
            state = kind(config).state_dict()
        lines = sorted(f"{key} {tuple(value.shape)}" for key, value in state.items())
        count = sum(value.numel() for value in state.values())
        found = dict(parameters=count, sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(), config=config.to_dict())
        out[f"sizes/{name}"] = np.array(json.dumps(found, default=str))


def main():
    out = dict(versions=np.array([transformers.__version__, tokenizers.__version__, torch.__version__, np.__version__]))
    vocab, rows = tokens(out)
    images(out)
    networks(out, vocab, rows)
    sizes(out)
    np.savez_compressed(FILE, **out)


if __name__ == "__main__":
    main()
