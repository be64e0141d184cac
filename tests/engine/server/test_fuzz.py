"""Whatever arrives on whatever way, the answer is a reply or a refusal that does not blame the server."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine.server.app import Server
from recserve.errors import CheckFailed
from tests.engine.server.fuzzing import fuzz, fuzzed_server, ways

pytest.importorskip("apsw")
pytest.importorskip("cryptography")
MANY = 1_000_000
# The ways in that more than one million inputs go through where there is time.
LONG = (
    "recserve.v1.Recommender/Recommend",
    "recserve.v1.Feedback/Record",
    "inference.GRPCInferenceService/ModelInfer",
    "JSON Recommend",
    "filter",
    "page token",
)


@pytest.fixture(scope="module")
def fuzzed(bundle_folder: Path) -> Iterator[tuple[Server, list[str]]]:
    with fuzzed_server(bundle_folder) as server:
        yield server


@given(seed=st.integers(0, 2**32))
@settings(max_examples=10)
def test_every_way_in_answers_everything(fuzzed: tuple[Server, list[str]], seed: int) -> None:
    found = ways(*fuzzed)
    assert set(LONG) <= set(found)
    for name, way in found.items():
        outcome = fuzz(fuzzed[0], way, 100, seed)
        assert outcome.n == 100, name


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_million_inputs(fuzzed: tuple[Server, list[str]], name: str) -> None:
    outcome = fuzz(fuzzed[0], ways(*fuzzed)[name], MANY, seed=1)
    assert outcome.n == MANY
    assert outcome.codes["OK"] > 0, "nothing came through: the inputs are no test"
    assert outcome.codes["INVALID_ARGUMENT"] > 0


def test_the_fuzzer_would_see_a_failure(
    fuzzed: tuple[Server, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, ids = fuzzed
    way = ways(server, ids)[LONG[0]]
    assert fuzz(server, way, 500, seed=3).codes["OK"] > 0
    monkeypatch.setattr(server.router, "answer", lambda *arguments, **fields: 1 / 0)
    with pytest.raises(CheckFailed, match="is 13 to"):
        fuzz(server, way, 500, seed=3)
