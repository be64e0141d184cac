"""Items that changed, in every place that there is for a state."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from recserve.engine.bundle import open_bundle
from recserve.engine.state import items
from recserve.engine.state.config import StateConfig
from recserve.engine.state.items import ItemChange, LiveItems, check_room
from recserve.engine.state.opening import prune_items
from recserve.errors import InvalidRequest
from tests.engine.state.conftest import opened
from tests.engine.state.test_shared import caught_up

TIMEOUT_SECONDS = 30


def known(live_items: LiveItems) -> dict[str, ItemChange]:
    """What an engine that begins to follow is told."""
    found: dict[str, ItemChange] = {}

    class Follower:
        def serve_items(self, changes: dict[str, ItemChange]) -> None:
            found.update(changes)

    live_items.follow(Follower())  # type: ignore[arg-type]
    return found


def test_changes_are_there_after_a_restart_the_newest_of_each_item(anywhere: StateConfig) -> None:
    vector = ItemChange(item_id="a", vector=(0.5, -1.0), bundle_version="v", attributes={"title": "ä"})
    gone = ItemChange(item_id="b", is_served=False)
    with opened(anywhere) as state:
        state.change_items([vector, gone]).result(TIMEOUT_SECONDS)
        assert known(state.live_items) == {"a": vector, "b": gone}
        state.change_items([ItemChange(item_id="b", like=("a",))]).result(TIMEOUT_SECONDS)
    with opened(anywhere) as state:
        assert known(state.live_items) == {"a": vector, "b": ItemChange(item_id="b", like=("a",))}


def test_of_an_item_that_is_named_twice_the_last_counts(anywhere: StateConfig) -> None:
    gone = ItemChange(item_id="a", is_served=False)
    with opened(anywhere) as state:
        state.change_items([ItemChange(item_id="a", like=("b",)), gone]).result(TIMEOUT_SECONDS)
        assert known(state.live_items) == {"a": gone}


def test_items_that_have_changed_may_change_again_where_there_is_no_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(items, "MAX_CHANGED", 2)
    live_items, changes = LiveItems(), [ItemChange(item_id=item_id) for item_id in "abc"]
    live_items.apply(changes[:2])
    check_room(live_items, changes[:2])
    with pytest.raises(InvalidRequest, match="over 2; expected at most 2"):
        check_room(live_items, changes[2:])


def test_what_is_served_already_is_no_change() -> None:
    served: list[Mapping[str, ItemChange]] = []

    class Follower:
        def serve_items(self, changes: Mapping[str, ItemChange]) -> None:
            served.append(dict(changes))

    live_items, follower = LiveItems(), Follower()
    live_items.follow(follower)
    first, other = ItemChange(item_id="a", like=("b",)), ItemChange(item_id="a", is_served=False)
    for changes in ([first], [first], [first, other], [other], [other, first]):
        live_items.apply(changes)
    assert served == [{"a": first}, {"a": other}, {"a": first}]


def test_what_a_bundle_has_by_now_is_forgotten(anywhere: StateConfig) -> None:
    served = [ItemChange(item_id=item_id, like=("x",)) for item_id in "abc"]
    gone = ItemChange(item_id="d", is_served=False)
    with opened(anywhere) as state:
        state.change_items([*served, gone]).result(TIMEOUT_SECONDS)
    assert prune_items(anywhere, lambda item_id: item_id in "acd") == 2
    assert prune_items(anywhere, lambda item_id: False) == 0
    with opened(anywhere) as state:
        assert known(state.live_items) == {"b": served[1], "d": gone}
        state.change_items(served[:1]).result(TIMEOUT_SECONDS)
        assert known(state.live_items).keys() == {"a", "b", "d"}


def test_the_verb_forgets_the_items_of_a_bundle(
    config: StateConfig, bundle_folder: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    there = open_bundle(bundle_folder).catalogue.vocabulary[0]
    with opened(config) as state:
        changes = [ItemChange(item_id=item_id, like=("x",)) for item_id in (there, "new")]
        state.change_items(changes).result(TIMEOUT_SECONDS)
        # The log is not the verb's while somebody uses it.
        assert run_cli("items", "prune", str(bundle_folder), "--state", config.url)[0] == 3
    code, _, told = run_cli("items", "prune", str(bundle_folder), "--state", config.url)
    assert (code, "1 items forgotten" in told) == (0, True)
    with opened(config) as state:
        assert known(state.live_items).keys() == {"new"}


def test_servers_of_one_state_follow_each_other(shared: StateConfig) -> None:
    with opened(shared) as one, opened(shared) as other:
        gone = ItemChange(item_id="a", is_served=False)
        one.change_items([gone]).result(TIMEOUT_SECONDS)
        assert known(caught_up(other).live_items) == {"a": gone}
