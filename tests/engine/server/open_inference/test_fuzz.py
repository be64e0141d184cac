"""Whatever arrives, the answer is a reply or a refusal that blames the caller: never UNKNOWN or INTERNAL."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine import Engine
from recserve.engine.server.app import Server
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.methods import Method
from recserve.engine.server.open_inference.service import PREFIX
from recserve.proto import open_inference_pb2 as pb
from tests.engine.server.local import TIMEOUT_SECONDS, LocalCall
from tests.engine.server.open_inference.messages import raw_bytes

MODEL = "sasrec"
OURS = {code.value[0] for code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)}

NAMES = st.sampled_from(["user_id", "history", "item_id", "score", "x", ""])
KEYS = st.sampled_from(
    [
        "k",
        "exclude",
        "include_seen",
        "variant",
        "priority",
        "timeout",
        "classification",
        "shared_memory_region",
    ]
)
PARAMETERS = st.one_of(
    st.builds(pb.InferParameter, bool_param=st.booleans()),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 20)),
    st.builds(pb.InferParameter, uint64_param=st.integers(0, 2**64 - 1) | st.integers(0, 20)),
    st.builds(pb.InferParameter, string_param=st.text(st.characters(codec="utf-8"), max_size=12)),
    st.builds(pb.InferParameter, string_param=st.sampled_from(["[", "[1]", '["a"]', "[" * 5000, ",", "{}"])),
    st.builds(pb.InferParameter, double_param=st.floats()),
    st.builds(pb.InferParameter),
)
ELEMENTS = st.lists(st.binary(max_size=5) | st.just(b"x" * 300) | st.just(b"u1"), max_size=6)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[pb.ModelInferRequest.InferInputTensor, bytes]:
    """An input as a client might write it, and raw contents for it."""
    elements = draw(ELEMENTS)
    width = draw(st.integers(-1, 3))
    good = [len(elements), 1]
    shape = draw(st.just(good) | st.just([2, width]) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3))
    tensor = pb.ModelInferRequest.InferInputTensor(
        name=draw(NAMES),
        datatype=draw(st.just("BYTES") | st.sampled_from(["INT64", "FP32", ""])),
        shape=shape,
        parameters=draw(st.dictionaries(KEYS, PARAMETERS, max_size=1)),
    )
    if draw(st.booleans()):
        tensor.contents.bytes_contents.extend(elements)
        tensor.contents.int_contents.extend(draw(st.lists(st.integers(-9, 9), max_size=1)))
    return tensor, draw(st.just(raw_bytes(elements)) | st.binary(max_size=20))


@st.composite
def requests(draw: st.DrawFn) -> pb.ModelInferRequest:
    """A ModelInferRequest of which any part may be wrong."""
    drawn = draw(st.lists(tensors(), max_size=3))
    raw = [raw for _, raw in drawn] if draw(st.booleans()) else []
    return pb.ModelInferRequest(
        model_name=draw(st.sampled_from([MODEL, MODEL, "", "x"])),
        model_version=draw(st.sampled_from(["", "", "1"])),
        id=draw(st.text(st.characters(codec="utf-8"), max_size=3)),
        parameters=draw(st.dictionaries(KEYS, PARAMETERS, max_size=3)),
        inputs=[tensor for tensor, _ in drawn],
        outputs=[
            pb.ModelInferRequest.InferRequestedOutputTensor(name=name, parameters=parameters)
            for name, parameters in draw(
                st.lists(st.tuples(NAMES, st.dictionaries(KEYS, PARAMETERS, max_size=1)), max_size=2)
            )
        ],
        raw_input_contents=raw,
    )


@pytest.fixture(scope="module")
def server(bundle_folder: Path) -> Iterator[Server]:
    """A server without a network, and without deadlines that a busy machine could miss."""
    with Engine.load(bundle_folder) as engine:
        server = Server(ServerConfig(port=0, default_deadline_ms=60_000))
        server.serve(engine)
        yield server
        server.stop()


def ask(server: Server, method: Method, data: bytes) -> bool:
    """Returns whether the method answered; fails on a status that blames the server."""
    call = LocalCall(method, seconds=TIMEOUT_SECONDS)
    server.chain.dispatch(call, data)
    answer = call.future.result(TIMEOUT_SECONDS)
    assert call.n_answers == 1
    if isinstance(answer, status_pb2.Status):
        assert answer.code not in OURS, (method.path, data, answer)
        return False
    method.response.FromString(answer)
    return True


def methods(server: Server) -> list[Method]:
    found = [method for method in server.chain.methods if method.path.startswith(PREFIX)]
    assert len(found) == len(pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods)
    return found


@given(message=requests())
@settings(max_examples=300, deadline=None)
def test_requests_of_which_any_part_is_wrong(server: Server, message: pb.ModelInferRequest) -> None:
    [infer] = [method for method in methods(server) if method.path.endswith("ModelInfer")]
    ask(server, infer, message.SerializeToString())


@given(data=st.data(), junk=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_bytes_and_bytes_of_messages_that_were_changed(server: Server, data: Any, junk: bytes) -> None:
    good = data.draw(requests()).SerializeToString()
    at = data.draw(st.integers(0, len(good)))
    for method in methods(server):
        ask(server, method, junk)
        ask(server, method, good[:at] + junk[:3] + good[at + data.draw(st.integers(0, 3)) :])


def test_the_fuzzer_would_see_a_failure(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    [infer] = [method for method in methods(server) if method.path.endswith("ModelInfer")]
    message = pb.ModelInferRequest(model_name=MODEL)
    tensor = message.inputs.add(name="user_id", datatype="BYTES", shape=[1, 1])
    tensor.contents.bytes_contents.append(b"u1")
    assert ask(server, infer, message.SerializeToString())
    monkeypatch.setattr(server.router, "answer", lambda *arguments, **fields: 1 / 0)
    with pytest.raises(AssertionError):
        ask(server, infer, message.SerializeToString())
