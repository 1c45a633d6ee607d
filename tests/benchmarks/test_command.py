"""The benchmark command: output, stored results and exit codes."""

import json
import signal
import sys

import pytest
from django.core.management import CommandError, call_command

from backends_app.backends.fake import echo
from backends_app.benchmarks import kept
from backends_app.models import Benchmark
from tests.benchmarks.results import measured, row

pytestmark = [pytest.mark.database, pytest.mark.django_db]

FAKE = "backends_app.backends.fake.FakeBackend"


@pytest.fixture(autouse=True)
def fleet(settings) -> None:
    options = {"max_concurrency": 2}
    settings.ISOLATION_BACKENDS = {
        "one": {"BACKEND": FAKE, "OPTIONS": options},
        "two": {"BACKEND": FAKE, "OPTIONS": {**options, "runtimes": ["python"]}},
        "pictures": {"BACKEND": FAKE, "OPTIONS": {**options, "runtimes": ["oci"]}},
    }


def benchmark(*options: str) -> int:
    """Run the command and return its exit code."""
    try:
        call_command("benchmark", "--rounds", "2", *options)
    except CommandError as error:
        print(error, file=sys.stderr)
        return error.returncode
    return 0


def test_the_default_output_is_a_table(capsys):
    assert benchmark() == 0
    captured = capsys.readouterr()
    for word in ("one", "two", "python", "cold", "warm", "parallel", "0 of 4", "1×", "processors"):
        assert word in captured.out
    assert "pictures was not measured" in captured.out
    assert captured.err.splitlines() == ["Running 18 workloads on one, two …"]
    assert "\x1b" not in captured.out
    assert not Benchmark.objects.exists()


def test_json_output_has_versions_results_and_comparison(capsys):
    assert benchmark("--format", "json", "--backend", "two") == 0
    found = json.loads(capsys.readouterr().out)
    [two] = found["results"]["measured"]
    assert (two["name"], two["runtime"], two["modes"]["parallel"]["runs"]) == ("two", "python", 4)
    assert found["comparison"] is None
    assert found["busy"] in (True, False)
    assert found["results"]["load_before"] >= 0
    assert {"vulcan", "python", "backends"} == {*found["versions"]}


def test_images_are_measured_if_one_is_named(capsys):
    options = ["--image", "busybox:1.36", "--backend", "pictures", "--format", "json"]
    assert benchmark(*options) == 0
    [pictures] = json.loads(capsys.readouterr().out)["results"]["measured"]
    assert (pictures["runtime"], pictures["image"]) == ("oci", "busybox:1.36")
    assert pictures["modes"]["warm"]["failures"] == 0


def test_saved_benchmarks_can_be_listed_and_compared_with(capsys):
    assert benchmark("--keep", "before") == 0
    assert Benchmark.objects.get().name == "before"
    assert benchmark("--keep", "after", "--compare", "before", "--format", "json") == 0
    before, _, after = capsys.readouterr().out.partition("\n{\n")
    assert "Saved as before" in before
    compared = json.loads("{" + after)["comparison"]
    assert compared["name"] == "before"
    assert {one["backend"] for one in compared["changes"]} == {"one", "two"}
    assert benchmark("--compare", "latest") == 0
    assert "Compared with after" in capsys.readouterr().out
    assert benchmark("--list") == 0
    shown = capsys.readouterr().out
    assert shown.index("after") < shown.index("before")
    assert benchmark("--list", "--format", "json") == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == ["after", "before"]


@pytest.mark.parametrize(("percent", "code"), [("1", 1), ("1e12", 0)])
def test_fail_if_slower_fails_above_the_threshold(capsys, percent, code):
    row("quick", measured("one", p50=1e-6))
    options = ["--backend", "one", "--compare", "quick", "--fail-if-slower", percent]
    assert benchmark(*options, "--keep", "slow") == code
    captured = capsys.readouterr()
    assert ("worse" in captured.out) is bool(code)
    assert ("Worse by more than 1 %: one cold p50 ms" in captured.err) is bool(code)
    assert kept.find("slow") is not None  # saved whatever the comparison


def test_without_fail_if_slower_regressions_are_only_marked(capsys):
    row("quick", measured("one", p50=1e-6))
    assert benchmark("--compare", "quick") == 0
    assert "worse" in capsys.readouterr().out


def test_compare_latest_without_an_earlier_benchmark_is_a_note(capsys):
    assert benchmark("--compare", "latest", "--fail-if-slower", "1", "--keep", "first") == 0
    assert "no earlier benchmark" in capsys.readouterr().err
    row("elsewhere")
    Benchmark.objects.update(node="elsewhere")
    assert benchmark("--compare", "latest") == 0
    assert "no earlier benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "nobody"], "'nobody' is not registered. Registered: one, pictures, two."),
        (["--backend", "one", "--backend", "pictures"], "--image"),
        (["--runtime", "go", "--backend", "two"], "it does not run go"),
        (["--compare", "never"], "No saved benchmark is named 'never'"),
        (["--keep", "latest"], "newest"),
        (["--keep", ""], "1 to 100 printable characters"),
        (["--keep", "x" * 101], "1 to 100 printable characters"),
        (["--keep", "a\x1b[2J"], "printable"),
        (["--fail-if-slower", "5"], "needs --compare"),
        (["--fail-if-slower", "nan", "--compare", "latest"], "a number"),
        (["--rounds", "0"], "--rounds must be 1 to"),
    ],
)
def test_invalid_options_fail_before_anything_is_measured(capsys, options, words):
    assert benchmark(*options) == 1
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Running" not in captured.err
    assert not Benchmark.objects.exists()


def test_a_benchmark_without_a_successful_run_is_not_saved(capsys, settings):
    options = {"max_concurrency": 1, "program": lambda workload: None}
    settings.ISOLATION_BACKENDS = {"one": {"BACKEND": FAKE, "OPTIONS": options}}
    assert benchmark("--keep", "nothing") == 1
    assert "2 of 2" in capsys.readouterr().out
    assert not Benchmark.objects.exists()


def test_an_interrupted_benchmark_is_not_saved(settings):
    calls = []

    def program(workload):
        calls.append(workload)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return echo(workload)

    options = {"max_concurrency": 1, "program": program}
    settings.ISOLATION_BACKENDS = {"one": {"BACKEND": FAKE, "OPTIONS": options}}
    assert benchmark("--keep", "half") == 130
    assert not Benchmark.objects.exists()


def test_names_are_printed_without_markup_or_control_characters(capsys):
    row("[red]not red[/red] \x1b[2J")
    assert benchmark("--list") == 0
    shown = capsys.readouterr().out
    assert "[red]not red[/red]" in shown
    assert "\x1b" not in shown


def test_only_the_newest_benchmarks_are_stored(monkeypatch):
    monkeypatch.setattr(kept, "MAX_STORED", 3)
    for number in range(5):
        row(f"number {number}")
    assert [one.name for one in Benchmark.objects.all()] == ["number 4", "number 3", "number 2"]
    assert kept.latest_benchmark().name == "number 4"


def test_the_newest_benchmark_of_a_name_is_found():
    row("nightly", measured(p50=1))
    newer = row("nightly", measured(p50=2))
    assert kept.find("nightly") == newer
    assert kept.find("other") is None
    assert kept.previous(newer).pk < newer.pk
