"""Clusters of atoms that attract and repel one another: a law known up to a constant, and up to where its centre is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from scorelab.arrays import Array, is_traced
from scorelab.densities.base import Unnormalised, as_parameter, check_numbers, check_points, law_pytree
from scorelab.validation import require_int


@law_pytree("temperature", "depth", "trap", static=("atoms",))
class LennardJones(Unnormalised):
    r"""The Boltzmann law of a Lennard-Jones cluster in a harmonic trap about its own centre of mass.

    .. math::
        p(x)\propto e^{-E(x)/T},\qquad
        E(x)=\epsilon\sum_{i<j}\big(d_{ij}^{-12}-2\,d_{ij}^{-6}\big)+\tfrac{c}{2}\sum_i|x_i-\bar x|^2,\qquad
        d_{ij}=|x_i-x_j| .

    Lengths are in units of the distance of the minimum. The energy does not see a shift of all atoms, so this is a law of shapes:
    points have their centre of mass at zero, and the density is one in that subspace. Thirteen atoms with ``depth=1`` are the LJ-13
    of Kohler, Klein and Noe (2020). Iterated denoising energy matching (arXiv 2402.06121) and what follows it count every pair
    twice, which is ``depth=2``.

    Args:
        atoms: the number of atoms, at least 2.
        temperature: ``T``, positive.
        depth: the depth of the well of one pair, positive.
        trap: ``c``, positive.
    """

    def __init__(self, atoms: int = 13, *, temperature: float = 1.0, depth: float = 1.0, trap: float = 1.0):
        self.atoms = atoms
        require_int(self, 2, atoms=atoms)
        check_numbers(self, temperature=temperature, depth=depth, trap=trap)
        for name, value in dict(temperature=temperature, depth=depth, trap=trap).items():
            if not is_traced(value) and (np.ndim(value) or not float(value) > 0):
                raise ValueError(f"LennardJones.{name} = {value!r}: expected a number above 0")
        self.temperature, self.depth, self.trap = (as_parameter(value) for value in (temperature, depth, trap))

    @property
    def event(self) -> tuple[int, int]:
        """``(atoms, 3)``."""
        return self.atoms, 3

    def energy(self, x: Float[Array, " batch atoms 3"]) -> Float[jax.Array, " batch"]:
        """``E(x)``, ``(batch,)``; infinite where two atoms are at one place, where the score is NaN."""
        x = check_points(self, x)
        # The powers of a distance overflow half precision.
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        squares = pair_distances(x) ** 2
        inverse = squares**-3
        return self.depth * jnp.sum(inverse * (inverse - 2), axis=1) + 0.5 * self.trap * jnp.sum(centred(x) ** 2, axis=(1, 2))

    def log_prob(self, x: Float[Array, " batch *event"]) -> Float[jax.Array, " batch"]:
        """``-E(x) / T``, ``(batch,)``."""
        return -self.energy(x) / self.temperature


def centred(x: Float[Array, " batch atoms d"]) -> Float[jax.Array, " batch atoms d"]:
    """Points with their centre of mass at zero."""
    return jnp.asarray(x) - jnp.mean(x, axis=1, keepdims=True)


def pair_distances(x: Float[Array, " batch atoms d"]) -> Float[jax.Array, " batch pairs"]:
    """The distances of all pairs ``i < j``, ``(batch, atoms (atoms - 1) / 2)``."""
    i, j = jnp.triu_indices(x.shape[1], k=1)
    return jnp.linalg.norm(x[:, i] - x[:, j], axis=-1)
