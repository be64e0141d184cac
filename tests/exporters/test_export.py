"""Export: torch = ONNX, and nothing published that is not."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from recserve.engine import Engine, Request
from recserve.engine.bundle import layout, open_bundle
from recserve.errors import CheckFailed, InvalidRequest
from recserve.exporters import encoder_variant, parity
from recserve.exporters.assemble import export_run
from recserve.exporters.onnx_graph import EncoderGraph, export_query_encoder
from recserve.training.evaluate import top_k
from recserve.training.models.sasrec import SASRec, SASRecConfig
from recserve.training.run import Run, open_run


@pytest.fixture(scope="module")
def run(run_folder: Path) -> Run:
    return open_run(run_folder)


def on_disk(graph: EncoderGraph, folder: Path) -> Path:
    np.save(folder / layout.ITEM_EMBEDDINGS, graph.item_embeddings)
    return folder


@pytest.mark.parametrize("time_gaps", [False, True])
@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 9), (3, 4), (17, 9)])
def test_any_batch_and_length_agree_with_torch(
    tmp_path: Path, batch: int, length: int, time_gaps: bool
) -> None:
    torch.manual_seed(1)
    config = SASRecConfig(embedding_size=16, n_blocks=2, n_heads=2, max_history=9, time_gaps=time_gaps)
    model = SASRec(config, n_items=25).eval()
    graph = _graphs(model, time_gaps)
    session = graph.session(on_disk(graph, tmp_path))
    rng = np.random.default_rng(batch * length)
    history = rng.integers(0, 25, (batch, length)).astype(np.int32)
    for row in history[1:]:
        row[: rng.integers(0, length)] = -1
    inputs: dict[str, np.ndarray] = {layout.HISTORY_INPUT: history}  # type: ignore[type-arg]
    gaps = rng.exponential(1e5, (batch, length)).astype(np.float32)
    if time_gaps:
        inputs[layout.TIME_GAPS_INPUT] = gaps
    [found] = session.run([layout.QUERY_EMBEDDING_OUTPUT], inputs)
    with torch.inference_mode():
        expected = model.encode(torch.from_numpy(history), torch.from_numpy(gaps) if time_gaps else None)
    assert np.abs(found - expected.numpy()).max() <= parity.MAX_ABS_ERROR


_CACHE: dict[bool, EncoderGraph] = {}


def _graphs(model: SASRec, time_gaps: bool) -> EncoderGraph:
    # Exporting takes seconds and the weights are seeded: once per form is enough.
    if time_gaps not in _CACHE:
        _CACHE[time_gaps] = export_query_encoder(model)
    return _CACHE[time_gaps]


def test_the_item_table_is_not_inside_the_graph(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    table = np.ascontiguousarray(bundle.item_embeddings).tobytes()
    graph = bundle.read(bundle.manifest.variants["fp32"].query_encoder)
    assert table[:64] not in graph
    assert (bundle_folder / layout.ITEM_EMBEDDINGS).read_bytes().endswith(table)


def test_the_graph_does_not_tell_about_the_machine_that_made_it(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    graph = bundle.read(bundle.manifest.variants["fp32"].query_encoder)
    for trace in (b"sasrec.py", b"site-packages", b"stack_trace", str(Path(__file__).parents[2]).encode()):
        assert trace not in graph


def test_the_engine_answers_as_torch_does_for_every_test_user(run: Run, bundle_folder: Path) -> None:
    split, model = run.split(), run.best_model()
    held_out = split.test
    item_ids = run.dataset.items["item_id"].to_list()
    with Engine.load(bundle_folder) as engine, torch.inference_mode():
        for row in range(len(held_out.user_index)):
            seen, _ = held_out.histories.row(row)
            newest = torch.from_numpy(seen[-model.config.max_history :]).unsqueeze(0)
            scores = model.score(model.encode(newest))[0].numpy()
            scores[seen] = -np.inf
            slate = engine.recommend(Request(history=[item_ids[item] for item in seen], k=10))
            found = [item_ids.index(item.item_id) for item in slate.items]
            expected = top_k(scores, 10)
            # Ties aside: another place is fine only for another item of the same score.
            np.testing.assert_allclose(scores[found], scores[expected], atol=parity.TIE_MARGIN)
            assert len(set(found)) == 10


def test_the_bundle_says_where_it_comes_from(run: Run, bundle_folder: Path) -> None:
    manifest = open_bundle(bundle_folder).manifest
    assert manifest.lineage.data_sha256 == run.dataset.sha256
    assert manifest.lineage.seed == run.config.loop.seed
    assert manifest.lineage.config["shape"] == dataclasses.asdict(run.config.shape)
    gate = manifest.variants["fp32"].gate
    assert gate["max_abs_error"] <= parity.MAX_ABS_ERROR
    assert gate["top10_equal_up_to_ties"] == gate["n_histories"] == len(run.split().test.user_index)


def test_a_graph_that_disagrees_is_not_published(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def export_another_model(model: SASRec) -> EncoderGraph:
        changed = run.best_model()
        with torch.no_grad():
            changed.norm.bias.add_(1e-3)
        return export_query_encoder(changed)

    monkeypatch.setattr(encoder_variant, "export_query_encoder", export_another_model)
    with pytest.raises(CheckFailed, match="ONNX parity"):
        export_run(run, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "precious").write_text("data")
    for replace in (False, True):
        with pytest.raises(InvalidRequest, match="there already"):
            export_run(run, target, replace=replace)
    assert (target / "precious").read_text() == "data"


def test_without_histories_every_user_is_new(run: Run, tmp_path: Path) -> None:
    export_run(run, tmp_path / "bundle", histories=False)
    with Engine.load(tmp_path / "bundle") as engine:
        assert len(engine.user_ids()) == 0
        known = run.dataset.users["user_id"][0]
        assert engine.recommend(Request(user_id=known)).source == "popularity"


def test_close_scores_are_ties_and_others_are_not() -> None:
    scores = np.linspace(1, 0, 20).astype(np.float32)
    swapped, moved = scores.copy(), scores.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    assert parity._compare_top(scores.copy(), scores) == (True, True)
    near = scores.copy()
    near[4] = near[3] + 1e-6
    tied = scores.copy()
    tied[4] = tied[3] - 1e-6
    assert parity._compare_top(near, tied) == (False, True)
    assert parity._compare_top(swapped, scores) == (False, False)
    moved[15] = 2
    assert parity._compare_top(moved, scores) == (False, False)


def test_the_graph_computes_nothing_from_constants_alone(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    graph = onnx.load_from_string(bundle.read(bundle.manifest.variants["fp32"].query_encoder)).graph
    constants = {tensor.name for tensor in graph.initializer}
    assert [node.op_type for node in graph.node if node.input and set(node.input) <= constants] == []


def test_the_last_block_asks_for_the_newest_position_alone(bundle_folder: Path) -> None:
    bundle = open_bundle(bundle_folder)
    size = bundle.manifest.embedding_size
    graph = onnx.load_from_string(bundle.read(bundle.manifest.variants["fp32"].query_encoder)).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    # One block: queries apart from keys and values, which alone are computed for every position.
    weights = [shapes[node.input[1]] for node in graph.node if node.op_type == "Gemm"]
    assert sorted(weights[:2]) == [[size, size], [2 * size, size]]
