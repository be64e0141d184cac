"""Canaries and shadows over real engines: what a caller gets, and what is counted behind it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recserve.engine import Request, Slate
from recserve.engine.engine import Engine
from recserve.engine.models.guard import Breach, GuardConfig
from recserve.engine.models.registry import Registry
from recserve.engine.models.router import Router
from recserve.engine.models.routing import Arm, Route, Shadow
from recserve.engine.models.shadow import overlap
from recserve.engine.ranked import slates
from recserve.engine.types import SlateItem
from recserve.errors import UnknownModel
from tests.engine.models.versions import is_of

MODEL = "shop"
GUARD = GuardConfig(min_requests=20)
SPLIT = Route(
    arms=(Arm(name="control", version="v1"), Arm(name="canary", version="v2")), salt="s", guard=GUARD
)


class Bench:
    """A router over v1 and v2 with a clock that stands still."""

    def __init__(self, folder: Path) -> None:
        self.registry: Registry[Engine] = Registry(MODEL)
        self.breaches: list[Breach] = []
        self.engines = {version: Engine.load(folder / version) for version in ("v1", "v2")}
        for version, engine in self.engines.items():
            self.registry.begin_load(MODEL, version)
            self.registry.finish_load(MODEL, version, engine)
        self.router = Router(
            self.registry,
            on_rollback=lambda model, breach: self.breaches.append(breach),
            clock=lambda: self.now,
        )
        self.now = 1000.0

    def ask(self, *users: str, **fields: Any) -> list[Slate]:
        answers: dict[int, Slate] = {}
        requests = [Request(user_id=user, k=5, **fields) for user in users]
        for rows, ranked in self.router.answer(requests, lambda: users):
            answers.update(zip(rows, slates(ranked), strict=True))  # type: ignore[arg-type]
        return [answers[i] for i in range(len(users))]

    def routed_to(self) -> list[str]:
        return self.registry.routes()[MODEL]


@pytest.fixture
def bench(versions_folder: Path) -> Iterator[Bench]:
    bench = Bench(versions_folder)
    yield bench
    bench.router.close()


def test_a_batch_is_divided_and_each_row_comes_from_its_arm(bench: Bench) -> None:
    bench.registry.set_route(MODEL, SPLIT)
    users = [f"user-{i}" for i in range(60)]
    found = bench.ask(*users)
    for user, slate in zip(users, found, strict=True):
        arm = SPLIT.arm_of(user)
        assert (slate.arm, slate.bundle_version) == (arm.name, arm.version)
        assert is_of(arm.version, [item.item_id for item in slate.items])
    assert {slate.arm for slate in found} == {"control", "canary"}
    assert bench.ask(*users[:5])[0].bundle_version == found[0].bundle_version


def test_who_is_in_haste_is_answered_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.set_route(MODEL, Route(arms=(Arm(version="v1"),)))
    monkeypatch.setattr(bench.engines["v1"], "in_haste", lambda deadlines: [1, 3])
    requests = [Request(user_id=f"user-{i}", k=3) for i in range(5)]
    answered = list(bench.router.answer(requests, list, deadlines=[math.inf] * 5))
    assert [rows for rows, _ in answered] == [[1, 3], [0, 2, 4]]
    assert all(len(answers) == len(rows) for rows, answers in answered)
    assert [rows for rows, _ in bench.router.answer(requests, list)] == [[0, 1, 2, 3, 4]]


def test_nobody_waits_for_a_long_text_of_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.set_route(MODEL, Route(arms=(Arm(version="v1"),)))
    monkeypatch.setattr(bench.engines["v1"], "better_alone", lambda requests: [3, 0] if requests else [])
    monkeypatch.setattr(bench.engines["v1"], "in_haste", lambda deadlines: [0] if len(deadlines) > 1 else [])
    requests = [Request(user_id=f"user-{i}", k=3) for i in range(5)]

    def turns(n: int, **asked: Any) -> list[list[int]]:
        return [rows for rows, _ in bench.router.answer(requests[:n], list, **asked)]

    assert turns(5) == [[1, 2, 4], [3], [0]]
    assert turns(5, deadlines=[math.inf] * 5) == [[1], [2, 4], [3], [0]]
    # In a brown-out no text is read.
    assert turns(5, degraded=True) == [[0, 1, 2, 3, 4]]
    monkeypatch.setattr(bench.engines["v1"], "better_alone", lambda requests: [0])
    assert turns(1, deadlines=[math.inf]) == [[0]]


def test_without_a_split_no_arm_is_named(bench: Bench) -> None:
    bench.registry.set_route(MODEL, Route(arms=(Arm(version="v1", variant="fp32"),)))
    [slate] = bench.ask("somebody")
    assert (slate.arm, slate.variant) == ("", "fp32")
    with pytest.raises(UnknownModel):
        list(bench.router.answer([Request()], lambda: [""], model="other"))


def known_users(bench: Bench) -> list[str]:
    engine = bench.engines["v1"]
    return [user for user in engine.user_ids() if engine.history(user)]


def test_a_canary_that_fails_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.set_route(MODEL, SPLIT)

    def fail(requests: object, **options: bool) -> None:
        raise RuntimeError("model broken")

    monkeypatch.setattr(bench.engines["v2"], "rank_each", fail)
    failures = 0
    for i in range(300):
        try:
            bench.ask(f"user-{i}")
        except RuntimeError:
            failures += 1
    [breach] = bench.breaches
    assert (breach.arm, breach.reason) == ("canary", "error_rate")
    assert failures <= GUARD.min_requests + 10
    assert bench.routed_to() == ["v1"]


def test_a_canary_that_is_slow_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.set_route(MODEL, SPLIT)
    for version, seconds in (("v1", 0.004), ("v2", 0.02)):
        engine = bench.engines[version]

        def slow(requests: Any, engine: Engine = engine, seconds: float = seconds, **options: bool) -> Any:
            bench.now += seconds
            return type(engine).rank_each(engine, requests)

        monkeypatch.setattr(engine, "rank_each", slow)
    for i in range(200):
        bench.ask(f"user-{i}")
    assert [breach.reason for breach in bench.breaches] == ["latency"]
    assert bench.routed_to() == ["v1"]


def test_a_canary_that_forgot_its_users_is_taken_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.set_route(MODEL, SPLIT)
    engine = bench.engines["v2"]
    monkeypatch.setattr(
        engine,
        "rank_each",
        lambda requests, **options: Engine.rank_each(
            engine, [Request(user_id="nobody", k=5) for _ in requests]
        ),
    )
    users = known_users(bench)
    for _ in range(4):
        bench.ask(*users)
    assert [breach.reason for breach in bench.breaches] == ["model_share"]


def test_a_good_canary_stays(bench: Bench) -> None:
    bench.registry.set_route(MODEL, SPLIT)
    for _ in range(10):
        bench.ask(*known_users(bench))
    assert bench.breaches == []
    assert bench.routed_to() == ["v1", "v2"]


def test_a_shadow_is_compared_and_never_answers(bench: Bench) -> None:
    route = Route(arms=(Arm(version="v1"),), shadow=Shadow(version="v1", share=0.25))
    bench.registry.set_route(MODEL, route)
    users = known_users(bench)[:40]
    assert all(slate.bundle_version == "v1" for slate in bench.ask(*users))
    bench.router.close()
    stats = bench.router.shadow.stats(MODEL, "v1")
    assert stats is not None
    assert (stats.compared, stats.same_first, stats.failed) == (10, 10, 0)
    assert stats.mean_overlap == 1


def test_a_shadow_that_differs_or_fails_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.registry.set_route(MODEL, Route(arms=(Arm(version="v1"),), shadow=Shadow(version="v2", share=1.0)))
    bench.ask("one", "two")
    bench.router.close()
    stats = bench.router.shadow.stats(MODEL, "v2")
    assert stats is not None
    assert (stats.compared, stats.mean_overlap, stats.same_first) == (2, 0.0, 0)


def test_a_shadow_that_fails_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(requests: object, **options: bool) -> None:
        raise RuntimeError("model broken")

    monkeypatch.setattr(bench.engines["v2"], "recommend_each", fail)
    bench.registry.set_route(MODEL, Route(arms=(Arm(version="v1"),), shadow=Shadow(version="v2", share=1.0)))
    assert len(bench.ask("one", "two", "three")) == 3
    bench.router.close()
    stats = bench.router.shadow.stats(MODEL, "v2")
    assert stats is not None
    assert (stats.compared, stats.failed) == (0, 3)


def test_overlap() -> None:
    def slate(*ids: str) -> Slate:
        return Slate(tuple(SlateItem(i, id_, 0.0) for i, id_ in enumerate(ids, 1)), "v", "fp32", "model")

    assert overlap(slate("a", "b"), slate("b", "c")) == 0.5
    assert overlap(slate(), slate()) == 1
    assert overlap(slate(), slate("a")) == 0
