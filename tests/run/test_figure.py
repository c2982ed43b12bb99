"""Figures by name: what a script declares, keeps and writes, and how results are compared."""

import csv
import io
import json
import os
import runpy
import sys
import tomllib

import numpy as np
import pytest

from scorelab import viz
from scorelab.errors import ConfigError
from scorelab.lock import Lock
from scorelab.run import cli, gallery
from scorelab.run import figure as figures
from scorelab.run.figure import Claim, Figure
from tests.run.conftest import ROOT

SAID = dict(answers="Figure 1", claims="It is so.", look_for="That it is so.", minutes=dict(small=0.1, full=1, gpu=None))
SCRIPT = '''"""Means of normal numbers.

More text.
"""

import numpy as np
from beside import DEVIATION

from scorelab import viz
from scorelab.run.figure import Claim, Figure

FIGURE = Figure(
    __doc__, answers="Figure 1", claims="The mean " "is zero.", look_for="A line at zero.",
    minutes=dict(small=0.1, full=1, gpu=None),
    options=dict(data=("a", "b"), n=64, seeds=2), small=dict(n=16),
)

SHIFT = 0.0


def measure(options, seed):
    print("measuring", seed)
    mean = np.random.default_rng(seed).normal(size=options.n).mean() * DEVIATION + SHIFT
    return dict(mean=mean, row=np.arange(3), none=float("nan"))


def main(record):
    o = record.options
    found = record.cells(measure, {f"seed {s}": (o, s) for s in range(o.seeds)})
    means = np.array([row["mean"] for row in found.values()])
    claim = Claim(says="The mean is zero.", value=means.mean(), spread=means.std(), unit="mean", verdict="reproduced", why="It is.")
    record.write(found, claims=[claim], line=viz.lines({"mean": (np.arange(o.seeds), means)}))


if __name__ == "__main__":
    FIGURE.make(main)
'''


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """A folder of experiments with one figure of one paper, in an otherwise empty working folder."""
    folder = tmp_path / "experiments" / "1234.56789"
    folder.mkdir(parents=True)
    (folder / "means.py").write_text(SCRIPT)
    (folder / "beside.py").write_text('"""What scripts share."""\n\nDEVIATION = 2.0\n')
    monkeypatch.setattr(gallery, "EXPERIMENTS", folder.parent)
    monkeypatch.setattr(gallery, "RESULTS", folder.parent / "results")
    monkeypatch.chdir(tmp_path)
    yield folder
    sys.modules.pop("beside", None)


def drawn(found):
    return [line for line in found.splitlines() if line.startswith("measuring")]


def test_figures_are_listed_without_being_run(paper, capsys):
    assert cli.main(["figure", "--list"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("1234.56789/means: Means of normal numbers.\nanswers   Figure 1\nclaims    The mean is zero.\n")
    assert "small 0.1 min, full 1 min; one accelerator: not measured" in said
    assert "beside" not in said
    assert "measuring" not in said
    assert cli.main(["figure", "--list", "9999"]) == 2
    assert "expected a name, or a paper: 1234.56789" in capsys.readouterr().err


def test_a_figure_writes_pictures_numbers_and_its_record_and_resumes(paper, tmp_path, capsys):
    assert cli.main(["figure", "1234.56789/means", "--small", "--set", "seeds=1"]) == 0
    out = tmp_path / "runs/figures/1234.56789/means/small"
    assert {path.name for path in out.iterdir()} == {"cells", "line.png", "line.pdf", "numbers.csv", "result.json"}
    assert drawn(capsys.readouterr().out) == ["measuring 0"]
    # Another seed adds a cell.
    assert cli.main(["figure", "1234.56789/means", "--small"]) == 0
    assert drawn(capsys.readouterr().out) == ["measuring 1"]
    found = json.loads((out / "result.json").read_text())
    means = [np.random.default_rng(seed).normal(size=16).mean() * 2.0 for seed in (0, 1)]
    assert [row["mean"] for row in found["numbers"].values()] == means
    assert found["numbers"]["seed 0"]["row"] == [0, 1, 2]
    assert found["numbers"]["seed 0"]["none"] == "nan"
    assert found["options"] == dict(data="a", n=16, seeds=2)
    assert found["command"] == "scorelab figure 1234.56789/means --small"
    assert {"scorelab", "jax", "numpy"} <= found["versions"]["packages"].keys()
    assert found["versions"]["devices"]["count"] >= 1
    assert set(found["seconds"]) == {"seed 0", "seed 1"}
    rows = list(csv.DictReader(io.StringIO((out / "numbers.csv").read_text())))
    assert [float(row["value"]) for row in rows if row["name_2"] == "mean"] == means
    assert [row["name_3"] for row in rows if row["name_1"] == "seed 1" and row["name_2"] == "row"] == ["0", "1", "2"]
    # What is said of the figure changes no number; a constant does, also that of what scripts share.
    script, beside = (paper / "means.py").read_text(), (paper / "beside.py").read_text()
    for name, changed, measured in (
        ("means.py", script.replace("at zero", "at 0"), []),
        ("means.py", script.replace("SHIFT = 0.0", "SHIFT = 1.0"), [0, 1]),
        ("beside.py", beside.replace("2.0", "3.0"), [0, 1]),
        ("beside.py", beside, [0, 1]),
    ):
        (paper / name).write_text(changed)
        assert cli.main(["figure", "1234.56789/means", "--small"]) == 0
        assert drawn(capsys.readouterr().out) == [f"measuring {seed}" for seed in measured]
    # Another size has a folder of its own; a damaged cell and --again are measured anew.
    assert cli.main(["figure", "1234.56789/means", "--small", "--set", "n=17"]) == 0
    out = out.with_name("small-n=17")
    said = capsys.readouterr().out
    assert drawn(said) == ["measuring 0", "measuring 1"]
    assert json.loads((out / "result.json").read_text())["command"].endswith("--small --set n=17")
    (damaged,) = out.glob("cells/seed_0-*.npz")
    damaged.write_bytes(b"broken")
    assert cli.main(["figure", "1234.56789/means", "--small", "--set", "n=17"]) == 0
    said = capsys.readouterr().out
    assert drawn(said) == ["measuring 0"]
    assert f"{damaged.name} is damaged" in said
    assert cli.main(["figure", "1234.56789/means", "--small", "--set", "n=17", "--again"]) == 0
    assert len(drawn(capsys.readouterr().out)) == 2


def test_another_choice_and_another_size_have_folders_of_their_own(paper, tmp_path):
    assert cli.main(["figure", "1234.56789/means", "--full", "--set", "data=b"]) == 0
    found = json.loads((tmp_path / "runs/figures/1234.56789/means/full-b/result.json").read_text())
    assert found["options"] == dict(data="b", n=64, seeds=2)
    assert found["command"] == "scorelab figure 1234.56789/means --full --set data=b"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["1234.56789/mean"], "Did you mean 1234.56789/means?"),
        (["1234.56789/means", "--set", "seeds"], "--set seeds: expected option=value"),
        (["1234.56789/means", "--set", "seed=3"], "unrecognized arguments: --seed 3"),
        (["1234.56789/means", "--set", "data=c"], "invalid choice: 'c'"),
        (["1234.56789/means", "--set", "n=many"], "invalid int value: 'many'"),
        (["1234.56789/means", "--set", "n=0"], "--set n=0: expected an integer from 1"),
        (["1234.56789/means", "--set", "seeds=-1"], "--set seeds=-1: expected an integer from 1"),
        (["1234.56789/means", "--set", "out=x"], "--set out=x: expected option=value"),
        (["1234.56789/means", "--set", "n=2", "--set", "n=3"], "--set n=...: it is set twice"),
        (["means"], "Did you mean 1234.56789/means?"),
        ([], "expected a name, --list or --all"),
        (["--all", "--set", "n=3"], "expected the name of one figure"),
    ],
)
def test_what_is_no_figure_or_option_is_refused(paper, tmp_path, capsys, words, said):
    try:
        status = cli.main(["figure", *words])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_options_are_told(paper, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["figure", "1234.56789/means", "--options"])
    assert exit.value.code == 0
    assert "--data {a,b}" in capsys.readouterr().out


def test_all_figures_are_made_and_compared_with_the_record(paper, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (paper / "broken.py").write_text(SCRIPT.replace("DEVIATION = ", "").replace('print("measuring", seed)', "1 / 0"))
    with pytest.raises(SystemExit) as exit:
        cli.main(["figure", "--all", "--small"])
    assert exit.value.code == 1
    said = capsys.readouterr().out
    assert "failed with status 1, see runs/figures/1234.56789/broken/small/make.log" in said
    assert "ZeroDivisionError" in (tmp_path / "runs/figures/1234.56789/broken/small/make.log").read_text()
    assert "no result on record" in said
    (paper / "broken.py").unlink()
    here = tmp_path / "runs/figures/1234.56789/means/small"
    record = tmp_path / "experiments/results/1234.56789/means/small"
    record.mkdir(parents=True)
    text = (here / "result.json").read_text()
    (record / "result.json").write_text(text)
    assert gallery.differences(here) == []
    found = json.loads(text)
    found["claims"][0]["value"] += 10 * found["claims"][0]["spread"]
    (record / "result.json").write_text(json.dumps(found))
    (different,) = gallery.differences(here)
    assert "as on record" in different
    found["claims"].append(dict(found["claims"][0], value=0.0))
    (record / "result.json").write_text(json.dumps(found))
    assert gallery.differences(here)[0].startswith("its claims are ['The mean is zero.']: expected ['The mean is zero.', ")
    found["options"]["n"] = 5
    (record / "result.json").write_text(json.dumps(found))
    assert "its options are" in gallery.differences(here)[0]
    found["options"] |= dict(n=16, seeds=9)
    (record / "result.json").write_text(json.dumps(found))
    assert "its options are" not in gallery.differences(here)[0]


@pytest.mark.parametrize(
    ("here", "there", "same"),
    [
        ((1.0, 0.1), (1.4, 0.1), True),  # 2.8 deviations of the difference
        ((1.0, 0.1), (1.5, 0.1), False),  # 3.5
        ((1.0, 0.0), (1.0005, 0.0), True),
        ((1.0, 0.0), (1.01, 0.0), False),
        (("nan", 0.0), ("nan", 0.0), True),
        (("nan", 0.0), (1.0, 0.0), False),
        (("inf", 0.0), ("inf", 0.0), True),
        ((5.0, 0.0), ("inf", 0.0), False),
    ],
)
def test_numbers_agree_within_their_spread(here, there, same):
    a, b = (dict(value=value, spread=spread, verdict="reproduced") for value, spread in (here, there))
    assert gallery.agree(a, b) is same
    assert not gallery.agree(a, b | dict(verdict="in shape"))


def test_a_claim_of_one_seed_that_says_nothing_is_compared_by_that():
    alone = dict(value=1.0, spread=0.0, verdict="not comparable")
    assert gallery.agree(alone, alone | dict(value=2.0))
    assert not gallery.agree(alone, alone | dict(value=2.0, spread=0.1))
    assert not gallery.agree(alone, alone | dict(verdict="reproduced"))


def test_what_a_figure_states_is_checked():
    with pytest.raises(ValueError, match="expected small, full and gpu"):
        Figure("", **SAID | dict(minutes=dict(small=1)))
    with pytest.raises(ValueError, match=r"Figure\.options has out"):
        Figure("", **SAID, options=dict(out=1))
    with pytest.raises(ValueError, match=r"Figure\.small has m: expected one of the options n"):
        Figure("", **SAID, options=dict(n=1), small=dict(m=1))
    stated = dict(says="", value=1.0, spread=0.0, unit="", verdict="reproduced", why="")
    with pytest.raises(ValueError, match=r"Claim\.verdict = 'yes': expected one of reproduced, in shape"):
        Claim(**stated | dict(verdict="yes"))
    with pytest.raises(ValueError, match=r"Claim\.value has the shape \(2,\)"):
        Claim(**stated | dict(value=np.zeros(2)))


def test_a_cell_is_of_its_arguments(paper):
    def measure(record, x, root):
        return float(np.sum(x))

    record = Figure("", **SAID).record(measure, ["--out", "here"])
    root = paper / "run"
    (root / "checkpoints").mkdir(parents=True)
    assert record.cell("a", measure, record, np.ones(2), root) == 2.0
    before = record._stamp("a", measure, (record, np.ones(2), root))
    others = [
        record._stamp("b", measure, (record, np.ones(2), root)),
        record._stamp("a", measure, (record, np.zeros(2), root)),
        record._stamp("a", measure, (record, np.ones(2), paper)),
    ]
    os.utime(root / "checkpoints", ns=(1, 2**62))
    others.append(record._stamp("a", measure, (record, np.ones(2), root)))
    assert len({before, *others}) == 5
    assert record.cell("A", measure, record, np.zeros(2), root) == 0.0


def test_a_cell_that_goes_through_the_seeds_depends_on_them(paper, capsys):
    text = (paper / "means.py").read_text()
    text = text.replace(
        'found = record.cells(measure, {f"seed {s}": (o, s) for s in range(o.seeds)})',
        'found = {"a": record.cell("all", everything, o)}',
    )
    text = text.replace("def main(", "def everything(options):\n    return dict(mean=sum(one(options)))\n\n\ndef one(options):\n"
                        "    return [measure(options, s)['mean'] for s in range(options.seeds)]\n\n\ndef main(")  # fmt: skip
    text = text.replace("np.arange(o.seeds), means", "np.arange(1), means")
    (paper / "means.py").write_text(text)
    for seeds in ("2", "3"):
        assert cli.main(["figure", "1234.56789/means", "--small", "--set", f"seeds={seeds}"]) == 0
        assert len(drawn(capsys.readouterr().out)) == int(seeds)


def test_the_folder_of_another_figure_is_left_alone(paper, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "there/result.json").write_text('{"name": "1234.56789/other"}')
    (tmp_path / "file").write_text("")
    for out, said in (("there", "it has the result of 1234.56789/other"), ("file", "it is a file; expected a folder")):
        with pytest.raises(SystemExit):
            cli.main(["figure", "1234.56789/means", "--small", "--out", out])
        assert said in capsys.readouterr().err


def test_a_folder_is_written_by_one_process_at_a_time(paper, tmp_path, capsys):
    with Lock(tmp_path / "there", print), pytest.raises(SystemExit):
        cli.main(["figure", "1234.56789/means", "--small", "--out", "there"])
    assert "there is in use by process" in capsys.readouterr().err
    assert cli.main(["figure", "1234.56789/means", "--small", "--out", "there"]) == 0
    assert not (tmp_path / "there/lock").exists()


def test_a_size_may_ask_for_none_of_something(paper):
    figure = Figure("", **SAID, options=dict(n=3, long=5), small=dict(long=0))
    assert figure.record(test_a_size_may_ask_for_none_of_something, ["--small"]).options.long == 0
    with pytest.raises(ConfigError, match="--set n=0: expected an integer from 1"):
        figure.record(test_a_size_may_ask_for_none_of_something, ["--small", "--n", "0"])


def test_numbers_need_names_of_text(paper):
    def main(record):
        record.write({1: 2.0})

    with pytest.raises(TypeError, match="a name of the numbers is 1"):
        main(Figure("", **SAID).record(main, ["--out", "here"]))


def test_a_kept_cell_remembers_what_was_trained_for_it(paper, monkeypatch):
    monkeypatch.setattr(figures, "trained", lambda config, overrides, root: (config, root))

    def measure(record):
        return str(record.trained("a", "quickstart", "STEPS = 1")[0])

    def main(record):
        assert record.cell("one", measure, record) == "quickstart"
        record.write({})
        return record.runs

    # The record itself is no number, so it is no part of what a cell depends on.
    runs = [main(Figure("", **SAID).record(main, ["--out", "here"])) for _ in range(2)]
    assert runs == [{"a": dict(config="quickstart", overrides=["STEPS = 1"])}] * 2


def test_pictures_are_written_as_pdf_too(tmp_path):
    figure = viz.lines({"a": (np.arange(2), np.arange(2))})
    first = viz.save(figure, tmp_path / "a.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert first == viz.save(figure, tmp_path / "b.pdf").read_bytes()


def test_the_gallery_shows_the_results_on_record():
    page = runpy.run_path(str(ROOT / "experiments" / "gallery.py"))["page"]()
    assert page == (ROOT / "docs" / "gallery.md").read_text(), "python experiments/gallery.py writes it"


def test_every_figure_of_this_project_has_a_statement_and_is_installed():
    found = gallery.statements()
    included = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert {f"experiments/{name.partition('/')[0]}" for name in found} <= included.keys()
    for one in found.values():
        assert [text for text in (one.title, one.claims, one.look_for) if not text.endswith(".")] == [], one.name
        # Measured, and within what a newcomer waits for.
        assert 0 < (one.minutes["small"] or 0) <= 5, one.name
    missing = [str(path) for path in gallery.EXPERIMENTS.glob("*/*.py") if "FIGURE.make" in path.read_text() and
               f"{path.parent.name}/{path.stem}" not in found]  # fmt: skip
    assert missing == []
