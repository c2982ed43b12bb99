"""The number of a function: equal for equal code and values, in every process, and another one for other code or values."""

import contextlib
import functools
import importlib.util
import math
import os
import subprocess
import sys

import jax
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


def test_values_count_as_they_are_now():
    """A name that is given another value in the same process, as in a notebook, and one whose value was changed in place."""
    names = dict(target=1.0, limits={"low": 0.0})
    reward = eval("lambda x: (x - target) * limits['low']", names)
    first = fingerprint(reward)
    names["target"] = 2.0
    second = fingerprint(reward)
    names["limits"]["low"] = 0.5
    assert len({first, second, fingerprint(reward)}) == 3
    names.update(target=1.0, limits={"low": 0.0})
    assert fingerprint(reward) == first
    # So does what is collected, but for what the caller names as no part.
    kept = Collecting(), Collecting(1.0)
    before = [fingerprint(each) for each in kept]
    for each in kept:
        each(np.ones(2))
        each.memory(1)
    assert [fingerprint(each) for each in kept] == before
    assert before[0] != before[1]


class Collecting:
    """A reward that writes down what it was asked."""

    def __init__(self, scale=2.0):
        self.scale, self.asked = scale, []
        self.memory = functools.lru_cache(lambda x: x)

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "asked"}

    def __call__(self, x):
        self.asked.append(x)
        return self.scale * x


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale):
        self.scale = scale


class Holding:
    def __init__(self, network):
        self.network = network

    def __repr__(self):
        return "Holding(...)"

    def __call__(self, x):
        return self.network(x)


class Tensor:
    """What is asked of a tensor of torch, which NumPy cannot read while it has a gradient."""

    shape = (3,)

    def __init__(self, values, dtype="torch.float32"):
        self.values, self.dtype = np.float32(values), dtype

    def __repr__(self):
        return "tensor([1., ...])"

    def detach(self):
        return self

    cpu = detach

    def float(self):
        return Tensor(self.values)

    def numpy(self):
        if self.dtype != "torch.float32":
            raise TypeError(f"Got unsupported ScalarType {self.dtype}")
        return self.values


class Module:
    """A module of an installed package, whose weights only ``state_dict`` shows."""

    __slots__ = ("weight",)

    def __init__(self, *values, **more):
        self.weight = Tensor(*values, **more)

    def __repr__(self):
        return "Linear(in_features=3, out_features=1)"

    def state_dict(self):
        return {"weight": self.weight}


def test_weights_of_modules_of_torch_count(monkeypatch):
    """With stand-ins, since torch is not installed here."""
    # As if these were of a package.
    for installed in (Module, Tensor):
        monkeypatch.setattr(installed, "__module__", "numpy")
    around = lambda module: lambda x: module(x)
    ones, others = [1, 1, 1], [1, 1, 2]
    assert repr(Module(ones)) == repr(Module(others))
    assert fingerprint(around(Module(ones))) == fingerprint(around(Module(ones)))
    assert fingerprint(around(Module(ones))) != fingerprint(around(Module(others)))
    assert fingerprint(around(Module(ones).weight)) != fingerprint(around(Module(others).weight))
    # Of few bits, which NumPy does not know.
    small = [fingerprint(around(Module(values, dtype="torch.bfloat16"))) for values in (ones, others)]
    assert len({*small, fingerprint(around(Module(ones)))}) == 3
    # The caller's own, which holds such a module, and a pipeline of a package.
    for module in (Holding.__module__, "numpy"):
        monkeypatch.setattr(Holding, "__module__", module)
        held = [fingerprint(around(Holding({"parts": [Module(values)]}))) for values in (ones, ones, others)]
        assert held[0] == held[1] != held[2]
    with pytest.raises(TypeError, match=r"refers to a Tensor of torch\.quint8 and shape \(3,\), whose numbers cannot be read"):
        fingerprint(around(Module(ones, dtype="torch.quint8")))


def test_which_of_several_objects_is_meant_counts_and_so_does_what_has_no_dictionary():
    within = lambda *values: lambda x: values
    low, high = [1], [2]
    assert fingerprint(within(low, high, low)) != fingerprint(within(low, high, high))
    assert fingerprint(within(Slotted(1))) != fingerprint(within(Slotted(2)))
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((3,), (4,))]
    assert fingerprint(within(shapes[0])) != fingerprint(within(shapes[1]))
    keys = [jax.random.split(jax.random.key(seed), 5000) for seed in range(2)]
    assert fingerprint(within(keys[0])) != fingerprint(within(keys[1]))


def test_a_function_in_a_decorator_of_a_package_counts():
    """As under ``torch.no_grad()``: what is called is the package's, under the name of what it wraps."""
    wrapped = [contextlib.contextmanager(eval(f"lambda x: x * {scale}")) for scale in (1, 1, 2)]
    first, equal, other = map(fingerprint, wrapped)
    assert first == equal != other
    # An object of a package around it.
    first, equal, other = (fingerprint(np.vectorize(eval(f"lambda x: x * {scale}"))) for scale in (1, 1, 2))
    assert first == equal != other
