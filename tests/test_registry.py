"""The registry holds its backends, and rejects invalid ones with clear errors."""

from contextlib import suppress

import pytest
from django.core.exceptions import ImproperlyConfigured

from backends_app.backends.base import Backend, BackendCapabilities, Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import (
    BackendAlreadyRegistered,
    BackendNotRegistered,
    BackendUnavailable,
    InvalidBackend,
    InvalidBackendName,
    ResolutionError,
    RuntimeNotSupported,
)
from backends_app.registry import BackendInfo, Registry
from backends_app.routing import RouteTable

ROUTES = [
    ("node", "isolate"),
    ("wasm", "isolate"),
    ("python", "microvm"),
    ("go", "microvm"),
    ("oci", "gvisor"),
]


def test_the_empty_registry_lists_nothing_and_resolves_nothing(registry: Registry):
    assert registry.list() == []
    assert list(registry) == []
    assert len(registry) == 0
    with pytest.raises(BackendNotRegistered):
        registry.resolve("auto", "node")


def test_list_returns_every_backend_with_its_capabilities_by_name(registry: Registry):
    for name in ("microvm", "gvisor", "isolate"):
        registry.register(name, FakeBackend(name=name.upper()))
    infos = registry.list()
    assert [info.name for info in infos] == ["gvisor", "isolate", "microvm"]
    assert all(isinstance(info, BackendInfo) for info in infos)
    assert [info.capabilities.name for info in infos] == ["GVISOR", "ISOLATE", "MICROVM"]
    assert {(info.detected, info.healthy) for info in infos} == {(None, None)}


def test_a_change_of_the_returned_list_does_not_change_the_registry(filled: Registry):
    filled.list().clear()
    assert len(filled.list()) == 3


def test_explicit_resolve_looks_up_by_name(filled: Registry, fakes):
    assert filled.resolve("microvm", "node") is fakes["microvm"]


def test_explicit_resolve_of_an_unregistered_backend_names_the_registered(filled: Registry):
    with pytest.raises(BackendNotRegistered) as raised:
        filled.resolve("firecracker", "node")
    assert raised.value.name == "firecracker"
    assert raised.value.registered == ("gvisor", "isolate", "microvm")
    assert "firecracker" in str(raised.value)
    assert "gvisor, isolate, microvm" in str(raised.value)


@pytest.mark.parametrize(("runtime", "target"), ROUTES)
def test_auto_maps_every_runtime(filled: Registry, fakes, runtime: str, target: str):
    source_format = "image" if runtime == "oci" else "code"
    assert filled.resolve("auto", runtime, source_format) is fakes[target]


@pytest.mark.parametrize(("runtime", "target"), ROUTES)
def test_auto_with_the_target_missing_is_an_error(filled: Registry, runtime: str, target: str):
    filled.unregister(target)
    source_format = "image" if runtime == "oci" else "code"
    with pytest.raises(BackendNotRegistered) as raised:
        filled.resolve("auto", runtime, source_format)
    assert raised.value.name == target


def test_a_change_invalidates_cached_resolutions(filled: Registry, fakes):
    assert filled.resolve("auto", "node") is fakes["isolate"]
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("down"))
    with pytest.raises(BackendUnavailable):
        filled.resolve("auto", "node")
    filled.unregister("isolate")
    with pytest.raises(BackendNotRegistered):
        filled.resolve("auto", "node")


def test_a_decision_is_made_once_and_shared_by_resolve_and_explain(filled: Registry, fakes):
    decision = filled.explain("auto", "node")
    assert filled.explain("auto", "node") is decision
    assert filled.snapshot.decide("auto", "node", "code") is decision
    assert filled.resolve("auto", "node") is decision.backend is fakes["isolate"]


def test_decisions_differ_by_isolation_runtime_and_source_format(filled: Registry, fakes):
    for _ in range(2):
        assert filled.resolve("microvm", "node") is fakes["microvm"]
        assert filled.resolve("isolate", "node") is fakes["isolate"]
        assert filled.resolve("auto", "node", "archive") is fakes["microvm"]
        assert filled.resolve("auto", "node") is fakes["isolate"]
        assert filled.explain("auto", "typescript").runtime == "node"


@pytest.mark.parametrize("decide", [Registry.resolve, Registry.explain])
def test_decisions_that_callers_can_make_without_end_are_not_kept(filled: Registry, decide):
    names = ["isolate", "microvm"]
    for number in range(100):
        for isolation, runtime, source_format in (
            ("isolate", f"runtime-{number}", "code"),
            (f"backend-{number}", "node", "code"),
            ("isolate", "node", f"format-{number}"),
            ([*names, f"backend-{number}"], "node", "code"),
            ((*names, f"backend-{number}"), "node", "code"),
        ):
            with suppress(ResolutionError):
                decide(filled, isolation, runtime, source_format)
    assert filled.snapshot.decisions == {}


def test_an_error_is_made_anew_each_time_it_is_raised(filled: Registry):
    errors = []
    for _ in range(2):
        with pytest.raises(RuntimeNotSupported) as raised:
            filled.resolve("isolate", "cobol")
        errors.append(raised.value)
    assert errors[0] is not errors[1]  # a shared one would collect the tracebacks of all callers


def test_a_second_registration_of_a_name_is_refused_and_changes_nothing(filled: Registry, fakes):
    with pytest.raises(BackendAlreadyRegistered) as raised:
        filled.register("isolate", FakeBackend())
    assert raised.value.name == "isolate"
    assert isinstance(raised.value, ImproperlyConfigured)
    assert filled.resolve("isolate", "node") is fakes["isolate"]


def test_replace_registers_the_new_backend_with_unknown_health(filled: Registry):
    other = FakeBackend()
    filled.register("isolate", other, replace=True)
    assert filled.resolve("isolate", "node") is other
    assert filled.get("isolate").health == Health.unknown()


def test_unregister_returns_the_backend_and_a_second_one_is_an_error(filled: Registry, fakes):
    assert filled.unregister("isolate") is fakes["isolate"]
    assert "isolate" not in filled
    with pytest.raises(BackendNotRegistered):
        filled.unregister("isolate")


def test_membership_and_iteration_are_by_name(filled: Registry):
    assert "gvisor" in filled
    assert "nothing" not in filled
    assert [*filled] == ["gvisor", "isolate", "microvm"]


def test_iteration_is_stable_during_a_change(filled: Registry):
    for name in filled:
        filled.unregister(name)
    assert len(filled) == 0


@pytest.mark.parametrize("name", ["a", "a1-b", "x" * 63])
def test_valid_names_are_accepted(registry: Registry, name: str):
    registry.register(name, FakeBackend())
    assert name in registry


@pytest.mark.parametrize("name", ["", "A", "1a", "-a", "a_b", "a b", "ä", "a\n", "x" * 64, 7, None])
def test_invalid_names_are_refused_with_the_rule(registry: Registry, name):
    with pytest.raises(InvalidBackendName, match="lower-case"):
        registry.register(name, FakeBackend())


def test_auto_is_reserved(registry: Registry):
    with pytest.raises(InvalidBackendName, match="reserved"):
        registry.register("auto", FakeBackend())


def test_an_object_that_is_not_a_backend_is_refused(registry: Registry):
    class NoCapabilities(Backend):
        pass

    class NoMethods:
        capabilities = FakeBackend().capabilities

    for impostor in (object(), FakeBackend, NoCapabilities(), NoMethods()):
        with pytest.raises(InvalidBackend):
            registry.register("impostor", impostor)
    assert len(registry) == 0


def test_set_health_returns_true_only_for_changes(filled: Registry, fakes):
    before = filled.get("isolate")
    assert not filled.set_health("isolate", fakes["isolate"], Health.ok())
    assert filled.get("isolate") is before
    assert filled.set_health("isolate", fakes["isolate"], Health.unhealthy("gone"))
    assert filled.get("isolate").changed_at >= before.changed_at
    assert filled.list()[1].health_description == "gone"


def test_set_health_of_a_replaced_instance_is_dropped(filled: Registry, fakes):
    filled.register("isolate", FakeBackend(), replace=True)
    assert not filled.set_health("isolate", fakes["isolate"], Health.unhealthy("old"))
    assert not filled.set_health("nobody", fakes["isolate"], Health.ok())
    assert filled.get("isolate").health == Health.unknown()


def test_a_snapshot_is_immutable(filled: Registry):
    snapshot = filled.snapshot
    filled.unregister("isolate")
    assert "isolate" in snapshot.entries
    assert snapshot.decide("isolate", "node").error is None
    with pytest.raises(TypeError):
        snapshot.entries["x"] = None


def test_replace_configured_keeps_backends_of_others(filled: Registry, fakes):
    mine, new = fakes["isolate"], FakeBackend()
    filled.replace_configured(add={"new": new}, remove={"isolate": mine})
    assert [*filled] == ["gvisor", "microvm", "new"]
    with pytest.raises(BackendAlreadyRegistered):
        filled.replace_configured(add={"gvisor": new}, remove={"new": new})
    assert [*filled] == ["gvisor", "microvm", "new"]


def test_replace_configured_keeps_a_replacement(filled: Registry, fakes):
    theirs = FakeBackend()
    filled.register("isolate", theirs, replace=True)
    filled.replace_configured(add={"isolate": FakeBackend()}, remove={"isolate": fakes["isolate"]})
    assert filled.get("isolate").backend is theirs


def test_set_routes_keeps_the_backends_and_their_health(filled: Registry, fakes):
    filled.set_routes(RouteTable(runtimes={"node": "microvm"}))
    assert filled.resolve("auto", "node") is fakes["microvm"]
    assert filled.list()[0].healthy


@pytest.mark.parametrize(
    "wrong",
    [
        {"supported_runtimes": "node"},
        {"supported_runtimes": [1]},
        {"max_concurrency": 0},
        {"max_concurrency": True},
        {"max_concurrency": 1.5},
    ],
)
def test_invalid_capabilities_are_refused(wrong):
    good = {"name": "x", "supported_runtimes": ["node"], "supported_isolations": ["x"]}
    BackendCapabilities(**good)
    with pytest.raises((TypeError, ValueError)):
        BackendCapabilities(**{**good, **wrong})
