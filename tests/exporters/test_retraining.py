"""``recserve retrain``: from a real log to a bundle in the repository, or to none."""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recserve.engine import Engine, Request
from recserve.engine.bundle.reader import read_manifest
from recserve.engine.bundle.rules import PipelineConfig
from recserve.engine.bundle.signatures import SIGNATURES_NAME
from recserve.engine.client import RecommenderClient
from recserve.engine.models.repository import Repository
from recserve.engine.state.config import StateConfig
from recserve.engine.state.events import EXPORT, LEARN, SERVE, Event
from recserve.engine.state.master import add_key
from recserve.engine.state.state import LoggedEvent, open_state
from recserve.exporters import item_encoder
from recserve.exporters.assemble import export_run
from recserve.exporters.retraining.carry_over import carry_over
from recserve.exporters.retraining.log_events import learnable, with_events
from recserve.training.data.columns import ITEM_ID, USER_ID
from recserve.training.models.sasrec import SASRec, SASRecConfig
from recserve.training.run import open_run
from tests.engine.server.test_admin import ModelServer

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
Run = Callable[..., tuple[int, str, str]]
RULES = PipelineConfig(caps={"category": 10})
NEW_ITEMS = [f"new-{i}" for i in range(12)]
START = 1_900_000_000


@pytest.fixture
def repository(als_run_folder: Path, tmp_path: Path) -> Path:
    """A repository whose model answers with a bundle of ``als_run_folder``, with rules."""
    folder = tmp_path / "repository" / "default" / "first"
    export_run(open_run(als_run_folder), folder, pipeline=RULES, item_encoder=True)
    return tmp_path / "repository"


def record(config: StateConfig, user_ids: list[str], choose: Callable[[int], str]) -> None:
    """Lets each user do eight things, all users in turns; ``choose`` names the item of the n-th event."""
    # Made here: else the log says so, on the stream of the command's JSON.
    add_key(config.master_file)
    with open_state(config) as state:
        state.load()
        events = [
            Event(user_id=user, item_id=choose(n), event_id=f"{user}/{turn}", timestamp=START + n)
            for n, (turn, user) in enumerate((turn, user) for turn in range(8) for user in user_ids)
        ]
        for start in range(0, len(events), 200):
            assert state.record(events[start : start + 200]).n_stored == len(events[start : start + 200])


@pytest.mark.parametrize("is_new", [True, False])
def test_a_new_version_is_taken_only_if_it_wins(
    als_run_folder: Path,
    repository: Path,
    tmp_path: Path,
    run_cli: Run,
    is_new: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_new:
        # Nothing is ever sure: the version goes without what would place new items by their attributes.
        monkeypatch.setattr(item_encoder, "SURE", float("inf"))
    config = StateConfig(url=f"sqlite:///{tmp_path}/events")
    users, items = (open_run(als_run_folder).dataset.users[USER_ID].to_list(), NEW_ITEMS)
    rng = random.Random(4)
    if not is_new:
        # Chance: nothing to learn, so nothing to win.
        items = open_run(als_run_folder).dataset.items[ITEM_ID].to_list()
    record(config, [*users[:60], *(f"newcomer-{i}" for i in range(20))], lambda n: rng.choice(items))
    key = tmp_path / "release"
    server = ModelServer(repository, "grpcio")
    try:
        assert run_cli("bundle", "keygen", str(key))[0] == 0
        code, out, error = run_cli(
            *("retrain", str(als_run_folder), "--state", config.url, "--repository", str(repository)),
            *("--out", str(tmp_path / "run"), "--since", "2025-01-01", "--json", "--sign-key", str(key)),
            *("--server", server.server.admin_address),
        )
        assert code == 0, error
        # The server in this process writes lines of its log around it.
        result = json.JSONDecoder().raw_decode(out[out.index("{\n") :])[0]
        # The server answers with the winner, and with nothing else.
        expected = read_manifest(Path(result["bundle"]) if is_new else als_bundle(repository))
        with RecommenderClient(server.address, timeout=60) as client:
            assert client.recommend(Request()).bundle_version == expected.bundle_version
    finally:
        server.close()
    assert result["events learned from"] + result["events to judge by"] == 640
    assert (result["bundle"] is not None) == is_new == (result["gain"]["low"] > 0)
    bundles = Repository(repository).bundles()
    assert len(bundles) == 1 + is_new
    assert not list((repository / ".staging").iterdir())
    if is_new:
        assert read_manifest(Path(result["bundle"])).pipeline == RULES
        assert read_manifest(Path(result["bundle"])).item_encoder is None
        assert (Path(result["bundle"]) / SIGNATURES_NAME).exists()
        with Engine.load(als_bundle(repository)) as engine:
            n_before = len(engine.history(users[0]))
        with open_state(config) as state:
            state.load()
            with Engine.load(result["bundle"], observed=state.observed) as engine:
                assert engine.get_items(["new-3"]) == {"new-3": {}}
                # The bundle has most of the user's events, and the log has all: each counts once.
                assert len(engine.history(users[0])) == n_before + 8


def als_bundle(repository: Path) -> Path:
    return repository / "default" / "first"


def test_too_few_events_are_said(
    als_run_folder: Path, repository: Path, tmp_path: Path, run_cli: Run
) -> None:
    config = StateConfig(url=f"sqlite:///{tmp_path}/events")
    record(config, ["u1", "u2"], lambda n: f"i{n}")
    code, _, error = run_cli(
        *("retrain", str(als_run_folder), "--state", config.url, "--repository", str(repository)),
        *("--out", str(tmp_path / "run")),
    )
    assert code != 0
    assert "newest slice is" in error
    assert not (tmp_path / "run").exists()


def test_a_bundle_with_a_ranker_is_not_followed_by_one_without(
    als_run_folder: Path, two_stage_folder: Path, tmp_path: Path, run_cli: Run
) -> None:
    shutil.copytree(two_stage_folder, tmp_path / "repository" / "default" / "first")
    code, _, error = run_cli(
        *("retrain", str(als_run_folder), "--state", f"sqlite:///{tmp_path}/events"),
        *("--repository", str(tmp_path / "repository"), "--out", str(tmp_path / "run")),
    )
    assert code != 0
    assert "with a ranker; expected one without" in error
    assert not (tmp_path / "run").exists()


def test_only_events_of_the_purpose_learn_teach() -> None:
    def logged(number: int, **fields: object) -> LoggedEvent:
        about = {"user_id": "pseudonym", "item_id": f"i{number}", "timestamp": number, "purposes": LEARN}
        return LoggedEvent(number, 0, Event(**{**about, **fields}))  # type: ignore[arg-type]

    events = learnable(
        [
            logged(3),
            logged(2, purposes=SERVE | EXPORT),
            logged(4, action="impression"),
            logged(5, value=3.0, action="rating"),
            logged(1),
        ],
        {"pseudonym": "u"},
        since=2,
    )
    assert events.rows() == [("u", "i3", 3, 1.0), ("u", "i5", 5, 3.0)]


def test_weights_go_over_by_id(als_run_folder: Path) -> None:
    before = open_run(als_run_folder).dataset
    events = pl.DataFrame(
        {USER_ID: ["0"], ITEM_ID: ["0-first"], "timestamp": [START], "value": [1.0]},
        schema_overrides={"value": pl.Float32},
    )
    after = with_events(before, events)
    assert (after.n_items, after.n_users) == (before.n_items + 1, before.n_users + 1)
    assert len(with_events(after, events).interactions) == len(after.interactions)
    shape = SASRecConfig(embedding_size=8, n_blocks=1, n_heads=1, max_history=5)
    torch.manual_seed(0)
    old, new = SASRec(shape, before.n_items), SASRec(shape, after.n_items)
    assert carry_over(new, old, after, before) == []
    place = {id_: row for row, id_ in enumerate(after.items[ITEM_ID].to_list())}
    rows = [place[id_] for id_ in before.items[ITEM_ID].to_list()]
    np.testing.assert_array_equal(new.item_embeddings.detach()[rows], old.item_embeddings.detach())
    for name, value in new.state_dict().items():
        if name != "item_embeddings":
            torch.testing.assert_close(value, old.state_dict()[name])
    wider = SASRec(replace(shape, embedding_size=16), after.n_items)
    assert "item_embeddings" in carry_over(wider, old, after, before)
