"""What says who did what is readable nowhere: not in files, logs, metrics or copies."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import FeedbackClient, new_event
from recserve.engine.retry import NO_RETRY
from recserve.engine.server.security.audit import verify
from recserve.engine.state.config import StateConfig
from recserve.engine.state.state import read_log
from recserve.engine.wire.status import RemoteError
from tests.engine.server.http_client import HttpCaller
from tests.engine.server.killing import TIMEOUT_SECONDS, serving

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
CANARY = "canary-7d1f"
USER, ITEM, EVENT, CONTEXT = (f"{CANARY}-{name}" for name in ("user", "item", "event", "context"))


def files_with_canary(folder: Path) -> list[str]:
    return [
        str(path) for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()
    ]


def second_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def live(address: str, http: str) -> str:
    """Does with the canary what a server offers, errors too; returns the metrics."""
    with (
        FeedbackClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client,
        RecommenderClient(address, timeout=TIMEOUT_SECONDS) as recommender,
        HttpCaller(http) as caller,
    ):
        event = new_event(user_id=USER, item_id=ITEM, event_id=EVENT, context={CONTEXT: CONTEXT})
        assert client.record([event]).n_stored == 1
        assert client.record([event]).duplicates == (0,)
        bad = new_event(user_id=USER, item_id=ITEM, action=CANARY)
        clash = new_event(user_id=USER, item_id=CANARY, event_id=EVENT)
        assert len(client.record([bad, clash]).refused) == 2
        with contextlib.suppress(RemoteError):
            client.record([event] * 1001)
        assert [one.item_id for one in client.export_user(USER)] == [ITEM]
        client.history(USER)
        recommender.recommend(Request(user_id=USER, history=[ITEM], exclude=[ITEM]))
        with pytest.raises(RemoteError):
            recommender.recommend(Request(user_id=USER, k=0))
        caller.post("/v1/events", {"events": [{"userId": USER, "itemId": ITEM, "action": CANARY}]})
        caller.post("/v1/recommend", {"userId": USER, CANARY: CANARY})
        caller.get(f"/{CANARY}")
        return caller.get("/metrics")[2].decode()


def test_canaries_are_nowhere_and_an_erased_user_is_gone_from_a_copy_too(
    bundle_folder: Path, tmp_path: Path
) -> None:
    folder, copy = tmp_path / "state", tmp_path / "copy"
    folder.mkdir()
    url, log, audit = f"sqlite:///{folder}/events", folder / "server.log", folder / "audit"
    arguments = ("--http-port", "0", "--access-lines", "1000", "--audit-log", str(audit))
    with serving(bundle_folder, url, log, *arguments) as (process, address):
        metrics = live(address, second_line(process))
        # Its write-ahead logs are not yet part of the files.
        assert (folder / "events-wal").stat().st_size > 0
        assert files_with_canary(folder) == []
        assert "recserve_" in metrics
        assert CANARY not in metrics
        assert [one.event.item_id for one in read_log(StateConfig(url=url))] == [ITEM]
        shutil.copytree(folder, copy)
        with FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client:
            assert client.erase_user(USER) == 1
    assert "Recommend" in log.read_text()
    # Whoever has an old copy of the log, and all the keys that there are now, reads nothing.
    for name in ("events.keys", "events.keys-wal", "events.keys-shm"):
        (copy / name).unlink(missing_ok=True)
        if (folder / name).exists():
            shutil.copy(folder / name, copy / name)
    for place in (folder, copy):
        assert list(read_log(StateConfig(url=f"sqlite:///{place}/events"))) == []
        assert files_with_canary(place) == []
    with (
        serving(bundle_folder, url, log) as (_, address),
        FeedbackClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client,
    ):
        assert list(client.export_user(USER)) == []
        [(_, refusal)] = client.record([new_event(user_id=USER, item_id=ITEM)]).refused
        assert refusal.reason == "USER_ERASED"
    # Exports and erasures leave a trace that names nobody.
    verify(audit)
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(one["event"], one["method"].rpartition("/")[2], one["result"]) for one in records] == [
        ("action", "ExportUser", ""),
        ("result", "ExportUser", "OK"),
        ("action", "EraseUser", ""),
        ("result", "EraseUser", "OK"),
    ]
