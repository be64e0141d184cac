"""How well a user is served whom the server hardly knows: nothing, one event, a few."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recserve.errors import InvalidRequest
from recserve.training.data import EvaluationSet
from recserve.training.evaluate import (
    Evaluation,
    Lister,
    Scorer,
    embedding_lister,
    evaluate,
    evaluate_lists,
    model_scorer,
    popularity_scorer,
    scorer_lister,
)
from recserve.training.loop import popularity_of
from recserve.training.models.base import EmbeddingModel, RankingModel
from recserve.training.models.tables import TableModel
from recserve.training.run import Run
from recserve.training.segments import SegmentTables, fit_segments

N_EVENTS = (1, 5)
METRIC = "NDCG@10"


def evaluate_cold_start(
    run: Run, on_progress: Callable[[int], None] = lambda n_users: None
) -> dict[str, Any]:
    """Returns NDCG@10 of the test users as if the server knew their newest 0, 1 and 5 events, and all.

    Without an event popularity answers, of everybody and by the users' segments; then the model, which knows
    the user by these events alone: a table folds them in. The items of the whole history stay out of all
    lists, so that the rows compare. Raises :class:`InvalidRequest` for a model that serves no new user.
    """
    split, model, n_items = run.split(), run.best_model(), run.dataset.n_items
    test, popularity = split.test, popularity_of(split, n_items)
    if isinstance(model, TableModel) and model.fold_in_settings is None:
        raise InvalidRequest(
            f"model {run.config.model}", found="without a fold-in", expected="one that serves new users"
        )

    def measured(events: int | None, source: str, found: Evaluation) -> dict[str, Any]:
        return {"events": events, "source": source, **asdict(found.metrics[METRIC])}

    rows = [
        measured(
            0, "popularity", evaluate(popularity_scorer(popularity), test, n_items, on_progress=on_progress)
        )
    ]
    tables = fit_segments(run.dataset, split.train)
    if tables is not None:
        scorer = segment_scorer(tables, run, popularity, test)
        by_segment = evaluate(scorer, test, n_items, on_progress=on_progress)
        rows.append(measured(0, "segment", by_segment))
    for n in (*N_EVENTS, None):
        told = test if n is None else replace(test, histories=test.histories.last(n))
        lister = _newcomer_lister(model, told, test, popularity)
        found = evaluate_lists(lister, test, n_items, on_progress=on_progress)
        rows.append(measured(n, run.config.model, found))
    return {
        "run": str(run.folder),
        "dataset": run.dataset.name,
        "protocol": f"{run.config.split}, full ranking, items of the whole history filtered",
        "n_users": len(test.user_index),
        "metric": METRIC,
        "rows": rows,
    }


def segment_scorer(
    tables: SegmentTables, run: Run, popularity: NDArray[np.int64], held_out: EvaluationSet
) -> Scorer:
    """Returns the mean of the popularity shares in each user's segments, as serving has them."""
    segments_of = tables.rows_of(run.dataset.users)[held_out.user_index]
    shares = tables.dense(popularity)

    def score(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = segments_of[rows]
        total = np.einsum("us,si->ui", found.astype(np.float32), shares)
        scores: NDArray[np.float32] = total / np.maximum(found.sum(axis=1, keepdims=True), 1)
        unknown = ~found.any(axis=1)
        scores[unknown] = popularity / max(1, popularity.sum())
        return scores

    return score


@dataclass(slots=True)
class _Folded:
    """A table as it serves whom training did not know."""

    model: TableModel
    item_embeddings: Tensor

    def query_rows(self, held_out: EvaluationSet, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.model.fold(held_out.histories.take(rows))


def _newcomer_lister(
    model: RankingModel, told: EvaluationSet, test: EvaluationSet, popularity: NDArray[np.int64]
) -> Lister:
    """``told``: what the model knows of the users of ``test``."""
    if isinstance(model, TableModel):
        return embedding_lister(_Folded(model, model.item_embeddings), told, popularity, seen=test.histories)
    if isinstance(model, EmbeddingModel):
        return embedding_lister(model, told, popularity, seen=test.histories)
    return scorer_lister(model_scorer(model, told, popularity), test, model.n_items)
