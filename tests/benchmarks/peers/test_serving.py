"""``bench peers``: whoever is measured gave the same answers first, and whoever is not is named."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recserve.benchmarks.compare import rows_of
from recserve.benchmarks.load.options import Target
from recserve.benchmarks.load.run import Ids, read_ids
from recserve.benchmarks.peers import serving
from recserve.benchmarks.peers.serving import OURS, Options, check_answers, write_material
from recserve.benchmarks.peers.top_list import TopList
from recserve.engine import Engine, Request
from recserve.engine.bundle import open_bundle
from recserve.engine.bundle.item_table import FLOAT16, FLOAT32, INT8
from recserve.errors import CheckFailed, InvalidRequest
from recserve.exporters.assemble import FormOptions, export_run
from recserve.training.run import open_run

RunCli = Callable[..., tuple[int, str, str]]
STAND_IN = Path(__file__).with_name("stand_in.py")


@pytest.mark.parametrize("item_table", [FLOAT32, INT8, FLOAT16])
def test_what_peers_compute_is_what_the_engine_computes(
    item_table: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recserve.exporters.forms.refusal", lambda *_: "")
    export_run(open_run(run_folder), tmp_path / "bundle", options=FormOptions(item_table=item_table))
    write_material(open_bundle(tmp_path / "bundle"), tmp_path)
    top_list = TopList(str(tmp_path))
    with Engine.load(tmp_path / "bundle") as engine:
        users = list(engine.user_ids()[:50])
        slates = [engine.recommend(Request(user_id=user, k=7)) for user in users]
    answers = top_list.answer([{"user_id": user, "k": 7} for user in users])
    for slate, answer in zip(slates, answers, strict=True):
        assert [item["itemId"] for item in answer["items"]] == [item.item_id for item in slate.items]
        scores = [item["score"] for item in answer["items"]]
        assert scores == pytest.approx([item.score for item in slate.items], abs=1e-4)


def test_only_encoders_of_histories_can_be_compared(table_bundle_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="sequence model"):
        write_material(open_bundle(table_bundle_folder), tmp_path)


def test_other_answers_are_refused(
    engine: Engine, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = read_ids(Target("embed", path=str(bundle_folder)), None, 0)
    target = Target("http", "127.0.0.1", 1)

    def shifted(target: Target, user: str, k: int) -> serving.Answer:
        items = engine.recommend(Request(user_id=user, k=k + 1)).items[1:]
        return [item.item_id for item in items], [item.score for item in items]

    monkeypatch.setattr(serving, "ask_http", shifted)
    with pytest.raises(CheckFailed, match="answer of somebody"):
        check_answers("somebody", target, engine, Ids(ids.users, ids.items), 5)


def test_the_verb_measures_who_is_there_and_names_who_is_not(
    run_cli: RunCli, bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pygrpc_native")
    pytest.importorskip("matplotlib")

    def peer_python(name: str, cache: Path) -> Path:
        if name == "ray":
            raise CheckFailed("pip install", found="exit code 1", expected="0")
        return Path(sys.executable)

    monkeypatch.setattr(serving, "peer_python", peer_python)
    monkeypatch.setattr(serving, "SCRIPTS", {"fastapi": STAND_IN, "ray": STAND_IN})
    saved, table, page = tmp_path / "r.json", tmp_path / "r.csv", tmp_path / "r.html"
    load = ["--in-flight", "2", "--seconds", 0.2, "--rounds", 1, "--items", 1500]
    outputs = ["--out", saved, "--csv", table, "--html", page]
    code, out, _ = run_cli("bench", "peers", bundle_folder, "--peers", "fastapi,ray", *load, *outputs)
    assert code == 0
    result = json.loads(saved.read_text())
    assert set(rows_of(result)) == {f"{name} 2" for name in (*OURS, "fastapi")}
    assert result["n_items"] == 1500
    assert rows_of(result)["recserve http 2"]["of_recserve_http"].value == 1
    assert "exit code 1" in result["not_measured"]["ray"]
    assert "not measured: ray" in out
    assert all(row["requests_per_second"] > 0 for row in result["rows"])
    assert len(list(csv.DictReader(table.read_text().splitlines()))) == 4
    assert "servers" in page.read_text()


def test_options_are_checked() -> None:
    with pytest.raises(InvalidRequest, match="--peers"):
        Options(peers=("flask",))
    with pytest.raises(InvalidRequest, match="--in-flight"):
        Options(in_flight=(0,))
