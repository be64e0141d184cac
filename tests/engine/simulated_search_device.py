"""An engine that searches on a GPU, in Numba's simulator: run by test_search_device.py in its own process."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from recserve.benchmarks import gpu_engine
from recserve.engine import Engine, EngineConfig, Request
from recserve.engine import engine as engine_module
from recserve.engine.bundle.rules import Rules
from recserve.engine.search_device import DeviceIndex, SearchDevice
from recserve.engine.state.items import ItemChange
from recserve.errors import ConfigError, InvalidRequest
from recserve.kernels import ItemIndex
from recserve.kernels.cuda import CudaItemIndex
from recserve.kernels.cuda.arithmetic import SIMULATED

assert SIMULATED
BUNDLE = Path(os.environ["BUNDLE"])


def load(device: str) -> Engine:
    return Engine.load(BUNDLE, EngineConfig(retrieval_device=device))


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Engine, Engine]]:
    """One that searches on the GPU, and one on the CPU."""
    monkeypatch.setattr(engine_module, "rehearsal", lambda *arguments: ())  # the simulator is slow
    with load("cuda") as gpu, load("cpu") as cpu:
        assert (gpu.loaded.retriever.device.name, cpu.loaded.retriever.device.name) == ("cuda", "cpu")
        yield gpu, cpu


def answers(engine: Engine, requests: list[Request]) -> list[Any]:
    return [[(item.item_id, item.score) for item in slate.items] for slate in engine.recommend_many(requests)]


def searched(index: Any) -> int:
    return int(index._cuda.stats()["queries"])


def test_slates_are_those_of_the_cpu_also_when_items_come_and_go(engines: tuple[Engine, Engine]) -> None:
    gpu, cpu = engines
    ids = cpu.loaded.bundle.catalogue.vocabulary.ids(range(8))
    requests = [
        Request(user_id=cpu.user_ids()[0], k=7),
        Request(history=ids[:3], k=5, exclude=[*ids[3:], "new"], include_seen=True),
        Request(history=ids[:3], k=4, filter="price < 50"),
        Request(user_id="nobody", k=3),
    ]
    before = searched(gpu.loaded.retriever._index)
    assert answers(gpu, requests) == answers(cpu, requests)
    assert searched(gpu.loaded.retriever._index) == before + 3

    best = answers(cpu, requests)[0][0][0]
    vector = 10 * cpu.loaded.bundle.item_embeddings[cpu.loaded.bundle.catalogue.vocabulary.index_of(best)]
    version = cpu.manifest.bundle_version
    for engine in engines:
        new = ItemChange(item_id="new", vector=tuple(vector.tolist()), bundle_version=version)
        engine.change_items([new, ItemChange(item_id=ids[7], is_served=False)])
    found = answers(gpu, requests)
    assert found == answers(cpu, requests)
    assert found[0][0][0] == "new"
    assert "new" not in dict(found[1])
    capped = Request(user_id=cpu.user_ids()[0], k=7, rules=Rules(diversity=0.5))
    assert answers(gpu, [capped]) == answers(cpu, [capped])


def test_a_gpu_that_fails_is_given_up_once_and_visibly(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, cpu = engines
    requests, calls = [Request(user_id=cpu.user_ids()[0], k=5)], []

    def fail(index: CudaItemIndex, *arguments: Any, **rules: Any) -> None:
        calls.append(index)
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(CudaItemIndex, "search", fail)
    with capture_logs() as logs:
        for _ in range(3):
            assert answers(gpu, requests) == answers(cpu, requests)
    device = gpu.loaded.retriever.device
    assert (device.name, device.fell_back, len(calls)) == ("cpu", True, 1)
    [line] = [line for line in logs if line["event"].startswith("GPU does not work")]
    assert (line["log_level"], line["error"]) == ("warning", "RuntimeError: the device is lost")
    gpu.change_items([ItemChange(item_id="new", like=cpu.user_ids()[:1])])
    assert gpu.loaded.retriever.device.fell_back


def test_the_check_of_a_gpu_finds_the_same_slates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_module, "rehearsal", lambda *arguments: ())
    monkeypatch.setattr(gpu_engine, "BATCHES", (1, 2))
    result = gpu_engine.check_engine(BUNDLE, rounds=1)
    assert result["graphs"] == {}  # a table of users needs none
    assert [set(row["ms"]) for row in result["times"]] == [{"cpu", "cuda"}] * 2


def test_an_index_follows_every_change_and_shares_what_did_not_change() -> None:
    rng = np.random.default_rng(1)
    vectors, queries = rng.standard_normal((45, 5), np.float32), rng.standard_normal((2, 5), np.float32)
    cpu = ItemIndex.build(vectors)
    index = DeviceIndex(cpu, SearchDevice("cuda", "cpu"))
    before, uploaded = index.copy(), index._cuda._catalogue
    index.upsert(np.array([3, 45, 46], np.int32), 3 * queries[[0, 1, 0]])
    index.remove(np.array([7, 46], np.int32))
    assert index._cuda._catalogue is uploaded
    exclude = np.array([0, 4, 6]), np.array([7, 45, 3, 1, 46, 2], np.int32)
    mask, bias = rng.random(47) < 0.5, rng.standard_normal(47).astype(np.float32)
    rules: list[dict[str, Any]] = [{}, {"exclude": exclude}]
    for wanted in (*rules, {"exclude": exclude, "allow": index.prepare_filter(mask), "bias": bias}):
        for found, expected in zip(
            index.search(queries, 6, **wanted), cpu.search(queries, 6, **wanted), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    original = ItemIndex.build(vectors).search(queries, 6)
    np.testing.assert_array_equal(before.search(queries, 6)[1], original[1])
    cpu.rebuild()
    index.remove(np.array([1], np.int32))
    assert index._cuda._catalogue is not uploaded
    np.testing.assert_array_equal(index.search(queries, 50)[1], cpu.search(queries, 50)[1])
    with pytest.raises(InvalidRequest, match="queries row 1 is nan"):
        index.search(np.array([[0] * 5, [np.nan] * 5], np.float32), 3)
    assert index._device.name == "cuda"
    assert index.search(queries, 9000)[1].shape == (2, 9000)  # more than a GPU lists


def test_a_gpu_that_answers_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    search = CudaItemIndex.search

    def err(index: CudaItemIndex, *arguments: Any, **rules: Any) -> Any:
        scores, items = search(index, *arguments, **rules)
        return np.nextafter(scores, np.float32(np.inf)), items

    monkeypatch.setattr(CudaItemIndex, "search", err)
    index = ItemIndex.build(np.eye(4, dtype=np.float32))
    device = SearchDevice("auto", "cuda")
    assert device.name == "cuda"
    with capture_logs() as logs:
        assert device.place(index) is index
    assert (device.name, device.fell_back, len(logs)) == ("cpu", True, 1)
    with pytest.raises(
        ConfigError, match=r"engine\.retrieval_device is cuda, which does not work \(CheckFailed"
    ):
        SearchDevice("cuda", "cpu").place(index)
