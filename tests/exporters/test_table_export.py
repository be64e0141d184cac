"""Export of models that are two tables: what is served is what was evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.engine import Engine, InvalidRequest, Request
from recserve.engine.bundle import open_bundle
from recserve.engine.explain.explanation import Explanation, Reason, ReasonCode
from recserve.errors import CheckFailed
from recserve.exporters import table_variant
from recserve.exporters.assemble import export_run
from recserve.kernels import reference
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer
from recserve.training.models.popularity import Popularity
from recserve.training.models.tables import TableModel
from recserve.training.run import Run, create_run, open_run

SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=2500,seed=6"
TOLERANCE = 1e-4


def trained(folder: Path, model: str, **settings: object) -> Run:
    run = create_run(folder, run_config(model, "leave-one-out", settings), load_dataset(SHOP))
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    return run


def test_the_engine_answers_a_history_as_the_evaluation_scored_it(
    als_run_folder: Path, table_bundle_folder: Path
) -> None:
    run = open_run(als_run_folder)
    held_out, item_ids = run.split().test, run.dataset.items["item_id"].to_list()
    scores = run.best_model().score_rows(held_out, np.arange(len(held_out.user_index)))
    with Engine.load(table_bundle_folder) as engine:
        for row, expected in enumerate(scores):
            seen = held_out.histories.row(row)[0]
            slate = engine.recommend(Request(history=[item_ids[item] for item in seen], k=10))
            expected[seen] = -np.inf
            found = [expected[item_ids.index(item.item_id)] for item in slate.items]
            np.testing.assert_allclose([item.score for item in slate.items], found, atol=TOLERANCE)
            np.testing.assert_allclose(found, np.sort(expected)[::-1][:10], atol=TOLERANCE)


def test_bpr_serves_the_row_that_it_learned(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "bpr", embedding_size=8, epochs=5, validate_every=5)
    export_run(run, tmp_path / "bundle")
    model, bundle = run.best_model(), open_bundle(tmp_path / "bundle")
    assert isinstance(model, TableModel)
    np.testing.assert_array_equal(bundle.user_embeddings, model.user_embeddings.numpy())


def test_popularity_is_the_same_for_all_but_for_what_they_saw(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "popularity")
    export_run(run, tmp_path / "bundle")
    model = run.best_model()
    assert isinstance(model, Popularity)
    share = dict(zip(run.dataset.items["item_id"], model.item_embeddings[:, 0].tolist(), strict=True))
    with Engine.load(tmp_path / "bundle") as engine:
        for user in list(engine.user_ids())[:5]:
            seen = set(engine.history(user))
            slate = engine.recommend(Request(user_id=user, k=10))
            assert slate.source == "model"
            best = sorted((value for item, value in share.items() if item not in seen), reverse=True)[:10]
            assert [item.score for item in slate.items] == pytest.approx(best)
        assert engine.recommend(Request(history=engine.history(user))).source == "popularity"
        for level in ("fast", "exact"):
            for item in engine.recommend(Request(user_id=user, k=3, explain=level)).items:
                assert item.explanation == Explanation((Reason(ReasonCode.POPULAR),), base=item.score)
        with pytest.raises(InvalidRequest, match="model popularity is one number per item"):
            engine.similar_items(next(iter(share)))


def test_a_fold_in_that_disagrees_is_not_published(
    als_run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = reference.fold_in

    def wrong(*arguments: Any, **options: Any) -> Any:
        return right(*arguments, **options) * np.float32(1.001)

    monkeypatch.setattr(table_variant.reference, "fold_in", wrong)
    with pytest.raises(CheckFailed, match="fold-in parity"):
        export_run(open_run(als_run_folder), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
