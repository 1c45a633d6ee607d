"""Imports go one way, backends do not import each other, and no code names a backend."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "backends_app"

# A module may import those of earlier lines. Modules on one line are of one layer.
FLOORS = [
    ["exceptions"],
    ["slots", "signals", "inquiry", "metrics_folder", "utf8"],
    ["strict_json"],
    ["workloads"],
    ["confinement"],
    ["backends"],
    ["routing"],
    ["registry"],
    ["conf", "health"],
    ["services", "checks", "audit"],
    ["fields", "database"],
    ["models"],
    ["logs", "nodes"],
    ["running", "tails", "thread_shares"],
    ["lifecycle"],
    ["executors"],
    ["benchmarks"],
    ["metrics", "readiness", "request_metrics"],
    ["operations"],
    ["metrics_server"],
    ["api", "dashboard"],
    ["admin", "management", "apps"],
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
NAMES = {"isolate", "gvisor", "microvm"}
MAY_NAME_BACKENDS = {"conf.py", "routing.py"}  # the default backends and the default routes

MODULES = sorted(
    path
    for path in APP.rglob("*.py")
    if path != APP / "__init__.py" and "migrations" not in path.parts
)


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Return every module of this app that the file imports, as path parts below the app."""
    package = path.relative_to(APP).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "backends_app":
                    yield tuple(name.name.split(".")[1:]) or ("",)
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                module = tuple((node.module or "").split(".")) if node.module else ()
            elif node.module and node.module.split(".")[0] == "backends_app":
                base, module = (), tuple(node.module.split(".")[1:])
            else:
                continue
            for name in node.names:
                yield (*base, *module, name.name)


def floor(parts: tuple[str, ...]) -> int:
    return FLOOR[parts[0]]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_modules_import_only_from_lower_layers(path: Path):
    parts = path.relative_to(APP).with_suffix("").parts
    for target in imported(path):
        same_package = len(parts) > 1 and target[0] == parts[0]
        assert same_package or floor(target) < floor(parts), f"{'.'.join(target)} stands above"


@pytest.mark.parametrize("family", sorted(NAMES))
def test_no_backend_imports_another(family: str):
    for path in (APP / "backends" / family).rglob("*.py"):
        for target in imported(path):
            assert not (NAMES - {family}) & {*target}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_no_code_branches_on_a_backends_name(path: Path):
    if path.name in MAY_NAME_BACKENDS or "backends" in path.relative_to(APP).parts:
        return
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
    }
    assert not NAMES & strings


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(APP)))
def test_every_module_docstring_starts_with_one_sentence(path: Path):
    if path.read_text():
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_only_metrics_modules_import_prometheus():
    line = re.compile(r"^\s*(from|import) \w*prometheus", re.MULTILINE)
    knowing = {path.name for path in MODULES if line.search(path.read_text())}
    assert knowing == {"metrics.py", "request_metrics.py"}


def test_drivers_import_no_http_code():
    for floors in FLOORS[: FLOOR["services"]]:
        for name in floors:
            for path in [APP / f"{name}.py", *(APP / name).rglob("*.py")]:
                if path.exists():
                    assert "rest_framework" not in path.read_text(), path
                    assert "django.http" not in path.read_text(), path
