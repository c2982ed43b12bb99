import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.run.conftest import ROOT, TINY, with_sets


def test_a_run_leaves_everything_it_promises(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names == {
        "config.gin", "specs.json", "versions.json", "metrics.jsonl", "timings.jsonl", "checkpoints",
        "samples.npz",
        "samples.png", "trajectory.png", "metrics.json", "report.html", "evaluations.jsonl", "previews",
    }  # fmt: skip
    assert {path.name for path in (tiny_run / "checkpoints").iterdir()} == {"10", "20"}
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["first"], line["step"]) for line in lines] == [(1, 5), (6, 10), (11, 15), (16, 20)]
    assert not {"time", "seconds"} & set(lines[0])
    with np.load(tiny_run / "samples.npz") as file:
        assert file["x"].shape == (64, 2)
        assert np.isfinite(file["x"]).all()
    values = json.loads((tiny_run / "metrics.json").read_text())["metrics"]
    assert all(value["n"] == 64 and value["floor"] is not None for value in values)
    assert json.loads((tiny_run / "specs.json").read_text())["learner"]["denoiser"]["net"]["width"] == 16


def test_a_finished_run_is_left_as_it_is(tiny_run, scorelab):
    before = {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*") if p.is_file() and p.suffix in (".npz", "")}
    status, out, _ = scorelab("run", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", tiny_run, "--resume")
    assert status == 0
    # Before anything that takes time.
    assert out.startswith("config    reading toys/eight_gaussians ...\n")
    assert out.count("nothing to do") == 3
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_a_work_directory_is_never_overwritten(tiny_run, scorelab):
    status, _, err = scorelab("run", "toys/eight_gaussians", *with_sets(*TINY), "--workdir", tiny_run)
    assert status == 2
    assert "--resume" in err
    assert "--workdir" in err
    assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What was trained in a folder where a kill left a temporary file, and not sampled."""
    from scorelab.run.cli import main

    root = tmp_path_factory.mktemp("trained") / "run"
    root.mkdir()
    (root / ".config.gin.77.tmp").write_text("half")
    assert main(["train", "toys/rings", *with_sets(*TINY), "--workdir", str(root), "--resume"]) == 0
    return root


def test_resuming_needs_a_run_and_clears_what_a_kill_left(tmp_path, scorelab, trained):
    (tmp_path / "notes.txt").write_text("mine")
    status, _, err = scorelab("train", "toys/rings", *with_sets(*TINY), "--workdir", tmp_path, "--resume")
    assert status == 2
    assert "holds no run" in err
    assert not list(trained.glob(".*.tmp"))


def test_resuming_with_another_config_names_what_differs(tiny_run, scorelab):
    changed = with_sets(*TINY, "LEARNING_RATE = 0.5")
    status, _, err = scorelab("run", "toys/eight_gaussians", *changed, "--workdir", tiny_run, "--resume")
    assert status == 2
    assert "was run with another config: Experiment.learner.optimizer.update differ" in err


def test_a_work_directory_can_be_sampled_and_evaluated_again(trained, scorelab):
    root = trained
    assert not (root / "samples.npz").exists()
    status, _, err = scorelab("evaluate", root)
    assert status == 2
    assert "scorelab sample" in err
    assert scorelab("sample", root, "--n", 10, "--seed", 3)[0] == 0
    with np.load(root / "samples.npz") as file:
        first = file["x"]
    assert first.shape == (10, 2)
    assert scorelab("sample", root, "--n", 12, "--seed", 3)[0] == 0
    with np.load(root / "samples.npz") as file:
        # A sample depends on the seed and its number, not on how many there are.
        np.testing.assert_array_equal(file["x"][:10], first)
    assert scorelab("evaluate", root)[0] == 0
    assert (root / "report.html").is_file()


def test_data_prints_what_a_set_is(scorelab):
    status, out, _ = scorelab("data", "digits")
    assert status == 0
    assert "digits/train: uint8 (1500, 8, 8, 1), levels 0 to 16, 10 classes, sha256 " in out


QUICK = ("run", "quickstart", "--set")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nope.gin"), "nope.gin: no such config file; shipped configs: "),
        (
            (*QUICK, "nets.MLP.widht = 3"),
            "--set 'nets.MLP.widht = 3': Configurable 'nets.MLP' doesn't have a parameter",
        ),
        ((*QUICK, "nets.MLP.widht = 3"), "Did you mean width?"),
        ((*QUICK, "nets.MPL.width = 3"), "has no MPL. Did you mean MLP?"),
        ((*QUICK, "nowhere.Thing.x = 3"), "'nowhere' was not provided by an import statement"),
        ((*QUICK, "nets.MLP.width = 'a'"), "--set 'nets.MLP.width = 'a'': MLP.width = 'a'"),
        ((*QUICK, "schedules.EDM.sigma_min = -1"), "EDM.sigma_min = -1: expected a finite number above 0"),
        (
            (*QUICK, "experiment.Train.steps ="),
            "--set 'experiment.Train.steps =': Unable to parse value",
        ),
        ((*QUICK, "experiment.Train.steps = %NOTHING"), "%NOTHING is not defined"),
        ((*QUICK, "experiment.Train.batch_size = 5000"), "Batches.batch_size = 5000: expected 1 to n = 1500"),
        (
            (*QUICK, "experiment.Experiment.cpu_devices = 'two'"),
            "Experiment.cpu_devices = 'two': expected an integer",
        ),
        (
            (*QUICK, "experiment.Experiment.stages = @experiment.Sample"),
            "write @experiment.Sample()",
        ),
        ((*QUICK, "grids.Karras.t_max = 1e-9"), "expected 0.0 <= t_min < t_max"),
        (("sample", "/nowhere"), "holds no run"),
        (("data", "nope"), "data nope: expected one of digits, mnist"),
        (("data", "minst"), "Did you mean mnist?"),
        ((*QUICK, "experiment.Sample.guidance = 2.0"), "without label dropout"),
        ((*QUICK, "experiment.Experiment.seed = 4294967296"), "expected an integer seed in [0, 4294967295]"),
        (("data", "digits", "--split", "validation"), "expected one of train, test"),
    ],
)
def test_mistakes_are_one_line_and_status_two(arguments, expected, scorelab, tmp_path):
    where = ("--workdir", tmp_path / "run") if arguments[0] == "run" else ()
    status, _, err = scorelab(*arguments, *where)
    assert status == 2
    assert expected in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_missing_data_says_where_it_was_looked_for(scorelab, tmp_path, monkeypatch):
    monkeypatch.setenv("SCORELAB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SCORELAB_CACHE_DIR", str(tmp_path / "cache"))
    status, _, err = scorelab("data", "mnist", "--no-download")
    assert status == 2
    assert "mnist/train-images-idx3-ubyte.gz" in err
    # As it was written, on lines of its own: two files are missing.
    assert err.count(f"\nlooked in:\n  {tmp_path}/mnist  (no such folder)\n") == 2


HEAD = "from __gin__ import dynamic_registration\nfrom scorelab import experiment\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from scorelab import nothere\n", "a.gin:3: No module named 'scorelab.nothere'"),
        ("include 'b.gin'\n", "a.gin:3: include 'b.gin': no such file"),
        ("\nexperiment.Train.steps = 3 4\n", "a.gin:4: Expected newline"),
        (
            "\n\nexperiment.Experiment.stepz = 3\n",
            "a.gin:5: Configurable 'experiment.Experiment' doesn't have",
        ),
        ("", "a.gin: binds nothing of experiment.Experiment"),
        ("experiment.Experiment.seed = 3\n", "a.gin:3: Experiment.__init__() missing 3 required"),
        (
            "include 'quickstart.gin'\nexperiment.Train.steps = 0\n",
            "a.gin:4: Train.steps = 0: expected an integer",
        ),
        (
            "from scorelab import data\ninclude 'quickstart.gin'\ndata.Named.name = 'x'\n",
            "a.gin:5: Named.name = 'x': expected one of",
        ),
        ("include 'quickstart.gin'\n\nPREDICT = 'noise'\n", "a.gin:5: Denoiser.predict = 'noise'"),
        ("include 'quickstart.gin'\nexperiment.Experiment.seed = %WHAT\n", "a.gin:4: %WHAT is not defined"),
    ],
)
def test_mistakes_in_a_file_name_its_line(text, expected, scorelab, tmp_path, monkeypatch):
    (tmp_path / "a.gin").write_text(HEAD + text)
    monkeypatch.chdir(tmp_path)
    status, _, err = scorelab("run", "a.gin")
    assert status == 2
    assert expected in err
    assert len(err.splitlines()) == 1


def test_debug_shows_the_traceback(tmp_path):
    from scorelab.errors import ConfigError
    from scorelab.run.cli import main

    with pytest.raises(ConfigError):
        main(["run", "nope.gin", "--debug"])


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--seed", "4294967296", "4294967296: expected an integer seed in [0, 4294967295]"),
        ("--seed", "-1", "-1: expected an integer seed"),
        ("--seed", "abc", "abc: expected an integer seed"),
        ("--n", "0", "0: expected an integer >= 1"),
        ("--name", "a/b", "'a/b': expected a name of a file, without a folder"),
    ],
)
def test_options_say_what_they_take(option, value, expected, scorelab):
    status, _, err = scorelab("sample", "runs/a", f"{option}={value}")
    assert status == 2
    assert expected in err


def test_a_failure_names_the_file_and_warnings_are_one_line(scorelab, tmp_path):
    (tmp_path / "a.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom scorelab import solvers\n"
        "include 'toys/rings.gin'\nsolvers.UniPC.predictor_order = 3\n"
    )
    (tmp_path / "file").write_text("")
    status, _, err = scorelab("train", tmp_path / "a.gin", *with_sets(*TINY), "--workdir", tmp_path / "file" / "run")
    assert status in (1, 2)
    first, *_, last = err.splitlines()
    assert first.startswith("scorelab: warning: ")
    assert "solvers.UniPC.predictor_order is not used by this config" in first
    assert str(tmp_path / "file") in last


def in_a_new_process(code):
    """The status, standard output and standard error of Python code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


def test_help_and_version_import_nothing_that_takes_time():
    code = """
import runpy, sys
from scorelab.run.cli import main
for option in ("--help", "--version"):
    try:
        main([option])
    except SystemExit as exit:
        assert exit.code == 0
sys.argv[1:] = ["--version"]
try:
    runpy.run_module("scorelab", run_name="__main__")
except SystemExit as exit:
    assert exit.code == 0
print(sorted({"jax", "numpy", "gin", "flax", "rich"} & set(sys.modules)))
"""
    status, out, err = in_a_new_process(code)
    assert (status, err) == (0, "")
    assert "scorelab run quickstart" in out
    # The second of them by `python -m scorelab`.
    assert out.splitlines()[-3] == out.splitlines()[-2]
    assert out.splitlines()[-2].startswith("scorelab ")
    assert out.splitlines()[-1] == "[]"


def test_names_are_imported_when_they_are_used():
    code = """
import pickle, sys
import scorelab as sl
assert "jax" not in sys.modules
assert set(sl.__all__) <= set(dir(sl))
from scorelab import data, sample
assert sl.fk.FeynmanKac.__name__ == "FeynmanKac"
late = {"config", "pretrained"}
assert all(getattr(sl, name) is not None for name in sl.__all__ if name not in late)
assert pickle.loads(pickle.dumps(sl.NonFiniteSample("a"))).args == ("a",)
assert pickle.loads(pickle.dumps(sl.sample)) is sample
heavy = {"diffrax", "equinox", "ott", "sklearn", "scipy", "orbax", "matplotlib", "gin"}
print(sorted(heavy & set(sys.modules)))
sl.solvers.Diffrax()
try:
    sl.nothing
except AttributeError as error:
    print(error)
"""
    status, out, err = in_a_new_process(code)
    assert (status, err) == (0, "")
    assert out.splitlines() == ["[]", "module 'scorelab' has no attribute 'nothing'"]


def test_an_interrupt_during_imports_is_one_line():
    code = """
import os, signal, sys
# A shell ignores interrupts of what it runs in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "jax":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from scorelab.run.cli import main
sys.exit(main(["run", "quickstart"]))
"""
    assert in_a_new_process(code) == (130, "config    reading quickstart ...\n", "scorelab: interrupted\n")


def test_exploding_training_names_the_step(scorelab, tmp_path):
    explode = with_sets(*TINY, "LEARNING_RATE = 1e30", "training.ScoreLearner.clip_norm = None")
    status, _, err = scorelab("train", "toys/rings", *explode, "--workdir", tmp_path / "run")
    assert status == 1
    assert "at step " in err
    assert len(err.splitlines()) == 1


def test_configs_are_listed_with_what_they_are(scorelab):
    status, out, _ = scorelab("configs")
    assert status == 0
    lines = out.splitlines()
    assert all(re.match(r"\S+ +\S.{10,}", line) for line in lines)
    names = [line.split()[0] for line in lines]
    assert "quickstart" in names
    assert not any(name.startswith("base") for name in names)
    status, out, _ = scorelab("configs", "MNIST/edm")
    assert [line.split()[0] for line in out.splitlines()] == ["mnist/edm", "mnist/edm_cpu"]
    status, _, err = scorelab("configs", "imagenet64")
    assert status == 2
    assert "configs imagenet64: expected part of a name" in err


def test_the_doctor_says_what_there_is_and_tests_it(scorelab):
    status, out, _ = scorelab("doctor")
    assert status == 0
    for said in ("jax", "devices", "digits", "sha256", "samples", "log-likelihood", "reproducible"):
        assert said in out
    assert "FAILED" not in out


def test_a_machine_that_computes_wrong_numbers_is_refused(scorelab, monkeypatch):
    from scorelab.run import doctor

    right = doctor.log_likelihood
    wrong = lambda *args, **kwargs: dataclasses.replace(right(*args, **kwargs), log_prob=right(*args, **kwargs).log_prob + 0.01)
    monkeypatch.setattr(doctor, "log_likelihood", wrong)
    status, out, err = scorelab("doctor")
    assert status == 2
    assert "FAILED" in out
    assert "doctor: log-likelihood failed" in err
