"""One batch through the stages: resolve → encode → retrieve → (rank → online → rerank → explain →) assemble.

Each stage is a plain function over a batch. The batch carries the loaded bundle from start to end, so a
swap can never mix versions, and a request answered alone gives the slate it gives inside any batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from recserve.engine.batch import Batch
from recserve.engine.explain.explained import Explained
from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.explain.stage import explain
from recserve.engine.features import ResolvedRequest, resolve
from recserve.engine.mixing import cold_start, mix, scores_of
from recserve.engine.optional_stages import Rows, rows_of_stages
from recserve.engine.ranked import Ranked, few_left, new_slate_ids
from recserve.engine.ranking import best_first
from recserve.engine.slate.paging import MAX_SHOWN, read_token, write_token
from recserve.engine.slate.plan import Plan
from recserve.engine.slate.quotas import Origins, in_shares
from recserve.engine.slate.rerank import Candidates
from recserve.engine.state.history import HistoryStore
from recserve.engine.time_budget import UNSKIPPED
from recserve.engine.types import (
    DEGRADED_EXPLAIN,
    DEGRADED_MODEL,
    DEGRADED_RANK,
    DEGRADED_RERANK,
    SOURCE_EXPLORE,
    SOURCE_MODEL,
    SOURCE_QUERY_TEXT,
)

Runner = Callable[[Batch, HistoryStore], list[Ranked]]


def run(batch: Batch, store: HistoryStore) -> list[Ranked]:
    """Answers a batch of checked requests, in their order."""
    find(batch, store)
    # What a text took says nothing about the slates of others.
    if batch.deadlines and not batch.by_text:
        batch.loaded.costs.record(UNSKIPPED, len(batch.requests), sum(batch.stage_ns.values()))
    if not _ends_with_retrieval(batch):
        rows = range(len(batch.requests))
        finish(batch, rows, rows_of_stages(batch, rows))
    answers = assemble(batch)
    batch.done("assemble")
    return answers


def _ends_with_retrieval(batch: Batch) -> bool:
    """Whether no row goes through an optional stage."""
    return (
        not batch.objectives
        and batch.moves is None
        and all(one.plan is None for one in batch.resolved)
        and all(request.explain == EXPLAIN_NONE for request in batch.requests)
    )


def find(batch: Batch, store: HistoryStore, *, on_page: bool = False) -> None:
    """Finds the candidates of all rows; ``on_page``: with spare ones for what the rows before them take."""
    _resolve(batch, store)
    batch.done("resolve")
    if batch.page_caps is not None:
        for resolved in batch.resolved:
            resolved.plan = batch.loaded.planner.capped(resolved.plan, batch.page_caps)
    if on_page:
        batch.n_spare = sum(resolved.k for resolved in batch.resolved[:-1])
    _encode(batch)
    batch.done("encode")
    retrieve(batch)
    if not on_page:
        mix(batch, range(len(batch.requests)))
    batch.done("retrieve")


def finish(batch: Batch, rows: Sequence[int], wanting: Rows) -> None:
    """Makes slates of the candidates of ``rows``; ``wanting``: which of them each optional stage is for."""
    planned = [i for i in rows if batch.resolved[i].plan is not None]
    if ranked := wanting[DEGRADED_RANK]:
        rank(batch, ranked)
        batch.done("rank", len(ranked))
    if batch.moves is not None:
        move(batch, rows)
        batch.done("online")
    if planned:
        rerank(batch, planned)
        batch.done("rerank", len(wanting[DEGRADED_RERANK]))
    if explained := wanting[DEGRADED_EXPLAIN]:
        explain(batch, explained)
        batch.done("explain", len(explained))


def _resolve(batch: Batch, store: HistoryStore) -> None:
    loaded = batch.loaded
    batch.resolved = resolve(batch.requests, loaded.bundle, store, loaded.planner, loaded.gone, batch.now)
    if not batch.degraded:
        answers = loaded.sources[batch.variant].answers
        searches = {i for i, request in enumerate(batch.requests) if request.query_text}
        searches = {i for i in searches if not _has_quota(batch.resolved[i].plan)}
        batch.model_rows = [
            i for i, resolved in enumerate(batch.resolved) if i not in searches and answers(resolved.history)
        ]
    if loaded.ranking is not None and not batch.degraded:
        asked = (
            (i, loaded.ranking.objective(request))
            for i, request in enumerate(batch.requests)
            # Of hundreds of candidates those that are clicked most are not those that were looked for.
            if i not in searches or request.predict or request.weights
        )
        batch.objectives = {i: objective for i, objective in asked if objective is not None}


def _has_quota(plan: Plan | None) -> bool:
    """Whether a text has a share of the candidates; else it stands in for the model."""
    return plan is not None and any(name == SOURCE_QUERY_TEXT for name, _ in plan.recipe.quotas)


def _encode(batch: Batch) -> None:
    rows, texts = batch.model_rows, batch.loaded.texts
    if rows:
        source = batch.loaded.sources[batch.variant]
        batch.queries = source.encode([batch.resolved[i].history for i in rows], batch.now)
    if texts is not None and not batch.degraded:
        asked = {i: request.query_text for i, request in enumerate(batch.requests) if request.query_text}
        if asked:
            batch.by_text = dict(zip(asked, texts.rankings(list(asked.values())), strict=True))


def retrieve(batch: Batch) -> None:
    """Finds the candidates of all rows, of which resolved requests and query embeddings are known."""
    retriever = batch.loaded.retriever
    rows = batch.model_rows
    answers: list[tuple[str, NDArray[np.float32], NDArray[np.int32]] | None] = [None] * len(batch.requests)
    wanted = batch.all_wanted(rows)
    for group in _by_boosts([batch.resolved[i] for i in rows]):
        resolved = [batch.resolved[rows[row]] for row in group]
        scores, items = retriever.by_query(
            batch.queries if len(group) == len(rows) else batch.queries[group],
            max(wanted[row] for row in group),
            [one.exclude for one in resolved],
            [one.allowed for one in resolved],
            resolved[0].boosts,
        )
        for row, own_scores, own_items in zip(group, scores, items, strict=True):
            n = wanted[row]
            if n < len(own_items):
                own_scores, own_items = own_scores[:n], own_items[:n]
            answers[rows[row]] = (SOURCE_MODEL, own_scores, own_items)
    batch.found = [answer or _without_model(batch, i) for i, answer in enumerate(answers)]


def _without_model(batch: Batch, i: int) -> tuple[str, NDArray[np.float32], NDArray[np.int32]]:
    resolved, (source, ranking) = batch.resolved[i], cold_start(batch, i)
    best = ranking.best(batch.n_wanted(i), resolved.exclude, resolved.allowed, resolved.boosts)
    return source, *best


def rank(batch: Batch, rows: Sequence[int]) -> None:
    """Puts the candidates of ``rows`` in the order of their objectives, all of them in one inference."""
    ranked = _by_objective(batch, rows, [batch.found[i][1:] for i in rows])
    for i, (scores, items) in zip(rows, ranked, strict=True):
        batch.found[i] = (batch.found[i][0], scores, items)


def _by_objective(
    batch: Batch, rows: Sequence[int], candidates: Sequence[tuple[NDArray[np.float32], NDArray[np.int32]]]
) -> list[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Returns the scores and items of each row's ``candidates`` by its objective, best first, no padding."""
    ranking = batch.loaded.ranking
    # Padding stands at the end.
    real = [
        (scores, items) if not len(items) or items[-1] >= 0 else (scores[items >= 0], items[items >= 0])
        for scores, items in candidates
    ]
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
    if all(one.plan is None for one in resolved):
        return [list(range(len(resolved)))] if resolved else []
    groups: dict[int, list[int]] = {}
    for row, one in enumerate(resolved):
        groups.setdefault(id(one.boosts), []).append(row)
    return list(groups.values())


def move(batch: Batch, rows: Sequence[int], *, may_explore: bool = True) -> None:
    """Puts the candidates of ``rows`` in an order that knows what was learned from events."""
    if batch.moves is None:
        return
    for i in rows:
        request, resolved, (source, scores, items) = batch.requests[i], batch.resolved[i], batch.found[i]
        choice = batch.moves.choose(
            request.user_id,
            request.context,
            resolved.k,
            scores,
            items,
            may_explore=may_explore and resolved.plan is None,
        )
        batch.found[i] = (source, choice.scores, choice.items)
        # Candidates that a ranker ordered have no places of sources any more.
        if i in batch.origins and np.array_equal(items, batch.origins[i].items):
            batch.found[i] = (source, *in_shares(batch.origins[i], choice.scores, choice.items))
        # What else chance brought has another probability, which the choice does not know.
        if i not in batch.origins or SOURCE_EXPLORE not in batch.origins[i].names:
            batch.choices[i] = choice


def rerank(batch: Batch, rows: Sequence[int]) -> None:
    """Makes slates of the candidates of those of ``rows`` that have a plan."""
    planned = [(i, plan) for i in rows if (plan := batch.resolved[i].plan) is not None]
    candidates = [_candidates(batch, i, plan) for i, plan in planned]
    for (i, _), slate in zip(planned, batch.loaded.reranker.rerank(candidates), strict=True):
        batch.found[i] = (batch.found[i][0], *slate)


def _candidates(batch: Batch, i: int, plan: Plan) -> Candidates:
    resolved, (_, scores, items) = batch.resolved[i], batch.found[i]
    pinned = np.array([item for _, item in plan.pins], np.int32)
    return Candidates(
        resolved.k,
        plan,
        scores,
        items,
        partial(_more, batch, i),
        scores_of(batch, i, pinned) if plan.pins else np.empty(0, np.float32),
        batch.query(i) is not None,
        resolved.history.items,
    )


def _more(
    batch: Batch, i: int, n: int, without: NDArray[np.int32], refused: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Returns the next ``n`` candidates of row ``i``; see :class:`Candidates`."""
    resolved, retriever, query = batch.resolved[i], batch.loaded.retriever, batch.query(i)
    mask = ~refused if resolved.allowed is None else ~refused & resolved.allowed.allow.mask
    allowed = retriever.filters.of_mask(mask)
    exclude = np.concatenate([resolved.exclude, without])
    if query is None:
        candidates = cold_start(batch, i)[1].best(n, exclude, allowed, resolved.boosts)
    else:
        scores, items = retriever.by_query(query[None], n, [exclude], [allowed], resolved.boosts)
        candidates = scores[0], items[0]
    return _by_objective(batch, [i], [candidates])[0] if i in batch.objectives else candidates


def assemble(batch: Batch, on_page: NDArray[np.int32] | None = None) -> list[Ranked]:
    """Returns the answers; ``on_page``: the items of all rows, where they stand on one page."""
    bundle, variant, stage_ns = batch.loaded.bundle, batch.variant, batch.stage_ns
    degraded = (DEGRADED_MODEL,) if batch.degraded else ()
    explained, choices = batch.explained, batch.choices
    answers = [
        Ranked(
            bundle,
            items if len(items) <= one.k else items[: one.k],
            scores if len(scores) <= one.k else scores[: one.k],
            variant,
            source,
            stage_ns,
            _warnings(one, items, explained.get(i)),
            degraded=degraded,
            slate_id=slate_id,
            explained=explained.get(i),
            choice=choices.get(i),
        )
        for i, (slate_id, one, (source, scores, items)) in enumerate(
            zip(new_slate_ids(len(batch.requests)), batch.resolved, batch.found, strict=True)
        )
    ]
    for i, request in enumerate(batch.requests):
        if request.page_token is not None:
            answers[i] = _with_token(batch, i, answers[i], on_page)
    for i, skipped in batch.skipped.items():
        answers[i] = replace(answers[i], degraded=(*answers[i].degraded, *skipped))
    for i, origins in batch.origins.items():
        answers[i] = replace(answers[i], origins=_of_slate(answers[i], origins))
    return answers


def _of_slate(answer: Ranked, origins: Origins) -> Origins:
    """Returns the origins of the slate's items in their order; of items that came later, the slate's own."""
    brought = dict(
        zip(origins.items.tolist(), zip(origins.names, origins.scores.tolist(), strict=True), strict=True)
    )
    slate = zip(answer.items.tolist(), answer.scores.tolist(), strict=True)
    found = [brought.get(item, (answer.source, score)) for item, score in slate]
    scores = np.array([score for _, score in found], np.float32)
    return Origins(answer.items, [name for name, _ in found], scores)


def _with_token(batch: Batch, i: int, answer: Ranked, on_page: NDArray[np.int32] | None) -> Ranked:
    """Adds the token of the next page, unless this one is the last."""
    request, resolved = batch.requests[i], batch.resolved[i]
    items = answer.items[answer.items >= 0]
    # What rules keep from this page (caps) may be on the next.
    if not len(items) or (len(items) < resolved.k and resolved.plan is None):
        return answer
    new = batch.loaded.bundle.catalogue.vocabulary.hashes(items if on_page is None else on_page)
    shown = np.concatenate([read_token(request).hashes, new])
    if len(shown) > MAX_SHOWN:
        end = f"the list ends here: {MAX_SHOWN} items is the most that pages go through"
        return replace(answer, warnings=(*answer.warnings, end))
    token = write_token(request, shown, batch.loaded.bundle.manifest.bundle_version)
    return replace(answer, next_page_token=token)


def _warnings(
    resolved: ResolvedRequest, items: NDArray[np.int32], explained: Explained | None
) -> tuple[str, ...]:
    """Adds that filter and rules left fewer items than were asked for, and what was not explained."""
    warnings = resolved.warnings if explained is None else (*resolved.warnings, *explained.warnings)
    if resolved.allowed is None and resolved.plan is None:
        return warnings
    return (*warnings, *few_left(resolved.k, int((items[: resolved.k] >= 0).sum())))
