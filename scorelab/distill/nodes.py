"""Grid times drawn per example, and the step between two of them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from scorelab.arrays import Array, per_example
from scorelab.processes.linear_gaussian import GaussianPrediction
from scorelab.solvers.base import Nodes


def gather(nodes: Nodes[np.ndarray], index: Array, like: Array) -> Nodes[Array]:
    """The nodes number ``index`` ``(batch,)``: times ``(batch,)``, and coefficients that broadcast against ``like``."""
    columns = [jnp.asarray(column, like.dtype)[index] for column in nodes]
    return Nodes(columns[0], *(per_example(column, like) for column in columns[1:]))


def euler_step(prediction: GaussianPrediction, to: Nodes[Array]) -> Array:
    r""":math:`\alpha_s D + b_s + \sigma_s\hat\epsilon`: DDIM, which is Euler in the coordinate that straightens the flow."""
    return to.alpha * prediction.denoised + to.offset + to.sigma * prediction.eps
