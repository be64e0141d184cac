"""Rules of a slate: caps, pins, boosts, minimum scores; laws against the whole ranking read item by item."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recserve.engine import Boost, Engine, EngineConfig, InvalidRequest, Pin, PipelineConfig, Request, Rules
from recserve.errors import ConfigError

law = settings(
    deadline=None,
    max_examples=30,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
USERS = st.integers(0, 119)


def ids_of(slate: Any) -> list[str]:
    return [item.item_id for item in slate.items]


def user_of(engine: Engine, number: int) -> str:
    """One of the bundle's users; every tenth is nobody, a cold start."""
    return "" if number % 10 == 0 else list(engine.user_ids())[number % len(engine.user_ids())]


def ranking(engine: Engine, user: str) -> list[tuple[str, float, dict[str, Any]]]:
    """Everything that the user may get, best first, with scores and attributes."""
    slate = engine.recommend(Request(user_id=user, k=1000))
    values = engine.get_items(ids_of(slate))
    return [(item.item_id, item.score, values[item.item_id]) for item in slate.items]


@law
@given(USERS, st.integers(1, 30), st.integers(1, 3), st.integers(1, 4), st.sampled_from([40, 1000]))
def test_caps_take_the_best_that_they_allow(
    shop: Engine, number: int, k: int, per_brand: int, per_category: int, candidates: int
) -> None:
    user = user_of(shop, number)
    rules = Rules(caps={"brand": per_brand, "category": per_category}, candidates=candidates)
    brands: Counter[str] = Counter()
    categories: Counter[str] = Counter()
    expected = []
    for item_id, _, values in ranking(shop, user):
        if brands[values["brand"]] < per_brand and categories[values["category"]] < per_category:
            brands[values["brand"]] += 1
            categories[values["category"]] += 1
            expected.append(item_id)
    found = shop.recommend(Request(user_id=user, k=k, rules=rules))
    assert ids_of(found) == expected[:k]
    assert list(found.stage_ns) == ["resolve", "encode", "retrieve", "rerank", "assemble"]


@law
@given(USERS, st.sampled_from(["mmr", "dpp"]), st.floats(0.1, 1.0), st.integers(1, 3))
def test_caps_hold_under_diversity(shop: Engine, number: int, method: str, weight: float, limit: int) -> None:
    rules = Rules(caps={"category": limit}, rerank=method, diversity=weight, novelty=0.2, candidates=50)
    slate = shop.recommend(Request(user_id=user_of(shop, number), k=12, rules=rules))
    categories = [values["category"] for values in shop.get_items(ids_of(slate)).values()]
    assert len(categories) == 12
    assert max(Counter(categories).values()) <= limit


@law
@given(
    USERS,
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 10)), max_size=4),
    st.sampled_from(["", "dpp"]),
)
def test_pins_are_in_their_place(
    shop: Engine, number: int, wanted: list[tuple[int, int]], method: str
) -> None:
    user = user_of(shop, number)
    everything = [item_id for item_id, _, _ in ranking(shop, user)]
    places = {rank: everything[place % len(everything)] for place, rank in wanted}
    pins = [
        Pin(item_id, rank) for rank, item_id in places.items() if list(places.values()).count(item_id) == 1
    ]
    slate = shop.recommend(Request(user_id=user, k=10, rules=Rules(pins=pins, rerank=method)))
    found = ids_of(slate)
    assert len(set(found)) == 10
    assert all(found[pin.rank - 1] == pin.item_id for pin in pins)
    if not method:
        others = [item_id for item_id in everything if item_id not in {pin.item_id for pin in pins}]
        rest = [item_id for item_id in found if item_id not in {pin.item_id for pin in pins}]
        assert rest == others[: len(rest)]
    scores = {item.item_id: item.score for item in shop.recommend(Request(user_id=user, k=1000)).items}
    assert [item.score for item in slate.items] == pytest.approx([scores[i] for i in found], abs=1e-4)


def test_pins_that_may_not_be_shown_are_left_out_and_told(shop: Engine) -> None:
    best = ids_of(shop.recommend(Request(k=6)))
    category = shop.get_items(best[:1])[best[0]]["category"]
    same = [
        item_id
        for item_id, values in shop.get_items(ids_of(shop.recommend(Request(k=1000)))).items()
        if values["category"] == category
    ]
    pins = [Pin(item_id, rank) for rank, item_id in enumerate([*same[:3], "no such item"], start=1)]
    rules = Rules(pins=pins, caps={"category": 2})
    slate = shop.recommend(Request(k=8, exclude=same[:1], rules=rules))
    assert ids_of(slate)[1:3] == same[1:3]
    assert same[0] not in ids_of(slate)
    assert "2 of 4 pinned items are unknown, or kept out by filter, exclusion or cap" in slate.warnings
    filtered = shop.recommend(Request(k=2, filter="price < 0", rules=Rules(pins=pins[:1])))
    assert (ids_of(filtered), len(filtered.warnings)) == ([], 2)


@law
@given(USERS, st.floats(-3, 3), st.floats(-3, 3))
def test_boosts_are_exact_over_the_whole_catalogue(
    shop: Engine, number: int, cheap: float, kitchen: float
) -> None:
    user = user_of(shop, number)
    boosts = [Boost("price < 20", cheap), Boost("category = 'Kitchen'", kitchen)]
    expected = {
        item_id: score + cheap * (values["price"] < 20) + kitchen * (values["category"] == "Kitchen")
        for item_id, score, values in ranking(shop, user)
    }
    slate = shop.recommend(Request(user_id=user, k=15, rules=Rules(boosts=boosts)))
    best = sorted(expected.values(), reverse=True)[:15]
    assert [item.score for item in slate.items] == pytest.approx(best, abs=1e-4)
    assert [expected[item_id] for item_id in ids_of(slate)] == pytest.approx(best, abs=1e-4)


def test_a_minimum_score_cuts_the_slate(shop: Engine) -> None:
    user = user_of(shop, 1)
    scores = [score for _, score, _ in ranking(shop, user)]
    slate = shop.recommend(Request(user_id=user, k=20, rules=Rules(min_score=scores[6])))
    assert [item.score for item in slate.items] == pytest.approx(scores[:7], abs=1e-4)
    assert slate.warnings == ("filter, rules and exclusions left 7 of 20 items",)
    # Shares of popularity are another scale.
    assert len(shop.recommend(Request(k=5, rules=Rules(min_score=1e6))).items) == 5


def test_novelty_brings_what_fewer_know(shop: Engine, bundle_folder: Path) -> None:
    from recserve.engine.bundle import open_bundle

    bundle = open_bundle(bundle_folder)
    counts = [
        bundle.popularity[bundle.catalogue.vocabulary.indices(ids_of(shop.recommend(request)))].mean()
        for request in (
            Request(user_id=user_of(shop, 1), k=10, rules=Rules(novelty=weight)) for weight in (0.0, 0.5, 1.0)
        )
    ]
    assert counts[0] > counts[1] > counts[2]


def test_serendipity_brings_what_is_unlike_the_history(shop: Engine) -> None:
    bundle, users = (
        shop.loaded.bundle,
        [user for user in shop.user_ids() if len(shop.history(user)) >= 5][:20],
    )
    unit = bundle.item_embeddings / np.linalg.norm(bundle.item_embeddings, axis=1, keepdims=True)
    means = []
    for weight in (0.0, 0.3, 0.9):
        slates = shop.recommend_many(
            [Request(user_id=user, k=10, rules=Rules(serendipity=weight)) for user in users]
        )
        nearest = []
        for user, slate in zip(users, slates, strict=True):
            own, found = (
                bundle.catalogue.vocabulary.indices(ids) for ids in (shop.history(user), ids_of(slate))
            )
            nearest.append((unit[found] @ unit[own].T).max(axis=1).mean())
        means.append(np.mean(nearest))
    assert means[0] > means[1] > means[2]
    # Who has no history is unlike nothing.
    assert ids_of(shop.recommend(Request(k=9, rules=Rules(serendipity=0.9)))) == ids_of(
        shop.recommend(Request(k=9))
    )
    with pytest.raises(InvalidRequest, match=r"rules\.serendipity is 1\.2; expected at most 1 together"):
        shop.recommend(Request(rules=Rules(novelty=0.6, serendipity=0.6)))


def test_alone_as_in_a_batch(shop: Engine) -> None:
    users = [user_of(shop, number) for number in range(6)]
    best = ids_of(shop.recommend(Request(k=3)))
    kinds = [
        None,
        Rules(rerank="dpp", diversity=0.4),
        Rules(rerank="mmr", diversity=0.4, caps={"brand": 1}),
        Rules(pins=[Pin(best[0], 2)], boosts=[Boost("price < 20", 0.5)]),
        Rules(caps={"category": 1}, candidates=5),
    ]
    requests = [
        Request(user_id=user, k=k, rules=rules)
        for user in users
        for k, rules in zip((3, 9, 9, 7, 12), kinds, strict=True)
    ]
    for request, slate in zip(requests, shop.recommend_many(requests), strict=True):
        alone = shop.recommend(request)
        assert ids_of(alone) == ids_of(slate)
        assert alone.warnings == slate.warnings
        scores = [item.score for item in slate.items]
        assert [item.score for item in alone.items] == pytest.approx(scores, abs=1e-4)


REFUSED: dict[str, tuple[Rules, str]] = {
    "method": (Rules(rerank="best"), "rules.rerank is best"),
    "weight": (Rules(diversity=1.5), "rules.diversity is 1.5"),
    "not a number": (Rules(novelty=float("nan")), "rules.novelty is nan"),
    "cap": (Rules(caps={"brand": 0}), "rules.caps.brand is 0"),
    "attribute": (Rules(caps={"brandt": 1}), "Did you mean 'brand'?"),
    "boost": (Rules(boosts=[Boost("price <", 1)]), "rules.boosts[0].filter is ending at character 8"),
    "infinite boost": (Rules(boosts=[Boost("price < 1", float("inf"))]), "rules.boosts[0].weight is inf"),
    "rank": (Rules(pins=[Pin("a", 11)]), "rules.pins[0].rank is 11; expected 1 to k (10)"),
    "id": (Rules(pins=[Pin("", 1)]), "rules.pins[0].item_id is empty"),
    "twice": (Rules(pins=[Pin("a", 1), Pin("b", 1)]), "rules.pins is with one rank twice"),
    "candidates": (Rules(candidates=0), "rules.candidates is 0"),
    "many": (Rules(pins=[Pin(str(i), i + 1) for i in range(101)]), "rules.pins is 101 long"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rules_that_cannot_be_followed_are_refused(shop: Engine, name: str) -> None:
    rules, message = REFUSED[name]
    good, bad = shop.recommend_each([Request(k=1), Request(rules=rules)])
    assert not isinstance(good, InvalidRequest)
    assert isinstance(bad, InvalidRequest)
    assert message in str(bad)


def test_the_operator_s_rules_hold_and_requests_come_on_top(bundle_folder: Path) -> None:
    pipeline = PipelineConfig(filter="price < 100", caps={"brand": 1}, rerank="mmr", diversity=0.2)
    with Engine.load(bundle_folder, EngineConfig(pipeline=pipeline)) as engine:
        user = user_of(engine, 3)
        values = engine.get_items(ids_of(engine.recommend(Request(user_id=user, k=9)))).values()
        assert all(item["price"] < 100 for item in values)
        assert len({item["brand"] for item in values}) == len(values) == 9
        own = Request(user_id=user, k=9, filter="category = 'Kitchen'", rules=Rules(caps={"category": 4}))
        values = engine.get_items(ids_of(engine.recommend(own))).values()
        assert all(item["price"] < 100 and item["category"] == "Kitchen" for item in values)
        assert len(values) == 4
    with pytest.raises(ConfigError, match=r"pipeline.filter is prize at character 1.*Did you mean 'price'"):
        Engine.load(bundle_folder, EngineConfig(pipeline=PipelineConfig(filter="prize < 100")))
    with pytest.raises(ConfigError, match=r"pipeline\.diversity is 2"):
        PipelineConfig(diversity=2)


def test_what_is_left_open_is_taken_from_the_next() -> None:
    ours = Rules(caps={"brand": 1}, novelty=0.0)
    theirs = PipelineConfig(caps={"category": 2}, novelty=0.5, rerank="dpp", filter="in_stock")
    assert ours.over(theirs) == Rules(caps={"brand": 1}, novelty=0.0, rerank="dpp")
    merged = PipelineConfig(rerank="mmr").over(theirs)
    assert merged == replace(theirs, rerank="mmr")
    assert np.isclose(merged.novelty or 0, 0.5)
