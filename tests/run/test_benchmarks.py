"""The table of the benchmarks: what a row says of its goal and of the former table, and what is asked for by name."""

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import common, run
from benchmarks.common import Row
from tests.run.conftest import ROOT


def test_a_goal_is_met_by_the_clock_that_other_programs_disturb_less():
    row = Row("a", 1.10, 1.05, 1.2, cpu=1.01, goal=1.02)
    assert run.met(row)
    assert not run.met(Row("a", 1.10, 1.05, 1.2, cpu=1.08, goal=1.02))
    assert run.met(Row("a", 5.0, 5.0, 5.0))


@pytest.mark.parametrize(
    ("low", "value", "high", "said"),
    [(0.9, 1.0, 1.1, ""), (1.19, 1.2, 1.3, "1.20 times"), (0.7, 0.8, 0.89, "0.80 times"), (1.11, 1.02, 1.2, "")],
)
def test_a_change_is_what_leaves_the_quartiles(low, value, high, said):
    assert run.change(Row("a", value, low, high), Row("a", 1.0, 0.9, 1.1)) == said


def test_ratios_are_of_the_same_round_and_per_call(monkeypatch):
    clock = iter(np.cumsum([0.0, 1.0] * 100))
    monkeypatch.setattr(common.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(common.time, "process_time", lambda: 0.0)
    asked = []
    functions = {name: (lambda name=name: asked.append(name)) for name in ("base", "other")}
    with np.errstate(invalid="ignore"):
        (row,) = common.in_turns(functions, 3, base="base", calls=dict(base=1, other=2))
    # A call each of one second, once for compiling and then in turns, whose order turns around.
    assert asked == ["base", "other", "base", "other", "other", "base", "base", "other"]
    assert row.value == pytest.approx(0.5)


def test_parts_are_asked_for_by_name():
    assert run.chosen(["memory.plan"]) == [("memory", "plan")]
    assert {subject for subject, _ in run.chosen([])} == set(run.SUBJECTS)
    with pytest.raises(SystemExit, match=r"--only speed: expected one of sampling, .*memory\.plan"):
        run.chosen(["speed"])


def test_a_part_is_measured_in_a_process_of_its_own(tmp_path):
    out = tmp_path / "rows.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--quick", "--rounds", "1", "--only", "sampling.dispatch", "--out", str(out)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    table = json.loads(out.read_text())
    (rows,) = table["rows"].values()
    assert {row["case"] for row in rows} == {"a call of sample", "a call of a jitted function"}
    assert all(row["value"] > 0 for row in rows)
    assert "0 goals missed" in done.stdout
    assert table["machine"]["rounds"] == 1
