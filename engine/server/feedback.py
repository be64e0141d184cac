"""``recserve.v1.Feedback``: messages in, events in the log, answers when they are durable."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from recserve.engine.bundle.ids import check_id
from recserve.engine.models.router import Router
from recserve.engine.server.call import Call, answer_later
from recserve.engine.server.methods import Method, Shape
from recserve.engine.state.distant import AnyState
from recserve.engine.state.group_commit import Outcome
from recserve.engine.state.state import LoggedEvent
from recserve.engine.wire.events import (
    event_to_message,
    outcome_to_message,
    read_events,
)
from recserve.errors import InvalidRequest
from recserve.proto import feedback_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Feedback"].full_name
PREFIX = f"/{SERVICE}/"
MAX_PAGE = 1000
# Batches of one stream that wait for the disk: enough to fill commits, few enough to be fair.
MAX_PIPELINED = 4


class FeedbackService:
    """The rows of the service. Nothing waits here: the log's thread answers."""

    def __init__(self, state: AnyState, router: Router) -> None:
        self._state = state
        self._router = router

    def methods(self, *, with_stream: bool) -> list[Method]:
        """Returns the rows of the service; ``with_stream``: RecordStream too (not every transport has it)."""
        stream = Method(
            path=PREFIX + "RecordStream",
            request=pb.RecordRequest,
            response=pb.RecordResponse,
            handler=lambda call: _RecordStream(self, call),
            scope="feedback:write",
            shape=Shape.BIDIRECTIONAL,
            is_admitted=False,
            decode=bytes,
        )
        return [
            Method(
                path=PREFIX + "Record",
                request=pb.RecordRequest,
                response=pb.RecordResponse,
                handler=self._record,
                scope="feedback:write",
                http="/v1/events",
                # Read by who writes the log: it has time, and maybe a process of its own.
                decode=bytes,
            ),
            *([stream] if with_stream else []),
            Method(
                path=PREFIX + "GetHistory",
                request=pb.GetHistoryRequest,
                response=pb.GetHistoryResponse,
                handler=self._get_history,
                scope="history:read",
                http="/v1/history",
            ),
            Method(
                path=PREFIX + "ExportUser",
                request=pb.ExportUserRequest,
                response=pb.ExportUserResponse,
                handler=self._export_user,
                scope="history:read",
                http="/v1/export-user",
                is_audited=True,
            ),
            Method(
                path=PREFIX + "EraseUser",
                request=pb.EraseUserRequest,
                response=pb.EraseUserResponse,
                handler=self._erase_user,
                scope="history:erase",
                http="/v1/erase-user",
                is_audited=True,
            ),
        ]

    def append(self, request: bytes | pb.RecordRequest, done: Callable[[Outcome | Exception], None]) -> None:
        """Hands a request, a message where it came as JSON, to the log, whose thread reads and checks it."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        self._state.append(partial(read_events, data, self._state.config.max_events), done)

    def _record(self, request: bytes | pb.RecordRequest, call: Call) -> None:
        def done(outcome: Outcome | Exception) -> None:
            if isinstance(outcome, Outcome):
                call.reply(outcome_to_message(outcome))
            else:
                call.fail(outcome)

        self.append(request, done)

    def _get_history(self, message: pb.GetHistoryRequest, call: Call) -> None:
        with self._router.registry.lease(message.model) as lease:
            item_ids, timestamps = lease.engine().timed_history(message.user_id)
        call.reply(pb.GetHistoryResponse(item_ids=item_ids, timestamps=timestamps))

    def _export_user(self, message: pb.ExportUserRequest, call: Call) -> None:
        check_id("user_id", message.user_id)
        size = message.page_size if message.HasField("page_size") else MAX_PAGE
        if not 1 <= size <= MAX_PAGE:
            raise InvalidRequest("page_size", found=size, expected=f"1 to {MAX_PAGE}")
        token = message.page_token
        if token and not (token.isdecimal() and token.isascii() and len(token) < 19):
            raise InvalidRequest("page_token", found=token, expected="that of the reply before")

        def page(found: tuple[list[LoggedEvent], int]) -> pb.ExportUserResponse:
            rows, last = found
            events = [event_to_message(row.event) for row in rows]
            for event in events:
                event.user_id = ""
            return pb.ExportUserResponse(events=events, next_page_token=str(last or ""))

        future = self._state.events_of(message.user_id, after=int(token or 0), limit=size)
        answer_later(call, future, page)

    def _erase_user(self, message: pb.EraseUserRequest, call: Call) -> None:
        check_id("user_id", message.user_id)
        answer_later(
            call, self._state.erase(message.user_id), lambda n: pb.EraseUserResponse(erased_events=n)
        )


class _RecordStream:
    """The batches of one stream; replies come in the order of the batches, which is that of the log."""

    def __init__(self, service: FeedbackService, call: Call) -> None:
        self._service = service
        self._call = call
        # Of batches on their way: what the transport waits for before it reads the batch after the next ones.
        self._open: deque[Future[None]] = deque()
        self._ended = False

    def message(self, request: bytes) -> "Future[None] | None":
        """Takes one batch; the transport reads on while few wait."""
        written: Future[None] = Future()
        waiting = list(self._open)
        self._open.append(written)
        try:
            self._service.append(request, partial(self._done, written))
        except Exception:
            self._open.remove(written)
            raise
        # When the oldest of them is done, there is room for one more.
        return waiting[0] if len(waiting) >= MAX_PIPELINED else None

    def end(self) -> None:
        """No batch comes any more: the stream ends with the last reply."""
        self._ended = True
        if not self._open:
            self._call.finish()

    def _done(self, written: Future[None], outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Outcome):
            self._call.send(outcome_to_message(outcome))
        else:
            self._call.fail(outcome)
        self._open.remove(written)
        written.set_result(None)
        if self._ended and not self._open:
            self._call.finish()
