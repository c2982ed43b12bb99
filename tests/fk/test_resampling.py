"""Resampling schemes, policies and weights by their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scorelab import fk

SCHEMES = [fk.systematic, fk.stratified, fk.residual, fk.multinomial, fk.killing, fk.ssp]
N, DRAWS = 64, 20_000
LOG_W = np.random.default_rng(0).normal(size=N)
W = np.exp(LOG_W) / np.exp(LOG_W).sum()


KEYS = jax.random.split(jax.random.key(1), DRAWS).reshape(-1, 500)


@functools.cache
def program(scheme):
    """One draw for each of 500 keys."""
    return jax.jit(jax.vmap(scheme, in_axes=(0, None)))


def indices(scheme, log_w=LOG_W, blocks=1):
    """500 draws for each block, ``(draws, N)``."""
    return np.concatenate([program(scheme)(KEYS[block], np.asarray(log_w, np.float32)) for block in range(blocks)])


def occurrences(index):
    """How often each particle occurs in every row, ``(draws, N)``."""
    return np.bincount((index + N * np.arange(len(index))[:, None]).ravel(), minlength=N * len(index)).reshape(-1, N)


@pytest.fixture(scope="module")
def offspring():
    """Offspring counts of every scheme, ``(draws, N)``."""
    return {scheme: occurrences(indices(scheme, blocks=len(KEYS))) for scheme in SCHEMES}


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.__name__)
def test_every_particle_has_its_share_of_offspring_on_average(scheme, offspring):
    counts = offspring[scheme]
    assert np.all(counts.sum(1) == N)
    # Five standard errors (64 comparisons); schemes that round have no variance where the share is a whole number.
    error = counts.std(0) / np.sqrt(DRAWS)
    assert np.all(np.abs(counts.mean(0) - N * W) < 5 * error + 1e-4)


@pytest.mark.parametrize(
    ("scheme", "bound"), [(fk.systematic, 1.0), (fk.ssp, 1.0), (fk.stratified, 2.0)], ids=["systematic", "ssp", "stratified"]
)
def test_rounding_schemes_stay_near_the_share(scheme, bound, offspring):
    assert np.abs(offspring[scheme] - N * W).max() < bound + 1e-4


def test_the_schemes_are_ordered_by_their_noise(offspring):
    noise = {scheme.__name__: counts.var(0).sum() for scheme, counts in offspring.items()}
    assert noise["systematic"] < noise["stratified"] < noise["residual"] < noise["multinomial"]
    # Independent draws: n W (1 - W) each; chi-squared with 20,000 draws is within 2 % of it.
    assert noise["multinomial"] == pytest.approx(N * np.sum(W * (1 - W)), rel=0.02)


def test_survivors_of_killing_keep_their_place():
    index = indices(fk.killing)[0]
    best = int(np.argmax(LOG_W))
    assert index[best] == best
    assert np.mean(index == np.arange(N)) > 0.2  # sum of w / max w is 0.2 to 0.3 here; independent draws keep 1/64


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.__name__)
def test_weights_of_zero_have_no_offspring(scheme):
    for zeros in (np.arange(N) % 2 == 0, np.arange(N) >= 40, np.arange(N) < 50):
        log_w = np.where(zeros, -np.inf, LOG_W)
        index = indices(scheme, log_w)
        assert not np.any(zeros[index])
        log_w[np.flatnonzero(zeros)[0]] = np.nan
        np.testing.assert_array_equal(index, indices(scheme, log_w))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.__name__)
def test_without_any_weight_it_is_the_identity(scheme):
    for value in (-np.inf, np.nan):
        np.testing.assert_array_equal(indices(scheme, np.full(N, value)), np.tile(np.arange(N), (500, 1)))


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.__name__)
def test_only_ratios_of_weights_matter(scheme):
    log_w = np.asarray(LOG_W, np.float32)
    # 2^-14 is what float32 keeps beside 512, and both sides keep the same.
    rounded = np.round(log_w * 2**14) / 2**14
    np.testing.assert_array_equal(indices(scheme, rounded), indices(scheme, rounded - 512.0))


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s is not fk.killing], ids=lambda s: s.__name__)
def test_other_numbers_than_there_are_particles(scheme):
    # The mean of five draws per particle: within 1 of the share for the rounding schemes, 5 sigma of a Poisson else.
    index = np.asarray(jax.jit(scheme, static_argnums=2)(jax.random.key(4), np.asarray(LOG_W, np.float32), 5 * N))
    counts = np.bincount(index, minlength=N)
    assert counts.sum() == 5 * N
    assert np.all(np.abs(counts - 5 * N * W) < 5 * np.sqrt(5 * N * W) + 2)


def test_a_hundred_thousand_particles_in_float32():
    # The cumulative sum in float32: shares of 1 to 20 are met to 2 copies (its error is a few units in the last place of 1).
    log_w = np.random.default_rng(1).normal(size=100_000).astype(np.float32)
    w = np.exp(np.asarray(log_w, np.float64))
    counts = np.bincount(np.asarray(jax.jit(fk.systematic)(jax.random.key(5), log_w)), minlength=len(w))
    assert np.abs(counts - len(w) * w / w.sum()).max() < 2


def test_effective_sample_size_and_means():
    ess = jax.jit(fk.ess)

    def of(*log_w):
        return float(ess(np.array([*log_w, *[-np.inf] * (N - len(log_w))], np.float32)))

    assert of(*[900.0] * 10) == pytest.approx(10, rel=1e-6)
    assert of(0.0) == 1
    assert of() == 0
    w = np.exp(LOG_W)
    assert of(*LOG_W) == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-5)
    mean = jax.jit(fk.log_mean_exp)((LOG_W + 1000.0).astype(np.float32))
    assert float(mean) == pytest.approx(1000 + np.log(w.mean()), abs=1e-3)
    x = np.random.default_rng(2).normal(size=(N, 3)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(fk.weighted_mean)(x, LOG_W.astype(np.float32)), W @ x, atol=1e-6)


def test_a_population_without_weights_has_no_mean_and_no_member():
    none = np.full(4, -np.inf)
    assert np.all(np.isnan(fk.weighted_mean(np.ones((4, 3)), none)))
    with pytest.raises(ValueError, match="population 1 are all zero"):
        fk.one_of_each(jax.random.key(0), np.concatenate([np.zeros(4), none]), 4)
    with pytest.raises(ValueError, match="particles = 3: expected a divisor of the 4"):
        fk.one_of_each(jax.random.key(0), np.zeros(4), 3)
    with pytest.raises(ValueError, match=r"shape \(2, 2\) for values of shape \(4,\)"):
        fk.weighted_mean(np.ones(4), np.zeros((2, 2)))


@functools.cache
def moving(policy):
    """At node 7, in the middle of the walk."""
    return jax.jit(lambda key, log_w: policy.move(key, log_w, fk.systematic, jnp.asarray(7), jnp.asarray(0.5)))


class TestPolicies:
    """Of one population with the weights above."""

    def move(self, policy, log_w=LOG_W):
        return jax.tree.map(np.asarray, moving(policy)(jax.random.key(0), np.asarray(log_w, np.float32)))

    @pytest.mark.parametrize(
        ("policy", "fires"),
        [
            (fk.Never(), False), (fk.Always(), True), (fk.Every(7), True), (fk.Every(5), False), (fk.EssBelow(0.9), True),
            (fk.EssBelow(0.1), False), (fk.Always(window=(0.6, 1.0)), False), (fk.Always(window=(0.2, 0.6)), True),
        ],
        ids=str,
    )  # fmt: skip
    def test_weights_are_spent_or_kept(self, policy, fires):
        moved = self.move(policy)
        assert bool(moved.resampled) == fires
        if fires:
            np.testing.assert_array_equal(moved.log_weights, 0.0)
            assert float(moved.log_z) == pytest.approx(np.log(np.exp(LOG_W).mean()), abs=1e-5)
        else:
            np.testing.assert_array_equal(moved.index, np.arange(N))
            np.testing.assert_allclose(moved.log_weights, LOG_W, rtol=1e-6)
            assert float(moved.log_z) == 0

    def test_islands_keep_their_mass(self):
        moved = self.move(fk.Islands(4, fk.Always(), fk.Never()))
        masses = np.log(np.exp(LOG_W).reshape(4, -1).mean(1))
        np.testing.assert_allclose(moved.log_weights, np.repeat(masses, N // 4), atol=1e-5)
        assert float(moved.log_z) == 0
        np.testing.assert_array_equal(moved.index // (N // 4), np.repeat(np.arange(4), N // 4))  # nobody left an island
        # The whole population has the mass it had, so that the estimate does not change.
        assert np.log(np.mean(np.exp(moved.log_weights))) == pytest.approx(np.log(np.exp(LOG_W).mean()), abs=1e-5)

    def test_islands_meet_where_their_masses_differ_too_much(self):
        log_w = LOG_W + np.repeat([0.0, 0.0, 0.0, 9.0], N // 4)
        moved = self.move(fk.Islands(4, fk.Always(), fk.EssBelow(0.5)), log_w)
        assert np.mean(moved.index >= 48) > 0.9
        np.testing.assert_array_equal(moved.log_weights, 0.0)
        assert float(moved.log_z) == pytest.approx(np.log(np.exp(log_w).mean()), abs=1e-4)

    def test_birth_and_death_give_every_particle_its_share(self):
        # Exactly, for weights of any size, those of a start and of the dead included.
        log_w = np.where(np.arange(N) % 8 == 0, -np.inf, LOG_W)
        share = np.exp(log_w) / np.exp(log_w).mean()
        move = jax.jit(jax.vmap(moving(fk.BirthDeath()), in_axes=(0, None)))
        moved = jax.tree.map(np.asarray, move(KEYS.reshape(-1), np.asarray(log_w, np.float32)))
        counts = occurrences(moved.index)
        # Five standard errors (64 comparisons), of a count that varies less than an independent draw, whose variance is its share.
        assert np.all(np.abs(counts.mean(0) - share) < 5 * np.sqrt(np.maximum(share, 1e-4) / DRAWS))
        assert np.all(counts[:, ::8] == 0)
        np.testing.assert_allclose(moved.log_z, np.log(np.exp(log_w).mean()), atol=1e-5)
        np.testing.assert_array_equal(moved.log_weights, 0.0)
        # Whoever is above the mean keeps its place.
        above = share > 1
        np.testing.assert_array_equal(moved.index[:, above], np.broadcast_to(np.arange(N)[above], (DRAWS, above.sum())))

    @pytest.mark.parametrize("policy", [fk.Always(), fk.BirthDeath()], ids=lambda p: type(p).__name__)
    def test_weights_that_are_spent_leave_their_derivative_to_the_offspring(self, policy):
        def constant(log_w):
            moved = policy.move(jax.random.key(0), log_w, fk.systematic, jnp.asarray(7), jnp.asarray(0.5))
            return moved.log_z + fk.log_mean_exp(moved.log_weights), moved.index

        slope = jax.jit(jax.grad(constant, has_aux=True))
        for log_w in (LOG_W, np.where(LOG_W > 0, LOG_W, -np.inf)):
            slopes, index = slope(np.asarray(log_w, np.float32))
            np.testing.assert_allclose(slopes, np.bincount(index, minlength=N) / N, atol=1e-6)

    def test_equal_weights_are_left_alone(self):
        moved = self.move(fk.Always(), np.full(N, 3.0))
        assert not moved.resampled
        np.testing.assert_array_equal(moved.log_weights, 3.0)

    # The first three with the programs of the tests above.
    @pytest.mark.parametrize(
        "policy",
        [
            fk.Always(), fk.BirthDeath(), fk.Islands(4, fk.Always(), fk.EssBelow(0.5)),
            *(pytest.param(p, marks=pytest.mark.long) for p in (fk.Islands(4), fk.Islands(4, fk.BirthDeath(), fk.BirthDeath()))),
        ],
        ids=str,
    )  # fmt: skip
    def test_a_population_without_weights_stays(self, policy):
        moved = self.move(policy, np.full(N, -np.inf))
        np.testing.assert_array_equal(moved.index, np.arange(N))
        np.testing.assert_array_equal(moved.log_weights, -np.inf)
