"""Invalid settings name key and value; valid ones reach the registry."""

import pytest
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.test import override_settings

from backends_app import conf
from backends_app.backends.base import Backend
from backends_app.backends.fake import FakeBackend
from backends_app.registry import registry
from backends_app.workloads import Limits, ResourceRange

FAKE = "backends_app.backends.fake.FakeBackend"


def test_the_singleton_is_filled_from_the_settings():
    assert [*registry] == ["gvisor", "isolate", "microvm"]


def test_ready_a_second_time_changes_nothing():
    before = registry.snapshot
    apps.get_app_config("backends_app").ready()
    assert registry.snapshot is before


def test_override_settings_replaces_the_backends_and_closes_the_old_ones():
    with override_settings(ISOLATION_BACKENDS={"mine": {"BACKEND": FAKE}}):
        assert [*registry] == ["mine"]
        mine = registry.get("mine").backend
        with override_settings(ISOLATION_BACKENDS={}):
            assert [*registry] == []
            assert mine.closed
    assert [*registry] == ["gvisor", "isolate", "microvm"]


def test_backends_of_other_apps_survive_a_settings_change():
    theirs = FakeBackend()
    registry.register("theirs", theirs)
    try:
        with override_settings(ISOLATION_BACKENDS={"mine": {"BACKEND": FAKE}}):
            assert [*registry] == ["mine", "theirs"]
        assert registry.get("theirs").backend is theirs
        assert not theirs.closed
    finally:
        registry.unregister("theirs")


def test_options_reach_the_constructor():
    configured = {"mine": {"BACKEND": FAKE, "OPTIONS": {"max_concurrency": 7}}}
    with override_settings(ISOLATION_BACKENDS=configured):
        assert registry.get("mine").capabilities.max_concurrency == 7


def test_missing_settings_use_the_default_backends():
    with override_settings():
        from django.conf import settings

        del settings.ISOLATION_BACKENDS
        assert {*conf.load_backends()} == {"isolate", "gvisor", "microvm"}


def test_missing_route_keys_keep_their_defaults():
    with override_settings(ISOLATION_ROUTES={"runtimes": {"node": "microvm"}}):
        routes = registry.snapshot.routes
        assert routes.route("node", "code").target == "microvm"
        assert routes.route("wasm", "code").rule == "default → microvm"
        assert routes.route("wasm", "image").target == "gvisor"
    assert registry.snapshot.routes.route("node", "code").target == "isolate"


def test_missing_limit_keys_keep_their_defaults():
    with override_settings(ISOLATION_LIMITS={"timeout_s": {"max": 60}, "code_bytes": 10}):
        assert conf.limits().timeout_s == ResourceRange(default=10.0, min=0.1, max=60)
        assert conf.limits().code_bytes == 10
        assert conf.limits().mem_mb == Limits().mem_mb
    assert conf.limits() == Limits()


ISOLATE = "backends_app.backends.isolate.IsolateBackend"
GVISOR = "backends_app.backends.gvisor.GVisorBackend"
MICROVM = "backends_app.backends.microvm.MicroVMBackend"


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("BACKENDS", [], ["ISOLATION_BACKENDS", "[]", "dict"]),
        ("BACKENDS", {"a": FAKE}, ["['a']", "dict"]),
        ("BACKENDS", {7: {}}, ["7", "string"]),
        ("BACKENDS", {"a": {}}, ["['a']['BACKEND']", "None"]),
        ("BACKENDS", {"a": {"BACKEND": "no.such.Thing"}}, ["['a']['BACKEND']", "no.such.Thing"]),
        ("BACKENDS", {"a": {"BACKEND": f"{FAKE}Not"}}, ["['a']", "FakeBackendNot"]),
        ("BACKENDS", {"a": {"BACKEND": "os.sep"}}, ["['a']['BACKEND']", "os.sep"]),
        ("BACKENDS", {"a": {"BACKEND": FAKE, "OPTION": {}}}, ["['a']['OPTION']", "OPTIONS"]),
        ("BACKENDS", {"a": {"BACKEND": FAKE, "OPTIONS": []}}, ["['a']['OPTIONS']", "[]"]),
        (
            "BACKENDS",
            {"a": {"BACKEND": FAKE, "OPTIONS": {"poolsize": 3}}},
            ["['a']['OPTIONS']['poolsize']", "3", "max_concurrency"],
        ),
        ("BACKENDS", {"a": {"BACKEND": FAKE, "OPTIONS": {"max_concurrency": 0}}}, ["['a']", "0"]),
        (
            "BACKENDS",
            {"a": {"BACKEND": ISOLATE, "OPTIONS": {"max_concurrency": "4"}}},
            ["['a']['OPTIONS']['max_concurrency']", "'4'"],
        ),
        ("BACKENDS", {"a": {"BACKEND": ISOLATE, "OPTIONS": {"deno": 7}}}, ["['deno']", "7"]),
        (
            "BACKENDS",
            {"a": {"BACKEND": GVISOR, "OPTIONS": {"engine": "http://x"}}},
            ["['engine']", "http://x", "unix://"],
        ),
        ("BACKENDS", {"a": {"BACKEND": GVISOR, "OPTIONS": {"runtime": ""}}}, ["['runtime']"]),
        ("BACKENDS", {"a": {"BACKEND": MICROVM, "OPTIONS": {"qemu": None}}}, ["['qemu']", "None"]),
        ("BACKENDS", {"Bad Name": {"BACKEND": FAKE}}, ["'Bad Name'"]),
        ("BACKENDS", {"auto": {"BACKEND": FAKE}}, ["auto", "reserved"]),
        (
            "BACKENDS",
            {"a": {"BACKEND": "builtins.dict"}},
            ["['a']['BACKEND']", "derived from Backend"],
        ),
        ("ROUTES", {"runtime": {}}, ["['runtime']", "runtimes"]),
        ("ROUTES", {"runtimes": {"node": 7}}, ["['runtimes']['node']", "7"]),
        ("ROUTES", {"source_formats": []}, ["['source_formats']", "[]"]),
        ("ROUTES", {"runtimes": {"javascript": "isolate"}}, ["'javascript'", "name 'node'"]),
        ("ROUTES", {"runtimes": {"node": "Isolate!"}}, ["['node']", "Isolate!"]),
        ("ROUTES", {"source_formats": {"zip": "microvm"}}, ["['zip']", "archive"]),
        (
            "BACKENDS",
            {"a": {"BACKEND": ISOLATE, "OPTIONS": {"require_walls": 1}}},
            ["['a']['OPTIONS']['require_walls']", "1", "True or False"],
        ),
        ("ROUTES", {"default": None}, ["['default']", "None"]),
        ("LIMITS", {"timeout": 3}, ["['timeout']", "timeout_s"]),
        ("LIMITS", {"timeout_s": 3}, ["['timeout_s']", "3"]),
        ("LIMITS", {"timeout_s": {"max": "3"}}, ["['timeout_s']['max']", "'3'"]),
        ("LIMITS", {"timeout_s": {"max": -1}}, ["['timeout_s']['max']", "-1"]),
        ("LIMITS", {"timeout_s": {"most": 3}}, ["['timeout_s']['most']", "3"]),
        ("LIMITS", {"timeout_s": {"max": 3}}, ["['timeout_s']", "min <= default <= max"]),
        ("LIMITS", {"timeout_s": {"max": float("nan")}}, ["['max']", "nan"]),
        ("LIMITS", {"code_bytes": 0.5}, ["['code_bytes']", "0.5"]),
        ("LIMITS", {"code_bytes": True}, ["['code_bytes']", "True"]),
        ("RUNTIME_DIR", "relative", ["ISOLATION_RUNTIME_DIR", "relative"]),
        ("THROTTLE_RATES", {"user": "many"}, ["['user']", "'many'", "600/min"]),
        ("THROTTLE_RATES", {"host": "1/s"}, ["['host']", "user, address"]),
        ("METRICS", {"access": "all"}, ["['access']", "'all'", "open, token, off"]),
        ("METRICS", {"access": ["open"]}, ["['access']", "open, token, off"]),
        ("METRICS", {"tokens": "x"}, ["['tokens']", "access, token"]),
        ("METRICS", {"token": None}, ["['token']", "must be a string"]),
        ("REQUIRED_BACKENDS", "isolate", ["ISOLATION_REQUIRED_BACKENDS", "'isolate'", "list"]),
        ("REQUIRED_BACKENDS", ["isolate", "auto"], ["[1]", "'auto'", "reserved"]),
        ("RUNTIME_DIR", None, ["ISOLATION_RUNTIME_DIR", "None"]),
    ],
)
def test_an_invalid_setting_names_key_and_value_and_changes_nothing(setting, value, named):
    before = registry.snapshot
    with (
        pytest.raises(ImproperlyConfigured) as raised,
        override_settings(**{f"ISOLATION_{setting}": value}),
    ):
        pass
    for part in named:
        assert part in str(raised.value)
    assert [*registry] == [*before.entries]


def test_an_invalid_token_setting_does_not_reveal_the_token():
    with (
        pytest.raises(ImproperlyConfigured) as raised,
        override_settings(ISOLATION_METRICS={"token": b"hush"}),
    ):
        pass
    assert "hush" not in str(raised.value)
    assert "hush" not in repr(conf.MetricsAccess(token="hush"))


def test_a_bug_in_a_constructor_is_not_reported_as_an_invalid_setting():
    configured = {"a": {"BACKEND": f"{__name__}.Buggy"}}
    with pytest.raises(ZeroDivisionError), override_settings(ISOLATION_BACKENDS=configured):
        pass


class Buggy(Backend):
    def __init__(self) -> None:
        _ = 1 / 0
