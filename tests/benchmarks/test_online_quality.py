"""Each promise about online learning can be broken by figures of the replay."""

from typing import Any

import pytest

pytest.importorskip("torch")

from recserve.benchmarks.online_quality import FROZEN, LIVE, PROMISED, holds


def figures() -> dict[str, Any]:
    """A replay that keeps every promise."""
    attacks = [
        {"learner": arm, "target_hr": 0.01, "target_hr_attacked": 0.014, "genuine_ndcg_loss": 0.005}
        for arm in PROMISED
    ]
    return {
        "hr_gain": {f"{arm} over {other}": {"low": 0.03} for arm in PROMISED for other in (FROZEN, LIVE)},
        "attacks": attacks,
    }


def test_figures_within_the_limits_hold() -> None:
    assert all(holds({"als": figures()}).values())


@pytest.mark.parametrize(
    ("place", "name", "value", "promise"),
    [
        ("hr_gain", f"linucb over {FROZEN}", {"low": 0.01}, 0),
        ("hr_gain", f"ftrl over {LIVE}", {"low": -0.001}, 1),
        (0, "target_hr_attacked", 0.016, 2),
        (1, "genuine_ndcg_loss", 0.011, 3),
    ],
)
def test_each_promise_can_be_broken(place: str | int, name: str, value: object, promise: int) -> None:
    broken = figures()
    (broken["attacks"][place] if isinstance(place, int) else broken[place])[name] = value
    kept = list(holds({"als": figures(), "sasrec": broken}).values())
    assert kept == [i != promise for i in range(len(kept))]


def test_a_target_that_was_shown_may_not_be_shown_four_times_as_often() -> None:
    found = figures()
    found["attacks"][0] |= {"target_hr": 0.001, "target_hr_attacked": 0.004}
    assert list(holds({"als": found}).values()).count(False) == 1
