"""The number of a function: equal for equal code and values, in every process, and another one for other code or values."""

import functools
import importlib.util
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from scorelab.fingerprints import fingerprint

NAME = "rewards_of_a_test"
MODULE = """
import functools
import math

import numpy as np

LIMITS = {"low", "high", "middle"}
WIDTH = 2.0


def helper(x):
    return math.sin(x) if "low" in {"low", "high", "middle"} else WIDTH


class Reward:
    def __init__(self, scale):
        self.scale = np.full(3, scale)

    @property
    def twice(self):
        return 2 * self.scale

    @functools.lru_cache
    def __call__(self, x):
        try:
            return self.twice * helper(x)
        except ValueError:
            return LIMITS


def made(scale=1.0):
    def reward(x, power=2):
        inner = lambda x: helper(x) ** power
        return scale * inner(x)

    return reward


def again(x):
    return again(x - 1) if x else 0
"""
CALLS = ("helper", "made()", "made(2.0)", "Reward(1.0)", "Reward(2.0)", "again", "functools.partial(helper, 1)", "math.sin")


def fingerprints(folder, text):
    """Of all functions of a module of this text, in this process."""
    path = folder / f"{NAME}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(NAME, path)
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    # Past the cache of compiled modules, which goes by the second.
    exec(compile(text, str(path), "exec"), vars(module))
    return answers(vars(module))


def answers(names):
    return [fingerprint(eval(call, names | dict(functools=functools, math=math))) for call in CALLS]


def test_equal_functions_have_equal_numbers_in_every_process(tmp_path):
    here = fingerprints(tmp_path, MODULE)
    assert len(set(here)) == len(here)
    # Another order of sets; compiled in the first process and read in the second.
    ask = f"import {NAME}; from tests.test_fingerprints import answers; print(*answers(vars({NAME})))"
    for seed in ("1", "2"):
        env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]), PYTHONHASHSEED=seed)
        answer = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True)
        assert answer.stdout.split() == here, answer.stderr


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("math.sin(x)", "math.cos(x)", (0, 1, 2, 3, 4, 6)),
        ("def helper(x):", "def helper(x):  # of x", ()),
        ("WIDTH = 2.0", "WIDTH = 3.0", (0, 1, 2, 3, 4, 6)),
        ('LIMITS = {"low"', 'LIMITS = {"LOW"', (3, 4)),
        ("return 2 * self.scale", "return 3 * self.scale", (3, 4)),
        ("except ValueError", "except TypeError", (3, 4)),
        ("power=2", "power=3", (1, 2)),
        ("** power", "* power", (1, 2)),
        ("x - 1", "x - 2", (5,)),
    ],
)
def test_what_changes_a_function_changes_its_number(tmp_path, old, new, changed):
    before, after = fingerprints(tmp_path, MODULE), fingerprints(tmp_path, MODULE.replace(old, new))
    assert tuple(i for i in range(len(CALLS)) if before[i] != after[i]) == changed


def test_arrays_count_by_their_numbers_and_objects_by_what_they_hold():
    def with_array(values):
        return lambda x: x @ values

    assert fingerprint(with_array(np.ones(3))) == fingerprint(with_array(np.ones(3)))
    assert fingerprint(with_array(np.ones(3))) != fingerprint(with_array(np.array([1, 1, 2.0])))
    of_objects = [fingerprint(with_array(np.array([1, text], object))) for text in ("a", "b")]
    assert of_objects[0] != of_objects[1]
    # An object without a hash.
    unhashable = type("Unhashable", (), dict(__hash__=None, __call__=lambda self, x: x))()
    assert fingerprint(unhashable) == fingerprint(unhashable)
    assert fingerprint(functools.partial(np.sum, axis=1)) != fingerprint(functools.partial(np.sum, axis=0))
