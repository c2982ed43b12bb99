"""Conditions that are left out in training, so that a model learns what it means not to be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scorelab.arrays import Key, Pytree
from scorelab.models.nets.conditions import Condition
from scorelab.validation import require_number, require_spec


@dataclass(frozen=True, kw_only=True)
class ConditionDropout:
    r"""Members of a condition replaced by their null values, each by itself and all together.

    Independently for every example, all members are dropped with the probability ``together``, and member ``i`` with
    the probability :math:`r_i`. So a set of members ``S``, not all of them, is what is dropped with the probability
    :math:`(1-p)\prod_{i\in S}r_i\prod_{i\notin S}(1-r_i)`. Classifier-free guidance needs examples without any condition
    (Ho & Salimans 2022, arXiv 2207.12598).

    Attributes:
        condition: that of the network.
        rate: of a condition that is one member.
        rates: of the members of a ``Composite``, by name: ``(("label", 0.1), ("image", 0.2))``, or a dict; 0 for those left out.
        together: the probability ``p`` with which all are dropped.
    """

    condition: Condition
    rate: float = 0.0
    rates: tuple[tuple[str, float], ...] = ()
    together: float = 0.0

    def __post_init__(self):
        require_spec(self, Condition, condition=self.condition)
        require_number(self, 0.0, 1.0, rate=self.rate, together=self.together)
        names = [name for name, _ in self.condition.members]
        rates = tuple(self.rates.items()) if isinstance(self.rates, Mapping) else self.rates
        if not isinstance(rates, tuple | list) or not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in rates):
            accepted = (
                "(), and a rate" if names == [None] else f"pairs such as (({names[0]!r}, 0.1),), or a dict, of the names {names}"
            )
            raise ValueError(f"ConditionDropout.rates = {self.rates!r} of {self.condition!r}: expected {accepted}")
        object.__setattr__(self, "rates", tuple(tuple(pair) for pair in rates))
        if names == [None] and self.rates:
            raise ValueError(f"ConditionDropout.rates = {self.rates!r} of {self.condition!r}: expected (), and a rate")
        if names != [None] and self.rate:
            raise ValueError(f"ConditionDropout.rate = {self.rate!r} of {self.condition!r}: expected 0, and rates by name")
        given = [name for name, _ in self.rates]
        if wrong := [name for name in given if name not in names or given.count(name) > 1]:
            raise ValueError(f"ConditionDropout.rates has {wrong[0]!r}: expected each of {names} at most once")
        for name, value in self.rates:
            require_number(f"ConditionDropout.rates[{name!r}]", 0.0, 1.0, rate=value)

    @property
    def each(self) -> tuple[float, ...]:
        """The rate of each member, in the order of the condition."""
        rates = dict(self.rates)
        return tuple(self.rate if name is None else rates.get(name, 0.0) for name, _ in self.condition.members)

    @property
    def unconditional(self) -> float:
        """The share of examples without any condition."""
        return self.together + (1 - self.together) * math.prod(self.each)

    def __call__(self, key: Key, cond: Pytree) -> Pytree:
        """``cond``, each value with a leading axis of examples, with some rows null; ValueError where there is none."""
        if cond is None:
            raise ValueError(f'batch["cond"] = None: expected one, condition_dropout = {self!r}')
        return self.condition.drop(key, cond, self.each, self.together)
