"""A box of an image, filled in by a stage: what each method does with the known pixels, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab.experiment import DataStart, Inpainting, Sample

BOX = (0, 8, 4, 8)
STOCHASTIC = sl.solvers.DPMSolverPP(order=2, eta=1.0)
SAMPLERS = {
    "replace": dict(solver=sl.solvers.RePaint(repeats=2)),
    "guide": dict(solver=STOCHASTIC),
    "steer": dict(solver=sl.fk.FeynmanKac(base=STOCHASTIC, resample_final=True)),
}


@pytest.fixture(scope="module")
def digits():
    return sl.pretrained.load("digits-edm")


@pytest.mark.parametrize("method", SAMPLERS)
def test_known_pixels_are_kept_and_others_filled_in(digits, method):
    spec = Sample(inpainting=Inpainting(method=method, box=BOX, image=0), grid=sl.grids.Karras(30), **SAMPLERS[method])
    data = digits.config.data
    x = np.asarray(spec.sampler(digits.model, data, None, jax.random.key(0))(shape=(128, 8, 8, 1)).x, np.float64)
    image = np.asarray(data.transform.encode(data.load("test").x[0:1]))
    left = np.sqrt(np.mean((x - image)[:, :, :4] ** 2))
    if method == "replace":
        np.testing.assert_allclose(x[:, :, :4], np.broadcast_to(image[:, :, :4], (128, 8, 4, 1)), atol=1e-6)
    # The noise of the known pixels is .1; the deviation of the data is .73, and weighted particles are few.
    assert left < {"replace": 1e-6, "guide": 0.2, "steer": 0.4}[method]
    # What is filled in varies from sample to sample, and is nearer to the image than another digit is.
    right = x[:, :, 4:]
    assert np.mean(right.std(0)) > 0.03 if method != "steer" else np.mean(right.std(0)) > 0
    other = np.asarray(data.transform.encode(data.load("test").x[:200]))
    assert np.mean((right - image[:, :, 4:]) ** 2) < 0.7 * np.mean((other - image)[:, :, 4:] ** 2)


def test_the_configs_of_the_recipes_are_checked_whole():
    from scorelab import config, experiment

    for name in ("repaint", "inpaint_guided", "inpaint_steered", "image_to_image", "same_noise", "guidance_schedule"):
        experiment.check(config.load(f"recipes/{name}").experiment)


@pytest.mark.parametrize(
    ("fields", "solver", "says"),
    [
        (dict(), STOCHASTIC, "Inpainting.method = 'replace': expected a RePaint"),
        (dict(method="guide"), sl.solvers.RePaint(), "expected another solver than RePaint"),
        (dict(method="steer"), STOCHASTIC, "expected a FeynmanKac without a potential"),
        (dict(image=10**6), sl.solvers.RePaint(), "Inpainting.image = 1000000: expected 0 to"),
        (dict(box=(0, 9, 0, 4)), sl.solvers.RePaint(), r"Inpainting.box = \(0, 9, 0, 4\) for images of shape"),
        (dict(box=(0, 8, 0, 8)), sl.solvers.RePaint(), "expected a part of them"),
    ],
)
def test_what_does_not_fit_is_refused(digits, fields, solver, says):
    with pytest.raises(ValueError, match=says):
        Inpainting(**(dict(box=BOX) | fields)).check(digits.config.data, solver)


def test_a_box_has_four_numbers_and_one_thing_is_done_at_a_time():
    with pytest.raises(ValueError, match=r"Inpainting.box = "):
        Inpainting(box=(0, 1, 2))
    with pytest.raises(ValueError, match=r"Sample.inpainting and Sample.correction"):
        Sample(inpainting=Inpainting(box=BOX), correction=sl.fk.Correction(), solver=SAMPLERS["steer"]["solver"])


def test_a_start_of_noised_data_points_is_near_them(digits):
    data, process = digits.config.data, digits.model.process
    start = DataStart(kind="points")(data, process, None)
    # In the order of a permutation: all of them, each once.
    stored = np.asarray(data.transform.encode(data.load().x), np.float64)
    np.testing.assert_allclose(np.sort(start.points.sum((1, 2, 3))), np.sort(stored.sum((1, 2, 3))), atol=1e-9)
    labelled = dataclasses.replace(data, labels=True)
    label = np.array([3, 7, 7], np.int32)
    points = DataStart(kind="points")(labelled, process, label).points
    x, known = stored, data.load().label
    assert [known[np.argmin(np.abs(x - point).sum((1, 2, 3)))] for point in points] == [3, 7, 7]
