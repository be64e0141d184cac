"""Forms of a ranker: each rule of their gate, on figures and on a real graph."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.errors import BundleInvalid, CheckFailed, InvalidRequest
from recserve.exporters import ranker_forms
from recserve.exporters.assemble import FormOptions, export_run
from recserve.exporters.quantise import fp16_tensors
from recserve.exporters.ranker_forms import RankerMeasured, auc_loss, refusal
from recserve.training.run import open_run

EQUAL = RankerMeasured(
    auc=0.8,
    auc_loss=0.0,
    auc_loss_low=0.0,
    auc_loss_high=0.0,
    top10_overlap=1.0,
    max_logit_error=0.0,
    size_bytes=1000,
    size_ratio=1.0,
    resident_bytes=5000,
    p50_batch1_ms=1.0,
    p99_batch1_ms=2.0,
    p50_batch32_ms=10.0,
    p99_batch32_ms=20.0,
    speedup_batch1=1.0,
    speedup_batch32=1.0,
)


def form(**changes: float) -> RankerMeasured:
    return dataclasses.replace(EQUAL, **changes)


def test_every_rule_of_the_gate() -> None:
    assert refusal(EQUAL, 0.001).startswith("neither smaller (1.00 of fp32's bytes) nor faster (1.00×")
    for gain in ({"size_ratio": 0.5}, {"speedup_batch1": 1.2}, {"speedup_batch32": 1.2}):
        assert refusal(form(**gain), 0.001) == ""
    unsure = form(size_ratio=0.3, auc_loss=0.0, auc_loss_high=0.0011)
    assert "up to 0.0011; allowed 0.0010" in refusal(unsure, 0.001)
    assert refusal(unsure, 0.002) == ""
    assert refusal(form(size_ratio=0.3, auc_loss_high=float("nan")), 0.001) == "auc_loss_high not finite"


def test_users_are_resampled_in_pairs() -> None:
    rng = np.random.default_rng(1)
    logits = rng.standard_normal(3000).astype(np.float32)
    clicks = (logits + rng.standard_normal(3000) > 0).astype(np.float32)
    users = rng.integers(0, 200, 3000).astype(np.int32)
    assert auc_loss(logits, logits * 2 - 1, clicks, users) == (0.0, 0.0, 0.0)
    loss, low, high = auc_loss(logits, logits + rng.standard_normal(3000).astype(np.float32), clicks, users)
    assert 0.02 < low < loss < high
    assert np.isnan(auc_loss(logits, logits * np.float32(np.nan), clicks, users)).all()


def test_of_a_halved_table_the_gathered_rows_alone_are_widened() -> None:
    table = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    weight = np.random.default_rng(1).standard_normal((4, 80)).astype(np.float32)
    proto = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Gather", ["table", "rows"], ["gathered"]),
                helper.make_node("MatMul", ["gathered", "weight"], ["out"]),
            ],
            "g",
            [helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 80])],
            [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weight, "weight")],
        )
    )
    halved = onnx.load_from_string(fp16_tensors(proto.SerializeToString()))
    casts = [node.input[0] for node in halved.graph.node if node.op_type == "Cast"]
    assert sorted(casts) == ["gathered.fp16", "weight.fp16"]


@pytest.fixture(scope="module", autouse=True)
def any_loss() -> Iterator[None]:
    """The shop's ranker may have learned nothing, of which any loss is possible."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker_forms, "MAX_AUC_LOSS", 0.5)
        yield


def export(run: Path, ranker: Path, target: Path, name: str) -> Path:
    export_run(open_run(run), target, ranker=open_run(ranker), options=FormOptions(ranker=name))
    return target


def test_a_smaller_ranker_is_measured_served_and_shown(
    run_folder: Path,
    ranker_run_folder: Path,
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:
    folder = export(run_folder, ranker_run_folder, tmp_path / "bundle", "fp16")
    entry = open_bundle(folder).manifest.ranker
    assert entry is not None
    assert entry.form == "fp16"
    assert {field.name for field in dataclasses.fields(RankerMeasured)} <= set(entry.gate)
    assert entry.gate["size_ratio"] < 0.95
    assert 0.9 < entry.gate["top10_overlap"] <= 1
    assert entry.gate["resident_bytes"] > 1e5
    assert entry.gate["p50_batch32_ms"] <= entry.gate["p99_batch32_ms"]
    with Engine.load(folder) as engine:
        slate = engine.recommend(Request(user_id=engine.user_ids()[0], k=5, predict="click"))
        assert len(slate.items) == 5
    assert "as fp16: AUC" in run_cli("inspect", folder)[2]
    # A tolerance that proves nothing.
    broken = shutil.copytree(folder, tmp_path / "broken")
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["ranker"]["golden_tolerance"] = 9.0
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match="golden_tolerance of the ranker"):
        open_bundle(broken)


def test_a_broken_quantisation_is_refused(
    run_folder: Path, ranker_run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negated(graph: bytes) -> bytes:
        proto = onnx.load_from_string(graph)
        output = proto.graph.output[0].name
        for node in proto.graph.node:
            node.output[:] = ["right" if name == output else name for name in node.output]
        proto.graph.node.append(helper.make_node("Neg", ["right"], [output]))
        return proto.SerializeToString()  # type: ignore[no-any-return]

    monkeypatch.setitem(ranker_forms.FORMS, "int8", negated)
    monkeypatch.setattr(ranker_forms, "MAX_AUC_LOSS", 0.001)
    with pytest.raises(CheckFailed, match="ranker form int8 is AUC lost"):
        export(run_folder, ranker_run_folder, tmp_path / "bundle", "int8")
    assert not (tmp_path / "bundle").exists()


def test_names_of_forms_are_checked() -> None:
    with pytest.raises(InvalidRequest, match=r"ranker_form is int; .*Did you mean 'int8'"):
        FormOptions(ranker="int")
