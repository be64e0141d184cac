"""What ModelStatistics counts: requests as the chain's observers see them, and batches as they are computed.

All batched methods of the model count, ``recserve.v1.Recommender/Recommend`` too. A request with n rows is
one success and n inferences; its stages are those of the row that was answered last, and a request of a batch
counts the whole batch's time, as at Triton.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import grpc

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer
from recserve.engine.server.open_inference.models import READY, ModelState
from recserve.proto import open_inference_pb2 as pb

# What the protocol counts, by the stages of a request: the wait for a batch; ids to arrays; encoder and
# search; arrays to ids and the reply.
PARTS = {
    "queue": ("queue",),
    "compute_input": ("resolve",),
    "compute_infer": ("encode", "retrieve"),
    "compute_output": ("assemble", "reply"),
}
COMPUTE = ("compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class _Spent:
    """How often, how long, and how much of that in which stage."""

    count: int = 0
    ns: int = 0
    stage_ns: dict[str, int] = field(default_factory=dict)

    def add(self, ns: int, stage_ns: Mapping[str, int]) -> None:
        self.count += 1
        self.ns += ns
        for stage, spent in stage_ns.items():
            self.stage_ns[stage] = self.stage_ns.get(stage, 0) + spent

    def total(self) -> pb.StatisticDuration:
        return pb.StatisticDuration(count=self.count, ns=self.ns)

    def part(self, name: str) -> pb.StatisticDuration:
        ns = sum(self.stage_ns.get(stage, 0) for stage in PARTS[name])
        return pb.StatisticDuration(count=self.count, ns=ns)


@dataclass(slots=True)
class _Tally:
    """The counts of one version of a model; ``batches`` by their size."""

    last_inference_ms: int = 0
    success: _Spent = field(default_factory=_Spent)
    fail: _Spent = field(default_factory=_Spent)
    batches: dict[int, _Spent] = field(default_factory=dict)


class Statistics(Observer):
    """Counts since the start of the server, by version of a model; safe to call from any thread.

    ``served(name)``: the version that answers for a model, "" is the default one. A request that ends while
    one version is swapped for another counts for the one that is served then.
    """

    def __init__(self, served: Callable[[str], ModelState | None]) -> None:
        self._served = served
        # Guards _tallies.
        self._lock = threading.Lock()
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Counts a request that is done."""
        if not call.method.is_batched or call.request is None:
            return  # Refused before anybody knew what it asks.
        # "model_name" here, "model" in recserve.v1: what a request does not name is the default one.
        name = getattr(call.request, "model_name", "") or getattr(call.request, "model", "")
        state = self._served(name)
        if state is not None:
            self._count(state, call, code, int(seconds * 1e9))

    def on_batch(self, model: str, version: str, n_rows: int, stage_ns: Mapping[str, int]) -> None:
        """Counts a batch that was computed by ``version`` of ``model``."""
        with self._lock:
            batches = self._tally(ModelState(model, version, READY)).batches
            batches.setdefault(n_rows, _Spent()).add(0, stage_ns)

    def messages(self, models: Iterable[ModelState]) -> list[pb.ModelStatistics]:
        """Returns the counts of each of ``models``, zero for one that nobody has asked yet."""
        with self._lock:
            return [_message(model, self._tally(model)) for model in models]

    def _count(self, model: ModelState, call: Call, code: grpc.StatusCode, ns: int) -> None:
        with self._lock:
            tally = self._tally(model)
            if code is grpc.StatusCode.OK:
                tally.success.add(ns, call.stage_ns)
                tally.last_inference_ms = time.time_ns() // 1_000_000
            else:
                tally.fail.add(ns, {})

    def _tally(self, model: ModelState) -> _Tally:
        key = (model.name, model.version)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally()
        return tally


def _message(model: ModelState, tally: _Tally) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=tally.last_inference_ms,
        inference_count=sum(size * batches.count for size, batches in tally.batches.items()),
        execution_count=sum(batches.count for batches in tally.batches.values()),
        inference_stats=pb.InferStatistics(
            success=tally.success.total(),
            fail=tally.fail.total(),
            **{part: tally.success.part(part) for part in PARTS},
        ),
        batch_stats=[
            pb.InferBatchStatistics(batch_size=size, **{part: batches.part(part) for part in COMPUTE})
            for size, batches in sorted(tally.batches.items())
        ],
    )
