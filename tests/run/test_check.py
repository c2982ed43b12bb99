"""What does not fit is refused before anything is trained; what runs and is hardly meant is said."""

import types
import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from scorelab import config, losses
from scorelab.data import Named, Transform
from scorelab.data.memory import memory_size, require_memory
from scorelab.errors import ConfigError, ConfigWarning
from scorelab.experiment import DataSpec, Evaluate, ImageEvaluation, Sample
from scorelab.experiment.checks import check
from scorelab.experiment.console import Console
from scorelab.metrics import Features, SmallCNN, pixels, small_cnn
from scorelab.processes import Gaussian
from scorelab.processes.scale import prior_error
from scorelab.schedules import EDM

QUICK, RINGS, DROPPED = "quickstart", "toys/rings", "paper/2503.02819/digits"
SMALL = ("nets.MLP.width = 8", "nets.MLP.depth = 1")
POINTS = (*SMALL, "data.Named.n = 64", "experiment.Train.batch_size = 8", "DATA_STD = 0.6")
OTHER = (
    "losses.DenoisingScoreMatching.process = @other/processes.Gaussian()",
    "other/processes.Gaussian.schedule = @schedules.VPLinear()",
)


def refusal(name, *overrides):
    """The message about a config, of its reading or of the check."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(config.load(name, overrides).experiment)
        except (ConfigError, ValueError) as error:
            return str(error)
    return "nothing"


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        # levels
        (QUICK, ["data.Pixels.levels = 10"], "Pixels(levels=10, low=-1.0, high=1.0) for data with 17 levels: expected levels"),
        (QUICK, ["data.Pixels.levels = 256"], "for data with 17 levels: expected levels = 17"),
        (QUICK, ["data.Pixels.levels = 10", "DATA_STD = 0.5"], "expected levels = 17"),
        ("paper/2510.02730/digits", ["data.Positive.levels = 16"], "for data with 17 levels: expected levels = 17"),
        (RINGS, ["experiment.DataSpec.transform = @data.Pixels()"], "data that are float32: expected uint8 levels"),
        # the process
        (RINGS, [*POINTS, *OTHER], "ScoreLearner: loss.process = Gaussian(schedule=VPLinear("),
        # the chart
        ("toys/concentrations", ["data.Named.name = 'rings'"], "outside the domain of multiplicative noise"),
        ("toys/synaptic_weights", [*POINTS, "experiment.Sample.start = None"], "expected DataStart(kind='signed')"),
        # labels and classes
        (RINGS, ["experiment.DataSpec.labels = True"], "DataSpec.labels = True for rings, which has none"),
        (QUICK, ["nets.MLP.num_classes = 5"], "MLP.num_classes = 5 for digits with labels: expected at least its 10 classes"),
        (QUICK, ["experiment.Sample.classes = (3, 12)"], "classes = (3, 12): expected 0 to 9 for digits, not 12"),
        (RINGS, [*POINTS, "experiment.Sample.classes = (1,)"], "classes = (1,) without DataSpec.labels"),
        ("paper/2502.15681/digits", ["distill.TeacherFeatures.num_classes = 5"], "TeacherFeatures.num_classes = 5"),
        # what no condition means was never learned
        (QUICK, ["experiment.Sample.guidance = 2.0"], "the model never learned what no condition means"),
        ("paper/2502.15681/digits", ["experiment.Sample.guidance = 2.0"], "without label dropout"),
        (f"{DROPPED}_corrected", ["losses.DenoisingScoreMatching.label_dropout = 0.0"], "Correction.kind = 'geometric'"),
        (DROPPED, ["losses.DenoisingScoreMatching.null_label = 9"], "null_label = 9: expected 10, the num_classes of the network"),
        (DROPPED, ["experiment.DataSpec.labels = False"], "label_dropout = 0.17 without DataSpec.labels"),
        # the evaluation
        (QUICK, ["experiment.ImageEvaluation.n = 298"], "n = 298: expected 2 to 297, the number of images of the test split"),
        (QUICK, ["experiment.Sample.n = 200"], "n = 297: expected 2 to 200, the number of images of Sample.n"),
        (QUICK, ["metrics.small_cnn.dataset_name = 'kmnist'"], "expected features of digits, not of kmnist"),
        (QUICK, ["experiment.Evaluate.evaluations = (@experiment.PointEvaluation(),)"], "PointEvaluation for digits: expected a"),
        (RINGS, [*POINTS, "experiment.Evaluate.evaluations = (@experiment.FieldEvaluation(),)"], "expected fields (*grid,"),
        (RINGS, [*POINTS, "experiment.PointEvaluation.n = 50000"], "at most the number of samples, Sample.n = 5000"),
        ("paper/2501.06848/digits", ["rewards.ClassLogProb.dataset = 'mnist'"], "ClassLogProb.dataset = 'mnist' for"),
        # the sampler, traced
        ("paper/2501.06848/digits", ["experiment.Sample.chunk = 17"], "sample.chunk = 17: expected a multiple of 16"),
        # memory
        (RINGS, ["data.Named.n = 1000000000000"], "rings with n = 1000000000000 takes 3.2e+13 bytes"),
        (QUICK, ["experiment.Sample.n = 1000000000000"], "Sample.n = 1000000000000 takes 1.2e+13 bytes"),
        (
            QUICK,
            ["experiment.Sample.n = 1000000000000", "experiment.Sample.shards = False"],
            "Sample.n = 1000000000000 takes 2.56e+14 bytes",
        ),
        (QUICK, ["nets.MLP.width = 1000000"], "the training state takes "),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(name, overrides, expected):
    assert expected in refusal(name, *overrides)


def test_a_set_without_a_test_split_is_not_evaluated():
    with pytest.raises(ValueError, match="cifar10_subset, which has no test split"):
        ImageEvaluation(features=pixels()).check(DataSpec(dataset=Named(name="cifar10_subset")), 100)
    with pytest.raises(ValueError, match="expected levels = 17, as digits has"):
        ImageEvaluation(features=pixels()).check(DataSpec(dataset=Named(name="digits")), 100)
    ImageEvaluation(features=pixels(levels=17)).check(DataSpec(dataset=Named(name="digits")), 100)


def test_a_loss_with_more_terms_trains_the_null_class_as_it_does_without():
    experiment = config.load(f"{DROPPED}_corrected").experiment
    loss = losses.Regularised(experiment.learner.loss, ((lambda model, noised: 0.0 * noised.t, 1.0),))
    check(replace(experiment, learner=replace(experiment.learner, loss=loss)))


def duck(**members):
    """An object that has the members of a part and is none."""
    return types.SimpleNamespace(**members)


def test_parts_are_of_their_classes():
    experiment = config.load(RINGS, POINTS).experiment
    call = lambda *arguments: None
    with pytest.raises(TypeError, match=r"Experiment\.learner = .*: expected a Learner"):
        replace(experiment, learner=duck(init=call, update=call, model=call, process=experiment.process))
    with pytest.raises(TypeError, match=r"Evaluate\.evaluations = .*: expected a Evaluation"):
        Evaluate(evaluations=call)
    with pytest.raises(TypeError, match=r"Experiment\.stages = .*: expected a Stage"):
        replace(experiment, stages=(*experiment.stages, call))
    with pytest.raises(ValueError, match=r"Experiment\.stages has Sample twice with the name ''"):
        replace(experiment, stages=(*experiment.stages, Sample()))
    with pytest.raises(TypeError, match=r"DataSpec\.dataset = 'rings': expected a DataSet"):
        DataSpec(dataset="rings")
    with pytest.raises(TypeError, match=r"DataSpec\.transform = .*: expected a Transform"):
        DataSpec(dataset=Named(name="rings"), transform=duck(encode=call, decode=call))
    with pytest.raises(TypeError, match=r"ImageEvaluation\.features = .*: expected a Features"):
        ImageEvaluation(features=duck(id="mine"))


class Mean(Features):
    """An extractor of a user's own."""

    id = "mean"

    def __call__(self, images):
        return images.reshape(len(images), -1).mean(axis=1, keepdims=True)


def test_an_extractor_says_for_which_images_it_is():
    digits, evaluated = DataSpec(dataset=Named(name="digits")), ImageEvaluation(features=Mean())
    evaluated.check(digits, 100)
    for field, value, message in (
        ("dataset", "mnist", "expected features of digits, not of mnist"), ("levels", 256, "expected levels = 17"),
        ("shape", (28, 28, 1), r"expected features of images \(8, 8, 1\), not \(28, 28, 1\)"),
    ):  # fmt: skip
        kind = type("Kind", (Mean,), {field: value})
        with pytest.raises(ValueError, match=message):
            ImageEvaluation(features=kind()).check(digits, 100)
    found = small_cnn("digits")
    assert (found.dataset, found.levels, found.shape) == ("digits", 17, (8, 8, 1))
    with pytest.raises(TypeError, match="levels"):
        SmallCNN(id="mine", architecture=found.architecture, params=found.params)


class Halved(Transform):
    """A transform that does not lead back."""

    def encode(self, x):
        return x / np.float32(2)

    def decode(self, y):
        return y[:, :1]


def test_a_transform_leads_back_to_stored_values():
    DataSpec(dataset=Named(name="rings", n=8)).check()
    with pytest.raises(ValueError, match=r"expected decode\(encode\(x\)\) to return x, float32 \(8, 2\)"):
        DataSpec(dataset=Named(name="rings", n=8), transform=Halved()).check()
    with pytest.raises(ValueError, match="expected Pixels"):
        DataSpec(dataset=Named(name="digits")).check()


def test_memory_is_asked_for_before_it_is_taken():
    require_memory("x", memory_size())
    if np.isfinite(memory_size()):
        with pytest.raises(ValueError, match=r"x takes .* bytes: expected at most"):
            require_memory("x", 2 * memory_size())


def said(name, *overrides):
    """The warnings of a check."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check(config.load(name, [*POINTS, *overrides]).experiment)
    return [str(w.message) for w in caught if w.category is ConfigWarning]


def test_data_on_another_scale_is_said_with_both_numbers():
    assert said(RINGS) == []
    # The two radii of the rings are of order one.
    (wide,) = said(RINGS, "DATA_STD = 100.0")
    assert "Denoiser.data_std = 100, but the data of rings in the chart have mean" in wide
    assert "measured_std" in wide
    (near,) = said(RINGS, "schedules.EDM.sigma_max = 1.5")
    assert "sampling starts from noise of 1.5 times the signal" in near
    assert "sigma_max" in near
    # A start that knows the data forgets nothing.
    assert said(RINGS, "schedules.EDM.sigma_max = 1.5", "experiment.Sample.start = @experiment.DataStart()") == []


@pytest.mark.parametrize(("mean", "std", "ratio"), [(50.0, 100.0, 80.0), (-0.7, 0.6, 80.0), (0.3, 0.5, 2.0)])
def test_what_a_start_forgets_is_what_the_flow_makes_of_it(mean, std, ratio):
    """dy / dr = (y - D(y, r)) / r with the posterior mean D of N(mean, std^2), from the noise's mean and one deviation above it."""

    def flow(r, y):
        return (y - (std**2 * y + r**2 * mean) / (std**2 + r**2)) / r

    end = solve_ivp(flow, (ratio, 1e-6 * std), [0.0, ratio], rtol=1e-10, atol=1e-12).y[:, -1]
    # What is left to integrate below 1e-6 std moves y by its square, 1e-12.
    process = Gaussian(schedule=EDM())
    assert prior_error(process, ratio, mean=mean, std=std) == pytest.approx(
        (abs(end[0] - mean) / std, 1 - (end[1] - end[0]) / std), rel=1e-6, abs=1e-9
    )


def test_the_first_line_of_progress_comes_at_once(capsys):
    with Console().progress("train", 10) as tick:
        assert capsys.readouterr().out == "train     0/10  compiling ...\n"
        tick(10, "loss 1")
    assert capsys.readouterr().out.startswith("train     10/10  loss 1")
