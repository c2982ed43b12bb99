"""Where the suite's time goes: programs, tracing, compilation and the rest by file of tests (``pytest --costs``)."""

import time
from collections import Counter, defaultdict

import pytest
from jax import monitoring

DURATIONS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
EVENTS = {"/jax/compilation_cache/cache_hits": "read", "/jax/compilation_cache/compile_requests_use_cache": "programs"}
COLUMNS = ("tests", "wall", "cpu", "trace", "lower", "compile", "programs", "read")

spent = Counter()


def on_duration(event, seconds, **_):
    if event in DURATIONS:
        spent[DURATIONS[event]] += seconds


def on_event(event, **_):
    if event in EVENTS:
        spent[EVENTS[event]] += 1


def pytest_addoption(parser):
    parser.addoption("--costs", action="store_true", help="print programs, tracing, compilation and time by file of tests")


def pytest_configure(config):
    if config.getoption("--costs"):
        monitoring.register_event_duration_secs_listener(on_duration)
        monitoring.register_event_listener(on_event)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    """What a test spent, its fixtures included, travels with the report of its teardown."""
    if not item.config.getoption("--costs"):
        return (yield)
    spent.clear()
    item.began = time.perf_counter(), time.process_time()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown" and hasattr(item, "began"):
        wall, cpu = item.began
        costs = dict(spent) | {"tests": 1, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        report.user_properties.append(("costs", costs))
    return report


def pytest_terminal_summary(terminalreporter):
    files = defaultdict(Counter)
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, costs in getattr(report, "user_properties", ()):
                if name == "costs" and report.when == "teardown":
                    files[report.nodeid.split("::")[0]].update(costs)
    if not files:
        return
    terminalreporter.section("costs by file, in seconds; read: programs found in the cache; child processes count in wall alone")
    terminalreporter.write_line("".join(f"{c:>9}" for c in COLUMNS) + "  file")
    total = Counter()
    for file, costs in sorted(files.items(), key=lambda pair: -pair[1]["wall"]):
        cells = (f"{costs[c]:9.0f}" if c in ("tests", "programs", "read") else f"{costs[c]:9.1f}" for c in COLUMNS)
        terminalreporter.write_line("".join(cells) + f"  {file}")
        total.update(costs)
    terminalreporter.write_line("".join(f"{total[c]:9.0f}" for c in COLUMNS) + "  all")
