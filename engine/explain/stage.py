"""The stage ``explain``: what the user's own history contributes to each item of a finished slate.

Two ways. *Fast* looks at vectors: of a model whose score is a sum over the history (a fold-in) it gives the
share of each item, of others how alike the items are. *Exact* asks the whole model again, without each item
in turn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recserve.engine.batch import Batch
from recserve.engine.bundle.histories import History
from recserve.engine.explain.explained import Explained
from recserve.engine.explain.explanation import (
    EXPLAIN_EXACT,
    LEAVE_ONE_OUT,
    SHARE,
    SIMILARITY,
    ReasonCode,
)
from recserve.engine.similar import has_directions
from recserve.engine.types import SOURCE_POPULARITY, SOURCE_SEGMENT
from recserve.kernels import nearest_of

# Of the history, the newest: what an exact explanation costs is so many runs of the model.
MAX_ITEMS = 50
# How far back they are looked for, where items repeat.
MAX_EVENTS = 200
# The fast way names the strongest only: a reply of 20 items and 50 numbers each would cost more than it says.
N_FAST = 3

Items = NDArray[np.int32]
Scores = NDArray[np.float32]
# The method, and for each item of the slate (n, m) items of the history and their values, largest first.
Contributions = tuple[str, Items, Scores]


def explain(batch: Batch, rows: Sequence[int]) -> None:
    """Explains the finished slates of ``rows``."""
    for i in rows:
        batch.explained[i] = _explain(batch, i)


def _explain(batch: Batch, i: int) -> Explained:
    source, scores, items = batch.found[i]
    scores, items = scores[: batch.resolved[i].k], items[: batch.resolved[i].k]
    if len(items) and items[-1] < 0:
        scores, items = scores[items >= 0], items[items >= 0]
    # A number per item is popularity, whoever asks.
    knows_users = has_directions(batch.loaded.bundle)
    marks = _marks(batch, i, items, popular=source in (SOURCE_SEGMENT, SOURCE_POPULARITY) or not knows_users)
    base = scores.astype(np.float64)
    is_model = knows_users and i in batch.model_rows
    exact = batch.requests[i].explain == EXPLAIN_EXACT
    has_history = len(batch.resolved[i].history.items) > 0
    if not len(items) or not has_history or not (is_model or (exact and i in batch.objectives)):
        return Explained(base, marks)
    found = (_leave_one_out if exact else _fast)(batch, i, items)
    if found is None:
        warning = "this model has no score for a history that it has not seen: explanations have no numbers"
        return Explained(base, marks, warnings=(warning,))
    method, history, values = found
    if method != SIMILARITY:
        base -= values.sum(axis=1, dtype=np.float64)
    return Explained(base, marks, method, history, values)


def _fast(batch: Batch, i: int, items: Items) -> Contributions:
    """Returns what items of the history add to the scores of ``items``; else how alike the nearest are.

    What a ranker makes of the score is not the sum that the source knows.
    """
    loaded, history = batch.loaded, batch.resolved[i].history
    if i not in batch.objectives:
        found = loaded.sources[batch.variant].shares(history, items, N_FAST)
        if found is not None:
            return SHARE, *found
    newest = _newest(batch, i)
    places, cosines = nearest_of(loaded.bundle.item_embeddings, items, newest, N_FAST)
    return SIMILARITY, newest[places], cosines


def _newest(batch: Batch, i: int) -> Items:
    """Returns the items of the history that the model sees, each once, the newest first."""
    items, max_history = batch.resolved[i].history.items, batch.loaded.bundle.manifest.inputs.max_history
    seen = dict.fromkeys(items[-min(max_history, MAX_EVENTS) :][::-1].tolist())
    return np.array(list(seen)[:MAX_ITEMS], np.int32)


def _marks(batch: Batch, i: int, items: Items, *, popular: bool) -> dict[ReasonCode, NDArray[np.bool_]]:
    """Returns what is true of the items besides; codes that no item can have are left out."""
    plan, popularity = batch.resolved[i].plan, batch.loaded.bundle.popularity
    marks: dict[ReasonCode, NDArray[np.bool_]] = {}
    if plan is not None and plan.pins:
        marks[ReasonCode.PINNED] = np.isin(items, [item for _, item in plan.pins])
    if plan is not None and plan.recipe.boosts is not None:
        marks[ReasonCode.BOOSTED] = plan.recipe.boosts[items] > 0
    if popular:
        marks[ReasonCode.POPULAR] = np.ones(len(items), np.bool_)
    if i in batch.by_text and i not in batch.model_rows:
        marks[ReasonCode.MATCHES_TEXT] = np.ones(len(items), np.bool_)
    marks[ReasonCode.NEW] = popularity[items] == 0
    return marks


def _leave_one_out(batch: Batch, i: int, items: Items) -> Contributions | None:
    """Returns what the score of each of ``items`` loses without each item of the history, the largest first.

    None where the model cannot tell. All histories go through the model in one run.
    """
    newest, known = _newest(batch, i), batch.resolved[i].history
    # Neither the row of a table nor what is remembered of the user stands for a part of a history.
    whole = History(known.items, known.timestamps, values=known.values)
    histories = [whole, *(whole.where(whole.items != item) for item in newest.tolist())]
    scores = _scores(batch, i, histories, items)
    if scores is None:
        return None
    lost = (scores[:1] - scores[1:]).T
    order = np.argsort(-lost, axis=1, kind="stable")
    return LEAVE_ONE_OUT, newest[order], np.take_along_axis(lost, order, axis=1).astype(np.float32)


def _scores(batch: Batch, i: int, histories: list[History], items: Items) -> Scores | None:
    """Returns (n_histories, n_items): the scores of request ``i``, had the user one of these histories.

    The retrieval score of nothing is 0. Boosts are left out: they are the same for all.
    """
    loaded, source = batch.loaded, batch.loaded.sources[batch.variant]
    retrieval = np.zeros((len(histories), len(items)), np.float32)
    rows = [row for row, history in enumerate(histories) if source.answers(history)]
    if rows:
        queries = source.encode([histories[row] for row in rows], batch.now)
        retrieval[rows] = queries @ loaded.bundle.item_embeddings[items].T
    ranking, objective, n = loaded.ranking, batch.objectives.get(i), len(histories)
    if ranking is None or objective is None:
        return retrieval if rows else None
    predictions = ranking.predict([batch.requests[i]] * n, [objective] * n, histories, [items] * n, batch.now)
    scores = [ranking.score(objective, predictions[row], items, retrieval[row]) for row in range(n)]
    return np.stack(scores)
