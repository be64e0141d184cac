"""What the comparison of ALS and BPR with a peer is computed from."""

import numpy as np
import pytest

from recserve.benchmarks.table_quality import _arrays, _lists, _ndcg_per_user, _ours, _summary, contenders
from recserve.training.data import load_dataset, random_split
from recserve.training.evaluate import evaluate, popularity_scorer
from recserve.training.loop import popularity_of

SHOP = "synthetic-shop:n_items=1000,n_users=40,n_events=900,seed=2"


def test_lists_are_scored_like_everything_else() -> None:
    dataset = load_dataset(SHOP)
    split = random_split(dataset)
    lists, _ = _ours("popularity", dataset, split, seed=0)
    scorer = popularity_scorer(popularity_of(split, dataset.n_items))
    assert (lists == _lists(scorer, split.test)).all()
    # Ties count against a model in evaluate and go by index in a list: without them the two agree.
    noise = np.random.default_rng(0).random(dataset.n_items).astype(np.float32)

    def untied(rows: object) -> object:
        return scorer(rows) + noise  # type: ignore[arg-type]

    expected = evaluate(untied, split.test, dataset.n_items).metrics["NDCG@10"].mean  # type: ignore[arg-type]
    found = _ndcg_per_user(_lists(untied, split.test), split.test)
    assert found.mean() == pytest.approx(expected)
    assert expected > 0


def test_the_peer_gets_no_test_item() -> None:
    split = random_split(load_dataset(SHOP))
    arrays = _arrays(split)

    assert len(arrays["train_user"]) == len(arrays["train_item"]) == split.train.lengths.sum()
    assert len(arrays["validation_item"]) == split.validation.targets.lengths.sum()
    row = len(split.test.user_index) // 2
    user = split.test.user_index[row]
    known = arrays["known_item"][arrays["known_user"] == user]
    assert known.tolist() == split.test.histories.row(row)[0].tolist()
    assert set(arrays) == {
        f"{part}_{side}" for part in ("train", "known", "validation") for side in ("user", "item")
    } | {"test_user"}


def test_the_gain_is_over_the_peer_of_the_same_model() -> None:
    dataset = load_dataset(SHOP)
    names = contenders(["als", "bpr"])
    assert names == ["recserve popularity", "recserve als", "implicit als", "recserve bpr", "implicit bpr"]
    quality = dict(zip(names, (0.05, 0.3, 0.2, 0.1, 0.4), strict=True))
    values = {name: [np.full(20, mean)] * 2 for name, mean in quality.items()}
    result = _summary(dataset, values, {name: [] for name in names}, [0, 1])
    assert result["gain_over_peer"]["als"]["mean"] == pytest.approx(0.1)
    assert result["gain_over_peer"]["bpr"]["mean"] == pytest.approx(-0.3)
