"""Programs as others write them: what they print, how they end, and what is said of it.

What holds on other backends, too, is in tests/backends/test_parity.py.
"""

import tarfile

import pytest

from backends_app.workloads import ExitReason, Status
from tests.backends.microvm.archives import entry, packed, tar_gz

HOG = "const all = []; for (;;) all.push(new Array(1000).fill(Math.random()));"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('so far', end='')\nwhile True: pass", ExitReason.TIMEOUT),
        ("import os; print('so far'); os.abort()", ExitReason.SIGNAL),
        (
            "print('so far')\nx = []\nwhile True: x.append(bytearray(10**6))",
            ExitReason.MEMORY_LIMIT,
        ),
    ],
)
def test_printed_output_is_not_lost(run, code, reason):
    result = run(code, timeout_s=4 if reason is ExitReason.TIMEOUT else 60)
    assert (result.exit_reason, result.stdout.strip()) == (reason, "so far")


def test_output_is_delivered_while_it_runs(backend, run):
    heard: list[bytes] = []
    code = "import sys, time\nfor n in range(3): print(n, end=' '); time.sleep(0.5)\nprint(end='.')"
    result = run(code, on_output=lambda stream, data: heard.append(data))
    assert result.stdout == "0 1 2 ."
    assert len(heard) >= 3
    assert heard[0] in (b"0", b"0 ")
    assert b"".join(heard) == b"0 1 2 ."


def test_shell_reads_the_input_as_a_line(run):
    script = "while read line; do echo got $line; done"
    result = run(archive=packed({"x": script}), command=("sh", "x"), input={"a": [1]})
    assert result.stdout == 'got {"a":[1]}\n'


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "'x' * 10 ** 10"),
        ("python", "import mmap; mmap.mmap(-1, 10 ** 10)"),
        ("python", "a = []\nwhile True: a.append(bytearray(b'x' * 10 ** 6))"),
        ("node", "new Float64Array(2 ** 30)"),
        ("node", "const all = []; for (;;) all.push(Buffer.alloc(1e6, 1));"),
        ("node", HOG),
        ("go", "package main\nfunc main() { x := make([]byte, 1500 << 20); x[0] = 1 }"),
    ],
)
def test_out_of_memory_is_a_memory_limit(run, runtime, code):
    result = run(code, runtime=runtime, timeout_s=120)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.MEMORY_LIMIT)
    assert result.error == "exceeded the memory limit of 256 MB"


def test_node_heap_matches_the_memory_limit(run):
    result = run(HOG, runtime="node", mem_mb=512, timeout_s=200)
    assert result.exit_reason is ExitReason.MEMORY_LIMIT
    assert result.memory_bytes > 400 * 1024 * 1024


@pytest.mark.parametrize(
    ("runtime", "code", "reason"),
    [
        ("python", "print('MemoryError'); raise MemoryError", ExitReason.EXITED),
        (
            "python",
            "import sys; sys.stderr.write('runtime: out of memory'); sys.exit(2)",
            ExitReason.EXITED,
        ),
        (
            "node",
            "console.error('FATAL ERROR: Reached heap limit'); process.abort()",
            ExitReason.SIGNAL,
        ),
        ("python", "try: bytearray(10**10)\nexcept MemoryError: pass", ExitReason.EXITED),
    ],
)
def test_claimed_memory_error_is_not_a_memory_limit(run, runtime, code, reason):
    assert run(code, runtime=runtime).exit_reason is reason


@pytest.mark.parametrize(
    ("code", "exit_code", "output"),
    [
        ("export default () => { console.log(5); process.exit(0) }", 0, 5),
        ("export default async () => { await 1; process.exit(3) }", 3, None),
        ("process.exitCode = 256; export default () => 1", 1, None),
        ("export default () => process.exit(512)", 1, None),
        ("process.on('exit', () => { process.exitCode = 256 }); export default () => 1", 1, None),
        ("process.exitCode = 257; export default () => 1", 1, None),
        ("export default () => new Promise(() => {})", 13, None),
    ],
)
def test_node_exit_codes_are_reported(run, code, exit_code, output):
    result = run(code, runtime="node")
    assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, exit_code)
    assert result.output == output


@pytest.mark.parametrize(
    ("code", "printed"),
    [
        ("export default () => { throw new Error('boom') }", "caught boom\n"),
        ("throw new Error('boom')", "caught boom\n"),
        ("export default () => { throw { message: 'object' } }", "caught object\n"),
        ("export default () => 1", ""),
    ],
)
def test_node_handler_receives_uncaught_errors(run, code, printed):
    handled = "process.on('uncaughtException', (error) => console.log('caught', error.message));"
    result = run(handled + code, runtime="node")
    assert (result.exit_code, result.stdout, result.error) == (0, printed, "")


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("export const handler = (x) => x", "exports handler"),
        ("export const run = (x) => x", "no default export, and has not read its input"),
        ("console.log(1)", "no default export, and has not read its input"),
    ],
)
def test_module_without_an_entry_point_is_reported(run, code, error):
    result = run(code, runtime="node", input={"a": 1})
    assert result.status is Status.COMPLETED
    assert error in result.error


@pytest.mark.parametrize(
    ("runtime", "code", "error"),
    [
        ("python", "import sys; sys.exit(3)", ""),
        ("node", "export default async () => { throw 'text' }", "'text'"),
        ("node", "let let", "SyntaxError: let is disallowed as a lexically bound name"),
        ("go", "package other\nfunc main() {}", "no program: its package is not main"),
    ],
)
def test_error_is_the_programs_message(run, runtime, code, error):
    result = run(code, runtime=runtime)
    assert (result.exit_reason, result.status) == (ExitReason.EXITED, Status.FAILED)
    assert result.error.partition("\n")[0] == error


def test_node_error_shows_its_cause_but_no_harness(run):
    code = "export default () => { throw new Error('a', { cause: new Error('b') }) }"
    error = run(code, runtime="node").error
    assert error.startswith("Error: a\n    at default (file:///work/main.js:1:")
    assert "[cause]: Error: b" in error
    assert "/usr/lib" not in error
    result = run("export default () => { throw new Error('x'.repeat(9000)) }", runtime="node")
    assert 3000 < len(result.error) <= 4000


GO_BUSY = """package main
import ("fmt"; "time")
func main() { for began := time.Now(); time.Since(began) < time.Second; {}; fmt.Println(1) }
"""
NODE_BUSY = "const end = Date.now() + 1000; while (Date.now() < end); console.log(1)"


@pytest.mark.parametrize(("runtime", "code"), [("go", GO_BUSY), ("node", NODE_BUSY)])
def test_start_does_not_count_against_a_programs_limits(run, runtime, code):
    """Compiling it, or starting Node.js, takes longer than this with so few processors."""
    result = run(code, runtime=runtime, cpus=0.1, timeout_s=20)
    assert (result.exit_reason, result.output) == (ExitReason.EXITED, 1)
    assert result.duration_ms >= 1000
    assert (result.compile_ms is not None) == (runtime == "go")
    if runtime == "go":  # Node.js's start counts as its program's
        assert result.cpu_time_ms < result.duration_ms


def test_compiler_memory_is_not_counted(run):
    result = run('package main\nfunc main() { println("ok") }', runtime="go", mem_mb=32)
    assert (result.exit_reason, result.stderr) == (ExitReason.EXITED, "ok\n")
    assert result.memory_bytes < 32 * 1024 * 1024


def test_go_test_runs_as_a_command(run):
    archive = packed(
        {
            "go.mod": "module example.org/sum\n\ngo 1.27\n",
            "sum.go": "package sum\n\nfunc Sum(a, b int) int { return a + b }\n",
            "sum_test.go": 'package sum\n\nimport "testing"\n\n'
            "func TestSum(t *testing.T) { if Sum(1, 2) != 3 { t.Fail() } }\n",
        }
    )
    result = run(archive=archive, runtime="go", command=("go", "test", "./..."), timeout_s=250)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("ok  \texample.org/sum")


def test_node_strips_types_in_an_archive(run):
    archive = packed(
        {
            "index.ts": "import { Kind } from './kind.ts'\n"
            "export default (x: number): Kind => x as Kind",
            "kind.ts": "export enum Kind { A = 1 }",
        }
    )
    assert run(archive=archive, runtime="node", input=1).output == 1


def test_bytes_that_are_not_utf8_set_the_encoding(run):
    result = run("import sys; sys.stdout.buffer.write(b'a\\xff'); print('ä', file=sys.stderr)")
    assert (result.stdout, result.stdout_encoding) == ("a\ufffd", "utf-8-lossy")
    assert (result.stderr, result.stderr_encoding) == ("ä\n", "utf-8")


def test_pseudoterminals_work(run):
    code = "import os, pty\nmaster, slave = os.openpty()\npty.spawn(['sh', '-c', 'tty; stty size'])"
    result = run(code)
    assert (result.status, result.stderr) == (Status.COMPLETED, "")
    assert result.stdout.endswith("/dev/pts/1\r\n0 0\r\n")


def test_standard_library_is_complete(run):
    code = """
import importlib, sys
sys.stderr = open("/dev/null", "w")
for name in sorted(sys.stdlib_module_names):
    if name.startswith("_") or name in ("antigravity", "this", "idlelib"):
        continue
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(name, end=" ")
"""
    not_linux = {"msilib", "msvcrt", "nt", "ntpath", "winreg", "winsound"}
    assert {*run(code).stdout.split()} - not_linux == {"tkinter", "turtle", "turtledemo"}


def links(*given: tuple[str, str]) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [entry(name, kind=tarfile.SYMTYPE, linkname=target) for name, target in given]


def test_links_that_stay_inside_are_unpacked(run):
    archive = tar_gz(
        *links(("node_modules/.bin/say", "../say/cli.sh"), ("current", "node_modules/say")),
        entry("node_modules/say/cli.sh", "#!/bin/sh\necho said $(cat)\n", mode=0o755),
        entry("node_modules/say/._cli.sh", b"\0\5\x16\7resources"),
        entry("._plain", "x"),
    )
    result = run(archive=archive, command=("node_modules/.bin/say",), input=1)
    assert (result.stdout, result.error) == ("said 1\n", "")
    shown = run(archive=archive, command=("ls", "-A", ".", "current/"))
    assert shown.stdout.split() == [
        *(".:", "._plain", "current", "node_modules"),
        *("current/:", "cli.sh"),
    ]


def test_missing_interpreter_is_named_in_the_error(run):
    archive = packed({"a.sh": "#!/bin/sh\r\necho 1\r\n", "b.sh": "#!/opt/sh -x\n"})
    for script, error in (
        ("./a.sh", "'./a.sh' ends with CR LF: there is no '/bin/sh\\r'"),
        ("./b.sh", "'./b.sh' asks for '/opt/sh -x', which is not there"),
    ):
        result = run(archive=archive, command=(script,))
        assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, 126)
        assert error in result.error
