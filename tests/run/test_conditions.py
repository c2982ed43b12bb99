"""Conditions from the data in the stages: the rows they are of, what is stored, what is evaluated and what is shown."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from scorelab import data, experiment, grids, losses, models, pretrained, processes, schedules, solvers, training
from scorelab.errors import ConfigError
from scorelab.experiment import ConditionError, Drawn, Evaluate, Report, Run, Sample, Train
from scorelab.experiment.sample import draw, read_samples
from scorelab.experiment.train import trained_state
from scorelab.experiment.workdir import Workdir
from scorelab.models import nets
from scorelab.pretrained.kept import data_shapes

DATA = experiment.DataSpec(
    dataset=data.SuperResolution(source=data.Named(name="digits"), factor=4),
    transform=data.Pixels(levels=17),
    cond=("label", "coarse"),
)
CONDITION = nets.Composite(label=nets.Label(10), coarse=nets.Image(1))
N = 6


def made(of=DATA, condition=CONDITION, dropout=None, **sampling):
    """A small experiment that learns next to nothing."""
    process = processes.Gaussian(schedule=schedules.EDM())
    net = nets.DiT(patch=4, width=8, depth=1, heads=1, condition=condition)
    denoiser = models.Denoiser(net=net, process=process, data_std=0.7)
    loss = losses.DenoisingScoreMatching(process, condition_dropout=dropout)
    stages = (
        Train(steps=2, batch_size=8, checkpoint_every=2),
        Sample(n=N, solver=solvers.DDIM(), grid=grids.Karras(2), **sampling),
        Evaluate(evaluations=(ConditionError(),)),
        Report(),
    )
    learner = training.ScoreLearner(denoiser, loss, optax.sgd(1e-3), ema=None)
    return experiment.Experiment(data=of, learner=learner, stages=stages)


def labelled(of, **dropout):
    """With labels dropped as if they were the whole condition."""
    return replace(of, learner=replace(of.learner, loss=losses.DenoisingScoreMatching(of.process, **dropout)))


def told(of):
    """With a loss that tells the network its former estimate."""
    return replace(of, learner=replace(of.learner, loss=losses.SelfConditioned(of.learner.loss)))


DROPOUT = losses.ConditionDropout(condition=CONDITION, rates={"label": 0.1, "coarse": 0.1}, together=0.1)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    run = Run(experiment=made(dropout=DROPOUT, guidance=2.0), workdir=Workdir(tmp_path_factory.mktemp("conditions") / "run"))
    experiment.check(run.experiment)
    run.workdir.open(resume=False)
    for stage in run.experiment.stages:
        stage(run)
    return run


def test_samples_have_the_conditions_of_rows_of_the_test_split(ran):
    drawn, test = read_samples(ran.workdir), DATA.load("test")
    assert drawn.record["split"] == "test"
    assert len(set(drawn.rows)) == N
    np.testing.assert_array_equal(drawn.cond["label"], test.label[drawn.rows])
    np.testing.assert_array_equal(drawn.cond["coarse"], test.more["coarse"][drawn.rows])
    assert drawn.label is None
    # Run again, nothing is drawn anew.
    assert draw(ran, ran.experiment.stages[1], ran.workdir).record == drawn.record


def test_the_report_shows_conditions_beside_samples_and_their_points(ran):
    page = ran.workdir.report.read_text()
    assert "Conditions, samples, and the points that the conditions are of" in page
    assert "The points of the test split with these conditions" in page
    assert "label 1, coarse 2 x 2 x 1" in page
    assert "error of coarse, dealt out anew" in page


def test_the_error_of_a_condition_is_none_at_its_own_points_and_known_at_others():
    arrays, rows = DATA.load("test"), np.arange(40)[::-1]
    own = Drawn(x=arrays.x[rows], label=None, record={"split": "test"}, rows=rows)
    found, dealt = ConditionError().of(own, DATA, jax.random.key(0))
    assert found.value == found.floor == 0
    coarse = arrays.more["coarse"].astype(np.float64)
    # Dealt out anew they are those of other rows: on average the error of independent ones, twice the variance.
    independent = np.sqrt(2 * coarse[rows].var(0).mean())
    assert abs(dealt.value / independent - 1) < 4 / np.sqrt(len(rows))
    others = Drawn(x=arrays.x[rows], label=None, record={"split": "test"}, rows=rows + 1)
    expected = np.sqrt(np.mean((coarse[rows] - coarse[rows + 1]) ** 2))
    assert ConditionError().of(others, DATA, jax.random.key(0))[0].value == pytest.approx(expected)


def test_what_is_shown_is_coarse_sample_true(monkeypatch):
    from scorelab.experiment import pictures

    seen = {}
    monkeypatch.setattr(pictures.viz, "image_grid", lambda cells, **how: seen.update(cells=cells, **how))
    cond = {
        "label": np.arange(3, dtype=np.int32),
        "coarse": DATA.load().more["coarse"][:3],
        "v": np.full((3, 2), np.nan, np.float32),
    }
    x, real = DATA.load("test").x[:3], DATA.load().x[:3]
    pictures.conditioned(x, cond, real, made())
    assert seen["headings"] == ["coarse", "sample", "true"]
    assert seen["rows"][2] == "label 2\nv not given"
    cells = seen["cells"].reshape(3, 3, 8, 8, 1)
    np.testing.assert_array_equal(cells[:, 1], x)
    np.testing.assert_array_equal(cells[:, 2], real)
    # Repeated four by four; a level is the nearest one.
    levels = (DATA.load().more["coarse"][:3] + 1) * 17 / 2 - 0.5
    assert np.abs(cells[:, 0] - np.kron(levels, np.ones((1, 4, 4, 1)))).max() <= 0.5 + 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: made(guidance=2.0), "the model never learned what no condition means"),
        (lambda: made(classes=(1,)), r"Sample\.classes = \(1,\) with DataSpec\.cond: expected \(\)"),
        (lambda: made(split="valid"), r"Sample\.split = 'valid' for digits-coarse: expected one of train, test"),
        (
            lambda: made(of=replace(DATA, cond=("label", "fine"))),
            r"DataSpec\.cond = .*expected names of \['coarse', 'label', 'x'\]",
        ),
        (lambda: made(of=replace(DATA, cond="coarse")), r"cond is float32 of shape .*: expected a dict with the names \['coarse'"),
        (
            lambda: made(condition=nets.Composite(label=nets.Label(5), coarse=nets.Image(1))),
            "label of the condition of DiT, num_classes = 5",
        ),
        (
            lambda: labelled(made(guidance=2.0), label_dropout=0.1, null_label=10),
            r"label_dropout = 0\.1 for a network with the condition Composite.*expected 0, and condition_dropout",
        ),
        (
            lambda: told(made(dropout=losses.ConditionDropout(condition=nets.Label(12), rate=0.1))),
            r"condition_dropout is of Label\(num_classes=12\): expected the condition of the network",
        ),
        (
            lambda: made(dropout=losses.ConditionDropout(condition=nets.Label(10), rate=0.1)),
            r"condition_dropout is of Label\(num_classes=10\): expected the condition of the network",
        ),
        (
            lambda: made(of=replace(DATA, cond=None, labels=True), condition=nets.Label(10)),
            "ConditionError for DataSpec.cond = None",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_the_training(change, message):
    with pytest.raises(ValueError, match=message):
        experiment.check(change())


def test_labels_are_short_for_their_name():
    assert replace(DATA, cond="label") == replace(DATA, cond=None, labels=True)
    with pytest.raises(ValueError, match=r"DataSpec\.labels = True beside cond"):
        replace(DATA, labels=True)


def test_a_kept_model_samples_and_evaluates_under_conditions_of_the_data(ran):
    record = dict(step=2, data_sha256=DATA.load().sha256, **data_shapes(DATA))
    model = ran.experiment.learner.model(trained_state(ran.experiment, ran.workdir)[0])
    who = pretrained.Loaded(model=model, transform=DATA.transform, config=ran.experiment, record=record)
    drawn, stage = who.sample(N, seed=0), read_samples(ran.workdir)
    assert drawn.label is None
    np.testing.assert_array_equal(drawn.rows, stage.rows)
    for member in ("label", "coarse"):
        np.testing.assert_array_equal(drawn.cond[member], stage.cond[member])
    # By hand: the averages of the samples as numbers, and the conditions that they were drawn with.
    error, _ = who.evaluate(drawn)
    numbers = DATA.dataset.of(drawn.x, 17).astype(np.float64)
    assert error.value == pytest.approx(np.sqrt(np.mean((numbers - drawn.cond["coarse"]) ** 2)), rel=1e-6)
    assert error.n == N
    with pytest.raises(ConfigError, match="ConditionError asks for the conditions of samples"):
        who.evaluate(drawn.x)
    with pytest.raises(ValueError, match="expected None, since its conditions are rows of the data"):
        who.sample(N, label=[0] * N)
    # Rows of other data are none.
    other = replace(who, record=record | dict(data_sha256="of another set"))
    with pytest.raises(ConfigError, match=r"Loaded\.data = digits-coarse with the hash .*: expected of another set"):
        other.sample(N)
