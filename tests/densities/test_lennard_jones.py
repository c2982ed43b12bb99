"""The Lennard-Jones cluster against what is known of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import scorelab as sl
from scorelab.densities import LennardJones
from scorelab.densities.lennard_jones import centred, pair_distances


def cloud(n=3, atoms=13, seed=0):
    """Atoms with none too near another: a jittered lattice."""
    rng = np.random.default_rng(seed)
    lattice = np.stack(np.meshgrid(*[np.arange(3.0)] * 3), -1).reshape(-1, 3)
    points = [lattice[rng.permutation(27)[:atoms]] * 1.2 + rng.normal(size=(atoms, 3)) * 0.05 for _ in range(n)]
    return jnp.asarray(np.stack(points), jnp.float32)


def test_two_atoms_have_the_known_well():
    law = LennardJones(2, temperature=0.5, depth=3.0, trap=2.0)
    d = np.linspace(0.9, 3.0, 40)
    x = np.zeros((40, 2, 3))
    x[:, 0, 1], x[:, 1, 1] = d / 2, -d / 2
    # The well has its minimum at d = 1; in the trap each atom is d / 2 from the centre.
    expected = 3.0 * (d**-12 - 2 * d**-6) + 0.5 * 2.0 * 2 * (d / 2) ** 2
    np.testing.assert_allclose(law.energy(x), expected, rtol=1e-5)
    np.testing.assert_allclose(law.log_prob(x), -expected / 0.5, rtol=1e-5)


def test_the_icosahedron_of_thirteen_has_the_published_energy():
    """-44.326801 (Hoare and Pal 1971, the Cambridge Cluster Database); by symmetry the radius is its only freedom."""
    golden = (1 + 5**0.5) / 2
    corners = np.array([np.roll([0, a, b * golden], k) for k in range(3) for a in (-1, 1) for b in (-1, 1)])
    corners /= np.linalg.norm(corners[0])
    radii = np.linspace(0.9, 1.0, 2001)
    x = np.concatenate([np.zeros((len(radii), 1, 3)), radii[:, None, None] * corners], axis=1)
    trap = 1e-6
    energy = np.asarray(LennardJones(13, trap=trap).energy(x), np.float64)
    # A parabola through a minimum is off by its curvature times half a step squared, below 1e-5; float32 sums of 78 pairs by 1e-4.
    assert energy.min() == pytest.approx(-44.326801, abs=2e-4)


def test_it_is_a_law_of_shapes():
    law, x = LennardJones(), cloud()
    rotation, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    energy = law.energy(x)
    for moved in (x + 1.5, x @ rotation, x[:, ::-1], centred(x)):
        # Sums of 78 pairs in float32.
        np.testing.assert_allclose(law.energy(moved), energy, rtol=2e-4)
    # Forces that no shift and no rotation feels: their sum and their torque vanish.
    force = np.asarray(law.score(x), np.float64)
    size = np.abs(force).sum(axis=(1, 2))
    assert np.all(np.abs(force.sum(1)).max(-1) < 1e-5 * size)
    assert np.all(np.abs(np.cross(np.asarray(x, np.float64), force).sum(1)).max(-1) < 1e-4 * size)


def test_the_temperature_is_a_leaf_that_divides_the_energy():
    x = cloud()
    cold, warm = (LennardJones(temperature=t) for t in (1.0, 2.5))
    np.testing.assert_allclose(cold.log_prob(x), 2.5 * warm.log_prob(x), rtol=1e-6)
    of = jax.jit(lambda law: law.log_prob(x))
    of(cold), of(warm)
    assert of._cache_size() == 1


def test_atoms_at_one_place_have_no_probability():
    x = cloud().at[:, 1].set(cloud()[:, 0])
    np.testing.assert_array_equal(LennardJones().log_prob(x), -np.inf)


def test_distances_are_those_of_all_pairs():
    x = cloud(atoms=5)
    points = np.asarray(x[0], np.float64)
    pairs = sorted(np.linalg.norm(points[i] - points[j]) for i in range(5) for j in range(i))
    np.testing.assert_allclose(np.sort(pair_distances(x)[0]), pairs, rtol=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(atoms=1), r"LennardJones\.atoms = 1: expected"),
        (dict(temperature=0.0), r"LennardJones\.temperature = 0\.0: expected a number above 0"),
        (dict(depth=0.0), r"LennardJones\.depth = 0\.0: expected a number above 0"),
        (dict(trap=-1.0), r"LennardJones\.trap = -1\.0: expected a number above 0"),
        (dict(temperature=float("nan")), "temperature has 1 values that are not finite"),
    ],
)
def test_what_is_no_cluster_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        LennardJones(**wrong)


def test_what_needs_more_than_a_density_up_to_a_constant_refuses_it():
    with pytest.raises(ValueError, match=r"points of shape \(2, 12, 3\): expected \(batch, 13, 3\)"):
        LennardJones().energy(np.zeros((2, 12, 3)))
    with pytest.raises(TypeError, match="known up to a constant only"):
        sl.models.ExactModel(LennardJones(), sl.processes.Gaussian(schedule=sl.schedules.EDM()))
