"""Every file in ``configs/`` parses, resolves and runs two steps; what it records builds equal specs."""

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

from scorelab.data import PublishedFile, registry
from scorelab.data.files import sha256
from scorelab.data.loaders import CifarBinary, IdxImages, IdxSplit
from scorelab.run import check, config
from scorelab.run.cli import main
from scorelab.run.experiment import ImageEvaluation
from scorelab.run.sources import CONFIG_ROOTS, INCLUDE
from scorelab.run.train import state_like

ROOT = next(root for root in reversed(CONFIG_ROOTS) if root.is_dir()).resolve()
FILES = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.gin"))
BLOCKS = [name for name in FILES if name.startswith("base/")]
RUNNABLE = [name for name in FILES if name not in BLOCKS]

SHORT = (
    "STEPS = 2",
    "WARMUP = 1",
    "experiment.Experiment.batch_size = 8",
    "experiment.Experiment.cpu_devices = None",
)
# A tiny network that compiles in a second; the config's own network is traced at full size without compiling.
TINY_NET = ("NET = @nets.MLP()", "nets.MLP.width = 16", "nets.MLP.depth = 1")

@pytest.fixture(scope="module", autouse=True)
def tiny_image_sets(tmp_path_factory):
    """A folder laid out as SCORELAB_DATA_DIR with 256 generated images in the place of each set of images."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)

    def write(name, file, array):
        head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
        raw = head + array.tobytes()
        packed = gzip.compress(raw, mtime=0)
        (folder / name / file).write_bytes(packed)
        return PublishedFile(name=file, sha256=sha256(packed), raw_sha256=sha256(raw), raw_size=len(raw))

    def split(name, prefix):
        images = write(name, f"{prefix}-images-idx3-ubyte.gz", rng.integers(0, 256, (256, 28, 28), np.uint8))
        labels = write(name, f"{prefix}-labels-idx1-ubyte.gz", (np.arange(256) // 2 % 10).astype(np.uint8))
        return IdxSplit(images=images, labels=labels, shape=(256, 28, 28))

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
    sets["kmnist_halves"] = replace(registry.SETS["kmnist_halves"], source=sets["kmnist"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCORELAB_DATA_DIR", str(folder))
        patch.setattr(registry, "SETS", MappingProxyType({**registry.SETS, **sets}))
        yield


STATES, UPDATED = {}, set()


def trained_part(specs):
    # Configs that differ in their sampling alone share the state and the update of their network.
    return json.dumps([specs[field] for field in ("learner", "data", "batch_size")], sort_keys=True)


def trace_state(experiment, specs):
    same = trained_part(specs)
    if same not in STATES:
        STATES[same] = state_like(experiment)
    return STATES[same]


def trace_update(experiment, specs):
    same = trained_part(specs)
    if same in UPDATED:
        return
    data = experiment.data.batches(experiment.batch_size, experiment.seed)
    batch = data.at(0)

    def update(state, batch, key):
        return experiment.learner.update(state, data.prepare(batch), key)

    state = trace_state(experiment, specs)
    after, metrics = jax.eval_shape(update, state, batch, jax.random.key(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert "loss" in metrics
    UPDATED.add(same)


@pytest.mark.parametrize("name", RUNNABLE)
def test_resolves_and_its_record_builds_equal_specs(name, tmp_path, monkeypatch):
    # The number of devices belongs to the process the tests run in.
    loaded = config.load(name, ["experiment.Experiment.cpu_devices = None"])
    (tmp_path / "config.gin").write_text(loaded.text)
    again = config.load(str(tmp_path / "config.gin"))
    # What the check traces, `trace_update` needs too. Sampling is traced with the tiny network below.
    monkeypatch.setattr(check, "state_like", lambda experiment: trace_state(experiment, loaded.specs))
    monkeypatch.setattr(check, "_trace_sampling", lambda experiment, like: None)
    # At full size, but for the number of images: the network fits the data and the loss, the grid fits the process.
    evaluation = loaded.experiment.evaluation
    few = replace(evaluation, n=None) if isinstance(evaluation, ImageEvaluation) else evaluation
    replace(loaded.experiment, evaluation=few).check()
    trace_update(loaded.experiment, loaded.specs)
    # Descriptions, because optax transformations never compare equal; everything else must.
    assert again.specs == loaded.specs
    assert again.text == loaded.text
    for field in ("data", "process", "sampling", "evaluation"):
        assert getattr(again.experiment, field) == getattr(loaded.experiment, field)
    for field in ("denoiser", "loss", "ema", "student", "ratio", "divergence"):
        ours = getattr(loaded.experiment.learner, field, None)
        # A loss with a teacher holds arrays, which the descriptions compare.
        if jax.tree_util.all_leaves([ours]):
            assert getattr(again.experiment.learner, field, None) == ours


@pytest.mark.parametrize("name", RUNNABLE)
def test_runs_two_steps(name, tmp_path):
    loaded = config.load(name, ["experiment.Experiment.cpu_devices = None"])
    # A distillation has the network of its teacher.
    classes = 10 * loaded.experiment.data.labels
    tiny = () if "kept.model" in loaded.text else (*TINY_NET, f"nets.MLP.num_classes = {classes}")
    few = ("pairs.Pairs.n = 8", "pairs.Pairs.batch_size = 8") if loaded.experiment.data.pairs is not None else ()
    if isinstance(loaded.experiment.evaluation, ImageEvaluation):
        few += ("experiment.ImageEvaluation.n = None",)
    # A binding that changes nothing is refused.
    short = [binding for binding in SHORT if "WARMUP" not in binding or "WARMUP" in loaded.text]
    bindings = (*short, *tiny, *few)
    sets = [argument for binding in bindings for argument in ("--set", binding)]
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
