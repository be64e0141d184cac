"""The comparison of rankers: its gain is a difference of AUCs with an interval over users."""

import numpy as np
import pytest

from recserve.benchmarks.ranker_quality import gain
from recserve.training.data import Histories
from recserve.training.ranking.examples import training_examples


def test_a_gain_is_the_difference_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    n_users, n = 30, 600
    user = np.sort(rng.integers(0, n_users, n))
    examples = training_examples(
        Histories.from_sorted(user, rng.integers(0, 9, n).astype(np.int32), np.arange(n), n_users)
    )
    clicks = (rng.random(n) < 0.5).astype(np.float32)
    good = np.stack([clicks + rng.normal(0, 1, n), clicks + rng.normal(0, 1, n)]).astype(np.float32)
    noise = rng.normal(0, 1, (2, n)).astype(np.float32)
    same = gain(examples, clicks, good, good)
    assert same == {"gain": 0.0, "low": 0.0, "high": 0.0}
    found = gain(examples, clicks, good, noise)
    assert found["low"] < found["gain"] < found["high"]
    assert found["low"] > 0.1
    assert gain(examples, clicks, noise, good)["gain"] == pytest.approx(-found["gain"])
