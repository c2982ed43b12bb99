import dataclasses
import sys
import warnings

import gin
import numpy as np
import optax
import pytest

from scorelab import config, schedules
from scorelab.config.sources import config_name, find_config
from scorelab.data import Named
from scorelab.errors import ConfigError, ConfigWarning
from scorelab.experiment import DataSpec, Sample, Train, measured_std
from scorelab.experiment.describe import describe


def test_a_config_is_found_by_path_by_its_place_in_a_checkout_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_config("quickstart")
    assert find_config("configs/quickstart.gin") == find_config("quickstart.gin") == find_config(str(shipped)) == shipped
    assert config_name(find_config("mnist/edm")) == "mnist/edm"
    (tmp_path / "quickstart.gin").write_text("")
    assert find_config("quickstart.gin") == tmp_path / "quickstart.gin"
    assert config_name(tmp_path / "quickstart.gin") == "quickstart"
    # By path or by name, every file has a name of its own.
    assert config_name(tmp_path / "configs" / "mnist" / "edm.gin") == "mnist/edm"
    assert config_name(tmp_path / "a" / "digits.gin") == "a/digits"
    assert config_name(tmp_path / "b" / "digits.gin") == "b/digits"
    monkeypatch.chdir(tmp_path.parent)
    assert config_name(tmp_path / "digits.gin") == f"{tmp_path.name}/digits"
    monkeypatch.chdir("/")
    assert config_name(tmp_path / "digits.gin") == str(tmp_path / "digits")[1:]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("quikstart", "quickstart"), ("quickstart.gim", "quickstart"), ("configs/quikstart.gin", "quickstart"),
        ("Quickstart", "quickstart"), ("mnist/edm_cpus", "mnist/edm_cpu"), ("mine/expp.gin", "mine/exp"),
    ],
)  # fmt: skip
def test_a_near_name_is_suggested(name, near, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "exp.gin").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no such config file; shipped.*\nDid you mean {near}\?"):
        find_config(name)


def loaded(name, *overrides):
    """A config and what was said about it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = config.load(str(name), overrides)
    return result, [str(w.message) for w in caught if w.category is ConfigWarning]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("STEP = 5", "the macro STEP is not used by this config: it would change nothing. Did you mean STEPS?"),
        ("LEARNING_RAT = 1e-3", "Did you mean LEARNING_RATE?"),
        ("steps = 5", "Did you mean STEPS?"),
        ("grids.Uniform.steps = 5", "grids.Uniform.steps is not used by this config: it would change nothing."),
        ("grids.Uniform.steps = 5", "Did you mean grids.Karras.steps?"),
        ("solvers.Heun.churn = 2.0", "solvers.Heun is not built; of solvers there are: solvers.DPMSolverPP."),
        ("nets.UNet.blocks = 3", "nets.UNet is not built; of nets there are: nets.MLP."),
        ("foo/grids.Karras.steps = 5", "foo/grids.Karras.steps is not used by this config: it would change nothing."),
        ("foo/grids.Karras.steps = 5", "Did you mean grids.Karras.steps?"),
        ("STEPS = abc", "abc is not a value: expected 'abc' (text), a number, True, False, None, @abc() or %abc"),
        ("STEPS = 'abc'", "decay_steps = %STEPS = 'abc' (--set 'STEPS = 'abc'')"),
        ("STEPS = [1,", "a bracket or a quote is not closed"),
        ("experiment.Train.steps = %STEP", "%STEP is not defined. Did you mean STEPS?"),
        ("data.Named.name = 'dgits'", "Did you mean digits?"),
    ],
)  # fmt: skip
def test_an_override_that_changes_nothing_is_refused(override, expected):
    with pytest.raises(ConfigError) as caught:
        config.load("quickstart", [override])
    assert expected in str(caught.value)


MINE = (
    "from __gin__ import dynamic_registration\nimport optax\nfrom scorelab import grids\nfrom scorelab import solvers\n"
    "from scorelab import experiment\ninclude 'quickstart.gin'\n"
)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("STEP = 5", "a.gin:7: the macro STEP is used by no value. Did you mean STEPS?"),
        ("LEARNING_RAT = 1e-3", "a.gin:7: the macro LEARNING_RAT is used by no value. Did you mean LEARNING_RATE?"),
        ("adm/optax.adam.b1 = 0.5", "a.gin:7: adm/optax.adam.b1: no value names the scope adm."),
    ],
)
def test_a_name_in_a_file_that_is_nowhere_else_is_refused(line, expected, tmp_path):
    (tmp_path / "a.gin").write_text(MINE + line + "\n")
    with pytest.raises(ConfigError) as caught:
        config.load(str(tmp_path / "a.gin"))
    assert expected in str(caught.value)


def test_a_value_in_a_file_that_changes_nothing_is_said(tmp_path):
    (tmp_path / "a.gin").write_text(MINE + "grids.Uniform.steps = 3\nsolvers.Heun.churn = 2.0\n")
    _, (first, second) = loaded(tmp_path / "a.gin")
    assert "a.gin:7: grids.Uniform.steps is not used by this config: it changes nothing. Did you mean grids.Karras.steps?" in first
    assert "a.gin:8: solvers.Heun.churn is not used" in second
    # Said of an included file as well, where a part was not replaced but never named.
    (tmp_path / "b.gin").write_text("include 'a.gin'\n")
    assert loaded(tmp_path / "b.gin")[1] == [first, second]
    # The values of a part that is replaced further down, or by an override, are meant for others who include the file.
    (tmp_path / "a.gin").write_text(MINE + "experiment.Sample.solver = @solvers.Heun()\nWARMUP = 7\n")
    assert loaded(tmp_path / "a.gin", "experiment.Evaluate.evaluations = ()")[1] == []


@pytest.mark.parametrize(
    "name", ["quickstart", "toys/rings", "paper/2510.02730/digits", "paper/2502.15681/digits_sid", "paper/2501.06848/digits"]
)
def test_nothing_is_said_of_a_shipped_config_and_of_what_it_records(name, tmp_path):
    config_, said = loaded(name)
    (tmp_path / "config.gin").write_text(config_.text)
    assert said == loaded(tmp_path / "config.gin")[1] == []


def test_a_config_that_came_with_data_may_be_of_a_version_in_which_an_experiment_had_a_process(tmp_path):
    (tmp_path / "config.gin").write_text(config.load("toys/rings").text + "experiment.Experiment.process = %PROCESS\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        old = config.load(str(tmp_path / "config.gin"), carried=True)
    assert old.specs == config.load("toys/rings").specs
    with pytest.raises(ConfigError, match="doesn't have a parameter named 'process'"):
        config.load(str(tmp_path / "config.gin"))


@pytest.mark.parametrize("name", ["FDistill", "SiD"])
def test_one_that_came_with_data_may_be_of_a_version_in_which_a_distillation_had_a_process(name, tmp_path):
    new = config.load({"FDistill": "paper/2502.15681/digits", "SiD": "paper/2502.15681/digits_sid"}[name])
    (tmp_path / "config.gin").write_text(f"{new.text}distill.{name}.process = None\n")
    assert config.load(str(tmp_path / "config.gin"), carried=True).specs == new.specs
    with pytest.raises(ConfigError, match="doesn't have a parameter named 'process'"):
        config.load(str(tmp_path / "config.gin"))


def test_modules_beside_a_config_and_its_includes_are_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for folder, value in (("one", 3), ("two", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "parts_beside.py").write_text(f"def steps():\n    return {value}\n")
        (tmp_path / folder / "base.gin").write_text(
            "from __gin__ import dynamic_registration\nimport parts_beside\nfrom scorelab import experiment\n"
            "include 'quickstart.gin'\nexperiment.Train.steps = @parts_beside.steps()\n"
        )
    (tmp_path / "mine.gin").write_text("include 'one/base.gin'\n")
    assert config.load(str(tmp_path / "mine.gin")).experiment.one(Train).steps == 3
    # Python would take the module that it has already, silently.
    with pytest.raises(ConfigError, match="the module parts_beside beside it is already imported from"):
        config.load(str(tmp_path / "two" / "base.gin"))
    sys.modules.pop("parts_beside")
    (tmp_path / "mine.gin").write_text("from __gin__ import dynamic_registration\nimport parts_elsewhere\n")
    with pytest.raises(ConfigError, match="No module named 'parts_elsewhere': expected an installed package, or a module beside"):
        config.load(str(tmp_path / "mine.gin"))


def test_loads_do_not_see_each_other_nor_the_process():
    gin.clear_config()
    first = config.load("quickstart", ["schedules.EDM.sigma_max = 7.0"])
    assert first.experiment.process.schedule.sigma_max == 7.0
    with pytest.raises(ConfigError):
        config.load("quickstart", ["schedules.EDM.sigma_max = 'x'"])
    second = config.load("quickstart")
    assert second.experiment.process.schedule.sigma_max == schedules.EDM().sigma_max == 80.0
    assert gin.config_str().strip() == ""
    with pytest.raises(ValueError, match="Could not find"):
        gin.get_configurable("schedules.EDM")


def test_an_override_may_name_what_only_an_include_imports(tmp_path):
    (tmp_path / "a.gin").write_text("include 'toys/rings.gin'\n")
    loaded = config.load(str(tmp_path / "a.gin"), ["nets.MLP.width = 8", "experiment.Sample.solver = @solvers.DDIM()"])
    assert loaded.experiment.learner.denoiser.net.width == 8
    assert type(loaded.experiment.one(Sample).solver).__name__ == "DDIM"


def test_includes_are_looked_up_beside_the_file_not_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "edm.gin").write_text("this is not gin\n")
    monkeypatch.chdir(tmp_path)
    assert config.load("quickstart").name == "quickstart"


def test_a_users_own_module_is_imported_by_the_config(tmp_path):
    (tmp_path / "my_schedules.py").write_text(
        "from dataclasses import dataclass\nfrom scorelab.schedules import EDM\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(EDM):\n    sigma_max: float = 9.0\n"
    )
    (tmp_path / "a.gin").write_text(
        "from __gin__ import dynamic_registration\nimport my_schedules\nfrom scorelab import processes\n"
        "include 'toys/rings.gin'\nprocesses.Gaussian.schedule = @my_schedules.Mine()\n"
    )
    loaded = config.load(str(tmp_path / "a.gin"))
    assert loaded.experiment.process.schedule.sigma_max == 9.0
    sys.modules.pop("my_schedules")


def test_the_operative_text_takes_overrides_without_scopes(tmp_path):
    (tmp_path / "config.gin").write_text(config.load("quickstart").text)
    again = config.load(str(tmp_path / "config.gin"), ["schedules.EDM.sigma_max = 5.0", "nets.MLP.width = 4"])
    assert again.experiment.process.schedule.sigma_max == 5.0
    assert again.experiment.learner.denoiser.net.width == 4


def test_descriptions_show_the_numbers_inside_an_optimiser():
    def text(rate):
        return describe(optax.chain(optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(rate, 10))))

    assert text(1e-3) == text(1e-3) != text(2e-3)


def test_measured_std_is_that_of_the_encoded_data():
    data = DataSpec(dataset=Named(name="rings", n=1000, seed=3))
    assert measured_std(data) == pytest.approx(float(np.std(data.load().x.astype(np.float64))), rel=1e-3)


def test_conditions_go_round_the_classes():
    data = DataSpec(dataset=Named(name="digits"), labels=True)
    np.testing.assert_array_equal(Sample().conditions(data, 12), [*range(10), 0, 1])
    np.testing.assert_array_equal(Sample(classes=(3, 5)).conditions(data, 3), [3, 5, 3])
    assert Sample().conditions(dataclasses.replace(data, labels=False), 4) is None
