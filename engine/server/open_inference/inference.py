"""One ModelInfer call: its rows wait in the batcher like any other request, and are answered in one piece."""

import threading
import time
from collections.abc import Callable, Iterable

from recserve.engine.ranked import Ranked, slates
from recserve.engine.server.call import Call
from recserve.engine.server.open_inference.replies import build_reply
from recserve.engine.server.open_inference.requests import HISTORY, USER_ID, Ask
from recserve.engine.server.service import Row
from recserve.errors import InvalidRequest, Unavailable
from recserve.proto import open_inference_pb2 as pb


class Inference:
    """Collects the answers to a call's rows; the last one answers the call, the first error fails it.

    All rows go to one arm, that of the first user, and to one version: a reply names one.
    """

    def __init__(
        self, message: pb.ModelInferRequest, call: Call, ask: Ask, model: str, submit: Callable[[Row], None]
    ) -> None:
        """``model``: the name of the model that is asked; ``submit`` queues a row."""
        self.message = message
        self.call = call
        self.ask = ask
        self.model = model
        self.key = ask.requests[0].user_id or call.request_id
        self.deadline = min(call.deadline, call.received_at + ask.timeout_seconds)
        self._submit = submit
        # Guards the two below while rows are open.
        self._lock = threading.Lock()
        self._ranked: list[Ranked | None] = [None] * len(ask.requests)
        self._n_open = 0

    def start(self) -> None:
        """Queues the rows."""
        self._ask(range(len(self.ask.requests)))

    def take(self, row: "InferRow", ranked: Ranked) -> None:
        """Keeps the answer to one row; never raises."""
        try:
            with self._lock:
                self._ranked[row.index] = ranked
                self._n_open -= 1
                if self._n_open:
                    return
            answers = [kept for kept in self._ranked if kept is not None]
            # A swap of bundles between two batches: the rows of the other version are asked again.
            stale = [i for i, kept in enumerate(answers) if kept.bundle is not ranked.bundle]
            if stale:
                self._ask(stale)
            else:
                self._reply(row, answers)
        except Exception as error:  # noqa: BLE001 - the batch has other callers; this one gets a status
            self.call.fail(error)

    def _ask(self, rows: Iterable[int]) -> None:
        rows = list(rows)
        self._n_open = len(rows)
        for i in rows:
            self._submit(InferRow(self, i))

    def _reply(self, last: "InferRow", answers: list[Ranked]) -> None:
        start = time.perf_counter_ns()
        reply = build_reply(self.message.id, self.model, self.ask, slates(answers))
        call = self.call
        call.served_by = (self.model, reply.model_version)
        call.stage_ns.update(last.stage_ns)
        call.stage_ns["reply"] = time.perf_counter_ns() - start
        call.reply(reply)


class InferRow:
    """One row as an entry of the batcher."""

    __slots__ = (
        "_inference",
        "_taken",
        "deadline",
        "index",
        "key",
        "model",
        "priority",
        "received_at",
        "request",
        "stage_ns",
        "version",
    )

    def __init__(self, inference: Inference, index: int) -> None:
        self._inference = inference
        self._taken = False
        self.index = index
        self.request = inference.ask.requests[index]
        self.model = inference.model
        self.version = inference.message.model_version
        self.key = inference.key
        self.deadline = inference.deadline
        self.received_at = inference.call.received_at
        self.priority = inference.ask.priority
        self.stage_ns: dict[str, int] = {}

    @property
    def is_done(self) -> bool:
        """Whether the row has its answer, or the whole call."""
        return self._taken or self._inference.call.is_done

    def take(self, ranked: Ranked) -> None:
        """Takes the answer."""
        self._taken = True
        self.stage_ns.update(ranked.stage_ns)
        self._inference.take(self, ranked)

    def fail(self, error: BaseException) -> bool:
        """Fails the call; what is wrong with this row alone is said to be this row's."""
        if isinstance(error, InvalidRequest) and error.name.startswith((USER_ID, HISTORY)):
            error = InvalidRequest(
                f"row {self.index}: {error.name}", found=error.found, expected=error.expected, cure=error.cure
            )
        return self._inference.call.fail(error)

    def expire(self) -> bool:
        """The deadline cannot be met: that of the call, or the request's own timeout."""
        inference = self._inference
        if inference.deadline >= inference.call.deadline:
            return inference.call.expire()
        return inference.call.fail(
            Unavailable(
                "request",
                found="not ready",
                expected=f"within its timeout of {inference.ask.timeout_seconds * 1e6:.0f} µs",
                cure="Request timeout expired.",
            )
        )
