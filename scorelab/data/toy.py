"""Seeded samples of the generated sets: (seed, n) -> (n, *event) float32, most of them points in the plane.

Where ``scorelab.densities`` has the law of a set, the samples are drawn from exactly that law, so that a
model trained on ``load("rings")`` can be held against the density, score and noised versions of
``densities.Rings()``.
"""

from __future__ import annotations

import jax
import numpy as np

from scorelab import densities

# An integer, or (seed, stream): streams of one seed are independent.
Seed = int | tuple[int, int]


def draw(law: densities.Density | densities.SpaceLaw, seed: Seed, n: int) -> np.ndarray:
    """``n`` samples of a law, float32; ValueError for none."""
    if n < 1:
        raise ValueError(f"toy.n = {n}: expected an integer >= 1")
    seed, stream = seed if isinstance(seed, tuple) else (seed, 0)
    key = jax.random.fold_in(jax.random.key(seed), stream)
    return np.asarray(law.sample(key, n), np.float32)


def eight_gaussians(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.eight_gaussians()``."""
    return draw(densities.eight_gaussians(), seed, n)


def rings(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.Rings()``."""
    return draw(densities.Rings(), seed, n)


def swiss_roll(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.swiss_roll()``."""
    return draw(densities.swiss_roll(), seed, n)


def checkerboard(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.checkerboard()``."""
    return draw(densities.checkerboard(), seed, n)


def pinwheel(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.pinwheel()``."""
    return draw(densities.pinwheel(), seed, n)


def concentrations(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.concentrations()``, (n, 2), positive."""
    return draw(densities.concentrations(), seed, n)


def synaptic_weights(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.synaptic_weights()`` with their signs, (n, 16): each column has one sign (Dale's law)."""
    signs, law = densities.synaptic_weights()
    return signs.astype(np.float32) * draw(law, seed, n)


def regimes(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.regimes()``, (n, 16, 16, 1)."""
    return draw(densities.regimes(), seed, n)


def on_torus(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.on_torus()``, angles (n, 2)."""
    return draw(densities.on_torus(), seed, n)


def on_sphere(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.on_sphere()``, unit vectors (n, 3)."""
    return draw(densities.on_sphere(), seed, n)


def on_rotations(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.on_rotations()``, unit quaternions (n, 4)."""
    return draw(densities.on_rotations(), seed, n)


def on_product(seed: Seed, n: int) -> np.ndarray:
    """Samples of ``densities.on_product()``, two angles and a unit vector (n, 5)."""
    return draw(densities.on_product(), seed, n)


def two_moons(seed: Seed, n: int) -> np.ndarray:
    """Two half circles of radius 1 about (-0.5, -0.25) and (0.5, 0.25), blurred with deviation 0.08.

    The upper one is (cos a, sin a) and the lower one (cos a, -sin a) about their centres, a uniform on [0,
    pi]. There is no closed-form law of it in ``densities``.
    """
    if n < 1:
        raise ValueError(f"toy.n = {n}: expected an integer >= 1")
    rng = np.random.default_rng(seed)
    side = rng.integers(2, size=n)
    angle = np.pi * rng.uniform(size=n)
    centre = np.where(side[:, None] == 0, (-0.5, -0.25), (0.5, 0.25))
    arc = np.stack([np.cos(angle), np.where(side == 0, 1, -1) * np.sin(angle)], -1)
    return (centre + arc + 0.08 * rng.standard_normal((n, 2))).astype(np.float32)
