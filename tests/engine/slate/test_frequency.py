"""Frequency caps: what a user was shown often enough stays out, for as long as the rule says."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recserve.engine import (
    Engine,
    EngineConfig,
    Frequency,
    InvalidRequest,
    Pin,
    PipelineConfig,
    Request,
    Rules,
)
from recserve.engine.explain.cause import Cause
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import Event
from recserve.engine.state.state import open_state
from recserve.engine.wire.convert import request_from_message, request_to_message
from recserve.errors import ConfigError

HOUR = 3600
NUMBERS = iter(range(10**6))


@pytest.fixture(scope="module")
def shop(bundle_folder: Path) -> Iterator[Engine]:
    with Engine.load(bundle_folder) as engine:
        yield engine


def ids_of(engine: Engine, user: str, frequency: Frequency | None, k: int = 10) -> list[str]:
    slate = engine.recommend(Request(user_id=user, k=k, rules=Rules(frequency=frequency)))
    return [item.item_id for item in slate.items]


@settings(
    deadline=None,
    max_examples=20,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.lists(st.tuples(st.integers(0, 11), st.integers(1, 50)), max_size=30),
    st.integers(1, 3),
    st.sampled_from([1, 24]),
)
def test_what_was_shown_often_enough_in_time_stays_out(
    shop: Engine, shown: list[tuple[int, int]], impressions: int, hours: int
) -> None:
    """``shown``: which item, and how many half hours ago."""
    user, now = f"viewer {next(NUMBERS)}", int(time.time())
    everything = ids_of(shop, user, None, k=40)
    for place, ago in shown:
        item, moment = everything[place], now - ago * HOUR // 2 + 60
        assert not shop.observe(user_id=user, item_id=item, action="impression", timestamp=moment)
    counts = Counter(everything[place] for place, ago in shown if ago * HOUR // 2 - 60 < hours * HOUR)
    left = [item for item in everything if counts[item] < impressions]
    assert ids_of(shop, user, Frequency(impressions, hours)) == left[:10]
    # Nothing for who does not ask, nothing for others.
    assert ids_of(shop, user, None, k=40) == everything
    assert ids_of(shop, f"{user}'", Frequency(impressions, hours), k=40) == everything


def test_a_pin_obeys_and_why_not_tells(shop: Engine) -> None:
    user, rule = "often", Frequency(impressions=1, hours=1)
    best, second = ids_of(shop, user, rule, k=2)
    shop.observe(user_id=user, item_id=best, action="impression")
    request = Request(user_id=user, k=3, rules=Rules(frequency=rule, pins=[Pin(best, 2)]))
    found = [item.item_id for item in shop.recommend(request).items]
    assert best not in found
    assert found[0] == second
    assert shop.why_not(request, best).cause is Cause.FREQUENCY
    page = shop.recommend_page({"a": request, "b": Request(user_id=user, k=3)})
    assert best not in [item.item_id for item in page["a"].items]
    assert page["b"].items[0].item_id == best


def test_the_operator_s_rule_holds_and_kept_answers_know(bundle_folder: Path) -> None:
    rule = PipelineConfig(frequency=Frequency(impressions=2, hours=24))
    with Engine.load(bundle_folder, EngineConfig(pipeline=rule, cache_slates=100)) as engine:
        [best] = engine.recommend(Request(user_id="u", k=1)).items
        for _ in range(2):
            assert [item.item_id for item in engine.recommend(Request(user_id="u", k=1)).items] == [
                best.item_id
            ]
            engine.observe(user_id="u", item_id=best.item_id, action="impression")
        assert engine.recommend(Request(user_id="u", k=1)).items[0].item_id != best.item_id


def test_impressions_of_the_log_count_after_a_restart_until_the_user_is_erased(
    bundle_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("apsw")
    pytest.importorskip("cryptography")
    config, rule = StateConfig(url=f"sqlite:///{tmp_path}/events"), Frequency(impressions=1, hours=24)
    with open_state(config) as state:
        state.load()
        with Engine.load(bundle_folder, observed=state.observed) as engine:
            [best] = ids_of(engine, "u", rule, k=1)
            state.record(
                [
                    Event(
                        user_id="u",
                        item_id=best,
                        action="impression",
                        timestamp=int(time.time()),
                        event_id="e",
                    )
                ]
            )
            assert ids_of(engine, "u", rule, k=1) != [best]
    with open_state(config) as state:
        state.load()
        with Engine.load(bundle_folder, observed=state.observed) as engine:
            assert ids_of(engine, "u", rule, k=1) != [best]
            assert engine.history("u") == []
            assert state.erase("u").result(30) == 1
            assert ids_of(engine, "u", rule, k=1) == [best]


def test_it_travels_and_is_checked(shop: Engine) -> None:
    request = Request(user_id="u", k=3, rules=Rules(frequency=Frequency(3, 48)))
    travelled = request_from_message(request_to_message(request)).rules
    assert travelled is not None
    assert travelled.frequency == Frequency(3, 48)
    for rule, sentence in (
        (Frequency(0, 24), r"rules\.frequency\.impressions is 0; expected a whole number from 1 to 1000"),
        (Frequency(3, 721), r"rules\.frequency\.hours is 721; expected a whole number from 1 to 720"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            shop.recommend(Request(rules=Rules(frequency=rule)))
    with pytest.raises(ConfigError, match=r"pipeline\.frequency\.hours is 0"):
        PipelineConfig(frequency=Frequency(1, 0))
