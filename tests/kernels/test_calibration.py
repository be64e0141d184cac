"""Approximate search: a choice that is measured, kept, and exact where it would save nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recserve.errors import BundleInvalid, InvalidRequest
from recserve.kernels import ItemIndex, calibration, isa

FAST = isa.available()[0] != isa.PORTABLE
fast_only = pytest.mark.skipif(not FAST, reason="the portable path counts no tiles")


def popular_few(seed: int, n_items: int = 4000, dim: int = 32) -> Any:
    """Vectors whose norms fall as a power of the rank, and queries."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n_items, dim)) * (1 + np.arange(n_items)[:, None]) ** -0.3
    return vectors.astype(np.float32), rng.standard_normal((400, dim)).astype(np.float32)


def recall_of(found: Any, exact: Any) -> float:
    return float(np.mean([np.isin(right, left).mean() for right, left in zip(exact, found, strict=True)]))


@fast_only
def test_the_measured_recall_holds_on_other_queries_and_less_is_scanned() -> None:
    vectors, queries = popular_few(1)
    index = ItemIndex.build(vectors)
    measured = index.calibrate(queries[:200])
    point = measured.choose(0.9)
    assert point.reach < 1.0
    assert point.recall >= 0.9
    exact = index.search(queries[200:], 10)[1]
    before = index.stats()["tiles_scanned"]
    found = index.search(queries[200:], 10, recall=0.9)[1]
    scanned = (index.stats()["tiles_scanned"] - before) / 200 / index.stats()["tiles"]
    assert recall_of(found, exact) >= 0.87
    assert scanned <= calibration.WORTHWHILE
    recalls = [one.recall for one in measured.points]
    assert recalls == sorted(recalls)


def test_without_structure_and_for_full_recall_the_search_stays_exact() -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((3000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)  # no item is left out for its norm
    queries = rng.standard_normal((64, 64)).astype(np.float32)
    index = ItemIndex.build(vectors)
    assert index.calibrate(queries).choose(0.999) == calibration.Point(1.0, 1.0, 1.0)
    exact = index.search(queries, 10)
    for recall in (0.999, 1.0):
        for ours, theirs in zip(index.search(queries, 10, recall=recall), exact, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_it_is_refused_until_it_is_measured() -> None:
    vectors, queries = popular_few(3)
    index = ItemIndex.build(vectors)
    with pytest.raises(InvalidRequest, match=r"recall is 0\.9; expected none\. Measure"):
        index.search(queries, 10, recall=0.9)
    with pytest.raises(InvalidRequest, match="queries is 63 rows; expected at least 64"):
        index.calibrate(queries[:63])
    index.calibrate(queries)
    for recall in (0.0, 1.1, float("nan")):
        with pytest.raises(InvalidRequest, match="expected a number above 0 and at most 1"):
            index.search(queries, 10, recall=recall)


def test_it_is_saved_with_the_index(tmp_path: Path) -> None:
    vectors, queries = popular_few(4)
    index = ItemIndex.build(vectors)
    index.calibrate(queries, 5)
    index.save(tmp_path / "index")
    opened = ItemIndex.open(tmp_path / "index")
    for ours, theirs in zip(
        opened.search(queries, 5, recall=0.8), index.search(queries, 5, recall=0.8), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    meta = tmp_path / "index" / "index.json"
    meta.write_text(meta.read_text().replace('"n_queries"', '"queries"'))
    with pytest.raises(BundleInvalid, match=r"calibration is .*; expected what calibrate has measured"):
        ItemIndex.open(tmp_path / "index")
