"""Steering and corrected guidance of models of texts as figures, on a tiny pipeline in the published format."""

import dataclasses
import importlib
import json
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import fk, grids, pretrained, sample
from scorelab.errors import ConfigError, WeightsError
from scorelab.pretrained import scheduler
from scorelab.run import prompted
from scorelab.run.cli import main
from scorelab.run.gallery import EXPERIMENTS
from tests.pretrained.test_clip import converted
from tests.pretrained.test_pipeline import loaded

pytestmark = pytest.mark.usefixtures("quick_compilation")
TEXTS = ["a cat", "Dog, dog!"]
STEPS, EVERY, MOST, NODES = 10, 2, 4, (2, 4, 6, 8)
SCALE = 0.05
# A reward of another framework: how red images are, or how green, by the prompt.
HOST = """
import numpy as np

def reward(prompt, images):
    assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
    return images[..., 0 if "cat" in prompt else 1].mean((1, 2)) - images[..., 2].mean((1, 2))
"""


def scored(i, images):
    """What the file says of decoded images."""
    levels = np.clip(np.floor(127.5 * np.asarray(images, np.float64) + 128), 0, 255)
    return levels[..., i].mean((1, 2)) - levels[..., 2].mean((1, 2))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a pipeline, a CLIP, a reward and prompts."""
    root = tmp_path_factory.mktemp("texts")
    loaded("sd", root)
    converted(root, "both")
    (root / "host.py").write_text(HOST)
    (root / "prompts.txt").write_text("a cat\n\n  Dog, dog!  \n")
    return root


@pytest.fixture(scope="module")
def scripts():
    """The two scripts, by their names."""
    before, path, found = set(sys.modules), list(sys.path), {}
    for paper, name in (("2501.06848", "stable_diffusion"), ("2503.02819", "latent_guidance")):
        sys.path.insert(0, str(EXPERIMENTS / paper))
        found[name] = importlib.import_module(name)
    sys.path[:] = path
    yield found
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXPERIMENTS)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def subject(place):
    return prompted.Subject(str(place / "sd-converted"), prompts=place / "prompts.txt")


@pytest.fixture(scope="module")
def judge(subject, place):
    return prompted.Judge(subject, "host", host=place / "host.py")


@pytest.fixture(scope="module")
def trials(scripts, subject, judge):
    """Name -> how a script samples, with more or other options."""
    usual = dict(steps=STEPS, every=EVERY, most=MOST, scale=SCALE, guidance=7.5, potential="max", clamp=0.0)
    return lambda name, **more: scripts[name].Trial(subject, judge, SimpleNamespace(**(usual | more)))


def plain(subject, i, seed, n, **how):
    """What the pipeline samples under guidance, with the noise of the figures."""
    script = how.pop("base")
    return sample(
        subject.guided(7.5), solver=script.BASE, grid=grids.Explicit((*range(901, 0, -100), 0)), chunk=n,
        key=jax.random.fold_in(jax.random.key(seed), i), shape=(n, 8, 8, 4), cond=subject.cond(i, n), **how,
    )  # fmt: skip


def figure(name, out, **options):
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    assert main(["figure", name, "--small", *words, "--out", str(out)]) == 0
    return json.loads((out / "result.json").read_text())


def test_a_grid_is_that_of_the_scheduler(subject):
    assert subject.grid(10) == grids.Explicit((*range(901, 0, -100), 0))
    assert subject.grid(100).values[:2] == (991.0, 981.0)
    betas = dict(num_train_timesteps=1000)
    found = lambda steps, **more: scheduler.steps_of(betas | more, steps)
    # As the schedulers of diffusers 0.42.1 list their times.
    assert found(4) == grids.Explicit((750, 500, 250, 0), clean=True)
    assert found(3, steps_offset=1) == grids.Explicit((667, 334, 1), clean=True)
    assert found(4, set_alpha_to_one=False) == grids.Explicit((750, 500, 250, 0))
    assert found(4, timestep_spacing="trailing") == grids.Explicit((999, 749, 499, 249), clean=True)
    assert found(4, timestep_spacing="trailing", set_alpha_to_one=False) == grids.Explicit((999, 749, 499, 249, 0))
    for steps, more, error, reason in (
        (3, dict(timestep_spacing="trailing"), ValueError, r"steps_of\.steps = 3: expected a divisor of 1000"),
        (1001, {}, ValueError, r"steps_of\.steps = 1001: expected at most 1000"),
        (4, dict(timestep_spacing="linspace"), WeightsError, "timestep_spacing = 'linspace': expected leading or trailing"),
        (4, dict(steps_offset=250), WeightsError, "steps_offset = 250 in 4 steps asks at 1000: expected levels up to 999"),
        (4, dict(steps_offset=-1), WeightsError, "steps_offset = -1: expected an integer from 0"),
    ):
        with pytest.raises(error, match=reason):
            found(steps, **more)


@pytest.mark.parametrize("potential", ["max", "difference"])
def test_one_particle_is_plain_sampling(potential, trials, scripts, subject):
    trial = trials("stable_diffusion", potential=potential)
    steered = trial.walk(trial.steering(1, 1), 1, 3, 1)
    wanted = plain(subject, 1, 3, 1, base=scripts["stable_diffusion"]).x
    # Two programs of the same numbers: the rounding of ten guided steps.
    np.testing.assert_allclose(steered.x, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    assert not steered.diagnostics["resampled"].any()


@pytest.mark.parametrize("potential", ["max", "difference"])
def test_weights_are_those_of_the_decoded_beliefs(potential, trials, scripts, subject):
    """By hand along the trajectory of the plain sampler, which is that of particles that are never resampled."""
    trial = trials("stable_diffusion", potential=potential)
    never = dataclasses.replace(trial.steering(0, MOST), policy=fk.Never())
    out = trial.walk(never, 0, 5, MOST)
    path = plain(subject, 0, 5, MOST, base=scripts["stable_diffusion"], keep="all")
    np.testing.assert_allclose(out.x, path.x, rtol=0, atol=1e-5 * np.abs(path.x).max())
    times, cond = subject.grid(STEPS).values, subject.cond(0, MOST)
    believed = [subject.guided(7.5)(path.trajectory[k], times[k], cond).denoised for k in NODES]
    r = SCALE * np.array([scored(0, subject.decoded(z)) for z in believed])
    # The sum of the gains up to an event is that of the largest rewards so far, or the reward there.
    sums = np.cumsum(np.maximum.accumulate(r, 0), 0) if potential == "max" else r
    # Pixels at the edge of a level, one of 256 numbers of which each is the mean.
    for k, wanted in zip(NODES, sums, strict=True):
        np.testing.assert_allclose(out.diagnostics["ess"][0, k], fk.ess(jnp.asarray(wanted)), rtol=1e-3)
    assert np.ptp(sums, axis=1).min() > 0.1
    np.testing.assert_allclose(out.log_weights, SCALE * scored(0, subject.decoded(out.x)), atol=1e-3)


def test_particles_are_resampled_at_events_and_keep_what_is_left(trials, subject):
    """After the last event a weight is what the image is worth above the belief of its ancestor."""
    trial = trials("stable_diffusion", potential="difference")
    o, solver = trial.options, dataclasses.replace(trial.steering(0, MOST), record_ancestors=True)
    out = sample(
        subject.guided(o.guidance), solver=solver, grid=subject.grid(STEPS), key=jax.random.key(0), shape=(MOST, 8, 8, 4),
        cond=subject.cond(0, MOST), keep="all", chunk=MOST,
    )  # fmt: skip
    assert tuple(np.flatnonzero(out.diagnostics["resampled"][0])) == NODES
    assert trial.events() == len(NODES)
    last, t = NODES[-1], subject.grid(STEPS).values[NODES[-1]]
    belief = subject.guided(o.guidance)(out.trajectory[last], t, subject.cond(0, MOST)).denoised
    before = scored(0, subject.decoded(belief))[out.diagnostics["ancestors"][0, last]]
    np.testing.assert_allclose(out.log_weights, SCALE * (scored(0, subject.decoded(out.x)) - before), atol=1e-3)


def test_the_record_of_steering(trials, scripts, subject, place, tmp_path):
    options = dict(
        model=place / "sd-converted", prompts=place / "prompts.txt", reward="host", host=place / "host.py", scale=SCALE,
        guidance=7.5, steps=STEPS, every=EVERY, most=MOST, seeds=1, first=2,
    )  # fmt: skip
    record = figure("2501.06848/stable_diffusion", tmp_path / "out", **options)
    numbers = record["numbers"]
    assert list(numbers["prompts"]) == [f"{i} {text}" for i, text in enumerate(TEXTS)]
    for i, text in enumerate(TEXTS):
        one = numbers["prompts"][f"{i} {text}"]["0"]
        drawn = plain(subject, i, 0, MOST, base=scripts["stable_diffusion"])
        wanted = scored(i, subject.decoded(drawn.x))
        # A pixel that falls to the other side of a level, of 256 of a channel.
        np.testing.assert_allclose(one["unsteered"], wanted, atol=0.02)
        assert list(one["steered"]) == ["2", "4"]
        for k, found in one["steered"].items():
            assert np.shape(found["reward"]) == (int(k),)
            assert sum(found["weights"]) == pytest.approx(1)
            assert found["resampled"] <= len(NODES)
            np.testing.assert_allclose(found["weights"], jax.nn.softmax(np.array(found["log_weights"])), rtol=1e-5)
    # The best of all draws by best-of-4, and the mean over pairs by best-of-2.
    table = scripts["stable_diffusion"].table
    rows = np.array([numbers["prompts"][f"{i} {text}"]["0"]["unsteered"] for i, text in enumerate(TEXTS)])
    np.testing.assert_allclose(table(numbers, "best of k", "best")[2], rows.max(1))
    np.testing.assert_allclose(table(numbers, "best of k", "best")[1], rows.reshape(2, 2, 2).max(2).mean(1))
    np.testing.assert_allclose(table(numbers, "steered", "mean")[0], rows.mean(1))
    # Two calls of the network for each of 4 + 2 + 4 samples and step; a sample is looked at in its events and twice at its end.
    cost = numbers["cost_of_a_prompt"]
    assert (cost["calls"], cost["looks"]) == (10 * STEPS, 4 + 6 * (len(NODES) + 2))
    free = prompted.operations(prompted._asked, subject.model, jnp.zeros((1, 8, 8, 4)), jnp.ones(()), subject.cond(0, 1))
    assert cost["gflop_a_call"] == pytest.approx(2e-9 * free, rel=0.05)
    assert {claim["verdict"] for claim in record["claims"]} <= {"reproduced", "in shape", "not reproduced"}


def test_clip_looks_at_decoded_images_under_each_prompt(place, subject):
    judge = prompted.Judge(subject, "clip", clip=str(place / "both"), tokenizer=place / "sd1")
    images = subject.decoded(jax.random.normal(jax.random.key(0), (3, 8, 8, 4)))
    sizes = []
    for i, text in enumerate(TEXTS):
        wanted = pretrained.clip_cosine(place / "both", place / "sd1", text)(images)
        np.testing.assert_allclose(judge(i, images), 100 * np.asarray(wanted), atol=1e-3)
        sizes.append(prompted._looked._cache_size())
    # Another prompt compiles nothing.
    assert sizes[0] == sizes[1]
    points = judge.points(images)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1, atol=1e-5)
    pairs = [1 - points[a] @ points[b] for a in range(3) for b in range(a)]
    assert prompted.apart(points) == pytest.approx(np.mean(pairs))


def test_a_prompt_of_the_host_compiles_nothing(subject, judge):
    images = subject.decoded(jax.random.normal(jax.random.key(0), (3, 8, 8, 4)))
    found, sizes = [], []
    for i in range(2):
        found.append(judge(i, images))
        sizes.append(prompted._looked._cache_size())
        np.testing.assert_allclose(found[i], scored(i, images), atol=1e-3)
    assert np.abs(found[0] - found[1]).max() > 1
    assert sizes[0] == sizes[1]


def test_weights_of_guidance_are_those_of_the_two_scores(trials, subject):
    """By hand along the trajectory: the trapezoid of g^2/2 w (w - 1) |s_c - s_0|^2."""
    trial, w = trials("latent_guidance"), 7.5
    o = trial.options
    never = trial.walk(0, 7, MOST, policy=fk.Never(), resample_final=False)
    corrected = fk.geometric(subject.model, subject.model, np.float32(w))
    path = sample(
        corrected.model, solver=sys.modules["latent_guidance"].BASE, grid=subject.grid(o.steps), start=corrected.start,
        key=jax.random.fold_in(jax.random.key(7), 0), shape=(MOST, 8, 8, 4), cond=subject.cond(0, MOST), chunk=MOST, keep="all",
    )  # fmt: skip
    np.testing.assert_allclose(never.x, path.x, rtol=0, atol=1e-5 * np.abs(path.x).max())
    times, levels, rates = np.array(subject.grid(STEPS).values), subject.model.process.schedule.levels(), []
    log_snr = np.log(levels / (1 - levels))
    for y, t in zip(path.trajectory, times, strict=True):
        difference = subject.model(y, t, subject.cond(0, MOST)).score - subject.model(y, t).score
        # Of a variance-preserving process g^2 is the noise times the fall of the log-SNR, which is linear between two levels.
        g2 = (1 - levels[int(t)]) * (log_snr[int(t)] - log_snr[int(t) + 1])
        rates.append(0.5 * g2 * w * (w - 1) * np.sum(np.asarray(difference, np.float64) ** 2, (1, 2, 3)))
    wanted = np.sum(-np.diff(times)[:, None] * (np.array(rates)[1:] + np.array(rates)[:-1]) / 2, axis=0)
    assert np.ptp(wanted) > 1
    # The rate is a difference of squares: at t = 1, of 56 * 256 / .0017 with a unit of float32 of .5, times g^2 / 2 = .0004 and 50.
    np.testing.assert_allclose(never.log_weights, wanted, atol=0.02)


def test_guidance_of_weight_one_is_left_alone(trials):
    trial = trials("latent_guidance", guidance=1.0)
    one, many = trial.walk(1, 2, 1), trial.walk(1, 2, MOST, resample_final=False, policy=fk.Never())
    np.testing.assert_allclose(many.x, one.x, rtol=0, atol=1e-5 * np.abs(one.x).max())
    # The squares of scores, which cancel: float32 of sums of 256 numbers.
    np.testing.assert_allclose(many.log_weights, 0, atol=1e-3)


def test_the_record_of_corrected_guidance(scripts, subject, place, tmp_path):
    options = dict(
        model=place / "sd-converted", prompts=place / "prompts.txt", reward="clip", clip=place / "both", tokenizer=place / "sd1",
        guidance=20.0, clamp=1.0, steps=STEPS, most=MOST, seeds=1, first=1,
    )  # fmt: skip
    record = figure("2503.02819/latent_guidance", tmp_path / "out", **options)
    numbers = record["numbers"]
    (one,) = numbers["prompts"].values()
    rows = one["0"]
    assert (list(one), list(rows)) == (["0"], ["1", "2", "4"])
    # Guidance alone: all particles are their own ancestors, and the weights say nothing.
    assert (rows["1"]["ess"], rows["1"]["roots"], rows["1"]["clipped"], rows["1"]["inside"]) == (1, 1, 0, "nan")
    assert rows["4"]["across"] == "nan"
    assert all(np.shape(row["reward"]) == (MOST,) for row in rows.values())
    assert all(0 < row["min_ess"] <= row["ess"] <= 1 for row in rows.values())
    # Copies of one another are nearer than independent images.
    assert rows["4"]["roots"] < 1
    assert len(record["claims"]) == 3


def test_a_model_of_classes_takes_lines_of_a_class_and_its_text(tmp_path):
    loaded("dit", tmp_path)
    (tmp_path / "prompts.txt").write_text("3 a photo of a tench\n1 a photo of a shark\n")
    found = prompted.Subject(str(tmp_path / "dit-converted"), prompts=tmp_path / "prompts.txt", first=1)
    assert found.texts == ["a photo of a tench"]
    assert found.cond(0, 2).tolist() == [3, 3]
    assert found.grid(10) == grids.Explicit(tuple(range(900, -1, -100)), clean=True)
    for text, reason in (
        ("5 a fish", "'5 a fish': expected a class from 0 to 4"),
        ("tench", "expected a class"),
        ("\n", "nothing inside"),
    ):
        (tmp_path / "prompts.txt").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            prompted.Subject(str(tmp_path / "dit-converted"), prompts=tmp_path / "prompts.txt")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(reward="clip"), "tokenizer = None: expected the folder of the tokenizer of the CLIP"),
        (dict(reward="clip", tokenizer="sd1", clip="nothing"), "no such converted model"),
        (dict(reward="aesthetic"), "predictor = None: expected the file of the aesthetic predictor"),
        (dict(reward="host"), r"host = None: expected a Python file with a function reward\(prompt, images\)"),
        (dict(reward="host", host="empty.py"), r"host = empty\.py: expected a function reward\(prompt, images\) in it"),
        (dict(reward="classifier"), "reward = classifier: expected a model of classes that was trained here"),
        (dict(prompts="nothing.txt"), r"prompts = nothing\.txt: .*: expected a text file with a prompt on each line"),
        (dict(most=3), "most = 3: expected a power of two from 2"),
        (dict(every=9), "every = 9 of 10 steps: no event between 0.2 and 0.8 of them"),
        (dict(model="digits-edm"), "model = digits-edm: it is told neither texts nor classes"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(options, reason, place, tmp_path, capsys):
    (place / "empty.py").write_text("")
    paths = ("prompts", "tokenizer", "host", "clip", "model")
    here = {k: v if v in ("nothing", "digits-edm") else place / v for k, v in options.items() if k in paths}
    usual = dict(model=place / "sd-converted", reward="host", steps=STEPS, every=EVERY, most=MOST)
    usual |= {} if options.get("reward") else dict(host=place / "host.py")
    with pytest.raises(SystemExit) as exit:
        figure("2501.06848/stable_diffusion", tmp_path / "out", **(usual | options | here))
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(reason, said), said
    assert not (tmp_path / "out" / "cells").exists()
