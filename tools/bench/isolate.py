"""The cost of a workload on the isolate backend, relative to Deno without Vulcan."""

import http.client
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import deno

from backends_app.backends.base import Health
from backends_app.backends.isolate import IsolateBackend
from backends_app.backends.isolate.backend import ENVIRONMENT, _command
from backends_app.execution import services
from backends_app.registry import Registry
from backends_app.workloads import WorkloadSpec
from tests.support.processes import children
from tests.support.programs import manage, running
from tests.support.servers import LISTENING, user_script

from .http import SERVER
from .ratios import Ratio, at_least, at_most, in_turns, timed

ROUNDS = 40
REFILL_S = 0.15  # for a pool to refill; not measured
THREADS = 4
THROUGHPUT_ROUNDS = 8
THROUGHPUT_S = 3.0

DENO = os.fsdecode(deno.find_deno_bin())
CODE = "export default (x: {a: number, b: number}) => ({sum: x.a + x.b});"
INPUT = {"a": 1, "b": 2}
PROGRAM = f"""{CODE.replace("export default", "const main =")}
const input = JSON.parse(await new Response(Deno.stdin.readable).text());
console.log(JSON.stringify(main(input)));"""


def ratios() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as name, _services(2) as warm, _services(0) as cold:
        folder = Path(name)
        bare = _bare(folder)
        for side in (warm, cold, bare):
            side()
        pooled, by_hand = in_turns(ROUNDS, timed(warm, REFILL_S), _prewarmed)
        yield at_most(1.5, "isolate, through services : prewarmed Deno", pooled, by_hand, "ms")
        missed, spawned = in_turns(ROUNDS, timed(cold, REFILL_S), timed(bare, REFILL_S))
        yield at_most(1.3, "isolate, pool miss : deno run", missed, spawned, "ms")
        with _gunicorn(folder) as post:
            post()
            posted, direct = in_turns(ROUNDS, timed(post, REFILL_S), timed(warm, REFILL_S))
        yield at_most(2, "isolate, POST over gunicorn : services", posted, direct, "ms")
        rates = in_turns(THROUGHPUT_ROUNDS, lambda: _rate(warm), lambda: _rate(bare))
        yield at_least(0.8, f"isolate, {THREADS} threads : deno run", rates[0], rates[1])


def memory() -> str:
    """Describe the memory of idle Deno processes and of the launcher."""
    with _services(4) as run:
        run()
        time.sleep(1)
        (launcher,) = children(os.getpid())
        idle = children(launcher)
        resident, own = (sum(_kilobytes(pid, key) for pid in idle) for key in ("Rss", "Pss"))
        return (
            f"An idle Deno process: {resident / len(idle) / 1024:.0f} MB resident,"
            f" {own / len(idle) / 1024:.0f} MB proportional (PSS) among {len(idle)};"
            f" the launcher: {_kilobytes(launcher, 'Pss') / 1024:.0f} MB."
        )


def _kilobytes(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"smaps_rollup has no {key}")


@contextmanager
def _services(pool_size: int) -> Iterator[Callable[[], None]]:
    """Yield a function that runs a workload through `services`, as views and commands do."""
    registry, backend = Registry(), IsolateBackend(pool_size=pool_size, max_concurrency=8)
    registry.register("isolate", backend)
    registry.set_health("isolate", backend, Health.ok())

    def run() -> None:
        report = services.run(
            WorkloadSpec(runtime="node", code=CODE, input=INPUT), registry=registry
        )
        _expect(report.result.output)

    try:
        yield run
    finally:
        backend.close()


def _prewarmed() -> float:
    """Return the seconds of a run in an idle Deno process without a sandbox."""
    command = [DENO, *_command("node", 256).arguments]
    with subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        process.stdout.read(1)
        time.sleep(REFILL_S)
        code, data = CODE.encode(), json.dumps(INPUT).encode()
        marker = "0" * 32
        started = time.perf_counter()
        process.stdin.write(f"{marker}{len(code):08x}{len(data):08x}".encode() + code + data * 2)
        process.stdin.close()
        answer = process.stdout.read()
        process.wait()
        _expect(json.loads(answer[40:])["output"])
        return time.perf_counter() - started


def _bare(folder: Path) -> Callable[[], None]:
    """Return a function that calls `deno run` with the same program, with a compile cache."""
    program = folder / "main.ts"
    program.write_text(PROGRAM)
    command = [DENO, "run", "--quiet", str(program)]
    environment = {"DENO_DIR": str(folder / "deno"), "NO_COLOR": "1"}

    def run() -> None:
        done = subprocess.run(
            command, env=environment, input=json.dumps(INPUT).encode(), capture_output=True
        )
        _expect(json.loads(done.stdout))

    return run


@contextmanager
def _gunicorn(folder: Path) -> Iterator[Callable[[], None]]:
    """Yield a function that posts to /v1/workloads on one connection to one worker."""
    assert manage("migrate", folder=folder).returncode == 0
    script = user_script("bench")
    token = manage("shell", "--no-imports", "-c", script, folder=folder).stdout.strip()
    body = json.dumps({"runtime": "node", "code": CODE, "input": INPUT})
    headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
    with running(SERVER, LISTENING, folder) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)

        def post() -> None:
            connection.request("POST", "/v1/workloads", body, headers)
            _expect(json.loads(connection.getresponse().read())["output"])

        try:
            yield post
        finally:
            connection.close()


def _rate(run: Callable[[], None]) -> float:
    """Return the runs per second of THREADS threads together."""
    counts: list[int] = []
    until = time.perf_counter() + THROUGHPUT_S

    def work() -> None:
        count = 0
        while time.perf_counter() < until:
            run()
            count += 1
        counts.append(count)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != THREADS:
        raise RuntimeError("a thread failed")
    return sum(counts) / THROUGHPUT_S


def _expect(output: object) -> None:
    if output != {"sum": 3}:
        raise RuntimeError(f"a run returned {output!r}")
