"""The scripts of the experiments, what they share, and what the extras install."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib

import jax
import numpy as np
import pytest

from scorelab.data import DataNotFound
from scorelab.errors import ConfigError
from scorelab.experiment import trained_state
from scorelab.experiment.workdir import Workdir
from scorelab.run.figure import plus_minus, script, trained
from scorelab.run.gallery import statements
from tests.run.conftest import ROOT, TINY

EXPERIMENTS = ROOT / "experiments"
SCRIPTS = [path for path in sorted(EXPERIMENTS.rglob("*.py")) if "__main__" in path.read_text()]
BENCHMARKS = [ROOT / "benchmarks" / f"{name}.py" for name in ("run", "first_hour", "reliability")]


def test_a_script_without_its_data_says_so_in_one_line(monkeypatch, capsys):
    def main():
        raise DataNotFound("mnist: file a is missing.\nlooked in:\n  /data")

    monkeypatch.setattr(sys, "argv", ["experiments/figure.py"])
    with pytest.raises(SystemExit) as exit:
        script(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "figure.py: error: mnist: file a is missing. looked in: /data\n"
    ends = tuple(f'__name__ == "__main__":\n    {call}(main)\n' for call in ("script", "FIGURE.make"))
    assert [path.name for path in SCRIPTS if not path.read_text().endswith(ends)] == []


@pytest.mark.parametrize("path", SCRIPTS + BENCHMARKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_script_finds_what_it_imports_and_tells_its_command(path, monkeypatch, capsys):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(path), run_name="__main__")
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith((str(EXPERIMENTS), str(ROOT / "benchmarks"))):
            del sys.modules[name]
    assert exit.value.code == 0
    name = f"{path.parent.name}/{path.stem}"
    command = f"scorelab figure {name}" if name in statements() else f"python {path.relative_to(ROOT)}"
    command = "python -m benchmarks.run" if name == "benchmarks/run" else command
    assert command in capsys.readouterr().out


def test_a_finished_training_is_used_again_and_a_longer_one_refused(tiny_run, tmp_path):
    root = shutil.copytree(tiny_run, tmp_path / "run")
    experiment, state = trained("toys/eight_gaussians", TINY, root)
    stored, step = trained_state(experiment, Workdir(tiny_run))
    assert (int(state.step), step) == (20, 20)
    assert all(map(np.array_equal, jax.tree.leaves(state.params), jax.tree.leaves(stored.params)))
    assert (root / "metrics.jsonl").read_bytes() == (tiny_run / "metrics.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"is at step 20, past Train\.steps = 10"):
        trained("toys/eight_gaussians", [*TINY, "experiment.Train.steps = 10"], root)


def test_means_and_deviations():
    # Deviation of two numbers at a distance of 2: sqrt(2), and none of one.
    assert plus_minus([1.0, 3.0]) == "2.000 ± 1.414"
    assert plus_minus([0.25], 2) == "0.25 ± 0.00"


def test_the_peers_can_be_installed_beside_this_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Its requirements include dctorch, of which every release asks for numpy < 2.
    assert not any("k-diffusion" in requirement for requirement in project["optional-dependencies"]["peers"])
    assert any(re.match(r"numpy>=2", requirement) for requirement in project["dependencies"])


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("SCORELAB_TEST_INSTALL"), reason="SCORELAB_TEST_INSTALL is not set (asks a package index)")
def test_the_peers_resolve():
    install = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", f"{ROOT}[peers]"]
    # A minute where the index answers; backtracking took more than eight.
    subprocess.run(install, check=True, timeout=300, capture_output=True)
