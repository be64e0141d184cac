"""Accuracy against diversity: the sweep starts where evaluation stands and moves the way it says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recserve.errors import InvalidRequest
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.evaluate import evaluate_model
from recserve.training.list_metrics import Background
from recserve.training.loop import Trainer, popularity_of
from recserve.training.run import Run, create_run
from recserve.training.sweep_command import show_sweep
from recserve.training.tradeoff import N_POINTS, WEIGHTS

SHOP = "synthetic-shop:n_items=1000,n_users=80,n_events=2500,seed=4"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, settings = tmp_path_factory.mktemp("sweep") / "als", {"embedding_size": 8, "epochs": 2}
    run = create_run(folder, run_config("als", "leave-one-out", settings), load_dataset(SHOP))
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    return run


def test_every_method_moves_from_the_plain_lists_its_own_way(
    run: Run, run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    out, plot = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    code, table, _ = run_cli("evaluate", run.folder, "--sweep", "diversity", "--out", out, "--plot", plot)
    assert code == 0
    assert all(method in table for method in ("score", "mmr", "dpp", "calibrated"))
    assert plot.stat().st_size > 1000
    points: list[dict[str, Any]] = json.loads(out.read_text())["points"]
    assert len(points) == N_POINTS
    plain = points[0]["metrics"]
    background = Background.of(run.split().train, run.dataset)
    popularity = popularity_of(run.split(), run.dataset.n_items)
    expected = evaluate_model(run.best_model(), run.split().test, popularity, background=background)
    for name in ("NDCG@10", "diversity@10", "miscalibration@10"):
        assert plain[name]["mean"] == pytest.approx(expected.metrics[name].mean, abs=1e-3), name
    means = {
        (point["method"], name): [
            other["metrics"][name]["mean"] for other in points if other["method"] == point["method"]
        ]
        for point in points
        for name in ("diversity@10", "miscalibration@10")
    }
    for method in ("mmr", "dpp"):
        assert len(means[method, "diversity@10"]) == len(WEIGHTS)
        assert max(means[method, "diversity@10"]) > plain["diversity@10"]["mean"]
    calibrated = means["calibrated", "miscalibration@10"]
    assert plain["miscalibration@10"]["mean"] > calibrated[0] > calibrated[-1]


def test_what_cannot_be_swept_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="--sweep is novelty of 1 runs; expected diversity"):
        show_sweep([run], "novelty", None, None, json=True)
    with pytest.raises(InvalidRequest, match="diversity of 2 runs"):
        show_sweep([run, run], "diversity", None, None, json=True)
    ease = create_run(tmp_path / "ease", run_config("ease", "leave-one-out", {}), load_dataset(SHOP))
    Trainer(ease.new_model(), ease.split(), ease.folder, ease.config.loop).fit()
    with pytest.raises(InvalidRequest, match="--sweep is given for ease; expected a model of vectors"):
        show_sweep([ease], "diversity", None, None, json=True)
