"""Sweeps: every combination once, one table, what is done is kept."""

import csv
from pathlib import Path

import numpy as np
import pytest

from scorelab.errors import ConfigError
from scorelab.experiment.evaluate import read_metrics
from scorelab.experiment.workdir import Workdir
from scorelab.run import sweep
from tests.run.conftest import TINY, start, with_sets

GRID = ("solvers.Heun.churn = [0.0, 5.0]",)


def test_the_combinations_of_a_grid(tmp_path):
    cells = sweep.combinations(("a.B.c = [1, 2.5]", "d.E.f = ['x', @g.H(), (1, 2)]"), 2, tmp_path)
    assert len(cells) == 12
    assert cells[0].bindings == ["a.B.c = 1", "d.E.f = 'x'", "experiment.Experiment.seed = 0"]
    assert cells[-1].bindings == ["a.B.c = 2.5", "d.E.f = (1, 2)", "experiment.Experiment.seed = 1"]
    assert len({cell.folder for cell in cells}) == 12
    assert sweep.combinations((), 3, tmp_path)[2].folder.name == "seed-2"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (("a.b = 3",), r"--grid 'a.b = 3': expected 'field = \[value, ...\]', each field once"),
        (("a.b = []",), "expected 'field"),
        (("a.b",), "expected 'field"),
        (("a.b = [1]", "a.b = [2]"), "each field once"),
        (("a.b = [x]",), r"the value x: expected 'x' \(text\)"),
        (("a.b = ['x', 'x ']",), "two combinations that are called"),
    ],
)
def test_lines_that_are_no_grid_are_refused(tmp_path, grid, message):
    with pytest.raises(ConfigError, match=message):
        sweep.combinations(grid, 1, tmp_path)
    assert sweep.parameters(["cluster=local", "timeout_min=5"]) == {"cluster": "local", "timeout_min": 5}
    with pytest.raises(ConfigError, match="--cluster 'gpu': expected NAME=VALUE"):
        sweep.parameters(["gpu"])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of two values and two seeds, whose runs are made in this process, which is quicker than four of their own."""
    from scorelab.run.cli import main

    out = tmp_path_factory.mktemp("sweep") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "_run", lambda command: main(command[3:]))
        status = main(["sweep", "toys/eight_gaussians", "--grid", GRID[0], "--seeds", "2", *with_sets(*TINY), "--out", str(out)])
    assert status == 0
    return out


def test_the_tables_hold_every_run(swept):
    with open(swept / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2  # values, seeds, metrics
    assert {row["solvers.Heun.churn"] for row in rows} == {"0.0", "5.0"}
    assert {row["seed"] for row in rows} == {"0", "1"}
    mine = [float(row["value"]) for row in rows if row["run"] == "churn-5.0_seed-1"]
    np.testing.assert_allclose(mine, [value.value for value in read_metrics(Workdir(swept / "churn-5.0_seed-1"))[0]])
    table = (swept / "sweep.md").read_text().splitlines()
    assert table[0].startswith("| churn | samples | seeds |")
    assert len(table) == 4
    of_five = [float(row["value"]) for row in rows if row["solvers.Heun.churn"] == "5.0" and row["metric"] == rows[0]["metric"]]
    assert f"{np.mean(of_five):.4g} ± {np.std(of_five, ddof=1):.2g}" in table[3]
    assert len(list(swept.glob("*.png"))) == 2


def test_what_is_done_is_not_run_again_and_a_grid_may_grow(swept, monkeypatch, scorelab):
    ran = []

    def run(command):
        ran.append(Path(command[command.index("--workdir") + 1]))
        ran[-1].mkdir()
        return 0

    monkeypatch.setattr(sweep, "_run", run)
    common = ["sweep", "toys/eight_gaussians", "--seeds", "2", *with_sets(*TINY), "--out", swept]
    status, out, _ = scorelab(*common, "--grid", GRID[0])
    assert (status, ran) == (0, [])
    assert "4 runs, 4 of them done" in out
    status, out, _ = scorelab(*common, "--grid", "solvers.Heun.churn = [0.0, 5.0, 7.0]")
    assert "6 runs, 4 of them done" in out
    assert [folder.name for folder in ran] == ["churn-7.0_seed-0", "churn-7.0_seed-1"]
    status, _, err = scorelab("sweep", "toys/rings", "--out", swept)
    assert status == 2
    assert "holds a sweep with config = 'toys/eight_gaussians'" in err


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path, scorelab):
    out = tmp_path / "out"
    status, said, err = scorelab(
        "sweep", "toys/eight_gaussians", "--grid", "nets.MLP.width = ['x', 'y']", *with_sets(*TINY[2:]), "--out", out, "--jobs", "2"
    )
    assert status == 2
    assert said.count("FAILED, exit 2") == 2
    assert "2 of 2 runs failed" in err
    assert "MLP.width" in (out / "width-x_seed-0.log").read_text()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    status, _, err = scorelab("sweep", "toys/rings", "--out", tmp_path / "full")
    assert "holds no sweep" in err


@pytest.mark.long
def test_on_a_cluster(tmp_path):
    pytest.importorskip("submitit", reason="needs the package submitit")
    out = tmp_path / "out"
    # In a process of its own: the local executor forks, which a process that runs JAX does not survive.
    child = start(
        "sweep", "toys/eight_gaussians", *with_sets(*TINY), "--out", out, "--cluster", "cluster=local", "--cluster", "timeout_min=5"
    )
    said, _ = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert (out / "seed-0" / "report.html").is_file()
