"""`resolve` raises the error that `explain` returns, and nothing is ever downgraded."""

import pytest

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import (
    BackendNotRegistered,
    BackendUnavailable,
    InvalidRequest,
    RuntimeNotSupported,
    SourceFormatNotSupported,
    VulcanError,
)
from backends_app.registry import Registry
from backends_app.routing import RouteTable


@pytest.mark.parametrize(
    ("runtime", "source_format", "target", "rule"),
    [
        ("node", "code", "isolate", "runtime node → isolate"),
        ("javascript", "code", "isolate", "runtime node → isolate"),
        ("typescript", "code", "isolate", "runtime node → isolate"),
        ("wasm", "code", "isolate", "runtime wasm → isolate"),
        ("python", "code", "microvm", "runtime python → microvm"),
        ("go", "code", "microvm", "runtime go → microvm"),
        ("oci", "image", "gvisor", "source format image → gvisor"),
        (None, "image", "gvisor", "source format image → gvisor"),
        ("python", "archive", "microvm", "source format archive → microvm"),
        ("node", "archive", "microvm", "source format archive → microvm"),
    ],
)
def test_auto_follows_the_route_table(
    filled: Registry, fakes, runtime, source_format, target, rule
):
    resolution = filled.explain("auto", runtime, source_format)
    assert (resolution.name, resolution.rule, resolution.error) == (target, rule, None)
    assert resolution.backend is fakes[target]
    assert filled.resolve("auto", runtime, source_format) is fakes[target]


def test_the_source_format_takes_precedence_over_the_runtime(filled: Registry):
    resolution = filled.explain("auto", "python", "image")
    assert resolution.rule == "source format image → gvisor"
    assert isinstance(resolution.error, RuntimeNotSupported)


def test_unrouted_runtimes_go_to_the_default_backend(filled: Registry):
    resolution = filled.explain("auto", "cobol")
    assert resolution.rule == "default → microvm"
    assert isinstance(resolution.error, RuntimeNotSupported)
    assert resolution.error.supported_by == ()


def test_every_candidate_has_a_reason(filled: Registry, fakes):
    filled.set_health("gvisor", fakes["gvisor"], Health.undetected("install runsc"))
    candidates = filled.explain("auto", "node").candidates
    assert [(one.name, one.eligible, one.reason) for one in candidates] == [
        ("isolate", True, "healthy"),
        ("gvisor", False, "runs oci only"),
        ("microvm", True, "healthy; not selected by the rule"),
    ]
    candidates = filled.explain("auto", None, "image").candidates
    assert candidates[0].reason == "undetected: install runsc"


def test_checks_run_in_order_registered_runtime_format_health(registry: Registry):
    def error(runtime: str, source_format: str) -> VulcanError | None:
        return registry.explain("it", runtime, source_format).error

    assert isinstance(error("python", "archive"), BackendNotRegistered)
    it = FakeBackend(runtimes=["node"], source_formats=["code"])
    registry.register("it", it)
    registry.set_health("it", it, Health.unhealthy("broken"))
    assert isinstance(error("python", "archive"), RuntimeNotSupported)
    assert isinstance(error("node", "archive"), SourceFormatNotSupported)
    assert isinstance(error("node", "code"), BackendUnavailable)
    registry.set_health("it", it, Health.ok())
    assert error("node", "code") is None


def test_errors_carry_their_evidence(filled: Registry, fakes):
    runtime = filled.explain("gvisor", "node").error
    assert isinstance(runtime, RuntimeNotSupported)
    assert (runtime.name, runtime.runtime) == ("gvisor", "node")
    assert (runtime.supported, runtime.supported_by) == (("oci",), ("isolate", "microvm"))
    source_format = filled.explain("isolate", "node", "archive").error
    assert isinstance(source_format, SourceFormatNotSupported)
    assert (source_format.supported, source_format.supported_by) == (("code",), ("microvm",))
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("no pulse"))
    down = filled.explain("isolate", "node").error
    assert isinstance(down, BackendUnavailable)
    assert (down.name, down.reason, down.eligible) == ("isolate", "no pulse", ("microvm",))
    assert "no pulse" in str(down)
    assert "microvm" in str(down)


@pytest.mark.parametrize("state", [Health.undetected("not here"), Health.unhealthy("broken")])
def test_auto_never_downgrades(filled: Registry, fakes, state: Health):
    filled.set_health("isolate", fakes["isolate"], state)
    with pytest.raises(BackendUnavailable) as raised:
        filled.resolve("auto", "node")
    assert raised.value.eligible == ("microvm",)


def test_with_everything_down_auto_is_unavailable(filled: Registry, fakes):
    for name, fake in fakes.items():
        filled.set_health(name, fake, Health.unhealthy("power cut"))
    for runtime, source_format in [("node", "code"), ("go", "code"), (None, "image")]:
        error = filled.explain("auto", runtime, source_format).error
        assert isinstance(error, BackendUnavailable)
        assert error.eligible == ()


def test_unknown_health_is_eligible(registry: Registry):
    fake = FakeBackend()
    registry.register("isolate", fake)
    assert registry.resolve("auto", "node") is fake
    assert registry.explain("auto", "node").candidates[0].reason == "not probed yet"


def test_the_first_eligible_backend_of_a_list_is_chosen(filled: Registry, fakes):
    both = ["isolate", "microvm"]
    assert filled.resolve(both, "node") is fakes["isolate"]
    assert filled.resolve(tuple(reversed(both)), "node") is fakes["microvm"]
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("down"))
    assert filled.resolve(both, "node") is fakes["microvm"]
    assert filled.resolve(["nobody", "gvisor", "microvm"], "node") is fakes["microvm"]
    resolution = filled.explain(["microvm", "isolate"], "node")
    assert resolution.rule == "first eligible of microvm, isolate"


def test_a_backend_outside_the_list_is_never_chosen(filled: Registry, fakes):
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("down"))
    error = filled.explain(["gvisor", "isolate"], "node").error
    assert isinstance(error, BackendUnavailable)
    assert error.name == "isolate"
    assert error.eligible == ("microvm",)
    error = filled.explain(["nobody", "gvisor"], "node").error
    assert isinstance(error, BackendNotRegistered)


def test_a_later_backend_of_the_list_names_the_reason(filled: Registry):
    candidates = filled.explain(["isolate", "microvm"], "node").candidates
    assert candidates[1].reason == "healthy; a preferred backend was selected"


@pytest.mark.parametrize(
    ("isolation", "runtime", "source_format", "field"),
    [
        ("", "node", "code", "isolation"),
        ([], "node", "code", "isolation"),
        (["auto"], "node", "code", "isolation"),
        (["isolate", "isolate"], "node", "code", "isolation"),
        (["isolate", 7], "node", "code", "isolation"),
        (["a"] * 17, "node", "code", "isolation"),
        (None, "node", "code", "isolation"),
        (7, "node", "code", "isolation"),
        (b"isolate", "node", "code", "isolation"),
        ("x" * 10_000, "node", "code", "isolation"),
        ("auto", "", "code", "runtime"),
        ("auto", None, "code", "runtime"),
        ("auto", 7, "code", "runtime"),
        ("auto", "x" * 10_000, "code", "runtime"),
        ("auto", "node", "", "source_format"),
        ("auto", "node", None, "source_format"),
    ],
)
def test_a_malformed_request_is_explained_and_raised_alike(
    filled: Registry, isolation, runtime, source_format, field
):
    error = filled.explain(isolation, runtime, source_format).error
    assert isinstance(error, InvalidRequest)
    assert error.field == field
    assert len(str(error)) < 300
    with pytest.raises(InvalidRequest):
        filled.resolve(isolation, runtime, source_format)


def test_an_unknown_source_format_is_refused_by_the_target(filled: Registry):
    error = filled.explain("auto", "python", "floppy").error
    assert isinstance(error, SourceFormatNotSupported)
    assert error.supported == ("code", "archive")


def test_routes_can_be_replaced(fakes):
    routes = RouteTable(source_formats={}, runtimes={"node": "microvm"}, default="isolate")
    registry = Registry(routes)
    for name, fake in fakes.items():
        registry.register(name, fake)
    assert registry.resolve("auto", "node") is fakes["microvm"]
    assert registry.resolve("auto", "wasm") is fakes["isolate"]
    assert [route.rule for route in routes] == ["runtime node → microvm", "default → isolate"]


def test_an_error_over_a_thousand_backends_is_fast(registry: Registry):
    """Quadratic work would take minutes here."""
    for number in range(1000):
        registry.register(f"backend-{number}", FakeBackend(runtimes=["go"]))
    error = registry.explain("backend-7", "node").error
    assert isinstance(error, RuntimeNotSupported)
