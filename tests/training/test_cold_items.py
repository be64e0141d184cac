"""Items that training never met: who is tested, what is offered, and the verb."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recserve.engine import cli
from recserve.errors import DataError, InvalidRequest
from recserve.training.cold_items import (
    CATEGORY,
    RANDOM,
    category_scores,
    evaluate_cold_items,
    with_cold_targets,
)
from recserve.training.data import EvaluationSet, Histories
from recserve.training.run import open_run

DAY = 86_400
COLOURS = ["red", "blue", "green", "white", "black", "brown", "pink", "grey", "gold", "silver"]


def histories(*rows: list[int]) -> Histories:
    row = np.repeat(np.arange(len(rows)), [len(items) for items in rows])
    items = np.array([item for items in rows for item in items], np.int32)
    return Histories.from_sorted(row, items, np.arange(len(items)), len(rows))


def test_tested_are_cold_items_that_a_known_user_did_not_have() -> None:
    held_out = EvaluationSet(
        np.array([7, 8, 9, 5], np.int32),
        histories([0, 3], [0], [], [1]),
        histories([3, 4, 1], [1, 2], [3], [4, 4]),
    )
    found = with_cold_targets(held_out, np.array([3, 4]))
    assert found.user_index.tolist() == [7, 5]
    assert [found.targets.row(i)[0].tolist() for i in range(2)] == [[4], [4, 4]]
    assert [found.histories.row(i)[0].tolist() for i in range(2)] == [[0, 3], [1]]


def test_a_category_is_worth_what_the_user_had_of_it_and_then_what_all_took() -> None:
    codes, popularity = np.array([0, 0, 1, 0, 1, 2]), np.array([4, 2, 8, 0, 0, 0])
    found = category_scores(codes, popularity, histories([0, 1, 2], []), np.array([3, 4, 5]))
    # Categories have a mean of 3, 8 and 0 events an item.
    np.testing.assert_allclose(found, [[2 + 1.5 / 8, 1.5, 0], [1.5 / 8, 0.5, 0]], rtol=1e-6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Even users take mugs and odd ones bags; products from 40 on come in the last fifth of the days."""
    folder, rng, rows = tmp_path_factory.mktemp("shop"), np.random.default_rng(0), []
    for day in range(600):
        user, first = int(rng.integers(0, 30)), 40 if day >= 480 and rng.random() < 0.7 else 0
        item = int(rng.choice(np.arange(first + user % 2, first + 40, 2)))
        rows.append((f"u{user}", f"p{item}", day * DAY))
    events, items = folder / "events.parquet", folder / "items.parquet"
    pl.DataFrame(rows, ["user", "item", "timestamp"], orient="row").write_parquet(events)
    kinds = ["bag" if item % 2 else "mug" for item in range(80)]
    pl.DataFrame(
        {
            "item": [f"p{i}" for i in range(80)],
            "title": [f"{COLOURS[i // 2 % 10]} {kind}" for i, kind in enumerate(kinds)],
            "kind": kinds,
        }
    ).write_parquet(items)
    return events, items


@pytest.fixture(scope="module")
def run_folder(files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "words"
    line = f"train --data {files[0]} --items {files[1]} --every-item --split temporal --model tfidf"
    with pytest.raises(SystemExit) as end:
        cli.main([*line.split(), "--out", str(folder)])
    assert not end.value.code
    return folder


def test_words_know_cold_items_and_the_verb_says_so(
    run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["evaluate", str(run_folder), "--cold-items", "--category", "kind", "--json"])
    assert not end.value.code
    found = json.loads(capfd.readouterr().out)
    assert set(found["models"]) == {RANDOM, CATEGORY, "words"}
    ndcg = {name: model["NDCG@10"]["mean"] for name, model in found["models"].items()}
    assert min(ndcg["words"], ndcg[CATEGORY]) > ndcg[RANDOM] > 0
    assert 0 < found["n_cold_items"] <= 40


def test_an_attribute_that_is_none_is_refused(run_folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="--category is colour; expected one of item_id, title, kind"):
        evaluate_cold_items([open_run(run_folder)], "colour")


def test_data_without_a_cold_item_is_refused(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recserve.training.cold_items.popularity_of", lambda split, n: np.ones(n, np.int64))
    with pytest.raises(DataError, match="unseen in training is none"):
        evaluate_cold_items([open_run(run_folder)])
