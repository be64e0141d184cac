"""The rows of one page: an item that one row has, no later one gets, and caps that hold for all together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recserve.engine.batch import Batch
from recserve.engine.mixing import bring, mix, n_merged, quotas_of, scores_of
from recserve.engine.optional_stages import Rows, rows_of_stages
from recserve.engine.pipeline import assemble, find, finish, rank
from recserve.engine.ranked import Ranked
from recserve.engine.slate.plan import NO_ITEMS
from recserve.engine.slate.quotas import Source, merge
from recserve.engine.slate.rerank import left_beside
from recserve.engine.state.history import HistoryStore
from recserve.engine.types import DEGRADED_RANK, SOURCE_EXPLORE, Request
from recserve.errors import InvalidRequest

# By attribute, how many items of one value all rows have together.
PageCaps = Mapping[str, int] | None


def one_variant(requests: Sequence[Request], default: str) -> str:
    """Returns the variant of all rows; raises :class:`InvalidRequest` where they name several."""
    variants = {request.variant or default for request in requests}
    if len(variants) > 1:
        found = ", ".join(sorted(variants))
        raise InvalidRequest("variant of the rows", found=found, expected="one for all")
    return variants.pop()


def run_page(batch: Batch, store: HistoryStore, caps: PageCaps) -> list[Ranked]:
    """Answers a batch whose rows stand on one page.

    Each row is what it would be alone, were the items of the rows before it excluded, and were the groups
    full that they filled.
    """
    batch.page_caps = batch.loaded.planner.page_caps(caps)
    find(batch, store, on_page=True)
    rows = range(len(batch.requests))
    wanting = rows_of_stages(batch, rows)
    ahead = _rank_ahead(batch, wanting)
    on_page = NO_ITEMS
    for i in rows:
        _exclude(batch, i, on_page)
        _leave_out(batch, i, on_page, ahead.get(i))
        if i not in ahead:
            mix(batch, [i])
        batch.done("retrieve")
        finish(batch, [i], {stage: [i] if i in of else [] for stage, of in wanting.items()})
        items = batch.found[i][2][: batch.resolved[i].k]
        on_page = np.concatenate([on_page, items[items >= 0]])
    answers = assemble(batch, on_page)
    batch.done("assemble")
    return answers


def _rank_ahead(batch: Batch, wanting: Rows) -> dict[int, list[Source]]:
    """Ranks the candidates of all rows in one inference, and returns what their sources brought, by row.

    Rows that explore wait: what chance draws depends on what the rows before them left.
    """
    rows = [i for i in wanting[DEGRADED_RANK] if SOURCE_EXPLORE not in quotas_of(batch, i)]
    wanting[DEGRADED_RANK] = [i for i in wanting[DEGRADED_RANK] if i not in rows]
    brought = {i: bring(batch, i, batch.n_spare) for i in rows}
    batch.done("retrieve")
    for i in rows:
        if len(brought[i]) > 1:
            every = np.unique(np.concatenate([source.items for source in brought[i]]))
            batch.found[i] = (batch.found[i][0], scores_of(batch, i, every), every)
    if rows:
        rank(batch, rows)
        batch.done("rank", len(rows))
    return brought


def _exclude(batch: Batch, i: int, shown: NDArray[np.int32]) -> None:
    """Takes the items ``shown`` (m,) from what row ``i`` may have."""
    resolved, page = batch.resolved[i], batch.page_caps
    plan = resolved.plan
    if plan is not None and plan.pins:
        kept_out = np.concatenate([resolved.kept_out, shown])
        plan = batch.loaded.planner.plan(batch.requests[i], resolved.allowed, kept_out)
    if page is not None:
        plan = batch.loaded.planner.capped(plan, page._replace(limits=left_beside(page, shown)))
    warnings = resolved.warnings if plan is None else tuple(dict.fromkeys(resolved.warnings + plan.warnings))
    exclude = np.concatenate([resolved.exclude, shown])
    batch.resolved[i] = replace(resolved, exclude=exclude, plan=plan, warnings=warnings)


def _leave_out(batch: Batch, i: int, shown: NDArray[np.int32], brought: Sequence[Source] | None) -> None:
    """Takes the items ``shown`` (m,) and the spare ones from the candidates of row ``i``.

    ``brought``: where they come from, if they are ranked by now.
    """
    source, scores, items = batch.found[i]
    n = n_merged(batch, i)
    if brought is None or not quotas_of(batch, i):
        order = items if brought is None else brought[0].items
        kept = order[~np.isin(order, shown)][:n]
    else:
        left = [
            one._replace(scores=one.scores[is_left], items=one.items[is_left])
            for one in brought
            for is_left in [~np.isin(one.items, shown)]
        ]
        origins = batch.origins[i] = merge(left, n)
        kept = origins.items
    is_kept = np.isin(items, kept)
    batch.found[i] = (source, scores[is_kept], items[is_kept])
