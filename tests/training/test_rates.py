"""The learning rate that is written down is the one that moves the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from scorelab import distill
from scorelab.training.rates import learning_rate

SCHEDULE = optax.warmup_cosine_decay_schedule(0.0, 1e-2, warmup_steps=3, decay_steps=12, end_value=1e-4)
PARAMS = {"w": jnp.array([1.0, -2.0, 3.0])}


def moves(optimizer, steps):
    """The norms of the first updates under a gradient of norm one."""
    state, gradient = optimizer.init(PARAMS), {"w": jnp.array([0.6, 0.0, 0.8])}
    for _ in range(steps):
        update, state = optimizer.update(gradient, state, PARAMS)
        yield float(jnp.linalg.norm(update["w"]))


@pytest.mark.parametrize("rate", [0.03, SCHEDULE])
@pytest.mark.parametrize("wrap", [lambda inner: inner, lambda inner: optax.chain(optax.clip_by_global_norm(5.0), inner)])
def test_it_is_the_length_of_a_step_of_gradient_descent(rate, wrap):
    optimizer = wrap(optax.sgd(rate))
    found = learning_rate(optimizer)
    # Two roundings to float32.
    np.testing.assert_allclose([found(n) for n in range(1, 13)], list(moves(optimizer, 12)), rtol=3e-7, atol=1e-12)


@pytest.mark.parametrize("kind", [optax.adam, optax.adamw, optax.lion, optax.radam, optax.lamb, optax.rmsprop, optax.adabelief])
def test_other_optimisers_end_with_the_same_factor(kind):
    found = learning_rate(kind(SCHEDULE))
    np.testing.assert_allclose([found(n) for n in range(1, 13)], [SCHEDULE(n - 1) for n in range(1, 13)], rtol=1e-6)
    assert learning_rate(kind(0.25))(7) == 0.25


@pytest.mark.parametrize(
    "optimizer",
    [
        None,
        optax.identity(),
        optax.chain(optax.scale(0.5), optax.sgd(0.1)),
        optax.adafactor(1e-3),
        optax.MultiSteps(optax.sgd(SCHEDULE), 2).gradient_transformation(),
        optax.chain(optax.adam(1e-3), optax.contrib.reduce_on_plateau()),
        optax.partition({"a": optax.sgd(0.1), "b": optax.sgd(0.2)}, lambda tree: jax.tree.map(lambda _: "a", tree)),
    ],
)
def test_nothing_is_said_where_it_is_not_one_known_factor(optimizer):
    assert learning_rate(optimizer) is None


def test_that_of_a_student_begins_after_the_warm_up():
    # The field alone: a whole distillation has nothing to do with it.
    learner = object.__new__(distill.FDistill)
    object.__setattr__(learner, "optimizer", optax.sgd(SCHEDULE))
    object.__setattr__(learner, "warmup", 5)
    rate = learner.learning_rate()
    assert [rate(n) for n in (1, 5)] == [0.0, 0.0]
    assert rate(9) == learning_rate(optax.sgd(SCHEDULE))(4) > 0


def test_a_rate_of_which_a_part_is_not_seen_is_not_known():
    inner = optax.multi_transform({"a": optax.adam(1e-3)}, "a")
    assert learning_rate(optax.chain(inner, optax.scale(0.5))) is None
    assert learning_rate(optax.chain(optax.inject_hyperparams(optax.adam)(1e-3), optax.scale(1.0))) is None
