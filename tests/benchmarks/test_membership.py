"""The attack's figure."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recserve.benchmarks.membership import attack, auc


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
def test_auc_is_the_share_of_pairs_in_order(members: list[int], others: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert np.isclose(auc(np.array(members, float), np.array(others, float)), np.mean(pairs))


def test_the_interval_is_around_the_figure() -> None:
    values = np.random.default_rng(0).standard_normal(200)
    is_member = np.arange(200) < 100
    values[is_member] += 1.0
    found = attack(values, is_member)
    assert 0.6 < found["low"] < found["mean"] < found["high"] < 0.9
