"""Calibrated slates of the engine, against divergences that are computed from attributes and history."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recserve.engine import Engine, EngineConfig, InvalidRequest, Pin, PipelineConfig, Request, Rules
from recserve.engine.wire.convert import request_from_message, request_to_message

law = settings(
    deadline=None,
    max_examples=25,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def ids_of(slate: Any) -> list[str]:
    return [item.item_id for item in slate.items]


def shares(engine: Engine, item_ids: list[str]) -> dict[str, float]:
    values = engine.get_items(item_ids)
    counts = Counter(values[item_id]["category"] for item_id in item_ids)
    return {category: count / len(item_ids) for category, count in counts.items()}


def divergence(engine: Engine, user: str, item_ids: list[str]) -> float:
    return divergence_of(shares(engine, engine.history(user)), shares(engine, item_ids))


def divergence_of(wanted: dict[str, float], found: dict[str, float]) -> float:
    return sum(p * np.log(p / (0.99 * found.get(name, 0.0) + 0.01 * p)) for name, p in wanted.items() if p)


@law
@given(st.integers(0, 119), st.integers(1, 20), st.sampled_from([50, 1000]))
def test_the_slate_is_never_further_from_the_history(shop: Engine, i: int, k: int, candidates: int) -> None:
    user = shop.user_ids()[i]
    plain = Request(user_id=user, k=k)
    rules = Rules(calibrate="category", diversity=1.0, candidates=candidates)
    found = ids_of(shop.recommend(replace(plain, rules=rules)))
    assert len(found) == len(set(found)) == k
    before, after = (divergence(shop, user, ids) for ids in (ids_of(shop.recommend(plain)), found))
    assert after <= before + 1e-6


def test_the_weight_pulls_the_slate_to_the_history(shop: Engine) -> None:
    users = [user for user in shop.user_ids() if len(shop.history(user)) >= 10][:20]
    means = []
    for weight in (0.0, 0.3, 0.9):
        rules = Rules(rerank="calibrated", calibrate="category", diversity=weight)
        requests = [Request(user_id=user, k=4 + i % 9, rules=rules) for i, user in enumerate(users)]
        slates = [ids_of(slate) for slate in shop.recommend_many(requests)]
        means.append(np.mean([divergence(shop, *pair) for pair in zip(users, slates, strict=True)]))
    assert means[0] > means[1] > means[2]
    assert slates == [ids_of(shop.recommend(request)) for request in requests]


def test_exposure_follows_the_relevance_of_the_candidates(shop: Engine) -> None:
    """Each category gets places as its candidates are relevant together, not as few of them are the best."""
    apart = []
    for user in list(shop.user_ids())[:20]:
        plain = shop.recommend(Request(user_id=user, k=60))
        scores = np.array([item.score for item in plain.items])
        merit = (scores - scores.min()) / np.ptp(scores)
        names = [values["category"] for values in shop.get_items(ids_of(plain)).values()]
        wanted = {name: merit[[n == name for n in names]].sum() / merit.sum() for name in set(names)}
        for weight in (0.0, 1.0):
            rules = Rules(exposure="category", rerank="calibrated", diversity=weight, candidates=60)
            found = shares(shop, ids_of(shop.recommend(Request(user_id=user, k=20, rules=rules))))
            apart.append((weight, divergence_of(wanted, found)))
    before, after = (np.mean([far for weight, far in apart if weight == one]) for one in (0.0, 1.0))
    assert after < before / 2
    # It needs no history.
    rules = Rules(exposure="category", diversity=0.9)
    assert ids_of(shop.recommend(Request(k=7, rules=rules))) != ids_of(shop.recommend(Request(k=7)))
    with pytest.raises(InvalidRequest, match=r"rules\.exposure is category; expected empty where calibrate"):
        shop.recommend(Request(rules=Rules(exposure="category", calibrate="category")))


def test_a_group_of_no_merit_gets_no_place_and_is_no_error(shop: Engine) -> None:
    """Of an item that the user had, nothing is surprising; each title is a group."""
    rules = Rules(exposure="title", serendipity=1.0, candidates=1000)
    ids = shop.loaded.bundle.catalogue.vocabulary.ids(list(range(30)))
    slates = shop.recommend_many(
        [Request(history=[item_id], include_seen=True, k=9, rules=rules) for item_id in ids]
    )
    assert all(item_id not in ids_of(slate) for item_id, slate in zip(ids, slates, strict=True))


def test_who_has_no_history_gets_the_best(shop: Engine) -> None:
    rules = Rules(calibrate="category", diversity=0.9)
    assert ids_of(shop.recommend(Request(k=7, rules=rules))) == ids_of(shop.recommend(Request(k=7)))


def test_caps_and_pins_hold(shop: Engine) -> None:
    user = shop.user_ids()[3]
    pinned = ids_of(shop.recommend(Request(user_id=user, k=40)))[-1]
    rules = Rules(calibrate="category", caps={"category": 2}, pins=[Pin(pinned, 2)])
    found = ids_of(shop.recommend(Request(user_id=user, k=10, rules=rules)))
    assert found[1] == pinned
    assert max(shares(shop, found).values()) <= 0.2


def test_the_operator_may_ask_for_it(bundle_folder: Path, shop: Engine) -> None:
    rules = Rules(calibrate="category", diversity=0.8)
    config = EngineConfig(pipeline=PipelineConfig(calibrate="category", diversity=0.8))
    user = shop.user_ids()[5]
    with Engine.load(bundle_folder, config) as engine:
        found = engine.recommend(Request(user_id=user, k=9))
    assert ids_of(found) == ids_of(shop.recommend(Request(user_id=user, k=9, rules=rules)))


def test_it_travels_and_is_checked(shop: Engine) -> None:
    request = Request(k=3, rules=Rules(rerank="calibrated", calibrate="category", diversity=0.4))
    travelled = request_from_message(request_to_message(request)).rules
    assert travelled is not None
    assert (travelled.rerank, travelled.calibrate) == ("calibrated", "category")
    for rules, sentence in (
        (Rules(rerank="calibrated"), "rules.calibrate is ; expected an attribute"),
        (Rules(calibrate="colour"), "rules.calibrate is colour; expected an attribute of the catalogue"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            shop.recommend(Request(rules=rules))
