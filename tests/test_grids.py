"""Shifted grids: the published formula, and one change of noise on every process."""

from itertools import pairwise

import jax
import numpy as np
import pytest

from scorelab import config, densities, grids, models, processes, sample, schedules, solvers
from scorelab.experiment import Sample
from tests.run.conftest import TINY

FLOW = processes.Gaussian(schedule=schedules.RectifiedFlow())
EDM = processes.Gaussian(schedule=schedules.EDM())
# Processes, and grids on them that begin low enough for a shift of 3.
LOWER = [
    (EDM, grids.Karras(7, t_max=20.0)),
    (processes.Gaussian(schedule=schedules.VPLinear()), grids.Quadratic(7, t_max=0.8)),
    (processes.Gaussian(schedule=schedules.VE()), grids.Uniform(7, t_max=0.7)),
    (processes.Gaussian(schedule=schedules.Discrete()), grids.Uniform(7, t_max=700.0)),
    (processes.Gaussian(schedule=schedules.ZeroTerminal()), grids.Uniform(7)),
    (processes.GeometricBrownianMotion(sigma=4.0), grids.LogSNR(7, t_max=0.1)),
    (FLOW, grids.Uniform(7)),
]


def test_the_shift_of_rectified_flow_is_the_published_one():
    # a t / (1 + (a - 1) t) by hand, for a = 3 and t = 1, 3/4, 1/2, 1/4, 0.
    times = grids.Shifted(grids.Uniform(4), shift=3.0).times(FLOW)
    np.testing.assert_allclose(times, [1, 9 / 10, 3 / 4, 1 / 2, 0], rtol=1e-15)
    assert (times[0], times[-1]) == (1.0, 0.0)
    # The noise levels of FlowMatchEulerDiscreteScheduler(shift=a) in n steps: linspace(1, 1 / 1000, n), shifted, then 0.
    flow = processes.Gaussian(schedule=schedules.RectifiedFlow(t_min=5e-4))
    for a, n in ((3.0, 28), (1.15, 50), (0.5, 10)):
        levels = np.linspace(1, 1e-3, n)
        grid = grids.Shifted(grids.Explicit(tuple(levels), clean=True), shift=a)
        np.testing.assert_allclose(grid.times(flow), np.append(a * levels / (1 + (a - 1) * levels), 0.0), rtol=1e-13)


@pytest.mark.parametrize(("process", "grid"), LOWER, ids=lambda part: repr(part)[:40])
def test_the_log_snr_is_lower_by_twice_the_logarithm(process, grid):
    before, after = (process.log_snr(g.times(process)) for g in (grid, grids.Shifted(grid, shift=3.0)))
    finite = np.isfinite(before)
    assert finite.sum() >= 6
    np.testing.assert_allclose(after[finite], before[finite] - 2 * np.log(3.0), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(after[~finite], before[~finite])
    # The way back, and no shift at all.
    again = grids.Shifted(grids.Shifted(grid, shift=3.0), shift=1 / 3.0)
    np.testing.assert_allclose(again.times(process), grid.times(process), rtol=1e-9)
    np.testing.assert_array_equal(grids.Shifted(grid, shift=1.0).times(process), grid.times(process))


def test_a_shift_below_one_ends_where_the_process_does():
    # Noise levels of EDM are times: 0.01 and 80 become 0.002, the least, and 16.
    times = grids.Shifted(grids.Karras(6, t_min=0.01), shift=0.2).times(EDM)
    np.testing.assert_allclose(times[[0, -2, -1]], [16.0, 0.002, 0.0], rtol=1e-9)
    # Pure noise and clean data stay.
    np.testing.assert_array_equal(grids.Shifted(grids.Uniform(4), shift=0.2).times(FLOW)[[0, -1]], [1.0, 0.0])


def test_a_walk_on_a_shifted_grid_is_one_under_the_time_change():
    # The probability flow knows noise levels and no times: DDIM on the levels (1 - s(t), s(t)) by hand.
    law, a, n = densities.Gaussian(np.array([0.4]), 0.3), 3.0, 9
    out = sample(
        models.ExactModel(law, FLOW), solver=solvers.DDIM(), grid=grids.Shifted(grids.Uniform(n), shift=a),
        key=jax.random.key(0), shape=(5, 1), keep="all",
    )  # fmt: skip
    t = np.linspace(1, 0, n + 1)
    s = a * t / (1 + (a - 1) * t)
    y = np.asarray(out.trajectory[0], np.float64)
    for high, low in pairwise(s):
        gain = (1 - high) * 0.3 / ((1 - high) ** 2 * 0.3 + high**2)
        clean = 0.4 + gain * (y - (1 - high) * 0.4)
        y = (1 - low) * clean + low * (y - (1 - high) * clean) / high
    np.testing.assert_allclose(out.x, y, rtol=1e-5, atol=1e-6)


def test_a_config_shifts_a_grid():
    sets = ("experiment.Sample.grid = @grids.Shifted()", "grids.Shifted.grid = @grids.Karras()", "grids.Karras.t_max = 20.0")
    grid = config.load("toys/rings", (*TINY, *sets, "grids.Shifted.shift = 2.0")).experiment.one(Sample).grid
    assert grid == grids.Shifted(grids.Karras(4, t_max=20.0), shift=2.0)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: grids.Shifted(grids.Uniform(3), shift=0.0), ValueError, r"Shifted\.shift = 0\.0: expected a finite number"),
        (lambda: grids.Shifted(3), TypeError, r"Shifted\.grid = 3: expected a Grid"),
        (
            lambda: grids.Shifted(grids.Karras(5), shift=4.0).times(EDM),
            ValueError,
            r"Shifted\.shift = 4 moves the first time of Karras.* to 320, beyond t_max = 80 .*: expected a grid that begins at 20",
        ),
        (
            lambda: grids.Shifted(grids.Karras(6), shift=0.2).times(EDM),
            ValueError,
            r"Shifted\.shift = 0\.2 moves the last noisy time of Karras.* to 0\.0004, below t_min = 0\.002 .*: expected a grid "
            r"whose last noisy time is 0\.01 or above",
        ),
        (
            lambda: grids.Shifted(grids.Uniform(7), shift=0.2).times(LOWER[3][0]),
            ValueError,
            r"moves the last noisy time of Uniform.* to -[0-9.]+, below t_min = 0 of",
        ),
        (
            lambda: grids.Shifted(grids.Uniform(3)).times(processes.Joint(image=EDM, label=EDM)),
            TypeError,
            r"Shifted\.process = Joint.*: expected a LinearGaussian",
        ),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_is_accepted(make, error, match):
    with pytest.raises(error, match=match):
        make()


TABLE = processes.Gaussian(schedule=schedules.Discrete(zero_terminal=True))


@pytest.mark.parametrize("grid", [grids.LogSNR, grids.Karras])
@pytest.mark.parametrize(("process", "t"), [(TABLE, "989"), (FLOW, "0.99")], ids=["table", "flow"])
def test_a_beginning_in_pure_noise_names_a_time_of_the_process(grid, process, t):
    with pytest.raises(ValueError, match=rf"t_max = {process.t_max} has an infinite noise level .*\(such as t_max={t}\)"):
        grid(7).times(process)
    # What is named can be walked, and is noise: alpha / sigma of a hundredth of the way from the end is small.
    times = grid(7, t_max=float(t)).times(process)
    assert len(times) == 8
    assert process.alpha(times[0]) / process.sigma(times[0]) < 0.02


@pytest.mark.parametrize("solver", [solvers.EulerMaruyama(), solvers.Milstein()], ids=lambda s: type(s).__name__)
def test_a_solver_without_rates_in_pure_noise_names_a_time_of_the_grid(solver):
    with pytest.raises(ValueError, match=r"alpha is 0 at t = 999: start the grid below it \(such as t_max=989\)"):
        solver.table(TABLE, grids.Uniform(7).times(TABLE))
    assert np.isfinite(solver.table(TABLE, grids.Uniform(7, t_max=989.0).times(TABLE)).n).all()


@pytest.mark.parametrize(
    ("grid", "first"),
    [
        (grids.Explicit((1000.0, 500.0, 0.0)), "1000"),
        (grids.Uniform(8, t_max=1200.0), "1200"),
        (grids.Explicit((999.0, -5.0)), "-5"),
        (grids.Explicit((999.0, -5.0), clean=True), "-5"),
        (grids.Uniform(8, t_min=-3.0), "-3"),
    ],
    ids=repr,
)
def test_a_grid_outside_the_table_is_refused(grid, first):
    discrete = processes.Gaussian(schedule=schedules.Discrete())
    # Every part of a joint process has its own table.
    for process in (discrete, processes.Joint(a=discrete, b=discrete)):
        with pytest.raises(ValueError, match=rf"times has t = {first}.*indices of its 1000 levels, which count from 0 to 999"):
            grid.times(process)


def test_a_shift_below_the_table_is_refused():
    discrete = processes.Gaussian(schedule=schedules.Discrete())
    with pytest.raises(ValueError, match=r"Shifted\.shift = 0\.5 moves the last noisy time .* below t_min = 0"):
        grids.Shifted(grids.Uniform(8), shift=0.5).times(discrete)


def test_the_whole_table_and_the_clean_time_are_in_it():
    discrete = processes.Gaussian(schedule=schedules.Discrete())
    for times in ((999.0, 0.5, 0.0), (999.0, 0.0, -np.inf)):
        np.testing.assert_array_equal(grids.Explicit(times).times(discrete), times)
    assert grids.Uniform(1000).times(discrete).tolist() == [*range(999, -1, -1), -np.inf]
