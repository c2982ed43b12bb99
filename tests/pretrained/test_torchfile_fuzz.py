"""Files of torch with random damage: each is read or refused with the one error, runs nothing and takes little memory."""

import io
import random
import zipfile

import pytest

from scorelab.errors import WeightsError
from scorelab.pretrained import torchfile
from tests.pretrained import crafted
from tests.pretrained.crafted import FILES
from tests.pretrained.watched import watched

# Ten times what the largest of the files takes undamaged, with its tensors.
MOST, STEPS = 2 << 20, 20_000
NAMES = ("zip.pth", "legacy.pth", "checkpoint.pth", "persistence2.pkl", "persistence4.pkl", "persistence5.pkl")
GOOD = [(FILES / name).read_bytes() for name in NAMES]
# What a pickle can be made to say: names, opcodes that build and call, and lengths that are wrong.
WORDS = [
    b"cos\nsystem\n", b"cbuiltins\neval\n", crafted.text("os") + crafted.text("system") + b"\x93", b"R", b"b", b"\x81", b"Q", b"(",
    b"t", b"\x85", b"s", b"u", b"e", b"a", b"h\x00", b"0", b"2", b"\x82\x01", b"i", b"o", b"\x94", b".", b"\x80\x04", b"N", b"}",
    b"]", b")", b"\xff\xff\xff\x7f", b"\xff" * 8, b"\x00" * 4, b"\x8b\xff\xff\xff\x7f", crafted.ORDERED, b"PK\3\4", b"PK\1\2",
]  # fmt: skip


def damaged(raw, rng):
    """One change of bytes, or a few."""
    data = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 64))
        match rng.randrange(7):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = rng.choice(WORDS)
            case 3:
                word = rng.choice(WORDS)
                data[at : at + len(word)] = word
            case 4:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + length]
            case 5 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 6 if rng.random() < 0.2:
                del data[at:]
    return bytes(data)


def archive_of(raw, rng):
    """An archive whose pickle is damaged and whose checksums are right, or whose members are others."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    chosen = rng.choice([name for name in members if name.endswith(("data.pkl", "data.pkl", "data/0", "byteorder"))])
    members[chosen] = damaged(members[chosen], rng)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def outcome(file):
    """Whether a file was read; anything but a WeightsError is a failure."""
    message = ""
    try:
        found = torchfile.read(file, name="file", steps=STEPS)
        for entry in found.entries:
            found.modules(entry)
            found.tensors(entry)
    except WeightsError as error:
        message = str(error)
    assert not message or message.startswith("file: ")
    return not message


def several(seed, count):
    """How many of so many damaged files are read."""
    rng = random.Random(seed)
    read = 0
    for _ in range(count):
        raw = rng.choice(GOOD)
        file = archive_of(raw, rng) if raw[:2] == b"PK" and rng.random() < 0.7 else damaged(raw, rng)
        with watched(MOST):
            read += outcome(file)
    return read


def test_the_files_are_read_undamaged_with_little_memory():
    for raw in GOOD:
        with watched(MOST // 10):
            assert outcome(raw)


def test_damaged_files():
    # Damage to numbers of a tensor is not seen in the older formats; most of the rest is.
    assert 0 < several(0, 300) < 150


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_damaged_files(seed):
    assert 0 < several(seed, 1000) < 500
