"""The scripts of the experiments, and what the extras install."""

import os
import re
import subprocess
import sys
import tomllib

import pytest

from scorelab.data import DataNotFound
from tests.run.conftest import ROOT

SCRIPTS = [path for path in sorted((ROOT / "experiments").glob("*.py")) if "__main__" in path.read_text()]


def test_a_script_without_its_data_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from recording import script

    def main():
        raise DataNotFound("mnist: file a is missing.\nlooked in:\n  /data")

    monkeypatch.setattr(sys, "argv", ["experiments/figure.py"])
    with pytest.raises(SystemExit) as exit:
        script(main)
    assert exit.value.code == 2
    assert capsys.readouterr().err == "figure.py: error: mnist: file a is missing. looked in: /data\n"
    assert [path.name for path in SCRIPTS if not path.read_text().endswith('__name__ == "__main__":\n    script(main)\n')] == []


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
