"""A site of real processes that share one database: servers, workers, clients."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from tests.support.programs import DATABASE, PATIENCE_S, ROOT, environment, manage, wait_until
from tests.support.servers import free_port, user_script

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.faults.settings"}
RETURNS = "export default (x) => x"
SLEEPS = (
    "export default async (s) => { await new Promise((r) => setTimeout(r, s * 1000)); return s }"
)


_made: dict[str, Any] = {}  # the database file of a new site, and the token of its user


class Program:
    """One process that prints to a file; `folder` belongs to its machine."""

    def __init__(self, command: Sequence[str], folder: Path, env: dict[str, str]) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._log = folder / f"{command[-1]}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def printed(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_for_output(self, pattern: str) -> "re.Match[str]":
        def found() -> "re.Match[str] | None":
            match = re.search(pattern, self.printed)
            assert match or self._process.poll() is None, self.printed
            return match

        return wait_until(found, f"{pattern} was not printed:\n{self.printed}")

    def children(self) -> list[int]:
        file = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in file.read_text().split()]

    def kill(self) -> None:
        """Send SIGKILL to the process and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(PATIENCE_S)

    def kill_alone(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def terminate(self) -> int:
        self._process.terminate()
        return self._process.wait(PATIENCE_S)


class Site:
    """A database with its servers and workers; `close` ends everything that it has started."""

    def __init__(self, folder: Path, **env: str) -> None:
        self.folder = folder
        self._env = {**SETTINGS, **env}
        self._programs: list[Program] = []
        self.port = free_port()
        self.token = ""

    def manage(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return manage(*arguments, folder=self.folder, **self._env)

    def prepare(self) -> None:
        """Make the tables and a user; on SQLite by a copy of what the first site made."""
        copied = "DATABASE_URL" not in self._env
        if copied and _made:
            (self.folder / DATABASE).write_bytes(_made["database"])
            self.token = _made["token"]
            return
        done = self.manage("migrate", "--verbosity", "0")
        assert done.returncode == 0, done.stderr
        script = user_script("ada", is_staff=True)
        self.token = self.manage("shell", "--no-imports", "-c", script).stdout.strip()
        if copied:
            _made.update(database=(self.folder / DATABASE).read_bytes(), token=self.token)

    def program(self, command: Sequence[str], machine: str, **env: str) -> Program:
        own = {"RUNTIME_DIR": str(self.folder / machine)}
        env = environment(self.folder, **{**self._env, **own, **env})
        program = Program(command, self.folder / machine, env)
        self._programs.append(program)
        return program

    def serve(
        self, workers: int = 1, machine: str = "web", threads: int = 64, **env: str
    ) -> Program:
        """Start a server of the API and wait until it responds."""
        gunicorn = [sys.executable, "-m", "gunicorn", "--no-control-socket"]
        options = [f"--bind=127.0.0.1:{self.port}", f"--workers={workers}", f"--threads={threads}"]
        program = self.program([*gunicorn, *options, "vulcan_site.wsgi"], machine, **env)
        wait_until(self._answers, "the server does not respond")
        return program

    def work(self, machine: str, inside: Sequence[str] = (), **env: str) -> Program:
        """Start a machine's workers and wait for them; `inside` prefixes the command."""
        command = [*inside, sys.executable, "manage.py", "run_worker"]
        program = self.program(command, machine, **env)
        program.wait_for_output(r"isolate@\S+ ready")
        return program

    def close(self) -> None:
        for program in self._programs:
            program.kill()

    # As a client

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            head = {"Authorization": f"Token {self.token}", "Content-Type": "application/json"}
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, f"/v1/{path}", data, {**head, **headers})
            response = connection.getresponse()
            text = response.read()
            return response.status, json.loads(text) if text else None
        finally:
            connection.close()

    def _answers(self) -> bool:
        try:
            status, backends = self.ask("GET", "backends")
        except (OSError, HTTPException):
            return False
        return status == 200 and backends[0]["healthy"] is not None

    def wait_until_healthy(self) -> bool:
        """Wait until the API reports the isolate backend as healthy."""
        return wait_until(
            lambda: self.ask("GET", "backends/isolate")[1]["healthy"], "isolate is not healthy"
        )

    def submit(self, code: str = RETURNS, given: Any = None, **more: Any) -> str:
        resources = {"timeout_s": 120}  # a loaded host starts a second machine in half a minute
        body = {"runtime": "node", "code": code, "input": given, "resources": resources, **more}
        status, workload = self.ask("POST", "workloads/async", body)
        assert status == 202, workload
        return workload["id"]

    def workload(self, workload_id: str) -> dict[str, Any]:
        return self.ask("GET", f"workloads/{workload_id}")[1]

    def wait_for_status(self, workload_id: str, *statuses: str) -> dict[str, Any]:
        """Wait until the workload has one of these statuses; return it."""

        def found() -> dict[str, Any] | None:
            workload = self.workload(workload_id)
            return workload if workload["status"] in statuses else None

        return wait_until(
            found, f"{workload_id} never became {statuses}: {self.workload(workload_id)}"
        )

    def wait_until_ended(self, workload_id: str) -> dict[str, Any]:
        return self.wait_for_status(workload_id, "completed", "failed", "killed")
