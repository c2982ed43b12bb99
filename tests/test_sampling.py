"""What ``sample`` promises beyond the solvers: compilation, memory, trajectories, errors."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import NonFiniteSample, densities, grids, models, processes, sample, schedules, solvers
from scorelab.randomness import per_example_keys, per_example_normal
from scorelab.sampling import _walk
from scorelab.starts import Prior
from scorelab.walk import Held, Visit, drawn, plan, working_precision

KEY = jax.random.key(0)
EDM = processes.Gaussian(schedule=schedules.EDM())
LAW = densities.eight_gaussians()
MODEL = models.ExactModel(LAW, EDM)


def test_the_trajectory_is_kept_only_when_asked(optimised):
    arguments = dict(solver=solvers.Heun(), grid=grids.Karras(6), key=KEY, shape=(5, 2))
    last, path = sample(MODEL, **arguments), sample(MODEL, keep="all", **arguments)
    assert last.trajectory is None
    assert path.trajectory.shape == (7, 5, 2)
    np.testing.assert_array_equal(path.trajectory[-1], path.x)
    np.testing.assert_array_equal(path.x, last.x)
    assert np.std(path.trajectory[0]) > 20


def test_peak_memory_does_not_grow_with_the_steps():
    sizes = []
    for steps in (8, 64):
        rows = working_precision(solvers.DDIM().table(EDM, grids.Karras(steps).times(EDM)))
        visit = Visit(MODEL, KEY, jnp.arange(4096))
        begun = drawn(Prior(), EDM, KEY, visit.ids, None, rows.t[0], event=(2,))
        compiled = _walk.lower(Held(solvers.DDIM()), visit, begun, rows, keep="last").compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] - sizes[0] < 4096  # the table itself, a few hundred bytes


def test_parameters_scales_grids_and_counts_of_one_chunk_shape_share_one_program():
    _walk.clear_cache()
    for scale, n, t_max in ((1.0, 8, 80.0), (2.5, 8, 40.0), (7.0, 13, 20.0)):
        guided = models.ClassifierFreeGuidance(model=MODEL, unconditional=MODEL, scale=scale, interval=(0.1, 10.0 * scale))
        sample(guided, solver=solvers.DPMSolverPP(), grid=grids.Karras(5, t_max=t_max), key=KEY, shape=(n, 2), chunk=8)
    assert _walk._cache_size() == 1
    sample(guided, solver=solvers.DPMSolverPP(order=2), grid=grids.Uniform(5), key=KEY, shape=(8, 2), chunk=8)
    assert _walk._cache_size() == 1  # an equal spec, another kind of grid


def test_other_solvers_grids_and_models_begin_with_the_program_that_draws_the_start():
    other = models.ExactModel(densities.Gaussian(np.zeros(2), 0.5), EDM)
    sample(MODEL, solver=solvers.DPMSolverPP(), grid=grids.Karras(5), key=KEY, shape=(8, 2))
    before = drawn._cache_size()
    sample(other, solver=solvers.DPMSolverPP(order=2), grid=grids.Karras(7), key=KEY, shape=(8, 2))
    assert drawn._cache_size() == before


def test_the_noise_of_a_sample_is_that_of_its_key_in_the_shape_of_an_event():
    keys = per_example_keys(KEY, np.arange(3, dtype=np.int32))
    for event in ((2,), (5, 3, 1), ()):
        expected = jax.vmap(lambda key, event=event: jax.random.normal(key, event))(keys)
        np.testing.assert_array_equal(per_example_normal(keys, jnp.zeros((1, *event))), expected)


def test_a_table_of_the_library_is_made_once_and_cannot_be_written():
    def rows(solver, steps=5):
        given = dict(grid=grids.Karras(steps), key=KEY, shape=(8, 2), start=None, cond=None, ids=None)
        return plan("sample", MODEL, solver=solver, **given).rows

    table = rows(solvers.DPMSolverPP())
    assert rows(solvers.DPMSolverPP()) is table
    assert rows(solvers.DPMSolverPP(order=1)) is not table
    assert rows(solvers.DPMSolverPP(), 6) is not table
    with pytest.raises(ValueError, match="read-only"):
        table.t[0] = 1.0


KNOB = [1.0]


@dataclass(frozen=True, kw_only=True)
class Turned(solvers.DPMSolverPP):
    """A solver of a caller whose table follows from more than its fields, and who writes into the times."""

    def table(self, process, times):
        times[1:-1] *= KNOB[0]
        return super().table(process, times)


def test_a_table_of_a_caller_is_made_at_every_call():
    arguments = dict(solver=Turned(), grid=grids.Karras(5), key=KEY, shape=(8, 2))
    KNOB[0] = 1.0
    first = sample(MODEL, **arguments).x
    KNOB[0] = 0.9
    assert not np.array_equal(sample(MODEL, **arguments).x, first)
    KNOB[0] = 1.0
    np.testing.assert_array_equal(sample(MODEL, **arguments).x, first)


@dataclass(frozen=True)
class Stretched(grids.Karras):
    """A grid of a caller whose times follow from more than its fields."""

    def times(self, process):
        times = super().times(process)
        times[1:-1] *= KNOB[0]
        return times


def test_the_times_of_a_caller_are_asked_for_at_every_call():
    times = lambda grid: sample(MODEL, solver=solvers.DDIM(), grid=grid, key=KEY, shape=(8, 2)).times
    KNOB[0] = 1.0
    first = times(Stretched(5))
    np.testing.assert_array_equal(first, times(grids.Karras(5)))
    KNOB[0] = 0.9
    np.testing.assert_array_equal(times(Stretched(5))[1:-1], 0.9 * first[1:-1])


def test_what_a_caller_does_to_the_times_of_samples_stays_with_them():
    first = sample(MODEL, solver=solvers.DDIM(), grid=grids.Karras(5), key=KEY, shape=(8, 2))
    first.times[:] = 0.0
    again = sample(MODEL, solver=solvers.DDIM(), grid=grids.Karras(5), key=KEY, shape=(8, 2))
    np.testing.assert_array_equal(again.times, grids.Karras(5).times(EDM))


def test_an_exact_mixture_is_sampled_to_the_floor():
    # Sliced Wasserstein distance of 20,000 samples against exact draws, beside that of two exact draws.
    from scorelab.metrics import sliced_wasserstein

    out = sample(MODEL, solver=solvers.DPMSolverPP(order=2), grid=grids.Karras(20), key=KEY, shape=(20_000, 2))

    a, b, c = jax.device_get(jax.jit(lambda: [LAW.sample(jax.random.key(i), 20_000) for i in (1, 2, 3)])())
    distance = lambda x, y: sliced_wasserstein(jax.random.key(5), np.asarray(x), y, projections=64).value
    distances = [distance(x, y) for x, y in ((out.x, a), (out.x, b), (out.x, c))]
    floors = [distance(x, y) for x, y in ((a, b), (a, c), (b, c))]
    assert np.mean(distances) < 1.5 * np.mean(floors)


def test_a_nan_is_reported_with_its_step():
    def broken(y, t, cond=None):
        prediction = MODEL(y, t)
        poison = jnp.where(t < 1.0, jnp.nan, 0.0)
        return EDM.predict(y, t, denoised=prediction.denoised + poison)

    broken = models.FunctionModel(broken, EDM, returns="prediction")
    grid = grids.Karras(8)
    step = int(np.flatnonzero(grid.times(EDM) < 1.0)[0])
    arguments = dict(solver=solvers.DDIM(), grid=grid, key=KEY, shape=(3, 2))
    with pytest.raises(NonFiniteSample, match=rf"3 of 3 samples .* step {step} of 8"):
        sample(broken, **arguments)
    out = sample(broken, check_finite=False, **arguments)
    np.testing.assert_array_equal(out.diagnostics["first_bad_step"], [step] * 3)


def test_progress_is_told_after_each_chunk():
    seen = []
    sample(
        MODEL, solver=solvers.DDIM(), grid=grids.Karras(3), key=KEY, shape=(10, 2), chunk=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(4, 10), (8, 10), (10, 10)]


def test_conditions_follow_their_samples_through_chunks():
    def denoised(y, t, cond=None):
        return jnp.zeros_like(y) + cond["label"][:, None]

    conditional = models.FunctionModel(denoised, EDM)
    label = np.arange(7.0, dtype=np.float32)
    out = sample(conditional, solver=solvers.DDIM(), grid=grids.Karras(3), key=KEY, shape=(7, 2), cond={"label": label}, chunk=3)
    np.testing.assert_allclose(out.x, np.stack([label, label], 1), atol=1e-5)


def test_sample_runs_inside_jit_and_is_differentiable():
    def mean_of_samples(shift):
        law = densities.Gaussian(np.zeros(2), 0.3).noised(EDM, 0.0)
        law.mean = law.mean + shift
        out = sample(models.ExactModel(law, EDM), solver=solvers.DDIM(), grid=grids.Karras(6), key=KEY, shape=(4, 2))
        return jnp.mean(out.x)

    value = jax.jit(jax.value_and_grad(mean_of_samples))
    _, gradient = value(0.4)
    finite_difference = (value(0.41)[0] - value(0.39)[0]) / 0.02
    assert float(gradient) == pytest.approx(float(finite_difference), rel=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(shape=(4,)), ValueError, "shape"),
        (dict(shape=(0, 2)), ValueError, "shape"),
        (dict(keep="some"), ValueError, "keep"),
        (dict(solver="heun"), TypeError, "Solver"),
        (dict(grid=18), TypeError, "Grid"),
        (dict(chunk=0), ValueError, "chunk"),
        (dict(cond=np.zeros(3)), ValueError, "leading axis"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    arguments = dict(solver=solvers.DDIM(), grid=grids.Karras(3), key=KEY, shape=(4, 2)) | change
    with pytest.raises(error, match=message):
        sample(MODEL, **arguments)
