"""Make WebAssembly programs that call WASI, and run them on wasmtime, the reference.

A program makes its calls one after another. It then writes what each of them answered to a stream,
and after it a part of its memory.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import wasmtime

WORDS = {"i": "i32", "l": "i64"}
# Every function of `wasi_snapshot_preview1`; each but `proc_exit` returns an error number.
SIGNATURES = {
    "args_get": "ii",
    "args_sizes_get": "ii",
    "environ_get": "ii",
    "environ_sizes_get": "ii",
    "clock_res_get": "ii",
    "clock_time_get": "ili",
    "fd_advise": "illi",
    "fd_allocate": "ill",
    "fd_close": "i",
    "fd_datasync": "i",
    "fd_fdstat_get": "ii",
    "fd_fdstat_set_flags": "ii",
    "fd_fdstat_set_rights": "ill",
    "fd_filestat_get": "ii",
    "fd_filestat_set_size": "il",
    "fd_filestat_set_times": "illi",
    "fd_pread": "iiili",
    "fd_prestat_dir_name": "iii",
    "fd_prestat_get": "ii",
    "fd_pwrite": "iiili",
    "fd_read": "iiii",
    "fd_readdir": "iiili",
    "fd_renumber": "ii",
    "fd_seek": "ilii",
    "fd_sync": "i",
    "fd_tell": "ii",
    "fd_write": "iiii",
    "path_create_directory": "iii",
    "path_filestat_get": "iiiii",
    "path_filestat_set_times": "iiiilli",
    "path_link": "iiiiiii",
    "path_open": "iiiiillii",
    "path_readlink": "iiiiii",
    "path_remove_directory": "iii",
    "path_rename": "iiiiii",
    "path_symlink": "iiiii",
    "path_unlink_file": "iii",
    "poll_oneoff": "iiii",
    "proc_exit": "i",
    "proc_raise": "i",
    "random_get": "ii",
    "sched_yield": "",
    "sock_accept": "iii",
    "sock_recv": "iiiiii",
    "sock_send": "iiiii",
    "sock_shutdown": "ii",
}

NAME = "workload.wasm"
ANSWERS = 0x8000  # where a program keeps what its calls have answered
VECTOR = 0xF000
FAILED = 134  # an exit code that wasmtime takes from no program

Call = tuple[Any, ...]  # a function's name and its arguments, which are numbers


@dataclass(frozen=True)
class Ran:
    """Hold what a program has left."""

    exit_code: int | None
    stdout: bytes
    stderr: bytes


def program(
    calls: Sequence[Call], *, data: Iterable[tuple[int, bytes]] = (), shown: int = 0, fd: int = 1
) -> bytes:
    """Return the module that makes the calls, with `data` at places in its memory of 64 KiB.

    It shows its answers, and the first `shown` bytes of its memory, on `fd`.
    """
    body = []
    for at, (name, *arguments) in enumerate(calls):
        pairs = zip(SIGNATURES[name], arguments, strict=True)
        call = f"(call ${name} {' '.join(f'({WORDS[of]}.const {value})' for of, value in pairs)})"
        body.append(
            call if name == "proc_exit" else f"(i32.store (i32.const {ANSWERS + 4 * at}) {call})"
        )
    for start, size in ((ANSWERS, 4 * len(calls)), (0, shown)):
        body.append(f"(i32.store (i32.const {VECTOR}) (i32.const {start}))")
        body.append(f"(i32.store (i32.const {VECTOR + 4}) (i32.const {size}))")
        one = f"(i32.const {VECTOR}) (i32.const 1) (i32.const {VECTOR + 8})"
        body.append(f"(drop (call $fd_write (i32.const {fd}) {one}))")
    return module("\n".join(body), {name for name, *_ in calls} | {"fd_write"}, data)


def module(
    body: str,
    functions: Iterable[str],
    data: Iterable[tuple[int, bytes]] = (),
    memory: str = '(memory (export "memory") 1)',
) -> bytes:
    """Return the module whose `_start` is `body`, and that imports the functions."""
    parts = []
    for name in sorted(functions):
        parameters = " ".join(WORDS[word] for word in SIGNATURES[name])
        result = "" if name == "proc_exit" else "(result i32)"
        of = f"(func ${name} (param {parameters}) {result})"
        parts.append(f'(import "wasi_snapshot_preview1" "{name}" {of})')
    parts.append(memory)
    for start, content in data:
        escaped = "".join(f"\\{byte:02x}" for byte in content)
        parts.append(f'(data (i32.const {start}) "{escaped}")')
    parts.append(f'(func (export "_start") {body})')
    return compiled("(module " + "\n".join(parts) + ")")


def compiled(text: str) -> bytes:
    """Return the module that the text of WebAssembly describes."""
    return bytes(wasmtime.wat2wasm(text))


def on_wasmtime(wasm: bytes, stdin: bytes, arguments: Sequence[str]) -> Ran:
    """Run the module on wasmtime: with these arguments, no variable and no folder.

    The exit code of a program that failed by itself is None. It is run by a process of its own,
    because wasmtime keeps threads and descriptors.
    """
    with tempfile.NamedTemporaryFile() as file:
        file.write(wasm)
        file.flush()
        command = [sys.executable, __file__, file.name, NAME, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False)
    exit_code = None if done.returncode == FAILED else done.returncode
    return Ran(exit_code, done.stdout, done.stderr)


def main(file: str, *argv: str) -> int:
    """Run the module in the file on wasmtime, with the streams of this process."""
    engine = wasmtime.Engine()
    store, linker = wasmtime.Store(engine), wasmtime.Linker(engine)
    linker.define_wasi()
    wasi = wasmtime.WasiConfig()
    wasi.argv = list(argv)
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    store.set_wasi(wasi)
    module = wasmtime.Module(engine, Path(file).read_bytes())
    start = cast(wasmtime.Func, linker.instantiate(store, module).exports(store)["_start"])
    try:
        start(store)
    except wasmtime.ExitTrap as ended:
        return ended.code
    except (wasmtime.Trap, wasmtime.WasmtimeError):
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
