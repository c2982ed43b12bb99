"""Published repositories, downloaded by a stand-in of the package that does it."""

import json
import shutil
import sys
import types

import numpy as np
import pytest

from scorelab import pretrained
from scorelab.errors import ConfigError, WeightsError
from scorelab.pretrained import hub, registry, store
from scorelab.run.cli import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def downloads(tmp_path, monkeypatch):
    """A folder for downloads of its own."""
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pretrained"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A repository with two variants of weights, and the package that downloads it."""
    root, asked = tmp_path / "remote", []
    (root / "unet").mkdir(parents=True)
    (root / "model_index.json").write_text(json.dumps(dict(unet=["diffusers", "Tiny"])))
    (root / "unet" / "config.json").write_text(json.dumps(dict(_class_name="Tiny")))
    for name in ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16"):
        store.write_safetensors(root / "unet" / f"{name}.safetensors", dict(w=np.ones(3, "f4")))
    (root / "README.md").write_text("is not asked for")
    module = types.ModuleType("huggingface_hub")

    class HfApi:
        def model_info(self, repo, revision=None):
            asked.append(("info", repo, revision))
            files = [str(path.relative_to(root)) for path in sorted(root.rglob("*")) if path.is_file()]
            return types.SimpleNamespace(sha=module.commit, siblings=[types.SimpleNamespace(rfilename=file) for file in files])

    def snapshot_download(repo, *, revision, allow_patterns):
        asked.append(("files", repo, revision, tuple(allow_patterns)))
        place = tmp_path / "snapshot"
        for file in allow_patterns:
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            if file != module.lost:
                shutil.copyfile(root / file, place / file)
        return str(place)

    module.HfApi, module.snapshot_download, module.commit, module.lost = HfApi, snapshot_download, COMMIT, None
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    row = dict(url="https://huggingface.co/someone/tiny", licence="MIT", licence_url="https://example.org/MIT", what="a tiny model")
    monkeypatch.setitem(registry.PUBLISHED, "tiny", registry.Published(name="tiny", repo="someone/tiny", **row))
    return types.SimpleNamespace(root=root, asked=asked, module=module)


def test_what_a_model_needs_is_downloaded_at_one_commit_and_converted(remote, downloads, capsys):
    assert main(["pretrained", "fetch", "tiny"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny: a tiny model\nlicence of the weights: MIT, https://example.org/MIT\n")
    assert f"commit    {COMMIT}" in text
    files = ("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors")
    assert remote.asked == [("info", "someone/tiny", None), ("files", "someone/tiny", COMMIT, files)]
    found = store.open_any(downloads / "tiny")
    assert found.config["licence"] == dict(id="MIT", url="https://example.org/MIT")
    for config in (found.config, found.parts["unet"].config):
        assert (config["source"]["revision"], config["source"]["url"]) == (COMMIT, "https://huggingface.co/someone/tiny")
    with pytest.raises(WeightsError, match="tiny is there already: expected a new folder"):
        pretrained.fetch("tiny", say=lambda text: None)
    assert len(remote.asked) == 2
    # Of a commit that was written down.
    pretrained.fetch("tiny", downloads / "again", revision="v1", say=lambda text: None)
    assert remote.asked[2] == ("info", "someone/tiny", "v1")


def test_the_licence_is_said_before_anything_is_asked_for(remote):
    lines = []
    remote.module.HfApi = lambda: 1 / 0
    with pytest.raises(WeightsError, match=r"fetch tiny: https://huggingface\.co/someone/tiny: division by zero"):
        pretrained.fetch("tiny", say=lines.append)
    assert any("MIT" in line for line in lines)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (dict(commit=None), "commit None: expected one of 40"),
        (dict(lost="unet/config.json"), r"unet/config\.json did not come"),
    ],
)
def test_what_does_not_come_is_said(remote, downloads, broken, reason):
    vars(remote.module).update(broken)
    with pytest.raises(WeightsError, match=reason):
        pretrained.fetch("tiny", say=lambda text: None)
    assert not downloads.exists()


def test_without_the_package_it_says_what_to_do(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["pretrained", "fetch", "stable-diffusion-v1-5"]) == 2
    text = capsys.readouterr().err
    for part in ("scorelab[pretrained]", "huggingface.co/stable-diffusion-v1-5", "model_index.json", "pretrained convert stable-"):
        assert part in text
    for name, reason in (
        ("edm-cifar10-32x32-uncond-vp", r"no repository: get https://.*\.pkl, then scorelab pretrained convert"),
        ("ddpm-cifar10", r"[Dd]id you mean.*ddpm-cifar10-32"),
        (3, r"fetch\.name = 3: expected one of ddpm-cifar10-32"),
    ):
        with pytest.raises(ConfigError, match=reason):
            pretrained.fetch(name)


SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        # As google/ddpm-*: everything beside the index, in two formats.
        (
            ["README.md", "config.json", "diffusion_pytorch_model.bin", "model_index.json", "scheduler_config.json"],
            ["model_index.json", "scheduler_config.json", "config.json", "diffusion_pytorch_model.bin"],
        ),
        (
            ["model_index.json", "v1-5.ckpt", "vae/config.json", "vae/diffusion_pytorch_model.bin", "safety_checker/config.json",
             "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json", "scheduler/scheduler_config.json",
             "unet/onnx/config.json", "../config.json"],
            ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "vae/config.json",
             "vae/diffusion_pytorch_model.safetensors"],
        ),
        (
            ["config.json", "model.safetensors.index.json", *SHARDS, "other-00001-of-00002.safetensors"],
            ["config.json", "model.safetensors.index.json", *SHARDS],
        ),
    ],
    ids=["flat", "folders", "shards"],
)  # fmt: skip
def test_of_two_sets_of_weights_one_is_asked_for(files, wanted):
    assert hub.needed(files, "x") == wanted


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (["unet/config.json", "unet/flax_model.msgpack"], r"unet has config\.json and none of"),
        (["README.md"], r"no folder with config\.json and weights"),
    ],
)
def test_a_repository_without_weights_is_refused(files, reason):
    with pytest.raises(WeightsError, match=reason):
        hub.needed(files, "x")


def test_every_row_says_where_it_comes_from_and_under_which_licence():
    for name, row in registry.PUBLISHED.items():
        assert row.name == name
        assert row.url.startswith("https://")
        assert row.licence
        assert row.licence_url.startswith("https://")
        assert (row.repo is None) == row.url.endswith((".pkl", ".pth"))
        assert row.repo is None or row.url == f"https://huggingface.co/{row.repo}"
        assert name in row.how
