"""The README and docs/ are accurate: examples run, tables match the code, links lead somewhere."""

import re
from pathlib import Path

import pytest
from django.test import override_settings

from backends_app import conf
from backends_app.execution import services
from backends_app.health import run_probe
from backends_app.registry import registry
from backends_app.routing import RouteTable
from backends_app.workloads import Limits, WorkloadSpec
from tests.support.programs import ROOT

README = (ROOT / "README.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
ALL = "\n".join(page.read_text() for page in PAGES)
BLOCKS = re.findall(r"```python\n(.*?)```", ALL, re.DOTALL)


def test_the_readme_is_one_page():
    assert len(README.splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#:]*(?:#[^)]*)?)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name}: {target}"
        headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE) if anchor else []
        anchors = {re.sub(r"[^\w -]", "", one).lower().replace(" ", "-") for one in headings}
        assert not anchor or anchor in anchors, f"{page.name}: {target}"


def test_the_table_of_environment_variables_is_complete():
    site = [ROOT / "vulcan_site" / name for name in ("settings.py", "proxies.py")]
    code = "\n".join(file.read_text() for file in site)
    read = set(re.findall(r'(?:env\.\w+|_rate)\(\s*"([A-Z_]+)"', code))
    rows = re.findall(r"^\| (`[A-Z].*?) \|", CONFIGURATION, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row)}
    assert listed == read
    template = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^# ([A-Z_]+)=", template, re.MULTILINE)) == listed


def test_the_backend_example_runs_unchanged(tmp_path, monkeypatch):
    [example] = [block for block in BLOCKS if "class ShoutingBackend" in block]
    body = example[example.index("class ShoutingBackend") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 15
    (tmp_path / "shouting.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    configured = {"shouting": {"BACKEND": "shouting.ShoutingBackend"}}
    with override_settings(ISOLATION_BACKENDS=configured):
        backend = registry.get("shouting").backend
        registry.set_health("shouting", backend, run_probe(backend))
        assert registry.list()[0].healthy
        spec = WorkloadSpec(runtime="shout", code="hello", isolation="shouting")
        assert services.run(spec).result.output == "HELLO"


def test_the_documented_settings_are_the_defaults():
    [settings] = [block for block in BLOCKS if "ISOLATION_ROUTES" in block]
    shown: dict = {}
    exec(settings, shown)
    with override_settings(
        **{name: shown[name] for name in ("ISOLATION_ROUTES", "ISOLATION_LIMITS")}
    ):
        assert conf.limits() == Limits()
        assert conf.load_routes() == RouteTable()
    with override_settings(ISOLATION_BACKENDS=shown["ISOLATION_BACKENDS"]):
        assert [*registry] == ["isolate"]
    with override_settings(ISOLATION_THROTTLE_RATES=shown["ISOLATION_THROTTLE_RATES"]):
        assert conf.throttle_rates() == conf.DEFAULT_THROTTLE_RATES


@pytest.mark.parametrize("route", [*RouteTable()], ids=lambda route: route.rule)
def test_the_routing_table_in_the_readme_is_the_default(route):
    rows = README[README.index("| source or runtime") :].split("\n\n")[0].splitlines()
    subject = f"`{route.runtime}`" if route.runtime else route.source_format or "anything else"
    [row] = [row for row in rows if subject in row]
    assert f"| `{route.target}` |" in row


def test_the_documented_commands_exist():
    from django.core.management import get_commands

    commands = (ROOT / "docs" / "commands.md").read_text()
    for name in re.findall(r"^\| `(\w+_\w+)", commands, re.MULTILINE):
        assert name in get_commands()


def test_the_documented_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|\$ )make (\w+)", ALL)
    assert {"run", "test", "check"} <= {*targets}
    for target in targets:
        assert f"\n{target}:" in makefile


def test_every_test_named_on_the_security_page_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", SECURITY)
    assert len(named) > 20
    for path, test in named:
        source = (ROOT / path).read_text()
        assert not test or f"def {test}(" in source, f"{path}::{test}"


def test_every_wall_is_on_the_security_page():
    from backends_app.sandbox.walls import MISSING

    for wall in MISSING:
        assert f"| `{wall}` |" in SECURITY
