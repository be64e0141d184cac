"""What is asked: users drawn by popularity, written once in the form of each protocol."""

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from recserve.benchmarks.load.http1 import JsonMessage
from recserve.benchmarks.load.http2 import GrpcMessage
from recserve.benchmarks.load.options import Asked, Target
from recserve.benchmarks.load.schedule import N_DRAWN
from recserve.engine.traces import FEEDBACK, RECOMMEND, SIMILAR
from recserve.errors import InvalidRequest
from recserve.proto import feedback_pb2, open_inference_pb2, recommender_pb2

RECOMMENDER = "/recserve.v1.Recommender/"
RECORD = "/recserve.v1.Feedback/Record"
MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Question:
    """One request before it has a form: ``kind`` and the user's or item's id.

    ``k``: list length, 0 for that of all. ``items``: the history that it brings, or the items of its events.
    """

    kind: str
    id: str
    k: int = 0
    items: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """``questions``, all different, and the ``order`` in which they are asked, again from its start when it
    ends.

    ``times``: of a recorded workload, when each of ``order`` came, seconds since the first.
    """

    questions: list[Question]
    order: NDArray[np.int32]
    times: NDArray[np.float64] | None = None

    @property
    def rate(self) -> float:
        """Requests per second of a recorded workload, 0 of others."""
        if self.times is None:
            return 0.0
        return float((len(self.times) - 1) / max(self.times[-1], 1e-9))

    def part(self, i: int, n: int) -> "Workload":
        """Returns the i-th of n parts, for a schedule that has every n-th due time."""
        return Workload(self.questions, self.order[i::n])

    def kinds(self, n: int) -> NDArray[np.str_]:
        """Returns the kind of each of the first ``n`` requests."""
        names = np.array([question.kind for question in self.questions])
        return names[self.order[np.arange(n) % len(self.order)]]


def draw(asked: Asked, user_ids: Sequence[str], item_ids: Sequence[str], seed: int) -> Workload:
    """Draws who asks what. Popularity is Zipf's over users and items, whose ranks are shuffled."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind, _ in asked.mix]
    if FEEDBACK in kinds and not item_ids:
        raise InvalidRequest(
            "--mix feedback", found="without items", expected="ids to tell of", cure="Give --bundle."
        )
    # What the events are about.
    told = zipf(len(item_ids), asked.zipf, rng) if FEEDBACK in kinds else np.zeros(N_DRAWN, np.int64)
    drawn_kinds = rng.choice(len(kinds), N_DRAWN, p=[share for _, share in asked.mix])
    numbers: dict[Question, int] = {}
    order = np.empty(N_DRAWN, np.int32)
    ids = [item_ids if kind == SIMILAR else user_ids for kind in kinds]
    for kind, pool in zip(kinds, ids, strict=True):
        if not pool:
            raise InvalidRequest(
                f"--mix {kind}", found="without ids", expected="ids to ask for", cure="Give --bundle."
            )
    chosen = [zipf(len(pool), asked.zipf, rng) for pool in ids]
    for i, kind in enumerate(drawn_kinds.tolist()):
        items = (item_ids[told[i]],) if kinds[kind] == FEEDBACK else ()
        question = Question(kinds[kind], ids[kind][chosen[kind][i]], items=items)
        order[i] = numbers.setdefault(question, len(numbers))
    return Workload(list(numbers), order)


def zipf(n: int, exponent: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draws N_DRAWN of n indices: the r-th most popular has a weight of 1 / r^exponent."""
    weights = np.cumsum(np.arange(1, n + 1, dtype=np.float64) ** -exponent)
    ranks = np.searchsorted(weights, rng.random(N_DRAWN) * weights[-1])
    drawn: NDArray[np.int64] = rng.permutation(n)[ranks]
    return drawn


def grpc_message(asked: Asked, question: Question) -> GrpcMessage:
    """Writes a question for ``recserve.v1.Recommender``."""
    k = question.k or asked.k
    if question.kind == FEEDBACK:
        record = feedback_pb2.RecordRequest(
            events=[feedback_pb2.Event(user_id=question.id, item_id=item) for item in question.items]
        )
        return GrpcMessage(RECORD, record.SerializeToString())
    if question.kind == SIMILAR:
        similar = recommender_pb2.SimilarItemsRequest(
            item_id=question.id, k=k, variant=asked.variant, model=asked.model
        )
        return GrpcMessage(RECOMMENDER + "SimilarItems", similar.SerializeToString())
    message = recommender_pb2.RecommendRequest(
        user_id=question.id, k=k, history=question.items, variant=asked.variant, model=asked.model
    )
    return GrpcMessage(RECOMMENDER + "Recommend", message.SerializeToString())


def json_message(asked: Asked, question: Question) -> JsonMessage:
    """Writes a question for the JSON gateway."""
    if question.kind == FEEDBACK:
        events = [{"user_id": question.id, "item_id": item} for item in question.items]
        return JsonMessage("/v1/events", json.dumps({"events": events}).encode())
    name, path = ("item_id", "similar-items") if question.kind == SIMILAR else ("user_id", "recommend")
    body: dict[str, Any] = {name: question.id, "k": question.k or asked.k}
    body |= {"variant": asked.variant, "model": asked.model}
    if question.items:
        body["history"] = question.items
    return JsonMessage(f"/v1/{path}", json.dumps(body).encode())


def open_inference_message(asked: Asked, question: Question, model: str) -> GrpcMessage:
    """Writes a question for the Open Inference Protocol, its strings as raw bytes, as Triton's clients do."""
    if question.kind != RECOMMEND or question.items:
        found = question.kind if not question.items else "recommend with a history"
        raise InvalidRequest("requests over oip://", found=found, expected="recommend of stored histories")
    id_ = question.id.encode()
    message = open_inference_pb2.ModelInferRequest(model_name=model)
    message.inputs.add(name="user_id", datatype="BYTES", shape=[1, 1])
    message.raw_input_contents.append(struct.pack("<I", len(id_)) + id_)
    message.parameters["k"].int64_param = question.k or asked.k
    if asked.variant:
        message.parameters["variant"].string_param = asked.variant
    return GrpcMessage(MODEL_INFER, message.SerializeToString())


def write_messages(target: Target, asked: Asked, workload: Workload) -> list[GrpcMessage] | list[JsonMessage]:
    """Writes all questions in the target's form."""
    if target.scheme == "http":
        return [json_message(asked, question) for question in workload.questions]
    if target.scheme == "oip":
        return [open_inference_message(asked, question, target.path) for question in workload.questions]
    return [grpc_message(asked, question) for question in workload.questions]


def read_grpc_stages(reply: bytes) -> dict[str, int]:
    """Returns the stage times (ns) of a slate's bytes; raises ValueError for other bytes."""
    try:
        slate = recommender_pb2.Slate.FromString(reply)
    except DecodeError as error:
        raise ValueError("not a slate") from error
    return {stage.stage: stage.duration_ns for stage in slate.stage_times}


def read_json_stages(reply: bytes) -> dict[str, int]:
    """Returns the stage times (ns) of a slate in JSON; raises ValueError for other bytes."""
    slate = json.loads(reply)
    if not isinstance(slate, dict) or "stageTimes" not in slate:
        raise ValueError("not a slate")
    return {stage["stage"]: int(stage["durationNs"]) for stage in slate["stageTimes"]}


def no_stages(reply: bytes) -> dict[str, int]:
    """Replies of the Open Inference Protocol have no room for stage times."""
    return {}


STAGES: Mapping[str, Callable[[bytes], dict[str, int]]] = {
    "grpc": read_grpc_stages,
    "http": read_json_stages,
    "oip": no_stages,
}
