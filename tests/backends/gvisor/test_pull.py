"""Images from a registry: fetched ones, rejected ones, and progress reports."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from backends_app.backends import progress
from backends_app.backends.gvisor import GVisorBackend
from backends_app.exceptions import InvalidRequest
from backends_app.workloads import WorkloadSpec
from tests.backends.gvisor.conftest import IMAGE
from tests.backends.gvisor.engines import TestEngine
from tests.support.needs import find, need

CONFIGURATION = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: 127.0.0.1:{port}}}
"""


@pytest.fixture(scope="module")
def registry_address(tmp_path_factory) -> Iterator[str]:
    """Debian's registry on loopback."""
    need("docker-registry")
    folder = tmp_path_factory.mktemp("registry")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config.yml").write_text(CONFIGURATION.format(folder=folder, port=port))
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            [find("docker-registry"), "serve", str(folder / "config.yml")],
            stdout=log,
            stderr=log,
        ) as server,
    ):
        try:
            wait_for(port, folder / "log")
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def wait_for(port: int, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


@pytest.fixture
def pushed(engine: TestEngine, registry_address: str) -> Iterator[str]:
    """Push an image that the engine lacks; return name and digest."""
    name = f"{registry_address}/team/tool"
    engine.image(f"{name}:v1", ['CMD ["cat"]'])
    with closing(engine.client()) as client:
        client.push(name, tag="v1")
        digest = client.inspect_image(f"{name}:v1")["RepoDigests"][0].partition("@")[2]
        client.remove_image(f"{name}:v1", force=True)
        yield f"{name} {digest}"
        for one in client.images(name):
            client.remove_image(one["Id"], force=True)


def run(backend: GVisorBackend, image: str) -> object:
    return backend.run(WorkloadSpec(runtime="oci", image=image, input=[1])).output


def test_missing_allowed_image_is_fetched_with_progress(make, pushed: str):
    name, _ = pushed.split()
    backend = make(pull="missing", allow=[f"{name.partition('/')[0]}/team/*", LOCAL])
    shown: list[str] = []

    @contextmanager
    def show(title: str) -> Iterator[progress.Advance]:
        shown.append(title)
        yield lambda done, total: None

    with progress.use(show):
        assert run(backend, f"{name}:v1") == [1]
        assert run(backend, f"{name}:v1") == [1]
    assert shown == [f"Fetching {name}:v1"]


LOCAL = "docker.io/library/busybox:test"


def test_digest_is_fetched_and_used(make, pushed: str):
    name, digest = pushed.split()
    backend = make(pull="missing", allow=[name, LOCAL])
    assert run(backend, f"{name}@{digest}") == [1]
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        run(backend, f"{name}@sha256:{'0' * 64}")
    with pytest.raises(InvalidRequest, match="could not be fetched"):
        run(backend, f"{name}:other")


@pytest.mark.parametrize(
    "options",
    [{}, {"pull": "missing", "allow": [LOCAL]}, {"allow": [LOCAL]}],
    ids=["never", "another", "list"],
)
@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}"])
def test_no_packet_is_sent_for_disallowed_images(make, options, host: str):
    backend = make(**options)
    assert run_honest(backend)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        for image in (f"{host.format(port=port)}/x", "169.254.169.254/x", "-v/:/h"):
            with pytest.raises(InvalidRequest) as raised:
                run(backend, image)
            assert raised.value.field == "image"
        with pytest.raises(BlockingIOError):
            server.accept()


def run_honest(backend: GVisorBackend) -> bool:
    spec = WorkloadSpec(runtime="oci", image=IMAGE, command=("cat",), input=True)
    return backend.run(spec).output is True


def test_only_allowed_images_run_even_if_present(engine: TestEngine, make):
    engine.image("private:1")
    backend = make(allow=[LOCAL])
    with pytest.raises(InvalidRequest, match="not among the allowed images"):
        run(backend, "private:1")


def test_concurrent_requests_for_one_image_succeed(make, pushed: str):
    name, _ = pushed.split()
    backend = make(pull="missing", allow=[f"{name}:v1", LOCAL], max_concurrency=4)
    results: list[object] = []
    threads = [
        threading.Thread(target=lambda: results.append(run(backend, f"{name}:v1")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[1]] * 4
