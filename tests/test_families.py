"""Every family from events to a slate, through the command line alone."""

import json
from pathlib import Path

import pytest

from recserve.engine import cli

SHOP = "synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4"
# What keeps a family's training short.
SERVED = {
    "als": ["--embedding-size", "8", "--epochs", "2"],
}


def run(capfd: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    assert end.value.code == 0
    return capfd.readouterr().out


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
