"""Several processes of ``recserve serve`` over one log in Redis."""

from pathlib import Path

import pytest

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.feedback_client import FeedbackClient, new_event
from recserve.engine.server.config import ServerConfig
from recserve.engine.server.serve import ServeBundle, serve
from recserve.engine.state.config import StateConfig
from recserve.errors import ConfigError
from tests.engine.server.killing import TIMEOUT_SECONDS, serving
from tests.engine.state.servers import running

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
KEY = f"k1 {'A' * 43}="


def test_workers_share_a_log(bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECSERVE_STATE_KEY", KEY)
    with Engine.load(bundle_folder) as engine:
        items = [item.item_id for item in engine.recommend(Request(k=20)).items]
    with (
        running("redis") as database,
        serving(bundle_folder, database.url, tmp_path / "log", "--workers", "2") as (_, address),
    ):
        # The system deals connections out to the workers: with twenty, both have some.
        for item in items:
            event = new_event(user_id="u", item_id=item, event_id=item)
            for is_known in (False, True):
                with FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client:
                    recorded = client.record([event])
                    assert (recorded.durability, recorded.n_stored) == ("power", not is_known)
        # A worker that has nothing to write knows of the others' events a moment later.
        agreed = 0
        for _ in range(500):
            with FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client:
                agreed = agreed + 1 if [item for item, _ in client.history("u")] == items else 0
            if agreed == 20:
                return
        pytest.fail("a worker does not know the events of the other")


def test_workers_do_not_share_a_file(bundle_folder: Path, tmp_path: Path) -> None:
    state = StateConfig(url=f"sqlite:///{tmp_path}/events")
    server = ServerConfig(port=0, workers=2)
    work = ServeBundle(bundle_folder, EngineConfig(), server, BatcherConfig(), state=state)
    with pytest.raises(ConfigError, match=r"with 2 workers; expected one worker, or a log"):
        serve(work, print)
