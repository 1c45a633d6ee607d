"""The benchmark page for anonymous visitors and signed-in users."""

import re
from xml.etree import ElementTree

import pytest
from django.test import Client

from backends_app.benchmarks.results import Skipped
from backends_app.models import Benchmark
from backends_app.web.benchmarks.charts import chart
from tests.benchmarks.results import figures, measured, row

pytestmark = [pytest.mark.database, pytest.mark.django_db]

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too'"


@pytest.fixture
def page(client_of_pages: Client):
    def get(**query) -> str:
        answer = client_of_pages.get("/benchmarks", query)
        assert answer.status_code == 200
        return answer.content.decode()

    return get


@pytest.fixture
def client_of_pages() -> Client:
    return Client()


def test_without_benchmarks_the_page_shows_the_command(page):
    assert "manage.py benchmark --keep" in page()
    assert "<svg" not in page()


def test_the_newest_benchmark_is_shown_as_charts_and_as_a_table(page):
    row("older", measured("isolate", 3))
    row("newer", measured("isolate", 10), measured("microvm", 1000))
    shown = page()
    assert shown.count("<svg") == 3
    for words in ("newer", "Cold: the first workload of a fresh backend", "100×", "1,000"):
        assert words in shown
    assert "p50 10 ms, p95 20 ms, 100/s" in shown
    assert "+233 % slower" in shown  # than in the one before
    assert "The host was busy" not in shown


def test_an_older_benchmark_has_its_own_url(page, client_of_pages: Client):
    old = row("older", measured("isolate", 3))
    row("newer", measured("isolate", 10))
    assert "p50 3 ms" in page(id=old.pk)
    assert f'href="?id={old.pk}"' in page()
    for benchmark_id in ("0", "999", "-1", "x", "", "9" * 30, "١"):
        assert client_of_pages.get("/benchmarks", {"id": benchmark_id}).status_code == 404


def test_hosts_versions_and_program_errors_need_a_signed_in_user(page, client_of_pages, user):
    failed = measured(modes={"warm": figures(None, failures=10, failure="a secret of a program")})
    row("first", failed)
    Benchmark.objects.update(node="a-host-of-ours")
    secrets = ("a-host-of-ours", "Python 3", "deno_version", "a secret of")
    assert not any(secret in page() for secret in secrets)
    assert "10 of 10" in page()
    client_of_pages.force_login(user)
    assert all(secret in page() for secret in secrets)


def test_untrusted_text_is_escaped(page, client_of_pages, user):
    failed = measured(image=HOSTILE, modes={"warm": figures(failures=1, failure=HOSTILE)})
    left_out = Skipped(name="other", reason=HOSTILE, broken=True)
    row(HOSTILE, measured(name=HOSTILE))
    row(HOSTILE, failed, left_out=(left_out,))
    Benchmark.objects.update(node=HOSTILE, versions={"backends": {"x": {HOSTILE: HOSTILE}}})
    client_of_pages.force_login(user)
    shown = page() + page(id=Benchmark.objects.last().pk)
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown


def test_the_page_needs_no_inline_style_or_script(page, client_of_pages: Client):
    row()
    policy = client_of_pages.get("/benchmarks").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    shown = page()
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|http://|https://", shown)


def test_a_busy_host_and_a_broken_backend_are_noted(page):
    row("before", measured("isolate"), measured("microvm"))
    broken = Skipped(name="microvm", reason="unhealthy", broken=True)
    row("after", left_out=(broken,), load_before=7.5)
    assert "The host was busy" in page()
    assert "no longer works" in page()
    assert "was not measured: <bdi>unhealthy</bdi>" in page()


def test_a_chart_has_a_text_alternative_and_visible_bars():
    benchmark = row("first", measured("isolate", 10), measured("x" * 63, 1000))
    svg = ElementTree.fromstring(chart(benchmark))
    [title, text] = [svg.find(name).text for name in ("title", "desc")]
    assert title == "Warm: one after the other"
    assert "isolate: p50 10 ms" in text
    assert "x" * 63 in text
    widths = [float(bar.get("width")) for bar in svg.iter("rect")]
    assert widths == [3.2, 2.0, 320, 160]  # p95 and p50; small values stay visible
    assert (chart(None), chart(benchmark, "no such mode")) == ("", "")


def test_a_chart_of_failed_runs_has_no_bars_and_counts_them():
    svg = ElementTree.fromstring(
        chart(row("first", measured(modes={"warm": figures(None, failures=10)})))
    )
    assert {bar.get("width") for bar in svg.iter("rect")} == {"0.0"}
    assert "10 of 10 failed" in svg.find("desc").text
