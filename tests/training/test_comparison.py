"""Several runs in one table; the kernel's lists against those of a full sort."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.errors import CheckFailed, InvalidRequest
from recserve.training import evaluate as evaluation
from recserve.training.commands import run_config
from recserve.training.comparison import check_plot, labels
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer, popularity_of
from recserve.training.run import Run, create_run

SHOP = "synthetic-shop:n_items=1000,n_users=100,n_events=3000,seed=4"


def trained(folder: Path, model: str, split: str = "leave-one-out", data: str = SHOP, **settings: Any) -> Run:
    run = create_run(folder, run_config(model, split, settings), load_dataset(data))
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    return run


@pytest.mark.parametrize("split", ["leave-one-out", "temporal"])
def test_the_kernel_lists_what_a_full_sort_lists(split: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "als", "als", split, embedding_size=8, epochs=2)
    model, test = run.best_model(), run.split().test
    popularity = popularity_of(run.split(), run.dataset.n_items)
    found = evaluation.evaluate_model(model, test, popularity)
    scorer = evaluation.model_scorer(model, test, popularity)
    expected = evaluation.evaluate(scorer, test, run.dataset.n_items)
    assert found.n_unreachable_targets == expected.n_unreachable_targets
    for name, estimate in expected.metrics.items():
        assert found.metrics[name].mean == pytest.approx(estimate.mean, abs=1e-3), name
    assert found.metrics["NDCG@10"].mean > 0


def test_a_model_of_no_numbers_is_refused(tmp_path: Path) -> None:
    run = trained(tmp_path / "als", "als", embedding_size=8, epochs=1)
    model: Any = run.best_model()
    model.item_embeddings[3] = np.nan
    with pytest.raises(CheckFailed, match="scores is NaN"):
        evaluation.evaluate_model(model, run.split().test, popularity_of(run.split(), run.dataset.n_items))


def test_several_runs_in_one_table(run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    trained(tmp_path / "als", "als", embedding_size=8, epochs=2)
    trained(tmp_path / "ease", "ease")
    out, plot = tmp_path / "result.json", tmp_path / "result.svg"
    code, table, _ = run_cli("evaluate", tmp_path / "als", tmp_path / "ease", "--out", out, "--plot", plot)
    assert code == 0
    assert all(word in table for word in ("als", "ease", "popularity", "novelty@10", "Gini@10"))
    result = json.loads(out.read_text())
    assert list(result["models"]) == ["als", "ease"]
    assert set(result["popularity"]["metrics"]) >= {"MAP@10", "serendipity@10", "diversity@10"}
    estimate = result["models"]["als"]["metrics"]["NDCG@10"]
    assert estimate["low"] <= estimate["mean"] <= estimate["high"]
    assert plot.stat().st_size > 1000
    # Each run keeps its own part, as if it had been evaluated alone.
    code, alone, _ = run_cli("evaluate", tmp_path / "als", "--json")
    kept = json.loads((tmp_path / "als" / "evaluation.json").read_text())
    assert json.loads(alone) == kept
    assert kept["model"]["metrics"] == result["models"]["als"]["metrics"]


def test_runs_that_do_not_compare_are_refused(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    trained(tmp_path / "one", "popularity")
    trained(tmp_path / "other-split", "popularity", "temporal")
    trained(tmp_path / "other-data", "popularity", data=SHOP.replace("seed=4", "seed=5"))
    code, _, error = run_cli("evaluate", tmp_path / "one", tmp_path / "other-split")
    assert code == 2
    assert "split of run" in error
    code, _, error = run_cli("evaluate", tmp_path / "one", tmp_path / "other-data")
    assert code == 2
    assert "data of run" in error


def test_runs_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    runs = [trained(tmp_path / name / "run", "popularity") for name in ("a", "b")]
    assert labels(runs) == [str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run")]
    assert labels(runs[:1]) == ["run"]


def test_a_plot_of_an_unknown_kind_is_refused_at_once() -> None:
    with pytest.raises(InvalidRequest, match=r"--plot is result.txt; expected a name ending in .png"):
        check_plot(Path("result.txt"))
