"""Checkpoints become folders of safetensors: bit by bit, complete or not at all, with hashes that are compared."""

import hashlib
import json
import os
import struct

import ml_dtypes
import numpy as np
import pytest

from scorelab import pretrained
from scorelab.errors import ConfigError, WeightsError
from scorelab.pretrained import conversion, keys, registry, store, torchfile
from scorelab.run.cli import main
from tests.pretrained import crafted
from tests.pretrained.crafted import FILES


@pytest.fixture(autouse=True)
def downloads(tmp_path, monkeypatch):
    """A folder for downloads of its own."""
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pretrained"


def arrays():
    values = np.arange(6).reshape(2, 3)
    types = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "complex64")
    found = {name: values.astype(name) for name in types}
    return found | dict(
        bfloat16=values.astype(ml_dtypes.bfloat16), bool=values > 2, scalar=np.array(2.5), empty=np.zeros((0, 3)),
        transposed=values.T.astype("f4"), big_endian=values.astype(">f4"),
    )  # fmt: skip


def same(found, wanted):
    assert sorted(found) == sorted(wanted)
    for name, array in wanted.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert np.array_equal(found[name], array), name


def test_safetensors_come_back(tmp_path):
    file = store.write_safetensors(tmp_path / "x.safetensors", arrays())
    same(store.read_safetensors(file), arrays())
    # The format is small: a length, a header in JSON, the bytes.
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    begin, end = header["transposed"]["data_offsets"]
    body = np.frombuffer(raw[8 + length + begin : 8 + length + end], "<f4")
    assert np.array_equal(body, [0, 3, 1, 4, 2, 5])
    assert header["__metadata__"] == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def header(text, body=bytes(8)):
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        struct.pack("<Q", 2**63) + b"{}",
        header(b'{"a":' + b"[" * 100_000),
        header(dict(a=dict(dtype="F32", shape=[1], data_offsets=[4, 8]))),
        header(dict(a=dict(dtype="F32", shape=[1], data_offsets=[0, 4]))),
        header(dict(a=dict(dtype="F32", shape=[2], data_offsets=[0, 8]), b=dict(dtype="F32", shape=[2], data_offsets=[0, 8]))),
        header(dict(a=dict(dtype="F32", shape=[2**62, 4], data_offsets=[0, 8]))),
        header(dict(a=dict(dtype="F8_E4M3", shape=[8], data_offsets=[0, 8]))),
        header(dict(a=dict(dtype="O", shape=[1], data_offsets=[0, 8]))),
    ],
    ids=["empty", "endless header", "deep", "hole", "more bytes", "overlap", "overflow", "another type", "no type"],
)
def test_damaged_safetensors_are_refused_by_name(raw, tmp_path):
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        store.read_safetensors(tmp_path / "x.safetensors")


def test_safetensors_say_what_is_wrong_with_them(tmp_path, monkeypatch):
    file, one = tmp_path / "x.safetensors", b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}'
    for raw, reason in (
        # Another program may take the first one.
        (header(b"{" + one + b", " + one + b"}"), "the key 'a' twice"),
        (header(dict(a=dict(dtype="F8_E4M3", shape=[8], data_offsets=[0, 8]))), "tensor 'a' is F8_E4M3, expected one of F64, F32"),
        (header(dict(a=dict(dtype="F32", shape=[2**40], data_offsets=[0, 2**42]))), "not fully covered"),
    ):
        file.write_bytes(raw)
        with pytest.raises(WeightsError, match=rf"x\.safetensors: not a safetensors file that can be read: .*{reason}"):
            store.read_safetensors(file)
    # A file may claim more bytes than the disk has, and is not read for that.
    file.write_bytes(header(b"{" + one + b"}"))
    monkeypatch.setattr(store, "_WEIGHTS", file.stat().st_size - 1)
    with pytest.raises(WeightsError, match=r"x\.safetensors: \d+ bytes: expected at most \d+"):
        store.read_safetensors(file)
    monkeypatch.undo()
    assert list(store.read_safetensors(file)) == ["a"]


def test_a_pipe_is_not_waited_for(diffusers):
    os.mkfifo(diffusers / "one.safetensors")
    (diffusers / "model.safetensors.index.json").write_text(json.dumps(dict(weight_map=dict(a="one.safetensors"))))
    with pytest.raises(WeightsError, match=r"one\.safetensors: no such file: expected a file of weights"):
        conversion.read(diffusers)
    os.mkfifo(diffusers / "model.safetensors")
    (diffusers / "config.json").write_text(json.dumps(dict(format=1, written_by="x", weights=dict(sha256="0"))))
    with pytest.raises(WeightsError, match=r"no model\.safetensors"):
        store.open_folder(diffusers)


def test_long_names_are_cut_in_messages():
    assert keys.listed(["a" * 1000, "b"]) == "a" * 200 + "..., b"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"__metadata__": np.zeros(2)}, "other than __metadata__"),
        ({3: np.zeros(2)}, "a name"),
        ({"a": np.zeros(2, "c16")}, "complex128"),
    ],
)
def test_what_the_format_has_not_is_refused(tensors, reason, tmp_path):
    with pytest.raises(WeightsError, match=reason):
        store.write_safetensors(tmp_path / "x.safetensors", tensors)
    with pytest.raises(WeightsError, match=f"out: .*{reason}"):
        store.write_folder(tmp_path / "out", tensors, {})
    assert not list(tmp_path.iterdir())


def test_every_difference_of_keys_is_named():
    expected = {f"layer{i}": (i, 2) for i in range(30)}
    keys.require_keys(dict(reversed(expected.items())), expected, "x")
    found = {name: shape for name, shape in expected.items() if name not in [f"layer{i}" for i in range(12)]} | dict(
        more=(1,), layer20=(2, 20)
    )
    with pytest.raises(WeightsError) as error:
        keys.require_keys(found, expected, "x.safetensors")
    message = str(error.value)
    assert message.startswith("x.safetensors: 12 missing: layer0, layer1, ")
    assert "layer9 and 2 more; 1 unexpected: more; 1 of another shape: layer20 (2, 20) for (20, 2)" in message
    assert message.endswith("expected 30 tensors, those of the network")


def test_a_pickle_of_modules_becomes_a_folder(downloads):
    folder = pretrained.convert(FILES / "persistence4.pkl", licence="CC0-1.0", url="https://example.org/x.pkl")
    assert folder.path == downloads / "persistence4"
    same(folder.tensors(), torchfile.read(FILES / "persistence4.pkl").tensors())
    config = json.loads((folder.path / "config.json").read_text())
    assert config == folder.config
    assert (config["format"], config["kind"], config["name"]) == (1, "edm", "persistence4")
    assert config["network"][""]["type"] == "EDMPrecond"
    assert config["network"]["model"]["kwargs"]["channel_mult"] == [1, 2]
    assert config["licence"] == dict(id="CC0-1.0", url=None)
    digest = lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
    source = {"persistence4.pkl": digest(FILES / "persistence4.pkl")}
    assert config["source"] == dict(files=source, url="https://example.org/x.pkl", entry=None)
    assert config["weights"]["sha256"] == digest(folder.path / "model.safetensors")
    assert (config["weights"]["tensors"], config["weights"]["numbers"]) == (4, 15)
    # The same again is the same file, byte by byte.
    again = pretrained.convert(FILES / "persistence4.pkl", downloads / "again")
    assert again.config["weights"] == config["weights"]


def test_bfloat16_is_kept(tmp_path):
    numbers = np.array([1, 2, 3, 4], ml_dtypes.bfloat16)
    source = tmp_path / "half.pth"
    content = crafted.state_dict(crafted.tensor(of=crafted.storage("BFloat16Storage")))
    source.write_bytes(crafted.archive(content, {"0": numbers.tobytes()}))
    same(pretrained.convert(source).tensors(), dict(w0=numbers))


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    source, out = FILES / "persistence4.pkl", tmp_path / "out"
    monkeypatch.setattr(store, "write_json", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="out"):
        pretrained.convert(source, out)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    pretrained.convert(source, out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(WeightsError, match="is there already: expected a new folder"):
        pretrained.convert(source, out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_that_was_changed_is_refused(tmp_path):
    folder = pretrained.convert(FILES / "persistence4.pkl", tmp_path / "out")
    raw = bytearray((folder.path / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder.path / "model.safetensors").write_bytes(raw)
    with pytest.raises(WeightsError, match=r"model\.safetensors has the hash .*: expected .*, as at its conversion"):
        store.open_folder(folder.path)
    assert main(["pretrained", "check", str(folder.path)]) == 2
    raw[-1] ^= 1
    (folder.path / "model.safetensors").write_bytes(raw)
    store.open_folder(folder.path)
    change(folder.path / "config.json", format=2)
    with pytest.raises(WeightsError, match="format 2: expected 1"):
        store.open_folder(folder.path)
    change(folder.path / "config.json", format=1, weights={})
    with pytest.raises(WeightsError, match="no format and hash"):
        store.open_folder(folder.path)
    (folder.path / "config.json").write_text("[" * 10_000)
    with pytest.raises(WeightsError, match=r"config\.json: expected a JSON object"):
        store.open_folder(folder.path)
    with pytest.raises(WeightsError, match=r"no config\.json"):
        store.open_folder(tmp_path)


def test_a_published_name_needs_the_published_file(tmp_path, monkeypatch):
    name = "edm-cifar10-32x32-uncond-vp"
    with pytest.raises(WeightsError, match=f"15 numbers: expected 55,733,891 or more, of the published {name}"):
        pretrained.convert(FILES / "persistence4.pkl", tmp_path / "out", name=name)
    row = dict(name="tiny", url="https://example.org/tiny.pkl", what="", licence="MIT", licence_url="https://example.org/MIT")
    monkeypatch.setitem(registry.PUBLISHED, "tiny", registry.Published(**row, sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"has the hash \w{64}: expected 0{64}, of the published tiny\.pkl"):
        pretrained.convert(FILES / "persistence4.pkl", tmp_path / "out", name="tiny")
    monkeypatch.setitem(registry.PUBLISHED, "tiny", registry.Published(**row, sha256=store.sha256(FILES / "persistence4.pkl")))
    folder = pretrained.convert(FILES / "persistence4.pkl", tmp_path / "out", name="tiny")
    assert folder.config["licence"] == dict(id="MIT", url="https://example.org/MIT")
    assert folder.config["source"]["url"] == "https://example.org/tiny.pkl"


@pytest.fixture
def diffusers(tmp_path):
    folder = tmp_path / "unet"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(_class_name="UNet2DModel", sample_size=8)))
    return folder


def test_a_folder_of_diffusers(diffusers, downloads):
    with pytest.raises(WeightsError, match=r"expected config\.json and one of diffusion_pytorch_model\.safetensors"):
        pretrained.convert(diffusers)
    tensors = dict(a=np.ones((2, 3), "f4"))
    store.write_safetensors(diffusers / "diffusion_pytorch_model.safetensors", tensors)
    folder = pretrained.convert(diffusers)
    same(folder.tensors(), tensors)
    assert (folder.config["kind"], folder.config["network"]["sample_size"]) == ("diffusers", 8)
    assert sorted(folder.config["source"]["files"]) == ["config.json", "diffusion_pytorch_model.safetensors"]
    with pytest.raises(WeightsError, match="converted already"):
        pretrained.convert(folder.path, downloads / "again")
    with pytest.raises(WeightsError, match="entry 'a' of a folder"):
        pretrained.convert(diffusers, downloads / "again", entry="a")


def test_a_pipeline_is_refused_with_its_parts(diffusers):
    (diffusers.parent / "model_index.json").write_text("{}")
    with pytest.raises(WeightsError, match="expected one of its folders unet"):
        conversion.read(diffusers.parent)


def test_shards_are_joined_and_compared_with_their_index(diffusers):
    store.write_safetensors(diffusers / "one.safetensors", dict(a=np.ones(2), b=np.zeros(3)))
    store.write_safetensors(diffusers / "two.safetensors", dict(c=np.ones(1)))
    index = diffusers / "diffusion_pytorch_model.safetensors.index.json"
    where = dict(a="one.safetensors", b="one.safetensors", c="two.safetensors")
    index.write_text(json.dumps(dict(weight_map=where)))
    same(pretrained.convert(diffusers).tensors(), dict(a=np.ones(2), b=np.zeros(3), c=np.ones(1)))
    index.write_text(json.dumps(dict(weight_map=where | dict(d="two.safetensors"))))
    with pytest.raises(WeightsError, match=r"two\.safetensors: tensors that it has or .* but not both: d"):
        conversion.read(diffusers)
    for bad in ("../one.safetensors", "/etc/one.safetensors", 3):
        index.write_text(json.dumps(dict(weight_map=dict(a=bad))))
        with pytest.raises(WeightsError, match="expected a weight_map"):
            conversion.read(diffusers)


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
def test_names_are_names_of_folders(name, downloads):
    with pytest.raises(WeightsError, match=r"convert\.name"):
        pretrained.convert(FILES / "persistence4.pkl", name=name)


def test_what_was_downloaded_does_not_hide_what_became_of_it(tmp_path, monkeypatch, downloads):
    """Files in a folder of the name of their model, as the commands ask for it, and then that name in the same place."""
    source = tmp_path / "tiny"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "clip"}')
    store.write_safetensors(source / "model.safetensors", dict(a=np.ones(2)))
    monkeypatch.chdir(tmp_path)
    assert store.find("tiny") is None
    with pytest.raises(WeightsError, match="tiny: a published model as it came: expected scorelab pretrained convert tiny first"):
        pretrained.load("tiny")
    pretrained.convert("tiny")
    assert store.find("tiny") == downloads / "tiny"
    # A converted one in the working folder comes first, and one whose config is damaged is refused by what it is.
    here = pretrained.convert("tiny", "here").path
    assert store.find("here") == here
    (here / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: expected a JSON object"):
        pretrained.load("here")


@pytest.mark.parametrize("name", ["persistence4.pkl", "checkpoint.pth"])
def test_a_file_as_it_came_is_to_be_converted_first(name):
    with pytest.raises(WeightsError, match=rf"{name}: a published model as it came: expected scorelab pretrained convert .*{name}"):
        pretrained.load(str(FILES / name))


def test_a_name_that_ends_with_digits_is_held_to_the_hash(tmp_path):
    other = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    other.write_bytes((FILES / "zip.pth").read_bytes())
    with pytest.raises(WeightsError, match=r"has the hash .*: expected 6726825d\.\.\., as the name of pt_inception.*pth says"):
        pretrained.convert(other)


def said(capsys, *words):
    status = main(["pretrained", *map(str, words)])
    out = capsys.readouterr()
    return status, out.out + out.err


def test_the_commands(capsys, tmp_path, downloads):
    status, text = said(capsys, "convert", FILES / "checkpoint.pth", "--entry", "state_dict", "--name", "mine")
    assert status == 0
    assert "7 tensors, 29 numbers, sha256" in text
    assert "not stated: ask where the file comes from" in text
    status, text = said(capsys, "list")
    assert status == 0
    assert said(capsys)[1] == text
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert rows["mine"].endswith("; here")
    assert rows["edm-ffhq-64x64-uncond-vp"].endswith("CC-BY-NC-SA-4.0; not here")
    assert "digits-edm" in rows
    assert said(capsys, "show", "mine") == said(capsys, "mine")
    assert f"{downloads / 'mine'}" in said(capsys, "show", "mine")[1]
    assert "55,733,891 parameters" in said(capsys, "show", "edm-cifar10-32x32-uncond-vp")[1]
    assert said(capsys, "check", downloads / "mine")[1].endswith("mine: whole\n")
    # A folder elsewhere, by its path.
    elsewhere = pretrained.convert(FILES / "persistence4.pkl", tmp_path / "elsewhere").path
    assert f"{elsewhere}, kind edm" in said(capsys, "show", elsewhere)[1]
    status, text = said(capsys, "show", "mina")
    assert status == 2
    assert text.endswith("scorelab pretrained list has, or the folder of a converted model. Did you mean mine?\n")
    status, text = said(capsys, "check", FILES / "checkpoint.pth")
    assert "entry state_dict: 7 tensors of float32, int64, 29 numbers" in text
    for words in (
        ("show", "nothing"),
        ("convert", tmp_path / "none.pkl"),
        ("check", tmp_path),
        ("convert", FILES / "checkpoint.pth"),
    ):
        status, text = said(capsys, *words)
        assert status == 2
        assert text.startswith("scorelab: error: ")
        assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "error", "reason"),
    [
        (dict(name=5), TypeError, r"pretrained\.convert\.name = 5: expected text or None"),
        (dict(out=7), TypeError, r"pretrained\.convert\.out = 7: expected a path or None"),
        (dict(licence=float("nan")), TypeError, r"convert\.licence = nan"),
        (dict(revision=object()), TypeError, r"convert\.revision = <object"),
        (dict(entry=[]), TypeError, r"convert\.entry = \[\]"),
        (dict(out="x\0y"), WeightsError, r"convert\.out = 'x\\x00y'"),
        (dict(out="x\ud800"), WeightsError, r"convert\.out = 'x\\ud800'"),
        (dict(url="\udcff"), WeightsError, r"convert\.url = '\\udcff'"),
    ],
)
def test_arguments_are_refused_before_anything_is_written(given, error, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "write_safetensors", None)
    with pytest.raises(error, match=reason):
        pretrained.convert(FILES / "persistence4.pkl", **(dict(out=tmp_path / "out") | given))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["NaN", "-Infinity", "1e999", '"\\ud800"', '{"\\udfff": 1}'])
def test_what_json_has_not_is_refused_where_it_is_read(value, tmp_path):
    (tmp_path / "config.json").write_text(f'{{"a": {value}}}')
    with pytest.raises(WeightsError, match=r"config\.json: expected a JSON object: .*(not finite|surrogates not allowed)"):
        store.read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(r'{"a": "\ud83d\ude00", "b": -1.5e300}')
    assert store.read_json(tmp_path / "config.json") == dict(a="\N{GRINNING FACE}", b=-1.5e300)


@pytest.mark.parametrize("text", ['{"a": 1, "b": 2, "a": 1}', '{"b": [{"a": 1, "a": 2}]}'])
def test_a_key_of_a_config_that_is_there_twice_is_named(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(WeightsError, match=r"config\.json: expected a JSON object: the key 'a' twice"):
        store.read_json(tmp_path / "config.json")


def test_a_config_that_could_not_be_read_again_is_not_written(diffusers, downloads):
    store.write_safetensors(diffusers / "model.safetensors", dict(a=np.ones(2)))
    # Indented, each of these zeros is on a line of 1 kB.
    (diffusers / "config.json").write_text(f'{{"a": {"[" * 500}{"0," * 40_000}0{"]" * 500}}}')
    with pytest.raises(WeightsError, match=r"config\.json of 'unet' cannot be written: more than 16,777,216 bytes"):
        pretrained.convert(diffusers)
    assert not list(downloads.iterdir())
    index = dict(_class_name="Any", unet=["diffusers", "UNet2DModel"])
    (diffusers / "config.json").write_text(json.dumps(dict(_class_name="UNet2DModel")))
    (diffusers.parent / "model_index.json").write_text(json.dumps(index)[:-1] + f', "a": {"[" * 500}{"0," * 40_000}0{"]" * 500}}}')
    with pytest.raises(WeightsError, match=r"config\.json of 'own' cannot be written: more than 16,777,216 bytes"):
        pretrained.convert(diffusers.parent, name="own")
    assert not list(downloads.iterdir())


def test_a_pipeline_without_other_files_is_opened(diffusers, downloads):
    store.write_safetensors(diffusers / "model.safetensors", dict(a=np.ones(2)))
    index = diffusers.parent / "model_index.json"
    index.write_text(json.dumps({"unet": ["diffusers", "UNet2DModel"], "a" * 300: ["diffusers", "VQModel"]}))
    with pytest.raises(WeightsError, match=r"model_index\.json: part 'a{80}' of class 'VQModel': .* up to 60 letters"):
        pretrained.convert(diffusers.parent, name="own")
    index.write_text(json.dumps(dict(unet=["diffusers", "UNet2DModel"])))
    folder = pretrained.convert(diffusers.parent, name="own")
    config = {field: value for field, value in folder.config.items() if field != "files"}
    (folder.path / "config.json").write_text(json.dumps(config))
    same(store.open_any(folder.path).parts["unet"].tensors(), dict(a=np.ones(2)))
    change(folder.path / "config.json", parts=["a" * 300])
    with pytest.raises(WeightsError, match="expected one that scorelab pretrained convert wrote"):
        store.open_any(folder.path)


def test_a_place_that_cannot_be_written(tmp_path):
    with pytest.raises(OSError, match=r"none.x\.safetensors"):
        store.write_safetensors(tmp_path / "none" / "x.safetensors", dict(a=np.zeros(1)))
    with pytest.raises(TypeError, match=r"pretrained\.convert\.source = 3"):
        pretrained.convert(3)


def test_without_a_folder_for_downloads_one_has_to_be_given(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "cache_dir", lambda: None)
    with pytest.raises(ConfigError, match="expected SCORELAB_CACHE_DIR to be set"):
        pretrained.convert(FILES / "persistence4.pkl")
    assert store.converted() == []
    pretrained.convert(FILES / "persistence4.pkl", tmp_path / "out")
