"""One event of a user, and the bytes that the log keeps of it."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from recserve.engine.bundle.histories import MAX_VALUE
from recserve.engine.bundle.ids import check_id, check_timestamp, is_integer
from recserve.errors import DataError, InvalidRequest, nearest

# Impressions were not chosen and dislikes must not attract: neither belongs in a history.
HISTORY_ACTIONS = ("view", "click", "add-to-cart", "purchase", "rating", "dwell")
# The log stores positions in this tuple: new actions are appended.
ACTIONS = (*HISTORY_ACTIONS, "impression", "dislike")
IMPRESSION, RATING = "impression", "rating"
SHOWN = ACTIONS.index(IMPRESSION)
IS_HISTORY = tuple(action in HISTORY_ACTIONS for action in ACTIONS)

# Arm, variant, propensity and whether it was explored, of an event that says nothing of its slate.
NOT_SHOWN = ("", "", None, False)
MAX_CONTEXT = 64
MAX_CONTEXT_BYTES = 4096

# What a user agreed to, as bits.
SERVE, LEARN, EXPORT = 1, 2, 4
EVERY_PURPOSE = SERVE | LEARN | EXPORT

# timestamp, action, purposes, rank (0: none), value (NaN: none), lengths of item, event and slate id; then
# these three in UTF-8 and what is left in JSON: nothing, the context, or a list of it and what an impression
# says of its slate.
_HEADER = struct.Struct("<qBBHdHHH")


@dataclass(slots=True, kw_only=True)
class Event:
    """What one user did with one item; checked by :func:`check_event`, not when made.

    Nobody changes one; a frozen one takes three times as long to make.

    ``timestamp``: seconds since the epoch. ``value``: a rating, seconds of dwelling, a price; None for none.
    ``slate_id``, ``rank``: of the slate that showed the item, and its 1-based place there; "" and 0 for none.
    ``purposes``: what the user agreed to (``SERVE``: the next slates know; ``LEARN``: models learn of it;
    ``EXPORT``: it may be part of exports), None where that was not said.
    Of an impression: ``arm`` and ``variant`` of its slate; ``propensity``: the probability that the item had
    this place, None where it is not known; ``explored``: it had it to learn something, without exploration
    another item would have stood there.
    """

    user_id: str
    item_id: str
    action: str = "click"
    timestamp: int = 0
    event_id: str = ""
    value: float | None = None
    slate_id: str = ""
    rank: int = 0
    context: Mapping[str, str] = field(default_factory=dict)
    purposes: int | None = None
    arm: str = ""
    variant: str = ""
    propensity: float | None = None
    explored: bool = False


def check_action(action: str) -> None:
    """Raises :class:`InvalidRequest` unless ``action`` is one of ``ACTIONS``."""
    is_text = isinstance(action, str)
    if not is_text or action not in ACTIONS:
        cure = nearest(action, ACTIONS) if is_text else ""
        raise InvalidRequest("action", found=action, expected=f"one of {', '.join(ACTIONS)}", cure=cure)


def check_event(event: Event) -> None:
    """Raises :class:`InvalidRequest` naming the first field that cannot be kept."""
    check_id("user_id", event.user_id)
    check_id("item_id", event.item_id)
    check_id("event_id", event.event_id)
    check_action(event.action)
    check_timestamp("timestamp", event.timestamp)
    if event.value is not None and not _is_finite(event.value):
        raise InvalidRequest("value", found=event.value, expected="a finite number")
    if not is_integer(event.rank) or not 0 <= event.rank < 1 << 16:
        raise InvalidRequest("rank", found=event.rank, expected="0 to 65535")
    if type(event.context) is not dict or event.context:
        _check_context(event.context)
    if event.purposes is not None and not (
        is_integer(event.purposes) and 0 <= event.purposes <= EVERY_PURPOSE
    ):
        raise InvalidRequest("purposes", found=event.purposes, expected=f"0 to {EVERY_PURPOSE}")
    for name, text in (("slate_id", event.slate_id), ("arm", event.arm), ("variant", event.variant)):
        check_id(name, text, may_be_empty=True)
    if event.propensity is not None and not (_is_finite(event.propensity) and 0 < event.propensity <= 1):
        raise InvalidRequest("propensity", found=event.propensity, expected="above 0, at most 1")


def _is_finite(number: Any) -> bool:
    try:
        return math.isfinite(number)
    except (TypeError, OverflowError):
        return False


def _check_context(context: Mapping[str, str]) -> None:
    if not isinstance(context, Mapping) or not all(
        isinstance(text, str) for pair in context.items() for text in pair
    ):
        raise InvalidRequest("context", found="of other things", expected="strings by strings")
    if len(context) > MAX_CONTEXT:
        raise InvalidRequest("context", found=f"{len(context)} entries", expected=f"at most {MAX_CONTEXT}")
    # What UTF-8 cannot carry is refused when it is packed.
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for pair in context.items() for text in pair)
    if n_bytes > MAX_CONTEXT_BYTES:
        raise InvalidRequest(
            "context", found=f"{n_bytes} bytes long", expected=f"at most {MAX_CONTEXT_BYTES} bytes"
        )


def pack_event(event: Event, purposes: int) -> bytes:
    """Returns the bytes of a checked event for ``purposes``, all of it but the user.

    Raises :class:`InvalidRequest` for text that UTF-8 cannot carry (lone surrogates).
    """
    try:
        return _pack(event, purposes)
    except UnicodeEncodeError as error:
        raise InvalidRequest("event", found="not encodable", expected="valid Unicode") from error


def _pack(event: Event, purposes: int) -> bytes:
    item, event_id, slate_id = event.item_id.encode(), event.event_id.encode(), event.slate_id.encode()
    header = _HEADER.pack(
        event.timestamp,
        ACTIONS.index(event.action),
        purposes,
        event.rank,
        math.nan if event.value is None else event.value,
        len(item),
        len(event_id),
        len(slate_id),
    )
    return b"".join((header, item, event_id, slate_id, _pack_rest(event)))


def _pack_rest(event: Event) -> bytes:
    context = dict(event.context)
    propensity = None if event.propensity is None else float(event.propensity)
    shown = (event.arm, event.variant, propensity, bool(event.explored))
    if shown != NOT_SHOWN:
        return json.dumps([context, *shown], ensure_ascii=False).encode()
    return json.dumps(context, ensure_ascii=False).encode() if context else b""


def unpack_event(data: bytes, user_id: str) -> Event:
    """Reads what :func:`pack_event` wrote; raises :class:`DataError` when it is something else."""
    try:
        timestamp, action, purposes, rank, value, *lengths = _HEADER.unpack_from(data)
        texts, start = [], _HEADER.size
        for length in lengths:
            texts.append(data[start : start + length].decode())
            start += length
        rest = json.loads(data[start:]) if len(data) > start else {}
        context, arm, variant, propensity, explored = rest if isinstance(rest, list) else (rest, *NOT_SHOWN)
        return Event(
            user_id=user_id,
            item_id=texts[0],
            action=ACTIONS[action],
            timestamp=timestamp,
            event_id=texts[1],
            value=None if math.isnan(value) else value,
            slate_id=texts[2],
            rank=rank,
            context=context,
            purposes=purposes,
            arm=arm,
            variant=variant,
            propensity=propensity,
            explored=explored,
        )
    except (struct.error, ValueError, IndexError) as error:
        raise DataError("event", found="of unknown bytes", expected="as this version writes it") from error


def rating_of(action: str, value: float | None) -> float:
    """Returns what an event with ``value`` rated its item, NaN where it is no rating."""
    if value is None or action != RATING or not abs(value) <= MAX_VALUE:
        return math.nan
    return value


def unpack_interaction(data: bytes) -> tuple[str, int, float, bool] | None:
    """Returns item id, timestamp and rating of what belongs in a history or was shown (True), else None.

    The fast part of the above.
    """
    timestamp, action, purposes, _, value, n_item, _, _ = _HEADER.unpack_from(data)
    is_shown = action == SHOWN
    if not purposes & SERVE or not (is_shown or IS_HISTORY[action]):
        return None
    item_id = data[_HEADER.size : _HEADER.size + n_item].decode()
    return item_id, timestamp, rating_of(ACTIONS[action], value), is_shown
