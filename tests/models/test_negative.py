"""Guidance away from a negative condition, and conditions whose values change without a program more."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import grids, models, processes, sample, schedules, solvers
from scorelab.models.nets import MLP, Composite, Label, Vector
from scorelab.sampling import _walk

pytestmark = pytest.mark.usefixtures("quick_compilation")

EDM = processes.Gaussian(schedule=schedules.EDM())
NET = MLP(width=8, depth=1, embed=8, condition=Composite(label=Label(3), vector=Vector(2)))
N = 6


def network():
    """A small network with random parameters, none at its zero initialisation."""
    denoiser = models.Denoiser(net=NET, process=EDM)
    shapes = jax.eval_shape(lambda: denoiser.init(jax.random.key(0), (2,)))
    rng = np.random.default_rng(0)
    return denoiser.bind(jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype) / 3, shapes))


def cond(seed):
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=(N, 2)).astype(np.float32)
    vector[seed % N] = np.nan  # one that is not given
    return {"label": rng.integers(4, size=N).astype(np.int32), "vector": vector}


def draw(guidance, seed=1, **options):
    grid, key = grids.Karras(3), jax.random.key(0)
    return np.asarray(sample(guidance, solver=solvers.DDIM(), grid=grid, key=key, shape=(N, 2), cond=cond(seed), **options).x)


def guided(seed=2, scale=2.0, model=None):
    return models.ClassifierFreeGuidance(model=model or network(), scale=scale, negative=cond(seed))


def test_the_negative_condition_takes_the_place_of_none():
    model, y = network(), np.random.default_rng(3).normal(size=(N, 2)).astype(np.float32)
    found, strong, weak = guided()(y, 0.7, cond(1)), model(y, 0.7, cond(1)), model(y, 0.7, cond(2))
    # The same sum in one order, float32.
    np.testing.assert_allclose(found.denoised, weak.denoised + 2 * (strong.denoised - weak.denoised), rtol=1e-5, atol=1e-6)
    assert np.abs(found.denoised - models.ClassifierFreeGuidance(model=model, scale=2.0)(y, 0.7, cond(1)).denoised).max() > 1e-3
    # Null rows are no condition; one embedding for all is multiplied in another order than one for each.
    null = models.ClassifierFreeGuidance(model=model, scale=2.0, negative=NET.condition.null(N))(y, 0.7, cond(1)).denoised
    none = models.ClassifierFreeGuidance(model=model, scale=2.0)(y, 0.7, cond(1)).denoised
    np.testing.assert_allclose(null, none, rtol=1e-5, atol=1e-6)


def test_its_rows_go_with_the_chunks_of_samples():
    np.testing.assert_allclose(draw(guided(), chunk=4), draw(guided()), rtol=1e-5, atol=1e-5)


def test_other_values_of_conditions_compile_nothing():
    draw(guided())
    before = _walk._cache_size()
    others = draw(guided(seed=4, scale=3.0), seed=5)
    assert _walk._cache_size() == before
    assert np.abs(others - draw(guided())).max() > 1e-3


def test_a_negative_condition_that_is_none_is_named_before_anything_is_computed():
    wrong = models.ClassifierFreeGuidance(model=network(), negative={"vector": np.full((N, 2), np.inf, np.float32)})
    with pytest.raises(ValueError, match=r'cond\["vector"\] has 6 rows of 6 that are not finite'):
        draw(wrong)
    short = models.ClassifierFreeGuidance(model=network(), negative={"label": jnp.zeros(N - 1, jnp.int32)})
    with pytest.raises(ValueError, match=r"sample\.ClassifierFreeGuidance\.negative has a leaf of shape \(5,\)"):
        draw(short)


def test_one_row_for_all_is_refused_whatever_the_number_of_samples():
    # The two numbers of one row are no rows of two samples.
    wrong = models.ClassifierFreeGuidance(model=network(), scale=2.0, negative={"vector": np.ones(2, np.float32)})
    arguments = dict(solver=solvers.DDIM(), grid=grids.Karras(3), key=jax.random.key(0), shape=(2, 2))
    with pytest.raises(ValueError, match=r"ClassifierFreeGuidance\.negative has the shape \(2,\): expected a leading axis"):
        sample(wrong, **arguments)
    # A label alone is one for all, and rows are rows.
    one, rows = (
        sample(models.ClassifierFreeGuidance(model=network(), scale=2.0, negative={"label": label}), **arguments).x
        for label in (np.int32(1), np.array([1, 1], np.int32))
    )
    np.testing.assert_allclose(one, rows, rtol=1e-5, atol=1e-5)
