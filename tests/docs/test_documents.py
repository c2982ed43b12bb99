"""The examples of the documents are executed, and obey the laws that the documents say they do."""

import importlib
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab.experiment import Sample
from scorelab.run.cli import main

from ..contracts import test_solvers as laws
from ..run.conftest import with_sets
from .blocks import BLOCK, ROOT, blocks, named

CONTRIBUTED = named("CONTRIBUTING.md")
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def contributed(tmp_path_factory):
    """The files of CONTRIBUTING.md in a folder of their own, on the path: (folder, import function)."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in CONTRIBUTED.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder, importlib.import_module
    for name in CONTRIBUTED:
        sys.modules.pop(name.removesuffix(".py"), None)


# README -----------------------------------------------------------------------------------------------------
def test_the_first_example_lands_on_its_floor(capsys):
    (example,) = [block for block in blocks("README.md", "python") if "ExactModel" in block]
    scope = {}
    exec(compile(example, "README.md", "exec"), scope)
    assert "floor" in capsys.readouterr().out
    # The distance of two exact draws varies with the counts of the eight modes, often by half its value.
    assert scope["distance"].value < 3 * scope["floor"].value


def test_the_training_example_runs(capsys):
    (example,) = [block for block in blocks("README.md", "python") if "training.fit" in block]
    # As it stands there, but for the number of steps and samples and the size of the network.
    for large, small in ((r"steps=2_?000", "steps=6, log_every=3"), (r"width=128, depth=3", "width=16, depth=1")):
        example, changes = re.subn(large, small, example)
        assert changes == 1
    scope = {}
    exec(compile(example.replace("5000", "200"), "README.md", "exec"), scope)
    assert int(scope["state"].step) == 6
    assert "SW2" in capsys.readouterr().out


def test_the_ci_script_runs_the_commands_of_the_readme():
    lines = "".join(blocks("README.md", "sh")).splitlines()
    (command,) = [line for line in lines if "pytest" in line]
    script = (ROOT / ".ci" / "run").read_text()
    steps = [part.strip().replace(".venv/bin/", "") for part in command.split("&&")]
    assert steps[0] == "python -m venv .venv"
    for step in steps[1:]:
        assert step.replace("'", "") in re.sub(r'["\']|\$bin/', "", script), step


def test_the_commands_of_the_documents_name_configs_that_exist():
    from scorelab.config.sources import find_config

    found = 0
    for page in PAGES:
        for line in re.findall(r"scorelab (?:run|train) ([\w/.]+)", page.read_text(encoding="utf-8")):
            if line not in ("mine.gin", "my.gin", "CONFIG"):
                find_config(line)
                found += 1
    assert found > 3


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        # Pictures are made by runs; a text may name one that has not been drawn yet.
        if "://" not in target and not target.endswith(".png"):
            assert (page.parent / target).exists(), target


def test_the_extractor_ids_in_the_documents_are_those_of_the_package():
    index = json.loads((ROOT / "scorelab" / "metrics" / "weights" / "index.json").read_text())
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    found = set(re.findall(r"smallcnn\((\w+)-([0-9a-f]{8})\)", text))
    assert found == {(name, record["sha256"][:8]) for name, record in index.items()}


def test_python_blocks_parse():
    for page in PAGES:
        for block in blocks(page.relative_to(ROOT), "python"):
            if not block.startswith("# mine.gin"):
                compile(block, page.name, "exec")


# A process --------------------------------------------------------------------------------------------------
def test_the_charts_derivatives_are_those_of_its_inverse(contributed):
    chart = contributed[1]("logit_process").Logit()
    x = np.linspace(0.02, 0.98, 41, dtype=np.float32)

    @jax.jit
    def both(x):
        y = chart.encode(x)
        by_hand = chart.decode(y), chart.d_decode(x), chart.dd_decode(x)
        return by_hand, (x, jax.vmap(jax.grad(chart.decode))(y), jax.vmap(jax.grad(jax.grad(chart.decode)))(y))

    (value, first, second), expected = both(x)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(first, expected[1], rtol=2e-5, atol=1e-7)
    np.testing.assert_allclose(second, expected[2], rtol=2e-4, atol=1e-6)


def test_the_ambient_sde_is_itos_formula(contributed):
    process = contributed[1]("logit_process").LogitGaussian(schedule=sl.schedules.VPLinear())
    x, t = np.linspace(0.1, 0.9, 9, dtype=np.float32)[:, None], 0.3

    @jax.jit
    def both(x):
        y, g2 = process.encode(x), process.latent_diffusion(t) ** 2
        first, second = jax.grad(process.decode), jax.grad(jax.grad(process.decode))
        phi1, phi2 = (jax.vmap(f)(y[:, 0])[:, None] for f in (first, second))
        drift = phi1 * process.latent_drift(y, t) + 0.5 * phi2 * g2
        squared = jax.vmap(jax.grad(lambda x: process.diffusion(x.reshape(1, 1), t)[0, 0] ** 2))(x[:, 0])
        found = process.drift(x, t), process.diffusion(x, t) ** 2, process.div_diffusion(x, t)
        return found, (drift, phi1**2 * g2, squared[:, None])

    found, expected = both(x)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4)
    np.testing.assert_allclose(found[2], expected[2], rtol=1e-4, atol=1e-5)


def test_the_way_back_in_data_space_needs_the_divergence(contributed):
    module = contributed[1]("logit_process")

    class Classic(module.LogitGaussian):
        def div_diffusion(self, x, t):
            return jnp.zeros_like(x)

    mean, std, n, steps = 0.4, 0.6, 20_000, 250
    law = sl.densities.Gaussian(np.array([mean]), std**2)

    def moments(kind):
        process = kind(schedule=sl.schedules.VPLinear(beta_max=12.0))
        out = sl.sample(
            sl.models.ExactModel(law, process),
            solver=sl.solvers.EulerMaruyama(coords="ambient"),
            grid=sl.grids.Uniform(steps),
            key=jax.random.key(0),
            shape=(n, 1),
        )
        logits = np.asarray(process.encode(out.x), np.float64)
        return logits.mean(), logits.std()

    # Three standard errors, plus a bias of order 1/steps for a relaxation time of order one.
    error = np.array([3 * std / np.sqrt(n), 3 * std / np.sqrt(2 * n)]) + 1 / steps
    assert np.all(np.abs(np.array(moments(module.LogitGaussian)) - [mean, std]) < error)
    assert np.all(np.abs(np.array(moments(Classic)) - [mean, std]) > 10 * error)


# A solver ---------------------------------------------------------------------------------------------------
@pytest.fixture
def midpoint(contributed):
    return contributed[1]("midpoint").ExponentialMidpoint()


def test_the_solver_has_the_order_it_declares(midpoint):
    for process in (laws.VP, laws.VE):
        laws.test_order_of_convergence(midpoint, midpoint.order, process)


def test_the_solver_obeys_the_other_laws(midpoint):
    laws.test_model_calls_are_the_declared_ones(midpoint)
    laws.test_gaussian_marginals(midpoint, laws.FLOW)
    for process in (laws.VE, laws.FLOW):
        laws.test_one_step_to_clean_data_is_finite(midpoint, process)
    laws.test_solvers_are_hashable_specs(midpoint)


# A loss -----------------------------------------------------------------------------------------------------
def standardised_gradients(loss, process, law, shifts):
    """The loss's gradient with respect to a constant added to the exact denoiser, in standard errors, at some constants."""
    exact = sl.models.ExactModel(law, process)

    @jax.jit
    def gradients(shift):
        key_data, key_loss = jax.random.split(jax.random.key(5))
        x = law.sample(key_data, 20_000)

        def losses(shift):
            model = sl.models.FunctionModel(lambda y, t, cond: exact(y, t).denoised + shift, process)
            return loss(key_loss, model, {"x": x})

        return jax.jvp(losses, (shift,), (jnp.ones_like(shift),))[1]

    g = np.stack([np.asarray(gradients(np.float32(shift)), np.float64) for shift in shifts])
    return np.abs(g.mean(1)) / (g.std(1, ddof=1) / np.sqrt(g.shape[1]))


def test_the_loss_is_stationary_where_its_docstring_says(contributed):
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    # Noise levels about the scale of the data, where the posteriors of the skewed law are skewed.
    times = sl.losses.UniformLogSNRTimes(log_snr_min=-3.0, log_snr_max=3.0)
    huber = contributed[1]("pseudo_huber").PseudoHuber(process, width=0.3, times=times)
    squares = sl.losses.DenoisingScoreMatching(process, times=times)
    gaussian = sl.densities.Gaussian(np.array([0.4]), 0.5)
    skewed = sl.densities.GaussianMixture([0.85, 0.15], np.array([[0.0], [2.0]]), np.array([0.02, 0.02]))
    at_the_mean, beside_it = standardised_gradients(huber, process, gaussian, (0.0, 0.2))
    assert at_the_mean < 4
    assert beside_it > 8
    assert standardised_gradients(squares, process, skewed, (0.0,)) < 4
    assert standardised_gradients(huber, process, skewed, (0.0,)) > 8


# A config ---------------------------------------------------------------------------------------------------
def test_the_config_runs_the_three_of_them_without_touching_the_library(contributed, monkeypatch):
    folder, _ = contributed
    monkeypatch.chdir(folder)
    tiny = with_sets(
        "nets.MLP.width = 8",
        "nets.MLP.depth = 1",
        "experiment.Sample.n = 8",
        "experiment.Evaluate.evaluations = ()",
        "grids.Karras.steps = 3",
        "STEPS = 3",
        "WARMUP = 1",
    )
    assert main(["run", "mine.gin", *tiny, "--workdir", "run"]) == 0
    specs = (folder / "run" / "specs.json").read_text()
    for name in ("logit_process.LogitGaussian", "midpoint.ExponentialMidpoint", "pseudo_huber.PseudoHuber"):
        assert name in specs
    assert (folder / "run" / "report.html").is_file()


def test_the_example_of_the_config_page_resolves(tmp_path):
    from scorelab.config import load

    (example,) = [block for block in blocks("docs/configs.md", "text") if "__gin__" in block]
    (tmp_path / "example.gin").write_text(example)
    sampling = load(str(tmp_path / "example.gin")).experiment.one(Sample)
    assert sampling.solver == sl.solvers.UniPC(predictor_order=3)
    assert sampling.grid == sl.grids.Karras(30)


def test_the_configs_data_std_is_that_of_the_logits(contributed):
    stated = float(re.search(r"DATA_STD = ([\d.]+)", CONTRIBUTED["mine.gin"]).group(1))
    images = sl.data.Pixels(levels=17, low=0.0, high=1.0).encode(sl.data.load("digits").x)
    logits = contributed[1]("logit_process").Logit().encode(images)
    assert float(jnp.std(logits)) == pytest.approx(stated, abs=0.005)


SLOW = pytest.param("docs/distillation.md", marks=pytest.mark.long)


@pytest.mark.parametrize("page", ["docs/steering.md", "docs/posterior.md", SLOW])
def test_pages_that_say_what_comes_out(page, capsys, optimised):
    # Their blocks hold the assertions themselves, or print.
    scope = {}
    for number, body in enumerate(blocks(page, "python")):
        exec(compile(body, f"{page}, block {number}", "exec"), scope)
    assert capsys.readouterr().out


def test_the_teleportation_page_runs(capsys, optimised):
    scope = {}
    for number, body in enumerate(blocks("docs/teleportation.md", "python")):
        exec(compile(body, f"docs/teleportation.md, block {number}", "exec"), scope)
    assert scope["plain"].diagnostics["model_calls"] == 35
    assert scope["jumped"].diagnostics["model_calls"] == 23
    # The jump lands at seven times the largest deviation of these points: nothing that can be seen in them.
    assert np.sqrt(np.mean((scope["plain"].x - scope["jumped"].x) ** 2)) < 0.03 * scope["data"].std()
    assert set(scope["explained"]) == {"Gaussian", "isotropic"}
