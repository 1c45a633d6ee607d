"""What a machine of each runtime holds, and how it runs a program: one row for each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..heap import heap_mb

HARNESS = "/usr/lib/vulcan/returned.cjs"
GO_CACHE = "/var/cache/go"
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
class Runtime:
    """`packages` are Debian's, and the version of `versioned` is the runtime's. `customize` are
    lines for the shell of mmdebstrap's hooks, with the root as `$1`, once they are installed.

    `file` is what inline code is called, and `entries` what the entry point of an archive may be,
    the first that is there; `command` runs it. `manifest` names a JSON file whose `main` comes
    before those. With `returns`, what comes on descriptor 3 is the output. `warm` is a program that
    a machine has run before its snapshot is taken, and that it is probed with; it prints the number
    that it reads. `environment` may name `{heap_mb}`, and with `aborts` the runtime aborts when a
    heap of that size is full.
    """

    packages: Sequence[str]
    versioned: str
    customize: Sequence[str] = ()
    file: str
    entries: Sequence[str]
    manifest: str | None = None
    command: Sequence[str]
    environment: Mapping[str, str]
    returns: bool = False
    aborts: bool = False
    warm: str

    def surroundings(self, mem_mb: int) -> dict[str, str]:
        """Return the environment of a program that may use so much memory."""
        heap = str(heap_mb(mem_mb))
        own = {name: text.replace("{heap_mb}", heap) for name, text in self.environment.items()}
        return {**ENVIRONMENT, **own}


_RETURNED = (Path(__file__).parent / "guest" / "returned.cjs").read_text()
# What `go build` needs beside a file; a module that an archive has is left as it is.
_BUILD = (
    "[ -e go.mod ] || printf 'module workload\\n\\ngo 1.19\\n' > go.mod; "
    "GOMEMLIMIT=off go build -o /tmp/program . >&2 || exit 1; "
    "[ -x /tmp/program ] || { echo 'no program: its package is not main' >&2; exit 1; }; "
    "exec /tmp/program"
)

RUNTIMES: Mapping[str, Runtime] = {
    "python": Runtime(
        packages=("python3", "python3-distutils", "python3-lib2to3", "python3-venv"),
        versioned="python3",
        file="main.py",
        entries=("main.py",),
        command=("/usr/bin/python3", "{entry}"),
        environment={
            "PYTHONNOUSERSITE": "1",  # there is none, and looking for it takes time
            "PYTHONUNBUFFERED": "1",  # what was printed is not lost, however the program ends
        },
        warm="import json, sys\nprint(json.load(sys.stdin))\n",
    ),
    "node": Runtime(
        packages=("python3", "nodejs"),
        versioned="nodejs",
        customize=(
            'mkdir -p "$1/usr/lib/vulcan"',
            f"cat > \"$1{HARNESS}\" <<'END'\n{_RETURNED}END",
        ),
        file="main.mjs",
        entries=("index.js", "index.mjs"),
        manifest="package.json",
        command=("/usr/bin/node", "--require", HARNESS, "{entry}"),
        environment={"NODE_ENV": "production", "NODE_OPTIONS": "--max-old-space-size={heap_mb}"},
        returns=True,
        aborts=True,
        warm="export default (number) => { console.log(number); }\n",
    ),
    "go": Runtime(
        packages=("python3", "golang-go"),
        versioned="golang-go",
        customize=(
            f'mkdir -p "$1{GO_CACHE}"',
            'chroot "$1" env HOME=/tmp '
            + " ".join(f"'{name}={value}'" for name, value in GO.items())
            + " go build std",
            f'chroot "$1" chown -R 1000:1000 {GO_CACHE}',
            'rm -rf "$1"/usr/lib/go-*/pkg/linux_*_* "$1"/tmp/go',
        ),
        file="main.go",
        entries=("main.go",),
        command=("/bin/sh", "-c", _BUILD),
        environment={**GO, "GOMEMLIMIT": "{heap_mb}MiB"},
        warm=(
            "package main\n"
            'import ("encoding/json"; "fmt"; "os")\n'
            "func main() { var number any\n"
            "json.NewDecoder(os.Stdin).Decode(&number)\nfmt.Println(number) }\n"
        ),
    ),
}
