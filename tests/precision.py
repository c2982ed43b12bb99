"""Precision of tests."""

import functools

import jax


def double(test):
    """Run a test in float64; everything it makes is float64."""

    @functools.wraps(test)
    def wrapped(*args, **kwargs):
        with jax.enable_x64(True):
            return test(*args, **kwargs)

    return wrapped
