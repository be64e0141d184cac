"""The attack's figure."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recserve.benchmarks.membership import attack, auc, guess


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


def test_the_attack_by_slates_learns_on_some_users_and_tells_others_apart() -> None:
    rng = np.random.default_rng(0)
    found = rng.standard_normal((400, 6))
    is_member = np.arange(400) % 2 == 0
    found[is_member, 3] += 2.0
    likely = guess(found[:200], is_member[:200])
    assert attack(likely(found[200:]), is_member[200:])["low"] > 0.8
    chance = guess(found[:200], rng.permutation(is_member[:200]))
    assert attack(chance(found[200:]), is_member[200:])["mean"] < 0.8
