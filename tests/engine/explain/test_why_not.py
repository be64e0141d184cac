"""Every item is in the slate or has a cause, and the cause is one: without it, something else happens."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from recserve.engine import Boost, Engine, EngineConfig, InvalidRequest, Pin, PipelineConfig, Request, Rules
from recserve.engine.explain.cause import Cause, WhyNot
from recserve.engine.types import Slate

FILTER = "price < 60 or category = 'Shoes'"


@pytest.fixture(scope="module")
def shop(bundle_folder: Path) -> Iterator[Engine]:
    with Engine.load(bundle_folder) as engine:
        yield engine


def ids_of(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def every_item(engine: Engine) -> list[str]:
    found = ids_of(engine.recommend(Request(k=1000)))
    assert len(found) == engine.manifest.n_items
    return found


def causes(engine: Engine, request: Request, asked: Sequence[str]) -> dict[str, WhyNot]:
    """Asks about the items of the slate and those ``asked``; the first must be the ones in it."""
    slate = ids_of(engine.recommend(request))
    found = {item_id: engine.why_not(request, item_id) for item_id in dict.fromkeys([*slate, *asked])}
    there = {item_id: why.numbers["rank"] for item_id, why in found.items() if why.cause == Cause.IN_SLATE}
    assert there == {item_id: rank for rank, item_id in enumerate(slate, 1)}
    return found


def by_cause(found: dict[str, WhyNot]) -> dict[Cause, list[WhyNot]]:
    return {cause: [why for why in found.values() if why.cause == cause] for cause in Cause}


@pytest.mark.parametrize("known", [True, False])
def test_every_item_has_a_cause_and_without_it_another(shop: Engine, known: bool) -> None:
    user = shop.user_ids()[3] if known else ""
    exclude = tuple(ids_of(shop.recommend(Request(user_id=user, k=4))))
    request = Request(user_id=user, k=10, filter=FILTER, exclude=exclude)
    without = {
        Cause.EXCLUDED: replace(request, exclude=()),
        Cause.SEEN: replace(request, include_seen=True),
        Cause.FILTER: replace(request, filter=""),
    }
    found = causes(shop, request, every_item(shop))
    groups = by_cause(found)
    assert {why.item_id for why in groups[Cause.EXCLUDED]} == set(exclude)
    assert {why.item_id for why in groups[Cause.SEEN]} == set(shop.history(user) if known else ()) - set(
        exclude
    )
    assert {why.detail for why in groups[Cause.FILTER]} == {"filter"}
    assert sum(map(len, groups.values())) == len(found) == 1000
    assert {cause for cause, group in groups.items() if group} <= {Cause.IN_SLATE, Cause.RETRIEVAL, *without}
    for cause, changed in without.items():
        for why in groups[cause][::7]:
            assert shop.why_not(changed, why.item_id).cause != cause
    order = ids_of(shop.recommend(replace(request, k=1000)))
    for why in groups[Cause.RETRIEVAL]:
        assert why.numbers["n_candidates"] == 10 < why.numbers["rank"]
        assert order[int(why.numbers["rank"]) - 1] == why.item_id


def test_rules_are_named_with_their_numbers(shop: Engine) -> None:
    user = shop.user_ids()[5]
    scores = [item.score for item in shop.recommend(Request(user_id=user, k=60)).items]
    last = ids_of(shop.recommend(Request(user_id=user, k=60)))[-1]
    plain = Request(user_id=user, k=8)
    best = ids_of(shop.recommend(plain))
    values = shop.get_items(every_item(shop))
    for rules, cause in (
        (Rules(min_score=scores[3]), Cause.MIN_SCORE),
        (Rules(caps={"category": 1}), Cause.CAP),
        (Rules(rerank="dpp", diversity=0.9), Cause.DIVERSITY),
        (Rules(novelty=0.9), Cause.NOVELTY),
        (Rules(pins=[Pin(last, 1)]), Cause.PINS),
    ):
        request = replace(plain, rules=rules)
        slate = ids_of(shop.recommend(request))
        groups = by_cause(causes(shop, request, [*best, *every_item(shop)[::50]]))
        # What these rules keep out is what would be in without them.
        assert {why.item_id for why in groups[cause]} == set(best) - set(slate)
        categories = Counter(values[item_id]["category"] for item_id in slate)
        for why in groups[cause]:
            assert why.numbers["rank"] <= 8
            if cause is Cause.MIN_SCORE:
                assert why.numbers["score"] < why.numbers["min_score"]
            if cause is Cause.CAP:
                mine = values[why.item_id]["category"]
                assert (why.detail, why.numbers["limit"]) == (f"category = {mine!r}", categories[mine])
        for why in groups[Cause.RANK]:
            assert why.numbers["rank"] > 8
            assert why.numbers["score"] <= why.numbers["last_score"]


def test_several_rules_together(shop: Engine) -> None:
    boosts = [Boost("price < 20", 0.2)]
    rules = Rules(caps={"category": 2, "brand": 1}, diversity=0.4, novelty=0.3, boosts=boosts)
    user = shop.user_ids()[7]
    request = Request(user_id=user, k=6, filter=FILTER, rules=rules)
    best = ids_of(shop.recommend(replace(request, rules=None)))
    found = causes(shop, request, [*best, *shop.history(user), *every_item(shop)[::5]])
    causes_found = {why.cause for why in found.values()}
    assert causes_found >= {Cause.IN_SLATE, Cause.SEEN, Cause.FILTER, Cause.RETRIEVAL, Cause.RANK}
    assert causes_found & {Cause.CAP, Cause.DIVERSITY, Cause.NOVELTY, Cause.RULES}
    assert shop.why_not(request, "no such item").cause == Cause.UNKNOWN


def test_the_operator_s_filter_is_named_as_his(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(pipeline=PipelineConfig(filter="price < 30"))) as engine:
        request = Request(k=5, filter="category != 'Shoes'")
        asked = engine.history(engine.user_ids()[0])
        groups = by_cause({item_id: engine.why_not(request, item_id) for item_id in asked})
        assert {why.detail for why in groups[Cause.FILTER]} == {"pipeline.filter"}


def test_a_ranker_is_a_stage(two_stage_folder: Path) -> None:
    with Engine.load(two_stage_folder, EngineConfig(rank_candidates=100)) as engine:
        request = Request(user_id=engine.user_ids()[3], k=5)
        groups = by_cause(causes(engine, request, every_item(engine)[::5]))
        order = ids_of(engine.recommend(replace(request, k=100)))
        assert {why.numbers["n_candidates"] for why in groups[Cause.RETRIEVAL]} == {100}
        assert groups[Cause.RANK]
        for why in groups[Cause.RANK]:
            assert order[int(why.numbers["rank"]) - 1] == why.item_id


def test_bad_questions_are_refused(shop: Engine) -> None:
    with pytest.raises(InvalidRequest, match="item_id"):
        shop.why_not(Request(), "")
    with pytest.raises(InvalidRequest, match="k is 0"):
        shop.why_not(Request(k=0), "item-001")
