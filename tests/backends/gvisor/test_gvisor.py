"""The gVisor backend with a real engine and a real runsc: the environment of programs."""

import json
import re
import threading
import time

import pytest

from backends_app.backends.gvisor import GVisorBackend
from backends_app.exceptions import InvalidOption, InvalidRequest
from backends_app.workloads import ExitReason, Resources, Status, WorkloadSpec
from tests.backends.contract import BackendContract, Programs, kill_after_output
from tests.backends.gvisor.conftest import IMAGE, OUTPUT_BYTES
from tests.backends.gvisor.engines import TestEngine, of_another_processor

SHELL_AS_PYTHON = {"python": {"image": IMAGE, "command": ["sh", "{file}"]}}


def command(*arguments: str) -> dict[str, object]:
    return {"image": IMAGE, "command": arguments}


class TestContractOfImages(BackendContract):
    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="oci",
            echo=command("cat"),
            fails=command("sh", "-c", "echo boom >&2; exit 3"),
            nothing=command("true"),
        )


class TestContractOfMappedRuntimes(BackendContract):
    @pytest.fixture
    def backend(self, shared) -> GVisorBackend:
        return shared(runtimes=SHELL_AS_PYTHON)

    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="python",
            echo={"code": "cat"},
            fails={"code": "echo boom >&2; exit 3"},
            nothing={"code": "true"},
        )


class TestContractOfThePool(TestContractOfMappedRuntimes):
    @pytest.fixture
    def backend(self, make) -> GVisorBackend:
        return make(runtimes=SHELL_AS_PYTHON, pool={IMAGE: 2})


def test_kernel_is_gvisors(run):
    result = run("uname -r; dmesg | head -1")
    assert result.stdout.startswith("4.4.0\n")
    assert "Starting gVisor..." in result.stdout


def test_probe_reports_versions_and_options(backend: GVisorBackend):
    found = backend.probe()
    assert found.state == "healthy"
    assert re.match(r"\d+\.\d+", found.attributes["engine_version"])
    assert re.match(r"\d", found.attributes["runsc_version"])
    assert found.attributes["runsc_platform"]
    assert found.attributes["network"] == "none"


def test_images_own_command_is_the_default(engine: TestEngine, backend):
    engine.image("own:1", ['CMD ["echo", "own"]'])
    engine.image("entry:1", ['ENTRYPOINT ["echo", "entry"]', 'CMD ["own"]'])
    for image, command, printed in (
        ("own:1", (), "own\n"),
        ("own:1", ("echo", "given"), "given\n"),
        ("entry:1", (), "entry own\n"),
        ("entry:1", ("given",), "entry given\n"),
    ):
        spec = WorkloadSpec(runtime="oci", image=image, command=command)
        assert backend.run(spec).stdout == printed


def test_warm_container_takes_any_command(engine: TestEngine, make):
    engine.image("entry:1", ['ENTRYPOINT ["echo", "entry"]', 'CMD ["own"]'])
    backend = make(pool={"entry:1": 1, IMAGE: 1})
    odd = ("echo", "a'b", 'c"d', "e\nf", "$g `h` \\i", "", "*", "-n", "ü")
    for _ in range(2):  # without and with a warm container
        own = backend.run(WorkloadSpec(runtime="oci", image="entry:1"))
        assert own.stdout == "entry own\n"
        result = backend.run(WorkloadSpec(runtime="oci", image=IMAGE, command=odd))
        assert result.stdout == " ".join(odd[1:]) + "\n"
        wait_for_spares(backend, 2)


def wait_for_spares(backend: GVisorBackend, count: int) -> None:
    deadline = time.monotonic() + 30
    while len(backend.warm_container_ids()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_warm_container_is_used_once(make):
    backend = make(pool={IMAGE: 1})
    write = WorkloadSpec(
        runtime="oci", image=IMAGE, command=("sh", "-c", "cat /tmp/*; echo mine >/tmp/x")
    )
    for _ in range(3):
        assert backend.run(write).stdout == ""
        wait_for_spares(backend, 1)


def test_removed_or_killed_warm_containers_affect_no_workload(engine: TestEngine, make):
    backend = make(pool={IMAGE: 2})
    spec = WorkloadSpec(runtime="oci", image=IMAGE, command=("cat",), input=1)
    assert backend.run(spec).output == 1
    wait_for_spares(backend, 2)
    client = engine.client()
    for number, spare in enumerate(backend.warm_container_ids()):
        if number:
            client.kill(spare)
        else:
            client.remove_container(spare, force=True)
    client.close()
    assert backend.run(spec).output == 1


def test_image_without_a_shell_is_served_without_the_pool(engine: TestEngine, make):
    engine.image("bare:1", shell=False)
    backend = make(pool={"bare:1": 1})
    spec = WorkloadSpec(runtime="oci", image="bare:1", command=("cat",), input=[1])
    for _ in range(2):
        assert backend.run(spec).output == [1]


def test_streams_are_separate_and_bounded(run):
    result = run("echo out; echo err >&2; yes | head -c 60000; yes | head -c 60000 >&2; exit 4")
    assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, 4)
    assert result.stdout.startswith("out\ny\n")
    assert result.stderr.startswith("err\ny\n")
    assert result.stdout_truncated
    assert result.stderr_truncated
    assert len(result.stdout) < 2 * OUTPUT_BYTES


def test_partial_output_survives_a_timeout(run):
    result = run("echo partial; sleep 100", timeout_s=1)
    assert (result.exit_reason, result.stdout) == (ExitReason.TIMEOUT, "partial\n")
    assert result.status is Status.FAILED


def test_signal_is_named(run):
    result = run("kill -SEGV $$")
    assert (result.exit_reason, result.signal) == (ExitReason.SIGNAL, "SIGSEGV")
    assert result.exit_code is None


def test_closed_streams_are_not_the_end(run):
    result = run("exec >&- 2>&-; sleep 1; exit 4")
    assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, 4)


def test_unstartable_image_is_a_failed_workload(engine: TestEngine, run):
    engine.image("bare:1", shell=False)
    result = run(("nope",))
    assert (result.status, result.exit_reason, result.exit_code) == (
        Status.FAILED,
        ExitReason.EXITED,
        127,
    )
    assert result.error == "exec nope failed: No such file or directory"
    assert run("true", image="bare:1").exit_code == 127
    assert run(("/etc",)).exit_code == 126
    own = run((), image="bare:1")
    assert (own.exit_code, own.error) == (126, "the image cannot be started, or has no command")


def test_figures_come_from_the_kernel(run):
    idle, busy = run("true"), run("x=0; while [ $x -lt 200000 ]; do x=$((x+1)); done")
    assert idle.cpu_time_ms is not None
    assert busy.cpu_time_ms > idle.cpu_time_ms + 100
    assert busy.duration_ms >= 100
    large = run("dd if=/dev/zero of=/tmp/x bs=1M count=50 2>/dev/null")
    assert large.memory_bytes > idle.memory_bytes + 40 * 2**20


def test_running_workload_is_observed_and_killed(backend: GVisorBackend):
    spec = WorkloadSpec(
        runtime="oci",
        image=IMAGE,
        command=("sh", "-c", "echo begun; sleep 999"),
        resources=Resources(timeout_s=60),
    )
    result = kill_after_output(backend, spec)
    assert (result.status, result.exit_reason) == (Status.KILLED, ExitReason.KILLED)
    assert result.stdout == "begun\n"


def test_user_is_never_root_unless_allowed(engine: TestEngine, make):
    users = {"none": "", "root": "USER root", "zero": "USER 0:0", "named": "USER toor"}
    users |= {"own": "USER 1234:77", "group": "USER 1234:0", "alone": "USER 1234"}
    users |= {"large": "USER 4294967296", "huge": f"USER {'9' * 5000}", "sign": "USER +0"}
    for tag, change in users.items():
        engine.image(f"user:{tag}", [change] if change else [])
    backend = make(root_images=["docker.io/library/user:zero"])

    def who(tag: str) -> str:
        spec = WorkloadSpec(runtime="oci", image=f"user:{tag}", command=("id",))
        return re.sub(r" groups=.*", "", backend.run(spec).stdout.strip())

    found = {tag: who(tag) for tag in users}
    nobody = "uid=65534 gid=65534"
    nobodies = ("none", "root", "named", "large", "huge", "sign")
    assert found == dict.fromkeys(nobodies, nobody) | {
        "zero": "uid=0 gid=0",
        "own": "uid=1234 gid=77",
        "group": "uid=1234 gid=65534",
        "alone": "uid=1234 gid=65534",
    }


def test_user_name_is_resolved_by_the_image(engine: TestEngine, make):
    files = {
        "etc/passwd": "root:x:0:0::/:\nadmin:x:0:5::/:\napp:x:1001:1002::/:\nlow:x:1003:0::/:\n"
        "bad\nwide:x:99999999999:7::/:\napp:x:1:1::/:\n",
        "etc/group": "root:x:0:\nstaff:x:50:app\napp:x:1002:\n",
    }
    users = {
        "app": "uid=1001 gid=1002",
        "app:staff": "uid=1001 gid=50",
        "app:77": "uid=1001 gid=77",
        "app:root": "uid=1001 gid=65534",
        "app:none": "uid=1001 gid=65534",
        "1001": "uid=1001 gid=1002",
        "1234": "uid=1234 gid=65534",
        "low": "uid=1003 gid=65534",
        "root": "uid=65534 gid=65534",
        "admin": "uid=65534 gid=65534",
        "0": "uid=65534 gid=65534",
        "wide": "uid=65534 gid=65534",
        "bad": "uid=65534 gid=65534",
        "none": "uid=65534 gid=65534",
    }
    backend = make()
    for number, (user, expected) in enumerate(users.items()):
        engine.image(f"named:{number}", [f"USER {user}", 'VOLUME ["/data"]'], files=files)
        spec = WorkloadSpec(runtime="oci", image=f"named:{number}", command=("id",))
        found = re.sub(r"\(.*?\)| groups=.*", "", backend.run(spec).stdout.strip())
        assert found == expected, user
    assert engine.containers() == []  # including those that were only read
    client = engine.client()
    assert not client.volumes()["Volumes"]
    client.close()


def test_image_for_another_processor_is_rejected_before_it_runs(
    engine: TestEngine, backend: GVisorBackend
):
    client = engine.client()
    list(client.load_image(of_another_processor("other:1")))
    client.close()
    with pytest.raises(InvalidRequest, match=r"is for linux/arm64, but this server runs linux/amd"):
        backend.run(WorkloadSpec(runtime="oci", image="other:1"))


def test_shared_memory_works(run):
    result = run("dd if=/dev/zero of=/dev/shm/x bs=1M count=48 2>/dev/null; wc -c </dev/shm/x")
    assert result.stdout == f"{48 * 2**20}\n"


def test_shell_reads_the_input_as_a_line(run):
    assert run("while read line; do echo got $line; done", input=[1]).stdout == "got [1]\n"


def test_bytes_that_are_not_utf8_set_the_encoding(run):
    result = run("printf 'a\\377'; echo ä >&2")
    assert (result.stdout, result.stdout_encoding) == ("a\ufffd", "utf-8-lossy")
    assert (result.stderr, result.stderr_encoding) == ("ä\n", "utf-8")


def test_error_is_set_for_code_but_not_for_images(make):
    backend = make(runtimes=SHELL_AS_PYTHON)
    fails = "echo first >&2; echo 'ValueError: boom' >&2; exit 3"
    assert backend.run(WorkloadSpec(runtime="python", code=fails)).error == "ValueError: boom"
    spec = WorkloadSpec(runtime="oci", image=IMAGE, command=("sh", "-c", fails))
    assert backend.run(spec).error == ""


@pytest.mark.parametrize(
    ("runtime", "own", "expected"),
    [
        ("python", (), "PYTHONUNBUFFERED=1"),
        ("node", (), "NODE_OPTIONS=--max-old-space-size=192"),
        ("node", ("ENV NODE_OPTIONS=--title=x",), "NODE_OPTIONS=--title=x"),
    ],
)
def test_runtime_gets_its_limits_by_its_environment(
    engine: TestEngine, make, runtime, own, expected
):
    engine.image("told:1", own)
    backend = make(runtimes={runtime: {"image": "told:1", "command": ["sh", "{file}"]}})
    result = backend.run(WorkloadSpec(runtime=runtime, code="env"))
    assert expected in result.stdout.splitlines()


@pytest.mark.parametrize(
    ("runtime", "reason"),
    [("node", ExitReason.MEMORY_LIMIT), ("python", ExitReason.SIGNAL)],
)
def test_abort_on_a_full_heap_is_a_memory_limit(make, runtime, reason):
    backend = make(runtimes={runtime: {"image": IMAGE, "command": ["sh", "{file}"]}}, disk_mb=220)
    fill = "dd if=/dev/zero of=/tmp/x bs=1M count=190 2>/dev/null; "
    assert (
        backend.run(WorkloadSpec(runtime=runtime, code=f"{fill} kill -ABRT $$")).exit_reason
        is reason
    )
    result = backend.run(WorkloadSpec(runtime=runtime, code="kill -ABRT $$"))
    assert (result.exit_reason, result.signal) == (ExitReason.SIGNAL, "SIGABRT")


def test_writable_folders_of_an_image_are_limited(engine: TestEngine, make):
    engine.image("volume:1", ['VOLUME ["/data/", "/data", "/a/../b//c", "/./d"]'])
    backend = make(disk_mb=2)
    folders = "/data /b/c /d /tmp"
    script = f"for f in {folders}; do dd if=/dev/zero of=$f/x bs=1M count=9; done; ls -s {folders}"
    spec = WorkloadSpec(runtime="oci", image="volume:1", command=("sh", "-c", script))
    result = backend.run(spec)
    assert result.stderr.count("No space left on device") == 4
    assert result.stdout.count("2048 x\n") == 4
    client = engine.client()
    assert not client.volumes()["Volumes"]
    client.close()


def test_invalid_request_does_not_affect_others(run, backend: GVisorBackend):
    assert run("nproc", cpus=1000).exit_code == 0
    # Docker 20.10 rejects a registry's IPv6 address; 26 accepts it, but has no such image.
    with pytest.raises(InvalidRequest, match=r"does not accept the name|is not on this host"):
        run("true", image="[::1]:5000/x")
    # Docker creates no container of less than 6 MB; the image stays usable.
    assert run("true", mem_mb=1).error == "the image cannot be started, or has no command"
    assert run("true").exit_code == 0


def test_code_requires_an_image_for_its_runtime(make):
    backend = make(runtimes=SHELL_AS_PYTHON)
    for given, field in (
        ({"runtime": "oci", "code": "cat"}, "image"),
        ({"runtime": "python", "code": "cat", "command": ("ls",)}, "command"),
        ({"runtime": "oci", "image": IMAGE, "command": ("a\0b",)}, "command"),
        ({"runtime": "oci", "image": IMAGE, "command": ("\ud800",)}, "command"),
        ({"runtime": "oci", "image": IMAGE, "command": ("x" * 200_000,)}, "command"),
        ({"runtime": "oci", "image": "unknown:1"}, "image"),
    ):
        with pytest.raises(InvalidRequest) as raised:
            backend.run(WorkloadSpec(**given))
        assert raised.value.field == field
    assert "pull: never" in raised.value.reason


def test_code_with_any_bytes_is_delivered(make):
    backend = make(runtimes={"python": {"image": IMAGE, "command": ["wc", "-c", "{file}"]}})
    for code in ("", "x", "ü\n'$(id)'\n" * 1000, "y" * 1_000_000):
        result = backend.run(WorkloadSpec(runtime="python", code=code, input=1))
        assert result.stdout == f"{len(code.encode())} /tmp/main.py\n"


def test_resources_are_limits_of_the_engine(engine: TestEngine, backend: GVisorBackend):
    spec = WorkloadSpec(
        runtime="oci",
        image=IMAGE,
        command=("sleep", "999"),
        resources=Resources(cpus=0.5, mem_mb=100, timeout_s=60),
    )
    assert backend.probe().healthy  # so that its smoke container is not the first one found
    thread = threading.Thread(target=backend.run, args=[spec])
    thread.start()
    client = engine.client()
    while not (found := client.containers(filters={"label": "vulcan.owner", "status": "running"})):
        time.sleep(0.02)
    made = client.inspect_container(found[0]["Id"])
    client.close()
    while thread.is_alive():
        backend.kill(spec.id)
        thread.join(0.05)
    host = made["HostConfig"]
    assert host["Runtime"] == "runsc"
    assert host["NanoCpus"] == 500_000_000
    assert host["Memory"] == host["MemorySwap"] == 100 * 2**20
    assert host["PidsLimit"] == 512
    assert host["ReadonlyRootfs"]
    assert host["NetworkMode"] == "none"
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["LogConfig"]["Type"] == "none"
    assert not host["Privileged"]
    assert not made["Mounts"] or all(one["Type"] == "tmpfs" for one in made["Mounts"])
    assert json.dumps(made["Config"]["Labels"]).count("vulcan.") == 3


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("engine", "http://x"),
        ("engine", ""),
        ("runtime", 1),
        ("runtimes", ["python"]),
        ("runtimes", {"ruby": "ruby:3"}),
        ("runtimes", {"python": "-v/:/h"}),
        ("runtimes", {"python": {"image": IMAGE, "command": "sh {file}"}}),
        ("runtimes", {"python": {"image": IMAGE, "command": ["sh"]}}),
        ("allow", "busybox"),
        ("allow", ["busybox"]),
        ("allow", ["*/x"]),
        ("root_images", ["*"]),
        ("pull", "always"),
        ("pull", "missing"),
        ("pool", {IMAGE: -1}),
        ("pool", {"Not An Image": 1}),
        ("pool", [IMAGE]),
        ("network", None),
        ("disk_mb", 0),
        ("pids", 10),
        ("max_concurrency", 0),
    ],
)
def test_invalid_options_are_rejected(option: str, value):
    with pytest.raises(InvalidOption) as raised:
        GVisorBackend(**{option: value})
    assert raised.value.option == option


def test_network_option_gives_a_warning():
    assert [one.id for one in GVisorBackend(network="bridge").check()] == [
        "backends_app.gvisor.W002"
    ]
