"""Steering, guidance and teleportation in latent space, with rewards on decoded images, on a tiny autoencoder and transformer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import densities, fk, grids, models, sample, solvers, starts
from scorelab.fk import rewards
from scorelab.pretrained import dit, store, vae
from tests.pretrained.drawn_weights import drawn, zeros
from tests.programs import sampled

pytestmark = pytest.mark.usefixtures("quick_compilation")
AUTOENCODER = dict(
    down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, block_out_channels=[4, 8],
    norm_num_groups=2, sample_size=8, scaling_factor=0.9,
)  # fmt: skip
TRANSFORMER = dict(num_attention_heads=1, attention_head_dim=8, num_layers=1, sample_size=4, num_embeds_ada_norm=3, out_channels=8)
GRID = grids.Explicit((900.0, 700.0, 500.0, 300.0, 100.0, 10.0), clean=True)
SHAPE, KEY = (6, 4, 4, 4), jax.random.key(5)
BASE = solvers.DDIM(eta=1.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The model of latents and its autoencoder, each of a converted folder."""
    path, made = tmp_path_factory.mktemp("pipeline"), []
    for module, config, name in ((dit, TRANSFORMER, "DiTTransformer2DModel"), (vae, AUTOENCODER, "AutoencoderKL")):
        found = module.published(zeros(module.shapes(module.network(config))))
        tensors = drawn({key: array.shape for key, array in found.items()}, 2)
        made.append(store.write_folder(path / name, tensors, dict(kind="diffusers", network=dict(config, _class_name=name))))
    return dit.model(made[0]), vae.latents(made[1], chunk=4)


def redness(images):
    return 3 * jnp.mean(images[..., 0] - images[..., 1], (1, 2))


def steered(model, potential, **options):
    solver = fk.FeynmanKac(base=BASE, potential=potential, **options)
    return sample(model, solver=solver, grid=GRID, key=KEY, shape=SHAPE)


def test_weights_are_those_of_the_decoded_samples(pipeline):
    model, latents = pipeline
    guided = models.ClassifierFreeGuidance(model=model, scale=3.0)
    solver = fk.FeynmanKac(
        base=BASE, potential=fk.Difference(rewards.Decoded(reward=redness, decoder=latents), 2.0, every=2), policy=fk.Never()
    )
    out = sample(guided, solver=solver, grid=GRID, key=KEY, shape=SHAPE, cond=jnp.full(6, 1))
    # Without resampling the potentials telescope to the reward of the image itself, whatever was believed on the way.
    wanted = 2 * np.asarray(redness(latents.decode(out.x)))
    assert np.ptp(wanted) > 0.1
    np.testing.assert_allclose(out.log_weights, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    plain = sample(guided, solver=BASE, grid=GRID, key=KEY, shape=SHAPE, cond=jnp.full(6, 1))
    np.testing.assert_allclose(out.x, plain.x, rtol=0, atol=1e-5 * np.abs(plain.x).max())


@pytest.mark.parametrize(("every", "events"), [(1, 5), (2, 2)])
def test_a_decoder_is_called_at_events_only(pipeline, every, events):
    model, latents = pipeline
    calls = []

    def looked_at(images):
        calls.append(images.shape)
        return images.mean((1, 2, 3))

    steered(model, fk.Difference(rewards.Decoded(reward=fk.Callback(looked_at), decoder=latents), 1.0, every=every))
    # Six steps: at their inner nodes that are multiples, and once more for the samples.
    assert calls == [(6, 8, 8, 3)] * (events + 1)


def test_resampling_prefers_what_its_image_earns(pipeline):
    model, latents = pipeline
    strong = fk.Difference(rewards.Decoded(reward=redness, decoder=latents), 4.0)
    out = steered(model, strong, policy=fk.Always(), resample_final=True)
    plain = sample(model, solver=BASE, grid=GRID, key=KEY, shape=SHAPE)
    assert out.diagnostics["resampled"].any()
    assert redness(latents.decode(out.x)).mean() > redness(latents.decode(plain.x)).mean()


def test_other_weights_of_the_decoder_compile_nothing(pipeline):
    model, latents = pipeline
    other = dataclasses.replace(latents, params=jax.tree.map(lambda leaf: 1.1 * leaf, latents.params))
    run = lambda latents: steered(model, fk.Difference(rewards.Decoded(reward=redness, decoder=latents), 2.0, every=2))
    (first, texts), (second, again) = sampled(lambda: run(latents)), sampled(lambda: run(other))
    assert texts == again
    assert np.abs(first.log_weights - second.log_weights).max() > 0
    # The weights of the decoder are arguments of the program; no other of its arrays has the shape of its first kernel.
    assert "f32[3,3,4,8]" in texts[-1].splitlines()[0]


def test_gradients_go_through_the_decoder(pipeline):
    model, latents = pipeline
    reward = rewards.Decoded(reward=redness, decoder=latents)
    y, t = jax.random.normal(KEY, SHAPE), 300.0
    twisted = models.RewardGradient(model=model, reward=reward, scale=0.5)
    found = jax.jit(lambda y: twisted.pull(y, t)[1])(y)
    value = jax.jit(lambda y: reward(model(y, t).denoised))
    direction, step = jax.random.normal(jax.random.key(6), SHAPE), 1e-2
    slope = (value(y + step * direction) - value(y - step * direction)) / (2 * step)
    along = jnp.sum(found * direction, (1, 2, 3))
    # Central differences: the third derivative, and float32 over the step.
    np.testing.assert_allclose(along, 0.5 * slope, rtol=0, atol=5e-3 * float(np.abs(along).max()))
    out = steered(twisted, fk.Difference(reward, 0.5, every=2))
    assert np.isfinite(out.x).all()


def test_teleportation_by_the_moments_of_latents(pipeline):
    model, latents = pipeline
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    law = densities.Gaussian.from_data(latents.blocks(images, jax.random.key(1), batch=16), rank=8, tail="mean")
    whole = latents.encode(latents.transform.encode(images), jax.random.key(1))
    np.testing.assert_allclose(law.mean, whole.mean(0), rtol=0, atol=1e-5)
    noise = float(model.process.sigma(900.0)) * jax.random.normal(KEY, SHAPE)
    walk = lambda grid, start: sample(model, solver=solvers.DDIM(), grid=grid, key=KEY, shape=SHAPE, start=start)
    jumped = walk(GRID, starts.Teleport(law, skip_steps=1, start=starts.Fixed(noise)))
    # The flow of the law in the place of a step, then the rest of the grid.
    landed = law.flow(model.process, noise, 900.0, 700.0)
    rest = walk(grids.Explicit(GRID.values[1:], clean=True), starts.Fixed(landed))
    np.testing.assert_allclose(jumped.x, rest.x, rtol=0, atol=2e-5 * np.abs(rest.x).max())
    assert np.asarray(latents.pixels(jumped.x)).shape == (6, 8, 8, 3)


def test_a_reward_or_decoder_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match=r"Decoded\.reward = 3: expected a function"):
        rewards.Decoded(reward=3, decoder=redness)
    with pytest.raises(TypeError, match=r"Decoded\.decoder = None: expected a function"):
        rewards.Decoded(reward=redness, decoder=None)
