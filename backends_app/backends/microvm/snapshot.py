"""Take a snapshot: boot a machine, run a program in it, and save its memory and device state.

Only our own code runs in it, so it is the only machine with a monitor.
"""

import json
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from ...sandbox.streams import Capture
from ..setup import SetupError
from . import channel, clock, machine
from .channel import AgentProtocol, GuestLimits, Program
from .machine import MachineSize
from .qemu import Qemu

BOOT_S = 180.0
RUN_S = 120.0
SETTLE_S = 1.0  # until the agent is ready again and the kernel is idle
ANSWER_S = 30.0
READ_BYTES = 64 * 1024
OUTPUT_BYTES = 10_000
POLL_S = 0.02

# QEMU's migration stream, see its migration/savevm.c and migration/ram.c (7.2 and 10.0).
MAGIC = b"QEVM\0\0\0\3"
MEMORY = b"\3ram" + struct.pack(">II", 0, 4)  # a section's name, instance and version
SECTION_START, RAM_SIZES, PAGE_FLAGS = 1, 4, 0xFFF


def take_snapshot(
    qemu: Qemu,
    accelerator: str,
    size: MachineSize,
    files: Mapping[str, Path],
    guest_limits: GuestLimits,
    programs: Sequence[tuple[Program, bytes, str]],
    advance: Callable[[float, float], None],
) -> None:
    """Write the files `ram` and `state`, after running programs: (program, input, expected stdout).

    `guest_limits` are already applied in the snapshot; other limits take a restored machine a
    little longer.
    """
    steps = len(programs) + 2
    with tempfile.TemporaryDirectory(prefix="vulcan-") as folder:  # a short path, for sockets
        agent, monitor = Path(folder, "agent"), Path(folder, "monitor")
        port = f"socket,id=agent,path={agent},server=on,wait=off"
        arguments = (
            *machine.snapshot_args(
                accelerator, size, files, port, clock.guest_tsc_khz(accelerator)
            ),
            *("-qmp", f"unix:{monitor},server=on,wait=off"),
        )
        # The kernel kills the machine when this process ends, however it does.
        process = subprocess.Popen(  # noqa: S603
            ["/usr/bin/setpriv", "--pdeathsig", "KILL", qemu.path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={},
        )
        try:
            with closing(_connect(agent, process)) as line:
                _expect_ready(line)
                advance(1, steps)
                for number, (program, given, expected) in enumerate(programs, 2):
                    _run(line, guest_limits, program, given, expected)
                    advance(number, steps)
            time.sleep(SETTLE_S)
            with closing(_connect(monitor, process)) as line:
                _save(line, files["state"])
        except (OSError, ValueError) as error:
            raise SetupError(f"the snapshot could not be taken: {error}") from error
        finally:
            process.kill()
            process.communicate()
    state = files["state"].read_bytes()
    files["state"].write_bytes(strip_capabilities(state))


def strip_capabilities(state: bytes) -> bytes:
    """Return the state for a machine that has no migration capability set.

    With `x-ignore-shared` the stream names that capability before its sections, and has an address
    after each memory block. Setting the capability on restore requires a monitor; a machine without
    one, and with `send-configuration=off`, reads the stream without both. QEMU cannot write it that
    way: 10.0 aborts without the configuration.
    """
    try:
        return _strip_capabilities(state)
    except (ValueError, IndexError, struct.error) as error:
        raise SetupError("this QEMU writes snapshots in an unknown format") from error


def _strip_capabilities(state: bytes) -> bytes:
    if not state.startswith(MAGIC):
        raise ValueError("it is not a QEMU migration stream")
    at = state.index(MEMORY)
    section = at - 5  # a type and a number precede the name
    if state[section] != SECTION_START:
        raise ValueError("its first section is not memory")
    at += len(MEMORY)
    (total,) = struct.unpack_from(">Q", state, at)
    if total & PAGE_FLAGS != RAM_SIZES:
        raise ValueError("memory does not begin with its sizes")
    at, left = at + 8, total & ~PAGE_FLAGS
    parts = [MAGIC, state[section:at]]
    while left > 0:
        end = at + 1 + state[at] + 8
        (length,) = struct.unpack_from(">Q", state, end - 8)
        parts.append(state[at:end])
        at, left = end + 8, left - length
    return b"".join([*parts, state[at:]])


def _connect(path: Path, process: "subprocess.Popen[bytes]") -> socket.socket:
    deadline = time.monotonic() + ANSWER_S
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(ANSWER_S)
    while True:
        try:
            line.connect(str(path))
            return line
        except OSError:
            if process.poll() is not None:
                line.close()
                _, stderr = process.communicate()
                tail = stderr.decode(errors="replace").strip()[-1000:]
                raise SetupError(f"QEMU ended with code {process.returncode}: {tail}") from None
            if time.monotonic() > deadline:
                line.close()
                raise SetupError("QEMU did not open its sockets in time") from None
        time.sleep(POLL_S)


def _expect_ready(line: socket.socket) -> None:
    line.settimeout(BOOT_S)
    try:
        data = line.recv(1)
    except TimeoutError:
        raise SetupError(f"the machine did not start in {BOOT_S:g} s") from None
    if not data:
        raise SetupError("the machine ended during its start")


def _run(
    line: socket.socket, guest_limits: GuestLimits, program: Program, given: bytes, expected: str
) -> None:
    stdout, stderr = Capture(OUTPUT_BYTES), Capture(OUTPUT_BYTES)
    streams = {b"o": stdout, b"e": stderr, b"r": Capture(OUTPUT_BYTES)}
    port = AgentProtocol(streams, on_exit=lambda: None, on_start=lambda: None)
    line.settimeout(RUN_S)
    line.sendall(channel.request(program, guest_limits, given))
    deadline = time.monotonic() + RUN_S
    while port.report is None:
        data = line.recv(READ_BYTES)
        if not data or port.broken or time.monotonic() > deadline:
            raise SetupError("the machine did not run its first program")
        port.write(data)
    if port.report.code != 0 or stdout.text() != expected:
        tail = (stderr.text() or stdout.text()).strip()[-1000:]
        raise SetupError(f"the first program ended with code {port.report.code}: {tail}")


def _save(line: socket.socket, state: Path) -> None:
    with line.makefile("rb") as answers, state.open("wb") as file:

        def execute(command: str, *descriptors: int, **arguments: object) -> Any:
            text = json.dumps({"execute": command, "arguments": arguments}).encode()
            socket.send_fds(line, [text], descriptors)
            while True:
                answer = json.loads(answers.readline())
                if "error" in answer:
                    raise SetupError(f"QEMU rejected {command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return answer["return"]

        answers.readline()  # its greeting
        execute("qmp_capabilities")
        ignore = {"capability": "x-ignore-shared", "state": True}
        execute("migrate-set-capabilities", capabilities=[ignore])
        execute("getfd", file.fileno(), fdname="state")
        # It keeps running until the end: a machine stopped before would stay stopped when restored.
        execute("migrate", uri="fd:state")
        deadline = time.monotonic() + RUN_S
        while (found := execute("query-migrate").get("status")) != "completed":
            if found in ("failed", "cancelled") or time.monotonic() > deadline:
                raise SetupError("QEMU could not save the machine")
            time.sleep(POLL_S)
        with suppress(SetupError, ValueError, OSError):
            execute("quit")
        os.fsync(file.fileno())
