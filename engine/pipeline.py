"""One batch from requests to ranked items: resolve → encode → retrieve → (rank → rerank →) assemble.

Each stage is a plain function over a batch. The batch carries the loaded bundle from start to end, so a
swap can never mix versions, and a request answered alone gives the slate it gives inside any batch.
"""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recserve.engine.batch import Batch
from recserve.engine.features import ResolvedRequest, resolve
from recserve.engine.ranked import Ranked, few_left, new_slate_ids
from recserve.engine.ranking import best_first
from recserve.engine.slate.plan import Plan
from recserve.engine.slate.rerank import Candidates
from recserve.engine.state.history import HistoryStore
from recserve.engine.types import DEGRADED_MODEL, SOURCE_MODEL, SOURCE_POPULARITY

T = TypeVar("T")


def run(batch: Batch, store: HistoryStore) -> list[Ranked]:
    """Answers a batch of checked requests, in their order."""
    _timed(batch, "resolve", lambda: _resolve(batch, store))
    _timed(batch, "encode", lambda: _encode(batch))
    _timed(batch, "retrieve", lambda: _retrieve(batch))
    if batch.objectives:
        _timed(batch, "rank", lambda: _rank(batch))
    if any(resolved.plan for resolved in batch.resolved):
        _timed(batch, "rerank", lambda: _rerank(batch))
    return _timed(batch, "assemble", lambda: _assemble(batch))


def _timed(batch: Batch, stage: str, work: Callable[[], T]) -> T:
    start = time.perf_counter_ns()
    result = work()
    batch.stage_ns[stage] = time.perf_counter_ns() - start
    return result


def _resolve(batch: Batch, store: HistoryStore) -> None:
    loaded = batch.loaded
    batch.resolved = resolve(batch.requests, loaded.bundle, store, loaded.planner)
    if not batch.degraded:
        answers = loaded.sources[batch.variant].answers
        batch.model_rows = [i for i, resolved in enumerate(batch.resolved) if answers(resolved.history)]
    if loaded.ranking is not None and not batch.degraded:
        asked = ((i, loaded.ranking.objective(request)) for i, request in enumerate(batch.requests))
        batch.objectives = {i: objective for i, objective in asked if objective is not None}


def _encode(batch: Batch) -> None:
    rows = batch.model_rows
    if rows:
        source = batch.loaded.sources[batch.variant]
        batch.queries = source.encode([batch.resolved[i].history for i in rows], batch.now)


def _retrieve(batch: Batch) -> None:
    retriever = batch.loaded.retriever
    rows = batch.model_rows
    answers: list[tuple[str, NDArray[np.float32], NDArray[np.int32]] | None] = [None] * len(batch.requests)
    for group in _by_boosts([batch.resolved[i] for i in rows]):
        resolved = [batch.resolved[rows[row]] for row in group]
        scores, items = retriever.by_query(
            batch.queries if len(group) == len(rows) else batch.queries[group],
            max(batch.n_wanted(rows[row]) for row in group),
            [one.exclude for one in resolved],
            [one.allowed for one in resolved],
            resolved[0].boosts,
        )
        for row, i in enumerate(rows[j] for j in group):
            n = batch.n_wanted(i)
            answers[i] = (SOURCE_MODEL, scores[row, :n], items[row, :n])
    batch.found = [
        answer
        or (SOURCE_POPULARITY, *retriever.popular(batch.n_wanted(i), one.exclude, one.allowed, one.boosts))
        for i, (answer, one) in enumerate(zip(answers, batch.resolved, strict=True))
    ]


def _rank(batch: Batch) -> None:
    """Puts the candidates of the rows that have an objective in its order, all of them in one inference."""
    rows = list(batch.objectives)
    ranked = _by_objective(batch, rows, [batch.found[i][1:] for i in rows])
    for i, (scores, items) in zip(rows, ranked, strict=True):
        batch.found[i] = (batch.found[i][0], scores, items)


def _by_objective(
    batch: Batch, rows: Sequence[int], candidates: Sequence[tuple[NDArray[np.float32], NDArray[np.int32]]]
) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Returns the scores and items of each row's ``candidates`` by its objective, best first, no padding."""
    ranking = batch.loaded.ranking
    real = [(scores[items >= 0], items[items >= 0]) for scores, items in candidates]
    some = [place for place, (_, items) in enumerate(real) if len(items)]
    if ranking is None or not some:
        return real
    predictions = ranking.predict(
        [batch.requests[rows[place]] for place in some],
        [batch.objectives[rows[place]] for place in some],
        [batch.resolved[rows[place]].history for place in some],
        [real[place][1] for place in some],
        batch.now,
    )
    for place, predicted in zip(some, predictions, strict=True):
        scores, items = real[place]
        real[place] = best_first(
            ranking.score(batch.objectives[rows[place]], predicted, items, scores), items
        )
    return real


def _by_boosts(resolved: Sequence[ResolvedRequest]) -> list[list[int]]:
    """Groups rows that one search can answer: it adds the same to the scores of all its queries."""
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(resolved):
        groups.setdefault(id(one.boosts), []).append(row)
    return list(groups.values())


def _rerank(batch: Batch) -> None:
    query_of = {i: row for row, i in enumerate(batch.model_rows)}
    rows, candidates = [], []
    for i, resolved in enumerate(batch.resolved):
        if resolved.plan is not None:
            query = batch.queries[query_of[i]] if i in query_of else None
            rows.append(i)
            candidates.append(_candidates(batch, i, resolved.plan, query))
    for i, slate in zip(rows, batch.loaded.reranker.rerank(candidates), strict=True):
        batch.found[i] = (batch.found[i][0], *slate)


def _candidates(batch: Batch, i: int, plan: Plan, query: NDArray[np.float32] | None) -> Candidates:
    """``query``: (d,) the query embedding of row ``i``, None for a cold start."""
    loaded, resolved, found = batch.loaded, batch.resolved[i], batch.found[i]
    retriever, boosts = loaded.retriever, resolved.boosts

    def more(
        n: int, without: NDArray[np.int32], refused: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        mask = ~refused if resolved.allowed is None else ~refused & resolved.allowed.allow.mask
        allowed = retriever.filters.of_mask(mask)
        exclude = np.concatenate([resolved.exclude, without])
        if query is None:
            candidates = retriever.popular(n, exclude, allowed, boosts)
        else:
            scores, items = retriever.by_query(query[None], n, [exclude], [allowed], boosts)
            candidates = scores[0], items[0]
        return _by_objective(batch, [i], [candidates])[0] if i in batch.objectives else candidates

    pinned = np.array([item for _, item in plan.pins], np.int32)
    pin_scores = retriever.popular_share(pinned)
    if query is not None:
        pin_scores = loaded.bundle.item_embeddings[pinned] @ query
    if boosts is not None:
        pin_scores = pin_scores + boosts[pinned]
    return Candidates(resolved.k, plan, found[1], found[2], more, pin_scores, query is not None)


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
            slate_id=slate_id,
        )
        for slate_id, one, (source, scores, items) in zip(
            new_slate_ids(len(batch.requests)), batch.resolved, batch.found, strict=True
        )
    ]


def _warnings(resolved: ResolvedRequest, items: NDArray[np.int32]) -> tuple[str, ...]:
    """Adds that filter and rules left fewer items than were asked for."""
    if resolved.allowed is None and resolved.plan is None:
        return resolved.warnings
    return (*resolved.warnings, *few_left(resolved.k, int((items[: resolved.k] >= 0).sum())))
