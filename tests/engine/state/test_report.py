"""Attribution, estimators and report, next to plain Python over the same events."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from math import sqrt
from statistics import mean, variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.state.attribution import attribute
from recserve.engine.state.config import StateConfig
from recserve.engine.state.estimators import Estimate, ips, ratio, snips
from recserve.engine.state.events import EVERY_PURPOSE, SERVE, Event
from recserve.engine.state.report import report
from recserve.engine.state.state import open_state


def shown(user: str, slate: str, rank: int, **fields: object) -> Event:
    return Event(
        **{  # type: ignore[arg-type]
            "user_id": user,
            "item_id": f"i{rank}",
            "action": "impression",
            "slate_id": slate,
            "rank": rank,
            "purposes": EVERY_PURPOSE,
            **fields,
        }
    )


def acted(impression: Event, action: str = "click") -> Event:
    return replace(impression, action=action, rank=0, arm="", variant="", propensity=None, explored=False)


def test_actions_find_their_impression_by_user_slate_and_item() -> None:
    one, two, other = shown("u", "s", 1), shown("u", "s", 2), shown("v", "t", 1, arm="b", variant="int8")
    events = [
        acted(two),  # Before its impression: callers send when they can.
        *(one, two, one, other),
        *(acted(two), acted(two, "purchase"), acted(one, "view")),
        replace(acted(one), slate_id=""),
        *(replace(acted(one), user_id="v"), replace(acted(one), slate_id="t")),
    ]
    found = attribute(events)
    assert found.group_names == [("", ""), ("b", "int8")]
    assert found.users.tolist() == [0, 0, 1]
    assert found.groups.tolist() == [0, 0, 1]
    assert found.ranks.tolist() == [1, 2, 1]
    assert found.clicked.tolist() == [False, True, False]
    assert found.converted.tolist() == [False, True, False]
    assert found.n_unattributed == 2
    assert np.isnan(found.propensities).all()


def test_events_that_must_not_leave_the_log_are_not_counted() -> None:
    private = shown("u", "s", 1, purposes=SERVE)
    found = attribute([private, acted(private), shown("u", "s", 2)])
    assert found.ranks.tolist() == [2]
    assert found.n_unattributed == 0


def linearised(pairs: list[tuple[float, float, int]]) -> tuple[float, float]:
    """Returns the ratio and its deviation as the books write them: by the variance of user residuals."""
    sums: dict[int, list[float]] = {}
    for numerator, denominator, user in pairs:
        y, x = sums.get(user, [0.0, 0.0])
        sums[user] = [y + numerator, x + denominator]
    value = sum(y for y, _ in sums.values()) / sum(x for _, x in sums.values())
    residuals = [y - value * x for y, x in sums.values()]
    return value, sqrt(variance(residuals) / len(sums)) / mean(x for _, x in sums.values())


PAIRS = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0.1, 5), st.integers(0, 5)), min_size=2, max_size=60
).filter(lambda pairs: len({user for _, _, user in pairs}) > 1)


@given(PAIRS)
def test_a_ratio_is_that_of_sums_over_users(pairs: list[tuple[float, float, int]]) -> None:
    numerators, denominators = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    found = ratio(numerators, denominators, np.array([p[2] for p in pairs], np.int32))
    value, deviation = linearised(pairs)
    assert found is not None
    assert found.value == pytest.approx(value)
    low, high = found.interval or (found.value, found.value)
    assert (high - low) / 2 == pytest.approx(1.959964 * deviation, rel=1e-5, abs=1e-7)


def test_nothing_shown_and_one_user_have_no_interval() -> None:
    nobody = np.empty(0, np.int32)
    assert ratio(np.empty(0), np.empty(0), nobody) is None
    assert ratio(np.ones(3), np.ones(3) * 2, np.zeros(3, np.int32)) == Estimate(0.5, None)
    assert ratio(np.zeros(3), np.ones(3), np.arange(3, dtype=np.int32)) == Estimate(0.0, None)


def test_the_policy_without_exploration_is_estimated_from_one_that_explores() -> None:
    """IPS and SNIPS find what the greedy item is worth; the mean rate, with what exploring cost, does not."""
    rng, epsilon, greedy, other = np.random.default_rng(5), 0.4, 0.30, 0.05
    n = 40_000
    explored = rng.random(n) < epsilon
    clicks = (rng.random(n) < np.where(explored, other, greedy)).astype(np.float64)
    propensities = np.where(explored, epsilon, 1 - epsilon)
    weights = np.where(explored, 0.0, 1.0) / propensities
    users = (np.arange(n) // 4).astype(np.int32)
    for estimate in (ips(clicks, weights, users), snips(clicks, weights, users)):
        assert estimate is not None
        low, high = estimate.interval or (1.0, 0.0)
        assert low < greedy < high
        assert high - low < 0.03
    assert clicks.mean() < 0.22


def test_the_report_counts_what_plain_python_counts() -> None:
    rng = random.Random(3)
    impressions, events = [], []
    for slate in range(400):
        arm = rng.choice(["a", "b"])
        for rank in (1, 2, 3):
            explored = rank == 3 and rng.random() < 0.3
            propensity = None if arm == "b" else 0.3 if explored else 0.7 if rank == 3 else 1.0
            one = shown(
                f"u{slate % 60}", f"s{slate}", rank, arm=arm, propensity=propensity, explored=explored
            )
            clicked = rng.random() < 0.5 / rank
            impressions.append((one, clicked))
            events += [one, acted(one)] if clicked else [one]
    rng.shuffle(events)
    rows = report(attribute(events), min_users=10)
    assert [row.arm for row in rows] == ["a", "b"]
    for row in rows:
        mine = [(one, clicked) for one, clicked in impressions if one.arm == row.arm]
        assert row.n_impressions == len(mine)
        assert row.n_users == len({one.user_id for one, _ in mine})
        assert row.ctr is not None
        assert row.ctr.value == pytest.approx(mean(clicked for _, clicked in mine))
        assert row.conversion == Estimate(0.0, None)
        for rank_row in row.ranks:
            at_rank = [clicked for one, clicked in mine if one.rank == rank_row.rank]
            assert (rank_row.n_impressions, rank_row.ctr and rank_row.ctr.value) == (
                len(at_rank),
                pytest.approx(mean(at_rank)),
            )
    weighted = [
        (
            0.0 if one.explored else clicked / (one.propensity or 1),
            0.0 if one.explored else 1 / one.propensity,
        )
        for one, clicked in impressions
        if one.propensity
    ]
    assert rows[0].ips is not None
    assert rows[0].snips is not None
    assert rows[0].ips.value == pytest.approx(mean(reward for reward, _ in weighted))
    assert rows[0].snips.value == pytest.approx(sum(r for r, _ in weighted) / sum(w for _, w in weighted))
    assert rows[1].ips is rows[1].snips is None


def test_what_few_users_saw_has_no_rates() -> None:
    [row] = report(attribute([shown(f"u{i}", "s", 1 + (i == 0)) for i in range(10)]), min_users=10)
    assert row.ctr == Estimate(0.0, None)
    assert [one.ctr for one in row.ranks] == [None, None]


def test_the_command_prints_tables_and_json(
    config: StateConfig, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    one, two = shown("u", "s", 1, event_id="1"), shown("v", "t", 1, event_id="2", arm="b")
    stray = replace(acted(one), slate_id="x", event_id="4")
    with open_state(config) as state:
        state.load()
        state.record([one, two, replace(acted(one), event_id="3"), stray])
    code, out, err = run_cli("report", "--state", config.url, "--min-users", 1)
    assert code == 0
    assert "100.00" in out
    assert "1 actions name a slate that no impression is known of" in err
    _, out, _ = run_cli("report", "--state", config.url, "--json")
    found = json.loads(out)
    assert found["n_unattributed"] == 1
    assert [(row["arm"], row["n_impressions"], row["ctr"]) for row in found["groups"]] == [
        ("", 1, None),
        ("b", 1, None),
    ]
    _, out, _ = run_cli("report", "--state", config.url, "--json", "--since", "2999-01-01")
    assert json.loads(out) == {"groups": [], "n_unattributed": 0}
