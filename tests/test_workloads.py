"""Workload values: one source, enforced limits, a status that follows from the exit reason."""

import math
from base64 import b64encode

import pytest

from backends_app.exceptions import InvalidRequest
from backends_app.workloads import (
    ExitReason,
    Limits,
    Resources,
    Status,
    WorkloadResult,
    WorkloadSpec,
    output_from_stdout,
)


@pytest.mark.parametrize(
    "given", [{}, {"code": "1", "image": "x"}, {"code": "", "archive": b""}, {"code": None}]
)
def test_a_spec_has_exactly_one_source(given):
    with pytest.raises(InvalidRequest, match="exactly one"):
        WorkloadSpec(runtime="node", **given)


@pytest.mark.parametrize(
    ("given", "source_format"),
    [({"code": ""}, "code"), ({"archive": b"x"}, "archive"), ({"image": "x"}, "image")],
)
def test_the_source_format_follows_from_the_source(given, source_format):
    assert WorkloadSpec(**given).source_format == source_format


def test_every_spec_has_an_id_of_its_own():
    assert WorkloadSpec(code="").id != WorkloadSpec(code="").id


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"resources": Resources(timeout_s=0)}, "resources.timeout_s"),
        ({"resources": Resources(timeout_s=-1)}, "resources.timeout_s"),
        ({"resources": Resources(timeout_s=301)}, "resources.timeout_s"),
        ({"resources": Resources(timeout_s=math.nan)}, "resources.timeout_s"),
        ({"resources": Resources(timeout_s=math.inf)}, "resources.timeout_s"),
        ({"resources": Resources(mem_mb=10**400)}, "resources.mem_mb"),
        ({"resources": Resources(mem_mb=63)}, "resources.mem_mb"),
        ({"resources": Resources(cpus=5)}, "resources.cpus"),
        ({"code": "x" * (1024 * 1024 + 1)}, "code"),
        ({"code": "ä" * (512 * 1024 + 1)}, "code"),
        ({"code": "\ud800"}, "code"),
        ({"code": None, "archive": b"x" * (10 * 1024 * 1024 + 1)}, "code_archive"),
        ({"input": "x" * (1024 * 1024)}, "input"),
        ({"input": math.nan}, "input"),
        ({"input": "\ud800"}, "input"),
        ({"input": {1, 2}}, "input"),
    ],
)
def test_a_broken_limit_names_its_field(spec, field):
    with pytest.raises(InvalidRequest) as raised:
        Limits().check(WorkloadSpec(**{"code": "", **spec}))
    assert raised.value.field == field
    assert len(str(raised.value)) < 300


def test_values_at_their_limits_pass():
    code, given = "x" * (1024 * 1024), "x" * (1024 * 1024 - 2)
    most = Resources(timeout_s=300, mem_mb=2048, cpus=4)
    Limits().check(WorkloadSpec(code=code, input=given, resources=most))


def test_a_module_is_limited_by_its_own_bytes_not_its_base64():
    largest = b64encode(bytes(1024 * 1024)).decode()
    Limits().check(WorkloadSpec(runtime="wasm", code=largest))
    with pytest.raises(InvalidRequest) as raised:
        Limits().check(
            WorkloadSpec(runtime="wasm", code=b64encode(bytes(1024 * 1024 + 1)).decode())
        )
    assert raised.value.field == "code"
    assert "at most 1,048,576 bytes of the module; got 1,048,577" in str(raised.value)
    with pytest.raises(InvalidRequest):  # for other runtimes, the text counts
        Limits().check(WorkloadSpec(runtime="node", code=largest))


def test_missing_resources_are_the_defaults():
    assert Limits().resources() == Resources()
    assert Limits().resources(mem_mb=64) == Resources(mem_mb=64)


@pytest.mark.parametrize(
    ("reason", "exit_code", "status"),
    [
        (ExitReason.EXITED, 0, Status.COMPLETED),
        (ExitReason.EXITED, 1, Status.FAILED),
        (ExitReason.EXITED, None, Status.FAILED),
        (ExitReason.KILLED, None, Status.KILLED),
        *((one, 0, Status.FAILED) for one in ExitReason if one not in ("exited", "killed")),
    ],
)
def test_the_status_follows_from_the_reason(reason, exit_code, status):
    assert WorkloadResult(exit_reason=reason, exit_code=exit_code).status is status


@pytest.mark.parametrize(
    ("stdout", "output"),
    [('{"a": 1}\n', {"a": 1}), (" 7 ", 7), ("hello", None), ("1\n2\n", None), ("", None)],
)
def test_output_is_stdout_when_all_of_it_is_json(stdout, output):
    assert output_from_stdout(stdout, truncated=False) == output
    assert output_from_stdout(stdout, truncated=True) is None
