from pathlib import Path

import jax
import pytest

from tests import shapes

# Before anything of scorelab is imported.
shapes.install()

pytest_plugins = ["tests.accounting"]

MAPPED, MOST_MAPPED = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the long tail (tests marked long), and only it")


def pytest_collection_modifyitems(config, items):
    """The default run holds every law once for every member; the long tail has all combinations and statistical repeats."""
    wanted = config.getoption("--long")
    # A test that is named on the command line runs, whatever it is.
    if any("::" in argument for argument in config.args):
        return
    kept, left = [], []
    for item in items:
        (kept if (item.get_closest_marker("long") is not None) == wanted else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


@pytest.fixture(scope="module", autouse=True)
def few_programs_in_memory():
    """Every compiled program maps some ten regions of memory, and a process that may map no more crashes (on Linux)."""
    yield
    # One file of tests maps up to 25,000 regions, of 65,530 by default.
    if MOST_MAPPED.exists() and MAPPED.read_bytes().count(b"\n") > int(MOST_MAPPED.read_text()) // 2:
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
