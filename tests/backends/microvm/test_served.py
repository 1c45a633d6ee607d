"""Machines as people meet them: over HTTP, from the terminal, and where `auto` leads."""

import io
import json
import tarfile
from base64 import b64encode
from contextlib import ExitStack
from pathlib import Path

import pytest
from django.db import connection

from backends_app.backends.gvisor import GVisorBackend
from backends_app.backends.isolate import IsolateBackend
from backends_app.execution import services
from backends_app.health import run_probe
from backends_app.registry import Registry
from backends_app.workloads import Resources, WorkloadSpec
from tests.backends import wasm
from tests.backends.gvisor.engines import require, started
from tests.backends.microvm.archives import packed
from tests.support.programs import manage

pytestmark = pytest.mark.django_db(transaction=True)  # what runs is stored by another thread

UNAME = {
    "python": "import os; print(*os.uname())",
    "node": "import { execSync } from 'child_process'; console.log(`${execSync('uname -a')}`)",
    "go": """package main
import ("os"; "os/exec")
func main() {
    command := exec.Command("uname", "-a")
    command.Stdout = os.Stdout
    command.Run()
}""",
}


def run_workload(folder: Path, images: Path, *arguments: str):
    return manage(
        *("run_workload", *arguments),
        folder=folder,
        MICROVM_FOLDER=str(images),
        MICROVM_ACCELERATOR="any",
        SILENCED_SYSTEM_CHECKS="backends_app.microvm.W001",
    )


@pytest.mark.parametrize("runtime", UNAME)
def test_each_runtime_shows_the_guests_kernel(folder: Path, migrated: Path, runtime: str):
    options = ["--runtime", runtime, "--isolation", "microvm", "--timeout", "60"]
    done = run_workload(migrated, folder, *options, "--code", UNAME[runtime])
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Linux workload ")
    assert "-cloud-amd64" in done.stdout
    assert "completed on microvm" in done.stderr


def test_archive_can_be_read_from_a_file(folder: Path, migrated: Path):
    file = migrated / "program.tar.gz"
    file.write_bytes(packed({"main.py": "print(input())", "other.sh": "echo $1; exit 3"}))
    done = run_workload(migrated, folder, str(file), "--runtime", "python", "--input", "[1]")
    assert (done.returncode, done.stdout) == (0, "[1]\n"), done.stderr
    assert "source format archive → microvm" in done.stderr
    command = ["--runtime", "python", str(file), "--", "sh", "other.sh", "word"]
    done = run_workload(migrated, folder, *command)
    assert (done.returncode, done.stdout) == (3, "word\n"), done.stderr
    done = run_workload(migrated, folder, str(file))
    assert (done.returncode, "needs --runtime" in done.stderr) == (125, True)


@pytest.fixture
def signed_in(token: str) -> str:
    """The token; the connection that it took is none of those that a backend might have left."""
    connection.close()
    return token


@pytest.fixture
def served(serve, signed_in, backend):
    registry = Registry()
    registry.register("microvm", backend)
    registry.set_health("microvm", backend, run_probe(backend))
    client = serve(registry)
    client.credentials(HTTP_AUTHORIZATION=f"Token {signed_in}")
    yield client
    connection.close()


def test_archive_can_be_posted(served):
    archive = b64encode(packed({"main.py": "import x; print(x.y + 1)", "x.py": "y = 41"})).decode()
    body = {"runtime": "python", "code_archive": archive, "resources": {"timeout_s": 60}}
    answer = served.post("/v1/workloads", body, format="json")
    assert answer.status_code == 201, answer.json()
    found = answer.json()
    assert (found["status"], found["output"], found["isolation_used"]) == (
        "completed",
        42,
        "microvm",
    )
    assert found["resolution"]["rule"] == "source format archive → microvm"


@pytest.mark.parametrize("name", ["../x", "/etc/cron.d/x"])
def test_hostile_archive_over_http_is_a_400_that_names_the_field(served, name: str):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name))
    body = {"runtime": "python", "code_archive": b64encode(made.getvalue()).decode()}
    answer = served.post("/v1/workloads", body, format="json")
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert (error["attr"], "leads out" in error["detail"]) == ("code_archive", True)


def test_list_shows_the_active_layers(served):
    [info] = served.get("/v1/backends").json()
    assert info["healthy"] is True
    assert info["attributes"]["accelerator"] in ("kvm", "tcg")
    assert "/root" not in json.dumps(info)


def test_auto_routes_five_runtimes_to_three_healthy_backends(backend):
    require()
    with ExitStack() as stack:
        engine = started(stack, "busybox:test")
        registry = Registry()
        for name, one in (
            ("isolate", IsolateBackend()),
            ("gvisor", GVisorBackend(engine=engine.address)),
            ("microvm", backend),
        ):
            stack.callback(one.close)
            registry.register(name, one)
            registry.set_health(name, one, run_probe(one))
        assert [info.healthy for info in registry.list()] == [True, True, True]
        cat = {"image": "busybox:test", "command": ("cat",)}
        go = 'package main\nimport ("io"; "os")\nfunc main() { io.Copy(os.Stdout, os.Stdin) }'
        for runtime, target, source in (
            ("node", "isolate", {"code": "export default (x) => x"}),
            ("wasm", "isolate", {"code": wasm.ECHO}),
            ("python", "microvm", {"code": "print(input())"}),
            ("go", "microvm", {"code": go}),
            ("oci", "gvisor", cat),
        ):
            resources = Resources(timeout_s=60)
            spec = WorkloadSpec(
                runtime=runtime, input={"to": target}, resources=resources, **source
            )
            report = services.run(spec, registry=registry)
            assert (report.isolation_used, report.result.output) == (target, {"to": target})
