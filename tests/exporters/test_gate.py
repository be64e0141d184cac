"""The gate: every rule of it, on figures and on real graphs, one of them broken on purpose."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.engine.bundle.item_table import FLOAT16, FLOAT32, INT4, INT8, Parts, pack
from recserve.errors import BundleInvalid, CheckFailed, InvalidRequest
from recserve.exporters import candidates, encoder_variant, forms, quantise
from recserve.exporters.assemble import FormOptions, export_run
from recserve.exporters.candidates import BUILDERS, Material, wanted_forms
from recserve.exporters.gate import GateBudget, Measured, fastest, paired_loss, pareto_front, refusal
from recserve.exporters.onnx_graph import EncoderGraph
from recserve.exporters.prune import PruneConfig
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer
from recserve.training.loop_config import LoopConfig
from recserve.training.models.gru4rec import GRU4Rec, GRU4RecConfig
from recserve.training.models.sasrec import SASRec, SASRecConfig
from recserve.training.run import Run, RunConfig, create_run, open_run
from tests.once import made_once

BUDGET = GateBudget(max_loss=0.01)
EXACT = Measured(
    ndcg=0.1,
    ndcg_loss=0.0,
    ndcg_loss_low=0.0,
    ndcg_loss_high=0.0,
    top10_overlap=1.0,
    max_score_error=0.0,
    size_bytes=1000.0,
    size_ratio=1.0,
    resident_bytes=5000.0,
    p50_batch1_ms=1.0,
    p99_batch1_ms=2.0,
    p50_batch32_ms=10.0,
    p99_batch32_ms=20.0,
    speedup_batch1=1.0,
    speedup_batch32=1.0,
)


def form(**changes: float) -> Measured:
    return dataclasses.replace(EXACT, **changes)


def test_the_same_graph_again_is_not_worth_having() -> None:
    assert refusal(EXACT, BUDGET).startswith("neither smaller (1.00 of fp32's bytes) nor faster (1.00×")


@pytest.mark.parametrize("gain", [{"size_ratio": 0.5}, {"speedup_batch1": 1.2}, {"speedup_batch32": 1.2}])
def test_smaller_or_faster_at_one_batch_size_is_enough(gain: dict[str, float]) -> None:
    assert refusal(form(**gain), BUDGET) == ""


def test_smaller_may_be_slower_but_larger_and_slower_is_refused_with_its_figures() -> None:
    assert refusal(form(size_ratio=0.3, speedup_batch1=0.7, speedup_batch32=0.7), BUDGET) == ""
    told = refusal(form(size_ratio=1.02, speedup_batch1=0.7, speedup_batch32=0.8), BUDGET)
    assert all(figure in told for figure in ("1.02", "0.70×", "0.80×"))


def test_over_a_smaller_item_table_a_form_must_beat_the_bundles_own_fp32() -> None:
    beside = form(size_ratio=0.3, speedup_batch1=0.9, speedup_batch32=0.9)
    assert refusal(beside, BUDGET) == ""
    assert refusal(form(size_ratio=0.3, speedup_batch1=0.9, speedup_batch32=0.9), BUDGET, beside) != ""
    assert refusal(form(size_ratio=0.2, speedup_batch1=0.5, speedup_batch32=0.5), BUDGET, beside) == ""
    assert refusal(form(size_ratio=0.3, speedup_batch1=1.0, speedup_batch32=0.9), BUDGET, beside) == ""


def test_the_upper_bound_of_the_loss_decides_and_not_the_mean() -> None:
    good = form(size_ratio=0.3, ndcg_loss=0.009, ndcg_loss_low=0.008, ndcg_loss_high=0.01)
    unsure = form(size_ratio=0.3, ndcg_loss=0.0, ndcg_loss_low=-0.02, ndcg_loss_high=0.011)
    assert refusal(good, BUDGET) == ""
    assert "up to 1.1%; allowed 1.0%" in refusal(unsure, BUDGET)
    assert refusal(unsure, GateBudget(max_loss=0.02)) == ""


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Measured)])
def test_a_figure_that_is_not_a_number_is_refused(name: str) -> None:
    assert (
        refusal(
            form(size_ratio=0.3, **{name: float("nan")})
            if name != "size_ratio"
            else form(size_ratio=float("nan")),
            BUDGET,
        )
        == f"{name} not finite"
    )


def test_pairs_make_the_interval_narrow() -> None:
    rng = np.random.default_rng(5)
    exact = rng.random(500)
    loss, low, high = paired_loss(exact, exact * 0.99)
    assert loss == pytest.approx(0.01)
    # Every user lost its hundredth: what differs between users does not blur the loss.
    assert 0.0094 < low <= loss <= high < 0.0106
    assert paired_loss(exact, exact) == (0.0, 0.0, 0.0)
    assert paired_loss(exact, rng.permutation(exact))[2] > 0.02


def test_where_nothing_is_right_no_loss_can_be_shown() -> None:
    loss, low, high = paired_loss(np.zeros(10), np.zeros(10))
    assert (loss, low, high) == (0.0, 0.0, 1.0)
    unknown = form(size_ratio=0.3, ndcg_loss=loss, ndcg_loss_low=low, ndcg_loss_high=high)
    assert "up to 100.0%" in refusal(unknown, BUDGET)


def test_the_front_keeps_what_nothing_beats_in_every_figure() -> None:
    forms = {
        "fp32": EXACT,
        "small": form(ndcg=0.099, size_bytes=300.0, p50_batch1_ms=1.1),
        "fast": form(
            ndcg=0.099, p50_batch1_ms=0.5, p50_batch32_ms=4.0, speedup_batch1=2.0, speedup_batch32=2.5
        ),
        "beaten": form(
            ndcg=0.098, p50_batch1_ms=0.6, p50_batch32_ms=5.0, speedup_batch1=1.7, speedup_batch32=2.0
        ),
    }
    assert pareto_front(forms) == ["fp32", "small", "fast"]
    assert fastest(forms) == "fast"


def test_names_of_forms_are_checked() -> None:
    sasrec, gru = SASRec(SASRecConfig(), 10), GRU4Rec(GRU4RecConfig(), 10)
    assert wanted_forms(["fp32"], sasrec) == []
    assert wanted_forms(["int8", "fp32"], sasrec) == ["int8"]
    assert wanted_forms(["all"], sasrec) == wanted_forms(["auto"], sasrec) == list(BUILDERS)
    assert wanted_forms(["all"], gru) == ["int8", "int8-static", "fp16", "int4"]
    with pytest.raises(InvalidRequest, match=r"expected of all, auto, fp32, .*Did you mean 'pruned'"):
        wanted_forms(["prune"], sasrec)
    with pytest.raises(InvalidRequest, match=r"variants is pruned; expected .*int4 for this model"):
        wanted_forms(["pruned"], gru)
    for wrong in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidRequest, match="max_loss"):
            GateBudget(max_loss=wrong)


# Real graphs from here on. The shop's users are few and its model is weak: a wide budget lets forms pass.
WIDE = GateBudget(max_loss=0.99)
QUICK = PruneConfig(epochs=1)


@pytest.fixture(scope="module")
def run(shared_folder: Path) -> Run:
    """A shop of few items, learned for long enough that there is something to lose."""
    config = RunConfig(
        model="sasrec",
        shape=SASRecConfig(embedding_size=32, n_blocks=2, n_heads=2, max_history=12, dropout=0.1),
        loop=LoopConfig(epochs=20, batch_size=64, validate_every=5, seed=3),
    )
    folder = shared_folder / "gate-run"
    with made_once(folder) as is_missing:
        if is_missing:
            shop = load_dataset("synthetic-shop:n_items=1000,n_users=300,n_events=9000,seed=7")
            run = create_run(folder.with_name("gate-run.partial"), config, shop)
            Trainer(run.new_model(), run.split(), run.folder, config.loop).fit()
            run.folder.rename(folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def all_forms(run: Run, shared_folder: Path) -> Path:
    folder = shared_folder / "gate-bundle"
    with made_once(folder) as is_missing:
        if is_missing:
            export_run(run, folder, options=FormOptions(variants=("all",), budget=WIDE, pruning=QUICK))
    return folder


def test_every_form_is_served_or_refused_with_its_figures(all_forms: Path) -> None:
    manifest = open_bundle(all_forms).manifest
    assert {*manifest.variants, *manifest.refused} == {"fp32", *BUILDERS}
    assert manifest.default_variant == "fp32"
    figures = {field.name for field in dataclasses.fields(Measured)}
    for variant in manifest.variants.values():
        assert figures <= set(variant.gate)
    for refused in manifest.refused.values():
        assert refused.reason
        assert figures <= set(refused.gate)
    assert manifest.variants["int8"].gate["size_ratio"] < 1


def test_a_request_chooses_its_form(all_forms: Path) -> None:
    with Engine.load(all_forms) as engine:
        user = engine.user_ids()[0]
        answers = {
            name: engine.recommend(Request(user_id=user, variant=name)) for name in engine.manifest.variants
        }
        assert {name: slate.variant for name, slate in answers.items()} == {name: name for name in answers}
        exact, halved = answers["fp32"], answers["fp16"]
        np.testing.assert_allclose(
            [item.score for item in halved.items], [item.score for item in exact.items], atol=0.05
        )
        # One batch of all forms is answered as each alone.
        together = engine.recommend_many([Request(user_id=user, variant=name) for name in answers])
        assert [slate.items for slate in together] == [slate.items for slate in answers.values()]


# One file each, however many forms there are.
NUMBERS = ["first_seen.npy", "item_embeddings.npy", "popularity.npy"]


def test_forms_share_the_item_table(all_forms: Path) -> None:
    bundle = open_bundle(all_forms)
    assert sorted(path.name for path in all_forms.rglob("*.npy")) == NUMBERS
    table = np.ascontiguousarray(bundle.item_embeddings)
    for variant in bundle.manifest.variants.values():
        graph = bundle.read(variant.query_encoder)
        assert table[3].tobytes() not in graph
        assert table[3].astype(np.float16).tobytes() not in graph


def with_scales(material: Material, factor: float) -> EncoderGraph:
    graph = quantise.int8_dynamic(material.exact)
    proto = onnx.load_from_string(graph.data)
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("_scale"):
            changed = numpy_helper.to_array(tensor) * np.float32(factor)
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))
    return dataclasses.replace(graph, data=proto.SerializeToString())


def negated_scales(material: Material) -> EncoderGraph:
    """An int8 graph that loads, runs, is small, and answers nonsense."""
    return with_scales(material, -1.0)


def not_a_number(material: Material) -> EncoderGraph:
    return with_scales(material, float("nan"))


@pytest.mark.parametrize("broken", [negated_scales, not_a_number])
def test_a_broken_quantisation_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Material], EncoderGraph]
) -> None:
    monkeypatch.setattr(candidates, "BUILDERS", {"int8": broken})
    export_run(run, tmp_path / "all", options=FormOptions(variants=("all",), budget=GateBudget(max_loss=0.2)))
    manifest = open_bundle(tmp_path / "all").manifest
    assert list(manifest.variants) == ["fp32"]
    reason = manifest.refused["int8"].reason
    assert "NDCG@10 lost" in reason or "not finite" in reason
    # Asked for by its name: nothing is published.
    with pytest.raises(CheckFailed, match=r"variant int8 is (NDCG@10 lost|.*not finite)"):
        export_run(
            run, tmp_path / "int8", options=FormOptions(variants=("int8",), budget=GateBudget(max_loss=0.2))
        )
    assert not (tmp_path / "int8").exists()


def test_auto_keeps_the_front_and_names_the_default(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {name: BUILDERS[name] for name in ("int8", "fp16")}
    monkeypatch.setattr(candidates, "BUILDERS", two)
    export_run(run, tmp_path / "auto", options=FormOptions(variants=("auto",), budget=WIDE))
    manifest = open_bundle(tmp_path / "auto").manifest
    assert "fp32" in manifest.variants
    assert {*manifest.variants, *manifest.refused} == {"fp32", *two}
    assert not {*manifest.variants} & {*manifest.refused}
    speed = {
        name: variant.gate["speedup_batch1"] * variant.gate["speedup_batch32"]
        for name, variant in manifest.variants.items()
    }
    assert manifest.default_variant == max(speed, key=speed.__getitem__)


@pytest.mark.parametrize(
    ("ruined", "chosen"),
    [((), INT4), ((INT4,), INT8), ((INT4, INT8), FLOAT16), ((INT4, INT8, FLOAT16), FLOAT32)],
    ids=len,
)
def test_auto_takes_the_smallest_table_that_keeps_the_budget(
    ruined: tuple[str, ...], chosen: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def packed(graph: EncoderGraph, form: str) -> Parts:
        vectors = np.asarray(graph.item_embeddings)
        return pack(np.roll(vectors, 7, axis=0) if form in ruined else vectors, form)

    for module in (candidates, encoder_variant, forms):
        monkeypatch.setattr(module, "stored", packed)
    options = FormOptions(item_table="auto", budget=GateBudget(max_loss=0.2))
    export_run(run, tmp_path / "bundle", options=options)
    assert open_bundle(tmp_path / "bundle").manifest.item_table == chosen
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_tables_have_one_form(als_run_folder: Path, tmp_path: Path) -> None:
    als = open_run(als_run_folder)
    with pytest.raises(InvalidRequest, match="variants is int8; expected of all, auto, fp32 for this model"):
        export_run(als, tmp_path / "bundle", options=FormOptions(variants=("int8",)))
    export_run(als, tmp_path / "bundle", options=FormOptions(variants=("auto",)))
    assert list(open_bundle(tmp_path / "bundle").manifest.variants) == ["fp32"]


def test_inspect_shows_the_gate(all_forms: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli("inspect", all_forms)
    assert code == 0
    assert "what the gate measured" in out
    code, out, _ = run_cli("inspect", all_forms, "--json")
    assert json.loads(out)["variants"]["int8"]["gate"]["ndcg"] >= 0


@pytest.mark.parametrize("tolerance", [0, 1e-4, 0.51, 1e9, -1])
def test_a_golden_tolerance_that_proves_nothing_is_refused(
    all_forms: Path, tmp_path: Path, tolerance: float
) -> None:
    folder = shutil.copytree(all_forms, tmp_path / "bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["variants"]["int8"]["golden_tolerance"] = tolerance
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleInvalid, match="golden_tolerance of variant int8"):
        open_bundle(folder)
