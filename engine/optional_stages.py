"""Which rows of a batch go through the stages that a slate can do without: those that ask for it, in time."""

from collections.abc import Sequence
from dataclasses import replace

from recserve.engine.batch import Batch
from recserve.engine.explain.explanation import EXPLAIN_NONE
from recserve.engine.time_budget import stages_to_skip
from recserve.engine.types import DEGRADED_EXPLAIN, DEGRADED_RANK, DEGRADED_RERANK

Rows = dict[str, list[int]]


def rows_of_stages(batch: Batch, rows: Sequence[int]) -> Rows:
    """Returns which of ``rows`` each optional stage is for.

    What a row's deadline leaves no time for is taken from it and noted in ``batch.skipped``: of its rules
    diversity and novelty, while pins, caps and filters stay.
    """
    wanting = {
        DEGRADED_RANK: [i for i in rows if i in batch.objectives] if batch.objectives else [],
        DEGRADED_RERANK: [i for i in rows if _is_diverse(batch, i)],
        DEGRADED_EXPLAIN: [i for i in rows if batch.requests[i].explain != EXPLAIN_NONE],
    }
    if not batch.deadlines or not any(wanting.values()):
        return wanting
    expected = {stage: batch.loaded.costs.expected(stage, len(of)) for stage, of in wanting.items()}
    now = batch.clock()
    for i in {i for of in wanting.values() for i in of}:
        of_row = {stage: ns for stage, ns in expected.items() if i in wanting[stage]}
        skipped = stages_to_skip((batch.deadlines[i] - now) * 1e9, of_row)
        if skipped:
            _skip(batch, i, skipped)
    return {stage: [i for i in of if stage not in batch.skipped.get(i, ())] for stage, of in wanting.items()}


def _is_diverse(batch: Batch, i: int) -> bool:
    plan = batch.resolved[i].plan
    return plan is not None and plan.recipe.is_diverse


def _skip(batch: Batch, i: int, stages: tuple[str, ...]) -> None:
    batch.skipped[i] = stages
    resolved = batch.resolved[i]
    if DEGRADED_RANK in stages:
        del batch.objectives[i]
    if DEGRADED_RERANK in stages and resolved.plan is not None:
        batch.resolved[i] = replace(resolved, plan=resolved.plan.plain())
