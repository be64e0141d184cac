"""Items that come and go between two bundles, in the embedded engine."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.bundle.rules import Pin, Rules
from recserve.engine.explain.cause import Cause
from recserve.engine.ranked import Ranked
from recserve.engine.state.items import ItemChange, LiveItems
from recserve.errors import InvalidRequest

HISTORY = 3


@pytest.fixture(params=["bundle_folder", "table_bundle_folder"])
def live(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine with an encoder, and one with a table."""
    with Engine.load(request.getfixturevalue(request.param)) as engine:
        yield engine


def shown(engine: Engine, **fields: object) -> list[str]:
    request = Request(**{"history": history(engine), "k": 10, **fields})  # type: ignore[arg-type]
    return [item.item_id for item in engine.recommend(request).items]


def history(engine: Engine) -> list[str]:
    return engine.loaded.bundle.catalogue.vocabulary.ids(range(HISTORY))


def strong(engine: Engine) -> tuple[float, ...]:
    """A vector that points where the best item does, further."""
    vocabulary = engine.loaded.bundle.catalogue.vocabulary
    return tuple((10 * engine.loaded.bundle.item_embeddings[vocabulary.index_of(shown(engine)[0])]).tolist())


def new(engine: Engine, item_id: str = "new", **fields: object) -> ItemChange:
    version = engine.manifest.bundle_version
    about = {"item_id": item_id, "vector": strong(engine), "bundle_version": version, **fields}
    return ItemChange(**about)  # type: ignore[arg-type]


def test_a_new_item_is_in_the_next_slate_and_behaves_as_any_other(live: Engine) -> None:
    before = shown(live)
    live.change_items([new(live, attributes={"title": "A new one", "unknown": 1, "price": "dear"})])
    assert shown(live)[:2] == ["new", before[0]]
    # A price is a number: this one is left out, and the item stays.
    assert live.get_items(["new"]) == {"new": {"title": "A new one"}}
    assert shown(live, filter="title = 'A new one'") == ["new"]
    assert "new" not in shown(live, exclude=["new"])
    assert "new" in [item.item_id for item in live.similar_items(before[0]).items]
    explained = live.recommend(Request(history=history(live), explain="fast"))
    assert explained.items[0].item_id == "new"
    # Popularity knows it last, the newest items first.
    assert shown(live, user_id="", history=None) != ["new"]
    assert live.why_not(Request(history=history(live)), "new").cause is Cause.IN_SLATE


def test_what_a_user_did_with_a_new_item_is_kept_and_not_shown_again(live: Engine) -> None:
    live.change_items([new(live)])
    live.observe(user_id="u", item_id="new")
    # Nothing else is known of them: a cold start, without what they had.
    assert live.history("u") == ["new"]
    assert live.recommend(Request(user_id="u")).source != "model"
    for item in history(live):
        live.observe(user_id="u", item_id=item)
    slate = live.recommend(Request(user_id="u"))
    assert slate.source == "model"
    assert "new" not in [item.item_id for item in slate.items]


def test_an_item_between_others_needs_no_vector(live: Engine) -> None:
    like = tuple(shown(live)[:2])
    live.change_items([ItemChange(item_id="between", like=like)])
    bundle = live.loaded.bundle
    index = bundle.catalogue.vocabulary.indices(["between", *like])
    vectors = bundle.item_embeddings[index]
    np.testing.assert_allclose(vectors[0], vectors[1:].mean(axis=0), rtol=1e-6)


def test_a_removed_item_is_in_no_list(live: Engine) -> None:
    best, second, *_ = shown(live)
    popular = shown(live, history=None)[0]
    live.change_items([ItemChange(item_id=item, is_served=False) for item in (best, popular)])
    assert shown(live)[0] == second
    assert popular not in shown(live, history=None)
    pinned = live.recommend(Request(history=history(live), rules=Rules(pins=(Pin(rank=1, item_id=best),))))
    assert best not in [item.item_id for item in pinned.items]
    assert best not in [item.item_id for item in live.similar_items(second, k=50).items]
    page = live.recommend_page({"one": Request(history=history(live)), "two": Request(history=history(live))})
    assert all(best != item.item_id for slate in page.values() for item in slate.items)
    assert live.why_not(Request(history=history(live)), best).cause is Cause.GONE
    # Back in stock.
    live.change_items([ItemChange(item_id=best)])
    assert shown(live)[0] == best
    live.change_items([new(live)])
    live.change_items([ItemChange(item_id="new", is_served=False)])
    assert "new" not in shown(live)


def test_kept_answers_do_not_outlive_a_change(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(cache_slates=10)) as engine:
        best = shown(engine)[0]
        engine.change_items([ItemChange(item_id=best, is_served=False)])
        assert best not in shown(engine)
        # Nor does one that is being computed meanwhile.
        find = engine._run

        def change_meanwhile(*arguments: Any) -> list[Ranked]:
            answers = find(*arguments)
            engine.change_items([ItemChange(item_id=best)])
            return answers

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "_run", change_meanwhile)
            assert best not in shown(engine, k=3)
        assert best in shown(engine, k=3)


def test_engines_share_changes_and_a_vector_is_of_one_bundle(
    bundle_folder: Path, table_bundle_folder: Path
) -> None:
    live_items = LiveItems()
    with Engine.load(bundle_folder, live_items=live_items) as one:
        one.change_items([new(one), ItemChange(item_id=shown(one)[3], is_served=False)])
        with Engine.load(bundle_folder, live_items=live_items) as other:
            assert shown(other) == shown(one)
        with capture_logs() as lines, Engine.load(table_bundle_folder, live_items=live_items) as another:
            assert another.loaded.bundle.catalogue.vocabulary.index_of("new") == -1
        assert [line["items"] for line in lines if line["event"].startswith("items left out")] == [1]


def test_a_ranker_cannot_rank_what_it_does_not_know(two_stage_folder: Path) -> None:
    with Engine.load(two_stage_folder) as engine:
        engine.change_items([new(engine), ItemChange(item_id=shown(engine)[0], is_served=False)])
        assert "new" not in shown(engine, predict="click")


def test_answers_are_the_same_as_of_a_bundle_with_the_items(live: Engine) -> None:
    # Many, so that the index is rebuilt.
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((200, live.manifest.embedding_size)).astype(np.float32)
    live.change_items(
        [new(live, f"new-{i}", vector=tuple(vector)) for i, vector in enumerate(vectors.tolist())]
    )
    bundle = live.loaded.bundle
    assert live.loaded.retriever.by_query(vectors[:1], 1, [np.empty(0, np.int32)])[1].shape == (1, 1)
    scores = vectors @ bundle.item_embeddings.T
    _, found = live.loaded.retriever.by_query(vectors, 5, [np.empty(0, np.int32)] * len(vectors))
    np.testing.assert_allclose(
        np.take_along_axis(scores, found.astype(np.int64), axis=1),
        -np.sort(-scores)[:, :5],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda engine: ItemChange(item_id=""),
        lambda engine: ItemChange(item_id="a\0b"),
        lambda engine: ItemChange(item_id="i", vector=(1.0,)),
        lambda engine: new(engine, vector=(float("nan"),)),
        lambda engine: new(engine, vector=(1e30,)),
        lambda engine: ItemChange(item_id="i", like=("x",) * 101),
        lambda engine: ItemChange(item_id="i", attributes={"title": "x" * 5000}),
        lambda engine: ItemChange(item_id="i", attributes={"title": object()}),
        lambda engine: ItemChange(item_id="i", attributes={"price": float("nan")}),
    ],
)
def test_a_change_that_cannot_be_kept_changes_nothing(
    engine: Engine, change: Callable[[Engine], ItemChange]
) -> None:
    best = shown(engine)[0]
    with pytest.raises(InvalidRequest):
        engine.change_items([ItemChange(item_id=best, is_served=False), change(engine)])
    assert shown(engine)[0] == best
