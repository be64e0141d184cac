"""A typed client for ``recserve.v1.Feedback``, sync and asyncio.

>>> with FeedbackClient("127.0.0.1:50051") as client:
...     client.record([new_event(user_id="u42", item_id="i7", action="purchase")])
"""

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from recserve.engine.connection import AsyncClient, Client
from recserve.engine.state.events import Event
from recserve.engine.types import Slate
from recserve.engine.wire.events import DURABILITY_NAMES, event_from_message, event_to_message
from recserve.engine.wire.status import RemoteError, error_from_call, error_from_status
from recserve.proto import feedback_pb2 as pb
from recserve.proto import feedback_pb2_grpc


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of events: ``duplicates`` and ``refused`` name their positions.

    ``durability``: what the stored ones survive, "power", "process" or "memory".
    """

    durability: str
    n_stored: int
    n_withheld: int
    duplicates: tuple[int, ...]
    refused: tuple[tuple[int, RemoteError], ...]


def new_event(*, user_id: str, item_id: str, action: str = "click", **fields: Any) -> Event:
    """Returns an event with an id of its own and, unless it is given, the time of now.

    An event that is made once and sent several times counts once.
    """
    fields = {"timestamp": int(time.time()), "event_id": uuid.uuid4().hex, **fields}
    return Event(user_id=user_id, item_id=item_id, action=action, **fields)


def impressions(slate: Slate, *, user_id: str, **fields: Any) -> list[Event]:
    """Returns the events that tell that a slate was shown; ``fields`` as those of :func:`new_event`.

    Their ids are those of the slate and its ranks: who tells it twice has told it once.
    """
    return [
        new_event(
            user_id=user_id,
            item_id=item.item_id,
            action="impression",
            **{
                "event_id": f"{slate.slate_id}/{item.rank}",
                "slate_id": slate.slate_id,
                "rank": item.rank,
                "arm": slate.arm,
                "variant": slate.variant,
                "propensity": slate.propensities[item.rank - 1] if slate.propensities else None,
                "explored": item.rank in slate.explored,
                **fields,
            },
        )
        for item in slate.items
    ]


class FeedbackClient(Client):
    """Tells one server what users did; may be shared by threads. Every method raises :class:`RemoteError`.

    The arguments are those of :class:`~recserve.engine.client.RecommenderClient`. Events have ids, so a call
    that is tried again has one effect.
    """

    STUB = feedback_pb2_grpc.FeedbackStub
    TIMEOUT_SECONDS = 5.0  # The disk has a say in it.

    def record(self, events: Sequence[Event]) -> Recorded:
        """Records events; when it returns they are durable, and the next request sees them."""
        return _recorded(self._connection.call(self._stub.Record, _record(events)))

    def record_stream(self, batches: Iterable[Sequence[Event]]) -> Iterator[Recorded]:
        """Records batch after batch over one stream, yielding what became of each; it is not tried again."""
        try:
            for reply in self._stub.RecordStream(map(_record, batches), metadata=self._connection.metadata()):
                yield _recorded(reply)
        except grpc.RpcError as error:
            raise error_from_call(error) from None

    def history(self, user_id: str) -> list[tuple[str, int]]:
        """Returns the items that the server remembers of a user, newest last, with their timestamps."""
        request = pb.GetHistoryRequest(user_id=user_id, model=self._model)
        return _history(self._connection.call(self._stub.GetHistory, request))

    def export_user(self, user_id: str) -> Iterator[Event]:
        """Yields everything that is recorded of a user, oldest first; ``user_id`` of the events is empty."""
        token = ""
        while True:
            page = pb.ExportUserRequest(user_id=user_id, page_token=token)
            reply = self._connection.call(self._stub.ExportUser, page)
            yield from map(event_from_message, reply.events)
            if not (token := reply.next_page_token):
                return

    def erase_user(self, user_id: str) -> int:
        """Forgets a user for good; returns how many events the log had."""
        reply = self._connection.call(self._stub.EraseUser, pb.EraseUserRequest(user_id=user_id))
        return int(reply.erased_events)


class AsyncFeedbackClient(AsyncClient):
    """The same client for asyncio."""

    STUB = feedback_pb2_grpc.FeedbackStub
    TIMEOUT_SECONDS = 5.0  # The disk has a say in it.

    async def record(self, events: Sequence[Event]) -> Recorded:
        """Records events; when it returns they are durable, and the next request sees them."""
        return _recorded(await self._connection.call(self._stub.Record, _record(events)))

    async def history(self, user_id: str) -> list[tuple[str, int]]:
        """Returns the items that the server remembers of a user, newest last, with their timestamps."""
        request = pb.GetHistoryRequest(user_id=user_id, model=self._model)
        return _history(await self._connection.call(self._stub.GetHistory, request))

    async def erase_user(self, user_id: str) -> int:
        """Forgets a user for good; returns how many events the log had."""
        reply = await self._connection.call(self._stub.EraseUser, pb.EraseUserRequest(user_id=user_id))
        return int(reply.erased_events)


def _record(events: Sequence[Event]) -> pb.RecordRequest:
    return pb.RecordRequest(events=[event_to_message(event) for event in events])


def _recorded(reply: pb.RecordResponse) -> Recorded:
    return Recorded(
        durability=DURABILITY_NAMES[reply.durability],
        n_stored=reply.stored,
        n_withheld=reply.withheld,
        duplicates=tuple(reply.duplicates),
        refused=tuple((refused.index, error_from_status(refused.error)) for refused in reply.refused),
    )


def _history(reply: pb.GetHistoryResponse) -> list[tuple[str, int]]:
    return list(zip(reply.item_ids, reply.timestamps, strict=True))
