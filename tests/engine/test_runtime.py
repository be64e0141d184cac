"""Where graphs really run, with which options, and what happens when the GPU does not work."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import structlog

from recserve.engine import Engine, Request, recorded, runtime
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.bundle import open_bundle
from recserve.engine.config import EngineConfig, SessionConfig
from recserve.engine.recorded import RecordedSession
from recserve.engine.runtime import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    TENSORRT_PROVIDER,
    Runtime,
    end_inference,
    infer,
    select_providers,
    session_kind,
    with_options,
)
from recserve.engine.server.open_inference.describe import model_config
from recserve.engine.server.open_inference.models import ServedModel
from recserve.engine.session import QueryEncoder
from recserve.errors import ConfigError

GRAPH = "variants/fp32/query_encoder.onnx"
has_gpu = any(device.ep_name == CUDA_PROVIDER for device in ort.get_ep_devices())
without_gpu = pytest.mark.skipif(has_gpu, reason="this machine has a CUDA device")


@pytest.fixture
def broken_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that ONNX Runtime lists and cannot use, as one without CUDA's libraries."""
    devices = [*ort.get_ep_devices(), SimpleNamespace(ep_name=CUDA_PROVIDER)]
    monkeypatch.setattr(ort, "get_ep_devices", lambda: devices)


def test_the_provider_is_what_the_session_says(two_stage_folder: Path) -> None:
    with Engine.load(two_stage_folder, EngineConfig(provider="cpu")) as engine:
        runtime = engine.loaded.runtime
    assert set(runtime.providers.values()) == {CPU_PROVIDER}
    assert set(runtime.providers) >= {GRAPH}
    assert len(runtime.providers) == 2
    assert (runtime.device, runtime.fell_back) == ("cpu", False)


@without_gpu
def test_a_machine_without_a_gpu_has_nothing_to_fall_back_from(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(provider="auto")) as engine:
        assert (engine.loaded.runtime.device, engine.loaded.runtime.fell_back) == ("cpu", False)
    for provider in ("cuda", "tensorrt"):
        with pytest.raises(ConfigError, match=rf"engine\.provider is {provider}; .*No CUDA device"):
            Engine.load(bundle_folder, EngineConfig(provider=provider))


@without_gpu
def test_a_gpu_that_does_not_work_is_given_up_once_and_visibly(
    two_stage_folder: Path, broken_gpu: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        structlog.testing.capture_logs() as logs,
        Engine.load(two_stage_folder, EngineConfig(provider="auto")) as engine,
    ):
        runtime = engine.loaded.runtime
        assert engine.recommend(Request(user_id=engine.user_ids()[0])).source == "model"
        described = model_config(ServedModel("shop", {"1": engine}), BatcherConfig()).parameters
    assert (described["device"].string_value, described["degraded"].string_value) == ("cpu", "true")
    assert set(runtime.providers.values()) == {CPU_PROVIDER}
    assert (runtime.device, runtime.fell_back) == ("cpu", True)
    [line] = [line for line in logs if line["event"].startswith("GPU does not work")]
    assert (line["log_level"], line["provider"]) == ("warning", CPU_PROVIDER)


@without_gpu
@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_who_asks_for_a_gpu_gets_it_or_an_error(bundle_folder: Path, broken_gpu: None, provider: str) -> None:
    with pytest.raises(ConfigError, match=rf"engine\.provider is {provider}, which does not work"):
        Engine.load(bundle_folder, EngineConfig(provider=provider))


def test_tensorrt_comes_before_cuda_and_both_before_the_cpu(broken_gpu: None) -> None:
    assert select_providers("tensorrt") == [TENSORRT_PROVIDER, CUDA_PROVIDER, CPU_PROVIDER]
    assert select_providers("auto") == select_providers("cuda") == [CUDA_PROVIDER, CPU_PROVIDER]


@pytest.mark.skipif(not has_gpu, reason="this machine has no CUDA device")
def test_a_gpu_that_works_is_used(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(provider="cuda")) as engine:
        assert engine.loaded.runtime.providers == {GRAPH: CUDA_PROVIDER}
        assert engine.loaded.runtime.device == "cuda"


OPTIONS: dict[str, dict[str, Any]] = {
    "two threads": {"threads": 2},
    "two threads that spin": {"threads": 2, "spinning": True},
    "arena": {"arena": True},
    "no memory pattern": {"memory_pattern": False},
    "no prepacking": {"prepacking": False},
    "bound inputs and outputs": {"io_binding": True},
    "no optimisation": {"optimisation": "none"},
    "basic optimisation": {"optimisation": "basic"},
    "extended optimisation": {"optimisation": "extended"},
}


@pytest.mark.parametrize("label", OPTIONS)
def test_options_reach_the_session_and_change_no_answer(bundle_folder: Path, label: str) -> None:
    bundle = open_bundle(bundle_folder)
    asked = SessionConfig(**OPTIONS[label])
    encoder = QueryEncoder(bundle, "fp32", Runtime(bundle, EngineConfig(provider="cpu", session=asked)))
    found = encoder._session.get_session_options()
    assert (found.intra_op_num_threads, found.enable_cpu_mem_arena) == (asked.threads, asked.arena)
    assert found.enable_mem_pattern == asked.memory_pattern
    assert (
        found.graph_optimization_level.name
        == {
            "none": "ORT_DISABLE_ALL",
            "basic": "ORT_ENABLE_BASIC",
            "extended": "ORT_ENABLE_EXTENDED",
            "all": "ORT_ENABLE_ALL",
        }[asked.optimisation]
    )
    entry = found.get_session_config_entry
    assert entry("session.intra_op.allow_spinning") == str(int(asked.spinning))
    assert entry("session.disable_prepacking") == str(int(not asked.prepacking))
    plain = QueryEncoder(bundle, "fp32", Runtime(bundle, EngineConfig(provider="cpu")))
    history = np.arange(24, dtype=np.int32).reshape(2, 12)
    np.testing.assert_allclose(encoder.run(history), plain.run(history), atol=1e-5)
    np.testing.assert_array_equal(encoder.run(history[:, ::2]), encoder.run(history[:, ::2].copy()))


@pytest.mark.parametrize("provider", ["auto", "cpu", "tensorrt"])
def test_only_cuda_records_what_it_launches(provider: str) -> None:
    asked = SessionConfig(cuda_graph=True)
    with pytest.raises(ConfigError, match=rf"cuda_graph is true with engine\.provider {provider}; .*cuda"):
        EngineConfig(provider=provider, session=asked)


def test_a_recording_is_asked_of_cuda_alone() -> None:
    names = [CUDA_PROVIDER, CPU_PROVIDER]
    assert with_options(names, SessionConfig()) == names
    assert with_options(names, SessionConfig(cuda_graph=True)) == [
        (CUDA_PROVIDER, {"enable_cuda_graph": "1"}),
        CPU_PROVIDER,
    ]
    assert session_kind(SessionConfig(cuda_graph=True)) is RecordedSession


@without_gpu
def test_a_recording_that_cannot_be_made_is_no_answer_without_one(
    bundle_folder: Path, broken_gpu: None
) -> None:
    config = EngineConfig(provider="cuda", session=SessionConfig(cuda_graph=True))
    with pytest.raises(
        ConfigError, match=r"engine\.provider is cuda, which does not work.*cannot be recorded"
    ):
        Engine.load(bundle_folder, config)


class OnTheCPU(RecordedSession):
    """Buffers and thread of a recorded session, where nothing is recorded."""

    device = "cpu"


def test_calls_of_many_shapes_and_threads_answer_as_a_plain_session(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "MAX_RECORDED", 3)
    bundle, config = open_bundle(bundle_folder), EngineConfig(provider="cpu")
    plain = QueryEncoder(bundle, "fp32", Runtime(bundle, config))
    monkeypatch.setattr(runtime, "session_kind", lambda _: OnTheCPU)
    encoder = QueryEncoder(bundle, "fp32", Runtime(bundle, config))
    rng = np.random.default_rng(3)
    asked = [rng.integers(0, 50, (1 + i % 5, 4 + i % 3)).astype(np.int32) for i in range(60)]
    # Many at once, and none changes what another one was given.
    with ThreadPoolExecutor(4) as callers:
        answers = list(callers.map(encoder.run, asked))
    for history, answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer, plain.run(history), atol=1e-5)
    calls = encoder._session._recorded
    assert [buffers.recording for buffers in calls.values()] == [0, 1, 2]


def endless_graph(kind: type[ort.InferenceSession]) -> ort.InferenceSession:
    """A loop that adds one for ever: ``x`` to ``y``. (No bundle may have a loop.)"""
    helper, kinds = onnx.helper, onnx.TensorProto
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["again"]),
            helper.make_node("Add", ["before", "before"], ["after"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", kinds.INT64, []),
            helper.make_tensor_value_info("go", kinds.BOOL, []),
            helper.make_tensor_value_info("before", kinds.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("again", kinds.BOOL, []),
            helper.make_tensor_value_info("after", kinds.FLOAT, [1]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["", "go", "x"], ["y"], body=body)],
        "endless",
        [helper.make_tensor_value_info("x", kinds.FLOAT, [1])],
        [helper.make_tensor_value_info("y", kinds.FLOAT, [1])],
        [helper.make_tensor("go", kinds.BOOL, [], [True])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return kind(model.SerializeToString(), providers=[CPU_PROVIDER])


@pytest.mark.parametrize("kind", [ort.InferenceSession, OnTheCPU])
def test_an_inference_without_end_is_ended(kind: type[ort.InferenceSession]) -> None:
    session, raised = endless_graph(kind), []

    def run() -> None:
        try:
            infer(session, "y", {"x": np.zeros(1, np.float32)})
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has its own kinds
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    end = time.monotonic() + 60
    while thread.is_alive():
        end_inference(thread.ident or 0)  # Without effect until it has begun.
        thread.join(0.01)
        assert time.monotonic() < end
    assert "terminate" in str(raised[0])
    end_inference(thread.ident or 0)
