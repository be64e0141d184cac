"""The first step of a brown-out: what is left out, who gets what it asked for, and when it is taken."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from recserve.engine import Engine, EngineConfig, Request
from recserve.engine.batch_policy import BatcherConfig
from recserve.engine.brownout import Brownout
from recserve.engine.client import RecommenderClient
from recserve.engine.ranked import Ranked, slates
from recserve.engine.server.config import ServerConfig
from recserve.engine.smaller import rank_smaller
from recserve.engine.types import Slate
from tests.engine.server.conftest import running


@pytest.fixture
def two_stages(two_stage_folder: Path) -> Iterator[Engine]:
    """An engine with a ranker and a second variant, "small", that is its first one again."""
    with Engine.load(two_stage_folder, EngineConfig(smaller_variant="small")) as engine:
        engine.manifest.variants["small"] = engine.manifest.variants[engine.manifest.default_variant]
        engine.loaded.sources["small"] = engine.loaded.sources[engine.manifest.default_variant]
        yield engine


def smaller(engine: Engine, request: Request) -> Slate:
    [answer] = rank_smaller(engine, [request])
    assert isinstance(answer, Ranked)
    [slate] = slates([answer])
    return slate


def test_the_smaller_variant_answers_without_what_a_slate_can_do_without(two_stages: Engine) -> None:
    user = two_stages.user_ids()[0]
    slate = smaller(two_stages, Request(user_id=user, k=5, explain="fast"))
    assert slate.variant == "small"
    assert set(slate.degraded) == {"variant", "rank", "explain"}
    plain = two_stages.recommend(Request(user_id=user, k=5, predict="retrieval", variant="small"))
    assert [item.item_id for item in slate.items] == [item.item_id for item in plain.items]


def test_who_names_a_variant_gets_it(two_stages: Engine) -> None:
    named = Request(user_id=two_stages.user_ids()[0], variant="fp32", predict="retrieval")
    slate = smaller(two_stages, named)
    assert (slate.variant, slate.degraded) == ("fp32", ())


def test_a_bundle_without_the_variant_answers_with_its_own(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(smaller_variant="int8")) as engine:
        slate = smaller(engine, Request(user_id=engine.user_ids()[0]))
        assert (slate.variant, slate.degraded) == (engine.manifest.default_variant, ())


def test_an_answer_that_is_kept_goes_before_a_smaller_one(bundle_folder: Path) -> None:
    with Engine.load(bundle_folder, EngineConfig(smaller_variant="fp32", cache_slates=10)) as engine:
        known, new = (Request(user_id=user) for user in engine.user_ids()[:2])
        full = engine.recommend(known)
        again, computed = slates(
            [one for one in rank_smaller(engine, [known, new]) if isinstance(one, Ranked)]
        )
        assert (again.items, again.degraded, *again.stage_ns) == (full.items, (), "cache")
        assert again.slate_id not in ("", full.slate_id)
        assert computed.degraded == ("variant",)
        assert engine.stats()["cached"] == 1


def test_a_server_takes_the_step_in_a_brown_out_only(
    two_stages: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = two_stages.user_ids()[0]
    with (
        running(ServerConfig(port=0, default_deadline_ms=30_000), BatcherConfig(threads=1)) as server,
        RecommenderClient(server.address, timeout=30) as client,
    ):
        server.serve(two_stages)
        assert client.recommend(Request(user_id=user)).degraded == ()
        monkeypatch.setattr(server.server.batcher, "_brownout", Brownout(is_on=True))
        assert set(client.recommend(Request(user_id=user)).degraded) == {"variant", "rank"}
