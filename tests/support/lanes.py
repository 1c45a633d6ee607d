"""Lanes of tests: what a test needs besides Python, and how long it may take."""

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
    "sandbox": (
        *("tests/sandbox/", "tests/backends/test_isolate.py", "tests/backends/test_wasi.py"),
        *("tests/backends/test_isolate_attacks.py", "tests/backends/test_isolate_programs.py"),
    ),
    "slow": (
        *("tests/test_needs.py", "tests/test_startup.py", "tests/dashboard/test_speed.py"),
        *("tests/site/test_hostile_requests.py", "tests/site/test_linear_cost.py"),
    ),
}
# Seconds for a test and its fixtures on a busy host. Machines may run without KVM, and the first
# test of a lane may build what the others use. None is shorter than a wait of PATIENCE_S, which
# fails with what it waited for.
TIMEOUT_S: Mapping[str, int] = {
    **{"slow": 600, "sandbox": 600, "browser": 600},
    **{"server": 900, "engine": 900, "machine": 1800},
}
FAST_TIMEOUT_S = 180


def lanes_of(path: str) -> list[str]:
    """Return the lanes of the tests in a file; tests without a lane are fast."""
    return [lane for lane, places in LANES.items() if path.startswith(tuple(places))]


def timeout_of(lanes: Sequence[str]) -> int:
    """Return the seconds that a test of these lanes may take."""
    return max((TIMEOUT_S[lane] for lane in lanes), default=FAST_TIMEOUT_S)
