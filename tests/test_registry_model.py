"""The registry agrees with a plain dict after any sequence of operations."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import (
    BackendAlreadyRegistered,
    BackendNotRegistered,
    BackendUnavailable,
    RuntimeNotSupported,
    VulcanError,
)
from backends_app.registry import Registry

NAMES = st.sampled_from(["isolate", "gvisor", "microvm", "other"])
RUNTIMES = st.sampled_from(["node", "wasm", "python", "go", "oci", "cobol"])
HEALTHS = st.sampled_from([Health.ok(), Health.unhealthy("u"), Health.undetected("n")])
AUTO = {
    "node": "isolate",
    "wasm": "isolate",
    "oci": "gvisor",
    "python": "microvm",
    "go": "microvm",
    "cobol": "microvm",
}


class RegistryMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.model: dict[str, tuple[FakeBackend, bool]] = {}  # and whether it is eligible

    @rule(name=NAMES, runtimes=st.sets(RUNTIMES), replace=st.booleans())
    def register(self, name: str, runtimes: set[str], replace: bool) -> None:
        fake = FakeBackend(runtimes=sorted(runtimes))
        if name in self.model and not replace:
            with pytest.raises(BackendAlreadyRegistered):
                self.registry.register(name, fake)
        else:
            self.registry.register(name, fake, replace=replace)
            self.model[name] = (fake, True)

    @rule(name=NAMES)
    def unregister(self, name: str) -> None:
        if name in self.model:
            assert self.registry.unregister(name) is self.model.pop(name)[0]
        else:
            with pytest.raises(BackendNotRegistered):
                self.registry.unregister(name)

    @rule(name=NAMES, health=HEALTHS)
    def set_health(self, name: str, health: Health) -> None:
        fake = self.model[name][0] if name in self.model else FakeBackend()
        self.registry.set_health(name, fake, health)
        if name in self.model:
            self.model[name] = (fake, health.healthy is True)

    @rule(isolation=st.one_of(st.just("auto"), NAMES), runtime=RUNTIMES)
    def resolve(self, isolation: str, runtime: str) -> None:
        name = AUTO[runtime] if isolation == "auto" else isolation
        self.check(isolation, runtime, self.expected(name, runtime))

    @rule(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), runtime=RUNTIMES)
    def resolve_list(self, names: list[str], runtime: str) -> None:
        expected = [self.expected(name, runtime) for name in names]
        taken = [one for one in expected if isinstance(one, FakeBackend)]
        hopeful = [one for one in expected if one is BackendUnavailable]
        self.check(names, runtime, (taken or hopeful or expected)[0])

    def expected(self, name: str, runtime: str) -> FakeBackend | type[VulcanError]:
        if name not in self.model:
            return BackendNotRegistered
        fake, eligible = self.model[name]
        if runtime not in fake.capabilities.supported_runtimes:
            return RuntimeNotSupported
        return fake if eligible else BackendUnavailable

    def check(self, isolation, runtime: str, expected) -> None:
        explained = self.registry.explain(isolation, runtime)
        if isinstance(expected, FakeBackend):
            assert self.registry.resolve(isolation, runtime) is expected
            assert (explained.backend, explained.error) == (expected, None)
        else:
            with pytest.raises(expected):
                self.registry.resolve(isolation, runtime)
            assert explained.backend is None
            assert type(explained.error) is expected
        judged = {one.name: one.eligible for one in explained.candidates}
        for name in self.model:
            assert judged[name] is isinstance(self.expected(name, runtime), FakeBackend)

    @invariant()
    def they_agree(self) -> None:
        assert [*self.registry] == sorted(self.model)
        assert len(self.registry) == len(self.model)
        for info in self.registry.list():
            fake, eligible = self.model[info.name]
            assert info.capabilities is fake.capabilities
            assert (info.healthy is not False) is eligible


TestRegistryModel = RegistryMachine.TestCase
TestRegistryModel.settings = settings(max_examples=60, stateful_step_count=30)
