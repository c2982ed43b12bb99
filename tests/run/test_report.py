import base64
import html
import json
import re
import shutil
from html.parser import HTMLParser

import jax
import numpy as np
import pytest

from scorelab import config, sampling
from scorelab.experiment import Report, Run, Sample, Train
from scorelab.experiment.describe import describe, spelled
from scorelab.experiment.sample import read_samples
from scorelab.experiment.train import state_like, trained_state
from scorelab.experiment.workdir import Workdir
from tests.run.conftest import TINY, with_sets


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.targets += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "poster")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_report_opens_offline(tiny_run):
    page = (tiny_run / "report.html").read_text()
    parsed = Links()
    parsed.feed(page)
    assert parsed.targets
    assert all(target.startswith("data:image/png;base64,") for target in parsed.targets)
    assert not re.search(r"<script|<link|@import|url\(", page)
    for target in parsed.targets:
        assert base64.b64decode(target.split(",", 1)[1]).startswith(b"\x89PNG")


def test_the_report_holds_what_a_reader_asks_for(tiny_run):
    parsed = Links()
    parsed.feed((tiny_run / "report.html").read_text())
    text = " ".join(parsed.text)
    for needed in (
        "Samples and data",
        "Metrics",
        "floor",
        "Denoising trajectory",
        "Training",
        "Config",
        "Versions",
        "Times",
        "On the way",
    ):
        assert needed in text
    # Samples and data, trajectory, previews, loss, gradient norm, learning rate.
    assert len(parsed.targets) == 7
    assert "experiment.Train.batch_size = 32" in text
    assert "SW2" in text
    assert "MMD2" in text
    assert "jax" in text


def facts_of(page):
    """The names in the page with what stands beside them."""
    found = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page)
    return {html.unescape(name): html.unescape(value) for name, value in found}


def test_the_headline_says_what_was_learned_and_how_it_was_sampled(tiny_run):
    found = facts_of((tiny_run / "report.html").read_text())
    experiment = config.load(str(tiny_run / "config.gin")).experiment
    assert found["data"].endswith(f"sha256 {experiment.data.load().sha256}")
    assert found["labels"] == "none"
    assert found["process"] == "Gaussian(schedule=EDM(sigma_min=0.002, sigma_max=80))"
    with np.load(tiny_run / "samples.npz") as stored:
        record = json.loads(str(stored["record"]))
    state, _ = trained_state(experiment, Workdir(tiny_run))
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert re.match(rf"MLP\(width=16, depth=1, .*\), {size:,} parameters$", found["network"])
    assert re.match(r"DenoisingScoreMatching\(weighting=EDMWeighting\(data_std=[\d.]+\), times=LogNormalTimes\(", found["loss"])
    assert found["EMA"].startswith("EMA(decay=")
    sampler = found["sampler"]
    assert sampler.startswith("Heun(churn=0, churn_min=0, ")
    for part in ("grid Karras(steps=4, ", "no guidance", "seed 0", f"{record['model_calls']} model calls each"):
        assert part in sampler


def test_a_described_spec_is_spelled_as_it_is_typed():
    spec = {"type": "a.b.Heun", "churn": 0.0, "grid": {"type": "g.Karras", "steps": 18, "t_max": None}, "names": ["x", "y"]}
    assert spelled(spec) == "Heun(churn=0, grid=Karras(steps=18), names=('x', 'y'))"
    assert spelled(describe(np.zeros((2, 3)))) == "array(2, 3)"


def copied(tiny_run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(tiny_run, root)
    return root


def preview_of(root, step):
    with np.load(root / "previews" / f"{step}.npz") as stored:
        return stored["x"]


def test_previews_are_samples_of_the_checkpoints_from_the_same_noise(tiny_run):
    assert {path.name for path in (tiny_run / "previews").iterdir()} == {"10.npz", "20.npz"}
    early, late = (preview_of(tiny_run, step) for step in (10, 20))
    drawn = read_samples(Workdir(tiny_run)).x
    assert early.shape == late.shape == drawn.shape
    # The same ids and the same weights: those of the last step are the samples, up to the rounding of another batch shape.
    np.testing.assert_allclose(late, drawn, rtol=1e-5, atol=1e-5)
    assert not np.allclose(early, late, rtol=1e-3, atol=1e-3)


def test_previews_are_not_made_anew_and_the_same_when_they_are(tiny_run, tmp_path, scorelab):
    root = copied(tiny_run, tmp_path)
    expected = (root / "previews" / "20.npz").read_bytes()
    shutil.rmtree(root / "checkpoints" / "20")
    (root / "previews" / "20.npz").write_bytes(b"no archive")
    stamp = (root / "previews" / "10.npz").stat().st_mtime_ns
    assert scorelab("run", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", root, "--resume")[0] == 0
    assert (root / "previews" / "20.npz").read_bytes() == expected
    assert (root / "previews" / "10.npz").stat().st_mtime_ns == stamp


def test_a_training_goes_on_where_a_preview_cannot_be_drawn(tmp_path, capsys):
    experiment = config.load("toys/eight_gaussians", TINY).experiment
    stage, like = experiment.one(Sample), state_like(experiment)
    fill = lambda leaf: np.full(leaf.shape, np.nan if leaf.dtype == np.float32 else 0, leaf.dtype)
    state = jax.tree.map(fill, like)
    stage.preview(Run(experiment=experiment, workdir=Workdir(tmp_path)), 10, state)
    assert "note: no preview of step 10: 64 of 64 samples are not finite" in capsys.readouterr().out
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize("previews", [0, 1, 2, 6])
def test_previews_are_bounded_in_number_and_have_the_last_checkpoint(previews):
    for steps, every in ((20, 10), (1000, 1000), (1050, 100), (400_000, 1000), (7, 100)):
        found = Train(steps=steps, checkpoint_every=every, previews=previews).preview_steps
        assert len(found) <= previews
        assert all(step % every == 0 or step == steps for step in found)
        assert (steps in found) == (previews > 0)
        if previews > 1 and steps > every:
            assert every in found


def test_a_set_that_no_stage_draws_is_in_the_report_by_its_name(tiny_run, tmp_path, scorelab):
    root = copied(tiny_run, tmp_path)
    assert scorelab("sample", root, "--name", "more", "--n", "16")[0] == 0
    loaded = config.load(str(root / "config.gin"))
    Report()(Run(experiment=loaded.experiment, workdir=Workdir(root), name=loaded.name, text=loaded.text))
    page = (root / "report.html").read_text()
    assert "Samples and data (more)" in page
    assert "sampler (more)" in facts_of(page)


def test_previews_share_the_program_of_the_trajectory_picture(tmp_path):
    # Another number of steps than in other tests, whose programs may still be there.
    bindings = [*(part for part in TINY if "Karras" not in part), "grids.Karras.steps = 7", "experiment.Sample.n = 48"]
    experiment = config.load("toys/eight_gaussians", bindings).experiment
    run = Run(experiment=experiment, workdir=Workdir(tmp_path))
    before = sampling._walk._cache_size()
    experiment.one(Train)(run)
    drawn = sampling._walk._cache_size()
    assert drawn == before + 1
    experiment.one(Sample)(run)
    # That of the samples themselves, which keep no trajectory.
    assert sampling._walk._cache_size() == drawn + 1


def test_a_mapping_in_a_spec_is_spelled():
    assert spelled({"a": 1, "b": [0.5, "c"]}) == "{a: 1, b: (0.5, 'c')}"
