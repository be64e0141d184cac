"""The pipeline next to the same one by hand, on a small shop: the same slates, and a result with a table."""

import json
from pathlib import Path

import pytest

from recserve.benchmarks import slates
from recserve.benchmarks.peers.pipeline import Pipeline
from recserve.benchmarks.tables import tables_of
from recserve.engine import Engine, EngineConfig
from recserve.engine.bundle import open_bundle
from recserve.errors import CheckFailed


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slates") / "models"
    slates.make_models(folder, 1500)
    return folder


def test_both_ways_give_the_same_slates(models: Path) -> None:
    result = json.loads(json.dumps(slates.measure(models, 0.05), allow_nan=False))
    assert result["n_checked"] == 256
    assert [row["batch"] for row in result["rows"]] == [1, 32]
    assert {"retrieve", "rank", "rerank", "explain"} < set(result["stages_us"]["1"])
    timed, bars = tables_of(result)
    assert len(timed.rows) == 4
    assert len(bars.rows) == 3


def test_another_slate_is_told(models: Path) -> None:
    bundle, plain = models / slates.BUNDLE, (models / slates.PLAIN_RANKER).read_bytes()
    with Engine.load(bundle, EngineConfig(provider="cpu")) as engine:
        other = Pipeline(open_bundle(bundle), plain, slates.K, slates.N_CANDIDATES, slates.DIVERSITY / 2)
        users = [user for user in engine.user_ids() if len(other.histories[user])]
        with pytest.raises(CheckFailed, match="by hand"):
            slates.check_same(engine, other, users)


def test_a_bar_is_reached_on_its_side() -> None:
    row = {"batch": 1, "p50_ms": {slates.ENGINE: 6.0}, "ratio": 2.5}
    assert [bar["reached"] for bar in slates.bars_of([row])] == [False, True]
