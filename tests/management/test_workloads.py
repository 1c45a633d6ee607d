"""The commands for recorded workloads: list, status, logs, kill and pruning."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command

from backends_app.logs import store
from backends_app.models import LogBlock, Source, Workload
from backends_app.workloads import Status
from tests.support.programs import manage
from tests.support.workloads import recorded

pytestmark = [pytest.mark.database, pytest.mark.django_db(transaction=True)]

NOW = datetime.now(UTC)


@pytest.fixture
def printed() -> Workload:
    workload = recorded(Status.COMPLETED)
    blocks = [store.Block(1, "stdout", "out\n", 1), store.Block(2, "stderr", "err\n", 1)]
    store.save_blocks(workload.pk, blocks)
    return workload


def test_list_prints_the_newest_first_and_can_be_filtered(capsys):
    ada = User.objects.create_user("ada")
    old = recorded(
        Status.FAILED, created_at=NOW - timedelta(days=1), owner=ada, error="\x1b[31mred"
    )
    new = recorded(runtime="python", isolation_used="microvm")
    call_command("workload", "list")
    shown = capsys.readouterr().out
    assert shown.index(new.pk) < shown.index(old.pk)
    assert "\x1b" not in shown
    for options, expected in {
        ("--status", "failed"): [old],
        ("--runtime", "python"): [new],
        ("--isolation", "microvm"): [new],
        ("--user", "ada"): [old],
        ("--limit", "1"): [new],
        ("--user", "nobody"): [],
    }.items():
        call_command("workload", "list", "--format", "json", *options)
        found = [one["id"] for one in json.loads(capsys.readouterr().out)]
        assert found == [one.pk for one in expected]


def test_status_finds_a_workload_by_a_unique_id_prefix(capsys, printed: Workload):
    call_command("workload", "status", printed.pk[:8], "--format", "json")
    assert json.loads(capsys.readouterr().out)["id"] == printed.pk
    call_command("workload", "status", printed.pk)
    assert "completed" in capsys.readouterr().out
    recorded(id="f" * 32)
    recorded(id="f" * 31 + "0")
    for prefix, words in {
        "x": "No workload has the id",
        "": "No workload has the id",
        "ffff": "More than one",
    }.items():
        with pytest.raises(CommandError, match=words):
            call_command("workload", "status", prefix)


@pytest.mark.parametrize("options", [[], ["-f"]])
def test_logs_go_to_the_stream_of_the_program(capsys, printed: Workload, options: list[str]):
    call_command("workload", "logs", printed.pk, *options)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("out\n", "err\n")


def test_kill_kills_a_workload_once(capsys):
    workload = recorded()
    call_command("workload", "kill", workload.pk)
    assert Workload.objects.get().status == "killed"
    with pytest.raises(CommandError, match="has already finished"):
        call_command("workload", "kill", workload.pk)


def test_a_workload_submitted_without_a_server_stays_pending(migrated: Path):
    done = manage("run_workload", "--async", "--code", "1", folder=migrated)
    assert (done.returncode, len(done.stdout.strip())) == (0, 32)
    assert "No server" in done.stderr
    shown = manage("workload", "status", done.stdout.strip(), "--format", "json", folder=migrated)
    assert json.loads(shown.stdout)["status"] == "pending"


def test_run_workload_records_the_workload(migrated: Path):
    assert manage("run_workload", "--code", "console.log(7)", folder=migrated).returncode == 0
    [one] = json.loads(manage("workload", "list", "--format", "json", folder=migrated).stdout)
    assert (one["status"], one["owner"]) == ("completed", None)


def test_without_tables_a_command_suggests_migrate(tmp_path: Path):
    done = manage("run_workload", "--code", "1", folder=tmp_path)
    assert done.returncode == 125
    assert "manage.py migrate" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_worker_fails_with_a_local_executor(tmp_path: Path):
    done = manage("run_worker", folder=tmp_path)
    assert done.returncode == 1
    assert "EXECUTOR=celery" in done.stderr


# Pruning


def ended(days: float, **overrides) -> Workload:
    then = NOW - timedelta(days=days)
    workload = recorded(
        Status.COMPLETED, created_at=then, finished_at=then, output=[1], **overrides
    )
    Source.objects.create(workload=workload, code="1", rest={"command": [], "input": None})
    store.save_blocks(workload.pk, [store.Block(1, "stdout", "out\n", 1)])
    return workload


def test_pruning_deletes_only_data_past_its_retention(capsys, settings):
    settings.ISOLATION_RETENTION = {"source_days": 1, "outputs_days": 10, "records_days": 100}
    fresh, old, older = ended(0.5), ended(11), ended(101)
    waiting = recorded(created_at=NOW - timedelta(days=1000))
    call_command("prune_workloads", "--dry-run")
    assert "1 records, 2 outputs and 2 sources" in capsys.readouterr().out
    assert Workload.objects.count() == 4
    call_command("prune_workloads")
    assert {*Workload.objects.all()} == {fresh, old, waiting}
    assert older not in Workload.objects.all()
    old.refresh_from_db()
    assert (old.output, old.outputs_pruned_at is not None) == (None, True)
    assert {one.workload for one in LogBlock.objects.all()} == {fresh}
    assert {one.workload for one in Source.objects.all()} == {fresh, waiting}
    call_command("prune_workloads")
    assert "0 records, 0 outputs and 0 sources" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    "retention",
    [
        {"outputs_days": 10, "records_days": 1},
        {"source_days": 100},
        {"outputs_days": "x"},
        {"days": 1},
        {"source_days": -1},
    ],
)
def test_an_invalid_retention_is_refused(settings, retention):
    from django.core.exceptions import ImproperlyConfigured

    with pytest.raises(ImproperlyConfigured, match="ISOLATION_RETENTION"):
        settings.ISOLATION_RETENTION = retention
    settings.ISOLATION_RETENTION = {}
