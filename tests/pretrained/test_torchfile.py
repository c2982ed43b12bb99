"""Files of torch are read as data: what torch wrote comes back bit by bit, and nothing else is let in."""

import os

import numpy as np
import pytest

from scorelab.errors import WeightsError
from scorelab.pretrained import torchfile
from tests.pretrained import crafted
from tests.pretrained.crafted import FILES
from tests.pretrained.watched import watched

EXPECTED = np.load(FILES / "expected.npz")
# The largest of the crafted files claims to be 16 MB when unpacked, and some would take all memory there is.
MOST = 12 << 20


def expected(part):
    return {name.removeprefix(f"{part}/"): EXPECTED[name] for name in EXPECTED.files if name.startswith(f"{part}/")}


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, array in found.items():
        bits = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
        assert (bits.dtype, bits.shape) == (wanted[name].dtype, wanted[name].shape), name
        assert bits.tobytes() == wanted[name].tobytes(), name
        assert not array.flags.writeable


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_every_type_and_stride_that_torch_saved(form):
    file = torchfile.read(FILES / f"{form}.pth")
    assert (file.form, file.entries) == (form, {"": len(expected("tensors"))})
    same(file.tensors(), expected("tensors"))
    # bfloat16 is that, and not its bits: 16 of them, with the exponent of float32.
    bits = expected("tensors")["bfloat16"].astype(np.uint32) << 16
    assert np.array_equal(file.tensors()["bfloat16"].astype(np.float32), bits.view(np.float32))


def test_tied_tensors_share_their_memory():
    found = torchfile.read(FILES / "zip.pth").tensors()
    assert np.shares_memory(found["contiguous"], found["tied"])
    assert not np.shares_memory(found["contiguous"], found["float64"])


def test_a_checkpoint_of_a_training_has_entries():
    file = torchfile.read(FILES / "checkpoint.pth")
    assert file.entries == {"state_dict": 7, "optimizer": 12}
    same(file.tensors("state_dict"), expected("state_dict"))
    assert "state.0.exp_avg" in file.tensors("optimizer")
    with pytest.raises(WeightsError, match=r"2 entries with tensors .'state_dict', 'optimizer'.: expected a choice of one"):
        file.tensors()
    with pytest.raises(WeightsError, match="no entry 'model' with tensors: expected 'state_dict', 'optimizer'"):
        file.tensors("model")
    assert file.modules("state_dict") == {}


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_modules_is_its_state_dict_and_its_arguments(protocol):
    file = torchfile.read(FILES / f"persistence{protocol}.pkl")
    assert file.form == "persistence"
    same(file.tensors(), expected("ema"))
    assert list(file.tensors("augment_pipe")) == ["wavelet"]
    modules = file.modules()
    assert list(modules) == ["", "model"]
    assert modules[""]["type"] == "EDMPrecond"
    assert modules[""]["attributes"]["sigma_max"] == "inf"
    assert modules["model"]["kwargs"] == dict(img_resolution=8, channel_mult=[1, 2], dropout=0.125)


@pytest.mark.parametrize(("order", "wanted"), [("C", [[0, 1, 2], [3, 4, 5]]), ("F", [[0, 2, 4], [1, 3, 5]])])
def test_arrays_among_arguments_are_lists(order, wanted):
    dtype = crafted.call(crafted.named("numpy", "dtype"), crafted.text("i8"), b"\x89", b"\x88")
    shape = crafted.tupled(crafted.number(2), crafted.number(3))
    parts = crafted.blob(np.arange(6, dtype="<i8").tobytes()), dtype, shape, crafted.text(order)
    array = crafted.call(crafted.named("numpy._core.numeric", "_frombuffer"), *parts)
    weight = crafted.tensor(of=crafted.nested())
    state = crafted.dictionary(_parameters=crafted.dictionary(weight=weight), _init_kwargs=crafted.dictionary(a=array))
    file = torchfile.read(crafted.program(crafted.dictionary(ema=crafted.persistent(state=state)), 4))
    assert file.modules()[""]["kwargs"] == dict(a=wanted)


def test_the_archive_is_read_with_any_folder_and_without_its_byte_order():
    # As torch before 2.1 wrote it.
    file = crafted.archive(
        crafted.state_dict(crafted.tensor((2, 2), (2, 1))), {"0": np.arange(4, dtype="<f4").tobytes()}, root="x-1"
    )
    assert np.array_equal(torchfile.read(file).tensors()["w0"], [[0, 1], [2, 3]])
    assert file.count(b"x-1/byteorder") == 2
    older = file.replace(b"x-1/byteorder", b"x-1/other____")
    assert np.array_equal(torchfile.read(older).tensors()["w0"], [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    ("size", "stride"), [((4,), (1,)), ((1, 4), (2**62, 1)), ((2, 1, 2), (2, 7, 1)), ((0, 3), (3, 1)), ((), ())]
)
def test_strides_of_axes_of_one_are_not_used(size, stride):
    file = crafted.archive(crafted.state_dict(crafted.tensor(size, stride)), {"0": np.arange(4, dtype="<f4").tobytes()})
    found = torchfile.read(file).tensors()["w0"]
    assert np.array_equal(found, np.arange(4.0)[: found.size].reshape(size))


@pytest.mark.parametrize("path", [True, False])
def test_size_and_steps_are_bounded(path, tmp_path):
    raw = (FILES / "zip.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(raw)
    source = tmp_path / "x.pth" if path else raw
    torchfile.read(source, limit=len(raw))
    with pytest.raises(WeightsError, match=rf"{len(raw):,} bytes: expected at most {len(raw) - 1:,}"):
        torchfile.read(source, limit=len(raw) - 1)
    with pytest.raises(WeightsError, match="more than 100 opcodes"):
        torchfile.read(source, steps=100)


def test_an_empty_file_and_none(tmp_path):
    (tmp_path / "x.pth").touch()
    with pytest.raises(WeightsError, match=r"x\.pth: an empty file"):
        torchfile.read(tmp_path / "x.pth")
    with pytest.raises(FileNotFoundError):
        torchfile.read(tmp_path / "y.pth")
    with pytest.raises(TypeError, match=r"torchfile\.read\.source = None: expected a path or bytes"):
        torchfile.read(None)
    with pytest.raises(ValueError, match=r"torchfile\.read\.limit = -1"):
        torchfile.read(tmp_path / "x.pth", limit=-1)


CASES = list(crafted.malicious("CANARY"))


def test_the_crafted_files_are_many():
    assert len({name for name, _, _ in CASES}) == len(CASES) > 100


@pytest.mark.parametrize(("name", "file", "reason"), CASES, ids=[name.replace(" ", "_") for name, _, _ in CASES])
def test_a_crafted_file_is_refused_and_runs_nothing(name, file, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = ""
    with watched(MOST):
        try:
            found = torchfile.read(file, name="evil.pkl", steps=crafted.STEPS)
            # What is only in the arguments, or too large, is refused where it is asked for.
            found.modules()
            found.tensors()
        except WeightsError as error:
            message = str(error)
    assert message.startswith("evil.pkl: "), message or "accepted"
    assert reason in message
    assert len(message) < 2000
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("wrap", [b"\x85", b"", b"}N"], ids=["tuples", "lists", "dicts"])
def test_nesting_as_deep_as_may_be_is_no_overflow(wrap):
    # What is forgotten at the end is freed step by step as well.
    deep = dict(
        [
            (b"\x85", b")" + b"\x85" * 450_000),
            (b"", b"](" * 200_000 + b"e" * 200_000),
            (b"}N", b"}N" * 240_000 + b"}" + b"s" * 240_000),
        ]
    )
    with pytest.raises(WeightsError, match="100 deep"):
        torchfile.read(crafted.program(crafted.dictionary(a=deep[wrap]), 4))


def test_what_watches_sees_what_runs(tmp_path):
    with pytest.raises(AssertionError, match="open"), watched(1 << 30):
        open(tmp_path / "x", "w").close()
    with pytest.raises(AssertionError, match="bytes"), watched(1 << 20):
        bytes(1 << 21)
