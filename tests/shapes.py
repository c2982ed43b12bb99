"""Shapes in signatures, held to what functions get and give in every test: by jaxtyping's import hook, with beartype."""

from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

CHECKED = (
    *("scorelab.data.arrays", "scorelab.densities", "scorelab.divergence", "scorelab.likelihood", "scorelab.processes"),
    *("scorelab.randomness", "scorelab.schedules", "scorelab.starts", "scorelab.training.ema"),
    *(
        "scorelab.fk.policies",
        "scorelab.fk.resampling",
        "scorelab.fk.weights",
        "scorelab.losses.times",
        "scorelab.losses.weightings",
    ),
)
# An integer is a number in the place of a float, as in PEP 484.
CONF = BeartypeConf(is_pep484_tower=True)


def checked(function):
    """Arguments and result are looked at together, after the call: what a function refuses itself, it refuses in its own words.

    The hook hands out each signature twice, to look at arguments beforehand with ``Any`` in the place of the result. Constructors
    stay as they are: JAX builds trees whose leaves are no arrays. Types without a shape are left to the type checker.
    """
    hints = function.__annotations__
    if hints.get("return") is Any or function.__name__ == "__init__" or not any(map(has_shape, hints.values())):
        return function
    function.__annotations__ = {name: hint if has_shape(hint) else Any for name, hint in hints.items()}
    return beartype(function, conf=CONF)


def has_shape(hint):
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(has_shape, get_args(hint)))


def install():
    """Check the modules that are imported from now on."""
    install_import_hook(CHECKED, "tests.shapes.checked")
