"""Item tables in fewer bytes: what they stand for, how graphs read them, what the loader refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recserve.benchmarks.scale.memory import status_bytes
from recserve.engine import Engine, Request
from recserve.engine.bundle import item_table, layout, open_bundle
from recserve.engine.bundle.item_table import (
    BLOCK_SCALES,
    CODES,
    FORMS,
    INT4,
    INT8,
    SCALES,
    pack,
    unpack,
)
from recserve.errors import BundleInvalid, CheckFailed, InvalidRequest
from recserve.errors import BundleReason as R
from recserve.exporters import candidates, encoder_variant
from recserve.exporters.assemble import FormOptions, export_run
from recserve.exporters.gate import GateBudget
from recserve.exporters.item_tables import over_table, stored
from recserve.exporters.onnx_graph import EncoderGraph, export_query_encoder, refer_outside
from recserve.training.models.sasrec import SASRec, SASRecConfig
from recserve.training.run import open_run
from tests.engine.bundle.conftest import BundleCopy, Case, refused
from tests.once import made_once

SMALLER = ("float16", "int8", "int4")
# Of the float32 table's bytes, with 16 numbers an item.
SHARES = {"float16": 0.5, "int8": 0.3125, "int4": 0.1875}
GRAPH = "variants/fp32/query_encoder.onnx"


@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-9, 9, width=32))
)
def test_a_code_is_the_nearest_step_and_packing_again_changes_nothing(vectors: Any) -> None:
    parts = pack(vectors, INT8)
    assert (parts[CODES].dtype, parts[SCALES].dtype) == (np.int8, np.float32)
    found = unpack(parts)
    assert (np.abs(found - vectors) <= 0.501 * parts[SCALES] + 1e-37).all()
    again = unpack(pack(found, INT8))
    np.testing.assert_allclose(again, found, rtol=1e-6, atol=1e-37)


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40).map(lambda n: 2 * n)),
        elements=st.floats(-9, 9, width=32),
    )
)
def test_a_code_of_4_bits_is_the_nearest_step_of_its_block(vectors: Any) -> None:
    parts = pack(vectors, INT4)
    for name, part in FORMS[INT4].items():
        assert (parts[name].dtype, parts[name].shape) == (part.dtype, part.shape(*vectors.shape))
    steps = parts[BLOCK_SCALES].repeat(32, axis=1)[:, : vectors.shape[1]]
    found = unpack(parts)
    assert (np.abs(found - vectors) <= 0.501 * steps + 1e-37).all()
    np.testing.assert_allclose(unpack(pack(found, INT4)), found, rtol=1e-6, atol=1e-37)


def test_float16_is_the_nearest_half_and_says_so_where_there_is_none() -> None:
    vectors = np.array([[1.0, 1e-3], [0.0, -3.3]], np.float32)
    np.testing.assert_array_equal(unpack(pack(vectors, "float16")), vectors.astype(np.float16))
    with pytest.raises(BundleInvalid, match="NaN or infinite"):
        pack(np.full((1, 2), 1e6, np.float32), "float16")


@pytest.fixture(scope="module")
def graph() -> EncoderGraph:
    torch.manual_seed(1)
    config = SASRecConfig(embedding_size=16, n_blocks=1, n_heads=2, max_history=8)
    return export_query_encoder(SASRec(config, n_items=300).eval())


@pytest.mark.parametrize("form", SMALLER)
def test_a_graph_reads_what_its_table_stands_for(graph: EncoderGraph, form: str, tmp_path: Path) -> None:
    parts = pack(graph.item_embeddings, form)
    over = over_table(graph, parts, form)
    vectors = unpack(parts)
    wide = EncoderGraph(graph.data, graph.features, vectors, pack(vectors, "float32"))
    for one in (wide, over):
        for name, part in one.parts.items():
            np.save(tmp_path / {**FORMS[form], **FORMS["float32"]}[name].file, part)
    history = np.random.default_rng(0).integers(-1, 300, (5, 8)).astype(np.int32)
    found, expected = (
        one.session(tmp_path).run(None, {layout.HISTORY_INPUT: history})[0] for one in (over, wide)
    )
    np.testing.assert_array_equal(found, expected)
    assert over.size_bytes - len(over.data) == SHARES[form] * vectors.nbytes


@pytest.mark.parametrize("form", SMALLER)
def test_the_gather_never_widens_the_whole_table(graph: EncoderGraph, form: str, tmp_path: Path) -> None:
    parts = pack(graph.item_embeddings, form)
    over = over_table(graph, parts, form)
    options = ort.SessionOptions()
    options.add_session_config_entry(layout.EXTERNAL_FOLDER_OPTION, str(tmp_path))
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    bound = {name: ort.OrtValue.ortvalue_from_numpy(part) for name, part in parts.items()}
    for name, value in bound.items():
        np.save(tmp_path / FORMS[form][name].file, parts[name])
        options.add_initializer(name, value)
    ort.InferenceSession(over.data, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    readers = [node for node in optimised.graph.node if set(node.input) & parts.keys()]
    kinds = ["GatherBlockQuantized"] if form == INT4 else ["Gather"] * len(parts)
    assert [node.op_type for node in readers] == kinds


def test_a_table_of_more_numbers_than_32_bits_count_is_read_by_row(
    graph: EncoderGraph, tmp_path: Path
) -> None:
    """10 GB on disk, of which what is not written takes no place: why a table is not split by vocabulary."""
    n_items = 2**31 // 16 + 2**25
    path = tmp_path / layout.ITEM_EMBEDDINGS
    large = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_items, 16))
    places = np.array([0, 2**31 // 16 - 1, 2**31 // 16, n_items - 1])
    large[places] = graph.item_embeddings[[7, 8, 9, 10]]
    large.flush()
    proto = onnx.load_from_string(graph.data)
    [table] = [one for one in proto.graph.initializer if one.name == layout.ITEM_EMBEDDINGS_INITIALIZER]
    mapped = np.load(path, mmap_mode="r")
    refer_outside(table, layout.ITEM_EMBEDDINGS_INITIALIZER, layout.ITEM_EMBEDDINGS, mapped)
    over = EncoderGraph(proto.SerializeToString(), graph.features, mapped, {table.name: mapped})
    before = status_bytes("RssAnon")
    [found] = over.session(tmp_path).run(None, {layout.HISTORY_INPUT: places[None].astype(np.int32)})
    assert status_bytes("RssAnon") - before < 1e9
    small = tmp_path / "small"
    small.mkdir()
    np.save(small / layout.ITEM_EMBEDDINGS, graph.item_embeddings)
    [expected] = graph.session(small).run(None, {layout.HISTORY_INPUT: np.array([[7, 8, 9, 10]], np.int32)})
    np.testing.assert_array_equal(found, expected)


def test_a_graph_that_reads_all_of_its_table_is_refused(graph: EncoderGraph) -> None:
    proto = onnx.load_from_string(graph.data)
    proto.graph.node.append(onnx.helper.make_node("Abs", [layout.ITEM_EMBEDDINGS_INITIALIZER], ["unread"]))
    whole = EncoderGraph(proto.SerializeToString(), graph.features, graph.item_embeddings, graph.parts)
    with pytest.raises(CheckFailed, match=r"what reads the item table \(Abs\)"):
        over_table(whole, pack(graph.item_embeddings, INT8), INT8)


@pytest.fixture(scope="module", params=[INT8, INT4])
def smaller_folder(run_folder: Path, shared_folder: Path, request: pytest.FixtureRequest) -> Path:
    """The shop with nothing but items in few bits."""
    folder = shared_folder / f"{request.param}-items"
    with made_once(folder) as is_missing:
        if is_missing:
            with pytest.MonkeyPatch.context() as patch:
                # The shop's model may find nothing at all, of which any loss is possible.
                patch.setattr("recserve.exporters.forms.refusal", lambda *_: "")
                export_run(open_run(run_folder), folder, options=FormOptions(item_table=request.param))
    return folder


def test_a_bundle_of_smaller_items_has_no_others_and_answers_from_them(
    smaller_folder: Path, bundle_folder: Path
) -> None:
    bundle, exact = open_bundle(smaller_folder), open_bundle(bundle_folder)
    parts = FORMS[bundle.manifest.item_table]
    assert {path.name for path in smaller_folder.glob("item_*.npy")} == {part.file for part in parts.values()}
    gate = bundle.manifest.variants["fp32"].gate
    assert gate["size_ratio"] < 0.95
    assert gate["size_bytes"] == bundle.manifest.variants["fp32"].size_bytes
    error = np.abs(bundle.item_embeddings - exact.item_embeddings)
    assert 0 < error.max() <= 0.51 * bundle.item_parts[[*parts][1]].max()
    with Engine.load(smaller_folder) as engine:
        user = engine.user_ids()[0]
        slate = engine.recommend(Request(user_id=user, k=10))
        history = bundle.histories.get(user)
        scores = bundle.item_embeddings @ engine.loaded.sources["fp32"].encode([history], now=0)[0]
        scores[history.items] = -np.inf
        best = np.argsort(-scores, kind="stable")[:10]
        index_of = bundle.catalogue.vocabulary.index_of
        assert [index_of(item.item_id) for item in slate.items] == best.tolist()


def test_a_table_that_ruins_the_model_is_refused(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def negated(graph: EncoderGraph, form: str) -> item_table.Parts:
        parts = pack(np.asarray(graph.item_embeddings), form)
        return {**parts, CODES: np.roll(parts[CODES], 7, axis=0)}

    for module in (candidates, encoder_variant):
        monkeypatch.setattr(module, "stored", negated)
    options = FormOptions(item_table=INT8, budget=GateBudget(max_loss=0.2))
    with pytest.raises(CheckFailed, match="item table int8 is NDCG@10 lost"):
        export_run(open_run(run_folder), tmp_path / "bundle", options=options)
    assert list(tmp_path.iterdir()) == []


def test_codes_of_4_bits_go_in_pairs() -> None:
    odd = export_query_encoder(SASRec(SASRecConfig(embedding_size=15, n_heads=1, max_history=8), 20).eval())
    with pytest.raises(InvalidRequest, match="embedding_size for item_table int4 is 15; expected an even"):
        stored(odd, INT4)


def test_names_of_tables_are_checked(als_run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"item_table is int; .*Did you mean 'int8'"):
        FormOptions(item_table="int")
    with pytest.raises(InvalidRequest, match="item_table is int8; expected float32 for a model"):
        export_run(open_run(als_run_folder), tmp_path / "bundle", options=FormOptions(item_table=INT8))


def _scales(change: Callable[[Any], Any]) -> Callable[[BundleCopy], object]:
    return lambda bundle: bundle.write_array("item_scales.npy", change(bundle.array("item_scales.npy")))


def _form(name: str) -> Callable[[BundleCopy], object]:
    return lambda bundle: bundle.edit(lambda manifest: manifest.update(item_table=name))


def _swapped(bundle: BundleCopy) -> None:
    proto = onnx.load_from_string(bundle.read(GRAPH))
    [codes] = [tensor for tensor in proto.graph.initializer if tensor.name == CODES]
    codes.external_data[0].value = "item_scales.npy"
    bundle.write(GRAPH, proto.SerializeToString())


CASES = {
    "codes of another type": Case(
        R.ARRAY_TYPE,
        "item_codes.npy",
        lambda bundle: bundle.write_array("item_codes.npy", bundle.array("item_codes.npy").view(np.uint8)),
    ),
    "a scale too few": Case(R.SHAPE, "item_scales.npy", _scales(lambda scales: scales[1:])),
    "a scale that is no number": Case(
        R.NOT_FINITE, "item_codes.npy", _scales(lambda scales: scales * np.nan)
    ),
    "scales beyond float32": Case(R.NOT_FINITE, "item_codes.npy", _scales(lambda s: np.full_like(s, 3e38))),
    "another form than the files": Case(R.FILE_MISSING, "item_halves.npy", _form("float16")),
    "no form": Case(R.MANIFEST_FIELD, "item_table", _form("int5")),
    "codes out of the scales' file": Case(R.GRAPH_OUTSIDE_DATA, "item_codes", _swapped),
}


@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize("smaller_folder", [INT8], indirect=True)
def test_a_broken_table_is_refused(smaller_folder: Path, tmp_path: Path, label: str) -> None:
    refused(BundleCopy(shutil.copytree(smaller_folder, tmp_path / "bundle")), CASES[label])
