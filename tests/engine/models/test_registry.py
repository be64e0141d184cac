"""Laws of the registry: any sequence of loads, swaps and open leases keeps its promises."""

import threading
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from recserve.engine.models.registry import Lease, Registry
from recserve.engine.models.routing import Arm, Route, Shadow
from recserve.engine.models.states import LOADED, State
from recserve.errors import Conflict, Unavailable, UnknownModel

MODEL = "m"
VERSIONS = st.sampled_from(["v1", "v2", "v3", "v4"])


class FakeEngine:
    def __init__(self, version: str) -> None:
        self.version = version
        self.is_closed = False

    def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


def route_of(*versions: str, shadow: str = "") -> Route:
    arms = tuple(Arm(name=version, version=version) for version in versions)
    return Route(arms=arms, shadow=Shadow(version=shadow) if shadow else None)


class Machine(RuleBasedStateMachine):
    """What a careless operator could do, in any order, while batches are under way."""

    leases: Bundle[Lease[FakeEngine]] = Bundle("leases")

    @initialize()
    def begin(self) -> None:
        self.freed: list[str] = []
        self.registry: Registry[FakeEngine] = Registry(
            MODEL, on_freed=lambda model, version: self.freed.append(version)
        )
        self.engines: list[FakeEngine] = []
        self.open: list[Lease[FakeEngine]] = []
        self.n_routes = 0

    def load_one(self, version: str) -> None:
        self.registry.begin_load(MODEL, version)
        engine = FakeEngine(version)
        self.engines.append(engine)
        self.registry.finish_load(MODEL, version, engine)

    @rule(version=VERSIONS)
    def load(self, version: str) -> None:
        if self.registry.keep(MODEL, version):
            return
        self.load_one(version)
        assert self.registry.state(MODEL, version) is State.READY

    @rule(version=VERSIONS)
    def fail(self, version: str) -> None:
        before = self.registry.current(MODEL)
        if self.registry.keep(MODEL, version):
            with pytest.raises(Conflict):
                self.registry.begin_load(MODEL, version)
            return
        self.registry.begin_load(MODEL, version)
        with pytest.raises(Conflict):
            self.registry.begin_load(MODEL, version)
        self.registry.fail_load(MODEL, version, "BUNDLE_SHAPE", "broken")
        assert self.registry.state(MODEL, version) is State.FAILED
        assert self.registry.current(MODEL) is before, "a failed load changed what answers"

    @rule(versions=st.lists(VERSIONS, min_size=1, max_size=3, unique=True), shadow=VERSIONS | st.just(""))
    def swap(self, versions: list[str], shadow: str) -> None:
        before = self.registry.current(MODEL)
        route = route_of(*versions, shadow=shadow)
        if all(self.registry.state(MODEL, version) in LOADED for version in route.versions):
            self.registry.set_route(MODEL, route)
            self.n_routes += 1
            current = self.registry.current(MODEL)
            assert current is not None
            assert current.route == route
        else:
            with pytest.raises(Conflict):
                self.registry.set_route(MODEL, route)
            assert self.registry.current(MODEL) is before, "an impossible route changed what answers"

    @rule()
    def clear(self) -> None:
        self.registry.set_route(MODEL, None)

    @rule(version=VERSIONS)
    def unload(self, version: str) -> None:
        if not self.n_routes and not self.engines:
            return
        if self.registry.state(MODEL, version) in (State.ACTIVE, State.LOADING):
            with pytest.raises(Conflict):
                self.registry.unload(MODEL, version)
        else:
            self.registry.unload(MODEL, version)

    @rule(target=leases)
    def lease(self) -> Lease[FakeEngine] | object:
        try:
            lease = self.registry.lease()
        except Unavailable:
            assert self.registry.current(MODEL) is None
            return None
        self.open.append(lease)
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease[FakeEngine] | None) -> None:
        if lease is not None:
            self.open.remove(lease)
            lease.__exit__(None, None, None)

    @invariant()
    def leased_engines_are_open_and_of_one_route(self) -> None:
        for lease in self.open:
            assert set(lease.active.engines) == set(lease.route.versions)
            assert not any(engine.is_closed for engine in lease.active.engines.values())

    @invariant()
    def what_answers_is_active(self) -> None:
        current = self.registry.current(MODEL)
        active = set(current.route.versions) if current else set()
        for status in self.registry.models():
            assert {entry.version for entry in status.versions if entry.state is State.ACTIVE} == active

    @invariant()
    def exactly_the_loaded_versions_are_open(self) -> None:
        loaded = {
            entry.version
            for status in self.registry.models()
            for entry in status.versions
            if entry.state in LOADED
        }
        still_open = [engine.version for engine in self.engines if not engine.is_closed]
        assert sorted(still_open) == sorted(loaded), "leaked, or freed too early"
        assert len(self.freed) == len(self.engines) - len(still_open)

    @invariant()
    def a_draining_version_has_a_lease(self) -> None:
        leased = {version for lease in self.open for version in lease.route.versions}
        for status in self.registry.models():
            for entry in status.versions:
                assert entry.state is not State.DRAINING or entry.version in leased


TestRegistry = Machine.TestCase
TestRegistry.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_leases_and_swaps_on_many_threads() -> None:
    registry: Registry[FakeEngine] = Registry(MODEL)
    engines: list[FakeEngine] = []
    stop = threading.Event()
    wrong: list[str] = []

    def load(version: str) -> None:
        registry.begin_load(MODEL, version)
        engines.append(FakeEngine(version))
        registry.finish_load(MODEL, version, engines[-1])

    def ask() -> None:
        while not stop.is_set():
            with registry.lease() as lease:
                engine = lease.engine()
                if engine.is_closed or engine.version != lease.route.arms[0].version:
                    wrong.append(engine.version)

    load("v0")
    registry.set_route(MODEL, route_of("v0"))
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(1, 300):
        load(f"v{i}")
        registry.set_route(MODEL, route_of(f"v{i}"))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [engine.version for engine in engines if not engine.is_closed] == ["v299"]
    [status] = registry.models()
    assert [entry.version for entry in status.versions] == ["v299"], "old versions pile up"


def test_a_route_is_replaced_only_where_it_is_still_current() -> None:
    registry: Registry[FakeEngine] = Registry(MODEL)
    for version in ("v1", "v2"):
        registry.begin_load(MODEL, version)
        registry.finish_load(MODEL, version, FakeEngine(version))
    registry.set_route(MODEL, route_of("v1"))
    stale = registry.current(MODEL)
    registry.set_route(MODEL, route_of("v2"))
    assert not registry.set_route(MODEL, route_of("v1"), instead_of=stale)
    assert registry.routes() == {MODEL: ["v2"]}


def test_which_model_answers_a_request_without_a_name() -> None:
    registry: Registry[FakeEngine] = Registry()
    with pytest.raises(Unavailable, match="server is loading"):
        registry.lease()
    registry.serve_one("one", "v1", FakeEngine("v1"))
    registry.begin_load("two", "v1")
    with registry.lease() as lease:
        assert lease.active.model == "one", "a second model changed the default"
    with pytest.raises(UnknownModel, match="model is three; expected one of one, two"):
        registry.lease("three")
    with pytest.raises(Unavailable):
        registry.lease("two")
    registry.default_model = ""
    with pytest.raises(UnknownModel, match="model is not given"):
        registry.lease()


def test_only_the_newest_failures_are_remembered() -> None:
    registry: Registry[FakeEngine] = Registry(MODEL)
    for i in range(50):
        registry.begin_load(MODEL, f"v{i}")
        registry.fail_load(MODEL, f"v{i}", "BUNDLE_SHAPE", "broken")
    [status] = registry.models()
    assert [entry.version for entry in status.versions] == [f"v{i}" for i in range(30, 50)]


def test_the_last_lease_leaves_closing_to_others() -> None:
    waiting: list[Callable[[], None]] = []
    registry: Registry[FakeEngine] = Registry("model", run=waiting.append)
    first = FakeEngine("first")
    registry.serve_one("model", "first", first)
    with registry.lease():
        registry.serve_one("model", "second", FakeEngine("second"))
    assert not first.is_closed
    waiting.pop()()
    assert first.is_closed
