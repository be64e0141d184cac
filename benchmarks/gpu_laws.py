"""What every answer of the GPU must satisfy, as cases that a real device and the simulator both run."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recserve.errors import CheckFailed
from recserve.kernels import ItemIndex
from recserve.kernels.cuda import CudaItemIndex, Launch

KINDS = ("gaussian", "near ties", "ties", "negative", "equal", "zeros", "mixed norms")
RULES: tuple[tuple[str, ...], ...] = (
    (),
    ("exclude",),
    ("allow",),
    ("exclude", "allow per query", "bias"),
    ("filters", "bias"),
)
DTYPES = ("float32", "float16", "int8")
# n_items, dim, batch, k
TINY = ((1, 1, 1, 1), (33, 16, 2, 40), (70, 17, 5, 3), (200, 4, 1, 9))
REAL = (
    (1, 64, 1, 10),
    (1_000, 16, 33, 1_024),
    (100_000, 64, 1, 10),
    (100_000, 100, 40, 100),
    (60_000, 1_024, 4, 10),
    (1_000_000, 64, 32, 10),
    (1_000_000, 64, 3, 1_024),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One search of a made-up catalogue."""

    kind: str
    n_items: int
    dim: int
    batch: int
    k: int
    dtype: str
    rules: tuple[str, ...]

    def __str__(self) -> str:
        rules = " + ".join(self.rules) or "no rules"
        return f"{self.dtype} {self.kind} {self.n_items} × {self.dim} B{self.batch} K{self.k} {rules}"


def cases(sizes: Any, dtypes: Any = DTYPES) -> Iterator[Case]:
    """Every size with every dtype, and kinds and rules in turn: all pairs of these meet in the end."""
    number = 0
    for size in sizes:
        for dtype in dtypes:
            for kind in KINDS:
                n_items, dim, batch, k = size
                yield Case(kind, n_items, dim, batch, k, dtype, RULES[number % len(RULES)])
                number += 1


def make_vectors(rng: np.random.Generator, kind: str, n: int, dim: int) -> Any:
    """(n, dim) float32."""
    vectors: Any = rng.standard_normal((n, dim), dtype=np.float32)
    if kind == "near ties":
        vectors = np.broadcast_to(vectors[:1], (n, dim)).copy()
        np.nextafter(vectors, np.float32(np.inf), where=rng.random((n, dim)) < 0.3, out=vectors)
    elif kind == "ties":
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


def make_options(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    """The options of a search; filters are masks here."""
    options: dict[str, Any] = {}
    if "exclude" in case.rules:
        lengths = rng.integers(0, max(2, min(case.n_items, 200)), case.batch)
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        options["exclude"] = (indptr, rng.integers(0, case.n_items, indptr[-1]).astype(np.int32))
    if "allow" in case.rules:
        options["allow"] = rng.random(case.n_items) < 0.05
    if "allow per query" in case.rules or "filters" in case.rules:
        options["allow"] = rng.random((case.batch, case.n_items)) < 0.3
    if "bias" in case.rules:
        options["bias"] = rng.standard_normal(case.n_items).astype(np.float32)
    return options


def check(case: Case, launch: Launch | None = None) -> dict[str, Any]:
    """Runs one case; raises CheckFailed if a law does not hold, and returns the index's statistics."""
    rng = np.random.default_rng(case.n_items * case.dim)
    vectors = make_vectors(rng, case.kind, case.n_items, case.dim)
    queries = make_vectors(rng, "gaussian" if case.kind != "negative" else "ties", case.batch, case.dim)
    options = make_options(rng, case)
    index = CudaItemIndex.build(vectors, dtype=case.dtype, launch=launch)  # type: ignore[arg-type]
    on_device = dict(options)
    if "filters" in case.rules:
        on_device["allow"] = [index.prepare_filter(mask) for mask in options["allow"]]
    answer = index.search(queries, case.k, **on_device)
    require_same(case, "answer", answer, ItemIndex.build(vectors).search(queries, case.k, **options))
    require_laws(case, vectors, queries, options, answer)
    require_same(case, "second answer", index.search(queries, case.k, **on_device), answer)
    alone = {name: value for name, value in options.items() if name == "bias"}
    single = index.search(queries[:1], case.k, **alone)
    batch = index.search(queries, case.k, **alone)
    require_same(case, "answer to a query alone", single, (batch[0][:1], batch[1][:1]))
    return index.stats()


def require(case: Case, what: str, holds: bool, found: str, expected: str) -> None:
    if not holds:
        raise CheckFailed(f"{what} [{case}]", found=found, expected=expected)


def require_same(case: Case, what: str, answer: Any, expected: Any) -> None:
    """Bit for bit."""
    for name, ours, theirs in zip(("scores", "indices"), answer, expected, strict=True):
        require(case, f"{what}: {name}", ours.dtype == theirs.dtype, str(ours.dtype), str(theirs.dtype))
        differing = np.argwhere(ours.view(np.int32) != theirs.view(np.int32))
        if len(differing):
            at = tuple(differing[0])
            found = f"{ours[at]} at {at} and differs at {len(differing)} places"
            require(case, f"{what}: {name}", False, found, str(theirs[at]))


def require_laws(case: Case, vectors: Any, queries: Any, options: dict[str, Any], answer: Any) -> None:
    """Checked against scores in float64, so that GPU and CPU cannot err together."""
    scores, indices = answer
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64) + options.get("bias", 0.0)
    size = np.abs(queries).astype(np.float64) @ np.abs(vectors).T.astype(np.float64)
    tolerance = 1e-5 * size + 1e-6
    for query in range(case.batch):
        allowed = np.broadcast_to(options.get("allow", True), exact.shape)[query].copy()
        if "exclude" in options:
            indptr, item_indices = options["exclude"]
            allowed[item_indices[indptr[query] : indptr[query + 1]]] = False
        length = min(case.k, int(allowed.sum()))
        kept, kept_scores = indices[query, :length], scores[query, :length]
        rest = indices[query, length:].tolist(), scores[query, length:].tolist()
        padding = [-1] * (case.k - length), [-np.inf] * (case.k - length)
        require(case, "padding", rest == padding, "something else", "-1 and -inf")
        require(case, "items", len(set(kept.tolist())) == length, "repeated", "distinct")
        require(case, "items", bool(allowed[kept].all()), "not all allowed", "allowed")
        pairs = list(zip((-kept_scores).tolist(), kept.tolist(), strict=True))
        require(case, "order", pairs == sorted(pairs), "not total", "score falling, then item rising")
        error = np.abs(kept_scores - exact[query, kept]) <= tolerance[query, kept]
        require(case, "scores", bool(error.all()), "not the products", "the products")
        allowed[kept] = False
        if length:
            worst = exact[query] - tolerance[query] <= kept_scores[-1]
            require(case, "items left out", bool(worst[allowed].all()), "better", "no better than the last")
