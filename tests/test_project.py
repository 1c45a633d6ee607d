"""The project from a newcomer's view: its files, its locks, its test labels, its lanes."""

import os
import re
import subprocess
import tomllib

import pytest

from tests.support.lanes import FAST_TIMEOUT_S, LANES, TIMEOUT_S
from tests.support.programs import PATIENCE_S, ROOT, tracked_files
from vulcan_site.test_runner import as_pytest_label

TOP_LEVEL = {
    *("Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("pyproject.toml", "manage.py", "gunicorn.conf.py"),
    *("requirements.in", "requirements.txt", "requirements-production.txt"),
    *("vulcan_site", "backends_app", "tests", "tools", "docs", "ops"),
}
SOURCES = {"requirements-production": "pyproject.toml", "requirements": "requirements.in"}
REQUIREMENT = re.compile(r'"?([A-Za-z0-9_-]+)(?:\[[a-z,]+\])?~=[0-9.]+"?,?')


def test_the_top_level_has_exactly_the_expected_files():
    tops = {line.split("/")[0] for line in tracked_files()}
    assert {top for top in tops if not top.startswith(".")} == TOP_LEVEL


def locked(name: str) -> dict[str, str]:
    """Return the versions that a lock pins, by package."""
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert all("==" in line and line.endswith("\\") for line in pinned)
    assert not any("http" in line for line in lines)
    return dict(line.split(" ;")[0].rstrip(" \\").split("==") for line in pinned)


def wanted(name: str) -> dict[str, str]:
    """Return the packages that the source of a lock asks for, with the reason in its comment."""
    lines = [line.strip() for line in (ROOT / SOURCES[name]).read_text().splitlines()]
    reasons = {}
    for line in lines:
        requirement, _, reason = line.partition("#")
        if found := REQUIREMENT.fullmatch(requirement.strip()):
            reasons[found[1].replace("_", "-")] = reason
    return reasons


@pytest.mark.parametrize("name", SOURCES)
def test_every_requirement_has_a_reason_and_is_locked_by_hash(name: str):
    assert {*wanted(name)} <= {*locked(name)}
    assert all(wanted(name).values())


def test_the_requirements_that_need_a_reason_are_all_that_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    assert len(wanted("requirements-production")) == sum(
        map(len, [project["dependencies"], *extras])
    )
    lines = (ROOT / "requirements.in").read_text().splitlines()
    assert len(wanted("requirements")) == sum("~=" in line for line in lines)
    assert all("~=" in line or line.startswith("#") for line in lines if line)


def test_production_installs_what_the_tests_run_with_and_none_of_the_test_packages():
    assert locked("requirements-production").items() <= locked("requirements").items()
    assert not {*wanted("requirements")} & {*locked("requirements-production")}


@pytest.mark.parametrize(
    ("label", "pytest_label"),
    [
        ("tests", "tests"),
        ("tests.test_routing", "tests/test_routing.py"),
        ("tests.api.test_edges", "tests/api/test_edges.py"),
        (
            "tests.test_routing.test_routes_can_be_replaced",
            "tests/test_routing.py::test_routes_can_be_replaced",
        ),
        (
            "tests.backends.test_fake.TestFakeBackend.test_capabilities_are_complete",
            "tests/backends/test_fake.py::TestFakeBackend::test_capabilities_are_complete",
        ),
        ("tests/test_routing.py", "tests/test_routing.py"),
        (
            "tests/test_routing.py::test_routes_can_be_replaced",
            "tests/test_routing.py::test_routes_can_be_replaced",
        ),
        ("nothing.like.it", "nothing.like.it"),
    ],
)
def test_dotted_labels_select_tests(monkeypatch, label: str, pytest_label: str):
    monkeypatch.chdir(ROOT)
    assert as_pytest_label(label) == pytest_label


def test_the_shell_scripts_have_valid_syntax():
    for script in (ROOT / ".ci" / "run",):
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_lanes_name_existing_paths():
    places = [place for lane in LANES.values() for place in lane]
    assert [place for place in places if not (ROOT / place).exists()] == []


def test_every_lane_has_a_timeout_longer_than_one_wait():
    assert {*TIMEOUT_S} == {*LANES}
    assert min(FAST_TIMEOUT_S, *TIMEOUT_S.values()) > PATIENCE_S


def test_every_test_has_a_timeout(request):
    markers = [item.get_closest_marker("timeout") for item in request.session.items]
    assert markers
    assert all(marker.args[0] >= FAST_TIMEOUT_S for marker in markers)
