"""The loop-safe convolution is the plain one: values and derivatives, every mode, batched or not."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab.models.nets import Conv, GroupNorm
from scorelab.models.nets.conv import convolve

# float32 sums of at most 28 * 28 * 3 products of normals in another order: a few hundred ulp at worst.
RTOL = 1e-5


def arrays(size, kernel, batch=3, inner=5, outer=4):
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(batch, *size, inner)), rng.normal(size=(*(kernel,) * len(size), inner, outer))
    return x.astype(np.float32), w.astype(np.float32)


def pair(stride):
    return tuple(lambda x, w, s=safe: convolve(x, w, stride=stride, loop_safe=s) for safe in (True, False))


def assert_close(got, expected, rtol=RTOL):
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert g.shape == e.shape
        np.testing.assert_allclose(g, e, rtol=0, atol=rtol * float(np.abs(e).max()))


def primitives(jaxpr):
    """Names of all primitives of a jaxpr, nested ones included."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


# The default run has every kernel, stride and padding on an odd side; the long tail has the other sides.
CASES = [
    pytest.param((side, side), kernel, stride, marks=() if side == 7 else pytest.mark.long)
    for side in (8, 7, 28)
    for kernel in (1, 3)
    for stride in (1, 2)
]


SIZES = [
    *CASES, ((9, 6), 2, 2), ((6, 9), 4, 1), ((9,), 3, 2), ((5, 4, 3), 3, 2), pytest.param((4, 5, 6), 2, 1, marks=pytest.mark.long),
]  # fmt: skip


@pytest.mark.parametrize(("size", "kernel", "stride"), SIZES)
def test_value_and_both_modes_of_differentiation_match_lax(size, kernel, stride):
    x, w = arrays(size, kernel)

    def lax_conv(x, w):
        layout = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}[len(size)]
        return jax.lax.conv_general_dilated(x, w, (stride,) * len(size), "SAME", dimension_numbers=layout)

    def all_of(conv):
        y, pullback = jax.vjp(conv, x, w)
        return y, pullback(jnp.sin(3.0 * y)), jax.jvp(conv, (x, w), (jnp.cos(x), jnp.cos(w)))[1]

    safe, plain = pair(stride)
    got, expected, y = jax.jit(lambda: (all_of(safe), all_of(lax_conv), plain(x, w)))()
    np.testing.assert_array_equal(got[0], expected[0])
    np.testing.assert_array_equal(y, expected[0])
    assert_close(got, expected)


@pytest.mark.parametrize(("size", "stride"), [((7, 6), 1), ((7, 6), 2), ((3, 4, 2), 2)])
def test_second_derivatives_match(size, stride):
    x, w = arrays(size, 3, batch=2)

    def second(conv):
        def energy(x, w):
            return jnp.sum(jnp.sin(conv(x, w)))

        def reverse_over_reverse(x, w):
            gx, gw = jax.grad(energy, (0, 1))(x, w)
            return jnp.sum(gx**2) + jnp.sum(gw**2)

        forward_over_reverse = jax.jvp(jax.grad(energy, (0, 1)), (x, w), (jnp.cos(x), jnp.cos(w)))[1]
        return jax.grad(reverse_over_reverse, (0, 1))(x, w), forward_over_reverse

    assert_close(*jax.jit(lambda: [second(conv) for conv in pair(stride)])(), rtol=1e-4)


@pytest.mark.parametrize(
    ("axes", "size"),
    [((0, None), (6, 5)), ((None, 0), (6, 5)), ((1, 3), (6, 5)), ((0, 0), (3, 4, 3))],
    ids=["images", "kernels", "both", "volumes"],
)
def test_vmap_of_gradients_and_gradients_of_vmap_match(axes, size):
    x, w = arrays(size, 3)
    count = 2
    xs = np.stack([x, 2 * x], axes[0]) if axes[0] is not None else x
    ws = np.stack([w, np.cos(w)], axes[1]) if axes[1] is not None else w

    def both(conv):
        def value(x, w):
            return jnp.sum(jnp.sin(conv(x, w)))

        inside = jax.vmap(jax.grad(value, (0, 1)), axes, axis_size=count)
        outside = jax.grad(lambda x, w: jnp.sum(jax.vmap(value, axes, axis_size=count)(x, w)), (0, 1))
        return inside(xs, ws), outside(xs, ws)

    assert_close(*jax.jit(lambda: [both(conv) for conv in pair(2)])())


def test_jacobians_by_forward_and_reverse_mode_agree():
    x, w = arrays((3, 4), 3, batch=1, inner=2, outer=2)
    safe, plain = pair(2)
    expected, *got = jax.jit(lambda: (jax.jacrev(plain)(x, w), jax.jacrev(safe)(x, w), jax.jacfwd(safe)(x, w)))()
    assert_close(got[0], expected)
    assert_close(got[1], expected)


def test_gradients_inside_a_scan_match_and_contain_no_foreign_convolution():
    x, w = arrays((8, 8), 3, inner=4)

    def steps(conv):
        grad = jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, w))))
        return lambda x: jax.lax.scan(lambda x, _: (x - 0.1 * grad(x), None), x, None, length=2)[0]

    safe, plain = pair(1)
    assert_close(*jax.jit(lambda: (steps(safe)(x), steps(plain)(x)))())
    names = set(primitives(jax.make_jaxpr(jax.grad(lambda w: jnp.sum(steps(safe)(x) * w[0, 0, 0, 0])))(w).jaxpr))
    assert "conv_general_dilated" not in names
    assert "loop_safe_conv" in names


@pytest.mark.parametrize("loop_safe", [False, True])
def test_a_kernel_of_one_pixel_is_a_product_in_all_derivatives(loop_safe):
    x, w = arrays((5, 4), 1)
    energy = lambda x, w: jnp.sum(jnp.sin(convolve(x, w, stride=2, loop_safe=loop_safe)))
    second = jax.grad(lambda x, w: sum(jnp.sum(g**2) for g in jax.grad(energy, (0, 1))(x, w)), (0, 1))
    names = set(primitives(jax.make_jaxpr(jax.vmap(second, (None, 0)))(x, np.stack([w, w])).jaxpr))
    assert "dot_general" in names
    assert not [name for name in names if "conv_general" in name or "loop_safe" in name]


def test_bfloat16_gradients_keep_the_dtype():
    x, w = arrays((8, 8), 3)
    safe = pair(2)[0]
    got = jax.grad(lambda x, w: jnp.sum(safe(x, w).astype(jnp.float32) ** 2), (0, 1))
    low, high = jax.jit(lambda: (got(*(jnp.asarray(a, jnp.bfloat16) for a in (x, w))), got(*map(jnp.asarray, (x, w)))))()
    assert {g.dtype for g in low} == {jnp.dtype("bfloat16")}
    # bfloat16 keeps 8 bits: 2^-8 per rounding, and three of them (inputs, output, result) lie in a row here.
    assert_close([np.asarray(g, np.float32) for g in low], high, rtol=3 * 2**-8)


def test_conv_layer_has_the_same_parameters_either_way():
    x, _ = arrays((8, 8), 3)
    layer, zero, key = Conv(6, stride=2), Conv(6, zero_init=True), jax.random.key(0)
    safe, reference = layer.clone(loop_safe=True), nn.Conv(6, (3, 3), strides=2)

    @jax.jit
    def apply():
        params = layer.init(key, x)
        return params, [net.apply(params, x) for net in (layer, safe, reference)], zero.init_with_output(key, x)[0]

    params, (plain, looped, expected), nothing = apply()
    assert jax.tree.structure(jax.eval_shape(safe.init, key, x)) == jax.tree.structure(params)
    np.testing.assert_array_equal(looped, plain)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-5)
    assert not np.any(nothing)
    assert "bias" not in jax.eval_shape(Conv(6, bias=False).init, key, x)["params"]


def test_invalid_arguments_are_named():
    x, w = arrays((8, 8), 3)
    with pytest.raises(ValueError, match="stride = 3: expected"):
        convolve(x, w, stride=3)
    with pytest.raises(ValueError, match="w has shape"):
        convolve(x[..., :2], w)
    with pytest.raises(ValueError, match=r"w has shape .* expected \(k, 5, out\)"):
        convolve(x[0], w)
    with pytest.raises(ValueError, match="x has shape"):
        convolve(x[0, 0], w)
    with pytest.raises(ValueError, match="w has shape"):
        convolve(x, w[:2])
    with pytest.raises(ValueError, match="w has dtype"):
        convolve(x, w.astype(np.float16))
    with pytest.raises(ValueError, match=r"Conv\.stride = 3"):
        Conv(4, stride=3)
    with pytest.raises(ValueError, match=r"Conv\.features = 0"):
        Conv(0)


@pytest.mark.parametrize(
    ("channels", "groups", "sides"), [(8, 2, (7, 5)), (8, 2, (3, 4, 2)), pytest.param(6, 6, (7,), marks=pytest.mark.long)]
)
def test_group_norm_is_flax_group_norm(channels, groups, sides):
    rng = np.random.default_rng(0)
    x = (3.0 + 2.0 * rng.normal(size=(3, *sides, channels))).astype(np.float32)
    gamma, beta = rng.normal(size=(2, channels)).astype(np.float32)
    scale, shift = rng.normal(size=(2, 3, channels)).astype(np.float32)
    params = {"params": {"scale": gamma, "bias": beta}}
    axes = tuple(range(1, 1 + len(sides)))
    ours, theirs = GroupNorm(groups), nn.GroupNorm(groups, epsilon=1e-5)

    def value_and_grad(norm):
        return norm.apply(params, x), jax.grad(lambda x: jnp.sum(jnp.sin(norm.apply(params, x))))(jnp.asarray(x))

    got, expected, modulated = jax.jit(
        lambda: (value_and_grad(ours), value_and_grad(theirs), ours.apply(params, x, scale, shift))
    )()
    assert_close(got, expected)
    assert_close(modulated, np.asarray(expected[0]) * (1 + np.expand_dims(scale, axes)) + np.expand_dims(shift, axes))


def test_group_norm_statistics_are_float32_and_survive_constant_input():
    norm = GroupNorm(2)
    x = np.full((2, 6, 6, 8), 100.0, jnp.bfloat16)
    y = jax.jit(lambda x: norm.init_with_output(jax.random.key(0), x)[0])(x)
    assert y.dtype == jnp.bfloat16
    assert np.all(np.isfinite(np.asarray(y, np.float32)))
    with pytest.raises(ValueError, match=r"GroupNorm\.groups = 3"):
        GroupNorm(3).init(jax.random.key(0), x)
