"""Runs beside one another: what differs is named, values stand with their floors, the page opens offline."""

import csv

import pytest

from scorelab.run.compare import flat
from tests.run.conftest import TINY, with_sets
from tests.run.test_report import Links


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    from scorelab.run.cli import main

    root = tmp_path_factory.mktemp("other") / "run"
    changed = ("nets.MLP.width = 24", "experiment.Experiment.seed = 5", "solvers.Heun.churn = 3.0")
    assert main(["run", "toys/eight_gaussians", *with_sets(*TINY, *changed), "--workdir", str(root)]) == 0
    return root


def test_specs_as_lines():
    specs = dict(
        learner=dict(type="a.b.Learner", rate=0.1),
        stages=[dict(type="x.Sample", name="", n=3), dict(type="x.Sample", name="b", n=4)],
    )
    assert flat(specs) == {
        "learner.type": "Learner", "learner.rate": "0.1", "stages.Sample.type": "Sample", "stages.Sample.name": "",
        "stages.Sample.n": "3", "stages.Sample(b).type": "Sample", "stages.Sample(b).name": "b", "stages.Sample(b).n": "4",
    }  # fmt: skip


def test_what_differs_and_what_came_of_it(tiny_run, other, tmp_path, scorelab):
    out = tmp_path / "both.html"
    status, said, _ = scorelab("compare", tiny_run, other, "--out", out)
    assert status == 0
    assert "both.csv" in said
    page = Links()
    page.feed(out.read_text())
    text = " ".join(page.text)
    for row in (
        "learner.denoiser.net.width",
        "16",
        "24",
        "stages.Sample.solver.churn",
        "seed",
        "What differs",
        "Loss",
        "Samples",
        "floor",
    ):
        assert row in text
    # What is the same is no difference.
    assert "batch_size" not in text
    assert all(target.startswith("data:image/png;base64,") for target in page.targets)
    assert len(page.targets) == 2 + 1 + 2  # a chart for each metric, the losses, the samples of each
    with open(tmp_path / "both.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert len({row["run"] for row in rows}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda run: (run,), "expected two or more work directories"),
        (lambda run: (run, run), "each once"),
        (lambda run: (run, run.parent), "holds no run"),
        (lambda run: (run, run.parent, "--out", "a.txt"), "--out a.txt: expected a name that ends in .html"),
    ],
)
def test_what_cannot_be_compared_is_refused(tiny_run, scorelab, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = scorelab("compare", *arguments(tiny_run))
    assert status == 2
    assert message in err
    assert not list(tmp_path.iterdir())
