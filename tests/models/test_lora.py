"""Low-rank adapters: the sum and its derivative, and a learner whose state is the adapter."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import sample
from scorelab.grids import Karras
from scorelab.losses import DenoisingScoreMatching, EDMWeighting, LogNormalTimes
from scorelab.models import Adapted, Denoiser, LoRA
from scorelab.models.lora import adapted
from scorelab.pretrained.edm import SongUNet
from scorelab.processes import Gaussian
from scorelab.schedules import EDM
from scorelab.solvers import Heun
from scorelab.training import EMA, ScoreLearner, Sharding, data_mesh, fit
from scorelab.training.loop import compiled
from tests.training.small import PROCESS, Net, Points, equal, host

KEY = jax.random.key(0)


def as_it_is(batch):
    return batch


pytestmark = pytest.mark.usefixtures("quick_compilation")


def drawn(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(np.shape(leaf)) / 4, tree)


@pytest.fixture(scope="module")
def frozen():
    """A trained network of points."""
    denoiser = Denoiser(net=Net(width=16), process=PROCESS, predict="edm", data_std=0.6)
    return denoiser.bind(host(denoiser.init(KEY, (2,))))


def learner(model, **options):
    return ScoreLearner(
        LoRA(model=model, **options),
        DenoisingScoreMatching(PROCESS, weighting=EDMWeighting(data_std=0.6), times=LogNormalTimes(mean=-0.5, stratified=True)),
        optax.adam(1e-2),
        ema=EMA(decay=0.9),
    )


def test_merged_and_kept_as_leaves_are_one_function_and_so_is_their_derivative():
    """With convolutions and linear maps, in float64: the sums are formed in another order."""
    net = SongUNet(img_resolution=4, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(4,))
    denoiser = Denoiser(net=net, process=Gaussian(schedule=EDM()))
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda key: denoiser.init(key, (4, 4, 3)), KEY)
        model = denoiser.bind(drawn(shapes))
        lora = LoRA(model=model, rank=2, alpha=3.0)
        adapter = drawn(jax.eval_shape(lambda key: lora.init(key, None), KEY), 1)
        assert {len(shape) for shape in lora.shapes.values()} == {2, 4}
        y, cotangent = drawn((np.zeros((2, 4, 4, 3)),) * 2, 2)

        @jax.jit
        def both(model, adapter):
            loss = lambda model: jnp.vdot(cotangent, model(y, 0.7).denoised)
            kept = lambda a: loss(Adapted(model=model, adapter=lora.adapter(a)))
            merged = lambda a: loss(lora.bind(a))
            full = jax.grad(loss)(lora.bind(adapter))
            return jax.value_and_grad(kept)(adapter), jax.value_and_grad(merged)(adapter), full.params

        kept, merged, full = both(model, adapter)
        assert merged[0].dtype == np.float64
        np.testing.assert_allclose(kept[0], merged[0], rtol=1e-12)
        # The convolution with W + s A B is that with W and that with A, then B.
        kernel = model.params["params"]["enc_4x4_conv"]["kernel"]
        factors = adapter["params/enc_4x4_conv/kernel"]
        by_hand = kernel + 1.5 * np.einsum("hwir,ro->hwio", factors["down"], factors["up"])
        np.testing.assert_allclose(lora.bind(adapter).params["params"]["enc_4x4_conv"]["kernel"], by_hand, atol=1e-13)
        for at, factors in adapter.items():
            # The chain rule: dA = s dW B^T, dB = s A^T dW.
            *path, leaf = at.split("/")
            d = full
            for part in (*path, leaf):
                d = d[part]
            d, down = np.asarray(d).reshape(-1, d.shape[-1]), factors["down"].reshape(-1, 2)
            for grads in (kept[1], merged[1]):
                scale = np.abs(d).max() + 1e-30
                assert np.abs(grads[at]["down"].reshape(-1, 2) - 1.5 * d @ factors["up"].T).max() < 1e-11 * scale
                assert np.abs(grads[at]["up"] - 1.5 * down.T @ d).max() < 1e-11 * scale * len(d)


def test_a_fresh_adapter_changes_nothing(frozen):
    lora = LoRA(model=frozen)
    fresh = lora.init(KEY, None)
    assert equal(lora.bind(fresh).params, frozen.params)
    y = np.ones((3, 2), np.float32)
    ask = jax.jit(lambda model: model(y, 0.5).denoised)
    adapter = lora.adapter(fresh)
    assert equal(ask(Adapted(model=frozen, adapter=adapter)), ask(frozen))
    for at, factors in fresh.items():
        bound = np.prod(lora.shapes[at][:-1]) ** -0.5
        assert np.abs(factors["down"]).max() <= bound
        # The mean square of a uniform number: within 6 standard errors, sqrt(4 / 45) of the mean each.
        assert abs(np.mean(factors["down"] ** 2) * 3 / bound**2 - 1) < 6 * (4 / 5 / factors["down"].size) ** 0.5
    # What else is adapted does not matter.
    one = LoRA(model=frozen, targets="Dense_1/kernel").init(KEY, None)
    assert equal(one, {at: fresh[at] for at in ("params/Dense_1/kernel",)})


def test_a_learner_trains_the_adapter_alone_and_goes_on_as_if_it_had_not_stopped(frozen):
    data = Points(batch_size=64, mean=(1.0, -1.0))
    member = learner(frozen, rank=2, alpha=4.0)
    assert member.network == frozen.denoiser
    before = host(frozen.params)
    losses = []
    state = fit(member, data, steps=60, key=KEY, log=lambda window: losses.extend(window.by_step["loss"]))
    assert equal(frozen.params, before)
    # The state knows the adapter alone: two moments, the average and the numbers themselves.
    small = sum(2 * (np.prod(shape[:-1]) + shape[-1]) for shape in member.denoiser.shapes.values())
    count = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
    assert count(state.params) == small
    assert count(member.ema.params(state.averages[0])) == small
    assert count(state.opt_state) == 2 * small + 1
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    # What is sampled is the frozen network with the average in it.
    trained = member.model(state)
    assert equal(trained.params, adapted(frozen.params, member.denoiser.adapter(member.ema.params(state.averages[0]))))
    half = host(fit(member, data, steps=25, key=KEY))
    # Another object with the same numbers, as a run that is read again has it, in the program that is there.
    again = dataclasses.replace(member, denoiser=dataclasses.replace(member.denoiser, model=frozen.denoiser.bind(before)))
    assert equal(fit(again, data, steps=60, key=KEY, state=half), state)


def test_another_frozen_network_compiles_nothing(frozen):
    member = learner(frozen, rank=2)
    other = frozen.denoiser.bind(jax.tree.map(lambda p: p + np.float32(0.1), frozen.params))
    moved = dataclasses.replace(member, denoiser=LoRA(model=other, rank=2))
    mesh, batch = data_mesh(jax.devices()[:1]), Points().at(0)
    updates = [compiled(each, as_it_is, mesh)[1] for each in (member, moved)]
    init, _ = compiled(member, as_it_is, mesh)
    found = [update(init(batch, KEY), batch, KEY)[0] for update in updates]
    assert updates[0].program is updates[1].program
    assert updates[0].program._cache_size() == 1
    assert not equal(found[0].opt_state, found[1].opt_state)


def test_a_state_that_is_split_and_parts_of_a_batch(frozen):
    data = Points(batch_size=32)
    plain = fit(learner(frozen, rank=2), data, steps=3, key=KEY)
    parts = dataclasses.replace(learner(frozen, rank=2), accumulate=4)
    for found in (
        fit(learner(frozen, rank=2), data, steps=3, key=KEY, sharding=Sharding(fully_sharded=True)),
        fit(parts, data, steps=3, key=KEY),
    ):
        for a, b in zip(*map(jax.tree.leaves, (found.params, plain.params)), strict=True):
            # Adam moves by 1e-2 a step whatever the gradient; sums of 32 examples in another order.
            np.testing.assert_allclose(a, b, atol=2e-4)


def test_an_adapter_is_where_a_learner_begins(frozen):
    first = fit(learner(frozen, rank=2, alpha=4.0), Points(), steps=5, key=KEY)
    kept = Adapted(model=frozen, adapter=LoRA(model=frozen, rank=2, alpha=4.0).adapter(first.params), scale=0.5)
    member = dataclasses.replace(learner(frozen, rank=2, alpha=1.0), initial=kept)
    begun = member.init(KEY, Points().at(0))
    for a, b in zip(*map(jax.tree.leaves, (member.denoiser.bind(begun.params).params, kept.merged().params)), strict=True):
        # Float32: the scale is multiplied in another order.
        np.testing.assert_allclose(a, b, rtol=3e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"LoRA\.init\.like has an adapter of the shapes"):
        dataclasses.replace(learner(frozen, rank=3), initial=kept).init(KEY, Points().at(0))
    with pytest.raises(TypeError, match=r"LoRA\.init\.like"):
        dataclasses.replace(learner(frozen, rank=3), initial=frozen).init(KEY, Points().at(0))


def test_samples_under_a_scale_that_is_swept(frozen):
    lora = LoRA(model=frozen, rank=2)
    adapter = lora.adapter(jax.tree.map(jnp.asarray, drawn(lora.init(KEY, None))))
    draw = lambda model: sample(model, solver=Heun(), grid=Karras(steps=4), key=KEY, shape=(8, 2)).x
    kept = Adapted(model=frozen, adapter=adapter)
    plain, none, whole = (
        draw(model)
        for model in (frozen, dataclasses.replace(kept, scale=np.float32(0)), dataclasses.replace(kept, scale=np.float32(1)))
    )
    # Two programs: float32, of samples of the order of one.
    np.testing.assert_allclose(none, plain, atol=1e-4)
    np.testing.assert_allclose(whole, draw(kept.merged()), atol=1e-4)
    assert np.abs(whole - plain).max() > 0.01


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        (dict(rank=0), ValueError, r"LoRA\.rank = 0"),
        (dict(alpha=-1.0), ValueError, r"LoRA\.alpha = -1\.0"),
        (dict(targets="attention"), ValueError, r"LoRA\.targets = 'attention': expected some of params/Dense_0/kernel"),
        (dict(targets="("), ValueError, r"LoRA\.targets = '\(': expected a regular expression"),
        (dict(targets=3), TypeError, r"LoRA\.targets = 3"),
        (dict(model=None), TypeError, r"LoRA\.model = None: expected a BoundDenoiser"),
    ],
)
def test_bad_fields_are_refused(options, error, match, frozen):
    with pytest.raises(error, match=match):
        LoRA(**({"model": frozen} | options))


def test_factors_that_do_not_fit_are_refused(frozen):
    at = "params/Dense_1/kernel"
    good = {"down": np.zeros((16, 2), "f4"), "up": np.zeros((2, 16), "f4")}
    assert equal(adapted(frozen.params, {at: good}), frozen.params)
    for adapter, match in (
        ({"params/Dense_9/kernel": good}, "adapter of params/Dense_9/kernel"),
        ({at: good | {"up": np.zeros((3, 16), "f4")}}, r"factors \(16, 2\) and \(3, 16\) for an array \(16, 16\)"),
        ({at: good | {"down": np.zeros((1, 2), "f4")}}, r"expected \(16, rank\)"),
        ({at: {"down": good["down"]}}, r"has \['down'\]: expected down and up"),
        ({"params/Dense_1/bias": good}, "for an array"),
    ):
        with pytest.raises(ValueError, match=match):
            adapted(frozen.params, adapter)
