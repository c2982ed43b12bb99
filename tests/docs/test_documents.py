"""The examples of the documents are executed, and obey the laws that the documents say they do."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

import scorelab as sl
from scorelab.experiment import Sample
from scorelab.run.cli import main

from ..run.conftest import TINY, with_sets
from .blocks import BLOCK, ROOT, blocks, named

TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]


# README -----------------------------------------------------------------------------------------------------
def test_the_first_example_lands_on_its_floor(capsys):
    (example,) = [block for block in blocks("README.md", "python") if "ExactModel" in block]
    scope = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert "floor" in capsys.readouterr().out
    # The distance of two exact draws varies with the counts of the eight modes, often by half its value.
    assert scope["distance"].value < 3 * scope["floor"].value


def test_the_training_example_runs(capsys):
    (example,) = [block for block in blocks("README.md", "python") if "training.fit" in block]
    # As it stands there, but for the number of steps and samples and the size of the network.
    for large, small in ((r"steps=2_?000", "steps=6, log_every=3"), (r"width=128, depth=3", "width=16, depth=1")):
        example, changes = re.subn(large, small, example)
        assert changes == 1
    scope = {}
    exec(compile(example.replace("5000", "200"), "README.md", "exec"), scope)
    assert int(scope["state"].step) == 6
    assert "SW2" in capsys.readouterr().out


def test_the_ci_script_runs_the_commands_of_the_readme():
    lines = "".join(blocks("README.md", "sh")).splitlines()
    (command,) = [line for line in lines if "pytest" in line]
    script = (ROOT / ".ci" / "run").read_text()
    steps = [part.strip().replace(".venv/bin/", "") for part in command.split("&&")]
    assert steps[0] == "python -m venv .venv"
    for step in steps[1:]:
        assert step.replace("'", "") in re.sub(r'["\']|\$bin/', "", script), step


def test_the_commands_of_the_documents_name_configs_that_exist():
    from scorelab.config.sources import find_config

    found = 0
    for page in PAGES:
        for line in re.findall(r"scorelab (?:run|train) ([\w/.]+)", page.read_text(encoding="utf-8")):
            if line not in ("mine.gin", "CONFIG"):
                find_config(line)
                found += 1
    assert found > 3


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        # Pictures are made by runs; a text may name one that has not been drawn yet.
        if "://" not in target and not target.endswith(".png"):
            assert (page.parent / target).exists(), target


def test_the_extractor_ids_in_the_documents_are_those_of_the_package():
    index = json.loads((ROOT / "scorelab" / "metrics" / "weights" / "index.json").read_text())
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = set(re.findall(r"smallcnn\((\w+)-([0-9a-f]{8})\)", text))
    assert found == {(name, record["sha256"][:8]) for name, record in index.items()}


def test_python_blocks_parse():
    for page in PAGES:
        for block in blocks(page.relative_to(ROOT), "python"):
            if not re.match(r"# \w+\.gin\n", block):
                compile(block, page.name, "exec")


def test_the_first_hour_leaves_its_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "midpoint.py").write_text(named("CONTRIBUTING.md")["midpoint.py"])
    for name, block in named("docs/first_hour.md").items():
        exec(compile(block, name, "exec"), {})
        assert (tmp_path / name).with_suffix(".png").is_file(), name
    # The rule has the second order, and the coarse grids are not yet in the limit: 1.92 was measured. First order would print 1.1.
    assert 1.7 < float(capsys.readouterr().out.split()[-1]) < 2.3


# The pages -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "page", ["coming_from", "concepts", "howto", "recipes", "networks", "interpolants", "likelihood", "diagnostics"]
)
def test_the_blocks_of_a_page_run_and_their_assertions_hold(page):
    found = blocks(f"docs/{page}.md", "python")
    assert sum(block.count("assert ") for block in found) >= 1
    scope = {}
    for block in found:
        exec(compile(block, page, "exec"), scope)


def test_the_example_of_the_config_page_resolves(tmp_path):
    from scorelab.config import load

    (example,) = [block for block in blocks("docs/configs.md", "text") if "__gin__" in block]
    (tmp_path / "example.gin").write_text(example)
    sampling = load(str(tmp_path / "example.gin")).experiment.one(Sample)
    assert sampling.solver == sl.solvers.UniPC(predictor_order=3)
    assert sampling.grid == sl.grids.Karras(30)


def test_the_stages_of_the_config_page_sample_and_evaluate_one_model_twice(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guided.gin").write_text(named("docs/configs.md")["guided.gin"])
    tiny = with_sets(
        "nets.MLP.width = 8", "nets.MLP.depth = 1", "experiment.Sample.n = 20", "experiment.ImageEvaluation.n = 20",
        "grids.Karras.steps = 3", "STEPS = 2", "WARMUP = 1", "experiment.ExplainedVariance.n = 16",
    )  # fmt: skip
    command = ["run", "guided.gin", *tiny, "--workdir", "run"]
    assert main(command) == 0
    found = {name: np.load(f"run/samples/{name}/samples.npz") for name in ("weak", "strong")}
    assert not np.array_equal(found["weak"]["x"], found["strong"]["x"])
    scales = {name: json.loads(str(samples["record"]))["sampling"]["guidance"] for name, samples in found.items()}
    assert scales == {"weak": 1.0, "strong": 3.0}
    values = [json.loads((tmp_path / f"run/samples/{name}/metrics.json").read_text())["metrics"] for name in found]
    assert [len(part) for part in values] == [8, 8]
    finding = json.loads((tmp_path / "run/diagnostics/explained_variance.json").read_text())
    assert len(finding["values"]["mean_of_ratios"]) == 10
    assert finding["step"] == 2
    report = (tmp_path / "run/report.html").read_text()
    for heading in ("Metrics (weak)", "Metrics (strong)", "Diagnostic: explained_variance, step"):
        assert f"<h2>{heading}" in report
    capsys.readouterr()
    # Again: everything is there.
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.count("nothing to do") == 6
    assert main(["evaluate", "run", "--name", "strong"]) == 0


def test_the_data_of_the_config_page_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_data.gin").write_text(named("docs/configs.md")["own_data.gin"])
    rng = np.random.default_rng(0)
    for name, n in (("measured", 64), ("measured_test", 16)):
        np.savez(f"{name}.npz", x=rng.normal(size=(n, 2)).astype(np.float32))
    tiny = with_sets(
        "nets.MLP.width = 8", "nets.MLP.depth = 1", "experiment.Train.batch_size = 16", "experiment.Sample.n = 8",
        "grids.Karras.steps = 3", "STEPS = 2", "WARMUP = 1",
    )  # fmt: skip
    assert main(["run", "own_data.gin", *tiny, "--workdir", "run"]) == 0
    assert np.load("run/samples.npz")["x"].shape == (8, 2)


def test_the_sinks_of_the_config_page_have_what_the_logs_have(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sinks.gin").write_text(named("docs/configs.md")["sinks.gin"])
    assert main(["run", "sinks.gin", *with_sets(*TINY), "--workdir", "run"]) == 0
    steps = [json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    with open("run/metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines if line["train/loss"]] == steps
    assert [int(line["step"]) for line in lines if line["evaluate/SW2"]] == steps[-1:]
    assert len(list(Path("run/tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        (
            "docs/configs.md",
            [
                "['Train', 'Sample', 'Evaluate', 'Report']",
                "0 rows so far",
                "4 ['train/eps_mse', 'train/grad_norm', 'train/lea",
            ],
        ),
        ("docs/solvers.md", ["[1.   0.9  0.75 0.5  0.  ]", "80.0"]),
        ("docs/data.md", ["train ('train', 'test') (500, 3) 2", "(6, 16, 16, 1) [0 0 0 1 1 1]", "(8, 2)"]),
    ],
)
def test_the_blocks_of_a_page_run_one_after_the_other(page, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for number, body in enumerate(blocks(page, "python")):
        if body not in named(page).values():
            exec(compile(body, f"{page}, block {number}", "exec"), scope)
    found = capsys.readouterr().out
    assert all(line in found for line in printed), found


SLOW = pytest.param("docs/distillation.md", marks=pytest.mark.long)


@pytest.mark.parametrize("page", ["docs/steering.md", "docs/posterior.md", "docs/fields.md", SLOW])
def test_pages_that_say_what_comes_out(page, capsys, optimised):
    # Their blocks hold the assertions themselves, or print.
    scope = {}
    for number, body in enumerate(blocks(page, "python")):
        exec(compile(body, f"{page}, block {number}", "exec"), scope)
    assert capsys.readouterr().out


def test_the_teleportation_page_runs(capsys, optimised):
    scope = {}
    for number, body in enumerate(blocks("docs/teleportation.md", "python")):
        exec(compile(body, f"docs/teleportation.md, block {number}", "exec"), scope)
    assert scope["plain"].diagnostics["model_calls"] == 35
    assert scope["jumped"].diagnostics["model_calls"] == 23
    # The jump lands at seven times the largest deviation of these points: nothing that can be seen in them.
    assert np.sqrt(np.mean((scope["plain"].x - scope["jumped"].x) ** 2)) < 0.03 * scope["data"].std()
    assert set(scope["explained"]) == {"Gaussian", "isotropic"}
