"""The experiments with published networks, from a pickle in the published format to their records, on tiny networks."""

import importlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import (
    config,
    densities,
    diagnostics,
    grids,
    metrics,
    models,
    pretrained,
    processes,
    sample,
    schedules,
    solvers,
    starts,
)
from scorelab.experiment import Train, check
from scorelab.pretrained import edm, torchfile
from scorelab.run.cli import main
from scorelab.run.gallery import EXPERIMENTS
from tests.pretrained import crafted, drawn

pytestmark = pytest.mark.usefixtures("quick_compilation")
TINY = dict(img_resolution=8, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=0.1, augment_dim=9)
N, STEPS, CHUNK = 24, 8, 16


def checkpoint(root, name, classes, seed):
    """A pickle as EDM is published with drawn numbers, and what it is converted to."""
    kwargs = TINY | dict(label_dim=classes)
    tensors = drawn.tensors(kwargs, seed)
    file = root / f"{name}.pkl"
    file.write_bytes(crafted.published(tensors, kwargs, sigma_min=0, sigma_max=float("inf"), sigma_data=0.5))
    found = torchfile.read(file).tensors()
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[key], tensors[key]) for key in tensors)
    return pretrained.convert(file, root / name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with converted networks, one with classes and one without, and random images."""
    root, rng = tmp_path_factory.mktemp("published"), np.random.default_rng(0)
    for name, classes in (("tiny", 0), ("tiny-cond", 3)):
        checkpoint(root, name, classes, seed=classes)
    # Brighter and darker ones, each class at its own level: a mean and a direction that a jump has to know.
    shade = 70 + 30 * (np.arange(48) % 3) + 40 * rng.standard_normal(48)
    images = np.clip(shade[:, None, None, None] + 30 * rng.standard_normal((48, 8, 8, 3)), 0, 255).astype(np.uint8)
    np.savez(root / "images.npz", x=images, label=np.arange(48) % 3)
    np.savez(root / "unlabelled.npz", x=images)
    np.savez(root / "larger.npz", x=rng.integers(0, 256, (48, 16, 16, 3), np.uint8))
    np.savez(root / "grey.npz", x=images[..., :1])
    return root


def figure(name, out, **options):
    """Make a figure with these options; what it leaves. RuntimeError with the message where it is refused."""
    words = [word for key, value in options.items() for word in ("--set", f"{key}={value}")]
    assert main(["figure", f"2412.09726/{name}", "--small", *words, "--out", str(out)]) == 0
    return json.loads((out / "result.json").read_text())


@pytest.fixture
def module(monkeypatch):
    """A module of the folder of the paper."""
    monkeypatch.syspath_prepend(EXPERIMENTS / "2412.09726")
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(EXPERIMENTS)):
            del sys.modules[name]


SMALL = dict(features="pixels", n=N, chunk=CHUNK, steps=STEPS, most=4, every=2)


def stored(out, skip):
    """The samples in the shards of a jump."""
    (folder,) = (out / "samples").glob(f"*/skip{skip}-seed0")
    return np.concatenate([np.load(file)["x"] for file in sorted(folder.glob("0*.npz"))])


@pytest.fixture(scope="module")
def teleported(place, tmp_path_factory):
    """Name of the network -> folder and record of its figure."""
    found = {}
    for name in ("tiny", "tiny-cond"):
        out = tmp_path_factory.mktemp("teleport") / name
        found[name] = out, figure("edm_teleport", out, model=place / name, data=place / "images.npz", **SMALL)
    return found


@pytest.mark.parametrize("name", ["tiny", "tiny-cond"])
def test_a_jump_over_no_step_is_plain_sampling(name, place, teleported):
    who = pretrained.load(str(place / name))
    plain = sample(
        who.model, solver=solvers.Heun(), grid=grids.Karras(STEPS), key=jax.random.key(0), shape=(N, 8, 8, 3), chunk=CHUNK,
        cond=None if name == "tiny" else np.arange(N, dtype=np.int32) % 3,
    )  # fmt: skip
    out, _ = teleported[name]
    # The levels of EDM, floor(127.5 x + 128), bit by bit.
    assert np.array_equal(stored(out, 0), np.clip(np.floor(127.5 * np.asarray(plain.x) + 128), 0, 255))
    assert not np.array_equal(stored(out, 0), stored(out, 2))


@pytest.mark.parametrize("name", ["tiny", "tiny-cond"])
def test_a_jump_is_the_flow_of_the_moments_of_the_images(name, place, teleported):
    """In NumPy: mean and covariance of k / 127.5 - 1, of each class where there are classes; then the grid from where it lands."""
    with np.load(place / "images.npz") as file:
        y, label = file["x"].reshape(48, -1) / 127.5 - 1, file["label"]
    who = pretrained.load(str(place / name))
    process, times = who.model.process, grids.Karras(STEPS).times(who.model.process)
    # The noise that plain sampling begins with, by a start that jumps nowhere.
    ids, key = jnp.arange(N), jax.random.key(0)
    begun = sample(
        models.ExactModel(densities.Gaussian(np.zeros((8, 8, 3)), 1.0), process), solver=solvers.Heun(), grid=grids.Karras(STEPS),
        key=key, shape=(N, 8, 8, 3), keep="all", chunk=CHUNK, ids=ids,
    ).trajectory[0]  # fmt: skip
    z, classes = np.asarray(begun, np.float64).reshape(N, -1), np.arange(N) % 3
    landed = np.empty_like(z)
    for k in range(3):
        points = y if name == "tiny" else y[label == k]
        values, basis = np.linalg.eigh(np.cov(points, rowvar=False))
        values, mean = np.maximum(values, 0), points.mean(0)
        gain = np.sqrt((values + times[4] ** 2) / (values + 80.0**2))
        landed[classes == k] = (mean + ((z - mean) @ basis * gain) @ basis.T)[classes == k]
    x = sample(
        who.model, solver=solvers.Heun(), grid=grids.Explicit(tuple(times[4:])), key=key, shape=(N, 8, 8, 3), chunk=CHUNK,
        start=starts.Fixed(jnp.asarray(landed.reshape(begun.shape), jnp.float32)),
        cond=None if name == "tiny" else classes.astype(np.int32),
    ).x  # fmt: skip
    wanted = np.clip(np.floor(127.5 * np.asarray(x) + 128), 0, 255)
    # Float32 at the largest noise level, 80, is 1e-5: less than a hundredth of a level, so that few pixels lie so near to an edge.
    assert np.abs(stored(teleported[name][0], 4) - wanted).max() <= 1
    assert np.mean(stored(teleported[name][0], 4) != wanted) < 0.02


def test_the_record_says_what_it_is_of(place, teleported):
    out, record = teleported["tiny"]
    numbers = record["numbers"]
    row = {k: numbers["seeds"]["0"][k] for k in ("0", "2", "4")}
    # Two calls a step but for the last.
    assert [row[k]["calls"] for k in row] == [2 * (STEPS - int(k)) - 1 for k in row]
    with np.load(place / "images.npz") as file:
        images = file["x"]
    pixels = lambda x: metrics.Coordinates()((x.reshape(len(x), -1) + 0.5) / 256)
    for k in row:
        wanted = metrics.frechet(pixels(stored(out, k)), pixels(images), metrics.Coordinates()).value
        assert row[k]["fid"] == pytest.approx(wanted, rel=1e-4)
    rho = lambda i: (80 ** (1 / 7) + i / (STEPS - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(numbers["landings"], [rho(i) for i in (0, 2, 4)], rtol=1e-6)
    assert numbers["model"]["name"] == "tiny"
    assert numbers["published"] == {}
    assert {claim["verdict"] for claim in record["claims"]} == {"not comparable"}
    # Of every convolution and product of matrices of a network of one level: two for a multiplication.
    assert row["0"]["pflop"] == pytest.approx(row["0"]["gflop_a_call"] * row["0"]["calls"] * N / 1e6)
    assert row["0"]["minutes_assumed"] == pytest.approx(row["0"]["pflop"] * 1e15 / 1.5e14 / 60)


def test_published_numbers_are_claims_where_all_is_as_they_were_measured(module):
    teleport = module("edm_teleport")
    told = teleport.PUBLISHED["edm-cifar10-32x32-uncond-vp"]
    skips = sorted(told)

    def numbers(fid, **other):
        seeds = {"0": {str(k): dict(fid=value) for k, value in fid.items()}}
        known = dict(
            model=dict(name="edm-cifar10-32x32-uncond-vp"), event=(32, 32, 3), n=50000, steps=18,
            features="inception(tf1-6726825d)", skips=skips, published={str(k): v for k, v in told.items()}, seeds=seeds,
        )  # fmt: skip
        return known | other

    verdicts = lambda found: {claim.verdict for claim in teleport.claims(found)}
    assert verdicts(numbers(told)) == {"reproduced"}
    # Another set of seeds, and another network.
    assert verdicts(numbers({k: v + 0.02 for k, v in told.items()})) == {"reproduced"}
    assert "not reproduced" in verdicts(numbers(told | {4: 2.2}))
    for other in (dict(n=5000), dict(steps=40), dict(features="pixels"), dict(published={})):
        assert verdicts(numbers(told, **other)) == {"not comparable"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(data="larger.npz"), r"images \(16, 16, 3\): expected \(8, 8, 3\)"),
        (dict(data="grey.npz"), r"images \(8, 8, 1\): expected \(8, 8, 3\)"),
        (dict(data="nothing"), "data = 'nothing': expected one of digits"),
        (dict(model="nothing"), "'.*nothing': no such model, file or folder"),
        (dict(model="tiny-cond", data="unlabelled.npz"), "None classes: expected 3"),
        (dict(most=8), "most = 8 of 8 steps: expected less"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(options, reason, place, tmp_path, capsys):
    here = {key: value if value == "nothing" else place / value for key, value in options.items() if key in ("model", "data")}
    options = SMALL | dict(model=place / "tiny", data=place / "images.npz") | options | here
    with pytest.raises(SystemExit) as exit:
        figure("edm_teleport", tmp_path / "out", **options)
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert re.search(reason, said), said
    assert said.count("\n") == 1
    assert not (tmp_path / "out" / "samples").exists()


def test_inception_is_asked_for_before_anything_is_drawn(place, tmp_path, capsys):
    options = SMALL | dict(model=place / "tiny", data=place / "images.npz", features="inception", inception="nothing.pth")
    with pytest.raises(SystemExit) as exit:
        figure("edm_teleport", tmp_path / "out", **options)
    assert exit.value.code == 2
    assert "'nothing.pth': no such file" in (said := capsys.readouterr().err)
    assert "expected the file pt_inception-2015-12-05-6726825d.pth of pytorch-fid, or the folder of a converted one" in said
    assert not (tmp_path / "out" / "samples").exists()


def test_published_statistics_are_the_reference(place, teleported, tmp_path, capsys):
    """Those of half of the images, as EDM publishes its own: another distance, which NumPy knows."""
    with np.load(place / "images.npz") as file:
        z = (file["x"][:24].reshape(24, -1) + 0.5) / 256
    np.savez(tmp_path / "reference.npz", mu=z.mean(0), sigma=np.cov(z, rowvar=False))
    options = SMALL | dict(model=place / "tiny", data=place / "images.npz", reference=tmp_path / "reference.npz", most=1, every=1)
    numbers = figure("edm_teleport", tmp_path / "out", **options)["numbers"]
    x = (stored(tmp_path / "out", 0).reshape(N, -1) + 0.5) / 256
    wanted = metrics.frechet_distance(x.mean(0), np.cov(x, rowvar=False), z.mean(0), np.cov(z, rowvar=False))
    # Float32 features.
    assert numbers["seeds"]["0"]["0"]["fid"] == pytest.approx(wanted, rel=1e-4)
    assert numbers["reference"] == "reference.npz"
    np.savez(tmp_path / "narrow.npz", mu=z.mean(0)[:5], sigma=np.eye(5))
    with pytest.raises(SystemExit):
        figure("edm_teleport", tmp_path / "other", **options | dict(reference=tmp_path / "narrow.npz"))
    assert "narrow.npz: of 5 features: expected 192, as " in capsys.readouterr().err


def test_a_law_explains_all_of_itself(module):
    """The explained variance of an exact Gaussian by the moments of its own points is 1 but for what a finite set does not know."""
    explained, laws_of = module("explained_variance").explained, module("subject").laws_of
    process = processes.Gaussian(schedule=schedules.EDM())
    points = np.random.default_rng(1).normal(size=(300, 2, 2, 3)).astype(np.float32) * np.linspace(0.2, 0.8, 12).reshape(2, 2, 3)
    laws = laws_of(points, (3,))
    found = explained(models.ExactModel(laws["Gaussian"], process), laws, points[:32])
    for of in ("score", "denoised"):
        # Float32: predicted noise is of size 1, and two ways of computing it agree to a few units in the last place.
        np.testing.assert_allclose(found[of]["Gaussian"]["mean_of_ratios"], 1, atol=1e-9)
        assert min(found[of]["isotropic Gaussian"]["mean_of_ratios"]) < 0.9
    # At noise level 5 the score of the mean alone is (y - m) / 25, and that of the law is off by variance / 25 of it, at most .026.
    # The denoised means are off by as much of the noise, .01 to .13, and are hardly larger themselves.
    level = found["sigmas"].index(5.0)
    assert found["score"]["mean"]["mean_of_ratios"][level] > 1 - 0.026**2
    assert found["denoised"]["mean"]["mean_of_ratios"][level] < 0.5
    mixture = explained(models.ExactModel(laws["3 Gaussians"], process), laws, points[:32])["score"]
    np.testing.assert_allclose(mixture["3 Gaussians"]["mean_of_ratios"], 1, atol=1e-9)


def test_explained_variance_of_a_published_network(place, tmp_path, capsys):
    options = dict(model=place / "tiny", data=place / "images.npz", points=48, few=2, many=3)
    record = figure("edm_explained_variance", tmp_path / "out", **options)
    numbers = record["numbers"]
    row = np.array(numbers["score"]["Gaussian"]["mean_of_ratios"])
    assert numbers["laws"] == ["mean", "isotropic Gaussian", "Gaussian", "2 Gaussians", "3 Gaussians", "training set"]
    with np.load(place / "images.npz") as file:
        y = (file["x"] / 127.5 - 1).astype(np.float32)
    model = pretrained.model(str(place / "tiny"))
    wanted = diagnostics.explained_variance(model, densities.Gaussian.from_data(y), y, numbers["sigmas"])
    # Two roundings of the images to float32.
    np.testing.assert_allclose(row, wanted.mean_of_ratios, rtol=1e-4, atol=1e-4)
    # Where both denoised means are of size 1, scores differ by their difference over that of the noise: (2 / 80)^2 at most.
    assert row[-1] > 1 - (2 / 80) ** 2
    # At low noise a network of drawn numbers knows nothing of the images.
    assert row[0] < 0.5
    assert [claim["verdict"] for claim in record["claims"]] == ["not comparable"]
    with pytest.raises(SystemExit):
        figure("edm_explained_variance", tmp_path / "other", **options | dict(model=place / "tiny-cond"))
    assert "it is told classes: expected a network without" in capsys.readouterr().err


def test_published_explained_variance_agrees_with_itself(module):
    script = module("edm_explained_variance")
    told = script.PUBLISHED["edm-cifar10-32x32-uncond-vp"]
    rows = {
        law: dict(
            mean_of_ratios=np.interp(script.SIGMAS, script.LEVELS, values),
            standard_error=np.full(len(script.SIGMAS), 1e-4),
        )
        for law, values in told.items()
    }
    numbers = dict(model=dict(name="x"), points=1024, published=told, score=rows)
    assert [claim.verdict for claim in script.claims(numbers)] == ["reproduced"] * 5
    rows["Gaussian"]["mean_of_ratios"] = rows["Gaussian"]["mean_of_ratios"] - 0.003
    assert [claim.verdict for claim in script.claims(numbers)] == ["not reproduced"] + ["reproduced"] * 4


CONFIG = "paper/2502.15681/cifar10_edm"


@pytest.fixture(scope="module")
def student(place):
    """The bindings of a short run of the config with the tiny network."""
    return [
        f"TEACHER_FILE = '{place / 'tiny-cond'}'",
        "FEATURES = ('enc_8x8_block0',)",
        "experiment.DataSpec.dataset = @data.ArrayFile()",
        f"data.ArrayFile.train = '{place / 'images.npz'}'",
        "data.ArrayFile.label_key = 'label'",
        "distill.TeacherFeatures.num_classes = 3",
        "distill.TeacherFeatures.width = 8",
        "distill.FDistill.n_aux = 1",
        "STEPS = 2",
        "experiment.Train.batch_size = 4",
        "experiment.Train.log_every = 1",
        "experiment.Train.checkpoint_every = 1",
        "experiment.Sample.n = 12",
        "experiment.Experiment.cpu_devices = None",
    ]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_the_first_step_of_the_student_changes_the_student_alone(student, place):
    experiment = config.load(CONFIG, student).experiment
    check(experiment)
    assert experiment.data.transform == edm.LEVELS
    learner = experiment.learner
    teacher = pretrained.model(str(place / "tiny-cond"))
    assert same(learner.teacher.params, teacher.params)
    data = experiment.data.batches(experiment.one(Train).batch_size, 0)
    batch = data.prepare(data.at(0))
    state = learner.init(jax.random.key(0), batch)
    # Student and fake score begin as the teacher, number by number.
    assert same(state.params, teacher.params)
    assert same(state.fake, teacher.params)
    # One call: what the teacher makes of noise at its largest level.
    z = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    np.testing.assert_allclose(
        learner.student.bind(state.params)(z, batch["cond"]), teacher(80.0 * z, 80.0, batch["cond"]).denoised, rtol=1e-5, atol=1e-6
    )
    after, _ = jax.jit(learner.student_step)(state, batch, jax.random.key(2))
    assert not same(after.params, state.params)
    assert same((after.fake, after.ratio, after.opt_states[1:]), (state.fake, state.ratio, state.opt_states[1:]))
    after, _ = jax.jit(learner.aux_step)(state, batch, jax.random.key(2))
    assert same((after.params, after.opt_states[0]), (state.params, state.opt_states[0]))
    assert not same(after.fake, state.fake)
    assert not same(after.ratio, state.ratio)


def test_a_distillation_of_a_published_network_runs(student, place, tmp_path):
    words = [word for binding in student for word in ("--set", binding)]
    assert main(["run", CONFIG, *words, "--workdir", str(tmp_path / "run")]) == 0
    with np.load(tmp_path / "run" / "samples.npz") as file:
        assert (file["x"].shape, file["x"].dtype) == ((12, 8, 8, 3), np.uint8)
        assert json.loads(str(file["record"]))["model_calls"] == 1
    assert "sha256" in json.dumps(json.loads((tmp_path / "run" / "specs.json").read_text())["learner"]["teacher"])


def test_the_config_is_that_of_the_paper_but_for_its_budget(place):
    """Table 5 of arXiv 2502.15681."""
    specs = config.load(CONFIG, [f"TEACHER_FILE = '{place / 'tiny-cond'}'"]).experiment
    learner, train = specs.learner, specs.one(Train)
    assert (learner.n_aux, learner.gan_weight, learner.ratio.smooth, learner.clip_norm) == (5, 1e-3, 1.0, 10.0)
    assert type(learner.divergence).__name__ == "ForwardKL"
    assert [name.split("_")[1] for name in learner.ratio.names] == ["32x32", "16x16", "8x8"]
    # A twentieth of 60,000 batches of 2048.
    assert train.batch_size * train.steps == 2048 * 60_000 / 20
