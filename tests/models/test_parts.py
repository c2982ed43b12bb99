"""What stands inside a model: found by field, in pytrees that a field holds, behind static fields and in other classes."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
import pytest

from scorelab import models
from scorelab.models import SeesEstimate, informed
from scorelab.models.base import ChecksCondition, check_condition
from scorelab.models.estimates import waits
from scorelab.models.parts import map_parts, parts_of
from scorelab.models.per_sample import map_per_sample, per_sample_values
from scorelab.pytrees import partly_static


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Leaf(SeesEstimate, ChecksCondition):
    """Waits, and takes the condition 1."""

    estimate: Any = None

    @property
    def waits(self):
        return self.estimate is None

    def informed(self, estimate):
        return replace(self, estimate=estimate)

    def check_condition(self, cond):
        if cond != 1:
            raise ValueError(f"no condition: {cond}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Holder:
    held: Any
    fixed: Any = field(default=None, metadata={"static": True})
    scale: Any = field(default=1.0, metadata=models.per_sample.PER_SAMPLE)


@partly_static("held")
@dataclass(frozen=True)
class Numbers:
    """Its flattening hands out the numbers of what it holds."""

    held: Any


@jax.tree_util.register_pytree_node_class
class Plain:
    """A pytree that is no dataclass."""

    def __init__(self, held):
        self.held = held

    def tree_flatten(self):
        return (self.held,), None

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(*children)


@jax.tree_util.register_pytree_node_class
class PlainLeaf(SeesEstimate, ChecksCondition):
    """The same, and a model that waits."""

    waits = Leaf.waits
    check_condition = Leaf.check_condition

    def __init__(self, estimate=None):
        self.estimate = estimate

    def informed(self, estimate):
        return PlainLeaf(estimate)

    def tree_flatten(self):
        return (self.estimate,), None

    @classmethod
    def tree_unflatten(cls, static, children):
        return cls(*children)


AROUND = {
    "itself": lambda m: m,
    "field": Holder,
    "numbers": Numbers,
    "numbers in a field": lambda m: Holder(Numbers(m)),
    "tuple": lambda m: Numbers((np.ones(2), m)),
    "dict": lambda m: Holder({"a": {"b": m}}),
    "list": lambda m: [m],
    "plain": Plain,
    "plain in a field": lambda m: Holder(Plain((m,))),
    "partial": lambda m: jax.tree_util.Partial(lambda m, y: y, m),
}


@pytest.mark.parametrize("leaf", [Leaf, PlainLeaf])
@pytest.mark.parametrize("name", AROUND)
def test_a_model_is_found_wherever_it_stands(name, leaf):
    model = AROUND[name](leaf())
    assert waits(model)
    told = informed(model, 2.0)
    assert type(told) is type(model)
    assert not waits(told)
    assert any(np.ndim(number) == 0 and number == 2.0 for number in jax.tree.leaves(told))
    assert waits(model)
    check_condition(model, 1)
    with pytest.raises(ValueError, match="no condition: 2"):
        check_condition(model, 2)


def test_where_nothing_changes_the_model_itself_comes_back():
    model = Holder({"a": (Numbers(Leaf(3.0)), np.ones(2))})
    assert map_parts(lambda part: part, model) is model
    assert informed(model, 1.0) is model
    assert map_per_sample(lambda _, value: value, model) is model


def test_a_static_field_is_asked_of_its_condition_and_told_nothing():
    model = Holder(1.0, fixed=Leaf())
    assert parts_of(model) == [Leaf()]
    assert parts_of(model, static=False) == []
    assert not waits(model)
    with pytest.raises(ValueError, match="no condition: 2"):
        check_condition(model, 2)


def test_what_is_one_for_each_sample_is_found_in_every_pytree_of_models():
    scale = np.arange(3.0)
    model = Holder(({"a": Holder(None, scale=scale)}, Numbers(Holder(None, scale=scale + 1))), scale=2.0)
    assert [list(value) for value in per_sample_values(model).values()] == [[0, 1, 2], [1, 2, 3]]
    rows = map_per_sample(lambda _, value: value[1:2], model)
    assert (rows.held[0]["a"].scale, rows.held[1].held.scale, rows.scale) == ([1.0], [2.0], 2.0)
