"""Forms of encoders next to torch and a plain export: what is counted, what is compared."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from recserve.benchmarks.encoder_forms import CASES, EXPORTED, TORCH, measure
from recserve.benchmarks.kernels.limits import Limits
from recserve.benchmarks.plain_encoder import as_exported, as_written
from recserve.benchmarks.roofline import Cost, cost_of
from recserve.benchmarks.tables import tables_of
from recserve.engine.bundle import layout
from recserve.exporters.onnx_graph import EncoderGraph, export_query_encoder
from recserve.exporters.quantise import int8_dynamic
from recserve.training.models.hstu import HSTU, HSTUConfig
from recserve.training.models.sasrec import Block, SASRec, SASRecConfig
from recserve.training.run import open_run

MACHINE = Limits(1, "avx2", fp32_gflops=50.0, int8_gops=100.0, read_gb_per_s={1024: 20.0, 1 << 30: 10.0})


@pytest.fixture(scope="module")
def model() -> SASRec:
    torch.manual_seed(0)
    return SASRec(SASRecConfig(embedding_size=16, n_blocks=2, n_heads=2, max_history=8), n_items=50).eval()


@pytest.fixture(scope="module")
def graph(model: SASRec) -> EncoderGraph:
    return export_query_encoder(model)


def test_operations_are_those_that_torch_counts(model: SASRec, graph: EncoderGraph, tmp_path: Path) -> None:
    np.save(tmp_path / layout.ITEM_EMBEDDINGS, graph.item_embeddings)
    history = np.random.default_rng(0).integers(0, 50, (3, 8)).astype(np.int32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.encode(torch.from_numpy(history))
    inputs = {layout.HISTORY_INPUT: history}
    exact = cost_of(graph.data, tmp_path, inputs, graph.parts)
    assert (exact.fp32, exact.int8) == (counter.get_total_flops(), 0)
    smaller = cost_of(int8_dynamic(graph).data, tmp_path, inputs, graph.parts)
    assert smaller.fp32 + smaller.int8 == exact.fp32
    assert smaller.int8 > smaller.fp32
    weights = sum(part.numel() * 4 for name, part in model.named_parameters() if "item" not in name)
    assert exact.n_bytes > 0.9 * weights


def test_the_limit_is_the_longer_of_computing_and_moving() -> None:
    assert Cost(5e9, 0, (1000,)).least_ms(MACHINE) == pytest.approx(100)
    assert Cost(0, 5e9, (1000,)).least_ms(MACHINE) == pytest.approx(50)
    assert Cost(1, 1, (10**9,)).least_ms(MACHINE) == pytest.approx(100)
    # A million operators of 1000 bytes find them in a cache.
    assert Cost(1, 1, (1000,) * 10**6).least_ms(MACHINE) == pytest.approx(50)
    assert Cost(30, 10, (15, 5)).intensity == 2


def test_the_plain_export_answers_as_the_model(model: SASRec) -> None:
    session = ort.InferenceSession(as_exported(model), providers=["CPUExecutionProvider"])
    history = np.array([[-1, -1, -1, 4, 1, 2, 3, 9], [1, 2, 3, 4, 5, 6, 7, 8]], np.int32)
    [found] = session.run([layout.QUERY_EMBEDDING_OUTPUT], {layout.HISTORY_INPUT: history})
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(history)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert type(model.blocks[0]) is Block, "the model itself was changed"


@pytest.fixture
def hstu() -> HSTU:
    torch.manual_seed(0)
    config = HSTUConfig(embedding_size=16, n_blocks=2, n_heads=2, max_history=8)
    return HSTU(config, n_items=50).eval()


def test_what_numpy_cannot_hold_is_counted(hstu: HSTU, tmp_path: Path) -> None:
    graph = export_query_encoder(hstu)
    np.save(tmp_path / layout.ITEM_EMBEDDINGS, graph.item_embeddings)
    history = np.arange(8, dtype=np.int32).reshape(1, 8)
    inputs = {layout.HISTORY_INPUT: history, layout.TIME_GAPS_INPUT: np.ones((1, 8), np.float32)}
    cost = cost_of(graph.data, tmp_path, inputs, graph.parts)
    # Times apart: 8 bytes each as differences, 2 rounded, 4 widened.
    assert {8 * 64 + 2 * 64, 2 * 64 + 4 * 64} <= set(cost.moved)


def test_hstu_as_written_is_the_model(hstu: HSTU) -> None:
    for weight in hstu.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    history = torch.tensor([[-1, -1, -1, 4, 1, 2, 3, 9], [1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.int32)
    gaps = torch.full(history.shape, 3600.0)
    plain = as_written(hstu)
    with torch.inference_mode():
        torch.testing.assert_close(plain.encode(history, gaps), hstu.encode(history, gaps), atol=1e-5, rtol=0)
        torch.testing.assert_close(plain(history, gaps)[:, -1], hstu.encode(history, gaps), atol=1e-5, rtol=0)
    assert type(plain.layers[0]) is not type(hstu.layers[0])


def test_every_case_has_all_contenders_in_turns(run_folder: Path, gated_folder: Path) -> None:
    rows = measure(run_folder, gated_folder, 0.0, MACHINE)
    assert open_run(run_folder).config.model in rows[0]["model"]
    contenders = [TORCH, EXPORTED, "fp16", "fp32"]
    assert [(row["case"], row["form"]) for row in rows] == [
        (case, form) for case in CASES for form in contenders
    ]
    by_form = {row["form"]: row for row in rows if row["case"] == "32"}
    assert by_form[TORCH]["of_torch"] == by_form[EXPORTED]["of_exported"] == 1
    assert "ndcg_loss_high" in by_form["fp16"]
    assert by_form["fp32"]["of_limit"] > 0
    [table] = tables_of({"bench": "encoder_forms", "rows": rows, "limits": MACHINE.as_dict()})
    assert len(table.rows) == len(rows)
    assert "50 GFLOP/s" in table.note


@pytest.fixture(scope="module")
def gated_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from recserve.exporters import measure as gate_measure
    from recserve.exporters.assemble import FormOptions, export_run

    folder = tmp_path_factory.mktemp("forms") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_measure, "MAX_CALLS", gate_measure.MIN_CALLS)
        # The shop's model may find nothing at all, of which any loss is possible.
        patch.setattr("recserve.exporters.forms.refusal", lambda *_: "")
        export_run(open_run(run_folder), folder, options=FormOptions(variants=("fp16",)))
    return folder
