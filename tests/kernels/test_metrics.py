"""Cosine and Euclidean distance: the answers of a float64 computation, after every kind of change."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.errors import BundleInvalid, InvalidRequest
from recserve.kernels import ItemIndex, isa, reference

law = settings(derandomize=True, deadline=None, max_examples=60)
ISAS = [name for name in isa.available() if name != "avx-vnni"]


def unit(vectors: Any) -> Any:
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)


def expected(metric: str, vectors: Any, queries: Any, k: int, **options: Any) -> Any:
    if metric == "cosine":
        return reference.exact_top_k(unit(vectors), unit(queries), k, **options)
    bias = (-0.5 * (vectors.astype(np.float64) ** 2).sum(axis=1)).astype(np.float32)
    bias = options.pop("bias", np.float32(0)) + bias
    return reference.exact_top_k(vectors, queries, k, bias=bias, **options)


@law
@given(
    st.integers(0, 10**6),
    st.sampled_from(["cosine", "l2"]),
    st.sampled_from(ISAS),
    st.sampled_from([1, 5, 40]),
    st.sampled_from([0, 1, 33, 90]),
    st.booleans(),
)
def test_equals_the_reference(
    seed: int, metric: str, isa_name: str, batch: int, n_items: int, filtered: bool
) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal((n_items, 6)) * 10.0 ** rng.integers(-3, 3, (n_items, 1))).astype(
        np.float32
    )
    vectors[rng.random(n_items) < 0.1] = 0
    queries = rng.standard_normal((batch, 6)).astype(np.float32)
    queries[0] = 0
    options: dict[str, Any] = {}
    if filtered:
        options["allow"] = rng.random(n_items) < 0.5
        options["bias"] = rng.standard_normal(n_items).astype(np.float32)
    index = ItemIndex.build(vectors, metric=metric, isa=isa_name)
    answer = index.search(queries, 7, **options)
    for ours, theirs in zip(answer, expected(metric, vectors, queries, 7, **options), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_changes_and_files_keep_the_metric(metric: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((70, 5)).astype(np.float32)
    queries = rng.standard_normal((4, 5)).astype(np.float32)
    index = ItemIndex.build(vectors, metric=metric)
    more = 3 * rng.standard_normal((6, 5)).astype(np.float32)
    index.upsert(np.array([3, 70, 71, 72, 9, 73], np.int32), more)
    vectors = np.vstack([vectors, np.zeros((4, 5), np.float32)])
    vectors[[3, 70, 71, 72, 9, 73]] = more
    index.remove(np.array([20, 71], np.int32))
    allow = ~np.isin(np.arange(74), [20, 71])
    wanted = expected(metric, vectors, queries, 80, allow=allow)
    index.save(tmp_path / "index")
    opened = ItemIndex.open(tmp_path / "index")
    assert opened.metric == opened.stats()["metric"] == metric
    opened.upsert(np.array([3], np.int32), more[:1])
    for one in (index, opened):
        for ours, theirs in zip(one.search(queries, 80), wanted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    index.rebuild()
    np.testing.assert_array_equal(index.search(queries, 80)[1], wanted[1])


def test_distances_are_those_of_the_vectors_and_rise_along_a_row() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((200, 16)).astype(np.float32)
    queries = np.vstack([vectors[:3], rng.standard_normal((3, 16))]).astype(np.float32)
    index = ItemIndex.build(vectors, metric="l2")
    scores, items = index.search(queries, 201)
    distances = index.squared_distances(queries, scores)
    assert distances.dtype == np.float32
    assert (distances[:, -1] == np.inf).all()
    true = ((queries[:, None].astype(np.float64) - vectors[items[:, :-1]]) ** 2).sum(axis=2)
    np.testing.assert_allclose(distances[:, :-1], true, atol=2e-5)
    assert (np.diff(distances, axis=1) >= 0).all()
    assert items[:3, 0].tolist() == [0, 1, 2]


def test_another_metric_is_refused(tmp_path: Path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(InvalidRequest, match="metric is cosin; expected one of inner, cosine, l2"):
        ItemIndex.build(vectors, metric="cosin")
    with pytest.raises(InvalidRequest, match="metric is inner; expected l2"):
        ItemIndex.build(vectors).squared_distances(vectors, vectors)
    bad = vectors.copy()
    bad[1, 2] = np.nan
    with pytest.raises(InvalidRequest, match="queries row 1 is nan in column 2"):
        ItemIndex.build(vectors, metric="cosine").search(bad, 1)
    ItemIndex.build(vectors).save(tmp_path / "index")
    meta = (tmp_path / "index" / "index.json").read_text()
    (tmp_path / "index" / "index.json").write_text(meta.replace("inner", "outer"))
    with pytest.raises(BundleInvalid, match=r"index\.json metric is outer; expected one of"):
        ItemIndex.open(tmp_path / "index")
