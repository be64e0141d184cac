"""``recserve.v1.Catalogue`` and ``recserve items``, over a real server that is killed and started again."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from recserve.engine import Request
from recserve.engine.client import RecommenderClient
from recserve.engine.feedback_client import FeedbackClient, new_event
from recserve.proto import catalogue_pb2 as pb
from recserve.proto import catalogue_pb2_grpc
from tests.engine.server.killing import TIMEOUT_SECONDS, serving

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
Run = Callable[..., tuple[int, str, str]]


def test_items_come_and_go_without_a_reload_and_survive_a_kill(
    bundle_folder: Path, tmp_path: Path, run_cli: Run
) -> None:
    state, log, file = f"sqlite:///{tmp_path}/events", tmp_path / "server.log", tmp_path / "items.jsonl"
    with (
        serving(bundle_folder, state, log) as (_, address),
        RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client,
    ):

        def slate() -> list[str]:
            return [item.item_id for item in client.recommend(Request(user_id="u", k=5)).items]

        with FeedbackClient(address, timeout=TIMEOUT_SECONDS) as feedback:
            feedback.record([new_event(user_id="u", item_id=slate()[0])])
        best, second, *_ = slate()
        file.write_text(json.dumps({"item_id": "fresh", "like": [best], "attributes": {"title": "Fresh"}}))
        assert run_cli("items", "upsert", str(file), "--server", address)[0] == 0
        assert "fresh" in slate()[:2]
        assert run_cli("items", "remove", best, "--server", address)[0] == 0
        assert slate()[:2] == ["fresh", second]
        assert client.get_items(["fresh"])["fresh"] == {"title": "Fresh"}
        file.write_text(json.dumps({"item_id": "short", "vector": [1.0]}))
        code, _, error = run_cli("items", "upsert", str(file), "--server", address)
        assert code != 0
        assert "vector of 'short' is 1 long" in error
        # Which JSON has no form for.
        message = pb.UpsertItemsRequest(items=[pb.NewItem(item_id="odd")])
        message.items[0].attributes["price"] = float("nan")
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            catalogue_pb2_grpc.CatalogueStub(channel).UpsertItems(message, timeout=TIMEOUT_SECONDS)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        expected = slate()
    # The context killed it.
    with (
        serving(bundle_folder, state, log) as (_, address),
        RecommenderClient(address, timeout=TIMEOUT_SECONDS) as client,
    ):
        assert [item.item_id for item in client.recommend(Request(user_id="u", k=5)).items] == expected
