"""The protocol over real gRPC on every transport: answers are the engine's, refusals have Triton's codes."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from recserve.engine import Engine, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.client import RecommenderClient
from recserve.proto import open_inference_pb2 as pb
from tests.engine.server.conftest import RunningServer
from tests.engine.server.open_inference.messages import Client, as_numpy, ask, raw_bytes

MODEL = "sasrec"
TIMEOUT_SECONDS = 30


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with grpc.insecure_channel(server.address) as channel:
        yield Client(channel)


def known_users(engine: Engine, n: int) -> list[str]:
    return [user for user in engine.user_ids() if engine.history(user)][:n]


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
def test_rows_get_the_engine_s_answers(client: Client, engine: Engine, raw: bool) -> None:
    users = [*known_users(engine, 3), "nobody knows me", ""]
    reply = client.ModelInfer(ask(users, raw=raw, k=7, id="r1"))
    assert (reply.model_name, reply.id) == (MODEL, "r1")
    assert reply.model_version == engine.manifest.bundle_version
    assert [(o.name, o.datatype, list(o.shape)) for o in reply.outputs] == [
        ("item_id", "BYTES", [5, 7]),
        ("score", "FP32", [5, 7]),
    ]
    slates = [engine.recommend(Request(user_id=user, k=7)) for user in users]
    assert as_numpy(reply, "item_id").tolist() == [[i.item_id for i in slate.items] for slate in slates]
    expected = [[i.score for i in slate.items] for slate in slates]
    np.testing.assert_allclose(as_numpy(reply, "score"), expected, atol=1e-4)
    assert reply.parameters["source"].string_param == ",".join(slate.source for slate in slates)
    assert reply.parameters["source"].string_param.endswith("model,popularity,popularity")


def test_history_exclude_and_the_other_parameters(client: Client, engine: Engine) -> None:
    popular = [item.item_id for item in engine.recommend(Request(k=8)).items]
    first = Request(history=popular[:2], exclude=popular[4:6], k=4, include_seen=True)
    second = Request(history=[popular[3]], exclude=popular[4:6], k=4, include_seen=True)
    for exclude in (",".join(popular[4:6]), f'["{popular[4]}", "{popular[5]}"]'):
        reply = client.ModelInfer(
            ask(["", ""], history=[popular[:2], [popular[3]]], exclude=exclude, k=4, include_seen=True)
        )
        wanted = [[i.item_id for i in engine.recommend(r).items] for r in (first, second)]
        assert as_numpy(reply, "item_id").tolist() == wanted
    # Only padding: the stored history, as without the input.
    [user] = known_users(engine, 1)
    reply = client.ModelInfer(ask([user], history=[[""]], variant=engine.manifest.default_variant))
    assert as_numpy(reply, "item_id").shape == (1, 10)
    assert reply.parameters["source"].string_param == "model"
    reply = client.ModelInfer(ask([""], history=[["gone"]], whatever="ignored"))
    assert reply.parameters["source"].string_param == "popularity"
    assert "row 0: 1 of 1 history items" in reply.parameters["warnings"].string_param


def test_outputs_come_in_the_order_that_was_asked(client: Client) -> None:
    reply = client.ModelInfer(ask(["a", "b"], outputs={"score": {}, "item_id": {}}, k=2))
    assert [output.name for output in reply.outputs] == ["score", "item_id"]
    assert as_numpy(reply, "score").shape == as_numpy(reply, "item_id").shape == (2, 2)
    only = client.ModelInfer(ask(["a"], outputs={"item_id": {}}))
    assert [output.name for output in only.outputs] == ["item_id"]


def test_classification_names_the_items(client: Client) -> None:
    plain = client.ModelInfer(ask(["a"], k=5))
    ids, scores = as_numpy(plain, "item_id")[0], as_numpy(plain, "score")[0]
    reply = client.ModelInfer(ask(["a", "b"], k=5, outputs={"score": {"classification": 3}}))
    [output] = reply.outputs
    assert (output.datatype, list(output.shape)) == ("BYTES", [2, 3])
    assert as_numpy(reply, "score")[1].tolist() == [f"{scores[i]:f}:{i}:{ids[i]}" for i in range(3)]


def test_a_row_of_few_items_is_filled_up(client: Client, engine: Engine) -> None:
    n_items, k = engine.manifest.n_items, engine.config.max_k
    popular = [item.item_id for item in engine.recommend(Request(k=k)).items]
    exclude = ",".join(popular[:600])
    reply = client.ModelInfer(ask([""], k=k, exclude=exclude))
    ids, scores = as_numpy(reply, "item_id")[0], as_numpy(reply, "score")[0]
    n = n_items - 600
    assert ids.shape == (k,)
    assert all(ids[:n])
    assert not any(ids[n:])
    assert np.isfinite(scores[:n]).all()
    assert np.isneginf(scores[n:]).all()


def bad(change: Callable[[pb.ModelInferRequest], object], **fields: Any) -> pb.ModelInferRequest:
    message = ask(["a", "b"], **fields)
    change(message)
    return message


def no_change(message: pb.ModelInferRequest) -> None:
    pass


BAD: dict[str, tuple[pb.ModelInferRequest, str]] = {
    "k of zero": (ask(["a"], k=0), "k is 0; expected 1 to 1000"),
    "k as text": (ask(["a"], k="5"), "parameter k is string_param; expected int64_param"),
    "exclude of broken JSON": (ask(["a"], exclude="[1"), "parameter exclude"),
    "exclude of numbers": (ask(["a"], exclude="[1]"), "parameter exclude"),
    "timeout below zero": (ask(["a"], timeout=-1), "parameter timeout"),
    "unknown variant": (ask(["a"], variant="int4"), "variant is int4"),
    "a long id": (ask(["a", "x" * 300]), "row 1: user_id is 300 bytes long"),
    "an id that is not UTF-8": (ask(["a", b"\xff"]), "row 1: user_id is not UTF-8"),
    "a long history id": (
        ask(["a", "b"], history=[["x"], ["x" * 300]]),
        "row 1: history[0] is 300 bytes long",
    ),
    "no input": (pb.ModelInferRequest(model_name=MODEL), "without user_id"),
    "unknown input": (bad(lambda m: m.inputs.add(name="age")), "number of raw_input_contents is 1"),
    "unknown typed input": (bad(lambda m: m.inputs.add(name="age"), raw=False), "inputs[1] is age"),
    "an input twice": (bad(lambda m: m.inputs.append(m.inputs[0]), raw=False), "inputs[1] is user_id"),
    "unknown output": (ask(["a"], outputs={"embedding": {}}), "outputs[0] is embedding"),
    "an output twice": (bad(lambda m: m.outputs.extend([m.outputs[0]]), outputs={"score": {}}), "outputs[1]"),
    "datatype": (
        bad(lambda m: setattr(m.inputs[0], "datatype", "INT64")),
        "datatype of input user_id is INT64",
    ),
    "shape": (bad(lambda m: m.inputs[0].shape.append(1)), "shape of input user_id is [2, 1, 1]"),
    "shape below zero": (bad(lambda m: m.inputs[0].shape.__setitem__(0, -1)), "shape of input user_id"),
    "elements": (bad(lambda m: m.inputs[0].shape.__setitem__(0, 3)), "elements of input user_id is 2"),
    "width": (bad(lambda m: m.inputs[0].shape.__setitem__(slice(None), [1, 2])), "expected [rows, 1]"),
    "rows of zero": (ask([]), "batch of input user_id is 0"),
    "too many rows": (ask(["a"] * 65), "batch of input user_id is 65; expected 1 to 64"),
    "batches that differ": (ask(["a", "b"], history=[["x"]]), "batch of input history is 1; expected that"),
    "raw and typed": (bad(lambda m: m.inputs[0].contents.SetInParent()), "next to raw_input_contents"),
    "cut": (bad(lambda m: m.raw_input_contents.__setitem__(0, b"\x05\0\0\0ab")), "cut short"),
    "cut length": (bad(lambda m: m.raw_input_contents.__setitem__(0, b"\x01\0")), "cut short"),
    "classification of ids": (ask(["a"], outputs={"item_id": {"classification": 2}}), "classification"),
    "classification of 0": (ask(["a"], outputs={"score": {"classification": 0}}), "classification"),
}


@pytest.mark.parametrize(("message", "text"), BAD.values(), ids=BAD.keys())
def test_bad_requests_say_what_is_wrong(client: Client, message: pb.ModelInferRequest, text: str) -> None:
    code, details = client.fails("ModelInfer", message)
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text in details


def test_one_bad_row_fails_the_call_and_nobody_else(client: Client) -> None:
    futures = [client.ModelInfer(ask(["a", "b"], k=3)) for _ in range(3)]
    assert client.fails("ModelInfer", ask(["a"] * 20 + ["x" * 300]))[1].startswith("row 20: user_id")
    assert all(as_numpy(reply, "item_id").shape == (2, 3) for reply in futures)


def test_unknown_models_are_not_found(client: Client, engine: Engine) -> None:
    for name in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        assert client.fails(name, name="x")[0] is grpc.StatusCode.NOT_FOUND
        assert client.fails(name, name=MODEL, version="7")[0] is grpc.StatusCode.NOT_FOUND
        getattr(client, name)(name=MODEL, version=engine.manifest.bundle_version)
    code, details = client.fails("ModelInfer", ask(["a"], model="x"))
    assert (code, details) == (grpc.StatusCode.NOT_FOUND, "model is x; expected one of sasrec.")
    assert client.fails("ModelInfer", ask(["a"], model_version="7"))[0] is grpc.StatusCode.NOT_FOUND
    assert client.ModelInfer(ask(["a"], model_version=engine.manifest.bundle_version)).outputs
    assert client.fails("ModelStatistics", version="7")[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert not client.ModelReady(name="x").ready
    assert not client.ModelReady(name=MODEL, version="7").ready
    assert client.ModelReady(name=MODEL, version=engine.manifest.bundle_version).ready


def test_shared_memory_is_not_supported(client: Client) -> None:
    def in_shared_memory(message: pb.ModelInferRequest) -> None:
        message.inputs[0].parameters["shared_memory_region"].string_param = "r"

    code, details = client.fails("ModelInfer", bad(in_shared_memory))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert "tensor user_id is in shared memory" in details
    wanted = ask(["a"], outputs={"score": {"shared_memory_region": "r"}})
    assert client.fails("ModelInfer", wanted)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_metadata_and_configuration_fit_together(client: Client, engine: Engine) -> None:
    metadata = client.ModelMetadata(name=MODEL)
    config = client.ModelConfig(name=MODEL).config
    assert list(metadata.versions) == [engine.manifest.bundle_version]
    assert metadata.properties["max_k"] == str(engine.config.max_k)
    assert (config.name, config.backend) == (MODEL, metadata.platform)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert config.max_batch_size == BatcherConfig().max_size
    shapes = {t.name: list(t.shape) for t in [*metadata.inputs, *metadata.outputs]}
    dims = {t.name: list(t.dims) for t in [*config.input, *config.output]}
    assert shapes == {"user_id": [-1, 1], "history": [-1, -1], "item_id": [-1, -1], "score": [-1, -1]}
    # The configuration is of one row, the metadata of a batch.
    assert {name: shape[1:] for name, shape in shapes.items()} == dims
    types = {"BYTES": pb.TYPE_STRING, "FP32": pb.TYPE_FP32}
    expected = {t.name: types[t.datatype] for t in [*metadata.inputs, *metadata.outputs]}
    assert {t.name: t.data_type for t in [*config.input, *config.output]} == expected
    assert [t.name for t in config.input if t.optional] == ["history"]


def test_a_server_without_a_repository_says_so(start: Callable[..., RunningServer], engine: Engine) -> None:
    server = start(admin_address="127.0.0.1:0")
    server.serve(engine)
    with grpc.insecure_channel(server.server.admin_address) as channel:
        client = Client(channel)
        for ready in (True, False):
            [model] = client.RepositoryIndex(ready=ready).models
            assert (model.name, model.version) == (MODEL, engine.manifest.bundle_version)
            assert (model.state, model.reason) == ("READY", "")
        assert client.fails("RepositoryIndex", repository_name="r")[0] is grpc.StatusCode.UNIMPLEMENTED
        for name in ("RepositoryModelLoad", "RepositoryModelUnload"):
            code, details = client.fails(name, model_name=MODEL)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert details.startswith("model control is not available")
        assert "model_repository" not in client.ServerMetadata().extensions
        parameters = {"config": pb.ModelRepositoryParameter(string_param="{}")}
        message = pb.RepositoryModelLoadRequest(model_name=MODEL, parameters=parameters)
        assert "parameters of the load is config" in client.fails("RepositoryModelLoad", message)[1]
    with grpc.insecure_channel(server.address) as channel:
        # What changes the server is not there for the public.
        code, details = Client(channel).fails("RepositoryModelLoad", model_name=MODEL)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert "model control" not in details


def test_before_and_after_the_engine_is_warm(start: Callable[..., RunningServer], engine: Engine) -> None:
    server = start()
    with grpc.insecure_channel(server.address) as channel:
        client = Client(channel)
        assert client.ServerLive().live
        assert not client.ServerReady().ready
        assert not client.ModelReady(name=MODEL).ready
        assert not client.RepositoryIndex().models
        assert not client.ModelStatistics().model_stats
        assert client.fails("ModelInfer", ask(["a"]))[0] is grpc.StatusCode.UNAVAILABLE
        assert client.fails("ModelMetadata", name=MODEL)[0] is grpc.StatusCode.UNAVAILABLE
        assert client.fails("ModelMetadata")[0] is grpc.StatusCode.UNAVAILABLE
        server.serve(engine)
        assert client.ServerReady().ready
        assert client.ModelReady(name=MODEL).ready
        assert client.ModelInfer(ask(["a"])).outputs


def test_a_timeout_of_a_microsecond_ends_in_the_queue(client: Client) -> None:
    code, details = client.fails("ModelInfer", ask(["a"], timeout=1))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "within its timeout of 1 µs" in details
    assert client.ModelInfer(ask(["a"], timeout=20_000_000, priority=1)).outputs


def test_reflection_describes_it_from_its_own_pool(start: Callable[..., RunningServer]) -> None:
    server = start(admin_address="127.0.0.1:0")
    with grpc.insecure_channel(server.server.admin_address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        names = ("inference.GRPCInferenceService", "recserve.v1.Recommender", "inference.Nothing")
        asked = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in names]
        ours, other, missing = stub.ServerReflectionInfo(iter(asked), timeout=TIMEOUT_SECONDS)
    [data] = ours.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(data)
    assert [service.name for service in file.service] == ["GRPCInferenceService"]
    assert other.file_descriptor_response.file_descriptor_proto
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_the_calls_of_perf_analyzer(client: Client, engine: Engine) -> None:
    """In its order, and with what it makes of the answers."""
    metadata = client.ModelMetadata(name=MODEL)
    config = client.ModelConfig(name=MODEL).config
    extensions = client.ServerMetadata().extensions
    assert "statistics" in extensions
    version = metadata.versions[-1]
    [before] = client.ModelStatistics(name=MODEL, version=version).model_stats
    batch = 4
    assert batch <= config.max_batch_size
    message = pb.ModelInferRequest(model_name=MODEL, id="1")
    for tensor, of_config in zip(metadata.inputs, config.input, strict=True):
        assert tensor.name == of_config.name
        if of_config.optional:
            continue
        # Dimension 0 is the batch; the data are random text, longer than ids usually are.
        [width] = list(tensor.shape[1:])
        message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[batch, width])
        message.raw_input_contents.append(raw_bytes(["q" * 128] * batch * width))
    for output in metadata.outputs:
        message.outputs.add(name=output.name)
    for _ in range(3):
        reply = client.ModelInfer(message)
        assert [o.name for o in reply.outputs] == [o.name for o in metadata.outputs]
    [after] = client.ModelStatistics(name=MODEL, version=version).model_stats
    assert after.inference_count - before.inference_count == 3 * batch
    assert 3 <= after.execution_count - before.execution_count <= 3 * batch
    assert after.inference_stats.success.count - before.inference_stats.success.count == 3
    assert after.last_inference > 0
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        duration = getattr(after.inference_stats, part)
        assert duration.count == after.inference_stats.success.count
        assert duration.ns > 0
    stats = after.inference_stats
    parts = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert sum(part.ns for part in parts) <= stats.success.ns


def test_statistics_count_what_happened_to_the_model(server: RunningServer, client: Client) -> None:
    client.ModelInfer(ask(["a", "b"]))
    with RecommenderClient(server.address, timeout=TIMEOUT_SECONDS) as ours:
        ours.recommend(Request(k=1))
    client.fails("ModelInfer", ask(["a"], k=0))
    client.fails("ModelInfer", ask(["a"], model="another"))
    client.ModelInfer(ask(["a"], model=""))
    [named] = client.ModelStatistics(name=MODEL).model_stats
    assert (named.inference_stats.success.count, named.inference_stats.fail.count) == (3, 1)
    assert named.inference_count == 4
    assert sum(b.batch_size * b.compute_infer.count for b in named.batch_stats) == named.inference_count
    assert sum(b.compute_infer.count for b in named.batch_stats) == named.execution_count
    # Asking does not count, and no name means all.
    [all_models] = client.ModelStatistics().model_stats
    assert all_models == named
