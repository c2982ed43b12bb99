"""What a traced function is made of: its matrix products and convolutions, the types of its numbers; and what sampling runs."""

from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
from jax.extend import core

from scorelab import sampling, walk

PRODUCTS = (
    "dot_general",
    "conv_general_dilated",
    "loop_safe_conv",
    "loop_safe_conv_input_gradient",
    "loop_safe_conv_kernel_gradient",
)


class Product(NamedTuple):
    """A matrix product or a convolution: its name, the types of both factors and of the result, and the precision it asks for."""

    name: str
    left: str
    right: str
    result: str
    precision: tuple

    @property
    def exact(self) -> bool:
        """Every digit of the type, on every device."""
        return self.precision != () and set(self.precision) == {jax.lax.Precision.HIGHEST}


def equations(jaxpr):
    """All equations of a jaxpr, those of what it calls too."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr):
            if isinstance(inner, core.ClosedJaxpr):
                yield from equations(inner.jaxpr)
            elif isinstance(inner, core.Jaxpr):
                yield from equations(inner)


def _is_jaxpr(value):
    return isinstance(value, core.Jaxpr | core.ClosedJaxpr)


def traced(fn, *args):
    """The equations of ``fn(*args)``, under ``jit`` so that nothing is computed."""
    return list(equations(jax.make_jaxpr(jax.jit(fn))(*args).jaxpr))


def products(fn, *args):
    """The products and convolutions in ``fn(*args)``, in their order."""
    found = []
    for equation in traced(fn, *args):
        if equation.primitive.name in PRODUCTS:
            precision = equation.params.get("precision")
            types = [str(v.aval.dtype) for v in (*equation.invars[:2], equation.outvars[0])]
            asked = () if precision is None else tuple(precision) if isinstance(precision, tuple) else (precision,)
            found.append(Product(equation.primitive.name, *types, asked))
    return found


def float_types(fn, *args):
    """The floating point types in ``fn(*args)``: of everything with an axis that it computes, and of its results."""
    found = set()
    for equation in traced(fn, *args):
        for v in equation.outvars:
            if hasattr(v.aval, "dtype") and jnp.issubdtype(v.aval.dtype, jnp.floating):
                found.add(str(v.aval.dtype))
    return found


def result_types(tree):
    """The floating point types of the leaves of a result."""
    types = (jnp.result_type(leaf) for leaf in jax.tree.leaves(tree))
    return {str(t) for t in types if jnp.issubdtype(t, jnp.floating)}


def sampled(run):
    """What ``run()`` returns, and the compiled programs that ``sample`` ran in it as text: of each chunk the start and the walk."""
    found = []

    def seen(function):
        def instead(*arguments, **options):
            found.append(function.lower(*arguments, **options).compile().as_text())
            return function(*arguments, **options)

        return instead

    with mock.patch.object(walk, "drawn", seen(walk.drawn)), mock.patch.object(sampling, "_walk", seen(sampling._walk)):
        return run(), found
