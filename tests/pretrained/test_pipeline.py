"""Whole pipelines as diffusers saves them: converted, loaded, and what they make."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, pretrained, processes, sample, schedules, solvers, starts
from scorelab.pretrained import kinds, store
from tests.pretrained.crafted import FILES
from tests.references.drawn import digest, drawn

STORED = np.load(FILES.parent / "pretrained_pipeline.npz")
pytestmark = pytest.mark.usefixtures("quick_compilation")


def loaded(name, root):
    """A pipeline, written as it was saved, converted and loaded."""
    info, source = json.loads(str(STORED[f"{name}/info"])), root / name
    for file, text in info["files"].items():
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        (source / file).write_text(text)
    for file, shapes in info["shapes"].items():
        tensors = drawn(shapes)
        assert digest(tensors) == info["sha256"][file], "NumPy draws other numbers: make the file anew"
        store.write_safetensors(source / file, tensors)
    pretrained.convert(source, root / f"{name}-converted")
    return pretrained.load(str(root / f"{name}-converted"))


def narrow(name, root):
    """The same in half precision."""
    return pretrained.load(str(root / f"{name}-converted"), dtype="bfloat16")


@pytest.fixture(scope="module")
def sd_root(tmp_path_factory):
    """Where text to images is written."""
    return tmp_path_factory.mktemp("sd")


@pytest.fixture(scope="module")
def sd(sd_root):
    """Text to images."""
    return loaded("sd", sd_root)


def near(found, wanted, most=1e-5):
    """Within a share of the largest number, that of float32 for single networks and for ten steps alike."""
    wanted = STORED[wanted] if isinstance(wanted, str) else wanted
    assert np.shape(found) == wanted.shape
    assert np.abs(np.asarray(found, np.float64) - wanted).max() < most * np.abs(wanted).max()


def near_in_half(model, found, wanted):
    """Within what bfloat16 leaves of a network.

    A number keeps eight bits, so that each rounding is off by 2^-9 at most, and about by 2^-9 / sqrt 3. Some two hundred layers of
    independent roundings add as their root: 14 times that is 1.6e-2 where none decays, 3e-2 with a factor two to spare. A relative
    error e turns the direction by the cosine 1 - e^2 / 2, which is above 0.999 up to 4.5e-2.
    """
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.params) if leaf.ndim > 1} == {"bfloat16"}
    assert found.dtype == jnp.float32
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    # Half precision it is: single precision is a hundred times nearer.
    assert 1e-4 * np.abs(b).max() < np.abs(a - b).max() < 3e-2 * np.abs(b).max()
    assert np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    print(f"HALF {np.abs(a - b).max() / np.abs(b).max():.2e} {1 - np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b):.2e}")


def test_prompts_and_images_are_those_of_the_oracle(sd):
    near(sd.prompt(STORED["sd/prompts"].tolist()), "sd/context")
    images = STORED["sd/images"].astype(np.uint8)
    near(sd.encode(images), "sd/mean")
    near(sd.latents.decode(jnp.asarray(STORED["sd/latents"], jnp.float32)), "sd/decoded")
    levels = np.clip(np.floor(127.5 * STORED["sd/decoded"] + 128), 0, 255)
    found = np.asarray(sd.decode(jnp.asarray(STORED["sd/latents"], jnp.float32)))
    assert found.dtype == np.uint8
    # A value at the edge of a level may fall to either side.
    assert np.mean(found != levels) < 1e-3
    assert sd.event_shape == (8, 8, 4)
    assert sd.latents.event_shape == sd.event_shape


def test_ten_guided_steps_are_those_of_the_pipeline(sd):
    guided = models.ClassifierFreeGuidance(model=sd.model, scale=7.5)
    noise = jnp.asarray(STORED["sd/noise"], jnp.float32)
    out = sample(
        guided,
        solver=solvers.DDIM(),
        grid=grids.Explicit((*range(901, 0, -100), 0)),
        key=jax.random.key(0),
        shape=noise.shape,
        start=starts.Fixed(noise),
        cond=sd.prompt(STORED["sd/prompts"].tolist()),
    )
    near(out.x, "sd/latents")


def test_the_network_of_texts_in_half_precision_is_that_in_single_precision(sd, sd_root):
    noise, cond = jnp.asarray(STORED["sd/noise"], jnp.float32), sd.prompt(STORED["sd/prompts"].tolist())
    half = narrow("sd", sd_root)
    asked = jax.jit(lambda model: model(noise, jnp.float32(501.0), cond).eps)
    near_in_half(half.model, asked(half.model), asked(sd.model))


@pytest.mark.parametrize("name", ["ddpm", "ncsnpp", "dit"])
def test_a_model_of_a_pipeline_is_its_network(name, tmp_path):
    who = loaded(name, tmp_path)
    x, times = jnp.asarray(STORED[f"{name}/x"], jnp.float32), STORED[f"{name}/times"]
    wanted, cond, t = STORED[f"{name}/output"], None, times
    assert (who.latents is None, who.text) == (name != "dit", None)
    assert who.transform == (kinds.UNIT if name == "ncsnpp" else kinds.LEVELS)
    if name == "dit":
        cond = jnp.asarray(STORED["dit/labels"])
        assert (who.classes, who.decode(x).shape) == (5, (2, 16, 16, 3))
    if name == "ncsnpp":
        # Its network states the score under noise of a level sigma.
        wanted = -times[:, None, None, None] * wanted
        t = who.model.process.schedule.time(-2 * np.log(times))
    asked = jax.jit(lambda model: model(x, jnp.asarray(t, jnp.float32), cond).eps)
    near(asked(who.model), wanted)
    half = narrow(name, tmp_path).model
    near_in_half(half, asked(half), wanted)
    # The same noise, the data in another scale: x / alpha under noise sigma / alpha.
    if name == "ddpm":
        alpha, sigma = (np.asarray(part(times.astype(float))) for part in (who.model.process.alpha, who.model.process.sigma))
        process = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.002, sigma_max=200.0))
        other = pretrained.model(str(tmp_path / "ddpm-converted"), process=process)
        asked = jax.jit(lambda model: model(x / alpha[:, None, None, None], jnp.asarray(sigma / alpha, jnp.float32)).eps)
        near(asked(other), wanted)
