"""Answers that are given again: the same as computed ones, never out of date unless that is asked for."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle.rules import Rules
from recserve.engine.ranked import Ranked
from recserve.engine.slate_cache import CACHE, STALE_TIMES, SlateCache
from recserve.engine.types import DEGRADED_CACHE, DEGRADED_MODEL, Slate
from recserve.errors import ConfigError

SECONDS = 10.0
ASKED = Request(user_id="u", k=3, context={"country": "DE"})
OTHERS = [
    Request(user_id="v", k=3, context={"country": "DE"}),
    replace(ASKED, k=4),
    replace(ASKED, history=[]),
    replace(ASKED, exclude=["a"]),
    replace(ASKED, context={"country": "FR"}),
    replace(ASKED, filter="price < 3"),
    replace(ASKED, weights={"click": 1.0}),
    replace(ASKED, include_seen=True),
]


def without_times(slates: list[Slate]) -> list[Slate]:
    return [replace(slate, stage_ns={}, slate_id="") for slate in slates]


@pytest.fixture
def caching(bundle_folder: Path) -> Iterator[Engine]:
    with Engine.load(bundle_folder, EngineConfig(cache_slates=100, cache_seconds=600)) as engine:
        yield engine


class Backend:
    """Computes answers that tell how often it was asked, under a clock of the test's."""

    def __init__(self, a_ranked: Ranked, limit: int = 100) -> None:
        self.ranked, self.now, self.computed = a_ranked, 0.0, 0
        self.cache = SlateCache(limit, SECONDS, lambda: self.now)

    def compute(self, rows: list[int]) -> list[Ranked]:
        self.computed += len(rows)
        return [self.ranked] * len(rows)

    def ask(self, *requests: Request, state: bytes | None = b"", stale: bool = False) -> list[Ranked]:
        return self.cache.answer(requests, [state] * len(requests), self.compute, stale=stale)


@pytest.fixture
def backend(engine: Engine) -> Backend:
    [answer] = engine.rank_each([Request(k=3)])
    assert isinstance(answer, Ranked)
    return Backend(answer)


def test_answers_are_those_of_an_engine_that_keeps_none(engine: Engine, caching: Engine) -> None:
    users = list(engine.user_ids())[:5]
    requests = [Request(user_id=user, k=k) for user in [*users, "nobody", ""] for k in (1, 7)]
    expected = without_times(engine.recommend_many(requests))
    first, second = caching.recommend_many(requests), caching.recommend_many(requests)
    assert without_times(first) == without_times(second) == expected
    assert all(list(slate.stage_ns) == [CACHE] for slate in second)
    assert len({slate.slate_id for slate in first + second}) == 2 * len(requests)
    assert caching.stats()["cached"] == len(requests)
    assert caching.stats()["requests"] == 2 * len(requests)


def test_an_event_makes_the_answer_new(caching: Engine) -> None:
    user = caching.user_ids()[0]
    [best] = caching.recommend(Request(user_id=user, k=1)).items
    caching.observe(user_id=user, item_id=best.item_id)
    [next_best] = caching.recommend(Request(user_id=user, k=1)).items
    assert next_best.item_id != best.item_id
    assert caching.stats()["cached"] == 0


def test_the_same_request_is_computed_once_a_batch(caching: Engine) -> None:
    request = Request(user_id=caching.user_ids()[0], k=5)
    slates = caching.recommend_many([request, Request(k=2), request])
    assert caching.stats()["cached"] == 1
    assert slates[0].items == slates[2].items != slates[1].items
    assert slates[0].slate_id != slates[2].slate_id


def test_what_explains_or_pages_is_computed_each_time(caching: Engine) -> None:
    user = caching.user_ids()[0]
    for request in (Request(user_id=user, explain="fast"), Request(user_id=user, page_token="")):
        assert caching.recommend_many([request, request])[0].items
    assert caching.stats()["cached"] == 0


def test_requests_that_differ_have_answers_of_their_own(backend: Backend) -> None:
    backend.ask(ASKED, *OTHERS)
    assert backend.computed == 1 + len(OTHERS)
    backend.ask(*OTHERS, replace(ASKED))
    assert backend.computed == 1 + len(OTHERS)


def test_long_arrays_that_differ_in_the_middle_are_different(backend: Backend) -> None:
    excluded = np.array([f"i{item}" for item in range(5000)])
    other = excluded.copy()
    other[2500] = "x"
    backend.ask(replace(ASKED, exclude=excluded), replace(ASKED, exclude=other))
    assert backend.computed == 2


def test_an_answer_is_given_again_until_its_time_is_over(backend: Backend) -> None:
    backend.ask(ASKED)
    backend.now = SECONDS - 1
    backend.ask(ASKED)
    assert backend.computed == 1
    backend.now = SECONDS
    backend.ask(ASKED)
    assert backend.computed == 2


def test_under_a_brown_out_an_old_answer_is_better_than_none(backend: Backend) -> None:
    backend.ask(ASKED)
    [same] = backend.ask(ASKED, stale=True)
    assert same.degraded == ()
    [after_an_event] = backend.ask(ASKED, state=b"clicked", stale=True)
    backend.now = 2 * SECONDS
    [late] = backend.ask(ASKED, stale=True)
    assert after_an_event.degraded == late.degraded == (DEGRADED_CACHE,)
    assert backend.computed == 1
    backend.now = (STALE_TIMES + 1) * SECONDS
    backend.ask(OTHERS[0], stale=True)
    assert len(backend.cache) == 1  # the old one is gone, whoever asks


def test_degraded_answers_and_those_of_erased_users_are_not_kept(backend: Backend) -> None:
    backend.ask(ASKED, state=None)
    backend.ranked = replace(backend.ranked, degraded=(DEGRADED_MODEL,))
    backend.ask(ASKED, stale=True)
    assert len(backend.cache) == 0
    assert backend.computed == 2


def test_slates_with_items_that_chance_drew_are_drawn_again(caching: Engine) -> None:
    drawn = Request(k=5, rules=Rules(quotas={"model": 1, "explore": 1}))
    caching.recommend(drawn)
    assert any(item.source == "explore" for item in caching.recommend(drawn).items)
    assert caching.stats()["cached"] == 0


def test_an_erasure_forgets_all_answers(caching: Engine) -> None:
    users = list(caching.user_ids())[:2]
    requests = [Request(user_id=user, k=2) for user in users]
    caching.recommend_many(requests)
    caching._observed.erase(users[0])
    erased, other = caching.recommend_many(requests)
    assert erased.source == "popularity"
    assert other.source == "model"
    assert caching.stats()["cached"] == 0


def test_the_oldest_answers_make_room(engine: Engine, backend: Backend) -> None:
    small = Backend(backend.ranked, limit=3)
    small.ask(ASKED, *OTHERS)
    assert len(small.cache) == 3


@pytest.mark.parametrize("wrong", [{"cache_slates": -1}, {"cache_seconds": 0.0}, {"cache_seconds": 1e6}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        EngineConfig(**wrong)  # type: ignore[arg-type]
