"""What reports show of sequences, volumes and images of any kind."""

import numpy as np
import pytest

from scorelab import config
from scorelab.experiment import pictures

SETS = ("gaussian_process", "blobs", "spots")


@pytest.fixture(scope="module")
def experiments():
    short = ["STEPS = 2", "WARMUP = 1", "data.Named.n = 40"]
    return {name: config.load(f"shapes/{name}", short).experiment for name in SETS}


@pytest.mark.parametrize("name", SETS)
def test_samples_trajectories_and_previews_have_a_picture(experiments, name):
    experiment = experiments[name]
    x = experiment.data.load().x
    assert pictures.picture(x, experiment).axes
    states = np.stack([80 * np.random.default_rng(0).normal(size=x[:4].shape), x[:4]]).astype(np.float32)
    assert pictures.trajectory(states, ["t = 80", "t = 0"], experiment).axes
    assert pictures.beside(states, ["step 1", "step 2"], experiment).axes
    # Samples that are far off are a picture as well.
    assert pictures.picture(np.full_like(x, np.nan), experiment).axes


def test_floating_point_images_and_slices_of_volumes_keep_their_order_and_are_shown_in_the_range_of_the_data(experiments):
    experiment = experiments["blobs"]
    x = experiment.data.load().x
    images, levels = pictures.images_of(x[None], experiment)
    assert (images.shape, images.dtype, levels) == ((1, len(x), 12, 6 * 12, 1), np.uint8, 256)
    low, high = x.min(), x.max()
    expected = np.rint(255 * (x - low) / (high - low))
    # Six slices of twelve, the first and the last among them, from left to right.
    for i, depth in enumerate((0, 2, 4, 7, 9, 11)):
        assert np.abs(images[0, :, :, 12 * i : 12 * (i + 1)] - expected[:, depth]).max() <= 1
    shown, _ = pictures.images_of(
        np.array([-5.0, 5.0], np.float32).reshape(2, 1, 1, 1) * np.ones((2, 30, 21, 3), np.float32), experiments["spots"]
    )
    assert (shown[0].max(), shown[1].min()) == (0, 255)


def test_how_much_of_an_event_is_shown(experiments):
    rings = config.load("toys/rings", ["data.Named.n = 40"]).experiment
    assert [pictures.pictured(each, 6) for each in (*experiments.values(), rings)] == [6, 6, 6, pictures.POINTS]
    assert [pictures.frames(each) for each in (*experiments.values(), rings)] == [5, 5, 10, 5]
