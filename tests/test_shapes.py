"""The shapes that signatures state are held to what is passed, in modules that the hook has imported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

import scorelab as sl
from scorelab.densities import eight_gaussians
from scorelab.divergence import dot, trace
from tests import shapes


@jaxtyped(typechecker=shapes.checked)
def outer(a: Float[Array, " n"], b: Float[Array, " m"]) -> Float[Array, " n m"]:
    return b[:, None] * a


def test_a_result_of_another_shape_is_caught():
    assert outer(jnp.ones(3), jnp.ones(3)).shape == (3, 3)
    with pytest.raises(TypeCheckError, match="outer"):
        outer(jnp.ones(2), jnp.ones(3))


@pytest.mark.parametrize("points", [(1, 2), (3, 1), (2,)])
def test_shapes_that_would_broadcast_are_caught(points):
    with pytest.raises(TypeCheckError, match="dot"):
        dot(jnp.ones((3, 2)), jnp.ones(points))
    process = sl.processes.Gaussian(schedule=sl.schedules.EDM())
    with pytest.raises(TypeCheckError, match="kernel_score"):
        process.kernel_score(jnp.ones((3, 2)), jnp.ones(points), 0.5)


def test_shapes_are_caught_while_a_program_is_traced():
    product = lambda v: 2 * v
    with pytest.raises(TypeCheckError, match="trace"):
        jax.jit(lambda y, probes: trace(product, y, probes))(jnp.ones((3, 2)), jnp.ones((4, 1, 2)))


def test_numbers_of_another_kind_are_caught():
    with pytest.raises(TypeCheckError, match="floating"):
        sl.schedules.VPLinear().sigma(np.arange(3))


def test_what_is_refused_is_refused_in_the_words_of_the_library():
    with pytest.raises(ValueError, match="expected \\(batch, 2\\)"):
        eight_gaussians().log_prob(jnp.ones((3, 4)))


def test_trees_of_laws_hold_what_is_no_array():
    law = eight_gaussians()
    leaves, structure = jax.tree.flatten(law)
    assert all(type(leaf) is object for leaf in jax.tree.leaves(jax.tree.unflatten(structure, [object() for _ in leaves])))
    axes = jax.tree.map(lambda leaf: 0, sl.starts.ClassAverage(jnp.ones((2, 3)), jnp.ones(4, int)))
    assert axes.means == 0
