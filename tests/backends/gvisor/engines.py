"""A real Docker Engine for the tests, in its own folder, with images built from busybox."""

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import docker

from backends_app.backends.gvisor import GVisorBackend
from tests.support.needs import find, need, without

PROGRAMS = ("dockerd", "containerd", "runsc", "busybox")
START_S = 30
RUNSC = {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=none"]}
APPLETS = (
    *("sh", "cat", "dd", "dmesg", "echo", "env", "false", "head", "id", "kill", "ls", "mknod"),
    *("mount", "nc", "setsid", "sleep", "sort", "touch", "true", "uname", "wc", "wget", "yes"),
)


def require() -> None:
    """Skip the test on a host where no engine can be started; fail under CI."""
    need(*PROGRAMS)
    if os.geteuid() != 0:
        without("an engine is started by root alone: run the tests as root")


class TestEngine:
    """A `dockerd` with runsc. Its folder needs a short path, because of its sockets."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.address = f"unix://{self.socket}"
        self.runtimes = {"runsc": RUNSC}
        self.pid = 0
        self.backends: dict[str, GVisorBackend] = {}  # that tests share; they end with the engine

    def start(self) -> None:
        configuration = {
            "runtimes": self.runtimes,
            "bridge": "none",
            "iptables": False,
            "hosts": [self.address],
            "data-root": str(self.folder / "data"),
            "exec-root": str(self.folder / "exec"),
            "pidfile": str(self.folder / "pid"),
            "insecure-registries": ["127.0.0.0/8"],
        }
        (self.folder / "daemon.json").write_text(json.dumps(configuration))
        self._start('dockerd --config-file "$0/daemon.json"')

    def _start(self, command: str) -> None:
        """Run a line of the shell whose $0 is the folder; not as a child: other tests count those
        of this process.
        """
        script = f'{command} >>"$0/log" 2>&1 & echo $!'
        started = subprocess.run(
            ["setsid", "sh", "-c", script, str(self.folder)],
            cwd=self.folder,  # Podman's container monitor leaves a file in its working folder
            capture_output=True,
            check=True,
        )
        self.pid = int(started.stdout)
        deadline = time.monotonic() + START_S
        while not self.answers():
            if time.monotonic() > deadline or not self.runs():
                raise AssertionError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.05)

    def answers(self) -> bool:
        if not self.socket.exists():
            return False
        with socket.socket(socket.AF_UNIX) as attempt, suppress(OSError):  # the SDK would leak one
            attempt.settimeout(START_S)
            attempt.connect(str(self.socket))
            attempt.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
            return attempt.recv(64).split(b" ", 2)[1:2] == [b"200"]
        return False

    def client(self) -> docker.APIClient:
        return docker.APIClient(base_url=self.address, timeout=20)

    def containers(self) -> list[str]:
        """Return the names of all containers."""
        with closing(self.client()) as client:
            return [name for one in client.containers(all=True) for name in one["Names"]]

    def sandboxes(self) -> list[str]:
        """Return the command lines of all processes that run for its containers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if str(self.folder) in line and not line.startswith(SERVICES):
                    found.append(line)
        return found

    def reload(self) -> None:
        """Reload the configuration, with the current `runtimes`."""
        path = self.folder / "daemon.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "runtimes": self.runtimes}))
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + START_S
        with closing(self.client()) as client:
            while self._runtimes_of(client) != {n: r["path"] for n, r in self.runtimes.items()}:
                assert time.monotonic() < deadline
                time.sleep(0.05)

    def _runtimes_of(self, client: docker.APIClient) -> dict[str, str]:
        """Return the paths of its current runtimes, except the built-in ones."""
        runtimes = client.info()["Runtimes"]
        return {name: runtimes[name]["path"] for name in {*runtimes} - BUILT_IN}

    def runs(self) -> bool:
        """Return whether it runs; a zombie does not, as orphans may not be reaped here."""
        with suppress(OSError):
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
            return state != "Z"
        return False

    def kill(self) -> None:
        """Kill it like the kernel would; its containerd ends with it."""
        self._end(signal.SIGKILL)
        for pid_file in (self.folder / "pid", *self.folder.glob("exec/containerd/*.pid")):
            pid_file.unlink(missing_ok=True)  # or the next engine would mistake a zombie for it

    def stop(self) -> None:
        for backend in self.backends.values():
            backend.close()
        if self.pid and self.runs():
            self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)
        deadline = time.monotonic() + START_S
        while self.runs():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def image(
        self,
        reference: str,
        changes: Sequence[str] = (),
        *,
        shell: bool = True,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """Create an image, with Debian's busybox in it, or with only `cat`."""
        repository, _, tag = reference.rpartition(":")
        with closing(self.client()) as client:
            made = layer(APPLETS if shell else ["cat"], files or {})
            said = client.import_image_from_data(made, changes=list(changes))
            client.tag(
                json.loads(said)["status"], repository, tag
            )  # Podman's import ignores the tag


class TestPodman(TestEngine):
    """Podman's service, which runs all containers with one runtime."""

    default = "runsc"

    def start(self) -> None:
        runsc = self.folder / "runsc"  # Podman has no arguments for a single runtime
        runsc.write_text('#!/bin/sh\nexec /usr/bin/runsc --network=none "$@"\n')
        runsc.chmod(0o755)
        (self.folder / "containers.conf").write_text(
            '[containers]\nbase_hosts_file = "none"\n'
            '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'[engine.runtimes]\nrunsc = ["{runsc}"]\n'
        )
        self._start(
            'CONTAINERS_CONF="$0/containers.conf" podman --root "$0/data" --runroot "$0/exec"'
            f" --storage-driver vfs --runtime {self.default}"
            ' system service --time 0 "unix://$0/docker.sock"'
        )

    def stop(self) -> None:
        super().stop()
        for line in reversed(
            Path("/proc/mounts").read_text().splitlines()
        ):  # Podman leaves them mounted
            if (place := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "--lazy", place], check=True)


def started(stack: ExitStack, image: str, kind: type[TestEngine] = TestEngine) -> TestEngine:
    """Return a started engine that has the image; the stack stops it and removes its folder."""
    folder = Path(tempfile.mkdtemp(prefix="vulcan-engine-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    made = kind(folder)
    stack.callback(made.stop)
    made.start()
    made.image(image)
    return made


SERVICES = ("dockerd", "containerd ", "podman ")
BUILT_IN = {"runc", "io.containerd.runc.v2", "io.containerd.runtime.v1.linux"}


def of_another_processor(reference: str) -> bytes:
    """Return an image for arm64 in the format of `docker save`, for `docker load`."""
    root = layer(APPLETS)
    config = {
        "architecture": "arm64",
        "os": "linux",
        "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(root).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [reference], "Layers": ["layer.tar"]}]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in (
            ("layer.tar", root),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def layer(applets: Sequence[str], files: Mapping[str, str] | None = None) -> bytes:
    busybox = find("busybox")
    assert busybox is not None
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for folder in ("bin", "tmp", "etc", "proc", "sys", "dev"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        with open(busybox, "rb") as program:
            entry = tarfile.TarInfo(f"bin/{applets[0]}")
            entry.mode, entry.size = 0o755, os.path.getsize(busybox)
            tar.addfile(entry, program)
        for applet in applets[1:]:
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, applets[0]
            tar.addfile(entry)
        for name, text in (files or {}).items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o644, len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()
