"""The events of several calls on their way into the log, committed together.

Order: the keys of new users, the events, memory; then the calls are answered.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import (
    EVERY_PURPOSE,
    HISTORY_ACTIONS,
    IMPRESSION,
    SERVE,
    Event,
    check_event,
    pack_event,
    rating_of,
)
from recserve.engine.state.follower import Follower, Interaction
from recserve.engine.state.keys import NONCE_BYTES, KeyStore
from recserve.engine.state.store import EventRow, EventStore
from recserve.errors import AlreadyRecorded, RecserveError, UserErased

T = TypeVar("T")

# Events that are worked on before others may go first: about a fifth of a millisecond.
EVENTS_BETWEEN = 32
# Bytes before an event's action: its timestamp, which the server may have set.
TIMESTAMP_BYTES = 8


@dataclass(slots=True)
class Outcome:
    """What became of the events of one call; the lists name their positions in it.

    ``duplicates``: known already, and the same. ``refused``: with the reason. ``n_withheld``: nobody agreed
    to keep them.
    """

    durability: str
    n_stored: int = 0
    n_withheld: int = 0
    duplicates: list[int] = field(default_factory=list)
    refused: list[tuple[int, RecserveError]] = field(default_factory=list)


class Events(Protocol):
    """The events of a call, maybe made while they are looked at; an error stands for a bad one."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Event | RecserveError]: ...


class Candidate(NamedTuple):
    """An event on its way into the log."""

    outcome: Outcome
    position: int
    event: Event
    purposes: int
    plain: bytes
    row: EventRow


class GroupCommit:
    """Checks, closes and stores events; the log's thread alone uses it."""

    def __init__(
        self,
        store: EventStore,
        keys: KeyStore,
        follower: Follower,
        config: StateConfig,
        *,
        give_way: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """``give_way``: as of :class:`EventLog`."""
        self._store, self._keys, self._follower = store, keys, follower
        self._default_purposes = 0 if config.require_consent else EVERY_PURPOSE
        self._give_way = give_way
        self._clock = clock

    def run(self, calls: Sequence[Events | Exception]) -> Sequence[Outcome | Exception]:
        """Returns what became of the events of each call; they are durable and in memory then.

        What it raises is the answer to all of them: none is stored.
        """
        try:
            answers, candidates = self._prepare_all(calls)
            while not self._keys.commit():
                self._follower.catch_up()
                answers, candidates = self._prepare_all(calls)
            if candidates:
                added = self._store.append([candidate.row for candidate in candidates])
                self._apply(candidates, added)
        except Exception:
            self._keys.discard()
            raise
        return answers

    def _prepare_all(
        self, calls: Sequence[Events | Exception]
    ) -> tuple[list[Outcome | Exception], list[Candidate]]:
        candidates: list[Candidate] = []
        return [self._prepare(events, candidates) for events in calls], candidates

    def _prepare(self, events: Events | Exception, candidates: list[Candidate]) -> Outcome | Exception:
        """Checks and closes the events of a call; adds those that can be written to ``candidates``."""
        if isinstance(events, Exception):
            return events
        outcome = Outcome(self._store.durability)
        n_before = len(candidates)
        try:
            self._prepare_each(events, outcome, candidates)
        except Exception as error:  # noqa: BLE001 - this caller gets it, the others are not to blame
            del candidates[n_before:]
            return error
        return outcome

    def _prepare_each(self, events: Events, outcome: Outcome, candidates: list[Candidate]) -> None:
        received = int(self._clock())
        nonces = os.urandom(NONCE_BYTES * len(events))
        for position, event in enumerate(self._giving_way(events)):
            if isinstance(event, RecserveError):
                outcome.refused.append((position, event))
                continue
            purposes = self._default_purposes if event.purposes is None else event.purposes
            if not purposes:
                outcome.n_withheld += 1
                continue
            try:
                nonce = nonces[NONCE_BYTES * position : NONCE_BYTES * (position + 1)]
                plain, row = self._close_event(event, purposes, received, nonce)
            except RecserveError as error:
                outcome.refused.append((position, error))
            else:
                candidates.append(Candidate(outcome, position, event, purposes, plain, row))

    def _close_event(
        self, event: Event, purposes: int, received: int, nonce: bytes
    ) -> tuple[bytes, EventRow]:
        check_event(event)
        plain = pack_event(event, purposes)
        user_key, event_key = self._keys.user_key(event.user_id), self._keys.event_key(event.event_id)
        if self._keys.is_erased(user_key):
            raise UserErased("user", found="erased", expected="one who is known, or new")
        body = self._keys.seal(user_key, event_key, received, plain, nonce)
        return plain, (event_key, user_key, received, body)

    def _apply(self, candidates: Sequence[Candidate], added: Iterable[bool]) -> None:
        fresh: list[Interaction] = []
        shown: list[Interaction] = []
        for candidate, is_new in self._giving_way(zip(candidates, added, strict=True)):
            outcome, position, event, purposes, plain, row = candidate
            if is_new:
                outcome.n_stored += 1
                if purposes & SERVE and event.action in (*HISTORY_ACTIONS, IMPRESSION):
                    kind = shown if event.action == IMPRESSION else fresh
                    value = rating_of(event.action, event.value)
                    kind.append((row[1], event.item_id, event.timestamp, value))
            else:
                try:
                    self._check_same(row, plain)
                    outcome.duplicates.append(position)
                except RecserveError as error:
                    outcome.refused.append((position, error))
        self._follower.written(fresh, shown)

    def _giving_way(self, items: Iterable[T]) -> Iterator[T]:
        for number, item in enumerate(items):
            if number % EVENTS_BETWEEN == 0:
                self._give_way()
            yield item

    def _check_same(self, row: EventRow, plain: bytes) -> None:
        """Raises :class:`AlreadyRecorded` unless the log has this very event, whatever its time."""
        event_key, user_key = row[0], row[1]
        known = self._store.get(event_key)
        before = None
        if known is not None and known.user_key == user_key:
            before = self._keys.open(known.user_key, known.event_key, known.received, known.body)
        if before is None or before[TIMESTAMP_BYTES:] != plain[TIMESTAMP_BYTES:]:
            raise AlreadyRecorded("event_id", found="used by another event", expected="one for each event")
