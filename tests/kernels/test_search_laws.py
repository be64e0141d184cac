"""What every answer must satisfy, whatever the catalogue: laws, not examples."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recserve.kernels import ItemIndex, isa, reference

# avx-vnni shares all but one instruction with its neighbours; the test of sizes below runs it too.
ISAS = [name for name in isa.available() if name != "avx-vnni"]

law = settings(derandomize=True, deadline=None, max_examples=100)

KINDS = ("gaussian", "ties", "negative", "equal", "zeros", "mixed norms")


def make_vectors(rng: np.random.Generator, kind: str, n: int, dim: int) -> Any:
    vectors = rng.standard_normal((n, dim))
    if kind == "ties":
        vectors = rng.integers(-1, 2, (n, dim))
    elif kind == "negative":
        vectors = -np.abs(vectors)
    elif kind == "equal":
        vectors = np.broadcast_to(vectors[:1], (n, dim))
    elif kind == "zeros":
        vectors = vectors * rng.integers(0, 2, (n, 1))
    elif kind == "mixed norms":
        vectors = vectors * 10.0 ** rng.integers(-12, 12, (n, 1))
    return np.ascontiguousarray(vectors, np.float32)


@st.composite
def searches(draw: Any) -> dict[str, Any]:
    """A catalogue, queries and the options of one search."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_items = draw(st.sampled_from((0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 70)))
    dim = draw(st.sampled_from((1, 2, 3, 4, 5, 15, 16, 17, 33)))
    batch = draw(st.sampled_from((1, 2, 3, 5, 8, 11, 33)))
    kind = draw(st.sampled_from(KINDS))
    queries = make_vectors(rng, "gaussian" if kind != "negative" else "ties", batch, dim)
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        lengths = rng.integers(0, 6, batch) if n_items else np.zeros(batch, int)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        options["exclude"] = (indptr, rng.integers(0, max(n_items, 1), indptr[-1]).astype(np.int32))
    mask = draw(st.sampled_from((None, "shared", "per query")))
    if mask:
        options["allow"] = rng.random((n_items,) if mask == "shared" else (batch, n_items)) < 0.4
    if draw(st.booleans()):
        options["bias"] = rng.standard_normal(n_items).astype(np.float32)
    return {
        "vectors": make_vectors(rng, kind, n_items, dim),
        "queries": np.abs(queries) if kind == "negative" else queries,
        "k": draw(st.sampled_from((1, 2, 5, 16, 80))),
        "options": options,
        "isa": draw(st.sampled_from(ISAS)),
    }


def allowed_items(search: dict[str, Any], query: int) -> Any:
    n_items = len(search["vectors"])
    allowed = np.broadcast_to(search["options"].get("allow", True), (len(search["queries"]), n_items))[
        query
    ].copy()
    if "exclude" in search["options"]:
        indptr, item_indices = search["options"]["exclude"]
        allowed[item_indices[indptr[query] : indptr[query + 1]]] = False
    return allowed


@law
@given(searches())
def test_equals_the_reference_bit_for_bit(search: dict[str, Any]) -> None:
    vectors, queries, k = search["vectors"], search["queries"], search["k"]
    scores, indices = ItemIndex.build(vectors, isa=search["isa"]).search(queries, k, **search["options"])
    expected = reference.exact_top_k(vectors, queries, k, **search["options"])
    assert (scores.dtype, indices.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores, expected[0])


@law
@given(searches())
def test_length_order_uniqueness_and_what_is_left_out(search: dict[str, Any]) -> None:
    """Checked against scores in float64, so that kernels and reference cannot err together."""
    index = ItemIndex.build(search["vectors"], isa=search["isa"])
    scores, indices = index.search(search["queries"], search["k"], **search["options"])
    exact = search["queries"].astype(np.float64) @ search["vectors"].T.astype(np.float64)
    exact += search["options"].get("bias", 0.0)
    size = np.abs(search["queries"]).astype(np.float64) @ np.abs(search["vectors"]).T.astype(np.float64)
    tolerance = 1e-5 * size + 1e-6
    for query in range(len(indices)):
        allowed = allowed_items(search, query)
        length = min(search["k"], int(allowed.sum()))
        kept, kept_scores = indices[query, :length], scores[query, :length]
        assert (indices[query, length:] == -1).all()
        assert (scores[query, length:] == -np.inf).all()
        assert len(set(kept.tolist())) == length
        assert allowed[kept].all()
        pairs = list(zip((-kept_scores).tolist(), kept.tolist(), strict=True))
        assert pairs == sorted(pairs)
        assert (np.abs(kept_scores - exact[query, kept]) <= tolerance[query, kept]).all()
        left_out = np.flatnonzero(allowed)
        left_out = left_out[~np.isin(left_out, kept)]
        if length and len(left_out):
            assert (exact[query, left_out] - tolerance[query, left_out] <= kept_scores[-1]).all()


@law
@given(searches())
def test_a_batch_equals_its_queries_alone(search: dict[str, Any]) -> None:
    search["options"].pop("exclude", None)
    index = ItemIndex.build(search["vectors"], isa=search["isa"])
    options = search["options"]
    scores, indices = index.search(search["queries"], search["k"], **options)
    for query in range(len(indices)):
        alone = dict(options)
        if np.ndim(options.get("allow")) == 2:
            alone["allow"] = options["allow"][query : query + 1]
        single = index.search(search["queries"][query : query + 1], search["k"], **alone)
        np.testing.assert_array_equal(single[0][0], scores[query])
        np.testing.assert_array_equal(single[1][0], indices[query])


@law
@given(searches(), st.integers(0, 1000))
def test_permuting_the_items_permutes_the_answer_up_to_ties(search: dict[str, Any], seed: int) -> None:
    vectors, queries, k = search["vectors"], search["queries"], search["k"]
    order = np.random.default_rng(seed).permutation(len(vectors))
    scores, indices = ItemIndex.build(vectors).search(queries, k)
    permuted_scores, permuted = ItemIndex.build(np.ascontiguousarray(vectors[order])).search(queries, k)
    np.testing.assert_array_equal(permuted_scores, scores)
    for query in range(len(queries)):
        last = scores[query, scores[query] > -np.inf][-1:]  # items tied with the last one may change places
        above = scores[query] > last if len(last) else np.zeros(k, bool)
        assert set(order[permuted[query, above]]) == set(indices[query, above])


@pytest.mark.parametrize("n_items", [0, 1, 15, 16, 17, 31, 32, 33])
def test_a_k_larger_than_the_catalogue_returns_every_item(n_items: int) -> None:
    vectors = np.random.default_rng(n_items).standard_normal((n_items, 4)).astype(np.float32)
    scores, indices = ItemIndex.build(vectors).search(np.ones((2, 4), np.float32), n_items + 3)
    assert scores.shape == indices.shape == (2, n_items + 3)
    for row in indices:
        assert sorted(row[:n_items]) == list(range(n_items))
        assert (row[n_items:] == -1).all()


@pytest.mark.parametrize("isa_name", isa.available())
def test_equals_the_reference_at_a_larger_size(isa_name: str) -> None:
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((700, 24)).astype(np.float32)
    queries = rng.standard_normal((6, 24)).astype(np.float32)
    scores, indices = ItemIndex.build(vectors, isa=isa_name).search(queries, 30)
    expected = reference.exact_top_k(vectors, queries, 30)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(scores, expected[0])
