"""What was shown and what became of it, by arm and variant."""

from typing import Any, NamedTuple

import numpy as np

from recserve.engine.state.attribution import Impressions
from recserve.engine.state.estimators import Estimate, ips, rate, snips


class RankRow(NamedTuple):
    """Clicks of the impressions at one rank; ``ctr`` is None where too few users saw one."""

    rank: int
    n_users: int
    n_impressions: int
    ctr: Estimate | None


class ReportRow(NamedTuple):
    """One arm and variant. ``conversion``: purchases per impression.

    ``ips``, ``snips``: the clicks per impression that the same policy would get if it did not explore, from
    impressions with a propensity. All are None where too few users were counted.
    """

    arm: str
    variant: str
    n_users: int
    n_impressions: int
    ctr: Estimate | None
    conversion: Estimate | None
    ips: Estimate | None
    snips: Estimate | None
    ranks: list[RankRow]


def report(impressions: Impressions, *, min_users: int) -> list[ReportRow]:
    """Returns a row for each arm and variant, by name; what fewer than ``min_users`` saw has no rates."""
    names = impressions.group_names
    order = sorted(range(len(names)), key=names.__getitem__)
    return [_row(*names[group], impressions.only(impressions.groups == group), min_users) for group in order]


def as_json(row: ReportRow) -> dict[str, Any]:
    """Returns a row as JSON values."""
    measures = {name: _json(getattr(row, name)) for name in ("ctr", "conversion", "ips", "snips")}
    ranks = [{**one._asdict(), "ctr": _json(one.ctr)} for one in row.ranks]
    return {**row._asdict(), **measures, "ranks": ranks}


def _row(arm: str, variant: str, shown: Impressions, min_users: int) -> ReportRow:
    n_users = _n_users(shown)
    ranks = [_rank_row(int(rank), shown.only(shown.ranks == rank), min_users) for rank in _ranks(shown)]
    if n_users < min_users:
        return ReportRow(arm, variant, n_users, len(shown.users), None, None, None, None, ranks)
    known = shown.only(~np.isnan(shown.propensities))
    # Without exploration an explored item would not have stood there, and any other one surely.
    weights = np.where(known.explored, 0.0, 1.0) / known.propensities
    clicks = known.clicked.astype(np.float64)
    return ReportRow(
        arm,
        variant,
        n_users,
        len(shown.users),
        rate(shown.clicked, shown.users),
        rate(shown.converted, shown.users),
        ips(clicks, weights, known.users),
        snips(clicks, weights, known.users),
        ranks,
    )


def _rank_row(rank: int, shown: Impressions, min_users: int) -> RankRow:
    n_users = _n_users(shown)
    ctr = rate(shown.clicked, shown.users) if n_users >= min_users else None
    return RankRow(rank, n_users, len(shown.users), ctr)


def _ranks(shown: Impressions) -> list[int]:
    ranks: list[int] = np.unique(shown.ranks[shown.ranks > 0]).tolist()
    return ranks


def _n_users(shown: Impressions) -> int:
    return len(np.unique(shown.users))


def _json(estimate: Estimate | None) -> dict[str, Any] | None:
    return None if estimate is None else estimate._asdict()
