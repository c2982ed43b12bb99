"""One device, four and eight train, distil and sample alike, however the state lies on them, and exchange what they have to.

Devices are fixed when JAX starts: these laws run in one process with eight of them, which a test starts. The others need none.
"""

import collections
import pathlib
import re
import sys
import tempfile
from dataclasses import replace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from scorelab import config, fk, grids, inversion, invert, sample, sample_to, sampling, solvers
from scorelab.devices import mesh_of_split, whole_along_rows
from scorelab.distill import ConsistencyDistillation
from scorelab.experiment import Train
from scorelab.experiment.checkpoints import Checkpoints
from scorelab.models.nets import MLP, DiT, Transformer, UNet
from scorelab.models.nets.splits import split_axis
from scorelab.training import Memory, OutOfMemory, Sharding, data_mesh, fit, loop, parallel
from scorelab.training.loop import _as_is, compiled
from scorelab.training.memory import batch_that_fits
from tests.apart import on_devices
from tests.programs import sampled
from tests.run.conftest import TINY
from tests.training.small import PROCESS, Points, equal, host, learner

KEY = jax.random.key(0)
# Every array of a tiny network is split that can be.
SPLIT = Sharding(fully_sharded=True, smallest=1)
HYBRID = replace(SPLIT, model=2, activations="batch")
COLLECTIVES = re.compile(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
OPTIMIZER = optax.sgd(0.05, momentum=0.9)


def member(**changes):
    # Momentum and no Adam, which divides by the gradient's size and would blow up the rounding of tiny ones.
    base = learner(optimizer=OPTIMIZER)
    denoiser = replace(base.denoiser, net=MLP(width=16, depth=1, embed=16))
    return replace(base, denoiser=denoiser, **changes)


def trained(sharding, devices, steps=4, state=None, **changes):
    windows = []
    mesh, told = sharding.mesh(jax.devices()[:devices]), []
    options = dict(state=state, mesh=mesh, sharding=sharding, log=windows.append, memory=told.append)
    state = fit(member(**changes), Points(), steps=steps, key=KEY, **options)
    assert told[0].state == sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    return state, windows[-1].by_step


def agree(one, other, rtol=1e-5):
    """Sums of a few hundred float32 numbers in another order, over a few steps: some units in the last place, 6e-8 each."""
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        a, b = np.float64(a), np.float64(b)
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * np.abs(a).max())


def collectives(sharding, devices, **changes):
    """Those of the compiled step, counted by name."""
    mesh = sharding.mesh(jax.devices()[:devices])
    _, update = compiled(member(**changes), _as_is, mesh, sharding=sharding)
    state = sharding.place(jax.eval_shape(member().init, KEY, Points().at(0)), mesh)
    batch = jax.ShapeDtypeStruct((32, 2), np.float32, sharding=NamedSharding(mesh, PartitionSpec("data")))
    lowered = update.lower(state, {"x": batch}, parallel.replicate(KEY, mesh))
    return collections.Counter(COLLECTIVES.findall(lowered.compile().as_text()))


def share(tree):
    """The part of the bytes of a tree that one device has."""
    leaves = jax.tree.leaves(tree)
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves) / sum(leaf.nbytes for leaf in leaves)


def training_agrees():
    one, one_metrics = trained(Sharding(), 1)
    for sharding, devices in ((Sharding(), 8), (SPLIT, 4), (SPLIT, 8), (HYBRID, 8)):
        many, metrics = trained(sharding, devices)
        agree(one, many)
        agree(one_metrics, metrics)
        assert all(leaf.sharding.is_equivalent_to(wanted, leaf.ndim) for leaf, wanted in zip(
            jax.tree.leaves(many), jax.tree.leaves(sharding.of(many, sharding.mesh(jax.devices()[:devices]))), strict=True
        ))  # fmt: skip
        if sharding == SPLIT:
            # Optimiser and averages as the parameters: a device has its part of all, but for biases of two numbers.
            for tree in (many.params, many.opt_state, many.averages):
                assert 1 / devices <= share(tree) < 1 / devices + 0.01
    # A batch in parts, of the same draws; two parts, on one device and on four.
    for sharding, devices in ((Sharding(), 1), (SPLIT, 4)):
        parts, metrics = trained(sharding, devices, accumulate=2)
        agree(one, parts)
        agree(one_metrics, metrics)


def what_is_exchanged():
    # Gradients, loss and metrics in one message.
    assert collectives(Sharding(), 8) == {"all-reduce": 1}
    # Every split parameter comes together once, and nothing else is gathered or moved.
    mesh = SPLIT.mesh(jax.devices()[:4])
    params = jax.eval_shape(member().init, KEY, Points().at(0)).params
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(SPLIT.of(params, mesh)))
    found = collectives(SPLIT, 4)
    assert found["all-gather"] == split
    assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}
    # In parts no more: they are gathered where they are used, in the loop.
    assert collectives(SPLIT, 4, accumulate=2)["all-gather"] == split


def resumed():
    """Bitwise under the same layout; the same numbers under another one."""
    whole, _ = trained(SPLIT, 8)
    half, _ = trained(SPLIT, 8, steps=2)
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder))
        checkpoints.save(2, half)
        stored = checkpoints.restore(2, half)
    assert equal(stored, host(half))
    assert equal(trained(SPLIT, 8, state=stored)[0], whole)
    # From the devices of one layout to those of another, not over the host.
    for sharding, devices in ((Sharding(), 1), (HYBRID, 8)):
        moved = sharding.place(half, sharding.mesh(jax.devices()[:devices]))
        assert equal(moved, half)
        agree(whole, trained(sharding, devices, state=half)[0])


# The event, a network with all kinds of arrays, and those that stay whole: what is thin, or sees everything.
NETWORKS = {
    "DiT": ((4, 4, 1), DiT(patch=2, width=32, depth=1, heads=4), r"^(in|out)/|(^|/)(out|mlp_out|modulation)/bias"),
    "Transformer": ((4, 2), Transformer(width=32, depth=1, heads=4), r"^(in|out)/|(^|/)(out|mlp_out|modulation)/bias"),
    "UNet": (
        (4, 4, 1), UNet(channels=(8, 16), heads=4), r"^(in|out|norm|down1|up0)/|/(norm1|norm|skip)/|/(out|conv2|film)/bias",
    ),
    "MLP": ((2,), MLP(width=32, depth=1, embed=32), r"^(in|out)/|/(out|dense|film)/bias"),
}  # fmt: skip


def networks():
    """The output of a network whose kernels are split four ways, and of those activations between blocks are."""
    for name, (event, net, _) in NETWORKS.items():
        x, c = np.random.default_rng(0).normal(size=(8, *event)).astype(np.float32), np.zeros(8, np.float32)
        params = jax.jit(net.init)(KEY, x[:1], c[:1])
        # The last layer begins at zero, and would hide everything.
        params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(KEY, p.shape), params)
        sharding = Sharding(model=4, smallest=1, activations="positions")
        mesh = sharding.mesh()

        def split(params, x, net=net, c=c, sharding=sharding, mesh=mesh):
            with parallel.laid_out(sharding, mesh):
                return net.apply(params, x, c)

        whole = jax.jit(net.apply)(params, x, c)
        program = jax.jit(split).lower(sharding.place(params, mesh), parallel.shard_batch(x, mesh)).compile()
        agree(whole, program(sharding.place(params, mesh), parallel.shard_batch(x, mesh)))
        assert COLLECTIVES.search(program.as_text()), name


def distillation():
    from tests.distill.test_fdistill import KEY as DISTILL_KEY
    from tests.distill.test_fdistill import Points as Batches
    from tests.distill.test_fdistill import networks

    # Student, fake score, discriminator, and a teacher whose arrays are arguments.
    distil = networks()
    ones, many = (
        fit(distil, Batches(), steps=2, key=DISTILL_KEY, mesh=sharding.mesh(jax.devices()[:devices]), sharding=sharding)
        for sharding, devices in ((Sharding(), 1), (SPLIT, 4))
    )
    # Adam blows up the rounding of small gradients: the tolerance of the same comparison under data parallelism.
    for a, b in zip(*map(jax.tree.leaves, (ones, many)), strict=True):
        a, b = np.float64(a), np.float64(b)
        assert np.all(np.abs(a - b) <= 2e-5 * (1 + np.abs(a))), np.max(np.abs(a - b))
    assert share((many.params, many.fake, many.opt_states)) < 0.3


def samples():
    state, _ = trained(SPLIT, 4)
    four, eight = data_mesh(jax.devices()[:4]), HYBRID.mesh()
    # The weights that a state is split into, and others of the same numbers: over four devices, and by kernels over two of eight.
    places = [(member().model(state), four), (member().model(HYBRID.place(state, eight)), eight)]
    potential = fk.Difference(lambda x: -jnp.sum(x**2, axis=-1), 1.0)
    steered = fk.FeynmanKac(base=solvers.DDIM(eta=1.0), potential=potential, particles=4)
    for solver in (solvers.Heun(), steered):
        drawn = dict(solver=solver, grid=grids.Karras(6), key=KEY, shape=(16, 2))
        one = sample(member().model(host(state)), **drawn)
        for model, mesh in places:
            many = sample(model, mesh=mesh, **drawn)
            agree(one.x, many.x)
            agree(one.log_z, many.log_z)
    # Populations that lie whole on a device, under weights that came together, exchange nothing.
    model, mesh = places[0]
    _, programs = sampled(lambda: sample(model, solver=steered, grid=grids.Karras(6), key=KEY, shape=(16, 2), mesh=mesh))
    assert len(programs) == 2
    assert not any(map(COLLECTIVES.search, programs))


def stays_split():
    """What may fit on no device stays split over the kernels, under the mesh and under "auto", in all that samples."""
    model = member().model(trained(Sharding(model=2, smallest=1), 8)[0])
    mesh = Sharding(model=2, smallest=1).mesh()
    split = lambda tree: sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(tree))
    assert split(model)
    seen = []
    placed = sampling.placed

    def instead(*arguments):
        result = placed(*arguments)
        seen.append((split(result[0]), arguments[-1]))
        return result

    arguments = dict(solver=solvers.Heun(), grid=grids.Karras(6))
    x = sample(model, key=KEY, shape=(16, 2), **arguments).x
    expected = invert(host(model), host(x), **arguments)
    with mock.patch.object(sampling, "placed", instead), mock.patch.object(inversion, "placed", instead):
        for given in (mesh, "auto"):
            agree(x, sample(model, mesh=given, key=KEY, shape=(16, 2), **arguments).x)
            with tempfile.TemporaryDirectory() as folder:
                agree(x, sample_to(folder, model, mesh=given, key=KEY, shape=(16, 2), **arguments).to_numpy())
            agree(expected, invert(model, x, mesh=given, **arguments))
    assert seen == [(split(model), mesh)] * 6
    # Rows may share a dimension with others, and what lies on another mesh comes whole.
    both = NamedSharding(mesh, PartitionSpec(("data", "model"), None))
    leaf = jax.device_put(jnp.arange(16.0).reshape(8, 2), both)
    assert whole_along_rows(leaf, mesh).sharding.shard_shape(leaf.shape) == (4, 2)
    assert whole_along_rows(leaf, data_mesh()).is_fully_replicated
    assert mesh_of_split([leaf]) == mesh
    assert mesh_of_split([np.ones(2), jax.device_put(leaf, NamedSharding(mesh, PartitionSpec("data")))]) is None


def main(*names):
    """Runs in the subprocess: all laws, or those named."""
    assert jax.device_count() == 8
    for law in (training_agrees, what_is_exchanged, resumed, networks, samples, stays_split, distillation):
        if not names or law.__name__ in names:
            law()
    print("agree")


def test_one_device_equals_four_and_eight():
    on_devices(8, "tests.training.test_sharding")


def _place(path):
    return jax.tree_util.keystr(path, simple=True, separator="/").removeprefix("params/")


@pytest.mark.parametrize("name", NETWORKS)
def test_what_of_a_network_is_split(name):
    event, net, whole = NETWORKS[name]
    shapes = jax.eval_shape(lambda: net.init(KEY, jnp.zeros((1, *event)), jnp.zeros(1)))
    leaves = [(_place(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)]
    for place, leaf in leaves:
        axis = split_axis(place, leaf.shape, 4)
        assert (axis is None) == bool(re.search(whole, place)), place
        # Outputs of the first of two products, inputs of the second.
        if place.endswith("/kernel") and axis is not None:
            assert axis == leaf.ndim - (2 if re.search(r"(^|/)(out|mlp_out|dense|conv2|modulation|film)/", place) else 1), place
    # Three does not divide any width here.
    assert all(split_axis(place, leaf.shape, 5) is None for place, leaf in leaves)


def test_an_axis_that_the_devices_do_not_divide_is_not_split():
    # Three devices along data and two along model that do not exist: a layout needs the sizes alone.
    mesh = jax.sharding.AbstractMesh((3, 2), ("data", "model"))
    tree = {
        "qkv": {"kernel": np.zeros((9, 12)), "bias": np.zeros(12)},
        "in": {"kernel": np.zeros((6, 9))},
        "null": np.zeros((4, 5)),
    }
    sharding = Sharding(model=2, fully_sharded=True, smallest=1)
    found = jax.tree.map(lambda layout: layout.spec, sharding.of({"block0": tree}, mesh))["block0"]
    assert found["qkv"]["kernel"] == PartitionSpec("data", "model")
    assert found["qkv"]["bias"] == PartitionSpec("model")
    assert found["in"]["kernel"] == PartitionSpec(None, "data")  # the larger of two that it divides
    assert found["null"] == PartitionSpec()
    assert Sharding(model=2, fully_sharded=True).of(tree, mesh)["in"]["kernel"].spec == PartitionSpec()  # below 1024 elements


def test_memory_is_told_before_the_first_step_and_compiles_nothing_more():
    told, member_ = [], member(accumulate=2)
    state = fit(member_, Points(), steps=2, key=KEY, mesh=data_mesh(jax.devices()[:1]), memory=told.append)
    assert told[0].state == sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert told[0].batch == 32 * 2 * 4
    assert told[0].work > 0
    assert f"{told[0].total / 1000:.3g} kB" in str(told[0])
    _, update = compiled(member_, _as_is, data_mesh(jax.devices()[:1]))
    assert update._cache_size() == 1


class Exhausted:
    """A step for which there is no memory, as XLA says it."""

    def __init__(self, said):
        self.said = said

    def __call__(self, state, batch, key):
        raise jax.errors.JaxRuntimeError(self.said)

    def lower(self, *arguments):
        raise jax.errors.JaxRuntimeError(self.said)


@pytest.mark.parametrize("memory", [None, print])
def test_a_batch_without_memory_is_named_with_one_that_fits(monkeypatch, memory):
    def broken(*arguments):
        init, _ = compiled(*arguments)
        return init, Exhausted("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 10.00G of 1.00G hbm.\nMore")

    monkeypatch.setattr(loop, "compiled", broken)
    with pytest.raises(OutOfMemory, match=r"step 1: a batch of 32 on 1 device does not fit .* a batch of 2 would") as error:
        fit(member(), Points(), steps=1, key=KEY, mesh=data_mesh(jax.devices()[:1]), memory=memory)
    # .9 of 1 GB over 10 GB, of 32; the state is nothing beside it.
    assert (error.value.batch_size, error.value.fits) == (32, 2)
    for remedy in ("accumulate", "remat = True", "bfloat16", "Sharding(fully_sharded=True)", "Used 10.00G of 1.00G"):
        assert remedy in str(error.value)
    monkeypatch.setattr(loop, "compiled", lambda *a: (compiled(*a)[0], Exhausted("INTERNAL: something else")))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        fit(member(), Points(), steps=1, key=KEY, mesh=data_mesh(jax.devices()[:1]), memory=memory)


@pytest.mark.parametrize("given", [False, True])
def test_a_state_without_memory_is_told_as_a_batch_is(monkeypatch, given):
    mesh, said = data_mesh(jax.devices()[:1]), ["RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes"]

    def broken(*arguments):
        raise jax.errors.JaxRuntimeError(said[0])

    told = []
    state = fit(member(), Points(), steps=1, key=KEY, mesh=mesh, memory=told.append)
    if given:
        place = Sharding.place
        shapes = lambda tree: all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))
        monkeypatch.setattr(Sharding, "place", lambda self, tree, on: place(self, tree, on) if shapes(tree) else broken())
    else:
        state = None
        monkeypatch.setattr(loop, "compiled", lambda *arguments: (broken, compiled(*arguments)[1]))
    run = lambda: fit(member(), Points(), steps=2, key=KEY, mesh=mesh, state=state)
    with pytest.raises(OutOfMemory, match=rf"step {1 + given}: a batch of 32 on 1 device does not .* allocating 7 bytes") as error:
        run()
    assert error.value.batch_size == 32
    # The memory of the state is that of one that there was memory for.
    assert str(told[0]) in str(error.value)
    said[0] = "INTERNAL: something else"
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        run()


def test_the_arrays_of_a_learner_without_memory_are_told_as_a_batch_is(monkeypatch):
    """A teacher that does not fit beside its student."""
    mesh, denoiser = data_mesh(jax.devices()[:1]), member().denoiser
    teacher = denoiser.bind(jax.jit(denoiser.init)(KEY, Points().at(0)["x"]))
    loss = ConsistencyDistillation(PROCESS, teacher=teacher)
    student = replace(member(), denoiser=replace(denoiser, predict="consistency"), loss=loss)
    run = lambda **options: fit(student, Points(), steps=1, key=KEY, mesh=mesh, **options)
    place, told = Sharding.place, []
    run(memory=told.append)

    def broken(self, tree, on):
        # The arrays of a learner come by their places, in a dict; a state does not.
        if isinstance(tree, dict) and not isinstance(jax.tree.leaves(tree)[0], jax.ShapeDtypeStruct):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 7 bytes")
        return place(self, tree, on)

    monkeypatch.setattr(Sharding, "place", broken)
    with pytest.raises(OutOfMemory, match=r"step 1: a batch of 32 on 1 device does not .* allocating 7 bytes") as error:
        run()
    # As it would be with memory for the teacher.
    assert str(told[0]) in str(error.value)


def test_the_batch_that_fits_follows_from_what_a_step_needs():
    memory = Memory(state=8, batch=10, work=192, limit=151 / 0.9, devices=4)
    # Ten for the state and its gradients, one for each of 200 examples: 141 are left of 151, in groups of four.
    assert batch_that_fits(200, memory) == 140
    assert batch_that_fits(200, replace(memory, limit=9.0)) == 0
    # Nothing is known: half.
    assert batch_that_fits(200, replace(memory, work=None)) == 100
    assert batch_that_fits(200, replace(memory, limit=float("inf"))) == 100
    assert batch_that_fits(4, memory) == 0
    # The message of the compiler.
    assert batch_that_fits(200, replace(memory, work=None, limit=float("inf")), "used 20.00M of 10.00M hbm") == 88


def test_a_config_says_how_the_state_lies(tmp_path):
    (tmp_path / "split.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom scorelab import experiment\nfrom scorelab import training\n"
        "include 'toys/rings.gin'\nexperiment.Train.sharding = @training.Sharding()\ntraining.Sharding.fully_sharded = True\n"
    )
    stage = config.load(str(tmp_path / "split.gin"), TINY).experiment.one(Train)
    assert stage.sharding == Sharding(fully_sharded=True)
    assert "sharding" in stage.may_change


def test_what_is_refused():
    refused = [
        (lambda: Sharding(model=0), ValueError, r"Sharding\.model = 0: expected an integer >= 1"),
        (lambda: Sharding(fully_sharded=1), ValueError, r"Sharding\.fully_sharded = 1: expected one of True, False"),
        (lambda: Sharding(activations="tokens"), ValueError, r"Sharding\.activations = 'tokens': expected one of None, 'batch'"),
        (lambda: Sharding(activations="positions"), ValueError, r"Sharding\.activations = 'positions' with model = 1"),
        (lambda: Sharding(smallest=0.5), ValueError, r"Sharding\.smallest = 0\.5: expected an integer"),
        (lambda: Sharding(model=3).mesh(jax.devices()[:1]), ValueError, r"Sharding\.model = 3: expected a divisor of the 1 dev"),
        (lambda: data_mesh(jax.devices()[:1], 2), ValueError, r"data_mesh\.model = 2: expected a divisor of the 1 devices"),
        (lambda: data_mesh(3), TypeError, r"data_mesh\.devices = 3: expected devices, such as"),
        (lambda: data_mesh(jax.devices()[:1] * 2), ValueError, r"data_mesh\.devices = .*: expected at least one device, each once"),
        (lambda: run(sharding="fsdp"), TypeError, r"fit\.sharding = 'fsdp': expected a Sharding"),
        (lambda: run(mesh="all"), TypeError, r"fit\.mesh = 'all': expected a Mesh, 'auto' or None"),
        (lambda: run(sharding=Sharding(model=2)), ValueError, r"mesh has the axes .*: expected 'data'"),
        (lambda: run(memory=3), TypeError, r"fit\.memory = 3: expected a function of a Memory, or None"),
        (lambda: member(accumulate=0), ValueError, r"ScoreLearner\.accumulate = 0: expected an integer >= 1"),
        (lambda: run(accumulate=5), ValueError, r"ScoreLearner\.accumulate = 5 for a batch of 32: expected a divisor of it"),
        (lambda: Train(sharding="fsdp"), TypeError, r"Train\.sharding = 'fsdp': expected a Sharding"),
    ]  # fmt: skip
    for wrong, kind, message in refused:
        with pytest.raises(kind, match=message):
            wrong()


def run(accumulate=1, **arguments):
    return fit(member(accumulate=accumulate), Points(), steps=1, key=KEY, **{"mesh": data_mesh(jax.devices()[:1]), **arguments})


if __name__ == "__main__":
    main(*sys.argv[1:])
