"""Models whose score is a matrix times that of a law: gauges, and wrong scores that are gradients."""

import jax.numpy as jnp
import numpy as np

from scorelab import models


def mapped(law, process, matrix):
    """The model with the score ``matrix @ score`` of a law over vectors."""
    exact, matrix = models.ExactModel(law, process), np.asarray(matrix)

    def eps(y, t, cond):
        return exact(y, t).eps @ jnp.asarray(matrix.T, y.dtype)

    return models.FunctionModel(eps, process, returns="eps")


def turn(size, amount=1.0, seed=0):
    """An antisymmetric matrix; in the plane a quarter turn times ``amount``."""
    if size == 2:
        return amount * np.array([[0.0, -1.0], [1.0, 0.0]])
    free = np.random.default_rng(seed).normal(size=(size, size))
    return amount * (free - free.T)
