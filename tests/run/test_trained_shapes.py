"""Trained on sequences, volumes and images with exact laws, networks come near the laws: their configs, minutes each."""

import pytest

from scorelab.experiment.evaluate import read_metrics
from scorelab.run.pipeline import from_config

# About twice what was measured (docs/networks.md). The laws of a network that is wrong are further off.
BOUNDS = {
    "gaussian_process": {"value": 0.12, "half a period apart": 0.2, "increment": 0.2, "distance": 0.2},
    "switching": {"switches": 0.8, "time in the upper state": 0.03, "longest run": 0.8, "spread": 0.03},
    "blobs": {"depth": 0.5, "height": 0.5, "width": 0.5, "amplitude": 0.25, "residual": 1.0},
    "spots": {"row": 0.9, "column": 0.9, "colour": 0.1, "amplitude": 0.2, "residual": 1.0},
}


@pytest.mark.long
@pytest.mark.parametrize("name", BOUNDS)
def test_samples_have_the_laws_of_the_data(name, tmp_path):
    values, _ = read_metrics(from_config(f"shapes/{name}", (), tmp_path / name, resume=False, whole=True))
    found = {value.name.removeprefix("W1 of "): value.value for value in values}
    for statistic, bound in BOUNDS[name].items():
        assert found[statistic] < bound, (statistic, found)
