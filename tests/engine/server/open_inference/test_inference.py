"""The rows of one call: answered once, from one version, whatever happens between two batches."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from recserve.engine import Engine, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.ranked import Ranked
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.methods import Method
from recserve.engine.server.open_inference.inference import Inference, InferRow
from recserve.engine.server.open_inference.requests import read_infer
from recserve.engine.server.service import Row
from recserve.errors import DeadlineExceeded, InvalidRequest, RecserveError, Unavailable
from recserve.proto import open_inference_pb2 as pb
from tests.engine.server.local import LocalCall
from tests.engine.server.open_inference.messages import as_numpy, ask

INFER = Method(
    path="/inference.GRPCInferenceService/ModelInfer",
    request=pb.ModelInferRequest,
    response=pb.ModelInferResponse,
    handler=lambda request, call: None,
    scope="recommend",
)


@dataclass(frozen=True)
class OtherBundle:
    """Stands for a second bundle: the same items under another version."""

    manifest: Any
    catalogue: Any


@dataclass(frozen=True)
class OtherManifest:
    bundle_version: str


class Waiting:
    """A call of three rows that wait; ``answer`` gives them what a batch would."""

    def __init__(self, engine: Engine, seconds: float = 30, **fields: Any) -> None:
        self.engine = engine
        self.call = LocalCall(INFER, seconds=seconds)
        self.rows: list[Row] = []
        message = ask(["a", "b", "c"], **fields)
        inference = Inference(message, self.call, read_infer(message, 64), "sasrec", self.rows.append)
        inference.start()

    def answer(self, row: Row, version: str = "") -> None:
        [ranked] = self.engine.rank_each([row.request])
        assert isinstance(ranked, Ranked)
        if version:
            bundle: Any = self.bundles.setdefault(
                version, OtherBundle(OtherManifest(version), ranked.bundle.catalogue)
            )
            ranked = Ranked(
                bundle, ranked.items, ranked.scores, ranked.variant, ranked.source, ranked.stage_ns, ()
            )
        row.take(ranked)

    bundles: dict[str, OtherBundle] = {}  # noqa: RUF012 - one object for each version


def test_the_last_row_answers_in_the_order_of_the_request(engine: Engine) -> None:
    waiting = Waiting(engine, history=[["x"], ["y"], ["z"]], k=3, id="7")
    for row in (waiting.rows[2], waiting.rows[0]):
        waiting.answer(row)
        assert row.is_done
        assert not waiting.call.is_done
    waiting.answer(waiting.rows[1])
    reply = pb.ModelInferResponse.FromString(waiting.call.result())
    assert (reply.id, reply.model_version) == ("7", engine.manifest.bundle_version)
    assert as_numpy(reply, "item_id").shape == (3, 3)
    assert waiting.call.n_answers == 1
    assert {"resolve", "encode", "retrieve", "assemble", "reply"} <= waiting.call.stage_ns.keys()


def test_no_reply_mixes_versions(engine: Engine) -> None:
    waiting = Waiting(engine)
    first, second, third = waiting.rows
    waiting.answer(first, "v1")
    waiting.answer(second, "v2")
    waiting.answer(third, "v2")
    assert not waiting.call.is_done
    # The row that was answered before the swap is asked again, alone.
    [again] = waiting.rows[3:]
    assert isinstance(again, InferRow)
    assert again.index == 0
    waiting.answer(again, "v2")
    assert pb.ModelInferResponse.FromString(waiting.call.result()).model_version == "v2"


def test_the_first_error_fails_the_call_and_frees_its_rows(engine: Engine) -> None:
    waiting = Waiting(engine)
    waiting.rows[1].fail(InvalidRequest("user_id", found="bad", expected="good"))
    assert all(row.is_done for row in waiting.rows)
    assert str(waiting.call.refusal) == "row 1: user_id is bad; expected good."
    assert not waiting.rows[0].fail(RuntimeError())
    waiting.answer(waiting.rows[0])
    assert waiting.call.n_answers == 1


@pytest.mark.parametrize(
    ("fields", "kind"), [({}, DeadlineExceeded), ({"timeout": 40_000_000}, DeadlineExceeded),
                         ({"timeout": 5}, Unavailable)], ids=["call", "later", "timeout"]
)  # fmt: skip
def test_the_earlier_of_deadline_and_timeout_counts(
    engine: Engine, fields: dict[str, int], kind: type[RecserveError]
) -> None:
    waiting = Waiting(engine, **fields)
    row = waiting.rows[0]
    assert row.deadline == min(waiting.call.deadline, row.received_at + fields.get("timeout", 1e9) / 1e6)
    row.expire()
    assert isinstance(waiting.call.refusal, kind)


@pytest.mark.parametrize(("level", "priority"), [(0, 1), (1, 0), (2, 1), (4, 3), (5, 1)])
def test_priorities_are_triton_s(level: int, priority: int) -> None:
    assert read_infer(ask(["a"], priority=level), 1).priority == priority


def test_a_call_takes_no_more_rows_than_a_batch(engine: Engine) -> None:
    server = Server(ServerConfig(port=0), BatcherConfig(max_size=1))
    server.serve(engine)
    try:
        method = server.chain.methods.get(INFER.path)
        assert method is not None
        call = LocalCall(method, seconds=30)
        server.chain.dispatch(call, ask(["a", "b"]).SerializeToString())
        with pytest.raises(InvalidRequest, match="batch of input user_id is 2; expected 1 to 1"):
            call.result()
        call = LocalCall(method, seconds=30)
        server.chain.dispatch(call, ask(["a"], k=2).SerializeToString())
        reply = pb.ModelInferResponse.FromString(call.result())
        ranked = engine.recommend(Request(user_id="a", k=2))
        assert as_numpy(reply, "item_id")[0].tolist() == [item.item_id for item in ranked.items]
        np.testing.assert_allclose(as_numpy(reply, "score")[0], [i.score for i in ranked.items], atol=1e-4)
    finally:
        server.stop()
