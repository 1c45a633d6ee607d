"""POST /v1/workloads: results, rejections and their responses."""

import base64
import io
import json
import re
import threading

import pytest
from django.test import override_settings
from rest_framework.test import APIClient

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.routing import RUNTIME_ALIASES, RUNTIMES
from backends_app.workloads import ExitReason, WorkloadResult

NODE = {"runtime": "node", "code": "export default (x) => x"}


def post(client: APIClient, body, **headers):
    """Post a body: a value as JSON, bytes unchanged."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/v1/workloads", data, content_type="application/json", headers=headers)


def test_a_result_has_the_documented_format(client):
    response = post(client, {**NODE, "runtime": "javascript", "input": {"a": [1]}})
    assert response.status_code == 201
    body = response.json()
    assert [*body] == [
        "id",
        "status",
        "runtime",
        "isolation",
        "isolation_used",
        "resolution",
        "node",
        "output",
        "stdout",
        "stderr",
        "stdout_truncated",
        "stderr_truncated",
        "stdout_encoding",
        "stderr_encoding",
        "exit_code",
        "signal",
        "exit_reason",
        "error",
        "duration_ms",
        "compile_ms",
        "cpu_time_ms",
        "memory_bytes",
        "created_at",
        "started_at",
        "finished_at",
    ]
    assert (body["status"], body["exit_reason"], body["exit_code"]) == ("completed", "exited", 0)
    assert (body["runtime"], body["isolation"]) == ("node", "auto")
    assert (body["isolation_used"], body["output"]) == ("isolate", {"a": [1]})
    assert body["resolution"]["rule"] == "runtime node → isolate"
    assert body["created_at"] <= body["started_at"] <= body["finished_at"]


def test_every_part_of_the_request_reaches_the_backend(client, fakes):
    archive = b"\x1f\x8b not looked at here"
    request = {
        "runtime": "python",
        "isolation": ["gvisor", "microvm"],
        "code_archive": base64.b64encode(archive).decode(),
        "command": ["python3", "-c", ""],
        "input": "in",
        "resources": {"cpus": 0.5, "mem_mb": 100, "timeout_s": 3},
    }
    assert post(client, request).status_code == 201
    [spec] = fakes["microvm"].workloads
    assert (spec.runtime, spec.archive, spec.command) == ("python", archive, ("python3", "-c", ""))
    assert (spec.input, spec.code, spec.image) == ("in", None, None)
    used = spec.resources
    assert (used.cpus, used.mem_mb, used.timeout_s) == (0.5, 100, 3.0)


def test_a_module_is_accepted_up_to_its_limit_in_its_own_bytes(client, fakes):
    def module(size: int) -> dict:
        return {"runtime": "wasm", "code": base64.encodebytes(bytes(size)).decode()}

    request = {**module(1024 * 1024), "command": ["one", ""]}
    assert post(client, request).status_code == 201
    [spec] = fakes["isolate"].workloads
    assert (spec.code, spec.command) == (request["code"], ("one", ""))
    [error] = post(client, module(1024 * 1024 + 1)).json()["errors"]
    assert (error["attr"], "bytes of the module" in error["detail"]) == ("code", True)


def test_an_image_needs_no_runtime(client, fakes):
    assert post(client, {"image": "busybox:1"}).json()["runtime"] == "oci"
    assert fakes["gvisor"].workloads[0].image == "busybox:1"


def test_a_program_that_fails_is_a_201(client, fakes):
    fakes["isolate"].program = lambda workload: WorkloadResult(
        exit_reason=ExitReason.TIMEOUT, signal="SIGKILL", stdout="so far", error="out of time"
    )
    body = post(client, NODE).json()
    assert (body["status"], body["exit_reason"], body["exit_code"]) == ("failed", "timeout", None)
    assert (body["signal"], body["stdout"]) == ("SIGKILL", "so far")


@pytest.mark.parametrize(
    ("change", "code", "attr"),
    [
        ({"code": None}, "null", "code"),
        ({"code": ""}, "blank", "code"),
        ({"code": 7}, "invalid", "code"),
        ({"code": ["x"]}, "invalid", "code"),
        ({"image": "busybox"}, "invalid", "code"),
        ({"code_archive": "AAAA"}, "invalid", "code"),
        ({"code": "x" * (1024 * 1024 + 1)}, "invalid", "code"),
        ({"runtime": None}, "null", "runtime"),
        ({"runtime": 7}, "invalid", "runtime"),
        ({"runtime": True}, "invalid", "runtime"),
        ({"runtime": "x" * 64}, "invalid", "runtime"),
        ({"runtime": ""}, "invalid", "runtime"),
        ({"runtime": " node "}, "runtime_not_supported", "runtime"),
        ({"isolation": None}, "null", "isolation"),
        ({"isolation": {}}, "invalid", "isolation"),
        ({"isolation": 7}, "invalid", "isolation"),
        ({"isolation": ""}, "invalid", "isolation"),
        ({"isolation": []}, "invalid", "isolation"),
        ({"isolation": [7]}, "invalid", "isolation"),
        ({"isolation": ["auto"]}, "invalid", "isolation"),
        ({"isolation": ["isolate"] * 2}, "invalid", "isolation"),
        ({"isolation": "nobody"}, "backend_not_registered", "isolation"),
        ({"isolation": "gvisor"}, "runtime_not_supported", "runtime"),
        ({"runtime": "cobol"}, "runtime_not_supported", "runtime"),
        ({"command": "ls"}, "not_a_list", "command"),
        ({"command": [1]}, "invalid", "command.0"),
        ({"command": ["x"] * 65}, "max_length", "command"),
        ({"command": ["x" * 4097]}, "max_length", "command.0"),
        ({"timeout": 3}, "unknown", "timeout"),
        ({"x" * 10_000: 3}, "unknown", None),
        ({"resources": None}, "null", "resources"),
        ({"resources": []}, "invalid", "resources.non_field_errors"),
        ({"resources": {"timeout": 3}}, "unknown", "resources.timeout"),
        ({"resources": {"timeout_s": -1}}, "invalid", "resources.timeout_s"),
        ({"resources": {"timeout_s": 0}}, "invalid", "resources.timeout_s"),
        ({"resources": {"timeout_s": 1e300}}, "invalid", "resources.timeout_s"),
        ({"resources": {"timeout_s": 10**300}}, "invalid", "resources.timeout_s"),
        ({"resources": {"timeout_s": True}}, "invalid", "resources.timeout_s"),
        ({"resources": {"timeout_s": "5"}}, "invalid", "resources.timeout_s"),
        ({"resources": {"timeout_s": None}}, "null", "resources.timeout_s"),
        ({"resources": {"timeout_s": [5]}}, "invalid", "resources.timeout_s"),
        ({"resources": {"mem_mb": 100.0}}, "invalid", "resources.mem_mb"),
        ({"resources": {"mem_mb": "100"}}, "invalid", "resources.mem_mb"),
        ({"resources": {"mem_mb": 10**300}}, "invalid", "resources.mem_mb"),
        ({"resources": {"cpus": 0}}, "invalid", "resources.cpus"),
        ({"resources": {"cpus": 1000}}, "invalid", "resources.cpus"),
        ({"input": "x" * (1024 * 1024)}, "invalid", "input"),
    ],
)
def test_an_invalid_field_is_400_and_named(client, fakes, change, code, attr):
    response = post(client, {**NODE, **change})
    assert response.status_code == 400
    body = response.json()
    assert body["type"] == "validation_error"
    [error] = body["errors"]
    assert error["code"] == code
    assert attr is None or error["attr"] == attr
    assert error["detail"]
    assert len(response.content) < 1000
    assert not any(fake.workloads for fake in fakes.values())


@pytest.mark.parametrize(
    "archive", ["no base64!", "AAA", "A", "AAAA\n", "ÄÄÄÄ", "_-_-", 7, ["AAAA"]]
)
def test_an_archive_is_base64(client, archive):
    response = post(client, {"runtime": "python", "code_archive": archive})
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == "code_archive"


def test_a_request_without_a_source_is_400(client):
    [error] = post(client, {"runtime": "node"}).json()["errors"]
    assert "exactly one of code, code_archive and image" in error["detail"]


def test_a_hundred_thousand_unknown_keys_give_a_short_response(client):
    response = post(client, {**NODE, **{f"key-{n}": n for n in range(100_000)}})
    assert response.status_code == 400
    assert len(response.json()["errors"]) == 10


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"not json",
        b'{"runtime": "node", "code": "1", "input": NaN}',
        b'{"runtime": "node", "code": "1", "input": -Infinity}',
        b'{"runtime": "node", "code": "1", "input": 1e999}',
        b'{"runtime": "node", "code": "1", "input": ' + b"9" * 5000 + b"}",
        b'{"runtime": "node", "code": "1", "input": ' + b"9" * 400 + b"}",
        b'{"runtime": "node", "code": "1", "code": "2"}',
        b'{"runtime": "node", "code": "1", "resources": {"cpus": 1, "cpus": 1}}',
        b'{"runtime": "node", "code": "\\u0000"}',
        b'{"runtime": "node", "code": "\\ud800"}',
        b'{"runtime": "node", "code": "1", "input": {"\\udfff": 1}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"null",
        b"true",
        b"7",
        b'"text"',
        b"[1]",
        b"[]",
        b"{}",
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_not_a_workload_is_400_in_the_envelope(client, body):
    response = post(client, body)
    assert response.status_code == 400
    assert response["Content-Type"] == "application/json"
    parsed = response.json()
    assert parsed["type"] in ("client_error", "validation_error")
    assert parsed["errors"]
    assert {*parsed["errors"][0]} == {"code", "detail", "attr"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "", "nonsense", "a/b/c"])
def test_another_content_type_is_415(client, content_type):
    response = client.generic("POST", "/v1/workloads", b"{}", content_type=content_type)
    assert response.status_code == 415
    assert response.json()["errors"][0]["code"] == "unsupported_media_type"


class Endless:
    """An endless body that counts the bytes read from it."""

    def __init__(self) -> None:
        self.taken = 0

    def read(self, size: int = -1) -> bytes:
        assert size > 0, "all of the body was wanted at once"
        self.taken += size
        return b" " * size

    readline = None
    close = list


@pytest.mark.parametrize("accept", ["application/json", "text/html"])
@pytest.mark.parametrize("announced", [20_000_000, 10**12])
def test_a_body_over_the_limit_is_413_and_not_read(client, accept, announced):
    body = Endless()
    response = client.generic(
        "POST",
        "/v1/workloads",
        b"",
        content_type="application/json",
        headers={"accept": accept},
        **{"CONTENT_LENGTH": str(announced), "wsgi.input": body},
    )
    assert response.status_code == 413
    assert b"payload_too_large" in response.content
    assert body.taken == 0


@pytest.mark.parametrize("path", ["/v1/nope", "/v1/backends", "/v1/workloads/"])
def test_every_path_checks_the_body_size(client, path):
    response = client.generic(
        "POST", path, b"", content_type="application/json", CONTENT_LENGTH="999999999"
    )
    assert response.status_code == 413


def test_a_form_over_the_limit_is_413(client):
    with override_settings(DATA_UPLOAD_MAX_MEMORY_SIZE=100):
        response = client.post("/v1/workloads", {"runtime": "node", "code": "x" * 1000})
    assert response.status_code == 413


def test_too_many_form_fields_are_400(client):
    body = "&".join(f"f{n}=1" for n in range(2000))
    response = client.post("/v1/workloads", body, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 400
    assert response.json()["errors"]


def test_a_chunked_body_is_411(client):
    response = post(client, NODE, **{"transfer-encoding": "chunked"})
    assert response.status_code == 411


def test_a_body_that_ends_early_is_400(client):
    from django.http import UnreadablePostError

    class Broken(io.BytesIO):
        def read(self, *args):
            raise UnreadablePostError("gone")

    response = client.generic(
        "POST",
        "/v1/workloads",
        b"",
        content_type="application/json",
        CONTENT_LENGTH="10",
        **{"wsgi.input": Broken()},
    )
    assert response.status_code == 400


def test_an_unavailable_backend_is_503_with_reason_and_retry_after(client, filled, fakes):
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("the cable is out"))
    response = post(client, NODE)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    [error] = response.json()["errors"]
    assert error["code"] == "backend_unavailable"
    assert "the cable is out" in error["detail"]
    assert "microvm" in error["detail"]


def test_a_fault_during_a_workload_is_503_and_shown_in_the_list(client, fakes):
    def program(workload):
        raise BackendUnavailable("it caught fire")

    fakes["isolate"].program = program
    assert post(client, NODE).status_code == 503
    isolate = client.get("/v1/backends").json()[1]
    assert (isolate["healthy"], isolate["health_description"]) == (False, "it caught fire")


def test_a_backend_at_capacity_is_429_with_retry_after(client, registry, filled, serve, token):
    inside, release = threading.Event(), threading.Event()

    def program(workload):
        inside.set()
        release.wait(60)

    filled.register("isolate", FakeBackend(program=program, max_concurrency=1), replace=True)
    from backends_app.execution import services
    from backends_app.workloads import WorkloadSpec

    spec = WorkloadSpec(runtime="node", code="1")
    thread = threading.Thread(target=services.run, args=[spec], kwargs={"registry": filled})
    thread.start()
    inside.wait(60)
    response = post(client, NODE)
    release.set()
    thread.join()
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
    assert response.json()["errors"][0]["code"] == "backend_at_capacity"
    assert post(client, NODE).status_code == 201


def test_running_a_workload_requires_a_user(serve, filled, db, user):
    client = serve(filled)
    response = post(client, NODE)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Token"
    assert response.json()["errors"][0]["code"] == "not_authenticated"
    for wrong in ("0" * 64, "x" * 5000, "\xff\xfe", "ä" * 64, "", "two words"):
        client.credentials(HTTP_AUTHORIZATION=f"Token {wrong}")
        assert post(client, NODE).status_code == 401
    client.credentials()
    client.force_login(user)
    assert post(client, NODE).status_code == 201


@pytest.mark.parametrize("cookie", ['"aaaaaaaaaaaa\\000"', "", "x" * 4000, "A" * 32, "a" * 33])
def test_an_invalid_session_cookie_never_reaches_the_database(
    serve, filled, db, django_assert_num_queries, cookie
):
    """PostgreSQL rejects NUL, which would be a 500."""
    with django_assert_num_queries(0):
        response = post(serve(filled), NODE, cookie=f"sessionid={cookie}")
    assert response.status_code == 401


def test_a_session_requires_its_csrf_token(serve, filled, user):
    serve(filled)
    client = APIClient(enforce_csrf_checks=True)
    client.force_login(user)
    response = post(client, NODE)
    assert response.status_code == 403
    assert "CSRF" in response.json()["errors"][0]["detail"]


def test_the_html_form_accepts_typed_values(client, fakes):
    form = {
        "runtime": "node",
        "isolation": "gvisor, isolate",
        "code": "1",
        "input": '{"a": 1}',
        "resources.timeout_s": "3",
        "resources.mem_mb": "",
        "image": "",
        "csrfmiddlewaretoken": "x",
    }
    for content in ("multipart", None):
        response = client.post("/v1/workloads", form, format=content)
        assert response.status_code == 201, response.content
        spec = fakes["isolate"].workloads[-1]
        assert (spec.isolation, spec.input) == (["gvisor", "isolate"], {"a": 1})
        assert (spec.resources.timeout_s, spec.resources.mem_mb) == (3.0, 256)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", "{"),
        ("input", "NaN"),
        ("input", "[" * 1000),
        ("resources.timeout_s", "soon"),
        ("resources.timeout_s", "nan"),
        ("resources.mem_mb", "9" * 900),
        ("resources.mem_mb", "1.5"),
        ("code", "a\x00b"),
        ("runtime", "x" * 64),
    ],
)
def test_invalid_form_values_are_400(client, field, value):
    response = client.post("/v1/workloads", {"runtime": "node", "code": "1", field: value})
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == field


@pytest.mark.parametrize(
    ("body", "attr", "code"),
    [
        ("runtime=node&code=1&code=2", "code", "duplicate"),
        ("runtime=node&code=1&colour=red", "colour", "unknown"),
        ("runtime=node&code=1&resources.colour=red", "resources.colour", "unknown"),
    ],
)
def test_a_form_is_as_strict_as_json(client, body, attr, code):
    response = client.post("/v1/workloads", body, content_type="application/x-www-form-urlencoded")
    assert response.status_code == 400
    [error] = response.json()["errors"]
    assert (error["attr"], error["code"]) == (attr, code)


def test_a_form_takes_the_command_as_a_line(client, fakes):
    commands = []
    fakes["microvm"].program = lambda workload: commands.append(workload.command)
    form = {"runtime": "python", "code": "1", "command": """python3 -c 'print("a b")' c"""}
    assert client.post("/v1/workloads", form).status_code == 201
    assert commands == [("python3", "-c", 'print("a b")', "c")]
    assert client.post("/v1/workloads", {**form, "command": " "}).status_code == 201
    assert commands[1:] == [()]
    for line in ("'a", "a " * 140_000):
        response = client.post("/v1/workloads", {**form, "command": line})
        assert (response.status_code, response.json()["errors"][0]["attr"]) == (400, "command")


def test_the_form_offers_the_runtimes_and_has_labels_in_words(client):
    page = client.get("/v1/workloads", headers={"accept": "text/html"}).content.decode()
    for runtime in (*RUNTIMES, *RUNTIME_ALIASES):
        assert f'<option value="{runtime}"' in page
    for label in ("Memory (MB)", "Time limit (seconds)", "Processors", "Command"):
        assert re.search(rf"<label[^>]*>\s*{re.escape(label)}\s*</label>", page), label
    assert re.search(r'<input name="command"[^>]* value=""', page)
    assert '<option value="node" selected' in page
    assert "Lists are not currently supported" not in page


@pytest.mark.parametrize(
    "field", ["code", "code_archive", "input", "runtime", "isolation", "command"]
)
def test_a_file_in_a_text_field_is_400(client, field):
    form = {"runtime": "node", "code": "1", field: io.BytesIO(b"1")}
    response = client.post("/v1/workloads", form, format="multipart")
    assert response.status_code == 400
    assert response.json()["errors"][0]["attr"] == field


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
def test_a_malformed_form_is_400(client, content_type):
    response = client.generic("POST", "/v1/workloads", b"hello", content_type=content_type)
    assert response.status_code == 400


def test_the_limits_of_the_settings_apply(client):
    with override_settings(ISOLATION_LIMITS={"timeout_s": {"default": 1, "max": 2}}):
        assert post(client, {**NODE, "resources": {"timeout_s": 3}}).status_code == 400
        assert post(client, NODE).status_code == 201
