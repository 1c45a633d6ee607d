"""Data from a machine is parsed as frames of its agent, and trusted no further."""

import json
import random
import struct
from dataclasses import replace

import pytest

from backends_app.backends.microvm.channel import (
    MAX_FRAME_BYTES,
    AgentProtocol,
    GuestLimits,
    Program,
    request,
)
from backends_app.backends.microvm.results import Streams, result_of
from backends_app.sandbox.client import Exit
from backends_app.sandbox.streams import Capture
from backends_app.workloads import ExitReason, Status, WorkloadSpec

ENDED = {
    "code": 0,
    "cpu_us": 5000,
    "memory_bytes": 4096,
    "starved": False,
    "denied": False,
    "refused": False,
    "full": False,
}
EXIT = Exit(
    kill_reason=None,
    exit_code=None,
    signal="SIGKILL",
    duration_ms=7,
    prepare_ms=None,
    cpu_time_ms=6,
    memory_bytes=1,
    data_bytes=1,
    max_data_bytes=2,
)


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack(">I", len(body)) + body


def report(**given) -> bytes:
    return frame(b"x", json.dumps({**ENDED, **given}).encode())


class Session:
    """An agent protocol, and the output that it received."""

    def __init__(self, *, returns: bool = False, compiles: bool = False) -> None:
        self.stdout, self.stderr, self.returned = Capture(100), Capture(100), Capture(100)
        self.ends = self.begins = 0
        streams = {b"o": self.stdout, b"e": self.stderr, b"r": self.returned}
        self.returns = returns
        self.program = Program(
            source=b"",
            file="main",
            compile=["cc"] if compiles else (),
            argv=["main"],
            environment={},
            signals_start=returns,
        )
        self.port = AgentProtocol(streams, self.end, self.begin if self.program.prepares else None)

    def end(self) -> None:
        self.ends += 1

    def begin(self) -> None:
        self.begins += 1

    def result(self, exit: Exit = EXIT):
        said = Streams(
            stdout=self.stdout,
            stderr=self.stderr,
            returned=self.returned if self.returns else None,
        )
        runtime = "node" if self.returns else "python"
        workload = WorkloadSpec(runtime=runtime, code="")
        return result_of(exit, self.port, said, workload, self.program)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_frames_may_arrive_in_any_pieces(size: int):
    session = Session()
    data = frame(b"o", b"out") + frame(b"e", b"err") + frame(b"o", b"") + report()
    for at in range(0, len(data), size):
        session.port.write(data[at : at + size])
    result = session.result()
    assert (result.status, result.stdout, result.stderr) == (Status.COMPLETED, "out", "err")
    assert (result.cpu_time_ms, result.memory_bytes, result.duration_ms) == (5, 4096, 7)
    assert session.ends == 1


def test_data_after_the_report_is_ignored():
    session = Session()
    session.port.write(report(code=3) + report(code=0) + frame(b"o", b"late"))
    session.port.write(report(code=0))
    result = session.result()
    assert (result.exit_code, result.stdout, session.ends) == (3, "", 1)


@pytest.mark.parametrize(
    "said",
    [
        frame(b"?", b""),
        frame(b"\0", b"x" * 100),
        b"o" + struct.pack(">I", MAX_FRAME_BYTES + 1),
        b"o\xff\xff\xff\xff",
        frame(b"x", b""),
        frame(b"x", b"{}"),
        frame(b"x", b"[" * 4000),
        frame(b"x", b" " * 5000 + b"{}"),
        frame(b"x", b"\xff"),
        report(code="0"),
        report(code=None),
        report(code=256),
        report(code=-65),
        report(code=10**400),
        report(cpu_us=-1),
        report(memory_bytes=2**60),
        report(memory_bytes=1.5),
        report(starved="no"),
        report(denied=1),
    ],
    ids=lambda said: said[:20],
)
def test_invalid_frame_breaks_the_protocol(said: bytes):
    session = Session()
    session.port.write(said)
    assert (session.port.broken, session.ends) == (True, 1)
    result = session.result()
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.BACKEND_ERROR)
    assert "data that its agent never sends" in result.error


def test_arbitrary_bytes_give_a_result_in_bounded_memory():
    chance = random.Random(3)
    for _ in range(300):
        session = Session()
        for _ in range(20):
            session.port.write(chance.randbytes(chance.randrange(200)))
            assert len(session.port._data) <= MAX_FRAME_BYTES + 200
        assert session.result().status is Status.FAILED


@pytest.mark.parametrize(
    ("ended", "reason", "code", "signal"),
    [
        ({"code": 3}, ExitReason.EXITED, 3, None),
        ({"code": -11}, ExitReason.SIGNAL, None, "SIGSEGV"),
        ({"code": -35}, ExitReason.SIGNAL, None, "SIG35"),
        ({"code": -9, "starved": True}, ExitReason.MEMORY_LIMIT, None, "SIGKILL"),
        ({"code": 1, "refused": True}, ExitReason.PROCESS_LIMIT, 1, None),
        ({"code": 1, "denied": True}, ExitReason.MEMORY_LIMIT, 1, None),
        ({"code": -6, "denied": True, "full": True}, ExitReason.MEMORY_LIMIT, None, "SIGABRT"),
        ({"code": 1, "full": True}, ExitReason.DISK_LIMIT, 1, None),
        (
            {"code": 0, "refused": True, "denied": True, "full": True},
            ExitReason.EXITED,
            0,
            None,
        ),
    ],
)
def test_exit_reason_follows_from_the_report(ended, reason, code, signal):
    session = Session()
    session.port.write(report(**ended))
    result = session.result()
    assert (result.exit_reason, result.exit_code, result.signal) == (reason, code, signal)
    assert bool(result.error) == (reason is not ExitReason.EXITED)


def test_start_frame_begins_the_programs_time():
    session = Session(compiles=True)
    session.port.write(frame(b"e", b"compiling") + frame(b"b", b"") + frame(b"o", b"out"))
    assert session.begins == 1
    session.port.write(report())
    result = session.result(replace(EXIT, prepare_ms=50))
    assert (result.stdout, result.compile_ms, result.duration_ms) == ("out", 50, 7)
    assert not session.port.broken


@pytest.mark.parametrize(
    ("compiles", "said"),
    [(False, frame(b"b", b"")), (True, 2 * frame(b"b", b"")), (True, frame(b"b", b"x"))],
)
def test_invalid_start_frame_breaks_the_protocol(compiles: bool, said: bytes):
    session = Session(compiles=compiles)
    session.port.write(said)
    assert session.port.broken


def test_failed_compilation_is_not_a_run():
    session = Session(compiles=True)
    session.port.write(frame(b"e", b"main.go:1: no") + report(code=1))
    result = session.result()
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert (result.exit_code, result.compile_ms, result.duration_ms) == (1, 7, 0)


def test_compiler_limit_is_not_reported_as_the_programs():
    session = Session(compiles=True)
    session.port.write(report(code=1, starved=True))
    assert session.result().error == "the compiler exceeded a limit of its machine: memory_limit"


@pytest.mark.parametrize(
    ("given", "said"),
    [({"compiles": True}, "compiler took longer than 120 s"), ({"returns": True}, "60 s to start")],
)
def test_late_preparation_is_reported(given, said):
    session = Session(**given)
    result = session.result(replace(EXIT, kill_reason=ExitReason.TIMEOUT))
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.TIMEOUT)
    assert said in result.error


@pytest.mark.parametrize(
    ("exit", "reason", "said"),
    [
        ({"kill_reason": ExitReason.TIMEOUT}, ExitReason.TIMEOUT, "timed out after 10 s"),
        ({"kill_reason": ExitReason.KILLED}, ExitReason.KILLED, "killed on request"),
        ({}, ExitReason.BACKEND_ERROR, "ended by SIGKILL"),
        ({"exit_code": 0, "signal": None}, ExitReason.BACKEND_ERROR, "the machine stopped"),
    ],
)
def test_machine_without_a_report_has_failed(exit, reason, said):
    session = Session()
    session.port.write(frame(b"o", b"so far"))
    result = session.result(
        Exit(**{**{k: getattr(EXIT, k) for k in Exit.__dataclass_fields__}, **exit})
    )
    assert (result.exit_reason, result.exit_code, result.stdout) == (reason, None, "so far")
    assert said in result.error


@pytest.mark.parametrize(
    ("returned", "reason", "output"),
    [
        (b"", ExitReason.EXITED, None),
        (b'{"a": 1}', ExitReason.EXITED, {"a": 1}),
        (b"null", ExitReason.EXITED, None),
        (b"{", ExitReason.INVALID_OUTPUT, None),
        (b"\xff", ExitReason.INVALID_OUTPUT, None),
        (b"NaN", ExitReason.INVALID_OUTPUT, None),
        (b"!a cycle", ExitReason.INVALID_OUTPUT, None),
        (b'"' + b"x" * 200 + b'"', ExitReason.OUTPUT_LIMIT, None),
        (b"1\n!Error: caught at last", ExitReason.EXITED, 1),
        (b"\n!Error: caught at last", ExitReason.EXITED, None),
    ],
)
def test_return_value_is_json_or_none(returned, reason, output):
    session = Session(returns=True)
    session.port.write(frame(b"r", returned) + report())
    result = session.result()
    assert (result.exit_reason, result.output) == (reason, output)


@pytest.mark.parametrize(
    ("returned", "code", "error"),
    [
        (b"?there is no default export", 0, "there is no default export"),
        (b"\n!Error: a\n    at b\n!c", 1, "Error: a\n    at b\n!c"),
        (b"1\n!Error: late", 1, "Error: late"),
        (b"!a cycle", 0, "a cycle"),
        (b"", 1, "the last of stderr"),
        (b"?odd", 1, "the last of stderr"),
        (b"\n!" + b"x" * 9000, 1, None),
    ],
)
def test_thrown_value_is_the_error(returned, code, error):
    session = Session(returns=True)
    session.port.write(frame(b"e", b"the last of stderr\n") + frame(b"r", returned))
    session.port.write(report(code=code))
    result = session.result()
    assert result.error == error or (error is None and 0 < len(result.error) <= 4000)


@pytest.mark.parametrize(
    ("code", "memory_mb", "reason"),
    [
        (-6, 192, ExitReason.MEMORY_LIMIT),
        (-5, 192, ExitReason.MEMORY_LIMIT),
        (-6, 90, ExitReason.SIGNAL),
        (-11, 192, ExitReason.SIGNAL),
        (1, 192, ExitReason.EXITED),
    ],
)
def test_abort_on_a_full_heap_is_a_memory_limit(code, memory_mb, reason):
    for returns in (True, False):  # only for a runtime with a fixed heap size
        session = Session(returns=returns)
        session.port.write(report(code=code, memory_bytes=memory_mb * 1024 * 1024))
        python = ExitReason.SIGNAL if code < 0 else ExitReason.EXITED
        assert session.result().exit_reason is (reason if returns else python)


def test_bytes_that_are_not_utf8_set_the_encoding():
    session = Session()
    session.port.write(frame(b"o", b"\xff") + frame(b"e", "ä".encode()) + report())
    result = session.result()
    assert (result.stdout, result.stdout_encoding) == ("\ufffd", "utf-8-lossy")
    assert (result.stderr, result.stderr_encoding) == ("ä", "utf-8")


def test_requests_carry_unique_entropy_and_ids():
    program = Program(source=b"x", file="main.py", argv=["x"], environment={})
    guest_limits = GuestLimits(cpus=1, memory_bytes=1, disk_bytes=1, processes=1)
    heads = []
    for _ in range(2):
        made = request(program, guest_limits, b"null")
        (length,) = struct.unpack_from(">I", made)
        heads.append(json.loads(made[4 : 4 + length]))
        assert made[4 + length :] == b"xnull"
    for name in ("seed", "machine_id"):
        assert len(heads[0][name]) >= 32
        assert heads[0][name] != heads[1][name]
