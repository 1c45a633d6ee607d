"""A table of programs, each with its result on every backend that offers its runtime."""

from collections.abc import Mapping
from dataclasses import dataclass

from backends_app.utils.strict_json import JSON
from backends_app.workloads import ExitReason

EXITED, TIMEOUT, MEMORY = ExitReason.EXITED, ExitReason.TIMEOUT, ExitReason.MEMORY_LIMIT


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program and its result. `error` is the first line of the result's error; None means any.

    `called` marks a Node.js program whose default export is called with the input, which an image's
    own `node` does not do.
    """

    code: str
    input: JSON = None
    exit_reason: ExitReason = EXITED
    exit_code: int | None = 0
    output: JSON = None
    stdout: str = ""
    error: str | None = ""
    called: bool = False


def returns(code: str, output: JSON, input: JSON = None, stdout: str = "") -> Program:
    return Program(code=code, input=input, output=output, stdout=stdout, called=True)


def prints(code: str, stdout: str, input: JSON = None, output: JSON = None) -> Program:
    return Program(code=code, input=input, output=output, stdout=stdout)


def fails(code: str, error: str | None, exit_code: int = 1, stdout: str = "") -> Program:
    called = "export default" in code
    return Program(code=code, exit_code=exit_code, error=error, stdout=stdout, called=called)


def is_ended(code: str, reason: ExitReason, stdout: str = "") -> Program:
    called = "export default" in code
    return Program(
        code=code, exit_reason=reason, exit_code=None, error=None, stdout=stdout, called=called
    )


NODE: Mapping[str, Program] = {
    # Functions that are called
    "function": returns("export default (x) => x.a + 1", 42, {"a": 41}),
    "async function": returns("export default async (x) => [x, await 2]", [1, 2], 1),
    "nothing returned": returns("export default () => {}", None),
    "top-level await": returns("const a = await Promise.resolve(3); export default () => a", 3),
    "it prints and returns": returns(
        "export default (x) => { console.log('seen', x); return x }", [1], [1], "seen [ 1 ]\n"
    ),
    "unicode": returns("export default (x) => x + '\\u{1F600}'", "grüße 😀😀", "grüße 😀"),
    "CommonJS function": returns("module.exports = (x) => x * 2", 42, 21),
    "CommonJS and a built-in": returns(
        "const path = require('path'); module.exports = () => path.join('a', '..', 'b')", "b"
    ),
    "a bundle's createRequire": returns(
        "import { createRequire } from 'module'; const require = createRequire(import.meta.url);"
        " const { EventEmitter } = require('events');"
        " export default () => typeof new EventEmitter().on",
        "function",
    ),
    "static import and an if": returns(
        "import path from 'node:path'; export default () => { if (path) return 1 }", 1
    ),
    "TypeScript": returns(
        "interface A { a: number }\nexport default (x: A): number => x.a as number", 1, {"a": 1}
    ),
    "TypeScript with code": returns(
        "enum Color { Red = 2, Blue }\nnamespace N { export const x = Color.Blue }\n"
        "class P { constructor(public y: number) {} }\n"
        "export default () => [N.x, new P(4).y]",
        [3, 4],
    ),
    "JavaScript that looks like TypeScript": returns(
        "const count = (...all) => all.length; const [a, b, c, d] = [1, 2, 3, 4];\n"
        "export default () => count(a < b, c > (d + 1))",
        2,
    ),
    "source as it was sent": returns(
        "export default function f ( a ) { return `${f}` }", "function f ( a ) { return `${f}` }"
    ),
    # Programs that print
    "prints": prints("console.log('a', 1, { b: [2] })", "a 1 { b: [ 2 ] }\n"),
    "prints JSON": prints("console.log(JSON.stringify({ a: 1 }))", '{"a":1}\n', output={"a": 1}),
    "writes without a line's end": prints("process.stdout.write('no end')", "no end"),
    "reads its input": prints(
        "import fs from 'fs'; console.log(fs.readFileSync(0, 'utf8'))",
        '{"a":1}\n\n',
        {"a": 1},
        {"a": 1},
    ),
    "reads its input as events": prints(
        "const { stdin, stdout } = process; stdin.on('data', (d) => stdout.write(d));"
        " stdin.on('end', () => console.log('end'))",
        "[1]\nend\n",
        [1],
    ),
    "timers in order": prints(
        "setTimeout(() => console.log(3), 5); queueMicrotask(() => console.log(2)); console.log(1)",
        "1\n2\n3\n",
    ),
    "on exit": prints(
        "process.on('exit', (c) => console.log('exit', c)); console.log('run')", "run\nexit 0\n"
    ),
    "unref": prints("setInterval(() => {}, 1e6).unref(); console.log('over')", "over\n"),
    "no environment of the host": prints(
        "console.log(process.env.SECRET_KEY, process.env.DATABASE_URL)", "undefined undefined\n"
    ),
    "base64, hashes and URLs": prints(
        "import { createHash } from 'crypto';"
        " console.log(btoa('a'), createHash('sha256').update('x').digest('hex').slice(0, 8),"
        " new URL('/b?c=1', 'http://a').searchParams.get('c'))",
        "YQ== 2d711642 1\n",
    ),
    "compression": prints(
        "import zlib from 'zlib'; console.log(zlib.gunzipSync(zlib.gzipSync('text')).toString())",
        "text\n",
    ),
    "main of its file": prints(
        "const { main, filename } = import.meta;"
        " console.log(main, process.argv.length, process.argv[1] === filename)",
        "true 2 true\n",
    ),
    # Ways to end
    "process.exit(0)": prints("console.log(1); process.exit(0); console.log(2)", "1\n", output=1),
    "process.exit in the function": Program(
        code="export default () => { console.log(1); process.exit(3) }",
        exit_code=3,
        stdout="1\n",
        error=None,
        called=True,
    ),
    "an exit code of 256 is no success": fails("process.exitCode = 256", None),
    "throws": fails(
        "console.log('so far'); throw new TypeError('boom')", "TypeError: boom", stdout="so far\n"
    ),
    "throws in the function": fails(
        "export default () => { throw new RangeError('boom') }", "RangeError: boom"
    ),
    "throws an object": fails("export default () => { throw { a: [1] } }", "{ a: [ 1 ] }"),
    "rejects": fails("Promise.reject(new Error('boom'))", "Error: boom"),
    "uncaughtException is handled": prints(
        "process.on('uncaughtException', (e) => console.log('caught', e.message));"
        " setTimeout(() => { throw new Error('boom') })",
        "caught boom\n",
    ),
    "unhandledRejection is handled": prints(
        "process.on('unhandledRejection', (e) => console.log('caught', e.message));"
        " Promise.reject(new Error('boom'))",
        "caught boom\n",
    ),
    "does not parse": fails("let let", None),
    "runs for ever": is_ended("console.log('so far'); for (;;) {}", TIMEOUT, "so far\n"),
    "waits for ever": is_ended("setInterval(() => {}, 1e6)", TIMEOUT),
}

PYTHON: Mapping[str, Program] = {
    "prints": prints("print('a', 1, {'b': [2]})", "a 1 {'b': [2]}\n"),
    "prints JSON": prints(
        "import json; print(json.dumps({'a': 1}))", '{"a": 1}\n', output={"a": 1}
    ),
    "reads its input": prints(
        "import json, sys; print(json.load(sys.stdin)['a'] + 1)", "42\n", {"a": 41}, 42
    ),
    "reads a line": prints("print(repr(input()))", "'[1]'\n", [1]),
    "unicode": prints(
        "import sys; print('grüße 😀'); print(sys.stdout.encoding)", "grüße 😀\nutf-8\n"
    ),
    "a main guard": prints(
        "if __name__ == '__main__': print(__file__.rpartition('/')[2])", "main.py\n"
    ),
    "threads": prints(
        # `print` writes a line and its end apart, so another thread's may come between them.
        "import sys, threading as t\n"
        "x = [t.Thread(target=sys.stdout.write, args=('in\\n',)) for _ in range(3)]\n"
        "[a.start() for a in x]; [a.join() for a in x]; print('out')",
        "in\nin\nin\nout\n",
    ),
    "a process of its own": prints(
        "import subprocess as s; print(s.check_output(['sh', '-c', 'echo $((1+1))'], text=True))",
        "2\n\n",
        output=2,
    ),
    "files in its folder and in /tmp": prints(
        "import tempfile\nopen('a', 'w').write('x')\n"
        "with tempfile.TemporaryFile('w+') as file:\n"
        "    file.write('y'); file.seek(0); print(open('a').read() + file.read())",
        "xy\n",
    ),
    "asyncio": prints(
        "import asyncio\nasync def f(n):\n    await asyncio.sleep(0); return n\n"
        "async def main(): print(await asyncio.gather(f(1), f(2)))\nasyncio.run(main())",
        "[1, 2]\n",
        output=[1, 2],
    ),
    "dataclasses, decimals and sqlite": prints(
        "import decimal, sqlite3\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass A:\n    a: int\n"
        "[two] = sqlite3.connect(':memory:').execute('select 1+1').fetchone()\n"
        "print(A(1), decimal.Decimal('0.1') * 3, two)",
        "A(a=1) 0.3 2\n",
    ),
    "no environment of the host": prints(
        "import os; print(os.environ.get('SECRET_KEY'), os.environ.get('DATABASE_URL'))",
        "None None\n",
    ),
    "exits": Program(code="import sys; print('x'); sys.exit(3)", exit_code=3, stdout="x\n"),
    "exits with a text": fails("import sys; sys.exit('not today')", "not today"),
    "exits at once": Program(code="import os; print('x'); os._exit(4)", exit_code=4, stdout="x\n"),
    "at exit": prints("import atexit; atexit.register(print, 'bye'); print('hi')", "hi\nbye\n"),
    "raises": fails(
        "print('so far')\nraise ValueError('boom')", "ValueError: boom", stdout="so far\n"
    ),
    "raises from": fails(
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('x') from e",
        "KeyError: 'x'",
    ),
    "does not parse": fails("def", "SyntaxError: invalid syntax"),
    "a module that is not there": fails(
        "import numpy_of_nobody", "ModuleNotFoundError: No module named 'numpy_of_nobody'"
    ),
    "recursion": fails("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "ends itself by a signal": Program(
        code="import os; print('x'); os.kill(os.getpid(), 11)",
        exit_reason=ExitReason.SIGNAL,
        exit_code=None,
        stdout="x\n",
        error="ended by SIGSEGV",
    ),
    "runs for ever": is_ended("print('so far')\nwhile True: pass", TIMEOUT, "so far\n"),
    "one large allocation": Program(
        code="print('so far')\nbytearray(1500 * 1000 * 1000)",
        exit_reason=MEMORY,
        exit_code=1,
        stdout="so far\n",
        error=None,
    ),
    "no network": fails("import socket; socket.create_connection(('192.0.2.1', 80), 2)", None),
}

_GO = "package main\nimport ({imports})\nfunc main() {{ {body} }}\n"


def go(imports: str, body: str) -> str:
    return _GO.format(imports="; ".join(f'"{name}"' for name in imports.split()), body=body)


GO: Mapping[str, Program] = {
    "prints": prints(go("fmt", 'fmt.Println("a", 1, []int{2})'), "a 1 [2]\n"),
    "reads its input": prints(
        go(
            "encoding/json fmt os",
            "var x []int; json.NewDecoder(os.Stdin).Decode(&x); fmt.Println(x[0] + x[1])",
        ),
        "42\n",
        [40, 2],
        42,
    ),
    "goroutines, slices and maps": prints(
        go(
            "fmt maps slices sync",
            "var w sync.WaitGroup; var m sync.Mutex; s := map[int]bool{};"
            " for i := range 3 { w.Go(func() { m.Lock(); s[i] = true; m.Unlock() }) }; w.Wait();"
            " fmt.Println(slices.Sorted(maps.Keys(s)), min(2, 1))",
        ),
        "[0 1 2] 1\n",
    ),
    "exits": Program(code=go("fmt os", 'fmt.Println("x"); os.Exit(3)'), exit_code=3, stdout="x\n"),
    "panics": fails(
        go("fmt", 'fmt.Println("so far"); panic("boom")'), "panic: boom", 2, "so far\n"
    ),
    "does not compile": fails(go("", "x"), "./main.go:3:15: undefined: x"),
    "runs for ever": is_ended(go("fmt", 'fmt.Println("so far"); for {}'), TIMEOUT, "so far\n"),
}
