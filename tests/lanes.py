"""Assign markers to tests by their path: what a test needs besides Python."""

from collections.abc import Mapping, Sequence

LANES: Mapping[str, Sequence[str]] = {
    "machine": ("tests/backends/microvm/", "tests/conformance/"),
    "engine": ("tests/backends/gvisor/", "tests/ops/test_container.py"),
    "server": (
        *("tests/faults/", "tests/ops/", "tests/site/test_served.py", "tests/management/"),
        *("tests/test_healthz.py", "tests/test_metrics_processes.py", "tests/test_postgresql.py"),
        *("tests/test_prometheus.py", "tests/test_server.py", "tests/test_readme.py"),
        *("tests/benchmarks/test_real.py", "tests/api/test_schema.py", "tests/test_raw_sockets.py"),
        *("tests/site/test_proxies.py", "tests/test_library.py"),
    ),
    "browser": ("tests/browser/", "tests/site/test_browser.py"),
}


def lanes_of(path: str) -> list[str]:
    """Return the lanes of the tests in a file; tests without a lane are fast."""
    return [lane for lane, places in LANES.items() if path.startswith(tuple(places))]
