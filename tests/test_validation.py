import jax
import numpy as np
import pytest

import scorelab as sl
from scorelab.processes.base import require_same_process
from scorelab.validation import require_choice, require_int, require_number, require_positive, require_seed

EDM = sl.processes.Gaussian(schedule=sl.schedules.EDM())
VP = sl.processes.Gaussian(schedule=sl.schedules.VPLinear())


@pytest.mark.parametrize("number", [np.float32(20), np.float64(20), np.int64(20), 20])
def test_a_numpy_scalar_is_the_number_it_is(number):
    spec = sl.schedules.EDM(sigma_max=number)
    assert spec == sl.schedules.EDM(sigma_max=20)
    assert hash(spec) == hash(sl.schedules.EDM(sigma_max=20))
    assert type(spec.sigma_max) in (int, float)


def test_a_grid_takes_numpy_integers():
    grid = sl.grids.Karras(np.int64(10))
    assert grid == sl.grids.Karras(10)
    assert "np." not in repr(grid)


@pytest.mark.parametrize("value", [True, np.True_, "20", None, np.ones(1), float("nan"), float("inf"), -1.0, 0])
def test_what_is_no_positive_number(value):
    with pytest.raises(ValueError, match=r"EDM\.sigma_max = .*expected a finite number above 0"):
        require_positive(sl.schedules.EDM(), sigma_max=value)


def test_messages_name_the_function_that_was_called():
    with pytest.raises(ValueError, match=r"^sample\.n = 1\.5"):
        require_int(sl.sample, 1, n=1.5)
    with pytest.raises(ValueError, match=r"^EDM\.rho = 3"):
        require_number(sl.schedules.EDM, 0, 1, rho=3)


def test_equal_is_not_the_same_choice():
    require_choice("f", (1, 2), order=np.int64(2))
    for value in (True, 1.0, np.ones(2)):
        with pytest.raises(ValueError, match="expected one of 1, 2"):
            require_choice("f", (1, 2), order=value)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, np.int64(2**40), None, "0"])
def test_seeds_that_would_repeat_are_refused(seed):
    with pytest.raises(ValueError, match=r"f\.seed = .*\[0, 4294967295\]"):
        require_seed("f", seed=seed)


def test_the_largest_seed_is_no_other_one():
    require_seed("f", seed=2**32 - 1)
    assert not np.array_equal(jax.random.key_data(jax.random.key(2**32 - 1)), jax.random.key_data(jax.random.key(0)))


def test_processes_that_differ_are_both_named():
    require_same_process("f", model=EDM, process=sl.processes.Gaussian(schedule=sl.schedules.EDM()))
    with pytest.raises(ValueError, match=r"f: model.process = .*EDM.* and process = .*VPLinear.*: expected the same process"):
        require_same_process("f", model=EDM, process=VP)
