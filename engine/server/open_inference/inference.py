"""One ModelInfer call: its rows wait in the batcher like any other request, and are answered in one piece."""

import threading
import time
from collections.abc import Callable, Iterable

from recserve.engine.pipeline import Ranked, slates
from recserve.engine.server.call import Call
from recserve.engine.server.open_inference.replies import build_reply
from recserve.engine.server.open_inference.requests import HISTORY, USER_ID, Ask
from recserve.engine.types import Request, Slate
from recserve.errors import InvalidRequest, Unavailable, UnknownModel
from recserve.proto import open_inference_pb2 as pb


class Inference:
    """Collects the slates of a call's rows; the last one answers the call, the first error fails it."""

    def __init__(self, message: pb.ModelInferRequest, call: Call, ask: Ask) -> None:
        self.message = message
        self.call = call
        self.ask = ask
        self.deadline = min(call.deadline, call.received_at + ask.timeout_seconds)
        # Guards the two below while rows are open.
        self._lock = threading.Lock()
        self._ranked: list[Ranked | None] = [None] * len(ask.requests)
        self._n_open = 0
        self._submit: Callable[[Row], None] = lambda row: None

    def start(self, submit: Callable[["Row"], None]) -> None:
        """Gives each row to ``submit``."""
        self._submit = submit
        self._ask(range(len(self.ask.requests)))

    def take(self, row: "Row", ranked: Ranked) -> None:
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
                self.call.stage_ns.update(row.stage_ns)
                self._reply(slates(answers))
        except Exception as error:  # noqa: BLE001 - the batch has other callers; this one gets a status
            self.call.fail(error)

    def _ask(self, rows: Iterable[int]) -> None:
        rows = list(rows)
        self._n_open = len(rows)
        for i in rows:
            self._submit(Row(self, i))

    def _reply(self, answers: list[Slate]) -> None:
        start = time.perf_counter_ns()
        version = answers[0].bundle_version
        if self.message.model_version not in ("", version):
            raise UnknownModel(
                f"version of model {self.message.model_name}",
                found=f"{self.message.model_version} (not found)",
                expected=f"{version} or empty",
            )
        reply = build_reply(self.message, self.ask, answers)
        self.call.stage_ns["reply"] = time.perf_counter_ns() - start
        self.call.reply(reply)


class Row:
    """One row as an entry of the batcher; see ``Row`` of engine/server/service.py."""

    __slots__ = ("_inference", "_taken", "deadline", "index", "priority", "received_at", "stage_ns")

    def __init__(self, inference: Inference, index: int) -> None:
        self._inference = inference
        self._taken = False
        self.index = index
        self.deadline = inference.deadline
        self.received_at = inference.call.received_at
        self.priority = inference.ask.priority
        self.stage_ns: dict[str, int] = {}

    @property
    def request(self) -> Request:
        """What is asked for this row."""
        return self._inference.ask.requests[self.index]

    @property
    def model(self) -> str:
        """Who is asked."""
        return self._inference.message.model_name

    @property
    def key(self) -> str:
        """What assigns the call to an arm: its first user, for all rows, since a reply has one version."""
        first = self._inference.ask.requests[0]
        return first.user_id or self._inference.call.request_id

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
