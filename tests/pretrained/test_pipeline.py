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


def near_in_half(asked, half, whole, x):
    """Within what bfloat16 leaves of a network that is within 1e-5 of the oracle in single precision.

    A number keeps eight bits, so that a rounding is off by 2^-9 at most, and by 2^-9 / sqrt 3 on average. Some two hundred of them
    one after the other, which are independent, are off by 14 times that, 1.6e-2; 3e-2 is twice as much. A relative error e turns
    the direction by the cosine 1 - e^2 / 2, above 0.999 up to 4.5e-2. Both see an input of eight bits: drawn networks can be
    steep, and what rounding the input does to them alone is nothing of the computation.
    """
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params) if leaf.ndim > 1} == {"bfloat16"}
    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    found, wanted = asked(half, x), asked(whole, x)
    assert found.dtype == wanted.dtype == jnp.float32
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    # Not in single precision, whose error is below 1e-5.
    assert 1e-4 * np.abs(b).max() < np.abs(a - b).max() < 3e-2 * np.abs(b).max()
    assert np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


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
    asked = jax.jit(lambda model, x: model(x, jnp.float32(501.0), cond).eps)
    near_in_half(asked, narrow("sd", sd_root).model, sd.model, noise)


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
    asked = jax.jit(lambda model, x: model(x, jnp.asarray(t, jnp.float32), cond).eps)
    near(asked(who.model, x), wanted)
    near_in_half(asked, narrow(name, tmp_path).model, who.model, x)
    # The same noise, the data in another scale: x / alpha under noise sigma / alpha.
    if name == "ddpm":
        alpha, sigma = (np.asarray(part(times.astype(float))) for part in (who.model.process.alpha, who.model.process.sigma))
        process = processes.Gaussian(schedule=schedules.EDM(sigma_min=0.002, sigma_max=200.0))
        other = pretrained.model(str(tmp_path / "ddpm-converted"), process=process)
        asked = jax.jit(lambda model: model(x / alpha[:, None, None, None], jnp.asarray(sigma / alpha, jnp.float32)).eps)
        near(asked(other), wanted)
