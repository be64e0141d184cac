"""What the stages are worth: retrieval alone is what evaluation measures, gains are paired, tables made."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recserve.benchmarks import slate_quality
from recserve.benchmarks.tables import tables_of
from recserve.engine import Engine, EngineConfig
from recserve.exporters.assemble import export_run
from recserve.training.data import load_dataset
from recserve.training.evaluate import evaluate_model
from recserve.training.loop import popularity_of
from recserve.training.run import Run

SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=3000,seed=7"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("runs")
    return slate_quality.trained(folder / "als", load_dataset(SHOP), "als", {"epochs": 2})


@pytest.fixture(scope="module")
def engine(run: Run) -> Iterator[Engine]:
    settings = {"epochs": 1, "labels": "listwise"}
    ranker = slate_quality.trained(run.folder.with_name("ranker"), run.dataset, "deepfm", settings)
    bundle: Path = run.folder.with_name("bundle")
    export_run(run, bundle, ranker=ranker)
    with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
        yield engine


def test_retrieval_alone_is_what_the_evaluation_measures(engine: Engine, run: Run) -> None:
    alone, *others = slate_quality.two_stages(engine, run, "als")
    split = run.split()
    known = evaluate_model(run.best_model(), split.test, popularity_of(split, run.dataset.n_items))
    assert alone["ndcg@10"]["mean"] == pytest.approx(known.metrics["NDCG@10"].mean, abs=1e-6)
    assert alone["gain"] == {"mean": 0, "low": 0, "high": 0}
    for row in others:
        gained = row["ndcg@10"]["mean"] - alone["ndcg@10"]["mean"]
        assert row["gain"]["mean"] == pytest.approx(gained)
        assert row["gain"]["low"] <= gained <= row["gain"]["high"]


def test_more_weight_is_more_diversity_and_tables_are_made(engine: Engine, run: Run) -> None:
    rows = slate_quality.diversities(engine, run, "als")
    assert len(rows) == 2 * len(slate_quality.DIVERSITIES)
    alone = [row["diversity_raised"] for row in rows if row["what"] == "als alone"]
    assert 0 < alone[0] <= alone[-1]
    estimate = {"mean": 0.7, "low": 0.6, "high": 0.8}
    result = {
        "bench": "slate_quality",
        "protocol": "a shop",
        "two_stages": [{"what": "als alone", "ndcg@10": estimate, "gain": estimate}],
        "diversity": rows,
        "context": {
            "model": "deepfm",
            "auc": {"all": estimate, "neither": estimate},
            "gain_over": {"neither": estimate},
        },
    }
    stages, diversity, context = tables_of(result)
    assert stages.rows == [["als alone", "0.7000", "+0.7000 (+0.6000 to +0.8000)"]]
    assert len(diversity.rows) == len(rows)
    assert [row[2] for row in context.rows] == ["", "+0.7000 (+0.6000 to +0.8000)"]


def test_the_auc_is_that_of_the_next_item(engine: Engine, run: Run) -> None:
    values = slate_quality.aucs(run)
    assert values.shape == run.split().test.user_index.shape
    assert ((values >= 0) & (values <= 1)).all()
    # Better than chance, which has a half.
    assert values.mean() > 0.5
