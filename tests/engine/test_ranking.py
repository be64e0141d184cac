"""The ranker of a bundle, from a trained run to a slate: parity, what requests may ask, batch = single."""

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recserve.engine import BundleInvalid, Engine, EngineConfig, InvalidRequest, Request
from recserve.engine.bundle import Manifest
from recserve.engine.bundle.manifest import MANIFEST_NAME
from recserve.engine.bundle.ranker_entry import ISOTONIC, LINEAR, SIGMOID, CalibrationEntry
from recserve.engine.ranker import calibrated
from recserve.exporters.assemble import export_run
from recserve.exporters.ranker_entry import check_ranker_parity
from recserve.exporters.ranker_graph import export_graph, open_graph
from recserve.training.commands import run_config
from recserve.training.data import load_dataset
from recserve.training.loop import Trainer
from recserve.training.models.ranker import Ranker
from recserve.training.ranking.evaluation import calibrate, ratings_of
from recserve.training.ranking.examples import held_out_examples
from recserve.training.run import create_run, open_run

SHOP = "synthetic-shop:n_items=1000,n_users=120,n_events=4000,seed=7"
SETTINGS = {"embedding_size": 8, "hidden": (16, 8), "max_history": 6, "seed": 3, "epochs": 2}
# The shop's labels are noise, which a calibration would see: every probability would be the mean.
RATED = {"labels": "ratings", "click_at": 2.0, "batch_size": 512, "calibration": "none"}


@pytest.fixture(scope="module")
def engine(two_stage_folder: Path) -> Iterator[Engine]:
    with Engine.load(two_stage_folder, EngineConfig(rank_candidates=50)) as engine:
        yield engine


@pytest.mark.parametrize("name", ["lr", "fm", "deepfm", "dcn", "dlrm", "din", "neumf"])
@pytest.mark.parametrize("max_history", [0, 6])
def test_the_graph_is_the_model(name: str, max_history: int, tmp_path: Path) -> None:
    if name == "din" and not max_history:
        pytest.skip("din reads the history")
    rated = {} if name == "neumf" else RATED
    config = run_config(name, "temporal", SETTINGS | rated | {"max_history": max_history})
    run = create_run(tmp_path / "run", config, load_dataset(SHOP))
    torch.manual_seed(0)
    model = run.new_model()
    assert isinstance(model, Ranker)
    session = open_graph(export_graph(model))
    of_history = {"history"} if name == "neumf" else {"history", "history_values"}
    expected = {"user", "candidates"} | (of_history if max_history else set())
    assert {node.name for node in session.get_inputs()} == expected | (
        set() if name == "neumf" else {"context"}
    )
    parity = check_ranker_parity(model, session, held_out_examples(run.split().test))
    assert parity.n_requests > 50
    assert parity.max_abs_error <= 1e-4


def test_the_candidates_of_retrieval_come_in_the_order_of_the_ranker(engine: Engine) -> None:
    user = next(iter(engine.user_ids()))
    retrieved = engine.recommend(Request(user_id=user, k=50, predict="retrieval"))
    assert "rank" not in retrieved.stage_ns
    slate = engine.recommend(Request(user_id=user, k=10, predict="rating"))
    assert "rank" in slate.stage_ns
    candidates = [item.item_id for item in retrieved.items]
    ranking = engine.rank(Request(user_id=user, predict="rating"), candidates)
    assert [item.item_id for item in slate.items] == [item.item_id for item in ranking.items][:10]
    assert [item.score for item in slate.items] == pytest.approx(
        [item.score for item in ranking.items][:10], abs=1e-5
    )
    assert [item.score for item in ranking.items] == sorted((i.score for i in ranking.items), reverse=True)


def test_predictions_are_those_of_the_trained_model(engine: Engine, ranker_run_folder: Path) -> None:
    run = open_run(ranker_run_folder)
    model = run.best_model()
    assert isinstance(model, Ranker)
    user = 5
    user_id = run.dataset.users["user_id"][user]
    ids = run.dataset.items["item_id"][[3, 1, 4]].to_list()
    histories = run.dataset.histories()
    newest = slice(histories.indptr[user + 1] - 6, histories.indptr[user + 1])
    history = histories.item_index[newest].astype(np.int64)
    with torch.inference_mode():
        logits = model(
            torch.from_numpy(history)[None],
            model.user_rows[user : user + 1],
            torch.tensor([[14, 3]]),
            torch.tensor([[3, 1, 4]]),
            torch.from_numpy(histories.value[newest].copy())[None],
        )[0].numpy()
    ranking = engine.rank(Request(user_id=user_id, context={"hour": "13", "weekday": "2"}), ids)
    found = {item.item_id: item.predictions for item in ranking.items}
    clicks = calibrate(model, run.split()).apply(logits[:, 0])
    assert [found[id_]["click"] for id_ in ids] == pytest.approx(clicks.tolist(), abs=1e-4)
    ratings = ratings_of(logits[:, 1], model.labels)
    assert [found[id_]["rating"] for id_ in ids] == pytest.approx(ratings.tolist(), abs=1e-4)


def predicted(engine: Engine, request: Request, item_ids: list[str]) -> list[float]:
    found = {item.item_id: item.predictions["rating"] for item in engine.rank(request, item_ids).items}
    return [found[item_id] for item_id in item_ids]


def test_ratings_count_wherever_they_come_from(two_stage_folder: Path) -> None:
    """Those of the bundle, of a request and of observed events; what has none says less."""
    with Engine.load(two_stage_folder) as engine:
        stored = engine.user_ids()[5]
        items, times = engine.timed_history(stored)
        values = engine.loaded.bundle.histories.get(stored).rated().tolist()
        asked = engine.similar_items(items[0], 5)
        ids = [item.item_id for item in asked.items]
        given = Request(history=items, history_timestamps=times, history_values=values)
        for item_id, timestamp, value in zip(items, times, values, strict=True):
            engine.observe(user_id="new", item_id=item_id, action="rating", timestamp=timestamp, value=value)
            engine.observe(user_id="clicks", item_id=item_id, timestamp=timestamp, value=value)
        of_request = predicted(engine, given, ids)
        # Who the user is says something too: a new one has the same history and no row.
        assert predicted(engine, Request(user_id="new"), ids) == pytest.approx(of_request, abs=1e-5)
        unrated = predicted(engine, dataclasses.replace(given, history_values=()), ids)
        assert predicted(engine, Request(user_id="clicks"), ids) == pytest.approx(unrated, abs=1e-5)
        assert of_request != pytest.approx(unrated, abs=1e-3)
        kind = predicted(engine, dataclasses.replace(given, history_values=[9.0] * len(items)), ids)
        strict = predicted(engine, dataclasses.replace(given, history_values=[-9.0] * len(items)), ids)
        assert np.mean(kind) > np.mean(strict)


@pytest.mark.parametrize("values", [(1.0,), (1.0, float("inf")), (1.0, 1e300), (1.0, True), (1.0, "5")])
def test_ratings_that_are_none_are_refused(values: tuple[float, ...], engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="history_values"):
        engine.recommend(
            Request(history=list(engine.history(engine.user_ids()[0])[:2]), history_values=values)
        )


def test_alone_and_in_a_batch_is_the_same(engine: Engine) -> None:
    users = list(engine.user_ids())[:6]
    requests = [
        *(Request(user_id=user, k=5, context={"hour": "8"}) for user in users),
        Request(k=5),
        Request(user_id=users[0], k=3, predict="retrieval"),
        Request(user_id=users[1], k=60, predict="rating", context={"weekday": "6"}),
        Request(user_id=users[2], k=4, weights={"click": 1.0, "price": -0.001}),
    ]
    for request, together in zip(requests, engine.recommend_many(requests), strict=True):
        alone = engine.recommend(request)
        assert [item.item_id for item in alone.items] == [item.item_id for item in together.items]
        assert [item.score for item in alone.items] == pytest.approx(
            [item.score for item in together.items], abs=1e-4
        )


def test_the_moment_counts_unless_it_is_left_out(engine: Engine) -> None:
    user = next(iter(engine.user_ids()))
    ids = [item.item_id for item in engine.recommend(Request(user_id=user, k=20)).items]
    asked = [
        Request(user_id=user, predict=predict, context={"hour": hour, "weekday": "1"})
        for predict in ("context", "click")
        for hour in ("2", "14")
    ]
    night, noon, first, second = (
        {item.item_id: item.score for item in ranking.items}
        for ranking in engine.rank_many([(request, ids) for request in asked])
    )
    assert night != pytest.approx(noon, abs=1e-5)
    assert first == pytest.approx(second, abs=1e-6)
    assert all(0 < score < 1 for score in night.values())


def test_weights_are_a_sum(engine: Engine) -> None:
    user = next(iter(engine.user_ids()))
    ids = [item.item_id for item in engine.recommend(Request(user_id=user, k=20)).items]
    prices = {id_: values["price"] for id_, values in engine.get_items(ids).items()}
    request = Request(user_id=user, weights={"click": 2.0, "rating": 0.5, "price": 0.01})
    for item in engine.rank(request, ids).items:
        parts = item.predictions
        expected = 2 * parts["click"] + 0.5 * parts["rating"] + 0.01 * prices[item.item_id]
        assert item.score == pytest.approx(expected, rel=1e-5)


def test_unknown_and_repeated_candidates(engine: Engine) -> None:
    known = [item.item_id for item in engine.recommend(Request(k=2)).items]
    ranking = engine.rank(Request(), [known[0], "no such", known[1], known[0]])
    assert {item.item_id for item in ranking.items} == set(known)
    assert ranking.unknown_item_ids == ("no such",)
    nothing = engine.rank(Request(), ["no such"])
    assert nothing.items == ()
    assert engine.rank(Request(), []).items == ()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(predict="clik"), "predict is clik.*Did you mean"),
        (Request(predict="click", weights={"click": 1.0}), "expected empty where weights are given"),
        (Request(weights={"magic": 1.0}), "weights is magic"),
        (Request(weights={"title": 1.0}), "weights is title"),
        (Request(weights={"click": float("nan")}), r"weights\[click\] is nan"),
        (Request(context={"hour": "24"}), r"context\[hour\] is 24; expected 0 to 23"),
        (Request(context={"weekday": "Monday"}), r"context\[weekday\] is Monday"),
    ],
)
def test_what_no_ranker_could_answer_is_refused(engine: Engine, request_: Request, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        engine.recommend(request_)
    assert isinstance(engine.recommend_each([request_])[0], InvalidRequest)


def test_ranking_by_retrieval_is_refused_where_nothing_was_retrieved(engine: Engine) -> None:
    for request in (Request(predict="retrieval"), Request(weights={"click": 1.0, "retrieval": 1.0})):
        with pytest.raises(InvalidRequest, match="no score of retrieval"):
            engine.rank(request, ["1"])


def test_a_bundle_without_a_ranker_says_so(bundle_folder: Path) -> None:
    assert "rank" not in Manifest.from_json((bundle_folder / MANIFEST_NAME).read_text()).inputs.context
    with Engine.load(bundle_folder) as engine:
        assert "rank" not in engine.recommend(Request(k=3)).stage_ns
        assert len(engine.recommend(Request(k=3, predict="retrieval")).items) == 3
        for request in (Request(predict="click"), Request(weights={"click": 1.0})):
            with pytest.raises(InvalidRequest, match="the bundle has no ranker"):
                engine.recommend(request)
        with pytest.raises(InvalidRequest, match="without a ranker"):
            engine.rank(Request(), ["1"])


def test_a_manifest_from_before_rankers_is_valid(bundle_folder: Path) -> None:
    raw = json.loads((bundle_folder / MANIFEST_NAME).read_text())
    del raw["ranker"]
    assert Manifest.from_json(json.dumps(raw)).ranker is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"graph": "elsewhere.onnx"}, "a file of the ranker is elsewhere.onnx"),
        ({"targets": ["click", "click"]}, "targets of the ranker"),
        ({"targets": ["click"]}, "calibration of the ranker"),
        ({"max_history": 0}, "inputs of ranker/graph.onnx"),
        ({"user_features": []}, "shape of ranker/users.npy"),
        ({"calibration": {"click": {"method": "guess", "x": [1.0], "y": [0.0]}}}, "calibration"),
    ],
)
def test_a_wrong_entry_is_refused(two_stage_folder: Path, tmp_path: Path, change: dict, message: str) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(two_stage_folder, folder)
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    raw["ranker"] |= change
    (folder / MANIFEST_NAME).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=message):
        Engine.load(folder)


def test_the_recorded_inference_is_replayed(two_stage_folder: Path, tmp_path: Path) -> None:
    """A calibration may change, logits may not: here the file of users of another graph would go unseen."""
    import hashlib
    import io

    folder = tmp_path / "broken"
    shutil.copytree(two_stage_folder, folder)
    raw = json.loads((folder / MANIFEST_NAME).read_text())
    name = raw["ranker"]["golden"]
    with np.load(folder / name) as recorded:
        arrays = {key: recorded[key] for key in recorded}
    arrays["logits"] = arrays["logits"] + 0.1
    data = io.BytesIO()
    np.savez(data, **arrays)
    (folder / name).write_bytes(data.getvalue())
    entry = {"size_bytes": len(data.getvalue()), "sha256": hashlib.sha256(data.getvalue()).hexdigest()}
    raw["files"][name] = entry
    (folder / MANIFEST_NAME).write_text(json.dumps(raw))
    with pytest.raises(BundleInvalid, match=f"difference from {name}"):
        Engine.load(folder)


def test_a_ranker_of_other_data_is_refused(ranker_run_folder: Path, tmp_path: Path) -> None:
    other = load_dataset("synthetic-shop:n_items=1000,n_users=60,n_events=1000,seed=1")
    run = create_run(tmp_path / "run", run_config("popularity", "leave-one-out", {}), other)
    Trainer(run.new_model(), run.split(), run.folder, run.config.loop).fit()
    with pytest.raises(InvalidRequest, match="data of the ranker"):
        export_run(run, tmp_path / "bundle", ranker=open_run(ranker_run_folder))
    assert not (tmp_path / "bundle").exists()


def test_calibration_by_hand() -> None:
    logits = np.array([-800.0, 0.0, 800.0])
    assert calibrated(CalibrationEntry(SIGMOID, [1.0], [0.0]), logits).tolist() == [0.0, 0.5, 1.0]
    curve = CalibrationEntry(ISOTONIC, [0.0, 1.0], [0.2, 0.4])
    assert calibrated(curve, np.array([0.5])).tolist() == pytest.approx([0.3])
    rating = CalibrationEntry(LINEAR, [1.0], [3.5], low=1.0, high=5.0)
    assert calibrated(rating, np.array([-9.0, 0.5, 9.0])).tolist() == [1.0, 4.0, 5.0]
    assert dataclasses.replace(rating, low=3.0).low == 3.0
