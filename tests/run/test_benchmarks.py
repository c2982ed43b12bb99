"""The table of the benchmarks: what a row says of its goal and of the former table, and what is asked for by name."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, page, run
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


QUICK = (
    ("memory", "long", {"24 chunks over 5: peak", "and their Frechet moments"}),
    ("randomness", "draws", {"counting: MLP, batch 512", "a key for each sample: MLP, batch 512", "rbg, one key: MLP, batch 512"}),
    ("sampling", "shards", {"a chunk of sample_to over one of sample", "what sample_to does once"}),
)


@pytest.mark.parametrize(("subject", "part", "cases"), QUICK)
def test_quick_parts_have_rows_of_numbers(subject, part, cases):
    rows = list(run.parts_of(subject)[part](1, True))
    assert cases <= {row.case for row in rows}
    assert all(np.isfinite([row.value, row.low, row.high]).all() for row in rows)


def test_counting_draws_are_normal_numbers_of_the_key_and_the_id():
    from benchmarks.randomness import counted

    key, ids = jax.random.key(3), jnp.arange(20_000)
    noise = np.asarray(counted(key, ids, (3,)))
    # Standard errors of the first four moments of 60,000 normal numbers, five of them each.
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(noise**power) - moment) < 5 * np.sqrt(variance / noise.size)
    assert np.abs(np.corrcoef(noise.T) - np.eye(3)).max() < 5 / np.sqrt(len(ids))
    np.testing.assert_array_equal(counted(key, ids[7:9], (3,)), noise[7:9])
    assert not np.array_equal(counted(jax.random.key(4), ids[:2], (3,)), noise[:2])


def test_the_page_has_the_rows_and_says_what_is_not_measured():
    row = dict(case="Heun: DiT, batch 16", value=1.05, low=1.01, high=1.2, cpu=1.04, goal=1.02, base="DiT, 9 ms")
    other = row | dict(case="DDIM: DiT, batch 1", value=0.9, low=0.9, high=0.9, cpu=None, goal=None)
    machine = dict(processor="a chip", cores=2, python="3.11", jax="0.10", device="cpu", load=None, rounds=7)
    text = page.page(dict(machine=machine, rows={"sampling.overhead": [row, other]}), {"sampling.overhead": "It is so."}, "")
    assert "Measured on a chip, 2 cores, with Python 3.11 and JAX 0.10 on cpu, 7 rounds." in text
    assert "| Heun: DiT, batch 16 | 1.050 | 1.010 to 1.200 | 1.040 | 1.02, missed | DiT, 9 ms |\n" in text
    assert "| DDIM: DiT, batch 1 | 0.900 |  |  |  | DiT, 9 ms |\n\nIt is so.\n" in text
    asked = "every solver, batches of 16 and more | 1 | 1.050 | 1.050, Heun: DiT, batch 16 | 1.02 | 1 of 1 missed |"
    assert asked in text
    assert "every solver, batch 1 | 1 | 0.900 | 0.900, DDIM: DiT, batch 1 |  |  |" in text
    assert "| a training step |  |  | not measured |  |  |" in text
    said = "### training.step\n\nWith an average of the parameters, and without.\n\nNot measured: `python -m benchmarks.run --only"
    assert said in text
    with pytest.raises(ValueError, match=r"notes\.toml has speed: expected parts of the suite, sampling\.overhead"):
        page.page({}, {"speed": "fast"}, "")
    assert "## On a GPU\n\nNot measured: `python -m benchmarks.gpu`" in text
    assert "## On a GPU\n\n| row |\n\n" in page.page({}, {}, "| row |\n")
    # What is asked for is measured by a part.
    assert {each.part for each in page.ASKED} <= page.known().keys()


def test_the_page_of_the_documents_is_that_of_the_kept_table():
    assert page.PAGE.read_text(encoding="utf-8") == page.page(*page.kept()), "python -m benchmarks.page writes it"
