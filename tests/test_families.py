"""Every family from events to a slate, through the command line alone."""

import json
from pathlib import Path

import pytest

from recserve.engine import cli
from recserve.training.models import MODULES

SHOP = "synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4"
# What keeps a family's training short.
SERVED = {
    "als": ["--embedding-size", "8", "--epochs", "2"],
    "bpr": ["--embedding-size", "8", "--epochs", "3", "--validate-every", "1"],
    "dssm": ["--embedding-size", "8", "--epochs", "2", "--unknown-rate", "0.2"],
    "bert4rec": ["--embedding-size", "8", "--epochs", "1", "--blocks", "1", "--max-history", "5"],
    "gru4rec": ["--embedding-size", "8", "--epochs", "1", "--hidden-size", "8", "--max-history", "5"],
    "hstu": ["--size", "tiny", "--epochs", "1", "--max-history", "5"],
    "graphsage": ["--embedding-size", "8", "--epochs", "2", "--layers", "1", "--unknown-rate", "0.2"],
    "gcn": ["--embedding-size", "8", "--epochs", "2", "--layers", "1", "--unknown-rate", "0.2"],
    "lightgcn": ["--embedding-size", "8", "--epochs", "2", "--layers", "2"],
    "tfidf": ["--embedding-size", "16"],
    "item2vec": ["--embedding-size", "8", "--epochs", "2", "--window", "3"],
    "glove": ["--embedding-size", "8", "--epochs", "2", "--window", "3"],
    "clusters": ["--clusters", "4"],
    "popularity": [],
    "svd": ["--embedding-size", "8", "--epochs", "3"],
    "svdpp": ["--embedding-size", "8", "--epochs", "3"],
    "sasrec": ["--embedding-size", "8", "--epochs", "1", "--blocks", "1", "--max-history", "5"],
}


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert end.value.code == 0
    return capfd.readouterr().out


RATED = ["--labels", "ratings", "--click-at", "2"]
RANKERS = {
    "lr": RATED,
    "fm": RATED,
    "deepfm": RATED,
    "dcn": [*RATED, "--crosses", "3", "--calibration", "platt"],
    "dlrm": RATED,
    "din": RATED,
    "neumf": ["--negatives-per-click", "2"],
    "relevance": RATED,
}
EVALUATED_ONLY = {"ease": ["--reg", "20"], "item-knn": ["--neighbours", "20"]}


def test_every_family_is_here() -> None:
    assert {*SERVED, *EVALUATED_ONLY, *RANKERS} == set(MODULES)


@pytest.mark.parametrize("model", EVALUATED_ONLY)
def test_a_model_from_items_to_items_is_a_baseline_and_not_exported(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(capfd, "train", "--data", SHOP, "--model", model, "--out", folder, *EVALUATED_ONLY[model])
    evaluation = json.loads(run(capfd, "evaluate", folder, "--json"))
    assert evaluation["model"]["metrics"]["NDCG@20"]["mean"] > 0
    with pytest.raises(SystemExit) as end:
        cli.main(["export", str(folder), "--out", str(tmp_path / "bundle")])
    assert end.value.code == 2
    assert f"model {model} for export is neither an encoder nor tables" in capfd.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("model", RANKERS)
def test_a_ranker_is_trained_evaluated_exported_and_asked(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, first, bundle = (tmp_path / name for name in ("run", "popularity", "bundle"))
    options = ["--split", "temporal", "--epochs", "1", "--embedding-size", "4", "--hidden", "8,4"]
    options += ["--max-history", "5", *RANKERS[model]]
    run(capfd, "train", "--data", SHOP, "--model", model, "--out", folder, *options)
    evaluation = json.loads(run(capfd, "evaluate", folder, "--json"))
    assert ("item mean" in evaluation) == (model != "neumf")
    assert evaluation["model"]["metrics"]["MRR@10" if model == "neumf" else "AUC"]["mean"] > 0
    assert "[" in run(capfd, "evaluate", folder)
    of_items = ["--data", SHOP, "--model", "popularity", "--split", "temporal"]
    run(capfd, "train", *of_items, "--out", first)
    run(capfd, "export", first, "--ranker", folder, "--out", bundle)
    slate = json.loads(run(capfd, "recommend", bundle, "-k", "3", "--json"))
    item = slate["items"][0]["item_id"]
    asked = ["--history", item, "-k", "5", "--predict", "click"]
    slate = json.loads(run(capfd, "recommend", bundle, *asked, "--json"))
    assert len({entry["item_id"] for entry in slate["items"]} - {item}) == 5
    assert all(0 < entry["score"] < 1 for entry in slate["items"])


@pytest.mark.parametrize("model", SERVED)
def test_train_evaluate_export_inspect_recommend(
    model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, bundle = tmp_path / "run", tmp_path / "bundle"
    run(capfd, "train", "--data", SHOP, "--model", model, "--seed", "1", "--out", folder, *SERVED[model])
    evaluation = json.loads(run(capfd, "evaluate", folder, "--json"))
    assert set(evaluation) >= {"model", "popularity"}
    exported = json.loads(run(capfd, "export", folder, "--out", bundle, "--json"))
    assert exported["bundle_version"].startswith(f"{model}-")
    shown = json.loads(run(capfd, "inspect", bundle, "--json"))
    assert shown["model"] == model
    assert shown["metrics"]["NDCG@10"] == evaluation["model"]["metrics"]["NDCG@10"]["mean"]
    assert "query embeddings of fp32" in run(capfd, "inspect", bundle)
    slate = json.loads(run(capfd, "recommend", bundle, "-k", "3", "--json"))
    item = slate["items"][0]["item_id"]
    slate = json.loads(run(capfd, "recommend", bundle, "--history", item, "-k", "5", "--json"))
    assert len(slate["items"]) == 5
    assert item not in [entry["item_id"] for entry in slate["items"]]
