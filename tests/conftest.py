import importlib.util
import mmap
import os
from pathlib import Path

import pytest


def legacy_emitters():
    """The XLA flag that turns its newer code generator off, where the installed XLA knows it: XLA dies of unknown flags."""
    name = "xla_cpu_use_fusion_emitters"
    for folder in importlib.util.find_spec("jaxlib").submodule_search_locations:
        for library in Path(folder).glob("*jax_common*"):
            with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content.find(name.encode()) >= 0:
                    return f"--{name}=false"
    return ""


# The suite measures laws, not devices: one CPU device, whatever the machine has, unless the caller chose otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests compile for longer than they run, so programs are compiled quickly, in this process and in those it starts:
# the older code generator takes half the time, and few optimisations less still.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if "fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {legacy_emitters()}".strip()

import jax  # noqa: E402  (reads the environment)


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
