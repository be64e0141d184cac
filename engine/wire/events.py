"""Messages of ``recserve.v1.Feedback`` ↔ events."""

import time
import uuid

from recserve.engine.state.event_log import Outcome
from recserve.engine.state.events import EXPORT, LEARN, SERVE, Event
from recserve.engine.wire.convert import decoded, new_message
from recserve.engine.wire.status import status_of
from recserve.errors import InvalidRequest
from recserve.proto import feedback_pb2 as pb

DEFAULT_ACTION = "click"
DURABILITIES = {"power": pb.POWER, "process": pb.PROCESS, "memory": pb.MEMORY}
DURABILITY_NAMES = {number: name for name, number in DURABILITIES.items()}


def read_events(data: bytes, max_events: int) -> list[Event]:
    """Reads the bytes of a ``RecordRequest``; values are checked by the log, not here.

    Raises :class:`MalformedRequest`, or :class:`InvalidRequest` when there are more than ``max_events``.
    """
    message = decoded(pb.RecordRequest.FromString, data)
    if len(message.events) > max_events:
        found = f"{len(message.events)} long"
        raise InvalidRequest("events", found=found, expected=f"at most {max_events}")
    return events_from_message(message)


def events_from_message(message: pb.RecordRequest) -> list[Event]:
    """Reads the events of a call; values are checked by the log, not here."""
    now = int(time.time())
    return [
        Event(
            user_id=event.user_id,
            item_id=event.item_id,
            action=event.action or DEFAULT_ACTION,
            timestamp=event.timestamp if event.HasField("timestamp") else now,
            event_id=event.event_id or uuid.uuid4().hex,
            value=event.value if event.HasField("value") else None,
            slate_id=event.slate_id,
            rank=event.rank,
            context=dict(event.context) if event.context else {},
            purposes=_purposes(event.consent) if event.HasField("consent") else None,
            arm=event.arm,
            variant=event.variant,
            propensity=event.propensity if event.HasField("propensity") else None,
            explored=event.explored,
        )
        for event in message.events
    ]


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


def event_from_message(message: pb.Event) -> Event:
    """Reads an event of an export."""
    [event] = events_from_message(pb.RecordRequest(events=[message]))
    return event


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
