import os

import pytest

# The suite measures laws, not devices: one CPU device, whatever the machine has, unless the caller chose otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests compile for longer than they run, so programs are compiled quickly, in this process and in those it starts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax


def compilation(quick):
    """A fixture's body: compile quickly or well, then as before."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests that compile for longer than they run, and do not depend on how well: the default of this suite."""
    yield from compilation(True)


@pytest.fixture
def optimised():
    """For a test that runs for longer than it compiles."""
    yield from compilation(False)
