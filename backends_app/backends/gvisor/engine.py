"""Client of the Docker Engine, or of Podman's compatible socket.

This is the only place where the SDK's errors are translated.
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

from ...exceptions import BackendUnavailable, InvalidOption

try:
    import docker
    import requests
    from docker.errors import APIError, DockerException, ImageNotFound, NotFound
except ImportError:  # without the extra `gvisor`
    HAS_SDK = False
else:
    HAS_SDK = True

TIMEOUT_S = 20  # of one request
WAIT_S = 1  # for the end of a container, between checks of its time limit
CONNECT_S = 5
REMOVALS, PAUSE_S = 3, 0.1
MAX_TEXT_BYTES = 256 * 1024


class EngineError(Exception):
    """The engine rejected a request. `reason` is its own text, not for users.

    `is_client_error` is set if the request was invalid, rather than the engine at fault.
    """

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
        self.is_client_error = status == 400
        super().__init__(reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """An engine's data on an image that it has."""

    id: str
    user: str
    volumes: tuple[str, ...]
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    variables: frozenset[str]
    platform: str


class Engine:
    """An engine at one address. Safe to use from many threads, and after a fork."""

    def __init__(self, address: str) -> None:
        self.address, self.socket_path = _without_credentials(address)
        self._given = address
        self._clients: dict[int, docker.APIClient] = {}  # by process id

    @property
    def local(self) -> bool:
        """Return whether the engine is on this host."""
        return self.socket_path is not None

    def info(self) -> Mapping[str, Any]:
        with self._session() as client:
            found: Mapping[str, Any] = client.info()
            return found

    def image(self, reference: str) -> Image | None:
        """Return the engine's data on an image, or None if it lacks the image."""
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
        """Return the start of a file in a container that has never run, as its image has it.

        Return an empty string if there is no such file or it is a link.
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
            response = client.import_image_from_data(layer)
            # Tagged separately, because Podman's import ignores the tag.
            client.tag(json.loads(response)["status"], repository, tag)

    def pull(self, repository: str, tag_or_digest: str) -> Iterator[Mapping[str, Any]]:
        """Have the engine fetch an image; yield its progress. Raise `EngineError` on failure."""
        with self._session() as client:
            for event in client.pull(repository, tag=tag_or_digest, stream=True, decode=True):
                if error := event.get("error"):
                    raise EngineError(404, str(error))
                yield event

    def create(self, name: str, image: str, host: Mapping[str, Any], **config: Any) -> str:
        """Create a container and return its id."""
        with self._session() as client:
            limits = client.create_host_config(**host)
            made = client.create_container(image, name=name, host_config=limits, **config)
            return str(made["Id"])

    def attach(self, container: str) -> "Attachment":
        """Attach to the three streams of a container, from its start on."""
        with self._session() as client:
            params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            return Attachment(client.attach_socket(container, params=params))

    def start(self, container: str) -> None:
        with self._session() as client:
            client.start(container)

    def wait(self, container: str) -> int | None:
        """Wait up to `WAIT_S` for its end and return its exit code, or None if it still runs.

        For a signal the code is 128 plus the signal's number.
        """
        with self._session() as client:
            try:
                ended = client.wait(container, timeout=WAIT_S)
            except requests.ReadTimeout:
                return None
            except requests.ConnectionError as error:  # also raised for a timeout of the body
                if "Read timed out" in str(error):
                    return None
                raise
            if fault := ended.get("Error"):
                raise EngineError(500, str(fault))
            return int(ended["StatusCode"])

    def ran_out_of_memory(self, container: str) -> bool:
        """Return whether the kernel killed it for lack of memory."""
        with self._session() as client:
            return bool(client.inspect_container(container)["State"].get("OOMKilled"))

    def kill(self, container: str) -> None:
        """Kill it, unless it has ended."""
        with self._session() as client, suppress(NotFound):
            try:
                client.kill(container)
            except APIError as error:
                if error.status_code != 409:  # it is not running
                    raise

    def remove(self, container: str) -> None:
        """Remove it, running or not, with its anonymous volumes."""
        with self._session() as client, suppress(NotFound):
            for again in reversed(range(REMOVALS)):
                try:
                    client.remove_container(container, force=True, v=True)
                    break
                except APIError as error:
                    if error.status_code == 409:  # its removal is already in progress
                        break
                    if not again:
                        raise
                time.sleep(PAUSE_S)  # Podman fails if the container is just ending

    def containers(self, label: str) -> list[Mapping[str, Any]]:
        """Return all containers with the label, running or not."""
        with self._session() as client:
            found: list[Mapping[str, Any]] = client.containers(all=True, filters={"label": label})
            return found

    def close(self) -> None:
        for client in list(self._clients.values()):
            client.close()
        self._clients.clear()

    @contextmanager
    def _session(self) -> Iterator["docker.APIClient"]:
        """Yield a client; raise its errors as `EngineError` or `BackendUnavailable`."""
        if not HAS_SDK:
            raise SDKMissing("its SDK is not installed; install it with: pip install docker")
        try:
            self._check_reachable()
            yield self._client()
        except APIError as error:
            status = error.status_code or 500
            raise EngineError(status, str(error.explanation or error)) from error
        except FileNotFoundError as error:
            raise EngineMissing(f"no Docker Engine at {self.address}") from error
        except (KeyError, TypeError, ValueError) as error:
            reason = f"the service at {self.address} is not a Docker Engine"
            raise BackendUnavailable(reason) from error
        except (DockerException, requests.RequestException, OSError) as error:
            raise BackendUnavailable(f"Docker Engine does not answer at {self.address}") from error

    def _check_reachable(self) -> None:
        """Connect once first: the SDK leaks a socket if nothing listens, and hides the error."""
        if self.socket_path is None:
            return
        with socket.socket(socket.AF_UNIX) as attempt:
            attempt.settimeout(CONNECT_S)
            attempt.connect(self.socket_path)

    def _client(self) -> "docker.APIClient":
        pid = os.getpid()
        if found := self._clients.get(pid):
            return found
        made = docker.APIClient(base_url=self._given, timeout=TIMEOUT_S)
        client = self._clients.setdefault(pid, made)
        if client is not made:
            made.close()
        return client


# Names of processors: by engines, and by images.
PROCESSORS = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def platform_of(info: Mapping[str, Any]) -> str:
    """Return the platform of the engine with this `info`, in the notation of images."""
    machine = str(info.get("Architecture", ""))
    return f"linux/{PROCESSORS.get(machine, machine)}"


def is_podman(info: Mapping[str, Any]) -> bool:
    """Return whether this `info` is Podman's, which names its own builder."""
    return "BuildahVersion" in info


class EngineMissing(BackendUnavailable):
    """There is no socket of an engine."""


class SDKMissing(BackendUnavailable):
    """Docker's SDK for Python is not installed."""


class Attachment:
    """Non-blocking stdin, stdout and stderr of a container over one connection.

    Each piece of output has a header: one byte for the stream, three zero bytes, four bytes for the
    length (https://docs.docker.com/reference/api/engine/, "Attach to a container").
    """

    def __init__(self, attached: Any) -> None:
        self._attached = attached  # keeps the response and its connection alive
        self._socket: socket.socket = getattr(attached, "_sock", attached)
        self._socket.setblocking(False)
        self._header = b""
        self._stream, self._left = 0, 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def write(self, data: memoryview) -> int:
        """Return how many bytes were sent."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:  # the container or the engine has ended; reading shows which
            return len(data)

    def close_stdin(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def read(self, deliver: Callable[[int, bytes], None]) -> bool:
        """Deliver available data with its stream's number; return False at the end."""
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
            piece, data = data[: self._left], data[self._left :]
            self._left -= len(piece)
            if piece:
                deliver(self._stream, piece)
        return not ended

    def close(self) -> None:
        response = getattr(self._attached, "_response", None)
        for one in (response, self._attached, self._socket):  # each holds the next
            if one is not None:
                with suppress(OSError):
                    one.close()


def _without_credentials(engine: str) -> tuple[str, str | None]:
    """Return the address without credentials, and the path of its socket; errors show no more."""
    try:
        url = urlsplit(engine)
    except ValueError:
        raise InvalidOption("engine", "…", "must be an address") from None
    address = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.scheme not in ("unix", "tcp"):
        raise InvalidOption("engine", address, "must begin with unix:// or tcp://")
    if url.scheme == "unix" and not url.path:
        raise InvalidOption("engine", address, "must name a socket")
    return address, url.path if url.scheme == "unix" else None
