"""The gVisor backend: finds the Docker Engine and its runsc; running workloads is still to come."""

import socket
from collections.abc import Sequence
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import docker
from django.core import checks
from docker.errors import DockerException

from ...exceptions import BackendUnavailable, InvalidOption
from ...workloads import WorkloadResult, WorkloadSpec
from .. import options
from ..base import Backend, BackendCapabilities, Health

INSTALL = "install them with: apt-get install docker.io runsc"
NOT_YET = "running workloads on gVisor is not built yet"
ENGINE_TIMEOUT_S = 5


class GVisorBackend(Backend):
    """OPTIONS: `engine`, where the Docker Engine answers (unix:// or tcp://); `runtime`, the name
    that runsc has in the engine's configuration; `max_concurrency`.
    """

    def __init__(
        self,
        *,
        engine: str = "unix:///var/run/docker.sock",
        runtime: str = "runsc",
        max_concurrency: int = 4,
    ) -> None:
        options.text("engine", engine, "the address of the Docker Engine")
        self._engine = engine
        self._shown_engine, path = _without_credentials(engine)
        self._socket = path if engine.startswith("unix:") else None
        self._runtime = options.text("runtime", runtime, "the name of a runtime of the engine")
        self.capabilities = BackendCapabilities(
            name="gVisor (runsc)",
            supported_runtimes=("oci",),
            supported_isolations=("gvisor",),
            supported_source_formats=("image",),
            max_concurrency=options.whole_number("max_concurrency", max_concurrency),
        )

    def probe(self) -> Health:
        try:
            engine = self._ask_engine()
        except FileNotFoundError:
            return Health.undetected(
                f"no Docker Engine at {self._shown_engine} and so no runsc; {INSTALL}"
            )
        except (DockerException, OSError):  # requests' exceptions are OSErrors
            return Health.unhealthy(f"Docker Engine does not answer at {self._shown_engine}")
        attributes = {"engine_version": str(engine.get("ServerVersion", "unknown"))}
        if self._runtime not in (engine.get("Runtimes") or {}):
            return Health.undetected(
                f"Docker Engine has no runtime {self._runtime!r}; apt-get install runsc and name "
                "it in the engine's configuration",
                attributes,
            )
        return Health.unhealthy(NOT_YET, attributes)

    def _ask_engine(self) -> dict[str, Any]:
        if self._socket is not None:
            # The SDK leaks its socket when nobody listens, and hides which of the errors it was.
            with socket.socket(socket.AF_UNIX) as attempt:
                attempt.settimeout(ENGINE_TIMEOUT_S)
                attempt.connect(self._socket)
        with closing(
            docker.DockerClient(base_url=self._engine, timeout=ENGINE_TIMEOUT_S)
        ) as client:
            return dict(client.info())

    def execute(self, workload: WorkloadSpec) -> WorkloadResult:
        raise BackendUnavailable(NOT_YET)

    def check(self) -> Sequence[checks.CheckMessage]:
        if self._socket is not None:
            return ()
        return (
            checks.Warning(
                f"The Docker Engine at {self._shown_engine} is spoken to over plain TCP: whoever "
                "reaches that address is root there.",
                hint="Use its unix socket, or forward it through an encrypted tunnel.",
                id="backends_app.gvisor.W001",
            ),
        )


def _without_credentials(engine: str) -> tuple[str, str]:
    """The address as it may be shown, and its path; `InvalidOption` shows no more of it."""
    try:
        url = urlsplit(engine)
    except ValueError:
        raise InvalidOption("engine", "…", "is no address") from None
    shown = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"
    if url.scheme not in ("unix", "tcp"):
        raise InvalidOption("engine", shown, "must begin with unix:// or tcp://")
    if url.scheme == "unix" and not url.path:
        raise InvalidOption("engine", shown, "must name a socket")
    return shown, url.path
