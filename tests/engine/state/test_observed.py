"""What is kept in memory, against a plain list of events."""

from collections.abc import Hashable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.state import observed as module
from recserve.engine.state.observed import ObservedEvents

EVENTS = st.lists(
    st.tuples(
        st.sampled_from("uvwxyz"),
        st.sampled_from(["a", "b", "ü", "d"]),
        st.integers(0, 1 << 37),
        st.floats(-5, 5, width=32),
    )
)
BOUNDS = {"max_users": 3, "max_items": 4}


def contents(events: ObservedEvents, user_id: str) -> list[tuple[str, int, float]]:
    found = events.get(user_id)
    assert found is not None
    names = events.item_ids(0)
    return [(names[code], timestamp, value) for code, timestamp, value in found.tolist()]


def expected(events: list[tuple[str, str, int, float]]) -> dict[str, list[tuple[str, int, float]]]:
    """The newest events of the users that were observed last."""
    kept: dict[str, list[tuple[str, int, float]]] = {}
    for user, item, timestamp, value in events:
        kept[user] = [*kept.pop(user, []), (item, timestamp, value)]
        if len(kept) > BOUNDS["max_users"]:
            del kept[next(iter(kept))]
    return {user: found[-BOUNDS["max_items"] :] for user, found in kept.items()}


@given(EVENTS)
def test_one_by_one_and_at_once_give_the_newest_events_of_the_last_users(
    events: list[tuple[str, str, int, float]],
) -> None:
    one_by_one, at_once = ObservedEvents(**BOUNDS), ObservedEvents(**BOUNDS)
    for event in events:
        one_by_one.observe(*event)
    at_once.load(events)
    for user in "uvwxyz":
        want = expected(events).get(user, [])
        assert contents(one_by_one, user) == want
        assert contents(at_once, user) == want


def test_an_erased_user_is_nobody_and_stays_so() -> None:
    events = ObservedEvents(**BOUNDS)
    events.observe("u", "a", 1)
    events.erase("u")
    events.observe("u", "a", 2)
    assert events.get("u") is None
    assert contents(events, "v") == []


def test_what_was_read_does_not_change_afterwards() -> None:
    events = ObservedEvents(**BOUNDS)
    events.observe("u", "a", 1)
    before = events.get("u")
    events.observe("u", "b", 2)
    assert before is not None
    assert before[["code", "timestamp"]].tolist() == [(0, 1)]


def test_ids_beyond_the_bound_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CODES", 2)
    events = ObservedEvents(**BOUNDS)
    for item in "abcab":
        events.observe("u", item, 1)
    assert [item for item, *_ in contents(events, "u")] == ["a", "b", "a", "b"]


def test_who_follows_hears_of_the_erased_of_before_and_after() -> None:
    class Follower:
        def __init__(self) -> None:
            self.forgotten: list[Hashable] = []

        def forget(self, key: Hashable) -> None:
            self.forgotten.append(key)

    events, follower = ObservedEvents(**BOUNDS), Follower()
    events.erase("before")
    events.follow(follower)
    events.erase("after")
    assert follower.forgotten == ["before", "after"]
