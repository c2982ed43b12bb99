"""Averages against closed forms, and post-hoc synthesis against averages that were really tracked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from scorelab.training import EMA, PowerEMA, Snapshot, power_exponent, profile_product, synthesise


def trajectory(step):
    """Parameters that drift, oscillate and stay where they are."""
    t = np.asarray(step, np.float64)
    return {"a": np.stack([np.log1p(t), np.sin(t / 150), 5 + 0 * t]), "b": np.sqrt(t)[None]}


def tracked(spec, steps, keep=()):
    """The average over the trajectory, and the averages after the steps in ``keep``."""
    path = jax.tree.map(lambda leaf: np.float32(leaf.T), trajectory(np.arange(steps + 1)))
    first = jax.tree.map(lambda leaf: leaf[0], path)

    def step(average, item):
        number, params = item
        average = spec.update(average, params, number)
        return average, average

    later = jax.tree.map(lambda leaf: leaf[1:], path)
    numbers = np.arange(1, steps + 1, dtype=np.int32)
    last, every = jax.device_get(jax.jit(lambda first: jax.lax.scan(step, spec.init(first), (numbers, later)))(first))
    return last, [(n, jax.tree.map(lambda leaf: leaf[n - 1], every)) for n in keep]


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


@pytest.mark.parametrize("warmup", [True, False])
def test_ema_is_the_weighted_sum_it_says(warmup):
    steps, spec = 300, EMA(decay=0.95, warmup=warmup)
    average = flat(spec.params(tracked(spec, steps)[0]))
    path = trajectory(np.arange(steps + 1))
    expected = flat(jax.tree.map(lambda leaf: leaf[..., 0], path))
    for t in range(steps):
        beta = min(0.95, (1 + t) / (10 + t)) if warmup else 0.95
        expected = beta * expected + (1 - beta) * flat(jax.tree.map(lambda leaf, n=t + 1: leaf[..., n], path))
    np.testing.assert_allclose(average, expected, rtol=2e-6)


@pytest.mark.parametrize("std", [0.02, 0.05, 0.10, 0.25])
def test_the_exponent_solves_its_cubic_and_the_profile_has_the_width(std):
    gamma = power_exponent(std)
    assert gamma > 0
    assert np.sqrt(gamma + 1) / ((gamma + 2) * np.sqrt(gamma + 3)) == pytest.approx(std, rel=1e-9)
    moments = [integrate.quad(lambda t, k=k: (gamma + 1) * t ** (gamma + k), 0, 1)[0] for k in (0, 1, 2)]
    assert np.sqrt(moments[2] - moments[1] ** 2) == pytest.approx(std, rel=1e-6)


def test_power_average_is_the_integral_of_its_profile():
    """(1 - b_i) b_{i+1} ... b_t telescopes to (i/t)^(g+1) - ((i-1)/t)^(g+1)."""
    spec, steps = PowerEMA(stds=(0.05, 0.2)), 400
    last, _ = tracked(spec, steps)
    i = np.arange(1, steps + 1)
    path = trajectory(i)
    for std, average in zip(spec.stds, last, strict=True):
        g = power_exponent(std)
        weights = (i / steps) ** (g + 1) - ((i - 1) / steps) ** (g + 1)
        expected = flat(jax.tree.map(lambda leaf, w=weights: leaf @ w, path))
        np.testing.assert_allclose(flat(average), expected, rtol=5e-6, atol=1e-6)
    assert spec.params(last) is last[0]


def test_the_first_update_forgets_the_initial_parameters():
    spec, p = PowerEMA(), {"w": jnp.array([3.0])}
    average = spec.update(spec.init({"w": jnp.array([1e6])}), p, jnp.int32(1))
    assert all(a["w"] == p["w"] for a in average)


@pytest.mark.parametrize(("a", "std_a", "b", "std_b"), [(5.0, 0.05, 8.0, 0.1), (8.0, 0.2, 5.0, 0.03), (7.0, 0.1, 7.0, 0.1)])
def test_profile_products_against_quadrature(a, std_a, b, std_b):
    g, h = power_exponent(std_a), power_exponent(std_b)

    def product(t):
        return (g + 1) / a * (t / a) ** g * (h + 1) / b * (t / b) ** h

    expected = integrate.quad(product, 0, min(a, b), epsabs=0, epsrel=1e-11)[0]
    assert float(profile_product(a, std_a, b, std_b)) == pytest.approx(expected, rel=1e-9)


def test_synthesis_matches_a_tracked_average_and_improves_with_snapshots():
    steps, target = 2000, 0.07
    spec = PowerEMA()
    direct = flat(tracked(PowerEMA(stds=(target,)), steps)[0][0])
    size = np.array([np.log(steps), 1.0, 5.0, np.sqrt(steps)])
    errors = []
    for count in (2, 4, 8, 16):
        marks = [steps * (k + 1) // count for k in range(count)]
        _, kept = tracked(spec, steps, keep=marks)
        snapshots = [s for n, average in kept for s in spec.snapshots(average, n)]
        errors.append(np.max(np.abs(flat(synthesise(snapshots, target, steps)) - direct) / size))
    assert errors[0] > errors[1] > errors[3]
    assert errors[2] < 2e-3
    assert errors[3] < 2e-4


def test_synthesis_returns_what_was_tracked():
    steps, spec = 1000, PowerEMA()
    last, kept = tracked(spec, steps, keep=(250, 500, 750, 1000))
    snapshots = [s for n, average in kept for s in spec.snapshots(average, n)]
    for std, average in zip(spec.stds, last, strict=True):
        made = flat(synthesise(snapshots, std, steps))
        np.testing.assert_allclose(made, flat(average), rtol=1e-5, atol=1e-5)
    # An earlier step uses only what had been seen by then.
    early = synthesise(snapshots, 0.05, 500)
    np.testing.assert_allclose(flat(early), flat(kept[1][1][0]), rtol=1e-5, atol=1e-5)


def test_averages_are_float32_own_arrays_and_follow_integers():
    params = {"w": jnp.ones(3, jnp.bfloat16), "n": jnp.int32(4)}
    for spec in (EMA(decay=0.9999, warmup=False), PowerEMA(stds=(0.01,))):
        average = spec.update(spec.init(params), {"w": 2 * params["w"], "n": jnp.int32(5)}, jnp.int32(50_000))
        result = spec.params(average)
        assert result["w"].dtype == jnp.float32
        assert (result["w"] > 1).all()
        assert result["n"] == 5


def test_errors_name_the_field():
    for make, match in [
        (lambda: EMA(decay=1.5), "EMA.decay"),
        (lambda: PowerEMA(stds=()), "PowerEMA.stds"),
        (lambda: PowerEMA(stds=(0.5,)), "0.288"),
        (lambda: synthesise([Snapshot(10, 0.05, {})], 0.1, 5), "at or before step = 5"),
    ]:
        with pytest.raises(ValueError, match=match):
            make()
    assert hash(PowerEMA(stds=[0.05])) == hash(PowerEMA(stds=(0.05,)))
