"""Bundles whose query embedding is a row of a user table, or folded in."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.exporters.assemble import export_run
from recserve.kernels import reference
from recserve.training.run import open_run

# A row was solved among others and stored as float32; a fold-in in another batch is the same number.
TOLERANCE = 1e-5


@pytest.fixture
def engine(table_bundle_folder: Path) -> Iterator[Engine]:
    with Engine.load(table_bundle_folder) as engine:
        yield engine


def scores(engine: Engine, request: Request) -> dict[str, float]:
    return {item.item_id: item.score for item in engine.recommend(request).items}


def expected_scores(engine: Engine, folder: Path, history: list[str]) -> dict[str, float]:
    """Solves the fold-in with NumPy and scores every item."""
    bundle = open_bundle(folder)
    fold_in = bundle.manifest.variants["fp32"].fold_in
    assert fold_in is not None
    items, counts = np.unique(bundle.catalogue.vocabulary.indices(history), return_counts=True)
    user = reference.fold_in(
        np.asarray(bundle.item_embeddings),
        (np.array([0, len(items)]), items),
        (counts * fold_in.weight).astype(np.float32),
        fold_in.reg,
        reg_exponent=fold_in.reg_exponent,
    )
    return dict(zip(bundle.catalogue.vocabulary, (user @ bundle.item_embeddings.T)[0].tolist(), strict=True))


def test_a_known_user_has_the_row_of_the_table(engine: Engine, table_bundle_folder: Path) -> None:
    bundle = open_bundle(table_bundle_folder)
    assert bundle.user_embeddings is not None
    for row in (0, 7, len(engine.user_ids()) - 1):
        slate = engine.recommend(Request(user_id=engine.user_ids()[row], k=20))
        assert slate.source == "model"
        best = bundle.catalogue.vocabulary.indices([item.item_id for item in slate.items])
        found = [item.score for item in slate.items]
        products = bundle.item_embeddings[best] @ bundle.user_embeddings[row]
        np.testing.assert_allclose(found, products, atol=TOLERANCE)
        assert found == sorted(found, reverse=True)


def test_a_history_is_folded_in(engine: Engine, table_bundle_folder: Path) -> None:
    user = engine.user_ids()[3]
    history = engine.history(user)
    expected = expected_scores(engine, table_bundle_folder, history)
    for request in (
        Request(user_id=user, k=50),
        Request(user_id=user, history=history, k=50),
        Request(history=history[::-1], k=50),
    ):
        found = scores(engine, request)
        assert not found.keys() & set(history)
        np.testing.assert_allclose(list(found.values()), [expected[item] for item in found], atol=TOLERANCE)


def test_a_repeated_item_counts_as_surer_and_not_as_another(
    engine: Engine, table_bundle_folder: Path
) -> None:
    first, second = engine.history(engine.user_ids()[3])[:2]
    expected = expected_scores(engine, table_bundle_folder, [first, second, first])
    found = scores(engine, Request(history=[first, second, first], k=30))
    np.testing.assert_allclose(list(found.values()), [expected[item] for item in found], atol=TOLERANCE)


def test_an_observed_event_is_folded_in(engine: Engine, table_bundle_folder: Path) -> None:
    user = engine.user_ids()[3]
    before = engine.recommend(Request(user_id=user, k=10))
    clicked = before.items[0].item_id
    engine.observe(user_id=user, item_id=clicked)
    expected = expected_scores(engine, table_bundle_folder, engine.history(user))
    found = scores(engine, Request(user_id=user, k=10))
    assert clicked not in found
    np.testing.assert_allclose(list(found.values()), [expected[item] for item in found], atol=TOLERANCE)
    assert engine.observe(user_id="newcomer", item_id=clicked)
    assert engine.recommend(Request(user_id="newcomer")).source == "model"


def test_a_batch_of_rows_fold_ins_and_cold_starts_gives_what_single_requests_give(engine: Engine) -> None:
    users = list(engine.user_ids())
    requests = [Request(user_id=user, k=5) for user in users[:5]]
    requests += [Request(history=engine.history(user)[:n], k=7) for n, user in enumerate(users[5:10])]
    requests += [Request(), Request(user_id="nobody"), Request(user_id=users[0], history=[])]
    for request, batched in zip(requests, engine.recommend_many(requests), strict=True):
        alone = engine.recommend(request)
        assert batched.source == alone.source
        assert batched.items == alone.items
    assert [engine.recommend(request).source for request in requests[-3:]] == ["popularity"] * 3


def test_without_histories_users_bring_their_own(als_run_folder: Path, tmp_path: Path) -> None:
    run = open_run(als_run_folder)
    export_run(run, tmp_path / "bundle", histories=False)
    with Engine.load(tmp_path / "bundle") as engine:
        assert len(engine.user_ids()) == 0
        assert engine.recommend(Request(user_id=run.dataset.users["user_id"][0])).source == "popularity"
        item = run.dataset.items["item_id"][0]
        assert engine.recommend(Request(history=[item])).source == "model"
