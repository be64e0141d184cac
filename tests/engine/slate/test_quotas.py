"""Candidates from several sources: the union, where each item comes from, the ladder of cold starts."""

import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine import Engine, EngineConfig, InvalidRequest, PipelineConfig, Request, Rules, Slate
from recserve.engine.bundle import open_bundle
from recserve.engine.client import RecommenderClient
from recserve.engine.ranked import Ranked, slates
from recserve.engine.server.config import ServerConfig
from recserve.engine.slate.quotas import Origins, Source, in_shares, merge
from recserve.engine.wire.convert import slate_to_message
from recserve.engine.wire.slates import encode_ranked
from recserve.errors import BundleReason, ConfigError
from recserve.proto import recommender_pb2 as pb
from recserve.training.run import Run
from tests.engine.bundle.conftest import BundleCopy, Case, refused
from tests.engine.server.conftest import running

law = settings(deadline=None, max_examples=25, derandomize=True)
ALL = {"model": 6.0, "similar": 2.0, "segment": 2.0, "popularity": 1.0, "new": 1.0, "explore": 1.0}
QUOTAS = st.dictionaries(st.sampled_from(list(ALL)), st.sampled_from([0.5, 1.0, 3.0]), min_size=1)


def ids_of(slate: Slate) -> list[str]:
    return [item.item_id for item in slate.items]


def user_of(engine: Engine, number: int) -> str:
    return "" if number % 5 == 0 else engine.user_ids()[number % len(engine.user_ids())]


def source(name: str, quota: float, items: list[int]) -> Source:
    scores = np.linspace(1, 0, len(items), dtype=np.float32)
    return Source(name, quota, scores, np.array(items, np.int32))


LISTS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]), st.lists(st.integers(0, 30), unique=True)),
    min_size=1,
    max_size=4,
)


@law
@given(st.lists(st.sampled_from(["model", "new", "similar"]), max_size=30), st.randoms(use_true_random=False))
def test_a_new_order_leaves_the_places_to_their_sources(names: list[str], random: Random) -> None:
    items = random.sample(range(100), len(names))
    shuffled = random.sample(items, len(items))
    origins = Origins(np.array(items, np.int32), names, np.zeros(len(names), np.float32))
    given_scores = np.array(shuffled, np.float32) / 2
    scores, moved = in_shares(origins, given_scores, np.array(shuffled, np.int32))
    source_of = dict(zip(items, names, strict=True))
    assert [source_of[item] for item in moved.tolist()] == names
    assert (scores * 2).tolist() == moved.tolist()
    for name in set(names):
        own = [item for item in shuffled if source_of[item] == name]
        assert [item for item in moved.tolist() if source_of[item] == name] == own


@law
@given(LISTS, st.integers(0, 40))
def test_the_union_has_every_item_once_at_its_best_place(
    lists: list[tuple[float, list[int]]], n: int
) -> None:
    sources = [source(str(i), quota, items) for i, (quota, items) in enumerate(lists)]
    best: dict[int, tuple[float, int]] = {}
    for owner, (quota, items) in enumerate(lists):
        for j, item in enumerate(items, start=1):
            place = (j / quota if quota else np.inf, owner)
            best[item] = min(best.get(item, place), place)
    found = merge(sources, n)
    places = [best[item] for item in found.items.tolist()]
    assert len(set(found.items.tolist())) == len(places) == min(n, len(best))
    assert places == sorted(best.values())[:n]
    for item, name, score in zip(found.items.tolist(), found.names, found.scores.tolist(), strict=True):
        assert int(name) == best[item][1]
        assert score == sources[int(name)].scores[lists[int(name)][1].index(item)]


@law
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 60))
def test_sources_get_their_shares(quotas: list[int], n: int) -> None:
    sources = [source(str(i), quota, list(range(100 * i, 100 * i + 60))) for i, quota in enumerate(quotas)]
    names = merge(sources, n).names
    for i, quota in enumerate(quotas):
        assert names.count(str(i)) >= n * quota // sum(quotas)


@law
@given(st.integers(0, 119), QUOTAS, st.integers(1, 60), st.sampled_from(["", "price < 20"]))
def test_every_item_is_one_that_its_source_has(
    mixed: Engine, number: int, quotas: dict[str, float], k: int, filter: str
) -> None:
    user, context = user_of(mixed, number), {"country": "DE", "hour": "9"}
    banned = ids_of(mixed.recommend(Request(k=2)))
    fields = {"user_id": user, "context": context, "filter": filter, "exclude": banned}
    slate = mixed.recommend(Request(k=k, rules=Rules(quotas=quotas), seed=number, **fields))  # type: ignore[arg-type]
    everything = mixed.recommend(Request(k=1000, **fields))  # type: ignore[arg-type]
    scores = {item.item_id: item.score for item in everything.items}
    assert slate.source == everything.source == ("model" if user else "segment")
    assert len(set(ids_of(slate))) == len(slate.items) == min(k, len(scores))
    assert set(ids_of(slate)) <= set(scores)
    offered = {slate.source, *(name for name in quotas if name != "model")}
    assert {item.source for item in slate.items} <= offered
    for item in slate.items:
        assert item.score == pytest.approx(scores[item.item_id], abs=1e-4)
        if item.source == slate.source:
            assert item.retrieval_score == pytest.approx(item.score, abs=1e-4)
    if offered == {slate.source}:
        assert ids_of(slate) == ids_of(everything)[:k]


def test_each_source_brings_what_it_is_for(mixed: Engine, segmented_folder: Path) -> None:
    bundle, user = open_bundle(segmented_folder), user_of(mixed, 1)
    index_of = bundle.catalogue.vocabulary.index_of

    def brought(name: str, **fields: object) -> list[int]:
        # The model has no quota: it only fills up behind.
        asked = Request(k=12, rules=Rules(quotas={name: 1.0}), include_seen=True, **fields)  # type: ignore[arg-type]
        slate = mixed.recommend(asked)
        assert {item.source for item in slate.items} == {name}
        scores = [item.retrieval_score for item in slate.items]
        assert scores == sorted(scores, reverse=True)
        return [index_of(item_id) for item_id in ids_of(slate)]

    popular = np.argsort(-bundle.popularity, kind="stable")[:12].tolist()
    assert brought("popularity", user_id=user) == popular
    first_seen = bundle.array("first_seen.npy", np.dtype(np.int64), bundle.popularity.shape)
    # What nobody had yet is as new as the newest.
    first_seen = np.where(first_seen > 0, first_seen, first_seen.max())
    newest = brought("new", user_id=user)
    assert sorted(first_seen[newest], reverse=True) == sorted(first_seen, reverse=True)[:12]
    liked = bundle.item_embeddings[[index_of(id_) for id_ in mixed.history(user)[-3:]]]
    norms = np.linalg.norm(bundle.item_embeddings, axis=1, keepdims=True)
    units = bundle.item_embeddings / np.maximum(norms, 1e-30)
    direction = (liked / np.linalg.norm(liked, axis=1, keepdims=True)).mean(axis=0)
    assert brought("similar", user_id=user) == np.argsort(-(units @ direction), kind="stable")[:12].tolist()
    drawn = brought("explore", user_id=user, seed=4)
    assert drawn == brought("explore", user_id=user, seed=4)
    assert drawn != brought("explore", user_id=user, seed=5)
    assert drawn != brought("explore", user_id=user_of(mixed, 2), seed=4)
    assert brought("explore", user_id=user) != brought("explore", user_id=user)


def test_a_cold_start_is_answered_by_its_segments(mixed: Engine, segmented_run: Run) -> None:
    dataset = segmented_run.dataset
    joined = dataset.interactions.join(dataset.users.with_row_index("user_index"), on="user_index")
    n_items, of_all = dataset.n_items, dataset.popularity() / dataset.popularity().sum()

    def smoothed(chosen: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        counts = np.bincount(joined["item_index"].to_numpy()[chosen], minlength=n_items)
        return (counts + 1000 * of_all) / (counts.sum() + 1000)  # type: ignore[no-any-return]

    german = smoothed((joined["country"] == "DE").fill_null(False).to_numpy())
    morning = smoothed(joined["timestamp"].to_numpy() // 3600 % 24 == 9)
    ids = dataset.items["item_id"].to_list()
    for context, shares in (
        ({"country": "DE", "hour": "9"}, (german + morning) / 2),
        ({"country": "nowhere", "hour": "9"}, morning),
        # An age of three users or four is no segment.
        ({"country": "DE", "hour": "9", "age": "33"}, (german + morning) / 2),
    ):
        slate = mixed.recommend(Request(k=20, context=context))
        assert slate.source == "segment"
        found = [shares[ids.index(item_id)] for item_id in ids_of(slate)]
        assert found == pytest.approx(sorted(shares, reverse=True)[:20], abs=1e-6)
        assert [item.score for item in slate.items] == pytest.approx(found, abs=1e-6)
        assert slate.warnings == ()
    with pytest.raises(InvalidRequest, match=r"context\[hour\] is noon; expected 0 to 23"):
        mixed.recommend(Request(context={"hour": "noon"}))
    assert mixed.recommend(Request(history=ids[:1], context={"country": "DE"})).source == "model"


def test_without_segments_popularity_answers(shop: Engine) -> None:
    assert shop.recommend(Request(k=3, context={"country": "DE"})).source == "popularity"


def test_pages_by_quotas_reach_everything_once(mixed: Engine) -> None:
    user, rules = user_of(mixed, 1), Rules(quotas=ALL, caps={"category": 12})
    everything = set(ids_of(mixed.recommend(Request(user_id=user, k=1000))))
    shown: list[str] = []
    token: str | None = ""
    while token is not None and len(shown) <= len(everything):
        slate = mixed.recommend(Request(user_id=user, k=150, rules=rules, seed=1, page_token=token))
        shown += ids_of(slate)
        token = slate.next_page_token or None
    assert len(shown) == len(set(shown))
    assert set(shown) == everything


@law
@given(st.lists(st.tuples(st.integers(0, 9), QUOTAS, st.integers(1, 20)), min_size=1, max_size=4))
def test_rows_of_a_page_and_alone_as_in_a_batch(
    mixed: Engine, asked: list[tuple[int, dict[str, float], int]]
) -> None:
    rows = [
        Request(user_id=user_of(mixed, number), k=k, rules=Rules(quotas=quotas, candidates=40), seed=number)
        for number, quotas, k in asked
    ]
    alone = [mixed.recommend(row) for row in rows]
    assert [ids_of(slate) for slate in mixed.recommend_many(rows)] == [ids_of(slate) for slate in alone]
    before: list[str] = []
    for row, slate in zip(
        rows, mixed.recommend_page({str(i): row for i, row in enumerate(rows)}).values(), strict=True
    ):
        fields = {name: getattr(row, name) for name in ("user_id", "k", "rules", "seed")}
        assert ids_of(slate) == ids_of(mixed.recommend(Request(**fields, exclude=before)))
        before += ids_of(slate)


def test_quotas_of_the_operator_and_of_the_request(segmented_folder: Path) -> None:
    config = EngineConfig(pipeline=PipelineConfig(quotas={"model": 1, "new": 1}))
    with Engine.load(segmented_folder, config) as engine:
        user = user_of(engine, 1)
        sources = [item.source for item in engine.recommend(Request(user_id=user, k=8)).items]
        assert sources.count("new") == sources.count("model") == 4
        own = engine.recommend(Request(user_id=user, k=8, rules=Rules(quotas={"model": 1.0})))
        assert {item.source for item in own.items} == {"model"}


def test_sources_travel(mixed: Engine) -> None:
    request = Request(user_id=user_of(mixed, 1), k=9, rules=Rules(quotas=ALL), seed=7)
    answers = [answer for answer in mixed.rank_each([request, Request(k=2)]) if isinstance(answer, Ranked)]
    for data, slate in zip(encode_ranked(answers), slates(answers), strict=True):
        assert pb.Slate.FromString(data) == slate_to_message(slate)
    with running(ServerConfig(port=0, default_deadline_ms=30_000)) as server:
        server.serve(mixed)
        with RecommenderClient(server.address, timeout=30) as client:
            assert client.recommend(request).items == mixed.recommend(request).items


REFUSED: dict[str, Request] = {
    "rules.quotas is modle": Request(rules=Rules(quotas={"modle": 1})),
    r"rules.quotas.new is -1": Request(rules=Rules(quotas={"new": -1})),
    r"rules.quotas.new is nan": Request(rules=Rules(quotas={"new": float("nan")})),
    "rules.quotas is all 0": Request(rules=Rules(quotas={"new": 0})),
    "rules.quotas is segment; expected a source that the bundle has": Request(
        rules=Rules(quotas={"segment": 1})
    ),
    "seed is -1": Request(seed=-1),
    "seed is 1.5": Request(seed=1.5),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_quotas_that_cannot_be_kept_are_refused(shop: Engine, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        shop.recommend(REFUSED[sentence])


def test_an_operator_s_quota_of_a_missing_source_is_a_config_error(bundle_folder: Path) -> None:
    config = EngineConfig(pipeline=PipelineConfig(quotas={"segment": 1}))
    with pytest.raises(ConfigError, match=r"pipeline\.quotas is segment"):
        Engine.load(bundle_folder, config)


BROKEN = {
    "an item that is none": Case(
        BundleReason.VALUE_RANGE,
        "segments/items.npy",
        lambda bundle: bundle.write_array("segments/items.npy", bundle.array("segments/items.npy") + 900),
    ),
    "another shape": Case(
        BundleReason.SHAPE,
        "segments/shares.npy",
        lambda bundle: bundle.write_array("segments/shares.npy", bundle.array("segments/shares.npy")[1:]),
    ),
    "rising shares": Case(
        BundleReason.VALUE_RANGE,
        "segments/shares.npy",
        lambda bundle: bundle.write_array(
            "segments/shares.npy", bundle.array("segments/shares.npy")[:, ::-1]
        ),
    ),
    "a vocabulary that is none": Case(
        BundleReason.CONTENT_MALFORMED,
        "segments/vocabulary-0.json",
        lambda bundle: bundle.write("segments/vocabulary-0.json", b"[1]"),
    ),
    "a file that is not listed": Case(
        BundleReason.MANIFEST_FIELD,
        "a file of the segments",
        lambda bundle: bundle.edit(lambda manifest: manifest["segments"].update(items="other.npy")),
    ),
    "a kind that is none": Case(
        BundleReason.MANIFEST_FIELD,
        "kind of feature country",
        lambda bundle: bundle.edit(lambda manifest: manifest["segments"]["features"][0].update(kind="id")),
    ),
    "another type of times": Case(
        BundleReason.ARRAY_TYPE,
        "first_seen.npy",
        lambda bundle: bundle.write_array("first_seen.npy", bundle.array("first_seen.npy").astype(np.int32)),
    ),
}


@pytest.mark.parametrize("label", BROKEN)
def test_broken_segments_are_refused(segmented_folder: Path, tmp_path: Path, label: str) -> None:
    refused(BundleCopy(shutil.copytree(segmented_folder, tmp_path / "bundle")), BROKEN[label])
