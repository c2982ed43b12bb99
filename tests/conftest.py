import os
import tempfile
from pathlib import Path

import pytest

# The suite measures laws, not devices: one CPU device, whatever the machine has, unless the caller chose otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests compile for longer than they run, so programs are compiled quickly, in this process and in those it starts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# What one process has compiled, the other workers and the processes that tests start read from a folder of this run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="scorelab-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax

pytest_plugins = ["tests.accounting"]

MAPPED, MOST_MAPPED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


@pytest.fixture(scope="module", autouse=True)
def few_programs_in_memory():
    """Every compiled program maps some ten regions of memory, and a process that may map no more crashes (on Linux)."""
    yield
    # One file of tests maps up to 25,000 regions, of 65,530 by default.
    if MOST_MAPPED.exists() and MAPPED.read_bytes().count(b"\n") > int(MOST_MAPPED.read_text()) // 3:
        jax.clear_caches()


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
