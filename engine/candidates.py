"""Scores candidates that a caller brings, for those who retrieve elsewhere or have a decision to take."""

import time
from collections.abc import Sequence

import numpy as np

from recserve.engine.batch import LoadedBundle
from recserve.engine.features import resolve
from recserve.engine.ranking import RETRIEVAL, Objective, RankStage
from recserve.engine.state.history import HistoryStore
from recserve.engine.types import RankedItem, Ranking, Request
from recserve.errors import InvalidRequest


def rank_candidates(
    loaded: LoadedBundle,
    requests: Sequence[Request],
    item_ids: Sequence[Sequence[str]],
    store: HistoryStore,
    now: int,
) -> list[Ranking]:
    """Ranks ``item_ids`` of each checked request in one inference; ``now``: seconds since the epoch.

    Raises :class:`InvalidRequest` where the bundle has no ranker.
    """
    ranking, start = _ranking(loaded), time.perf_counter_ns()
    objectives = [_objective(ranking, request) for request in requests]
    resolved = resolve(requests, loaded.bundle, store, loaded.planner)
    vocabulary = loaded.bundle.catalogue.vocabulary
    # A candidate that is named twice is one candidate.
    distinct = [list(dict.fromkeys(ids)) for ids in item_ids]
    indices = [vocabulary.indices(ids) for ids in distinct]
    known = [found[found >= 0] for found in indices]
    rows = [i for i, items in enumerate(known) if len(items)]
    middle = time.perf_counter_ns()
    predictions = (
        ranking.predict(
            [requests[i] for i in rows],
            [objectives[i] for i in rows],
            [resolved[i].history for i in rows],
            [known[i] for i in rows],
            now,
        )
        if rows
        else []
    )
    of_row = dict(zip(rows, predictions, strict=True))
    stage_ns = {"resolve": middle - start, "rank": time.perf_counter_ns() - middle}
    rankings = []
    for i, (ids, found, items) in enumerate(zip(distinct, indices, known, strict=True)):
        ranked: tuple[RankedItem, ...] = ()
        if i in of_row:
            names = [id_ for id_, index in zip(ids, found.tolist(), strict=True) if index >= 0]
            scores = ranking.score(objectives[i], of_row[i], items, np.zeros(len(items), np.float32))
            ranked = tuple(
                RankedItem(
                    names[j],
                    float(scores[j]),
                    dict(zip(ranking.ranker.targets, of_row[i][j].tolist(), strict=True)),
                )
                for j in np.lexsort((items, -scores)).tolist()
            )
        rankings.append(
            Ranking(
                items=ranked,
                unknown_item_ids=tuple(
                    id_ for id_, index in zip(ids, found.tolist(), strict=True) if index < 0
                ),
                bundle_version=loaded.bundle.manifest.bundle_version,
                stage_ns=stage_ns,
                warnings=resolved[i].warnings,
            )
        )
    return rankings


def _ranking(loaded: LoadedBundle) -> RankStage:
    if loaded.ranking is None:
        raise InvalidRequest(
            f"model {loaded.bundle.manifest.model}",
            found="without a ranker",
            expected="one with a ranker where candidates are to be ranked",
            cure="Export it with --ranker.",
        )
    return loaded.ranking


def _objective(ranking: RankStage, request: Request) -> Objective:
    objective = ranking.objective(request)
    if objective is None or RETRIEVAL in objective.weights:
        raise InvalidRequest(
            "weights" if request.weights else "predict",
            found=RETRIEVAL,
            expected=f"of {', '.join(name for name in ranking.offered() if name != RETRIEVAL)}",
            cure="The caller's own candidates have no score of retrieval.",
        )
    return objective
