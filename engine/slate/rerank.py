"""The stage between candidates and slate: rules, novelty, diversity, caps, pins."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recserve.engine.bundle.rules import DPP
from recserve.engine.slate.groups import shares_of
from recserve.engine.slate.plan import Plan, Recipe
from recserve.kernels import Caps, calibrated, dpp, mmr, nearest_of
from recserve.kernels.diversity import unit_scores

# Of the history, what a serendipitous item is unlike: the newest.
MAX_COMPARED = 50

Scores = NDArray[np.float32]
Items = NDArray[np.int32]


@dataclass(slots=True)
class Candidates:
    """One request on its way: candidates best first, −1 and −inf beyond their end, and the slate's length.

    ``more(n, without, refused)``: the next ``n`` candidates that are neither in ``without``, (m,) int32, nor
    in ``refused``, (n_items,) bool. ``pin_scores``: of the plan's pins. ``obeys_min_score``: whether
    the scores are the model's. ``history``: (h,) items that the user had.
    """

    k: int
    plan: Plan
    scores: Scores
    items: Items
    more: Callable[[int, Items, NDArray[np.bool_]], tuple[Scores, Items]]
    pin_scores: Scores
    obeys_min_score: bool
    history: Items


class Reranker:
    """Chooses slates from the candidates of one catalogue; safe to call from several threads."""

    def __init__(self, vectors: Scores, popularity: NDArray[np.int64]) -> None:
        self._vectors = vectors
        # The information of meeting an item, 0 (the best known one) to 1.
        surprise = -np.log2((popularity + 1.0) / (popularity.sum() + len(popularity)))
        span = max(float(np.ptp(surprise)), 1e-9)
        self._novelty = ((surprise - surprise.min()) / span).astype(np.float32)

    def rerank(self, rows: list[Candidates]) -> list[tuple[Scores, Items]]:
        """Returns the scores and items, (k,) or fewer, of the slate of each row, in order of rank."""
        slates: list[Items] = [np.empty(0, np.int32)] * len(rows)
        for row in rows:
            _drop_low(row)
            _put_pins_first(row)
        groups: dict[tuple[int, int], list[int]] = {}
        for i, row in enumerate(rows):
            # The first items of a calibrated slate depend on its length, those of others do not.
            k = 0 if row.plan.recipe.categories is None else row.k
            groups.setdefault((id(row.plan.recipe), k), []).append(i)
        for members in groups.values():
            recipe = rows[members[0]].plan.recipe
            waiting = members
            while waiting:
                chosen = self._choose(recipe, [rows[i] for i in waiting])
                for i, slate in zip(waiting, chosen, strict=True):
                    slates[i] = slate[: rows[i].k]
                waiting = [i for i in waiting if _find_more(rows[i], slates[i])]
        return [_finish(row, slate) for row, slate in zip(rows, slates, strict=True)]

    def _choose(self, recipe: Recipe, rows: list[Candidates]) -> Items:
        """Returns (n_rows, max k) item indices, pins first, −1 beyond the end of a slate."""
        width = max(1, max(len(row.items) for row in rows))
        scores = np.full((len(rows), width), -np.inf, np.float32)
        items = np.full((len(rows), width), -1, np.int32)
        for i, row in enumerate(rows):
            scores[i, : len(row.items)] = row.scores
            items[i, : len(row.items)] = row.items
        n_pinned = np.array([len(row.plan.pins) for row in rows], np.int32)
        relevance, k = self._relevance(recipe, scores, items, n_pinned, rows), max(row.k for row in rows)
        weight, caps, categories = recipe.diversity, recipe.caps, recipe.categories
        if categories is not None:
            targets = np.stack(
                [
                    shares_of(categories, row.items, merit[: len(row.items)])
                    if recipe.by_merit
                    else shares_of(categories, row.history)
                    for row, merit in zip(rows, relevance, strict=True)
                ]
            )
            return calibrated(
                relevance, items, categories, targets, k, weight=weight, caps=caps, n_pinned=n_pinned
            )
        choose = dpp if recipe.method == DPP else mmr
        return choose(relevance, items, self._vectors, k, diversity=weight, caps=caps, n_pinned=n_pinned)

    def _relevance(
        self, recipe: Recipe, scores: Scores, items: Items, n_pinned: Items, rows: list[Candidates]
    ) -> Scores:
        """Returns what is weighed against diversity: the score, novelty and serendipity."""
        if not recipe.is_diverse:
            # The order that the candidates have, which is not that of their scores where sources are mixed.
            places = -np.arange(items.shape[1], dtype=np.float32)
            return np.where(items >= 0, places, np.float32(-np.inf))
        relevance = unit_scores(scores, items, n_pinned)
        if recipe.novelty or recipe.serendipity:
            ranked = (items >= 0) & (np.arange(items.shape[1]) >= n_pinned[:, None])
            relevance *= np.float32(max(0.0, 1.0 - recipe.novelty - recipe.serendipity))
            added = np.float32(recipe.novelty) * self._novelty[items]
            if recipe.serendipity:
                added += np.float32(recipe.serendipity) * self._unlikeness(items, rows)
            relevance += np.where(ranked, added, np.float32(0.0))
        return relevance

    def _unlikeness(self, items: Items, rows: list[Candidates]) -> Scores:
        """Returns (n_rows, n): 1 − the largest cosine with the newest of the history, 1 without one."""
        unlike = np.ones(items.shape, np.float32)
        for row, own, candidates in zip(rows, unlike, items, strict=True):
            if len(row.history):
                newest = np.unique(row.history[-MAX_COMPARED:])
                nearest = nearest_of(self._vectors, np.maximum(candidates, 0), newest, 1)[1][:, 0]
                # A cosine may be 1 and the last bit.
                own -= np.clip(nearest, np.float32(0.0), np.float32(1.0))
        return unlike


def _drop_low(row: Candidates) -> None:
    """Leaves out what is padding or scored below the minimum."""
    kept = row.items >= 0
    if row.plan.recipe.min_score is not None and row.obeys_min_score:
        kept &= row.scores >= row.plan.recipe.min_score
    if not kept.all():
        row.scores, row.items = row.scores[kept], row.items[kept]


def _put_pins_first(row: Candidates) -> None:
    if row.plan.pins:
        pinned = np.array([item for _, item in row.plan.pins], np.int32)
        kept = ~np.isin(row.items, pinned)
        row.items = np.concatenate([pinned, row.items[kept]])
        row.scores = np.concatenate([row.pin_scores, row.scores[kept]])


def _find_more(row: Candidates, slate: Items) -> bool:
    """Gets the next candidates of a slate that caps left too short; returns whether there are any."""
    caps = row.plan.recipe.caps
    chosen = slate[slate >= 0]
    if caps is None or len(chosen) >= row.k:
        return False
    refused = full_items(caps, chosen)
    before = len(row.items)
    scores, items = row.more(row.plan.recipe.n_candidates, row.items, refused)
    found = replace(row, scores=scores, items=items)
    _drop_low(found)
    row.scores = np.concatenate([row.scores, found.scores])
    row.items = np.concatenate([row.items, found.items])
    return len(row.items) > before


def left_beside(caps: Caps, chosen: Items) -> NDArray[np.int32]:
    """Returns (n_groups,) int32: the places that each group has left beside ``chosen``, or below 0."""
    left = caps.limits.copy()
    for item in chosen.tolist():
        left[caps.groups[caps.indptr[item] : caps.indptr[item + 1]]] -= 1
    return left


def full_items(caps: Caps, chosen: Items) -> NDArray[np.bool_]:
    """Returns (n_items,) bool: the items of a group that has no place left beside ``chosen``."""
    left = left_beside(caps, chosen)
    is_full = np.concatenate([[0], np.cumsum(left[caps.groups] <= 0)])
    full: NDArray[np.bool_] = is_full[caps.indptr[1:]] > is_full[caps.indptr[:-1]]
    return full


def _finish(row: Candidates, slate: Items) -> tuple[Scores, Items]:
    """Puts the pins at their ranks and looks the scores up."""
    chosen = slate[slate >= 0]
    if row.plan.pins:
        n_pinned = len(row.plan.pins)
        order = chosen[n_pinned:].tolist()
        for rank, item in row.plan.pins:
            order.insert(rank - 1, item)
        chosen = np.array(order, np.int32)
    if not len(chosen):
        return row.scores[:0], chosen
    # Many comparisons, and yet a fifth of the time of sorting the candidates.
    return row.scores[(row.items == chosen[:, None]).argmax(axis=1)], chosen
