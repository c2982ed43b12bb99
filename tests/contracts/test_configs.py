"""Every file in ``configs/`` parses, resolves and runs two steps; what it records builds equal specs."""

import functools
import gzip
import io
import json
import struct
import tarfile
from dataclasses import replace
from types import MappingProxyType

import jax
import numpy as np
import pytest

from scorelab import config
from scorelab.config.sources import CONFIG_ROOTS, INCLUDE
from scorelab.data import PublishedFile, registry
from scorelab.data.files import sha256
from scorelab.data.loaders import CifarBinary, IdxImages, IdxSplit
from scorelab.experiment import Evaluate, ImageEvaluation, Sample, Train, check, checks
from scorelab.experiment.train import coupled, state_like
from scorelab.run.cli import main
from tests.pretrained import drawn

ROOT = next(root for root in reversed(CONFIG_ROOTS) if root.is_dir()).resolve()
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.gin"))
BLOCKS = [name for name in FILES if name.startswith("base/")]
RUNNABLE = [name for name in FILES if name not in BLOCKS]

SHORT = (
    "STEPS = 2",
    "WARMUP = 1",
    "experiment.Train.batch_size = 8",
    "experiment.Experiment.cpu_devices = None",
)
# A tiny network that compiles in a second; the config's own network is traced at full size without compiling.
TINY_NET = ("NET = @nets.MLP()", "nets.MLP.width = 16", "nets.MLP.depth = 1")

# The default run takes one config of each kind, the long tail the others; that every kind is there is a test below.
# Two steps of training: each process, learner and source of data.
TRAINED = [
    "digits/super_resolution.gin",
    "mnist/vp.gin",
    "mnist/rectified_flow.gin",
    "paper/2303.08797/rings.gin",
    "paper/2302.03660/sphere.gin",
    "paper/2412.09726/cifar10.gin",
    "paper/2502.15681/digits_dmd.gin",
    "paper/2502.15681/digits_sid.gin",
    "paper/2510.02730/annealed/kmnist_dale.gin",
    "toys/energy.gin",
    "toys/synaptic_weights.gin",
]
# The update of a network at full size: each learner, loss, student and network. A distillation is trained at full size above.
UPDATED = [
    "digits/super_resolution.gin",
    "mnist/edm_cpu.gin",
    "paper/2502.15681/digits_consistency.gin",
    "paper/2502.15681/digits_dmd2.gin",
    "paper/2502.15681/cifar10_edm.gin",
    "paper/2502.15681/mnist_teacher.gin",
    "paper/2303.08797/rings.gin",
    "paper/2311.15996/eight_gaussians.gin",
    "paper/2508.07926/digits.gin",
    "paper/2510.02730/digits.gin",
    "shapes/gaussian_process.gin",
]
# Its state: each network.
SHAPED = [
    *UPDATED, "digits/moments.gin", "mnist/edm.gin", "paper/2303.08797/translation.gin", "paper/2401.15604/points.gin",
    "paper/2412.09726/cifar10.gin", "paper/2412.09726/digits.gin", "paper/2412.09726/mnist.gin", "paper/2506.22780/regimes.gin",
    "paper/2508.07926/mnist.gin", "shapes/blobs.gin", "shapes/spots.gin", "toys/checkerboard.gin",
]  # fmt: skip


def by_default(names):
    return [name if name in names else pytest.param(name, marks=pytest.mark.long) for name in RUNNABLE]


@pytest.fixture(scope="module", autouse=True)
def tiny_image_sets(tmp_path_factory):
    """A folder laid out as SCORELAB_DATA_DIR with 1024 generated images in the place of each set of images."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def write(name, file, array):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        raw = head + array.tobytes()
        packed = gzip.compress(raw, mtime=0)
        (folder / name / file).write_bytes(packed)
        return PublishedFile(name=file, sha256=sha256(packed), raw_sha256=sha256(raw), raw_size=len(raw))

    def split(name, prefix):
        images = write(name, f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (1024, 28, 28), np.uint8))
        labels = write(name, f"{prefix}-labels-idx1-ubyte.gz", (np.arange(1024) // 2 % 10).astype(np.uint8))
        return IdxSplit(images=images, labels=labels, shape=(1024, 28, 28))

    def tiny(name):
        (folder / name).mkdir()
        return IdxImages(name=name, train=split(name, "train"), test=split(name, "t10k"))

    def cifar10():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for file in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
                rows = np.concatenate([np.arange(60)[:, None] % 10, rng.integers(0, 256, (60, 3072))], axis=1)
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
                member.size = rows.size
                archive.addfile(member, io.BytesIO(rows.astype(np.uint8).tobytes()))
        (folder / "cifar10").mkdir()
        packed = buffer.getvalue()
        (folder / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(packed)
        file = PublishedFile(name="cifar-10-binary.tar.gz", sha256=sha256(packed))
        return CifarBinary(name="cifar10", archive=file, records=60)

    sets = {name: tiny(name) for name in ("mnist", "fashion_mnist", "kmnist")} | {"cifar10": cifar10()}
    # In the place of a published checkpoint.
    arguments = dict(
        img_resolution=32, label_dim=10, model_channels=8, channel_mult=[1, 1, 1], num_blocks=4, attn_resolutions=[16],
        augment_dim=9,
    )  # fmt: skip
    drawn.converted(folder / "cache" / "pretrained" / "edm-cifar10-32x32-cond-vp", arguments)
    sets["kmnist_halves"] = replace(registry.SETS["kmnist_halves"], source=sets["kmnist"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORELAB_DATA_DIR", str(folder))
        patch.setenv("SCORELAB_CACHE_DIR", str(folder / "cache"))
        patch.setattr(registry, "SETS", MappingProxyType({**registry.SETS, **sets}))
        yield


@functools.cache
def loaded(name):
    # The number of devices belongs to the process the tests run in.
    return config.load(name, ["experiment.Experiment.cpu_devices = None"])


def found(specs, field):
    """What the first field of this name holds, at any depth."""
    if isinstance(specs, dict) and field in specs:
        return specs[field]
    parts = specs.values() if isinstance(specs, dict) else specs if isinstance(specs, list) else ()
    return next((value for part in parts if (value := found(part, field)) is not None), None)


def of_learning(specs, *parts):
    """The types of the learner and of these parts of it."""
    learner = specs["learner"]
    return {part["type"] for part in (learner, *map(learner.get, parts)) if part is not None}


def of_training(specs):
    process, data = found(specs["learner"], "process"), specs["data"]
    dataset = data["dataset"]
    while "source" in dataset:  # of a set with a derived condition
        dataset = dataset["source"]
    source = type(registry.SETS[dataset["name"]]).__name__
    others = {("pairs", data["pairs"] is not None), ("cond", data["cond"] is not None)}
    return of_learning(specs) | {process["type"], process.get("schedule", process)["type"], source} | others


def of_updates(specs):
    return of_learning(specs, "loss", "student") | {found(specs["learner"], "net")["type"]}


def of_states(specs):
    return {json.dumps(found(specs["learner"], "net"), sort_keys=True)}


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        (TRAINED, of_training),
        ([*UPDATED, "paper/2502.15681/digits_dmd.gin", "paper/2502.15681/digits_sid.gin"], of_updates),
        (SHAPED, of_states),
    ],
)
def test_the_default_run_has_every_kind(names, kinds):
    everything, taken = (set().union(*(kinds(loaded(name).specs) for name in which)) for which in (RUNNABLE, names))
    assert everything - taken == set()


STATES, TRACED = {}, set()


def trained_part(specs):
    # Configs that differ in their sampling alone share the state and the update of their network.
    return json.dumps([specs[field] for field in ("learner", "data")] + [specs["stages"][0]["batch_size"]], sort_keys=True)


def trace_state(name):
    same = trained_part(loaded(name).specs)
    if same not in STATES:
        STATES[same] = state_like(loaded(name).experiment)
    return STATES[same]


@pytest.mark.parametrize("name", RUNNABLE)
def test_resolves_and_its_record_builds_equal_specs(name, tmp_path, monkeypatch):
    now = loaded(name)
    (tmp_path / "config.gin").write_text(now.text)
    again = config.load(str(tmp_path / "config.gin"))
    # The network and the sampling are traced by the tests below.
    monkeypatch.setattr(checks, "state_like", lambda experiment: None)
    monkeypatch.setattr(Sample, "_trace", lambda stage, experiment, like: None)
    # But for the number of images: the data fit the transform and the evaluation, the grid fits the process; nothing is computed.
    evaluated = now.experiment.one(Evaluate)
    few = tuple(replace(each, n=None) if isinstance(each, ImageEvaluation) else each for each in evaluated.evaluations)
    stages = [replace(stage, evaluations=few) if stage is evaluated else stage for stage in now.experiment.stages]
    check(replace(now.experiment, stages=tuple(stages)))
    # Descriptions, because optax transformations never compare equal; everything else must.
    assert again.specs == now.specs
    assert again.text == now.text
    for field in ("data", "process", "stages"):
        assert getattr(again.experiment, field) == getattr(now.experiment, field)
    for field in ("denoiser", "loss", "ema", "student", "ratio", "divergence"):
        ours = getattr(now.experiment.learner, field, None)
        # A loss with a teacher holds arrays, which the descriptions compare.
        if jax.tree_util.all_leaves([ours]):
            assert getattr(again.experiment.learner, field, None) == ours


@pytest.mark.parametrize("name", by_default(SHAPED))
def test_the_network_fits_the_data_at_full_size(name):
    assert jax.tree.leaves(trace_state(name))


@pytest.mark.parametrize("name", by_default(UPDATED))
def test_the_network_fits_the_loss_at_full_size(name):
    experiment, same = loaded(name).experiment, trained_part(loaded(name).specs)
    if same in TRACED:
        return
    data = coupled(experiment, experiment.data.batches(experiment.one(Train).batch_size, experiment.seed))

    def update(state, batch, key):
        return experiment.learner.update(state, data.prepare(batch), key)

    state = trace_state(name)
    after, metrics = jax.eval_shape(update, state, data.at(0), jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "loss" in metrics
    TRACED.add(same)


@pytest.mark.parametrize("name", by_default(TRAINED))
def test_runs_two_steps(name, tmp_path):
    experiment, text = loaded(name).experiment, loaded(name).text
    # A distillation has the network of its teacher, and another network may not take the conditions that the data name.
    tiny = (
        ()
        if "pretrained.model" in text or experiment.data.cond is not None
        else (*TINY_NET, f"nets.MLP.num_classes = {10 * experiment.data.labels}")
    )
    few = ("experiment.Pairs.n = 8", "experiment.Pairs.batch_size = 8") if experiment.data.pairs is not None else ()
    if any(isinstance(each, ImageEvaluation) for each in experiment.one(Evaluate).evaluations):
        few += ("experiment.ImageEvaluation.n = None",)
    if experiment.one(Train).rectify is not None:
        few += ("experiment.Rectify.every = 1", "experiment.Rectify.n = 64", "experiment.Train.checkpoint_every = 1")
    # A binding that changes nothing is refused.
    short = [binding for binding in SHORT if "WARMUP" not in binding or "WARMUP" in text]
    sets = [argument for binding in (*short, *tiny, *few) for argument in ("--set", binding)]
    assert main(["train", name, *sets, "--workdir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("name", BLOCKS)
def test_every_building_block_is_used(name):
    included = {
        (path.parent / match.group(3)).resolve()
        for path in ROOT.rglob("*.gin")
        for line in path.read_text().splitlines()
        if (match := INCLUDE.match(line))
    }
    assert (ROOT / name).resolve() in included
