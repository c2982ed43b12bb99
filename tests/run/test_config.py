import dataclasses
import sys

import gin
import numpy as np
import optax
import pytest

from scorelab import schedules
from scorelab.run import config
from scorelab.run.describe import describe
from scorelab.run.experiment import DataSpec, SamplingSpec, chained, measured_std
from scorelab.run.sources import ConfigError, config_name, find_config


def test_a_config_is_found_by_path_by_its_place_in_a_checkout_and_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_config("quickstart")
    assert (
        find_config("configs/quickstart.gin")
        == find_config("quickstart.gin")
        == find_config(str(shipped))
        == shipped
    )
    assert config_name(find_config("mnist/edm")) == "mnist/edm"
    (tmp_path / "quickstart.gin").write_text("")
    assert find_config("quickstart.gin") == tmp_path / "quickstart.gin"
    assert config_name(tmp_path / "quickstart.gin") == "quickstart"


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
    loaded = config.load(
        str(tmp_path / "a.gin"), ["nets.MLP.width = 8", "experiment.SamplingSpec.solver = @solvers.DDIM()"]
    )
    assert loaded.experiment.learner.denoiser.net.width == 8
    assert type(loaded.experiment.sampling.solver).__name__ == "DDIM"


def test_includes_are_looked_up_beside_the_file_not_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "edm.gin").write_text("this is not gin\n")
    monkeypatch.chdir(tmp_path)
    assert config.load("quickstart").name == "quickstart"


def test_a_users_own_module_is_imported_by_the_config(tmp_path, monkeypatch):
    (tmp_path / "my_schedules.py").write_text(
        "from dataclasses import dataclass\nfrom scorelab.schedules import EDM\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Mine(EDM):\n    sigma_max: float = 9.0\n"
    )
    (tmp_path / "a.gin").write_text(
        "from __gin__ import dynamic_registration\nimport my_schedules\nfrom scorelab import processes\n"
        "include 'toys/rings.gin'\nprocesses.Gaussian.schedule = @my_schedules.Mine()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
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
        return describe(chained((optax.clip(1.0), optax.adamw(optax.cosine_decay_schedule(rate, 10)))))

    assert text(1e-3) == text(1e-3) != text(2e-3)


def test_measured_std_is_that_of_the_encoded_data():
    data = DataSpec(name="rings", n=1000, seed=3)
    assert measured_std(data) == pytest.approx(float(np.std(data.load().x.astype(np.float64))), rel=1e-3)


def test_conditions_go_round_the_classes():
    data = DataSpec(name="digits", labels=True)
    np.testing.assert_array_equal(SamplingSpec().conditions(data, 12), [*range(10), 0, 1])
    np.testing.assert_array_equal(SamplingSpec(classes=(3, 5)).conditions(data, 3), [3, 5, 3])
    assert SamplingSpec().conditions(dataclasses.replace(data, labels=False), 4) is None
