"""Gains with intervals, and what they say of a bar."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recserve.benchmarks.quality.bars import Bar
from recserve.benchmarks.quality.estimates import Seeds, estimates, judge, rows_of, starts_of
from recserve.benchmarks.quality.protocol import Ask, Protocol, Rows, Values


class Means(Protocol):
    """The mean of what is there."""

    metrics = ("mean",)

    def __init__(self, owner: NDArray[np.int64]) -> None:
        self.owner = owner

    def ours(self, model: str, settings: object, seed: int) -> Values:
        raise AssertionError

    def theirs(self, ask: Ask) -> Values:
        raise AssertionError

    def figures(self, values: Values, rows: Rows) -> dict[str, float]:
        return {"mean": float(values["x"][rows].mean())}


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.data())
def test_rows_of_users_are_theirs_and_all_of_them(lengths: list[int], data: st.DataObject) -> None:
    owner = np.repeat(np.arange(len(lengths)) * 3, lengths)
    users = np.array(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=9)))
    found = owner[rows_of(starts_of(owner), users)]
    assert found.tolist() == np.repeat(users * 3, np.array(lengths)[users]).tolist()


def test_a_gain_is_over_the_same_users_and_seeds() -> None:
    rng = np.random.default_rng(0)
    protocols = [Means(np.repeat(np.arange(50), rng.integers(1, 5, 50))) for _ in range(2)]
    base: list[Values] = [{"x": rng.normal(0, 1, len(protocol.owner))} for protocol in protocols]
    better: list[Values] = [{"x": one["x"] + shift} for one, shift in zip(base, (0.2, 0.4), strict=True)]
    seeds = Seeds(protocols)
    gain = estimates(seeds.samples(better), seeds.samples(base))["mean"]
    # The noise is the same in both: nothing of it is in the gain.
    assert gain == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3})
    own = estimates(seeds.samples(base))["mean"]
    assert own["low"] < own["mean"] < own["high"]
    assert own["mean"] == pytest.approx(np.mean([one["mean"] for one in seeds.by_seed(base)]))


@pytest.mark.parametrize(
    ("bar", "reached"),
    [
        (Bar("m", 0.5), True),
        (Bar("m", 0.6), False),
        (Bar("m", 0.5, kind="at most"), True),
        (Bar("m", 0.4, kind="at most"), False),
        (Bar("m", 0.6, kind="not below"), True),
        (Bar("m", 0.8, kind="not below"), False),
        (Bar("m", 0.5001, kind="equal", tolerance=2e-4), True),
        (Bar("m", 0.501, kind="equal", tolerance=2e-4), False),
    ],
)
def test_a_bar_is_reached_or_missed(bar: Bar, reached: bool) -> None:
    assert judge(bar, {"mean": 0.5, "low": 0.3, "high": 0.7})["reached"] is reached
