"""Long lists page by page, and the rows of one page: nothing twice, nothing left out."""

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine import Boost, Engine, InvalidRequest, Pin, Request, Rules, Slate, pipeline
from recserve.engine.client import RecommenderClient
from recserve.engine.ranking import RankStage
from recserve.engine.server.config import ServerConfig
from tests.engine.server.conftest import running

law = settings(deadline=None, max_examples=15, derandomize=True)
FILTERS = st.sampled_from(["", "price < 20", "category = 'Kitchen'", "price < 0"])
RULES = st.sampled_from(
    [
        None,
        Rules(rerank="dpp", diversity=0.5, candidates=40),
        Rules(caps={"category": 1}, candidates=20),
        Rules(boosts=[Boost("price < 20", 0.5)]),
    ]
)


@pytest.fixture(scope="module")
def two_stages(two_stage_folder: Path) -> Iterator[Engine]:
    with Engine.load(two_stage_folder) as engine:
        yield engine


def ids_of(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def user_of(engine: Engine, number: int) -> str:
    """One of the bundle's users; every fifth is nobody, a cold start."""
    return "" if number % 5 == 0 else engine.user_ids()[number % len(engine.user_ids())]


def pages(engine: Engine, sizes: list[int], **asked: Any) -> list[list[str]]:
    """All pages of a list, their lengths as ``sizes`` in turn."""
    found: list[list[str]] = []
    token: str = ""
    for number in range(1500):
        slate = engine.recommend(Request(k=sizes[number % len(sizes)], page_token=token, **asked))
        found.append(ids_of(slate))
        token = slate.next_page_token
        if not token:
            return found
    raise AssertionError("the pages do not end")


@law
@given(st.integers(0, 119), st.lists(st.integers(1, 400), min_size=1, max_size=4), FILTERS)
def test_pages_are_the_one_long_list(shop: Engine, number: int, sizes: list[int], filter: str) -> None:
    asked = {"user_id": user_of(shop, number), "filter": filter}
    sizes = [60 + size for size in sizes]
    everything = ids_of(shop.recommend(Request(k=1000, **asked)))
    found = pages(shop, sizes, **asked)
    assert [item_id for page in found for item_id in page] == everything
    assert all(len(page) == sizes[i % len(sizes)] for i, page in enumerate(found[:-1]))


@law
@given(st.integers(0, 119), RULES, st.sampled_from(["", "category = 'Kitchen'"]))
def test_pages_by_rules_repeat_nothing_and_reach_everything(
    shop: Engine, number: int, rules: Rules | None, filter: str
) -> None:
    asked = {"user_id": user_of(shop, number), "filter": filter}
    everything = ids_of(shop.recommend(Request(k=1000, **asked)))
    shown = [item_id for page in pages(shop, [90, 150], rules=rules, **asked) for item_id in page]
    assert len(shown) == len(set(shown))
    assert set(shown) == set(everything)


def test_a_click_between_two_pages_brings_nothing_back(engine: Engine) -> None:
    user = user_of(engine, 1)
    first = engine.recommend(Request(user_id=user, k=30, page_token=""))
    engine.observe(user_id=user, item_id=first.items[4].item_id)
    second = engine.recommend(Request(user_id=user, k=30, page_token=first.next_page_token))
    assert not set(ids_of(first)) & set(ids_of(second))
    assert second.warnings == ()


def test_pages_go_on_after_a_swap(shop: Engine, table_bundle_folder: Path) -> None:
    first = shop.recommend(Request(user_id=user_of(shop, 1), k=300, page_token=""))
    with Engine.load(table_bundle_folder) as other:
        asked = Request(user_id=user_of(shop, 1), k=300, page_token=first.next_page_token)
        second = other.recommend(asked)
        assert not set(ids_of(first)) & set(ids_of(second))
        assert second.warnings == (
            "the bundle changed since the page before: what was shown stays out, the order is new",
        )
        third = other.recommend(Request(user_id=asked.user_id, k=300, page_token=second.next_page_token))
        assert not set(ids_of(third)) & {*ids_of(first), *ids_of(second)}
        assert third.warnings == ()


def test_pins_are_pinned_once(shop: Engine) -> None:
    rules = Rules(pins=[Pin(ids_of(shop.recommend(Request(k=40)))[-1], 2)])
    first = shop.recommend(Request(k=5, rules=rules, page_token=""))
    second = shop.recommend(Request(k=5, rules=rules, page_token=first.next_page_token))
    assert first.items[1].item_id == rules.pins[0].item_id
    assert not set(ids_of(first)) & set(ids_of(second))
    assert second.warnings == ()


def test_no_token_unless_asked_and_an_end(shop: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.recommend(Request(k=5)).next_page_token == ""
    monkeypatch.setattr(pipeline, "MAX_SHOWN", 12)
    first = shop.recommend(Request(k=10, page_token=""))
    second = shop.recommend(Request(k=10, page_token=first.next_page_token))
    assert (len(second.items), second.next_page_token) == (10, "")
    assert second.warnings == ("the list ends here: 12 items is the most that pages go through",)


@law
@given(st.data())
def test_a_token_that_was_changed_is_refused(shop: Engine, data: st.DataObject) -> None:
    token = shop.recommend(Request(k=3, page_token="")).next_page_token
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("Ab7_-é=\ud800").filter(lambda letter: letter != token[place]))
    for changed in (token[:place] + letter + token[place + 1 :], token[:place], token + "A" * 4):
        if not changed:
            continue
        with pytest.raises(InvalidRequest, match=r"^page_token is .* Ask for the first page again"):
            shop.recommend(Request(k=3, page_token=changed))


def test_a_token_belongs_to_one_list(shop: Engine) -> None:
    token = shop.recommend(Request(user_id="u", k=3, page_token="")).next_page_token
    for other in (
        Request(user_id="v", page_token=token),
        Request(user_id="u", page_token=token, filter="price < 20"),
        Request(user_id="u", page_token=token, include_seen=True),
        Request(user_id="u", page_token=token, rules=Rules(diversity=0.1)),
    ):
        with pytest.raises(InvalidRequest, match="page_token is that of another list"):
            shop.recommend(other)
    others = Request(user_id="u", k=9, page_token=token, exclude=["x"], history=["y"], context={"hour": "3"})
    assert len(shop.recommend(others).items) == 9
    for junk in ("x", "A" * 200_000, base64.urlsafe_b64encode(bytes(33)).decode(), b"bytes", 7):
        with pytest.raises(InvalidRequest, match="page_token is"):
            shop.recommend(Request(page_token=junk))  # type: ignore[arg-type]


def row_requests(engine: Engine) -> st.SearchStrategy[list[Request]]:
    pins = st.sampled_from(ids_of(engine.recommend(Request(k=5)))).map(
        lambda item: Rules(pins=[Pin(item, 1)])
    )
    return st.lists(
        st.builds(
            lambda number, k, filter, rules: Request(
                user_id=user_of(engine, number), k=k, filter=filter, rules=rules
            ),
            st.integers(0, 4),
            st.integers(1, 30),
            FILTERS,
            RULES | pins,
        ),
        min_size=1,
        max_size=6,
    )


@pytest.mark.parametrize("name", ["shop", "two_stages"])
@settings(law)
@given(data=st.data())
def test_a_row_is_its_slate_without_the_rows_before(
    name: str, request: pytest.FixtureRequest, data: st.DataObject
) -> None:
    engine: Engine = request.getfixturevalue(name)
    rows = {f"row {i}": row for i, row in enumerate(data.draw(row_requests(engine)))}
    page = engine.recommend_page(rows)
    assert list(page) == list(rows)
    before: list[str] = []
    for title, row in rows.items():
        fields = {name: getattr(row, name) for name in ("user_id", "k", "filter", "rules")}
        alone = engine.recommend(Request(**fields, exclude=before))
        assert ids_of(page[title]) == ids_of(alone)
        scores = [item.score for item in alone.items]
        assert [item.score for item in page[title].items] == pytest.approx(scores, abs=1e-4)
        before += ids_of(page[title])
    assert len(before) == len(set(before))


@settings(law)
@given(data=st.data(), limit=st.integers(1, 6))
def test_caps_of_a_page_hold_for_all_rows_together(shop: Engine, data: st.DataObject, limit: int) -> None:
    rows = {f"row {i}": row for i, row in enumerate(data.draw(row_requests(shop)))}
    page = shop.recommend_page(rows, caps={"category": limit})
    shown = [item_id for slate in page.values() for item_id in ids_of(slate)]
    assert len(shown) == len(set(shown))
    categories = Counter(values["category"] for values in shop.get_items(shown).values())
    assert max(categories.values(), default=0) <= limit
    # A row is short only where no category has a place left that its filter allows.
    for title, row in rows.items():
        if len(page[title].items) < row.k and row.rules is None:
            left = shop.recommend(Request(user_id=row.user_id, k=1000, filter=row.filter, exclude=shown))
            values = shop.get_items(ids_of(left)).values()
            assert all(categories[value["category"]] == limit for value in values)


def test_pins_beyond_the_caps_of_a_page_are_told(shop: Engine) -> None:
    best = ids_of(shop.recommend(Request(k=1000)))
    category = {item_id: values["category"] for item_id, values in shop.get_items(best).items()}
    first, second = [item_id for item_id in best if category[item_id] == category[best[0]]][:2]
    rows = {
        name: Request(k=3, rules=Rules(pins=[Pin(item, 1)])) for name, item in (("a", first), ("b", second))
    }
    page = shop.recommend_page(rows, caps={"category": 1})
    assert ids_of(page["a"])[0] == first
    assert second not in ids_of(page["b"])
    assert "1 of 1 pinned items are kept out by the caps of the page" in page["b"].warnings


def test_the_rows_of_a_page_are_ranked_in_one_inference(
    two_stages: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    predict = RankStage.predict

    def counted(*arguments: Any) -> Any:
        calls.append(len(arguments[1]))
        return predict(*arguments)

    monkeypatch.setattr(RankStage, "predict", counted)
    mixed = Rules(quotas={"model": 2, "similar": 1, "popularity": 1}, candidates=20)
    drawn = Rules(quotas={"model": 1, "explore": 1}, candidates=20)
    rules = {1: None, 2: mixed, 3: mixed, 4: Rules(quotas={"model": 1}), 5: mixed, 6: drawn}
    rows = {
        f"row {i}": Request(user_id=user_of(two_stages, i), k=5, rules=one, seed=i)
        for i, one in rules.items()
    }
    page = two_stages.recommend_page(rows)
    # What chance draws depends on the rows before.
    assert calls == [5, 1]
    before: list[str] = []
    for title, row in rows.items():
        alone = two_stages.recommend(replace(row, exclude=before))
        assert ids_of(page[title]) == ids_of(alone)
        assert [item.source for item in page[title].items] == [item.source for item in alone.items]
        retrieval = [item.retrieval_score for item in alone.items]
        assert [item.retrieval_score for item in page[title].items] == pytest.approx(retrieval, abs=1e-4)
        before += ids_of(alone)
    assert {item.source for i in (2, 3, 5) for item in page[f"row {i}"].items} > {"model"}


def test_more_of_a_row_repeats_nothing_of_the_page(shop: Engine) -> None:
    user = user_of(shop, 1)
    page = shop.recommend_page(
        {"for you": Request(user_id=user, k=8, page_token=""), "popular": Request(k=8)}
    )
    more = shop.recommend(Request(user_id=user, k=200, page_token=page["for you"].next_page_token))
    assert not set(ids_of(more)) & {item_id for slate in page.values() for item_id in ids_of(slate)}
    assert shop.recommend_page({}) == {}


REFUSED = {
    r"rows\[b\]\.filter is": {"a": Request(k=1), "b": Request(filter="prise < 3")},
    r"rows\[\]\.name is empty": {"": Request()},
    "k of the rows is 1200": {"a": Request(k=600), "b": Request(k=600)},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_page_names_the_row_that_it_refuses(shop: Engine, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        shop.recommend_page(REFUSED[sentence])


@pytest.mark.parametrize(
    ("caps", "sentence"), [({"colour": 1}, "page.caps is colour"), ({"brand": 0}, "page.caps.brand is 0")]
)
def test_caps_that_a_page_cannot_have_are_refused(shop: Engine, caps: dict[str, int], sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        shop.recommend_page({"a": Request(k=1)}, caps=caps)


def test_pages_travel(engine: Engine) -> None:
    rows = {
        "for you": Request(user_id=user_of(engine, 1), k=6, page_token=""),
        "cheap": Request(k=6, filter="price < 20"),
    }
    with running(ServerConfig(port=0, default_deadline_ms=30_000)) as server:
        server.serve(engine)
        with RecommenderClient(server.address, timeout=30) as client:
            caps = {"category": 3}
            ours, theirs = client.recommend_page(rows, caps=caps), engine.recommend_page(rows, caps=caps)
            assert {name: ids_of(slate) for name, slate in ours.items()} == {
                name: ids_of(slate) for name, slate in theirs.items()
            }
            token = ours["for you"].next_page_token
            assert token == theirs["for you"].next_page_token
            second = client.recommend(Request(user_id=user_of(engine, 1), k=6, page_token=token))
            assert not set(ids_of(second)) & {i for slate in ours.values() for i in ids_of(slate)}
            assert second.next_page_token not in ("", token)
            assert client.recommend(Request(k=3)).next_page_token == ""
