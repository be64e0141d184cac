"""What is left out of a slate so that it is in time: the decision by itself, and what the slate is then."""

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine import Engine, InvalidRequest, Pin, Request, Rules, Slate
from recserve.engine.client import RecommenderClient
from recserve.engine.ranked import Ranked, slates
from recserve.engine.server.config import ServerConfig
from recserve.engine.time_budget import SKIPPED_FIRST, StageCosts, deadlines_of, stages_to_skip
from tests.engine.server.conftest import running

law = settings(deadline=None, max_examples=100, derandomize=True)
DIVERSE = Rules(rerank="mmr", diversity=0.8, novelty=0.3, caps={"category": 2})


@law
@given(
    st.integers(-100, 3000),
    st.dictionaries(st.sampled_from(SKIPPED_FIRST), st.integers(1, 1000)),
)
def test_no_more_is_skipped_than_must_be(left: int, expected: dict[str, int]) -> None:
    skipped = stages_to_skip(left, expected)
    wanted = [stage for stage in SKIPPED_FIRST if stage in expected]
    assert list(skipped) == wanted[: len(skipped)]
    kept = [expected[stage] for stage in wanted[len(skipped) :]]
    assert sum(kept) <= left or not kept
    if skipped:
        assert sum(kept) + expected[skipped[-1]] > left


def test_costs_are_moving_averages_per_row() -> None:
    costs = StageCosts()
    assert costs.expected("rank", 8) == 0
    costs.record("rank", 4, 4000)
    assert costs.expected("rank", 8) == 8000
    costs.record("rank", 1, 2000)
    assert costs.expected("rank", 1) == pytest.approx(1200)


def test_who_is_late_after_all_stages_is_in_haste() -> None:
    costs = StageCosts()
    assert costs.in_haste([5.0, 9.0], now=4.0) == []
    costs.record("unskipped", 1, 0.3e9)
    costs.record("rank", 1, 0.3e9)
    # Three rows of 0.6 s.
    assert costs.in_haste([5.0, math.inf, 5.9], now=4.0) == [0]
    assert costs.in_haste([5.0, math.inf, 5.9], now=4.5) == [0, 2]
    assert costs.in_haste([5.0, 5.1, 5.9], now=4.5) == []


def test_budgets_begin_now() -> None:
    assert deadlines_of([Request(), Request()], now=7.0) == ()
    assert deadlines_of([Request(budget_ms=250), Request()], now=7.0) == [7.25, math.inf]


@pytest.fixture(scope="module")
def two_stages(two_stage_folder: Path) -> Iterator[Engine]:
    with Engine.load(two_stage_folder) as engine:
        yield engine


def asked(engine: Engine, **fields: object) -> Request:
    return Request(user_id=engine.user_ids()[1], k=8, **fields)  # type: ignore[arg-type]


def late(engine: Engine, *requests: Request) -> list[Slate]:
    answers = engine.rank_each(requests, deadlines=[time.monotonic() - 1] * len(requests))
    return slates([answer for answer in answers if isinstance(answer, Ranked)])


def contents(slate: Slate) -> list[tuple[str, float]]:
    return [(item.item_id, pytest.approx(item.score, abs=1e-4)) for item in slate.items]


def test_a_late_slate_is_that_of_the_stages_it_keeps(two_stages: Engine) -> None:
    pin = Pin(two_stages.recommend(Request(k=30)).items[-1].item_id, 3)
    rules = Rules(rerank="mmr", diversity=0.8, novelty=0.3, caps={"category": 2}, pins=[pin])
    [slate] = late(two_stages, asked(two_stages, rules=rules, explain="fast"))
    assert slate.degraded == ("explain", "rerank", "rank")
    assert {"rank", "explain"}.isdisjoint(slate.stage_ns)
    plain = Rules(caps={"category": 2}, pins=[pin])
    kept = two_stages.recommend(asked(two_stages, rules=plain, predict="retrieval"))
    assert contents(slate) == contents(kept)
    assert slate.items[2].item_id == pin.item_id
    assert all(item.explanation is None for item in slate.items)
    assert kept.degraded == ()


def test_only_what_is_asked_for_is_named(two_stages: Engine) -> None:
    requests = [
        asked(two_stages),
        asked(two_stages, predict="retrieval"),
        asked(two_stages, rules=DIVERSE, predict="retrieval"),
        asked(two_stages, explain="fast", predict="retrieval"),
    ]
    found = late(two_stages, *requests)
    assert [slate.degraded for slate in found] == [("rank",), (), ("rerank",), ("explain",)]


def test_what_costs_too_much_is_given_up_and_no_more(
    two_stages: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = asked(two_stages, rules=DIVERSE, explain="fast")
    hour_ns = 3.6e12
    costs = {"explain": hour_ns, "rerank": 1.0, "rank": 1.0}
    monkeypatch.setattr(StageCosts, "expected", lambda self, stage, n_rows: costs[stage])
    slate = two_stages.recommend(asked(two_stages, rules=DIVERSE, explain="fast", budget_ms=600_000))
    assert slate.degraded == ("explain",)
    assert contents(slate) == contents(two_stages.recommend(full))
    costs["rerank"] = hour_ns
    assert two_stages.recommend(
        asked(two_stages, rules=DIVERSE, explain="fast", budget_ms=600_000)
    ).degraded == ("explain", "rerank")
    # Who has time gets everything, in the same batch.
    in_time, hasty = two_stages.recommend_many([full, asked(two_stages, rules=DIVERSE, budget_ms=600_000)])
    assert (in_time.degraded, hasty.degraded) == ((), ("rerank",))
    assert contents(in_time) == contents(two_stages.recommend(full))


def test_a_page_has_one_deadline(two_stages: Engine) -> None:
    rows = {"a": asked(two_stages), "b": asked(two_stages, rules=DIVERSE)}
    page = slates(two_stages.rank_page(rows, deadline=time.monotonic() - 1))
    assert [slate.degraded for slate in page] == [("rank",), ("rerank", "rank")]
    items = [item.item_id for slate in page for item in slate.items]
    assert len(set(items)) == 16


def test_the_budget_travels(two_stages: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageCosts, "expected", lambda self, stage, n_rows: 3.6e12)
    with running(ServerConfig(port=0, default_deadline_ms=20_000)) as server:
        server.serve(two_stages)
        with RecommenderClient(server.address, timeout=60) as client:
            slate = client.recommend(asked(two_stages, explain="fast", budget_ms=50_000))
            assert slate.degraded == ("explain", "rank")
            # The call's own deadline does the same.
            assert client.recommend(asked(two_stages)).degraded == ("rank",)
            [many] = client.recommend_many([asked(two_stages)])
            assert isinstance(many, Slate)
            assert many.degraded == ("rank",)
            assert client.recommend_page({"a": asked(two_stages)})["a"].degraded == ("rank",)


@pytest.mark.parametrize("budget", [0, -5, 1.5, True, 3_600_001])
def test_a_budget_that_is_none_is_refused(two_stages: Engine, budget: int) -> None:
    with pytest.raises(InvalidRequest, match=r"budget_ms is .*; expected a whole number from 1 to 3600000"):
        two_stages.recommend(Request(budget_ms=budget))
