"""Every error of one request has a code of its own, and a response that the client can act on."""

from collections.abc import Iterator

import pytest

from backends_app.api.errors import RESPONSES, to_api_exception
from backends_app.exceptions import (
    BackendAtCapacity,
    BackendNotRegistered,
    BackendUnavailable,
    BodyMemoryFull,
    HostFault,
    IdempotencyKeyConflict,
    InvalidRequest,
    QueueFull,
    ResolutionError,
    RuntimeNotSupported,
    SourceFormatNotSupported,
    TooManyWaiting,
    VulcanError,
    WorkloadFinished,
)


def subclasses(kind: type[VulcanError]) -> Iterator[type[VulcanError]]:
    for one in kind.__subclasses__():
        if one.__module__ == VulcanError.__module__:
            yield one
            yield from subclasses(one)


LEAVES = {*subclasses(VulcanError)} - {ResolutionError}


def test_every_error_has_a_code_of_its_own():
    assert len({kind.code for kind in LEAVES} | {VulcanError.code}) == len(LEAVES) + 1


def test_every_error_without_a_field_has_a_response():
    without_field = {kind for kind in LEAVES if kind.field is None}
    assert without_field == {*RESPONSES, HostFault, InvalidRequest}


@pytest.mark.parametrize(
    ("error", "status", "code", "attr", "retry_after_s"),
    [
        (InvalidRequest("", "Unknown."), 400, "invalid", "", None),
        (InvalidRequest("input", "Too deep."), 400, "invalid", "input", None),
        (BackendNotRegistered("a", ()), 400, "backend_not_registered", "isolation", None),
        (RuntimeNotSupported("a", "b", (), ()), 400, "runtime_not_supported", "runtime", None),
        (
            SourceFormatNotSupported("a", "b", (), ()),
            *(400, "source_format_not_supported", "source_format", None),
        ),
        (BackendUnavailable("down", name="a"), 503, "backend_unavailable", None, 5),
        (BackendAtCapacity("a", 1), 429, "backend_at_capacity", None, 1),
        (BodyMemoryFull(1), 429, "body_memory_full", None, 1),
        (QueueFull("a", 1), 429, "queue_full", None, 5),
        (TooManyWaiting(1), 429, "too_many_waiting", None, 5),
        (IdempotencyKeyConflict("k"), 409, "idempotency_key_reused", None, None),
        (WorkloadFinished("killed"), 409, "workload_ended", None, None),
    ],
)
def test_an_error_maps_to_its_status_code_field_and_delay(
    error: VulcanError, status: int, code: str, attr: str | None, retry_after_s: int | None
):
    exception = to_api_exception(error)
    detail = exception.detail if attr is None else exception.detail[attr][0]
    assert (exception.status_code, detail.code) == (status, code)
    assert str(detail) == (error.reason if isinstance(error, InvalidRequest) else str(error))
    assert getattr(exception, "wait", None) == retry_after_s


def test_a_subclass_of_an_error_has_the_response_of_its_base():
    class Flooded(BackendUnavailable):
        pass

    assert to_api_exception(Flooded("wet", name="a")).status_code == 503


def test_an_error_without_a_response_reveals_nothing():
    assert "/secret" not in str(to_api_exception(HostFault("/secret/path")).detail)
