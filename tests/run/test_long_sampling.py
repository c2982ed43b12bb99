"""The sampling stage in shards: the samples and metrics of one file, and a sampling that goes on."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scorelab import Shards
from scorelab.errors import ConfigError
from scorelab.experiment import Sample
from scorelab.experiment.evaluate import samples_hash
from scorelab.experiment.sample import LONG, read_samples
from scorelab.experiment.workdir import Workdir
from scorelab.files import DamagedFile
from scorelab.run import pipeline
from tests.run.conftest import TINY, with_sets

RUN = ("run", "toys/eight_gaussians", *with_sets(*TINY, "experiment.Sample.chunk = 16"))
SHARDED = (*RUN, "--set", "experiment.Sample.shards = True")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_run):
    """One run, sampled into one file and into shards."""
    from scorelab.run.cli import main

    roots = {}
    for name, command in dict(file=RUN, shards=SHARDED).items():
        roots[name] = tmp_path_factory.mktemp("long") / name
        shutil.copytree(tiny_run, roots[name])
        assert main([*command, "--workdir", str(roots[name]), "--resume"]) == 0
    return roots


def test_shards_have_the_samples_metrics_and_report_of_one_file(runs, scorelab):
    (one, x), (many, shards) = ((found := read_samples(Workdir(root)), found.x) for root in runs.values())
    assert isinstance(x, np.ndarray)
    assert isinstance(shards, Shards)
    assert (shards.count, shards.chunk, len(shards)) == (4, 16, 64)
    np.testing.assert_array_equal(shards.to_numpy(), x)
    assert samples_hash(shards) == samples_hash(x)
    metrics = {name: json.loads((root / "metrics.json").read_text()) for name, root in runs.items()}
    assert metrics["shards"]["metrics"] == metrics["file"]["metrics"]
    assert metrics["shards"]["samples_sha256"] == metrics["file"]["samples_sha256"]
    # How they were drawn does not say how they are kept.
    drop = lambda record: {name: value for name, value in record.items() if name != "seconds"}
    assert drop(many.record) == drop(one.record)
    pictures = {name: [(root / each).read_bytes() for each in ("samples.png", "trajectory.png")] for name, root in runs.items()}
    assert pictures["shards"] == pictures["file"]
    page = (runs["shards"] / "report.html").read_text()
    assert "shards, 64 of step 20, seed 0" in page
    assert metrics["file"]["samples_sha256"] in page
    status, out, _ = scorelab(*SHARDED, "--workdir", runs["shards"], "--resume")
    assert status == 0
    assert out.count("nothing to do") == 3


def test_a_sampling_in_shards_goes_on_where_it_was(runs, tmp_path, scorelab):
    root, command = tmp_path / "run", (*SHARDED, "--workdir", tmp_path / "run", "--resume")
    shutil.copytree(runs["shards"], root)
    expected = Shards(root / "shards").to_numpy()
    whole = {name: (root / name).read_bytes() for name in ("samples.png", "metrics.json")}
    # As a kill leaves it: what is about all shards comes last.
    for name in ("samples.npz", "samples.png", "trajectory.png", "metrics.json", "shards/000001.npz", "shards/000003.npz"):
        (root / name).unlink()
    assert read_samples(Workdir(root)) is None
    with pytest.raises(ConfigError, match=r"samples\.npz: no such samples: those in .*shards are not whole; run `scorelab sample`"):
        pipeline.evaluate_workdir(root)
    before = {path.name: path.stat().st_mtime_ns for path in (root / "shards").glob("*.npz")}
    status, out, _ = scorelab(*command)
    assert status == 0
    # From a half on.
    assert "sample    32/64" in out
    after = {path.name: path.stat().st_mtime_ns for path in (root / "shards").glob("*.npz")}
    assert before.items() < after.items()
    assert len(after) == 4
    np.testing.assert_array_equal(Shards(root / "shards").to_numpy(), expected)
    assert (root / "samples.png").read_bytes() == whole["samples.png"]
    assert json.loads((root / "metrics.json").read_text())["metrics"] == json.loads(whole["metrics.json"])["metrics"]
    # One that is lost later is drawn again, and so is one that is damaged, by the command that a reader's message names.
    (root / "shards" / "000002.npz").unlink()
    status, out, _ = scorelab(*command)
    assert status == 0
    assert "sample    48/64" in out
    (root / "shards" / "000002.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DamagedFile, match=r"000002\.npz: damaged"):
        Shards(root / "shards").to_numpy()
    status, out, _ = scorelab(*command)
    assert status == 0
    assert "sample    48/64" in out
    np.testing.assert_array_equal(Shards(root / "shards").to_numpy(), expected)


def test_shards_of_another_sampler_are_replaced_by_a_run_and_kept_by_a_command(runs, tmp_path, scorelab):
    root = tmp_path / "run"
    shutil.copytree(runs["shards"], root)
    # Evaluated samples are kept, as one file is.
    with pytest.raises(ConfigError, match=r"samples\.npz holds 64 samples of step 20, seed 0, that were evaluated: pass --name"):
        pipeline.sample_workdir(root, seed=3)
    # So are shards that are not whole.
    (root / "samples.npz").unlink()
    (root / "metrics.json").unlink()
    with pytest.raises(ConfigError, match=r"shards holds samples that were drawn otherwise: seed was 0 and is 3: pass --name"):
        pipeline.sample_workdir(root, seed=3)
    status, out, _ = scorelab(*SHARDED, "--set", "experiment.Sample.shown = 5", "--workdir", root, "--resume")
    assert status == 0
    assert "shards holds samples that were drawn otherwise: sampling.shown was 6 and is 5; they are replaced" in out
    assert read_samples(Workdir(root)).record["sampling"]["shown"] == 5
    # In a file again, and a set beside it in shards.
    status, out, _ = scorelab(*RUN, "--set", "experiment.Sample.shown = 4", "--workdir", root, "--resume")
    assert status == 0
    assert "shards holds samples that were drawn otherwise: sampling.shown was 5 and is 4; they are replaced" in out
    assert not (root / "shards").exists()
    assert isinstance(read_samples(Workdir(root)).x, np.ndarray)
    shutil.copytree(runs["shards"], tmp_path / "again")
    more = pipeline.sample_workdir(tmp_path / "again", seed=3, n=40, name="more")
    assert (more.shards, Workdir(tmp_path / "again").names) == (tmp_path / "again/samples/more/shards", ["more"])
    assert read_samples(more).x.missing == ()
    # Elsewhere they are one file.
    out = tmp_path / "elsewhere.npz"
    pipeline.sample_workdir(tmp_path / "again", out=out)
    np.testing.assert_array_equal(read_samples(Workdir(tmp_path / "again", out=out)).x, Shards(runs["shards"] / "shards")[:])


def test_one_file_does_not_take_the_place_of_a_long_sampling_by_a_command(runs, tmp_path, scorelab):
    root = tmp_path / "run"
    shutil.copytree(runs["shards"], root)
    # A long sampling that was stopped, and the config of one file.
    for name in ("samples.npz", "metrics.json", "shards/000003.npz"):
        (root / name).unlink()
    shutil.copy(runs["file"] / "config.gin", root / "config.gin")
    before = {path.name: path.read_bytes() for path in (root / "shards").iterdir()}
    for flags, what in (
        (("--n", 16), "samples that were drawn otherwise: n was 64 and is 16"),
        ((), "these samples in shards"),
    ):
        status, _, err = scorelab("sample", root, *flags)
        assert (status, len(err.splitlines())) == (2, 1)
        assert f"shards holds {what}: pass --name for others, or delete " in err
        assert {path.name: path.read_bytes() for path in (root / "shards").iterdir()} == before
        assert not (root / "samples.npz").exists()
    assert scorelab("sample", root, "--n", 16, "--name", "few")[0] == 0
    assert (root / "shards" / "000000.npz").read_bytes() == before["000000.npz"]
    # Where nothing has been drawn yet, nothing is lost.
    for path in (root / "shards").glob("0*.npz"):
        path.unlink()
    assert scorelab("sample", root, "--n", 16)[0] == 0
    assert not (root / "shards").exists()


def test_samples_stay_until_the_shards_that_are_missing_are_drawn(runs, tmp_path, scorelab, monkeypatch):
    root = tmp_path / "run"
    shutil.copytree(runs["shards"], root)
    (root / "shards" / "000001.npz").unlink()
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"}
    monkeypatch.setattr("scorelab.__version__", "0.0.0")
    status, _, err = scorelab("sample", root)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "scorelab was " in err
    assert " and is 0.0.0; " in err
    told = re.search(r": delete (\S+samples\.npz) and (\S+shards) to draw them again, or pass --name for others$", err.strip())
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and path.name != "lock"} == files
    status, _, err = scorelab("evaluate", root)
    assert status == 1
    assert "shards/000001.npz is missing" in err.replace("\\", "/")
    # What the message says is enough.
    Path(told[1]).unlink()
    shutil.rmtree(told[2])
    assert scorelab("sample", root)[0] == 0
    np.testing.assert_array_equal(Shards(root / "shards").to_numpy(), Shards(runs["shards"] / "shards").to_numpy())


def test_shards_that_the_index_is_not_about_are_refused(runs, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(runs["shards"], root)
    other = pipeline.sample_workdir(root, seed=3, name="more")
    shutil.rmtree(root / "shards")
    with pytest.raises(DamagedFile, match=r"samples\.npz: not samples written .*: it has no samples, and .*shards: no samples"):
        read_samples(Workdir(root))
    shutil.copytree(other.shards, root / "shards")
    with pytest.raises(DamagedFile, match=r"it is about other samples than those in .*shards"):
        read_samples(Workdir(root))


def test_many_samples_are_in_shards_unless_the_stage_says_otherwise():
    assert not Sample().sharded(LONG)
    assert Sample().sharded(LONG + 1)
    assert not Sample(shards=False).sharded(10**9)
    assert Sample(shards=True).sharded(1)
    with pytest.raises(TypeError, match=r"Sample\.shards = 3: expected a bool"):
        Sample(shards=3)
