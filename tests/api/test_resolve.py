"""GET /v1/resolve returns the decision without running, with the same errors as running."""

import pytest

from backends_app.backends.base import Health
from backends_app.workloads import SOURCE_FORMATS

CODE = {"code": "1"}
ARCHIVE = {"code_archive": "H4sIAAAAAAAAAw=="}
IMAGE = {"image": "busybox"}


def test_a_resolution_has_the_documented_format(client):
    response = client.get("/v1/resolve?runtime=typescript")
    assert response.status_code == 200
    assert response.json() == {
        "isolation": "auto",
        "runtime": "node",
        "source_format": "code",
        "backend": "isolate",
        "rule": "runtime node → isolate",
        "candidates": [
            {"name": "isolate", "eligible": True, "reason": "healthy"},
            {"name": "gvisor", "eligible": False, "reason": "runs oci only"},
            {"name": "microvm", "eligible": True, "reason": "healthy; not selected by the rule"},
        ],
    }


def test_comma_separated_names_are_an_order_of_preference(client):
    body = client.get("/v1/resolve?isolation=gvisor,microvm&runtime=node").json()
    assert (body["isolation"], body["backend"]) == (["gvisor", "microvm"], "microvm")


@pytest.mark.parametrize(
    ("query", "code", "attr"),
    [
        ("", "invalid", "runtime"),
        ("runtime=", "invalid", "runtime"),
        ("runtime=node&isolation=", "invalid", "isolation"),
        ("runtime=node&isolation=auto,isolate", "invalid", "isolation"),
        ("runtime=node&isolation=isolate,isolate", "invalid", "isolation"),
        ("runtime=node&isolation=,", "invalid", "isolation"),
        ("runtime=node&runtime=go", "invalid", "runtime"),
        ("runtim=node", "invalid", "runtim"),
        ("runtime=node&source_format=", "invalid", "source_format"),
        ("runtime=" + "x" * 5000, "invalid", "runtime"),
        ("runtime=cobol", "runtime_not_supported", "runtime"),
        ("runtime=%00", "runtime_not_supported", "runtime"),
        ("runtime=%ff", "runtime_not_supported", "runtime"),
        ("runtime=node&isolation=nobody", "backend_not_registered", "isolation"),
        ("runtime=node&isolation=gvisor", "runtime_not_supported", "runtime"),
        (
            "runtime=node&source_format=floppy",
            "source_format_not_supported",
            "source_format",
        ),
        (
            "runtime=node&isolation=isolate&source_format=archive",
            "source_format_not_supported",
            "source_format",
        ),
    ],
)
def test_an_unresolvable_request_is_400_with_its_field(client, query, code, attr):
    response = client.get(f"/v1/resolve?{query}")
    assert response.status_code == 400
    [error] = response.json()["errors"]
    assert (error["code"], error["attr"]) == (code, attr)
    assert len(error["detail"]) < 300


@pytest.mark.parametrize("state", [Health.ok(), Health.unhealthy("down"), Health.undetected("no")])
@pytest.mark.parametrize("isolation", ["auto", "isolate", "microvm", "nobody", "gvisor,nobody"])
@pytest.mark.parametrize(
    ("runtime", "source"),
    [("node", CODE), ("wasm", CODE), ("python", ARCHIVE), (None, IMAGE), ("cobol", CODE)],
)
def test_resolve_returns_the_same_error_as_running(
    client, filled, fakes, state, isolation, runtime, source
):
    for name, fake in fakes.items():
        filled.set_health(name, fake, state)
    names = isolation.split(",")
    request = {"isolation": names[0] if len(names) == 1 else names, **source}
    query = {"isolation": isolation, "source_format": _source_format(source)}
    if runtime is not None:
        request["runtime"] = query["runtime"] = runtime
    asked = client.get("/v1/resolve", query)
    ran = client.post("/v1/workloads", request, format="json")
    if asked.status_code == 200:
        assert ran.status_code == 201
        assert ran.json()["isolation_used"] == asked.json()["backend"]
        assert ran.json()["resolution"] == {
            key: asked.json()[key] for key in ("rule", "candidates")
        }
    else:
        assert asked.status_code == ran.status_code
        assert asked.headers.get("Retry-After") == ran.headers.get("Retry-After")
        body = asked.json()
        assert {one["name"] for one in body.pop("candidates")} >= set(fakes)
        assert body == ran.json()


def _source_format(source: dict[str, str]) -> str:
    names = dict(zip(["code", "code_archive", "image"], SOURCE_FORMATS, strict=True))
    return names[next(iter(source))]
