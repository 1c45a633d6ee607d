"""The Docker Engine as this backend needs it; the one seam where the SDK's errors are translated.

Podman's compatible socket answers as well.
"""

import io
import json
import os
import socket
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from ...exceptions import BackendUnavailable, InvalidOption

TIMEOUT_S = 20  # of one answer
WAIT_S = 1  # for the end of a container, before somebody looks whether it is time to kill it
CONNECT_S = 5
REMOVALS, PAUSE_S = 3, 0.1
MAX_TEXT_BYTES = 256 * 1024


class EngineError(Exception):
    """The engine answers, and says no; `reason` is its own text, not for users.

    `asked_wrongly` when what it was asked for is the reason, and not a fault of its own.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        self.is_client_error = status == 400
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """What an engine knows of an image that it has."""

    id: str
    user: str
    volumes: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    variables: frozenset[str]
    platform: str


class Engine:
    """One address of an engine. Many threads may ask at once, and after a fork anew."""

    def __init__(self, address: str) -> None:
        self.address, self.socket_path = _without_credentials(address)
        self._given = address
        self._clients: dict[int, docker.APIClient] = {}  # by process id

    @property
    def local(self) -> bool:
        """Is it on this host?"""
        return self.socket_path is not None

    def info(self) -> Mapping[str, Any]:
        with self._session() as client:
            found: Mapping[str, Any] = client.info()
            return found

    def image(self, reference: str) -> Image | None:
        """What the engine knows of an image that it has."""
        with self._session() as client:
            try:
                found = client.inspect_image(reference)  # type: ignore[no-untyped-call]
            except ImageNotFound:
                return None
            config = found.get("Config") or {}
            return Image(
                id=str(found["Id"]),
                user=str(config.get("User") or ""),
                volumes=tuple(map(str, config.get("Volumes") or ())),
                entrypoint=tuple(map(str, config.get("Entrypoint") or ())),
                command=tuple(map(str, config.get("Cmd") or ())),
                variables=frozenset(str(one).partition("=")[0] for one in config.get("Env") or ()),
                platform=f"{found.get('Os') or 'linux'}/{found.get('Architecture') or ''}",
            )

    def read_text(self, container: str, path: str) -> str:
        """Return the start of a file of a container that has never run, as its image has it.

        Nothing where there is no such file, or it is a link.
        """
        with self._session() as client:
            try:
                stream, _ = client.get_archive(container, path)
            except NotFound:
                return ""
            packed = b""
            with closing(stream):
                for part in stream:
                    packed += part
                    if len(packed) >= MAX_TEXT_BYTES:
                        break
        try:
            with tarfile.open(fileobj=io.BytesIO(packed[:MAX_TEXT_BYTES]), mode="r:") as tar:
                member = tar.next()
                content = tar.extractfile(member) if member and member.isreg() else None
                return content.read(MAX_TEXT_BYTES).decode(errors="replace") if content else ""
        except (tarfile.TarError, OSError):
            return ""

    def import_image(self, layer: bytes, repository: str, tag: str) -> None:
        with self._session() as client:
            said = client.import_image_from_data(layer)
            client.tag(json.loads(said)["status"], repository, tag)  # Podman's import heeds no tag

    def pull(self, repository: str, tag_or_digest: str) -> Iterator[Mapping[str, Any]]:
        """Have the engine fetch an image; gives its progress, and raises `Refused` at its end."""
        with self._session() as client:
            for event in client.pull(repository, tag=tag_or_digest, stream=True, decode=True):
                if error := event.get("error"):
                    raise EngineError(404, str(error))
                yield event

    def create(self, name: str, image: str, host: Mapping[str, Any], **config: Any) -> str:
        """Make a container; gives its id."""
        with self._session() as client:
            limits = client.create_host_config(**host)
            made = client.create_container(image, name=name, host_config=limits, **config)
            return str(made["Id"])

    def attach(self, container: str) -> "Attachment":
        """The three streams of a container, from its start on."""
        with self._session() as client:
            wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            return Attachment(client.attach_socket(container, params=wanted))

    def start(self, container: str) -> None:
        with self._session() as client:
            client.start(container)

    def wait(self, container: str) -> int | None:
        """Wait a little for its end: its exit code, for a signal 128 and its number."""
        with self._session() as client:
            try:
                ended = client.wait(container, timeout=WAIT_S)
            except requests.ReadTimeout:
                return None
            except requests.ConnectionError as error:  # how it names a timeout of the body
                if "Read timed out" in str(error):
                    return None
                raise
            if fault := ended.get("Error"):
                raise EngineError(500, str(fault))
            return int(ended["StatusCode"])

    def ran_out_of_memory(self, container: str) -> bool:
        """Was it the kernel that killed it?"""
        with self._session() as client:
            return bool(client.inspect_container(container)["State"].get("OOMKilled"))

    def kill(self, container: str) -> None:
        """End it, if it has not ended."""
        with self._session() as client, suppress(NotFound):
            try:
                client.kill(container)
            except APIError as error:
                if error.status_code != 409:  # it is not running
                    raise

    def remove(self, container: str) -> None:
        """It is gone after this, running or not, with its anonymous volumes."""
        with self._session() as client, suppress(NotFound):
            for again in reversed(range(REMOVALS)):
                try:
                    client.remove_container(container, force=True, v=True)
                    break
                except APIError as error:
                    if error.status_code == 409:  # somebody else is removing it
                        break
                    if not again:
                        raise
                time.sleep(PAUSE_S)  # Podman stumbles over one that ends at the same moment

    def containers(self, label: str) -> list[Mapping[str, Any]]:
        """All that bear the label, running or not."""
        with self._session() as client:
            found: list[Mapping[str, Any]] = client.containers(all=True, filters={"label": label})
            return found

    def close(self) -> None:
        for client in list(self._clients.values()):
            client.close()
        self._clients.clear()

    @contextmanager
    def _session(self) -> Iterator[docker.APIClient]:
        """A client, and its errors as `Refused` or `BackendUnavailable`."""
        try:
            self._check_reachable()
            yield self._client()
        except APIError as error:
            status = error.status_code or 500
            raise EngineError(status, str(error.explanation or error)) from error
        except FileNotFoundError as error:
            raise EngineMissing(f"no Docker Engine at {self.address}") from error
        except (KeyError, TypeError, ValueError) as error:
            reason = f"what answers at {self.address} is no Docker Engine"
            raise BackendUnavailable(reason) from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise BackendUnavailable(f"Docker Engine does not answer at {self.address}") from error

    def _check_reachable(self) -> None:
        """The SDK leaks a socket when nobody listens, and hides which of the errors it was."""
        if self.socket_path is None:
            return
        with socket.socket(socket.AF_UNIX) as attempt:
            attempt.settimeout(CONNECT_S)
            attempt.connect(self.socket_path)

    def _client(self) -> docker.APIClient:
        pid = os.getpid()
        if found := self._clients.get(pid):
            return found
        made = docker.APIClient(base_url=self._given, timeout=TIMEOUT_S)
        client = self._clients.setdefault(pid, made)
        if client is not made:
            made.close()
        return client


# How engines name processors, and how images do.
PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def platform_of(info: Mapping[str, Any]) -> str:
    """Return the platform of an engine that gave this `info`, as images name theirs."""
    machine = str(info.get("Architecture", ""))
    return f"linux/{PROCESSORS.get(machine, machine)}"


def is_podman(info: Mapping[str, Any]) -> bool:
    """Is it Podman that gave this `info`? It has a builder of its own, and says which."""
    return "BuildahVersion" in info


class EngineMissing(BackendUnavailable):
    """There is not even a socket."""


class Attachment:
    """stdin, stdout and stderr of a container over one connection, without blocking.

    What comes has a header for each piece: one byte for the stream, three of nothing, four for its
    length (https://docs.docker.com/reference/api/engine/, "Attach to a container").
    """

    def __init__(self, attached: Any) -> None:
        self._attached = attached  # keeps the answer alive, and the connection with it
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.setblocking(False)
        self._header = b""
        self._stream, self._left = 0, 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def write(self, data: memoryview) -> int:
        """How much of it went."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # it has ended, or its engine: what comes to be read says which
            return len(data)

    def close_stdin(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def read(self, deliver: Callable[[int, bytes], None]) -> bool:
        """Deliver what is there, by the number of its stream; False at the end."""
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            return False
        ended = not data
        while data:
            if self._left == 0:
                need = 8 - len(self._header)
                self._header, data = self._header + data[:need], data[need:]
                if len(self._header) < 8:
                    break
                self._stream, self._left = self._header[0], int.from_bytes(self._header[4:], "big")
                self._header = b""
            mine, data = data[: self._left], data[self._left :]
            self._left -= len(mine)
            if mine:
                deliver(self._stream, mine)
        return not ended

    def close(self) -> None:
        response = getattr(self._attached, "_response", None)
        for one in (response, self._attached, self._socket):  # each holds the next
            if one is not None:
                with suppress(OSError):
                    one.close()


def _without_credentials(engine: str) -> tuple[str, str | None]:
    """The address as it may be shown, and the path of its socket; no error shows more of it."""
    try:
        url = urlsplit(engine)
    except ValueError:
        raise InvalidOption("engine", "…", "is no address") from None
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.scheme not in ("unix", "tcp"):
        raise InvalidOption("engine", shown, "must begin with unix:// or tcp://")
    if url.scheme == "unix" and not url.path:
        raise InvalidOption("engine", shown, "must name a socket")
    return shown, url.path if url.scheme == "unix" else None
