"""What the comparison with a peer is computed from."""

import numpy as np
import pytest

from recserve.benchmarks.environment import environment, machine_line
from recserve.benchmarks.sequential_quality import CONTENDERS, _arrays, _ndcg_per_user, _summary
from recserve.training.data import leave_one_out, load_dataset

SHOP = "synthetic-shop:n_items=1000,n_users=30,n_events=600,seed=2"


def test_lists_are_scored_like_everything_else() -> None:
    split = leave_one_out(load_dataset(SHOP))
    targets = split.test.targets.item_index
    lists = np.full((len(targets), 10), -1, np.int64)
    assert _ndcg_per_user(lists, split).sum() == 0
    lists[:, 2] = targets
    assert _ndcg_per_user(lists, split) == pytest.approx(np.full(len(targets), 0.5))


def test_the_peer_gets_no_held_out_item() -> None:
    split = leave_one_out(load_dataset(SHOP))
    arrays = _arrays(split)
    assert len(arrays["train_item"]) == len(arrays["train_user"]) == int(split.train.lengths.sum())
    assert len(arrays["test_history_item"]) == int(split.test.histories.lengths.sum())
    assert len(arrays["validation_item"]) == len(arrays["test_user"])


def test_the_gain_is_over_the_better_peer() -> None:
    dataset = load_dataset(SHOP)
    split = leave_one_out(dataset)
    n_users = len(split.test.user_index)
    quality = dict(zip(CONTENDERS, (0.3, 0.1, 0.2), strict=True))
    values = {name: [np.full(n_users, mean)] * 2 for name, mean in quality.items()}
    result = _summary(dataset, split, values, {name: [1.0, 2.0] for name in CONTENDERS}, [0, 1])
    assert result["gain_over"] == CONTENDERS[2]
    assert result["gain"]["mean"] == pytest.approx(0.1)


def test_every_result_names_its_machine() -> None:
    found = environment(("numpy", "no-such-package"))
    assert {"cpu", "cores", "python", "numpy"} <= set(found)
    assert "no-such-package" not in found
    assert "cores" in machine_line(found)
