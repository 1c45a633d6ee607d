"""The contract that every backend has to fulfil.

A test module of a backend derives a class from `BackendContract` and provides two fixtures:
`backend`, a new instance that works on this host, and `programs`, the programs to run on it.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
from django.core.checks import CheckMessage
from rest_framework.renderers import JSONRenderer

from backends_app.backends.base import Backend, BackendCapabilities, Health
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import ExitReason, Status, WorkloadResult, WorkloadSpec
from tests.support.programs import PATIENCE_S


@dataclass(frozen=True, kw_only=True)
class Programs:
    """Sources in one runtime of the backend, each as the source of a `WorkloadSpec`."""

    runtime: str
    echo: Mapping[str, str]
    """Returns its input as its output."""
    fails: Mapping[str, str]
    """Exits with a code other than 0, and prints `boom` on stderr."""
    nothing: Mapping[str, str]
    """Exits with 0 and returns no output."""


def kill_after_output(backend: Backend, spec: WorkloadSpec) -> WorkloadResult:
    """Return the result of a workload that prints `begun` and is killed only after that."""
    begun, results = threading.Event(), []

    def on_output(stream: str, data: bytes) -> None:
        if b"begun" in data:
            begun.set()

    thread = threading.Thread(
        target=lambda: results.append(backend.run(replace(spec, on_output=on_output)))
    )
    thread.start()
    assert begun.wait(PATIENCE_S)
    assert thread.is_alive()
    while thread.is_alive():
        backend.kill(spec.id)
        thread.join(0.01)
    return results[0]


class BackendContract:
    @pytest.fixture
    def run(self, backend: Backend, programs: Programs):
        def run(source: Mapping[str, str], **given) -> WorkloadResult:
            return backend.run(WorkloadSpec(runtime=programs.runtime, **source, **given))

        return run

    def test_capabilities_are_complete(self, backend: Backend, programs: Programs):
        can = backend.capabilities
        assert isinstance(can, BackendCapabilities)
        assert can.name
        assert programs.runtime in can.supported_runtimes
        assert can.supported_isolations
        assert {*can.supported_source_formats} <= {"code", "archive", "image"}

    def test_probe_is_healthy(self, backend: Backend):
        found = backend.probe()
        assert isinstance(found, Health)
        assert found.state == "healthy", found.description

    def test_probe_is_stable_while_nothing_changes(self, backend: Backend):
        assert backend.probe() == backend.probe()

    def test_checks_are_django_system_checks(self, backend: Backend):
        assert all(isinstance(message, CheckMessage) for message in backend.check())

    @pytest.mark.parametrize(
        "value",
        [None, 0, "", [True, -1.5, "grüße 😀 \u2028", [], {"a": [1, {"b": None}]}, "x" * 100_000]],
        ids=["null", "0", "empty", "nested"],
    )
    def test_input_is_returned_as_output(self, run, programs: Programs, value):
        result = run(programs.echo, input=value)
        assert (result.status, result.exit_reason) == (Status.COMPLETED, ExitReason.EXITED)
        assert (result.exit_code, result.signal, result.error) == (0, None, "")
        assert result.output == value

    def test_program_without_output_returns_none(self, run, programs: Programs):
        result = run(programs.nothing)
        assert (result.status, result.output) == (Status.COMPLETED, None)

    def test_failing_program_is_a_result(self, run, programs: Programs):
        result = run(programs.fails)
        assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
        assert result.exit_code not in (0, None)
        assert "boom" in result.stderr

    def test_result_can_be_rendered_as_json(self, run, programs: Programs):
        for source in (programs.echo, programs.fails):
            result = run(source, input={"a": [1]})
            shown = {key: getattr(result, key) for key in WorkloadResult.__dataclass_fields__}
            assert json.loads(JSONRenderer().render(shown))["exit_reason"] == "exited"

    def test_figures_are_plausible(self, run, programs: Programs):
        result = run(programs.echo)
        assert result.duration_ms >= 0
        assert result.cpu_time_ms is None or result.cpu_time_ms >= 0
        assert result.memory_bytes is None or result.memory_bytes > 0

    def test_concurrent_workloads_do_not_mix(self, backend: Backend, run, programs: Programs):
        count = min(4, backend.capabilities.max_concurrency)
        results: dict[int, WorkloadResult] = {}
        threads = [
            threading.Thread(
                target=lambda n=number: results.update({n: run(programs.echo, input=n)})
            )
            for number in range(count)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {number: result.output for number, result in results.items()} == {
            number: number for number in range(count)
        }

    def test_delivered_output_matches_the_result(self, run, programs: Programs):
        """All of it, from a backend that delivers output before the end."""
        delivered: dict[str, bytes] = {"stdout": b"", "stderr": b""}

        def on_output(stream: str, data: bytes) -> None:
            delivered[stream] += data

        result = run(programs.fails, on_output=on_output)
        if any(delivered.values()):
            assert delivered["stderr"].decode(errors="replace") == result.stderr
            assert delivered["stdout"].decode(errors="replace") == result.stdout

    def test_warm_count_is_a_number_or_none(self, backend: Backend, run, programs):
        for _ in range(2):
            ready = backend.warm_count()
            assert ready is None or ready >= 0
            run(programs.echo)

    def test_kill_of_an_unknown_workload_is_ignored(self, backend: Backend):
        backend.kill("0" * 32)
        backend.kill("no id at all")

    def test_closed_backend_is_unavailable(self, backend: Backend, run, programs: Programs):
        backend.close()
        backend.close()
        with pytest.raises(BackendUnavailable):
            run(programs.echo)
