"""The vocabulary is a bijection for any ids, also when hashes collide."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.engine.bundle import Vocabulary, vocabulary
from recserve.errors import BundleInvalid

SETTINGS = settings(derandomize=True, deadline=None, max_examples=80)
ID = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@SETTINGS
@given(st.lists(ID, unique=True, max_size=40), ID)
def test_ids_and_indices_are_a_bijection(ids: list[str], other: str) -> None:
    found = Vocabulary.build(ids)
    assert found.indices(ids).tolist() == list(range(len(ids)))
    assert found.ids(range(len(ids))) == ids
    assert list(found) == ids
    if other not in ids:
        assert found.index_of(other) == -1


def test_colliding_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "_digest", lambda text: bytes([len(text) % 2] * 8))
    ids = ["a", "bb", "c", "dd", "e", "ff"]
    found = Vocabulary.build(ids)
    assert found.indices([*ids, "g", "hh"]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]


def test_nothing_is_normalised() -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    found = Vocabulary.build([composed])
    assert found.index_of(decomposed) == -1
    assert found.index_of("\ud800") == -1


@pytest.mark.parametrize("ids", [["a", "b", "a"], [""], ["x" * 257]])
def test_ids_that_cannot_be_served_are_refused(ids: list[str]) -> None:
    with pytest.raises(BundleInvalid):
        Vocabulary.build(ids)
