"""Why an item is not in a slate: the request goes through the stages again, and is watched on its way.

Nothing here knows how a stage decides. A rule is to blame where the same stage without it lets the item in.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recserve.engine import pipeline
from recserve.engine.batch import Batch
from recserve.engine.bundle.rules import SCORE
from recserve.engine.explain.cause import Cause, WhyNot
from recserve.engine.slate.plan import Plan
from recserve.engine.state.history import HistoryStore

# How far down the order of retrieval an item is looked for.
MAX_RANK = 10_000
Numbers = Mapping[str, float]


def why_not(batch: Batch, store: HistoryStore, item_id: str) -> WhyNot:
    """Returns what keeps ``item_id`` out of the slate of the one checked request of ``batch``."""
    bundle = batch.loaded.bundle
    item = bundle.catalogue.vocabulary.index_of(item_id)
    if item < 0:
        return WhyNot(item_id, Cause.UNKNOWN, bundle.manifest.bundle_version)
    pipeline.find(batch, store)
    if batch.objectives:
        pipeline.rank(batch, [0])
    # What chance would show is no reason.
    pipeline.move(batch, [0], may_explore=False)
    cause, detail, numbers = _Case(batch, item_id, item).cause()
    return WhyNot(item_id, cause, bundle.manifest.bundle_version, detail, numbers)


class _Case:
    """One item, and the candidates of one request in the order of their scores."""

    def __init__(self, batch: Batch, item_id: str, item: int) -> None:
        self._batch, self._item_id, self._item = batch, item_id, item
        self._resolved = batch.resolved[0]
        self._candidates = batch.found[0]

    def cause(self) -> tuple[Cause, str, Numbers]:
        """Returns the cause, the rule by name and the numbers of the stage."""
        plan = self._resolved.plan
        scores, items = self._slate(plan)
        if rank := _rank(items, self._item):
            return Cause.IN_SLATE, "", {"rank": rank, "score": float(scores[rank - 1])}
        if self._item in self._resolved.exclude:
            return self._excluded(), "", {}
        if filter_name := self._batch.loaded.planner.refused_by(self._batch.requests[0], self._item):
            return Cause.FILTER, filter_name, {}
        rank = _rank(self._candidates[2], self._item)
        if not rank:
            return Cause.RETRIEVAL, "", self._retrieval()
        scores = self._candidates[1]
        last = min(self._resolved.k, len(scores))
        numbers = {"rank": rank, "score": float(scores[rank - 1]), "last_score": float(scores[last - 1])}
        if plan is None:
            return Cause.RANK, "", numbers
        cause = self._rule(plan)
        if cause is Cause.CAP:
            name, limit = self._cap(items)
            return cause, name, {**numbers, "limit": limit}
        recipe = plan.recipe
        weights = {
            Cause.MIN_SCORE: recipe.min_score,
            Cause.DIVERSITY: recipe.diversity,
            Cause.NOVELTY: recipe.novelty or recipe.serendipity,
        }
        weight = weights.get(cause)
        return cause, "", numbers if weight is None else {**numbers, cause.value: weight}

    def _slate(self, plan: Plan | None) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Returns scores and items of the slate that ``plan`` makes of the candidates."""
        self._batch.resolved[0] = replace(self._resolved, plan=plan)
        self._batch.found[0] = self._candidates
        if plan is not None:
            pipeline.rerank(self._batch, [0])
        _, scores, items = self._batch.found[0]
        return scores[: self._resolved.k], items[: self._resolved.k]

    def _excluded(self) -> Cause:
        if self._item in self._batch.loaded.gone:
            return Cause.GONE
        if self._item in self._resolved.too_often:
            return Cause.FREQUENCY
        request = self._batch.requests[0]
        by_name = request.include_seen or self._item_id in request.exclude
        return Cause.SEEN if not by_name and self._item in self._resolved.history.items else Cause.EXCLUDED

    def _retrieval(self) -> Numbers:
        n_candidates = int((self._candidates[2] >= 0).sum())
        self._batch.resolved[0] = replace(self._resolved, k=MAX_RANK)
        pipeline.retrieve(self._batch)
        _, scores, items = self._batch.found[0]
        rank = _rank(items, self._item)
        found = {"rank": rank, "score": float(scores[rank - 1])} if rank else {"rank_above": MAX_RANK}
        return {**found, "n_candidates": n_candidates}

    def _rule(self, plan: Plan) -> Cause:
        recipe = plan.recipe
        without = {
            Cause.MIN_SCORE: replace(plan, recipe=replace(recipe, min_score=None)),
            Cause.CAP: replace(plan, recipe=replace(recipe, caps=None)),
            Cause.DIVERSITY: replace(plan, recipe=replace(recipe, method=SCORE, diversity=0.0)),
            Cause.NOVELTY: replace(plan, recipe=replace(recipe, novelty=0.0, serendipity=0.0)),
            Cause.PINS: replace(plan, pins=()),
        }
        for cause, other in without.items():
            if self._item in self._slate(other)[1]:
                return cause
        bare = replace(recipe.plain(), caps=None, min_score=None)
        return Cause.RULES if self._item in self._slate(Plan(bare, (), ()))[1] else Cause.RANK

    def _cap(self, slate: NDArray[np.int32]) -> tuple[str, int]:
        """Returns the cap that ``slate`` has filled with the item's own value, and its limit."""
        loaded = self._batch.loaded
        mine, *others = loaded.bundle.catalogue.attributes([self._item, *slate.tolist()])
        for attribute, limit in loaded.planner.caps(self._batch.requests[0]).items():
            for value in _values(mine.get(attribute)):
                if sum(value in _values(other.get(attribute)) for other in others) >= limit:
                    return f"{attribute} = {value!r}", limit
        return "", 0


def _rank(items: NDArray[np.int32], item: int) -> int:
    """Returns the 1-based place of ``item``, 0 where it is not there."""
    places = np.flatnonzero(items == item)
    return int(places[0]) + 1 if len(places) else 0


def _values(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]
