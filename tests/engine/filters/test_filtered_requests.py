"""Requests with a filter: exact at any selectivity, alone as in a batch, for the model and for popularity."""

from pathlib import Path

import numpy as np
import pytest

from recserve.engine import Engine, InvalidRequest, Request
from recserve.engine.bundle import open_bundle

FILTERS = (
    "price < 20",
    "category in ('Kitchen', 'Toys') or price > 100",
    "price between 10 and 10.5",
    "item_id in ('no such item')",
    "not price < 0",
)


def allowed_of(bundle_folder: Path, engine: Engine, text: str) -> set[str]:
    """The items that a filter should leave, read off their attributes one by one."""
    ids = open_bundle(bundle_folder).catalogue.vocabulary.ids(np.arange(engine.manifest.n_items))
    values = engine.get_items(ids)

    def passes(item: dict[str, object]) -> bool:
        price, category = float(str(item["price"])), item["category"]
        return {
            FILTERS[0]: price < 20,
            FILTERS[1]: category in ("Kitchen", "Toys") or price > 100,
            FILTERS[2]: 10 <= price <= 10.5,
            FILTERS[3]: False,
            FILTERS[4]: True,
        }[text]

    return {item_id for item_id in ids if passes(values[item_id])}


@pytest.mark.parametrize("text", FILTERS)
def test_the_answer_is_the_unfiltered_ranking_without_the_others(
    engine: Engine, bundle_folder: Path, text: str
) -> None:
    allowed = allowed_of(bundle_folder, engine, text)
    user = next(user for user in engine.user_ids() if engine.history(user))
    for request in (Request(user_id=user, k=1000), Request(k=1000)):
        everything = engine.recommend(request)
        expected = [item.item_id for item in everything.items if item.item_id in allowed]
        for k in (1, 10, 1000):
            found = engine.recommend(Request(user_id=request.user_id, k=k, filter=text))
            assert [item.item_id for item in found.items] == expected[:k]
            assert found.source == everything.source
            left = min(k, len(expected))
            few = (f"filter, rules and exclusions left {left} of {k} items",) if left < k else ()
            assert found.warnings == few


def test_alone_as_in_a_batch_with_other_filters(engine: Engine) -> None:
    users = list(engine.user_ids()[:5])
    requests = [Request(user_id=user, k=8, filter=text) for user in users for text in (*FILTERS, "")]
    together = engine.recommend_many(requests)
    for request, slate in zip(requests, together, strict=True):
        alone = engine.recommend(request)
        assert [item.item_id for item in alone.items] == [item.item_id for item in slate.items]
        assert alone.warnings == slate.warnings


def test_similar_items_take_a_filter(engine: Engine) -> None:
    item = engine.recommend(Request(k=1)).items[0].item_id
    everything = engine.similar_items(item, k=900)
    prices = {
        id_: values["price"]
        for id_, values in engine.get_items([i.item_id for i in everything.items]).items()
    }
    cheap = [other.item_id for other in everything.items if prices[other.item_id] < 20]
    found = engine.similar_items(item, k=5, filter="price < 20")
    assert [other.item_id for other in found.items] == cheap[:5]
    assert found.warnings == ()
    assert engine.similar_items(item, k=2, filter="price < 0").warnings == (
        "filter, rules and exclusions left 0 of 2 items",
    )


def test_a_bad_filter_is_refused_alone(engine: Engine) -> None:
    good, bad = engine.recommend_each([Request(k=2), Request(k=2, filter="price < and")])
    assert not isinstance(good, InvalidRequest)
    assert isinstance(bad, InvalidRequest)
    assert "and at character 9" in str(bad)
    for call in (
        lambda: engine.recommend(Request(filter="colour = 'red'")),
        lambda: engine.similar_items("x", filter=5),  # type: ignore[arg-type]
        lambda: engine.recommend(Request(filter=["price < 5"])),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidRequest):
            call()


def test_rules_are_kept_and_forgotten(engine: Engine) -> None:
    filters = engine._loaded.retriever.filters
    first = filters.compile("price < 1")
    assert filters.compile("price < 1") is first
    for i in range(filters.limit):
        filters.compile(f"price < {i + 2}")
    again = filters.compile("price < 1")
    assert again is not first
    assert again.n_items == first.n_items
