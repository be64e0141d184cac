"""Candidates of several sources for one row of a batch."""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.engine.batch import Batch
from recserve.engine.fixed_ranking import FixedRanking
from recserve.engine.slate.quotas import Source, merge
from recserve.engine.text_search import TextRanking
from recserve.engine.types import (
    SOURCE_EXPLORE,
    SOURCE_MODEL,
    SOURCE_NEW,
    SOURCE_POPULARITY,
    SOURCE_QUERY_TEXT,
    SOURCE_SEGMENT,
    SOURCE_SIMILAR,
    Request,
)

Found = tuple[NDArray[np.float32], NDArray[np.int32]]
NONE: Found = (np.empty(0, np.float32), np.empty(0, np.int32))
# The newest items of a history that others should be like.
N_LIKED = 3


def quotas_of(batch: Batch, i: int) -> dict[str, float]:
    """Returns how several sources share the candidates of row ``i``; empty for one source."""
    plan = batch.resolved[i].plan
    return {} if plan is None else dict(plan.recipe.quotas)


def mix(batch: Batch, rows: Sequence[int]) -> None:
    """Merges what each of ``rows`` has found with what other sources bring, where it has quotas.

    The candidates of a row get one scale of scores: the model's, or that of its cold start.
    """
    for i in rows:
        if quotas_of(batch, i):
            origins = batch.origins[i] = merge(bring(batch, i), n_merged(batch, i))
            batch.found[i] = (batch.found[i][0], scores_of(batch, i, origins.items), origins.items)


def n_merged(batch: Batch, i: int) -> int:
    """How many candidates the sources of row ``i`` have together, with none to spare."""
    return batch.n_wanted(i) - batch.n_spare


def bring(batch: Batch, i: int, n_spare: int = 0) -> list[Source]:
    """Returns what the sources of row ``i`` have for it, each ``n_spare`` more than are merged."""
    base, scores, items = batch.found[i]
    quotas, n, real = quotas_of(batch, i), n_merged(batch, i), items >= 0
    # A cold start stands in for the model.
    own = quotas.pop(SOURCE_MODEL, 0.0)
    own += quotas.pop(base, 0.0)
    total = own + sum(quotas.values())
    sources = [Source(base, own, scores[real], items[real])]
    for name, quota in quotas.items():
        found = _bring(batch, i, name, n + n_spare, math.ceil(n * quota / total))
        sources.append(Source(name, quota, *found))
    return sources


def cold_start(batch: Batch, i: int) -> tuple[str, FixedRanking | TextRanking]:
    """Returns what answers row ``i`` without a model: its text, its segments, or else everybody."""
    if i in batch.by_text:
        return SOURCE_QUERY_TEXT, batch.by_text[i]
    segments = batch.loaded.segments
    if segments is not None and not batch.degraded:
        ranking = segments.ranking(batch.requests[i].context, batch.now)
        if ranking is not None:
            return SOURCE_SEGMENT, ranking
    return SOURCE_POPULARITY, batch.loaded.retriever.popularity


def _bring(batch: Batch, i: int, name: str, n: int, n_drawn: int) -> Found:
    """Returns ``n`` candidates of the source ``name``, best first; of chance ``n_drawn``."""
    loaded, resolved = batch.loaded, batch.resolved[i]
    exclude, allowed, boosts = resolved.exclude, resolved.allowed, resolved.boosts
    if name == SOURCE_SIMILAR:
        liked = resolved.history.items[-N_LIKED:]
        if not len(liked):
            return NONE
        scores, items = loaded.retriever.similar(liked, n, exclude, allowed, boosts)
        return scores[items >= 0], items[items >= 0]
    if name == SOURCE_EXPLORE:
        mask = (
            np.ones(loaded.bundle.manifest.n_items, np.bool_)
            if allowed is None
            else allowed.allow.mask.copy()
        )
        mask[exclude] = False
        return _draw(np.flatnonzero(mask).astype(np.int32), n_drawn, _random(batch.requests[i]))
    rankings: dict[str, FixedRanking | TextRanking | None] = {
        SOURCE_POPULARITY: loaded.retriever.popularity,
        SOURCE_NEW: loaded.newest,
        SOURCE_QUERY_TEXT: batch.by_text.get(i),
    }
    if name == SOURCE_SEGMENT and loaded.segments is not None:
        rankings[name] = loaded.segments.ranking(batch.requests[i].context, batch.now)
    ranking = rankings.get(name)
    return NONE if ranking is None else ranking.best(n, exclude, allowed, boosts)


def _draw(pool: NDArray[np.int32], n: int, rng: np.random.Generator) -> Found:
    """Returns ``n`` of ``pool`` at random; the score of each is the probability that it is drawn."""
    n = min(n, len(pool))
    scores = np.full(n, n / max(1, len(pool)), np.float32)
    return scores, pool[rng.choice(len(pool), n, replace=False)] if n else NONE[1]


def _random(request: Request) -> np.random.Generator:
    """Returns the generator of a request: with a seed the same each time, another for each user."""
    if request.seed is None:
        return np.random.default_rng()
    user = hashlib.blake2b(request.user_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.random.default_rng([request.seed, int.from_bytes(user, "little")])


def scores_of(batch: Batch, i: int, items: NDArray[np.int32]) -> NDArray[np.float32]:
    """Returns the scores that row ``i`` gives to ``items`` (n,): the model's or those of its cold start."""
    query, boosts = batch.query(i), batch.resolved[i].boosts
    scores: NDArray[np.float32]
    if query is None:
        scores = cold_start(batch, i)[1].scores_of(items)
    else:
        scores = batch.loaded.bundle.item_embeddings[items] @ query
    return scores if boosts is None else scores + boosts[items]
