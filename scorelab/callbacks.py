"""Errors of Python functions that compiled code calls back: they arrive as themselves."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator

import jax

# The last error that a function raised: JAX passes on its text only, from a thread of its own.
_last: list[Exception] = []

# JAX also logs the whole traceback of what will be raised here.
logging.getLogger("jax._src.callback").addFilter(lambda record: not (record.exc_info and record.exc_info[1] in _last))


def remembered(fn: Callable, *asks: Callable) -> Callable:
    """``fn`` for a callback of JAX: what it raises is kept for :func:`own_errors`; ``asks`` are the caller's functions in it."""

    @functools.wraps(fn)
    def call(*args):
        try:
            return fn(*args)
        except Exception as error:
            _last[:] = [error]
            raise

    vars(call)["asks"] = asks
    return call


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """In the place of the runtime error of a callback, raise what the function itself raised; also a decorator."""
    _last.clear()
    try:
        yield
    except jax.errors.JaxRuntimeError:
        if not _last:
            raise
        raise _last.pop() from None
