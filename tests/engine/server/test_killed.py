"""A real server on real files that is killed, or whose disk fails: what was acknowledged is there, once."""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import FeedbackClient, new_event
from recserve.engine.retry import NO_RETRY
from recserve.engine.state.config import StateConfig
from recserve.engine.state.state import read_log
from recserve.engine.wire.status import RemoteError
from tests.engine.server.killing import TIMEOUT_SECONDS, kill_often, serving

pytest.importorskip("apsw")
pytest.importorskip("cryptography")


def test_acknowledged_events_survive_kills(bundle_folder: Path, tmp_path: Path) -> None:
    assert kill_often(bundle_folder, tmp_path, kills=12, seed=1) > 0


@pytest.mark.slow
def test_acknowledged_events_survive_many_kills(bundle_folder: Path, tmp_path: Path) -> None:
    assert kill_often(bundle_folder, tmp_path, kills=60, seed=2) > 1000


def test_a_restarted_server_knows_its_users_and_sigterm_loses_nothing(
    bundle_folder: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    state, log = f"sqlite:///{tmp_path}/events", tmp_path / "server.log"
    with serving(bundle_folder, state, log) as (process, address):
        with RecommenderClient(address, timeout=TIMEOUT_SECONDS) as recommender:
            chosen = recommender.recommend(Request(user_id="somebody", k=1)).items[0].item_id
        with FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client:
            client.record([new_event(user_id="somebody", item_id=chosen, timestamp=9, event_id="e")])
        # An operator may look while it runs.
        code, out, _ = run_cli("events", "--state", state, "--json")
        assert (code, json.loads(out)["event_id"]) == (0, "e")
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_SECONDS) == 0
    with (
        serving(bundle_folder, state, log) as (_, address),
        FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client,
    ):
        assert client.history("somebody") == [(chosen, 9)]
    code, out, _ = run_cli("events", "--state", state, "--user", "somebody")
    assert code == 0
    assert chosen in out
    assert "somebody" not in out


def test_shuffled_duplicates_over_restarts_count_once(bundle_folder: Path, tmp_path: Path) -> None:
    state, log = f"sqlite:///{tmp_path}/events", tmp_path / "server.log"
    rng = random.Random(5)
    events = [new_event(user_id=f"u{i % 40}", item_id=f"i{i}", event_id=f"e{i}") for i in range(2000)]
    sent = events * 5
    rng.shuffle(sent)
    n_stored = 0
    for part in range(3):
        with (
            serving(bundle_folder, state, log) as (_, address),
            FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client,
        ):
            mine = sent[part::3]
            for start in range(0, len(mine), 500):
                n_stored += client.record(mine[start : start + 500]).n_stored
    assert n_stored == len(events)
    logged = [event.event.event_id for event in read_log(StateConfig(url=state))]
    assert len(logged) == len(events)
    assert set(logged) == {event.event_id for event in events}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    # A process that was killed a moment ago may still be letting go of it.
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(client: FeedbackClient) -> tuple[int, str]:
    """Records until it is refused; returns how many events were stored, and the reason."""
    n_stored = 0
    while True:
        events = [new_event(user_id="u", item_id="i" * 200) for _ in range(50)]
        try:
            n_stored += client.record(events).n_stored
        except RemoteError as error:
            return n_stored, error.reason


def test_a_full_disk_refuses_events_and_nothing_else(bundle_folder: Path, small_disk: Path) -> None:
    state = f"sqlite:///{small_disk}/events"
    with (
        serving(bundle_folder, state, small_disk.parent / "server.log") as (_, address),
        FeedbackClient(address, timeout=TIMEOUT_SECONDS, retry=NO_RETRY) as client,
        RecommenderClient(address, timeout=TIMEOUT_SECONDS) as recommender,
    ):
        n_stored, refusal = fill(client)
        assert refusal == "STORAGE_FULL"
        assert n_stored > 0
        assert recommender.recommend(Request(user_id="u")).items
        # Room again, and it goes on without a restart; what was acknowledged is all there.
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        assert client.record([new_event(user_id="u", item_id="i")]).n_stored == 1
        assert sum(1 for _ in client.export_user("u")) == n_stored + 1


def test_a_read_only_disk_is_told_at_the_start(bundle_folder: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    command = [sys.executable, "-m", "recserve.engine.cli", "serve", str(bundle_folder), "--port", "0"]
    finished = subprocess.run(
        [*command, "--state", f"sqlite:///{small_disk}/events"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 3
    assert "state.url is in a folder that is not writable" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_a_copied_log_without_its_keys_opens_nothing(
    bundle_folder: Path, tmp_path: Path, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    state, log = f"sqlite:///{tmp_path}/events", tmp_path / "server.log"
    with (
        serving(bundle_folder, state, log) as (_, address),
        FeedbackClient(address, timeout=TIMEOUT_SECONDS) as client,
    ):
        client.record([new_event(user_id="u", item_id="i")])
    shutil.copy(tmp_path / "events", tmp_path / "copy")
    code, _, error = run_cli("events", "--state", f"sqlite:///{tmp_path}/copy", "--json")
    assert code == 3
    assert "copy.master is not readable" in error
