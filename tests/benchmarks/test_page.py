"""The page as a person, and a stranger, gets it."""

import re
from xml.etree import ElementTree

import pytest
from django.test import Client

from backends_app.benchmarks.charts import chart
from backends_app.benchmarks.results import Skipped
from backends_app.models import Benchmark
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


def test_where_nothing_is_kept_it_says_which_command_keeps_one(page):
    assert "manage.py benchmark --keep" in page()
    assert "<svg" not in page()


def test_the_newest_is_shown_with_charts_and_the_same_figures_in_a_table(page):
    row("older", measured("isolate", 3))
    row("newer", measured("isolate", 10), measured("microvm", 1000))
    shown = page()
    assert shown.count("<svg") == 3
    for words in ("newer", "Cold: the first workload of a fresh backend", "100×", "1,000"):
        assert words in shown
    assert "p50 10 ms, p95 20 ms, 100/s" in shown
    assert "+233 % slower" in shown  # than in the one before
    assert "The host was busy" not in shown


def test_an_older_one_has_an_address_of_its_own(page, client_of_pages: Client):
    old = row("older", measured("isolate", 3))
    row("newer", measured("isolate", 10))
    assert "p50 3 ms" in page(id=old.pk)
    assert f'href="?id={old.pk}"' in page()
    for wanted in ("0", "999", "-1", "x", "", "9" * 30, "١"):
        assert client_of_pages.get("/benchmarks", {"id": wanted}).status_code == 404


def test_hosts_versions_and_what_programs_said_are_for_who_has_signed_in(
    page, client_of_pages, user
):
    failed = measured(modes={"warm": figures(None, failures=10, failure="a secret of a program")})
    row("first", failed)
    Benchmark.objects.update(node="a-host-of-ours")
    secrets = ("a-host-of-ours", "Python 3", "deno_version", "a secret of")
    assert not any(secret in page() for secret in secrets)
    assert "10 of 10" in page()
    client_of_pages.force_login(user)
    assert all(secret in page() for secret in secrets)


def test_nothing_that_anybody_wrote_is_html(page, client_of_pages, user):
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


def test_a_busy_host_and_a_backend_that_broke_are_said(page):
    row("before", measured("isolate"), measured("microvm"))
    gone = Skipped(name="microvm", reason="unhealthy", broken=True)
    row("after", left_out=(gone,), load_before=7.5)
    assert "The host was busy" in page()
    assert "does not work any more" in page()
    assert "was not measured: <bdi>unhealthy</bdi>" in page()


def test_a_chart_fits_any_page_and_says_in_words_what_it_shows():
    kept = row("first", measured("isolate", 10), measured("x" * 63, 1000))
    drawn = ElementTree.fromstring(chart(kept))
    [title, text] = [drawn.find(name).text for name in ("title", "desc")]
    assert title == "Warm: one after the other"
    assert "isolate: p50 10 ms" in text
    assert "x" * 63 in text
    widths = [float(bar.get("width")) for bar in drawn.iter("rect")]
    assert widths == [3.2, 2.0, 320, 160]  # p95 and p50; what is there can be seen
    assert (chart(None), chart(kept, "no such mode")) == ("", "")


def test_a_chart_of_what_failed_has_no_bars_and_says_so():
    kept = row("first", measured(modes={"warm": figures(None, failures=10)}))
    drawn = ElementTree.fromstring(chart(kept))
    assert {bar.get("width") for bar in drawn.iter("rect")} == {"0.0"}
    assert "10 of 10 failed" in drawn.find("desc").text
