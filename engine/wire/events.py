"""Messages of ``recserve.v1.Feedback`` ↔ events."""

import time
import uuid
from collections.abc import Iterator

from recserve.engine.state.events import EXPORT, LEARN, SERVE, Event
from recserve.engine.state.group_commit import Outcome
from recserve.engine.wire.convert import decoded, new_message
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest
from recserve.proto import feedback_pb2 as pb

DEFAULT_ACTION = "click"
DURABILITIES = {"power": pb.POWER, "process": pb.PROCESS, "memory": pb.MEMORY}
DURABILITY_NAMES = {number: name for name, number in DURABILITIES.items()}


class MessageEvents:
    """The events of a message, made one by one; values are checked by the log, not here."""

    def __init__(self, message: pb.RecordRequest) -> None:
        self._message = message
        self._now = int(time.time())

    def __len__(self) -> int:
        return len(self._message.events)

    def __iter__(self) -> Iterator[Event]:
        return (event_from_message(event, self._now) for event in self._message.events)


def read_events(data: bytes, max_events: int) -> MessageEvents:
    """Reads the bytes of a ``RecordRequest``.

    Raises :class:`MalformedRequest`, or :class:`InvalidRequest` when there are more than ``max_events``.
    """
    message = decoded(pb.RecordRequest.FromString, data)
    if len(message.events) > max_events:
        found = f"{len(message.events)} long"
        raise InvalidRequest("events", found=found, expected=f"at most {max_events}")
    return MessageEvents(message)


def event_to_message(event: Event) -> pb.Event:
    """Writes an event; raises :class:`InvalidRequest` for a value that the wire cannot carry."""
    message = new_message(
        pb.Event,
        user_id=event.user_id,
        item_id=event.item_id,
        action=event.action,
        timestamp=event.timestamp,
        event_id=event.event_id,
        value=event.value,
        slate_id=event.slate_id,
        rank=event.rank,
        context=event.context,
        arm=event.arm,
        variant=event.variant,
        propensity=event.propensity,
        explored=event.explored,
    )
    if event.purposes is not None:
        message.consent.CopyFrom(
            pb.Consent(
                serve=bool(event.purposes & SERVE),
                learn=bool(event.purposes & LEARN),
                export=bool(event.purposes & EXPORT),
            )
        )
    return message


def event_from_message(message: pb.Event, now: int = 0) -> Event:
    """Reads an event; ``now``: the time of one that has none."""
    return Event(
        user_id=message.user_id,
        item_id=message.item_id,
        action=message.action or DEFAULT_ACTION,
        timestamp=message.timestamp if message.HasField("timestamp") else now,
        event_id=message.event_id or uuid.uuid4().hex,
        value=message.value if message.HasField("value") else None,
        slate_id=message.slate_id,
        rank=message.rank,
        context=dict(message.context) if message.context else {},
        purposes=_purposes(message.consent) if message.HasField("consent") else None,
        arm=message.arm,
        variant=message.variant,
        propensity=message.propensity if message.HasField("propensity") else None,
        explored=message.explored,
    )


def outcome_to_message(outcome: Outcome) -> pb.RecordResponse:
    """Writes what became of the events of a call."""
    return pb.RecordResponse(
        durability=DURABILITIES[outcome.durability],
        stored=outcome.n_stored,
        duplicates=outcome.duplicates,
        withheld=outcome.n_withheld,
        refused=[pb.RefusedEvent(index=index, error=status_of(error)) for index, error in outcome.refused],
    )


def _purposes(consent: pb.Consent) -> int:
    return consent.serve * SERVE | consent.learn * LEARN | consent.export * EXPORT
