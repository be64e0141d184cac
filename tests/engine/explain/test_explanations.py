"""Explanations: numbers that are what they say they are, reasons from one closed list."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recserve.engine import Boost, ConfigError, Engine, EngineConfig, InvalidRequest, Pin, Request, Rules
from recserve.engine.bundle import open_bundle
from recserve.engine.explain.explained import MAX_NAMED
from recserve.engine.explain.explanation import Explanation, ReasonCode
from recserve.engine.explain.stage import MAX_ITEMS, N_FAST
from recserve.engine.ranked import Ranked, slates
from recserve.engine.types import Slate
from recserve.engine.user_table import UserTable
from recserve.engine.wire.convert import slate_from_message, slate_to_message
from recserve.engine.wire.slates import encode_ranked
from recserve.kernels import fold_in_shares, gram_matrix
from recserve.proto import recommender_pb2 as pb

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def shop(bundle_folder: Path) -> Iterator[Engine]:
    with Engine.load(bundle_folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def table(table_bundle_folder: Path) -> Iterator[Engine]:
    with Engine.load(table_bundle_folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def two_stage(two_stage_folder: Path) -> Iterator[Engine]:
    with Engine.load(two_stage_folder) as engine:
        yield engine


def explanations(slate: Slate) -> list[Explanation]:
    found = [item.explanation for item in slate.items if item.explanation is not None]
    assert len(found) == len(slate.items)
    return found


def score_of(engine: Engine, item_id: str, rated: list[tuple[str, float]]) -> float:
    history, values = zip(*rated, strict=True)
    only = f"item_id = {item_id!r}"
    request = Request(history=history, history_values=values, k=1, include_seen=True, filter=only)
    [item] = engine.recommend(request).items
    return item.score


@pytest.mark.parametrize("name", ["shop", "table", "two_stage"])
def test_an_exact_contribution_is_what_the_score_loses_without_the_item(
    name: str, request: pytest.FixtureRequest
) -> None:
    engine: Engine = request.getfixturevalue(name)
    history = engine.history(engine.user_ids()[3])
    # An item that stands there twice is left out with both.
    history = [*history, history[0]]
    # A second stage reads how the items were rated.
    ratings = [1.0 + i % 5 for i in range(len(history))]
    slate = engine.recommend(Request(history=history, history_values=ratings, k=3, explain="exact"))
    assert list(slate.stage_ns)[-2:] == ["explain", "assemble"]
    for item, explanation in zip(slate.items, explanations(slate), strict=True):
        assert explanation.method == "leave_one_out"
        values = [found.value for found in explanation.contributions]
        assert values == sorted(values, reverse=True)
        assert explanation.base + sum(values) == pytest.approx(item.score, abs=TOLERANCE)
        assert {found.item_id for found in explanation.contributions} <= set(history)
        for found in explanation.contributions:
            rated = zip(history, ratings, strict=True)
            without = [(item_id, value) for item_id, value in rated if item_id != found.item_id]
            expected = item.score - score_of(engine, item.item_id, without)
            assert found.value == pytest.approx(expected, abs=TOLERANCE)


def test_the_only_item_of_a_history_has_the_whole_score(shop: Engine, table: Engine) -> None:
    for engine in (shop, table):
        [first, *_] = engine.history(engine.user_ids()[3])
        [found] = explanations(engine.recommend(Request(history=[first], k=1, explain="exact")))
        assert found.base == pytest.approx(0.0, abs=TOLERANCE)


def test_fast_contributions_of_a_table_are_the_largest_shares(
    table: Engine, table_bundle_folder: Path
) -> None:
    bundle = open_bundle(table_bundle_folder)
    parameters = bundle.manifest.variants["fp32"].fold_in
    assert parameters is not None
    user = table.user_ids()[3]
    slate = table.recommend(Request(user_id=user, k=10, explain="fast"))
    history = bundle.catalogue.vocabulary.indices(table.history(user))
    vectors = np.asarray(bundle.item_embeddings)
    _, shares = fold_in_shares(
        vectors,
        history,
        parameters.weight,
        bundle.catalogue.vocabulary.indices([item.item_id for item in slate.items]),
        len(history),
        parameters.reg,
        reg_exponent=parameters.reg_exponent,
        gram=gram_matrix(vectors),
    )
    for row, item, explanation in zip(shares, slate.items, explanations(slate), strict=True):
        assert explanation.method == "share"
        found = [one.value for one in explanation.contributions]
        assert found == pytest.approx(row[:N_FAST], abs=TOLERANCE)
        assert explanation.base + sum(found) == pytest.approx(item.score, abs=TOLERANCE)
        # The row of the table is the fold-in of this history: nothing of the score is left over.
        assert row.sum() == pytest.approx(item.score, abs=TOLERANCE)
        [named] = explanation.reasons
        assert named.code == ReasonCode.BECAUSE_YOU_HAD
        strongest = [one.item_id for one in explanation.contributions if one.value > 0][:MAX_NAMED]
        assert list(named.item_ids) == strongest


@pytest.mark.parametrize("name", ["shop", "two_stage"])
def test_fast_contributions_of_an_encoder_are_cosines(
    name: str, request: pytest.FixtureRequest, bundle_folder: Path
) -> None:
    engine: Engine = request.getfixturevalue(name)
    history = engine.history(engine.user_ids()[3])[-open_bundle(bundle_folder).manifest.inputs.max_history :]
    slate = engine.recommend(Request(user_id=engine.user_ids()[3], k=5, explain="fast"))
    for item, explanation in zip(slate.items, explanations(slate), strict=True):
        assert (explanation.method, explanation.base) == ("similarity", pytest.approx(item.score))
        similar = {found.item_id: found.score for found in engine.similar_items(item.item_id, 1000).items}
        best = sorted(((similar[item_id], item_id) for item_id in set(history)), reverse=True)[:N_FAST]
        found = [(one.value, one.item_id) for one in explanation.contributions]
        assert [item_id for _, item_id in found] == [item_id for _, item_id in best]
        assert [value for value, _ in found] == pytest.approx([value for value, _ in best], abs=TOLERANCE)


def test_long_histories_are_explained_by_their_newest_items(table: Engine) -> None:
    ids = [item.item_id for item in table.recommend(Request(k=120)).items]
    slate = table.recommend(Request(history=ids[:80], k=2, explain="exact"))
    for item, explanation in zip(slate.items, explanations(slate), strict=True):
        assert {one.item_id for one in explanation.contributions} == set(ids[80 - MAX_ITEMS : 80])
        total = explanation.base + sum(one.value for one in explanation.contributions)
        assert total == pytest.approx(item.score, abs=TOLERANCE)


def test_rules_and_cold_starts_have_their_reasons(shop: Engine) -> None:
    user = shop.user_ids()[3]
    plain = shop.recommend(Request(user_id=user, k=50))
    pinned = plain.items[-1].item_id
    category = shop.get_items([pinned])[pinned]["category"]
    rules = Rules(pins=[Pin(pinned, 2)], boosts=[Boost(f"category = {category!r}", 0.1)])
    slate = shop.recommend(Request(user_id=user, k=20, rules=rules, explain="fast"))
    values = shop.get_items([item.item_id for item in slate.items])
    for item, explanation in zip(slate.items, explanations(slate), strict=True):
        codes = [reason.code for reason in explanation.reasons]
        assert (ReasonCode.PINNED in codes) == (item.item_id == pinned)
        assert (ReasonCode.BOOSTED in codes) == (values[item.item_id]["category"] == category)
        assert ReasonCode.POPULAR not in codes
    cold = shop.recommend(Request(k=5, explain="exact"))
    for item, explanation in zip(cold.items, explanations(cold), strict=True):
        assert [reason.code for reason in explanation.reasons] == [ReasonCode.POPULAR]
        assert (explanation.contributions, explanation.base) == ((), pytest.approx(item.score))
    nobody = shop.recommend(Request(user_id=user, filter="price < 0", explain="exact"))
    assert nobody.items == ()


def test_new_items_are_called_new(shop: Engine, bundle_folder: Path) -> None:
    counts = open_bundle(bundle_folder).popularity
    every = shop.recommend(Request(user_id=shop.user_ids()[3], k=1000, explain="fast"))
    codes = [[reason.code for reason in explanation.reasons] for explanation in explanations(every)]
    index = open_bundle(bundle_folder).catalogue.vocabulary.index_of
    assert [ReasonCode.NEW in row for row in codes] == [
        counts[index(item.item_id)] == 0 for item in every.items
    ]
    assert all(codes)


@pytest.mark.parametrize("level", ["fast", "exact"])
def test_a_batch_explains_as_a_request_alone(shop: Engine, level: str) -> None:
    requests = [Request(user_id=user, k=4, explain=level) for user in shop.user_ids()[:4]]
    mixed = [*requests, Request(user_id=shop.user_ids()[5]), Request(explain=level, k=2)]
    for alone, together in zip(map(shop.recommend, mixed), shop.recommend_many(mixed), strict=True):
        assert [item.item_id for item in alone.items] == [item.item_id for item in together.items]
        for one, other in zip(alone.items, together.items, strict=True):
            if one.explanation is None or other.explanation is None:
                assert one.explanation is other.explanation
                continue
            assert one.explanation.reasons == other.explanation.reasons
            ours = {found.item_id: found.value for found in one.explanation.contributions}
            theirs = {found.item_id: found.value for found in other.explanation.contributions}
            assert ours == pytest.approx(theirs, abs=TOLERANCE)


def test_explanations_survive_the_wire(shop: Engine) -> None:
    requests = [
        Request(user_id=shop.user_ids()[1], k=3, explain="exact"),
        Request(user_id=shop.user_ids()[2], k=3),
        Request(k=2, explain="fast"),
    ]
    ranked = [answer for answer in shop.rank_each(requests) if isinstance(answer, Ranked)]
    for data, slate in zip(encode_ranked(ranked), slates(ranked), strict=True):
        message = pb.Slate.FromString(data)
        assert message == slate_to_message(slate)
        read = slate_from_message(message)
        assert [item.explanation for item in read.items] == [item.explanation for item in slate.items]


def test_other_levels_are_refused(shop: Engine) -> None:
    with pytest.raises(InvalidRequest, match="explain is why; expected one of none, fast, exact"):
        shop.recommend(Request(explain="why"))


def test_the_operator_says_how_much_may_be_asked(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(explain="fast")) as engine:
        assert explanations(engine.recommend(Request(k=1, explain="fast")))
        with pytest.raises(InvalidRequest, match="explain is exact; expected one of none, fast"):
            engine.recommend(Request(explain="exact"))
    with pytest.raises(ConfigError, match=r"engine\.explain is all; expected one of none, fast, exact"):
        EngineConfig(explain="all")


def test_a_table_without_fold_in_says_what_it_cannot_explain(
    table: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a bundle whose manifest has no fold-in.
    monkeypatch.setattr(UserTable, "answers", lambda self, history: history.user_row >= 0)
    monkeypatch.setattr(UserTable, "shares", lambda self, history, items, n: None)
    fast, exact = (
        table.recommend(Request(user_id=table.user_ids()[3], k=3, explain=level))
        for level in ("fast", "exact")
    )
    assert fast.warnings == ()
    assert {explanation.method for explanation in explanations(fast)} == {"similarity"}
    [warning] = exact.warnings
    assert "explanations have no numbers" in warning
    for item, explanation in zip(exact.items, explanations(exact), strict=True):
        assert (explanation.method, explanation.contributions) == ("", ())
        assert explanation.base == pytest.approx(item.score)
