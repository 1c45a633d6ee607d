"""Start the servers that tests need, on loopback, and stop them with the tests."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.needs import find, need
from tests.support.programs import PATIENCE_S

POSTGRES = "postgres"  # the user: PostgreSQL does not run as root
# What gunicorn prints as soon as it accepts connections: its port and its process id.
LISTENING = r"Listening at: http://127\.0\.0\.1:(\d+) \((\d+)\)"


def gunicorn(*, workers: int, threads: int) -> list[str]:
    """Return the arguments with which Python serves the site on a free port."""
    options = [f"--workers={workers}", f"--threads={threads}", "--no-control-socket"]
    return ["-m", "gunicorn", "vulcan_site.wsgi", "--bind=127.0.0.1:0", *options]


def user_script(name: str, **attributes: object) -> str:
    """Return code for `manage.py shell` that creates a user and prints a token of that user."""
    return f"""
from django.contrib.auth.models import User
from knox.models import get_token_model
user = User.objects.create_user({name!r}, **{attributes!r})
print(get_token_model().objects.create(user=user)[1])
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Redis:
    """A Redis that can be stopped and started again, without its data."""

    def __init__(self, folder: Path, *addresses: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._addresses = addresses
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {"port": self.port, "save": "", "dir": self._folder, "protected-mode": "no"}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        words += ["--bind", "127.0.0.1", *self._addresses]
        self._process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        _until_it_listens(self.port)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def flush(self) -> None:
        self.command("FLUSHALL")

    def command(self, *words: str) -> bytes:
        """Send one command and return the beginning of the response."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            parts = [word.encode() for word in words]
            lines = [b"*%d" % len(parts)]
            for part in parts:
                lines += [b"$%d" % len(part), part]
            connection.sendall(b"\r\n".join(lines) + b"\r\n")
            return connection.recv(65536)


@contextmanager
def redis(folder: Path, *addresses: str) -> Iterator[Redis]:
    need("redis-server")
    server = Redis(folder, *addresses)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class PostgreSQL:
    """A PostgreSQL that can be stopped and started again, with its data.

    It listens at these addresses, too.
    """

    def __init__(self, folder: Path, *addresses: str) -> None:
        self.port = free_port()
        self.url = f"postgres://{POSTGRES}@127.0.0.1:{self.port}/postgres"
        self._folder, self._data = folder, folder / "data"
        self._listens = ",".join(("127.0.0.1", *addresses))
        self._as_user = ["runuser", "-u", POSTGRES, "--"] if os.geteuid() == 0 else []
        if self._as_user:
            shutil.chown(folder, POSTGRES)
        words = ["-D", str(self._data), "-A", "trust", "-U", POSTGRES, "--no-sync"]
        subprocess.run(
            [*self._as_user, find("initdb"), *words],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=folder,
            timeout=PATIENCE_S,
        )
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.writelines(f"host all all {address}/24 trust\n" for address in addresses)

    def start(self) -> None:
        settings = {"fsync": "off", "unix_socket_directories": self._folder, "max_connections": 60}
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        words += ["-D", str(self._data), "-p", str(self.port), "-h", self._listens]
        self._process = subprocess.Popen(
            [*self._as_user, find("postgres"), *words],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _until_it_listens(self.port)

    def stop(self) -> None:
        """Stop the server and the connections of its clients."""
        if self._process.poll() is None:
            pid = int((self._data / "postmaster.pid").read_text().split()[0])
            os.kill(pid, signal.SIGINT)  # after a SIGTERM it would wait for its clients
            self._process.wait(PATIENCE_S)


@contextmanager
def postgresql_server(*addresses: str) -> Iterator[PostgreSQL]:
    """Run a PostgreSQL with an empty database that also listens at these addresses."""
    need("initdb", "postgres")
    folder = Path(tempfile.mkdtemp(prefix="vulcan-postgresql-"))
    try:
        server = PostgreSQL(folder, *addresses)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgresql(*addresses: str) -> Iterator[str]:
    """Run a `postgresql_server` and yield the URL of its database."""
    with postgresql_server(*addresses) as server:
        yield server.url


@contextmanager
def nginx(folder: Path, sites: str, port: int) -> Iterator[Path]:
    """Run an nginx with these sites, which listen on `port`; yield the file of its error log."""
    need("nginx")
    folder.mkdir()
    error_log = folder / "error.log"
    temporary = "\n".join(
        f"    {name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    # As Debian's /etc/nginx/nginx.conf, except for folders and users.
    config.write_text(
        f"""
{"user root;" if os.geteuid() == 0 else ""}
daemon off;
pid {folder}/nginx.pid;
error_log {error_log} info;
worker_processes 2;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
{temporary}
    access_log {folder}/access.log;
    gzip on;
    {sites}
}}
"""
    )
    command = ["nginx", "-p", str(folder), "-e", str(error_log), "-c", str(config)]
    subprocess.run([*command, "-t"], check=True, capture_output=True, timeout=PATIENCE_S)
    server = subprocess.Popen(command)
    try:
        _until_it_listens(port)
        yield error_log
    finally:
        server.terminate()
        server.wait(PATIENCE_S)


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.02)
        else:
            return
