"""The runtime folder of a real server is removed, made public or replaced, and restored."""

import json
import os
import shutil
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.faults.site import RETURNS, Site
from tests.support.programs import PATIENCE_S, wait_until

BODY = {"runtime": "node", "code": RETURNS, "input": 1}


def publish(folder: Path) -> Callable[[], None]:
    folder.chmod(0o755)
    return lambda: folder.chmod(0o700)


def replace(folder: Path) -> Callable[[], None]:
    """Put a file in its place, so that not even root can create a folder there."""
    kept = folder.with_name("kept")
    folder.rename(kept)
    folder.touch()

    def restore() -> None:
        folder.unlink()
        kept.rename(folder)

    return restore


def give_away(folder: Path) -> Callable[[], None]:
    if os.geteuid() != 0:
        pytest.skip("only root gives a folder to another user")
    os.chown(folder, 65534, 65534)
    return lambda: os.chown(folder, os.geteuid(), os.getegid())


@pytest.mark.parametrize("spoil", [publish, replace, give_away])
def test_an_untrusted_runtime_folder_is_503_until_it_is_fixed(local: Site, spoil):
    server = local.serve()
    assert local.ask("POST", "workloads", BODY)[0] == 201
    restore = spoil(local.folder / "web")
    try:
        status, answer = local.ask("POST", "workloads", BODY)
        assert (status, answer["errors"][0]["code"]) == (503, "host_unavailable")
        assert str(local.folder) not in answer["errors"][0]["detail"]
        assert ready(local) == "runtime folder unusable"
    finally:
        restore()
    assert f"the runtime folder {local.folder}/web is unusable" in server.printed
    wait_until(lambda: local.ask("POST", "workloads", BODY)[0] == 201)
    wait_until(lambda: ready(local) == "ok")


def test_a_removed_runtime_folder_is_created_again(local: Site):
    local.serve()
    shutil.rmtree(local.folder / "web")
    status, workload = local.ask("POST", "workloads", BODY)
    assert (status, workload["status"]) == (201, "completed")
    assert ready(local) == "ok"


def ready(site: Site) -> str:
    connection = HTTPConnection("127.0.0.1", site.port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/readyz")
        return json.loads(connection.getresponse().read())["executor"]
    finally:
        connection.close()
