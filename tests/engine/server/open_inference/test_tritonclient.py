"""Triton's own client, unchanged and in a process of its own, against the server on each transport."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from recserve.benchmarks.peers.venv import peer_python
from recserve.engine import Engine, Request
from recserve.errors import CheckFailed
from recserve.proto import open_inference_pb2 as pb
from recserve.training.data import default_cache_dir
from tests.engine.server.conftest import RunningServer

SESSION = Path(__file__).with_name("tritonclient_session.py")
MODEL = "sasrec"
TIMEOUT_SECONDS = 120

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def triton_python() -> Path:
    """The interpreter of an environment with tritonclient, made on first use."""
    try:
        return peer_python("tritonclient", default_cache_dir() / "peers")
    except CheckFailed as error:
        pytest.skip(f"tritonclient cannot be installed here: {error}")


def session(python: Path, address: str, users: list[str], history: list[list[str]]) -> dict[str, Any]:
    command = [str(python), str(SESSION), address, MODEL, json.dumps(users), json.dumps(history)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    assert finished.returncode == 0, finished.stderr
    seen: dict[str, Any] = json.loads(finished.stdout)
    return seen


def test_it_asks_as_it_asks_triton(server: RunningServer, engine: Engine, triton_python: Path) -> None:
    users = [*[user for user in engine.user_ids() if engine.history(user)][:3], "nobody knows me"]
    items = [item.item_id for item in engine.recommend(Request(k=3)).items]
    history = [items[:2], [items[2], ""]]
    seen = session(triton_python, server.address, users, history)

    assert (seen["live"], seen["ready"], seen["model_ready"], seen["other_ready"]) == (
        True,
        True,
        True,
        False,
    )
    version = engine.manifest.bundle_version
    assert seen["server"]["name"] == "recserve"
    assert "statistics" in seen["server"]["extensions"]
    assert seen["metadata"]["versions"] == [version]
    assert seen["index"]["models"] == [{"name": MODEL, "version": version, "state": "READY"}]
    assert seen["config"]["max_batch_size"] == 64
    assert seen["config"]["dynamic_batching"]["priority_levels"] == "4"
    assert [t["name"] for t in seen["config"]["output"]] == ["item_id", "score"]

    slates = [engine.recommend(Request(user_id=user, k=4, include_seen=True)) for user in users]
    assert seen["items"] == [[item.item_id for item in slate.items] for slate in slates]
    for row, slate in zip(seen["scores"], slates, strict=True):
        assert row == pytest.approx([item.score for item in slate.items], abs=1e-4)
    assert seen["id"] == "r7"
    asked = [Request(history=[item for item in row if item]) for row in history]
    assert seen["with_history"] == [[i.item_id for i in engine.recommend(r).items] for r in asked]
    best = engine.recommend(Request(user_id=users[0], k=4)).items[:2]
    assert [text.split(":")[1:] for text in seen["classes"]] == [
        ["0", best[0].item_id],
        ["1", best[1].item_id],
    ]
    assert seen["async_shapes"] == [[1, 10]] * len(users)

    errors = seen["errors"]
    assert errors["unknown model"] == ["StatusCode.NOT_FOUND", f"model is another; expected one of {MODEL}."]
    assert errors["bad k"][0] == "StatusCode.INVALID_ARGUMENT"
    # Public addresses have no methods that change the server.
    assert errors["load"][0] == "StatusCode.UNIMPLEMENTED"
    assert errors["shared memory"][0] == "StatusCode.UNIMPLEMENTED"

    [stats] = seen["statistics"]["model_stats"]
    assert (stats["name"], stats["version"]) == (MODEL, version)
    assert stats["inference_stats"]["success"]["count"] == str(3 + len(users))
    assert stats["inference_stats"]["fail"]["count"] == "1"
    assert stats["inference_count"] == str(2 * len(users) + len(history) + 1)


def test_our_fields_are_triton_s(server: RunningServer, triton_python: Path) -> None:
    theirs = session(triton_python, server.address, ["a"], [["x"]])["fields"]
    # KServe's addition to the metadata; Triton's definition has no such field.
    only_ours = {("inference.ModelMetadataResponse", 6)}
    checked = 0

    def check(message: Any) -> None:
        nonlocal checked
        known = {number: rest for number, *rest in theirs.get(message.full_name, [])}
        for field in message.fields:
            if (message.full_name, field.number) in only_ours:
                continue
            assert known[field.number] == [field.name, field.type, field.is_repeated], field.full_name
            checked += 1
        for nested in message.nested_types:
            if message.full_name not in {name for name, _ in only_ours} or nested.full_name in theirs:
                check(nested)

    for message in pb.DESCRIPTOR.message_types_by_name.values():
        check(message)
    assert checked > 130
