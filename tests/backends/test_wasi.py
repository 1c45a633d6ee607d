"""Compare what a WASI module finds on the isolate backend with what it finds on wasmtime."""

import json
import struct
import time
from base64 import b64decode, b64encode

import pytest

from backends_app.backends.isolate import IsolateBackend
from backends_app.exceptions import InvalidRequest
from backends_app.workloads import ExitReason, Resources, WorkloadResult, WorkloadSpec
from tests.backends import wasm
from tests.backends.wasi import NAME, SIGNATURES, Call, Ran, compiled, module, on_wasmtime, program

BADF = 8
DESCRIPTORS = (0, 1, 2, 3, 9, -1)
ARGUMENTS = ("one", "two words", "", "drei ü 🙂")
CLOCK, TO_READ, TO_WRITE = 0, 1, 2
AT, EVENTS, COUNT = 0, 1024, 1016  # where programs have what they ask of `poll_oneoff`, and get
OUTSIDE = 65_530  # not all of what is here is in a memory of 64 KiB


@pytest.fixture
def execute(backend: IsolateBackend):
    def execute(code: bytes, input=None, command=(), **resources) -> tuple[WorkloadResult, Ran]:
        """Return the result, and what was printed as it was printed."""
        printed = {"stdout": b"", "stderr": b""}

        def hear(stream: str, data: bytes) -> None:
            printed[stream] += data

        spec = WorkloadSpec(
            runtime="wasm",
            code=b64encode(code).decode(),
            input=input,
            command=command,
            resources=Resources(**{"timeout_s": 30, **resources}),
            on_output=hear,
        )
        result = backend.run(spec)
        return result, Ran(result.exit_code, printed["stdout"], printed["stderr"])

    return execute


@pytest.fixture
def both(execute):
    def both(code: bytes, input=None, command=()) -> Ran:
        """Return what a program that ends well leaves, here as on wasmtime."""
        _, here = execute(code, input, command)
        stdin = f"{json.dumps(input, ensure_ascii=False, separators=(',', ':'))}\n"
        assert here == on_wasmtime(code, stdin.encode(), command)
        return here

    return both


@pytest.fixture
def answers(both):
    def answers(calls: list[Call], *, shown: int = 0, fd: int = 1, data=()) -> dict[Call, int]:
        """Return what each call answers, here as on wasmtime; its memory is compared, too."""
        ran = both(program(calls, data=data, shown=shown, fd=fd))
        printed = ran.stderr if fd == 2 else ran.stdout
        start = len(printed) - shown - 4 * len(calls)  # behind what the calls have printed
        return dict(zip(calls, struct.unpack_from(f"<{len(calls)}I", printed, start), strict=True))

    return answers


def vectors(*parts: tuple[int, int]) -> bytes:
    """Return the list of places and sizes that a call reads to or writes from."""
    return b"".join(struct.pack("<II", *part) for part in parts)


def to_stream(user: int, kind: int, fd: int) -> bytes:
    """Return a subscription of `poll_oneoff`: tell when the stream can be read or written."""
    return struct.pack("<QB7xI28x", user, kind, fd)


def to_clock(user: int, clock: int, nanoseconds: int, flags: int = 0) -> bytes:
    """Return a subscription of `poll_oneoff`: tell when this time is over or has come."""
    return struct.pack("<QB7xI4xQQH6x", user, CLOCK, clock, nanoseconds, 0, flags)


def without_descriptors() -> list[str]:
    """Return the functions whose answer depends on no descriptor."""
    of_files = ("fd_", "path_", "sock_")
    return [name for name in SIGNATURES if not name.startswith(of_files)]


# What it finds


@pytest.mark.parametrize("fd", DESCRIPTORS)
def test_descriptor_functions_match_wasmtime(answers, fd):
    """Three streams are open, and no file, folder or socket can be opened."""
    calls = []
    for name, signature in SIGNATURES.items():
        if name in without_descriptors() or name in ("fd_close", "fd_renumber"):
            continue
        arguments = [64 if name.endswith("stat_get") and of == "i" else 0 for of in signature]
        if name == "path_symlink":
            arguments[2] = fd
        elif name == "path_filestat_get":
            arguments = [fd, 0, 0, 0, 64]
        else:
            arguments[0] = fd
        if name in ("fd_read", "fd_write"):
            arguments[1:] = [512, 1, 520]
        calls.append((name, *arguments))
    answered = answers(calls, data=[(512, vectors((600, 5))), (600, b"hello")], shown=1024)
    if fd not in (0, 1, 2):
        assert set(answered.values()) == {BADF}


def test_streams_are_closed_and_renumbered_as_by_wasmtime(answers):
    hello = [(512, vectors((600, 6))), (600, b"hello\n")]
    write = [("fd_write", fd, 512, 1, 520) for fd in (0, 1, 2, 3)]
    tell = [("fd_fdstat_get", fd, 32 * fd) for fd in (0, 1, 2, 3)]
    for first in (0, 1, 3, -1):
        for second in (0, 1, 3, -1):
            calls = [("fd_renumber", first, second), *write, *tell]
            answers(calls, data=hello, shown=256, fd=2)
    answered = answers(
        [("fd_close", 0), ("fd_close", 1), ("fd_read", 0, 512, 1, 520), *write, *tell],
        data=hello,
        shown=256,
        fd=2,
    )
    assert answered["fd_write", 1, 512, 1, 520] == BADF


@pytest.mark.parametrize("command", [(), ARGUMENTS, ("x" * 4096,)])
def test_arguments_are_the_name_and_the_command(both, command):
    calls = [("args_sizes_get", 0, 4), ("args_get", 16, 256)]
    ran = both(program(calls, shown=8192), command=command)
    count, size = struct.unpack_from("<II", ran.stdout, 8)
    text = ran.stdout[8 + 256 : 8 + 256 + size]
    assert count == len(command) + 1
    assert text.decode().split("\0") == [NAME, *command, ""]


def test_command_size_is_limited(execute):
    for command in (("a\0b",), ("\ud800",), ("x" * 128 * 1024,)):
        with pytest.raises(InvalidRequest) as raised:
            execute(program([]), command=command)
        assert raised.value.field == "command"


def test_environment_is_empty(answers):
    calls = [("environ_sizes_get", 0, 4), ("environ_get", 16, 128)]
    assert set(answers(calls, data=[(0, b"\xff" * 8)], shown=256).values()) == {0}


def test_realtime_and_monotonic_clocks_exist(answers):
    calls = [("clock_res_get", clock, 8 * clock) for clock in range(4)]
    calls += [("clock_time_get", clock, 0, 512 + 8 * clock) for clock in range(4)]
    assert list(answers(calls, shown=512).values()) == [0, 0, BADF, BADF] * 2


def test_clock_is_the_hosts_and_runs(execute):
    calls = [("clock_time_get", clock, 0, 8 * at) for at, clock in enumerate((0, 1, 1, 1))]
    before = time.time()
    _, ran = execute(program(calls, shown=32))
    real, *monotonic = (value / 1e9 for value in struct.unpack_from("<4Q", ran.stdout, 16))
    assert before - 1 <= real <= time.time() + 1
    assert monotonic == sorted(monotonic)


def test_random_get_fills_the_requested_bytes(execute):
    """One call of the platform gives 64 KiB at the most."""
    size = 200_000
    body = f"""(drop (call $random_get (i32.const 16) (i32.const {size})))
      (i32.store (i32.const 0) (i32.const 16)) (i32.store (i32.const 4) (i32.const {size + 16}))
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))"""
    code = module(body, {"random_get", "fd_write"}, memory='(memory (export "memory") 4)')
    _, ran = execute(code)
    random, rest = ran.stdout[:size], ran.stdout[size:]
    assert len({random[i : i + 8] for i in range(0, size, 8)}) == size / 8
    assert rest == bytes(16)


def test_read_returns_available_data_and_then_nothing(answers):
    calls = [("fd_read", 0, 512, 1, at) for at in (0, 4, 8, 12)]
    answers(calls, data=[(512, vectors((600, 3)))], shown=1024)


def test_input_and_output_may_be_large(both):
    assert len(both(b64decode(wasm.ECHO), input="ü" * 200_000).stdout) == 400_003


def test_call_transfers_the_requested_amount(both):
    calls = [("fd_read", 0, 512, 1, 0), ("fd_write", 2, 520, 1, 4)]
    data = [(512, vectors((1024, 30_000), (1024, 20_000)))]
    ran = both(program(calls, data=data, shown=20_000), input="z" * 25_000)
    assert struct.unpack_from("<4I", ran.stdout) == (0, 0, 25_003, 20_000)
    assert len(ran.stderr) == 20_000


def test_fd_write_writes_all_parts(execute):
    """wasmtime writes the first part and says so; who does not look would lose the others."""
    data = [(512, vectors((600, 3), (0, 0), (603, 4))), (600, b"onetwo\n")]
    _, ran = execute(program([("fd_write", 2, 512, 3, 0)], data=data, shown=4))
    assert ran.stderr == b"onetwo\n"
    assert struct.unpack("<II", ran.stdout) == (0, 7)


# Waiting


@pytest.mark.parametrize(
    "asked",
    [
        [to_clock(7, 1, 1000)],
        [to_clock(7, 0, 1000)],
        [to_clock(7, 0, 1000, flags=1)],
        [to_clock(7, 1, 1, flags=1)],
        [to_clock(7, 1, 0), to_clock(8, 1, 0)],
        [to_clock(7, 1, 10**15), to_clock(8, 1, 1000)],
        [to_clock(7, 2, 1000)],
        [to_clock(7, 9, 1000)],
        [to_stream(5, TO_READ, 0)],
        [to_stream(5, TO_WRITE, 1), to_stream(6, TO_WRITE, 2)],
        [to_stream(5, TO_READ, 0), to_clock(6, 1, 10**15), to_stream(7, TO_READ, 0)],
        [to_stream(5, TO_READ, 1)],
        [to_stream(5, TO_WRITE, 0)],
        [to_stream(5, TO_WRITE, 3), to_clock(6, 1, 1000)],
        [to_stream(5, 3, 0)],
        [],
    ],
)
def test_poll_matches_wasmtime(answers, asked):
    answers(
        [("poll_oneoff", AT, EVENTS, len(asked), COUNT)],
        data=[(AT, b"".join(asked))],
        shown=EVENTS + 128,
    )


def test_sleeping_module_is_killed_at_its_time_limit(execute):
    code = program([("poll_oneoff", AT, EVENTS, 1, COUNT)], data=[(AT, to_clock(7, 1, 2**64 - 1))])
    result, ran = execute(code, timeout_s=0.5)
    assert (result.exit_reason, ran.stdout) == (ExitReason.TIMEOUT, b"")


# What it cannot do


@pytest.mark.parametrize(
    "call",
    [
        ("args_get", OUTSIDE, 0),
        ("args_sizes_get", 1, 4),
        ("clock_res_get", 4, 0),
        ("clock_time_get", 0, 0, OUTSIDE),
        ("environ_sizes_get", 0, -4),
        ("fd_fdstat_get", 1, OUTSIDE),
        ("fd_filestat_get", 1, OUTSIDE - 2),
        ("fd_read", 0, OUTSIDE, 1, 8),
        ("fd_write", 1, OUTSIDE, 1, 8),
        ("fd_write", 1, 0, 1, OUTSIDE),
        ("fd_write", 1, 512, 1, 8),
        ("poll_oneoff", 0, 0, 3000, 8),
        ("poll_oneoff", 520, OUTSIDE - 2, 1, 8),
        ("random_get", 0, -1),
    ],
)
def test_pointer_outside_memory_ends_the_program(execute, call):
    data = [(512, vectors((OUTSIDE, 100))), (520, to_clock(1, 1, 0))]
    code = program([call], data=data)
    assert on_wasmtime(code, b"null\n", ()) == Ran(None, b"", b"")
    result, ran = execute(code)
    assert (result.exit_reason, ran.exit_code, ran.stdout) == (ExitReason.EXITED, 1, b"")
    assert result.error.startswith(f"RangeError: {call[0]}: ")


def test_invalid_pointer_cannot_be_caught_by_a_module(execute):
    """The program ends at once, because a module can catch an exception that the host throws."""
    write = "(drop (call $fd_write (i32.const {}) (i32.const {}) (i32.const 1) (i32.const 8)))"
    body = f"""(block $caught (try_table (catch_all $caught) {write.format(1, OUTSIDE)}))
      (i32.store (i32.const 4) (i32.const 1)) {write.format(1, 0)}"""
    result, ran = execute(module(body, {"fd_write"}))
    assert (ran.exit_code, ran.stdout) == (1, b"")
    assert "fd_write" in result.error


def test_event_list_is_limited_by_its_memory(execute):
    body = """(drop (call $poll_oneoff
      (i32.const 0) (i32.const 0) (i32.const 4000000) (i32.const 8)))"""
    code = module(body, {"poll_oneoff"}, memory='(memory (export "memory") 3000)')
    result, _ = execute(code, mem_mb=256)
    assert (result.exit_reason, result.output) == (ExitReason.MEMORY_LIMIT, None)


@pytest.mark.parametrize(
    ("memory", "shown"),
    [("(memory 1)", "exports no memory"), ('(func (export "memory"))', "exports no memory")],
)
def test_module_without_memory_is_limited_in_its_calls(execute, memory, shown):
    call = "(drop (call $clock_res_get (i32.const 0) (i32.const 0)))"
    result, _ = execute(module(call, {"clock_res_get"}, memory=memory))
    assert (result.exit_code, shown in result.error) == (1, True)


def test_module_without_memory_may_exit(execute):
    _, ran = execute(module("(call $proc_exit (i32.const 7))", {"proc_exit"}, memory=""))
    assert ran.exit_code == 7


def test_uncaught_exception_is_a_failure(execute):
    result, _ = execute(compiled('(module (tag $x) (func (export "_start") (throw $x)))'))
    assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, 1)
    assert "exception" in result.error


def test_signals_are_unsupported(answers):
    answers([("proc_raise", 6), ("proc_raise", 15), ("sched_yield",)])


# How it ends


@pytest.mark.parametrize("code", [0, 1, 42, 125])
def test_exit_code_is_reported(both, code):
    assert both(program([("proc_exit", code)])).exit_code == code


@pytest.mark.parametrize(
    ("code", "kept"), [(126, 126), (255, 255), (256, 1), (1000, 232), (-1, 255)]
)
def test_large_exit_code_is_truncated_and_stays_a_failure(execute, code, kept):
    """Each program is treated so; wasmtime refuses such codes."""
    assert execute(program([("proc_exit", code)]))[1].exit_code == kept
