"""The affine scale of pixels and its bits per dimension."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.data import Identity, Pixels, Positive

SCALES = [
    Pixels(),
    Pixels(levels=17),
    Pixels(levels=2, low=0.0, high=1.0),
    Pixels(low=0.1, high=3.7),
    Pixels(levels=255, low=-5.0, high=-1.0),
]


@pytest.mark.parametrize("scale", SCALES)
def test_round_trips_are_exact_and_stay_inside(scale):
    x = np.arange(scale.levels, dtype=np.uint8)
    y = jax.jit(scale.encode)(x)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(scale.decode(y), x)
    many = np.tile(x, 2000)
    z = scale.dequantise(jax.random.key(0), many)
    np.testing.assert_array_equal(scale.decode(z), many)
    for values in (y, z):
        assert scale.low < values.min()
        assert values.max() < scale.high


def test_dequantisation_noise_is_uniform():
    scale = Pixels(levels=16, low=0.0, high=16.0)
    n = 200_000
    u = np.asarray(scale.dequantise(jax.random.key(1), np.full(n, 5, np.uint8)), np.float64) - 5
    # Kolmogorov-Smirnov: sqrt(n) D exceeds 2.0 with probability 2 exp(-8) = 7e-4 under the uniform law.
    distance = np.abs(np.sort(u) - (np.arange(n) + 0.5) / n).max()
    assert distance * math.sqrt(n) < 2.0


@pytest.mark.parametrize("scale", SCALES)
def test_the_uniform_law_costs_log2_levels_bits(scale):
    shape = (3, 4, 2)
    log_prob = -24 * math.log(scale.high - scale.low)
    assert scale.bits_per_dim(log_prob, shape) == pytest.approx(math.log2(scale.levels), rel=1e-12)


def test_log_det_is_the_jacobian_of_the_scale():
    scale = Pixels(levels=17, low=-2.0, high=5.0)
    # A difference of encoded neighbours is dy / dx of an affine map; float32 gives about seven digits.
    slope = float(scale.encode(np.uint8(9)) - scale.encode(np.uint8(8)))
    assert scale.log_det((6,)) == pytest.approx(6 * math.log(slope), rel=1e-5)


def test_bits_bound_the_code_length_of_a_discrete_law():
    """A density constant on each cell makes the bound an equality: bits = -log2 P(x)."""
    scale = Pixels(levels=4, low=0.0, high=2.0)
    mass = np.array([0.1, 0.2, 0.3, 0.4])
    x = np.arange(4, dtype=np.uint8)
    y = scale.dequantise(jax.random.key(2), x)
    log_prob = np.log(mass / 0.5)[np.asarray(scale.decode(y))]
    np.testing.assert_allclose(scale.bits_per_dim(log_prob, (1,)), -np.log2(mass), rtol=1e-12)


def test_values_outside_are_clipped():
    np.testing.assert_array_equal(Pixels().decode(jnp.array([-9.0, -1.0, 1.0, 9.0])), [0, 0, 255, 255])


def test_identity_changes_nothing():
    x = np.array([[1.5, -2.0]], np.float32)
    same = Identity()
    for y in (same.encode(x), same.decode(x), same.dequantise(jax.random.key(0), x)):
        np.testing.assert_array_equal(y, x)
    assert same.log_det((2,)) == 0.0
    assert same.bits_per_dim(-2 * math.log(2), (2,)) == pytest.approx(1.0)


def test_requests_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="levels = 300"):
        Pixels(levels=300)
    with pytest.raises(ValueError, match=r"Pixels\.low = 1\.0: expected less than high"):
        Pixels(low=1.0, high=1.0)
    with pytest.raises(ValueError, match=r"Pixels\.high = nan"):
        Pixels(high=float("nan"))
    with pytest.raises(TypeError, match="float32: expected uint8"):
        Pixels().encode(jnp.zeros(3))
    assert hash(Pixels()) == hash(Pixels())
    assert Pixels() == Pixels(levels=256)


@pytest.mark.parametrize("scale", [Pixels(levels=17), Positive(levels=17)])
def test_levels_that_a_scale_does_not_have_are_refused(scale):
    top = np.array([[16]], np.uint8)
    np.testing.assert_array_equal(scale.decode(scale.encode(top)), top)
    scale.check(top, 17)
    scale.check(top)
    for wrong in (np.array([[200]], np.uint8), jnp.array([[17]], jnp.uint8)):
        with pytest.raises(ValueError, match=r"x has the value .*: expected levels 0 to 16"):
            scale.encode(wrong)
        with pytest.raises(ValueError, match="expected levels 0 to 16"):
            scale.dequantise(jax.random.key(0), wrong)
        with pytest.raises(ValueError, match="for data with the value"):
            scale.check(wrong)
    # Fewer levels would fit, into the lower part of the scale.
    for levels in (10, 256):
        with pytest.raises(ValueError, match=f"for data with {levels} levels: expected levels = {levels}"):
            scale.check(top, levels)
    with pytest.raises(TypeError, match="float32: expected uint8 levels"):
        scale.check(top.astype(np.float32))
    with pytest.raises(ValueError, match="y has 1 values that are NaN"):
        scale.decode(np.array([0.0, np.nan], np.float32))
    # Values that are compiled in are known as well as others.
    assert jax.jit(lambda: scale.encode(top))().shape == (1, 1)


def test_identity_takes_finite_numbers():
    Identity().check(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match=r"data with 17 levels: expected Pixels\(levels=17\)"):
        Identity().check(np.zeros((1, 8, 8, 1), np.uint8), 17)
    with pytest.raises(ValueError, match="NaN or infinite"):
        Identity().check(np.array([[np.inf]], np.float32))


def test_numpy_scalars_are_numbers():
    assert Pixels(levels=np.int64(17), low=np.float32(-2.0)) == Pixels(levels=17, low=-2.0)
    assert repr(Positive(levels=np.int32(17))) == repr(Positive(levels=17))
    for levels in (np.float32(17), np.int64(1), True):
        with pytest.raises(ValueError, match="expected an integer from 2 to 256"):
            Pixels(levels=levels)
