"""What ModelStatistics counts: requests as the chain's observers see them, and batches as they are computed.

Requests: ModelInfer and ``recserve.v1.Recommender/Recommend``; one with n rows is one success, its stages are
those of the row that was answered last, and each request of a batch counts the whole batch's time, as at
Triton. Inferences and batches: whatever computed them. Each worker process has counts of its own.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import grpc

from recserve.engine.server.call import Call
from recserve.engine.server.chain import Observer
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
    """Counts since the start of the server, by model and version; safe to call from any thread."""

    def __init__(self) -> None:
        # Guards _tallies.
        self._lock = threading.Lock()
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def on_answered(self, call: Call, code: grpc.StatusCode, seconds: float) -> None:
        """Counts a request of the version that answered it, or was to answer it, where that is known."""
        if call.served_by is None or not call.method.is_batched:
            return
        ns = int(seconds * 1e9)
        with self._lock:
            tally = self._tally(call.served_by)
            if code is grpc.StatusCode.OK:
                tally.success.add(ns, call.stage_ns)
                tally.last_inference_ms = time.time_ns() // 1_000_000
            else:
                tally.fail.add(ns, {})

    def on_batch(self, model: str, version: str, n_rows: int, stage_ns: Mapping[str, int]) -> None:
        """Counts a batch that ``version`` of ``model`` computed."""
        with self._lock:
            batches = self._tally((model, version)).batches
            if n_rows not in batches:
                batches[n_rows] = _Spent()
            batches[n_rows].add(0, stage_ns)

    def message(self, model: str, version: str) -> pb.ModelStatistics:
        """Returns the counts of a version, zero for one that nobody has asked yet."""
        with self._lock:
            return _message(model, version, self._tallies.get((model, version), _Tally()))

    def _tally(self, key: tuple[str, str]) -> _Tally:
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = _Tally()
        return tally


def _message(model: str, version: str, tally: _Tally) -> pb.ModelStatistics:
    return pb.ModelStatistics(
        name=model,
        version=version,
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
