"""System checks report suspicious configurations with an id, without touching the host."""

from django.core.checks import CheckMessage, run_checks
from django.test import override_settings

from backends_app.backends.fake import FakeBackend
from backends_app.checks import check_isolation
from backends_app.conf import DEFAULT_BACKENDS
from backends_app.registry import Registry


def ids(registry: Registry) -> list[str]:
    return [message.id for message in check_isolation(None, registry=registry)]


def test_the_default_configuration_is_clean():
    with override_settings(ISOLATION_BACKENDS=DEFAULT_BACKENDS):  # an `.env` may change it
        assert run_checks(tags=["isolation"]) == []


def test_the_check_is_registered():
    routes = {"default": "nowhere"}
    with override_settings(ISOLATION_BACKENDS=DEFAULT_BACKENDS, ISOLATION_ROUTES=routes):
        assert [message.id for message in run_checks(tags=["isolation"])] == ["backends_app.W001"]


def test_routes_to_unregistered_backends_are_one_warning_per_target(filled: Registry):
    filled.unregister("microvm")
    [message] = check_isolation(None, registry=filled)
    assert message.id == "backends_app.W001"
    for part in ("'microvm'", "runtime python → microvm", "default → microvm"):
        assert part in message.msg
    assert "gvisor, isolate" in message.hint


def test_an_empty_registry_is_one_warning(registry: Registry):
    assert ids(registry) == ["backends_app.W002"]


def test_an_unregistered_required_backend_is_a_warning(filled: Registry, settings):
    settings.ISOLATION_REQUIRED_BACKENDS = ["isolate", "elsewhere"]
    [message] = check_isolation(None, registry=filled)
    assert message.id == "backends_app.W003"
    assert "'elsewhere'" in message.msg


def test_the_checks_of_a_backend_are_included(filled: Registry):
    class Suspicious(FakeBackend):
        def check(self) -> list[CheckMessage]:
            return [CheckMessage(30, "hm", id="backends_app.suspicious.W001")]

    filled.register("other", Suspicious())
    assert ids(filled) == ["backends_app.suspicious.W001"]


def test_an_engine_over_plain_tcp_is_a_warning_without_its_password():
    gvisor = "backends_app.backends.gvisor.GVisorBackend"
    options = {"engine": "tcp://someone:secret@127.0.0.1:2375"}
    with override_settings(ISOLATION_BACKENDS={"gvisor": {"BACKEND": gvisor, "OPTIONS": options}}):
        messages = run_checks(tags=["isolation"])
    assert "backends_app.gvisor.W001" in [message.id for message in messages]
    assert "secret" not in " ".join(str(message) for message in messages)
