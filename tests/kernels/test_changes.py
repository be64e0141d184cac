"""Upsert and remove: the next search sees them, and equals a rebuild."""

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import InvalidRequest
from recserve.kernels import ItemIndex, isa, reference
from recserve.kernels import snapshot as versions

ISAS = [name for name in isa.available() if name != "avx-vnni"]
law = settings(derandomize=True, deadline=None, max_examples=60)


def vectors_of(seed: int, n_items: int, dim: int = 5) -> Any:
    return np.random.default_rng(seed).integers(-3, 4, (n_items, dim)).astype(np.float32)


class Model:
    """What the index must be equal to: a matrix and who is there."""

    def __init__(self, vectors: Any) -> None:
        self.vectors, self.there = vectors, np.ones(len(vectors), bool)

    def upsert(self, items: Any, vectors: Any) -> None:
        n_new = max(0, int(items.max(initial=-1)) + 1 - len(self.vectors))
        self.vectors = np.vstack([self.vectors, np.zeros((n_new, self.vectors.shape[1]), np.float32)])
        self.there = np.append(self.there, np.zeros(n_new, bool))
        for item, vector in zip(items, vectors, strict=True):
            self.vectors[item], self.there[item] = vector, True

    def remove(self, items: Any) -> None:
        self.there[items] = False

    def search(self, queries: Any, k: int, allow: Any, **options: Any) -> Any:
        return reference.exact_top_k(self.vectors, queries, k, allow=self.there & allow, **options)


@law
@given(st.data())
def test_any_history_of_changes_equals_a_rebuild(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    vectors = vectors_of(1, data.draw(st.sampled_from((0, 1, 31, 32, 33, 70))))
    index, model = ItemIndex.build(vectors, isa=data.draw(st.sampled_from(ISAS))), Model(vectors.copy())
    for change in data.draw(st.lists(st.sampled_from(("upsert", "append", "remove")), max_size=6)):
        n_items = len(model.vectors)
        items = rng.integers(0, max(n_items, 1), rng.integers(0, 8) if n_items else 0).astype(np.int32)
        if change == "remove":
            index.remove(items)
            model.remove(items)
            continue
        if change == "append":
            items = np.append(items, np.arange(n_items, n_items + 3, dtype=np.int32))
        new = rng.integers(-3, 4, (len(items), 5)).astype(np.float32)
        index.upsert(items, new)
        model.upsert(items, new)
    n_items = len(model.vectors)
    assert index.n_items == n_items
    queries = rng.integers(-3, 4, (3, 5)).astype(np.float32)
    options = {
        "allow": rng.random(n_items) < 0.8,
        "bias": rng.integers(-2, 3, n_items).astype(np.float32),
        "exclude": (
            np.array([0, 2, 2, 3]) if n_items else np.zeros(4, np.int64),
            rng.integers(0, max(n_items, 1), 3 if n_items else 0).astype(np.int32),
        ),
    }
    for answer in (index.search(queries, 9, **options), rebuilt(index).search(queries, 9, **options)):
        expected = model.search(queries, 9, **options)
        np.testing.assert_array_equal(answer[1], expected[1])
        np.testing.assert_array_equal(answer[0], expected[0])


def rebuilt(index: ItemIndex) -> ItemIndex:
    return ItemIndex(versions.rebuild(index._snapshot), index._isa, index._metric)


def test_of_an_item_upserted_twice_in_one_call_the_last_counts() -> None:
    index = ItemIndex.build(vectors_of(2, 3))
    index.upsert(np.array([1, 1], np.int32), np.array([[1, 0, 0, 0, 0], [7, 0, 0, 0, 0]], np.float32))
    scores, indices = index.search(np.eye(1, 5, dtype=np.float32), 1)
    assert (scores[0, 0], indices[0, 0]) == (7.0, 1)
    assert index.stats()["tail_items"] == 1


def test_a_long_tail_is_folded_into_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "MIN_TAIL", 10)
    index = ItemIndex.build(vectors_of(3, 40))
    index.upsert(np.arange(10, dtype=np.int32), vectors_of(4, 10))
    assert index.stats()["tail_items"] == 10
    index.upsert(np.array([10], np.int32), vectors_of(5, 1))
    assert index.stats()["tail_items"] == 0
    expected = np.vstack([vectors_of(4, 10), vectors_of(5, 1), vectors_of(3, 40)[11:]])
    answer = index.search(vectors_of(6, 2), 50)
    np.testing.assert_array_equal(answer[1], reference.exact_top_k(expected, vectors_of(6, 2), 50)[1])


def test_changes_that_do_not_fit_are_refused_and_change_nothing() -> None:
    index = ItemIndex.build(vectors_of(7, 4))
    one = vectors_of(8, 1)
    for items, vectors, message in (
        (np.array([-1], np.int32), one, r"item_indices\[0\] is -1"),
        (np.array([5], np.int32), one, "expected new items numbered from 4 on, without gaps"),
        (np.array([0, 1], np.int32), one, "item_indices is 2 items; expected 1"),
        (np.array([0]), one, "item_indices is int64"),
        (np.array([0], np.int32), one * np.float32(np.nan), "vectors row 0 is nan in column 0"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            index.upsert(items, vectors)
    with pytest.raises(InvalidRequest, match=r"item_indices\[1\] is 4; expected an item_index from 0 to 3"):
        index.remove(np.array([0, 4], np.int32))
    assert index.search(one, 9)[1][0].max() == 3
    assert (index.search(one, 9)[1][0] >= 0).sum() == 4


def test_every_concurrent_answer_is_that_of_a_version_between_call_and_return() -> None:
    """Version v gives item v % 50 the score v; a search returns the largest score: the version it saw."""
    index = ItemIndex.build(np.zeros((50, 1), np.float32))
    query = np.ones((1, 1), np.float32)
    n_versions = 60
    published, started = [0], [0]  # the last version whose upsert has returned, has begun
    wrong: list[Any] = []
    done = threading.Event()

    def search() -> None:
        while not done.is_set():
            before = published[0]
            scores, indices = index.search(query, 2)
            after = started[0]
            version = int(scores[0, 0])
            if not before <= version <= after or (version and indices[0, 0] != version % 50):
                wrong.append((before, version, after, indices))

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, n_versions):
        started[0] = version
        index.upsert(np.array([version % 50], np.int32), np.full((1, 1), version, np.float32))
        published[0] = version
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
