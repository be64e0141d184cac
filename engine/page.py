"""The rows of one page: an item that one row has, no later one gets, and caps that hold for all together."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recserve.engine.batch import Batch
from recserve.engine.optional_stages import Rows, rows_of_stages
from recserve.engine.pipeline import assemble, find, finish, mix_rows, rank, timed
from recserve.engine.ranked import Ranked
from recserve.engine.slate.plan import NO_ITEMS
from recserve.engine.slate.rerank import left_beside
from recserve.engine.state.history import HistoryStore
from recserve.engine.types import DEGRADED_RANK, Request
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
        _leave_out(batch, i, on_page, ahead.get(i))
        mix_rows(batch, [i])
        finish(batch, [i], {stage: [i] if i in of else [] for stage, of in wanting.items()})
        items = batch.found[i][2][: batch.resolved[i].k]
        on_page = np.concatenate([on_page, items[items >= 0]])
    return timed(batch, "assemble", lambda: assemble(batch, on_page))


def _rank_ahead(batch: Batch, wanting: Rows) -> dict[int, NDArray[np.int32]]:
    """Ranks the candidates of all rows in one inference, and returns them in the order of retrieval, by row.

    Rows with quotas wait: what other sources bring depends on the rows before.
    """
    rows = [i for i in wanting[DEGRADED_RANK] if not _has_quotas(batch, i)]
    if not rows:
        return {}
    wanting[DEGRADED_RANK] = [i for i in wanting[DEGRADED_RANK] if i not in rows]
    found = {i: batch.found[i][2] for i in rows}
    timed(batch, "rank", lambda: rank(batch, rows), len(rows))
    return found


def _has_quotas(batch: Batch, i: int) -> bool:
    plan = batch.resolved[i].plan
    return plan is not None and bool(plan.recipe.quotas)


def _leave_out(batch: Batch, i: int, shown: NDArray[np.int32], retrieved: NDArray[np.int32] | None) -> None:
    """Takes the items ``shown`` (m,) from what row ``i`` may have, and the candidates that were spare.

    ``retrieved``: the candidates in the order in which the spare ones are last, where they are ranked.
    """
    resolved, (source, scores, items) = batch.resolved[i], batch.found[i]
    plan, page = resolved.plan, batch.page_caps
    if plan is not None and plan.pins:
        kept_out = np.concatenate([resolved.kept_out, shown])
        plan = batch.loaded.planner.plan(batch.requests[i], resolved.allowed, kept_out)
    if page is not None:
        plan = batch.loaded.planner.capped(plan, page._replace(limits=left_beside(page, shown)))
    warnings = resolved.warnings if plan is None else tuple(dict.fromkeys(resolved.warnings + plan.warnings))
    exclude = np.concatenate([resolved.exclude, shown])
    batch.resolved[i] = replace(resolved, exclude=exclude, plan=plan, warnings=warnings)
    order = items if retrieved is None else retrieved
    kept = order[~np.isin(order, shown)][: batch.n_wanted(i) - batch.n_spare]
    is_kept = np.isin(items, kept)
    batch.found[i] = (source, scores[is_kept], items[is_kept])
