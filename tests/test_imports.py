"""Imports go one way, backends do not import each other, and no code names a backend."""

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "backends_app"

# A module may import from its own package and from the layers above it in this table.
LAYERS = {
    "utils.text": "untrusted text; imports nothing of the app",
    "exceptions": "the error tree",
    "signals": "events, for whoever counts them",
    "utils": "helpers that know no workload",
    "workloads": "what a workload asks for, and its result",
    "sandbox": "the launcher and the kernel's layers around a process",
    "backends": "the interface of backends, and their implementations",
    "routing": "the decision, a pure function",
    "registry": "the snapshot of backends",
    "conf": "the settings",
    "health": "probes",
    "checks": "system checks",
    "models": "records",
    "logs": "captured output",
    "execution": "one workload, from admission to its recorded end",
    "executors": "where a workload is run",
    "benchmarks": "measuring and comparing",
    "observability": "what machines read",
    "api": "the HTTP API",
    "web": "HTML pages",
    "admin": "the admin's pages",
    "management": "commands",
    "apps": "the start",
}
LAYER = {name: number for number, name in enumerate(LAYERS)}


def layer(module: Sequence[str]) -> int:
    """Return the number of a module's layer; a module may have another one than its package."""
    return LAYER.get(".".join(module[:2]), LAYER[module[0]])


NAMES = {"isolate", "gvisor", "microvm"}
MAY_NAME_BACKENDS = {"conf.py", "routing.py"}  # the default backends and the default routes

IMPORT_THE_API = {
    "apps.py": "registers the API's system checks",
    "management/commands/list_backends.py": "prints the bytes of GET /v1/backends",
    "management/commands/probe_backends.py": "prints the bytes of GET /v1/backends",
    "management/commands/resolve_backend.py": "prints the JSON of a resolution",
    "management/commands/run_workload.py": "prints the JSON of a workload",
    "management/commands/workload.py": "prints the JSON of workloads",
}
"""The modules outside of the API that may import it, each with a reason."""

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


def test_every_module_is_in_the_table_of_layers():
    roots = {path.relative_to(APP).with_suffix("").parts[0] for path in MODULES}
    assert roots == {name.partition(".")[0] for name in LAYERS}


def test_the_root_of_the_app_holds_at_most_a_dozen_modules():
    assert len([*APP.glob("*.py")]) <= 12


def test_modules_import_only_from_lower_layers():
    offenders = []
    for path in MODULES:
        parts = path.relative_to(APP).with_suffix("").parts
        for target in imported(path):
            same_package = len(parts) > 1 and target[0] == parts[0]
            if layer(target) > layer(parts) or (layer(target) == layer(parts) and not same_package):
                offenders.append(f"{'.'.join(parts)} imports {'.'.join(target)}")
    assert offenders == []


def test_only_modules_with_a_reason_import_the_api():
    importing = {
        str(path.relative_to(APP))
        for path in MODULES
        if APP / "api" not in path.parents and "api" in {target[0] for target in imported(path)}
    }
    assert importing == {*IMPORT_THE_API}


@pytest.mark.parametrize("family", sorted(NAMES))
def test_no_backend_imports_another(family: str):
    for path in (APP / "backends" / family).rglob("*.py"):
        for target in imported(path):
            assert not (NAMES - {family}) & {*target}


def test_no_code_branches_on_a_backends_name():
    offenders = []
    for path in MODULES:
        if path.name in MAY_NAME_BACKENDS or "backends" in path.relative_to(APP).parts:
            continue
        nodes = ast.walk(ast.parse(path.read_text()))
        strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
        offenders += [path for _ in NAMES & strings]
    assert offenders == []


def test_every_module_has_a_docstring():
    trees = {path: ast.parse(path.read_text()) for path in MODULES}
    assert [path for path, tree in trees.items() if tree.body and not ast.get_docstring(tree)] == []


def test_only_metrics_modules_import_prometheus():
    line = re.compile(r"^\s*(from|import) \w*prometheus", re.MULTILINE)
    knowing = {path.name for path in MODULES if line.search(path.read_text())}
    assert knowing == {"metrics.py", "request_metrics.py"}


def test_drivers_import_no_http_code():
    for name in [*LAYERS][: LAYER["executors"]]:
        for path in [APP / f"{name}.py", *(APP / name).rglob("*.py")]:
            if path.exists():
                assert "rest_framework" not in path.read_text(), path
                assert "django.http" not in path.read_text(), path
