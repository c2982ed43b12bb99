"""The environment of the suite, set before anything imports JAX."""

import hashlib
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

# The suite measures laws, not devices: one CPU device, whatever the machine has, unless the caller chose otherwise.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most tests compile for longer than they run, so programs are compiled quickly, in this process and in those it starts.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def compiled_programs():
    """The folder of compiled programs: one for each jaxlib and kind of processor, whose programs others cannot run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    processor = hashlib.sha256(f"{platform.machine()} {platform.processor()} {flags}".encode()).hexdigest()[:8]
    return cache / "scorelab" / "compiled" / f"jaxlib-{importlib.metadata.version('jaxlib')}-{processor}"


# Each worker keeps to a processor of its own: XLA's threads follow it, and workers whose threads share all processors wait for one
# another, at a third of the speed.
worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if hasattr(os, "sched_setaffinity") and worker.startswith("gw"):
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processors[int(worker[2:]) % len(processors)]})

# What another worker, a process that a test started or an earlier run has compiled is read from a folder in the user's cache.
# It may be deleted at any time; JAX_COMPILATION_CACHE_DIR names another one.
if "PYTEST_XDIST_WORKER" not in os.environ:
    folder = Path(os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled_programs())))
    if folder.is_dir() and sum(entry.stat().st_size for entry in os.scandir(folder)) > 4e9:
        shutil.rmtree(folder, ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
