"""Outputs and gradients of a network beside those that an oracle stored."""

import jax
import numpy as np

from tests.pretrained.drawn_weights import drawn, error

MOST, MOST_GRADIENT = dict(float64=1e-12, float32=1e-5), dict(float64=1e-11, float32=2e-5)


def require_derivatives(apply, tree, x, cotangent, *, output, gradient, slopes, published, tensors, dtype):
    """The output of ``apply(tree, x)`` and its gradients, to ``x`` and along drawn directions to every tensor, are those stored."""

    @jax.jit
    def both(tree, x):
        out, pull = jax.vjp(apply, tree, x)
        return out, *pull(cotangent)

    out, parameters, to_x = both(tree, x)
    assert out.dtype == to_x.dtype == dtype
    assert error(out, output) < MOST[dtype]
    assert error(to_x, gradient) < MOST_GRADIENT[dtype]
    along, directions = published(parameters), drawn({key: value.shape for key, value in tensors.items()}, 9)
    assert error([np.vdot(along[key], directions[key].astype(dtype)) for key in tensors], slopes) < MOST_GRADIENT[dtype]
