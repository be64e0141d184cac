"""Events and their bytes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recserve.engine.bundle.histories import MAX_VALUE
from recserve.engine.state.events import (
    ACTIONS,
    EVERY_PURPOSE,
    HISTORY_ACTIONS,
    SERVE,
    Event,
    check_event,
    pack_event,
    unpack_event,
    unpack_interaction,
)
from recserve.errors import DataError, InvalidRequest

IDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60)
EVENTS = st.builds(
    Event,
    user_id=st.just("u"),
    item_id=IDS,
    action=st.sampled_from(ACTIONS),
    timestamp=st.integers(0, 253_402_300_799),
    event_id=IDS,
    value=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    slate_id=st.just("") | IDS,
    rank=st.integers(0, 65535),
    context=st.dictionaries(IDS, IDS, max_size=3),
    purposes=st.integers(1, EVERY_PURPOSE),
    arm=st.just("") | IDS,
    variant=st.just("") | IDS,
    propensity=st.none() | st.floats(0, 1, exclude_min=True),
    explored=st.booleans(),
)


@given(EVENTS)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    check_event(event)
    purposes = event.purposes or 0
    data = pack_event(event, purposes)
    assert unpack_event(data, "u") == event
    belongs = event.action in HISTORY_ACTIONS and bool(purposes & SERVE)
    is_shown = event.action == "impression" and bool(purposes & SERVE)
    found = unpack_interaction(data)
    assert (found is not None) == (belongs or is_shown)
    if found is not None:
        item_id, timestamp, value, shown = found
        assert (item_id, timestamp, shown) == (event.item_id, event.timestamp, is_shown)
        is_rating = event.action == "rating" and event.value is not None and abs(event.value) < MAX_VALUE
        assert value == event.value if is_rating else math.isnan(value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("user_id", ""),
        ("item_id", ""),
        ("item_id", "i" * 257),
        ("event_id", ""),
        ("event_id", "e" * 257),
        ("action", "clik"),
        ("timestamp", -1),
        ("timestamp", 1 << 40),
        ("value", float("nan")),
        ("value", float("inf")),
        ("value", "5"),
        ("value", 10**400),
        ("purposes", 8),
        ("purposes", "serve"),
        ("slate_id", "s" * 257),
        ("arm", "a" * 257),
        ("variant", "v" * 257),
        ("propensity", 0.0),
        ("propensity", 1.5),
        ("propensity", float("nan")),
        ("propensity", "0.5"),
        ("rank", -1),
        ("rank", 65536),
        ("rank", "1"),
        ("rank", 1.5),
        ("context", {"key": "x" * 4096}),
        ("context", {str(i): "" for i in range(65)}),
        ("context", {"key": 5}),
        ("context", "key"),
        ("context", None),
        ("action", None),
        ("action", ["click"]),
        ("slate_id", None),
        ("slate_id", 0),
    ],
)
def test_a_field_that_cannot_be_kept_is_named(field: str, value: Any) -> None:
    good: dict[str, Any] = {"user_id": "u", "item_id": "i", "event_id": "e"}
    check_event(Event(**good))
    with pytest.raises(InvalidRequest, match=f"^{field} is"):
        check_event(Event(**{**good, field: value}))


def test_numbers_of_numpy_are_numbers() -> None:
    fields = {"value": 5, "rank": 1, "timestamp": 7, "propensity": 0.5, "explored": True, "purposes": SERVE}
    made_by = {"value": np.float32, "propensity": np.float32, "explored": np.bool_}
    ids: dict[str, Any] = {"user_id": "u", "item_id": "i", "event_id": "e", "arm": "a"}
    event = Event(**ids, **{name: made_by.get(name, np.int64)(value) for name, value in fields.items()})
    check_event(event)
    assert unpack_event(pack_event(event, SERVE), "u") == Event(**ids, **fields)


@pytest.mark.parametrize("broken", [{"item_id": "\ud800"}, {"context": {"key": "\ud800"}}])
def test_text_that_utf8_cannot_carry_is_refused(broken: dict[str, Any]) -> None:
    event = Event(**{"user_id": "u", "item_id": "i", "event_id": "e", **broken})
    check_event(event)
    with pytest.raises(InvalidRequest, match="expected valid Unicode"):
        pack_event(event, EVERY_PURPOSE)


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 40])
def test_other_bytes_are_no_event(data: bytes) -> None:
    with pytest.raises(DataError, match="event is of unknown bytes"):
        unpack_event(data, "u")
