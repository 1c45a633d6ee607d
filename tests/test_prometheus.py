"""A real Prometheus scrapes a server of two workers and evaluates the rules and the dashboard."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.test import Client

from tests.support.needs import need
from tests.support.programs import PATIENCE_S, ROOT, manage, wait_until
from tests.support.scrapes import Scrape
from tests.support.servers import free_port, user_script
from tests.test_metrics_processes import RESPONSES, SUM, VIEW, Server, _post, running_server

OPS = ROOT / "ops"
RULES = OPS / "prometheus" / "rules.yml"
RULES_TEST = OPS / "prometheus" / "rules_test.yml"
EXAMPLE = OPS / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads((OPS / "grafana" / "vulcan.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
VARIABLES = {"$backend": ".*", "$__rate_interval": "1m", "$__range": "5m"}
NO_METRICS = {
    *("sum", "min", "max", "rate", "histogram_quantile", "max_over_time", "vector"),
    *("by", "on", "or", "unless"),
}


def expression(text: str) -> str:
    """Return a query of the dashboard as Grafana would send it."""
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text
    return text


QUERIES = {
    f"{panel['title']} {target['refId']}": expression(target["expr"])
    for panel in PANELS
    for target in panel["targets"]
}
EXPRESSIONS = {**QUERIES, **{rule["alert"]: rule["expr"] for rule in ALERTS}}


def metrics_in(expression: str) -> set[str]:
    """Return every word that could be a metric: not in braces, brackets or quotes, nor a label."""
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expression)
    bare = re.sub(r"\b(by|on)\s*\([^)]*\)", "", bare)
    return set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - NO_METRICS


# The files


@pytest.mark.django_db(transaction=True)
def test_every_queried_metric_is_exposed(settings):
    settings.ISOLATION_METRICS = {"access": "open"}
    exposed = Scrape(Client().get("/metrics").content.decode()).names | {"up"}
    for name, text in EXPRESSIONS.items():
        wanted = metrics_in(text)
        assert wanted, name
        assert wanted <= exposed, name
    ours = {name for name in exposed if name.startswith("vulcan_")}
    shown = set().union(*map(metrics_in, QUERIES.values()))
    totals = {name for name in ours if name.endswith(("_count", "_sum"))}
    assert ours - totals <= shown, "the dashboard shows everything"


def test_a_query_of_a_missing_metric_is_detected():
    text = 'sum by (a) (rate(vulcan_x{b="c d"}[5m])) / other_y > 1'
    assert metrics_in(text) == {"vulcan_x", "other_y"}


def test_queried_labels_are_labels_of_the_metric():
    labels = {
        "vulcan_workloads_total": {"backend", "runtime", "exit_reason"},
        "vulcan_backend_health": {"backend", "state"},
    }
    for text in EXPRESSIONS.values():
        for name, braces in re.findall(r"(\w+)\{([^}]*)\}", text):
            asked = set(re.findall(r"(\w+)\s*(?:=|!)", re.sub(r"\"[^\"]*\"", "", braces)))
            assert asked <= labels.get(name, {"backend", "job", "status"}), text


def test_the_panels_of_the_dashboard_fit_grafanas_grid():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource", "backend"]
    assert "http" not in re.sub(r"django_http_\w+", "", json.dumps(DASHBOARD))


def test_every_alert_has_a_description_and_a_test():
    fired = {
        case["alertname"]
        for test in yaml.safe_load(RULES_TEST.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    for rule in ALERTS:
        assert rule["alert"] in fired
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}


def promtool(*arguments: str | Path) -> None:
    need("promtool")
    done = subprocess.run(
        ["promtool", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules():
    promtool("check", "rules", "--lint-fatal", RULES)


def test_promtool_passes_the_tests_of_the_alerts():
    promtool("test", "rules", RULES_TEST)


def test_promtool_accepts_the_example_configuration():
    promtool("check", "config", "--syntax-only", EXAMPLE)


@pytest.mark.django_db(transaction=True)
def test_promtool_accepts_the_exposition(settings, tmp_path: Path):
    need("promtool")
    settings.ISOLATION_METRICS = {"access": "open"}
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=Client().get("/metrics").content,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    complaints = done.stdout.decode() + done.stderr.decode()
    assert not [line for line in complaints.splitlines() if line.startswith("vulcan_")]


# Prometheus


class Prometheus:
    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._base}/-/ready", timeout=60):
                return True
        except OSError:
            return False

    def ask(self, path: str, **query: str) -> Any:
        url = f"{self._base}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=60) as answer:
            return json.load(answer)["data"]

    def query(self, text: str) -> dict[str, float]:
        """Return the value of each series of an instant query, by its labels."""
        found = self.ask("query", query=text)["result"]
        return {json.dumps(one["metric"]): float(one["value"][1]) for one in found}


@pytest.fixture
def site(migrated: Path) -> Iterator[Server]:
    with running_server(migrated, METRICS_ACCESS="token", METRICS_TOKEN="hush") as server:
        yield server


@pytest.fixture
def prometheus(site: Server, tmp_path: Path) -> Iterator[Prometheus]:
    """Run Debian's Prometheus with the example's configuration, except addresses and intervals."""
    need("prometheus")
    folder = tmp_path / "prometheus"
    folder.mkdir()
    shutil.copy(RULES, folder)
    (folder / "token").write_text("hush")
    configured = yaml.safe_load(EXAMPLE.read_text())
    configured["global"] = {"scrape_interval": "200ms", "evaluation_interval": "200ms"}
    [server] = [one for one in configured["scrape_configs"] if one["job_name"] == "vulcan"]
    server["authorization"]["credentials_file"] = str(folder / "token")
    server["static_configs"] = [{"targets": [f"127.0.0.1:{site.port}"]}]
    configured["scrape_configs"] = [server]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configured))
    port = free_port()
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = Prometheus(port)
        wait_until(found.ready)
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def test_prometheus_scrapes_the_sum_over_all_workers(site: Server, prometheus: Prometheus):
    token = manage(
        "shell", "--no-imports", "-c", user_script("ada"), folder=site.folder
    ).stdout.strip()
    wait_until(lambda: 1.0 in prometheus.query('up{job="vulcan"}').values())
    read = site.read_by_both()
    for _ in range(4):
        assert _post(site.port, token, SUM) == (201, 2)
    ran = 'vulcan_workloads_total{backend="isolate",runtime="node",exit_reason="exited"}'
    wait_until(lambda: list(prometheus.query(ran).values()) == [4])
    wait_until(lambda: [*prometheus.query(f'{RESPONSES}{{view="{VIEW}"}}').values()] == [read])
    assert len(prometheus.query(ran)) == 1  # one series, whichever worker was scraped

    groups = prometheus.ask("rules")["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert set(rules) == {rule["alert"] for rule in ALERTS}
    wait_until(lambda: all(one["health"] == "ok" for one in _rules(prometheus)))
    for name, text in EXPRESSIONS.items():  # Prometheus can evaluate each
        assert prometheus.query(text) is not None, name

    def drawn(name: str) -> bool:
        return bool(prometheus.query(QUERIES[name]))

    for name in ("Throughput A", "Duration B", "Start-up A", "Queue A", "Slots in use A"):
        wait_until(lambda name=name: drawn(name))
    for name in ("Backends A", "Probes A", "Latency A", "Responses A"):
        wait_until(lambda name=name: drawn(name))


def _rules(prometheus: Prometheus) -> list[dict[str, Any]]:
    return [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]


def test_a_scrape_without_the_token_is_refused(site: Server, prometheus: Prometheus, tmp_path):
    (tmp_path / "prometheus" / "token").write_text("wrong")  # it is read at each scrape

    def is_refused() -> bool:  # a scrape that timed out has another error first
        targets = prometheus.ask("targets")["activeTargets"]
        return any("401" in target["lastError"] for target in targets)

    wait_until(is_refused)
    wait_until(lambda: set(prometheus.query('up{job="vulcan"}').values()) == {0.0})
