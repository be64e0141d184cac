"""One batch from requests to ranked items: resolve → encode → retrieve → rank → assemble.

Each stage is a plain function over a batch. The batch carries the loaded bundle from start to end, so a
swap can never mix versions, and a request answered alone gives the slate it gives inside any batch.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle import Bundle
from recserve.engine.features import ResolvedRequest, resolve
from recserve.engine.ranking import Objective, RankStage, best_first
from recserve.engine.retrieval import Retriever
from recserve.engine.sources import QuerySource
from recserve.engine.state.history import HistoryStore
from recserve.engine.types import DEGRADED_MODEL, SOURCE_MODEL, SOURCE_POPULARITY, Request, Slate, SlateItem

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LoadedBundle:
    """A bundle with everything that answering from it needs."""

    bundle: Bundle
    sources: dict[str, QuerySource]
    retriever: Retriever
    ranking: RankStage | None = None


@dataclass(slots=True)
class Batch:
    """Requests for one variant on their way through the stages; row i belongs to ``requests[i]``.

    ``degraded``: the model is left out, all rows are answered as cold starts are.
    """

    loaded: LoadedBundle
    variant: str
    requests: list[Request]
    now: int
    degraded: bool = False
    resolved: list[ResolvedRequest] = field(default_factory=list)
    queries: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    found: list[tuple[str, NDArray[np.float32], NDArray[np.int32]]] = field(default_factory=list)
    stage_ns: dict[str, int] = field(default_factory=dict)
    # By row: what it is ranked by; rows that keep the order of retrieval are not in it.
    objectives: dict[int, Objective] = field(default_factory=dict)

    def n_wanted(self, i: int) -> int:
        """How many items retrieval must bring for row ``i``."""
        k, ranking = self.resolved[i].k, self.loaded.ranking
        return k if ranking is None or i not in self.objectives else max(k, ranking.n_candidates)

    def model_rows(self) -> list[int]:
        """The rows that the model can answer; the others are cold starts."""
        if self.degraded:
            return []
        source = self.loaded.sources[self.variant]
        return [i for i, resolved in enumerate(self.resolved) if source.answers(resolved.history)]


@dataclass(frozen=True, slots=True)
class Ranked:
    """The answer to one request before its items get names: items (n,) int32 of ``bundle``, best first.

    Rows of one batch share ``stage_ns``; an item of −1 is padding.
    """

    bundle: Bundle
    items: NDArray[np.int32]
    scores: NDArray[np.float32]
    variant: str
    source: str
    stage_ns: dict[str, int]
    warnings: tuple[str, ...]
    arm: str = ""
    degraded: tuple[str, ...] = ()


def run(batch: Batch, store: HistoryStore) -> list[Ranked]:
    """Answers a batch of checked requests, in their order."""
    _timed(batch, "resolve", lambda: _resolve(batch, store))
    _timed(batch, "encode", lambda: _encode(batch))
    _timed(batch, "retrieve", lambda: _retrieve(batch))
    if batch.objectives:
        _timed(batch, "rank", lambda: _rank(batch))
    return _timed(batch, "assemble", lambda: _assemble(batch))


def _timed(batch: Batch, stage: str, work: Callable[[], T]) -> T:
    start = time.perf_counter_ns()
    result = work()
    batch.stage_ns[stage] = time.perf_counter_ns() - start
    return result


def _resolve(batch: Batch, store: HistoryStore) -> None:
    loaded = batch.loaded
    batch.resolved = resolve(batch.requests, loaded.bundle, store, loaded.retriever.filters)
    if loaded.ranking is not None and not batch.degraded:
        asked = ((i, loaded.ranking.objective(request)) for i, request in enumerate(batch.requests))
        batch.objectives = {i: objective for i, objective in asked if objective is not None}


def _encode(batch: Batch) -> None:
    rows = batch.model_rows()
    if rows:
        source = batch.loaded.sources[batch.variant]
        batch.queries = source.encode([batch.resolved[i].history for i in rows], batch.now)


def _retrieve(batch: Batch) -> None:
    retriever = batch.loaded.retriever
    rows = batch.model_rows()
    answers: list[tuple[str, NDArray[np.float32], NDArray[np.int32]] | None] = [None] * len(batch.requests)
    if rows:
        k = max(batch.n_wanted(i) for i in rows)
        resolved = [batch.resolved[i] for i in rows]
        scores, items = retriever.by_query(
            batch.queries, k, [one.exclude for one in resolved], [one.allowed for one in resolved]
        )
        for row, i in enumerate(rows):
            answers[i] = (SOURCE_MODEL, scores[row], items[row])
    batch.found = [
        answer or (SOURCE_POPULARITY, *retriever.popular(batch.n_wanted(i), one.exclude, one.allowed))
        for i, (answer, one) in enumerate(zip(answers, batch.resolved, strict=True))
    ]


def _rank(batch: Batch) -> None:
    """Puts the candidates of the rows that have an objective in its order, all of them in one inference."""
    ranking = batch.loaded.ranking
    if ranking is None:
        return
    candidates = {}
    for i in batch.objectives:
        source, scores, items = batch.found[i]
        real = np.flatnonzero(items[: batch.n_wanted(i)] >= 0)
        if len(real):
            candidates[i] = source, scores[real], items[real]
    if not candidates:
        return
    predictions = ranking.predict(
        [batch.requests[i] for i in candidates],
        [batch.objectives[i] for i in candidates],
        [batch.resolved[i].history for i in candidates],
        [items for _, _, items in candidates.values()],
        batch.now,
    )
    for (i, (source, scores, items)), predicted in zip(candidates.items(), predictions, strict=True):
        ranked = ranking.score(batch.objectives[i], predicted, items, scores)
        batch.found[i] = (source, *best_first(ranked, items))


def _assemble(batch: Batch) -> list[Ranked]:
    bundle, variant, stage_ns = batch.loaded.bundle, batch.variant, batch.stage_ns
    degraded = (DEGRADED_MODEL,) if batch.degraded else ()
    return [
        Ranked(
            bundle,
            items[: one.k],
            scores[: one.k],
            variant,
            source,
            stage_ns,
            _warnings(one, items),
            degraded=degraded,
        )
        for one, (source, scores, items) in zip(batch.resolved, batch.found, strict=True)
    ]


def _warnings(resolved: ResolvedRequest, items: NDArray[np.int32]) -> tuple[str, ...]:
    """Adds that the filter left fewer items than were asked for."""
    if resolved.allowed is None:
        return resolved.warnings
    return (*resolved.warnings, *few_left(resolved.k, int((items[: resolved.k] >= 0).sum())))


def few_left(k: int, n_left: int) -> tuple[str, ...]:
    """Returns the warning that a filter left ``n_left`` items where ``k`` were asked for; none if enough."""
    return () if n_left >= k else (f"the filter and the exclusions left {n_left} of {k} items",)


def slates(ranked: Sequence[Ranked]) -> list[Slate]:
    """Gives the items of each answer their names."""
    return [
        Slate(
            items=slate_items(answer.bundle, answer.scores, answer.items),
            bundle_version=answer.bundle.manifest.bundle_version,
            variant=answer.variant,
            source=answer.source,
            stage_ns=answer.stage_ns,
            warnings=answer.warnings,
            arm=answer.arm,
            degraded=answer.degraded,
        )
        for answer in ranked
    ]


def slate_items(
    bundle: Bundle, scores: NDArray[np.float32], items: NDArray[np.int32]
) -> tuple[SlateItem, ...]:
    """Turns one row of search results into slate items, leaving out the padding (−1)."""
    if len(items) and items[-1] < 0:
        valid = items >= 0
        scores, items = scores[valid], items[valid]
    ids = bundle.catalogue.vocabulary.ids(items)
    return tuple(map(SlateItem, range(1, len(ids) + 1), ids, scores.tolist()))
