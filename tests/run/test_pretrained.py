"""The models that the package carries: they load anywhere, they are what their cards say, and their configs train them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from scorelab import config, metrics, models, pretrained
from scorelab.data import DataNotFound
from scorelab.errors import ConfigError
from scorelab.experiment import Sample, Train
from scorelab.experiment import data as experiment_data
from scorelab.experiment.data import measuring
from scorelab.experiment.describe import describe
from scorelab.files import read_npz, write_npz
from scorelab.pretrained import cards, kept
from scorelab.pretrained.registry import PUBLISHED

NAMES = pretrained.names()
DIGITS = [name for name in NAMES if name.startswith("digits-")]
MNIST = [name for name in NAMES if name.startswith("mnist-")]
# A student of one call has no score where it is not asked.
STUDENTS = ("digits-one-step", "mnist-one-step")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def without_data(tmp_path, monkeypatch):
    """An empty working folder, on a machine that has no data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiment_data, "_load", lambda dataset, split, stamp: pytest.fail(f"{dataset.name} was looked at"))
    kept.stored.cache_clear()


def each(*kinds):
    """Models of the digits, and in the long tail those of MNIST, without those of the ``kinds``."""
    chosen = [name for name in NAMES if not any(name in kind for kind in kinds)]
    return [pytest.param(name, marks=pytest.mark.long) if name in MNIST else name for name in chosen]


def with_data(name):
    who = pretrained.load(name)
    try:
        who.data()
    except DataNotFound:
        pytest.skip(f"{who.config.data.name} is not here")
    return who


def test_all_are_of_a_known_set_and_small():
    assert len(NAMES) == len(DIGITS) + len(MNIST)
    assert sum(file.stat().st_size for file in kept.MODELS.iterdir()) < 40e6
    assert {file.name for file in kept.MODELS.iterdir()} == {f"{name}.{end}" for name in NAMES for end in ("npz", "json")}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_loads_without_its_data_and_is_the_one_of_its_card(name, without_data):
    who = pretrained.load(name)
    card = pretrained.card(name)
    assert who.card == card
    assert {field: getattr(card, field) for field in who.facts()} == who.facts()
    assert name.startswith(f"{card.data}-")
    assert card.steps == who.config.one(Train).steps
    words = (card.what, card.licence, card.trained, card.good_for, card.not_for)
    assert all(len(text) > 10 for text in words)
    assert card.what.endswith(".")
    assert "not recorded" not in card.trained
    assert card.metrics[0].name.startswith(f"FID-smallcnn({card.data}-")
    assert all(len(each.values) == len(card.seeds) >= 3 for each in card.metrics)
    assert all(np.isfinite([*each.values, each.floor]).all() for each in card.metrics)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(who.model.params))
    assert card.n <= card.drawn <= who.config.one(Sample).n


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_the_card_is_the_one_it_was_trained_with(name, without_data):
    who = pretrained.load(name)
    with measuring(who.record["measured"]):
        shipped = config.load(pretrained.card(name).config, ["experiment.Experiment.cpu_devices = None"]).experiment
    for part in ("data", "learner", "seed"):
        assert describe(getattr(shipped, part)) == describe(getattr(who.config, part)), part
    changes = dict(checkpoint_every=1, keep_checkpoints=1, log_every=1)
    assert dataclasses.replace(shipped.one(Train), **changes) == dataclasses.replace(who.config.one(Train), **changes)
    assert shipped.one(Sample) == who.config.one(Sample)


@pytest.mark.parametrize("name", each())
def test_a_model_samples_what_the_data_are_made_of(name, tmp_path, monkeypatch):
    who = with_data(name)
    monkeypatch.chdir(tmp_path)
    steps = 1 if name in STUDENTS else 8
    grid = dataclasses.replace(who.config.one(Sample).grid, steps=steps)
    drawn = who.sample(4, seed=3, grid=grid)
    assert (drawn.x.shape, drawn.x.dtype) == ((4, *who.card.shape), np.uint8)
    assert drawn.x.max() < who.data().levels
    # Few steps: this says that the samples are no noise, and little more. Noise is two (digits) to three (MNIST) times as far from
    # the mean image as the data are.
    train = who.data().x[:1000]
    distance = lambda x: np.abs(train.mean(0) - x.astype(float)).mean()
    noise = np.random.default_rng(0).integers(0, who.data().levels, drawn.x.shape)
    assert distance(drawn.x) < 0.7 * distance(noise)
    if who.classes is None:
        assert drawn.label is None
        with pytest.raises(ValueError, match=r"Loaded\.sample\(label=.*expected None"):
            who.sample(4, label=[1, 2, 3, 4])
    else:
        np.testing.assert_array_equal(drawn.label, [0, 1, 2, 3])
        for wrong in ([1, 2], [0, 1, 2, 10], [0.0, 1.0, 2.0, 3.0], [-1, 0, 1, 2]):
            with pytest.raises(ValueError, match="expected 4 classes, integers from 0 to 9"):
                who.sample(4, label=wrong)
    for wrong in (dict(n=0), dict(n=4, seed=-1), dict(n=4, grid=3)):
        with pytest.raises((ValueError, TypeError), match=r"Loaded\.sample"):
            who.sample(**wrong)


@pytest.mark.parametrize("name", each(STUDENTS))
def test_a_model_denoises_better_than_any_isotropic_gaussian(name):
    """The best denoiser that knows one mean and one deviation s of all pixels leaves s^2 r^2 / (s^2 + r^2) at the noise ratio r."""
    who = with_data(name)
    process, data = who.model.process, who.data("test")
    y0 = np.asarray(process.encode(who.transform.encode(data.x[:256])))
    label = None if who.classes is None else data.label[:256]
    s = float(who.encoded().std())

    @jax.jit
    def error(t, key):
        noised = process.noised(jax.random.normal(key, y0.shape), y0, t)
        return jax.numpy.mean((models.ask(who.model, noised.y, t, label).denoised - y0) ** 2)

    for ratio in (0.5 * s, s, 2 * s):
        t = np.float32(process.schedule.time(-2 * np.log(ratio)))
        # Digits are far from a Gaussian: 0.23 to 0.39 of it was measured for those of 8x8, less for MNIST. The error of the mean of
        # 256 x 64 squares is some 2 %.
        assert float(error(t, jax.random.key(0))) < 0.5 * s**2 * ratio**2 / (s**2 + ratio**2)


@pytest.mark.parametrize("name", [name for name in DIGITS if pretrained.card(name).classes is not None])
def test_classes_are_those_that_were_asked_for(name):
    who = pretrained.load(name)
    drawn = who.sample(100, seed=11)
    # A model that ignored the class would be right in a tenth of the cases.
    assert np.mean(metrics.small_cnn("digits").logits(drawn.x).argmax(1) == drawn.label) > 0.8


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_the_metric_of_a_card_is_reached_again(name, optimised):
    who = with_data(name)
    card = who.card
    found = who.evaluate(who.sample(card.drawn, seed=card.seeds[0]).x, n=card.n)[0]
    assert (found.label, found.n) == (card.metrics[0].name, card.n)
    assert found.floor == pytest.approx(card.metrics[0].floor, rel=1e-3)
    # The same samples but for the rounding of another machine, which moves them by less than another seed does.
    assert abs(found.value - card.metrics[0].values[0]) < card.metrics[0].deviation


def test_the_command_lists_the_models_and_prints_cards(scorelab):
    status, out, _ = scorelab("pretrained")
    assert status == 0
    listed = [line.split()[0] for line in out.splitlines() if line]
    here = [*NAMES, "classifiers,", "digits", "fashion_mnist", "kmnist", "mnist"]
    assert listed == [*here, "published", *PUBLISHED]
    status, out, _ = scorelab("pretrained", "digits-edm")
    card = pretrained.card("digits-edm")
    assert status == 0
    for said in (card.what, card.command, card.sha256[:12], card.data_sha256[:12], card.licence, card.good_for, card.not_for):
        assert said in out
    assert all(each.name in out for each in card.metrics)
    status, _, err = scorelab("pretrained", "digits-emd")
    assert (status, len(err.splitlines())) == (2, 1)
    assert "digits-edm, " in err
    assert "Did you mean digits-edm?" in err


def test_a_folder_of_the_name_of_a_model_does_not_stand_in_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-edm").mkdir()
    assert kept.find("digits-edm").parent == kept.MODELS
    assert kept.find("./digits-edm").resolve() == tmp_path / "digits-edm"


def test_an_unknown_name_is_met_with_the_known_ones():
    for call in (pretrained.load, pretrained.model, pretrained.card):
        with pytest.raises(ConfigError, match=r"'digits-emd'.*digits-edm, digits-edm-classes, .*Did you mean digits-edm\?"):
            call("digits-emd")


def test_a_model_of_your_own_has_no_card_and_a_damaged_card_is_named(tmp_path, tiny_run, monkeypatch):
    file = pretrained.keep(tiny_run, tmp_path / "mine.npz")
    assert pretrained.load(str(file)).card is None
    with pytest.raises(ConfigError, match="has no card; expected one of digits-edm"):
        pretrained.card(str(file))
    # What lies beside it by chance is no card of it.
    (tmp_path / "mine.json").write_text("{}")
    assert pretrained.load(str(file)).card is None
    for module in (kept, cards):
        monkeypatch.setattr(module, "MODELS", tmp_path)
    for text in ("{", json.dumps({"what": "a"}), "[]"):
        (tmp_path / "mine.json").write_text(text)
        with pytest.raises(ConfigError, match=r"mine\.json: not a card of a model"):
            pretrained.load(str(file))


def test_what_earlier_versions_kept_is_read_with_the_data_and_nonsense_is_refused(tmp_path, tiny_run):
    file = pretrained.keep(tiny_run, tmp_path / "mine.npz")
    arrays = read_npz(file, limit=1 << 24)
    record, who = json.loads(str(arrays["record"])), pretrained.load(str(file))

    def written(record):
        return write_npz(tmp_path / "other.npz", arrays | {"record": np.asarray(json.dumps(record))})

    earlier = written({key: value for key, value in record.items() if key not in ("measured", "example", "classes")})
    again = pretrained.load(str(earlier))
    assert (again.event_shape, again.classes) == (who.event_shape, who.classes) == ((2,), None)
    assert again.model.denoiser == who.model.denoiser
    for change in (
        {"example": 3}, {"example": {"x": [[2]]}}, {"example": {"x": [[2], "float31"]}}, {"example": {"x": [2, "float32"]}},
        {"measured": {"a": "b"}}, {"measured": []},
    ):  # fmt: skip
        kept.stored.cache_clear()
        with pytest.raises(ConfigError, match=r"other\.npz: not a model written by"):
            pretrained.load(str(written(record | change)))


def test_other_parameters_than_those_that_were_written_are_refused(tmp_path, tiny_run, monkeypatch):
    file = pretrained.keep(tiny_run, tmp_path / "mine.npz")
    pretrained.load(str(file))
    arrays = read_npz(file, limit=1 << 24)
    arrays["p000"] = arrays["p000"].copy()
    arrays["p000"].flat[0] += 1e-3
    other = write_npz(tmp_path / "other.npz", arrays)
    with pytest.raises(ConfigError, match=r"other\.npz has parameters with the hash \w+: expected"):
        pretrained.load(str(other))
    # The files of the package say nothing of it themselves; their cards do.
    name = "digits-student" if "digits-student" in pretrained.names() else pretrained.names()[0]
    card = dataclasses.replace(pretrained.card(name), sha256="0")
    monkeypatch.setattr(pretrained, "read", lambda file: card)
    with pytest.raises(ConfigError, match="expected 0, as when it was written"):
        pretrained.load(name)
